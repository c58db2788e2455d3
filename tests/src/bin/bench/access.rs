//! How long an operator waits: from the command to the prompt, and the agent's own share of it.

use std::time::Instant;

use anyhow::Result;
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
const OPENINGS: u64 = 40;

pub fn measure(effort: Effort) -> Result<Vec<Figure>> {
    Stack::with(Options::default(), |stack| {
        let (mut to_prompt, mut agent, mut plain, mut to_closed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.runs(OPENINGS) {
            to_prompt.push(open_and_login(stack)?);
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
            Figure::new("breakglass open: command to shell prompt", "ms", to_prompt, Budget::P95AtMost(250.0)),
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

/// The whole command as a person runs it: challenge, signature, verification, unlocking, ssh. More than what the budget speaks of,
/// which begins when the proof is signed.
fn open_and_login(stack: &Stack) -> Result<f64> {
    let mut open = stack.breakglass();
    open.args(["open", stack.host(), "--reason", "measured", "--ttl", "10m"]).env("TERM", "xterm");
    let start = Instant::now();
    let mut terminal = Terminal::start(&stack.run, &open)?;
    terminal.expect(PROMPT_SHOWN)?;
    let took = milliseconds(start);
    terminal.send("exit\n")?;
    terminal.finish(poll::SOON)?;
    Ok(took)
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
