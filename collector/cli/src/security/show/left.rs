//! What a session left behind on its host, below its commands.

use std::time::Duration;

use anyhow::Result;
use breakglass_api::v1::{self, left_behind::Severity};

use crate::print::{Printer, Style, count, counted, pad, safe, time};

/// Columns of the block's name.
const NAME: usize = 13;

/// Columns in front of a line with a mark.
const MARKED: usize = 6;

/// Changes that open no door and are listed without --all.
const NOTABLE_MAX: usize = 10;

/// How long after the close a comparison may still come: it takes some seconds, and more where the collector was out of reach.
const COMPARING: Duration = Duration::from_secs(60);

const UNKNOWN: &str = "not known: no comparison of the host is recorded";

/// Prints it; of a session that is open there is nothing to print.
pub(super) fn print(printer: &mut Printer, session: &v1::Session, all: bool) -> Result<()> {
    if session.closed_ns == 0 && !session.compared {
        return Ok(());
    }
    printer.line("")?;
    let Some(left) = &session.left_behind else {
        let recent = time::between(session.closed_ns, time::now_ns()) < COMPARING;
        return title(printer, Style::Dim, if recent { "not known yet: ask again in some seconds" } else { UNKNOWN });
    };
    let is_door = |change: &&v1::left_behind::Change| change.severity() == Severity::OpensDoor;
    let (doors, notable): (Vec<_>, Vec<_>) = left.changes.iter().partition(is_door);
    match session.doors {
        0 if left.complete => title(printer, Style::Good, "nothing that opens a door")?,
        0 => title(printer, Style::Warn, "nothing that opens a door, as far as was compared")?,
        n => title(printer, Style::Bad, &format!("{} that may open a door", counted(n, "change")))?,
    }
    for change in doors {
        line(printer, Style::Bad, "!", &change.text)?;
    }
    let shown = if all { notable.len() } else { NOTABLE_MAX };
    for change in notable.iter().take(shown) {
        line(printer, Style::Dim, "-", &change.text)?;
    }
    omitted(printer, left, notable.len().saturating_sub(shown), all)
}

/// What was not listed and what was not compared.
fn omitted(printer: &mut Printer, left: &v1::LeftBehind, unlisted: usize, all: bool) -> Result<()> {
    if all {
        return left
            .not_covered
            .iter()
            .try_for_each(|what| line(printer, Style::Dim, "?", &format!("not covered: {what}")));
    }
    let mut parts = Vec::new();
    if unlisted > 0 {
        parts.push(format!("{} more that open no door", count(unlisted as u64)));
    }
    if !left.not_covered.is_empty() {
        let compared = if left.complete { "what is never compared" } else { "what could not be compared" };
        parts.push(compared.to_owned());
    }
    match parts.is_empty() {
        true => Ok(()),
        false => line(printer, Style::Dim, " ", &format!("--all shows {}", parts.join(", and "))),
    }
}

fn title(printer: &mut Printer, style: Style, text: &str) -> Result<()> {
    let name = printer.paint(Style::Dim, &pad("left behind", NAME));
    Ok(printer.folded(&format!("  {name}"), NAME + 2, &printer.paint(style, text))?)
}

fn line(printer: &mut Printer, style: Style, mark: &str, text: &str) -> Result<()> {
    let text = printer.paint(style, &safe::text(text.as_bytes()));
    let front = format!("    {} ", printer.paint(style, mark));
    Ok(printer.folded(&front, MARKED, &text)?)
}
