//! Security keys, by an authenticator in software: what they sign breaks the glass, and logs in over stock ssh through an agent. Without a
//! touch, with a counter that went back, or unverified where policy asks for it, neither.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Result, bail, ensure};
use breakglass_api::{
    GRANT_NAMESPACE,
    v1::{Opened, Refused},
};
use breakglass_tests::{
    fido::{KeyAgent, Kind, SecurityKey, TOUCHED, VERIFIED},
    grant::request,
    stack::{Options, Stack},
};

use crate::{Company, SESSION, Test};

pub const TESTS: &[Test] = &[
    Test { name: "fido::touched_keys_open_and_log_in", needs: SESSION, company: Company::Others, run: touched },
    Test {
        name: "fido::verified_keys_alone_where_policy_says_so",
        needs: SESSION,
        company: Company::Others,
        run: verified,
    },
];

/// Spoils a key.
type Spoil = fn(&mut SecurityKey);

fn touched() -> Result<()> {
    let wrong: [(&str, Spoil); 2] =
        [("no-presence", |key| key.flags = VERIFIED), ("counter-rollback", |key| key.counter = 1)];
    Stack::with(Options { gate: true, ..Options::default() }, |stack| {
        for (kind, seed) in [(Kind::Ed25519, 31), (Kind::Ecdsa, 32)] {
            let holder = Holder::new(stack, kind, seed)?;
            ensure!(!holder.gets_in(TOUCHED)?, "{kind:?} logs in without a grant");
            holder.opens(|_| ())?;
            ensure!(holder.gets_in(TOUCHED)?, "{kind:?} touched does not log in");
            ensure!(!holder.gets_in(VERIFIED)?, "{kind:?} untouched logs in");
            stack.control()?.close()?;
            for (code, spoil) in wrong {
                holder.is_refused(code, spoil)?;
            }
            ensure!(!holder.gets_in(TOUCHED)?, "{kind:?} logs in after the session");
        }
        Ok(())
    })
}

fn verified() -> Result<()> {
    Stack::with(Options { gate: true, user_verification: true, ..Options::default() }, |stack| {
        for (kind, seed) in [(Kind::Ed25519, 41), (Kind::Ecdsa, 42)] {
            let holder = Holder::new(stack, kind, seed)?;
            holder.is_refused("not-verified", |key| key.flags = TOUCHED)?;
            holder.opens(|key| key.flags = TOUCHED | VERIFIED)?;
            ensure!(!holder.gets_in(TOUCHED)?, "{kind:?} logs in unverified");
            ensure!(holder.gets_in(TOUCHED | VERIFIED)?, "{kind:?} verified does not log in");
            stack.control()?.close()?;
        }
        Ok(())
    })
}

/// Somebody with a security key.
struct Holder<'a> {
    stack: &'a Stack,
    name: String,
    agent: KeyAgent,
    public: PathBuf,
}

impl<'a> Holder<'a> {
    fn new(stack: &'a Stack, kind: Kind, seed: u8) -> Result<Self> {
        let name = format!("{kind:?}@example.org").to_lowercase();
        let key = SecurityKey::new(kind, seed)?;
        let (public, socket) = (stack.path(&format!("operator/{name}.pub")), stack.path(&format!("operator/{name}")));
        fs::write(&public, format!("{}\n", key.public_line()))?;
        let list = stack.path("allowed_signers");
        fs::write(&list, format!("{}{name} {}\n", fs::read_to_string(&list)?, key.public_line()))?;
        Ok(Self { stack, name, agent: KeyAgent::start(key, &socket)?, public })
    }

    /// Asks for the glass to be broken, with a key that is as `change` makes it for this once; the counter goes on.
    fn ask(&self, change: impl FnOnce(&mut SecurityKey)) -> Result<Result<Opened, Refused>> {
        let mut control = self.stack.control()?;
        let text = request(&control.challenge()?, &self.name, "by a security key", 600)?.encode()?.into_bytes();
        let mut proof = None;
        self.agent.set(|key| {
            let (flags, counter) = (key.flags, key.counter);
            change(key);
            proof = Some(key.prove(text, GRANT_NAMESPACE));
            key.flags = flags;
            key.counter = key.counter.max(counter);
        });
        let Some(proof) = proof else { bail!("no proof") };
        control.open(&proof.text, &proof.signature)
    }

    fn opens(&self, change: impl FnOnce(&mut SecurityKey)) -> Result<()> {
        match self.ask(change)? {
            Ok(_) => Ok(()),
            Err(refused) => bail!("refused as {}: {}", refused.code, refused.message),
        }
    }

    fn is_refused(&self, code: &str, change: impl FnOnce(&mut SecurityKey)) -> Result<()> {
        match self.ask(change)? {
            Ok(opened) => bail!("{code}: opened session {}", opened.session),
            Err(refused) => {
                ensure!(refused.code == code, "refused as {}, not {code}: {}", refused.code, refused.message);
                Ok(())
            }
        }
    }

    /// Whether it logs in through an ssh-agent that holds it, with these flags.
    fn gets_in(&self, flags: u8) -> Result<bool> {
        self.agent.set(|key| key.flags = flags);
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        ssh.args(["-o", "UserKnownHostsFile=/dev/null", "-p", &self.stack.sshd.port.to_string()]);
        ssh.args(["-l", &self.stack.account.name, "-i"]).arg(&self.public).args(["127.0.0.1", "echo in"]);
        let output = ssh.env("SSH_AUTH_SOCK", self.agent.socket()).output()?;
        self.agent.set(|key| key.flags = TOUCHED);
        let said = String::from_utf8_lossy(&output.stderr);
        let in_or_refused =
            output.stdout == b"in\n" || said.contains("Permission denied") || said.contains("closed by");
        ensure!(in_or_refused, "neither in nor refused: {said}");
        Ok(output.stdout == b"in\n")
    }
}
