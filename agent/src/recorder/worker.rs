//! The recorder's thread.

use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use breakglass_api::{
    checkpoint::Number,
    frame::{FrameError, Hash, Sealer},
    v1::{ClockStep, Event, event::Body},
};
use nix::libc;
use tokio::sync::{mpsc, watch};

use super::{
    Command, Options, Shared, clock,
    reach::Noted,
    round::{EVENT_MAX, Item, divide, seal},
    source::{EventSource, Observed},
    ticket::Ticket,
};
use crate::spool::{Position, Pressure, Spool, SpoolError, resume};

/// Longest sleep without anything to do; only a safety net, as everything that matters wakes the thread.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// Time that the end of one commit and the end of the next are apart at most while only the kernel produces, and shortest and
/// longest pause between two. A steady stream of events shares syncs and frames, which is most of what the agent costs, and each
/// frame takes some 200 bytes whatever is in it; an event waits at most for the commit under way, the pause and its own commit, a millisecond within its budget of 15 ms.
/// A slow disk gathers by itself. The agent's own events do not wait.
const CYCLE: Duration = Duration::from_micros(13_500);
const GATHER_MIN: Duration = Duration::from_millis(2);
const GATHER_MAX: Duration = Duration::from_millis(12);
/// What is asked of the source at once, bytes.
const READ_BYTES: usize = 512 * 1024;
/// What a round takes before it is written, bytes.
const ROUND_BYTES: usize = 2 << 20;
/// Commands that one round takes.
const ROUND_COMMANDS: usize = 128;
/// How long a position without an event waits for one.
const POSITION_LINGER: Duration = Duration::from_secs(1);
/// First and longest pause between attempts to write.
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_millis(500);
/// How long the disk may refuse before that counts as high water. A moment is nothing: the kernel's rings hold what comes.
const REFUSED_MAX: Duration = Duration::from_millis(500);
/// How long a disk may refuse in a way that does not pass before it counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// Change of wall clock against boot clock that is recorded, nanoseconds. Slewing stays below.
const CLOCK_STEP_NS: u64 = 100_000_000;

pub struct Worker {
    source: Box<dyn EventSource>,
    spool: Spool,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    options: Options,
    sealer: Sealer,
    boot_id: [u8; 16],
    observed: Vec<Observed>,
    /// Not durable yet.
    items: Vec<Item>,
    /// Waiting for the source, with how many bytes may still be in front of them.
    barriers: Vec<(Ticket, u64)>,
    /// Answered with the next commit.
    ready: Vec<Ticket>,
    /// Position of the source as it is durable.
    position: Vec<u8>,
    wall_offset_ns: Option<i64>,
    last_commit: Option<Instant>,
    /// How long a commit takes, as of late.
    commit_takes: Duration,
    /// Since when the spool has refused.
    refused_since: Option<Instant>,
    /// Dropped last, which says that the spool is closed.
    publish: watch::Sender<(u64, Hash)>,
}

/// How far reading came.
#[derive(PartialEq, Eq)]
enum Drained {
    Yes,
    No,
}

impl Worker {
    pub fn new(
        source: Box<dyn EventSource>,
        spool: Spool,
        commands: mpsc::Receiver<Command>,
        publish: watch::Sender<(u64, Hash)>,
        shared: Arc<Shared>,
        options: Options,
    ) -> Result<Self, FrameError> {
        let position = source.position();
        Ok(Self {
            source,
            spool,
            commands,
            publish,
            shared,
            options,
            sealer: Sealer::new(options.level)?,
            boot_id: clock::boot_id(),
            observed: Vec::new(),
            items: Vec::new(),
            barriers: Vec::new(),
            ready: Vec::new(),
            position,
            wall_offset_ns: None,
            last_commit: None,
            commit_takes: Duration::ZERO,
            refused_since: None,
        })
    }

    pub fn run(mut self) {
        while !self.stopping() {
            self.wait();
            self.asks();
            self.take_commands();
            self.read();
            self.look_at_room();
            self.commit(None);
            self.shared.asked_ns.store(0, Ordering::Relaxed);
        }
        self.finish();
    }

    /// From now on an answer is owed.
    fn asks(&self) {
        self.shared.asked_ns.store(clock::now().boot_ns, Ordering::Relaxed);
    }

    fn stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }

    /// Takes what is left, within a bound of bytes and time.
    fn finish(&mut self) {
        let deadline = Instant::now() + self.options.give_up;
        let mut left = self.bytes_in_rings();
        self.commands.close();
        loop {
            let commands = self.take_commands();
            let (drained, bytes) = self.read();
            left = left.saturating_sub(bytes);
            if !self.commit(Some(deadline)) || (commands == 0 && (drained == Drained::Yes || left == 0)) {
                return;
            }
        }
    }

    fn wait(&mut self) {
        if !self.commands.is_empty() {
            return;
        }
        // First the pause, then the source: in a steady stream it has something by then, and the thread was woken once.
        let gather = CYCLE.saturating_sub(2 * self.commit_takes).clamp(GATHER_MIN, GATHER_MAX);
        if let Some(left) = self.last_commit.and_then(|last| gather.checked_sub(last.elapsed())) {
            self.pause(left);
            if !self.commands.is_empty() {
                return;
            }
        }
        if let Err(error) = self.source.wait(IDLE_WAIT) {
            self.trouble(format!("cannot wait for the kernel's events: {error}"));
            self.pause(RETRY_MAX);
        }
    }

    /// Sleeps until something is asked for, at most `time`.
    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while self.commands.is_empty() && !self.stopping() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::park_timeout(left);
        }
    }

    fn take_commands(&mut self) -> usize {
        let bytes = self.bytes_in_rings();
        for taken in 0..ROUND_COMMANDS {
            match self.commands.try_recv() {
                Ok(Command::Record { event, session, ticket }) => {
                    self.items.push(Item::new(*event, session, Some(ticket)));
                }
                Ok(Command::Barrier(ticket)) => self.barriers.push((ticket, bytes)),
                Err(_) => return taken,
            }
        }
        ROUND_COMMANDS
    }

    /// How many bytes of events the rings may hold. Encoded, an event may be larger than its record, never four times.
    fn bytes_in_rings(&self) -> u64 {
        self.options.ring_bytes.saturating_mul(4)
    }

    /// Reads until the source has nothing more or the round is full. Returns how many bytes came.
    fn read(&mut self) -> (Drained, u64) {
        let mut bytes = 0;
        let mut drained = Drained::No;
        while bytes < ROUND_BYTES {
            self.observed.clear();
            if let Err(error) = self.source.read(&mut self.observed, READ_BYTES) {
                self.trouble(format!("cannot read the kernel's events: {error}"));
                self.pause(RETRY_MAX);
                break;
            }
            if self.observed.is_empty() {
                drained = Drained::Yes;
                break;
            }
            let from = self.items.len();
            self.adopt();
            bytes += self.items.iter().skip(from).map(|item| item.len).sum::<usize>();
        }
        let bytes = bytes as u64;
        for (ticket, left) in std::mem::take(&mut self.barriers) {
            match left.saturating_sub(bytes) {
                0 => self.ready.push(ticket),
                _ if drained == Drained::Yes => self.ready.push(ticket),
                left => self.barriers.push((ticket, left)),
            }
        }
        (drained, bytes)
    }

    /// Makes items of what was read.
    fn adopt(&mut self) {
        let (mut unnamed, mut too_large) = (0, 0);
        for Observed { slot, event } in self.observed.drain(..) {
            let session = if slot == 0 { None } else { self.shared.names.get(slot) };
            unnamed += u64::from(slot != 0 && session.is_none());
            let item = Item::new(event, session, None);
            if item.len > EVENT_MAX {
                too_large += 1;
                self.items.push(Item::too_large(&item.event, session));
            } else {
                self.items.push(item);
            }
        }
        if unnamed + too_large > 0 {
            let mut stats = self.shared.stats();
            stats.unnamed += unnamed;
            stats.too_large += too_large;
        }
    }

    /// Makes the round durable, however long it takes; with a deadline, until then. Returns whether it is.
    fn commit(&mut self, deadline: Option<Instant>) -> bool {
        let mut retry = RETRY_FIRST;
        loop {
            self.items.retain(|item| item.ticket.as_ref().is_none_or(Ticket::begin));
            if !self.is_due() {
                return true;
            }
            self.asks();
            match self.write() {
                Ok(()) => return true,
                Err(error) => self.failed(&error),
            }
            self.look_at_room();
            let over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if over || (deadline.is_none() && self.stopping()) {
                return false;
            }
            thread::park_timeout(retry);
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    /// Says whether little room is left, once for each turn of it.
    fn look_at_room(&mut self) {
        let was = *self.shared.high_water.borrow();
        let refused = self.refused_since.is_some_and(|since| since.elapsed() >= REFUSED_MAX);
        let why = match self.spool.pressure(was) {
            _ if refused => Some("the disk refuses what is recorded".to_owned()),
            Some(Pressure::Bound { used, limit }) => {
                Some(format!("{used} of {limit} bytes wait for the collector: bring it back or raise spool.max_bytes"))
            }
            Some(Pressure::NoReserve) => Some("the disk is full: free space on it".to_owned()),
            None => None,
        };
        let high = why.is_some();
        if high != was {
            self.shared.high_water.send_replace(high);
            let (code, text) = match &why {
                Some(why) => ("spool-high-water", format!("the spool has little room left: {why}")),
                None => ("spool-has-room", "the spool has room again".to_owned()),
            };
            tracing::warn!(code, "{text}");
            self.items.push(Item::alert(clock::now().boot_ns, code, text));
        }
        self.shared.stats().high_water = why;
    }

    /// Whether there is something to write. Barriers that need nothing written are answered.
    fn is_due(&mut self) -> bool {
        let moved = self.source.position() != self.position;
        let lingered = self.last_commit.is_none_or(|last| last.elapsed() > POSITION_LINGER);
        if !self.items.is_empty() || (moved && (lingered || !self.ready.is_empty())) {
            return true;
        }
        let seq = self.spool.durable().seq;
        for ticket in self.ready.drain(..) {
            ticket.finish(seq);
        }
        false
    }

    /// Writes the round as one group.
    fn write(&mut self) -> Result<(), WriteError> {
        let (began, now) = (Instant::now(), clock::now());
        let step = self.clock_step(&now);
        self.items.extend(step);
        // The rings of several CPUs come one after the other; within a frame time runs forward.
        self.items.sort_by_key(|item| item.event.boot_ns);
        let (position, numbers) = (self.source.position(), self.source.numbers());
        let frames = divide(&self.items);
        let mut sealed = Vec::with_capacity(frames.len());
        let mut bytes = 0;
        for (at, range) in frames.iter().enumerate() {
            let is_last = at + 1 == frames.len();
            let resume = if is_last {
                resume::encode(Some(&position).filter(|p| !p.is_empty()).map(Vec::as_slice))
            } else {
                Vec::new()
            };
            let next = self.spool.next();
            let items = self.items.get_mut(range.clone()).unwrap_or_default();
            let frame = match seal(&mut self.sealer, items, &next, self.boot_id, &now, resume) {
                Ok(frame) => frame,
                Err(error) => {
                    self.spool.rollback()?;
                    return Err(error.into());
                }
            };
            self.spool.append(&frame)?;
            bytes += frame.bytes.len() as u64;
            sealed.push((range.clone(), next.seq));
        }
        let end = self.spool.commit()?;
        self.refused_since = None;
        // Half of what it was and half of what it is: one slow commit is forgotten within a few.
        self.commit_takes = (self.commit_takes + began.elapsed()) / 2;
        self.source.release();
        (self.position, self.wall_offset_ns, self.last_commit) =
            (position, Some(now.wall_offset_ns), Some(Instant::now()));
        self.count(sealed.len() as u64, bytes, end.seq);
        self.note(&sealed, &end, numbers);
        self.publish.send_replace((end.seq, end.hash));
        self.answer(&sealed, now.boot_ns, end.seq);
        Ok(())
    }

    /// An event where the wall clock moved against the boot clock since the last commit. Made once: it stays among the
    /// items until it is durable.
    pub(super) fn clock_step(&mut self, now: &clock::Now) -> Option<Item> {
        let moved = now.wall_offset_ns.saturating_sub(self.wall_offset_ns.replace(now.wall_offset_ns)?);
        if moved.unsigned_abs() < CLOCK_STEP_NS {
            return None;
        }
        let body = Some(Body::ClockStep(ClockStep { nanoseconds: moved }));
        Some(Item::new(Event { boot_ns: now.boot_ns, body, ..Event::default() }, None, None))
    }

    /// Says how far the record reaches now, before anybody is woken by it.
    fn note(&self, frames: &[(std::ops::Range<usize>, u64)], end: &Position, numbers: Vec<Number>) {
        let mut noted = Noted::default();
        for (range, seq) in frames {
            for item in self.items.get(range.clone()).unwrap_or_default() {
                noted.see(&item.event, item.session, *seq);
                if let Some(notices) = self.shared.notices.get() {
                    notices.see(&item.event, item.session);
                }
            }
        }
        let stream_id = self.spool.next().stream_id;
        self.shared.reach.advance(stream_id, self.boot_id, (end.seq, end.hash), numbers, noted);
    }

    fn count(&self, frames: u64, bytes: u64, last: u64) {
        let mut stats = self.shared.stats();
        stats.durable = (last, clock::now().boot_ns);
        stats.frames += frames;
        stats.events += self.items.len() as u64;
        stats.bytes += bytes;
        stats.commits += 1;
        if let Some(error) = stats.last_error.take() {
            tracing::info!(after = %error, "recording again");
        }
    }

    /// Answers whose events are durable now. What a caller had given up on is followed by an alert.
    fn answer(&mut self, frames: &[(std::ops::Range<usize>, u64)], boot_ns: u64, end_seq: u64) {
        let mut late = Vec::new();
        for (at, item) in self.items.drain(..).enumerate() {
            let seq = frames.iter().find(|(range, _)| range.contains(&at)).map_or(end_seq, |(_, seq)| *seq);
            if item.ticket.is_some_and(|ticket| ticket.finish(seq)) {
                late.push(Item::alert(
                    boot_ns,
                    "late-record",
                    format!("an event in frame {seq} was reported as not recorded, because the disk took too long; what it announces did not happen"),
                ));
            }
        }
        self.items = late;
        for ticket in self.ready.drain(..) {
            ticket.finish(end_seq);
        }
    }

    fn failed(&mut self, error: &WriteError) {
        if self.spool.is_settled() {
            for ticket in self.items.iter().filter_map(|item| item.ticket.as_ref()) {
                ticket.undo();
            }
        }
        let since = *self.refused_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= LOST_AFTER && error.is_of_a_lost_disk() {
            self.shared.lost.send_replace(Some(error.to_string()));
        }
        self.trouble(error.to_string());
    }

    /// Notes what is wrong; said once until it changes.
    fn trouble(&self, what: String) {
        let mut stats = self.shared.stats();
        if stats.last_error.as_ref() != Some(&what) {
            tracing::error!("{what}");
            stats.last_error = Some(what);
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("cannot make a frame: {0}")]
    Frame(#[from] FrameError),
}

impl WriteError {
    /// Whether the file system was made read-only, as ext4 does with itself at an error, or the disk fails or is gone. A full one can
    /// be emptied.
    fn is_of_a_lost_disk(&self) -> bool {
        let Self::Spool(SpoolError::Io { source, .. }) = self else { return false };
        matches!(source.raw_os_error(), Some(libc::EROFS | libc::EIO | libc::ENXIO | libc::ENODEV))
    }
}
