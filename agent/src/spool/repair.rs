//! Gives a spool whose chain is broken a new generation. Prepared aside, then put in place so that a crash at any moment
//! leaves the spool as it was or repaired.

use std::{collections::BTreeSet, io, path::Path};

use breakglass_api::{
    frame::{Frame, FrameError, Hash, Header, Sealed, Sealer, Unpacker},
    v1::{Alert, Batch, Event, event::Body},
};

use super::{
    Disk, DiskFile, FileSystem, Limits, SpoolError,
    fs::{read_full, read_small, replace, write_all},
    layout::{DAMAGED, META, Meta, REPAIR, REPAIR_COMMIT, SegmentId, TEMPORARY},
    resume,
    scan::{Piece, Survey},
};
use crate::recorder::clock;

/// Longest list of what a repair moves, bytes: a line of 90 bytes for each segment of the smallest size in 512 GiB.
const COMMIT_MAX: usize = 48 << 20;
/// Level of the one small frame that says what happened.
const LEVEL: i32 = 1;

/// What the new generation is to be.
pub struct Plan<'a> {
    /// Number of the new generation; above all others.
    pub generation: u64,
    /// Its stream.
    pub stream_id: [u8; 16],
    /// What it begins with: code and message.
    pub alerts: Vec<(&'static str, String)>,
    /// Position of the event source after the last group that stays.
    pub resume: Option<Vec<u8>>,
    /// What there is, and where it is broken.
    pub survey: &'a Survey,
    /// All segments, in order.
    pub segments: &'a [SegmentId],
}

/// Carries out a plan.
pub fn run(disk: &Disk, dir: &Path, limits: &Limits, plan: &Plan<'_>) -> Result<(), SpoolError> {
    let staging = dir.join(REPAIR);
    disk.create_dir(&staging).map_err(SpoolError::io("create", &staging))?;
    let intact = plan.survey.pieces.get(..plan.survey.intact).unwrap_or_default();
    let broken = plan.survey.pieces.get(plan.survey.intact..).unwrap_or_default();
    let damaged: BTreeSet<SegmentId> =
        plan.survey.damage.iter().filter_map(|d| SegmentId::parse(d.file.file_name()?.to_str()?)).collect();
    let first_moved = damaged.first().copied();

    for piece in intact.iter().filter(|piece| first_moved.is_some_and(|first| piece.id >= first)) {
        copy_piece(disk.as_ref(), dir, &staging, piece)?;
    }
    let mut writer = StagingWriter::new(disk.as_ref(), &staging, limits, plan);
    writer.alerts(plan)?;
    for piece in broken {
        writer.salvage(dir, piece)?;
    }
    writer.finish()?;
    let meta = Meta { generation: plan.generation, stream_id: plan.stream_id };
    replace(disk.as_ref(), &staging, META, &meta.encode(), true)
        .map_err(SpoolError::io("write", staging.join(META)))?;

    let moved = plan.segments.iter().filter(|id| first_moved.is_some_and(|first| **id >= first));
    let list: String = moved
        .map(|id| {
            let name = id.file_name();
            if damaged.contains(id) || writer.left_behind.contains(id) {
                format!("keep {name} {name}.{}\n", plan.generation)
            } else {
                format!("drop {name}\n")
            }
        })
        .collect();
    disk.sync_dir(dir).map_err(SpoolError::io("sync", dir))?;
    replace(disk.as_ref(), &staging, REPAIR_COMMIT, list.as_bytes(), true)
        .map_err(SpoolError::io("write", staging.join(REPAIR_COMMIT)))?;
    complete(disk.as_ref(), dir)
}

/// Finishes a repair that was committed, forgets one that was not.
pub fn complete(disk: &dyn FileSystem, dir: &Path) -> Result<(), SpoolError> {
    let staging = dir.join(REPAIR);
    let names = match disk.list(&staging) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        listed => listed.map_err(SpoolError::io("list", &staging))?,
    };
    let commit = staging.join(REPAIR_COMMIT);
    let list = read_small(disk, &commit, COMMIT_MAX).map_err(SpoolError::io("read", &commit))?;
    if let Some(list) = list {
        set_aside(disk, dir, &String::from_utf8_lossy(&list)).map_err(SpoolError::io("move segments of", dir))?;
        for name in names.iter().filter(|name| *name != REPAIR_COMMIT && !name.ends_with(TEMPORARY)) {
            disk.rename(&staging.join(name), &dir.join(name))
                .map_err(SpoolError::io("put in place", dir.join(name)))?;
        }
        disk.sync_dir(dir).map_err(SpoolError::io("sync", dir))?;
    }
    // Either the commit mark, of which nothing is left to do, or what was never committed.
    for name in disk.list(&staging).map_err(SpoolError::io("list", &staging))? {
        disk.remove(&staging.join(&name)).map_err(SpoolError::io("remove", staging.join(&name)))?;
    }
    disk.sync_dir(&staging).map_err(SpoolError::io("sync", &staging))
}

/// Moves the segments of a list out of the way. May be repeated.
fn set_aside(disk: &dyn FileSystem, dir: &Path, list: &str) -> io::Result<()> {
    let aside = dir.join(DAMAGED);
    disk.create_dir(&aside)?;
    let there = disk.list(&aside)?;
    for line in list.lines() {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next()) {
            // Once it is there, the name may belong to the intact part that took its place.
            (Some("keep"), Some(name), Some(target)) if !there.iter().any(|n| n == target) => {
                disk.rename(&dir.join(name), &aside.join(target))?;
            }
            (Some("drop"), Some(name), None) => super::fs::remove_if_there(disk, &dir.join(name))?,
            _ => {}
        }
    }
    disk.sync_dir(&aside)?;
    disk.sync_dir(dir)
}

/// Copies the intact beginning of a segment.
fn copy_piece(disk: &dyn FileSystem, dir: &Path, staging: &Path, piece: &Piece) -> Result<(), SpoolError> {
    const CHUNK: usize = 256 * 1024;
    let (from, to) = (dir.join(piece.id.file_name()), staging.join(piece.id.file_name()));
    let source = disk.open(&from).map_err(SpoolError::io("open", &from))?;
    let target = disk.create(&to).map_err(SpoolError::io("create", &to))?;
    let mut buf = vec![0; CHUNK];
    let mut offset = 0;
    while offset < piece.end {
        let want = CHUNK.min(usize::try_from(piece.end - offset).unwrap_or(CHUNK));
        let chunk = buf.get_mut(..want).unwrap_or_default();
        let have = read_full(source.as_ref(), chunk, offset).map_err(SpoolError::io_at("read", &from, offset))?;
        if have < want {
            return Err(SpoolError::Damaged {
                file: from,
                offset,
                reason: "it became shorter while being read".into(),
            });
        }
        write_all(target.as_ref(), chunk, offset).map_err(SpoolError::io_at("write", &to, offset))?;
        offset += have as u64;
    }
    target.sync().map_err(SpoolError::io("sync", &to))
}

/// Writes the new generation's segments.
struct StagingWriter<'a> {
    disk: &'a dyn FileSystem,
    staging: &'a Path,
    limits: &'a Limits,
    generation: u64,
    stream_id: [u8; 16],
    last: Option<(u64, Hash)>,
    /// Segments of which a frame could not be read.
    left_behind: BTreeSet<SegmentId>,
    file: Option<(Box<dyn DiskFile>, u64)>,
}

impl<'a> StagingWriter<'a> {
    fn new(disk: &'a dyn FileSystem, staging: &'a Path, limits: &'a Limits, plan: &Plan<'_>) -> Self {
        let (generation, stream_id) = (plan.generation, plan.stream_id);
        let left_behind = BTreeSet::new();
        Self { disk, staging, limits, generation, stream_id, last: None, left_behind, file: None }
    }

    fn alerts(&mut self, plan: &Plan<'_>) -> Result<(), SpoolError> {
        let now = clock::now();
        let events = plan.alerts.iter().map(|(code, message)| Event {
            boot_ns: now.boot_ns,
            body: Some(Body::Alert(Alert { code: (*code).into(), message: message.clone(), process: None })),
            ..Event::default()
        });
        let mut batch =
            Batch { sessions: vec![], events: events.collect(), resume: resume::encode(plan.resume.as_deref()) };
        let header = Header {
            stream_id: self.stream_id,
            boot_id: clock::boot_id(),
            seq: 1,
            prev: [0; 32],
            first_boot_ns: now.boot_ns,
            last_boot_ns: now.boot_ns,
            wall_offset_ns: now.wall_offset_ns,
            events: 0,
        };
        let sealed = Sealer::new(LEVEL).and_then(|mut sealer| sealer.seal(header, &mut batch, 0));
        self.write(&sealed.map_err(|source| self.failed(source))?)
    }

    /// Seals again every frame of a piece.
    fn salvage(&mut self, dir: &Path, piece: &Piece) -> Result<(), SpoolError> {
        let path = dir.join(piece.id.file_name());
        let file = self.disk.open(&path).map_err(SpoolError::io("open", &path))?;
        let (mut unpacker, mut buf) = (Unpacker::default(), Vec::new());
        let mut offset = piece.start;
        while offset < piece.end {
            let damaged = |reason| SpoolError::Damaged { file: path.clone(), offset, reason };
            super::scan::read_frame(file.as_ref(), offset, piece.end, &mut buf).map_err(damaged)?;
            let frame = Frame::parse(&buf).map_err(|source| self.failed(source))?;
            let (seq, prev) = self.last.map_or((1, [0; 32]), |(seq, hash)| (seq + 1, hash));
            let moved = unpacker.reseal(&frame, self.stream_id, seq, prev).map_err(|source| self.failed(source))?;
            match moved {
                Ok(sealed) => self.write(&sealed)?,
                // Nobody could read it where it was either, and a spool that cannot be repaired would keep the agent from starting.
                Err(error) => {
                    let seq = frame.header.seq;
                    tracing::error!(%error, seq, file = %path.display(), "a frame that cannot be read is left behind; its file is kept");
                    self.left_behind.insert(piece.id);
                }
            }
            offset += buf.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self, sealed: &Sealed) -> Result<(), SpoolError> {
        let len = sealed.bytes.len() as u64;
        if self.file.as_ref().is_some_and(|(_, used)| used + len > self.limits.segment_bytes) {
            self.finish()?;
        }
        let (file, offset) = match self.file.take() {
            Some(open) => open,
            None => {
                let id = SegmentId { generation: self.generation, first_seq: sealed.header.seq };
                let path = self.staging.join(id.file_name());
                (self.disk.create(&path).map_err(SpoolError::io("create", &path))?, 0)
            }
        };
        write_all(file.as_ref(), &sealed.bytes, offset).map_err(SpoolError::io_at("write", self.staging, offset))?;
        self.file = Some((file, offset + len));
        self.last = Some((sealed.header.seq, sealed.hash));
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SpoolError> {
        match self.file.take() {
            Some((file, _)) => file.sync().map_err(SpoolError::io("sync a segment in", self.staging)),
            None => Ok(()),
        }
    }

    fn failed(&self, source: FrameError) -> SpoolError {
        SpoolError::Repair { dir: self.staging.to_owned(), source }
    }
}
