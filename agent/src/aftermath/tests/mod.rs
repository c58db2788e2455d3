//! Whole looks at made-up hosts, and at this one.

use std::{
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
};

use super::{Change, Limits, Severity, Snapshot, diff, left_behind};

mod doors;
mod live;
mod traps;

/// A key that opens nothing.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
const KEY_FINGERPRINT: &str = "SHA256:T7SvZ2cslqpPj6nKzitCBHHlpVF3r3MvLwmFL0fk0IE";

/// A host's files in a temporary folder.
struct FakeHost {
    root: tempfile::TempDir,
}

impl FakeHost {
    /// With a little of everything that a host always has.
    fn new() -> Self {
        let host = Self { root: tempfile::tempdir().unwrap() };
        host.write("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\nbob:x:1000:1000::/home/bob:/bin/sh\n");
        host.write("/etc/group", "root:x:0:\nsudo:x:27:\n");
        host.write("/etc/shadow", "root:*:19000:0:99999:7:::\nbob:$y$j9T$salt$hash:19000:0:99999:7:::\n");
        host.write("/etc/sudoers", "root ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n");
        host.write("/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\nPermitRootLogin no\n");
        host.write("/etc/pam.d/sshd", "auth required pam_unix.so\n");
        host.write("/etc/crontab", "# nothing\n17 * * * * root run-parts /etc/cron.hourly\n");
        host.write("/root/.bashrc", "umask 077\n");
        host.write("/home/bob/.bashrc", "");
        host.write("/proc/1/mountinfo", "22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n");
        host.write("/proc/1/net/tcp", "  sl  local_address\n");
        host.write("/usr/bin/su", "binary");
        host.mode("/usr/bin/su", 0o4755);
        host
    }

    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.path().join(path.as_ref().strip_prefix("/").unwrap())
    }

    /// Writes a file with mode 0644 and makes the folders above it.
    fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn append(&self, path: &str, content: &str) {
        let old = fs::read_to_string(self.path(path)).unwrap_or_default();
        self.write(path, old + content);
    }

    fn mode(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    fn take(&self) -> Snapshot {
        self.take_with(Limits::default())
    }

    fn take_with(&self, limits: Limits) -> Snapshot {
        Snapshot::take(self.root.path(), limits)
    }

    /// What is reported of what `act` does.
    fn changes(&self, act: impl FnOnce(&Self)) -> Vec<Change> {
        let before = self.take();
        assert_eq!(cuts(&before), [""; 0]);
        act(self);
        let (changes, unlisted) = diff(&before, &self.take());
        assert_eq!(unlisted, [""; 0]);
        changes
    }

    /// The same as texts, `!` before those that open a door, with our own ids written as root's.
    fn texts(&self, act: impl FnOnce(&Self)) -> Vec<String> {
        let own = fs::metadata(self.root.path()).unwrap();
        let owner = format!("owner {}:{}", own.uid(), own.gid());
        let text = |change: &Change| {
            let mark = if change.severity() == Severity::OpensDoor { "!" } else { "" };
            format!("{mark}{}", change.text.replace(&owner, "owner 0:0"))
        };
        self.changes(act).iter().map(text).collect()
    }
}

fn cuts(snapshot: &Snapshot) -> Vec<String> {
    snapshot.cuts().iter().map(ToString::to_string).collect()
}

/// Whether only root can do what a test needs.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("skipped: only root can plant this");
    }
    root
}

fn name(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}
