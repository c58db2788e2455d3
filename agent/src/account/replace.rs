//! Replaces a file so that a reader, and what starts after a crash, sees the old one or the new one, whole.
//!
//! Every step that the disk can see is announced to a [`Checkpoint`] first, so that tests can stop a run between any two.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};

use crate::regular;

/// Largest set of extended attribute names, and largest attribute, that is carried over, bytes: the kernel's own limit.
const XATTR_MAX: usize = 64 * 1024;

/// A step that the disk can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The new file is made, empty, beside the old one.
    Create,
    /// Content, owner and mode are written.
    Write,
    /// The new file is made durable.
    SyncFile,
    /// It takes the old one's place.
    Rename,
    /// That is made durable.
    SyncFolder,
    /// A file is removed.
    Remove,
    /// A copy is mounted over the file.
    Mount,
    /// Such a copy is taken away.
    Unmount,
}

/// Called before every step; an error stops there.
pub trait Checkpoint: Send + Sync {
    /// The step that is about to be done, and the file that it is about.
    fn before(&self, step: Step, path: &Path) -> io::Result<()>;
}

/// Lets every step pass.
pub struct NoCheckpoint;

impl Checkpoint for NoCheckpoint {
    fn before(&self, _: Step, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// What the new file looks like from outside.
pub enum Like<'a> {
    /// As this open file: owner, mode and, as far as the file system allows, extended attributes.
    File(&'a File),
    /// The caller's, with this mode.
    Mode(u32),
}

/// Whether a file has to outlive the running kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// Content and name are on the disk when the call returns.
    Durable,
    /// A file that means nothing after a reboot: it is not waited for the disk.
    ThisBoot,
}

/// Replaces `path`, which need not exist. The caller keeps others from doing the same at once.
pub fn replace(
    path: &Path,
    content: &[u8],
    like: Like<'_>,
    lasting: Lasting,
    checkpoint: &dyn Checkpoint,
) -> io::Result<()> {
    let new = beside(path)?;
    let result = write_beside(&new, content, like, lasting, checkpoint).and_then(|()| {
        checkpoint.before(Step::Rename, path)?;
        fs::rename(&new, path)
    });
    if result.is_err() {
        // Nothing has happened to `path`; what is left of the attempt is removed by the next one if not now.
        let _ = fs::remove_file(&new);
        return result;
    }
    sync_folder(path, lasting, checkpoint)
}

/// Has finished files take the places of others, each `(new, place)`, one after the other, all in one folder: what they hold is on the disk
/// before the first name changes, and the names are when the call returns.
pub fn take_places(pairs: &[(&Path, &Path)], checkpoint: &dyn Checkpoint) -> io::Result<()> {
    for (new, _) in pairs {
        checkpoint.before(Step::SyncFile, new)?;
        // Another program made them.
        regular::open(new)?.sync_all()?;
    }
    for (new, place) in pairs {
        checkpoint.before(Step::Rename, place)?;
        fs::rename(new, place)?;
    }
    pairs.last().map_or(Ok(()), |(_, place)| sync_folder(place, Lasting::Durable, checkpoint))
}

/// Removes `path`. A file that is not there is no error.
pub fn remove(path: &Path, lasting: Lasting, checkpoint: &dyn Checkpoint) -> io::Result<()> {
    checkpoint.before(Step::Remove, path)?;
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path, lasting, checkpoint),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// `.NAME.breakglass-new` in the same folder.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let mut new = std::ffi::OsString::from(".");
    new.push(name);
    new.push(".breakglass-new");
    Ok(path.with_file_name(new))
}

fn write_beside(
    new: &Path,
    content: &[u8],
    like: Like<'_>,
    lasting: Lasting,
    checkpoint: &dyn Checkpoint,
) -> io::Result<()> {
    checkpoint.before(Step::Create, new)?;
    // Left over from a crash; `create_new` would follow no link, but would not overwrite either.
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(new)?;
    checkpoint.before(Step::Write, new)?;
    match like {
        Like::File(old) => resemble(&file, old)?,
        Like::Mode(mode) => file.set_permissions(fs::Permissions::from_mode(mode))?,
    }
    file.write_all(content)?;
    if lasting == Lasting::ThisBoot {
        return Ok(());
    }
    checkpoint.before(Step::SyncFile, new)?;
    file.sync_all()
}

fn resemble(new: &File, old: &File) -> io::Result<()> {
    let meta = old.metadata()?;
    fchown(new, Some(meta.uid()), Some(meta.gid()))?;
    new.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    if let Err(error) = copy_xattrs(new, old) {
        // Not every file system has them, and a login matters more than a label.
        tracing::warn!(%error, "extended attributes could not be carried over");
    }
    Ok(())
}

fn copy_xattrs(new: &File, old: &File) -> io::Result<()> {
    let mut names = vec![0; XATTR_MAX];
    let length = match flistxattr(old, &mut names) {
        Err(rustix::io::Errno::NOTSUP) => 0,
        other => other?,
    };
    let mut value = vec![0; XATTR_MAX];
    for name in names.get(..length).unwrap_or_default().split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let size = fgetxattr(old, name, &mut value)?;
        fsetxattr(new, name, value.get(..size).unwrap_or_default(), XattrFlags::empty())?;
    }
    Ok(())
}

fn sync_folder(path: &Path, lasting: Lasting, checkpoint: &dyn Checkpoint) -> io::Result<()> {
    if lasting == Lasting::ThisBoot {
        return Ok(());
    }
    checkpoint.before(Step::SyncFolder, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Notes the steps.
    #[derive(Clone, Default)]
    pub(crate) struct Steps(pub(crate) Arc<Mutex<Vec<Step>>>);

    impl Checkpoint for Steps {
        fn before(&self, step: Step, _: &Path) -> io::Result<()> {
            self.0.lock().unwrap().push(step);
            Ok(())
        }
    }

    #[test]
    fn what_files_hold_is_on_the_disk_before_any_takes_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "b", "to a", "to b"].map(|name| dir.path().join(name));
        let [a, b, to_a, to_b] = &paths;
        fs::write(a, "1").unwrap();
        fs::write(b, "2").unwrap();
        fs::write(to_b, "old").unwrap();
        let steps = Steps::default();
        take_places(&[(a, to_a), (b, to_b)], &steps).unwrap();
        use Step::{Rename, SyncFile, SyncFolder};
        assert_eq!(*steps.0.lock().unwrap(), [SyncFile, SyncFile, Rename, Rename, SyncFolder]);
        assert_eq!((fs::read(to_a).unwrap(), fs::read(to_b).unwrap()), (b"1".to_vec(), b"2".to_vec()));
        assert!(take_places(&[(a, to_a), (to_b, b)], &NoCheckpoint).is_err() && !b.exists(), "one that is not there");
    }
}
