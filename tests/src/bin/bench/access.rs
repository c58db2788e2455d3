//! How long an operator waits: from the command to the prompt, and the agent's own share of it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use breakglass_tests::{
    account::PROMPT_SHOWN,
    machine, poll,
    stack::{Options, Stack},
    terminal::Terminal,
};

use crate::{
    Effort,
    figure::{Budget, Figure},
};

/// Openings measured.
const OPENINGS: u64 = 100;

/// Signs as `ssh-keygen` does, and notes when.
const SIGNER: &str = "#!/bin/sh\n\"$REAL_SSH_KEYGEN\" \"$@\"\ncode=$?\ndate +%s%N >\"$SIGNED_AT\"\nexit $code\n";

pub fn measure(effort: Effort) -> Result<Vec<Figure>> {
    Stack::with(Options::default(), |stack| {
        let signer = Signer::new(stack)?;
        let (mut to_prompt, mut from_proof) = (Vec::new(), Vec::new());
        let (mut agent, mut plain, mut to_closed) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.runs(OPENINGS) {
            let (whole, proved) = open_and_login(stack, &signer)?;
            to_prompt.push(whole);
            from_proof.push(proved);
            to_closed.push(close(stack)?);
            let opened = stack.open("measured", "10m")?;
            agent.push(opened.agent_us as f64 / 1000.0);
            let start = Instant::now();
            let mut terminal = stack.login(&opened)?;
            plain.push(milliseconds(start));
            terminal.send("exit\n")?;
            terminal.finish(poll::SOON)?;
            close(stack)?;
        }
        Ok(vec![
            Figure::new("breakglass open: proof signed to shell prompt", "ms", from_proof, Budget::P95AtMost(250.0)),
            Figure::new("breakglass open: command to shell prompt", "ms", to_prompt, Budget::None),
            Figure::new("of which the agent itself", "ms", agent, Budget::P95AtMost(30.0)),
            Figure::new("plain ssh to the same prompt, glass already broken", "ms", plain, Budget::None),
            Figure::new(
                "breakglass close: command to account locked and all dead",
                "ms",
                to_closed,
                Budget::P95AtMost(1000.0),
            ),
        ])
    })
}

/// A stand-in for `ssh-keygen` that notes when it had signed.
struct Signer {
    folder: PathBuf,
    signed_at: PathBuf,
}

impl Signer {
    fn new(stack: &Stack) -> Result<Self> {
        let folder = stack.run.make("signer", 0o700)?;
        let script = folder.join("ssh-keygen");
        fs::write(&script, SIGNER)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700))?;
        Ok(Self { signed_at: folder.join("signed-at"), folder })
    }

    /// Nanoseconds of the epoch.
    fn signed_at(&self) -> Result<u128> {
        fs::read_to_string(&self.signed_at)?.trim().parse().context("the signer noted no time")
    }
}

/// The whole command as a person runs it: challenge, signature, verification, unlocking, ssh. Milliseconds until the prompt, from
/// its start and from the signature.
fn open_and_login(stack: &Stack, signer: &Signer) -> Result<(f64, f64)> {
    let mut open = stack.breakglass();
    open.args(["open", stack.host(), "--reason", "measured", "--ttl", "10m"]).env("TERM", "xterm");
    let path = format!("{}:{}", signer.folder.display(), std::env::var("PATH").unwrap_or_default());
    open.env("PATH", path).env("REAL_SSH_KEYGEN", machine::program("ssh-keygen")?).env("SIGNED_AT", &signer.signed_at);
    let start = Instant::now();
    let mut terminal = Terminal::start(&stack.run, &open)?;
    terminal.expect(PROMPT_SHOWN)?;
    let (whole, now) = (milliseconds(start), SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos());
    let proved = now.checked_sub(signer.signed_at()?).context("the clock was set back meanwhile")? as f64 / 1e6;
    terminal.send("exit\n")?;
    terminal.finish(poll::SOON)?;
    Ok((whole, proved))
}

fn close(stack: &Stack) -> Result<f64> {
    let start = Instant::now();
    stack.close()?;
    let took = milliseconds(start);
    poll::until_true("the session's processes to be gone", poll::SOON, || {
        Ok(machine::processes_of(stack.account.uid).is_empty())
    })?;
    stack.wait_for_state("locked")?;
    Ok(took)
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}
