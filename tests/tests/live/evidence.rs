//! What a real session leaves as proof, verified by the built command and by the second verifier.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::event::Body;
use breakglass_tests::stack::{Options, Stack};
use serde_json::Value;

use crate::{Company, SESSION, Test};

pub const TESTS: &[Test] = &[
    Test {
        name: "evidence::a_session_is_verified_from_its_file_alone",
        needs: SESSION,
        company: Company::Others,
        run: verified,
    },
    Test {
        name: "evidence::a_session_is_signed_off_and_found_in_the_log",
        needs: SESSION,
        company: Company::Others,
        run: signed_off,
    },
    Test {
        name: "evidence::the_chain_of_keys_goes_on_after_a_crash",
        needs: SESSION,
        company: Company::Others,
        run: crashed,
    },
    Test {
        name: "evidence::a_new_host_key_is_told_and_the_old_proof_stays",
        needs: SESSION,
        company: Company::Others,
        run: rekeyed,
    },
];

/// Closes the session, fetches its evidence and verifies it; returns file and report.
fn export(stack: &mut Stack, session: &str) -> Result<(PathBuf, Value)> {
    let file = stack.path(&format!("{session}.bge"));
    stack.reviewed(&["export", session, "--evidence", &file.display().to_string()])?;
    let report = verify(stack, &file, &stack.path("state/keys/host-key.pub"))?;
    Ok((file, report))
}

fn verify(stack: &Stack, file: &PathBuf, host_key: &PathBuf) -> Result<Value> {
    let output = stack.breakglass().arg("verify").arg(file).arg("--host-key").arg(host_key).arg("--json").output()?;
    serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn ensure_verified(report: &Value) -> Result<()> {
    ensure!(report["verdict"] == "verified", "{report:#}");
    // Whatever the kernel recorded must be there; of others nobody asked.
    ensure_proved(report, &["log", "witnesses", "consistency", "review"])
}

/// Every check passed but for these.
fn ensure_proved(report: &Value, unasked: &[&str]) -> Result<()> {
    let checks = report["checks"].as_array().context("no checks")?;
    let asked = |check: &&Value| !check["name"].as_str().is_some_and(|name| unasked.contains(&name));
    let open = checks.iter().filter(asked).filter(|check| check["state"] != "passed");
    ensure!(open.count() == 0, "{report:#}");
    Ok(())
}

fn work(stack: &mut Stack, reason: &str) -> Result<String> {
    let opened = stack.open(reason, "10m")?;
    stack.ssh_run(&opened, "for i in 1 2 3 4 5; do /bin/echo $i; done; ls / | wc -l")?;
    stack.close_and_collect(&opened)?;
    Ok(opened.session)
}

fn verified() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let session = work(stack, "evidence")?;
        let (file, report) = export(stack, &session)?;
        ensure_verified(&report)?;
        ensure!(report["session"]["reason"] == "evidence", "{report:#}");
        let mut bytes = fs::read(&file)?;
        let middle = bytes.len() / 2;
        *bytes.get_mut(middle).context("an empty file")? ^= 1;
        let changed = stack.path("changed.bge");
        fs::write(&changed, bytes)?;
        let key = stack.path("state/keys/host-key.pub");
        ensure!(verify(stack, &changed, &key)?["verdict"] == "broken", "a flipped bit went unnoticed");
        second_opinion(&file, &[("--host-key", fs::read_to_string(key)?.trim())])
    })
}

/// By a reviewer, not by the operator; and everything that the host signed is in the log of the collector.
fn signed_off() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let session = work(stack, "to be signed off")?;
        stack.compared(&session)?;
        ensure!(stack.reviewed(&["sessions", "--unreviewed", "--json"])?.contains(&session), "nobody waits for it");
        let key = stack.make_reviewer()?;
        let host_key = stack.path("state/keys/host-key.pub");
        let trusted = fs::read_to_string(&host_key)?;
        let sign = |key: &Path| {
            let mut review = stack.breakglass();
            review.args(["review", &session, "--verdict", "ok", "--note", "as agreed", "--host-key", trusted.trim()]);
            review.arg("-i").arg(key).output()
        };
        stack.list_reviewer(&stack.key())?;
        let own = sign(&stack.key())?;
        let refusal = String::from_utf8_lossy(&own.stderr).into_owned();
        ensure!(own.status.code() == Some(3) && refusal.contains("own-session"), "{}: {refusal}", own.status);
        stack.list_reviewer(&key)?;
        let signed = sign(&key)?;
        ensure!(signed.status.success(), "{}", String::from_utf8_lossy(&signed.stderr));
        ensure!(!stack.reviewed(&["sessions", "--unreviewed", "--json"])?.contains(&session), "it still waits");

        let file = stack.path("reviewed.bge");
        stack.reviewed(&["export", &session, "--evidence", &file.display().to_string()])?;
        let (log_key, reviewers) = (stack.log_key()?, stack.reviewers().display().to_string());
        let asked =
            [("--host-key", trusted.trim()), ("--log-key", log_key.as_str()), ("--reviewers", reviewers.as_str())];
        let mut verify = stack.breakglass();
        verify.arg("verify").arg(&file).arg("--json").args(asked.iter().flat_map(|(name, value)| [name, value]));
        let output = verify.output()?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(report["verdict"] == "verified", "{report:#}");
        ensure_proved(&report, &["witnesses", "consistency"])?;
        second_opinion(&file, &asked)
    })
}

/// The verifier in Python says the same.
fn second_opinion(file: &PathBuf, asked: &[(&str, &str)]) -> Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/verify_evidence.py");
    let mut verify = Command::new("python3");
    verify.args(["-B", script]).arg(file).args(asked.iter().flat_map(|(name, value)| [name, value]));
    let output = verify.output();
    match output {
        Err(error) => eprintln!("skipped: the second verifier: python3 cannot be run: {error}"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(())
}

fn crashed() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let first = work(stack, "before the crash")?;
        stack.kill_agent()?;
        tear_spool(stack)?;
        stack.start_agent()?;
        let second = work(stack, "after the crash")?;
        let cut = stack.query()?.host_events(stack.host())?.into_iter().filter_map(|recorded| recorded.event?.body);
        let cut = cut.filter(|body| matches!(body, Body::Alert(alert) if alert.code == "spool-cut"));
        ensure!(cut.count() == 1, "the torn end of the spool is not in the record");
        for session in [first, second] {
            let (_, report) = export(stack, &session)?;
            ensure_verified(&report)?;
            ensure!(report["session"]["epochs"].as_u64() > Some(1), "{report:#}");
        }
        Ok(())
    })
}

/// What a crash in the middle of a write leaves: bytes behind the last frame that are none.
fn tear_spool(stack: &Stack) -> Result<()> {
    let names = fs::read_dir(stack.path("state/spool"))?.map(|entry| Ok(entry?.path()));
    let mut segments = names.collect::<Result<Vec<_>>>()?;
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    segments.sort();
    let last = segments.last().context("the spool has no segment")?;
    fs::File::options().append(true).open(last)?.write_all(b"BGF1 and then the power went")?;
    Ok(())
}

fn rekeyed() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let first = work(stack, "under the old key")?;
        let (file, report) = export(stack, &first)?;
        ensure_verified(&report)?;
        let old = stack.path("old-key.pub");
        fs::copy(stack.path("state/keys/host-key.pub"), &old)?;
        let mut rekey = Command::new(&stack.binaries.agent);
        let asked = rekey.arg("rekey").arg("--config").arg(stack.path("agent.toml")).status()?;
        ensure!(asked.success(), "rekey: {asked}");
        stack.agent.stop()?;
        stack.start_agent()?;
        let second = work(stack, "under the new key")?;
        let (_, report) = export(stack, &second)?;
        ensure_verified(&report)?;
        let new = stack.path("state/keys/host-key.pub");
        ensure!(verify(stack, &file, &old)?["verdict"] == "verified", "the old file under the old key");
        ensure!(verify(stack, &file, &new)?["verdict"] == "broken", "the old file under the new key");
        Ok(())
    })
}
