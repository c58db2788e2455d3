//! The key source: what sshd's `AuthorizedKeysCommand` is told.
//!
//! While a session is open, `<runtime>/keys/<account>` holds the keys that may log in:
//!
//! ```text
//! breakglass-key v3
//! session: UUID
//! boot: 32 hexadecimal digits
//! deadline-boot-ns: N
//! codes: yes | no
//! verify: yes | no
//! keys: how many follow, 0 to 8
//! key: TYPE BASE64
//! ```
//!
//! The last line comes once a key. `codes` says whether a one-time code opened or extended the session, so
//! that logins without a key are to be expected; `verify`, whether a FIDO key must have checked its
//! holder to log in, as it must to open. Every line ends in one LF; nothing follows. The file holds nothing secret.
//!
//! Both helpers, the key source that sshd asks and the PAM gate, go by it only if it is whole, belongs to root, may be written by nobody
//! else, names this boot, and its deadline is ahead on the boot clock. Whatever they are not sure of, nobody is let in. They look at
//! files only: no network, no name service, no lock.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::libc;
use uuid::Uuid;

use super::replace::{self, Checkpoint, Lasting, Like};
use crate::{identity, session::clock};

/// Most keys that may log into one session: more people do not work on one host at once.
pub const KEYS_MAX: usize = 8;
/// Largest key file, bytes. An RSA-4096 key takes 720.
const FILE_MAX: u64 = 8 * 1024;
const HEAD: &str = "breakglass-key v3";
const NANOS: u64 = 1_000_000_000;

/// Which keys may log in, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyGrant {
    /// The session that it is for.
    pub session: Uuid,
    /// The boot that it is for.
    pub boot_id: [u8; 16],
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub deadline_boot_ns: u64,
    /// Whether logins without a key are to be expected, because a one-time code was used.
    pub by_code: bool,
    /// Whether sshd is to take a FIDO key only where it has checked a PIN or a fingerprint. Says nothing to other keys.
    pub verify: bool,
    /// `TYPE BASE64`, as in authorized_keys, without options or comment; at most [`KEYS_MAX`].
    pub keys: Vec<String>,
}

/// What the clocks show.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// This boot.
    pub boot_id: [u8; 16],
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub boot_ns: u64,
    /// Unix time, seconds.
    pub wall_s: i64,
}

impl Now {
    /// What they show now. Fails only where the kernel does not tell its boot's id.
    pub fn read() -> io::Result<Self> {
        Ok(Self { boot_id: identity::boot_id()?, boot_ns: clock::boot_ns(), wall_s: clock::wall_s() })
    }
}

/// What sshd should be told about `user`: lines for authorized_keys, or nothing. Only root's files count.
pub fn keys_for(runtime: &Path, user: &str, now: Now) -> Option<String> {
    authorized_lines(&live(runtime, user, now)?, now)
}

/// The grant under which `user` may log in now. Only root's files count.
pub fn live(runtime: &Path, user: &str, now: Now) -> Option<KeyGrant> {
    live_owned_by(0, runtime, user, now)
}

fn live_owned_by(owner: u32, runtime: &Path, user: &str, now: Now) -> Option<KeyGrant> {
    let text = read_trusted(&path_for(runtime, user)?, owner)?;
    KeyGrant::parse(&text).filter(|grant| grant.boot_id == now.boot_id && grant.deadline_boot_ns > now.boot_ns)
}

/// Where the key of an account is kept; nothing for what cannot be an account's name.
pub fn path_for(runtime: &Path, account: &str) -> Option<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '$');
    let fits = (1..=32).contains(&account.len()) && account.chars().all(plain) && !account.starts_with('.');
    fits.then(|| runtime.join("keys").join(account))
}

/// Writes the key. The folders are made where they are missing. A key is good for this boot only, so the disk is not waited for.
pub fn write(path: &Path, grant: &KeyGrant, checkpoint: &dyn Checkpoint) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        // The helper may run as another user: it must be able to look, whatever our umask is.
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    let text = grant.encode().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a plain public key"))?;
    replace::replace(path, text.as_bytes(), Like::Mode(0o644), Lasting::ThisBoot, checkpoint)
}

/// Removes the key. One that is not there is no error.
pub fn remove(path: &Path, checkpoint: &dyn Checkpoint) -> io::Result<()> {
    replace::remove(path, Lasting::ThisBoot, checkpoint)
}

fn read_trusted(path: &Path, owner: u32) -> Option<String> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || meta.uid() != owner || meta.mode() & 0o022 != 0 || meta.len() > FILE_MAX {
        return None;
    }
    let mut text = String::new();
    file.take(FILE_MAX + 1).read_to_string(&mut text).ok()?;
    Some(text)
}

/// `restrict,pty,expiry-time="…Z" KEY`. The expiry is for the case that sshd keeps the answer; the deadline itself is
/// kept on the boot clock.
pub(crate) fn authorized_lines(grant: &KeyGrant, now: Now) -> Option<String> {
    let remaining = grant.deadline_boot_ns.checked_sub(now.boot_ns).filter(|left| *left > 0)?;
    // Rounded up: sshd compares whole seconds, and a login in the last second is still within the grant.
    let expiry = now.wall_s.checked_add(i64::try_from(remaining.div_ceil(NANOS)).ok()?)?;
    let expiry = jiff::Timestamp::from_second(expiry).ok()?.strftime("%Y%m%d%H%M%SZ");
    let verify = if grant.verify { ",verify-required" } else { "" };
    Some(grant.keys.iter().map(|key| format!("restrict,pty{verify},expiry-time=\"{expiry}\" {key}\n")).collect())
}

impl KeyGrant {
    fn encode(&self) -> Option<String> {
        let sound = self.keys.len() <= KEYS_MAX && self.keys.iter().all(|key| is_plain_key(key));
        let keys = || self.keys.iter().map(|key| format!("key: {key}\n"));
        sound.then(|| {
            format!(
                "{HEAD}\nsession: {}\nboot: {}\ndeadline-boot-ns: {}\ncodes: {}\nverify: {}\nkeys: {}\n{}",
                self.session,
                hex::encode(self.boot_id),
                self.deadline_boot_ns,
                yes_or_no(self.by_code),
                yes_or_no(self.verify),
                self.keys.len(),
                keys().collect::<String>()
            )
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        if lines.next()? != HEAD {
            return None;
        }
        let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(": ");
        let mut grant = Self {
            session: value("session")?.parse().ok()?,
            boot_id: hex::decode(value("boot")?).ok()?.try_into().ok()?,
            deadline_boot_ns: value("deadline-boot-ns")?.parse().ok()?,
            by_code: value("codes")? == "yes",
            verify: value("verify")? == "yes",
            keys: Vec::new(),
        };
        // How many there are is compared below, with everything else.
        value("keys")?;
        grant.keys = lines.map(|line| Some(line.strip_prefix("key: ")?.to_owned())).collect::<Option<_>>()?;
        // One spelling: what does not come out the same was not written by us.
        (grant.encode()? == text).then_some(grant)
    }
}

fn yes_or_no(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

/// Exactly a key type and its base64, so that nothing can be smuggled into the line that sshd reads.
fn is_plain_key(key: &str) -> bool {
    let Some((kind, blob)) = key.split_once(' ') else { return false };
    !kind.is_empty()
        && kind.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '@' | '.'))
        && blob.len() >= 16
        && blob.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '='))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::replace::NoCheckpoint, *};

    const NOW: Now = Now { boot_id: [4; 16], boot_ns: 100 * NANOS, wall_s: 1_790_000_000 };
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g";

    fn grant() -> KeyGrant {
        KeyGrant {
            session: Uuid::nil(),
            boot_id: [4; 16],
            deadline_boot_ns: 160 * NANOS,
            by_code: false,
            verify: false,
            keys: vec![KEY.into()],
        }
    }

    fn mine() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    fn written(grant: &KeyGrant) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = path_for(dir.path(), "bg").unwrap();
        write(&path, grant, &NoCheckpoint).unwrap();
        (dir, path)
    }

    fn asked(dir: &Path, now: Now) -> Option<String> {
        authorized_lines(&live_owned_by(mine(), dir, "bg", now)?, now)
    }

    #[test]
    fn the_line_for_sshd() {
        let (dir, path) = written(&grant());
        let line = asked(dir.path(), NOW).unwrap();
        assert_eq!(line, format!("restrict,pty,expiry-time=\"20260921141420Z\" {KEY}\n"));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, 0o755);
    }

    #[test]
    fn where_the_policy_asks_for_it_sshd_does_too() {
        let (dir, _) = written(&KeyGrant { verify: true, ..grant() });
        assert!(asked(dir.path(), NOW).unwrap().starts_with("restrict,pty,verify-required,expiry-time="));
    }

    #[test]
    fn any_doubt_denies() {
        let (dir, path) = written(&grant());
        for now in [
            Now { boot_ns: 160 * NANOS, ..NOW },
            Now { boot_ns: u64::MAX, ..NOW },
            Now { boot_id: [5; 16], ..NOW },
            Now { wall_s: i64::MAX, ..NOW },
        ] {
            assert_eq!(asked(dir.path(), now), None, "{now:?}");
        }
        for user in ["", "other", "../keys/bg", ".", "bg/", "bg\n", "bg\0", &"b".repeat(40)] {
            assert_eq!(live_owned_by(mine(), dir.path(), user, NOW), None, "{user:?}");
        }
        assert_eq!(live_owned_by(mine() + 1, dir.path(), "bg", NOW), None, "another owner's file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(asked(dir.path(), NOW), None, "anybody could have written it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let moved = dir.path().join("moved");
        fs::rename(&path, &moved).unwrap();
        std::os::unix::fs::symlink(&moved, &path).unwrap();
        assert_eq!(asked(dir.path(), NOW), None, "a link");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
        assert_eq!(asked(dir.path(), NOW), None, "a pipe, and it did not hang");
    }

    #[test]
    fn every_cut_and_every_other_spelling_denies() {
        let (dir, path) = written(&grant());
        let good = fs::read_to_string(&path).unwrap();
        for len in 0..good.len() {
            fs::write(&path, &good[..len]).unwrap();
            assert_eq!(asked(dir.path(), NOW), None, "cut at {len}");
        }
        for (from, to) in [
            ("v3", "v2"),
            ("codes: no", "codes: maybe"),
            ("verify: no\n", ""),
            ("verify: no", "verify: "),
            ("boot: 04", "boot: 0A"),
            ("ns: 160", "ns: +160"),
            ("ns: 160", "ns: 0160"),
            ("key: ", "key: command=\"x\" "),
            ("8g\n", "8g\nkey: x\n"),
            ("8g\n", "8g\n\n"),
            ("8g\n", "8g comment\n"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            fs::write(&path, bad).unwrap();
            assert_eq!(asked(dir.path(), NOW), None, "{to:?}");
        }
    }

    #[test]
    fn only_plain_keys_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_for(dir.path(), "bg").unwrap();
        for key in
            ["", "ssh-ed25519", "ssh-ed25519 AAAA\nssh-ed25519 BBBB", "command=\"x\" ssh-ed25519 AAAAAAAAAAAAAAAA"]
        {
            let bad = KeyGrant { keys: vec![KEY.into(), key.into()], ..grant() };
            assert!(write(&path, &bad, &NoCheckpoint).is_err(), "{key:?}");
        }
        let many = KeyGrant { keys: vec![KEY.into(); KEYS_MAX + 1], ..grant() };
        assert!(write(&path, &many, &NoCheckpoint).is_err());
        assert!(!path.exists());
    }

    #[test]
    fn several_keys_or_none() {
        let other = KEY.replace("8g", "9A");
        let (dir, path) = written(&KeyGrant { keys: vec![KEY.into(), other.clone()], ..grant() });
        let lines = asked(dir.path(), NOW).unwrap();
        assert!(lines.lines().count() == 2 && lines.contains(&other), "{lines}");
        write(&path, &KeyGrant { keys: vec![], by_code: true, ..grant() }, &NoCheckpoint).unwrap();
        assert_eq!(asked(dir.path(), NOW).as_deref(), Some(""));
        assert!(live_owned_by(mine(), dir.path(), "bg", NOW).unwrap().by_code);
    }

    proptest! {
        #[test]
        fn what_is_parsed_has_one_spelling(text in "breakglass-key v3\nsession: 00000000-0000-0000-0000-000000000000\nboot: [0-9a-f]{32}\ndeadline-boot-ns: [0-9]{1,21}\ncodes: (yes|no)\nverify: (yes|no)\nkeys: [0-4]\n(key: ssh-[a-z0-9]{1,9} [A-Za-z0-9+/=]{10,60}\n?){0,3}") {
            if let Some(grant) = KeyGrant::parse(&text) {
                prop_assert_eq!(grant.encode().unwrap(), text);
            }
        }

        #[test]
        fn the_wall_clock_neither_lets_in_nor_keeps_out(wall_s in 0..250_000_000_000i64, boot_s in 0..300u64) {
            let (dir, _) = written(&grant());
            let now = Now { wall_s, boot_ns: boot_s * NANOS, ..NOW };
            prop_assert_eq!(asked(dir.path(), now).is_some(), boot_s < 160, "the deadline is at 160 s of the boot clock");
        }

        #[test]
        fn noise_never_panics(text in "\\PC{0,200}", boot_ns: u64, wall_s: i64, deadline: u64) {
            let _ = KeyGrant::parse(&text);
            let _ = authorized_lines(&KeyGrant { deadline_boot_ns: deadline, ..grant() }, Now { boot_ns, wall_s, ..NOW });
        }
    }
}
