//! Every check there is, one closing line for all.

use std::{
    io::{BufRead, BufReader},
    ops::AddAssign,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{build::cargo, ebpf, lab, packages};

/// Arguments of `test`.
#[derive(Args)]
pub struct TestArgs {
    /// Only tests whose name contains this; leaves out format, lints and the kernel object
    filter: Option<String>,
}

/// How checks and tests ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// As they should.
    pub passed: u64,
    /// Otherwise.
    pub failed: u64,
    /// Not tried, for a reason that was printed.
    pub skipped: u64,
}

impl Count {
    /// Prints the closing line; fails if anything did.
    pub fn close(self) -> Result<()> {
        println!("\n{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        ensure!(self.failed == 0, "not everything passed");
        Ok(())
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Runs the checks, then all tests; fails if anything did.
pub fn run(args: &TestArgs) -> Result<()> {
    count(args)?.close()
}

/// Everything that must hold before a change is taken: the checks, all tests, and the lab on every kernel.
pub fn ci() -> Result<()> {
    let mut total = count(&TestArgs { filter: None })?;
    println!("==> lab: virtual machines with stock kernels");
    match lab::usual() {
        Ok(count) => total += count,
        Err(error) => {
            println!("the lab could not be run: {error:#}");
            total.failed += 1;
        }
    }
    total.close()
}

/// Runs the checks, then all tests.
fn count(args: &TestArgs) -> Result<Count> {
    packages::ensure_installed()?;
    let mut total = Count::default();
    if args.filter.is_none() {
        total += step("format", cargo().args(["fmt", "--all", "--check"]))?;
        // Built with the tests' features, so that the tests below compile nothing twice.
        total += step("build", cargo().args(["build", "--workspace", "--all-targets"]))?;
        // In this process: the build may have replaced the program that it was started from.
        total += check("kernel object", ebpf::check)?;
        total += step("lints", cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    } else {
        total += step("build", cargo().args(["build", "--workspace", "--all-targets"]))?;
    }
    total += tests(args.filter.as_deref())?;
    Ok(total)
}

/// Runs one command and counts it as one check.
fn step(name: &str, command: &mut Command) -> Result<Count> {
    check(name, || {
        let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
        ensure!(status.success(), "{command:?} ended with {status}");
        Ok(())
    })
}

/// Counts one check, and says why where it fails.
fn check(name: &str, run: impl FnOnce() -> Result<()>) -> Result<Count> {
    println!("==> {name}");
    let start = Instant::now();
    let result = run();
    if let Err(error) = &result {
        println!("{error:#}");
    }
    let passed = result.is_ok();
    println!("==> {name}: {} ({:.1} s)", if passed { "passed" } else { "FAILED" }, start.elapsed().as_secs_f64());
    Ok(Count { passed: passed.into(), failed: (!passed).into(), skipped: 0 })
}

/// Runs every test of the workspace, shows what it prints, and adds up what the suites say.
fn tests(filter: Option<&str>) -> Result<Count> {
    println!("==> tests: unit, property, end to end");
    let start = Instant::now();
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]).args(filter).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot run cargo test")?;
    let output = child.stdout.take().context("no pipe from cargo test")?;
    let mut count = Count::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        count += result(&line).unwrap_or_default();
    }
    // A suite that crashed says nothing; cargo does.
    if !child.wait()?.success() && count.failed == 0 {
        count.failed = 1;
    }
    println!(
        "==> tests: {} ({:.1} s)",
        if count.failed == 0 { "passed" } else { "FAILED" },
        start.elapsed().as_secs_f64()
    );
    Ok(count)
}

/// Reads a suite's closing line: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn result(line: &str) -> Option<Count> {
    let (_verdict, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut count = Count::default();
    for part in counts.split("; ") {
        let Some((number, word)) = part.split_once(' ') else { continue };
        match word {
            "passed" => count.passed = number.parse().ok()?,
            "failed" => count.failed = number.parse().ok()?,
            "ignored" => count.skipped = number.parse().ok()?,
            _ => {}
        }
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 4 ignored; 0 measured; 2 filtered out; finished in 0.09s";
        assert_eq!(result(line), Some(Count { passed: 12, failed: 3, skipped: 4 }));
        assert_eq!(result("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured"), Some(Count::default()));
        assert_eq!(result("test record::execs ... ok"), None);
    }

    #[test]
    fn a_failed_check_counts() {
        assert_eq!(step("no", &mut Command::new("false")).unwrap(), Count { failed: 1, ..Count::default() });
        assert_eq!(step("yes", &mut Command::new("true")).unwrap(), Count { passed: 1, ..Count::default() });
    }
}
