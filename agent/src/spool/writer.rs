//! Appending, committing and going back.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use breakglass_api::frame::{Hash, Header, Sealed};

use super::{
    Disk, DiskFile, Limits, OsDisk, Position, Recovery, SpoolError, SpoolError as E,
    fs::{remove_if_there, write_all},
    index::{SegmentInfo, Shared},
    layout::{LOCK, SPARE, SegmentId},
    reader::{SpoolReader, Stored},
    recovery::recover,
};

/// The writing end. There is one.
pub struct Spool {
    shared: Arc<Shared>,
    /// Last committed state, to which a failure goes back.
    committed: State,
    /// State after the last append.
    current: State,
    /// The segment being written.
    open: Option<OpenSegment>,
    /// Segments closed or begun since the last commit; a failure removes all but the committed one.
    touched: Vec<(SegmentId, u64)>,
    /// Appended since the last commit.
    appended: Vec<Stored>,
    /// Going back failed; to be tried again before anything else.
    dirty: bool,
    /// Whether a reserve is there.
    spare: bool,
    /// When making one was last tried and failed; it was said then.
    spare_missed: Option<Instant>,
    _lock: Box<dyn Send>,
}

#[derive(Clone, Copy)]
struct State {
    seq: u64,
    hash: Hash,
    /// The last segment and its length.
    segment: Option<(SegmentId, u64)>,
}

struct OpenSegment {
    file: Box<dyn DiskFile>,
    /// Whether a frame was written since the last sync.
    unsynced: bool,
}

/// How often a missing reserve is tried again.
const RESERVE_RETRY: Duration = Duration::from_secs(1);

/// Why the spool may soon have to refuse what is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// What waits for the collector is above [`Limits::high_mark`].
    Bound {
        /// Bytes that wait.
        used: u64,
        /// The bound, bytes.
        limit: u64,
    },
    /// The disk has no room for the next segment.
    NoReserve,
}

/// What the next frame must say to continue the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// The stream.
    pub stream_id: [u8; 16],
    /// Its sequence.
    pub seq: u64,
    /// The hash of the frame before.
    pub prev: Hash,
    /// Bytes left in the segment that is being written. A frame that may need more must be one that can be read by itself, so that every segment can.
    pub room: u64,
}

fn report(recovery: &Recovery) {
    for cut in &recovery.cut {
        let (file, offset, bytes) = (cut.file.display(), cut.offset, cut.bytes);
        tracing::info!(%file, offset, bytes, "cut what was not durable when the machine or the agent stopped");
    }
    for damage in &recovery.damage {
        tracing::error!("{}", damage.describe());
    }
}

impl Spool {
    /// Opens the spool in `dir`, which is made if it is not there.
    pub fn open(dir: &Path, limits: Limits) -> Result<(Self, Recovery), SpoolError> {
        Self::open_on(Arc::new(OsDisk), dir, limits)
    }

    /// As [`Spool::open`], on any file system.
    pub fn open_on(disk: Disk, dir: &Path, limits: Limits) -> Result<(Self, Recovery), SpoolError> {
        disk.create_dir(dir).map_err(E::io("create", dir))?;
        let lock = disk.lock(&dir.join(LOCK)).map_err(E::io("lock", dir.join(LOCK)))?;
        let lock = lock.ok_or_else(|| E::Locked(dir.to_owned()))?;
        let (shared, recovery) = recover(&disk, dir, &limits)?;
        report(&recovery);
        let segment = shared.index().segments.last_key_value().map(|(id, info)| (*id, info.bytes));
        let open = match segment {
            Some((id, _)) => {
                let file = disk.open(&shared.path(id)).map_err(E::io("open", shared.path(id)))?;
                // An agent that was killed may have written the last frame and not synced it; from here on it counts.
                file.sync().map_err(E::io("sync", shared.path(id)))?;
                disk.sync_dir(dir).map_err(E::io("sync", dir))?;
                // As with the spare: not having it is no reason to stop.
                let _ = file.reserve(limits.segment_bytes);
                Some(OpenSegment { file, unsynced: false })
            }
            None => None,
        };
        let state = State { seq: recovery.last_seq, hash: recovery.last_hash, segment };
        let mut spool = Self {
            shared: Arc::new(shared),
            committed: state,
            current: state,
            open,
            touched: Vec::new(),
            appended: Vec::new(),
            dirty: false,
            spare: false,
            spare_missed: None,
            _lock: lock,
        };
        spool.reserve();
        Ok((spool, recovery))
    }

    /// What the next frame must say.
    pub fn next(&self) -> Next {
        // What is still to be undone does not count.
        let last = if self.dirty { &self.committed } else { &self.current };
        let room = last.segment.map_or(0, |(_, used)| self.shared.limits.segment_bytes.saturating_sub(used));
        Next { stream_id: self.shared.index().stream_id, seq: last.seq + 1, prev: last.hash, room }
    }

    /// The last committed frame.
    pub fn durable(&self) -> Position {
        self.shared.index().durable
    }

    /// A reader; any number may be had.
    pub fn reader(&self) -> SpoolReader {
        SpoolReader::new(self.shared.clone())
    }

    /// Writes a frame that continues the chain. It is not durable, and nobody sees it, before [`Spool::commit`]. On an error
    /// the whole group is undone.
    pub fn append(&mut self, frame: &Sealed) -> Result<(), SpoolError> {
        self.settle()?;
        let next = self.next();
        if (frame.header.stream_id, frame.header.seq, frame.header.prev) != (next.stream_id, next.seq, next.prev) {
            return Err(E::Order { seq: frame.header.seq, last: self.current.seq });
        }
        let written = self.check_room(frame.bytes.len() as u64).and_then(|()| self.write(frame));
        self.undo_on_error(written)
    }

    /// Makes all that was appended durable, as one group. On an error the whole group is undone.
    pub fn commit(&mut self) -> Result<Position, SpoolError> {
        self.settle()?;
        let synced = self.sync_open();
        self.undo_on_error(synced)?;
        self.publish();
        Ok(self.durable())
    }

    /// Undoes what was appended since the last commit.
    pub fn rollback(&mut self) -> Result<(), SpoolError> {
        self.appended.clear();
        self.dirty = true;
        self.settle()
    }

    /// Whether little room is left, and of which kind. `was` says whether there was pressure before: it ends only once a whole
    /// segment more is free than where it begins.
    pub fn pressure(&mut self, was: bool) -> Option<Pressure> {
        if self.spare_missed.is_some_and(|tried| tried.elapsed() >= RESERVE_RETRY) {
            self.reserve();
        }
        let limits = self.shared.limits;
        let used = self.shared.index().unacknowledged_bytes() + self.uncommitted_bytes();
        let mark = if was { limits.high_mark().saturating_sub(limits.segment_bytes) } else { limits.high_mark() };
        if used > mark {
            return Some(Pressure::Bound { used, limit: limits.max_bytes });
        }
        (!self.spare).then_some(Pressure::NoReserve)
    }

    /// Whether nothing is left to undo. While there is, a crash may bring back a group that was refused.
    pub fn is_settled(&self) -> bool {
        !self.dirty
    }

    fn undo_on_error(&mut self, done: Result<(), SpoolError>) -> Result<(), SpoolError> {
        if let Err(error) = &done {
            // The first error is the one to report; going back is tried again before the next write.
            if let Err(second) = self.rollback() {
                tracing::debug!(%error, %second, "going back failed as well");
            }
        }
        done
    }

    fn check_room(&self, len: u64) -> Result<(), SpoolError> {
        let limit = self.shared.limits.max_bytes;
        let used = self.shared.index().unacknowledged_bytes() + self.uncommitted_bytes();
        // A frame larger than the bound is taken when nothing else waits: refusing it for ever would help nobody.
        if used > 0 && used + len > limit {
            return Err(E::Full { dir: self.shared.dir.clone(), used, limit });
        }
        Ok(())
    }

    fn uncommitted_bytes(&self) -> u64 {
        let committed = self.committed.segment;
        let grown = |(id, len): &(SegmentId, u64)| match committed {
            Some((last, before)) if last == *id => len.saturating_sub(before),
            _ => *len,
        };
        let closed: u64 = self.touched.iter().map(grown).sum();
        closed + self.current.segment.iter().map(grown).sum::<u64>()
    }

    fn write(&mut self, frame: &Sealed) -> Result<(), SpoolError> {
        // At most one frame is ever on its way to the disk, so that what a crash tears is always the last one.
        self.sync_open()?;
        let len = frame.bytes.len() as u64;
        let room = |used: u64| used + len <= self.shared.limits.segment_bytes;
        let (id, offset) = match self.current.segment {
            Some((id, used)) if used == 0 || room(used) => (id, used),
            _ => (self.begin_segment(frame.header.seq, len)?, 0),
        };
        let path = self.shared.path(id);
        let Some(open) = &mut self.open else { return Err(E::io("write", path)(std::io::ErrorKind::NotFound.into())) };
        open.unsynced = true;
        write_all(open.file.as_ref(), &frame.bytes, offset).map_err(E::io_at("write", path, offset))?;
        self.current = State { seq: frame.header.seq, hash: frame.hash, segment: Some((id, offset + len)) };
        let Header { seq, prev, .. } = frame.header;
        self.appended.push(Stored { seq, prev, hash: frame.hash, bytes: frame.bytes.clone() });
        Ok(())
    }

    /// Ends the segment and begins another one, from the reserve if there is one.
    fn begin_segment(&mut self, first_seq: u64, need: u64) -> Result<SegmentId, SpoolError> {
        let disk = self.shared.disk.clone();
        let id = SegmentId { generation: self.durable().generation, first_seq };
        let path = self.shared.path(id);
        self.touched.extend(self.current.segment);
        // Recorded before it is there, so that going back removes it whatever fails.
        self.current.segment = Some((id, 0));
        self.open = None;
        let spare = self.shared.dir.join(SPARE);
        let file = if std::mem::take(&mut self.spare) {
            disk.rename(&spare, &path).map_err(E::io("rename the reserve to", &path))?;
            disk.open(&path).map_err(E::io("open", &path))?
        } else {
            disk.create(&path).map_err(E::io("create", &path))?
        };
        if need > self.shared.limits.segment_bytes {
            file.reserve(need).map_err(E::io("reserve space for", &path))?;
        }
        disk.sync_dir(&self.shared.dir).map_err(E::io("sync", &self.shared.dir))?;
        self.open = Some(OpenSegment { file, unsynced: false });
        self.reserve();
        Ok(id)
    }

    /// Makes the reserve if it is missing. Going without one is no reason to stop: it is missed only on a full disk.
    fn reserve(&mut self) {
        if self.spare {
            return;
        }
        let path = self.shared.dir.join(SPARE);
        let made = self.shared.disk.create(&path).and_then(|file| file.reserve(self.shared.limits.segment_bytes));
        match made {
            Ok(()) => (self.spare, self.spare_missed) = (true, None),
            Err(error) => {
                if self.spare_missed.replace(Instant::now()).is_none() {
                    tracing::warn!(file = %path.display(), %error, "no space can be reserved for the next segment");
                }
            }
        }
    }

    fn sync_open(&mut self) -> Result<(), SpoolError> {
        let path = self.current.segment.map(|(id, _)| self.shared.path(id)).unwrap_or_default();
        match &mut self.open {
            Some(open) if open.unsynced => {
                open.file.sync().map_err(E::io("sync", path))?;
                open.unsynced = false;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Makes what is committed visible to the readers.
    fn publish(&mut self) {
        let Some(last) = self.current.segment else { return };
        let mut index = self.shared.index();
        let stream_id = index.stream_id;
        self.touched.push(last);
        for (at, (id, bytes)) in self.touched.iter().enumerate() {
            // A closed segment ends where the next one begins.
            let last_seq = self.touched.get(at + 1).map_or(self.current.seq, |(next, _)| next.first_seq - 1);
            index.segments.insert(*id, SegmentInfo { stream_id, last_seq, bytes: *bytes });
        }
        let generation = index.durable.generation;
        index.durable = Position { generation, seq: self.current.seq, hash: self.current.hash };
        drop(index);
        self.shared.tail().extend(generation, self.appended.drain(..));
        self.touched.clear();
        self.committed = self.current;
    }

    /// Goes back to the last commit if something is left to undo.
    fn settle(&mut self) -> Result<(), SpoolError> {
        if !self.dirty {
            return Ok(());
        }
        let kept = self.committed.segment;
        let begun = self.touched.iter().chain(&self.current.segment).map(|(id, _)| *id);
        let begun: Vec<SegmentId> = begun.filter(|id| kept.is_none_or(|(last, _)| *id != last)).collect();
        self.open = None;
        for id in begun.into_iter().rev() {
            let path = self.shared.path(id);
            remove_if_there(self.shared.disk.as_ref(), &path).map_err(E::io("remove", &path))?;
        }
        self.shared.disk.sync_dir(&self.shared.dir).map_err(E::io("sync", &self.shared.dir))?;
        if let Some((id, len)) = kept {
            self.reopen(id, len)?;
        }
        self.touched.clear();
        self.current = self.committed;
        self.dirty = false;
        self.reserve();
        Ok(())
    }

    /// Cuts the committed segment back to its committed length.
    fn reopen(&mut self, id: SegmentId, len: u64) -> Result<(), SpoolError> {
        let path = self.shared.path(id);
        let file = self.shared.disk.open(&path).map_err(E::io("open", &path))?;
        file.set_len(len).and_then(|()| file.sync()).map_err(E::io_at("cut", &path, len))?;
        // Cutting gave the reserved blocks back.
        if let Err(error) = file.reserve(self.shared.limits.segment_bytes) {
            tracing::debug!(file = %path.display(), %error, "no space can be reserved for the rest of the segment");
        }
        self.open = Some(OpenSegment { file, unsynced: false });
        Ok(())
    }
}
