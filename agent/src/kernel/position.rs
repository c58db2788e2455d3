//! Where a reader stands, as bytes: kept in every durable frame, so that the next reader goes on exactly there.
//!
//! One byte of format, 16 of generation, three ring positions, then for each ring and CPU: ring (1), CPU (4), number up to
//! which everything is accounted for (8), count (4) of numbers seen beyond a hole, and those (8 each). Little-endian.

use super::sequence::{Track, Tracks};

const FORMAT: u8 = 1;
/// Most numbers beyond a hole that a position may list; see `HELD_MAX` of the tracks.
const HELD_MAX: u32 = 1 << 16;

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
            out.extend_from_slice(&position.to_le_bytes());
        }
        for ((ring, cpu), track) in &self.tracks {
            let held: Vec<u64> = track.held().collect();
            out.push(*ring);
            out.extend_from_slice(&cpu.to_le_bytes());
            out.extend_from_slice(&track.upto().to_le_bytes());
            out.extend_from_slice(&u32::try_from(held.len()).unwrap_or(u32::MAX).to_le_bytes());
            for seq in held {
                out.extend_from_slice(&seq.to_le_bytes());
            }
        }
        out
    }

    /// `None` for bytes of another format, or damaged ones.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let [format] = take(&mut rest)?;
        if format != FORMAT {
            return None;
        }
        let generation = take(&mut rest)?;
        let rings = [number(&mut rest)?, number(&mut rest)?, number(&mut rest)?];
        let mut tracks = Tracks::new();
        while !rest.is_empty() {
            let [ring] = take(&mut rest)?;
            let cpu = u32::from_le_bytes(take(&mut rest)?);
            let upto = number(&mut rest)?;
            let count = u32::from_le_bytes(take(&mut rest)?);
            if count > HELD_MAX {
                return None;
            }
            let mut held = Vec::new();
            for _ in 0..count {
                held.push(number(&mut rest)?);
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

fn number(bytes: &mut &[u8]) -> Option<u64> {
    take(bytes).map(u64::from_le_bytes)
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
        for len in (0..bytes.len()).filter(|len| *len != 41) {
            assert_eq!(Position::decode(&bytes[..len]), None, "{len}");
        }
    }
}
