//! Key files: made for their owner only, never over another file, and not used when others can read them.

use std::fs::{DirBuilder, File, Metadata};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown, lchown};
use std::path::Path;

use anyhow::{Context, bail};

/// Whose the files in a folder are to be: what root makes for a service that runs as another user is of no use to it otherwise, and a
/// folder that it cannot look into is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// Whoever owns `folder`.
    pub fn of(folder: &Path) -> anyhow::Result<Self> {
        let found = std::fs::metadata(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
        Ok(Self { uid: found.uid(), gid: found.gid() })
    }

    /// As [`write_private`].
    pub fn write_private(self, path: &Path, text: &str) -> anyhow::Result<()> {
        write_with_mode(path, text, 0o600, Some(self))
    }

    /// As [`write_new`].
    pub fn write_new(self, path: &Path, text: &str) -> anyhow::Result<()> {
        write_with_mode(path, text, 0o644, Some(self))
    }

    /// As [`create_private_dir`]; one that is there already and is another's is handed over.
    pub fn create_private_dir(self, path: &Path) -> anyhow::Result<()> {
        create_private_dir(path)?;
        self.take(path)
    }

    /// Hands over a file or folder that is there, if it is root's and should not be.
    pub fn take(self, path: &Path) -> anyhow::Result<()> {
        let found = std::fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
        match self.is_to_get(&found) {
            // Never what a link points to.
            true => lchown(path, Some(self.uid), Some(self.gid)).with_context(|| self.cannot(path)),
            false => Ok(()),
        }
    }

    fn take_open(self, file: &File, path: &Path) -> anyhow::Result<()> {
        let found = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
        match self.is_to_get(&found) {
            true => fchown(file, Some(self.uid), Some(self.gid)).with_context(|| self.cannot(path)),
            false => Ok(()),
        }
    }

    /// Only root can give away, and only what is root's is taken for having been made by it.
    fn is_to_get(self, found: &Metadata) -> bool {
        found.uid() == 0 && self.uid != 0
    }

    fn cannot(self, path: &Path) -> String {
        format!("cannot give {} to user {}, who owns the folder", path.display(), self.uid)
    }
}

/// Writes a file that must not exist yet, readable by its owner alone.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    write_with_mode(path, text, 0o600, None)
}

/// Writes a file that must not exist yet.
pub fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    write_with_mode(path, text, 0o644, None)
}

fn write_with_mode(path: &Path, text: &str, mode: u32, owner: Option<Owner>) -> anyhow::Result<()> {
    let open = || File::options().write(true).create_new(true).mode(mode).open(path);
    let mut file = open().with_context(|| format!("cannot create {}", path.display()))?;
    if let Some(owner) = owner {
        owner.take_open(&file, path)?;
    }
    let mut write = || {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Makes a folder, with its parents, that only its owner can enter. An existing folder is left as it is.
pub fn create_private_dir(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot create the folder {}", path.display()))
}

/// Reads a private key, refusing one that group or others can read.
pub fn read_private_key(path: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read the private key {}", path.display());
    let mode = std::fs::metadata(path).with_context(cannot)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!("{0} can be read by others (mode {mode:04o}); repair with: chmod 600 {0}", path.display());
    }
    std::fs::read_to_string(path).with_context(cannot)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        write_private(&path, "secret").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(write_private(&path, "other").is_err());
        assert_eq!(read_private_key(&path).unwrap(), "secret");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(read_private_key(&path).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn what_root_makes_belongs_to_the_owner_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        if std::fs::metadata(dir.path()).unwrap().uid() != 0 {
            return;
        }
        let owned = |path: &Path| std::fs::metadata(path).unwrap().uid();
        let [folder, file, others] = ["folder", "file", "others"].map(|name| dir.path().join(name));
        std::fs::write(&others, "").unwrap();
        std::os::unix::fs::chown(&others, Some(4712), None).unwrap();
        std::fs::create_dir(&folder).unwrap();
        Owner::of(dir.path()).unwrap().take(&others).unwrap();
        assert_eq!(owned(&others), 4712, "root's folder takes nothing from anybody");
        std::os::unix::fs::chown(dir.path(), Some(4711), Some(4711)).unwrap();
        let owner = Owner::of(dir.path()).unwrap();
        owner.create_private_dir(&folder).unwrap();
        owner.write_private(&file, "secret").unwrap();
        owner.take(&others).unwrap();
        assert_eq!((owned(&folder), owned(&file), owned(&others)), (4711, 4711, 4712));
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    }
}
