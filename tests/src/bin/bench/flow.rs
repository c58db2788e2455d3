//! How long an event takes: to be durable on the host, to be acknowledged by the collector, to be found by search.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use breakglass_api::v1::event::Body;
use breakglass_tests::{
    control::Control,
    machine,
    operator::Opened,
    poll,
    stack::{Options, Stack},
    tiny,
};

use crate::{
    Effort,
    exec::times,
    figure::{Budget, Figure},
};

/// Rates of programs a second, and how many are run at each: a busy person or a script, and the 5,000 events a second of the
/// budget, since a program is three events. The programs do nothing, or this machine's cores would be busy with them.
const LOADS: [(u64, u64); 2] = [(200, 4000), (1667, 10_000)];

/// Searches measured.
const SEARCHES: u64 = 100;

/// How often the agent is asked how far it is; more often than it commits. It says since when, so that neither this nor the time that an
/// answer takes is in what is measured.
const LOOK: Duration = Duration::from_millis(1);

/// A frame, and since when the agent had it durable or acknowledged.
#[derive(Clone, Copy, PartialEq)]
struct Look {
    frame: u64,
    boot_ns: u64,
}

/// What the agent said, in order.
#[derive(Default)]
struct Looks {
    durable: Vec<Look>,
    acknowledged: Vec<Look>,
}

pub fn measure(effort: Effort) -> Result<Vec<Figure>> {
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("measured", "10m")?;
        let mut figures = Vec::new();
        for (rate, execs) in LOADS {
            figures.extend(ways(stack, &opened, rate, effort.runs(execs))?);
        }
        let found = search(stack, &opened.session, effort.runs(SEARCHES))?;
        figures.push(Figure::new("command run to found by search", "ms", found, Budget::P99AtMost(250.0)));
        stack.close_and_collect(&opened)?;
        Ok(figures)
    })
}

/// How long events of `execs` programs take, run at `rate` a second or as fast as the machine does.
fn ways(stack: &Stack, opened: &Opened, rate: u64, execs: u64) -> Result<Vec<Figure>> {
    let program = stack.path("bin/tiny");
    tiny::write(&program)?;
    let line = format!("{} execs {execs} --rate {rate} --program {}", stack.probe().display(), program.display());
    let over = AtomicBool::new(false);
    let control = stack.control()?;
    let from = machine::boot_ns()?;
    let (looks, seconds) = thread::scope(|scope| {
        let watching = scope.spawn(|| watch(control, &over));
        let ran = stack.ssh_run(opened, &line).and_then(|took| {
            stack.wait_until_acknowledged()?;
            Ok(times(&took)?.0 / 1e9)
        });
        over.store(true, Ordering::SeqCst);
        let looks = watching.join().ok().context("the watching thread died")?;
        ran.and_then(|seconds| Ok((looks?, seconds)))
    })?;
    let (mut durable, mut acknowledged) = (Vec::new(), Vec::new());
    for recorded in stack.query()?.events(&opened.session)? {
        let Some(event) = recorded.event else { continue };
        if event.boot_ns < from || !matches!(event.body, Some(Body::Exec(_))) {
            continue;
        }
        durable.extend(wait(&looks.durable, event.boot_ns, recorded.frame));
        acknowledged.extend(wait(&looks.acknowledged, event.boot_ns, recorded.frame));
    }
    let at = format!("at {:.0} events/s", 3.0 * execs as f64 / seconds);
    Ok(vec![
        Figure::new(format!("event in the kernel to durable frame, {at}"), "ms", durable, Budget::P99AtMost(15.0)),
        Figure::new(format!("event in the kernel to acknowledged, {at}"), "ms", acknowledged, Budget::P99AtMost(50.0)),
    ])
}

fn watch(mut control: Control, over: &AtomicBool) -> Result<Looks> {
    let mut looks = Looks::default();
    let note = |looks: &mut Vec<Look>, look: Look| {
        if looks.last() != Some(&look) {
            looks.push(look);
        }
    };
    while !over.load(Ordering::SeqCst) {
        let status = control.status()?;
        note(&mut looks.durable, Look { frame: status.last_seq, boot_ns: status.durable_boot_ns });
        note(&mut looks.acknowledged, Look { frame: status.acked_seq, boot_ns: status.acked_boot_ns });
        thread::sleep(LOOK);
    }
    Ok(looks)
}

/// Milliseconds from `boot_ns` to the first look at which `frame` was there; nothing for what came after the last look.
fn wait(looks: &[Look], boot_ns: u64, frame: u64) -> Option<f64> {
    let first = looks.partition_point(|look| look.frame < frame);
    // What was there before the first look was not watched.
    looks.get(first).filter(|_| first > 0).map(|look| look.boot_ns.saturating_sub(boot_ns) as f64 / 1e6)
}

/// Runs programs with names of their own and searches for each until it is found; milliseconds from its start.
fn search(stack: &Stack, session: &str, count: u64) -> Result<Vec<f64>> {
    let mut query = stack.query()?;
    let mut took = Vec::new();
    let uid = stack.account.uid.to_string();
    for number in 0..count {
        let needle = format!("haystack-needle-{number:05}-{session}");
        let start = Instant::now();
        let mut command = std::process::Command::new(machine::program("setpriv")?);
        machine::run(command.args(["--reuid", &uid, "--clear-groups", "/bin/true", &needle]))?;
        poll::until_true("the command to be found", poll::SOON, || Ok(!query.search(&needle)?.is_empty()))?;
        took.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(took)
}
