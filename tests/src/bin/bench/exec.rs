//! What recording costs at a steady rate of programs: processor time, memory, bytes. What it costs each of them: [`crate::overhead`].

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result};
use breakglass_api::{
    frame::Unpacker,
    v1::{Batch, Event, Ring, event::Body},
};
use breakglass_tests::{
    machine, poll, remains,
    stack::{Options, Stack},
};
use prost::Message;

use crate::{
    Effort,
    figure::{Budget, Figure},
};

/// Below this share of a core an agent that was just started, or has just opened or closed, is done with what that brings.
const QUIET: f64 = 0.02;
const QUIET_LOOK: Duration = Duration::from_millis(500);

/// Rate at which the agent's own use of the processor is measured, programs a second, for how many programs, and how often.
const PACE: u64 = 1000;
const PACED: u64 = 10_000;
const PACED_ROUNDS: u64 = 5;

/// Waits until the agent has nothing more to do, so that what is measured does not pay for its start.
pub fn wait_until_quiet(stack: &Stack) -> Result<()> {
    let mut before = machine::cpu_seconds(stack.agent.pid())?;
    poll::until_true("the agent to be quiet", poll::EVENTUALLY, || {
        thread::sleep(QUIET_LOOK);
        let now = machine::cpu_seconds(stack.agent.pid())?;
        let used = now - std::mem::replace(&mut before, now);
        Ok(used / QUIET_LOOK.as_secs_f64() <= QUIET)
    })
}

/// The two numbers that the probe prints: nanoseconds on the clock, and of processor time.
pub fn times(text: &str) -> Result<(f64, f64)> {
    let (clock, processor) = text.trim().split_once(' ').context("the probe printed no times")?;
    Ok((clock.parse()?, processor.parse()?))
}

/// Processor time and memory at a steady rate of recorded programs.
pub fn load(effort: Effort) -> Result<Vec<Figure>> {
    Stack::with(Options::default(), |stack| {
        let opened = stack.open("measured", "10m")?;
        let used = || [stack.agent.pid(), stack.collector.pid()].map(machine::cpu_seconds);
        let line = format!("{} execs {} --rate {PACE}", stack.probe().display(), effort.runs(PACED));
        let (mut agent, mut collector, mut lasted) = (Vec::new(), Vec::new(), 0.0);
        for _ in 0..PACED_ROUNDS {
            // The look at the host that an opening brings is no part of a steady rate.
            wait_until_quiet(stack)?;
            let before = used();
            let seconds = times(&stack.ssh_run(&opened, &line)?)?.0 / 1e9;
            stack.wait_until_acknowledged()?;
            lasted += seconds;
            for ((shares, before), after) in [&mut agent, &mut collector].into_iter().zip(before).zip(used()) {
                shares.push((after? - before?) / seconds * 100.0);
            }
        }
        let rate = (PACED_ROUNDS * effort.runs(PACED)) as f64 / lasted;
        let mebibytes = |pid, field| anyhow::Ok(vec![machine::memory_kib(pid, field)? as f64 / 1024.0]);
        let at = format!("at {rate:.0} exec/s");
        let figures = vec![
            Figure::new(format!("agent, one core {at}"), "%", agent, Budget::MedianAtMost(3.0)),
            Figure::new(format!("collector, one core {at}"), "%", collector, Budget::None),
            Figure::new(
                "agent memory without rings (RssAnon)",
                "MiB",
                mebibytes(stack.agent.pid(), "RssAnon")?,
                Budget::MedianAtMost(24.0),
            ),
            Figure::new("agent memory in all (VmRSS)", "MiB", mebibytes(stack.agent.pid(), "VmRSS")?, Budget::None),
            Figure::new("collector memory (VmRSS)", "MiB", mebibytes(stack.collector.pid(), "VmRSS")?, Budget::None),
        ];
        stack.close_and_collect(&opened)?;
        Ok(figures)
    })
}

/// Bytes in the spool for each program, everything about it included: fork, exit, and the frames' own.
pub fn size(effort: Effort) -> Result<Vec<Figure>> {
    // No two alike in a row; what administrators run.
    const MIXED: &str = "for n in $(seq 200); do ls -l /etc >/dev/null; grep -c root /etc/passwd; id; date +%s; \
         sed -n ${n}p /etc/services; awk -F: '{print $1}' /etc/group | sort | head -n $n | wc -l; \
         find /etc/ssh -name '*.pub' -mtime +$n; cut -d: -f1 /etc/passwd | tail -n 3; done >/dev/null";
    let (mixed, execs) = size_of("mixed", |_| MIXED.to_owned())?;
    let paced = |stack: &Stack| format!("{} execs {} --rate {PACE}", stack.probe().display(), effort.runs(PACED));
    let (steady, _) = size_of("steady", paced)?;
    let budget = Budget::MedianAtMost(60.0);
    Ok(vec![
        Figure::new(format!("stored bytes per exec, {execs} mixed commands"), "B", vec![mixed], budget),
        Figure::new(format!("stored bytes per exec, steady {PACE} exec/s"), "B", vec![steady], budget),
    ])
}

/// Bytes per exec that `line` leaves in the spool, and how many execs there were. `name` is for samples.
fn size_of(name: &str, line: impl Fn(&Stack) -> String) -> Result<(f64, u64)> {
    Stack::with(Options { ship: false, ..Options::default() }, |stack| {
        let opened = stack.open("measured", "10m")?;
        stack.ssh_run(&opened, &line(stack))?;
        stack.close()?;
        let (mut bytes, mut execs) = (0_u64, 0_u64);
        for file in remains::files(&stack.path("state"))? {
            // One that is gone by now was being replaced; frames lie in files that stay.
            let Ok(content) = fs::read(&file) else { continue };
            for frame in remains::frames(&content, &mut Unpacker::default())? {
                sample(name, &frame.batch)?;
                bytes += frame.bytes as u64;
                let events = Batch::decode(frame.batch.as_slice())?.events;
                execs += events.iter().filter(|event| is_own(event)).count() as u64;
            }
        }
        Ok((bytes as f64 / execs as f64, execs))
    })
}

/// Whether an event is a program of the session's own.
fn is_own(event: &Event) -> bool {
    let witness = event.origin.as_ref().is_some_and(|origin| origin.ring() == Ring::Witness);
    !witness && matches!(event.body, Some(Body::Exec(_)))
}

/// Keeps a batch where `BREAKGLASS_SAMPLES` names a folder: what a dictionary is trained with (`docs/EVIDENCE.md`).
fn sample(name: &str, batch: &[u8]) -> Result<()> {
    let Some(folder) = std::env::var_os("BREAKGLASS_SAMPLES") else { return Ok(()) };
    let folder = std::path::Path::new(&folder);
    let number = fs::read_dir(folder)?.count();
    fs::write(folder.join(format!("{name}-{number:06}")), batch).context("cannot keep a sample")
}
