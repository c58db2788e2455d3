//! Carries durable frames to a collector and learns what it has.
//!
//! One thread, one connection, addresses tried in turn. After Hello the collector says what it holds of this stream; if that
//! is a frame of ours, shipping goes on behind it, whatever was acknowledged before. A collector that holds something else
//! under our stream is a fork: nothing is sent, the status says so, and it is looked at again slowly. Frames are deleted from
//! the spool only after an acknowledgement whose hash is the one that was sent.
//!
//! The thread is its own because every frame passes here: on threads that are shared each one would wake several. The recorder
//! never waits for any of this. Reading the spool happens on threads that may block; in memory is one window.
//! A stream that a repair has finished is shipped to its end before the next one is begun.

mod backoff;
mod connection;
mod link;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
mod window;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use breakglass_api::{
    frame::Hash,
    v1::{Order, OrderDone},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

#[cfg(test)]
use self::link::Dialling;
use self::{
    backoff::Backoff,
    connection::{Connection, Ended},
    link::{Dial, Network},
};
use crate::spool::{SpoolError, SpoolReader};

/// Whom to ship to, and as whom.
#[derive(Clone, Debug)]
pub struct Options {
    /// Addresses, tried in turn: `https://name:port`.
    pub urls: Vec<String>,
    /// Name that the collector's certificate must carry.
    pub server_name: String,
    /// Folder with `ca.crt`, `host.crt` and `host.key`; read again for every connection, so that renewed ones are used.
    pub enrolment: PathBuf,
    /// As the certificate names it.
    pub host_id: String,
    /// For people.
    pub hostname: String,
    /// The agent's version.
    pub agent_version: String,
    /// How much the kernel allows.
    pub tier: String,
    /// Who carries out what the collector passes on; none: it is refused.
    pub orders: Option<Orders>,
    /// Times and bounds.
    pub pace: Pace,
}

/// Where orders go, each with where its answer is wanted.
pub type Orders = mpsc::Sender<(Order, mpsc::Sender<OrderDone>)>;

/// Times and bounds of shipping.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Bytes sent and not acknowledged; one frame above it is sent alone. 4 MiB fill 100 Mbit/s over 300 ms.
    pub window_bytes: usize,
    /// Frames sent and not acknowledged.
    pub window_frames: usize,
    /// Time between two sendings while frames keep coming and the collector keeps up: each costs both ends wake-ups, system calls
    /// and a commit. A frame after a pause goes at once. With the recorder's own pause an event is well within its 50 ms.
    pub gather: Duration,
    /// How long connecting, and the answer to Hello, may take.
    pub connect: Duration,
    /// Longest time without saying anything: the collector raises the alarm for a host that is silent for 3 s in a session.
    pub talk: Duration,
    /// Silence after which the peer is asked for a sign of life by HTTP/2.
    pub keepalive: Duration,
    /// How long an answer to a sign of life may take.
    pub keepalive_timeout: Duration,
    /// How long the collector may say nothing at all although asked; longer than its slowest commit.
    pub silence: Duration,
    /// Shortest and longest pause before the next attempt.
    pub retry_min: Duration,
    /// See `retry_min`.
    pub retry_max: Duration,
    /// Pause after a fork or a damaged frame, which no retry heals.
    pub retry_fault: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            window_bytes: 4 << 20,
            window_frames: 1024,
            gather: Duration::from_millis(29),
            connect: Duration::from_secs(3),
            talk: Duration::from_secs(1),
            keepalive: Duration::from_secs(2),
            keepalive_timeout: Duration::from_secs(2),
            silence: Duration::from_secs(15),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
            retry_fault: Duration::from_secs(30),
        }
    }
}

/// How shipping goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShipStatus {
    /// Whether a collector has answered Hello and is still there.
    pub connected: bool,
    /// Which one, or which one was tried last.
    pub url: String,
    /// Last frame of the current stream that a collector is known to have; 0 if none.
    pub acked_seq: u64,
    /// When that was learnt of it, on the boot clock, nanoseconds; 0 where it was known before.
    pub acked_boot_ns: u64,
    /// Why it is not connected.
    pub error: Option<String>,
    /// Where the collector holds other frames than ours under our stream, or acknowledged what was never sent: which. Stays until a collector
    /// has what it is sent.
    pub fork: Option<String>,
}

impl ShipStatus {
    /// A collector answered, which says nothing yet about what it holds.
    fn connect(&mut self) {
        (self.connected, self.error) = (true, None);
    }

    /// A collector has what it was sent.
    fn agree(&mut self) {
        self.fork = None;
    }

    /// An attempt failed. A broken connection is no news about a fork.
    fn fail(&mut self, message: String, fork: bool) {
        if fork {
            (self.error, self.fork) = (None, Some(message));
        } else {
            self.error = Some(message);
        }
    }

    /// All that is wrong, in words.
    pub fn wrong(&self) -> Option<String> {
        let wrong: Vec<&str> = [&self.fork, &self.error].into_iter().flatten().map(String::as_str).collect();
        (!wrong.is_empty()).then(|| wrong.join("; now: "))
    }
}

/// Why a connection was given up, or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// A file of the enrolment folder.
    #[error("cannot read {file}: {source}; enrol the host again")]
    Enrolment {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No connection.
    #[error("cannot connect to {url}: {reason}")]
    Connect {
        /// The address.
        url: String,
        /// Why.
        reason: String,
    },
    /// The stream broke.
    #[error("the collector ended the stream: {0}")]
    Stream(String),
    /// Nothing came.
    #[error("the collector has not answered for {0} s")]
    Silent(u64),
    /// The collector refused.
    #[error("the collector refuses ({code}, frame {seq}): {message}")]
    Refused {
        /// Stable word.
        code: String,
        /// Its sentence.
        message: String,
        /// The frame that it is about.
        seq: u64,
    },
    /// The collector said something that makes no sense.
    #[error("the collector breaks the protocol: {0}")]
    Protocol(String),
    /// The collector's chain is not ours.
    #[error(
        "the collector's record of this host is not what this host recorded: {0}; find out who wrote it before anything else"
    )]
    Fork(String),
    /// The spool cannot be read.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl ShipError {
    /// Whether another attempt cannot help before somebody did something.
    fn is_fault(&self) -> bool {
        matches!(self, Self::Fork(_) | Self::Spool(_) | Self::Enrolment { .. })
    }
}

/// Sees how a shipper does, also after it ended.
#[derive(Clone)]
pub struct ShipObserver(Arc<Shared>);

impl ShipObserver {
    /// How it goes.
    pub fn status(&self) -> ShipStatus {
        self.0.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A running shipper; it ends when this is dropped, or orderly by [`Shipper::stop`].
pub struct Shipper {
    shared: Arc<Shared>,
    acked: watch::Receiver<u64>,
    stop: watch::Sender<bool>,
    /// Answered when the thread has ended orderly.
    ended: Option<oneshot::Receiver<()>>,
}

/// Threads that read the spool, and the enrolment's files.
const BLOCKING_THREADS: usize = 2;

struct Shared {
    status: Mutex<ShipStatus>,
    acked: watch::Sender<u64>,
}

impl Shared {
    fn update(&self, change: impl FnOnce(&mut ShipStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Shipper {
    /// Starts its thread. `durable` says how far the spool may be read.
    ///
    /// # Errors
    ///
    /// Where the system gives no thread.
    pub fn start(options: Options, durable: watch::Receiver<(u64, Hash)>, reader: SpoolReader) -> io::Result<Self> {
        let (mut shipper, worker) = Self::prepare(Arc::new(Network), options, durable, reader);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(BLOCKING_THREADS)
            .enable_all()
            .build()?;
        let (ending, ended) = oneshot::channel();
        thread::Builder::new().name("ship".into()).spawn(move || {
            // As a task of its own: whenever the future that a runtime blocks on is woken, it writes to itself and polls once more.
            let ended = runtime.block_on(async { tokio::spawn(worker.run()).await });
            if ended.is_ok() {
                // Nobody may be waiting any more.
                let _ = ending.send(());
            }
        })?;
        shipper.ended = Some(ended);
        Ok(shipper)
    }

    /// A shipper on the runtime that this is called on, in its virtual time; the task can be ended as by kill -9.
    #[cfg(test)]
    fn start_here(
        dial: Arc<dyn Dial>,
        options: Options,
        durable: watch::Receiver<(u64, Hash)>,
        reader: SpoolReader,
    ) -> (Self, tokio::task::AbortHandle) {
        let (mut shipper, worker) = Self::prepare(dial, options, durable, reader);
        let (ending, ended) = oneshot::channel();
        let task = tokio::spawn(async move {
            worker.run().await;
            let _ = ending.send(());
        });
        shipper.ended = Some(ended);
        (shipper, task.abort_handle())
    }

    fn prepare(
        dial: Arc<dyn Dial>,
        options: Options,
        durable: watch::Receiver<(u64, Hash)>,
        reader: SpoolReader,
    ) -> (Self, Worker) {
        let acked = reader.acked();
        let acked_seq = if acked.generation == reader.durable().generation { acked.seq } else { 0 };
        let (publish, acked) = watch::channel(acked_seq);
        let status = Mutex::new(ShipStatus { acked_seq, ..ShipStatus::default() });
        let shared = Arc::new(Shared { status, acked: publish });
        let (stop, stopped) = watch::channel(false);
        let worker = Worker { dial, options, durable, reader, stopped, shared: shared.clone(), said: None };
        (Self { shared, acked, stop, ended: None }, worker)
    }

    /// Sees how it goes.
    pub fn observer(&self) -> ShipObserver {
        ShipObserver(self.shared.clone())
    }

    /// How it goes.
    pub fn status(&self) -> ShipStatus {
        self.observer().status()
    }

    /// Last frame of the current stream that a collector has; 0 if none.
    pub fn acked(&self) -> watch::Receiver<u64> {
        self.acked.clone()
    }

    /// Waits, at most so long, until the collector has the frame `seq`. False if it has not.
    pub async fn wait_acked(&self, seq: u64, limit: Duration) -> bool {
        let mut acked = self.acked();
        matches!(tokio::time::timeout(limit, acked.wait_for(|acked| *acked >= seq)).await, Ok(Ok(_)))
    }

    /// Closes the connection and writes down what was acknowledged.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(ended) = self.ended.take()
            && ended.await.is_err()
        {
            tracing::error!("the shipper ended by a panic");
        }
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// Does what may block on a thread that may.
fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[cfg(test)]
    if let Some(turns) = model::turns() {
        // A history comes out the same every time only if one thread does all of it.
        return tokio::spawn(async move {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
            work()
        });
    }
    tokio::task::spawn_blocking(work)
}

struct Worker {
    dial: Arc<dyn Dial>,
    options: Options,
    durable: watch::Receiver<(u64, Hash)>,
    reader: SpoolReader,
    stopped: watch::Receiver<bool>,
    shared: Arc<Shared>,
    /// What was last logged to be wrong.
    said: Option<String>,
}

impl Worker {
    async fn run(mut self) {
        let mut backoff = Backoff::new(self.options.pace.retry_min, self.options.pace.retry_max);
        let mut turn = 0;
        while !*self.stopped.borrow() {
            let Some(url) = self.options.urls.get(turn % self.options.urls.len().max(1)).cloned() else { return };
            self.shared.update(|status| status.url.clone_from(&url));
            let pause = match self.attempt(&url, &mut backoff).await {
                Ended::Stopped => break,
                Ended::NextStream => continue,
                Ended::Failed(error) => {
                    turn += 1;
                    self.note(&url, &error);
                    if error.is_fault() { self.options.pace.retry_fault } else { backoff.next() }
                }
            };
            let _ = tokio::time::timeout(pause, self.stopped.wait_for(|stop| *stop)).await;
        }
        self.shared.update(|status| status.connected = false);
        let mut reader = self.reader;
        let flushed = aside(move || reader.flush()).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "what the collector acknowledged is not written down");
        }
    }

    /// One connection from beginning to end.
    async fn attempt(&mut self, url: &str, backoff: &mut Backoff) -> Ended {
        let connection = Connection {
            url,
            options: &self.options,
            durable: self.durable.clone(),
            stopped: self.stopped.clone(),
            shared: &self.shared,
            dial: self.dial.as_ref(),
        };
        let ended = connection.run(self.reader.another(), backoff).await;
        self.shared.update(|status| {
            status.connected = false;
            if status.wrong().is_none() {
                self.said = None;
            }
        });
        ended
    }

    /// Says once what is wrong, until it changes.
    fn note(&mut self, url: &str, error: &ShipError) {
        let (message, fork) = (error.to_string(), matches!(error, ShipError::Fork(_)));
        if self.said.as_ref() != Some(&message) {
            if fork {
                tracing::error!(url, "{message}")
            } else {
                tracing::warn!(url, "{message}")
            }
            self.said = Some(message.clone());
        }
        self.shared.update(|status| status.fail(message, fork));
    }
}
