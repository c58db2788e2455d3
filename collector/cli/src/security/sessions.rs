//! `breakglass sessions`.

use anyhow::Result;
use breakglass_api::v1::{self, CloseCause};
use clap::Args;

use super::Desk;
use crate::{
    config::Config,
    print::{
        Options, Printer, Style, count, note, safe, short_id,
        table::{Column, Layout, Table},
        time,
    },
};

/// Arguments of `sessions`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
A session is named by its whole id, or by any end or beginning of it that is unambiguous, of six characters or more: the \
first column is the end. DOORS counts what it left behind that may let somebody in, or run something, later. REVIEW says what a
reviewer has signed, or until when somebody should.

Examples:
  breakglass sessions --open
  breakglass sessions --unreviewed
  breakglass sessions --host web1 --operator alice@example.org
  breakglass sessions --json | jq -r 'select(.gaps > 0 or .doors > 0) | .id'")]
pub struct SessionsArgs {
    /// Only sessions on this host, by name or id.
    #[arg(long)]
    host: Option<String>,
    /// Only sessions that this operator opened.
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// Only sessions that are open now.
    #[arg(long)]
    open: bool,
    /// Only sessions that nobody has signed off yet.
    #[arg(long)]
    unreviewed: bool,
    /// How many at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    limit: u32,
    /// Only sessions opened before this one; for the next page.
    #[arg(long, value_name = "SESSION")]
    before: Option<String>,
}

/// Terminals narrower than this, columns, are shown what fits: who, where, when, and whether there is something to look at.
const WIDE: usize = 110;

/// Where a column is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Always,
    /// On wide terminals and into pipes.
    Wide,
    /// On narrow terminals.
    Narrow,
}

/// A column, where it is shown, and what it says of a session.
type Field = (Column, Shown, fn(&v1::Session, &Printer, i64) -> (String, Option<Style>));

const FIELDS: [Field; 13] = [
    (Column { title: "SESSION", layout: Layout::Whole }, Shown::Always, |s, _, _| (short_id(&s.id), Some(Style::Bold))),
    (Column { title: "HOST", layout: Layout::Flexible }, Shown::Always, |s, _, _| {
        (safe::text(s.hostname.as_bytes()), None)
    }),
    (Column { title: "OPERATOR", layout: Layout::Flexible }, Shown::Always, |s, _, _| {
        (told(s, |opened| &opened.operator), None)
    }),
    (Column { title: "OPENED", layout: Layout::Whole }, Shown::Always, opened_at),
    (Column { title: "LASTED", layout: Layout::Number }, Shown::Always, lasted),
    (Column { title: "CMDS", layout: Layout::Number }, Shown::Wide, |s, _, _| (count(s.commands), None)),
    (Column { title: "CLOSED BY", layout: Layout::Whole }, Shown::Wide, ended_by),
    (Column { title: "ALERTS", layout: Layout::Number }, Shown::Wide, |s, _, _| notable(s.alerts)),
    (Column { title: "GAPS", layout: Layout::Number }, Shown::Wide, |s, _, _| notable(s.gaps)),
    (Column { title: "DOORS", layout: Layout::Number }, Shown::Wide, |s, _, _| notable(s.doors)),
    (Column { title: "REVIEW", layout: Layout::Whole }, Shown::Wide, review),
    (Column { title: "LOOK AT", layout: Layout::Whole }, Shown::Narrow, look_at),
    (Column { title: "REASON", layout: Layout::Flexible }, Shown::Always, |s, _, _| {
        (told(s, |opened| &opened.reason), None)
    }),
];

/// Lists sessions.
pub async fn run(args: &SessionsArgs, config: &Config, options: &Options) -> Result<u8> {
    let mut desk = Desk::open(config, options).await?;
    let before = match &args.before {
        Some(name) => desk.session(name).await?.id,
        None => String::new(),
    };
    let request = v1::ListSessionsRequest {
        host: args.host.clone().unwrap_or_default(),
        operator: args.operator.clone().unwrap_or_default(),
        open_only: args.open,
        limit: args.limit,
        before,
        unreviewed_only: args.unreviewed,
    };
    let answer = desk.client.query.list_sessions(request).await;
    let v1::ListSessionsResponse { sessions, behind, more } =
        answer.map_err(|status| desk.client.explain(&status))?.into_inner();
    let printer = &mut desk.printer;
    if printer.is_json() {
        sessions.iter().try_for_each(|session| printer.json(session))?;
    } else if sessions.is_empty() {
        note(match (args.open, args.unreviewed) {
            (true, _) => "No session is open.",
            (false, true) => "No session waits for a review.",
            (false, false) => "No sessions.",
        });
    } else {
        let now = time::now_ns();
        let narrow = printer.width().is_some_and(|width| width < WIDE);
        let hidden = if narrow { Shown::Wide } else { Shown::Narrow };
        let fields: Vec<&Field> = FIELDS.iter().filter(|(_, shown, _)| *shown != hidden).collect();
        let mut table = Table::new(printer, fields.iter().map(|(column, _, _)| column));
        for session in &sessions {
            table.row(fields.iter().map(|(_, _, cell)| cell(session, printer, now)));
        }
        table.print(printer)?;
    }
    printer.flush()?;
    if behind {
        note("The collector is behind: what came in last is not in this list yet. Ask again in a moment.");
    }
    if let (Some(last), true) = (sessions.last(), more) {
        note(&format!("There may be more: --before {}", short_id(&last.id)));
    }
    Ok(0)
}

fn told(session: &v1::Session, what: fn(&v1::SessionOpened) -> &String) -> String {
    session.opened.as_ref().map(|opened| safe::text(what(opened).as_bytes())).unwrap_or_default()
}

/// Short for people; whole where somebody may sort or cut it.
fn opened_at(session: &v1::Session, printer: &Printer, now: i64) -> (String, Option<Style>) {
    let text = match printer.is_terminal() {
        true => printer.zone().near(session.opened_ns, now),
        false => printer.zone().minute(session.opened_ns),
    };
    (text, None)
}

fn lasted(session: &v1::Session, _: &Printer, now: i64) -> (String, Option<Style>) {
    let span = |end| time::span(time::between(session.opened_ns, end));
    match session.closed_ns {
        0 => (format!("open {}", span(now)), Some(Style::Warn)),
        closed => (span(closed), None),
    }
}

fn ended_by(session: &v1::Session, _: &Printer, _: i64) -> (String, Option<Style>) {
    match session.closed_ns {
        0 => ("-".to_owned(), Some(Style::Dim)),
        _ => (closed_by(session.closed.as_ref()).to_owned(), None),
    }
}

fn notable(n: u64) -> (String, Option<Style>) {
    if n == 0 { ("-".to_owned(), Some(Style::Dim)) } else { (count(n), Some(Style::Bad)) }
}

/// Whether somebody has signed the session off, or until when somebody should.
fn review(session: &v1::Session, _: &Printer, now: i64) -> (String, Option<Style>) {
    let concern = session.reviews.iter().any(|review| review.verdict != "ok");
    match (session.closed_ns, session.reviewed) {
        (0, _) => ("-".to_owned(), Some(Style::Dim)),
        (_, true) if concern => ("concern".to_owned(), Some(Style::Bad)),
        (_, true) => ("ok".to_owned(), Some(Style::Good)),
        (_, false) if session.review_due_ns == 0 => ("-".to_owned(), Some(Style::Dim)),
        (_, false) if session.review_overdue => ("OVERDUE".to_owned(), Some(Style::Bad)),
        (_, false) => (format!("in {}", time::span(time::between(now, session.review_due_ns))), Some(Style::Warn)),
    }
}

/// What there is to look at, in words, where there is no room for counts.
fn look_at(session: &v1::Session, _: &Printer, _: i64) -> (String, Option<Style>) {
    let overdue = u64::from(session.review_overdue);
    let counts = [(session.alerts, "alert"), (session.gaps, "gap"), (session.doors, "door"), (overdue, "overdue")];
    let words: Vec<&str> = counts.iter().filter(|(count, _)| *count > 0).map(|(_, word)| *word).collect();
    match words.is_empty() {
        true => ("-".to_owned(), Some(Style::Dim)),
        false => (words.join(" "), Some(Style::Bad)),
    }
}

/// What ended a session, in a word or two.
pub(super) fn closed_by(closed: Option<&v1::SessionClosed>) -> &'static str {
    match closed.map(v1::SessionClosed::cause) {
        Some(CloseCause::Deadline) => "deadline",
        Some(CloseCause::Operator) => "operator",
        Some(CloseCause::LastExit) => "last exit",
        Some(CloseCause::AgentStop) => "agent stop",
        Some(CloseCause::HostRoot) => "root on host",
        Some(CloseCause::OpenFailed) => "failed to open",
        Some(CloseCause::Reboot) => "reboot",
        Some(CloseCause::Collector) => "by collector",
        Some(CloseCause::Unspecified) | None => "unknown",
    }
}
