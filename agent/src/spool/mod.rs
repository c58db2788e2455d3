//! The spool: where frames are durable before anybody is told that something was recorded, until the collector has them.
//!
//! # Constraints
//!
//! - What was reported durable is never lost, reordered, changed or shown twice, whatever moment the machine stops at.
//! - What was reported as not written does not appear later. The one exception is named: while the disk refuses even the
//!   undoing ([`Spool::is_settled`] says so), a crash may bring a refused group back, whole.
//! - A full disk does not stop a running session at once: the rest of the open segment and one more whole segment are
//!   reserved ahead, and what the collector has is deleted even where not a byte can be allocated. That the reserve is
//!   gone, or the bound is near, is said while there is still room ([`Spool::pressure`]), so that less can be let happen.
//! - A failed write or sync changes nothing: the spool goes back to the last committed group, and the same frames can be
//!   tried again.
//! - Damage is isolated and reported; what lies behind it is still shipped. Nothing read from the disk can cause a panic.
//! - Memory does not grow with what is spooled: an index entry a segment, one frame in hand.
//! - Disk is bounded: unacknowledged frames take at most [`Limits::max_bytes`], then appending is refused with
//!   [`SpoolError::Full`]; beside them lie acknowledged frames of at most one segment, the reserve, and what was set aside
//!   as damaged.
//!
//! # Bytes
//!
//! One flat folder, mode 0700, held by one process through a lock on `lock`. Integers are little-endian; names are decimal.
//!
//! | name | content |
//! |---|---|
//! | `GGGGGGGG-SSSSSSSSSSSSSSSSSSSS.seg` | segment of generation G whose first frame has sequence S: whole frames ([`frame`]), one behind the other, nothing between |
//! | `spare` | the reserve for the next segment: empty, its blocks allocated; becomes a segment by a rename |
//! | `meta` | `BGSM`, version u32 = 1, generation u64, stream id 16 bytes, first 8 bytes of the SHA-256 of all before |
//! | `acked` | `BGSA`, version u32 = 1, generation u64, sequence u64, frame hash 32 bytes, first 8 bytes of the SHA-256 of all before |
//! | `*.tmp` | `meta` or `acked` being rewritten; ignored and removed |
//! | `repair/` | a repair being prepared; counts only once it holds `commit` |
//! | `damaged/` | segments that were found damaged, as they were found; nothing reads them, an administrator may remove them |
//!
//! A *stream* is one chain of frames from sequence 1 under one random stream id. A *generation* numbers the streams of this
//! folder from 1. All but the highest generation are finished: their frames wait for the collector, none are added. There is
//! more than one only after a repair.
//!
//! A *group* is what is committed together: one or more frames, of which only the last has a non-empty `Batch.resume`, which
//! says where the event source goes on after the group. All frames of a group but the last are synced before the next one
//! is written, so that at most one frame of the whole spool is ever on its way to the disk, and it is the last.
//!
//! `acked` is an optimisation (the collector's Welcome is the truth); it is rewritten by rename now and then, and always,
//! synced, before segments are deleted on its account. On a full disk it is overwritten in place instead, which allocates
//! nothing: 64 bytes lie in one sector, and a torn one counts as none.
//!
//! # Recovery, on [`Spool::open`]
//!
//! 1. A committed `repair/` is finished, an uncommitted one removed. Segments that `acked` covers entirely are deleted,
//!    but for the newest of them, with which the chain is tied to what follows.
//! 2. Every frame is checked: structure, hash, stream, sequence, hash of the frame before.
//! 3. Bytes at the very end that are no whole frame, with no valid frame behind them, were never reported durable: cut.
//!    So are frames at the end of the last stream that miss the last frame of their group. Both are in [`Recovery`],
//!    and the agent says so in the record, by alerts `spool-cut`.
//! 4. No frame at all: a new generation with a new stream id begins. A stream that may have been shipped is never
//!    begun a second time.
//! 5. Anything else that does not fit is damage, and with a damaged frame the rest of its run. The frames before it stay. Every
//!    frame behind it that can be read is sealed again into a new generation, which begins with an alert `spool-damaged` saying which file, where, and which frames are missing.
//!    The damaged segments move to `damaged/`. All of this is prepared in `repair/` and takes effect at once.
//! 6. A spool that ends before what `acked` says (a disk image put back) goes on in a new generation, after an alert
//!    `spool-rolled-back`: the old stream's next sequence is already taken at the collector.

mod error;
mod fs;
mod index;
mod layout;
pub mod memory;
mod reader;
mod recovery;
mod repair;
mod scan;
mod tail;
mod writer;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use breakglass_api::frame::{self, Hash};

pub(crate) use self::fs::{read_full, read_small, remove_if_there, write_all};
pub use self::{
    error::SpoolError,
    fs::{Disk, DiskFile, FileSystem, OsDisk},
    reader::{SpoolReader, Stored, StreamInfo},
    writer::{Next, Pressure, Spool},
};

/// Most frames in one group. A round of the recorder makes one or two; recovery looks back this far for the end of a group.
pub const GROUP_FRAMES_MAX: usize = 64;

/// How much the spool may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bound of all unacknowledged frames together, bytes.
    pub max_bytes: u64,
    /// Size at which a segment is ended, bytes. A larger frame gets a segment of its own.
    pub segment_bytes: u64,
}

impl Limits {
    /// Unacknowledged bytes above which little room is left: a sixteenth of the bound, and two segments at least, are kept
    /// for what the kernel's rings hold and for the end of a session.
    pub fn high_mark(&self) -> u64 {
        self.max_bytes.saturating_sub((self.max_bytes / 16).max(2 * self.segment_bytes))
    }
}

/// The end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Which stream of this spool.
    pub generation: u64,
    /// Last frame; 0 if the stream has none.
    pub seq: u64,
    /// Its hash; zeros if there is none.
    pub hash: Hash,
}

/// What was found on opening.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Whether the stream was begun by this opening.
    pub new_stream: bool,
    /// Last frame of the stream; 0 if none.
    pub last_seq: u64,
    /// Its hash.
    pub last_hash: Hash,
    /// Where the event source was after the last durable group.
    pub resume: Option<Vec<u8>>,
    /// What was cut from the end: never reported durable. Normal after a power failure. The agent puts it into the record, as alerts.
    pub cut: Vec<Cut>,
    /// What was damaged, by now repaired. Also in the record, as alerts.
    pub damage: Vec<Damage>,
}

/// Bytes cut from the end of the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub file: PathBuf,
    /// Where the cut is, bytes.
    pub offset: u64,
    /// How much was behind it, bytes.
    pub bytes: u64,
}

/// A place where the chain is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment as it was named; by now in `damaged/`.
    pub file: PathBuf,
    /// Where the first unreadable frame begins, bytes.
    pub offset: u64,
    /// What is wrong there.
    pub reason: String,
    /// The generation that is broken.
    pub generation: u64,
    /// Last intact frame before; 0 if none.
    pub after_seq: u64,
    /// First intact frame behind, of the same generation; none if there is none.
    pub before_seq: Option<u64>,
}

impl Damage {
    /// A sentence for the record and for people.
    pub fn describe(&self) -> String {
        let missing = match self.before_seq {
            Some(next) if next > self.after_seq + 1 => {
                format!("frames {} to {} are missing", self.after_seq + 1, next - 1)
            }
            Some(next) => format!("the chain is broken before frame {next}"),
            None => format!("frames from {} on are missing", self.after_seq + 1),
        };
        format!(
            "{} is damaged at byte {}: {}; {missing} from stream {} of this host; the file is kept in the folder 'damaged'",
            self.file.display(),
            self.offset,
            self.reason,
            self.generation
        )
    }
}

/// How a position of the event source is written into `Batch.resume`, so that the end of a group is never empty.
pub mod resume {
    const NONE: u8 = 0;
    const SOME: u8 = 1;

    /// For the last frame of a group.
    pub fn encode(position: Option<&[u8]>) -> Vec<u8> {
        match position {
            None => vec![NONE],
            Some(position) => [&[SOME], position].concat(),
        }
    }

    /// The position in the last frame of a group, if there is one.
    pub fn decode(resume: &[u8]) -> Option<&[u8]> {
        match resume.split_first() {
            Some((&SOME, position)) => Some(position),
            _ => None,
        }
    }
}

const _: () = assert!(frame::HEADER_LEN + frame::HASH_LEN < 1 << 20, "a frame's overhead fits the smallest segment");
