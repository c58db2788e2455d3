//! Making frames.

use prost::Message;
use zstd::zstd_safe::{
    CCtx, CParameter, InBuffer, OutBuffer, ResetDirective, SafeResult, compress_bound, get_error_name,
    zstd_sys::ZSTD_EndDirective,
};

use super::{
    FrameError, HASH_LEN, HEADER_LEN, Hash, Header, MAGIC, PAYLOAD_MAX, RAW_MAX,
    codec::{Codec, DICTIONARIES, NEWEST, RUN_FRAMES, RUN_RAW_MAX, RUN_WINDOW_LOG},
    hash_of, thin,
};
use crate::v1::Batch;

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

/// Seals frames one after another. Small ones that follow each other make a run, with one compression context.
pub struct Sealer {
    level: i32,
    context: CCtx<'static>,
    /// The run that the next frame may continue.
    run: Option<Run>,
    /// The batch, encoded; never more than [`LARGE`].
    raw: Vec<u8>,
    payload: Vec<u8>,
}

/// A run under way: where its last frame is.
struct Run {
    stream_id: [u8; 16],
    seq: u64,
    hash: Hash,
    place: u8,
    /// Of all its frames, decompressed, bytes.
    raw: usize,
    /// The sessions that its frames may name.
    sessions: Vec<Vec<u8>>,
}

/// From this length on a batch is compressed as it is, bytes. So much at once is mostly what a terminal showed, in which a dictionary finds
/// nothing and costs a third of the speed (zstd looks everything up in two places), and numbers are few.
pub(super) const LARGE: usize = 256 * 1024;
// A batch that is not large must fit a run of its own.
const _: () = assert!(LARGE <= RUN_RAW_MAX);

/// Level at which frames are sealed that were sealed before.
const RESEAL_LEVEL: i32 = 1;

/// Room for what a flush adds to the bound of what is compressed: a header and the end of a block, bytes.
const FLUSH: usize = 64;

impl Sealer {
    /// A sealer that thins, and compresses at a zstd level with the newest dictionary; large batches as they are.
    pub fn new(level: i32) -> Result<Self, FrameError> {
        let mut context = CCtx::try_create().ok_or_else(|| FrameError::Compress("no memory".to_owned()))?;
        let parameters = [
            CParameter::CompressionLevel(level),
            CParameter::WindowLog(RUN_WINDOW_LOG),
            // The header says both already.
            CParameter::ContentSizeFlag(false),
            CParameter::DictIdFlag(false),
        ];
        for parameter in parameters {
            checked(context.set_parameter(parameter))?;
        }
        checked(context.load_dictionary(DICTIONARIES[usize::from(NEWEST) - 1]))?;
        Ok(Self { level, context, run: None, raw: Vec::new(), payload: Vec::new() })
    }

    /// Compresses `batch` and seals it under `header`, whose `events` is taken from the batch. The batch is as before afterwards.
    ///
    /// The frame continues the run of the one sealed before it only where it continues its chain, is sure to fit `room` bytes, and names no session that the
    /// run's first frame did not name. So the first frame of every file can be read by itself, for whoever gives what is left of the file as room, and so
    /// can the first frame of every session.
    pub fn seal(&mut self, mut header: Header, batch: &mut Batch, room: u64) -> Result<Sealed, FrameError> {
        header.events = count_of(batch)?;
        self.raw.clear();
        thin::thin(batch, header.first_boot_ns);
        let is_large = batch.encoded_len() >= LARGE;
        if !is_large {
            // A vector grows as it must, so that this cannot fail.
            batch.encode_raw(&mut self.raw);
        }
        thin::restore(batch, header.first_boot_ns);
        // Of nothing the compressor makes nothing, not even the beginning of a run.
        if is_large || self.raw.is_empty() {
            self.run = None;
            return seal(header, batch, self.level);
        }
        let most = HEADER_LEN + compress_bound(self.raw.len()) + FLUSH + HASH_LEN;
        let run =
            self.run.take().filter(|run| most as u64 <= room && run.takes(&header, &batch.sessions, self.raw.len()));
        let (place, raw, sessions) = match run {
            Some(run) => (run.place + 1, run.raw + self.raw.len(), run.sessions),
            None => {
                checked(self.context.reset(ResetDirective::SessionOnly))?;
                (0, self.raw.len(), batch.sessions.clone())
            }
        };
        self.compress()?;
        let codec = Codec::Run { dictionary: NEWEST, place };
        let sealed = assemble(header, codec, self.raw.len(), &self.payload)?;
        let Header { stream_id, seq, .. } = header;
        self.run = Some(Run { stream_id, seq, hash: sealed.hash, place, raw, sessions });
        Ok(sealed)
    }

    /// The next part of the zstd frame into `payload`: all of `raw`, in whole blocks.
    fn compress(&mut self) -> Result<(), FrameError> {
        self.payload.clear();
        let mut input = InBuffer::around(&self.raw);
        loop {
            self.payload.reserve(compress_bound(self.raw.len()) + FLUSH);
            let written = self.payload.len();
            let mut output = OutBuffer::around_pos(&mut self.payload, written);
            let flush = ZSTD_EndDirective::ZSTD_e_flush;
            let left = checked(self.context.compress_stream2(&mut output, &mut input, flush))?;
            if left == 0 && input.pos() == self.raw.len() {
                return Ok(());
            }
        }
    }
}

impl Run {
    /// Whether a frame may be the next one.
    fn takes(&self, header: &Header, sessions: &[Vec<u8>], raw: usize) -> bool {
        let continues = (header.stream_id, header.prev, header.seq) == (self.stream_id, self.hash, self.seq + 1);
        continues
            && self.place + 1 < RUN_FRAMES
            && self.raw + raw <= RUN_RAW_MAX
            && sessions.iter().all(|session| self.sessions.contains(session))
    }
}

fn checked(result: SafeResult) -> Result<usize, FrameError> {
    result.map_err(|code| FrameError::Compress(get_error_name(code).to_owned()))
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

/// Seals a batch that is thinned and encoded already as a frame that can be read by itself; `header.events` is the caller's to get right.
pub(super) fn seal_thinned(header: Header, dictionary: u8, raw: &[u8]) -> Result<Sealed, FrameError> {
    let known =
        DICTIONARIES.get(usize::from(dictionary).saturating_sub(1)).ok_or(FrameError::Dictionary(dictionary))?;
    let compress = || zstd::bulk::Compressor::with_dictionary(RESEAL_LEVEL, known)?.compress(raw);
    let payload = compress().map_err(|e: std::io::Error| FrameError::Compress(e.to_string()))?;
    assemble(header, Codec::Thin(dictionary), raw.len(), &payload)
}

fn count_of(batch: &Batch) -> Result<u32, FrameError> {
    u32::try_from(batch.events.len()).map_err(|_| FrameError::TooLarge {
        what: "event count",
        value: batch.events.len(),
        limit: u32::MAX as usize,
    })
}

/// Puts a frame together.
pub(super) fn assemble(header: Header, codec: Codec, raw_len: usize, payload: &[u8]) -> Result<Sealed, FrameError> {
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
