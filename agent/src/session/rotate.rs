//! What becomes of credentials at the end of a session: those that let somebody in, and those that its root could read.
//!
//! | credential | at the end |
//! |---|---|
//! | the operators' SSH keys | the key source names them no more; a grant is for one session |
//! | one-time codes | what was used was burnt before it opened; how many are left is counted, and few is a warning |
//! | the account's password | there is none; one that the session set is gone with the lock |
//! | sshd's host keys | made anew where the configuration says so; where it does not, that they were kept is said |
//!
//! The host's signing key is not among them: it evolves by itself ([`crate::evidence`]).

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use breakglass_api::v1::{
    CredentialsRotated,
    credentials_rotated::{Credential, Kind},
};
use ssh_key::{HashAlg, PublicKey};

use super::{intent::Intent, service::HOST_KEY_SIZE_MAX, systemd};
use crate::{
    account::{
        replace::{self, Checkpoint, NoCheckpoint},
        shadow::State,
    },
    codes::{Book, CodeError, FEW},
    config::Config,
    program, regular,
};

/// Most host keys that are made anew; a host has three or four.
const HOST_KEYS_MAX: usize = 16;

/// How long making all of them may take: the next session waits for it. An RSA key takes a slow machine some seconds.
const RENEWAL_LIMIT: Duration = Duration::from_secs(60);

/// Where ssh-keygen is looked for.
const PROGRAMS: &str = "/usr/bin:/bin";

/// Units of sshd, by distribution.
const SSHD: &[&str] = &["ssh.service", "sshd.service"];

/// What is made anew after a session.
#[derive(Debug, Default)]
pub struct Rotation {
    /// Where the codes are; none in tests of other things.
    state: PathBuf,
    /// Folder with sshd's host keys; none in tests of other things.
    host_keys: Option<PathBuf>,
    /// Whether they are to be made anew.
    renew_host_keys: bool,
    /// What the account's entry said before it was locked.
    found: Mutex<Option<State>>,
}

impl Rotation {
    /// As configured.
    pub fn new(config: &Config) -> Self {
        let account = &config.account;
        Self {
            state: config.host.state.clone(),
            host_keys: Some(account.ssh_host_keys.clone()),
            renew_host_keys: account.renew_ssh_host_keys,
            found: Mutex::default(),
        }
    }

    /// Remembers what the account's entry says, before it is locked.
    pub fn see(&self, entry: Option<State>) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        // Locking is tried until it holds; what counts is what the session left.
        if entry != Some(State::Locked) || found.is_none() {
            *found = entry;
        }
    }

    /// Does it, after the last process.
    pub fn run(&self, account: &str, session: &Intent) -> CredentialsRotated {
        let mut credentials: Vec<Credential> =
            session.admitted.iter().map(|admitted| login_key(&admitted.fingerprint, &admitted.operator)).collect();
        if session.by_code {
            credentials.push(codes(&Book::new(&self.state)));
        }
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner).take();
        credentials.push(password(account, found));
        match &self.host_keys {
            Some(folder) if self.renew_host_keys => credentials.extend(renew_host_keys(folder, &Keygen::default())),
            Some(folder) => credentials.extend(host_keys(folder).iter().map(|path| kept(path))),
            None => {}
        }
        for one in credentials.iter().filter(|credential| credential.attention) {
            let (kind, what) = (one.kind().as_str_name(), if one.void { "rotated" } else { "not rotated" });
            tracing::warn!(kind, name = one.name, detail = one.detail, "{what}");
        }
        CredentialsRotated { credentials }
    }
}

fn credential(kind: Kind, name: &str, detail: String, void: bool) -> Credential {
    let (successor, attention) = (String::new(), !void);
    Credential { kind: kind.into(), name: name.to_owned(), successor, detail, void, attention }
}

fn login_key(fingerprint: &str, operator: &str) -> Credential {
    let detail = format!("the key of {} logs in no more; the next session takes a new proof", operator.escape_debug());
    credential(Kind::LoginKey, fingerprint, detail, true)
}

fn codes(book: &Book) -> Credential {
    let burnt = |detail: String, attention| Credential {
        attention,
        ..credential(Kind::OneTimeCode, "", format!("the code is burnt; {detail}"), true)
    };
    match book.tally() {
        Ok(tally) if tally.left > FEW => burnt(format!("{} are left", tally.left), false),
        Ok(tally) => burnt(format!("only {} are left, issue new ones: breakglass-agent codes issue", tally.left), true),
        Err(CodeError::None) => {
            burnt("the sheet is gone too, issue a new one: breakglass-agent codes issue".into(), true)
        }
        Err(error) => {
            credential(Kind::OneTimeCode, "", format!("whether the code is burnt cannot be read: {error}"), false)
        }
    }
}

fn password(account: &str, found: Option<State>) -> Credential {
    let detail = match found {
        Some(State::Locked | State::Enabled) => "the account has no password, and is locked".to_owned(),
        Some(State::Unknown(what)) => format!("the account was left with {what}; that is gone, and it is locked"),
        None => "the account is locked; what its entry said before could not be read".to_owned(),
    };
    credential(Kind::Password, account, detail, true)
}

/// sshd's private host keys in the folder.
fn host_keys(folder: &Path) -> Vec<PathBuf> {
    let mut keys: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(is_host_key))
        .take(HOST_KEYS_MAX)
        .collect();
    keys.sort();
    keys
}

/// What is said of a host key that the configuration keeps: nobody has to do anything, and a reader should know.
fn kept(path: &Path) -> Credential {
    let name = fingerprint(path).unwrap_or_else(|_| path.display().to_string());
    let detail = "kept, as configured, though root could read it; account.renew_ssh_host_keys has it made anew";
    Credential { attention: false, ..credential(Kind::SshHostKey, &name, detail.to_owned(), false) }
}

/// Makes every host key in the folder anew, and has sshd take them.
fn renew_host_keys(folder: &Path, keygen: &Keygen<'_>) -> Vec<Credential> {
    let renewed: Vec<Credential> = host_keys(folder).iter().map(|path| renew(path, keygen)).collect();
    if renewed.is_empty() {
        let detail = format!("there are no host keys in {}; set account.ssh_host_keys", folder.display());
        return vec![credential(Kind::SshHostKey, "", detail, false)];
    }
    if systemd::is_running() {
        SSHD.iter().for_each(|unit| systemd::run("systemctl", &["reload", unit]));
    }
    renewed
}

/// `ssh_host_ed25519_key` and its like, the private one.
fn is_host_key(name: &str) -> bool {
    name.strip_prefix("ssh_host_").is_some_and(|rest| rest.ends_with("_key"))
}

fn renew(path: &Path, keygen: &Keygen<'_>) -> Credential {
    let old = fingerprint(path).unwrap_or_else(|_| path.display().to_string());
    match try_renew(path, keygen) {
        Ok(new) => Credential {
            successor: new,
            ..credential(Kind::SshHostKey, &old, format!("{} was made anew", path.display()), true)
        },
        Err(why) => credential(Kind::SshHostKey, &old, format!("{} was not made anew: {why}", path.display()), false),
    }
}

/// The new pair is made beside the old one and takes its place in two steps, the private half last: sshd goes by that.
fn try_renew(path: &Path, keygen: &Keygen<'_>) -> Result<String, String> {
    let public = with_ending(path, ".pub");
    if with_ending(path, "-cert.pub").exists() {
        return Err("it has a certificate, which a new key would make void; renew both by hand".into());
    }
    let line = public_line(&public).map_err(|e| format!("{}: {e}", public.display()))?;
    let options: &[&str] = match line.split(' ').next() {
        Some("ssh-ed25519") => &["-t", "ed25519"],
        Some("ecdsa-sha2-nistp256") => &["-t", "ecdsa", "-b", "256"],
        Some("ecdsa-sha2-nistp384") => &["-t", "ecdsa", "-b", "384"],
        Some("ecdsa-sha2-nistp521") => &["-t", "ecdsa", "-b", "521"],
        Some("ssh-rsa") => &["-t", "rsa", "-b", "3072"],
        _ => return Err("it is of a kind that is not known here".into()),
    };
    let folder = path.parent().ok_or("it lies in no folder")?;
    let work = tempfile::Builder::new().prefix(".breakglass-").tempdir_in(folder).map_err(|e| e.to_string())?;
    let made = work.path().join("key");
    keygen.make(&made, options)?;
    let new = fingerprint(&made)?;
    let made_public = with_ending(&made, ".pub");
    // Ours is a umask for secrets.
    fs::set_permissions(&made_public, fs::Permissions::from_mode(0o644)).map_err(|e| e.to_string())?;
    // A key that is empty after a power cut keeps sshd from starting.
    replace::take_places(&[(&made_public, &public), (&made, path)], keygen.checkpoint)
        .map_err(|e| format!("the new pair cannot be put there for good: {e}"))?;
    Ok(new)
}

/// How pairs are made.
struct Keygen<'a> {
    /// Folders with ssh-keygen.
    programs: &'a str,
    /// When all of them must be made.
    until: Instant,
    checkpoint: &'a dyn Checkpoint,
}

impl Default for Keygen<'_> {
    fn default() -> Self {
        Self { programs: PROGRAMS, until: Instant::now() + RENEWAL_LIMIT, checkpoint: &NoCheckpoint }
    }
}

impl Keygen<'_> {
    fn make(&self, path: &Path, options: &[&str]) -> Result<(), String> {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-N", "", "-C", ""]).args(options).arg("-f").arg(path);
        command.env_clear().env("PATH", self.programs);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match program::run(&mut command, self.until.saturating_duration_since(Instant::now())) {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("ssh-keygen failed ({status})")),
            Err(error) => Err(format!("ssh-keygen: {error}")),
        }
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn fingerprint(path: &Path) -> Result<String, String> {
    let line = public_line(&with_ending(path, ".pub")).map_err(|e| e.to_string())?;
    PublicKey::from_openssh(&line).map(|key| key.fingerprint(HashAlg::Sha256).to_string()).map_err(|e| e.to_string())
}

/// The session's root could have left anything there.
fn public_line(path: &Path) -> io::Result<String> {
    regular::read_to_string(path, HOST_KEY_SIZE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::replace::{Step, tests::Steps};

    fn keygen(path: &Path) -> bool {
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status();
        made.is_ok_and(|status| status.success())
    }

    #[test]
    fn host_keys_are_made_anew_but_for_those_with_a_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ssh_host_ed25519_key");
        if !keygen(&path) {
            println!("skipped: there is no ssh-keygen");
            return;
        }
        let (before, private) = (fingerprint(&path).unwrap(), fs::read(&path).unwrap());
        let steps = Steps::default();
        let renewed = renew_host_keys(folder.path(), &Keygen { checkpoint: &steps, ..Keygen::default() });
        let [one] = renewed.as_slice() else { panic!("{renewed:?}") };
        assert!(one.void && one.name == before && one.successor == fingerprint(&path).unwrap(), "{one:?}");
        assert!(before != one.successor && private != fs::read(&path).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside them");
        let synced = [Step::SyncFile, Step::SyncFile, Step::Rename, Step::Rename, Step::SyncFolder];
        assert_eq!(*steps.0.lock().unwrap(), synced);

        fs::write(with_ending(&path, "-cert.pub"), "x").unwrap();
        let kept = renew_host_keys(folder.path(), &Keygen::default());
        assert!(!kept[0].void && kept[0].detail.contains("certificate"), "{kept:?}");
        assert_eq!(one.successor, fingerprint(&path).unwrap());
    }

    #[test]
    fn keys_that_are_kept_are_said() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ssh_host_ed25519_key"), "x").unwrap();
        let mut config = Config::default();
        config.account.ssh_host_keys = folder.path().to_owned();
        config.host.state = folder.path().to_owned();
        let session = Intent { admitted: Vec::new(), ..Intent::sample() };
        let rotated = Rotation::new(&config).run("emergency", &session);
        let key = rotated.credentials.iter().find(|one| one.kind() == Kind::SshHostKey).unwrap();
        assert!(!key.void && !key.attention && key.detail.contains("kept, as configured"), "{key:?}");
        assert_eq!(fs::read(folder.path().join("ssh_host_ed25519_key")).unwrap(), b"x");
    }

    #[test]
    fn a_public_key_that_is_a_trap_holds_up_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ssh_host_ed25519_key");
        fs::write(&path, "x").unwrap();
        regular::tests::trap(&with_ending(&path, ".pub"));
        let found = regular::tests::untrapped(move || (kept(&path), renew(&path, &Keygen::default())));
        assert!(found.0.name.ends_with("ssh_host_ed25519_key"), "{found:?}");
        assert!(!found.1.void && found.1.detail.contains("not a regular file"), "{found:?}");
    }

    #[test]
    fn a_program_that_never_makes_a_key_is_given_up_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ssh_host_ed25519_key");
        fs::write(&path, "x").unwrap();
        fs::write(with_ending(&path, ".pub"), "ssh-ed25519 AAAA").unwrap();
        // Written by another process: what this one writes cannot be run while a test beside it starts a program.
        let script =
            "printf '#!/bin/sh\\nexec /usr/bin/env PATH=/usr/bin:/bin sleep 1000\\n' >ssh-keygen; chmod 700 ssh-keygen";
        assert!(Command::new("sh").args(["-c", script]).current_dir(folder.path()).status().unwrap().success());
        let one = regular::tests::untrapped(move || {
            let until = Instant::now() + Duration::from_millis(200);
            renew(&path, &Keygen { programs: &folder.path().display().to_string(), until, ..Keygen::default() })
        });
        assert!(!one.void && one.detail.contains("did not end within"), "{one:?}");
    }

    #[test]
    fn a_folder_without_keys_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let none = renew_host_keys(folder.path(), &Keygen::default());
        assert!(!none[0].void && none[0].detail.contains("no host keys"), "{none:?}");
    }

    #[test]
    fn what_the_session_left_in_the_entry_counts_and_not_what_locking_made_of_it() {
        let rotation = Rotation::default();
        rotation.see(Some(State::Unknown("a password and no expiry".into())));
        rotation.see(Some(State::Locked));
        let found = rotation.found.lock().unwrap().take();
        let password = password("emergency", found);
        assert!(password.void && password.detail.contains("a password and no expiry"), "{password:?}");
    }
}
