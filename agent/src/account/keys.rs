//! The key source: what sshd's `AuthorizedKeysCommand` is told.
//!
//! While a session is open, `<runtime>/keys/<account>` holds the one key that may log in:
//!
//! ```text
//! breakglass-key v1
//! session: UUID
//! boot: 32 hexadecimal digits
//! deadline-boot-ns: N
//! key: TYPE BASE64
//! ```
//!
//! Every line ends in one LF; nothing follows. The file holds nothing secret. The helper that sshd runs prints the key only
//! if the file is whole, belongs to root, may be written by nobody else, names this boot, and its deadline is ahead on the
//! boot clock. Whatever it is not sure of, it prints nothing, and sshd lets nobody in. It looks at files only: no network,
//! no name service, no lock.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::libc;
use uuid::Uuid;

use super::replace::{self, Checkpoint, Lasting, Like};

/// Largest key file, bytes. An RSA-4096 key takes 720.
const FILE_MAX: u64 = 8 * 1024;
const HEAD: &str = "breakglass-key v1";
const NANOS: u64 = 1_000_000_000;

/// Which key may log in, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyGrant {
    /// The session that it is for.
    pub session: Uuid,
    /// The boot that it is for.
    pub boot_id: [u8; 16],
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub deadline_boot_ns: u64,
    /// `TYPE BASE64`, as in authorized_keys, without options or comment.
    pub key: String,
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

/// What sshd should be told about `user`: one line for authorized_keys, or nothing. Only root's files count.
pub fn keys_for(runtime: &Path, user: &str, now: Now) -> Option<String> {
    keys_owned_by(0, runtime, user, now)
}

fn keys_owned_by(owner: u32, runtime: &Path, user: &str, now: Now) -> Option<String> {
    let text = read_trusted(&path_for(runtime, user)?, owner)?;
    let grant = KeyGrant::parse(&text)?;
    authorized_line(&grant, now)
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
fn authorized_line(grant: &KeyGrant, now: Now) -> Option<String> {
    if grant.boot_id != now.boot_id {
        return None;
    }
    let remaining = grant.deadline_boot_ns.checked_sub(now.boot_ns).filter(|left| *left > 0)?;
    // Rounded up: sshd compares whole seconds, and a login in the last second is still within the grant.
    let expiry = now.wall_s.checked_add(i64::try_from(remaining.div_ceil(NANOS)).ok()?)?;
    let expiry = jiff::Timestamp::from_second(expiry).ok()?.strftime("%Y%m%d%H%M%SZ");
    Some(format!("restrict,pty,expiry-time=\"{expiry}\" {}\n", grant.key))
}

impl KeyGrant {
    fn encode(&self) -> Option<String> {
        is_plain_key(&self.key).then(|| {
            format!(
                "{HEAD}\nsession: {}\nboot: {}\ndeadline-boot-ns: {}\nkey: {}\n",
                self.session,
                hex::encode(self.boot_id),
                self.deadline_boot_ns,
                self.key
            )
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        if lines.next()? != HEAD {
            return None;
        }
        let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(": ");
        let grant = Self {
            session: value("session")?.parse().ok()?,
            boot_id: hex::decode(value("boot")?).ok()?.try_into().ok()?,
            deadline_boot_ns: value("deadline-boot-ns")?.parse().ok()?,
            key: value("key")?.to_owned(),
        };
        // One spelling: what does not come out the same was not written by us.
        (lines.next().is_none() && grant.encode()? == text).then_some(grant)
    }
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
        KeyGrant { session: Uuid::nil(), boot_id: [4; 16], deadline_boot_ns: 160 * NANOS, key: KEY.into() }
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
        keys_owned_by(mine(), dir, "bg", now)
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
            assert_eq!(keys_owned_by(mine(), dir.path(), user, NOW), None, "{user:?}");
        }
        assert_eq!(keys_owned_by(mine() + 1, dir.path(), "bg", NOW), None, "another owner's file");
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
            ("v1", "v2"),
            ("boot: 04", "boot: 0A"),
            ("ns: 160", "ns: +160"),
            ("ns: 160", "ns: 0160"),
            ("key: ", "key: command=\"x\" "),
            ("8g\n", "8g\nkey: x\n"),
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
            let bad = KeyGrant { key: key.into(), ..grant() };
            assert!(write(&path, &bad, &NoCheckpoint).is_err(), "{key:?}");
        }
        assert!(!path.exists());
    }

    proptest! {
        #[test]
        fn what_is_parsed_has_one_spelling(text in "breakglass-key v1\nsession: 00000000-0000-0000-0000-000000000000\nboot: [0-9a-f]{32}\ndeadline-boot-ns: [0-9]{1,21}\nkey: ssh-[a-z0-9]{1,9} [A-Za-z0-9+/=]{10,60}\n?") {
            if let Some(grant) = KeyGrant::parse(&text) {
                prop_assert_eq!(grant.encode().unwrap(), text);
            }
        }

        #[test]
        fn noise_never_panics(text in "\\PC{0,200}", boot_ns: u64, wall_s: i64, deadline: u64) {
            let _ = KeyGrant::parse(&text);
            let _ = authorized_line(&KeyGrant { deadline_boot_ns: deadline, ..grant() }, Now { boot_ns, wall_s, ..NOW });
        }
    }
}
