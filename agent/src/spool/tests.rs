//! Damage, roll-back, bounds and the messages about them; on the fake disk and on a real one.

use std::{path::Path, sync::Arc};

use breakglass_api::{
    frame::{Frame, HASH_LEN, HEADER_LEN, Sealed, Unpacker, frame_len},
    v1::{Batch, event::Body},
};

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::{
    Limits, Pressure, Spool, SpoolError,
    fake::{FakeDisk, Faults},
    model::{DIR, LIMITS, read_all, seal_next},
};

fn open(disk: &FakeDisk) -> (Spool, super::Recovery) {
    Spool::open_on(Arc::new(disk.clone()), Path::new(DIR), LIMITS).unwrap()
}

/// Appends frames with the given marks, each a group.
fn fill(spool: &mut Spool, marks: std::ops::RangeInclusive<u64>) {
    for mark in marks {
        let sealed = seal_next(spool, mark, 300, true);
        spool.append(&sealed).unwrap();
        spool.commit().unwrap();
    }
}

fn segment(disk: &FakeDisk, generation: u64, at: usize) -> std::path::PathBuf {
    let prefix = format!("{DIR}/{generation:08}-");
    disk.files().into_iter().filter(|path| path.to_str().unwrap().starts_with(&prefix)).nth(at).unwrap()
}

fn marks(spool: &Spool, generation: u64) -> Vec<u64> {
    read_all(&mut spool.reader(), generation, 1).into_iter().map(|(_, mark, _)| mark).collect()
}

fn batch(spool: &Spool, generation: u64, seq: u64) -> Batch {
    let (mut reader, mut unpacker) = (spool.reader(), Unpacker::default());
    let mut bytes = |seq| reader.read(generation, seq, 0).unwrap().remove(0).bytes;
    let wanted = bytes(seq);
    let frame = Frame::parse(&wanted).unwrap();
    for before in frame.readable_from()..seq {
        unpacker.take(&Frame::parse(&bytes(before)).unwrap()).unwrap();
    }
    unpacker.batch(&frame).unwrap()
}

fn alerts(batch: &Batch) -> Vec<(String, String)> {
    let alert = |event: &breakglass_api::v1::Event| match &event.body {
        Some(Body::Alert(alert)) => Some((alert.code.clone(), alert.message.clone())),
        _ => None,
    };
    batch.events.iter().filter_map(alert).collect()
}

#[test]
fn damage_in_the_middle_loses_one_frame_and_says_so() {
    let disk = FakeDisk::default();
    let (mut spool, _) = open(&disk);
    fill(&mut spool, 1..=12);
    drop(spool);
    let file = segment(&disk, 1, 1);
    let original = disk.snapshot()[&file].clone();
    disk.damage(&file, |bytes| bytes[600] ^= 1);

    let (spool, recovery) = open(&disk);
    let [damage] = recovery.damage.as_slice() else { panic!("{:?}", recovery.damage) };
    assert_eq!(damage.file, file);
    assert_eq!(damage.before_seq, Some(damage.after_seq + 2));
    assert!(recovery.new_stream);
    assert_eq!(recovery.resume, Some(12u64.to_le_bytes().to_vec()));

    let lost = damage.after_seq + 1;
    assert_eq!(marks(&spool, 1), (1..lost).collect::<Vec<_>>());
    assert_eq!(marks(&spool, 2)[1..], (lost + 1..=12).collect::<Vec<_>>());
    let alerts = alerts(&batch(&spool, 2, 1));
    assert_eq!(alerts, [("spool-damaged".to_owned(), damage.describe())]);
    assert!(alerts[0].1.contains(&format!("frames {lost} to {lost} are missing")), "{}", alerts[0].1);

    let kept = format!("{DIR}/damaged/{}.2", file.file_name().unwrap().to_str().unwrap());
    let mut changed = original;
    changed[600] ^= 1;
    assert_eq!(disk.snapshot()[Path::new(&kept)], changed, "the evidence of the damage is kept");
    drop(spool);
    let (mut spool, again) = open(&disk);
    assert!(again.damage.is_empty() && !again.new_stream, "repaired once and for all");
    fill(&mut spool, 20..=21);
}

#[test]
fn a_missing_segment_is_a_hole_with_both_ends_named() {
    let disk = FakeDisk::default();
    let (mut spool, _) = open(&disk);
    fill(&mut spool, 1..=12);
    drop(spool);
    let mut files = disk.snapshot();
    files.remove(&segment(&disk, 1, 1));
    disk.restore(&files);
    let (spool, recovery) = open(&disk);
    let damage = &recovery.damage[0];
    let (first, last) = (damage.after_seq + 1, damage.before_seq.unwrap() - 1);
    assert!(first > 1 && last < 12 && first <= last);
    let expected: Vec<u64> = (1..first).chain(last + 1..=12).collect();
    let seen: Vec<u64> = marks(&spool, 1).into_iter().chain(marks(&spool, 2).into_iter().skip(1)).collect();
    assert_eq!(seen, expected);
}

/// A frame that is whole but cannot be read: what it adds to its run ends it.
fn unreadable(sealed: &Sealed) -> Sealed {
    let mut bytes = sealed.bytes.clone();
    bytes[HEADER_LEN] |= 1;
    let end = bytes.len() - HASH_LEN;
    let hash = Sha256::new().chain_update(b"breakglass-frame-v1\0").chain_update(&bytes[..end]).finalize();
    bytes[end..].copy_from_slice(&hash);
    Sealed { bytes, hash: hash.into(), ..sealed.clone() }
}

#[test]
fn a_file_with_a_frame_that_cannot_be_read_is_kept_and_the_rest_is_moved() {
    let disk = FakeDisk::default();
    let (mut spool, _) = open(&disk);
    let mut left_behind = None;
    for mark in 1..=30 {
        let mut sealed = seal_next(&spool, mark, 20, true);
        if mark > 12 && left_behind.is_none() && sealed.bytes[6] > 0 {
            left_behind = Some(mark);
            sealed = unreadable(&sealed);
        }
        spool.append(&sealed).unwrap();
        spool.commit().unwrap();
    }
    drop(spool);
    let names = |paths: Vec<std::path::PathBuf>| {
        let name = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        paths.iter().map(name).collect::<Vec<_>>()
    };
    let before = names(disk.files());
    let file = segment(&disk, 1, 0);
    disk.damage(&file, |bytes| bytes[130] ^= 1);
    let (spool, recovery) = open(&disk);
    let first = recovery.damage[0].before_seq.unwrap();
    let moved: Vec<u64> = (first..=30).filter(|mark| Some(*mark) != left_behind).collect();
    assert_eq!(marks(&spool, 2)[1..], moved);
    let number = |name: &str| name.trim_end_matches(".seg").rsplit('-').next().unwrap().parse::<u64>().unwrap();
    let holds = before.iter().filter(|name| name.ends_with(".seg")).map(|name| number(name));
    let holds = holds.filter(|first| Some(*first) <= left_behind).max().unwrap();
    let mut kept =
        names(disk.files().into_iter().filter(|path| path.to_str().unwrap().contains("/damaged/")).collect());
    kept.sort();
    let of = |first: u64| format!("00000001-{first:020}.seg.2");
    assert_eq!(kept, [of(1), of(holds)], "the damaged one, and the one with the frame");
}

/// Of frames 1 to `last`, those that can be read although the one at `offset` of `segment` cannot.
fn readable(segment: &[u8], offset: usize, last: u64) -> Vec<u64> {
    let (mut at, mut damaged, mut lost) = (0, 0, Vec::new());
    while at < segment.len() {
        let end = at + frame_len(&segment[at..]).unwrap();
        let frame = Frame::parse(&segment[at..end]).unwrap();
        if (at..end).contains(&offset) {
            damaged = frame.header.seq;
        }
        if damaged > 0 && (frame.header.seq == damaged || frame.readable_from() <= damaged) {
            lost.push(frame.header.seq);
        }
        at = end;
    }
    (1..=last).filter(|seq| !lost.contains(seq)).collect()
}

#[test]
fn damage_at_the_beginning_of_a_run_loses_the_run_and_says_so() {
    let disk = FakeDisk::default();
    let (mut spool, _) = open(&disk);
    for mark in 1..=30 {
        let sealed = seal_next(&spool, mark, 20, true);
        spool.append(&sealed).unwrap();
        spool.commit().unwrap();
    }
    drop(spool);
    let file = segment(&disk, 1, 1);
    let original = disk.snapshot()[&file].clone();
    let expected = readable(&original, 130, 30);
    assert!((1..30).contains(&expected.len()), "it is a run of several frames: {expected:?}");
    disk.damage(&file, |bytes| bytes[130] ^= 1);
    let (spool, recovery) = open(&disk);
    let [damage] = recovery.damage.as_slice() else { panic!("{:?}", recovery.damage) };
    let (first, last) = (damage.after_seq + 1, damage.before_seq.unwrap() - 1);
    assert!(last > first && damage.describe().contains(&format!("frames {first} to {last} are missing")));
    assert_eq!(marks(&spool, 1), (1..first).collect::<Vec<_>>());
    assert_eq!(marks(&spool, 2)[1..], (last + 1..=30).collect::<Vec<_>>());
    assert_eq!(expected, (1..first).chain(last + 1..=30).collect::<Vec<_>>());
    for seq in 1..=spool.durable().seq {
        assert_eq!(batch(&spool, 2, seq).events.len(), 1, "what was moved can be read");
    }
}

#[test]
fn any_single_flipped_byte_is_damage_or_a_cut_end_and_never_a_panic() {
    let disk = FakeDisk::default();
    let (mut spool, _) = open(&disk);
    fill(&mut spool, 1..=8);
    drop(spool);
    let healthy = disk.snapshot();
    for at in 0..2 {
        disk.restore(&healthy);
        let file = segment(&disk, 1, at);
        for offset in (0..healthy[&file].len()).step_by(7) {
            disk.restore(&healthy);
            disk.damage(&file, |bytes| bytes[offset] = !bytes[offset]);
            let (spool, recovery) = open(&disk);
            let seen: Vec<u64> = marks(&spool, 1)
                .into_iter()
                .chain(recovery.damage.iter().flat_map(|_| marks(&spool, 2).into_iter().skip(1)))
                .collect();
            assert_eq!(seen, readable(&healthy[&file], offset, 8), "byte {offset} of {}", file.display());
            assert_eq!(recovery.damage.len() + recovery.cut.len(), 1);
        }
    }
}

#[test]
fn a_repair_interrupted_anywhere_is_finished_or_begun_again() {
    let disk = FakeDisk::default();
    let (mut spool, _) = open(&disk);
    fill(&mut spool, 1..=12);
    drop(spool);
    disk.damage(&segment(&disk, 1, 1), |bytes| bytes[600] ^= 1);
    let broken = disk.snapshot();
    for calls in 0..60 {
        for keep_all in [false, true] {
            disk.restore(&broken);
            disk.set_faults(super::fake::Faults {
                after: Some(calls),
                count: u32::MAX,
                errno: nix::libc::EIO,
                ..super::fake::Faults::default()
            });
            let first = Spool::open_on(Arc::new(disk.clone()), Path::new(DIR), LIMITS).map(drop);
            disk.crash(|below| if keep_all { below - 1 } else { 0 });
            let (spool, _) = open(&disk);
            let generation = spool.durable().generation;
            let seen: Vec<u64> =
                marks(&spool, 1).into_iter().chain(marks(&spool, generation).into_iter().skip(1)).collect();
            assert_eq!(seen.len(), 11, "after {calls} calls, {first:?}: {seen:?}");
            assert!(seen.is_sorted());
        }
    }
}

#[test]
fn older_files_put_back_do_not_fork_the_stream() {
    let disk = FakeDisk::default();
    let (mut spool, _) = open(&disk);
    fill(&mut spool, 1..=3);
    let image = disk.snapshot();
    fill(&mut spool, 4..=6);
    let last = spool.durable();
    let mut reader = spool.reader();
    reader.acknowledge(1, last.seq, last.hash).unwrap();
    reader.flush().unwrap();
    drop((spool, reader));
    let acked = disk.snapshot()[&Path::new(DIR).join("acked")].clone();
    disk.restore(&image);
    let mut files = image;
    files.insert(Path::new(DIR).join("acked"), acked);
    disk.restore(&files);

    let (spool, recovery) = open(&disk);
    assert_eq!(recovery.resume, Some(3u64.to_le_bytes().to_vec()));
    assert_eq!(spool.durable().generation, 2);
    let alerts = alerts(&batch(&spool, 2, 1));
    assert_eq!(alerts[0].0, "spool-rolled-back");
    assert!(
        alerts[0].1.contains("ends with frame 3") && alerts[0].1.contains("acknowledged frame 6"),
        "{}",
        alerts[0].1
    );
}

#[test]
fn a_stream_that_vanished_is_not_begun_again() {
    let disk = FakeDisk::default();
    let (mut spool, _) = open(&disk);
    fill(&mut spool, 1..=3);
    let before = spool.next().stream_id;
    drop(spool);
    let mut files = disk.snapshot();
    files.retain(|path, _| path.extension().is_none_or(|e| e != "seg"));
    disk.restore(&files);
    let (spool, recovery) = open(&disk);
    assert!(recovery.new_stream);
    assert_ne!(spool.next().stream_id, before);
    assert_eq!(spool.durable().generation, 2);
}

#[test]
fn small_files_are_made_again() {
    let disk = FakeDisk::default();
    let (mut spool, _) = open(&disk);
    fill(&mut spool, 1..=3);
    let next = spool.next();
    drop(spool);
    for name in ["meta", "acked"] {
        let mut files = disk.snapshot();
        files.insert(Path::new(DIR).join(name), b"noise".to_vec());
        disk.restore(&files);
        assert_eq!(open(&disk).0.next(), next, "{name}");
    }
    let mut files = disk.snapshot();
    files.remove(&Path::new(DIR).join("meta"));
    disk.restore(&files);
    assert_eq!(open(&disk).0.next(), next);
}

#[test]
fn full_is_refused_until_the_collector_has_something() {
    let disk = FakeDisk::default();
    let (mut spool, _) = open(&disk);
    let mut mark = 0;
    let error = loop {
        mark += 1;
        let sealed = seal_next(&spool, mark, 300, true);
        match spool.append(&sealed) {
            Ok(()) => drop(spool.commit().unwrap()),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SpoolError::Full { .. }), "{error}");
    assert!(error.to_string().contains("spool.max_bytes"), "{error}");
    let last = spool.durable();
    let mut reader = spool.reader();
    assert!(reader.backlog().1 <= LIMITS.max_bytes);
    assert_eq!(reader.backlog().0, last.seq);
    reader.acknowledge(1, last.seq, last.hash).unwrap();
    assert_eq!(reader.backlog(), (0, 0));
    // A single frame above the bound is taken when nothing else waits.
    let sealed = seal_next(&spool, mark, 20_000, true);
    spool.append(&sealed).unwrap();
    assert_eq!(spool.commit().unwrap().seq, last.seq + 1);
    reader.acknowledge(1, last.seq + 1, sealed.hash).unwrap();
    assert!(disk.files().len() < 8, "acknowledged segments are gone: {:?}", disk.files());
}

#[test]
fn a_full_disk_takes_what_was_reserved_and_is_emptied_by_acknowledgements() {
    let disk = FakeDisk::default();
    let (mut spool, _) = open(&disk);
    fill(&mut spool, 1..=1);
    assert_eq!(spool.pressure(false), None);
    disk.set_faults(Faults { full: true, ..Faults::default() });
    let mut mark = 1;
    let refused = loop {
        mark += 1;
        let sealed = seal_next(&spool, mark, 300, true);
        if let Err(error) = spool.append(&sealed).and_then(|()| spool.commit().map(drop)) {
            break error;
        }
    };
    assert!(refused.to_string().contains("free space"), "{refused}");
    assert_eq!(
        mark as usize,
        2 * (LIMITS.segment_bytes as usize / 500) + 1,
        "the open segment and the reserve were used"
    );
    assert_eq!(spool.pressure(false), Some(Pressure::NoReserve));
    let end = spool.durable();
    assert_eq!(end.seq, mark - 1);

    let segments = disk.files().len();
    spool.reader().acknowledge(end.generation, end.seq, end.hash).unwrap();
    assert!(disk.files().len() < segments, "nothing could be deleted");
    disk.crash(|_| 0);
    drop(spool);
    let (mut spool, recovery) = open(&disk);
    assert_eq!((recovery.last_seq, recovery.damage.len(), spool.reader().acked().seq), (end.seq, 0, end.seq));
    assert_eq!(spool.pressure(false), None);
}

#[test]
fn a_second_process_is_refused() {
    let disk = FakeDisk::default();
    let (_spool, _) = open(&disk);
    let second = Spool::open_on(Arc::new(disk.clone()), Path::new(DIR), LIMITS).map(drop);
    assert!(matches!(second, Err(SpoolError::Locked(_))));
}

#[test]
fn a_frame_out_of_order_is_refused() {
    let disk = FakeDisk::default();
    let (mut spool, _) = open(&disk);
    let sealed = seal_next(&spool, 1, 10, true);
    spool.append(&sealed).unwrap();
    assert!(matches!(spool.append(&sealed), Err(SpoolError::Order { seq: 1, last: 1 })));
    spool.rollback().unwrap();
    spool.append(&sealed).unwrap();
    spool.commit().unwrap();
}

#[test]
fn a_finished_stream_is_shipped_before_the_next() {
    let disk = FakeDisk::default();
    let (mut spool, _) = open(&disk);
    fill(&mut spool, 1..=12);
    drop(spool);
    disk.damage(&segment(&disk, 1, 1), |bytes| bytes[600] ^= 1);
    let (spool, _) = open(&disk);
    let mut reader = spool.reader();
    let first = reader.oldest_stream();
    assert_eq!((first.generation, first.current), (1, false));
    let hash = reader.hash_of(1, first.last_seq).unwrap().unwrap();
    reader.acknowledge(1, first.last_seq, hash).unwrap();
    let second = reader.oldest_stream();
    assert_eq!((second.generation, second.current, second.oldest_seq), (2, true, 1));
    assert_eq!(second.last_seq, spool.durable().seq);
    assert!(reader.read(1, 1, 0).unwrap().is_empty(), "what was acknowledged is deleted");
}

#[test]
fn a_damaged_frame_met_while_reading_is_an_error_with_its_place() {
    let disk = FakeDisk::default();
    let (mut spool, _) = open(&disk);
    fill(&mut spool, 1..=3);
    let file = segment(&disk, 1, 0);
    disk.damage(&file, |bytes| bytes[200] ^= 1);
    let error = spool.reader().read(1, 1, 10_000).unwrap_err();
    assert!(matches!(error, SpoolError::Damaged { offset: 0, .. }), "{error}");
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
}

#[test]
fn the_real_disk_keeps_frames_reserves_space_and_locks() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("spool");
    let limits = Limits { max_bytes: 16 << 20, segment_bytes: 1 << 20 };
    let (mut spool, recovery) = Spool::open(&dir, limits).unwrap();
    assert!(recovery.new_stream);
    for mark in 1..=6 {
        let sealed = seal_next(&spool, mark, 300_000, true);
        spool.append(&sealed).unwrap();
        spool.commit().unwrap();
    }
    let spare = std::fs::metadata(dir.join("spare")).unwrap();
    assert_eq!(spare.len(), 0);
    use std::os::unix::fs::MetadataExt;
    assert!(spare.blocks() * 512 >= limits.segment_bytes || spare.blocks() == 0, "reserved where the file system can");
    assert!(matches!(Spool::open(&dir, limits).map(drop), Err(SpoolError::Locked(_))));
    let end = spool.durable();
    drop(spool);
    let (spool, recovery) = Spool::open(&dir, limits).unwrap();
    assert_eq!((recovery.last_seq, recovery.last_hash, recovery.new_stream), (end.seq, end.hash, false));
    assert_eq!(marks(&spool, 1), [1, 2, 3, 4, 5, 6]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever happened to the files, the spool opens, what it says is a chain, and a second opening finds nothing.
    #[test]
    fn any_damage_is_repaired_once(
        hits in prop::collection::vec((0usize..8, any::<u16>(), 0u8..4, any::<u8>()), 1..6),
        drop_meta in any::<bool>(),
    ) {
        let disk = FakeDisk::default();
        let (mut spool, _) = open(&disk);
        fill(&mut spool, 1..=12);
        drop(spool);
        for (file, at, kind, value) in hits {
            let files: Vec<_> = disk.files().into_iter().filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
            let Some(path) = files.get(file % files.len().max(1)) else { continue };
            disk.damage(path, |bytes| {
                let at = usize::from(at) % bytes.len().max(1);
                match kind {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, value),
                    2 => drop(bytes.drain(..at)),
                    _ => bytes.iter_mut().skip(at).take(usize::from(value)).for_each(|byte| *byte = value),
                }
            });
        }
        if drop_meta {
            disk.damage(&Path::new(DIR).join("meta"), Vec::clear);
        }
        let (mut spool, _) = open(&disk);
        for generation in 1..=spool.durable().generation {
            prop_assert!(marks(&spool, generation).iter().filter(|mark| **mark <= 12).is_sorted());
        }
        fill(&mut spool, 13..=14);
        let end = spool.durable();
        drop(spool);
        let (spool, again) = open(&disk);
        prop_assert_eq!(again.damage, vec![]);
        prop_assert_eq!(spool.durable(), end);
    }
}
