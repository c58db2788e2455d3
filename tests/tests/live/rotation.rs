//! What let somebody into a session, and what its root could read, is of no use after it, and the record says so.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use breakglass_api::v1::{
    credentials_rotated::{Credential, Kind},
    event::Body,
};
use breakglass_tests::{
    machine::{self, Need},
    operator::Opened,
    poll,
    stack::{OPERATOR, Options, Stack},
};
use serde_json::Value;

use crate::{Company, SUDO_SESSION, Test, account::expect_refused};

const NEEDS: &[Need] = &[Need::Root, Need::Ssh, Need::Bpf];

pub const TESTS: &[Test] = &[
    Test { name: "rotation::keys_and_host_keys", needs: NEEDS, company: Company::Others, run: keys },
    Test { name: "rotation::codes_are_counted_down", needs: NEEDS, company: Company::Others, run: codes },
    Test { name: "rotation::a_password_is_gone", needs: SUDO_SESSION, company: Company::Others, run: password },
];

fn keys() -> Result<()> {
    Stack::with(Options { renew_host_keys: true, ..Options::default() }, |stack| {
        let opened = stack.open("rotate my keys", "10m")?;
        stack.ssh_run(&opened, "true")?;
        stack.wait_until_acknowledged()?;
        ensure!(!stack.reviewed(&["show", &opened.session])?.contains("credentials"), "told before the end");
        let private = stack.sshd.host_keys.join("ssh_host_ed25519_key");
        let before = fs::read(&private)?;
        stack.close_and_collect(&opened)?;

        let told = rotated(stack, &opened.session)?;
        let key = of(&told, Kind::LoginKey)?;
        ensure!(key.void && key.name == fingerprint(&stack.key())? && key.detail.contains(OPERATOR), "{key:?}");
        let host_key = of(&told, Kind::SshHostKey)?;
        ensure!(host_key.void && host_key.successor == fingerprint(&private)?, "{host_key:?}");
        ensure!(host_key.name != host_key.successor && before != fs::read(&private)?, "the host key is the old one");
        let password = of(&told, Kind::Password)?;
        ensure!(password.void && password.name == stack.account.name, "{password:?}");
        shown(stack, &opened, &["none of them is good any more", &key.name, &host_key.name, &host_key.successor])?;

        // Whoever kept the old host key cannot pass for the host any more; operators are told the new one.
        let stale = stack.ssh(&opened).arg("true").output()?;
        let said = String::from_utf8_lossy(&stale.stderr).into_owned();
        ensure!(said.contains("HOST IDENTIFICATION HAS CHANGED"), "the old host key is taken: {said}");
        expect_refused(stack, "after")?;
        let again = stack.open("in again", "10m")?;
        ensure!(again.ssh_host_keys != opened.ssh_host_keys, "operators are told the old host key");
        stack.ssh_run(&again, "true")?;
        stack.close_and_collect(&again).map(drop)
    })
}

fn codes() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let codes = stack.issue_codes(4)?;
        // How many are left, and whether that asks for new ones.
        for (code, left, few) in
            [(&codes[0], "3 are left", false), (&codes[1], "only 2 are left, issue new ones", true)]
        {
            let input = stack.path("operator/code");
            fs::write(&input, format!("{code}\n"))?;
            let mut open = stack.breakglass();
            open.args(["open", stack.host(), "--code", "--reason", "the keys are gone", "--no-ssh", "--json"]);
            let output = open.stdin(fs::File::open(&input)?).output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let opened: Opened = serde_json::from_slice(&output.stdout).with_context(|| said)?;
            stack.close_and_collect(&opened)?;
            let told = rotated(stack, &opened.session)?;
            let burnt = of(&told, Kind::OneTimeCode)?;
            ensure!(burnt.void && burnt.attention == few && burnt.detail.contains(left), "{burnt:?}");
            // Of sshd's own key the record says that it was kept, since nothing else was asked for.
            let kept = of(&told, Kind::SshHostKey)?;
            ensure!(!kept.void && !kept.attention && kept.detail.contains("kept, as configured"), "{kept:?}");
            shown(stack, &opened, &[left, "1 kept, as configured; no other is good any more"])?;
            let warned = stack.agent.output().lines().any(|line| line.contains("only 2 are left"));
            ensure!(warned == few, "the agent's log warns: {warned}");
        }
        Ok(())
    })
}

fn password() -> Result<()> {
    Stack::with(Options { sudo_freely: true, ..Options::default() }, |stack| {
        let opened = stack.open("leave a password", "10m")?;
        let name = &stack.account.name;
        stack.ssh_run(&opened, &format!("echo {name}:left-behind | sudo chpasswd"))?;
        let entry = machine::run(Command::new("getent").args(["shadow", name]))?;
        ensure!(entry.contains(":$"), "no password was set: {entry}");
        stack.close_and_collect(&opened)?;
        let told = rotated(stack, &opened.session)?;
        let password = of(&told, Kind::Password)?;
        ensure!(password.void && password.detail.contains("was left with"), "{password:?}");
        shown(stack, &opened, &["was left with"])?;
        let entry = machine::run(Command::new("getent").args(["shadow", name]))?;
        ensure!(entry.starts_with(&format!("{name}:!*:")), "not locked: {entry}");
        Ok(())
    })
}

/// The one event that tells of it; it is the last but one of a session.
fn rotated(stack: &Stack, session: &str) -> Result<Vec<Credential>> {
    let mut query = stack.query()?;
    let told = poll::until("what became of the credentials", poll::EVENTUALLY, || {
        let bodies = query.events(session)?.into_iter().filter_map(|recorded| recorded.event?.body);
        let told: Vec<Vec<Credential>> = bodies
            .filter_map(|body| match body {
                Body::CredentialsRotated(rotated) => Some(rotated.credentials),
                _ => None,
            })
            .collect();
        Ok((!told.is_empty()).then_some(told))
    })?;
    ensure!(told.len() == 1, "told {} times", told.len());
    told.into_iter().next().context("nothing was told")
}

fn of(told: &[Credential], kind: Kind) -> Result<&Credential> {
    told.iter().find(|one| one.kind() == kind).with_context(|| format!("nothing about {kind:?} in {told:?}"))
}

/// The text for people has the words, each told at once; the one for programs has the event as a line.
fn shown(stack: &Stack, opened: &Opened, words: &[&str]) -> Result<()> {
    let text = stack.reviewed(&["show", &opened.session])?;
    let below = text.split("\n  credentials").nth(1).with_context(|| format!("no credentials in: {text}"))?;
    // Long lines are folded.
    let below = below.split_whitespace().collect::<Vec<_>>().join(" ");
    for word in words {
        ensure!(below.contains(word), "{word:?} is not in: {text}");
    }
    let lines = stack.reviewed(&["show", &opened.session, "--json"])?;
    let lines = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let told: Vec<&Value> = lines.iter().filter_map(|line| line.pointer("/event/credentials_rotated")).collect();
    ensure!(told.len() == 1, "{} events for programs in {lines:?}", told.len());
    let listed = told.first().and_then(|event| event.pointer("/credentials")).and_then(Value::as_array);
    ensure!(listed.is_some_and(|listed| !listed.is_empty()), "no credentials in {told:?}");
    Ok(())
}

fn fingerprint(key: &Path) -> Result<String> {
    let said = machine::run(Command::new("ssh-keygen").arg("-lf").arg(key.with_extension("pub")))?;
    Ok(said.split(' ').nth(1).context("no fingerprint")?.to_owned())
}
