//! Events from the three rings, in order, with the proof that none is missing.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use aya_log::EbpfLogger;
use breakglass_abi::{Header, Ring as RingName};
use breakglass_api::{
    checkpoint::{NUMBERS_MAX, Number},
    v1::{self, event::Body},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
    time::{ClockId, clock_gettime},
};

use super::{
    assemble::{Assembler, wire_ring},
    error::KernelError,
    load,
    maps::{self, Counters},
    object::LOGGING,
    pins::Pins,
    position::Position,
    ring::{Next, Ring},
    sequence::{Lane, Missing, Track, Tracks},
    statistics::Skips,
};
use crate::recorder::source::{EventSource, Observed};

/// How long records gather after the first: a wake-up for each would cost more than the records.
const GATHER: Duration = Duration::from_millis(2);
/// How long the rest of a half-read exec is waited for. The kernel sends an exec without sleeping, in under 10 ms for 12 MiB,
/// but a hypervisor can take its CPU away in the middle. A lost rest is mostly known earlier, by what its CPU sends next.
const ASSEMBLY_WAIT: Duration = Duration::from_secs(1);
/// How often the rest of a half-read exec is looked for.
const ASSEMBLY_POLL: Duration = Duration::from_micros(200);
/// How often the kernel's own counts are compared with what came.
const AUDIT_EVERY: Duration = Duration::from_millis(100);
/// Least that is read from a ring in one go, bytes, however small the caller's bound.
const SHARE_MIN: usize = 64 << 10;

/// The waker's mark among the events of the epoll; rings have their index.
const WAKER: u64 = 100;

/// Reads the rings. Lives on the recorder's thread.
pub struct Reader {
    rings: [Ring; 3],
    assembler: Assembler,
    tracks: Tracks,
    /// Whether a CPU that is new to `tracks` began at 1, or somewhere in an earlier reader's time.
    from_the_start: bool,
    counters: Counters,
    /// Numbers that were taken before this reader began, by ring and CPU.
    before: BTreeMap<Lane, u64>,
    /// Lost terminal bytes that gaps have named already.
    named_bytes: BTreeMap<Lane, u64>,
    /// The kernel's counts at an earlier drained round.
    expected: Option<Vec<(Lane, u64)>>,
    compared: Instant,
    generation: [u8; 16],
    skips: Skips,
    /// What the programs say about rare faults; passed on to `tracing`.
    log: Option<EbpfLogger<&'static dyn log::Log>>,
    epoll: Epoll,
    waker: Arc<EventFd>,
    _fds: [OwnedFd; 3],
}

impl Reader {
    /// Maps the pinned rings. Reading begins where the last consumer stopped.
    pub(super) fn open(pins: &Pins, generation: [u8; 16]) -> Result<Self, KernelError> {
        let failed = |action| move |source: io::Error| KernelError::Io { action, source };
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| failed("cannot make an epoll")(e.into()))?;
        let waker = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| failed("cannot make an eventfd")(e.into()))?;
        epoll
            .add(&waker, EpollEvent::new(EpollFlags::EPOLLIN, WAKER))
            .map_err(|e| failed("cannot wait for the waker")(e.into()))?;
        let open = |name: RingName| -> Result<(Ring, OwnedFd), KernelError> {
            let (fd, size) = maps::open_ring(pins, name)?;
            let ring = Ring::new(fd.as_fd(), size).map_err(failed("cannot map a ring"))?;
            epoll
                .add(&fd, EpollEvent::new(EpollFlags::EPOLLIN, name as u64))
                .map_err(|e| failed("cannot wait for a ring")(e.into()))?;
            Ok((ring, fd))
        };
        let ((audit, audit_fd), (witness, witness_fd), (bulk, bulk_fd)) =
            (open(RingName::Audit)?, open(RingName::Witness)?, open(RingName::Bulk)?);
        let rings = [audit, witness, bulk];
        let mut reader = Self {
            from_the_start: rings.iter().all(|ring| ring.position() == 0),
            rings,
            assembler: Assembler::default(),
            tracks: Tracks::new(),
            counters: Counters::open(pins)?,
            before: BTreeMap::new(),
            named_bytes: BTreeMap::new(),
            expected: None,
            compared: Instant::now(),
            generation,
            skips: Skips::open(pins),
            log: open_log(pins),
            epoll,
            waker: Arc::new(waker),
            _fds: [audit_fd, witness_fd, bulk_fd],
        };
        reader.note_the_start()?;
        Ok(reader)
    }

    fn note_the_start(&mut self) -> Result<(), KernelError> {
        for ring in RingName::ALL {
            for (cpu, counter) in (0..).zip(self.counters.read(ring)?) {
                self.before.insert((ring as u8, cpu), counter.seq);
                self.named_bytes.insert((ring as u8, cpu), counter.dropped_bytes);
            }
        }
        Ok(())
    }

    /// Reads one ring up to its share. Whether it is empty now.
    fn read_ring(&mut self, name: RingName, out: &mut Vec<Observed>, from: usize, share: usize) -> bool {
        let mut taken = 0;
        let mut give_up: Option<Instant> = None;
        loop {
            let wants_rest = name == RingName::Audit && self.assembler.is_open();
            if taken >= share && !wants_rest {
                return false;
            }
            let len = self.read_record(name, out, from);
            taken += len.unwrap_or(0);
            if len.is_none() && !wants_rest {
                return true;
            }
            if wants_rest && (len.is_none() || taken >= share) {
                // Half an exec, and no more of it to be had, or only what others do.
                let limit = *give_up.get_or_insert_with(|| Instant::now() + ASSEMBLY_WAIT);
                if Instant::now() >= limit {
                    self.assembler.flush(out);
                } else if len.is_none() {
                    std::thread::sleep(ASSEMBLY_POLL);
                }
            }
        }
    }

    /// Reads one record. Its length, `None` if there was none.
    fn read_record(&mut self, name: RingName, out: &mut Vec<Observed>, from: usize) -> Option<usize> {
        let bytes = match self.rings[name.index()].next() {
            Next::Empty => return None,
            Next::Broken { at } => {
                tracing::error!("the {name:?} ring holds no record at {at}; skipped to its end");
                return Some(0);
            }
            Next::Record(bytes) => bytes,
        };
        let header = Header::parse(bytes);
        if let Some(header) = header {
            let first = if self.from_the_start { 0 } else { header.seq.saturating_sub(1) };
            let track = self.tracks.entry((name as u8, header.cpu)).or_insert_with(|| Track::from(first, []));
            if !track.see(header.seq) {
                tracing::warn!("record {} of CPU {} on the {name:?} ring came late", header.seq, header.cpu);
            }
        }
        if self.assembler.take(name, bytes, out, from).is_err() {
            let (cpu, seq) = header.map_or((0, 0), |header| (header.cpu, header.seq));
            tracing::error!("a record on the {name:?} ring cannot be understood: CPU {cpu}, number {seq}");
            out.push(gap(name, cpu, Missing { first: seq, count: 1 }, "unreadable", 0));
        }
        Some(bytes.len())
    }

    /// After a round that left the rings empty: names what is missing for good.
    fn settle(&mut self, out: &mut Vec<Observed>) {
        let mut found: Vec<(Lane, Missing)> = Vec::new();
        for (key, track) in &mut self.tracks {
            found.extend(track.settle().into_iter().map(|missing| (*key, missing)));
        }
        if self.compared.elapsed() >= AUDIT_EVERY {
            self.compared = Instant::now();
            // What the kernel had counted a whole round ago must be here by now.
            for (key, seq) in self.expected.take().unwrap_or_default() {
                if seq > 0 && (self.from_the_start || self.tracks.contains_key(&key)) {
                    let track = self.tracks.entry(key).or_default();
                    found.extend(track.settle_upto(seq).into_iter().map(|missing| (key, missing)));
                }
            }
            match self.counts() {
                Ok(counts) => self.expected = Some(counts),
                Err(error) => tracing::warn!("cannot compare with the kernel's counts: {error}"),
            }
        }
        for ((ring, cpu), missing) in found {
            out.push(self.explain(ring, cpu, missing));
        }
    }

    /// Says where the kernel did not run a program that should have run. Nothing is numbered then, so no gap would show.
    fn tell_skips(&mut self, out: &mut Vec<Observed>) {
        for (program, times) in self.skips.new_ones() {
            let message = format!(
                "the kernel left out {times} runs of {program}, which it had interrupted: what they would have recorded is missing"
            );
            tracing::error!("{message}");
            let alert = v1::Alert { code: "record-interrupted".into(), message, process: None };
            let event = v1::Event { boot_ns: now(), session: 0, origin: None, body: Some(Body::Alert(alert)) };
            out.push(Observed { slot: 0, event });
        }
    }

    fn counts(&self) -> Result<Vec<(Lane, u64)>, KernelError> {
        let mut counts = Vec::new();
        for ring in RingName::ALL {
            let cpus = self.counters.read(ring)?;
            counts.extend((0..).zip(cpus).map(|(cpu, counter)| ((ring as u8, cpu), counter.seq)));
        }
        Ok(counts)
    }

    /// A gap with its cause and, where this reader saw it happen, the terminal bytes lost.
    fn explain(&mut self, ring: u8, cpu: u32, missing: Missing) -> Observed {
        let name = RingName::ALL.into_iter().find(|name| *name as u8 == ring).unwrap_or(RingName::Audit);
        if self.before.get(&(ring, cpu)).is_some_and(|before| missing.first <= *before) {
            return gap(name, cpu, missing, "agent-down", 0);
        }
        let dropped = self.counters.read(name).ok().and_then(|cpus| cpus.get(cpu as usize).copied());
        let named = self.named_bytes.entry((ring, cpu)).or_default();
        let bytes = dropped.map_or(0, |counter| counter.dropped_bytes.saturating_sub(*named));
        *named += bytes;
        gap(name, cpu, missing, "ring-full", bytes)
    }

    fn pass_on_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    fn has_more(&self) -> bool {
        self.rings.iter().any(Ring::has_more)
    }

    /// Without a release the rings stay readable to epoll; look at them instead, until there is more or somebody wakes us.
    fn wait_by_polling(&mut self, timeout: Duration) -> io::Result<()> {
        let limit = Instant::now() + timeout;
        while !self.has_more() && Instant::now() < limit {
            let step = GATHER.min(limit.saturating_duration_since(Instant::now()));
            let timeout = PollTimeout::try_from(step).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.waker.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) => {}
                Ok(_) => {
                    self.quiet_waker();
                    return Ok(());
                }
                Err(nix::errno::Errno::EINTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn quiet_waker(&self) {
        // EAGAIN: somebody was faster.
        let _ = self.waker.read();
    }
}

impl EventSource for Reader {
    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        if self.has_more() {
            return Ok(());
        }
        if self.rings.iter().any(Ring::holds) {
            return self.wait_by_polling(timeout);
        }
        let mut events = [EpollEvent::empty(); 4];
        let epoll_timeout = EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::MAX);
        let ready = match self.epoll.wait(&mut events, epoll_timeout) {
            Ok(ready) => &events[..ready],
            Err(nix::errno::Errno::EINTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if ready.iter().any(|event| event.data() == WAKER) {
            self.quiet_waker();
        } else if !ready.is_empty() {
            std::thread::sleep(GATHER);
        }
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let waker = Arc::clone(&self.waker);
        // It fails only when 2^64 wakes are pending.
        Arc::new(move || {
            let _ = waker.write(1);
        })
    }

    fn read(&mut self, out: &mut Vec<Observed>, max_bytes: usize) -> io::Result<()> {
        let from = out.len();
        let share = (max_bytes / self.rings.len()).max(SHARE_MIN);
        let mut drained = true;
        for name in RingName::ALL {
            drained &= self.read_ring(name, out, from, share);
        }
        if drained {
            self.settle(out);
            self.tell_skips(out);
        }
        self.pass_on_log();
        if let Some(new) = out.get_mut(from..) {
            // CPUs take numbers and clocks on their own; only the clock orders them.
            new.sort_by_key(|observed| observed.event.boot_ns);
        }
        Ok(())
    }

    fn position(&self) -> Vec<u8> {
        let rings = self.rings.each_ref().map(Ring::position);
        Position { generation: self.generation, rings, tracks: self.tracks.clone() }.encode()
    }

    fn numbers(&self) -> Vec<Number> {
        let number = |((ring, cpu), track): (&(u8, u32), &Track)| {
            let name = RingName::ALL.into_iter().find(|name| *name as u8 == *ring)?;
            Some(Number { ring: wire_ring(name) as u8, cpu: *cpu, upto: track.upto() })
        };
        let mut numbers: Vec<Number> = self.tracks.iter().filter_map(number).take(NUMBERS_MAX).collect();
        numbers.sort_by_key(|number| (number.ring, number.cpu));
        numbers
    }

    fn release(&mut self) {
        self.rings.iter_mut().for_each(Ring::release);
    }

    fn resume(&mut self, position: &[u8]) -> io::Result<()> {
        let Some(position) = Position::decode(position) else {
            tracing::warn!(
                "the last recorded position in the kernel's rings is not understood; going on at the oldest record"
            );
            return Ok(());
        };
        if position.generation != self.generation {
            return Ok(());
        }
        for (ring, at) in self.rings.iter_mut().zip(position.rings) {
            if !ring.seek(at) {
                tracing::warn!(
                    "the last recorded position {at} is outside of the kernel's ring; going on at the oldest record"
                );
            }
        }
        self.tracks = position.tracks;
        self.from_the_start = true;
        Ok(())
    }
}

/// The log is a convenience: without it the counters still say what failed.
fn open_log(pins: &Pins) -> Option<EbpfLogger<&'static dyn log::Log>> {
    let opened = load::program_id(pins, &LOGGING).map(EbpfLogger::init_from_id);
    match opened {
        Ok(Ok(log)) => Some(log),
        Ok(Err(error)) => {
            tracing::warn!("the kernel programs' log cannot be read: {error}");
            None
        }
        Err(error) => {
            tracing::warn!("the kernel programs' log cannot be read: {error}");
            None
        }
    }
}

fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |now| Duration::from(now).as_nanos() as u64)
}

fn gap(ring: RingName, cpu: u32, missing: Missing, cause: &str, bytes: u64) -> Observed {
    let gap = v1::Gap {
        ring: wire_ring(ring).into(),
        cpu,
        first_seq: missing.first,
        records: missing.count,
        cause: cause.into(),
        bytes,
    };
    let event = v1::Event { boot_ns: now(), session: 0, origin: None, body: Some(Body::Gap(gap)) };
    Observed { slot: 0, event }
}
