//! `breakglass show`: who, why, and every command.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::Result;
use breakglass_api::v1::{self, event::Body};
use clap::Args;
use tonic::{Status, Streaming};

use super::{ASK_EVERY, Desk, client::Client, exact};
use crate::{
    config::Config,
    print::{Options, note},
};

mod actions;
mod credentials;
mod header;
mod left;
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

/// How long to wait, once a followed session is closed, for what it left behind: the host compares itself for some seconds.
const COMPARING: Duration = Duration::from_secs(10);

/// Arguments of `show`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Command lines are quoted for bash: pasted, they mean what was run. Where a program ran under another name than its own, its \
path follows in brackets.

Examples:
  breakglass show 5f2c9a1e
  breakglass show 5f2c9a1e --follow --witness
  breakglass show 5f2c9a1e --json | jq -c 'select(.type == \"command\") | .exec.argv'")]
pub struct ShowArgs {
    /// The session: its id, or an unambiguous end or beginning of it; HOST/ID where several hosts have it.
    session: String,
    /// Go on as commands are run, until the session is closed.
    #[arg(long, short)]
    follow: bool,
    /// Also what could not be run, such as names tried along PATH; what programs did: files changed, sockets, users, namespaces,
    /// the system; and all of what was left behind or not compared.
    #[arg(long, short)]
    all: bool,
    /// Also programs that others started on the host while the session was open. Those that the session had others start, or may
    /// have, are shown in any case.
    #[arg(long, short)]
    witness: bool,
    /// Whole command lines, however long, also on a terminal.
    #[arg(long)]
    full: bool,
}

/// Shows a session.
pub async fn run(args: &ShowArgs, config: &Config, options: &Options) -> Result<u8> {
    let mut desk = Desk::open(config, options).await?;
    let mut session = desk.session_or_wait(&args.session, args.follow).await?;
    let follow = args.follow && session.closed_ns == 0;
    if desk.printer.is_json() {
        desk.printer.json(&session)?;
    } else {
        header::print(&mut desk.printer, &session)?;
    }
    desk.printer.flush()?;
    let mut timeline = Timeline::new(args, &session, follow);
    let name = exact(&args.session, &session);
    let view = View { session: &session, name: &name, all: args.all, witness: args.witness, follow };
    view.run(&mut desk, &mut timeline).await?;
    timeline.end(&mut desk.printer)?;
    desk.printer.flush()?;
    if follow {
        session = compared(&mut desk, &name).await?;
    }
    credentials::show(&mut desk, &session, &name).await?;
    if !desk.printer.is_json() {
        left::print(&mut desk.printer, &session, args.all)?;
    } else if follow {
        desk.printer.json(&session)?;
    }
    desk.printer.flush()?;
    Ok(0)
}

/// The session as it is after its close, with what it left behind if that comes soon.
async fn compared(desk: &mut Desk, name: &str) -> Result<v1::Session> {
    let until = Instant::now() + COMPARING;
    loop {
        let session = desk.session(name).await?;
        if session.compared || session.closed_ns == 0 || Instant::now() > until {
            return Ok(session);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Whether an event tells of the end of its session.
pub(super) fn is_close(event: &v1::RecordedEvent) -> bool {
    matches!(event.event.as_ref().and_then(|event| event.body.as_ref()), Some(Body::SessionClosed(_)))
}

/// What was there: notices in order of time, and how many events of the stream were read for them.
#[derive(Default)]
struct Past {
    notices: VecDeque<v1::RecordedEvent>,
    read: u64,
}

/// What is shown of a session below its header.
struct View<'a> {
    session: &'a v1::Session,
    /// How the collector finds it.
    name: &'a str,
    all: bool,
    witness: bool,
    follow: bool,
}

impl View<'_> {
    async fn run(&self, desk: &mut Desk, timeline: &mut Timeline) -> Result<()> {
        let mut past = self.past(&mut desk.client).await?;
        let mut commands = self.commands(&mut desk.client).await?;
        let go_on = self.history(desk, timeline, &mut past, &mut commands).await?;
        if self.follow {
            self.live(desk, timeline, past.read, go_on.then_some(commands)).await?;
        }
        Ok(())
    }

    /// The notices up to now.
    async fn past(&self, client: &mut Client) -> Result<Past> {
        let mut past = Past::default();
        let mut events = self.events(client, false).await?;
        while let Some(event) = events.message().await.map_err(|status| client.explain(&status))? {
            if past.notices.len() == NOTICES_MAX {
                note(&format!(
                    "Only the first {NOTICES_MAX} alerts, gaps and the like are shown; `breakglass events` has them all."
                ));
                break;
            }
            past.read += 1;
            if self.is_shown(&event) {
                past.notices.push_back(event);
            }
        }
        past.notices.make_contiguous().sort_by_key(|notice| notice.wall_ns);
        Ok(past)
    }

    /// What is there, notices and commands in one order. Says whether there may be more commands: a follower's end is the last
    /// command that was there when the session was asked for.
    async fn history(
        &self,
        desk: &mut Desk,
        timeline: &mut Timeline,
        past: &mut Past,
        commands: &mut Streaming<v1::Command>,
    ) -> Result<bool> {
        let mut go_on = true;
        let mut seen = 0;
        while !self.follow || seen < self.session.commands {
            let Some(command) = commands.message().await.map_err(|status| desk.client.explain(&status))? else {
                go_on = false;
                break;
            };
            seen = seen.max(command.number);
            while let Some(notice) = past.notices.pop_front_if(|notice| notice.wall_ns <= command.wall_ns) {
                timeline.notice(&mut desk.printer, &notice)?;
            }
            timeline.command(&mut desk.printer, &command)?;
        }
        past.notices.drain(..).try_for_each(|notice| timeline.notice(&mut desk.printer, &notice))?;
        desk.printer.flush()?;
        Ok(go_on)
    }

    /// What comes, until the session is closed. The first `read` events were there before.
    async fn live(
        &self,
        desk: &mut Desk,
        timeline: &mut Timeline,
        read: u64,
        mut commands: Option<Streaming<v1::Command>>,
    ) -> Result<()> {
        let mut events = Some(self.events(&mut desk.client, true).await?);
        let mut skip = read;
        while commands.is_some() || events.is_some() {
            tokio::select! {
                command = next(&mut commands) => match command.map_err(|status| desk.client.explain(&status))? {
                    Some(command) => timeline.command(&mut desk.printer, &command)?,
                    None => commands = None,
                },
                event = next(&mut events) => match event.map_err(|status| desk.client.explain(&status))? {
                    Some(event) => {
                        if skip == 0 && self.is_shown(&event) {
                            timeline.notice(&mut desk.printer, &event)?;
                        }
                        skip = skip.saturating_sub(1);
                        if is_close(&event) {
                            events = None;
                        }
                    }
                    None => events = None,
                },
                () = tokio::time::sleep(LAST_ONES), if commands.is_none() || events.is_none() => break,
            }
            desk.printer.flush()?;
        }
        Ok(())
    }

    /// Whether an event is shown. The close of a session that is not followed is in the header.
    fn is_shown(&self, event: &v1::RecordedEvent) -> bool {
        let Some(recorded) = &event.event else { return false };
        match &recorded.body {
            Some(Body::Exec(exec)) => timeline::is_witness(recorded) && (self.witness || exec.link.is_some()),
            Some(Body::SessionClosed(_)) => self.follow,
            _ => true,
        }
    }

    async fn commands(&self, client: &mut Client) -> Result<Streaming<v1::Command>> {
        let request = v1::ListCommandsRequest { session: self.name.to_owned(), after: 0, follow: self.follow };
        let answer = client.query.list_commands(request).await;
        Ok(answer.map_err(|status| client.explain(&status))?.into_inner())
    }

    async fn events(&self, client: &mut Client, follow: bool) -> Result<Streaming<v1::RecordedEvent>> {
        let witness = (self.witness || self.follow || self.session.witnessed > 0).then_some("exec");
        let actions = actions::KINDS.iter().filter(|_| self.all).copied();
        let kinds = timeline::NOTICES.into_iter().chain(witness).chain(actions).map(str::to_owned).collect();
        let session = self.name.to_owned();
        let request = v1::EventsRequest { session, follow, kinds, ..v1::EventsRequest::default() };
        let answer = client.query.events(request).await;
        Ok(answer.map_err(|status| client.explain(&status))?.into_inner())
    }
}

/// The next item of a stream that goes on; of one that has ended, never.
async fn next<T>(stream: &mut Option<Streaming<T>>) -> Result<Option<T>, Status> {
    match stream {
        Some(stream) => stream.message().await,
        None => std::future::pending().await,
    }
}
