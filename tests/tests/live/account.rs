//! The emergency account lets nobody in but the operator during a session, and nothing of the session outlives it.

use std::time::Duration;

use anyhow::{Result, ensure};
use breakglass_api::v1::CloseCause;
use breakglass_tests::{
    account::PROMPT_SHOWN,
    machine,
    operator::Opened,
    poll,
    stack::{OPERATOR, Options, Stack},
};

use crate::{Company, SESSION, SUDO_SESSION, Test};

pub const TESTS: &[Test] = &[
    Test { name: "account::lets_in_only_during_a_session", needs: SESSION, company: Company::Others, run: with_pam },
    Test {
        name: "account::lets_in_only_during_a_session_without_pam",
        needs: SESSION,
        company: Company::Others,
        run: without_pam,
    },
    Test { name: "account::the_deadline_kills_everything", needs: SUDO_SESSION, company: Company::None, run: deadline },
    Test { name: "account::closing_kills_everything", needs: SUDO_SESSION, company: Company::None, run: closing },
    Test { name: "account::a_stopped_agent_leaves_it_locked", needs: SESSION, company: Company::Others, run: stopped },
];

/// Within which everything of a session must be dead.
const BUDGET: Duration = Duration::from_secs(1);

fn with_pam() -> Result<()> {
    lets_in_only_during_a_session(true)
}

fn without_pam() -> Result<()> {
    lets_in_only_during_a_session(false)
}

fn lets_in_only_during_a_session(pam: bool) -> Result<()> {
    Stack::with(Options { pam, ..Options::default() }, |stack| {
        expect_refused(stack, "before")?;
        let opened = stack.open("let me in", "10m")?;
        ensure!(stack.ssh_run(&opened, "id -u")?.trim() == stack.account.uid.to_string(), "somebody else was let in");
        stack.close_and_collect(&opened)?;
        expect_refused(stack, "after")?;

        let opened = stack.open("let me in again", "10m")?;
        stack.ssh_run(&opened, "true")?;
        stack.kill_agent()?;
        stack.start_agent()?;
        expect_refused(stack, "after the agent was killed and restarted")?;
        let status = stack.status()?;
        ensure!(status.state == "resumed" || status.state == "locked", "state {}", status.state);
        Ok(())
    })
}

fn stopped() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("stop the agent", "10m")?;
        stack.ssh_run(&opened, "true")?;
        let status = stack.agent.stop()?;
        ensure!(status.success(), "the agent ended with {status}");
        expect_refused(stack, "after the agent was stopped")?;
        stack.start_agent()?;
        let session = stack.collected(&opened.session)?;
        let cause = session.closed.map(|closed| closed.cause);
        ensure!(cause == Some(CloseCause::AgentStop as i32), "closed because of {cause:?}");
        Ok(())
    })
}

/// Tries the operator's own key without a grant.
pub fn expect_refused(stack: &Stack, when: &str) -> Result<()> {
    let key = std::fs::read_to_string(stack.sshd.host_keys.join("ssh_host_ed25519_key.pub"))?;
    let plain = Opened {
        session: String::new(),
        account: stack.account.name.clone(),
        ssh_port: stack.sshd.port,
        deadline_boot_ns: 0,
        ttl_seconds: 0,
        agent_us: 0,
        ssh_host_keys: vec![key.trim().to_owned()],
    };
    std::fs::write(stack.path("operator/known_hosts"), format!("[127.0.0.1]:{} {}\n", plain.ssh_port, key.trim()))?;
    let output = stack.ssh(&plain).arg("id").output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(255), "{when}: the key was let in ({})", output.status);
    ensure!(said.contains("Permission denied") || said.contains("closed by"), "{when}: not refused but: {said}");
    Ok(())
}

fn deadline() -> Result<()> {
    let (cause, late) = outlast("20s", |_, opened| Ok(opened.deadline_boot_ns))?;
    ensure!(cause == CloseCause::Deadline, "closed because of {cause:?}");
    ensure!(late <= BUDGET, "dead only {late:?} after the deadline");
    Ok(())
}

fn closing() -> Result<()> {
    let (cause, late) = outlast("10m", |stack, _| {
        let asked = machine::boot_ns()?;
        stack.close()?;
        Ok(asked)
    })?;
    ensure!(cause == CloseCause::Operator, "closed because of {cause:?}");
    ensure!(late <= BUDGET, "dead only {late:?} after closing");
    Ok(())
}

/// Starts processes that mean to stay, lets `end` end the session or say when it will end (boot clock, nanoseconds), and gives why
/// it was closed and how long after that moment everything was dead.
fn outlast(ttl: &str, end: impl FnOnce(&Stack, &Opened) -> Result<u64>) -> Result<(CloseCause, Duration)> {
    const PASSWORD: &str = "outlive the deadline";
    let options = Options { sudo_password: Some(PASSWORD.into()), ..Options::default() };
    Stack::with(options, |stack| {
        let opened = stack.open("outlast", ttl)?;
        let mut terminal = stack.login(&opened)?;
        // A length of sleep that no other process on this machine has.
        let marker = format!("86400.{}", std::process::id());
        terminal.ask(&format!("sleep {marker} &"), PROMPT_SHOWN)?;
        terminal.ask(&format!("nohup setsid sleep {marker} >/dev/null 2>&1 &"), PROMPT_SHOWN)?;
        terminal.ask(&format!("(trap '' TERM HUP INT; exec sleep {marker}) &"), PROMPT_SHOWN)?;
        terminal
            .ask(&format!("sudo -k; sudo sh -c 'nohup setsid sleep {marker} >/dev/null 2>&1 &'"), "password for")?;
        terminal.ask(PASSWORD, PROMPT_SHOWN)?;
        let shell = terminal.pid();
        poll::until_true("four processes that mean to stay", poll::SOON, || {
            Ok(machine::processes_with(&["sleep", &marker]).len() == 4)
        })?;
        let from = end(stack, &opened)?;
        poll::until_true("everything to be dead", poll::EVENTUALLY, || {
            let lasting = machine::processes_with(&["sleep", &marker]).len();
            Ok(lasting + machine::processes_of(stack.account.uid).len() == 0)
        })?;
        let dead = machine::boot_ns()?;
        ensure!(dead >= from, "dead before the end");
        let late = Duration::from_nanos(dead - from);
        terminal.finish(poll::SOON)?;
        ensure!(machine::start_of(shell as i32).is_none(), "the operator's ssh goes on");
        let session = stack.collected(&opened.session)?;
        ensure!(session.opened.is_some_and(|opened| opened.operator == OPERATOR), "not the operator's session");
        let closed = session.closed.unwrap_or_default();
        ensure!(closed.survivors.is_empty(), "survivors: {:?}", closed.survivors);
        ensure!(closed.killed >= 4, "{} processes are counted as killed", closed.killed);
        Ok((CloseCause::try_from(closed.cause)?, late))
    })
}
