//! Notices from the host itself, for when nobody looks at the collector, or nothing reaches it: one line to the system's log, and a POST
//! to a webhook.
//!
//! The recorder shows every event here once it is durable; what is worth a notice becomes one ([`message`]). Nothing waits for it: a
//! notice goes into a queue that is given up on when it is full, and a thread of its own does the rest. Openings and endings are always
//! told; refusals, alerts and log-ins up to [`bound::PER_MINUTE`] a minute of each, and how many more there were with the next one.

pub mod bound;
pub mod message;
pub mod settings;
pub mod syslog;
pub mod webhook;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use breakglass_api::v1::Event;
use tokio::sync::mpsc;
use uuid::Uuid;

use self::{bound::Bound, message::Notice, settings::Notices as Settings, webhook::Webhook};

/// Notices on their way to the thread.
const QUEUE_MAX: usize = 256;
/// Notices on their way to the webhook.
const WEBHOOK_QUEUE_MAX: usize = 64;

/// Who the notices come from.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The host's id.
    pub host_id: String,
    /// The name that operators use.
    pub host: String,
}

/// Where events are shown; clones are the same.
#[derive(Clone, Debug)]
pub struct Notices {
    queue: mpsc::Sender<Notice>,
    /// Not told yet.
    pending: Arc<AtomicUsize>,
}

impl Notices {
    /// Starts the thread. What is wrong with the webhook's settings is an error beside notices that work without it.
    pub fn start(settings: &Settings, origin: Origin) -> (Self, Option<String>) {
        Self::start_at(settings, origin, Path::new(syslog::SOCKET))
    }

    fn start_at(settings: &Settings, origin: Origin, log: &Path) -> (Self, Option<String>) {
        let (webhook, error) = match settings.webhook.as_ref().map(|hook| Webhook::new(hook, origin.clone())) {
            None => (None, None),
            Some(Ok(webhook)) => (Some(webhook), None),
            Some(Err(error)) => (None, Some(error)),
        };
        let (queue, notices) = mpsc::channel(QUEUE_MAX);
        let pending = Arc::new(AtomicUsize::new(0));
        let log = settings.syslog.then(|| log.to_owned());
        let teller = Teller { log, origin, pending: Arc::clone(&pending) };
        let started = thread::Builder::new().name("notices".into()).spawn(move || teller.run(notices, webhook));
        let error = error.or(started.err().map(|e| format!("no thread for notices: {e}")));
        (Self { queue, pending }, error)
    }

    /// Shows an event that is durable; never waits.
    pub fn see(&self, event: &Event, session: Option<Uuid>) {
        let Some(notice) = message::of(event, session) else { return };
        self.pending.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(notice).is_err() {
            self.pending.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything was told, or for so long.
    pub async fn settle(&self, limit: Duration) {
        const LOOK: Duration = Duration::from_millis(10);
        let told = async {
            while self.pending.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        // What is not told by then is in the record.
        let _ = tokio::time::timeout(limit, told).await;
    }
}

/// What the thread works with.
struct Teller {
    /// Where the system's log listens, if it is told.
    log: Option<PathBuf>,
    origin: Origin,
    pending: Arc<AtomicUsize>,
}

impl Teller {
    /// Until the last [`Notices`] is gone.
    fn run(self, notices: mpsc::Receiver<Notice>, webhook: Option<Webhook>) {
        // A runtime of its own: name services that hang hold up nobody else.
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                runtime.block_on(self.tell(notices, webhook));
                runtime.shutdown_background();
            }
            Err(error) => tracing::error!(%error, "no notices: no runtime for them"),
        }
    }

    async fn tell(self, mut notices: mpsc::Receiver<Notice>, webhook: Option<Webhook>) {
        let (hook, waiting) = mpsc::channel::<Notice>(WEBHOOK_QUEUE_MAX);
        let pending = Arc::clone(&self.pending);
        let posting = tokio::spawn(async move { webhook::post_all(webhook, waiting, &pending).await });
        let mut bound = Bound::default();
        // Given up on because the webhook is behind; told with the next one.
        let mut lost = 0;
        while let Some(mut notice) = notices.recv().await {
            if !bound.admit(&mut notice, std::time::Instant::now()) {
                self.pending.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            if let Some(log) = &self.log {
                syslog::send_to(log, notice.priority(), &notice.line(&self.origin.host));
            }
            notice.lost = lost;
            lost = match hook.try_send(notice) {
                Ok(()) => 0,
                Err(_) => {
                    self.pending.fetch_sub(1, Ordering::Relaxed);
                    lost + 1
                }
            };
        }
        drop(hook);
        let _ = posting.await;
    }
}

#[cfg(test)]
mod tests;
