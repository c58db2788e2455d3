//! The PAM gate, with a real sshd and PAM: nobody becomes the emergency account without a grant, whatever else would let them in, and
//! nobody else notices.

use std::{fs, os::unix::fs::PermissionsExt, process::Command, time::Instant};

use anyhow::{Result, ensure};
use breakglass_api::v1::{Login, event::Body};
use breakglass_tests::{
    account::Account,
    gate::{self, Answers},
    machine::{self, Need},
    poll,
    sshd::{Keys, Sshd, make_key},
    stack::{OPERATOR, Options, Stack},
};

use crate::{Company, Test, account::expect_refused};

const NEEDS: &[Need] = &[Need::Root, Need::Ssh, Need::Bpf, Need::Program("python3"), Need::Program("openssl")];

pub const TESTS: &[Test] = &[
    Test { name: "gate::logins_are_bound_to_the_grant", needs: NEEDS, company: Company::Others, run: bound },
    Test { name: "gate::codes_open_at_a_console_and_over_ssh", needs: NEEDS, company: Company::Others, run: codes },
    Test { name: "gate::others_are_left_alone", needs: NEEDS, company: Company::Others, run: others },
    Test { name: "gate::it_takes_no_time", needs: NEEDS, company: Company::None, run: quick },
];

const ALL: Answers = Answers { auth: true, account: true, session: true };
const NONE: Answers = Answers { auth: false, account: false, session: false };

fn gated() -> Options {
    Options { gate: true, ..Options::default() }
}

fn bound() -> Result<()> {
    Stack::with(gated(), |stack| {
        // An sshd that would let a stranger's key in at any time, from a file.
        let stranger = stack.path("operator/stranger");
        make_key(&stranger, "stranger")?;
        let keys = Keys::File(stranger.with_extension("pub"));
        let wide = Sshd::start_gated(&stack.run, "wide", &stack.account.name, &keys)?;
        let as_stranger = |port: u16| -> Result<bool> {
            let mut ssh = Command::new("ssh");
            ssh.args(["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes"])
                .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"])
                .args(["-p", &port.to_string(), "-l", &stack.account.name, "-i"])
                .arg(&stranger)
                .args(["127.0.0.1", "echo in"])
                .env_remove("SSH_AUTH_SOCK");
            Ok(ssh.output()?.stdout == b"in\n")
        };
        expect_refused(stack, "before")?;
        // Whoever can change the shadow file opens that lock; the gate is another.
        machine::run(Command::new(machine::program("usermod")?).args(["-p", "*", "-e", "", &stack.account.name]))?;
        ensure!(!as_stranger(wide.port)?, "a stranger got in with no session open");

        let opened = stack.open("bind me", "10m")?;
        ensure!(stack.ssh_run(&opened, "echo in")? == "in\n", "the operator was not let in");
        ensure!(!as_stranger(wide.port)?, "a stranger got in during a session");
        stack.close_and_collect(&opened)?;
        let login = logins(stack, &opened.session)?.pop().unwrap_or_default();
        ensure!(login.operator == OPERATOR && login.method == "publickey", "recorded: {login:?}");
        ensure!(login.key_fingerprint.starts_with("SHA256:") && login.remote_host == "127.0.0.1", "{login:?}");
        expect_refused(stack, "after")
    })
}

fn logins(stack: &Stack, session: &str) -> Result<Vec<Login>> {
    let events = stack.query()?.events(session)?;
    Ok(events
        .into_iter()
        .filter_map(|recorded| match recorded.event?.body? {
            Body::Login(login) => Some(login),
            _ => None,
        })
        .collect())
}

fn codes() -> Result<()> {
    Stack::with(gated(), |stack| {
        let name = stack.account.name.clone();
        let service = format!("{name}-login");
        stack.gate().install(&stack.run, &service, |text| text)?;
        ensure!(gate::login(&service, &name, "no code")? == NONE, "something got in without a code");
        let codes = stack.issue_codes(3)?;
        let [first, second, third] = codes.as_slice() else { anyhow::bail!("not three codes") };
        ensure!(gate::login(&service, &name, "bcde-fghj-knpr-stux-bbxx")? == NONE, "a wrong code got in");

        // As somebody types it at a console that shows nothing.
        ensure!(gate::login(&service, &name, &first.to_uppercase().replace('-', " "))? == ALL, "the code did not open");
        let status = stack.wait_for_state("open")?;
        ensure!(status.operator == "code:1", "opened by {}", status.operator);
        ensure!(!gate::login(&service, &name, first)?.auth, "a code was good twice");
        ensure!(stack.wait_for_state("open")?.session == status.session, "another session");
        stack.control()?.close()?;
        ensure!(gate::login(&service, &name, first)? == NONE, "a code was good after its session");

        ensure!(over_ssh(stack, second)?, "the second code did not open over ssh");
        ensure!(!over_ssh(stack, second)?, "the second code was good twice");
        let session = stack.wait_for_state("open")?.session;
        stack.control()?.close()?;
        let recorded = stack.collected(&session)?;
        ensure!(recorded.opened.is_some_and(|opened| opened.operator == "code:2"), "not the code's session");
        let login = logins(stack, &session)?.pop().unwrap_or_default();
        ensure!(login.method.starts_with("keyboard-interactive"), "recorded: {login:?}");

        by_command(stack, third)
    })
}

/// `breakglass open --code`, and then ssh with the key that was named.
fn by_command(stack: &Stack, code: &str) -> Result<()> {
    let input = stack.path("operator/code");
    fs::write(&input, format!("{code}\n"))?;
    let mut open = stack.breakglass();
    open.args(["open", stack.host(), "--code", "--reason", "the keys are gone", "--", "echo", "in"]);
    let output = open.stdin(fs::File::open(&input)?).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.stdout == b"in\n", "{}: {said}", output.status);
    ensure!(said.contains("0 one-time codes are left"), "no warning: {said}");
    stack.control()?.close().map(drop)
}

fn over_ssh(stack: &Stack, code: &str) -> Result<bool> {
    let askpass = stack.path("operator/askpass");
    fs::write(&askpass, format!("#!/bin/sh\necho {code}\n"))?;
    fs::set_permissions(&askpass, fs::Permissions::from_mode(0o700))?;
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-o", "PubkeyAuthentication=no", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "NumberOfPasswordPrompts=1"])
        .args(["-p", &stack.sshd.port.to_string(), "-l", &stack.account.name, "127.0.0.1", "echo in"])
        .env("SSH_ASKPASS", &askpass)
        .env("SSH_ASKPASS_REQUIRE", "force")
        .env_remove("SSH_AUTH_SOCK");
    Ok(ssh.output()?.stdout == b"in\n")
}

/// What goes wrong with the gate costs the emergency account its login, and nobody else theirs; and nobody gets in by it.
fn others() -> Result<()> {
    Stack::with(gated(), |stack| {
        let other = Account::create(&stack.run, "b")?;
        let hash = machine::run(Command::new(machine::program("openssl")?).args(["passwd", "-6", "right"]))?;
        machine::run(Command::new(machine::program("usermod")?).args(["-p", hash.trim(), &other.name]))?;
        let service = format!("{}-login", stack.account.name);
        type Spoil = fn(String) -> String;
        let spoilt: [(&str, Spoil); 4] = [
            ("as it is", |text| text),
            ("without pam_succeed_if", |text| text.replace("pam_succeed_if.so", "pam_gone.so")),
            ("without the helper", |text| text.replace("/breakglass-agent gate", "/gone gate")),
            ("with a helper that crashes", |text| text.replace("/breakglass-agent gate", "/breakglass-agent crash")),
        ];
        for (what, spoil) in spoilt {
            stack.gate().install(&stack.run, &service, spoil)?;
            ensure!(gate::login(&service, &stack.account.name, "x")? == NONE, "{what}: the account got in");
            let wrong = gate::login(&service, &other.name, "wrong")?;
            ensure!(!wrong.auth, "{what}: somebody else got in without their password");
            ensure!(gate::login(&service, &other.name, "right")? == ALL, "{what}: somebody else was kept out");
        }
        Ok(())
    })
}

/// Within which the gate answers.
const BUDGET_MS: f64 = 50.0;

fn quick() -> Result<()> {
    Stack::with(gated(), |stack| {
        let opened = stack.open("how long does it take", "10m")?;
        let gate = stack.gate();
        for phase in ["account", "session"] {
            let mut times = Vec::new();
            for _ in 0..20 {
                let mut command = Command::new(&gate.agent);
                command.env_clear().env("PAM_USER", &gate.account).env("PAM_SERVICE", "login").env("PAM_TTY", "tty1");
                command.args(["gate", phase, "--account", &gate.account, "--runtime"]).arg(&gate.runtime);
                let started = Instant::now();
                let status = command.status()?;
                times.push(started.elapsed().as_secs_f64() * 1e3);
                ensure!(status.success(), "{phase}: {status}");
            }
            times.sort_by(f64::total_cmp);
            let median = times.get(times.len() / 2).copied().unwrap_or_default();
            ensure!(median <= BUDGET_MS, "{phase}: {median:.1} ms");
        }
        poll::until_true("every login to be recorded", poll::SOON, || Ok(logins(stack, &opened.session)?.len() == 20))
    })
}
