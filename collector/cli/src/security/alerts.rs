//! `breakglass alerts` and `breakglass acts`: what the collector raised the alarm for, and what people did.

use anyhow::Result;
use breakglass_api::v1;
use clap::Args;

use super::{Desk, client};
use crate::{
    config::Config,
    print::{
        Options, Printer, Style, note, safe, short_id,
        table::{Column, Layout, Table},
        time,
    },
};

/// Arguments of `alerts`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  breakglass alerts --open
  breakglass alerts --review 12 --note 'network maintenance, INC-1742'")]
pub struct AlertsArgs {
    /// Only those that nobody has reviewed yet.
    #[arg(long, conflicts_with = "review")]
    open: bool,
    /// Say that you have looked at this one.
    #[arg(long, value_name = "NUMBER", requires = "note")]
    review: Option<u64>,
    /// What you found.
    #[arg(long, value_name = "TEXT", requires = "review")]
    note: Option<String>,
    /// How many at most, newest first.
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    limit: u32,
}

/// Arguments of `acts`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:\n  breakglass acts --limit 20")]
pub struct ActsArgs {
    /// How many at most, newest first.
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    limit: u32,
}

const ALERTS: &[Column] = &[
    Column { title: "NUMBER", layout: Layout::Number },
    Column { title: "BEGAN", layout: Layout::Whole },
    Column { title: "STATE", layout: Layout::Whole },
    Column { title: "CODE", layout: Layout::Whole },
    Column { title: "WHAT", layout: Layout::Flexible },
    Column { title: "REVIEWED", layout: Layout::Flexible },
];

const ACTS: &[Column] = &[
    Column { title: "TIME", layout: Layout::Whole },
    Column { title: "WHO", layout: Layout::Whole },
    Column { title: "WHAT", layout: Layout::Whole },
    Column { title: "ON", layout: Layout::Whole },
    Column { title: "REASON", layout: Layout::Flexible },
    Column { title: "OUTCOME", layout: Layout::Flexible },
];

/// Lists alerts, or reviews one.
pub async fn run(args: &AlertsArgs, config: &Config, options: &Options) -> Result<u8> {
    let mut desk = Desk::open(config, options).await?;
    let alarms = match (args.review, &args.note) {
        (Some(id), Some(note)) => vec![review(&mut desk, id, note).await?],
        _ => {
            let request = v1::ListAlarmsRequest { open_only: args.open, limit: args.limit };
            let answer = desk.client.manage.list_alarms(request).await;
            answer.map_err(|status| desk.client.explain(&status))?.into_inner().alarms
        }
    };
    let printer = &mut desk.printer;
    if printer.is_json() {
        alarms.iter().try_for_each(|alarm| printer.json(alarm))?;
    } else if alarms.is_empty() {
        note(if args.open { "No alert waits for a review." } else { "There was no alert." });
    } else {
        let now = time::now_ns();
        let mut table = Table::new(printer, ALERTS);
        alarms.iter().for_each(|alarm| table.row(alert_row(alarm, printer, now)));
        table.print(printer)?;
    }
    printer.flush()?;
    Ok(0)
}

async fn review(desk: &mut Desk, id: u64, note: &str) -> Result<v1::Alarm, client::Error> {
    let answer = desk.client.manage.review_alarm(v1::ReviewAlarmRequest { id, note: note.to_owned() }).await;
    answer.map(tonic::Response::into_inner).map_err(|status| desk.client.explain(&status))
}

fn alert_row(alarm: &v1::Alarm, printer: &Printer, now: i64) -> [(String, Option<Style>); 6] {
    let text = |s: &str| safe::text(s.as_bytes());
    let state = match alarm.ended_ns {
        0 => ("lasts".to_owned(), Some(Style::Bad)),
        ended => (format!("over, {}", time::span(time::between(alarm.began_ns, ended))), None),
    };
    let reviewed = match alarm.reviewed_ns {
        0 => ("no".to_owned(), Some(Style::Warn)),
        _ => (format!("{}: {}", text(&alarm.reviewed_by), text(&alarm.note)), Some(Style::Dim)),
    };
    let severity = if alarm.session.is_empty() { Style::Warn } else { Style::Bad };
    [
        (alarm.id.to_string(), Some(Style::Bold)),
        (printer.zone().near(alarm.began_ns, now), None),
        state,
        (text(&alarm.code), Some(severity)),
        (text(&alarm.message), None),
        reviewed,
    ]
}

/// Lists what people did by way of the collector.
pub async fn run_acts(args: &ActsArgs, config: &Config, options: &Options) -> Result<u8> {
    let mut desk = Desk::open(config, options).await?;
    let answer = desk.client.manage.list_acts(v1::ListActsRequest { limit: args.limit }).await;
    let acts = answer.map_err(|status| desk.client.explain(&status))?.into_inner().acts;
    let printer = &mut desk.printer;
    if printer.is_json() {
        acts.iter().try_for_each(|act| printer.json(act))?;
    } else if acts.is_empty() {
        note("Nobody has done anything by way of this collector yet.");
    } else {
        let now = time::now_ns();
        let mut table = Table::new(printer, ACTS);
        acts.iter().for_each(|act| table.row(act_row(act, printer, now)));
        table.print(printer)?;
    }
    printer.flush()?;
    Ok(0)
}

fn act_row(act: &v1::Act, printer: &Printer, now: i64) -> [(String, Option<Style>); 6] {
    let text = |s: &str| safe::text(s.as_bytes());
    let on = if act.session.is_empty() { &act.host_id } else { &act.session };
    [
        (printer.zone().near(act.wall_ns, now), None),
        (text(&act.who), Some(Style::Bold)),
        (text(&act.what), None),
        (if on.is_empty() { "-".to_owned() } else { short_id(&text(on)) }, Some(Style::Dim)),
        (text(&act.reason), None),
        (text(&act.outcome), None),
    ]
}
