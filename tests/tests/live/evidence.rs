//! What a real session leaves as proof, verified by the built command and by the second verifier.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
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
    // The log is for a later version; whatever the kernel recorded must be there.
    let checks = report["checks"].as_array().context("no checks")?;
    let open = checks.iter().filter(|check| check["state"] != "passed" && check["name"] != "log");
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
        second_opinion(&file, &fs::read_to_string(key)?)
    })
}

/// The verifier in Python says the same.
fn second_opinion(file: &PathBuf, host_key: &str) -> Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/verify_evidence.py");
    let output = Command::new("python3").args(["-B", script]).arg(file).args(["--host-key", host_key.trim()]).output();
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
        stack.start_agent()?;
        let second = work(stack, "after the crash")?;
        for session in [first, second] {
            let (_, report) = export(stack, &session)?;
            ensure_verified(&report)?;
            ensure!(report["session"]["epochs"].as_u64() > Some(1), "{report:#}");
        }
        Ok(())
    })
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
