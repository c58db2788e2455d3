//! The head of `show`: who, why, when, and whether the record is whole.

use std::time::Duration;

use anyhow::Result;
use breakglass_api::v1;

use crate::{
    print::{Printer, Style, bytes, count, counted, pad, safe, short_id, time},
    security::sessions::closed_by,
};

/// Columns of the names on the left.
const NAMES: usize = 11;

/// Prints it.
pub(super) fn print(printer: &mut Printer, session: &v1::Session) -> Result<()> {
    let opened = session.opened.clone().unwrap_or_default();
    let text = |s: &str| safe::text(s.as_bytes());
    let title = format!(
        "{} {}  {}",
        printer.paint(Style::Bold, "Session"),
        printer.paint(Style::Bold, &short_id(&session.id)),
        printer.paint(Style::Dim, &text(&session.id))
    );
    printer.line(&title)?;
    let lines = [
        ("host", text(&session.hostname)),
        ("operator", text(&opened.operator)),
        ("reason", text(&opened.reason)),
        ("ticket", text(&opened.ticket)),
        ("key", format!("{} {}", text(&opened.key_type), text(&opened.key_fingerprint))),
        ("certified", text(&opened.certificate)),
        ("co-signed", cosigners(&opened)),
        ("from", text(&opened.source)),
        ("account", format!("{} (uid {})", text(&opened.account), opened.uid)),
        ("opened", printer.zone().full(session.opened_ns)),
        ("deadline", deadline(printer, session, &opened)),
        ("closed", closed(printer, session)),
        ("ended", session.closed.as_ref().map(|closed| ending(printer, closed)).unwrap_or_default()),
        ("tier", text(&opened.tier)),
        ("recorded", recorded(session)),
        ("witnessed", witnessed(session)),
        ("terminals", terminals(session)),
        ("integrity", integrity(printer, session)),
        ("alerts", alerts(printer, session)),
        ("review", waiting(printer, session)),
    ];
    for (name, value) in lines.into_iter().filter(|(_, value)| !value.trim().is_empty()) {
        let name = printer.paint(Style::Dim, &pad(name, NAMES));
        printer.folded(&format!("  {name}"), NAMES + 2, &value)?;
    }
    for review in &session.reviews {
        let name = printer.paint(Style::Dim, &pad("reviewed", NAMES));
        printer.folded(&format!("  {name}"), NAMES + 2, &reviewed(printer, review))?;
    }
    for warning in &opened.warnings {
        let name = printer.paint(Style::Dim, &pad("note", NAMES));
        let told = printer.paint(Style::Warn, &text(warning));
        printer.folded(&format!("  {name}"), NAMES + 2, &told)?;
    }
    for finding in &session.findings {
        let name = printer.paint(Style::Dim, &pad("proof", NAMES));
        let told = format!("{} (frame {}): {}", text(&finding.code), finding.frame, text(&finding.message));
        printer.line(&format!("  {name}{}", printer.paint(Style::Bad, &told)))?;
    }
    Ok(())
}

/// Whether somebody still has to look.
fn waiting(printer: &Printer, session: &v1::Session) -> String {
    match (session.closed_ns, session.reviewed) {
        (0, _) | (_, true) => String::new(),
        _ if session.review_due_ns == 0 => String::new(),
        _ if session.review_overdue => {
            let due = printer.zone().full(session.review_due_ns);
            printer.paint(Style::Bad, &format!("overdue since {due}: nobody has signed it off"))
        }
        _ => {
            let more = if session.reviews.is_empty() { "" } else { ", since more was recorded" };
            let due = printer.zone().full(session.review_due_ns);
            printer.paint(Style::Warn, &format!("to be signed off until {due}{more}"))
        }
    }
}

/// What a reviewer said.
fn reviewed(printer: &Printer, review: &v1::Review) -> String {
    let text = |s: &str| safe::text(s.as_bytes());
    let style = if review.verdict == "ok" { Style::Good } else { Style::Bad };
    let word = printer.paint(style, &text(&review.verdict));
    let said = if review.note.is_empty() { String::new() } else { format!(": {}", text(&review.note)) };
    let at = printer.zone().full(review.received_ns);
    format!("{word} by {}, {at}, up to frame {}{said}", text(&review.reviewer), review.last_frame)
}

/// Who else signed, each with their key.
fn cosigners(opened: &v1::SessionOpened) -> String {
    let text = |s: &str| safe::text(s.as_bytes());
    let each = opened.cosigners.iter().map(|one| {
        let certificate = match one.certificate.as_str() {
            "" => String::new(),
            certificate => format!(", certificate {}", text(certificate)),
        };
        format!("{} ({} {}{certificate})", text(&one.principal), text(&one.key_type), text(&one.key_fingerprint))
    });
    each.collect::<Vec<_>>().join("; ")
}

fn deadline(printer: &Printer, session: &v1::Session, opened: &v1::SessionOpened) -> String {
    let given = time::span(Duration::from_secs(opened.ttl_seconds));
    match session.deadline_ns {
        0 => format!("{given} after opening"),
        at => format!("{}, {given} after opening", printer.zone().full(at)),
    }
}

fn closed(printer: &Printer, session: &v1::Session) -> String {
    if session.closed_ns == 0 {
        let lasted = time::span(time::between(session.opened_ns, time::now_ns()));
        return printer.paint(Style::Warn, &format!("still open, for {lasted}"));
    }
    let lasted = time::span(time::between(session.opened_ns, session.closed_ns));
    format!("{}, after {lasted}", printer.zone().full(session.closed_ns))
}

/// How a session ended: the cause, who, and what became of its processes.
pub(super) fn ending(printer: &Printer, closed: &v1::SessionClosed) -> String {
    let mut line = format!("by {}", closed_by(Some(closed)));
    if !closed.by.is_empty() {
        line.push_str(&format!(" ({})", safe::text(closed.by.as_bytes())));
    }
    if closed.killed > 0 {
        let took = time::span(Duration::from_micros(closed.took_us));
        line.push_str(&format!("; {} killed in {took}", processes(closed.killed.into())));
    }
    if !closed.survivors.is_empty() {
        let pids: Vec<String> = closed.survivors.iter().map(|process| process.pid.to_string()).collect();
        let survived = format!("{} could not be killed: {}", processes(pids.len() as u64), pids.join(", "));
        line.push_str(&format!("; {}", printer.paint(Style::Bad, &survived)));
    }
    line
}

fn processes(n: u64) -> String {
    format!("{} {}", count(n), if n == 1 { "process" } else { "processes" })
}

fn recorded(session: &v1::Session) -> String {
    let mut parts = vec![counted(session.commands, "command")];
    if session.failed_commands > 0 {
        parts.push(format!("{} failed", count(session.failed_commands)));
    }
    if session.terminal_bytes > 0 {
        parts.push(format!("{} shown", bytes(session.terminal_bytes)));
    }
    if session.input_bytes > 0 {
        parts.push(format!("{} typed", bytes(session.input_bytes)));
    }
    if session.withheld_bytes > 0 {
        parts.push(format!("{} typed unseen", bytes(session.withheld_bytes)));
    }
    if session.stdio_output_bytes > 0 {
        parts.push(format!("{} out without a terminal", bytes(session.stdio_output_bytes)));
    }
    if session.stdio_input_bytes > 0 {
        parts.push(format!("{} in without a terminal", bytes(session.stdio_input_bytes)));
    }
    if session.actions > 0 {
        parts.push(counted(session.actions, "action"));
    }
    parts.join(", ")
}

fn witnessed(session: &v1::Session) -> String {
    match session.witnessed {
        0 => String::new(),
        n => format!("{} outside the session", counted(n, "program")),
    }
}

/// A terminal as it is called below `/dev` (Documentation/admin-guide/devices.txt).
fn device(index: u32) -> String {
    let (major, minor) = (index >> 20, index & 0xf_ffff);
    match (major, minor) {
        (0, n) => format!("pts/{n}"),
        (4, n @ 0..64) => format!("tty{n}"),
        (4, n) => format!("ttyS{}", n - 64),
        (166, n) => format!("ttyACM{n}"),
        (188, n) => format!("ttyUSB{n}"),
        (229, n) => format!("hvc{n}"),
        _ => format!("terminal {major}:{minor}"),
    }
}

/// The terminals of a session, with the numbers that `replay --terminal` takes.
pub(in crate::security) fn terminals(session: &v1::Session) -> String {
    let shown = session.terminals.iter().enumerate();
    let mut shown: Vec<String> =
        shown.map(|(at, t)| format!("{}: {}, {}", at + 1, device(t.index), bytes(t.output_bytes))).collect();
    let unlisted = session.terminals_recorded.saturating_sub(session.terminals.len() as u64);
    if unlisted > 0 {
        shown.push(format!("and {} more", count(unlisted)));
    }
    shown.join("  ")
}

/// Whether everything that the kernel produced is there.
fn integrity(printer: &Printer, session: &v1::Session) -> String {
    let missing = session.closed.as_ref().map_or(0, |closed| sum(&closed.missing)).max(session.gaps);
    let Some(closed) = session.closed.as_ref().filter(|closed| !closed.produced.is_empty()) else {
        return match session.gaps {
            0 => "no record known to be missing so far".to_owned(),
            n => printer.paint(Style::Bad, &format!("{} missing so far", counted(n, "record"))),
        };
    };
    let produced = counted(sum(&closed.produced), "kernel record");
    match missing {
        0 => format!("{}: {produced}, none missing", printer.paint(Style::Good, "whole")),
        n => format!("{produced}, {}", printer.paint(Style::Bad, &format!("{} missing", count(n)))),
    }
}

fn alerts(printer: &Printer, session: &v1::Session) -> String {
    match session.alerts {
        0 => "none".to_owned(),
        n => printer.paint(Style::Bad, &count(n)),
    }
}

fn sum(by_ring: &[u64]) -> u64 {
    by_ring.iter().fold(0, |total, n| total.saturating_add(*n))
}

#[cfg(test)]
mod tests {
    use breakglass_api::v1;

    use super::{device, terminals};

    #[test]
    fn terminals_that_are_not_listed_are_counted() {
        let one = v1::TerminalInfo { output_bytes: 5, ..v1::TerminalInfo::default() };
        let session =
            |recorded| v1::Session { terminals: vec![one], terminals_recorded: recorded, ..v1::Session::default() };
        assert!(!terminals(&session(0)).contains("more"), "an older collector does not say");
        assert!(!terminals(&session(1)).contains("more"));
        assert!(terminals(&session(4)).ends_with("and 3 more"), "{}", terminals(&session(4)));
    }

    #[test]
    fn terminals_have_the_names_of_their_devices() {
        let names = [7, (4 << 20) | 1, (4 << 20) | 64, (4 << 20) | 65, 229 << 20, (204 << 20) | 3].map(device);
        assert_eq!(names, ["pts/7", "tty1", "ttyS0", "ttyS1", "hvc0", "terminal 204:3"]);
    }
}
