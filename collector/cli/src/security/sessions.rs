//! `breakglass sessions`.

use anyhow::Result;
use breakglass_api::v1::{self, CloseCause};
use clap::Args;

use super::Desk;
use crate::{
    config::Config,
    print::{
        Options, Style, count, counted, note, safe, short_id,
        table::{Column, Layout, Table},
        time::{self, Zone},
    },
};

/// Arguments of `sessions`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
A session is named by its whole id, or by any end or beginning of it that is unambiguous, of six characters or more: the
first column is the end.

Examples:
  breakglass sessions --open
  breakglass sessions --host web1 --operator alice@example.org
  breakglass sessions --json | jq -r 'select(.gaps > 0) | .id'")]
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
    /// How many at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    limit: u32,
    /// Only sessions opened before this one; for the next page.
    #[arg(long, value_name = "SESSION")]
    before: Option<String>,
}

const COLUMNS: &[Column] = &[
    Column { title: "SESSION", layout: Layout::Whole },
    Column { title: "HOST", layout: Layout::Whole },
    Column { title: "OPERATOR", layout: Layout::Flexible },
    Column { title: "OPENED", layout: Layout::Whole },
    Column { title: "LASTED", layout: Layout::Number },
    Column { title: "COMMANDS", layout: Layout::Number },
    Column { title: "CLOSED BY", layout: Layout::Whole },
    Column { title: "NOTICE", layout: Layout::Whole },
    Column { title: "REASON", layout: Layout::Flexible },
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
    };
    let answer = desk.client.query.list_sessions(request).await;
    let sessions = answer.map_err(|status| desk.client.explain(&status))?.into_inner().sessions;
    let printer = &mut desk.printer;
    if printer.is_json() {
        sessions.iter().try_for_each(|session| printer.json(session))?;
    } else if sessions.is_empty() {
        note(if args.open { "No session is open." } else { "No sessions." });
    } else {
        let now = time::now_ns();
        let mut table = Table::new(printer, COLUMNS);
        sessions.iter().for_each(|session| table.row(row(session, printer.zone(), now)));
        table.print(printer)?;
    }
    printer.flush()?;
    if let (Some(last), true) = (sessions.last(), sessions.len() == args.limit as usize && !options.json) {
        note(&format!("There may be more: --before {}", short_id(&last.id)));
    }
    Ok(0)
}

fn row(session: &v1::Session, zone: &Zone, now: i64) -> [(String, Option<Style>); 9] {
    let opened = session.opened.clone().unwrap_or_default();
    let open = session.closed_ns == 0;
    let end = if open { now } else { session.closed_ns };
    [
        (short_id(&session.id), Some(Style::Bold)),
        (safe::text(session.hostname.as_bytes()), None),
        (safe::text(opened.operator.as_bytes()), None),
        (zone.minute(session.opened_ns), None),
        (time::span(time::between(session.opened_ns, end)), None),
        (count(session.commands), None),
        if open {
            ("open".to_owned(), Some(Style::Warn))
        } else {
            (closed_by(session.closed.as_ref()).to_owned(), None)
        },
        notice(session),
        (safe::text(opened.reason.as_bytes()), None),
    ]
}

fn notice(session: &v1::Session) -> (String, Option<Style>) {
    let parts = [(session.alerts, "alert"), (session.gaps, "gap")];
    let parts: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| counted(*n, what)).collect();
    if parts.is_empty() { ("-".to_owned(), Some(Style::Dim)) } else { (parts.join(", "), Some(Style::Bad)) }
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
        Some(CloseCause::Unspecified) | None => "unknown",
    }
}
