//! `breakglass-agent stop`: the way to end the agent that is on record, needs no reboot, and is nobody's who is in a session.

use std::{
    fs,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::{AgentStopAsked, CloseCause, RecordedEvent, event::Body};
use breakglass_tests::{
    machine, poll,
    stack::{Options, Stack, pins},
};

use crate::{Company, SESSION, SUDO_SESSION, Test, account::expect_refused};

pub const TESTS: &[Test] = &[
    Test { name: "stop::at_rest", needs: SESSION, company: Company::Others, run: at_rest },
    Test { name: "stop::in_a_session", needs: SUDO_SESSION, company: Company::Others, run: in_a_session },
];

fn at_rest() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        ensure!(pinned(stack)? == 1, "nothing is pinned, so nothing can be taken away");
        let no_reason = stop(stack, &["--reason", " "])?;
        ensure!(said(&no_reason).contains("no-reason") && !no_reason.status.success(), "{}", said(&no_reason));
        let mut stranger = Command::new(machine::program("setpriv")?);
        stranger.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(stack.path("bin/breakglass-agent"));
        let stranger = stranger.args(["stop", "--reason", "x", "--socket"]).arg(stack.socket()).output()?;
        ensure!(said(&stranger).contains("not-allowed") && !stranger.status.success(), "{}", said(&stranger));
        ensure!(stack.status()?.state == "locked", "the agent is gone");

        let stopped = stop(stack, &["--reason", "kernel update, CHG-1207"])?;
        ensure!(stopped.status.success(), "{}", said(&stopped));
        let status = stack.agent.wait(poll::SOON)?;
        ensure!(status.success(), "the agent ended with {status}");
        ensure!(pinned(stack)? == 0, "something is left in the kernel");
        expect_refused(stack, "while the agent is stopped")?;
        let again = stop(stack, &["--reason", "once more"])?;
        ensure!(said(&again).contains("is it running?") && !again.status.success(), "{}", said(&again));

        stack.start_agent()?;
        stack.wait_until_acknowledged()?;
        let events = stack.query()?.host_events(stack.host())?;
        let (asked, at) = asked(&events)?;
        ensure!(asked.reason == "kernel update, CHG-1207" && asked.session.is_empty(), "{asked:?}");
        ensure!(asked.by.starts_with("unix:pid=") && asked.by.ends_with(",uid=0"), "{asked:?}");
        let stopping = events.iter().position(|event| matches!(body(event), Some(Body::AgentStopping(_))));
        ensure!(stopping.is_some_and(|stopping| stopping > at), "not recorded before the agent went");
        let opened = stack.open("after the stop", "10m")?;
        stack.ssh_run(&opened, "true")?;
        stack.close_and_collect(&opened).map(drop)
    })
}

fn in_a_session() -> Result<()> {
    Stack::with(Options { sudo_freely: true, ..Options::default() }, |stack| {
        let opened = stack.open("in the way of a stop", "10m")?;
        let mut terminal = stack.login(&opened)?;
        let refused = stop(stack, &["--reason", "an update"])?;
        ensure!(said(&refused).contains("session-open") && !refused.status.success(), "{}", said(&refused));

        // Root inside may not, forced or not.
        let inside = format!(
            "sudo {} stop --force --reason mine --socket {} 2>&1 || true",
            stack.path("bin/breakglass-agent").display(),
            stack.socket().display()
        );
        let told = stack.ssh_run(&opened, &inside)?;
        ensure!(told.contains("not-allowed"), "a process of the session was not refused: {told}");
        // Nor over a connection of a child that has ended, whose number is in no list any more.
        let orphaned = format!("sudo {} stop-by-a-child {}", stack.probe().display(), stack.socket().display());
        let told = stack.ssh_run(&opened, &orphaned)?;
        ensure!(told.contains("not-allowed"), "a dead child's connection was not refused: {told}");
        ensure!(stack.status()?.state == "open", "the session was ended");

        let forced = stop(stack, &["--reason", "the host burns", "--force"])?;
        ensure!(forced.status.success(), "{}", said(&forced));
        ensure!(said(&forced).contains(&opened.session), "not told which session was ended: {}", said(&forced));
        ensure!(stack.agent.wait(poll::SOON)?.success(), "the agent failed");
        terminal.finish(poll::SOON)?;
        ensure!(machine::processes_of(stack.account.uid).is_empty(), "something of the session lives");
        ensure!(pinned(stack)? == 0, "something is left in the kernel");
        expect_refused(stack, "while the agent is stopped")?;

        stack.start_agent()?;
        let session = stack.collected(&opened.session)?;
        let closed = session.closed.context("not closed")?;
        ensure!(closed.cause == CloseCause::AgentStop as i32 && closed.by.ends_with(",uid=0"), "{closed:?}");
        let events = stack.query()?.events(&opened.session)?;
        let (asked, at) = asked(&events)?;
        ensure!(asked.reason == "the host burns" && asked.session == opened.session, "{asked:?}");
        let end = events.iter().position(|event| matches!(body(event), Some(Body::SessionClosed(_))));
        ensure!(end.is_some_and(|end| end > at), "not recorded before the session was ended");
        for code in ["stop-refused", "stop-forced"] {
            let told = events.iter().any(|event| matches!(body(event), Some(Body::Alert(alert)) if alert.code == code));
            ensure!(told, "no alert {code}");
        }
        let shown = stack.reviewed(&["show", &opened.session])?;
        ensure!(shown.contains("root had the agent stopped") && shown.contains("the host burns"), "{shown}");
        Ok(())
    })
}

/// How many builds' programs and maps are pinned.
fn pinned(stack: &Stack) -> Result<usize> {
    Ok(fs::read_dir(pins(&stack.run))?.count())
}

/// `breakglass-agent stop`, as root on the host.
fn stop(stack: &Stack, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(stack.path("bin/breakglass-agent"));
    command.arg("stop").args(arguments).arg("--socket").arg(stack.socket());
    command.output().context("cannot run breakglass-agent")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn body(recorded: &RecordedEvent) -> Option<&Body> {
    recorded.event.as_ref()?.body.as_ref()
}

/// The one stop that was asked for, and where it is among the events.
fn asked(events: &[RecordedEvent]) -> Result<(&AgentStopAsked, usize)> {
    let mut all = events.iter().enumerate().filter_map(|(at, event)| match body(event) {
        Some(Body::AgentStopAsked(asked)) => Some((asked, at)),
        _ => None,
    });
    let first = all.next().context("the stop is not on record")?;
    ensure!(all.next().is_none(), "more than one stop is on record");
    Ok(first)
}
