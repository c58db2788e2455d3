//! What the programs cost: to verify, to load, and while nothing is to be recorded.

use std::{
    fs,
    io::{Read, Write},
    time::{Duration, Instant},
};

use breakglass_agent::kernel::ProgramStatistics;
use nix::time::{ClockId, clock_gettime};

use super::harness::{DEADLINE, Recording, is_emulated};
use crate::need_kernel;

/// The verifier gives up at a million; a program that comes near it will be refused by some kernel.
const INSTRUCTIONS_MAX: u64 = 500_000;
const LOAD_MAX: Duration = Duration::from_secs(1);
const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

#[test]
fn every_program_is_far_from_the_verifiers_limit_and_all_load_in_time() {
    need_kernel!();
    // Of this thread alone: the machine may be busy with other things.
    let before = thread_time();
    let mut recording = Recording::guarded();
    let took = thread_time() - before;
    for program in recording.kernel().statistics().unwrap() {
        println!("{:<24} {:>8} instructions verified", program.program, program.verified_instructions);
        assert!((1..INSTRUCTIONS_MAX).contains(&program.verified_instructions), "{program:?}");
    }
    let info = recording.kernel().info();
    if let Ok(tier) = std::env::var("BREAKGLASS_LAB_TIER") {
        // Or what is dear may just not be there.
        assert_eq!(info.tier.as_str(), tier, "{}", info.tier_reason);
    }
    let all = info.load_time.expect("loaded by this test");
    println!("loaded in {all:?}, of which {took:?} of processor time");
    assert!(took < LOAD_MAX || is_emulated(), "loading took {took:?}");
}

fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// Puts the switch back.
struct Counting(String);

impl Counting {
    fn start() -> Self {
        let before = fs::read_to_string(SWITCH).unwrap();
        fs::write(SWITCH, "1").unwrap();
        Self(before)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        fs::write(SWITCH, self.0.trim()).unwrap();
    }
}

/// System calls and terminal output of nobody's.
fn work() {
    let pty = nix::pty::openpty(None, None).unwrap();
    let (mut master, mut slave) = (fs::File::from(pty.master), fs::File::from(pty.slave));
    let mut buffer = [0; 64];
    for _ in 0..200 {
        slave.write_all(b"nothing").unwrap();
        master.read_exact(&mut buffer[..7]).unwrap();
        nix::unistd::getppid();
    }
    assert!(std::process::Command::new("/bin/true").status().unwrap().success());
}

#[test]
fn at_rest_nothing_runs_but_exec_fork_and_exit() {
    need_kernel!();
    const RESTING: [&str; 4] = ["process_exec", "process_exit", "process_fork", "process_judge"];
    let mut recording = Recording::guarded();
    let counting = Counting::start();
    let ran = |recording: &mut Recording| -> Vec<ProgramStatistics> {
        let mut ran = recording.kernel().statistics().unwrap();
        // The guard, where there is one, is attached at rest too.
        ran.retain(|program| program.runs > 0 && !program.program.starts_with("guard_"));
        ran.sort_by_key(|program| program.program);
        ran
    };
    let names = |programs: &[ProgramStatistics]| programs.iter().map(|program| program.program).collect::<Vec<_>>();
    work();
    let at_rest = ran(&mut recording);
    assert_eq!(names(&at_rest), RESTING);
    for program in &at_rest {
        println!("{}: {} ns a run at rest", program.program, program.run_ns / program.runs);
    }

    recording.kernel().begin_session(31).unwrap();
    work();
    let in_session = ran(&mut recording);
    assert!(names(&in_session).contains(&"syscall_exit"), "{in_session:?}");
    recording.kernel().end_session(31).unwrap();

    // The kernel lets go of a detached program some time later.
    let limit = Instant::now() + DEADLINE;
    let of_session = |programs: &[ProgramStatistics]| -> u64 {
        programs.iter().filter(|program| !RESTING.contains(&program.program)).map(|program| program.runs).sum()
    };
    loop {
        let before = ran(&mut recording);
        work();
        let now = ran(&mut recording);
        if of_session(&before) == of_session(&now) {
            break;
        }
        assert!(Instant::now() < limit, "programs of the session still run: {now:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(counting);
}
