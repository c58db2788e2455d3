//! A disk in memory, for a host whose own cannot be written: what is recorded is kept until the collector has it, up to a bound,
//! and is gone with the agent. Syncing means nothing here; that is said in the record and in the status.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{DiskFile, FileSystem, Limits};

/// What the spool may hold in memory. Half an hour of a busy session compresses into this.
pub const LIMITS: Limits = Limits { max_bytes: 48 << 20, segment_bytes: 2 << 20 };
/// Above the bound of unacknowledged frames: acknowledged ones of a segment, and the small files.
const BYTES_MAX: usize = 56 << 20;

type Content = Arc<Mutex<Vec<u8>>>;

/// The disk; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<PathBuf, Content>>>,
}

struct MemoryFile {
    disk: MemoryDisk,
    content: Content,
}

/// Each change is a single one, so that a panic elsewhere leaves everything whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryDisk {
    /// Whether so many bytes more are within the bound.
    fn room(&self, more: usize) -> io::Result<()> {
        let used: usize = locked(&self.files).values().map(|content| locked(content).len()).sum();
        if used.saturating_add(more) > BYTES_MAX { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn file(&self, content: Content) -> Box<dyn DiskFile> {
        Box::new(MemoryFile { disk: self.clone(), content })
    }
}

impl FileSystem for MemoryDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let files = locked(&self.files);
        let inside = files.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let content = Content::default();
        locked(&self.files).insert(path.to_owned(), content.clone());
        Ok(self.file(content))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let content = locked(&self.files).get(path).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(content))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = locked(&self.files);
        let content = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), content);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        locked(&self.files).remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Option<Box<dyn Send>>> {
        // A disk of this process's own.
        Ok(Some(Box::new(())))
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = locked(&self.content);
        let rest = usize::try_from(offset).ok().and_then(|at| content.get(at..)).unwrap_or_default();
        let len = buf.len().min(rest.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), rest.get(..len)) {
            to.copy_from_slice(from);
        }
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        let grows = end.saturating_sub(locked(&self.content).len());
        self.disk.room(grows)?;
        let mut content = locked(&self.content);
        if content.len() < end {
            content.resize(end, 0);
        }
        if let Some(place) = content.get_mut(start..end) {
            place.copy_from_slice(buf);
        }
        Ok(buf.len())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(locked(&self.content).len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // Not in one expression: the room is told under the same lock.
        let grows = len.saturating_sub(locked(&self.content).len());
        self.disk.room(grows)?;
        locked(&self.content).resize(len, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn reserve(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{
        Spool, SpoolError,
        model::{DIR, read_all, seal_next},
    };

    #[test]
    fn a_spool_in_memory_takes_and_gives_within_its_bound() {
        let disk = MemoryDisk::default();
        let (mut spool, recovery) = Spool::open_on(Arc::new(disk.clone()), Path::new(DIR), LIMITS).unwrap();
        assert!(recovery.new_stream);
        let mut mark = 0;
        let full = loop {
            mark += 1;
            let sealed = seal_next(&spool, mark, 1 << 20, true);
            if let Err(error) = spool.append(&sealed).and_then(|()| spool.commit().map(drop)) {
                break error;
            }
        };
        assert!(matches!(full, SpoolError::Full { .. }), "{full}");
        assert!(disk.room(0).is_ok() && spool.pressure(false).is_some());
        let end = spool.durable();
        assert_eq!((end.seq, read_all(&mut spool.reader(), end.generation, 1).len() as u64), (mark - 1, mark - 1));
        spool.reader().acknowledge(end.generation, end.seq, end.hash).unwrap();
        let used: usize = locked(&disk.files).values().map(|content| locked(content).len()).sum();
        assert!(used < LIMITS.segment_bytes as usize + (1 << 20), "{used} bytes are left");
        assert!(disk.room(BYTES_MAX).is_err());
    }
}
