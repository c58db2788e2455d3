//! `breakglass hosts`.

use anyhow::Result;
use breakglass_api::v1;
use clap::Args;

use super::Desk;
use crate::{
    config::Config,
    print::{
        Options, Style, count, note, safe, short_id,
        table::{Column, Layout, Table},
        time,
    },
};

/// Arguments of `hosts`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  breakglass hosts
  breakglass hosts --json | jq -r 'select(.connected | not) | .hostname'")]
pub struct HostsArgs {}

/// Terminals narrower than this, columns, are not shown ids: names are what hosts are asked for by.
const WIDE: usize = 110;

const COLUMNS: &[Column] = &[
    Column { title: "HOST", layout: Layout::Flexible },
    Column { title: "CONNECTION", layout: Layout::Whole },
    Column { title: "TIER", layout: Layout::Whole },
    Column { title: "AGENT", layout: Layout::Whole },
    Column { title: "OPEN SESSION", layout: Layout::Whole },
    Column { title: "EVENTS", layout: Layout::Number },
    Column { title: "ID", layout: Layout::Flexible },
];

/// Lists the hosts.
pub async fn run(_args: &HostsArgs, config: &Config, options: &Options) -> Result<u8> {
    let mut desk = Desk::open(config, options).await?;
    let answer = desk.client.query.list_hosts(v1::ListHostsRequest {}).await;
    let hosts = answer.map_err(|status| desk.client.explain(&status))?.into_inner().hosts;
    let printer = &mut desk.printer;
    if printer.is_json() {
        hosts.iter().try_for_each(|host| printer.json(host))?;
    } else if hosts.is_empty() {
        note("No host has reported yet. Enrol one with `breakglass-collector enroll host`.");
    } else {
        let now = time::now_ns();
        // The id is last: narrow terminals do without.
        let narrow = printer.width().is_some_and(|width| width < WIDE);
        let columns = COLUMNS.len() - usize::from(narrow);
        let mut table = Table::new(printer, COLUMNS.iter().take(columns));
        hosts.iter().for_each(|host| table.row(row(host, now).into_iter().take(columns)));
        table.print(printer)?;
    }
    printer.flush()?;
    Ok(0)
}

fn row(host: &v1::Host, now: i64) -> [(String, Option<Style>); 7] {
    let text = |s: &str| safe::text(s.as_bytes());
    let connection = match (host.connected, host.last_seen_ns) {
        (true, _) => ("connected".to_owned(), Some(Style::Good)),
        (false, 0) => ("never seen".to_owned(), Some(Style::Warn)),
        (false, seen) => (format!("gone {}", time::span(time::between(seen, now))), Some(Style::Bad)),
    };
    let session = match host.open_session.as_str() {
        "" => ("-".to_owned(), Some(Style::Dim)),
        id => (short_id(id), Some(Style::Warn)),
    };
    [
        (text(&host.hostname), Some(Style::Bold)),
        connection,
        (text(&host.tier), None),
        (text(&host.agent_version), None),
        session,
        (count(host.events), None),
        (text(&host.id), Some(Style::Dim)),
    ]
}
