//! What became of the credentials of a session that is over, below its commands.

use anyhow::Result;
use breakglass_api::v1::{
    self,
    credentials_rotated::{Credential, Kind},
    event::Body,
};

use super::Desk;
use crate::print::{Printer, Style, pad, safe};

/// Columns of the block's name.
const NAME: usize = 13;

/// Columns in front of a line with a mark.
const MARKED: usize = 6;

/// Asks for it by the name of the session and prints it; of a session that is open there is nothing to print.
pub(super) async fn show(desk: &mut Desk, session: &v1::Session, name: &str) -> Result<()> {
    if session.closed_ns == 0 {
        return Ok(());
    }
    let request = v1::EventsRequest {
        session: name.to_owned(),
        kinds: vec!["credentials_rotated".to_owned()],
        ..v1::EventsRequest::default()
    };
    let answer = desk.client.query.events(request).await;
    let mut events = answer.map_err(|status| desk.client.explain(&status))?.into_inner();
    let mut last = None;
    // A crash while a session was being closed has it closed twice; the later word counts, and programs get both.
    while let Some(event) = events.message().await.map_err(|status| desk.client.explain(&status))? {
        if desk.printer.is_json() {
            desk.printer.json(&event)?;
        }
        if let Some(Body::CredentialsRotated(rotated)) = event.event.and_then(|event| event.body) {
            last = Some(rotated);
        }
    }
    if desk.printer.is_json() { Ok(()) } else { print(&mut desk.printer, last.as_ref()) }
}

fn print(printer: &mut Printer, rotated: Option<&v1::CredentialsRotated>) -> Result<()> {
    printer.line("")?;
    let Some(rotated) = rotated else {
        return title(printer, Style::Warn, "not known: the host has not told what became of them");
    };
    let lasting = |wanted: bool| rotated.credentials.iter().filter(|one| !one.void && one.attention == wanted).count();
    match (lasting(true), lasting(false)) {
        (0, 0) => title(printer, Style::Good, "none of them is good any more")?,
        (0, n) => title(printer, Style::Dim, &format!("{n} kept, as configured; no other is good any more"))?,
        (n, _) => title(printer, Style::Bad, &format!("{n} as good as before"))?,
    }
    rotated.credentials.iter().try_for_each(|credential| line(printer, credential))
}

fn title(printer: &mut Printer, style: Style, text: &str) -> Result<()> {
    let name = printer.paint(Style::Dim, &pad("credentials", NAME));
    Ok(printer.folded(&format!("  {name}"), NAME + 2, &printer.paint(style, text))?)
}

fn line(printer: &mut Printer, credential: &Credential) -> Result<()> {
    let (style, mark) = match (credential.void, credential.attention) {
        (false, true) => (Style::Bad, "!"),
        (true, true) => (Style::Warn, "!"),
        (_, false) => (Style::Dim, "-"),
    };
    let mut parts = vec![kind(credential.kind()).to_owned()];
    parts.extend([&credential.name].into_iter().filter(|name| !name.is_empty()).cloned());
    if !credential.successor.is_empty() {
        parts.push(format!("now {}", credential.successor));
    }
    let text = safe::text(format!("{}: {}", parts.join(" "), credential.detail).as_bytes());
    let front = format!("    {} ", printer.paint(style, mark));
    Ok(printer.folded(&front, MARKED, &printer.paint(style, &text))?)
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified => "credential",
        Kind::LoginKey => "login key",
        Kind::OneTimeCode => "one-time code",
        Kind::Password => "password of",
        Kind::SshHostKey => "host key",
    }
}
