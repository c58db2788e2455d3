//! Names and small files of the spool's folder. Pure functions; the format is described in the module above.

use breakglass_api::frame::{HASH_LEN, Hash};
use sha2::{Digest, Sha256};

pub const LOCK: &str = "lock";
pub const META: &str = "meta";
pub const ACKED: &str = "acked";
pub const SPARE: &str = "spare";
pub const REPAIR: &str = "repair";
pub const REPAIR_COMMIT: &str = "commit";
pub const DAMAGED: &str = "damaged";
/// End of the name of a file that is not finished.
pub const TEMPORARY: &str = ".tmp";

/// Format of the folder that this code writes and reads.
pub const VERSION: u32 = 1;

/// Longest small file, bytes; more than any has.
pub const SMALL_MAX: usize = 128;

const META_MAGIC: [u8; 4] = *b"BGSM";
const ACKED_MAGIC: [u8; 4] = *b"BGSA";
const CHECK_LEN: usize = 8;

/// A segment's place: generation and sequence of its first frame. Ordered as the frames are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentId {
    pub generation: u64,
    pub first_seq: u64,
}

impl SegmentId {
    pub fn file_name(self) -> String {
        format!("{:08}-{:020}.seg", self.generation, self.first_seq)
    }

    /// Parses exactly what `file_name` makes.
    pub fn parse(name: &str) -> Option<Self> {
        let (generation, first_seq) = name.strip_suffix(".seg")?.split_once('-')?;
        let id = Self { generation: generation.parse().ok()?, first_seq: first_seq.parse().ok()? };
        (id.file_name() == name && id.generation > 0 && id.first_seq > 0).then_some(id)
    }
}

/// Content of `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub generation: u64,
    pub stream_id: [u8; 16],
}

/// Content of `acked`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acked {
    pub generation: u64,
    pub seq: u64,
    pub hash: Hash,
}

impl Acked {
    /// Whether the collector has this frame.
    pub fn covers(&self, generation: u64, seq: u64) -> bool {
        (generation, seq) <= (self.generation, self.seq)
    }
}

/// Why a small file is not what it should be.
#[derive(Debug, PartialEq, Eq)]
pub enum SmallError {
    /// Too short, wrong magic, or the check does not fit.
    Damaged,
    /// Made by a later version.
    Version(u32),
}

impl Meta {
    pub fn encode(&self) -> Vec<u8> {
        encode(META_MAGIC, &[&self.generation.to_le_bytes(), &self.stream_id])
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, SmallError> {
        let mut body = decode(META_MAGIC, bytes)?;
        let meta = Self { generation: u64::from_le_bytes(take(&mut body)?), stream_id: take(&mut body)? };
        if body.is_empty() { Ok(meta) } else { Err(SmallError::Damaged) }
    }
}

impl Acked {
    pub fn encode(&self) -> Vec<u8> {
        encode(ACKED_MAGIC, &[&self.generation.to_le_bytes(), &self.seq.to_le_bytes(), &self.hash])
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, SmallError> {
        let mut body = decode(ACKED_MAGIC, bytes)?;
        let acked = Self {
            generation: u64::from_le_bytes(take(&mut body)?),
            seq: u64::from_le_bytes(take(&mut body)?),
            hash: take::<HASH_LEN>(&mut body)?,
        };
        if body.is_empty() { Ok(acked) } else { Err(SmallError::Damaged) }
    }
}

fn encode(magic: [u8; 4], fields: &[&[u8]]) -> Vec<u8> {
    let mut out = [&magic[..], &VERSION.to_le_bytes(), &fields.concat()].concat();
    out.extend_from_slice(&check(&out));
    out
}

fn decode(magic: [u8; 4], bytes: &[u8]) -> Result<&[u8], SmallError> {
    let at = bytes.len().checked_sub(CHECK_LEN).ok_or(SmallError::Damaged)?;
    let (mut body, found) = bytes.split_at(at);
    if check(body) != found || take::<4>(&mut body)? != magic {
        return Err(SmallError::Damaged);
    }
    match u32::from_le_bytes(take(&mut body)?) {
        VERSION => Ok(body),
        version => Err(SmallError::Version(version)),
    }
}

fn check(bytes: &[u8]) -> [u8; CHECK_LEN] {
    let hash: [u8; HASH_LEN] = Sha256::digest(bytes).into();
    let mut out = [0; CHECK_LEN];
    out.copy_from_slice(&hash[..CHECK_LEN]);
    out
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], SmallError> {
    let (head, rest) = bytes.split_first_chunk().ok_or(SmallError::Damaged)?;
    *bytes = rest;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_sort_as_frames_do() {
        let ids = [(1, 1), (1, 9), (1, 10), (2, 1), (10, 3)];
        let ids = ids.map(|(generation, first_seq)| SegmentId { generation, first_seq });
        assert!(ids.is_sorted());
        assert!(ids.map(SegmentId::file_name).is_sorted());
    }

    #[test]
    fn foreign_names_are_no_segments() {
        for name in
            ["1-1.seg", "00000001-00000000000000000000.seg", "00000001-00000000000000000001.seg.tmp", "meta", "-.seg"]
        {
            assert_eq!(SegmentId::parse(name), None, "{name}");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_small_file_is_noticed() {
        let meta = Meta { generation: 3, stream_id: [5; 16] }.encode();
        for bit in 0..meta.len() * 8 {
            let mut bytes = meta.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Meta::decode(&bytes), Err(SmallError::Damaged));
        }
    }

    proptest! {
        #[test]
        fn round_trips(generation in 1u64.., seq in 1u64.., id: [u8; 16], hash: [u8; 32]) {
            let segment = SegmentId { generation, first_seq: seq };
            prop_assert_eq!(SegmentId::parse(&segment.file_name()), Some(segment));
            let meta = Meta { generation, stream_id: id };
            prop_assert_eq!(Meta::decode(&meta.encode()), Ok(meta));
            let acked = Acked { generation, seq, hash };
            prop_assert_eq!(Acked::decode(&acked.encode()), Ok(acked));
        }

        #[test]
        fn noise_never_panics(bytes: Vec<u8>, name: String) {
            let _ = (Meta::decode(&bytes), Acked::decode(&bytes), SegmentId::parse(&name));
        }
    }
}
