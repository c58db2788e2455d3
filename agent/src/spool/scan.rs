//! Reads a spool's segments from one end to the other and says what holds and what does not. Changes nothing.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::{Path, PathBuf},
};

use breakglass_api::{
    frame::{Frame, FrameError, HASH_LEN, HEADER_LEN, Hash, Header, Unpacker, frame_len},
    v1::Batch,
};

use super::{
    Cut, Damage, DiskFile, FileSystem, GROUP_FRAMES_MAX, SpoolError, fs::read_full, index::SegmentInfo,
    layout::SegmentId,
};

/// How many places that look like a frame are tried behind damage. Content that imitates frames costs this many hashes and
/// no more.
const RESYNC_TRIES: usize = 1024;
/// How much is read at a time when looking for a frame, bytes.
const RESYNC_CHUNK: usize = 64 * 1024;
/// How much is skipped where the disk cannot read, bytes: the usual block.
const UNREADABLE_SKIP: u64 = 4096;

const MAGIC: &[u8] = b"BGF1";

/// A frame found in a segment.
#[derive(Clone, Copy, Debug)]
pub struct FrameAt {
    pub id: SegmentId,
    pub offset: u64,
    pub bytes: u64,
    pub seq: u64,
    pub hash: Hash,
    /// Where the first frame begins that is needed to read it, in the same segment.
    pub readable_from: u64,
}

/// What a frame says, as far as it matters to its place.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    pub header: Header,
    pub hash: Hash,
    /// Sequence of the first frame that is needed to read it.
    pub readable_from: u64,
}

/// Frames that follow each other without a break in one segment, and can be read with what is in it.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub id: SegmentId,
    pub stream_id: [u8; 16],
    /// Where the first begins, bytes.
    pub start: u64,
    /// Where the last ends, bytes.
    pub end: u64,
    pub last_seq: u64,
    pub last_hash: Hash,
}

/// What the segments hold.
#[derive(Debug, Default)]
pub struct Survey {
    /// In order.
    pub pieces: Vec<Piece>,
    /// In order; empty if the chain holds from end to end.
    pub damage: Vec<Damage>,
    /// How many of `pieces` lie before the first damage.
    pub intact: usize,
    /// Bytes that were never durable, at the end of segments.
    pub cut: Vec<Cut>,
    /// Segments without a single frame.
    pub empty: Vec<SegmentId>,
    /// The last frames, at most `GROUP_FRAMES_MAX`.
    pub recent: VecDeque<FrameAt>,
}

impl Survey {
    /// The segments, for the index; only for an intact spool, where every segment is one piece.
    pub fn segments(&self) -> BTreeMap<SegmentId, SegmentInfo> {
        let info = |p: &Piece| SegmentInfo { stream_id: p.stream_id, last_seq: p.last_seq, bytes: p.end };
        self.pieces.iter().map(|piece| (piece.id, info(piece))).collect()
    }
}

/// Reads all of `ids`, which are in order.
pub fn survey(disk: &dyn FileSystem, dir: &Path, ids: &[SegmentId]) -> Result<Survey, SpoolError> {
    let mut surveyor = Surveyor::default();
    for &id in ids {
        let path = dir.join(id.file_name());
        let file = disk.open(&path).map_err(SpoolError::io("open", &path))?;
        let end = file.len().map_err(SpoolError::io("measure", &path))?;
        surveyor.segment(file.as_ref(), id, &path, end);
    }
    Ok(surveyor.finish())
}

#[derive(Default)]
struct Surveyor {
    out: Survey,
    /// Unusable bytes whose meaning depends on what follows.
    open: Option<Broken>,
    /// The last frame that can be read by itself: its sequence and where it begins.
    alone: (u64, u64),
    buf: Vec<u8>,
}

struct Broken {
    path: PathBuf,
    offset: u64,
    bytes: u64,
    reason: String,
    generation: u64,
    /// Whether a frame followed in the same segment, or may have: then it is not the torn end of a write.
    inside: bool,
}

impl Surveyor {
    fn segment(&mut self, file: &dyn DiskFile, id: SegmentId, path: &Path, end: u64) {
        let pieces_before = self.out.pieces.len();
        let mut offset = 0;
        while offset < end {
            match read_frame(file, offset, end, &mut self.buf) {
                Ok(read) => {
                    let bytes = self.buf.len() as u64;
                    match self.readable_from(&read, id, offset) {
                        Some(readable_from) => {
                            let Read { header, hash, .. } = read;
                            let at = FrameAt { id, offset, bytes, seq: header.seq, hash, readable_from };
                            self.frame(&header, at, path);
                        }
                        None => self.broken(Broken {
                            path: path.to_owned(),
                            offset,
                            bytes,
                            reason: format!("frame {} continues one that is not there", read.header.seq),
                            generation: id.generation,
                            inside: true,
                        }),
                    }
                    offset += bytes;
                }
                Err(reason) => {
                    let next = find_frame(file, offset + 1, end, &mut self.buf);
                    let until = if let Search::Found(at) = next { at } else { end };
                    let inside = next != Search::Nothing;
                    self.broken(Broken {
                        path: path.to_owned(),
                        offset,
                        bytes: until - offset,
                        reason,
                        generation: id.generation,
                        inside,
                    });
                    offset = until;
                }
            }
        }
        if self.out.pieces.len() == pieces_before {
            self.out.empty.push(id);
        }
    }

    /// Where the first frame begins that is needed to read the one at `offset`; `None` if not all of those are there.
    fn readable_from(&mut self, read: &Read, id: SegmentId, offset: u64) -> Option<u64> {
        if read.readable_from == read.header.seq {
            self.alone = (read.header.seq, offset);
            return Some(offset);
        }
        let last = self.out.pieces.last().filter(|last| last.id == id && self.open.is_none())?;
        let continues = (last.last_seq + 1, last.last_hash) == (read.header.seq, read.header.prev);
        let (seq, offset) = self.alone;
        (continues && seq == read.readable_from).then_some(offset)
    }

    /// Of several unusable stretches in a row the first one names the place; if it may have been the end of its segment, so
    /// may those that follow.
    fn broken(&mut self, broken: Broken) {
        match &mut self.open {
            None => self.open = Some(broken),
            Some(first) => {
                first.inside |= broken.inside;
                if !first.inside {
                    self.out.cut.push(Cut { file: broken.path, offset: broken.offset, bytes: broken.bytes });
                }
            }
        }
    }

    fn frame(&mut self, header: &Header, at: FrameAt, path: &Path) {
        let fault = self.fault(header, &at);
        match (self.open.take(), fault) {
            // A write that was given up, then repeated in the next segment.
            (Some(broken), None) if !broken.inside => {
                self.out.cut.push(Cut { file: broken.path, offset: broken.offset, bytes: broken.bytes });
                self.extend(header, at, false);
            }
            (Some(broken), _) => {
                self.damaged(broken.path, broken.offset, broken.reason, broken.generation, Some((header, at.id)));
                self.extend(header, at, true);
            }
            (None, Some(reason)) => {
                self.damaged(path.to_owned(), at.offset, reason, at.id.generation, Some((header, at.id)));
                self.extend(header, at, true);
            }
            (None, None) => self.extend(header, at, false),
        }
    }

    /// Why a frame does not continue what was read before it.
    fn fault(&self, header: &Header, at: &FrameAt) -> Option<String> {
        if at.offset == 0 && header.seq != at.id.first_seq {
            return Some(format!("it begins with frame {}, not with the one that it is named after", header.seq));
        }
        let Some(last) = self.out.pieces.last() else {
            return (at.offset != 0).then(|| "it does not begin with a frame".into());
        };
        if last.id.generation != at.id.generation {
            return (header.seq != 1).then(|| format!("its stream begins with frame {}", header.seq));
        }
        if header.stream_id != last.stream_id {
            return Some(format!("frame {} belongs to another stream", header.seq));
        }
        if header.seq != last.last_seq + 1 {
            return Some(format!("frame {} follows frame {}", header.seq, last.last_seq));
        }
        (header.prev != last.last_hash).then(|| format!("frame {} names another predecessor", header.seq))
    }

    fn damaged(
        &mut self,
        file: PathBuf,
        offset: u64,
        reason: String,
        generation: u64,
        next: Option<(&Header, SegmentId)>,
    ) {
        if self.out.damage.is_empty() {
            self.out.intact = self.out.pieces.len();
        }
        let after_seq = self.out.pieces.last().filter(|p| p.id.generation == generation).map_or(0, |p| p.last_seq);
        let before_seq = next.filter(|(_, id)| id.generation == generation).map(|(header, _)| header.seq);
        self.out.damage.push(Damage { file, offset, reason, generation, after_seq, before_seq });
    }

    fn extend(&mut self, header: &Header, at: FrameAt, after_damage: bool) {
        let end = at.offset + at.bytes;
        match self.out.pieces.last_mut().filter(|piece| piece.id == at.id && !after_damage) {
            Some(piece) => (piece.end, piece.last_seq, piece.last_hash) = (end, at.seq, at.hash),
            None => self.out.pieces.push(Piece {
                id: at.id,
                stream_id: header.stream_id,
                start: at.offset,
                end,
                last_seq: at.seq,
                last_hash: at.hash,
            }),
        }
        if self.out.recent.len() == GROUP_FRAMES_MAX {
            self.out.recent.pop_front();
        }
        self.out.recent.push_back(at);
    }

    fn finish(mut self) -> Survey {
        match self.open.take() {
            Some(broken) if broken.inside => {
                self.damaged(broken.path, broken.offset, broken.reason, broken.generation, None);
            }
            Some(tail) => self.out.cut.push(Cut { file: tail.path, offset: tail.offset, bytes: tail.bytes }),
            None => {}
        }
        if self.out.damage.is_empty() {
            self.out.intact = self.out.pieces.len();
        }
        self.out
    }
}

/// Reads and checks the frame at `offset` into `buf`. The error says why there is none.
pub fn read_frame(file: &dyn DiskFile, offset: u64, end: u64, buf: &mut Vec<u8>) -> Result<Read, String> {
    let len = frame_len_at(file, offset, end)?;
    buf.clear();
    buf.resize(len, 0);
    let have = read_full(file, buf, offset).map_err(unreadable)?;
    buf.truncate(have);
    let frame = Frame::parse(buf).map_err(|e| e.to_string())?;
    Ok(Read { header: frame.header, hash: frame.hash, readable_from: frame.readable_from() })
}

/// Reads what is in the frame at `at`, with those before it that it needs.
pub fn read_batch(file: &dyn DiskFile, at: &FrameAt) -> Result<Batch, String> {
    let (mut unpacker, mut buf) = (Unpacker::default(), Vec::new());
    let mut offset = at.readable_from;
    while offset < at.offset {
        read_frame(file, offset, at.offset, &mut buf)?;
        Frame::parse(&buf).and_then(|frame| unpacker.take(&frame)).map_err(|e| e.to_string())?;
        offset += buf.len() as u64;
    }
    read_frame(file, at.offset, at.offset + at.bytes, &mut buf)?;
    Frame::parse(&buf).and_then(|frame| unpacker.batch(&frame)).map_err(|e| e.to_string())
}

/// Length of the frame at `offset` by its header, if that many bytes are there.
pub fn frame_len_at(file: &dyn DiskFile, offset: u64, end: u64) -> Result<usize, String> {
    let mut header = [0; HEADER_LEN];
    let have = read_full(file, &mut header, offset).map_err(unreadable)?;
    let len = frame_len(header.get(..have).unwrap_or_default()).map_err(|e| e.to_string())?;
    let left = end.saturating_sub(offset);
    if len as u64 > left {
        let short = FrameError::Short { have: usize::try_from(left).unwrap_or(usize::MAX), need: len };
        return Err(short.to_string());
    }
    Ok(len)
}

fn unreadable(error: io::Error) -> String {
    format!("it cannot be read: {error}")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Search {
    Found(u64),
    Nothing,
    GaveUp,
}

/// Looks for the next place from `offset` on where a valid frame begins.
fn find_frame(file: &dyn DiskFile, mut offset: u64, end: u64, buf: &mut Vec<u8>) -> Search {
    let mut chunk = vec![0; RESYNC_CHUNK];
    let mut tries = 0;
    while offset + (HEADER_LEN + HASH_LEN) as u64 <= end {
        let Ok(have) = read_full(file, &mut chunk, offset) else {
            offset += UNREADABLE_SKIP;
            continue;
        };
        let window = chunk.get(..have).unwrap_or_default();
        for (at, _) in window.windows(MAGIC.len()).enumerate().filter(|(_, bytes)| *bytes == MAGIC) {
            if read_frame(file, offset + at as u64, end, buf).is_ok() {
                return Search::Found(offset + at as u64);
            }
            tries += 1;
            if tries == RESYNC_TRIES {
                return Search::GaveUp;
            }
        }
        // A magic may lie across the border of two chunks.
        offset += (RESYNC_CHUNK - MAGIC.len() + 1) as u64;
    }
    Search::Nothing
}
