//! The signing key at rest, behind a seam: [`KeyStore`] for whatever keeps it, [`FileKeys`] for files.
//!
//! # Files
//!
//! One folder, mode 0700, all files 0600; integers are little-endian.
//!
//! | name | content |
//! |---|---|
//! | `current` | the key in use |
//! | `next` | the key that takes its place; there only during a change |
//! | `links` | every link of the chain of keys, signed statements of 280 bytes, oldest first; public |
//! | `host-key.pub` | the host key, 64 hexadecimal digits and a line feed; public |
//! | `renew` | an administrator asks for a new host key at the next start |
//! | `damaged-N` | a key file that could not be read, as it was found |
//!
//! A key file is `BGK1`, host key (32), epoch (8), secret (32), link (a byte 0, or 1 and 280 bytes), renewal (the same), and
//! the first 8 bytes of the SHA-256 of all before.
//!
//! # Changing the key
//!
//! 1. The new pair is made in memory; the old key signs the link that names it.
//! 2. `next` is written with new secret and link, synced, and its name synced.
//! 3. The link is appended to `links` and synced.
//! 4. `current` is overwritten with zeros and synced: the old secret is gone.
//! 5. `next` is renamed to `current` and the folder synced. Only now the new key signs anything.
//!
//! A crash before 2 is complete leaves the old key in use, and the link, which nobody has seen, never existed. A crash after it is
//! finished by the next start, from step 3. So there is one successor to every key, ever. Whoever uses the store announces the
//! last link again after every start, since it may have been made durable here without reaching the record.
//!
//! Overwriting is what a file system lets a program do. On flash, on copy-on-write file systems and in snapshots old blocks may live
//! on; against somebody who reads the raw medium only full-disk encryption or a key in hardware helps.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use breakglass_api::checkpoint::{Kind, PublicKey, SIGNATURE_LEN, Signed};
use ed25519_dalek::{Signer, SigningKey};
use rand::RngCore;
use zeroize::Zeroizing;

use super::state::{FILE_MAX, KeyState, LINK_LEN};
use crate::spool::{Disk, DiskFile, OsDisk, read_full, read_small, remove_if_there, write_all};

const CURRENT: &str = "current";
const NEXT: &str = "next";
const LINKS: &str = "links";
const HOST_KEY: &str = "host-key.pub";
/// Name of the wish for a new host key.
pub const RENEW: &str = "renew";
/// Damaged key files that are kept; further ones take the last one's place.
const DAMAGED_MAX: u32 = 16;

/// Why the key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Steps out of order; a mistake of this program.
    #[error("the link does not name the key that was prepared")]
    Order,
    /// Something failed in the middle of a change; only reading the files again tells what holds.
    #[error("an earlier change of the key failed halfway")]
    Halfway,
}

/// How the key came to be in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// There was none.
    FirstStart,
    /// It was there.
    Kept,
    /// There was one and it could not be read.
    Lost,
}

/// Where the signing key is kept. It never leaves; a store may be a chip.
pub trait KeyStore: Send {
    /// Public key of epoch 0.
    fn host_key(&self) -> PublicKey;
    /// Epoch of the key in use.
    fn epoch(&self) -> u64;
    /// Its public half.
    fn public(&self) -> PublicKey;
    /// How it came to be in use when the store was opened.
    fn origin(&self) -> Origin;
    /// Signs with the key in use.
    fn sign(&self, input: &[u8]) -> Result<[u8; SIGNATURE_LEN], KeyError>;
    /// Makes the pair that is to come next and returns its public half. The key in use stays in use.
    fn prepare(&mut self) -> Result<PublicKey, KeyError>;
    /// Destroys the key in use and puts the prepared one in its place, as `link` says: as the next epoch, or as a new host key. When
    /// this returns, the old key is gone and `link` is durable.
    fn advance(&mut self, link: &Signed) -> Result<(), KeyError>;
    /// Sorts out what a change that failed halfway left. Whether there was anything, so that another key may be in use now.
    fn mend(&mut self) -> Result<bool, KeyError>;
    /// The last links of this chain of keys, oldest first, at most `max`.
    fn links(&self, max: usize) -> Result<Vec<Signed>, KeyError>;
    /// The last statement of the chain that this one replaced.
    fn renewal(&self) -> Option<Signed>;
    /// Whether an administrator asks for a new host key.
    fn wants_renewal(&self) -> bool;
}

/// The key in files.
pub struct FileKeys {
    disk: Disk,
    dir: PathBuf,
    state: KeyState,
    origin: Origin,
    prepared: Option<SigningKey>,
    halfway: bool,
}

impl FileKeys {
    /// Opens the folder, finishes what a crash interrupted, and makes a first key where there is none.
    pub fn open(dir: &Path) -> Result<Self, KeyError> {
        Self::open_on(Arc::new(OsDisk), dir)
    }

    /// As [`Self::open`], on any file system.
    pub fn open_on(disk: Disk, dir: &Path) -> Result<Self, KeyError> {
        disk.create_dir(dir).map_err(io_error("make", dir))?;
        let files = Files { disk: &disk, dir };
        let next = files.read(NEXT)?.and_then(|bytes| KeyState::decode(&bytes));
        let current = files.read(CURRENT)?.map(|bytes| KeyState::decode(&bytes));
        let (state, origin) = match (next, current) {
            (Some(next), _) => {
                files.complete(&next)?;
                (next, Origin::Kept)
            }
            (None, Some(Some(current))) => {
                files.remove(NEXT)?;
                files.append_link(&current)?;
                (current, Origin::Kept)
            }
            (None, Some(None)) => {
                files.set_aside(CURRENT)?;
                (files.first()?, Origin::Lost)
            }
            (None, None) => (files.first()?, Origin::FirstStart),
        };
        files.publish(&state)?;
        Ok(Self { dir: dir.to_owned(), state, origin, prepared: None, halfway: false, disk })
    }

    fn files(&self) -> Files<'_> {
        Files { disk: &self.disk, dir: &self.dir }
    }
}

impl KeyStore for FileKeys {
    fn host_key(&self) -> PublicKey {
        self.state.host_key
    }

    fn epoch(&self) -> u64 {
        self.state.epoch
    }

    fn public(&self) -> PublicKey {
        self.state.key.verifying_key().to_bytes()
    }

    fn origin(&self) -> Origin {
        self.origin
    }

    fn sign(&self, input: &[u8]) -> Result<[u8; SIGNATURE_LEN], KeyError> {
        // Which key holds is known only after the files were read again.
        if self.halfway { Err(KeyError::Halfway) } else { Ok(self.state.key.sign(input).to_bytes()) }
    }

    fn prepare(&mut self) -> Result<PublicKey, KeyError> {
        let key = new_key();
        let public = key.verifying_key().to_bytes();
        self.prepared = Some(key);
        Ok(public)
    }

    fn advance(&mut self, link: &Signed) -> Result<(), KeyError> {
        if self.halfway {
            return Err(KeyError::Halfway);
        }
        let key = self.prepared.take().ok_or(KeyError::Order)?;
        let next = self.state.after(link, key).ok_or(KeyError::Order)?;
        self.halfway = true;
        let files = self.files();
        files.write(NEXT, &next.encode())?;
        files.complete(&next)?;
        if matches!(link.statement.kind, Kind::NewHostKey(_)) {
            files.publish(&next)?;
        }
        self.state = next;
        self.halfway = false;
        Ok(())
    }

    fn mend(&mut self) -> Result<bool, KeyError> {
        if !self.halfway {
            return Ok(false);
        }
        let origin = self.origin;
        *self = Self::open_on(Arc::clone(&self.disk), &self.dir)?;
        self.origin = origin;
        Ok(true)
    }

    fn links(&self, max: usize) -> Result<Vec<Signed>, KeyError> {
        let mut links = self.files().last_links(max)?;
        links.retain(|link| link.statement.host_key == self.state.host_key);
        Ok(links)
    }

    fn renewal(&self) -> Option<Signed> {
        self.state.renewal.clone()
    }

    fn wants_renewal(&self) -> bool {
        matches!(self.files().read(RENEW), Ok(Some(_)))
    }
}

fn new_key() -> SigningKey {
    let mut secret = Zeroizing::new([0; 32]);
    rand::rng().fill_bytes(secret.as_mut());
    SigningKey::from_bytes(&secret)
}

fn io_error(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> KeyError {
    let path = path.into();
    move |source| KeyError::Io { doing, path, source }
}

/// Whether the last of `whole` links is one that a crash left half written: at its full length, but signed neither by the key that the one
/// before it names nor, as the first of a chain is (the one before may be of a chain whose key was lost), by its own host key. All others
/// were durable before it was begun.
fn is_torn(file: &dyn DiskFile, whole: u64) -> io::Result<bool> {
    let wanted = whole.min(2);
    let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(0) * LINK_LEN];
    let got = read_full(file, &mut bytes, (whole - wanted) * LINK_LEN as u64)?;
    bytes.truncate(got);
    let links: Vec<_> = bytes.chunks_exact(LINK_LEN).map(|link| Signed::parse(link).ok()).collect();
    let is_first = |link: &Signed| link.statement.epoch == 0 && link.verify(&link.statement.host_key).is_ok();
    Ok(match links.as_slice() {
        [] => false,
        [.., None] => true,
        [Some(last)] => !is_first(last),
        [.., Some(before), Some(last)] => match before.statement.kind {
            Kind::NextKey(key) | Kind::NewHostKey(key) => last.verify(&key).is_err() && !is_first(last),
            Kind::Checkpoint => false,
        },
        // The one before is damaged otherwise, so that nothing can be said of the last.
        [.., None, Some(_)] => false,
    })
}

/// The folder.
struct Files<'a> {
    disk: &'a Disk,
    dir: &'a Path,
}

impl Files<'_> {
    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
        let path = self.dir.join(name);
        read_small(self.disk.as_ref(), &path, FILE_MAX)
            .map(|bytes| bytes.map(Zeroizing::new))
            .map_err(io_error("read", path))
    }

    /// Writes a file in place and makes it durable, its name too.
    fn write(&self, name: &str, content: &[u8]) -> Result<(), KeyError> {
        let path = self.dir.join(name);
        let write = || {
            let file = self.disk.create(&path)?;
            write_all(file.as_ref(), content, 0)?;
            file.sync()?;
            self.disk.sync_dir(self.dir)
        };
        write().map_err(io_error("write", path.clone()))
    }

    fn remove(&self, name: &str) -> Result<(), KeyError> {
        let path = self.dir.join(name);
        remove_if_there(self.disk.as_ref(), &path).map_err(io_error("remove", path))
    }

    /// A first key. It is in use once it has its name.
    fn first(&self) -> Result<KeyState, KeyError> {
        let state = KeyState::first(new_key());
        self.write(NEXT, &state.encode())?;
        self.complete(&state)?;
        Ok(state)
    }

    /// Steps 3 to 5 of a change; `next` is durable.
    fn complete(&self, next: &KeyState) -> Result<(), KeyError> {
        self.append_link(next)?;
        self.wipe(CURRENT)?;
        let path = self.dir.join(CURRENT);
        let renamed = self.disk.rename(&self.dir.join(NEXT), &path).and_then(|()| self.disk.sync_dir(self.dir));
        renamed.map_err(io_error("put in place", path))
    }

    /// Tells people the host key, and forgets the wish for a new one where this is it.
    fn publish(&self, state: &KeyState) -> Result<(), KeyError> {
        let line = format!("{}\n", hex::encode(state.host_key));
        // A full disk is no reason to go without keys.
        if self.read(HOST_KEY)?.is_none_or(|told| *told != line.as_bytes()) {
            self.write(HOST_KEY, line.as_bytes())?;
        }
        if state.epoch == 0 && state.renewal.is_some() { self.remove(RENEW) } else { Ok(()) }
    }

    fn wipe(&self, name: &str) -> Result<(), KeyError> {
        let path = self.dir.join(name);
        let wipe = || {
            let file = match self.disk.open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                opened => opened?,
            };
            let len = usize::try_from(file.len()?).unwrap_or(FILE_MAX).min(FILE_MAX);
            write_all(file.as_ref(), &vec![0; len], 0)?;
            file.sync()
        };
        wipe().map_err(io_error("overwrite", path.clone()))
    }

    /// Appends the link of `state` unless it is the last one already.
    fn append_link(&self, state: &KeyState) -> Result<(), KeyError> {
        let Some(link) = &state.link else { return Ok(()) };
        if self.last_links(1)?.last() == Some(link) {
            return Ok(());
        }
        let path = self.dir.join(LINKS);
        let append = || {
            let file = match self.disk.open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.disk.create(&path)?,
                opened => opened?,
            };
            // A torn end is written over.
            let whole = file.len()? / LINK_LEN as u64;
            let good = if is_torn(file.as_ref(), whole)? { whole - 1 } else { whole };
            write_all(file.as_ref(), &link.encode(), good * LINK_LEN as u64)?;
            file.sync()?;
            self.disk.sync_dir(self.dir)
        };
        append().map_err(io_error("append to", path.clone()))
    }

    /// The last links that can be read, oldest first.
    fn last_links(&self, max: usize) -> Result<Vec<Signed>, KeyError> {
        let path = self.dir.join(LINKS);
        let read = || {
            let file = match self.disk.open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                opened => opened?,
            };
            let whole = file.len()? / LINK_LEN as u64;
            let wanted = whole.min(max as u64);
            let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(0) * LINK_LEN];
            let got = read_full(file.as_ref(), &mut bytes, (whole - wanted) * LINK_LEN as u64)?;
            bytes.truncate(got);
            Ok(bytes)
        };
        let bytes = read().map_err(io_error("read", path.clone()))?;
        Ok(bytes.chunks_exact(LINK_LEN).filter_map(|link| Signed::parse(link).ok()).collect())
    }

    fn set_aside(&self, name: &str) -> Result<(), KeyError> {
        let free = (1..DAMAGED_MAX).find(|n| matches!(self.read(&format!("damaged-{n}")), Ok(None)));
        let path = self.dir.join(format!("damaged-{}", free.unwrap_or(DAMAGED_MAX)));
        self.disk.rename(&self.dir.join(name), &path).map_err(io_error("set aside as", path))
    }
}
