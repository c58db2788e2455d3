//! Evidence files, good ones and every kind of forgery, judged by the built `breakglass` and by `tests/verify_evidence.py`.

mod forge;
mod judge;
mod ledger;
mod noise;
mod proofs;
mod samples;

use judge::{Judge, Judgement};
use samples::Sample;

/// Both verifiers find the same in every sample, and what they find is what was done to it.
#[test]
fn every_forgery_is_found_and_placed() {
    let judge = Judge::new();
    let samples = samples::all();
    for sample in &samples {
        let found = judge.breakglass(sample);
        assert_expected(sample, &found);
        if let Some(python) = judge.python(sample) {
            assert_agreed(sample, &found, &python);
        }
    }
    judge.summary(samples.len());
}

/// The second verifier says the same of everything that it could look at.
fn assert_agreed(sample: &Sample, found: &Judgement, python: &Judgement) {
    let inner = |name: &str| ["content", "complete"].contains(&name) || (sample.inside && name == "review");
    let seen = |name: &str| python.looked_inside || !inner(name);
    for (name, check) in found.checks.iter().filter(|(name, _)| seen(name)) {
        assert_eq!(python.checks.get(name), Some(check), "{}: {name}", sample.name);
    }
    if python.looked_inside || !sample.failed.iter().all(|(name, _)| inner(name)) || sample.failed.is_empty() {
        assert_eq!(python.verdict, found.verdict, "{}", sample.name);
    }
}

fn assert_expected(sample: &Sample, found: &Judgement) {
    let failed: Vec<(&str, Option<u64>)> = found
        .checks
        .iter()
        .filter(|(_, check)| check.state == "failed")
        .map(|(name, check)| (name.as_str(), check.frame))
        .collect();
    assert_eq!(failed, sample.failed, "{}: {found:?}", sample.name);
    assert_eq!(found.verdict, sample.verdict(), "{}", sample.name);
    for name in &sample.unproved {
        assert_eq!(found.checks[*name].state, "unproved", "{}: {name}", sample.name);
    }
}

#[test]
fn the_report_for_people_names_verdict_and_place() {
    let judge = Judge::new();
    for sample in samples::all() {
        let (text, code) = judge.text(&sample);
        let verdict = match sample.verdict() {
            "verified" => ("VERIFIED", 0),
            "broken" => ("BROKEN", 1),
            _ => ("SOUND, BUT WHOSE?", 6),
        };
        assert!(text.starts_with(verdict.0), "{}: {text}", sample.name);
        assert_eq!(code, verdict.1, "{}", sample.name);
        assert_eq!(text.matches("FAILED").count(), sample.failed.len(), "{}: {text}", sample.name);
        for frame in sample.failed.iter().filter_map(|(_, frame)| *frame) {
            assert!(text.contains(&format!("frame {frame}")), "{}: {text}", sample.name);
        }
    }
}

#[test]
fn a_key_that_is_none_is_refused_with_a_reason() {
    let judge = Judge::new();
    let good = samples::all().swap_remove(0);
    let output = judge.run(&good, &["--host-key", "no-such-file"]);
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("neither 64 hexadecimal digits nor a file"), "{message}");
}
