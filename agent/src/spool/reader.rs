//! Reading what is durable, and forgetting what the collector has. Runs beside the writer, on threads that may block.

use std::{
    io,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use breakglass_api::frame::{Hash, Header};

use super::{
    DiskFile, Position, SpoolError, SpoolError as E,
    fs::{remove_if_there, replace, write_all},
    index::Shared,
    layout::{ACKED, Acked, SegmentId},
    scan::{Read, frame_len_at, read_frame},
};

/// How often `acked` is rewritten when nothing is deleted: after a crash at most this much is offered again.
const ACKED_EVERY: Duration = Duration::from_secs(1);

/// A frame as it lies in the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its sequence.
    pub seq: u64,
    /// Hash of the frame before.
    pub prev: Hash,
    /// Its hash.
    pub hash: Hash,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// One stream of the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// Which one.
    pub generation: u64,
    /// Its id.
    pub stream_id: [u8; 16],
    /// Oldest frame that is still here; 0 if none.
    pub oldest_seq: u64,
    /// Last durable frame; 0 if none.
    pub last_seq: u64,
    /// Whether frames are still added.
    pub current: bool,
}

/// A reading end.
pub struct SpoolReader {
    shared: Arc<Shared>,
    cursor: Option<Cursor>,
    last_written: Instant,
}

/// Where the next frame in sequence is.
struct Cursor {
    id: SegmentId,
    file: Box<dyn DiskFile>,
    offset: u64,
    seq: u64,
}

impl SpoolReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, cursor: None, last_written: Instant::now() }
    }

    /// Another reader of the same spool.
    pub fn another(&self) -> Self {
        Self::new(self.shared.clone())
    }

    /// The oldest stream of which the collector lacks something, as far as is known; else the current one.
    pub fn oldest_stream(&self) -> StreamInfo {
        let index = self.shared.index();
        let (id, acked) = (index.durable.generation, index.acked);
        let waiting = index.segments.iter().find(|(id, info)| !acked.covers(id.generation, info.last_seq));
        let generation = waiting.map_or(id, |(id, _)| id.generation);
        let mut of_it = index.segments.iter().filter(|(id, _)| id.generation == generation);
        let first = of_it.next();
        let last = of_it.next_back().or(first);
        StreamInfo {
            generation,
            stream_id: first.map_or(index.stream_id, |(_, info)| info.stream_id),
            oldest_seq: first.map_or(0, |(id, _)| id.first_seq),
            last_seq: last.map_or(0, |(_, info)| info.last_seq),
            current: generation == id,
        }
    }

    /// The last durable frame of the current stream.
    pub fn durable(&self) -> Position {
        self.shared.index().durable
    }

    /// The last frame that the collector is known to have; sequence 0 if none.
    pub fn acked(&self) -> Position {
        let acked = self.shared.index().acked;
        Position { generation: acked.generation, seq: acked.seq, hash: acked.hash }
    }

    /// Frames and bytes that wait for the collector.
    pub fn backlog(&self) -> (u64, u64) {
        let index = self.shared.index();
        let waiting = index.segments.iter().map(|(id, info)| {
            let acked = if id.generation == index.acked.generation { index.acked.seq } else { 0 };
            let first = id.first_seq.max(acked + 1);
            if index.acked.covers(id.generation, info.last_seq) { 0 } else { info.last_seq + 1 - first }
        });
        (waiting.sum(), index.unacknowledged_bytes())
    }

    /// Durable frames from `seq` on: as many as fit `max_bytes`, at least one if there is one.
    pub fn read(&mut self, generation: u64, mut seq: u64, max_bytes: usize) -> Result<Vec<Stored>, SpoolError> {
        let mut out = Vec::new();
        let mut total = 0;
        while let Some((id, last_seq, end)) = self.locate(generation, seq) {
            let mut cursor = self.seek(id, seq, end)?;
            while cursor.seq <= last_seq {
                let len = frame_len_at(cursor.file.as_ref(), cursor.offset, end)
                    .map_err(|reason| self.damaged(id, cursor.offset, reason))?;
                if !out.is_empty() && total + len > max_bytes {
                    self.cursor = Some(cursor);
                    return Ok(out);
                }
                out.push(self.take(&mut cursor, end)?);
                total += len;
            }
            seq = cursor.seq;
            self.cursor = Some(cursor);
        }
        Ok(out)
    }

    /// The same, as far as it was committed a moment ago and is still in memory; nothing where the disk has to be read. Never blocks.
    pub fn recent(&self, generation: u64, seq: u64, max_bytes: usize) -> Vec<Stored> {
        self.shared.tail().from(generation, seq, max_bytes)
    }

    /// The hash of a frame, from the frame itself or from its successor; `None` if neither is here.
    pub fn hash_of(&mut self, generation: u64, seq: u64) -> Result<Option<Hash>, SpoolError> {
        if let Some(frame) = self.read(generation, seq, 0)?.first() {
            return Ok(Some(frame.hash));
        }
        if let Some(frame) = self.read(generation, seq + 1, 0)?.first() {
            return Ok(Some(frame.prev));
        }
        let acked = self.acked();
        Ok(((acked.generation, acked.seq) == (generation, seq)).then_some(acked.hash))
    }

    /// Takes note that the collector has everything of a stream up to this frame. What was noted before and is more, stays.
    /// Deletes complete segments that are not needed any more.
    pub fn acknowledge(&mut self, generation: u64, seq: u64, hash: Hash) -> Result<(), SpoolError> {
        let (acked, deletable) = {
            let mut index = self.shared.index();
            if !index.acked.covers(generation, seq) {
                index.acked = Acked { generation, seq, hash };
            }
            (index.acked, index.deletable())
        };
        if deletable.is_empty() && self.last_written.elapsed() < ACKED_EVERY {
            return Ok(());
        }
        self.last_written = Instant::now();
        self.write_acked(acked, &deletable)
    }

    /// Writes down now what was noted.
    pub fn flush(&mut self) -> Result<(), SpoolError> {
        let acked = self.shared.index().acked;
        self.write_acked(acked, &[])
    }

    /// Writes `acked`, then deletes `segments`: a deleted segment is always one that `acked` explains.
    fn write_acked(&self, acked: Acked, segments: &[SegmentId]) -> Result<(), SpoolError> {
        let shared = &self.shared;
        let mut written = shared.housekeeping.lock().unwrap_or_else(PoisonError::into_inner);
        if *written != acked || !segments.is_empty() {
            self.put_acked(&acked, !segments.is_empty()).map_err(E::io("write", shared.dir.join(ACKED)))?;
            *written = acked;
        }
        for id in segments {
            // Out of the index only once it is gone: one that could not be removed is tried again with the next. One that
            // comes back after a crash is removed on opening, so that the folder need not be synced.
            remove_if_there(shared.disk.as_ref(), &shared.path(*id)).map_err(E::io("remove", shared.path(*id)))?;
            shared.index().segments.remove(id);
        }
        Ok(())
    }

    fn put_acked(&self, acked: &Acked, durable: bool) -> io::Result<()> {
        let (disk, dir) = (self.shared.disk.as_ref(), &self.shared.dir);
        match replace(disk, dir, ACKED, &acked.encode(), durable) {
            // Without this a full disk could never be emptied.
            Err(full) if matches!(full.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                let file = disk.open(&dir.join(ACKED)).map_err(|_| full)?;
                write_all(file.as_ref(), &acked.encode(), 0)?;
                file.sync()
            }
            done => done,
        }
    }

    fn locate(&self, generation: u64, seq: u64) -> Option<(SegmentId, u64, u64)> {
        self.shared.index().segment_of(generation, seq).map(|(id, info)| (id, info.last_seq, info.bytes))
    }

    /// A cursor at a frame of a segment; the last one if it is there already.
    fn seek(&mut self, id: SegmentId, seq: u64, end: u64) -> Result<Cursor, SpoolError> {
        let mut cursor = match self.cursor.take() {
            Some(cursor) if cursor.id == id && cursor.seq <= seq => cursor,
            _ => {
                let path = self.shared.path(id);
                let file = self.shared.disk.open(&path).map_err(E::io("open", path))?;
                Cursor { id, file, offset: 0, seq: id.first_seq }
            }
        };
        while cursor.seq < seq {
            let len = frame_len_at(cursor.file.as_ref(), cursor.offset, end)
                .map_err(|reason| self.damaged(id, cursor.offset, reason))?;
            cursor.offset += len as u64;
            cursor.seq += 1;
        }
        Ok(cursor)
    }

    fn take(&self, cursor: &mut Cursor, end: u64) -> Result<Stored, SpoolError> {
        let mut bytes = Vec::new();
        let Read { header: Header { seq, prev, .. }, hash, .. } =
            read_frame(cursor.file.as_ref(), cursor.offset, end, &mut bytes)
                .map_err(|reason| self.damaged(cursor.id, cursor.offset, reason))?;
        if seq != cursor.seq {
            let reason = format!("frame {seq} lies in the place of frame {}", cursor.seq);
            return Err(self.damaged(cursor.id, cursor.offset, reason));
        }
        cursor.offset += bytes.len() as u64;
        cursor.seq += 1;
        Ok(Stored { seq, prev, hash, bytes })
    }

    fn damaged(&self, id: SegmentId, offset: u64, reason: String) -> SpoolError {
        E::Damaged { file: self.shared.path(id), offset, reason }
    }
}
