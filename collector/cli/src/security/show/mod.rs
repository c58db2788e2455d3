//! `breakglass show`: who, why, and every command.

use std::{collections::VecDeque, time::Duration};

use anyhow::Result;
use breakglass_api::v1::{self, event::Body};
use clap::Args;
use tonic::Streaming;

use super::{Desk, client::Client};
use crate::{
    config::Config,
    print::{Options, note},
};

mod actions;
mod header;
mod timeline;

pub(super) use header::terminals;
use timeline::Timeline;
pub(super) use timeline::describe_gap;

/// How many notices (alerts, gaps and the like) are woven in among the commands of a session that is over. They are held in
/// memory while the commands stream by; `events` has them all.
const NOTICES_MAX: usize = 10_000;

/// How long to wait for more of the one stream once the other has told of the session's close: both are filled from the same
/// frames, but not in step.
const LAST_ONES: Duration = Duration::from_secs(2);

/// Arguments of `show`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Command lines are quoted for bash: pasted, they mean what was run. Where a program ran under another name than its own, its \
path follows in brackets.

Examples:
  breakglass show 5f2c9a1e
  breakglass show 5f2c9a1e --follow
  breakglass show 5f2c9a1e --json | jq -c 'select(.type == \"command\") | .exec.argv'")]
pub struct ShowArgs {
    /// The session: its id, or an unambiguous end or beginning of it.
    session: String,
    /// Go on as commands are run, until the session is closed.
    #[arg(long, short)]
    follow: bool,
    /// Also what could not be run (execs that the kernel refused, such as names tried along PATH) and what programs did: files
    /// changed, sockets, users, namespaces, the system.
    #[arg(long, short)]
    all: bool,
    /// Whole command lines, however long, also on a terminal.
    #[arg(long)]
    full: bool,
}

/// Shows a session.
pub async fn run(args: &ShowArgs, config: &Config, options: &Options) -> Result<u8> {
    let mut desk = Desk::open(config, options).await?;
    let session = desk.session(&args.session).await?;
    let follow = args.follow && session.closed_ns == 0;
    if desk.printer.is_json() {
        desk.printer.json(&session)?;
    } else {
        header::print(&mut desk.printer, &session)?;
    }
    desk.printer.flush()?;
    let mut timeline = Timeline::new(args, &session, follow);
    if follow {
        live(&mut desk, &session, &mut timeline).await?;
    } else {
        finished(&mut desk, &session, &mut timeline).await?;
    }
    timeline.end(&mut desk.printer)?;
    desk.printer.flush()?;
    Ok(0)
}

/// Whether an event tells of the end of its session.
pub(super) fn is_close(event: &v1::RecordedEvent) -> bool {
    matches!(event.event.as_ref().and_then(|event| event.body.as_ref()), Some(Body::SessionClosed(_)))
}

/// Everything that is there, notices and commands in one order.
async fn finished(desk: &mut Desk, session: &v1::Session, timeline: &mut Timeline) -> Result<()> {
    let mut notices = notices(&mut desk.client, session, timeline.all()).await?;
    let mut commands = commands(&mut desk.client, session, false).await?;
    while let Some(command) = commands.message().await.map_err(|status| desk.client.explain(&status))? {
        while let Some(notice) = notices.pop_front_if(|notice| notice.wall_ns <= command.wall_ns) {
            timeline.notice(&mut desk.printer, &notice)?;
        }
        timeline.command(&mut desk.printer, &command)?;
    }
    notices.iter().try_for_each(|notice| timeline.notice(&mut desk.printer, notice))
}

/// The notices of a session. Its events are read through only where its counts say that there are any.
async fn notices(client: &mut Client, session: &v1::Session, all: bool) -> Result<VecDeque<v1::RecordedEvent>> {
    let mut notices = VecDeque::new();
    if session.alerts == 0 && session.gaps == 0 && !(all && session.actions > 0) {
        return Ok(notices);
    }
    let mut events = events(client, session, false).await?;
    while let Some(event) = events.message().await.map_err(|status| client.explain(&status))? {
        // The close is in the header.
        if timeline::is_notice(&event, all) && !is_close(&event) {
            if notices.len() == NOTICES_MAX {
                note(&format!(
                    "Only the first {NOTICES_MAX} alerts, gaps and actions are shown; `breakglass events` has them all."
                ));
                break;
            }
            notices.push_back(event);
        }
    }
    notices.make_contiguous().sort_by_key(|notice| notice.wall_ns);
    Ok(notices)
}

/// What was there and what comes, until the session is closed.
async fn live(desk: &mut Desk, session: &v1::Session, timeline: &mut Timeline) -> Result<()> {
    let mut commands = commands(&mut desk.client, session, true).await?;
    let mut events = events(&mut desk.client, session, true).await?;
    let (mut commands_go_on, mut events_go_on) = (true, true);
    while commands_go_on || events_go_on {
        tokio::select! {
            command = commands.message(), if commands_go_on => match command.map_err(|status| desk.client.explain(&status))? {
                Some(command) => timeline.command(&mut desk.printer, &command)?,
                None => commands_go_on = false,
            },
            event = events.message(), if events_go_on => match event.map_err(|status| desk.client.explain(&status))? {
                Some(event) => {
                    timeline.notice(&mut desk.printer, &event)?;
                    events_go_on = !is_close(&event);
                }
                None => events_go_on = false,
            },
            () = tokio::time::sleep(LAST_ONES), if !(commands_go_on && events_go_on) => break,
        }
        desk.printer.flush()?;
    }
    Ok(())
}

async fn commands(client: &mut Client, session: &v1::Session, follow: bool) -> Result<Streaming<v1::Command>> {
    let request = v1::ListCommandsRequest { session: session.id.clone(), after: 0, follow };
    let answer = client.query.list_commands(request).await;
    Ok(answer.map_err(|status| client.explain(&status))?.into_inner())
}

async fn events(client: &mut Client, session: &v1::Session, follow: bool) -> Result<Streaming<v1::RecordedEvent>> {
    let request = v1::EventsRequest { session: session.id.clone(), follow, ..v1::EventsRequest::default() };
    let answer = client.query.events(request).await;
    Ok(answer.map_err(|status| client.explain(&status))?.into_inner())
}
