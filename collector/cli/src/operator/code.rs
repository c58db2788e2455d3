//! Opening with a one-time code, where there is no key that the host knows.

use std::{io::IsTerminal, path::Path, time::Instant};

use breakglass_api::v1::{CodeRequest, Opened, control_request::Body as Request, control_response::Body as Answer};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use super::{OpenArgs, client::Client, failure::Failure, say};

/// Longest line that is taken for a code, characters.
const LINE_MAX: usize = 128;

/// Asks for a code and opens with it. The key of `identity`, if there is one, may log in then.
pub(super) async fn open(
    args: &OpenArgs,
    client: &mut Client<'_>,
    identity: Option<&Path>,
) -> Result<(Opened, Instant), Failure> {
    let public_key = identity.map(public_key).transpose()?.unwrap_or_default();
    let request = CodeRequest {
        code: typed()?,
        reason: args.reason.clone().unwrap_or_default().trim().to_owned(),
        ticket: args.ticket.trim().to_owned(),
        ttl_seconds: args.ttl.map_or(0, |ttl| ttl.as_secs()),
        close_on_exit: args.close_on_exit,
        public_key,
        login: None,
    };
    let asked = Instant::now();
    match client.ask(Request::Code(request)).await? {
        Answer::Opened(opened) => Ok((opened, asked)),
        _ => Err(client.unexpected()),
    }
}

/// Type and key of a public key file, or of the one beside a private key.
fn public_key(identity: &Path) -> Result<String, Failure> {
    let mut beside = identity.as_os_str().to_owned();
    beside.push(".pub");
    let texts = [std::fs::read_to_string(beside), std::fs::read_to_string(identity)];
    let key = texts.iter().flatten().find_map(|text| {
        let mut words = text.split_ascii_whitespace();
        let kind = words
            .next()
            .filter(|kind| kind.starts_with("ssh-") || kind.contains("ecdsa") || kind.starts_with("sk-"))?;
        Some(format!("{kind} {}", words.next()?))
    });
    key.ok_or_else(|| {
        Failure::Usage(format!(
            "there is no public key beside {0}; make it with: ssh-keygen -y -f {0} > {0}.pub",
            identity.display()
        ))
    })
}

/// One line from standard input, not shown where that is a terminal.
fn typed() -> Result<String, Failure> {
    let stdin = std::io::stdin();
    let quiet = stdin.is_terminal().then(Quiet::new).transpose()?;
    if quiet.is_some() {
        say("One-time code (not shown):");
    }
    let mut line = String::new();
    stdin.read_line(&mut line).map_err(|e| Failure::Other(format!("no code was given: {e}")))?;
    let code = line.trim();
    if code.is_empty() || code.len() > LINE_MAX {
        return Err(Failure::Usage("no code was given; type one of the sheet's".into()));
    }
    Ok(code.to_owned())
}

/// The terminal with its echo off, until dropped.
struct Quiet {
    before: Termios,
}

impl Quiet {
    fn new() -> Result<Self, Failure> {
        let unusable = |e: nix::Error| Failure::Other(format!("the terminal cannot be silenced: {e}"));
        let before = tcgetattr(std::io::stdin()).map_err(unusable)?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        quiet.local_flags.insert(LocalFlags::ECHONL);
        tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &quiet).map_err(unusable)?;
        Ok(Self { before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to restore.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.before);
    }
}
