//! Agent and collector killed at random moments under load, again and again: nothing acknowledged is lost, nothing comes twice, order
//! is kept, and nothing is even missing, since the kernel's rings outlive the agent.

use std::{
    process::Stdio,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::{Ring, event::Body};
use breakglass_tests::{
    poll,
    stack::{Options, Stack},
};

use crate::{Company, SESSION, Test, record::numbers};

pub const TESTS: &[Test] = &[Test {
    name: "crash::nothing_is_lost_whenever_either_is_killed",
    needs: SESSION,
    company: Company::Others,
    run: crash,
}];

/// How often something is killed; `BREAKGLASS_CRASH_KILLS` says otherwise.
const KILLS: u64 = 20;
/// Programs a second meanwhile.
const RATE: u64 = 200;
/// Longest time between a start and the next kill, milliseconds: from just started to well into work.
const ALIVE_MAX_MS: u64 = 500;

/// Numbers that look random and come again with the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        // Knuth's MMIX.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn number_from(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{name} is no number"))?)),
        Err(_) => Ok(None),
    }
}

fn crash() -> Result<()> {
    let kills = number_from("BREAKGLASS_CRASH_KILLS")?.unwrap_or(KILLS);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed = number_from("BREAKGLASS_CRASH_SEED")?.unwrap_or(now);
    hunt(kills, seed).with_context(|| format!("{kills} kills, BREAKGLASS_CRASH_SEED={seed}"))
}

fn hunt(kills: u64, seed: u64) -> Result<()> {
    let mut chance = Chance(seed);
    // What is to be recorded must run on while the agent is dead.
    Stack::with(Options { unrecorded: "record", ..Options::default() }, |stack| {
        let opened = stack.open("crashes", "1h")?;
        let line = format!("{} execs 1000000 --rate {RATE}", stack.probe().display());
        let mut load = stack.ssh(&opened).arg(line).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        poll::until_true("programs to be acknowledged", poll::SOON, || {
            Ok(numbers(&stack.query()?.commands(&opened.session)?)?.len() > 20)
        })?;
        for _ in 0..kills {
            thread::sleep(Duration::from_millis(chance.below(ALIVE_MAX_MS)));
            match chance.below(3) {
                0 => {
                    stack.kill_agent()?;
                    stack.start_agent()?;
                }
                1 => {
                    stack.collector.kill()?;
                    stack.start_collector()?;
                }
                _ => {
                    // Both at once, as when they share a machine that is reset.
                    stack.kill_agent()?;
                    stack.collector.kill()?;
                    stack.start_collector()?;
                    stack.start_agent()?;
                }
            }
            ensure!(load.try_wait()?.is_none(), "the load ended meanwhile");
        }
        // As root on the host: after a restart the account is locked. This ends the load as well.
        stack.control()?.close()?;
        poll::until("the load to end", poll::SOON, || Ok(load.try_wait()?))?;
        stack.wait_until_acknowledged()?;
        stack.collected(&opened.session)?;
        expect_whole(stack, &opened.session)
    })
}

fn expect_whole(stack: &Stack, session: &str) -> Result<()> {
    let mut query = stack.query()?;
    let found = numbers(&query.commands(session)?)?;
    let last = *found.last().context("no program is on record")?;
    let whole = found.iter().copied().eq(0..=last);
    ensure!(
        whole,
        "{} programs are on record, the last is number {last}: some are missing, twice or out of order",
        found.len()
    );
    let events = query.host_events(stack.host())?;
    let places: Vec<(u64, u32)> = events.iter().map(|event| (event.frame, event.index)).collect();
    ensure!(places.is_sorted_by(|a, b| a < b), "events come twice or out of order");
    let missing = events.iter().filter_map(|recorded| match recorded.event.as_ref()?.body.as_ref()? {
        Body::Gap(gap) if gap.ring == Ring::Audit as i32 => Some(gap.records),
        _ => None,
    });
    let missing: u64 = missing.sum();
    ensure!(missing == 0, "{missing} records are reported missing");
    Ok(())
}
