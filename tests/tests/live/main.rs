//! End-to-end tests on this machine's kernel: real accounts, real sshd, real sudo, and the built binaries between them.
//!
//! What the machine lacks for a test is printed as `skipped: TEST: REASON`, and the test is counted as ignored, never as passed.

#![forbid(unsafe_code)]

mod account;
mod crash;
mod environment;
mod evidence;
mod faults;
mod fido;
mod flood;
mod gate;
mod grants;
mod harness;
mod record;
mod refusals;
mod review;
mod rotation;
mod stdio;
mod stop;
mod terminal;
mod wire;

use std::{
    process::ExitCode,
    sync::{PoisonError, RwLock},
};

use breakglass_tests::{machine::Need, undo};
use libtest_mimic::{Arguments, Failed, Trial};

/// One test.
struct Test {
    name: &'static str,
    needs: &'static [Need],
    company: Company,
    run: fn() -> anyhow::Result<()>,
}

/// What may run beside a test.
enum Company {
    /// Nothing: it measures time or loads the machine.
    None,
    /// Others.
    Others,
    /// Whatever runs: it mostly waits.
    Any,
}

/// What a session on a host needs.
const SESSION: &[Need] = &[Need::Root, Need::Ssh, Need::Bpf];

/// As [`SESSION`], with `sudo` inside.
const SUDO_SESSION: &[Need] = &[Need::Root, Need::Ssh, Need::Bpf, Need::Sudo];

/// Held shared by tests that bear company, exclusively by those that do not.
static FLOOR: RwLock<()> = RwLock::new(());

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each test runs two daemons and an sshd of its own; more at once only wait for each other.
    arguments.test_threads.get_or_insert(2);
    match undo::sweep() {
        Ok(0) => {}
        Ok(swept) => eprintln!("took back what {swept} interrupted run(s) had left behind"),
        Err(error) => eprintln!("cannot look for what earlier runs left behind: {error:#}"),
    }
    // What waits longest goes first.
    let tests = [
        refusals::TESTS,
        account::TESTS,
        crash::TESTS,
        environment::TESTS,
        evidence::TESTS,
        faults::TESTS,
        fido::TESTS,
        flood::TESTS,
        gate::TESTS,
        grants::TESTS,
        harness::TESTS,
        record::TESTS,
        review::TESTS,
        rotation::TESTS,
        stdio::TESTS,
        stop::TESTS,
        terminal::TESTS,
        wire::TESTS,
    ];
    let trials = tests.into_iter().flatten().map(trial).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    undo::stay_if_interrupted();
    conclusion.exit_code()
}

fn trial(test: &'static Test) -> Trial {
    let missing = test.needs.iter().find_map(|need| need.missing());
    if let Some(reason) = &missing {
        eprintln!("skipped: {}: {reason}", test.name);
    }
    Trial::test(test.name, || run(test)).with_ignored_flag(missing.is_some())
}

fn run(test: &Test) -> Result<(), Failed> {
    let result = match test.company {
        Company::None => {
            let _alone = FLOOR.write().unwrap_or_else(PoisonError::into_inner);
            (test.run)()
        }
        Company::Others => {
            let _beside = FLOOR.read().unwrap_or_else(PoisonError::into_inner);
            (test.run)()
        }
        Company::Any => (test.run)(),
    };
    result.map_err(|error| Failed::from(format!("{error:#}")))
}
