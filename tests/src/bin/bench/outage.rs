//! The collector away during a busy session: what that costs the host, and how fast it catches up.
//!
//! An hour of a busy session is compressed: its programs run as fast as the machine runs them, and the catching up is held
//! against the time that they took, which is harder than against the hour.

use std::time::Instant;

use anyhow::{Context, Result};
use breakglass_tests::{
    machine, poll,
    stack::{Options, Stack},
};

use crate::{
    Effort,
    exec::times,
    figure::{Budget, Figure},
};

/// Programs of an hour in which somebody works hard: fifteen a second, scripts included.
const EXECS: u64 = 54_000;
/// Programs before memory is looked at for the first time: buffers have their size then.
const WARM_UP: u64 = 2000;

pub fn measure(effort: Effort) -> Result<Vec<Figure>> {
    Stack::with(Options { relay: true, ..Options::default() }, |stack| {
        let opened = stack.open("measured", "1h")?;
        let run = |stack: &Stack, count: u64| {
            let line = format!("{} execs {count}", stack.probe().display());
            anyhow::Ok(times(&stack.ssh_run(&opened, &line)?)?.0 / 1e9)
        };
        run(stack, WARM_UP)?;
        stack.wait_until_acknowledged()?;
        stack.relay.as_ref().context("no relay")?.cut();
        poll::until_true("the agent to notice", poll::SOON, || Ok(!stack.status()?.collector_connected))?;
        let before = machine::memory_kib(stack.agent.pid(), "RssAnon")?;
        let execs = effort.runs(EXECS);
        let worked = run(stack, execs)?;
        let after = machine::memory_kib(stack.agent.pid(), "RssAnon")?;
        let waiting = stack.status()?;
        stack.relay.as_ref().context("no relay")?.mend();
        poll::until_true("the agent to connect", poll::EVENTUALLY, || Ok(stack.status()?.collector_connected))?;
        let start = Instant::now();
        poll::until_true("the collector to have it", poll::EVENTUALLY, || {
            Ok(stack.status()?.acked_seq >= waiting.last_seq)
        })?;
        let caught_up = start.elapsed().as_secs_f64();
        stack.close_and_collect(&opened)?;
        Ok(vec![
            Figure::new(
                format!("outage of {execs} programs: growth of the agent's memory"),
                "MiB",
                vec![after.saturating_sub(before) as f64 / 1024.0],
                Budget::MedianAtMost(4.0),
            ),
            Figure::new(
                "outage: spool on disk",
                "MiB",
                vec![waiting.spool_bytes as f64 / f64::from(1 << 20)],
                Budget::MedianAtMost(execs as f64 * 200.0 / f64::from(1 << 20)),
            ),
            Figure::new(
                "outage: caught up, times real time",
                "×",
                vec![worked / caught_up],
                Budget::MedianAtLeast(10.0),
            ),
        ])
    })
}
