//! Where a reader stands, as bytes: kept in every durable frame, so that the next reader goes on exactly there.
//!
//! One byte of format, 16 of generation, three ring positions, then for each ring and CPU: ring (one byte), CPU, number up to
//! which everything is accounted for, count of numbers seen beyond a hole, and those. Format 2 writes a number in groups of seven
//! bits, the lowest first, each but the last with its high bit set: most of a small frame was positions. Format 1, of earlier
//! agents, had them little-endian, CPU and count of four bytes, the others of eight.

use super::sequence::{Track, Tracks};

const FORMAT_FIXED: u8 = 1;
const FORMAT: u8 = 2;
/// Most numbers beyond a hole that a position may list; see `HELD_MAX` of the tracks.
const HELD_MAX: u64 = 1 << 16;

/// Where a reader stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Which load of the kernel programs the rings are of.
    pub generation: [u8; 16],
    /// By ring.
    pub rings: [u64; 3],
    /// What is accounted for.
    pub tracks: Tracks,
}

impl Position {
    /// The bytes that [`Self::decode`] reads.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&self.generation);
        for position in self.rings {
            put(&mut out, position);
        }
        for ((ring, cpu), track) in &self.tracks {
            let held: Vec<u64> = track.held().collect();
            out.push(*ring);
            put(&mut out, u64::from(*cpu));
            put(&mut out, track.upto());
            put(&mut out, held.len() as u64);
            for seq in held {
                put(&mut out, seq);
            }
        }
        out
    }

    /// `None` for bytes of another format, or damaged ones.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let [format] = take(&mut rest)?;
        let (long, short): (Number, Number) = match format {
            FORMAT_FIXED => (fixed, fixed_short),
            FORMAT => (groups, groups),
            _ => return None,
        };
        let generation = take(&mut rest)?;
        let rings = [long(&mut rest)?, long(&mut rest)?, long(&mut rest)?];
        let mut tracks = Tracks::new();
        while !rest.is_empty() {
            let [ring] = take(&mut rest)?;
            let cpu = u32::try_from(short(&mut rest)?).ok()?;
            let upto = long(&mut rest)?;
            let count = short(&mut rest)?;
            if count > HELD_MAX {
                return None;
            }
            let mut held = Vec::new();
            for _ in 0..count {
                held.push(long(&mut rest)?);
            }
            tracks.insert((ring, cpu), Track::from(upto, held));
        }
        Some(Self { generation, rings, tracks })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

/// Reads a number.
type Number = fn(&mut &[u8]) -> Option<u64>;

fn fixed(bytes: &mut &[u8]) -> Option<u64> {
    take(bytes).map(u64::from_le_bytes)
}

fn fixed_short(bytes: &mut &[u8]) -> Option<u64> {
    take(bytes).map(u32::from_le_bytes).map(u64::from)
}

fn groups(bytes: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(bytes).ok()
}

fn put(out: &mut Vec<u8>, number: u64) {
    prost::encoding::encode_varint(number, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(
            generation: [u8; 16],
            rings: [u64; 3],
            tracks in proptest::collection::btree_map((0u8..3, 0u32..512), (0u64..1 << 40, proptest::collection::vec(0u64..1 << 41, 0..5)), 0..20),
        ) {
            let tracks = tracks.into_iter().map(|(key, (upto, held))| (key, Track::from(upto, held))).collect();
            let position = Position { generation, rings, tracks };
            prop_assert_eq!(Position::decode(&position.encode()), Some(position));
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Position::decode(&bytes);
        }
    }

    #[test]
    fn a_cut_position_is_none() {
        let tracks = [((0, 1), Track::from(7, [9]))].into();
        let bytes = Position { generation: [1; 16], rings: [1, 2, 3], tracks }.encode();
        // Before the only track it is whole, too.
        for len in (0..bytes.len()).filter(|len| *len != 20) {
            assert_eq!(Position::decode(&bytes[..len]), None, "{len}");
        }
    }

    #[test]
    fn positions_of_earlier_agents_are_read() {
        let mut bytes = [vec![1], vec![9; 16]].concat();
        for number in [64_u64, 128, 192] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&[2, 3, 0, 0, 0]);
        bytes.extend_from_slice(&7_u64.to_le_bytes());
        bytes.extend_from_slice(&1_u32.to_le_bytes());
        bytes.extend_from_slice(&9_u64.to_le_bytes());
        let tracks = [((2, 3), Track::from(7, [9]))].into();
        assert_eq!(Position::decode(&bytes), Some(Position { generation: [9; 16], rings: [64, 128, 192], tracks }));
    }
}
