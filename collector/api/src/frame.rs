//! The frame: a compressed batch of events, the unit of durability, chaining, shipping and acknowledgement.
//!
//! The bytes written by the agent are the bytes that the collector keeps; nothing on the way re-encodes them. All integers are
//! little-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `BGF1` |
//! | 4 | 1 | codec of the payload: 1 = zstd, 2 = zstd with a dictionary, 3 = the same of a thinned batch (see [`thin`]) |
//! | 5 | 1 | number of the dictionary for codecs 2 and 3 (see [`DICTIONARIES`]), zero for codec 1 |
//! | 6 | 2 | zero |
//! | 8 | 16 | stream id: the spool that the frame belongs to |
//! | 24 | 16 | boot id of the host |
//! | 40 | 8 | sequence, from 1, no holes |
//! | 48 | 32 | hash of the frame before; zeros for sequence 1 |
//! | 80 | 8 | boot time of the earliest event, ns (`CLOCK_BOOTTIME`) |
//! | 88 | 8 | boot time of the latest event, ns |
//! | 96 | 8 | wall clock minus boot clock when sealed, ns, signed |
//! | 104 | 4 | events |
//! | 108 | 4 | length of the decompressed payload |
//! | 112 | 4 | length of the payload |
//! | 116 | 4 | zero |
//! | 120 | n | payload: a zstd frame holding a `breakglass.v1.Batch`, for codec 3 with differences in place of numbers |
//! | 120+n | 32 | hash: SHA-256 over `breakglass-frame-v1\0`, header and payload |
//!
//! Limits: [`RAW_MAX`] decompressed, [`PAYLOAD_MAX`] compressed. A frame that breaks any rule is refused as a whole, with an
//! error that names the rule; decompression never allocates more than the limit whatever the header claims.

pub mod thin;

use std::sync::OnceLock;

use prost::Message;
use sha2::{Digest, Sha256};
use zstd::{dict::DecoderDictionary, zstd_safe::CParameter};

use crate::v1::Batch;

/// Length of the fixed part before the payload, bytes.
pub const HEADER_LEN: usize = 120;
/// Length of the hash behind the payload, bytes.
pub const HASH_LEN: usize = 32;
/// Largest decompressed payload, bytes. The largest single event is an exec with 6 MiB of arguments and as much environment.
pub const RAW_MAX: usize = 32 * 1024 * 1024;
/// Largest compressed payload, bytes: `RAW_MAX` and what zstd adds to incompressible data.
pub const PAYLOAD_MAX: usize = RAW_MAX + RAW_MAX / 128 + 1024;
/// Largest whole frame, bytes.
pub const FRAME_MAX: usize = HEADER_LEN + PAYLOAD_MAX + HASH_LEN;

const MAGIC: [u8; 4] = *b"BGF1";
const CODEC_ZSTD: u8 = 1;
const CODEC_DICTIONARY: u8 = 2;
const CODEC_THIN: u8 = 3;

/// Dictionaries by number, from 1. What a frame was made with must be there for ever to read it: only ever appended to. A small
/// frame is a third of what it is without, because its events share next to nothing with each other and nearly everything with
/// all events ever recorded. How one is trained: `docs/EVIDENCE.md`.
pub const DICTIONARIES: [&[u8]; 2] = [include_bytes!("dictionaries/1.zdict"), include_bytes!("dictionaries/2.zdict")];

/// The dictionary that new frames are made with.
const NEWEST: u8 = DICTIONARIES.len() as u8;

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codec {
    Plain,
    /// With the dictionary of this number, which there is.
    Dictionary(u8),
    /// Of a thinned batch, with the dictionary of this number.
    Thin(u8),
}

impl Codec {
    fn parse([codec, dictionary, zeros @ ..]: [u8; 4]) -> Result<Self, FrameError> {
        let known = match codec {
            CODEC_ZSTD => Self::Plain,
            CODEC_DICTIONARY | CODEC_THIN if !(1..=NEWEST).contains(&dictionary) => {
                return Err(FrameError::Dictionary(dictionary));
            }
            CODEC_DICTIONARY => Self::Dictionary(dictionary),
            CODEC_THIN => Self::Thin(dictionary),
            codec => return Err(FrameError::Codec(codec)),
        };
        if zeros != [0; 2] || (known == Self::Plain && dictionary != 0) {
            return Err(FrameError::Reserved);
        }
        Ok(known)
    }

    fn bytes(self) -> [u8; 4] {
        match self {
            Self::Plain => [CODEC_ZSTD, 0, 0, 0],
            Self::Dictionary(number) => [CODEC_DICTIONARY, number, 0, 0],
            Self::Thin(number) => [CODEC_THIN, number, 0, 0],
        }
    }

    fn decompress(self, payload: &[u8], raw_len: usize) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Plain => zstd::bulk::decompress(payload, raw_len),
            Self::Dictionary(number) | Self::Thin(number) => {
                zstd::bulk::Decompressor::with_prepared_dictionary(prepared(number))?.decompress(payload, raw_len)
            }
        }
    }
}

/// A dictionary made ready for decompression, once for all.
fn prepared(number: u8) -> &'static DecoderDictionary<'static> {
    static READY: [OnceLock<DecoderDictionary<'static>>; DICTIONARIES.len()] =
        [const { OnceLock::new() }; DICTIONARIES.len()];
    // Only numbers that `Codec::parse` let through get here.
    let at = usize::from(number).clamp(1, DICTIONARIES.len()) - 1;
    READY[at].get_or_init(|| DecoderDictionary::copy(DICTIONARIES[at]))
}
const DOMAIN: &[u8] = b"breakglass-frame-v1\0";

/// A SHA-256 hash of a frame.
pub type Hash = [u8; HASH_LEN];

/// What a frame says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The spool that the frame belongs to.
    pub stream_id: [u8; 16],
    /// The host's boot id.
    pub boot_id: [u8; 16],
    /// From 1, no holes.
    pub seq: u64,
    /// Hash of the frame before; zeros for the first.
    pub prev: Hash,
    /// Boot time of the earliest event, nanoseconds.
    pub first_boot_ns: u64,
    /// Boot time of the latest event, nanoseconds.
    pub last_boot_ns: u64,
    /// Wall clock (Unix) minus boot clock when the frame was sealed, nanoseconds.
    pub wall_offset_ns: i64,
    /// Events in the payload.
    pub events: u32,
}

impl Header {
    /// Wall clock of a boot time in this frame, nanoseconds since 1970. Saturates.
    pub fn wall_ns(&self, boot_ns: u64) -> i64 {
        i64::try_from(boot_ns).unwrap_or(i64::MAX).saturating_add(self.wall_offset_ns)
    }
}

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// Fewer bytes than the frame says it has; carries how many are needed in all, as far as can be told.
    #[error("the frame is cut short: {have} bytes of {need}")]
    Short {
        /// Bytes at hand.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// More bytes than one frame.
    #[error("{0} bytes follow the end of the frame")]
    Trailing(usize),
    /// Wrong magic.
    #[error("not a frame: it does not begin with BGF1")]
    Magic,
    /// A codec that this version does not know.
    #[error("unknown payload codec {0}")]
    Codec(u8),
    /// A dictionary that this version does not have.
    #[error("the payload needs dictionary {0}, which this version does not have")]
    Dictionary(u8),
    /// A reserved byte is not zero.
    #[error("a reserved byte of the header is not zero")]
    Reserved,
    /// A length is above its limit.
    #[error("{what} of {value} bytes is above the limit of {limit}")]
    TooLarge {
        /// Which length.
        what: &'static str,
        /// As claimed.
        value: usize,
        /// As allowed.
        limit: usize,
    },
    /// The hash does not fit the bytes.
    #[error("the frame's hash does not match its content")]
    Hash,
    /// The payload cannot be compressed; only for want of memory.
    #[error("the payload cannot be compressed: {0}")]
    Compress(String),
    /// The payload does not decompress to what the header says.
    #[error("the payload cannot be decompressed: {0}")]
    Decompress(String),
    /// The payload is not a batch.
    #[error("the payload is not a batch of events: {0}")]
    Batch(String),
    /// The number of events differs from the header's.
    #[error("the payload holds {found} events, the header says {claimed}")]
    Count {
        /// In the payload.
        found: usize,
        /// In the header.
        claimed: u32,
    },
    /// Sequence 0, or a first frame with a predecessor.
    #[error("sequence and previous hash contradict each other")]
    Sequence,
}

/// A frame that has been sealed, ready to be written.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// What the frame says about itself.
    pub header: Header,
    /// The whole frame.
    pub bytes: Vec<u8>,
    /// Its hash, as the next frame's `prev`.
    pub hash: Hash,
}

/// Seals frames one after another with one compression context and one buffer, which together cost more to set up than a
/// small frame costs to compress.
pub struct Sealer {
    level: i32,
    compressor: zstd::bulk::Compressor<'static>,
    /// The batch, encoded; never more than [`LARGE`].
    raw: Vec<u8>,
}

/// From this length on a batch is compressed as it is, bytes. So much at once is mostly what a terminal showed, in which a dictionary finds
/// nothing and costs a third of the speed (zstd looks everything up in two places), and numbers are few.
const LARGE: usize = 256 * 1024;

impl Sealer {
    /// A sealer that thins, and compresses at a zstd level with the newest dictionary; large batches as they are.
    pub fn new(level: i32) -> Result<Self, FrameError> {
        let compressor = || {
            let dictionary = DICTIONARIES[usize::from(NEWEST) - 1];
            let mut compressor = zstd::bulk::Compressor::with_dictionary(level, dictionary)?;
            // The header says both already.
            compressor.set_parameter(CParameter::ContentSizeFlag(false))?;
            compressor.set_parameter(CParameter::DictIdFlag(false))?;
            Ok(compressor)
        };
        let compressor = compressor().map_err(|e: std::io::Error| FrameError::Compress(e.to_string()))?;
        Ok(Self { level, compressor, raw: Vec::new() })
    }

    /// Compresses `batch` and seals it under `header`, whose `events` is taken from the batch. The batch is as before afterwards.
    pub fn seal(&mut self, mut header: Header, batch: &mut Batch) -> Result<Sealed, FrameError> {
        header.events = count_of(batch)?;
        self.raw.clear();
        thin::thin(batch, header.first_boot_ns);
        let is_large = batch.encoded_len() >= LARGE;
        if !is_large {
            // A vector grows as it must, so that this cannot fail.
            batch.encode_raw(&mut self.raw);
        }
        thin::restore(batch, header.first_boot_ns);
        if is_large {
            return seal(header, batch, self.level);
        }
        let payload = self.compressor.compress(&self.raw).map_err(|e| FrameError::Compress(e.to_string()))?;
        assemble(header, Codec::Thin(NEWEST), self.raw.len(), &payload)
    }
}

/// Compresses `batch` without a dictionary and seals it under `header`, whose `events` is taken from the batch.
pub fn seal(mut header: Header, batch: &Batch, level: i32) -> Result<Sealed, FrameError> {
    header.events = count_of(batch)?;
    seal_raw(header, &batch.encode_to_vec(), level)
}

/// As [`seal`], for a batch that is encoded already; `header.events` is the caller's to get right.
pub fn seal_raw(header: Header, raw: &[u8], level: i32) -> Result<Sealed, FrameError> {
    if raw.len() > RAW_MAX {
        return Err(FrameError::TooLarge { what: "batch", value: raw.len(), limit: RAW_MAX });
    }
    let payload = zstd::bulk::compress(raw, level).map_err(|e| FrameError::Compress(e.to_string()))?;
    assemble(header, Codec::Plain, raw.len(), &payload)
}

fn count_of(batch: &Batch) -> Result<u32, FrameError> {
    u32::try_from(batch.events.len()).map_err(|_| FrameError::TooLarge {
        what: "event count",
        value: batch.events.len(),
        limit: u32::MAX as usize,
    })
}

fn assemble(header: Header, codec: Codec, raw_len: usize, payload: &[u8]) -> Result<Sealed, FrameError> {
    if payload.len() > PAYLOAD_MAX {
        return Err(FrameError::TooLarge { what: "payload", value: payload.len(), limit: PAYLOAD_MAX });
    }
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len() + HASH_LEN);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&codec.bytes());
    bytes.extend_from_slice(&header.stream_id);
    bytes.extend_from_slice(&header.boot_id);
    bytes.extend_from_slice(&header.seq.to_le_bytes());
    bytes.extend_from_slice(&header.prev);
    bytes.extend_from_slice(&header.first_boot_ns.to_le_bytes());
    bytes.extend_from_slice(&header.last_boot_ns.to_le_bytes());
    bytes.extend_from_slice(&header.wall_offset_ns.to_le_bytes());
    bytes.extend_from_slice(&header.events.to_le_bytes());
    bytes.extend_from_slice(&(raw_len as u32).to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    debug_assert_eq!(bytes.len(), HEADER_LEN);
    bytes.extend_from_slice(payload);
    let hash = hash_of(&bytes);
    bytes.extend_from_slice(&hash);
    Ok(Sealed { header, bytes, hash })
}

/// A checked frame: the structure holds and the hash fits. Whether it continues a chain is for the caller to compare.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// What the frame says about itself.
    pub header: Header,
    /// Its hash.
    pub hash: Hash,
    codec: Codec,
    payload: &'a [u8],
    raw_len: usize,
}

/// Total length of the frame that begins with `bytes`, from its header alone; the hash is not checked.
/// `Short` means that more bytes are needed to tell.
pub fn frame_len(bytes: &[u8]) -> Result<usize, FrameError> {
    if bytes.len() < HEADER_LEN {
        let seen = bytes.len().min(4);
        if bytes[..seen] != MAGIC[..seen] {
            return Err(FrameError::Magic);
        }
        return Err(FrameError::Short { have: bytes.len(), need: HEADER_LEN });
    }
    if bytes[..4] != MAGIC {
        return Err(FrameError::Magic);
    }
    let payload = u32_at(bytes, 112) as usize;
    if payload > PAYLOAD_MAX {
        return Err(FrameError::TooLarge { what: "payload", value: payload, limit: PAYLOAD_MAX });
    }
    Ok(HEADER_LEN + payload + HASH_LEN)
}

impl<'a> Frame<'a> {
    /// Checks that `bytes` are exactly one frame.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let need = frame_len(bytes)?;
        if bytes.len() < need {
            return Err(FrameError::Short { have: bytes.len(), need });
        }
        if bytes.len() > need {
            return Err(FrameError::Trailing(bytes.len() - need));
        }
        let (body, hash) = bytes.split_at(need - HASH_LEN);
        let codec = Codec::parse(array_at(bytes, 4))?;
        if bytes[116..120] != [0; 4] {
            return Err(FrameError::Reserved);
        }
        let raw_len = u32_at(bytes, 108) as usize;
        if raw_len > RAW_MAX {
            return Err(FrameError::TooLarge { what: "batch", value: raw_len, limit: RAW_MAX });
        }
        if hash_of(body) != hash {
            return Err(FrameError::Hash);
        }
        let header = Header {
            stream_id: array_at(bytes, 8),
            boot_id: array_at(bytes, 24),
            seq: u64::from_le_bytes(array_at(bytes, 40)),
            prev: array_at(bytes, 48),
            first_boot_ns: u64::from_le_bytes(array_at(bytes, 80)),
            last_boot_ns: u64::from_le_bytes(array_at(bytes, 88)),
            wall_offset_ns: i64::from_le_bytes(array_at(bytes, 96)),
            events: u32_at(bytes, 104),
        };
        if header.seq == 0 || (header.seq == 1) != (header.prev == [0; HASH_LEN]) {
            return Err(FrameError::Sequence);
        }
        Ok(Self { header, hash: array_at(hash, 0), codec, payload: &body[HEADER_LEN..], raw_len })
    }

    /// The same content at another place of another chain; for what a damaged spool still holds behind the damage.
    pub fn reseal(&self, stream_id: [u8; 16], seq: u64, prev: Hash) -> Result<Sealed, FrameError> {
        assemble(Header { stream_id, seq, prev, ..self.header }, self.codec, self.raw_len, self.payload)
    }

    /// Decompresses and decodes the payload.
    pub fn batch(&self) -> Result<Batch, FrameError> {
        let raw =
            self.codec.decompress(self.payload, self.raw_len).map_err(|e| FrameError::Decompress(e.to_string()))?;
        if raw.len() != self.raw_len {
            return Err(FrameError::Decompress(format!("{} bytes, the header says {}", raw.len(), self.raw_len)));
        }
        // Before decoding: two bytes of payload can become an event of hundreds in memory, so whoever trusts the header's count
        // to bound what this costs must be able to.
        let found = count_events(&raw).ok_or_else(|| FrameError::Batch("a field is cut short".to_owned()))?;
        if found != self.header.events as usize {
            return Err(FrameError::Count { found, claimed: self.header.events });
        }
        let mut batch = Batch::decode(raw.as_slice()).map_err(|e| FrameError::Batch(e.to_string()))?;
        if matches!(self.codec, Codec::Thin(_)) {
            thin::restore(&mut batch, self.header.first_boot_ns);
        }
        Ok(batch)
    }
}

/// Number of the field `Batch.events`.
const EVENTS_FIELD: u64 = 2;

/// How many events an encoded batch holds, without decoding them; `None` where it cannot be a batch.
fn count_events(mut raw: &[u8]) -> Option<usize> {
    let mut events = 0;
    while !raw.is_empty() {
        let key = take_varint(&mut raw)?;
        // The wire types of protocol buffers; groups (3 and 4) are not used by any message of ours.
        let len = match key & 7 {
            0 => take_varint(&mut raw).map(|_| 0)?,
            1 => 8,
            2 => usize::try_from(take_varint(&mut raw)?).ok()?,
            5 => 4,
            _ => return None,
        };
        raw = raw.get(len..)?;
        events += usize::from(key == EVENTS_FIELD << 3 | 2);
    }
    Some(events)
}

/// A protocol-buffers varint: seven bits a byte, the lowest first, at most ten bytes.
fn take_varint(raw: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = raw.split_first()?;
        *raw = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn hash_of(body: &[u8]) -> Hash {
    Sha256::new().chain_update(DOMAIN).chain_update(body).finalize().into()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// The caller has checked that `bytes` reach that far.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests;
