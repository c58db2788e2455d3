//! Reading a host that its last user may have filled with traps.
//!
//! Everything is found by `openat2` inside the root, first as a mere place (`O_PATH`, which opens no device, wakes no FIFO and
//! waits for nobody), and opened for reading only once it is known to be a regular file or a folder. A magic link leads nowhere.

use std::{
    fs::File,
    io::{self, Read as _},
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, fstat, open, openat, openat2, readlinkat},
    io::Errno,
};

use super::take::Limits;

/// Attempts when a path changes while it is resolved (`EAGAIN` of `openat2`).
const RESOLVE_ATTEMPTS: u32 = 8;

/// Room for folder entries in one system call, bytes.
const FOLDER_BUFFER: usize = 32 * 1024;

/// A host's files under one root.
#[derive(Debug)]
pub(super) struct Host {
    root: OwnedFd,
    root_path: Vec<u8>,
    pub(super) limits: Limits,
    bytes_left: AtomicU64,
}

/// A place in the file system, held, so that what is learnt of it and what is read from it are of the same file.
#[derive(Debug)]
pub(super) struct Place {
    fd: OwnedFd,
    pub(super) stat: Stat,
}

impl Place {
    fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let stat = fstat(&fd)?;
        Ok(Self { fd, stat })
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Where a symbolic link points.
    pub(super) fn target(&self) -> Result<Vec<u8>, Errno> {
        Ok(readlinkat(&self.fd, "", Vec::new())?.into_bytes())
    }
}

/// The beginning of a file.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) bytes: Vec<u8>,
    /// Nothing was left out.
    pub(super) whole: bool,
}

/// Names in a folder, sorted.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) names: Vec<Vec<u8>>,
    /// None were left out.
    pub(super) whole: bool,
}

impl Host {
    pub(super) fn open(root: &Path, limits: Limits) -> Result<Self, Errno> {
        let root_path = root.as_os_str().as_bytes().to_vec();
        let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let bytes_left = AtomicU64::new(limits.total_bytes);
        Ok(Self { root, root_path, limits, bytes_left })
    }

    /// What is at `path` itself, a link included; `None` where nothing is.
    pub(super) fn look(&self, path: &[u8]) -> Result<Option<Place>, Errno> {
        self.resolve(path, OFlags::NOFOLLOW)
    }

    /// What `path` leads to.
    pub(super) fn follow(&self, path: &[u8]) -> Result<Option<Place>, Errno> {
        self.resolve(path, OFlags::empty())
    }

    fn resolve(&self, path: &[u8], extra: OFlags) -> Result<Option<Place>, Errno> {
        let flags = OFlags::PATH | OFlags::CLOEXEC | extra;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut result = Err(Errno::AGAIN);
        for _ in 0..RESOLVE_ATTEMPTS {
            result = openat2(&self.root, path, flags, Mode::empty(), resolve);
            if !matches!(result, Err(Errno::AGAIN)) {
                break;
            }
        }
        match result {
            Ok(fd) => Place::new(fd).map(Some),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a regular file up to the limits of one file and of all together; anything else is [`Errno::INVAL`].
    pub(super) fn read(&self, place: &Place) -> Result<Contents, Errno> {
        if place.kind() != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        let limit = self.limits.file_bytes.min(self.bytes_left.load(Ordering::Relaxed));
        // Without waiting: somebody may hold a lease on it.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = open(format!("/proc/self/fd/{}", place.fd.as_raw_fd()), flags, Mode::empty())?;
        let mut bytes = Vec::new();
        File::from(file).take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(errno)?;
        let read = bytes.len() as u64;
        bytes.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        // Concurrent steps may both take the last bytes; the limit is there to bound, not to be exact.
        self.bytes_left.fetch_sub(read.min(limit), Ordering::Relaxed);
        Ok(Contents { whole: read <= limit, bytes })
    }

    /// The content of the regular file that `path` leads to; `None` where there is nothing.
    pub(super) fn read_path(&self, path: &[u8]) -> Result<Option<Contents>, Errno> {
        self.follow(path)?.map(|place| self.read(&place)).transpose()
    }

    /// `path` as seen from outside of the root. Links in it are followed wherever they lead, so only for what was reached without any.
    pub(super) fn outer_path(&self, path: &[u8]) -> Vec<u8> {
        [self.root_path.strip_suffix(b"/").unwrap_or(&self.root_path), path].concat()
    }

    /// Names in a folder, up to the limit.
    pub(super) fn names(&self, place: &Place) -> Result<Names, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(&place.fd, ".", flags, Mode::empty())?;
        let mut buffer = vec![MaybeUninit::uninit(); FOLDER_BUFFER];
        let mut entries = RawDir::new(&folder, &mut buffer);
        let mut names = Vec::new();
        let mut whole = true;
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            if names.len() >= self.limits.folder_names {
                whole = false;
                break;
            }
            names.push(name.to_vec());
        }
        names.sort_unstable();
        Ok(Names { names, whole })
    }
}

/// What kind of thing a place is, for people.
pub(super) fn kind_word(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "folder",
        FileType::Symlink => "link",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "thing of unknown kind",
    }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Opens a folder that the walk starts at, for reading.
pub(super) fn open_start(host: &Host, path: &[u8]) -> Result<Option<(OwnedFd, FileType)>, Errno> {
    let Some(place) = host.follow(path)? else { return Ok(None) };
    if place.kind() != FileType::Directory {
        return Ok(Some((place.fd, FileType::RegularFile)));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(Some((openat(&place.fd, ".", flags, Mode::empty())?, FileType::Directory)))
}

/// Opens `name` in `folder` if it is a folder on the same mount and no link.
pub(super) fn open_child(folder: &OwnedFd, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(folder, name, flags, Mode::empty(), ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS)
}
