//! Suites whose tests share an installation: all in one process, which is started once.
//!
//! Their harness prints `test NAME ... ` before a test and `ok`, `FAILED` or `ignored, REASON` behind it, and in the end why tests
//! failed. A test that prints to the same place would break that, so those do not.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{EVIDENCE, EVIDENCE_VARIABLE, PAUSE, Test};
use crate::lab::{host, protocol::Outcome};

/// Names of those suites.
pub const SUITES: &[&str] = &["bypass"];

/// Which of its tests such a suite is to run, one a line.
const ONLY_VARIABLE: &str = "BREAKGLASS_ONLY";

/// What a suite has said so far of its tests, by their names.
type Said = BTreeMap<String, Outcome>;

/// Runs `tests` of a suite, handing over each as it ends. A suite in which nothing ends for `limit` is killed.
pub fn run(
    suite: &str,
    tests: &[&Test],
    limit: Duration,
    over: &mut impl FnMut(&Test, &Outcome, f64, &str),
) -> Result<()> {
    if tests.is_empty() {
        return Ok(());
    }
    let folder = Path::new(EVIDENCE).join(suite);
    host::make_folder(&folder)?;
    let path = folder.join("output.txt");
    let output = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let names: Vec<&str> = tests.iter().map(|test| test.name.as_str()).collect();
    let mut child = Command::new(Test::binary(suite))
        .args(["--test-threads=1"])
        .env(ONLY_VARIABLE, names.join("\n"))
        .env(EVIDENCE_VARIABLE, &folder)
        .stdin(Stdio::null())
        .stderr(output.try_clone().context("cannot share the output file")?)
        .stdout(output)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {suite}"))?;
    let mut told: Said = BTreeMap::new();
    let mut last = Instant::now();
    let trouble = loop {
        let ended = child.try_wait().context("cannot wait for a suite")?;
        let text = read(&path)?;
        for (name, outcome) in said(&text) {
            if let Some(test) = tests.iter().find(|test| test.name == name && !told.contains_key(&name)) {
                over(test, &outcome, last.elapsed().as_secs_f64(), &reason(&text, &name));
                told.insert(name, outcome);
                last = Instant::now();
            }
        }
        if let Some(status) = ended {
            break format!("the suite ended ({status}) before it");
        }
        if last.elapsed() > limit {
            let group = Pid::from_raw(i32::try_from(child.id()).context("a process number out of range")?);
            killpg(group, Signal::SIGKILL).context("cannot kill a suite")?;
            child.wait().context("cannot wait for a killed suite")?;
            break format!("nothing ended for {} s", limit.as_secs());
        }
        thread::sleep(PAUSE);
    };
    let text = read(&path)?;
    // Why tests failed is printed at the very end, when they have been counted already.
    for (name, _) in told.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_))) {
        println!("    | {name}:");
        reason(&text, name).lines().for_each(|line| println!("    |   {}", host::printable(line)));
    }
    for test in tests.iter().filter(|test| !told.contains_key(&test.name)) {
        over(test, &Outcome::Failed(trouble.clone()), 0.0, "");
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Tests that are over.
fn said(text: &str) -> impl Iterator<Item = (String, Outcome)> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().filter_map(|line| {
        let (name, end) = line.strip_prefix("test ")?.split_once(" ... ")?;
        let outcome = match end.trim_end() {
            "ok" => Outcome::Passed,
            "FAILED" => Outcome::Failed("see below".into()),
            end => {
                let reason = end.strip_prefix("ignored")?.trim_start_matches([',', ' ']);
                Outcome::Skipped(host::printable(if reason.is_empty() { "ignored by its harness" } else { reason }))
            }
        };
        Some((name.trim_end().to_owned(), outcome))
    })
}

/// What stands below `---- NAME ----`.
fn reason(text: &str, name: &str) -> String {
    let head = format!("---- {name} ----\n");
    let Some((_, rest)) = text.split_once(&head) else { return String::new() };
    rest.split("\n\n").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_harness_says_is_read_as_it_comes() {
        let text = "running 4 tests\ntest a::b  ... ok\ntest c     ... FAILED\ntest d     ... ignored, no gcc\ntest e     ... o";
        let found: Vec<_> = said(text).collect();
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], ("a::b".into(), Outcome::Passed));
        assert!(matches!(&found[1], (name, Outcome::Failed(_)) if name == "c"));
        assert_eq!(found[2], ("d".into(), Outcome::Skipped("no gcc".into())));
    }

    #[test]
    fn why_a_test_failed_is_found() {
        let text = "failures:\n\n---- a ----\nfirst\nsecond\n\n---- b ----\nother\n\n";
        assert_eq!(reason(text, "a"), "first\nsecond");
        assert_eq!(reason(text, "c"), "");
    }
}
