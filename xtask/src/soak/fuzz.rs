//! Fuzzing guided by coverage: libFuzzer, over the targets of the crate `fuzz`.
//!
//! Neither nightly Rust nor cargo-fuzz is needed: the coverage that libFuzzer follows is an LLVM pass that the stable compiler runs when
//! asked for it. Rust is built with it in a folder of its own, with overflow checks and debug assertions.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::Wish;
use crate::build::{self, cargo, root};

/// How long one target takes where nothing is said.
const TIME: Duration = Duration::from_secs(10 * 60);

/// LLVM's coverage for libFuzzer, as cargo-fuzz asks for it: counters beside every edge, and comparisons that it learns from.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cforce-frame-pointers";

/// Longest that one input may take, seconds; megabytes that it may take.
const INPUT_SECONDS: u32 = 5;
const INPUT_MEGABYTES: u32 = 1024;

/// One target, as the program lists it.
struct Target {
    name: String,
    max_len: String,
}

/// Fuzzes every chosen target for its time, and goes on with the others where one has a finding.
pub fn run(wish: &Wish<'_>) -> Result<()> {
    let program = build()?;
    let targets: Vec<Target> = targets()?.into_iter().filter(|target| target.name.contains(wish.part)).collect();
    ensure!(!targets.is_empty(), "no target has {:?} in its name; the targets are in tests/fuzz/src/lib.rs", wish.part);
    let mut findings = Vec::new();
    for target in &targets {
        if let Err(error) = fuzz(&program, target, wish.time.unwrap_or(TIME)) {
            println!("    {error:#}");
            findings.push(target.name.as_str());
            continue;
        }
        if wish.keep {
            keep(&program, target)?;
        }
    }
    if !findings.is_empty() {
        bail!("findings in {}; the inputs are in {}", findings.join(", "), work("findings").display());
    }
    Ok(())
}

/// What is not committed: found inputs, logs, findings.
fn work(name: &str) -> PathBuf {
    root().join("target/fuzz").join(name)
}

fn build() -> Result<PathBuf> {
    let host = host_triple()?;
    let mut command = cargo();
    // With a target given, build scripts and macros are built without coverage.
    command
        .args(["build", "--package", "breakglass-fuzz", "--features", "libfuzzer", "--bin", "breakglass-fuzz"])
        .args(["--profile", "fuzz", "--target", &host, "--target-dir"])
        .arg(work("build"))
        .env("RUSTFLAGS", COVERAGE);
    ensure!(command.status().context("cannot run cargo")?.success(), "the build failed");
    Ok(work("build").join(host).join("fuzz/breakglass-fuzz"))
}

fn host_triple() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    Ok(host.to_owned())
}

/// Names and longest inputs, from the ordinary build.
fn targets() -> Result<Vec<Target>> {
    let programs = build::programs(false)?;
    let lister = programs.get("breakglass-fuzz-targets").context("cargo built no breakglass-fuzz-targets")?;
    let output = Command::new(lister).output().with_context(|| format!("cannot run {}", lister.display()))?;
    let line = |line: &str| {
        let (name, max_len) = line.split_once('\t')?;
        Some(Target { name: name.to_owned(), max_len: max_len.to_owned() })
    };
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(line).collect())
}

fn committed(target: &Target) -> PathBuf {
    root().join("tests/fuzz/corpus").join(&target.name)
}

fn folder(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

fn libfuzzer(program: &Path, target: &Target) -> Command {
    let mut command = Command::new(program);
    command.env("BREAKGLASS_FUZZ", &target.name).current_dir(root()).stdin(Stdio::null());
    command.arg(format!("-max_len={}", target.max_len));
    command
}

fn fuzz(program: &Path, target: &Target, time: Duration) -> Result<()> {
    let grown = folder(work("corpus").join(&target.name))?;
    let findings = folder(work("findings"))?;
    let log = folder(work("logs"))?.join(format!("{}.log", target.name));
    println!("    {:<18} for {}", target.name, humantime::format_duration(time));
    let output = fs::File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let status = libfuzzer(program, target)
        .arg(format!("-max_total_time={}", time.as_secs()))
        .args([format!("-timeout={INPUT_SECONDS}"), format!("-rss_limit_mb={INPUT_MEGABYTES}")])
        .args(["-print_final_stats=1".to_owned(), format!("-artifact_prefix={}/{}-", findings.display(), target.name)])
        .args([&grown, &committed(target)])
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if !status.success() {
        let told: Vec<_> = text.lines().filter(|line| TELLING.iter().any(|word| line.contains(word))).collect();
        bail!("{}: {status}; the log is {}\n    {}", target.name, log.display(), told.join("\n    "));
    }
    let runs = text.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units: "));
    println!("    {:<18} {} inputs, no finding", target.name, runs.unwrap_or("?").trim());
    Ok(())
}

/// Lines of libFuzzer's log that say what it found.
const TELLING: &[&str] = &["panicked at", "ERROR: libFuzzer", "Test unit written", "SUMMARY"];

/// Merges what was found into the committed corpus: only inputs that reach code that no other one reaches.
fn keep(program: &Path, target: &Target) -> Result<()> {
    let committed = folder(committed(target))?;
    let status = libfuzzer(program, target)
        .args(["-merge=1".as_ref(), committed.as_path(), &work("corpus").join(&target.name)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "{}: merging ended with {status}", target.name);
    Ok(())
}
