//! Which prepared grants were used: the file `prepared-used` in the state folder, kept for good.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | `BGUSED1\n` |
//! | 8 | 8 | floor, big-endian: a grant whose window ends at or before this Unix second is refused |
//! | 16 | 16 | zero |
//! | 32 i | 32 | use i: number (16), end of its window (8, big-endian), SHA-256 of both, cut to 8 bytes; all zero: free |
//!
//! The file has its full size from the agent's first start on, and using a grant overwrites one free entry in place and waits for the
//! disk: that works on a disk that is full, and whenever the power fails the entry is either there or not. An entry that fits no
//! hash was half written for a grant that was never answered, and is not free. When none is free, the half whose windows ended first is
//! given up, and the floor rises to the last of those: what was forgotten is refused by its window, wherever the clock stands.
//!
//! Nothing is opened if the use cannot be noted.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use sha2::{Digest, Sha256};

use crate::{
    account::replace::{self, Lasting, Like, NoCheckpoint},
    grant::{Refusal, prepared::Number},
};

const MAGIC: &[u8; 8] = b"BGUSED1\n";
const ENTRY: usize = 32;
/// Uses that are kept apart. The file has 16 KiB.
const ENTRIES: usize = 511;
const FREE: [u8; ENTRY] = [0; ENTRY];

/// The host's used grants.
pub struct Used {
    path: PathBuf,
    /// One use at a time.
    lock: Mutex<()>,
}

impl Used {
    /// The book in this folder; touches nothing.
    pub fn at(state: &Path) -> Self {
        Self { path: state.join("prepared-used"), lock: Mutex::new(()) }
    }

    /// Makes the book where there is none; a failure shows at the first use, too.
    pub fn make(&self) {
        if !self.path.exists()
            && let Err(error) = write_whole(&self.path, &empty(i64::MIN, &[]))
        {
            tracing::warn!(path = %self.path.display(), %error, "prepared grants cannot be taken: their use cannot be noted");
        }
    }

    /// Notes for good that the grant is used; refuses if it was.
    pub fn take(&self, number: &Number) -> Result<(), Refusal> {
        let _one = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        match self.note(number) {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(Refusal::new("used-grant", "this grant was used before, and is good once; prepare another"))
            }
            Err(error) => Err(Refusal::new(
                "cannot-note-use",
                format!(
                    "the host cannot note that this grant is used, so it does not take it ({}: {error}); use a one-time code",
                    self.path.display()
                ),
            )),
        }
    }

    /// Whether it was not used before, and is now.
    fn note(&self, number: &Number) -> io::Result<bool> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        let bytes = read(&file)?;
        let (head, entries) = bytes.split_at(ENTRY);
        let floor = head.get(8..16).and_then(|floor| floor.try_into().ok()).map_or(i64::MAX, i64::from_be_bytes);
        let known = |entry: &&[u8]| entry.get(..16) == Some(&number.number[..]);
        if number.not_after_s <= floor || entries.chunks_exact(ENTRY).any(|entry| known(&entry)) {
            return Ok(false);
        }
        match entries.chunks_exact(ENTRY).position(|entry| entry == FREE) {
            Some(index) => {
                file.write_all_at(&entry(number), ((index + 1) * ENTRY) as u64)?;
                file.sync_data()?;
            }
            None => write_whole(&self.path, &thinned(floor, entries, number))?,
        }
        Ok(true)
    }
}

fn read(file: &File) -> io::Result<Vec<u8>> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let size = (ENTRIES + 1) * ENTRY;
    if file.metadata()?.len() != size as u64 {
        return Err(wrong("it has another size than it was made with"));
    }
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0)?;
    match bytes.starts_with(MAGIC) {
        true => Ok(bytes),
        false => Err(wrong("it is not a book of used grants")),
    }
}

fn entry(number: &Number) -> [u8; ENTRY] {
    let mut entry = FREE;
    entry[..16].copy_from_slice(&number.number);
    entry[16..24].copy_from_slice(&number.not_after_s.to_be_bytes());
    let digest = Sha256::digest(&entry[..24]);
    entry[24..].copy_from_slice(&digest[..8]);
    entry
}

/// When the window of an entry ended; `None` for one that was half written.
fn end(entry: &[u8]) -> Option<i64> {
    let (body, digest) = entry.split_at_checked(24)?;
    (Sha256::digest(body)[..8] == *digest).then(|| body.last_chunk().map_or(i64::MAX, |end| i64::from_be_bytes(*end)))
}

/// The book without the half whose windows ended first, and with one more use.
fn thinned(floor: i64, entries: &[u8], number: &Number) -> Vec<u8> {
    let mut kept: Vec<(i64, &[u8])> =
        entries.chunks_exact(ENTRY).filter_map(|entry| Some((end(entry)?, entry))).collect();
    kept.sort_unstable();
    let recent = kept.split_off(kept.len() / 2);
    let floor = kept.last().map_or(floor, |(end, _)| floor.max(*end));
    let mut entries: Vec<&[u8]> = recent.into_iter().map(|(_, entry)| entry).collect();
    let own = entry(number);
    entries.push(&own);
    empty(floor, &entries)
}

fn empty(floor: i64, entries: &[&[u8]]) -> Vec<u8> {
    let mut bytes = [&MAGIC[..], &floor.to_be_bytes()].concat();
    bytes.resize(ENTRY, 0);
    entries.iter().for_each(|entry| bytes.extend_from_slice(entry));
    bytes.resize((ENTRIES + 1) * ENTRY, 0);
    bytes
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace::replace(path, bytes, Like::Mode(0o600), Lasting::Durable, &NoCheckpoint)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn number(index: u32, not_after_s: i64) -> Number {
        let mut number = [1; 16];
        number[..4].copy_from_slice(&index.to_be_bytes());
        Number { number, not_after_s }
    }

    fn opened(dir: &Path) -> Used {
        let used = Used::at(dir);
        used.make();
        used
    }

    #[test]
    fn once_and_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let used = opened(dir.path());
        assert!(used.take(&number(1, 100)).is_ok() && used.take(&number(2, 100)).is_ok());
        for book in [used, opened(dir.path())] {
            assert_eq!(book.take(&number(1, 100)).unwrap_err().code, "used-grant");
            assert_eq!(book.take(&number(2, 100)).unwrap_err().code, "used-grant");
        }
        assert!(opened(dir.path()).take(&number(3, 100)).is_ok());
    }

    #[test]
    fn a_full_book_gives_up_none_that_could_be_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let used = opened(dir.path());
        let all = ENTRIES as u32 + 10;
        for index in 0..all {
            used.take(&number(index, i64::from(index))).unwrap();
        }
        for index in 0..all {
            assert_eq!(used.take(&number(index, i64::from(index))).unwrap_err().code, "used-grant", "{index}");
        }
        assert_eq!(used.take(&number(9999, 3)).unwrap_err().code, "used-grant", "below the floor");
        assert!(used.take(&number(9999, i64::from(all))).is_ok());
    }

    #[test]
    fn a_use_that_cannot_be_noted_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let used = opened(dir.path());
        let path = dir.path().join("prepared-used");
        for damage in [b"".to_vec(), b"BGUSED1\n".to_vec(), vec![b'x'; (ENTRIES + 1) * ENTRY]] {
            fs::write(&path, damage).unwrap();
            assert_eq!(used.take(&number(1, 100)).unwrap_err().code, "cannot-note-use");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(used.take(&number(1, 100)).unwrap_err().code, "cannot-note-use");
    }

    #[test]
    fn a_half_written_use_is_not_free() {
        let dir = tempfile::tempdir().unwrap();
        let used = opened(dir.path());
        used.take(&number(1, 100)).unwrap();
        let path = dir.path().join("prepared-used");
        let mut bytes = fs::read(&path).unwrap();
        bytes[ENTRY + 20..2 * ENTRY].fill(0);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(used.take(&number(1, 100)).unwrap_err().code, "used-grant");
        used.take(&number(2, 100)).unwrap();
        assert_eq!(fs::read(&path).unwrap()[ENTRY..2 * ENTRY], bytes[ENTRY..2 * ENTRY], "kept as it was");
    }
}
