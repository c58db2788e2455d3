//! The few file operations under the log and the witness, so that tests can stop the machine between any two of them.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files are written under their name with this at the end, synced, and renamed.
const TEMPORARY: &str = ".tmp";

/// A shared [`Disk`].
pub type SharedDisk = Arc<dyn Disk>;

/// A file system. What changes in a folder is durable after [`Disk::sync_dir`].
pub trait Disk: Send + Sync {
    /// A whole file; `None` if there is none. More than `max` bytes are an error.
    fn read(&self, path: &Path, max: usize) -> io::Result<Option<Vec<u8>>>;
    /// Makes one folder; one that exists is fine.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes or empties a file, writes it and makes its content durable, though not yet its name.
    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// Renames within a folder, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder with the files in it; one that does not exist is fine.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Whether there is such a folder.
    fn is_dir(&self, path: &Path) -> bool;
}

/// The real one. Files and folders are for their owner alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn read(&self, path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut content = Vec::new();
        file.take(max as u64 + 1).read_to_end(&mut content)?;
        if content.len() > max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {max} bytes")));
        }
        Ok(Some(content))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            created => created,
        }
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn is_dir(&self, path: &Path) -> bool {
        path.is_dir()
    }
}

/// Replaces a file durably: after a crash it holds the old or the new content, and the new once this has returned.
pub fn replace(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    place(disk, path, content)?;
    match path.parent() {
        Some(dir) => disk.sync_dir(dir),
        None => Ok(()),
    }
}

/// [`replace`] without making the name durable; for several files in a folder that is synced once.
pub fn place(disk: &dyn Disk, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);
    disk.write(&temporary, content)?;
    disk.rename(&temporary, path)
}

/// Makes a folder and its missing parents, durably.
pub fn create_dirs(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || disk.is_dir(path) {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new(""));
    create_dirs(disk, parent)?;
    disk.create_dir(path)?;
    match parent.as_os_str().is_empty() {
        true => Ok(()),
        false => disk.sync_dir(parent),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_replaced_whole_and_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        create_dirs(&OsDisk, path.parent().unwrap()).unwrap();
        replace(&OsDisk, &path, b"one").unwrap();
        replace(&OsDisk, &path, b"two").unwrap();
        assert_eq!(OsDisk.read(&path, 3).unwrap().unwrap(), b"two");
        assert_eq!(OsDisk.read(&path, 2).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(OsDisk.read(&dir.path().join("none"), 3).unwrap(), None);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        OsDisk.remove_dir(&dir.path().join("a")).unwrap();
        OsDisk.remove_dir(&dir.path().join("a")).unwrap();
    }
}
