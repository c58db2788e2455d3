//! The frame: a compressed batch of events, the unit of durability, chaining, shipping and acknowledgement.
//!
//! The bytes written by the agent are the bytes that the collector keeps; nothing on the way re-encodes them. All integers are
//! little-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `BGF1` |
//! | 4 | 1 | codec of the payload: 1 = zstd, 2 = zstd with a dictionary, 3 = the same of a thinned batch (see [`thin`]), 4 = the same as part of a run |
//! | 5 | 1 | number of the dictionary (see [`DICTIONARIES`]), zero for codec 1 |
//! | 6 | 1 | place in the run for codec 4: 0 for the frame that begins it; zero for the others |
//! | 7 | 1 | zero |
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
//! | 120 | n | payload: a zstd frame, or for codec 4 a part of one, holding a `breakglass.v1.Batch`, for codecs 3 and 4 with differences in place of numbers |
//! | 120+n | 32 | hash: SHA-256 over `breakglass-frame-v1\0`, header and payload |
//!
//! A *run* is up to [`RUN_FRAMES`] frames in a row that share one zstd frame: what one of them says need not be said again in the next. Its payloads up
//! to one frame's, joined, with an empty last block behind them ([`RUN_END`]), are a zstd frame that holds the batches up to that frame's. So a frame
//! of a run is read with those before it in the run, which [`Unpacker`] remembers; what is checked without looking inside needs no other frame.
//!
//! Limits: [`RAW_MAX`] decompressed, [`PAYLOAD_MAX`] compressed. A frame that breaks any rule is refused as a whole, with an
//! error that names the rule; decompression never allocates more than the limit whatever the header claims.

mod codec;
mod seal;
pub mod thin;
mod unpack;

use sha2::{Digest, Sha256};

use self::codec::Codec;
pub use self::{
    codec::{DICTIONARIES, RUN_END, RUN_FRAMES, RUN_RAW_MAX},
    seal::{Sealed, Sealer, seal, seal_raw},
    unpack::Unpacker,
};
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

/// Largest frame of a run, bytes.
pub const RUN_FRAME_MAX: usize = HEADER_LEN + codec::RUN_PAYLOAD_MAX + HASH_LEN;

const MAGIC: [u8; 4] = *b"BGF1";
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
    /// A place that no frame can have.
    #[error("the frame says that it is number {0} of its run, which no run has")]
    Place(u8),
    /// A frame of a run, without those before it.
    #[error("the frame's payload continues that of the frames from {from} on, and cannot be read without them")]
    Continues {
        /// Sequence of the frame that begins the run.
        from: u64,
    },
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

/// Length of the decompressed payload, as the header of the frame that begins with `bytes` claims, without any check; never above [`RAW_MAX`], beyond which
/// a frame is not decompressed.
pub fn claimed_raw_len(bytes: &[u8]) -> usize {
    bytes.get(..HEADER_LEN).map_or(0, |header| u32_at(header, 108) as usize).min(RAW_MAX)
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
        if let Codec::Run { .. } = codec {
            codec::check_run(raw_len, body.len() - HEADER_LEN)?;
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
        if u64::from(codec.place()) >= header.seq {
            return Err(FrameError::Place(codec.place()));
        }
        Ok(Self { header, hash: array_at(hash, 0), codec, payload: &body[HEADER_LEN..], raw_len })
    }

    /// Sequence of the first frame that is needed to read this one: that which begins its run, else its own.
    pub fn readable_from(&self) -> u64 {
        self.header.seq - u64::from(self.codec.place())
    }

    /// The same payload at another place of another chain; for what a damaged spool still holds behind the damage. A payload that continues others
    /// cannot be moved: it is to be sealed again.
    pub fn reseal(&self, stream_id: [u8; 16], seq: u64, prev: Hash) -> Result<Sealed, FrameError> {
        if self.codec.place() > 0 {
            return Err(FrameError::Continues { from: self.readable_from() });
        }
        seal::assemble(Header { stream_id, seq, prev, ..self.header }, self.codec, self.raw_len, self.payload)
    }

    /// Decompresses and decodes the payload of a frame that does not continue a run. For one that does, see [`Unpacker`].
    pub fn batch(&self) -> Result<Batch, FrameError> {
        Unpacker::default().batch(self)
    }
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
