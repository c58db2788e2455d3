//! The only code that unlocks or locks the emergency account.
//!
//! Two independent ways in are shut and opened: the account's line in the shadow file, and the key source that sshd asks.
//! Opening writes the key last, shutting removes it first, so that a crash between the two leaves nobody a way in.
//! Where the shadow file cannot be replaced, opening mounts a changed copy over it ([`overlay`]).
//! Everything here blocks, on the disk and for at most [`pwd_lock::WAIT`] on others who change the account files.
//!
//! *Invariant:* only the account's own line changes, and the shadow file is replaced, never written in place.

pub mod keys;
pub mod overlay;
pub mod pwd_lock;
pub mod replace;
pub mod shadow;
#[cfg(test)]
mod tests;

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::libc;

use self::{
    keys::KeyGrant,
    overlay::Overlay,
    pwd_lock::{LockError, PwdLock},
    replace::{Checkpoint, Lasting, Like, NoCheckpoint},
    shadow::{ShadowError, State},
};

/// Largest passwd or shadow file that is read, bytes: a hundred thousand accounts.
const FILE_MAX: u64 = 16 << 20;

/// How long enabling waits for a program that holds the account files, before it goes round them: an operator is waiting.
const ENABLE_WAIT: Duration = Duration::from_secs(1);

/// By which way the account was enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Its line in the shadow file.
    Shadow,
    /// A copy of the shadow file, mounted over it.
    Overlay,
}

/// Why the account cannot be found, unlocked or locked.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The account does not exist or cannot be an emergency account.
    #[error("the account {name:?} cannot be used: {message}")]
    Unusable {
        /// Its name.
        name: String,
        /// Why not.
        message: String,
    },
    /// The shadow file is not what it should be; nothing was changed.
    #[error("{path} is left as it is: {source}")]
    Shadow {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ShadowError,
    },
    /// Another program held the account files.
    #[error(
        "another program has held {path} for {} s (passwd, useradd or vipw?); end it and try again",
        waited.as_secs()
    )]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Of several steps, each done whatever became of the others, some failed.
    #[error("{0}; and {1}")]
    Several(Box<AccountError>, Box<AccountError>),
}

/// The emergency account of this host.
pub struct Account {
    name: String,
    uid: u32,
    shadow: PathBuf,
    keys: PathBuf,
    overlay: Overlay,
    wait: Duration,
    enable_wait: Duration,
    checkpoint: Box<dyn Checkpoint>,
}

impl Account {
    /// Looks the account up, in the passwd file beside the shadow file: name services may be down when the glass is broken.
    pub fn find(config: &crate::config::Account, runtime: &Path) -> Result<Self, AccountError> {
        let unusable = |message: &str| AccountError::Unusable { name: config.name.clone(), message: message.into() };
        let keys = keys::path_for(runtime, &config.name)
            .ok_or_else(|| unusable("its name has characters that account names do not have"))?;
        let passwd = config.shadow.with_file_name("passwd");
        let (content, _) = read_bounded(&passwd)?;
        let uid =
            uid_of(&content, &config.name).map_err(|message| unusable(&format!("{message} ({})", passwd.display())))?;
        Ok(Self {
            name: config.name.clone(),
            uid,
            shadow: config.shadow.clone(),
            keys,
            overlay: Overlay::new(&config.shadow, runtime),
            wait: pwd_lock::WAIT,
            enable_wait: ENABLE_WAIT,
            checkpoint: Box::new(NoCheckpoint),
        })
    }

    /// Its login name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its user id; never 0.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Lets the keys in until their deadline. The caller has made its intent durable before. If it fails, the account is locked again
    /// as far as that goes; the caller locks in any case.
    pub fn enable(&self, grant: &KeyGrant) -> Result<Way, AccountError> {
        let way = self.enable_shadow()?;
        match keys::write(&self.keys, grant, self.checkpoint.as_ref()) {
            Ok(()) => Ok(way),
            Err(error) => {
                let error = self.io("write the key", &self.keys, error);
                Err(match self.lock() {
                    Ok(()) => error,
                    Err(second) => AccountError::Several(Box::new(error), Box::new(second)),
                })
            }
        }
    }

    /// Shuts both ways in: the key source first, then the account. Each is done whatever becomes of the other. Changes nothing
    /// that is shut already.
    pub fn lock(&self) -> Result<(), AccountError> {
        let keys =
            keys::remove(&self.keys, self.checkpoint.as_ref()).map_err(|e| self.io("remove the key", &self.keys, e));
        let overlay = self.overlay.unmount(self.checkpoint.as_ref()).map(drop);
        let overlay = overlay.map_err(|e| self.io("take away the copy mounted over", &self.shadow, e));
        let shadow = self.edit_shadow(shadow::lock, self.wait);
        let failed = [keys, overlay, shadow].into_iter().filter_map(Result::err);
        match failed.reduce(|first, second| AccountError::Several(Box::new(first), Box::new(second))) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// What the shadow file says.
    pub fn state(&self) -> Result<State, AccountError> {
        let (content, _) = read_bounded(&self.shadow)?;
        shadow::state(&content, &self.name).map_err(|e| self.refused(e))
    }

    /// Whether the key source holds a file, good or not.
    pub fn has_key(&self) -> bool {
        self.keys.symlink_metadata().is_ok()
    }

    fn enable_shadow(&self) -> Result<Way, AccountError> {
        let error = match self.edit_shadow(shadow::enable, self.enable_wait) {
            Ok(()) => return Ok(Way::Shadow),
            Err(error @ (AccountError::Io { .. } | AccountError::Busy { .. })) => error,
            Err(error) => return Err(error),
        };
        tracing::warn!(%error, "the shadow file cannot be changed; a copy is mounted over it");
        self.mount_enabled().map(|()| Way::Overlay).map_err(|e| AccountError::Several(Box::new(error), Box::new(e)))
    }

    fn mount_enabled(&self) -> Result<(), AccountError> {
        let (old, file) = read_bounded(&self.shadow)?;
        let new = shadow::enable(&old, &self.name).map_err(|e| self.refused(e))?;
        let mounted = self.overlay.mount(&new, &file, self.checkpoint.as_ref());
        mounted.map_err(|e| self.io("mount a copy over", &self.shadow, e))
    }

    fn edit_shadow(
        &self,
        edit: impl Fn(&[u8], &str) -> Result<Vec<u8>, ShadowError>,
        wait: Duration,
    ) -> Result<(), AccountError> {
        // Where nothing is to be done nothing is needed: the lock cannot be had on a read-only disk.
        let (old, _) = read_bounded(&self.shadow)?;
        if edit(&old, &self.name).map_err(|e| self.refused(e))? == old {
            return Ok(());
        }
        let lock = pwd_lock::path_beside(&self.shadow);
        let _held = PwdLock::take(&lock, wait).map_err(|e| match e {
            LockError::Busy => AccountError::Busy { path: lock.clone(), waited: wait },
            LockError::Io(e) => self.io("lock", &lock, e),
        })?;
        let (old, file) = read_bounded(&self.shadow)?;
        let new = edit(&old, &self.name).map_err(|e| self.refused(e))?;
        if new == old {
            return Ok(());
        }
        replace::replace(&self.shadow, &new, Like::File(&file), Lasting::Durable, self.checkpoint.as_ref())
            .map_err(|e| self.io("replace", &self.shadow, e))
    }

    fn refused(&self, source: ShadowError) -> AccountError {
        AccountError::Shadow { path: self.shadow.clone(), source }
    }

    fn io(&self, what: &'static str, path: &Path, source: io::Error) -> AccountError {
        AccountError::Io { what, path: path.to_owned(), source }
    }
}

/// Reads a regular file, not through a link: what is replaced must be what was read.
fn read_bounded(path: &Path) -> Result<(Vec<u8>, File), AccountError> {
    let fail = |source| AccountError::Io { what: "read", path: path.to_owned(), source };
    let invalid = |message: &str| fail(io::Error::new(io::ErrorKind::InvalidData, message.to_owned()));
    let mut file =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).map_err(fail)?;
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(invalid("not a regular file"));
    }
    let mut content = Vec::new();
    file.by_ref().take(FILE_MAX + 1).read_to_end(&mut content).map_err(fail)?;
    if content.len() as u64 > FILE_MAX {
        return Err(invalid("larger than any account file"));
    }
    Ok((content, file))
}

/// The user id in a `passwd(5)` file.
fn uid_of(passwd: &[u8], name: &str) -> Result<u32, String> {
    let lines: Vec<&[u8]> = passwd
        .split(|byte| *byte == b'\n')
        .filter(|line| line.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b':')))
        .collect();
    let line = match lines.as_slice() {
        [line] => line,
        [] => return Err("there is no such account; make it with useradd".into()),
        more => return Err(format!("it is listed {} times; remove all but one (pwck)", more.len())),
    };
    let uid = line.split(|byte| *byte == b':').nth(2).and_then(|uid| std::str::from_utf8(uid).ok());
    match uid.and_then(|uid| uid.parse().ok()) {
        Some(0) => Err("it has user id 0; the emergency account must not be root".into()),
        Some(uid) => Ok(uid),
        None => Err("its line is damaged; mend it (pwck)".into()),
    }
}
