//! The further ways to ask: one signature for several hosts, a grant that was carried by hand, a certificate.

use std::{
    fs,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use breakglass_tests::{
    machine,
    sshd::make_key,
    stack::{OPERATOR, Options, Stack},
};

use crate::{Company, SESSION, Test};

pub const TESTS: &[Test] = &[
    Test { name: "grants::several_hosts", needs: SESSION, company: Company::Others, run: several_hosts },
    Test { name: "grants::carried_by_hand", needs: SESSION, company: Company::Others, run: carried_by_hand },
    Test { name: "grants::by_certificate", needs: SESSION, company: Company::Others, run: by_certificate },
];

fn several_hosts() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let other = Stack::start(Options { ship: false, ..Options::default() })?;
        // The other host takes the same operator, and the command knows how to reach it.
        fs::copy(stack.path("allowed_signers"), other.path("allowed_signers"))?;
        let config = stack.path("operator/config.toml");
        let known = fs::read_to_string(&config)?;
        fs::write(
            &config,
            format!(
                "{known}\n[hosts.second]\nsocket = \"{}\"\nssh = \"127.0.0.1:{}\"\n\n[hosts.gone]\nsocket = \"{}\"\n",
                other.socket().display(),
                other.sshd.port,
                stack.path("nobody.sock").display(),
            ),
        )?;
        let open = ["open", stack.host(), "second", "gone", "--reason", "several hosts at once", "--", "id", "-un"];
        let output = stack.breakglass().args(open).output()?;
        let told = said(&output);
        ensure!(output.status.code() == Some(7), "one of three is gone: {told}");
        ensure!(told.contains("2 of 3 hosts are open") && told.contains("gone: cannot connect"), "{told}");
        let who = String::from_utf8_lossy(&output.stdout);
        ensure!(who.trim() == stack.account.name, "logged in to the first as {who:?}");

        let again = machine::run(stack.breakglass().args(["login", "second", "--", "id", "-un"]))?;
        ensure!(again.trim() == other.account.name, "logged in to the second as {again:?}");
        let (one, two) = (stack.status()?, other.status()?);
        ensure!(one.state == "open" && two.state == "open" && one.session != two.session, "{one:?} {two:?}");

        let output = stack.breakglass().args(["close", stack.host(), "second"]).output()?;
        ensure!(output.status.success(), "{}", said(&output));
        other.wait_for_state("locked")?;
        let session = stack.collected(&one.session)?;
        let text = String::from_utf8(session.opened.context("no opening")?.grant_text)?;
        ensure!(text.contains("hosts: 2\n") && text.contains(other.host()), "the record names all hosts: {text}");
        Ok(())
    })
}

fn carried_by_hand() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let (grant, id) = (stack.path("operator/grant"), stack.status()?.host_id);
        let mut prepare = stack.breakglass();
        prepare.args(["prepare", stack.host(), "--host-id", &id, "--reason", "no network in cage 4", "--ttl", "10m"]);
        machine::run(prepare.arg("--output").arg(&grant))?;
        let hand_in = |stack: &Stack| -> Result<Output> {
            let mut command = Command::new(&stack.binaries.agent);
            command.args(["open", "--json", "--grant"]).arg(&grant).arg("--socket").arg(stack.socket());
            command.output().context("cannot run breakglass-agent")
        };
        let output = hand_in(stack)?;
        ensure!(output.status.success(), "{}", said(&output));
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let session = answer["session"].as_str().context("no session")?.to_owned();
        let line = format!("-p {} {}@127.0.0.1 id -un", stack.sshd.port, stack.account.name);
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes"]);
        ssh.args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
            "-i",
        ]);
        let who = machine::run(ssh.arg(stack.key()).args(line.split(' ')))?;
        ensure!(who.trim() == stack.account.name, "{who:?}");

        let used = |stack: &Stack, when: &str| -> Result<()> {
            let output = hand_in(stack)?;
            ensure!(
                output.status.code() == Some(1) && said(&output).contains("used-grant"),
                "{when}: {}",
                said(&output)
            );
            Ok(())
        };
        used(stack, "while it is open")?;
        stack.close()?;
        used(stack, "after it was closed")?;
        stack.kill_agent()?;
        stack.start_agent()?;
        used(stack, "after the agent was killed and started")?;

        // Not over the network, though nothing else is wrong with it.
        let output = stack.breakglass().args(["open", stack.host(), "--no-ssh", "--grant"]).arg(&grant).output()?;
        ensure!(output.status.code() == Some(3) && said(&output).contains("prepared-elsewhere"), "{}", said(&output));
        let session = stack.collected(&session)?;
        let opened = session.opened.context("no opening")?;
        ensure!(opened.operator == OPERATOR, "{opened:?}");
        ensure!(opened.warnings.iter().any(|warning| warning.contains("by hand")), "{:?}", opened.warnings);
        Ok(())
    })
}

fn by_certificate() -> Result<()> {
    Stack::with(Options::default(), |stack| {
        let (authority, key) = (stack.path("operator/authority"), stack.path("operator/certified"));
        make_key(&authority, "authority")?;
        make_key(&key, "certified")?;
        let public = fs::read_to_string(authority.with_extension("pub"))?;
        fs::write(stack.path("allowed_signers"), format!("*@example.org cert-authority {public}"))?;
        let certify = |serial: &str, principal: &str| {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-I", "laptop", "-n", principal, "-z", serial, "-V", "-1m:+1h", "-s"]);
            machine::run(command.arg(&authority).arg(&key))
        };
        let certificate = stack.path("operator/certified-cert.pub");
        let open = |stack: &Stack, more: &[&str]| {
            let mut command = stack.breakglass();
            command.args(["open", stack.host(), "--reason", "by a certificate", "-i"]).arg(&certificate).args(more);
            command.output().context("cannot run breakglass")
        };
        certify("6", "somebody@example.org")?;
        let output = open(stack, &["--no-ssh"])?;
        ensure!(said(&output).contains("certificate-principal"), "{}", said(&output));

        certify("7", OPERATOR)?;
        let output = open(stack, &["--", "id", "-un"])?;
        ensure!(output.status.success(), "{}", said(&output));
        ensure!(String::from_utf8_lossy(&output.stdout).trim() == stack.account.name, "{}", said(&output));
        let session = stack.status()?.session;
        machine::run(stack.breakglass().args(["close", "--socket"]).arg(stack.socket()))?;
        let opened = stack.collected(&session)?.opened.context("no opening")?;
        ensure!(opened.certificate.contains("serial 7") && opened.key_type == "ssh-ed25519", "{opened:?}");
        Ok(())
    })
}

fn said(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
