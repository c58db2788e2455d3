//! Inside the guest: runs every test in a process of its own, keeps what it printed, reports over the console.
//!
//! A process a test, because tests here attack the machine that they run on: one that crashes, hangs or leaves threads behind
//! must cost no more than itself. They run one after another, for there is one kernel. The suites in [`shared::SUITES`] are the
//! exception.
//!
//! A test may start the machine anew: it makes the file [`RESUME`] durable, reboots as it likes, and is run again on the next boot, where
//! it finds what it left. How the tests before it went is in [`PROGRESS`].

use std::{
    fs::{self, File},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{
    host,
    protocol::{Outcome, PRINTED, Verdict},
};

mod processors;
mod shared;

/// What the guest's `/lab/run` asks for.
#[derive(Args, Debug)]
pub struct RunnerArgs {
    /// Suite to run, a binary in /lab/tests; again for more.
    #[arg(long = "suite", required = true)]
    suites: Vec<String>,
    /// Seconds that one test may take.
    #[arg(long)]
    test_timeout: u64,
    /// Tests to run: those with one of these in "suite::name", all without any.
    filters: Vec<String>,
}

/// Where the host put the suites.
const SUITES: &str = "/lab/tests";

/// From where the host takes what is left.
const EVIDENCE: &str = "/lab/evidence";

/// There once the guest has booted; the script that starts this makes it.
pub const STARTED: &str = "/lab/started";

/// A test makes it before it starts the machine anew.
pub const RESUME: &str = "/lab/resume";

/// The verdict so far.
const PROGRESS: &str = "/lab/progress";

/// Where a test leaves what should come back to the host.
const EVIDENCE_VARIABLE: &str = "BREAKGLASS_EVIDENCE";

/// Lines of a failed test that go to the console; the rest is in the evidence.
const FAILURE_LINES: usize = 40;

/// Between two looks at a running test: shorter than any test takes, long enough to leave the processor to it.
const PAUSE: Duration = Duration::from_millis(20);

/// Tests that share one installation, which the first of them makes, and the one that takes it away and leaves the machine as all others
/// need it.
const INSTALLED: &str = "lab::access::";
const UNINSTALL: &str = "lab::access::uninstall";

struct Test {
    suite: String,
    name: String,
}

impl Test {
    fn full_name(&self) -> String {
        format!("{}::{}", self.suite, self.name)
    }

    fn binary(suite: &str) -> PathBuf {
        Path::new(SUITES).join(suite)
    }
}

/// Runs the tests. That some fail is in the verdict; an error means that they could not be run.
pub fn run(args: &RunnerArgs) -> Result<()> {
    let mut tests = Vec::new();
    for suite in &args.suites {
        let listed =
            host::run(host::command(&Test::binary(suite).display().to_string()).args(["--list", "--format", "terse"]))?;
        tests.extend(chosen(suite, &listed, &args.filters));
    }
    let mut verdict = match resumed()? {
        Some(verdict) => verdict,
        None => {
            println!("LAB PLAN tests={}", tests.len());
            Verdict::default()
        }
    };
    let done = verdict.counted() as usize;
    let limit = Duration::from_secs(args.test_timeout);
    let mut number = done;
    let count = tests.len();
    let mut over = |test: &Test, outcome: &Outcome, seconds: f64, output: &str| {
        number += 1;
        report(number, count, test, outcome, seconds, output);
        verdict.count(outcome);
        if let Err(error) = fs::write(PROGRESS, verdict.line()) {
            println!("LAB ERROR cannot write {PROGRESS}: {error}");
        }
    };
    for suite in &args.suites {
        let own: Vec<&Test> = tests.iter().skip(done).filter(|test| test.suite == *suite).collect();
        processors::set_for(suite)?;
        if shared::SUITES.contains(&suite.as_str()) {
            shared::run(suite, &own, limit, &mut over)?;
            continue;
        }
        for test in own {
            let start = Instant::now();
            let (outcome, output) = run_test(test, limit)?;
            over(test, &outcome, start.elapsed().as_secs_f64(), &output);
        }
    }
    // From here the kernel prints nothing to the console, so that the verdict is a line by itself.
    fs::write("/proc/sys/kernel/printk", "1").context("cannot quieten the kernel")?;
    println!("\n{}", verdict.line());
    Ok(())
}

/// How the tests went before one of them started the machine anew; nothing on the first boot.
fn resumed() -> Result<Option<Verdict>> {
    if !Path::new(RESUME).exists() {
        return Ok(None);
    }
    // The next boot that nobody asks for is a crash.
    fs::remove_file(RESUME).with_context(|| format!("cannot remove {RESUME}"))?;
    let text = match fs::read_to_string(PROGRESS) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Some(Verdict::default())),
        Err(error) => return Err(error).with_context(|| format!("cannot read {PROGRESS}")),
    };
    Verdict::parse(text.trim_end()).map(Some).with_context(|| format!("{PROGRESS} is damaged: {text:?}"))
}

fn report(number: usize, count: usize, test: &Test, outcome: &Outcome, seconds: f64, output: &str) {
    let reason = match outcome {
        Outcome::Passed => String::new(),
        Outcome::Failed(reason) | Outcome::Skipped(reason) => format!(" ({reason})"),
    };
    println!("LAB TEST {number}/{count} {} {seconds:.1}s {}{reason}", outcome.word(), test.full_name());
    if matches!(outcome, Outcome::Failed(_)) {
        host::tail(output, FAILURE_LINES).lines().for_each(|line| println!("{PRINTED}{}", host::printable(line)));
    }
}

/// Names in lines such as `boot::release: test`.
fn parse_list(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_suffix(": test"))
}

/// The tests of a suite, as it lists them, that the filters ask for, with what cleans up behind them.
fn chosen(suite: &str, listed: &str, filters: &[String]) -> Vec<Test> {
    let named = |name: &str| Test { suite: suite.to_owned(), name: name.to_owned() };
    let asked = |test: &Test| filters.is_empty() || filters.iter().any(|filter| test.full_name().contains(filter));
    let installs = parse_list(listed).map(named).any(|test| asked(&test) && test.full_name().starts_with(INSTALLED));
    let cleans_up = |test: &Test| installs && test.full_name().starts_with(UNINSTALL);
    parse_list(listed).map(named).filter(|test| asked(test) || cleans_up(test)).collect()
}

/// Runs one test and gives what it printed as well.
fn run_test(test: &Test, limit: Duration) -> Result<(Outcome, String)> {
    let folder = Path::new(EVIDENCE).join(&test.suite).join(test.name.replace("::", "."));
    host::make_folder(&folder)?;
    let path = folder.join("output.txt");
    // Behind what it printed before it started the machine anew.
    let output = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot make {}", path.display()))?;
    let child = Command::new(Test::binary(&test.suite))
        .args([test.name.as_str(), "--exact", "--nocapture", "--test-threads=1"])
        .env(EVIDENCE_VARIABLE, &folder)
        .stdin(Stdio::null())
        .stderr(output.try_clone().context("cannot share the output file")?)
        .stdout(output)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", test.full_name()))?;
    let status = wait(child, limit)?;
    let output = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let output = String::from_utf8_lossy(&output).into_owned();
    let outcome = match status {
        Some(status) => judge(status, &output),
        None => Outcome::Failed(format!("still running after {} s", limit.as_secs())),
    };
    Ok((outcome, output))
}

/// Waits for the end; kills the test and what it started in its process group at the limit, and then gives nothing.
fn wait(mut child: Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for a test")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            let group = Pid::from_raw(i32::try_from(child.id()).context("a process number out of range")?);
            killpg(group, Signal::SIGKILL).context("cannot kill a test")?;
            child.wait().context("cannot wait for a killed test")?;
            return Ok(None);
        }
        thread::sleep(PAUSE);
    }
}

/// Judges by the exit status *and* the harness's own summary: a test that ends its process early has not passed.
fn judge(status: ExitStatus, output: &str) -> Outcome {
    if let Some(signal) = status.signal() {
        return Outcome::Failed(format!("killed by signal {signal}"));
    }
    if !status.success() {
        return Outcome::Failed(format!("exit status {}", status.code().unwrap_or_default()));
    }
    let skipped = output.lines().find_map(|line| {
        // Without capture the harness begins the line, with the test's name.
        let line = line.rsplit_once(" ... ").map_or(line, |(_, rest)| rest);
        line.strip_prefix("skipped: ")
    });
    let summary = output.lines().rev().find(|line| line.starts_with("test result: ok. ")).unwrap_or_default();
    match skipped {
        Some(reason) => Outcome::Skipped(host::printable(reason)),
        None if summary.contains(" 1 passed;") => Outcome::Passed,
        None if summary.contains(" 1 ignored;") => Outcome::Skipped("ignored by its harness".into()),
        None => Outcome::Failed("ended without saying that it passed".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSED: &str =
        "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.00s";

    fn exit(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    #[test]
    fn passing_takes_status_and_summary() {
        assert_eq!(judge(exit(0), PASSED), Outcome::Passed);
        assert!(matches!(judge(exit(0), "test a ... "), Outcome::Failed(_)));
        assert!(matches!(judge(exit(101), PASSED), Outcome::Failed(_)));
        assert!(matches!(judge(ExitStatus::from_raw(9), PASSED), Outcome::Failed(reason) if reason.contains('9')));
    }

    #[test]
    fn a_skipped_test_gives_its_reason() {
        let with = |line: &str| judge(exit(0), &format!("{line}\nok\n{PASSED}"));
        assert_eq!(with("test boot::a ... skipped: no BTF"), Outcome::Skipped("no BTF".into()));
        assert_eq!(with("skipped: no BTF"), Outcome::Skipped("no BTF".into()));
        let ignored = "test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out";
        assert!(matches!(judge(exit(0), ignored), Outcome::Skipped(_)));
    }

    #[test]
    fn filters_look_at_the_suite_too_and_bring_along_what_cleans_up() {
        let listed =
            "access::doors::nobody: test\naccess::uninstall::all: test\nboot::release: test\n\n3 tests, 0 benchmarks\n";
        let chosen = |filters: &[&str]| {
            let filters: Vec<String> = filters.iter().map(|name| name.to_string()).collect();
            chosen("lab", listed, &filters).into_iter().map(|test| test.name).collect::<Vec<_>>()
        };
        let all = ["access::doors::nobody", "access::uninstall::all", "boot::release"];
        assert_eq!(chosen(&[]), all);
        assert_eq!(chosen(&["nothing", "lab::boot"]), all[2..]);
        assert_eq!(chosen(&["doors"]), all[..2]);
        assert_eq!(chosen(&["bypass"]), [""; 0]);
    }

    #[test]
    fn the_list_of_a_harness_is_read() {
        let names: Vec<&str> = parse_list("boot::release: test\nspeed: benchmark\n").collect();
        assert_eq!(names, ["boot::release"]);
    }

    #[test]
    fn a_hanging_test_is_killed_with_its_children() {
        let child = Command::new("sh").args(["-c", "sleep 600 & sleep 600"]).process_group(0).spawn().unwrap();
        let group = Pid::from_raw(child.id() as i32);
        assert_eq!(wait(child, Duration::from_millis(100)).unwrap(), None);
        let gone = || killpg(group, None).is_err();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !gone() && Instant::now() < deadline {
            thread::sleep(PAUSE);
        }
        assert!(gone());
    }
}
