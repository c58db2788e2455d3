//! Files of the host that somebody with root may have put a trap in the place of: a FIFO, whose opener waits for ever, or a link to a
//! device that never ends.
//!
//! So what is opened here is a regular file, opening it waits for nobody, and no more of it is read than a limit. It is looked at first:
//! opening a device may already do something. Links are followed, as administrators and distributions set them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use nix::libc;

/// No waiting, also for those files of the kernel's that only look regular (`/proc/kmsg`), and no terminal of our own. std adds
/// `O_CLOEXEC`.
const FLAGS: i32 = libc::O_NONBLOCK | libc::O_NOCTTY;

/// Opens a regular file for reading; anything else is [`io::ErrorKind::InvalidData`].
pub fn open(path: &Path) -> io::Result<File> {
    check(&fs::metadata(path)?)?;
    let file = OpenOptions::new().read(true).custom_flags(FLAGS).open(path)?;
    // It may be another than the one that was looked at.
    check(&file.metadata()?)?;
    Ok(file)
}

/// The whole content; a file of more than `limit` bytes is [`io::ErrorKind::InvalidData`].
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    content(&open(path)?, limit)
}

/// The same as text.
pub fn read_to_string(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|error| invalid(format!("it is not UTF-8: {error}")))
}

/// What is left to read of a file that [`open`] opened.
pub fn content(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(invalid(format!("it is larger than {limit} bytes"))),
        false => Ok(bytes),
    }
}

/// Opens a file whose only use is to be locked, and makes it where there is none, mode 0600. A link in its place is an error: nobody has
/// a reason to set one.
pub fn open_lock(path: &Path) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => check(&found?)?,
    }
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(FLAGS | libc::O_NOFOLLOW)
        .open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

fn check(meta: &fs::Metadata) -> io::Result<()> {
    match meta.is_file() {
        true => Ok(()),
        false => Err(invalid("not a regular file; find out who put it there, and remove it".to_owned())),
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{os::unix::fs::symlink, time::Duration};

    use super::*;
    use crate::blocking;

    /// Puts a FIFO there, in place of what is.
    pub(crate) fn trap(path: &Path) {
        let _ = fs::remove_file(path);
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    }

    /// What `act` comes to, where it does not walk into a trap.
    pub(crate) fn untrapped<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
        blocking::within(Duration::from_secs(20), act).expect("it waits for a FIFO")
    }

    #[test]
    fn what_is_no_file_is_not_waited_for_and_what_is_large_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), [b'x'; 16]).unwrap();
        fs::write(at("large"), [b'x'; 17]).unwrap();
        symlink("file", at("link")).unwrap();
        symlink("/dev/zero", at("endless")).unwrap();
        trap(&at("fifo"));
        symlink("fifo", at("link to fifo")).unwrap();
        let kind = |name: &str| {
            let path = at(name);
            untrapped(move || read(&path, 16)).map_err(|error| error.kind())
        };
        assert_eq!((kind("file"), kind("link")), (Ok(vec![b'x'; 16]), Ok(vec![b'x'; 16])));
        for name in ["large", "endless", "fifo", "link to fifo", "."] {
            assert_eq!(kind(name), Err(io::ErrorKind::InvalidData), "{name}");
        }
        assert_eq!(kind("none"), Err(io::ErrorKind::NotFound));
        fs::write(at("file"), b"\xff").unwrap();
        assert_eq!(read_to_string(&at("file"), 16).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_lock_is_a_file_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert!(open_lock(&at("new")).is_ok() && open_lock(&at("new")).is_ok());
        symlink("new", at("link")).unwrap();
        trap(&at("fifo"));
        for name in ["link", "fifo", "."] {
            let path = at(name);
            assert!(untrapped(move || open_lock(&path)).is_err(), "{name}");
        }
    }
}
