//! What goes down the wire to a host: the end of a session, new rules, certificates.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::{CloseCause, event::Body};
use breakglass_tests::{
    machine, poll,
    stack::{Options, Stack},
};
use nix::sys::signal::Signal;

use crate::{Company, SESSION, Test, record::numbers};

pub const TESTS: &[Test] = &[
    Test { name: "wire::a_reviewer_ends_a_session", needs: SESSION, company: Company::Others, run: terminate },
    Test {
        name: "wire::an_outage_costs_no_memory_and_is_caught_up",
        needs: SESSION,
        company: Company::Others,
        run: outage,
    },
    Test {
        name: "wire::a_collector_that_stands_still_costs_no_memory",
        needs: SESSION,
        company: Company::Others,
        run: stalled,
    },
    Test { name: "wire::a_host_joins_by_token_and_renews", needs: SESSION, company: Company::Others, run: join },
];

/// Ends a session from the collector while a command runs in it, then has the host read other rules.
fn terminate() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("to be ended", "10m")?;
        let mut shell = stack.ssh(&opened).arg("sleep 600").spawn()?;
        poll::until_true("the command to run", poll::SOON, || Ok(stack.status()?.live_processes > 0))?;
        let ended = machine::run(stack.breakglass().args(["terminate", &opened.session, "--reason", "enough of it"]))?;
        ensure!(ended.contains("the account is locked"), "{ended}");
        ensure!(stack.status()?.state == "locked", "it answered before the account was locked");
        poll::until("the command to be dead", poll::SOON, || Ok(shell.try_wait()?))?;
        let session = stack.collected(&opened.session)?;
        let closed = session.closed.context("the record says nothing of the end")?;
        ensure!(closed.cause() == CloseCause::Collector, "{closed:?}");
        ensure!(closed.by.contains("reviewer/reviewer") && closed.by.contains("enough of it"), "{closed:?}");
        let events = stack.query()?.events(&opened.session)?;
        let place = |wanted: fn(&Body) -> bool| {
            events.iter().position(|event| event.event.as_ref().and_then(|e| e.body.as_ref()).is_some_and(wanted))
        };
        let (ordered, over) = (
            place(|body| matches!(body, Body::CollectorOrder(_))),
            place(|body| matches!(body, Body::SessionClosed(_))),
        );
        ensure!(ordered.is_some() && ordered < over, "the order is on record before the end: {ordered:?} {over:?}");
        let again = stack.breakglass().args(["terminate", &opened.session, "--reason", "once more"]).output()?;
        ensure!(again.status.code() == Some(3), "{again:?}");

        let there = machine::run(stack.breakglass().args(["reach", stack.host()]))?;
        ensure!(there.contains("locked"), "{there}");
        refresh(stack)
    })
}

/// The rules count without a restart, and one mistake in them changes nothing.
fn refresh(stack: &mut Stack) -> Result<()> {
    let path = stack.path("agent.toml");
    let before = fs::read_to_string(&path)?;
    let ask = |stack: &Stack| stack.breakglass().args(["refresh", stack.host(), "--reason", "new rules"]).output();
    fs::write(&path, before.replacen("[grant]", "[grant]\nticket_pattern = \"INC-[0-9]+\"", 1))?;
    let answer = ask(stack)?;
    ensure!(answer.status.success(), "{answer:?}");
    let refused = stack.open_output(&["--reason", "no ticket", "--ttl", "1m"])?;
    ensure!(!refused.status.success(), "a grant without a ticket was taken: {refused:?}");
    fs::write(&path, "[grant]\nnonsense = 1\n")?;
    let answer = ask(stack)?;
    ensure!(answer.status.code() == Some(3), "{answer:?}");
    let refused = stack.open_output(&["--reason", "no ticket", "--ttl", "1m"])?;
    ensure!(!refused.status.success(), "a configuration that cannot be read took the rules away");
    fs::write(&path, before)?;
    ask(stack)?;
    let opened = stack.open("the old rules again", "1m")?;
    stack.close_and_collect(&opened).map(drop)
}

/// A host that was never enrolled by hand: token, key of its own, shipping, renewal, all by the built programs.
fn join() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        stack.agent.stop()?;
        // So short that it is due for renewal as soon as it is there: a third of its time, with the hour before, is over.
        stack.collector.kill()?;
        let settings = stack.path("collector/collector.toml");
        let text = fs::read_to_string(&settings)?;
        let text = text.lines().map(|line| if line.starts_with("host_minutes") { "host_minutes = 20" } else { line });
        fs::write(&settings, text.collect::<Vec<_>>().join("\n"))?;
        stack.start_collector()?;

        let mut make = Command::new(&stack.binaries.collector);
        // The same host under the same id: its spool's stream is that host's for ever.
        let id = fs::read_to_string(stack.path("host/host-id"))?;
        make.args(["enroll", "token", stack.host(), "--id", id.trim(), "--dir"]).arg(stack.path("collector"));
        let said = machine::run(&mut make)?;
        let token = said.split_whitespace().find(|word| word.starts_with("bge1.")).context("no token")?.to_owned();
        fs::rename(stack.path("host"), stack.path("by-hand"))?;
        let url = format!("https://{}", stack.collector_address);
        let enroll = |stack: &Stack, token: &str| {
            let mut command = Command::new(&stack.binaries.agent);
            command.args(["enroll", "--collector", &url, "--token", token, "--config"]).arg(stack.path("agent.toml"));
            command.output()
        };
        // Another collector's CA: the hash in the token does not fit.
        let mut foreign = token.clone().into_bytes();
        let at = foreign.len() - 3;
        foreign[at] = if foreign[at] == b'A' { b'B' } else { b'A' };
        let refused = enroll(stack, &String::from_utf8(foreign)?)?;
        ensure!(!refused.status.success(), "a collector that the token is not from was believed");
        ensure!(
            String::from_utf8_lossy(&refused.stderr).contains("not the collector that the token is from"),
            "{refused:?}"
        );
        let joined = enroll(stack, &token)?;
        ensure!(joined.status.success(), "{joined:?}");

        let key = stack.path("host/host.key");
        ensure!(fs::metadata(&key)?.mode() & 0o777 == 0o600, "the key can be read by others");
        let secret = fs::read(&key)?;
        for file in breakglass_tests::remains::files(&stack.path("collector"))? {
            let content = fs::read(&file).unwrap_or_default();
            ensure!(breakglass_tests::terminal::find(&content, &secret).is_none(), "the key is in {}", file.display());
        }
        let again = enroll(stack, &token)?;
        ensure!(String::from_utf8_lossy(&again.stderr).contains("--again"), "{again:?}");

        let first = fs::read(stack.path("host/host.crt"))?;
        // Certificates know seconds only, and one that ends no later is not taken.
        let joined_at = fs::metadata(stack.path("host/host.crt"))?.mtime();
        poll::until_true("another second", poll::SOON, || Ok(wall_seconds()? > joined_at + 1))?;
        stack.start_agent()?;
        poll::until_true("the certificate to be renewed", poll::SOON, || {
            Ok(fs::read(stack.path("host/host.crt"))? != first)
        })?;
        ensure!(fs::read(&key)? == secret, "the key was replaced");
        // Over TLS, with the new certificate, and on record at the collector.
        let opened = stack.open("joined", "1m")?;
        stack.close_and_collect(&opened).map(drop)
    })
}

fn wall_seconds() -> Result<i64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().try_into()?)
}

/// The bounds of `cargo xtask bench --only outage`, on a shorter one.
fn outage() -> Result<()> {
    const PROGRAMS: u64 = 3000;
    Stack::with(Options { relay: true, ..Options::default() }, |stack| {
        let opened = stack.open("outage", "10m")?;
        let line = format!("{} execs {PROGRAMS}", stack.probe().display());
        stack.ssh_run(&opened, &line)?;
        stack.wait_until_acknowledged()?;
        let relay = stack.relay.as_ref().context("no relay")?;
        relay.cut();
        poll::until_true("the agent to notice", poll::SOON, || Ok(!stack.status()?.collector_connected))?;
        let before = machine::memory_kib(stack.agent.pid(), "RssAnon")?;
        stack.ssh_run(&opened, &line)?;
        let grown = machine::memory_kib(stack.agent.pid(), "RssAnon")?.saturating_sub(before);
        ensure!(grown < 8 * 1024, "memory grew by {grown} KiB while the collector was away");
        let waiting = stack.status()?;
        ensure!(waiting.spool_frames > 0, "nothing waits: the collector was not away");
        ensure!(waiting.spool_bytes < PROGRAMS * 1000 + (16 << 20), "{} bytes wait", waiting.spool_bytes);
        relay.mend();
        stack.wait_until_acknowledged()?;
        stack.close_and_collect(&opened)?;
        let found = numbers(&stack.query()?.commands(&opened.session)?)?;
        ensure!(found.len() as u64 == 2 * PROGRAMS, "{} of {} programs arrived", found.len(), 2 * PROGRAMS);
        Ok(())
    })
}

/// The connection is there and nobody reads it: what is under way is bounded, and the rest waits on the disk.
fn stalled() -> Result<()> {
    const PROGRAMS: u64 = 3000;
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("stalled", "10m")?;
        let line = format!("{} execs {PROGRAMS}", stack.probe().display());
        stack.ssh_run(&opened, &line)?;
        stack.wait_until_acknowledged()?;
        let before = machine::memory_kib(stack.agent.pid(), "RssAnon")?;
        stack.collector.signal(Signal::SIGSTOP)?;
        let ran = stack.ssh_run(&opened, &line);
        let grown = machine::memory_kib(stack.agent.pid(), "RssAnon")?.saturating_sub(before);
        let waiting = stack.status()?;
        stack.collector.signal(Signal::SIGCONT)?;
        ran?;
        ensure!(grown < 8 * 1024, "memory grew by {grown} KiB while the collector stood still");
        ensure!(waiting.spool_frames > 0, "nothing waits: the collector went on");
        stack.wait_until_acknowledged()?;
        stack.close_and_collect(&opened)?;
        let found = numbers(&stack.query()?.commands(&opened.session)?)?;
        ensure!(found.len() as u64 == 2 * PROGRAMS, "{} of {} programs arrived", found.len(), 2 * PROGRAMS);
        Ok(())
    })
}
