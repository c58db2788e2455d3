//! Reading what is in frames.

use prost::Message;

use super::{
    Frame, FrameError, Hash, Header, Sealed,
    codec::{Codec, RUN_END, check_blocks, check_run, decompress},
    seal::seal_thinned,
    thin,
};
use crate::v1::Batch;

/// Reads the batches of one stream's frames, given in their order. It remembers the payloads of the run under way, with which the next frame can be
/// read: some kilobytes as a rule, 512 KiB at most.
#[derive(Clone, Debug, Default)]
pub struct Unpacker {
    run: Option<Run>,
}

/// The part of a run that was given.
#[derive(Clone, Debug)]
struct Run {
    stream_id: [u8; 16],
    dictionary: u8,
    /// Of the last frame.
    place: u8,
    seq: u64,
    hash: Hash,
    /// All payloads, joined.
    payload: Vec<u8>,
    /// Their length, decompressed.
    raw: usize,
}

impl Unpacker {
    /// The frame from which on frames must be given before this one can be read; `None` where it can be read now.
    pub fn lacks(&self, frame: &Frame<'_>) -> Option<u64> {
        let can_be_read = frame.codec.place() == 0 || self.run.as_ref().is_some_and(|run| run.is_before(frame));
        (!can_be_read).then(|| frame.readable_from())
    }

    /// Bytes that are remembered.
    pub fn remembers(&self) -> usize {
        self.run.as_ref().map_or(0, |run| run.payload.len())
    }

    /// Takes note of a frame for the sake of those that continue its run, without reading it.
    ///
    /// # Errors
    ///
    /// [`FrameError::Continues`] where it continues a run itself and the last frame given was not the one before it, [`FrameError::TooLarge`] where the
    /// run becomes larger than any may be, [`FrameError::Decompress`] where its payload is none of a run.
    pub fn take(&mut self, frame: &Frame<'_>) -> Result<(), FrameError> {
        let before = self.run.take();
        let Codec::Run { dictionary, place } = frame.codec else { return Ok(()) };
        let (mut payload, raw) = match place {
            0 => (Vec::new(), 0),
            _ => match before.filter(|run| run.is_before(frame)) {
                Some(run) => (run.payload, run.raw),
                None => return Err(FrameError::Continues { from: frame.readable_from() }),
            },
        };
        check_blocks(frame.payload, place)?;
        payload.extend_from_slice(frame.payload);
        let raw = raw + frame.raw_len;
        check_run(raw, payload.len())?;
        let (header, hash) = (&frame.header, frame.hash);
        self.run = Some(Run { stream_id: header.stream_id, dictionary, place, seq: header.seq, hash, payload, raw });
        Ok(())
    }

    /// Decompresses and decodes the payload of a frame.
    ///
    /// # Errors
    ///
    /// Those of [`Unpacker::take`]; others where its content is not what its header says.
    pub fn batch(&mut self, frame: &Frame<'_>) -> Result<Batch, FrameError> {
        decode(frame, &self.raw(frame)?)
    }

    /// The payload of a frame, decompressed.
    fn raw(&mut self, frame: &Frame<'_>) -> Result<Vec<u8>, FrameError> {
        self.take(frame)?;
        match &self.run {
            Some(run) => Ok(run.decompress()?.split_off(run.raw - frame.raw_len)),
            None => decompress(frame.codec.dictionary(), frame.payload, frame.raw_len),
        }
    }

    /// What a frame holds at another place of another chain, for what a damaged spool still holds behind the damage: its payload as it is, or where that
    /// continues others compressed by itself. The outer error is of making the new frame, the inner one of reading the old.
    ///
    /// # Errors
    ///
    /// See [`Unpacker::batch`] and [`Frame::reseal`].
    pub fn reseal(
        &mut self,
        frame: &Frame<'_>,
        stream_id: [u8; 16],
        seq: u64,
        prev: Hash,
    ) -> Result<Result<Sealed, FrameError>, FrameError> {
        let Codec::Run { dictionary, place: 1.. } = frame.codec else {
            return match self.take(frame) {
                Ok(()) => frame.reseal(stream_id, seq, prev).map(Ok),
                Err(error) => Ok(Err(error)),
            };
        };
        match self.raw(frame) {
            Ok(raw) => seal_thinned(Header { stream_id, seq, prev, ..frame.header }, dictionary, &raw).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }
}

impl Run {
    /// Whether a frame is the one behind the last that was given.
    fn is_before(&self, frame: &Frame<'_>) -> bool {
        let Codec::Run { dictionary, place } = frame.codec else { return false };
        let header = &frame.header;
        (self.stream_id, self.hash, self.dictionary) == (header.stream_id, header.prev, dictionary)
            && Some(header.seq) == self.seq.checked_add(1)
            && place == self.place + 1
    }

    /// What all its frames so far hold.
    fn decompress(&self) -> Result<Vec<u8>, FrameError> {
        let whole = [self.payload.as_slice(), &RUN_END].concat();
        decompress(Some(self.dictionary), &whole, self.raw)
    }
}

/// Decodes the decompressed payload of a frame.
fn decode(frame: &Frame<'_>, raw: &[u8]) -> Result<Batch, FrameError> {
    // Before decoding: two bytes of payload can become an event, or a part of one, of hundreds in memory, so whoever trusts the header's count
    // to bound what this costs must be able to.
    let found = Found::of(raw).ok_or_else(|| FrameError::Batch("a field is cut short".to_owned()))?;
    if found.events != frame.header.events as usize {
        return Err(FrameError::Count { found: found.events, claimed: frame.header.events });
    }
    if found.parts > PARTS_MAX {
        return Err(FrameError::TooLarge { what: "batch as decoded, in parts", value: found.parts, limit: PARTS_MAX });
    }
    let mut batch = Batch::decode(raw).map_err(|e| FrameError::Batch(e.to_string()))?;
    if frame.codec.is_thinned() {
        thin::restore(&mut batch, frame.header.first_boot_ns);
    }
    Ok(batch)
}

/// Number of the field `Batch.events`.
const EVENTS_FIELD: u64 = 2;

/// Most parts of the events of one frame: texts and messages within what events say. Each takes two bytes of payload and 24 in memory. An agent ends a frame at
/// 1 MiB; a program's arguments beyond that are 700,000 at most, for Linux counts nine bytes for each.
const PARTS_MAX: usize = 4 * 1024 * 1024;
/// As how many parts a message in a list counts. One takes up to 136 bytes in memory, and a list that grows as much again.
const MESSAGE_PARTS: usize = 16;
/// Lists of messages within events: the field of `Event`, and the field of what that is. Also used by the test that none is missing here.
pub(super) const MESSAGE_LISTS: [(u64, u64); 6] = [(40, 15), (41, 4), (46, 1), (48, 11), (49, 1), (66, 4)];

/// What an encoded batch holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) events: usize,
    /// Texts and messages within what events say; a message in a list counts as more.
    pub(super) parts: usize,
}

impl Found {
    /// Without decoding anything; `None` where it cannot be a batch.
    pub(super) fn of(raw: &[u8]) -> Option<Self> {
        let mut found = Self::default();
        each_field(raw, |number, event| {
            if number != EVENTS_FIELD {
                found.parts += 1;
                return Some(());
            }
            found.events += 1;
            each_field(event, |said, body| {
                each_field(body, |list, _| {
                    found.parts += if MESSAGE_LISTS.contains(&(said, list)) { MESSAGE_PARTS } else { 1 };
                    Some(())
                })
            })
        })?;
        Some(found)
    }
}

/// Calls `take` with number and content of each field of an encoded message that has a length; `None` where it cannot be a message.
fn each_field(mut raw: &[u8], mut take: impl FnMut(u64, &[u8]) -> Option<()>) -> Option<()> {
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
        let (content, rest) = raw.split_at_checked(len)?;
        raw = rest;
        if key & 7 == 2 {
            take(key >> 3, content)?;
        }
    }
    Some(())
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
