//! The demonstration and the measurements: programs of the tests' crate, which share the tests' harness. Here they are built and
//! handed the terminal.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result};
use clap::Args;

use crate::{build, packages};

/// Arguments of `demo`.
#[derive(Args)]
pub struct DemoArgs {
    /// Leave everything running to try by hand, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Use the optimised build, which takes longer to make
    #[arg(long)]
    release: bool,
}

/// Arguments of `bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// Print one JSON object in place of the table
    #[arg(long)]
    json: bool,
    /// A tenth of the runs: minutes become seconds, and the numbers rough
    #[arg(long)]
    quick: bool,
    /// Only measurements whose name contains this
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
}

/// Builds and shows the whole way once.
pub fn demo(args: &DemoArgs) -> Result<()> {
    packages::ensure_installed()?;
    let mut arguments = Vec::new();
    if args.keep {
        arguments.push("--keep");
    }
    become_program("breakglass-demo", args.release, &arguments)
}

/// Builds optimised and measures.
pub fn bench(args: &BenchArgs) -> Result<()> {
    packages::ensure_installed()?;
    let mut arguments = Vec::new();
    if args.json {
        arguments.push("--json");
    }
    if args.quick {
        arguments.push("--quick");
    }
    if let Some(only) = &args.only {
        arguments.extend(["--only", only.as_str()]);
    }
    become_program("breakglass-bench", true, &arguments)
}

/// Replaces this process, so that Ctrl-C reaches only the one that has something to take back.
fn become_program(name: &str, release: bool, arguments: &[&str]) -> Result<()> {
    let programs = build::programs(release)?;
    let path = programs.get(name).with_context(|| format!("cargo built no {name}"))?;
    Err(Command::new(path).args(arguments).exec()).with_context(|| format!("cannot run {}", path.display()))
}
