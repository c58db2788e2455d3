//! Random histories against a model that is a list of committed frames.

use std::{cell::RefCell, path::Path, sync::Arc};

use breakglass_api::{
    frame::{self, FrameError, Hash, Header, Sealed, Sealer, Unpacker},
    v1::{Batch, Event, TerminalOutput, event::Body},
};
use proptest::prelude::*;

use super::{
    Limits, Position, Spool, SpoolError, SpoolReader,
    fake::{FakeDisk, Faults},
    resume,
};

/// Histories in a run of the tests, those of shipping included.
const HISTORIES: u64 = 100_000;
/// Of a hundred, how many are of the spool alone.
const SPOOL_PERCENT: u64 = 5;

/// A number from the environment.
pub fn number_from(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().unwrap())
}

/// How many histories of a kind are run.
pub fn histories(percent: u64) -> u64 {
    (number_from("BREAKGLASS_HISTORIES", HISTORIES) * percent).div_ceil(100)
}

/// Folder on the fake disk.
pub const DIR: &str = "/spool";

/// A frame with one event that says `mark`, and `fill` bytes that do not compress.
pub fn seal_next(spool: &Spool, mark: u64, fill: usize, ends_group: bool) -> Sealed {
    let next = spool.next();
    let header = Header {
        stream_id: next.stream_id,
        boot_id: [1; 16],
        seq: next.seq,
        prev: next.prev,
        first_boot_ns: mark,
        last_boot_ns: mark,
        wall_offset_ns: 0,
        events: 1,
    };
    let mut state = mark.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let mut noise = words.take(fill.div_ceil(8)).collect::<Vec<_>>().into_flattened();
    noise.truncate(fill);
    let body = Some(Body::TerminalOutput(TerminalOutput { data: noise, ..TerminalOutput::default() }));
    let mut batch = Batch {
        // Another one now and then, and the one before again.
        sessions: vec![vec![(mark / 7 % 3) as u8; 16]; usize::from(!mark.is_multiple_of(5))],
        events: vec![Event { boot_ns: mark, body, ..Event::default() }],
        resume: if ends_group { resume::encode(Some(&mark.to_le_bytes())) } else { Vec::new() },
    };
    SEALER.with_borrow_mut(|sealer| sealer.seal(header, &mut batch, next.room)).unwrap()
}

thread_local! {
    /// Most of what a small frame costs is setting this up.
    static SEALER: RefCell<Sealer> = RefCell::new(Sealer::new(1).unwrap());
}

/// Everything that a reader sees from `seq` on, checked against itself.
pub fn read_all(reader: &mut SpoolReader, generation: u64, seq: u64) -> Vec<(u64, u64, Hash)> {
    let mut out: Vec<(u64, u64, Hash)> = Vec::new();
    let (mut next, mut unpacker) = (seq, Unpacker::default());
    loop {
        let frames = reader.read(generation, next, 700).unwrap();
        if frames.is_empty() {
            return out;
        }
        let recent = reader.recent(generation, next, 700);
        assert!(frames.starts_with(&recent), "what is in memory is not what is on the disk");
        for stored in frames {
            let frame = frame::Frame::parse(&stored.bytes).unwrap();
            match unpacker.batch(&frame) {
                Ok(batch) => assert!(batch.events.iter().any(|event| event.boot_ns == frame.header.first_boot_ns)),
                // Reading began in the middle of a run.
                Err(FrameError::Continues { from }) => {
                    assert!(from < seq, "frame {next} is unreadable")
                }
                Err(error) => panic!("frame {next}: {error}"),
            }
            assert_eq!((stored.seq, stored.hash, stored.prev), (next, frame.hash, frame.header.prev));
            if let Some((_, _, last)) = out.last() {
                assert_eq!(*last, stored.prev, "the chain is broken before frame {next}");
            }
            out.push((stored.seq, frame.header.first_boot_ns, stored.hash));
            next += 1;
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A group of frames with so many bytes each.
    Group(Vec<usize>),
    /// Faults for the calls that follow.
    Faults { after: u32, count: u32, full: bool, short: bool },
    /// The disk works again.
    Heal,
    /// Frames are appended and not committed, then the machine stops.
    Crash { torn: Option<usize>, chance: u64 },
    /// The agent stops and starts.
    Reopen,
    /// The collector has a part of what is committed.
    Ack { percent: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(0usize..600, 1..4).prop_map(Step::Group),
        2 => (0u32..12, 1u32..6, any::<bool>(), any::<bool>())
            .prop_map(|(after, count, full, short)| Step::Faults { after, count, full, short }),
        2 => Just(Step::Heal),
        2 => (prop::option::of(0usize..600), any::<u64>()).prop_map(|(torn, chance)| Step::Crash { torn, chance }),
        1 => Just(Step::Reopen),
        3 => (0u64..=100).prop_map(|percent| Step::Ack { percent }),
    ]
}

/// Most faults need few steps, some need many.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let of = |lengths| prop::collection::vec(step(), lengths);
    prop_oneof![4 => of(1..12), 1 => of(12..60)]
}

pub struct Model {
    disk: FakeDisk,
    spool: Option<Spool>,
    /// Marks of committed frames; sequence is index plus one, of the current stream.
    committed: Vec<(u64, Hash)>,
    /// A refused group that could not be undone either: it may be there after a crash, whole.
    uncertain: Vec<(u64, Hash)>,
    acked: u64,
    generation: u64,
    marks: u64,
}

/// Small enough that a history begins many segments and fills the spool.
pub const LIMITS: Limits = Limits { max_bytes: 8000, segment_bytes: 1500 };

impl Model {
    /// An empty disk and a spool on it.
    pub fn new() -> Self {
        let mut model = Self {
            disk: FakeDisk::default(),
            spool: None,
            committed: vec![],
            uncertain: vec![],
            acked: 0,
            generation: 0,
            marks: 0,
        };
        model.open();
        model
    }

    fn open(&mut self) {
        self.disk.set_faults(Faults::default());
        let (spool, recovery) = Spool::open_on(Arc::new(self.disk.clone()), Path::new(DIR), LIMITS).unwrap();
        assert_eq!(recovery.damage, [], "a crash is not damage");
        if recovery.last_seq == (self.committed.len() + self.uncertain.len()) as u64 {
            self.committed.append(&mut self.uncertain);
        }
        self.uncertain.clear();
        let (seq, hash) = self.last();
        assert_eq!((recovery.last_seq, recovery.last_hash), (seq, hash), "what is committed, and nothing else");
        let resume = self.committed.last().map(|(mark, _)| mark.to_le_bytes().to_vec());
        assert_eq!(recovery.resume, resume);
        assert_eq!(recovery.new_stream, self.committed.is_empty());
        self.generation = spool.durable().generation;
        self.spool = Some(spool);
        self.check();
    }

    fn last(&self) -> (u64, Hash) {
        (self.committed.len() as u64, self.committed.last().map_or([0; 32], |(_, hash)| *hash))
    }

    /// The disk under it.
    pub fn disk(&self) -> &FakeDisk {
        &self.disk
    }

    /// The spool as it is open now.
    pub fn spool(&self) -> &Spool {
        self.spool.as_ref().unwrap()
    }

    /// Hashes of what is committed, in order.
    pub fn committed(&self) -> impl Iterator<Item = Hash> {
        self.committed.iter().map(|(_, hash)| *hash)
    }

    /// Takes note of what somebody else acknowledged to the spool.
    pub fn note_acked(&mut self) {
        let acked = self.spool().reader().acked();
        if acked.generation == self.generation {
            self.acked = self.acked.max(acked.seq);
        }
    }

    /// Appends and commits a group of frames with so many bytes each.
    pub fn group(&mut self, fills: &[usize]) {
        let Some(spool) = &mut self.spool else { return };
        let mut group = Vec::new();
        for (at, fill) in fills.iter().enumerate() {
            self.marks += 1;
            let sealed = seal_next(spool, self.marks, *fill, at + 1 == fills.len());
            match spool.append(&sealed) {
                Ok(()) => {
                    // It begins with undoing what was left.
                    self.uncertain.clear();
                    group.push((self.marks, sealed.hash));
                }
                Err(error) => return self.refused(&error, Vec::new()),
            }
        }
        match spool.commit() {
            Ok(position) => {
                self.committed.extend(group);
                self.uncertain.clear();
                let (seq, hash) = self.last();
                assert_eq!(position, Position { generation: self.generation, seq, hash });
            }
            Err(error) => self.refused(&error, group),
        }
    }

    /// A refused group leaves everything as it was, the next sequence too once the disk works.
    fn refused(&mut self, error: &SpoolError, group: Vec<(u64, Hash)>) {
        match self.spool.as_ref().is_some_and(Spool::is_settled) {
            true => self.uncertain.clear(),
            false => self.uncertain.extend(group),
        }
        assert!(matches!(error, SpoolError::Io { .. } | SpoolError::Full { .. }), "{error}");
        assert!(error.to_string().contains(DIR), "{error}");
        self.check();
    }

    /// The machine stops and starts, perhaps with a frame appended and not committed.
    pub fn crash(&mut self, torn: Option<usize>, chance: u64) {
        if let (Some(spool), Some(fill)) = (&mut self.spool, torn) {
            self.marks += 1;
            let sealed = seal_next(spool, self.marks, fill, false);
            let _ = spool.append(&sealed);
        }
        let mut state = chance | 1;
        self.disk.crash(|below| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        });
        self.spool = None;
        self.open();
    }

    fn ack(&mut self, percent: u64) {
        let Some(spool) = &self.spool else { return };
        let seq = (self.committed.len() as u64 * percent / 100).max(self.acked);
        if seq > 0 {
            self.acked = seq;
            // It may fail; then it is only less than is known.
            let _ = spool.reader().acknowledge(self.generation, seq, self.committed[seq as usize - 1].1);
        }
    }

    fn check(&mut self) {
        self.note_acked();
        let spool = self.spool.as_ref().unwrap();
        let mut reader = spool.reader();
        let oldest = reader.oldest_stream().oldest_seq.max(1);
        assert!(oldest <= self.acked + 1, "frame {oldest} is the oldest, {} was acknowledged", self.acked);
        let expected: Vec<_> = self.committed.iter().zip(1..).map(|((mark, hash), seq)| (seq, *mark, *hash)).collect();
        assert_eq!(read_all(&mut reader, self.generation, oldest), expected[oldest as usize - 1..]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: histories(SPOOL_PERCENT) as u32, ..ProptestConfig::default() })]

    #[test]
    fn committed_frames_survive_any_history(steps in steps()) {
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Group(fills) => model.group(&fills),
                Step::Faults { after, count, full, short } => model.disk.set_faults(Faults {
                    after: Some(after),
                    count,
                    errno: if full { nix::libc::ENOSPC } else { nix::libc::EIO },
                    short_writes: short,
                    ..Faults::default()
                }),
                Step::Heal => model.disk.set_faults(Faults::default()),
                Step::Crash { torn, chance } => model.crash(torn, chance),
                Step::Reopen => {
                    model.spool = None;
                    model.open();
                }
                Step::Ack { percent } => model.ack(percent),
            }
        }
        model.spool = None;
        model.open();
        let before = model.committed.len();
        model.ack(100);
        model.group(&[10]);
        prop_assert_eq!(model.committed.len(), before + 1, "a healthy disk takes the next group");
        model.check();
        let waiting = model.spool.as_ref().unwrap().reader().backlog();
        prop_assert_eq!(waiting.0, 1, "what is acknowledged does not wait");
        prop_assert!(waiting.1 <= LIMITS.segment_bytes + 700, "{} bytes", waiting.1);
    }
}
