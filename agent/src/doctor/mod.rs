//! Whether operators would get in, and nobody else: what `breakglass-agent doctor` finds out about sshd, PAM and the agent's own files,
//! without changing anything.
//!
//! `sshd -t` calls a configuration good that ignores our drop-in, so what sshd makes of it is asked for the very account.

pub mod bypasses;
mod pam;
mod sshd;

use std::{fmt::Write as _, os::unix::fs::MetadataExt, path::Path};

use serde::Serialize;

use crate::{
    account::{
        Account,
        keys::{self, Now},
        shadow::State as Shadow,
    },
    codes::{Book, CodeError, FEW},
    config::Config,
    control::verifier::{Identity, Verifier},
    notice::{Origin, webhook::Webhook},
};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Worth a look; operators get in and nobody else does.
    Warn,
    /// Operators are kept out, or a lock is missing.
    Fail,
    /// It could not be found out.
    Unknown,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable word.
    pub name: &'static str,
    /// How it came out.
    pub state: State,
    /// What was found, and what to do.
    pub detail: String,
}

impl Check {
    fn new(name: &'static str, state: State, detail: impl Into<String>) -> Self {
        Self { name, state, detail: detail.into() }
    }

    /// All is well, or the findings as one sentence each.
    fn of(name: &'static str, findings: &[String], well: &str) -> Self {
        match findings {
            [] => Self::new(name, State::Ok, well),
            some => Self::new(name, State::Fail, some.join("; ")),
        }
    }
}

/// Every check.
pub fn access(config: &Config) -> Vec<Check> {
    vec![
        account(config),
        signers(config),
        revoked(config),
        codes(config),
        notice(config),
        sshd::settings(&config.account.name),
        sshd::helper(&config.account.name),
        pam::profile(&config.account.name),
    ]
}

/// For people.
pub fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let state = match check.state {
            State::Ok => "ok",
            State::Warn => "warning",
            State::Fail => "FAILED",
            State::Unknown => "unknown",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{state:<8} {:<16} {}", check.name, check.detail);
    }
    text
}

fn account(config: &Config) -> Check {
    let name = "account";
    let state = match Account::find(&config.account, &config.host.runtime).and_then(|account| account.state()) {
        Ok(state) => state,
        Err(error) => return Check::new(name, State::Fail, error.to_string()),
    };
    match state {
        Shadow::Locked => Check::new(name, State::Ok, format!("{} is locked", config.account.name)),
        Shadow::Enabled if grant_is_live(config) => {
            Check::new(name, State::Warn, format!("{} is enabled: a session is open", config.account.name))
        }
        Shadow::Enabled => Check::new(
            name,
            State::Fail,
            format!("{} is enabled though no session is open; lock it: breakglass-agent lock", config.account.name),
        ),
        Shadow::Unknown(what) => Check::new(
            name,
            State::Fail,
            format!("{} has {what}, so it is not locked; start the agent, which locks it", config.account.name),
        ),
    }
}

/// Whether the key source would let somebody in now.
fn grant_is_live(config: &Config) -> bool {
    let now = Now::read();
    now.is_ok_and(|now| keys::live(&config.host.runtime, &config.account.name, now).is_some())
}

/// The verifier reads its lists as it would for a proof.
fn verifier(config: &Config) -> Verifier {
    let identity = Identity {
        host_id: String::new(),
        host_name: String::new(),
        boot_id: [0; 16],
        account: config.account.name.clone(),
        account_uid: 0,
    };
    Verifier::new(identity, &config.grant, &config.host.state)
}

fn signers(config: &Config) -> Check {
    let name = "allowed_signers";
    let signers = match verifier(config).signers() {
        Ok(signers) => signers,
        Err(refusal) => return Check::new(name, State::Fail, refusal.message),
    };
    let (good, bad) = (signers.entries().len(), signers.problems());
    let path = config.grant.allowed_signers.display();
    if good < config.grant.required_signers {
        return Check::new(
            name,
            State::Fail,
            format!("{path} has {good} usable lines, and {} people must sign", config.grant.required_signers),
        );
    }
    match bad.first() {
        None => Check::new(name, State::Ok, format!("{path} has {good} lines")),
        Some(problem) => Check::new(
            name,
            State::Warn,
            format!("{path}: {} of its lines allow nobody; line {}: {}", bad.len(), problem.line, problem.message),
        ),
    }
}

fn revoked(config: &Config) -> Check {
    let name = "revoked_keys";
    match verifier(config).revoked() {
        Ok(revoked) => Check::new(name, State::Ok, format!("{} keys are revoked", revoked.len())),
        Err(refusal) => Check::new(name, State::Fail, refusal.message),
    }
}

fn notice(config: &Config) -> Check {
    let name = "notice";
    let Some(hook) = &config.notice.webhook else {
        return match config.notice.syslog {
            true => Check::new(name, State::Ok, "the system's log is told; no webhook".to_owned()),
            false => {
                Check::new(name, State::Warn, "the host itself tells nobody (notice.syslog, notice.webhook)".to_owned())
            }
        };
    };
    match Webhook::new(hook, Origin::default()) {
        Ok(_) => Check::new(name, State::Ok, format!("{} is told; whether it answers was not tried", hook.url)),
        Err(error) => Check::new(name, State::Fail, error),
    }
}

fn codes(config: &Config) -> Check {
    let name = "codes";
    match Book::new(&config.host.state).tally() {
        Ok(tally) if tally.left > FEW => Check::new(name, State::Ok, format!("{} one-time codes are left", tally.left)),
        Ok(tally) => Check::new(
            name,
            State::Warn,
            format!("{} one-time codes are left; issue new ones: breakglass-agent codes issue", tally.left),
        ),
        Err(error @ CodeError::None) => Check::new(name, State::Warn, error.to_string()),
        Err(error) => Check::new(name, State::Fail, error.to_string()),
    }
}

/// Why sshd or PAM would not run a program: every part of its path must be root's, and nobody else may write it.
fn untrusted(program: &Path) -> Option<String> {
    program.ancestors().find_map(|part| {
        let meta = match part.metadata() {
            Ok(meta) => meta,
            Err(error) => return Some(format!("{}: {error}", part.display())),
        };
        (meta.uid() != 0 || meta.mode() & 0o022 != 0)
            .then(|| format!("{} is not root's alone; chown root, chmod go-w", part.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_anything_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.account.shadow = dir.path().join("shadow");
        config.host.state = dir.path().to_owned();
        config.grant.allowed_signers = dir.path().join("allowed_signers");
        let checks = access(&config);
        let state = |name: &str| checks.iter().find(|check| check.name == name).map(|check| check.state);
        assert_eq!(state("account"), Some(State::Fail));
        assert_eq!(state("allowed_signers"), Some(State::Fail));
        assert_eq!(state("codes"), Some(State::Warn));
        assert_eq!(text(&checks).lines().count(), checks.len());
        assert!(untrusted(&dir.path().join("none")).is_some());
    }
}
