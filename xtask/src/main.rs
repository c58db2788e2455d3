//! Build, test, demonstrate and measure: `cargo xtask --help`.

#![forbid(unsafe_code)]

mod lab;

use clap::Parser;

/// Work on Breakglass itself.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Run tests in virtual machines with stock Debian kernels.
    Lab(lab::LabArgs),
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Lab(args) => lab::run(args),
    }
}
