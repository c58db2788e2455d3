//! A file system in memory that can refuse, shorten, tear and forget.
//!
//! A crash keeps what was synced; of the rest it keeps what chance says: a prefix of the changes to folders (a journal is
//! ordered), and of every file either the synced content, or the written one with its unsynced end cut or partly zeroed.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use super::{DiskFile, FileSystem};

/// What the next calls do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Calls that go well before a fault; `None` for ever.
    pub after: Option<u32>,
    /// How many calls fail then.
    pub count: u32,
    /// With which errno.
    pub errno: i32,
    /// Whether every write takes only half of what it is given.
    pub short_writes: bool,
    /// Whether every write fails, and nothing else does.
    pub fail_writes: bool,
    /// Whether the disk is full: nothing can be made, and nothing written where no space was reserved.
    pub full: bool,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    content: Vec<u8>,
    /// As of the last sync.
    durable: Vec<u8>,
    /// Up to where space is reserved.
    reserved: usize,
}

type Folder = BTreeMap<PathBuf, usize>;

#[derive(Debug, Default)]
struct Inner {
    inodes: Vec<Inode>,
    now: Folder,
    /// States of the folders since the last sync of one, oldest first.
    history: Vec<Folder>,
    faults: Faults,
    crashes: u64,
    locked: bool,
    /// Syncs that have not come back.
    hang: bool,
    /// Syncs that come back and did nothing.
    lying: bool,
}

/// The file system; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct FakeDisk {
    inner: Arc<Mutex<Inner>>,
}

struct FakeFile {
    disk: FakeDisk,
    inode: usize,
    /// A file opened before a crash is dead.
    epoch: u64,
}

struct FakeLock(FakeDisk);

impl Drop for FakeLock {
    fn drop(&mut self) {
        self.0.inner().locked = false;
    }
}

impl FakeDisk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn set_faults(&self, faults: Faults) {
        self.inner().faults = faults;
    }

    /// From now on no sync returns, until it is set back.
    pub fn set_hang(&self, hang: bool) {
        self.inner().hang = hang;
    }

    /// From now on syncs say that all is well and do nothing, until it is set back.
    pub fn set_lying(&self, lying: bool) {
        self.inner().lying = lying;
    }

    /// Stops the machine: keeps what is durable and, of the rest, what `chance` says.
    pub fn crash(&self, mut chance: impl FnMut(usize) -> usize) {
        let mut inner = self.inner();
        inner.faults = Faults::default();
        inner.crashes += 1;
        let now = inner.now.clone();
        inner.history.push(now);
        let kept = chance(inner.history.len());
        inner.now = inner.history[kept].clone();
        inner.history.clear();
        for inode in &mut inner.inodes {
            if inode.content == inode.durable {
                continue;
            }
            let same = inode.content.iter().zip(&inode.durable).take_while(|(a, b)| a == b).count();
            if chance(4) > 0 {
                let keep = same + chance(inode.content.len() - same + 1);
                let mut torn = inode.content[..keep].to_vec();
                if chance(2) == 0 {
                    // The length reached the disk, a part of the data did not.
                    let hole = same + chance(keep - same + 1);
                    torn[hole..].fill(0);
                }
                inode.content = torn;
            } else {
                inode.content = inode.durable.clone();
            }
            inode.durable = inode.content.clone();
        }
    }

    /// Changes a durable file behind the spool's back.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.inner();
        let inode = inner.now[path];
        change(&mut inner.inodes[inode].content);
        inner.inodes[inode].durable = inner.inodes[inode].content.clone();
    }

    /// All files, without the folder part.
    pub fn files(&self) -> Vec<PathBuf> {
        self.inner().now.keys().cloned().collect()
    }

    pub fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let inner = self.inner();
        inner.now.iter().map(|(path, inode)| (path.clone(), inner.inodes[*inode].content.clone())).collect()
    }

    pub fn restore(&self, files: &BTreeMap<PathBuf, Vec<u8>>) {
        let mut inner = self.inner();
        inner.now.clear();
        for (path, content) in files {
            let inode = inner.inodes.len();
            inner.inodes.push(Inode { content: content.clone(), durable: content.clone(), reserved: content.len() });
            inner.now.insert(path.clone(), inode);
        }
        inner.history.clear();
    }
}

impl Inner {
    fn fault(&mut self) -> io::Result<()> {
        match &mut self.faults.after {
            None => Ok(()),
            Some(0) if self.faults.count > 0 => {
                self.faults.count -= 1;
                Err(io::Error::from_raw_os_error(self.faults.errno))
            }
            Some(0) => Ok(()),
            Some(after) => {
                *after -= 1;
                Ok(())
            }
        }
    }

    /// Whether space up to `end` can be had where there is some up to `reserved`.
    fn room(&self, reserved: usize, end: usize) -> io::Result<()> {
        match self.faults.full && end > reserved {
            true => Err(io::Error::from_raw_os_error(nix::libc::ENOSPC)),
            false => Ok(()),
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut Folder)) {
        let before = self.now.clone();
        self.history.push(before);
        change(&mut self.now);
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.now.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl FileSystem for FakeDisk {
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.inner();
        let inside = inner.now.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut inner = self.inner();
        inner.fault()?;
        inner.room(0, 1)?;
        let inode = inner.inodes.len();
        inner.inodes.push(Inode::default());
        inner.change(|folder| {
            folder.insert(path.to_owned(), inode);
        });
        Ok(Box::new(FakeFile { disk: self.clone(), inode, epoch: inner.crashes }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let inner = self.inner();
        let inode = inner.find(path)?;
        Ok(Box::new(FakeFile { disk: self.clone(), inode, epoch: inner.crashes }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.fault()?;
        let inode = inner.find(from)?;
        inner.change(|folder| {
            folder.remove(from);
            folder.insert(to.to_owned(), inode);
        });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.fault()?;
        inner.find(path)?;
        inner.change(|folder| {
            folder.remove(path);
        });
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        inner.fault()?;
        if !inner.lying {
            inner.history.clear();
        }
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<Option<Box<dyn Send>>> {
        if std::mem::replace(&mut self.inner().locked, true) {
            return Ok(None);
        }
        Ok(Some(Box::new(FakeLock(self.clone()))))
    }
}

impl FakeFile {
    fn inner(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.disk.inner();
        if inner.crashes == self.epoch { Ok(inner) } else { Err(io::Error::other("opened before the crash")) }
    }
}

impl DiskFile for FakeFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let inner = self.inner()?;
        let content = &inner.inodes[self.inode].content;
        let from = content.len().min(offset as usize);
        let len = buf.len().min(content.len() - from);
        buf[..len].copy_from_slice(&content[from..from + len]);
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let mut inner = self.inner()?;
        let len = if inner.faults.short_writes { buf.len().div_ceil(2) } else { buf.len() };
        // A failing write may leave a part behind.
        let refused = inner.faults.fail_writes.then(|| io::Error::from_raw_os_error(inner.faults.errno));
        let fault = refused.map_or_else(|| inner.fault(), Err);
        let len = if fault.is_err() { len / 2 } else { len };
        let end = offset as usize + len;
        let Inode { content, reserved, .. } = &inner.inodes[self.inode];
        inner.room(*reserved.max(&content.len()), end)?;
        let content = &mut inner.inodes[self.inode].content;
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset as usize..end].copy_from_slice(&buf[..len]);
        fault.map(|()| len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.inner()?.inodes[self.inode].content.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.inner()?;
        inner.fault()?;
        let inode = &mut inner.inodes[self.inode];
        inode.content.resize(len as usize, 0);
        inode.reserved = len as usize;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        while self.inner()?.hang {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let mut inner = self.inner()?;
        inner.fault()?;
        if inner.lying {
            return Ok(());
        }
        let inode = &mut inner.inodes[self.inode];
        inode.durable = inode.content.clone();
        Ok(())
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        let mut inner = self.inner()?;
        inner.fault()?;
        let len = len as usize;
        inner.room(inner.inodes[self.inode].reserved, len)?;
        inner.inodes[self.inode].reserved = len;
        Ok(())
    }
}
