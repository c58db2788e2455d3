//! How payloads are compressed.

use std::sync::OnceLock;

use zstd::{bulk::Decompressor, dict::DecoderDictionary};

use super::FrameError;

const CODEC_ZSTD: u8 = 1;
const CODEC_DICTIONARY: u8 = 2;
const CODEC_THIN: u8 = 3;
const CODEC_RUN: u8 = 4;

/// Dictionaries by number, from 1. What a frame was made with must be there for ever to read it: only ever appended to. A small
/// frame is a third of what it is without, because its events share next to nothing with each other and nearly everything with
/// all events ever recorded. How one is trained: `docs/EVIDENCE.md`.
pub const DICTIONARIES: [&[u8]; 2] =
    [include_bytes!("../dictionaries/1.zdict"), include_bytes!("../dictionaries/2.zdict")];

/// The dictionary that new frames are made with.
pub(super) const NEWEST: u8 = DICTIONARIES.len() as u8;

/// Most frames in a run: so many can be unreadable when one is damaged, a fifth of a second of a busy session. Of 16 and of 128 a program takes as many
/// bytes, within 5 %.
pub const RUN_FRAMES: u8 = 16;
/// Most that the frames of a run hold together, decompressed, bytes: what reading one of them can cost at most.
pub const RUN_RAW_MAX: usize = 1 << RUN_WINDOW_LOG;
/// How far back the compressor looks, as a power of two, bytes.
pub(super) const RUN_WINDOW_LOG: u32 = 18;
/// Most that their payloads may take, bytes: as much, and far more than zstd ever adds.
pub(super) const RUN_PAYLOAD_MAX: usize = 2 * RUN_RAW_MAX;
/// How a run's first payload begins: a zstd frame's magic number and header, without content size, checksum and dictionary id, with a window of 256 KiB
/// (RFC 8878, section 3.1.1.1).
const RUN_BEGIN: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0, 0x40];
/// Most blocks in a payload: of less than 256 KiB the compressor makes 32 at most, and many small ones cost more to read than they hold.
const RUN_BLOCKS_MAX: usize = 64;
/// The empty last block that a run's payloads lack to be a zstd frame (RFC 8878, section 3.1.1.2).
pub const RUN_END: [u8; 3] = [1, 0, 0];

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Plain,
    /// With the dictionary of this number, which there is.
    Dictionary(u8),
    /// Of a thinned batch, with the dictionary of this number.
    Thin(u8),
    /// Of a thinned batch, as part of a run.
    Run {
        /// The number of the run's dictionary, which there is.
        dictionary: u8,
        /// 0 for the frame that begins the run.
        place: u8,
    },
}

impl Codec {
    pub(super) fn parse([codec, dictionary, place, zero]: [u8; 4]) -> Result<Self, FrameError> {
        let codec = match codec {
            CODEC_ZSTD => Self::Plain,
            CODEC_DICTIONARY => Self::Dictionary(dictionary),
            CODEC_THIN => Self::Thin(dictionary),
            CODEC_RUN => Self::Run { dictionary, place },
            codec => return Err(FrameError::Codec(codec)),
        };
        // What another codec would say lies in bytes that are zero for this one.
        let [_, meant_dictionary, meant_place, _] = codec.bytes();
        if codec.dictionary().is_some_and(|number| !(1..=NEWEST).contains(&number)) {
            return Err(FrameError::Dictionary(dictionary));
        }
        if (dictionary, place, zero) != (meant_dictionary, meant_place, 0) {
            return Err(FrameError::Reserved);
        }
        if place >= RUN_FRAMES {
            return Err(FrameError::Place(place));
        }
        Ok(codec)
    }

    pub(super) fn bytes(self) -> [u8; 4] {
        match self {
            Self::Plain => [CODEC_ZSTD, 0, 0, 0],
            Self::Dictionary(number) => [CODEC_DICTIONARY, number, 0, 0],
            Self::Thin(number) => [CODEC_THIN, number, 0, 0],
            Self::Run { dictionary, place } => [CODEC_RUN, dictionary, place, 0],
        }
    }

    /// Frames of its run before it.
    pub(super) fn place(self) -> u8 {
        if let Self::Run { place, .. } = self { place } else { 0 }
    }

    pub(super) fn dictionary(self) -> Option<u8> {
        match self {
            Self::Plain => None,
            Self::Dictionary(number) | Self::Thin(number) | Self::Run { dictionary: number, .. } => Some(number),
        }
    }

    pub(super) fn is_thinned(self) -> bool {
        matches!(self, Self::Thin(_) | Self::Run { .. })
    }
}

/// Checks the lengths of a run, or of a part of one.
pub(super) fn check_run(raw: usize, payload: usize) -> Result<(), FrameError> {
    for (what, value, limit) in [("run", raw, RUN_RAW_MAX), ("run's payload", payload, RUN_PAYLOAD_MAX)] {
        if value > limit {
            return Err(FrameError::TooLarge { what, value, limit });
        }
    }
    Ok(())
}

/// Checks that a payload of a run is what flushing makes: the beginning, where it is the first, and whole blocks, none of them the last. So
/// all decompressors read the same in it, whatever else they would take.
pub(super) fn check_blocks(payload: &[u8], place: u8) -> Result<(), FrameError> {
    let wrong = |what: &str| FrameError::Decompress(format!("a run's payload {what}"));
    let begin: &[u8] = if place == 0 { &RUN_BEGIN } else { &[] };
    let mut rest = payload.strip_prefix(begin).ok_or_else(|| wrong("does not begin as one"))?;
    let mut blocks = 0;
    while let Some(([a, b, c], behind)) = rest.split_first_chunk() {
        let header = u32::from_le_bytes([*a, *b, *c, 0]);
        let (is_last, kind, size) = (header & 1 == 1, header >> 1 & 3, (header >> 3) as usize);
        let length = match kind {
            _ if is_last => return Err(wrong("ends it")),
            0 | 2 => size,
            1 => 1,
            _ => return Err(wrong("has a block of no known type")),
        };
        rest = behind.get(length..).ok_or_else(|| wrong("is cut short"))?;
        blocks += 1;
    }
    match (rest, blocks) {
        ([], 1..=RUN_BLOCKS_MAX) => Ok(()),
        ([], _) => Err(wrong("has no block, or too many")),
        _ => Err(wrong("is cut short")),
    }
}

/// Decompresses what must be exactly `raw_len` bytes; allocates no more.
pub(super) fn decompress(dictionary: Option<u8>, payload: &[u8], raw_len: usize) -> Result<Vec<u8>, FrameError> {
    let decompress = || match dictionary {
        None => zstd::bulk::decompress(payload, raw_len),
        Some(number) => Decompressor::with_prepared_dictionary(prepared(number))?.decompress(payload, raw_len),
    };
    let raw = decompress().map_err(|e: std::io::Error| FrameError::Decompress(e.to_string()))?;
    if raw.len() != raw_len {
        return Err(FrameError::Decompress(format!("{} bytes, the header says {raw_len}", raw.len())));
    }
    Ok(raw)
}

/// A dictionary made ready for decompression, once for all.
fn prepared(number: u8) -> &'static DecoderDictionary<'static> {
    static READY: [OnceLock<DecoderDictionary<'static>>; DICTIONARIES.len()] =
        [const { OnceLock::new() }; DICTIONARIES.len()];
    // Only numbers that `Codec::parse` let through get here.
    let at = usize::from(number).clamp(1, DICTIONARIES.len()) - 1;
    READY[at].get_or_init(|| DecoderDictionary::copy(DICTIONARIES[at]))
}
