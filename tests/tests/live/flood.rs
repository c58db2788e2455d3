//! A session that does all it can to overrun its record: programs and terminal output from every processor at once.

use std::{collections::BTreeMap, fs, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use breakglass_api::{
    frame::Unpacker,
    v1::{Batch, Event, Gap, Ring, event::Body},
};
use breakglass_tests::{
    poll, remains,
    stack::{Options, Stack},
    terminal::Terminal,
};
use prost::Message;

use crate::{Company, SESSION, Test};

pub const TESTS: &[Test] = &[Test {
    name: "flood::no_program_is_lost_and_no_byte_unreported",
    needs: SESSION,
    company: Company::None,
    run: flood,
}];

/// How long, seconds; `BREAKGLASS_FLOOD_SECONDS` says otherwise.
const SECONDS: u64 = 6;

fn flood() -> Result<()> {
    let seconds = match std::env::var("BREAKGLASS_FLOOD_SECONDS") {
        Ok(text) => text.parse().context("BREAKGLASS_FLOOD_SECONDS is no number")?,
        Err(_) => SECONDS,
    };
    // A ring that the output overruns for sure; nothing leaves the host, so that only recording is under load.
    let options = Options { ship: false, bulk_ring: Some("256KiB"), ..Options::default() };
    Stack::with(options, |stack| {
        let opened = stack.open("a flood", "10m")?;
        let cpus = thread::available_parallelism()?.get();
        let mut terminals = (0..2 * cpus).map(|_| stack.login(&opened)).collect::<Result<Vec<_>>>()?;
        let limit = Duration::from_secs(seconds) + poll::EVENTUALLY;
        let (printing, running) = terminals.split_at_mut(cpus);
        for terminal in &mut *printing {
            terminal.send(format!("timeout {seconds} yes {}; echo ye''s over\n", "0123456789 ".repeat(6)))?;
        }
        for terminal in &mut *running {
            terminal.send(format!(
                "i=0; SECONDS=0; while [ $SECONDS -lt {seconds} ]; do /bin/true $i; i=$((i+1)); done; echo r''an $i ov''er\n"
            ))?;
        }
        for terminal in &mut *running {
            terminal.expect_within(" over", limit)?;
        }
        let ran = running.iter().map(programs_run).collect::<Result<Vec<_>>>()?;
        for terminal in &mut *printing {
            terminal.expect_within("yes over", limit)?;
        }
        let mut seen = 0;
        for terminal in &mut terminals {
            terminal.send("exit\n")?;
            terminal.finish(limit)?;
            seen += terminal.seen_len() as u64;
        }
        stack.close()?;
        let found = poll::until("every byte to be recorded or reported", poll::EVENTUALLY, || {
            let found = Found::read(stack)?;
            Ok((found.recorded + found.reported >= seen).then_some(found))
        })?;
        println!(
            "{} programs in {seconds} s; {seen} bytes shown: {} recorded, {} reported missing",
            ran.iter().sum::<u64>(),
            found.recorded,
            found.reported
        );
        found.check(&ran, seen)
    })
}

/// The number in `ran N over`.
fn programs_run(terminal: &Terminal) -> Result<u64> {
    let seen = String::from_utf8_lossy(&terminal.seen()).into_owned();
    let (_, after) = seen.rsplit_once("ran ").context("the loop did not say how often it ran")?;
    after.split_ascii_whitespace().next().and_then(|number| number.parse().ok()).context("no number of programs")
}

/// What lies in the spool.
#[derive(Default)]
struct Found {
    /// Bytes of terminal output.
    recorded: u64,
    /// Those that gaps and events say are missing.
    reported: u64,
    /// How often a number was given to `/bin/true`.
    numbers: BTreeMap<u64, usize>,
    audit_gaps: Vec<Gap>,
    audit_missing: Option<u64>,
}

impl Found {
    fn read(stack: &Stack) -> Result<Self> {
        let mut found = Self::default();
        for file in remains::files(&stack.path("state"))? {
            for frame in remains::frames(&fs::read(&file)?, &mut Unpacker::default())? {
                Batch::decode(frame.batch.as_slice())?.events.into_iter().try_for_each(|event| found.take(event))?;
            }
        }
        Ok(found)
    }

    fn take(&mut self, event: Event) -> Result<()> {
        let witness = event.origin.as_ref().is_some_and(|origin| origin.ring() == Ring::Witness);
        match event.body {
            Some(Body::TerminalOutput(output)) => {
                self.recorded += output.data.len() as u64;
                self.reported += output.missing;
            }
            Some(Body::Exec(exec)) if !witness && exec.argv.first().is_some_and(|name| name == b"/bin/true") => {
                let number = String::from_utf8(exec.argv.get(1).context("no number")?.clone())?.parse()?;
                *self.numbers.entry(number).or_default() += 1;
            }
            Some(Body::Gap(gap)) if gap.ring() == Ring::Bulk => self.reported += gap.bytes,
            Some(Body::Gap(gap)) if gap.ring() == Ring::Audit => self.audit_gaps.push(gap),
            Some(Body::SessionClosed(closed)) => self.audit_missing = closed.missing.first().copied(),
            _ => {}
        }
        Ok(())
    }

    fn check(&self, ran: &[u64], seen: u64) -> Result<()> {
        ensure!(self.audit_gaps.is_empty(), "audit records are missing: {:?}", self.audit_gaps);
        ensure!(
            self.audit_missing == Some(0),
            "the kernel says that audit records are missing: {:?}",
            self.audit_missing
        );
        for number in 0..ran.iter().copied().max().unwrap_or(0) {
            let due = ran.iter().filter(|count| number < **count).count();
            let recorded = self.numbers.get(&number).copied().unwrap_or(0);
            ensure!(recorded == due, "program {number} is recorded {recorded} times, {due} ran");
        }
        ensure!(self.reported > 0, "nothing was lost: the test did not overrun the ring");
        let known = self.recorded + self.reported;
        ensure!(
            known == seen,
            "{seen} bytes were shown; {} recorded, {} reported missing",
            self.recorded,
            self.reported
        );
        Ok(())
    }
}
