//! The evidence file: everything about one session that can be verified offline. What the sections mean, and how they are verified, is
//! in `docs/EVIDENCE.md`; this is how they are written one behind the other.
//!
//! | size | field |
//! |---|---|
//! | 8 | magic `BGEVID1\n` |
//! | | sections, each: |
//! | 4 | type, little-endian, see [`kind`] |
//! | 4 | zero |
//! | 8 | n, length of the content, little-endian; at most [`SECTION_MAX`] |
//! | n | content |
//!
//! Types come in ascending order. Exactly one manifest begins the file and exactly one end ends it. The end's content is the number
//! of sections before it (8 bytes, little-endian) and the SHA-256 over everything before the end section's own type field. A section of
//! an unknown type is skipped.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

use crate::frame::FRAME_MAX;

/// Types of sections.
pub mod kind {
    /// JSON that says what the file claims to be; never proof of anything.
    pub const MANIFEST: u32 = 1;
    /// A link of the chain of keys: a signed statement that names the next key. In order of epochs, from 0.
    pub const KEY: u32 = 2;
    /// A checkpoint: a signed statement. In the order of the frames that hold them.
    pub const CHECKPOINT: u32 = 3;
    /// A frame, in order.
    pub const FRAME: u32 = 4;
    /// A signed review of the session: a text and the signature behind it.
    pub const REVIEW: u32 = 16;
    /// The checkpoint of a transparency log, a signed note with its cosignatures. At most one.
    pub const LOG_CHECKPOINT: u32 = 17;
    /// That a statement is in that log.
    pub const INCLUSION: u32 = 18;
    /// That the log continues an earlier state.
    pub const CONSISTENCY: u32 = 19;
    /// The end.
    pub const END: u32 = 0xffff_ffff;
}

/// Largest content of a section, bytes: a whole frame.
pub const SECTION_MAX: usize = FRAME_MAX;
/// Largest manifest, bytes.
pub const MANIFEST_MAX: usize = 64 * 1024;

const MAGIC: &[u8; 8] = b"BGEVID1\n";
const HEADER_LEN: usize = 16;
const END_LEN: usize = 40;

/// Writes a file piece by piece.
pub struct Writer {
    hash: Sha256,
    sections: u64,
}

impl Writer {
    /// A writer, and the first bytes of the file.
    pub fn new() -> (Self, Vec<u8>) {
        (Self { hash: Sha256::new().chain_update(MAGIC), sections: 0 }, MAGIC.to_vec())
    }

    /// The bytes of one section.
    pub fn section(&mut self, kind: u32, content: &[u8]) -> Vec<u8> {
        let bytes = section(kind, content);
        self.hash.update(&bytes);
        self.sections += 1;
        bytes
    }

    /// The last bytes of the file.
    pub fn end(self) -> Vec<u8> {
        let digest: [u8; 32] = self.hash.finalize().into();
        section(kind::END, &[&self.sections.to_le_bytes()[..], &digest].concat())
    }
}

fn section(kind: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + content.len());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
    bytes.extend_from_slice(content);
    bytes
}

/// Why a file cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The medium failed.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    /// Wrong magic.
    #[error("not an evidence file: it does not begin with BGEVID1")]
    Magic,
    /// It ends where more must follow.
    #[error("the file is cut short at byte {offset}: the end section is missing")]
    Short {
        /// Where it ends.
        offset: u64,
    },
    /// A section header that cannot be.
    #[error("the section at byte {offset} is not one: {what}")]
    Section {
        /// Where the section begins.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The end does not fit what was before it.
    #[error("the file was changed: its digest, at byte {offset}, does not fit its content")]
    Digest {
        /// Where the end section begins.
        offset: u64,
    },
}

/// A section as read.
#[derive(Debug)]
pub struct Section {
    /// Its type.
    pub kind: u32,
    /// Where its content begins in the file.
    pub offset: u64,
    /// Its content.
    pub content: Vec<u8>,
}

/// Reads a file section by section; holds one in memory.
pub struct Reader<R> {
    input: R,
    hash: Sha256,
    offset: u64,
    sections: u64,
    last: u32,
}

impl<R: Read> Reader<R> {
    /// Checks the beginning.
    pub fn new(mut input: R) -> Result<Self, FileError> {
        let mut magic = Vec::new();
        input.by_ref().take(MAGIC.len() as u64).read_to_end(&mut magic)?;
        if magic != MAGIC {
            return Err(FileError::Magic);
        }
        Ok(Self { input, hash: Sha256::new().chain_update(MAGIC), offset: MAGIC.len() as u64, sections: 0, last: 0 })
    }

    /// The next section; `None` after an end that fits.
    pub fn next_section(&mut self) -> Result<Option<Section>, FileError> {
        let at = self.offset;
        let wrong = |what| FileError::Section { offset: at, what };
        let header = self.take(HEADER_LEN)?;
        let (Some((kind, rest)), true) = (header.split_first_chunk(), header.get(4..8) == Some(&[0; 4][..])) else {
            return Err(wrong("a reserved byte is not zero"));
        };
        let kind = u32::from_le_bytes(*kind);
        let len = rest.last_chunk().map_or(u64::MAX, |len| u64::from_le_bytes(*len));
        let len = usize::try_from(len).ok().filter(|len| *len <= SECTION_MAX).ok_or_else(|| wrong("it is too long"))?;
        if kind < self.last || (kind == kind::MANIFEST) != (self.sections == 0) {
            return Err(wrong("it is not in its place"));
        }
        let content = self.take(len)?;
        if kind == kind::END {
            return self.finish(at, &content).map(|()| None);
        }
        self.hash.update(&header);
        self.hash.update(&content);
        self.sections += 1;
        self.last = kind;
        Ok(Some(Section { kind, offset: at + HEADER_LEN as u64, content }))
    }

    fn finish(&mut self, at: u64, content: &[u8]) -> Result<(), FileError> {
        let digest: [u8; 32] = std::mem::take(&mut self.hash).finalize().into();
        let expected = [&self.sections.to_le_bytes()[..], &digest].concat();
        if content.len() != END_LEN || content != expected {
            return Err(FileError::Digest { offset: at });
        }
        if self.input.read(&mut [0])? != 0 {
            return Err(FileError::Section { offset: self.offset, what: "it follows the end" });
        }
        Ok(())
    }

    /// Exactly `len` bytes. Memory grows with what is there, not with what is claimed.
    fn take(&mut self, len: usize) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::new();
        let got = self.input.by_ref().take(len as u64).read_to_end(&mut bytes)?;
        self.offset += got as u64;
        if got < len { Err(FileError::Short { offset: self.offset }) } else { Ok(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(sections: &[(u32, &[u8])]) -> Vec<u8> {
        let (mut writer, mut bytes) = Writer::new();
        for (kind, content) in sections {
            bytes.extend(writer.section(*kind, content));
        }
        bytes.extend(writer.end());
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, FileError> {
        let mut reader = Reader::new(bytes)?;
        let mut sections = Vec::new();
        while let Some(section) = reader.next_section()? {
            let at = section.offset as usize;
            assert_eq!(&bytes[at..at + section.content.len()], section.content);
            sections.push((section.kind, section.content));
        }
        Ok(sections)
    }

    fn sample() -> Vec<u8> {
        file(&[(kind::MANIFEST, b"{}"), (kind::KEY, b"key"), (kind::FRAME, b""), (99, b"unknown")])
    }

    #[test]
    fn what_is_written_is_read() {
        let sections = read(&sample()).unwrap();
        let kinds: Vec<u32> = sections.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [kind::MANIFEST, kind::KEY, kind::FRAME, 99]);
        assert_eq!(sections[1].1, b"key");
    }

    #[test]
    fn order_and_number_of_sections_are_checked() {
        for wrong in [
            file(&[]),
            file(&[(kind::KEY, b"")]),
            file(&[(kind::MANIFEST, b""), (kind::MANIFEST, b"")]),
            file(&[(kind::MANIFEST, b""), (kind::FRAME, b""), (kind::KEY, b"")]),
        ] {
            assert!(matches!(read(&wrong), Err(FileError::Section { .. })));
        }
        assert!(matches!(read(&[sample(), vec![0]].concat()), Err(FileError::Section { .. })));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let good = sample();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(read(&good[..len]).is_err(), "cut to {len}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes: Vec<u8>, keep in 0usize..100) {
            let sample = sample();
            let _ = read(&bytes);
            let _ = read(&[&sample[..keep.min(sample.len())], &bytes].concat());
        }
    }
}
