//! The lines by which a guest tells the host how its tests go.
//!
//! ```text
//! LAB READY 11.20                                 the guest is up, seconds since its boot; again where a test started it anew
//! LAB PLAN tests=57                               so many tests follow
//! LAB TEST 3/57 failed 4.2s lab::boot::release    one is over
//!     | what it printed at the end                after a failed one
//! LAB VERDICT passed=55 failed=1 skipped=1        all are over
//! LAB ERROR …                                     the guest itself is in trouble
//! ```
//!
//! The console also carries what the kernel prints, and a test may print there too. So nothing is counted from it but the
//! verdict, which must be the last line of its kind and add up to the plan.

use std::fmt;

/// How one test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// It did not hold, crashed or took too long; the text says which.
    Failed(String),
    /// It says that it cannot run here, and why.
    Skipped(String),
}

/// How all tests ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
    /// Tests that could not run there.
    pub skipped: u32,
}

/// What the host keeps of a guest's console.
#[derive(Debug, Default)]
pub struct Progress {
    /// Seconds from the guest's boot until everything was up.
    pub ready_after: Option<f64>,
    /// Number of tests announced.
    pub planned: Option<u32>,
    /// The last verdict.
    pub verdict: Option<Verdict>,
    /// Failed tests with the end of what they printed, and troubles of the guest, as printed. At most [`TROUBLES_KEPT`] lines.
    pub troubles: Vec<String>,
    /// The test before failed: what it printed follows.
    explains: bool,
}

/// More would hide the verdict; the log has all.
const TROUBLES_KEPT: usize = 400;

/// How a line begins that a failed test had printed.
pub const PRINTED: &str = "    | ";

impl Outcome {
    /// The word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::Skipped(_) => "skipped",
        }
    }
}

impl Verdict {
    /// Counts one more test.
    pub fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::Skipped(_) => self.skipped += 1,
        }
    }

    /// How many tests are over.
    pub fn counted(&self) -> u32 {
        self.passed + self.failed + self.skipped
    }

    /// As it is printed.
    pub fn line(&self) -> String {
        format!("LAB VERDICT {self}")
    }

    /// Reads the line again.
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.strip_prefix("LAB VERDICT ")?.split(' ');
        let mut number = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
        let verdict = Self { passed: number("passed")?, failed: number("failed")?, skipped: number("skipped")? };
        fields.next().is_none().then_some(verdict)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "passed={} failed={} skipped={}", self.passed, self.failed, self.skipped)
    }
}

impl Progress {
    /// Takes in one line; gives whether people should see it.
    pub fn line(&mut self, line: &str) -> bool {
        if let Some(seconds) = line.strip_prefix("LAB READY ") {
            self.ready_after = seconds.parse().ok();
        } else if let Some(count) = line.strip_prefix("LAB PLAN tests=") {
            self.planned = count.parse().ok();
        } else if let Some(verdict) = Verdict::parse(line) {
            self.verdict = Some(verdict);
        }
        let printed = line.starts_with(PRINTED);
        if line.starts_with("LAB ") {
            self.explains = is_failed_test(line);
        }
        let trouble = self.explains && printed || is_failed_test(line) || line.starts_with("LAB ERROR");
        if trouble && self.troubles.len() < TROUBLES_KEPT {
            self.troubles.push(line.to_owned());
        }
        line.starts_with("LAB ") || printed
    }

    /// Full names of the failed tests; none if they are not known for certain, since the guest ended too early or had too many.
    pub fn failed_tests(&self) -> Vec<String> {
        let names: Vec<_> = self
            .troubles
            .iter()
            .filter(|line| is_failed_test(line))
            .filter_map(|line| line.split(' ').nth(5))
            .map(str::to_owned)
            .collect();
        let failed = self.verdict.map_or(0, |verdict| verdict.failed);
        if usize::try_from(failed) == Ok(names.len()) { names } else { Vec::new() }
    }

    /// Why this run does not count as passed; nothing if it does.
    pub fn complaint(&self) -> Option<String> {
        let Some(verdict) = self.verdict else {
            return Some(match (self.ready_after, self.planned) {
                (None, _) => "the guest never came up".into(),
                (_, None) => "the guest came up and ran no test".into(),
                (_, Some(planned)) => format!("the guest ended before all {planned} tests did: no verdict"),
            });
        };
        let counted = verdict.counted();
        match self.planned {
            _ if verdict.failed > 0 => Some(format!("{} of {counted} tests failed", verdict.failed)),
            Some(0) | None => Some("no test matches".into()),
            Some(planned) if planned != counted => {
                Some(format!("{planned} tests were planned, the verdict counts {counted}"))
            }
            Some(_) => None,
        }
    }
}

fn is_failed_test(line: &str) -> bool {
    line.strip_prefix("LAB TEST ").and_then(|rest| rest.split(' ').nth(1)) == Some("failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(lines: &[&str]) -> Option<String> {
        let mut progress = Progress::default();
        for line in lines {
            progress.line(line);
        }
        progress.complaint()
    }

    #[test]
    fn a_verdict_survives_the_console() {
        let verdict = Verdict { passed: 3, failed: 0, skipped: 12 };
        assert_eq!(Verdict::parse(&format!("LAB VERDICT {verdict}")), Some(verdict));
        assert_eq!(Verdict::parse("LAB VERDICT passed=3 failed=0"), None);
        assert_eq!(Verdict::parse("LAB VERDICT passed=3 failed=0 skipped=0 [  9.1] oops"), None);
    }

    #[test]
    fn only_a_whole_run_without_failures_passes() {
        let (ready, plan) = ("LAB READY 9.0", "LAB PLAN tests=2");
        assert_eq!(complaint(&[ready, plan, "LAB VERDICT passed=1 failed=0 skipped=1"]), None);
        assert!(complaint(&[]).unwrap().contains("never came up"));
        assert!(complaint(&[ready]).unwrap().contains("no test"));
        assert!(complaint(&[ready, plan]).unwrap().contains("no verdict"));
        assert!(complaint(&[ready, plan, "LAB VERDICT passed=1 failed=1 skipped=0"]).unwrap().contains("1 of 2"));
        assert!(complaint(&[ready, plan, "LAB VERDICT passed=1 failed=0 skipped=0"]).unwrap().contains("planned"));
        let none = [ready, "LAB PLAN tests=0", "LAB VERDICT passed=0 failed=0 skipped=0"];
        assert!(complaint(&none).unwrap().contains("no test matches"));
    }

    #[test]
    fn a_forged_early_verdict_is_replaced_by_the_last() {
        let lines =
            ["LAB PLAN tests=1", "LAB VERDICT passed=1 failed=0 skipped=0", "LAB VERDICT passed=0 failed=1 skipped=0"];
        assert!(complaint(&lines).is_some());
    }

    #[test]
    fn failed_tests_are_kept_with_what_they_said() {
        let mut progress = Progress::default();
        assert!(progress.line("LAB TEST 1/2 failed 1.0s lab::boot::bpf"));
        assert!(!progress.line("[    1.0] something else"));
        assert!(progress.line("    | no such file"));
        assert!(progress.line("LAB TEST 2/2 passed 1.0s lab::boot::failed"));
        assert!(progress.line("    | not of a failed one"));
        assert_eq!(progress.troubles, ["LAB TEST 1/2 failed 1.0s lab::boot::bpf", "    | no such file"]);
        assert!(progress.failed_tests().is_empty(), "without a verdict more may have failed");
        progress.line("LAB VERDICT passed=1 failed=1 skipped=0");
        assert_eq!(progress.failed_tests(), ["lab::boot::bpf"]);
    }
}
