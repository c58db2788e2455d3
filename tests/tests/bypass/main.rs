//! Every known way around the audit, performed for real: as the operator, over ssh, with `sudo`, against an installation that
//! records. What the collector then has decides.
//!
//! The rows and what is promised about each are the agent's own catalogue (`breakglass-agent bypasses`); here are the attacks. One
//! installation serves all of them, one after the other, for starting it is what costs time. See `docs/TESTING.md`.

#![forbid(unsafe_code)]

mod case;
mod cases;
mod catalogue;
mod mend;
mod peers;
mod record;
mod shell;
mod stage;
mod verdict;

use std::process::ExitCode;

use breakglass_tests::{machine::Need, undo};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use case::{Case, Place};
use stage::Stage;

/// Tests to run, one a line; everything where it is not set. The lab's way to choose several.
const ONLY: &str = "BREAKGLASS_ONLY";

/// What every attack needs.
const NEEDS: &[Need] = &[Need::Root, Need::Ssh, Need::Sudo, Need::Bpf, Need::Program("gcc"), Need::Program("python3")];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share an installation, and one kernel.
    arguments.test_threads = Some(1);
    if !arguments.list
        && let Err(error) = undo::sweep()
    {
        eprintln!("cannot look for what earlier runs left behind: {error:#}");
    }
    let only = std::env::var(ONLY).ok();
    let wanted = |name: &str| only.as_ref().is_none_or(|only| only.lines().any(|line| line == name));
    let trials = cases::all().map(trial).chain([catalogue_trial()]).filter(|trial| wanted(trial.name())).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    Stage::leave();
    undo::stay_if_interrupted();
    conclusion.exit_code()
}

fn trial(case: &'static Case) -> Trial {
    Trial::ignorable_test(case.full_name(), move || match obstacle(case) {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => match stage::attack(case) {
            Ok(None) => Ok(Completion::Completed),
            Ok(Some(reason)) => Ok(Completion::ignored_with(reason)),
            Err(error) => Err(Failed::from(format!("{error:#}"))),
        },
    })
}

/// Why a case cannot be tried here.
fn obstacle(case: &Case) -> Option<String> {
    let missing = NEEDS.iter().chain(case.needs).find_map(|need| need.missing());
    match case.place {
        Place::Lab(reason) if !stage::in_lab() => Some(format!("only in the lab: {reason}")),
        _ => missing,
    }
}

fn catalogue_trial() -> Trial {
    Trial::test("catalogue::every_row_is_attacked", || {
        catalogue::every_row_is_attacked().map_err(|error| Failed::from(format!("{error:#}")))
    })
}
