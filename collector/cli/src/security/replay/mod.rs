//! `breakglass replay`: a session's terminal as it was.

use std::time::Duration;

use anyhow::{Result, anyhow};
use breakglass_api::v1::{self, replay_item::Body};
use clap::Args;
use tonic::Streaming;

use super::{Desk, NOTHING_FOUND, client::Client, exact};
use crate::{
    config::Config,
    print::{Options, Printer, bytes, counted, note, safe, short_id},
};

mod cast;
mod filter;
mod keys;
mod markers;
mod pace;
mod screen;
mod stdio;
mod typed;

use cast::Cast;
use markers::Markers;
use pace::{SPEED_MAX, SPEED_MIN};
use stdio::{STDOUT, Stdio};

/// Arguments of `replay`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
On a terminal the session plays as it happened. Keys: space stops and goes on, + and - change the speed, q ends. Only what draws \
reaches your terminal: requests that it would answer as if you had typed, the clipboard, titles and the like are left out.

Into a pipe or file, and with --raw, come the exact bytes, all at once.

Examples:
  breakglass replay 5f2c9a1e --speed 4 --max-idle 1s
  breakglass replay 5f2c9a1e --input --commands
  breakglass replay 5f2c9a1e --raw > screen.bytes
  breakglass replay 5f2c9a1e --asciicast > session.cast && asciinema play session.cast")]
pub struct ReplayArgs {
    /// The session: its id, or an unambiguous end or beginning of it; HOST/ID where several hosts have it.
    session: String,
    /// Standard output and error without a terminal (`ssh host command`, scp, sftp). Without: where there is no terminal. Into a pipe
    /// or file, and with --raw, standard output alone.
    #[arg(long, conflicts_with = "terminal")]
    stdio: bool,
    /// Which terminal: its number in `show`, or its id. Without: the one with the earliest output.
    #[arg(long, value_name = "N")]
    terminal: Option<u64>,
    /// Times faster than it happened.
    #[arg(long, default_value_t = 1.0, value_parser = speed, value_name = "X")]
    speed: f64,
    /// Longest pause to keep.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration, value_name = "SPAN")]
    max_idle: Duration,
    /// The exact bytes, at once, also to a terminal.
    #[arg(long, conflicts_with_all = ["input", "commands", "asciicast", "json"])]
    raw: bool,
    /// Also what was typed, line by line. What was typed unseen, such as passwords, was never recorded.
    #[arg(long)]
    input: bool,
    /// Also the commands, where they were started.
    #[arg(long)]
    commands: bool,
    /// Write an asciicast v3 recording, for asciinema.
    #[arg(long, conflicts_with = "json")]
    asciicast: bool,
    /// Show at once what there is, then go on as it happens, until the session is closed.
    #[arg(long, short)]
    follow: bool,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if (SPEED_MIN..=SPEED_MAX).contains(&speed) => Ok(speed),
        _ => Err(format!("give a number from {SPEED_MIN} to {SPEED_MAX}")),
    }
}

/// Replays.
pub async fn run(args: &ReplayArgs, config: &Config, options: &Options) -> Result<u8> {
    let mut desk = Desk::open(config, options).await?;
    let session = desk.session_or_wait(&args.session, args.follow).await?;
    let follow = args.follow && session.closed_ns == 0;
    let recorded_stdio = session.stdio_output_bytes > 0 || session.stdio_input_bytes > 0;
    let stdio = args.stdio || (session.terminals.is_empty() && recorded_stdio && args.terminal.is_none());
    if session.terminals.is_empty() && !stdio && !follow {
        note(&format!("Session {} has no recorded terminal.", short_id(&session.id)));
        return Ok(NOTHING_FOUND);
    }
    let request = v1::ReplayRequest {
        session: exact(&args.session, &session),
        terminal: choose(args, &session)?,
        input: args.input,
        commands: args.commands || args.asciicast,
        follow,
        all_terminals: false,
        stdio,
    };
    let Desk { client, printer } = &mut desk;
    let answer = client.query.replay(request).await;
    let exact = args.raw || printer.is_json() || !(args.asciicast || printer.is_terminal());
    let items = answer.map_err(|status| client.explain(&status))?.into_inner();
    let mut source = Source { items, client, lost: Lost::default(), stdio: Stdio::of(exact, printer.is_json()) };
    let code = if printer.is_json() {
        each(&mut source, printer, follow, |printer, item| printer.json(item)).await?;
        0
    } else if args.asciicast {
        asciicast(&mut source, printer, &session, follow).await?;
        0
    } else if args.raw || !printer.is_terminal() {
        plain(&mut source, printer, follow).await?;
        0
    } else {
        if args.terminal.is_none() && session.terminals.len() > 1 {
            note(&format!(
                "First of {} terminals; --terminal chooses: {}",
                session.terminals.len(),
                super::show::terminals(&session)
            ));
        }
        screen::play(args, &mut source, printer, follow).await?
    };
    printer.flush()?;
    source.lost.tell();
    Ok(code)
}

/// The id of the terminal that was asked for; 0 for the earliest.
fn choose(args: &ReplayArgs, session: &v1::Session) -> Result<u64> {
    let Some(wanted) = args.terminal else { return Ok(0) };
    let numbered = usize::try_from(wanted).ok().and_then(|n| session.terminals.get(n.checked_sub(1)?));
    let found = numbered.or_else(|| session.terminals.iter().find(|terminal| terminal.id == wanted));
    found.map(|terminal| terminal.id).ok_or_else(|| {
        let there = match super::show::terminals(session) {
            none if none.is_empty() => "none yet".to_owned(),
            some => some,
        };
        anyhow!(super::client::Error::NotFound(format!("there is no terminal {wanted}; there are {there}")))
    })
}

/// The items of a replay, and what is missing among them.
struct Source<'a> {
    items: Streaming<v1::ReplayItem>,
    client: &'a Client,
    lost: Lost,
    stdio: Stdio,
}

impl Source<'_> {
    async fn next(&mut self) -> Result<Option<v1::ReplayItem>> {
        let mut item = self.items.message().await.map_err(|status| self.client.explain(&status))?;
        match item.as_ref().and_then(|item| item.body.as_ref()) {
            Some(Body::Gap(gap)) => self.lost.add(gap.bytes),
            Some(Body::Output(output)) if output.missing > 0 => self.lost.add(output.missing),
            Some(Body::Stdio(data)) if data.missing > 0 => self.lost.add(data.missing),
            _ => {}
        }
        if let Some(item) = &mut item {
            self.stdio.convert(item);
        }
        Ok(item)
    }
}

/// What is missing from a replay.
#[derive(Debug, Default)]
struct Lost {
    places: u64,
    bytes: u64,
}

impl Lost {
    fn add(&mut self, bytes: u64) {
        self.places += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn tell(&self) {
        if self.places > 0 {
            let (places, missing) = (counted(self.places, "gap"), bytes(self.bytes));
            note(&format!("This replay is not whole: {places}, {missing} known to be missing."));
        }
    }
}

async fn each(
    source: &mut Source<'_>,
    printer: &mut Printer,
    follow: bool,
    mut act: impl FnMut(&mut Printer, &v1::ReplayItem) -> Result<()>,
) -> Result<()> {
    while let Some(item) = source.next().await? {
        act(printer, &item)?;
        if follow {
            printer.flush()?;
        }
    }
    Ok(())
}

/// The exact bytes; what else was asked for, on lines of its own.
async fn plain(source: &mut Source<'_>, printer: &mut Printer, follow: bool) -> Result<()> {
    let mut markers = Markers::new("\n");
    each(source, printer, follow, |printer, item| {
        match &item.body {
            Some(Body::Output(output)) => {
                markers.at_line_start(output.data.last().is_none_or(|last| *last == b'\n'));
                printer.raw(&output.data)?;
            }
            Some(Body::Stdio(data)) => {
                if data.stream == STDOUT {
                    markers.at_line_start(data.data.last().is_none_or(|last| *last == b'\n'));
                    printer.raw(&data.data)?;
                }
            }
            // Gaps are told at the end, on standard error: they are no bytes of the terminal.
            Some(Body::Gap(_)) | None => {}
            Some(_) => markers.item(printer, item)?,
        }
        Ok(())
    })
    .await?;
    markers.end(printer)
}

async fn asciicast(source: &mut Source<'_>, printer: &mut Printer, session: &v1::Session, follow: bool) -> Result<()> {
    let reason = session.opened.as_ref().map_or("", |opened| &opened.reason);
    let title = safe::text(format!("{} {}: {reason}", session.hostname, short_id(&session.id)).as_bytes());
    let mut cast = Cast::new(title, session.opened_ns);
    each(source, printer, follow, |printer, item| {
        let mut lines = String::new();
        cast.item(item, &mut lines);
        Ok(printer.raw(lines.as_bytes())?)
    })
    .await?;
    let mut lines = String::new();
    cast.end(&mut lines);
    Ok(printer.raw(lines.as_bytes())?)
}
