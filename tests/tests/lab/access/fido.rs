//! Security keys, by an authenticator in software: what they sign breaks the glass, and logs in over stock ssh through an agent; without
//! a touch, or with a counter that went back, neither.

use std::{fs, path::PathBuf};

use anyhow::{Result, bail, ensure};
use breakglass_api::{
    GRANT_NAMESPACE,
    v1::{Opened, Refused},
};
use breakglass_tests::{
    fido::{KeyAgent, Kind, SecurityKey, TOUCHED, VERIFIED},
    grant,
};

use super::{
    cases::Cases,
    host::{ACCOUNT, Host, NO_PAM, PAM, control, lets_in},
};
use crate::guest::Guest;

#[test]
fn security_keys_open_and_log_in_when_touched() -> Result<()> {
    let Some(_guest) = Guest::on("6.1") else { return Ok(()) };
    let host = Host::up()?;
    let mut cases = Cases::default();
    for (kind, seed) in [(Kind::Ed25519, 21), (Kind::Ecdsa, 22)] {
        let holder = Holder::new(&host, kind, seed)?;
        cases.case(&format!("{kind:?}: touched, it opens and logs in with PAM and without"), || {
            opened(holder.ask(|_| ())?)?;
            ensure!(holder.gets_in(PAM, TOUCHED)?, "refused");
            ensure!(holder.gets_in(NO_PAM, TOUCHED | VERIFIED)?, "refused without PAM");
            Ok(())
        });
        cases.case(&format!("{kind:?}: untouched, sshd does not take it"), || {
            ensure!(!holder.gets_in(PAM, 0)?, "let in untouched");
            ensure!(!holder.gets_in(NO_PAM, VERIFIED)?, "let in untouched");
            host.close()
        });
        for (code, change) in WRONG {
            cases.case(&format!("{kind:?}: refused as {code}"), || {
                let Err(refused) = holder.ask(change)? else { bail!("it opened") };
                ensure!(refused.code == *code, "refused as {}: {}", refused.code, refused.message);
                ensure!(host.status()?.state == "locked", "something opened");
                ensure!(!holder.gets_in(PAM, TOUCHED)?, "it logs in without a grant");
                Ok(())
            });
        }
    }
    cases.verdict()
}

/// Spoils a key.
type Spoil = fn(&mut SecurityKey);

/// What the host calls a signature with which something is wrong, and how it comes about.
const WRONG: &[(&str, Spoil)] = &[
    ("no-presence", |key| key.flags = VERIFIED),
    ("counter-rollback", |key| key.counter = 1),
    ("wrong-application", |key| key.application = "https://example.org".into()),
];

/// Somebody with a security key.
struct Holder<'a> {
    host: &'a Host,
    name: String,
    agent: KeyAgent,
    public: PathBuf,
}

impl<'a> Holder<'a> {
    fn new(host: &'a Host, kind: Kind, seed: u8) -> Result<Self> {
        let name = format!("{kind:?}@example.org").to_lowercase();
        let mut key = SecurityKey::new(kind, seed)?;
        let (public, socket) = (host.path(&format!("{name}.pub")), host.path(&format!("{name}.agent")));
        fs::write(&public, format!("{}\n", key.public_line()))?;
        let path = "/etc/breakglass/allowed_signers";
        let mut list = fs::read_to_string(path)?;
        // Listed for another application as well, which makes it another key: being listed must not be enough.
        for application in ["https://example.org", "ssh:"] {
            key.application = application.into();
            list += &format!("{name} {}\n", key.public_line());
        }
        fs::write(path, list)?;
        // One that an interrupted run left.
        let _ = fs::remove_file(&socket);
        Ok(Self { host, name, agent: KeyAgent::start(key, &socket)?, public })
    }

    /// Asks for the glass to be broken, with a key that `change` has spoilt for this once.
    fn ask(&self, change: impl FnOnce(&mut SecurityKey)) -> Result<Result<Opened, Refused>> {
        let mut control = control()?;
        let request = grant::request(&control.challenge()?, &self.name, "by a security key", 600)?;
        let text = request.encode()?.into_bytes();
        let mut proof = None;
        self.agent.set(|key| {
            let good = (key.flags, key.counter, key.application.clone());
            change(key);
            proof = Some(key.prove(text, GRANT_NAMESPACE));
            (key.flags, key.application) = (good.0, good.2);
            key.counter = key.counter.max(good.1);
        });
        let Some(proof) = proof else { bail!("no proof") };
        control.open(&proof.text, &proof.signature)
    }

    /// Whether it logs in through the agent, with these flags.
    fn gets_in(&self, port: u16, flags: u8) -> Result<bool> {
        self.agent.set(|key| key.flags = flags);
        let mut ssh = self.host.ssh_as(ACCOUNT, port, &self.public);
        ssh.args(["127.0.0.1", "echo in"]).env("SSH_AUTH_SOCK", self.agent.socket());
        let result = lets_in(&mut ssh);
        self.agent.set(|key| key.flags = TOUCHED);
        result
    }
}

fn opened(answer: Result<Opened, Refused>) -> Result<()> {
    match answer {
        Ok(_) => Ok(()),
        Err(refused) => bail!("refused: {} ({})", refused.message, refused.code),
    }
}
