//! One thread that takes events from the kernel's rings and from the agent, and makes them durable.
//!
//! A round takes what there is, seals it into frames, commits them to the spool as one group, tells the source that it may
//! forget, publishes the new end and answers who waits. Many events share one sync under load because the next round takes
//! all that came up meanwhile; a lone event waits for nobody. The position of the source is part of the last frame of the
//! group, so that after a crash the source goes on exactly behind what is durable: nothing twice, nothing skipped.
//!
//! While the spool refuses (disk full, input/output error, bound reached) the round is kept and tried again; meanwhile the
//! kernel's rings hold what comes. Memory is bounded by one round, the command queue and the session names.

pub mod clock;
mod idle;
mod names;
mod reach;
mod round;
pub mod source;
#[cfg(test)]
mod tests;
mod ticket;
mod worker;

use std::{
    io,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use breakglass_api::{
    frame::{FrameError, Hash},
    v1::{Event, event::Body},
};
use prost::Message;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};
use uuid::Uuid;

pub use self::reach::{Mark, Reach};
use self::{
    names::Names,
    reach::Reached,
    source::EventSource,
    ticket::{GivenUp, Ticket, Waiter},
    worker::Worker,
};
use crate::{
    notice::Notices,
    spool::{Recovery, Spool},
};

/// Largest event of the agent's own, bytes. A session's grant text and signature are a few KiB.
pub const AGENT_EVENT_MAX: usize = 256 * 1024;
/// Commands waiting for the thread; more than the agent's tasks can have outstanding.
const COMMANDS_MAX: usize = 128;

/// How the recorder works.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// zstd level. On exec events level 3 makes frames 0 to 3 % smaller than level 1 and takes up to half as long again.
    pub level: i32,
    /// How long a caller waits before its event is withdrawn.
    pub give_up: Duration,
    /// What the source's rings can hold together, bytes; how much must be read before everything older was.
    pub ring_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { level: 1, give_up: Duration::from_secs(5), ring_bytes: 64 << 20 }
    }
}

/// Why the recorder cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The source does not go on.
    #[error("the kernel's events cannot be continued where the spool ends: {0}")]
    Resume(io::Error),
    /// No compression context.
    #[error(transparent)]
    Sealer(#[from] FrameError),
    /// No thread.
    #[error("cannot start the recorder's thread: {0}")]
    Thread(io::Error),
}

/// Why an event is not in the record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The recorder has ended.
    #[error("the recorder has stopped; nothing was recorded")]
    Closed,
    /// The event is withdrawn: it will not appear.
    #[error("nothing was recorded within {seconds} s: {reason}")]
    Timeout {
        /// How long it was tried.
        seconds: u64,
        /// What the spool says.
        reason: String,
    },
    /// The disk did not answer. If the event appears after all, an alert `late-record` behind it says that it was given up.
    #[error(
        "the disk has not answered for {seconds} s, so that it is not known whether the event is recorded: {reason}"
    )]
    Uncertain {
        /// How long it was tried.
        seconds: u64,
        /// What the spool says.
        reason: String,
    },
    /// The event is above [`AGENT_EVENT_MAX`].
    #[error("an event of {0} bytes is above the limit of {AGENT_EVENT_MAX}")]
    TooLarge(usize),
}

/// What the recorder has done since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecorderStats {
    /// Frames made durable.
    pub frames: u64,
    /// Events in them.
    pub events: u64,
    /// Bytes of them, compressed.
    pub bytes: u64,
    /// Syncs that made them durable.
    pub commits: u64,
    /// Last durable frame, and when it became so on the boot clock, nanoseconds; 0 where that was before.
    pub durable: (u64, u64),
    /// Kernel events of a session that has no name.
    pub unnamed: u64,
    /// Kernel events above the size of a frame, replaced by a gap.
    pub too_large: u64,
    /// What is wrong at present.
    pub last_error: Option<String>,
    /// Why [`Recorder::high_water`] says yes at present.
    pub high_water: Option<String>,
}

enum Command {
    Record { event: Box<Event>, session: Option<Uuid>, ticket: Ticket },
    Barrier(Ticket),
}

/// A handle; clones are the same recorder. It stops when the last one is dropped or [`Recorder::stop`] is called.
#[derive(Clone)]
pub struct Recorder {
    inner: Arc<Inner>,
}

struct Inner {
    commands: mpsc::Sender<Command>,
    wake: Box<dyn Fn() + Send + Sync>,
    shared: Arc<Shared>,
    durable: watch::Receiver<(u64, Hash)>,
    thread: Mutex<Option<JoinHandle<()>>>,
    give_up: Duration,
}

/// What handle and thread share.
#[derive(Default)]
struct Shared {
    names: Names,
    reach: Reached,
    high_water: watch::Sender<bool>,
    stats: Mutex<RecorderStats>,
    stopping: AtomicBool,
    /// Boot clock at which the thread began what it has not ended yet, mostly asking the disk to make something durable, nanoseconds; else 0.
    asked_ns: AtomicU64,
    /// Why the disk will not take anything any more.
    lost: watch::Sender<Option<String>>,
    /// Who else is told, once it is durable.
    notices: OnceLock<Notices>,
}

impl Shared {
    fn stats(&self) -> std::sync::MutexGuard<'_, RecorderStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder {
    /// Continues the spool, and `source` where `recovery` says that it was. Without a source it records only what the
    /// agent itself says. `names` are sessions of an earlier run, of which the source may still hold events.
    pub fn start(
        source: Option<Box<dyn EventSource>>,
        spool: Spool,
        recovery: &Recovery,
        names: &[(u32, Uuid)],
        options: Options,
    ) -> Result<Self, StartError> {
        let mut source = source.unwrap_or_else(|| Box::new(idle::IdleSource::default()));
        if let Some(position) = &recovery.resume {
            source.resume(position).map_err(StartError::Resume)?;
        }
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let end = spool.durable();
        let (publish, durable) = watch::channel((end.seq, end.hash));
        let shared = Arc::new(Shared::default());
        shared.stats().durable = (end.seq, 0);
        shared.reach.begin(spool.next().stream_id, clock::boot_id(), (end.seq, end.hash));
        for (slot, session) in names {
            shared.names.set(*slot, *session);
        }
        let wake_source = source.waker();
        let worker = Worker::new(source, spool, receiver, publish, shared.clone(), options)?;
        let thread = thread::Builder::new().name("recorder".into()).spawn(move || worker.run());
        let thread = thread.map_err(StartError::Thread)?;
        let parked = thread.thread().clone();
        let wake = Box::new(move || {
            parked.unpark();
            wake_source();
        });
        let (thread, give_up) = (Mutex::new(Some(thread)), options.give_up);
        Ok(Self { inner: Arc::new(Inner { commands, wake, shared, durable, thread, give_up }) })
    }

    /// Shows every event to `notices`, too, once it is durable. Of several calls the first counts.
    pub fn tell(&self, notices: Notices) {
        let _ = self.inner.shared.notices.set(notices);
    }

    /// Records what the agent itself says; returns the frame that holds it, once that is durable.
    pub async fn record(&self, session: Option<Uuid>, body: Body) -> Result<u64, RecordError> {
        let event = Event { boot_ns: clock::now().boot_ns, body: Some(body), ..Event::default() };
        let len = event.encoded_len();
        if len > AGENT_EVENT_MAX {
            return Err(RecordError::TooLarge(len));
        }
        let event = Box::new(event);
        self.ask(|ticket| Command::Record { event, session, ticket }).await
    }

    /// Waits until everything that the kernel produced before this call is durable; returns the last durable frame.
    pub async fn barrier(&self) -> Result<u64, RecordError> {
        self.ask(Command::Barrier).await
    }

    async fn ask(&self, command: impl FnOnce(Ticket) -> Command) -> Result<u64, RecordError> {
        let deadline = Instant::now() + self.inner.give_up;
        let (ticket, mut waiter) = Waiter::new();
        match timeout_at(deadline, self.inner.commands.reserve()).await {
            Ok(Ok(permit)) => permit.send(command(ticket)),
            Ok(Err(_)) => return Err(RecordError::Closed),
            Err(_) => return Err(self.timeout()),
        }
        (self.inner.wake)();
        match timeout_at(deadline, waiter.answer()).await {
            Ok(answer) => answer,
            Err(_) => match waiter.give_up() {
                GivenUp::Withdrawn => Err(self.timeout()),
                GivenUp::Uncertain => Err(self.uncertain()),
                GivenUp::Answered => waiter.answer().await,
            },
        }
    }

    fn timeout(&self) -> RecordError {
        RecordError::Timeout { seconds: self.inner.give_up.as_secs(), reason: self.reason() }
    }

    fn uncertain(&self) -> RecordError {
        RecordError::Uncertain { seconds: self.inner.give_up.as_secs(), reason: self.reason() }
    }

    fn reason(&self) -> String {
        self.stats().last_error.unwrap_or_else(|| "the recorder is busy".into())
    }

    /// Says which session a number of the kernel's stands for. To be called before the kernel uses the number.
    pub fn name_session(&self, slot: u32, session: Uuid) {
        self.inner.shared.names.set(slot, session);
    }

    /// The last durable frame: sequence (0 if none) and hash.
    pub fn durable(&self) -> watch::Receiver<(u64, Hash)> {
        self.inner.durable.clone()
    }

    /// How far the record reaches.
    pub fn reach(&self) -> Reach {
        self.inner.shared.reach.now()
    }

    /// Counts what [`Self::take_marks`] would return.
    pub fn marks(&self) -> watch::Receiver<u64> {
        self.inner.shared.reach.marks()
    }

    /// What happened since the last call that should be signed for at once.
    pub fn take_marks(&self) -> (u16, Vec<Mark>) {
        self.inner.shared.reach.take()
    }

    /// Whether the spool has, or may soon have, no room for what a session does: the bound is near, the disk is full, or it has
    /// refused for half a second. What was taken is safe all the same; what is still to be begun had better not be. It is looked
    /// at with every commit and once a second. Both turns are alerts in the record, `spool-high-water` and `spool-has-room`.
    pub fn high_water(&self) -> watch::Receiver<bool> {
        self.inner.shared.high_water.subscribe()
    }

    /// How long an answer has been owed, by the disk or by whatever else holds the thread up; zero if none is. A frozen file system
    /// refuses nothing, it only never answers, and what is recorded meanwhile is in the kernel's rings alone.
    pub fn unanswered(&self) -> Duration {
        match self.inner.shared.asked_ns.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            asked => Duration::from_nanos(clock::now().boot_ns.saturating_sub(asked)),
        }
    }

    /// Why the disk is lost, once it has refused for ten seconds in a way that does not pass.
    pub fn lost_disk(&self) -> watch::Receiver<Option<String>> {
        self.inner.shared.lost.subscribe()
    }

    /// What was done, and what is wrong.
    pub fn stats(&self) -> RecorderStats {
        self.inner.shared.stats().clone()
    }

    /// Makes durable what was taken so far and what the source still has, then ends. Gives up after twice
    /// [`Options::give_up`]: a disk that does not answer must not keep the agent from ending.
    pub async fn stop(&self) {
        self.inner.shared.stopping.store(true, Ordering::Release);
        (self.inner.wake)();
        // The thread drops its end last of all.
        let mut durable = self.inner.durable.clone();
        let ended = async { while durable.changed().await.is_ok() {} };
        if timeout_at(Instant::now() + self.inner.give_up * 2, ended).await.is_err() {
            return tracing::error!("the disk does not answer; the last events are left in the kernel's rings");
        }
        let thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the recorder's thread ended by a panic");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        (self.wake)();
    }
}
