//! The recorder against a source that remembers and a disk that fails.

use std::{
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use breakglass_api::{
    frame::{Frame, Unpacker},
    v1::{Alert, Batch, Event, KernelRef, TerminalOutput, event::Body},
};
use uuid::Uuid;

use super::{
    Options, RecordError, Recorder, clock,
    source::{EventSource, Observed},
    worker::Worker,
};
use crate::spool::{
    Limits, Recovery, Spool, SpoolReader,
    fake::{FakeDisk, Faults},
    model::DIR,
};

const LIMITS: Limits = Limits { max_bytes: 64 << 20, segment_bytes: 64 << 10 };
const PATIENCE: Duration = Duration::from_secs(20);

/// What the kernel's rings would hold; survives the recorder.
#[derive(Default)]
struct Rings {
    events: Vec<Observed>,
    released: usize,
    woken: bool,
}

#[derive(Clone, Default)]
struct FakeSource {
    rings: Arc<(Mutex<Rings>, Condvar)>,
    next: usize,
}

impl FakeSource {
    fn produce(&self, events: impl IntoIterator<Item = Observed>) {
        self.rings.0.lock().unwrap().events.extend(events);
        self.rings.1.notify_all();
    }

    /// The same rings, as the next agent finds them.
    fn reopened(&self) -> Self {
        let next = self.rings.0.lock().unwrap().released;
        Self { rings: self.rings.clone(), next }
    }

    fn released(&self) -> usize {
        self.rings.0.lock().unwrap().released
    }
}

impl EventSource for FakeSource {
    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let next = self.next;
        let idle = |rings: &mut Rings| !rings.woken && rings.events.len() <= next;
        let (mut rings, _) = self.rings.1.wait_timeout_while(self.rings.0.lock().unwrap(), timeout, idle).unwrap();
        rings.woken = false;
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let rings = self.rings.clone();
        Arc::new(move || {
            rings.0.lock().unwrap().woken = true;
            rings.1.notify_all();
        })
    }

    fn read(&mut self, out: &mut Vec<Observed>, max_bytes: usize) -> io::Result<()> {
        let rings = self.rings.0.lock().unwrap();
        let mut bytes = 0;
        while let Some(observed) = rings.events.get(self.next).filter(|_| bytes < max_bytes) {
            bytes += prost::Message::encoded_len(&observed.event);
            out.push(observed.clone());
            self.next += 1;
        }
        Ok(())
    }

    fn position(&self) -> Vec<u8> {
        self.next.to_le_bytes().to_vec()
    }

    fn release(&mut self) {
        let mut rings = self.rings.0.lock().unwrap();
        assert!(rings.released <= self.next);
        rings.released = self.next;
    }

    fn resume(&mut self, position: &[u8]) -> io::Result<()> {
        self.next = usize::from_le_bytes(position.try_into().unwrap());
        Ok(())
    }
}

fn output(number: u64, len: usize) -> Observed {
    let body = Body::TerminalOutput(TerminalOutput { terminal: number, data: vec![b'x'; len], ..Default::default() });
    let origin = Some(KernelRef { seq: number, ..KernelRef::default() });
    Observed { slot: 1, event: Event { boot_ns: number, origin, body: Some(body), ..Event::default() } }
}

fn alert(code: &str) -> Body {
    Body::Alert(Alert { code: code.into(), ..Alert::default() })
}

fn options() -> Options {
    Options { give_up: Duration::from_millis(150), ..Options::default() }
}

fn open(disk: &FakeDisk) -> (Spool, Recovery) {
    Spool::open_on(Arc::new(disk.clone()), Path::new(DIR), LIMITS).unwrap()
}

fn start(disk: &FakeDisk, source: Option<&FakeSource>, options: Options) -> (Recorder, SpoolReader) {
    let (spool, recovery) = open(disk);
    let reader = spool.reader();
    let source = source.map(|source| Box::new(source.reopened()) as Box<dyn EventSource>);
    (Recorder::start(source, spool, &recovery, &[], options).unwrap(), reader)
}

fn batches(reader: &mut SpoolReader) -> Vec<Batch> {
    let mut out = Vec::new();
    let generation = reader.durable().generation;
    let oldest = reader.oldest_stream().oldest_seq.max(1);
    let mut unpacker = Unpacker::default();
    for stored in reader.read(generation, oldest, usize::MAX).unwrap() {
        out.push(unpacker.batch(&Frame::parse(&stored.bytes).unwrap()).unwrap());
    }
    out
}

fn codes(reader: &mut SpoolReader) -> Vec<String> {
    let events = batches(reader).into_iter().flat_map(|batch| batch.events);
    events
        .filter_map(|event| match event.body {
            Some(Body::Alert(alert)) => Some(alert.code),
            _ => None,
        })
        .collect()
}

async fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not happen within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn the_agent_s_own_events_are_durable_when_answered() {
    let disk = FakeDisk::default();
    let (recorder, mut reader) = start(&disk, None, options());
    let session = Uuid::from_u128(7);
    let first = recorder.record(None, alert("one")).await.unwrap();
    let second = recorder.record(Some(session), alert("two")).await.unwrap();
    assert_eq!((first, second, *recorder.durable().borrow()), (1, 2, (2, reader.durable().hash)));
    disk.crash(|_| 0);
    recorder.stop().await;
    drop(recorder);
    let (spool, _) = open(&disk);
    reader = spool.reader();
    let batches = batches(&mut reader);
    assert_eq!(batches[1].sessions, [session.as_bytes()]);
    assert_eq!((batches[0].events[0].session, batches[1].events[0].session), (0, 1));
    assert_eq!(codes(&mut reader), ["one", "two"]);
}

#[tokio::test]
async fn kernel_events_get_their_session_and_run_forward_in_time() {
    let disk = FakeDisk::default();
    let source = FakeSource::default();
    let (recorder, mut reader) = start(&disk, Some(&source), options());
    let session = Uuid::from_u128(9);
    recorder.name_session(1, session);
    source.produce([
        output(30, 1),
        output(10, 1),
        Observed { slot: 2, ..output(20, 1) },
        Observed { slot: 0, ..output(40, 1) },
    ]);
    recorder.barrier().await.unwrap();
    let batch = &batches(&mut reader)[0];
    let seen: Vec<_> = batch.events.iter().map(|event| (event.boot_ns, event.session)).collect();
    assert_eq!(seen, [(10, 1), (20, 0), (30, 1), (40, 0)]);
    assert_eq!(batch.sessions, [session.as_bytes()]);
    assert_eq!(recorder.stats().unnamed, 1);
    assert_eq!(source.released(), 4);
    recorder.stop().await;
}

#[tokio::test]
async fn a_burst_shares_syncs_and_a_barrier_waits_for_all_of_it() {
    let disk = FakeDisk::default();
    let source = FakeSource::default();
    let (recorder, _reader) = start(&disk, Some(&source), Options::default());
    source.produce((1..=50_000).map(|number| output(number, 100)));
    recorder.barrier().await.unwrap();
    let stats = recorder.stats();
    assert_eq!((stats.events, source.released()), (50_000, 50_000));
    assert!(stats.commits < 50, "{stats:?}");
    recorder.stop().await;
}

#[tokio::test]
async fn a_huge_event_passes_and_one_above_a_frame_is_a_gap() {
    let disk = FakeDisk::default();
    let source = FakeSource::default();
    let (recorder, mut reader) = start(&disk, Some(&source), Options::default());
    source.produce([output(1, 10), output(2, 13 << 20), output(3, 40 << 20), output(4, 10)]);
    recorder.barrier().await.unwrap();
    let batches = batches(&mut reader);
    let lens: Vec<usize> = batches.iter().map(|batch| batch.events.len()).collect();
    assert_eq!(lens[..2], [1, 1], "the huge one has a frame of its own");
    let events: Vec<Event> = batches.into_iter().flat_map(|batch| batch.events).collect();
    let Some(Body::Gap(gap)) = &events[2].body else { panic!("{:?}", events[2].origin) };
    assert_eq!((gap.first_seq, gap.records, gap.cause.as_str()), (3, 1, "too-large"));
    assert_eq!((events.len(), recorder.stats().too_large), (4, 1));
    recorder.stop().await;
}

#[tokio::test]
async fn an_event_reported_as_failed_does_not_appear_later() {
    let disk = FakeDisk::default();
    let (recorder, mut reader) = start(&disk, None, options());
    recorder.record(None, alert("before")).await.unwrap();
    // The undoing works, every write fails.
    disk.set_faults(Faults { fail_writes: true, errno: nix::libc::ENOSPC, ..Faults::default() });
    let mut errors = Vec::new();
    // Whoever gives up in the moment of an attempt learns that it is not known; most often it is between two.
    while !errors.iter().any(|error| matches!(error, RecordError::Timeout { .. })) && errors.len() < 20 {
        errors.push(recorder.record(None, alert("refused")).await.unwrap_err());
    }
    let error = errors.last().unwrap();
    assert!(matches!(error, RecordError::Timeout { reason, .. } if reason.contains("free space")), "{error}");
    assert!(recorder.stats().last_error.is_some());
    disk.set_faults(Faults::default());
    recorder.record(None, alert("after")).await.unwrap();
    assert_eq!(codes(&mut reader), ["before", "after"]);
    assert_eq!(recorder.stats().last_error, None);
    recorder.stop().await;
}

#[tokio::test]
async fn a_disk_that_became_read_only_is_lost_and_a_full_one_is_not() {
    for (errno, is_lost) in [(nix::libc::EROFS, true), (nix::libc::ENOSPC, false)] {
        let disk = FakeDisk::default();
        let (recorder, _reader) = start(&disk, None, options());
        let mut lost = recorder.lost_disk();
        disk.set_faults(Faults { fail_writes: true, errno, ..Faults::default() });
        recorder.record(None, alert("refused")).await.unwrap_err();
        let told = tokio::time::timeout(Duration::from_secs(13), lost.wait_for(Option::is_some)).await;
        assert_eq!(told.is_ok(), is_lost, "{errno}");
        drop(told);
        disk.set_faults(Faults::default());
        recorder.stop().await;
    }
}

#[tokio::test]
async fn what_came_late_is_followed_by_a_word() {
    let disk = FakeDisk::default();
    let (recorder, mut reader) = start(&disk, None, options());
    disk.set_hang(true);
    assert_eq!(recorder.unanswered(), Duration::ZERO);
    let error = recorder.record(None, alert("slow")).await.unwrap_err();
    assert!(matches!(error, RecordError::Uncertain { .. }), "{error}");
    assert!(recorder.unanswered() >= options().give_up / 2, "{:?}", recorder.unanswered());
    disk.set_hang(false);
    until(|| codes(&mut reader).len() == 2).await;
    until(|| recorder.unanswered().is_zero()).await;
    assert_eq!(codes(&mut reader), ["slow", "late-record"]);
    recorder.stop().await;
}

#[tokio::test]
async fn a_full_spool_holds_the_rings_until_the_collector_has_something() {
    let disk = FakeDisk::default();
    let source = FakeSource::default();
    let limits = Limits { max_bytes: 3000, segment_bytes: 1000 };
    let (spool, recovery) = Spool::open_on(Arc::new(disk.clone()), Path::new(DIR), limits).unwrap();
    let mut reader = spool.reader();
    let recorder = Recorder::start(Some(Box::new(source.clone())), spool, &recovery, &[], options()).unwrap();
    let mut made = 0;
    while recorder.stats().last_error.is_none() {
        made += 1;
        source.produce([output(made, 50)]);
        let _ = recorder.barrier().await;
        assert!(made < 100, "the bound was not noticed");
    }
    assert!(recorder.stats().last_error.unwrap().contains("full"));
    assert!((source.released() as u64) < made);
    let end = reader.durable();
    reader.acknowledge(end.generation, end.seq, end.hash).unwrap();
    until(|| source.released() as u64 == made).await;
    recorder.stop().await;
}

#[tokio::test]
async fn high_water_is_said_before_the_spool_is_full_and_taken_back_when_there_is_room() {
    let disk = FakeDisk::default();
    let limits = Limits { max_bytes: 16_000, segment_bytes: 1000 };
    let (spool, recovery) = Spool::open_on(Arc::new(disk.clone()), Path::new(DIR), limits).unwrap();
    let mut reader = spool.reader();
    let recorder = Recorder::start(None, spool, &recovery, &[], options()).unwrap();
    let high = recorder.high_water();
    let mut made = 0;
    while !*high.borrow() {
        recorder.record(None, alert("more")).await.unwrap();
        made += 1;
        assert!(made < 1000, "it was not said");
    }
    assert!(recorder.stats().high_water.unwrap().contains("spool.max_bytes"));
    // What the reserve is for.
    for _ in 0..3 {
        recorder.record(None, alert("more")).await.unwrap();
    }
    let end = reader.durable();
    reader.acknowledge(end.generation, end.seq, end.hash).unwrap();
    until(|| !*high.borrow()).await;
    until(|| codes(&mut reader).last().is_some_and(|code| code == "spool-has-room")).await;
    assert_eq!(recorder.stats().high_water, None);
    recorder.stop().await;
}

#[tokio::test]
async fn a_full_disk_is_high_water_and_is_emptied_by_the_collector_all_the_same() {
    let disk = FakeDisk::default();
    let (recorder, mut reader) = start(&disk, None, options());
    recorder.record(None, alert("before")).await.unwrap();
    let high = recorder.high_water();
    disk.set_faults(Faults { fail_writes: true, errno: nix::libc::ENOSPC, ..Faults::default() });
    recorder.record(None, alert("refused")).await.unwrap_err();
    until(|| *high.borrow()).await;
    disk.set_faults(Faults::default());
    until(|| !*high.borrow()).await;
    until(|| codes(&mut reader).len() == 3).await;
    assert_eq!(codes(&mut reader), ["before", "spool-high-water", "spool-has-room"]);
    recorder.stop().await;
}

#[tokio::test]
async fn stop_writes_what_the_rings_still_hold() {
    let disk = FakeDisk::default();
    let source = FakeSource::default();
    let (recorder, mut reader) = start(&disk, Some(&source), options());
    source.produce((1..=5000).map(|number| output(number, 100)));
    recorder.stop().await;
    assert_eq!(batches(&mut reader).iter().map(|batch| batch.events.len()).sum::<usize>(), 5000);
    assert_eq!(recorder.record(None, alert("late")).await, Err(RecordError::Closed));
}

#[tokio::test]
async fn a_disk_that_does_not_answer_does_not_keep_the_agent_from_ending() {
    let disk = FakeDisk::default();
    let (recorder, _reader) = start(&disk, None, options());
    disk.set_hang(true);
    recorder.record(None, alert("slow")).await.unwrap_err();
    let began = Instant::now();
    recorder.stop().await;
    assert!(began.elapsed() < PATIENCE);
    disk.set_hang(false);
}

#[tokio::test]
async fn nothing_is_lost_or_twice_over_crashes_and_failing_disks() {
    let disk = FakeDisk::default();
    let source = FakeSource::default();
    let mut made = 0;
    for life in 0u64..12 {
        let (recorder, _) = start(&disk, Some(&source), options());
        for step in 0..8 {
            source.produce((made + 1..=made + 40).map(|number| output(number, 700)));
            made += 40;
            let after = (life * 7 + step * 3) as u32 % 11;
            disk.set_faults(Faults { after: Some(after), count: 2, errno: nix::libc::EIO, ..Faults::default() });
            until(|| source.released() as u64 + 200 > made).await;
        }
        let mut state = life;
        disk.crash(|below| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 33) as usize % below
        });
        recorder.stop().await;
    }
    let (recorder, mut reader) = start(&disk, Some(&source), options());
    recorder.barrier().await.unwrap();
    let events = batches(&mut reader).into_iter().flat_map(|batch| batch.events);
    // A disk that fails for a moment may be high water for a moment.
    let events = events.filter(|event| !matches!(event.body, Some(Body::Alert(_))));
    let seen: Vec<u64> = events.map(|event| event.boot_ns).collect();
    assert!(seen.iter().copied().eq(1..=made), "{} of {made}: not the same, or not in order", seen.len());
    recorder.stop().await;
}

/// Between two commits the wall clock moved against the boot clock, forward or back: that is in the record, with how far.
#[test]
fn a_step_of_the_wall_clock_is_an_event_of_its_own() {
    let (spool, _) = open(&FakeDisk::default());
    let (_commands, receiver) = tokio::sync::mpsc::channel(1);
    let (publish, _) = tokio::sync::watch::channel((0, [0; 32]));
    let source = Box::new(super::idle::IdleSource::default());
    let mut worker = Worker::new(source, spool, receiver, publish, Arc::default(), options()).unwrap();
    let mut step = |boot_ns, wall_offset_ns| {
        let event = worker.clock_step(&clock::Now { boot_ns, wall_offset_ns })?.event;
        match event.body {
            Some(Body::ClockStep(step)) => Some((event.boot_ns, step.nanoseconds)),
            other => panic!("{other:?}"),
        }
    };
    const HOUR: i64 = 3_600_000_000_000;
    assert_eq!(step(1, 50 * HOUR), None, "nothing to compare with");
    assert_eq!(step(2, 50 * HOUR + 1_000_000), None, "a clock that is disciplined");
    assert_eq!(step(3, 49 * HOUR), Some((3, -HOUR - 1_000_000)));
    assert_eq!(step(4, 49 * HOUR), None, "told once");
    assert_eq!(step(5, 50 * HOUR), Some((5, HOUR)));
}
