//! The PAM gate: what `pam_exec` asks before it lets somebody become the emergency account, by whatever service.
//!
//! | phase | for the emergency account | for everybody else |
//! |---|---|---|
//! | `auth` | a one-time code that the running agent takes | refused |
//! | `account` | a live grant | allowed |
//! | `session` | a live grant, and the key that ssh took is one of the grant's | allowed |
//!
//! The profile keeps everybody else away from the gate. Should it not, `auth` must not vouch for them: pam_exec makes a success of exit
//! code 0, and the profile ends authentication there. The other two phases only ever add a condition, so they let others pass.
//!
//! Account and session go by the key file alone ([`crate::account::keys`]): no network, no name service, no lock, and no agent. Whatever is
//! in doubt denies. A login that the session phase lets in is told to the agent, for the record; nobody waits for it.

mod agent;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use breakglass_api::v1::{LoginNotice, LoginPlace};
use ssh_key::{HashAlg, PublicKey};

use crate::{
    account::keys::{self, KeyGrant, Now},
    notice,
};

/// After this a phase that looks at files only has failed: sshd would wait for us for as long as it grants for a login.
const FILES_LIMIT: Duration = Duration::from_secs(10);

/// The same for the phase that waits for the agent, which may have to wait for others who change the account files.
const AUTH_LIMIT: Duration = Duration::from_secs(20);

/// Longest value that is taken from PAM, bytes.
const VALUE_MAX: usize = 1024;

/// What `SSH_AUTH_INFO_0` may hold, bytes: a few methods with RSA keys.
const AUTH_INFO_MAX: usize = 16 * 1024;

/// Which of PAM's questions is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Phase {
    /// Who is it?
    Auth,
    /// May they log in?
    Account,
    /// Does this login begin?
    Session,
}

/// Where the gate finds what it goes by.
#[derive(Clone, Debug)]
pub struct Place {
    /// The emergency account.
    pub account: String,
    /// The agent's runtime folder.
    pub runtime: PathBuf,
    /// The agent's control socket.
    pub socket: PathBuf,
}

/// What PAM says of the login, from the environment.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    user: String,
    place: LoginPlace,
    /// How sshd authenticated; absent where it is not sshd.
    auth_info: Option<String>,
}

/// Answers PAM's question by the exit code.
pub fn run(phase: Phase, place: &Place) -> ExitCode {
    give_up_after(if phase == Phase::Auth { AUTH_LIMIT } else { FILES_LIMIT });
    let Some(asked) = Asked::from_environment() else { return ExitCode::FAILURE };
    if asked.user != place.account {
        return if phase == Phase::Auth { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let answer = match phase {
        Phase::Auth => agent::authenticate(&place.socket, &asked.place),
        Phase::Account => live(place).map(drop),
        Phase::Session => live(place).and_then(|grant| begin_session(&grant, &asked, place)),
    };
    match answer {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let from = format!("{} {} {}", asked.place.service, asked.place.tty, asked.place.remote_host);
            notice::syslog::send(
                notice::syslog::Priority::Warning,
                &format!("gate: {:?} as {} by {} refused: {why}", phase, asked.user, from.escape_debug()),
            );
            ExitCode::FAILURE
        }
    }
}

/// Ends the process with a refusal. A thread of its own: a signal could be blocked by whoever started us.
fn give_up_after(limit: Duration) {
    thread::spawn(move || {
        thread::sleep(limit);
        std::process::exit(1);
    });
}

fn live(place: &Place) -> Result<KeyGrant, String> {
    let now = Now::read().map_err(|e| format!("the kernel's boot id cannot be read: {e}"))?;
    keys::live(&place.runtime, &place.account, now).ok_or_else(|| "the glass is not broken".to_owned())
}

fn begin_session(grant: &KeyGrant, asked: &Asked, place: &Place) -> Result<(), String> {
    let login = bind(grant, asked.auth_info.as_deref(), &asked.place)?;
    let notice = LoginNotice {
        session: grant.session.to_string(),
        place: Some(asked.place.clone()),
        method: login.method,
        key_fingerprint: login.key_fingerprint,
    };
    agent::tell(&place.socket, notice);
    Ok(())
}

/// How somebody came in.
#[derive(Debug, Default, PartialEq, Eq)]
struct Login {
    method: String,
    key_fingerprint: String,
}

/// Holds how ssh authenticated (sshd's `ExposeAuthInfo` format: a line a method) against the grant. Other services authenticated before
/// this gate's own `auth` phase or are root's.
fn bind(grant: &KeyGrant, auth_info: Option<&str>, place: &LoginPlace) -> Result<Login, String> {
    let Some(info) = auth_info else {
        // What sshd names as the terminal before there is one.
        return match place.tty == "ssh" {
            true => Err("sshd does not say how it authenticated".into()),
            false => Ok(Login::default()),
        };
    };
    let mut login = Login::default();
    for line in info.lines() {
        let (method, key) = line.split_once(' ').unwrap_or((line, ""));
        match method {
            "publickey" => {
                let admitted = grant.keys.iter().any(|admitted| admitted == key);
                let parsed = PublicKey::from_openssh(key).ok().filter(|_| admitted);
                let parsed = parsed.ok_or("the key that logged in is not one of the grant's")?;
                login.key_fingerprint = parsed.fingerprint(HashAlg::Sha256).to_string();
            }
            "keyboard-interactive" | "keyboard-interactive/pam" | "password" if grant.by_code => {}
            other => return Err(format!("the grant is not for logins by {}", other.escape_debug())),
        }
        login.method = method.to_owned();
    }
    match login.method.is_empty() {
        true => Err("sshd says that nothing was authenticated".into()),
        false => Ok(login),
    }
}

impl Asked {
    /// `None` where a value is no text or longer than any that is meant.
    fn from_environment() -> Option<Self> {
        let user = value("PAM_USER", VALUE_MAX)?;
        let text = |name: &str| match env::var_os(name) {
            Some(_) => value(name, VALUE_MAX),
            None => Some(String::new()),
        };
        let place = LoginPlace {
            service: text("PAM_SERVICE")?,
            tty: text("PAM_TTY")?,
            remote_host: text("PAM_RHOST")?,
            remote_user: text("PAM_RUSER")?,
        };
        let auth_info = match env::var_os("SSH_AUTH_INFO_0") {
            Some(_) => Some(value("SSH_AUTH_INFO_0", AUTH_INFO_MAX)?),
            None => None,
        };
        Some(Self { user, place, auth_info })
    }
}

fn value(name: &str, max: usize) -> Option<String> {
    env::var(name).ok().filter(|value| value.len() <= max)
}

/// Where the gate finds things unless its profile says otherwise.
impl Place {
    /// For an account, with everything in one runtime folder.
    pub fn new(account: &str, runtime: &Path, socket: Option<PathBuf>) -> Self {
        Self {
            account: account.to_owned(),
            runtime: runtime.to_owned(),
            socket: socket.unwrap_or_else(|| runtime.join("control.sock")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g";

    fn grant(by_code: bool) -> KeyGrant {
        KeyGrant {
            session: uuid::Uuid::nil(),
            boot_id: [1; 16],
            deadline_boot_ns: 1,
            by_code,
            verify: false,
            keys: vec![KEY.into()],
        }
    }

    fn at(tty: &str) -> LoginPlace {
        LoginPlace { tty: tty.into(), ..LoginPlace::default() }
    }

    #[test]
    fn ssh_logins_are_bound_to_the_grants_keys() {
        let ssh = at("ssh");
        let by_key = format!("publickey {KEY}\n");
        let login = bind(&grant(false), Some(&by_key), &ssh).unwrap();
        assert!(login.method == "publickey" && login.key_fingerprint.starts_with("SHA256:"));
        let other = by_key.replace("AECAw", "AECAx");
        assert!(bind(&grant(true), Some(&other), &ssh).is_err());
        for (info, by_code, allowed) in [
            ("keyboard-interactive/pam\n", false, false),
            ("keyboard-interactive/pam\n", true, true),
            ("password\n", false, false),
            ("hostbased ssh-ed25519 AAAA\n", true, false),
            ("publickey\n", true, false),
            ("none\n", true, false),
            ("", true, false),
            ("\n", true, false),
        ] {
            assert_eq!(bind(&grant(by_code), Some(info), &ssh).is_ok(), allowed, "{info:?} {by_code}");
        }
        let both = format!("{by_key}password\n");
        assert!(bind(&grant(false), Some(&both), &ssh).is_err(), "every method counts");
    }

    #[test]
    fn a_service_that_is_not_ssh_needs_only_the_grant() {
        assert_eq!(bind(&grant(false), None, &at("/dev/tty1")).unwrap(), Login::default());
        assert!(bind(&grant(true), None, &at("ssh")).is_err(), "sshd always says how");
    }

    proptest! {
        #[test]
        fn noise_is_never_let_in(info in "(publickey |hostbased |none|ssh-ed25519 |\\PC{0,30}|\n){0,6}") {
            prop_assert!(bind(&grant(false), Some(&info), &at("ssh")).is_err());
        }
    }
}
