//! Killed daemons and cut connections: nothing is lost, nothing comes twice, and every hole is an explicit gap.

use std::{
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::{Ring, event::Body};
use breakglass_tests::{
    operator::Opened,
    poll,
    stack::{Options, Stack},
};

use crate::{
    Company, SESSION, Test,
    record::{expect_numbers, numbers},
};

pub const TESTS: &[Test] = &[
    Test { name: "faults::agent_killed_in_the_middle", needs: SESSION, company: Company::Others, run: agent_killed },
    Test {
        name: "faults::collector_killed_in_the_middle",
        needs: SESSION,
        company: Company::Others,
        run: collector_killed,
    },
    Test {
        name: "faults::connection_cut_for_ten_seconds",
        needs: SESSION,
        company: Company::Others,
        run: connection_cut,
    },
];

/// Programs run while something breaks, at [`RATE`] a second: long enough for a kill and a restart in between.
const COUNT: u64 = 2_000;
const RATE: u64 = 250;

fn agent_killed() -> Result<()> {
    // Where the policy is to deny, programs do not run without an agent: `fail_closed.rs`.
    disturbed(Options { unrecorded: "record", ..Options::default() }, |stack| {
        stack.kill_agent()?;
        // Time without an agent, in which the kernel's rings alone remember.
        thread::sleep(Duration::from_millis(800));
        stack.start_agent()
    })
}

fn collector_killed() -> Result<()> {
    disturbed(Options::default(), |stack| {
        stack.collector.kill()?;
        thread::sleep(Duration::from_millis(800));
        stack.start_collector()
    })
}

fn connection_cut() -> Result<()> {
    disturbed(Options { relay: true, ..Options::default() }, |stack| {
        let relay = stack.relay.as_ref().context("no relay")?;
        relay.cut();
        thread::sleep(Duration::from_secs(10));
        relay.mend();
        Ok(())
    })
}

/// Lets the account run numbered programs, breaks something meanwhile, and compares the record with what an undisturbed one holds.
fn disturbed(options: Options, disturb: impl FnOnce(&mut Stack) -> Result<()>) -> Result<()> {
    Stack::with(options, |stack| {
        let opened = stack.open("disturbed", "10m")?;
        let mut load = start_load(stack, &opened)?;
        let mut query = stack.query()?;
        poll::until_true("the first programs to be at the collector", poll::SOON, || {
            Ok(numbers(&query.commands(&opened.session)?)?.len() > 50)
        })?;
        disturb(stack)?;
        let ended = poll::until("the load to end", poll::EVENTUALLY, || Ok(load.try_wait()?))?;
        ensure!(ended.success(), "the load was disturbed as well: {ended}");
        stack.wait_until_acknowledged()?;
        // As root on the host: after a restart the account is locked, and the operator's key may be of no use.
        stack.control()?.close()?;
        stack.collected(&opened.session)?;
        expect_whole(stack, &opened)
    })
}

fn start_load(stack: &Stack, opened: &Opened) -> Result<Child> {
    let line = format!("{} execs {COUNT} --rate {RATE}", stack.probe().display());
    let mut command = stack.ssh(opened);
    Ok(command.arg(line).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?)
}

fn expect_whole(stack: &Stack, opened: &Opened) -> Result<()> {
    let mut query = stack.query()?;
    let found = numbers(&query.commands(&opened.session)?)?;
    ensure!(found.is_sorted_by(|a, b| a < b), "numbers come twice or out of order");
    let events = query.host_events(stack.host())?;
    let mut places: Vec<(u64, u32)> = events.iter().map(|event| (event.frame, event.index)).collect();
    let all = places.len();
    places.dedup();
    ensure!(places.len() == all && places.is_sorted(), "events come twice or out of order");
    let gaps: u64 = events
        .iter()
        .filter_map(|recorded| match recorded.event.as_ref()?.body.as_ref()? {
            Body::Gap(gap) if gap.ring == Ring::Audit as i32 => Some(gap.records),
            _ => None,
        })
        .sum();
    // The rings hold far more than what was run, so here not even an explicit gap is right.
    ensure!(gaps == 0, "{gaps} records are reported missing; {} of {COUNT} numbers are there", found.len());
    expect_numbers(&found, COUNT)
}
