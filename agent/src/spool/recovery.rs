//! Opening: checks everything, cuts what was never durable, has damage repaired.

use std::path::Path;

use breakglass_api::frame::HASH_LEN;
use rand::RngCore;

use super::{
    Cut, Disk, FileSystem, Limits, Position, Recovery, SpoolError, SpoolError as E,
    fs::{read_small, remove_if_there, replace},
    index::{Index, Shared},
    layout::{ACKED, Acked, META, Meta, SMALL_MAX, SegmentId, SmallError, TEMPORARY, VERSION},
    repair::{self, Plan},
    resume,
    scan::{FrameAt, Survey, read_batch, survey},
};

/// A repair leaves nothing to repair, a roll-back found after it one more new generation: a fourth look is one too many.
const PASSES_MAX: usize = 3;

/// Brings the folder into order and says what is in it. The caller holds the lock.
pub fn recover(disk: &Disk, dir: &Path, limits: &Limits) -> Result<(Shared, Recovery), SpoolError> {
    let mut recovery = Recovery::default();
    for _ in 0..PASSES_MAX {
        repair::complete(disk.as_ref(), dir)?;
        let state = State::read(disk, dir, limits)?;
        if !state.survey.damage.is_empty() {
            state.repair_damage()?;
            recovery.damage.extend(state.survey.damage);
            continue;
        }
        let Ended { position, stream_id, resume } = state.cut_end(&mut recovery)?;
        if state.rolled_back(&position) {
            state.begin_again(&position, resume)?;
            continue;
        }
        return state.finish(position, stream_id, resume, recovery);
    }
    Err(E::Irreparable(dir.to_owned()))
}

struct State<'a> {
    disk: &'a Disk,
    dir: &'a Path,
    limits: &'a Limits,
    meta: Option<Meta>,
    acked_there: bool,
    acked: Acked,
    ids: Vec<SegmentId>,
    survey: Survey,
}

/// The end of the spool after cutting.
struct Ended {
    position: Position,
    stream_id: Option<[u8; 16]>,
    resume: Option<Vec<u8>>,
}

impl<'a> State<'a> {
    fn read(disk: &'a Disk, dir: &'a Path, limits: &'a Limits) -> Result<Self, SpoolError> {
        let meta = small(disk.as_ref(), dir, META, Meta::decode)?;
        let acked = small(disk.as_ref(), dir, ACKED, Acked::decode)?;
        let (acked_there, acked) = (acked.is_some(), acked.unwrap_or_default());
        let names = disk.list(dir).map_err(E::io("list", dir))?;
        for name in names.iter().filter(|name| name.ends_with(TEMPORARY)) {
            remove(disk.as_ref(), dir, name)?;
        }
        let mut ids: Vec<SegmentId> = names.iter().filter_map(|name| SegmentId::parse(name)).collect();
        ids.sort_unstable();
        drop_acknowledged(disk.as_ref(), dir, &mut ids, &acked)?;
        let survey = survey(disk.as_ref(), dir, &ids)?;
        Ok(Self { disk, dir, limits, meta, acked_there, acked, ids, survey })
    }

    fn repair_damage(&self) -> Result<(), SpoolError> {
        let alerts = self.survey.damage.iter().map(|damage| ("spool-damaged", damage.describe())).collect();
        let resume = match self.survey.intact.checked_sub(1).and_then(|last| self.survey.pieces.get(last)) {
            Some(piece) => self.last_resume(piece.id, piece.end)?,
            None => None,
        };
        self.new_generation(&self.survey, alerts, resume)
    }

    fn begin_again(&self, position: &Position, resume: Option<Vec<u8>>) -> Result<(), SpoolError> {
        let message = format!(
            "the spool {} ends with frame {} of stream {}, but the collector had acknowledged frame {} of stream {}: \
             its files were replaced by older ones, or removed; a new stream begins",
            self.dir.display(),
            position.seq,
            position.generation,
            self.acked.seq,
            self.acked.generation
        );
        // What there is, is in order and stays: nothing to move, nothing to save.
        self.new_generation(&Survey::default(), vec![("spool-rolled-back", message)], resume)
    }

    fn new_generation(
        &self,
        survey: &Survey,
        alerts: Vec<(&'static str, String)>,
        resume: Option<Vec<u8>>,
    ) -> Result<(), SpoolError> {
        let (generation, stream_id) = (self.next_generation(), new_stream_id());
        let plan = Plan { generation, stream_id, alerts, resume, survey, segments: &self.ids };
        repair::run(self.disk, self.dir, self.limits, &plan)
    }

    fn next_generation(&self) -> u64 {
        let written = self.ids.last().map_or(0, |id| id.generation);
        let meta = self.meta.map_or(0, |meta| meta.generation);
        written.max(meta).max(self.acked.generation) + 1
    }

    /// Whether the collector has frames that are not here any more.
    fn rolled_back(&self, position: &Position) -> bool {
        let acked = (self.acked.generation, self.acked.seq);
        let ours = (position.generation, position.seq);
        acked > ours || (acked == ours && acked.1 > 0 && self.acked.hash != position.hash)
    }

    /// Position of the source in the frames of a segment before `end`, newest first.
    fn last_resume(&self, id: SegmentId, end: u64) -> Result<Option<Vec<u8>>, SpoolError> {
        let one = survey(self.disk.as_ref(), self.dir, &[id])?;
        for at in one.recent.iter().rev().filter(|at| at.offset < end) {
            let resume = self.resume_of(at)?;
            if !resume.is_empty() {
                return Ok(resume::decode(&resume).map(<[u8]>::to_vec));
            }
        }
        Ok(None)
    }

    fn resume_of(&self, at: &FrameAt) -> Result<Vec<u8>, SpoolError> {
        let path = self.dir.join(at.id.file_name());
        let damaged = |reason: String| E::Damaged { file: path.clone(), offset: at.offset, reason };
        let file = self.disk.open(&path).map_err(E::io("open", &path))?;
        Ok(read_batch(file.as_ref(), at).map_err(damaged)?.resume)
    }

    /// Cuts torn bytes and incomplete groups off the end.
    fn cut_end(&self, recovery: &mut Recovery) -> Result<Ended, SpoolError> {
        let mut recent: Vec<FrameAt> = self.survey.recent.iter().copied().collect();
        let mut resume = Vec::new();
        let mut unfinished = 0;
        for at in recent.iter().rev() {
            resume = self.resume_of(at)?;
            if !resume.is_empty() {
                break;
            }
            unfinished += 1;
        }
        if unfinished == super::GROUP_FRAMES_MAX {
            // No group is that long: not written by groups, so that there is nothing to go by and nothing to cut.
            unfinished = 0;
        }
        let cut = recent.split_off(recent.len() - unfinished);
        self.cut_group(&cut, recovery)?;
        self.cut_torn(&cut, recovery)?;
        let end = recent.last();
        let stream_id = end.and_then(|at| self.survey.pieces.iter().find(|p| p.id == at.id)).map(|p| p.stream_id);
        let position = match end {
            Some(at) => Position { generation: at.id.generation, seq: at.seq, hash: at.hash },
            None => Position { generation: self.meta.map_or(0, |meta| meta.generation), seq: 0, hash: [0; HASH_LEN] },
        };
        Ok(Ended { position, stream_id, resume: resume::decode(&resume).map(<[u8]>::to_vec) })
    }

    /// Removes the frames of a group that was not finished, last segment first, so that a crash meanwhile leaves no hole.
    fn cut_group(&self, frames: &[FrameAt], recovery: &mut Recovery) -> Result<(), SpoolError> {
        let mut segments: Vec<(SegmentId, u64, u64)> = Vec::new();
        for at in frames {
            match segments.last_mut().filter(|(id, ..)| *id == at.id) {
                Some((.., bytes)) => *bytes += at.bytes,
                None => segments.push((at.id, at.offset, at.bytes)),
            }
        }
        for (id, offset, bytes) in segments.into_iter().rev() {
            truncate(self.disk.as_ref(), self.dir, id, offset)?;
            recovery.cut.push(Cut { file: self.dir.join(id.file_name()), offset, bytes });
        }
        Ok(())
    }

    /// Cuts what is no frame, where the file still reaches that far, and removes segments without frames.
    fn cut_torn(&self, group: &[FrameAt], recovery: &mut Recovery) -> Result<(), SpoolError> {
        for cut in &self.survey.cut {
            let Some(id) = cut.file.file_name().and_then(|name| SegmentId::parse(name.to_str()?)) else { continue };
            recovery.cut.push(cut.clone());
            if !self.survey.empty.contains(&id) && !group.iter().any(|at| at.id == id) {
                truncate(self.disk.as_ref(), self.dir, id, cut.offset)?;
            }
        }
        for id in &self.survey.empty {
            remove(self.disk.as_ref(), self.dir, &id.file_name())?;
        }
        Ok(())
    }

    fn finish(
        self,
        mut position: Position,
        stream_id: Option<[u8; 16]>,
        resume: Option<Vec<u8>>,
        mut recovery: Recovery,
    ) -> Result<(Shared, Recovery), SpoolError> {
        let mut segments = self.survey.segments();
        segments.retain(|id, _| (id.generation, id.first_seq) <= (position.generation, position.seq));
        let stream_id = match stream_id {
            Some(stream_id) => stream_id,
            None => {
                position.generation = self.next_generation();
                recovery.new_stream = true;
                new_stream_id()
            }
        };
        let meta = Meta { generation: position.generation, stream_id };
        if self.meta != Some(meta) {
            replace(self.disk.as_ref(), self.dir, META, &meta.encode(), true)
                .map_err(E::io("write", self.dir.join(META)))?;
        }
        if !self.acked_there {
            // So that it can be overwritten in place once the disk is full.
            replace(self.disk.as_ref(), self.dir, ACKED, &self.acked.encode(), false)
                .map_err(E::io("write", self.dir.join(ACKED)))?;
        }
        if let Some(mut last) = segments.last_entry() {
            let end = self.survey.recent.iter().rev().find(|at| at.seq == position.seq);
            last.get_mut().last_seq = position.seq;
            last.get_mut().bytes = end.map_or(0, |at| at.offset + at.bytes);
        }
        recovery.new_stream |= !recovery.damage.is_empty();
        (recovery.last_seq, recovery.last_hash, recovery.resume) = (position.seq, position.hash, resume);
        let index = Index { segments, durable: position, stream_id, acked: self.acked };
        Ok((Shared::new(self.disk.clone(), self.dir, *self.limits, index), recovery))
    }
}

/// Deletes segments of which `acked` covers every frame, as far as names tell; but for the newest of them. What follows it
/// may be a group that was begun and not finished, and when that is cut the stream must still have its end.
fn drop_acknowledged(
    disk: &dyn FileSystem,
    dir: &Path,
    ids: &mut Vec<SegmentId>,
    acked: &Acked,
) -> Result<(), SpoolError> {
    let covered = |pair: &[SegmentId]| match pair {
        [id, next] if id.generation == next.generation => acked.covers(id.generation, next.first_seq - 1),
        [id, _] => id.generation < acked.generation,
        _ => false,
    };
    let count = ids.windows(2).take_while(|pair| covered(pair)).count().saturating_sub(1);
    for id in ids.drain(..count) {
        remove(disk, dir, &id.file_name())?;
    }
    Ok(())
}

fn truncate(disk: &dyn FileSystem, dir: &Path, id: SegmentId, len: u64) -> Result<(), SpoolError> {
    let path = dir.join(id.file_name());
    if len == 0 {
        return remove(disk, dir, &id.file_name());
    }
    let file = disk.open(&path).map_err(E::io("open", &path))?;
    file.set_len(len).and_then(|()| file.sync()).map_err(E::io_at("cut", &path, len))
}

fn remove(disk: &dyn FileSystem, dir: &Path, name: &str) -> Result<(), SpoolError> {
    remove_if_there(disk, &dir.join(name)).and_then(|()| disk.sync_dir(dir)).map_err(E::io("remove", dir.join(name)))
}

/// Reads `meta` or `acked`. A damaged one is as good as none: both can be made again.
fn small<T>(
    disk: &dyn FileSystem,
    dir: &Path,
    name: &str,
    decode: impl Fn(&[u8]) -> Result<T, SmallError>,
) -> Result<Option<T>, SpoolError> {
    let path = dir.join(name);
    let Some(bytes) = read_small(disk, &path, SMALL_MAX).map_err(E::io("read", &path))? else { return Ok(None) };
    match decode(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(SmallError::Version(found)) => Err(E::Version { file: path, found, known: VERSION }),
        Err(SmallError::Damaged) => {
            tracing::warn!(file = %path.display(), "damaged, made again from the segments");
            Ok(None)
        }
    }
}

fn new_stream_id() -> [u8; 16] {
    let mut id = [0; 16];
    rand::rng().fill_bytes(&mut id);
    id
}
