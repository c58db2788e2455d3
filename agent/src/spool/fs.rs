//! The seam under the spool: the few file operations that it needs, so that tests can lose, tear and refuse them.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::Path,
};

use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};

use crate::regular;

/// An open file.
pub trait DiskFile: Send {
    /// Reads up to `buf.len()` bytes; 0 at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes; may take fewer bytes than given.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize>;
    /// Length, bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether it is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes content and length durable (`fdatasync(2)`).
    fn sync(&self) -> io::Result<()>;
    /// Allocates blocks up to `len` bytes without changing the length, where the file system can.
    fn reserve(&self, len: u64) -> io::Result<()>;
}

/// A shared [`FileSystem`].
pub type Disk = std::sync::Arc<dyn FileSystem>;

/// A file system. Changes to a folder are durable after `sync_dir`.
pub trait FileSystem: Send + Sync {
    /// Makes a folder and its parents, mode 0700; one that exists is fine.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Names in a folder, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes an empty file, mode 0600, or empties one.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file that exists, to read and write.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Renames, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the folder's entries durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes an exclusive lock that lasts as long as what is returned; `None` if somebody else has it.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send>>>;
}

/// The real one.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl DiskFile for fs::File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        fs::File::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        let len = i64::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        match fallocate(self, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, len) {
            // Nothing to reserve on such a file system; the spool works without.
            Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl FileSystem for OsDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        // A name that is no UTF-8 is not one of the spool's.
        fs::read_dir(dir)?.filter_map(|entry| entry.map(|e| e.file_name().into_string().ok()).transpose()).collect()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = fs::File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(fs::File::options().read(true).write(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Send>>> {
        let file = regular::open_lock(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Box::new(lock))),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }
}

/// Writes all of `buf`, however short the single writes are.
pub fn write_all(file: &dyn DiskFile, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.write_at(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                buf = buf.get(n..).unwrap_or_default();
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Fills `buf` as far as the file reaches; returns how far that was.
pub fn read_full(file: &dyn DiskFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Replaces a small file so that a crash leaves the old or the new one.
pub fn replace(disk: &dyn FileSystem, dir: &Path, name: &str, content: &[u8], durable: bool) -> io::Result<()> {
    let temporary = dir.join(format!("{name}{}", super::layout::TEMPORARY));
    let file = disk.create(&temporary)?;
    write_all(file.as_ref(), content, 0)?;
    if durable {
        file.sync()?;
    }
    disk.rename(&temporary, &dir.join(name))?;
    if durable { disk.sync_dir(dir) } else { Ok(()) }
}

/// Reads a small file; `None` if it is not there. What is longer than `max` is cut.
pub fn read_small(disk: &dyn FileSystem, path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let len = usize::try_from(file.len()?).unwrap_or(max).min(max);
    let mut content = vec![0; len];
    let len = read_full(file.as_ref(), &mut content, 0)?;
    content.truncate(len);
    Ok(Some(content))
}

/// Removes a file that may not be there.
pub fn remove_if_there(disk: &dyn FileSystem, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trap_where_the_lock_should_be_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(OsDisk.lock(&path).unwrap().is_some());
        regular::tests::trap(&path);
        assert!(regular::tests::untrapped(move || OsDisk.lock(&path).map(drop)).is_err());
    }
}
