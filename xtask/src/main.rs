//! Everything that is done with this repository, as one command: `cargo xtask --help`.

#![forbid(unsafe_code)]

mod build;
mod bypasses;
mod ebpf;
mod lab;
mod package;
mod packages;
mod run;
mod soak;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Build, test, demonstrate and measure Breakglass.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check format and lints, and run every test: unit, property, end to end on this kernel
    Test(test::TestArgs),
    /// All of `test`, then all of `lab`: what must hold before a change is taken
    Ci,
    /// Break the glass on this machine, work in it, close it, and show what security sees
    Demo(run::DemoArgs),
    /// Measure against the budgets: overhead, latency, throughput, size, memory
    Bench(run::BenchArgs),
    /// Build the kernel programs, or check that the committed object matches its sources
    Ebpf(ebpf::EbpfArgs),
    /// Make Debian packages of agent, collector and command
    Package(package::PackageArgs),
    /// Write docs/BYPASSES.md from the verdicts of the last runs of the tests that perform bypasses
    Bypasses(bypasses::BypassesArgs),
    /// Run tests in virtual machines with stock Debian kernels
    Lab(lab::LabArgs),
    /// Hunt for faults for minutes or hours: fuzzing, and what else is too long for every change
    Soak(soak::SoakArgs),
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Test(args) => test::run(&args),
        Task::Ci => test::ci(),
        Task::Demo(args) => run::demo(&args),
        Task::Bench(args) => run::bench(&args),
        Task::Ebpf(args) => ebpf::run(args),
        Task::Package(args) => package::run(&args),
        Task::Bypasses(args) => bypasses::run(&args),
        Task::Lab(args) => lab::run(args),
        Task::Soak(args) => soak::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_task_says_in_one_line_what_it_does() {
        Cli::command().debug_assert();
        for task in Cli::command().get_subcommands() {
            let about = task.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.contains('\n'), "{}", task.get_name());
        }
    }
}
