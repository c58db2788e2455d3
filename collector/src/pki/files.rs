//! Key files: made for their owner only, never over another file, and not used when others can read them.

use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};

/// Writes a file that must not exist yet, readable by its owner alone.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    write_with_mode(path, text, 0o600)
}

/// Writes a file that must not exist yet.
pub fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    write_with_mode(path, text, 0o644)
}

fn write_with_mode(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot create {}", path.display()))
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
}
