//! What the kernel counts of each program.

use std::{fs, os::fd::AsRawFd};

use aya::programs::ProgramInfo;

use super::{error::KernelError, pins::Pins};

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
        let info = ProgramInfo::from_pin(&pin).and_then(|info| info.fd());
        let descriptor = info.map_err(|e| KernelError::pin("cannot open", &pin, e))?;
        use std::os::fd::AsFd as _;
        let number = descriptor.as_fd().as_raw_fd();
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))
            .map_err(|e| KernelError::pin("cannot look at", &pin, e))?;
        Ok(Self::parse(program, &text))
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
