//! A copy of the shadow file mounted over it, for when the file itself cannot be replaced: `/etc` read-only, the disk full, or another
//! program that holds the account files and does not let go.
//!
//! The copy lies in the runtime folder, which is memory, so nothing has to be written to a disk, and whoever reads the shadow file reads
//! the copy. Taking the mount away locks the account again, because what lies beneath was never changed; a reboot takes it away too.
//! A mount in a namespace of the agent's own would look done and change nothing for sshd, so it is checked through PID 1's root.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::replace::{self, Checkpoint, Lasting, Like, Step};
use crate::regular;

/// The copy's name: what tells our mounts from anybody else's.
const COPY: &str = "breakglass-shadow-overlay";

/// The host's own view of its files, whatever namespace the agent is in.
const HOST_ROOT: &str = "/proc/1/root";

/// Most mounts that are taken away from one place; agents that died one after the other leave one each.
const STACK_MAX: usize = 16;

/// Largest list of mounts that is read, bytes: a hundred thousand mounts.
const MOUNTS_MAX: usize = 32 << 20;

/// Mounts copies of one shadow file over it.
#[derive(Debug)]
pub struct Overlay {
    shadow: PathBuf,
    folder: PathBuf,
    /// [`HOST_ROOT`], but where a test has a namespace of its own.
    pub(super) host_root: PathBuf,
}

impl Overlay {
    /// For the shadow file, with copies in the runtime folder.
    pub fn new(shadow: &Path, runtime: &Path) -> Self {
        Self { shadow: shadow.to_owned(), folder: runtime.join("overlay"), host_root: HOST_ROOT.into() }
    }

    /// Mounts `content` over the shadow file, with the owner and mode of `like`. Nothing stays mounted where that fails.
    pub fn mount(&self, content: &[u8], like: &File, checkpoint: &dyn Checkpoint) -> io::Result<()> {
        // The place of a mount whose copy is replaced cannot be mounted over again.
        self.unmount(checkpoint)?;
        // Others must not read hashes through the copy's own path.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let copy = self.folder.join(COPY);
        replace::replace(&copy, content, Like::File(like), Lasting::ThisBoot, checkpoint)?;
        checkpoint.before(Step::Mount, &self.shadow)?;
        mount(Some(&copy), &self.shadow, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        self.check_seen(content).inspect_err(|_| {
            if let Err(error) = self.unmount(checkpoint) {
                tracing::error!(%error, "a mount over the shadow file that nobody else sees could not be taken away");
            }
        })
    }

    /// Takes every mount of ours away from the shadow file; says whether there was one.
    pub fn unmount(&self, checkpoint: &dyn Checkpoint) -> io::Result<bool> {
        let mut found = false;
        for _ in 0..STACK_MAX {
            if !self.is_mounted()? {
                // Nothing reads it any more but who has it open.
                let _ = fs::remove_file(self.folder.join(COPY));
                return Ok(found);
            }
            found = true;
            checkpoint.before(Step::Unmount, &self.shadow)?;
            // Programs that have the copy open keep it; nobody opens it any more.
            umount2(&self.shadow, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
        }
        Err(io::Error::other(format!("{STACK_MAX} mounts were taken away and there are more")))
    }

    /// Whether a copy of ours lies over the shadow file.
    pub fn is_mounted(&self) -> io::Result<bool> {
        let mounts = fs::read("/proc/self/mountinfo")?;
        if mounts.len() > MOUNTS_MAX {
            return Err(io::Error::other("there are too many mounts to look through"));
        }
        // The list has paths without links.
        let place = fs::canonicalize(&self.shadow)?;
        Ok(mounts.split(|byte| *byte == b'\n').any(|line| is_ours(line, &place)))
    }

    fn check_seen(&self, content: &[u8]) -> io::Result<()> {
        let relative = self.shadow.strip_prefix("/").unwrap_or(&self.shadow);
        match regular::read(&self.host_root.join(relative), content.len() as u64) {
            Ok(seen) if seen == content => return Ok(()),
            // Something else than the copy.
            Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
            _ => {}
        }
        Err(io::Error::other(
            "it was mounted where sshd does not see it; the agent must not have a mount namespace of its own \
             (ProtectSystem, PrivateTmp and their like in its unit)",
        ))
    }
}

/// Whether a line of `/proc/PID/mountinfo`, proc(5), is a copy of ours at `place`.
fn is_ours(line: &[u8], place: &Path) -> bool {
    let mut fields = line.split(|byte| *byte == b' ').skip(3);
    let (Some(root), Some(at)) = (fields.next(), fields.next()) else { return false };
    let root = root.strip_suffix(b"//deleted").unwrap_or(root);
    root.rsplit(|byte| *byte == b'/').next() == Some(COPY.as_bytes()) && unescaped(at) == place.as_os_str().as_bytes()
}

/// Undoes the octal escapes `\ooo` of blanks and backslashes.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trap_where_the_copy_should_be_is_not_the_copy() {
        let dir = tempfile::tempdir().unwrap();
        let overlay = Overlay { host_root: dir.path().to_owned(), ..Overlay::new(Path::new("/shadow"), dir.path()) };
        fs::write(dir.path().join("shadow"), "same").unwrap();
        assert!(overlay.check_seen(b"same").is_ok());
        assert!(overlay.check_seen(b"sam").is_err() && overlay.check_seen(b"other").is_err());
        regular::tests::trap(&dir.path().join("shadow"));
        let error = regular::tests::untrapped(move || overlay.check_seen(b"same")).unwrap_err();
        assert!(error.to_string().contains("where sshd does not see it"), "{error}");
    }

    #[test]
    fn our_mounts_are_told_from_others() {
        let ours = b"90 25 0:24 /bg/overlay/breakglass-shadow-overlay /etc/shadow rw - tmpfs tmpfs rw";
        assert!(is_ours(ours, Path::new("/etc/shadow")));
        assert!(!is_ours(ours, Path::new("/etc/passwd")));
        let gone = b"90 25 0:24 /bg/overlay/breakglass-shadow-overlay//deleted /a\\040b/shadow rw - tmpfs tmpfs rw";
        assert!(is_ours(gone, Path::new("/a b/shadow")));
        let other = b"90 25 0:24 /somebody/shadow /etc/shadow rw - tmpfs tmpfs rw";
        assert!(!is_ours(other, Path::new("/etc/shadow")));
        for damaged in [&b""[..], b"1 2 3", b"1 2 3 /breakglass-shadow-overlay"] {
            assert!(!is_ours(damaged, Path::new("/etc/shadow")));
        }
        assert_eq!(unescaped(b"\\134\\04x\\999\\"), b"\\\\04x\\999\\");
    }
}
