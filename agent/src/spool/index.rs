//! What writer and reader share: which segments there are, how far they are durable, and what the collector has.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    Disk, Limits, Position,
    layout::{Acked, SegmentId},
    tail::Tail,
};

/// What is known of a segment without opening it. Only committed frames count.
#[derive(Clone, Copy, Debug)]
pub struct SegmentInfo {
    pub stream_id: [u8; 16],
    /// Last frame.
    pub last_seq: u64,
    /// Length, bytes.
    pub bytes: u64,
}

/// The changing part.
#[derive(Debug)]
pub struct Index {
    /// Committed segments; the last one is being written.
    pub segments: BTreeMap<SegmentId, SegmentInfo>,
    /// End of the current stream.
    pub durable: Position,
    /// The current stream.
    pub stream_id: [u8; 16],
    /// Last frame that the collector has.
    pub acked: Acked,
}

/// Shared by the writer and all readers.
pub struct Shared {
    pub disk: Disk,
    pub dir: PathBuf,
    pub limits: Limits,
    index: Mutex<Index>,
    /// What was committed last, for readers that keep up.
    tail: Mutex<Tail>,
    /// Held while `acked` is written or segments are deleted; what `acked` was last written as.
    pub housekeeping: Mutex<Acked>,
}

impl Shared {
    pub fn new(disk: Disk, dir: &Path, limits: Limits, index: Index) -> Self {
        let written = index.acked;
        Self {
            disk,
            dir: dir.to_owned(),
            limits,
            index: Mutex::new(index),
            tail: Mutex::default(),
            housekeeping: Mutex::new(written),
        }
    }

    /// Never held across input or output.
    pub fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never held across input or output. A panic elsewhere leaves the index whole: every change is a single assignment
    /// or insertion.
    pub fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn path(&self, id: SegmentId) -> PathBuf {
        self.dir.join(id.file_name())
    }
}

impl Index {
    /// Bytes in segments that hold a frame which the collector does not have.
    pub fn unacknowledged_bytes(&self) -> u64 {
        let waiting = |(id, info): &(&SegmentId, &SegmentInfo)| !self.acked.covers(id.generation, info.last_seq);
        self.segments.iter().filter(waiting).map(|(_, info)| info.bytes).sum()
    }

    /// Segments that are complete and that the collector has, oldest first.
    pub fn deletable(&self) -> Vec<SegmentId> {
        let closed = self.segments.len().saturating_sub(1);
        let acked = |(id, info): &(&SegmentId, &SegmentInfo)| self.acked.covers(id.generation, info.last_seq);
        self.segments.iter().take(closed).take_while(acked).map(|(id, _)| *id).collect()
    }

    /// The segment that holds a frame.
    pub fn segment_of(&self, generation: u64, seq: u64) -> Option<(SegmentId, SegmentInfo)> {
        let wanted = SegmentId { generation, first_seq: seq };
        let (id, info) = self.segments.range(..=wanted).next_back()?;
        (id.generation == generation && info.last_seq >= seq).then_some((*id, *info))
    }
}
