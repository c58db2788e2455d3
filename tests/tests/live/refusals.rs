//! Wrong proofs are refused with a reason, and the refusal is in the record.

use std::{fs, process::Output, time::Duration};

use anyhow::{Context, Result, ensure};
use breakglass_api::{
    CLOSE_NAMESPACE, CONTROL_MESSAGE_MAX, GRANT_NAMESPACE,
    grant::{GrantText, TEXT_MAX},
    v1::{ProofRefused, Refused, control_response, event::Body},
};
use breakglass_tests::{
    control::Control,
    grant::{Proof, prove, prove_as, request},
    machine, poll,
    sshd::make_key,
    stack::{OPERATOR, Options, Stack},
};

use crate::{Company, SESSION, Test};

pub const TESTS: &[Test] = &[
    Test { name: "refusals::a_stale_challenge", needs: SESSION, company: Company::Any, run: stale },
    Test { name: "refusals::wrong_proofs", needs: SESSION, company: Company::Others, run: wrong_proofs },
    Test { name: "refusals::another_hosts_challenge", needs: SESSION, company: Company::Others, run: other_host },
    Test { name: "refusals::oversized_requests", needs: SESSION, company: Company::Others, run: oversized },
    Test { name: "refusals::by_the_command", needs: SESSION, company: Company::Others, run: by_the_command },
];

/// The agent's answer to one wrong proof, and the code that it should carry.
struct Case {
    code: &'static str,
    refused: Refused,
}

/// A right request for ten minutes against a new challenge.
fn fresh(control: &mut Control) -> Result<GrantText> {
    request(&control.challenge()?, OPERATOR, "refusals", 600)
}

fn refused(control: &mut Control, code: &'static str, proof: &Proof) -> Result<Case> {
    match control.open(&proof.text, &proof.signature)? {
        Err(refused) => Ok(Case { code, refused }),
        Ok(opened) => anyhow::bail!("{code}: opened session {}", opened.session),
    }
}

fn wrong_proofs() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let key = stack.key();
        let stranger = stack.path("operator/stranger");
        make_key(&stranger, "stranger")?;
        let mut control = stack.control()?;
        let mut cases = Vec::new();

        let proof = prove(&fresh(&mut control)?, &stranger)?;
        cases.push(refused(&mut control, "unknown-signer", &proof)?);
        let text = fresh(&mut control)?.encode()?.into_bytes();
        cases.push(refused(&mut control, "wrong-namespace", &prove_as(text, &key, CLOSE_NAMESPACE)?)?);
        let proof = prove(&GrantText { ttl_seconds: 2 * 3600, ..fresh(&mut control)? }, &key)?;
        cases.push(refused(&mut control, "ttl-too-long", &proof)?);
        let proof = prove(&GrantText { ttl_seconds: 0, ..fresh(&mut control)? }, &key)?;
        cases.push(refused(&mut control, "ttl-too-short", &proof)?);
        let proof = prove(&GrantText { reason: String::new(), ..fresh(&mut control)? }, &key)?;
        cases.push(refused(&mut control, "no-reason", &proof)?);
        let mut proof = prove(&fresh(&mut control)?, &key)?;
        damage(&mut proof.signature)?;
        cases.push(refused(&mut control, "bad-signature", &proof)?);
        let mut other = fresh(&mut control)?;
        other.claim.nonce = vec![7; other.claim.nonce.len()];
        cases.push(refused(&mut control, "forged-nonce", &prove(&other, &key)?)?);
        let text = [&fresh(&mut control)?.encode()?.into_bytes()[..], b"more: of it\n"].concat();
        cases.push(refused(&mut control, "bad-text", &prove_as(text, &key, GRANT_NAMESPACE)?)?);

        // A right one opens once.
        let proof = prove(&fresh(&mut control)?, &key)?;
        let opened = control.open(&proof.text, &proof.signature)?.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
        control.close()?;
        stack.collected(&opened.session)?;
        cases.push(refused(&mut control, "replayed-nonce", &proof)?);
        expect_recorded(stack, &cases)
    })
}

/// Changes one character in the middle of the armoured signature's base64.
fn damage(signature: &mut [u8]) -> Result<()> {
    let middle = signature.len() / 2;
    let character =
        signature.get_mut(middle..).and_then(|rest| rest.iter_mut().find(|byte| byte.is_ascii_alphanumeric()));
    let character = character.context("a signature without letters")?;
    *character = if *character == b'A' { b'B' } else { b'A' };
    Ok(())
}

fn other_host() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let other = Stack::start(Options { ship: false, ..Options::default() })?;
        let challenge = other.control()?.challenge()?;
        let proof = prove(&request(&challenge, OPERATOR, "another host's", 600)?, &stack.key())?;
        let case = refused(&mut stack.control()?, "other-host", &proof)?;
        expect_recorded(stack, &[case])
    })
}

fn stale() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let mut control = stack.control()?;
        let challenge = control.challenge()?;
        let proof = prove(&request(&challenge, OPERATOR, "too late", 600)?, &stack.key())?;
        let stale = machine::boot_ns()? + (u64::from(challenge.valid_seconds) + 1) * 1_000_000_000;
        let limit = Duration::from_secs(u64::from(challenge.valid_seconds) + 10);
        poll::until_true("the challenge to be stale", limit, || Ok(machine::boot_ns()? > stale))?;
        let case = refused(&mut stack.control()?, "stale-nonce", &proof)?;
        expect_recorded(stack, &[case])
    })
}

fn oversized() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let mut control = stack.control()?;
        let mut text = fresh(&mut control)?.encode()?.into_bytes();
        text.resize(TEXT_MAX + 1, b'x');
        let proof = Proof { text, signature: b"none".to_vec() };
        let case = refused(&mut control, "bad-text", &proof)?;

        // Claims more than any message may have; the agent must not wait for it or make room for it.
        let mut control = stack.control()?;
        control.send_raw(u32::MAX, b"the beginning")?;
        let control_response::Body::Refused(refused) = control.receive()? else { anyhow::bail!("not refused") };
        ensure!(refused.message.contains(&CONTROL_MESSAGE_MAX.to_string()), "does not name the limit: {refused:?}");
        ensure!(stack.status()?.state == "locked", "the agent no longer answers as it should");
        expect_recorded(stack, &[case, Case { code: "too-large", refused }])
    })
}

/// What an operator sees at the command line.
fn by_the_command() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let long = stack.open_output(&["--reason", "too long", "--ttl", "23h"])?;
        expect_exit(&long, 3, "1h")?;
        let empty = stack.open_output(&["--reason", " "])?;
        ensure!([2, 3].contains(&empty.status.code().unwrap_or(-1)), "no reason: {}", empty.status);
        fs::write(stack.path("allowed_signers"), "")?;
        expect_exit(&stack.open_output(&["--reason", "nobody is listed"])?, 3, "allowed_signers")?;
        ensure!(stack.status()?.state == "locked", "opened after all");
        Ok(())
    })
}

fn expect_exit(output: &Output, code: i32, word: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{} instead of {code}: {said}", output.status);
    ensure!(said.contains(word), "{word:?} is not in: {said}");
    Ok(())
}

/// Fails unless every case has its code and a sentence, and the collector holds both.
fn expect_recorded(stack: &Stack, cases: &[Case]) -> Result<()> {
    for Case { code, refused } in cases {
        ensure!(refused.code == *code, "{} instead of {code}: {}", refused.code, refused.message);
        ensure!(refused.message.contains(' '), "{code}: no sentence but {:?}", refused.message);
    }
    let mut query = stack.query()?;
    poll::until("every refusal to be in the record", poll::SOON, || {
        let events = query.host_events(stack.host())?;
        let recorded: Vec<ProofRefused> = events
            .into_iter()
            .filter_map(|recorded| match recorded.event?.body? {
                Body::ProofRefused(refused) => Some(refused),
                _ => None,
            })
            .collect();
        for Case { code, refused } in cases {
            let found =
                recorded.iter().any(|r| r.code == *code && r.message == refused.message && !r.source.is_empty());
            ensure!(found, "{code} is not in the record: {recorded:?}");
        }
        Ok(Some(()))
    })
}
