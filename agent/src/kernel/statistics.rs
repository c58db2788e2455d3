//! What the kernel counts of each program.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use aya::programs::{ProgramError, ProgramFd, ProgramInfo};

use super::{
    error::KernelError,
    object::{Hook, PROGRAMS},
    pins::Pins,
};

/// How often [`Skips`] looks. It costs some 20 µs a program.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One program's counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramStatistics {
    /// The program.
    pub program: &'static str,
    /// Instructions that the verifier went through; 0 where the kernel does not say.
    pub verified_instructions: u64,
    /// Runs while `kernel.bpf_stats_enabled` was set.
    pub runs: u64,
    /// Time that those took, nanoseconds.
    pub run_ns: u64,
    /// Runs that the kernel left out, because the program was interrupted by itself on one CPU: what they would have recorded is
    /// missing, and nothing else says so.
    pub skipped: u64,
}

impl ProgramStatistics {
    /// Reads a pinned program's (kernel/bpf/syscall.c, `bpf_prog_show_fdinfo`).
    pub(super) fn read(pins: &Pins, program: &'static str) -> Result<Self, KernelError> {
        let pin = pins.program(program);
        let descriptor = open(pins, program).map_err(|e| KernelError::pin("cannot open", &pin, e))?;
        Self::of(program, &descriptor).map_err(|e| KernelError::pin("cannot look at", &pin, e))
    }

    fn of(program: &'static str, descriptor: &ProgramFd) -> io::Result<Self> {
        let number = descriptor.as_fd().as_raw_fd();
        Ok(Self::parse(program, &fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?))
    }

    fn parse(program: &'static str, text: &str) -> Self {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        Self {
            program,
            verified_instructions: value("verified_insns"),
            runs: value("run_cnt"),
            run_ns: value("run_time_ns"),
            skipped: value("recursion_misses"),
        }
    }
}

fn open(pins: &Pins, program: &'static str) -> Result<ProgramFd, ProgramError> {
    ProgramInfo::from_pin(pins.program(program))?.fd()
}

/// Watches for runs that the kernel left out. Tracepoint programs cannot interrupt themselves, and what a timer's signal makes
/// them miss is nobody's.
pub struct Skips {
    programs: Vec<(&'static str, ProgramFd, u64)>,
    looked: Instant,
}

impl Skips {
    /// Holds the pinned programs; those that cannot be held are not watched.
    pub fn open(pins: &Pins) -> Self {
        let interruptible = PROGRAMS.iter().filter(|program| !matches!(program.hook, Hook::Tracepoint(_)));
        let programs = interruptible.filter_map(|program| {
            let descriptor = open(pins, program.name).ok()?;
            let skipped = ProgramStatistics::of(program.name, &descriptor).ok()?.skipped;
            Some((program.name, descriptor, skipped))
        });
        Self { programs: programs.collect(), looked: Instant::now() }
    }

    /// Programs that were left out since the last look, and how often.
    pub fn new_ones(&mut self) -> Vec<(&'static str, u64)> {
        if self.looked.elapsed() < LOOK_EVERY {
            return Vec::new();
        }
        self.looked = Instant::now();
        let mut grown = Vec::new();
        for (program, descriptor, known) in &mut self.programs {
            let skipped = ProgramStatistics::of(program, descriptor).map_or(*known, |now| now.skipped);
            if skipped > *known {
                grown.push((*program, skipped - *known));
                *known = skipped;
            }
        }
        grown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_by_name_and_absent_ones_are_none() {
        let text =
            "pos:\t0\nprog_type:\t26\nrun_time_ns:\t1200\nrun_cnt:\t3\nrecursion_misses:\t1\nverified_insns:\t77\n";
        let read = ProgramStatistics::parse("x", text);
        assert_eq!((read.verified_instructions, read.runs, read.run_ns, read.skipped), (77, 3, 1200, 1));
        assert_eq!(ProgramStatistics::parse("x", "run_cnt: x\n").runs, 0);
    }
}
