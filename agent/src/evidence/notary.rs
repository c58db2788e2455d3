//! Decides when to sign, and puts statements into the record.
//!
//! | when | what |
//! |---|---|
//! | a session was opened or closed | a checkpoint that names it; then a new key |
//! | a proof was refused, an alert recorded, the agent starts or stops | a checkpoint |
//! | anything else was recorded | a checkpoint, at most one each [`PACE`] |
//! | the agent started, or a key signed for [`KEY_AGE`] | a new key |
//! | nothing was recorded | nothing: there is no timer at rest |

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use breakglass_api::{
    checkpoint::{Kind, PublicKey, Signed, Statement, reason},
    v1::{Checkpoint, KeyEvolved, KeyIntroduced, event::Body},
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::keys::{KeyError, KeyStore, Origin};
use crate::{
    blocking,
    recorder::{Mark, Reach, RecordError, Recorder, clock},
};

/// Shortest time between two checkpoints that nothing asks for but activity.
pub const PACE: Duration = Duration::from_secs(1);
/// How long a key signs, at most, while something is recorded: what its thief could still re-sign.
pub const KEY_AGE: Duration = Duration::from_secs(60);
/// Pause after something could not be recorded or signed.
const RETRY: Duration = Duration::from_secs(1);
/// How long a stop waits for the last statement.
const FINISH_MAX: Duration = Duration::from_secs(5);
/// Links that are announced with a new stream, for what the one before may have lost: 140 KiB.
const LINKS_ANNOUNCED: usize = 512;

/// Why the notary could not do its work this time.
#[derive(Debug, thiserror::Error)]
enum NotaryError {
    #[error("a statement could not be recorded: {0}")]
    Record(#[from] RecordError),
    #[error("a statement could not be signed: {0}")]
    Key(#[from] KeyError),
}

/// A handle on the task that signs.
pub struct Notary {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    host_key: PublicKey,
}

impl Notary {
    /// Begins to sign for what `recorder` makes durable.
    pub fn start(keys: Box<dyn KeyStore>, recorder: Recorder, host_id: [u8; 16]) -> Self {
        let host_key = keys.host_key();
        let (stop, stopping) = watch::channel(false);
        let work = Work {
            keys: Arc::new(Mutex::new(keys)),
            recorder,
            host_id,
            covered: 0,
            next_checkpoint: Instant::now(),
            key_until: Instant::now() + KEY_AGE,
            unintroduced: true,
            unrecorded: None,
            reasons: 0,
            marks: Vec::new(),
            turn: reason::STARTED,
            used: false,
        };
        Self { stop, task: tokio::spawn(work.run(stopping)), host_key }
    }

    /// What the host was known by when this began.
    pub fn host_key(&self) -> PublicKey {
        self.host_key
    }

    /// Signs for everything recorded so far, then ends. The recorder must still run.
    pub async fn finish(mut self) {
        self.stop.send_replace(true);
        match timeout(FINISH_MAX, &mut self.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the notary failed"),
            Err(_) => {
                tracing::warn!("the end of the record could not be signed in time; the next start signs for it");
                self.task.abort();
            }
        }
    }
}

struct Work {
    keys: Arc<Mutex<Box<dyn KeyStore>>>,
    recorder: Recorder,
    host_id: [u8; 16],
    /// Last frame that a recorded statement covers.
    covered: u64,
    next_checkpoint: Instant,
    /// When the key has been in use for its time.
    key_until: Instant,
    /// The key in use is still to be introduced.
    unintroduced: bool,
    /// A link whose key is in use already, which is not in the record yet.
    unrecorded: Option<Signed>,
    /// What asks for statements and has none yet.
    reasons: u16,
    marks: Vec<Mark>,
    /// Why the key is to be replaced now; 0 if it is not.
    turn: u16,
    /// Whether the key signed a checkpoint.
    used: bool,
}

impl Work {
    async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        let mut durable = self.recorder.durable();
        let mut marks = self.recorder.marks();
        loop {
            let last = *stopping.borrow();
            match self.attest(last).await {
                Ok(()) if last && self.is_done() => return,
                Ok(()) if last => continue,
                Ok(()) => {}
                Err(NotaryError::Record(RecordError::Closed)) => return,
                Err(error) => {
                    tracing::error!(%error, "a part of the record is unsigned for now");
                    sleep(RETRY).await;
                    continue;
                }
            }
            let pace = self.next_checkpoint;
            tokio::select! {
                // Nothing new: only news wakes it.
                changed = durable.changed(), if self.is_done() => if changed.is_err() { return },
                () = sleep_until(pace), if !self.is_done() => {}
                changed = marks.changed() => if changed.is_err() { return },
                _ = stopping.changed() => {}
            }
        }
    }

    /// Whether everything in the record is covered.
    fn is_done(&self) -> bool {
        self.recorder.reach().content_seq <= self.covered
    }

    /// Records every statement that is due; all that can be, if it is the last time.
    async fn attest(&mut self, last: bool) -> Result<(), NotaryError> {
        self.settle().await?;
        let (reasons, marks) = self.recorder.take_marks();
        self.reasons |= reasons;
        self.marks.extend(marks);
        while let Some(mark) = self.marks.first().copied() {
            self.checkpoint(self.reasons | mark.reason, Some(mark)).await?;
            self.marks.remove(0);
            self.turn |= mark.reason;
        }
        if self.reasons != 0 {
            self.checkpoint(self.reasons, None).await?;
        }
        if !self.is_done() && (last || Instant::now() >= self.next_checkpoint) {
            self.checkpoint(reason::ACTIVITY, None).await?;
        }
        if self.used && Instant::now() >= self.key_until {
            self.turn |= reason::KEY_AGE;
        }
        if self.turn != 0 {
            self.turn_key().await?;
        }
        Ok(())
    }

    /// What must be in the record before anything else is signed.
    async fn settle(&mut self) -> Result<(), NotaryError> {
        let mended = self.keys().mend()?;
        self.unintroduced |= mended;
        if self.unintroduced {
            let renewed = self.renew().await?;
            let introduced = self.introduced(renewed)?;
            self.recorder.record(None, Body::KeyIntroduced(introduced)).await?;
            self.unintroduced = false;
        }
        if let Some(link) = &self.unrecorded {
            let evolved = KeyEvolved { signed: Some(link.to_message()) };
            self.recorder.record(None, Body::KeyEvolved(evolved)).await?;
            self.unrecorded = None;
        }
        Ok(())
    }

    fn keys(&self) -> MutexGuard<'_, Box<dyn KeyStore>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn checkpoint(&mut self, reasons: u16, mark: Option<Mark>) -> Result<(), NotaryError> {
        let reach = self.recorder.reach();
        let keys = Arc::clone(&self.keys);
        let host_id = self.host_id;
        let covers = reach.seq;
        let signed = blocking::run(move || {
            let keys = keys.lock().unwrap_or_else(PoisonError::into_inner);
            let mut statement = statement(keys.as_ref(), host_id, &reach, Kind::Checkpoint, reasons);
            if let Some(mark) = mark {
                (statement.session, statement.session_seq) = (mark.session.into_bytes(), mark.seq);
            }
            if reasons != reason::ACTIVITY {
                statement.numbers = reach.numbers.to_vec();
            }
            sign(keys.as_ref(), statement)
        })
        .await?;
        self.recorder.record(None, Body::Checkpoint(Checkpoint { signed: Some(signed.to_message()) })).await?;
        self.covered = self.covered.max(covers);
        self.next_checkpoint = Instant::now() + PACE;
        (self.reasons, self.used) = (0, true);
        Ok(())
    }

    /// A new key; the old one signs for everything durable and for its successor, and is gone when this returns.
    async fn turn_key(&mut self) -> Result<(), NotaryError> {
        // A link names no session: that is for the checkpoint before it.
        let reasons = match self.turn & !(reason::OPENED | reason::CLOSED) {
            0 => reason::ACTIVITY,
            reasons => reasons,
        };
        let link = self.advance(Kind::NextKey, reasons).await?;
        (self.turn, self.used, self.key_until) = (0, false, Instant::now() + KEY_AGE);
        self.covered = self.covered.max(link.statement.seq);
        self.unrecorded = Some(link);
        self.settle().await
    }

    /// A new host key, where an administrator asked for one.
    async fn renew(&mut self) -> Result<bool, NotaryError> {
        if !self.keys().wants_renewal() {
            return Ok(false);
        }
        let link = self.advance(Kind::NewHostKey, reason::RENEWED).await?;
        tracing::warn!(epoch = link.statement.epoch, "this host has a new host key, as was asked for");
        Ok(true)
    }

    async fn advance(
        &self,
        kind: impl FnOnce(PublicKey) -> Kind + Send + 'static,
        reasons: u16,
    ) -> Result<Signed, KeyError> {
        let (keys, host_id, reach) = (Arc::clone(&self.keys), self.host_id, self.recorder.reach());
        blocking::run(move || {
            let mut keys = keys.lock().unwrap_or_else(PoisonError::into_inner);
            let next = keys.prepare()?;
            let statement = statement(keys.as_ref(), host_id, &reach, kind(next), reasons);
            let link = sign(keys.as_ref(), statement)?;
            keys.advance(&link)?;
            Ok(link)
        })
        .await
    }

    fn introduced(&self, renewed: bool) -> Result<KeyIntroduced, KeyError> {
        let keys = self.keys();
        let last = keys.links(1)?;
        // Whoever follows a stream has every link of it but perhaps the last. Of another one it may have lost some.
        let stream_id = self.recorder.reach().stream_id;
        let new_stream = last.last().is_some_and(|link| link.statement.stream_id != stream_id);
        let links = if new_stream { keys.links(LINKS_ANNOUNCED)? } else { last };
        let reason = match keys.origin() {
            _ if renewed => "renewed",
            Origin::FirstStart => "first-start",
            Origin::Lost => "keys-lost",
            Origin::Kept if new_stream => "new-stream",
            Origin::Kept => "agent-started",
        };
        Ok(KeyIntroduced {
            host_key: keys.host_key().to_vec(),
            epoch: keys.epoch(),
            key: keys.public().to_vec(),
            links: links.iter().map(Signed::to_message).collect(),
            renewal: keys.renewal().as_ref().map(Signed::to_message),
            reason: reason.to_owned(),
        })
    }
}

/// A statement about where the record reaches.
fn statement(keys: &dyn KeyStore, host_id: [u8; 16], reach: &Reach, kind: Kind, reasons: u16) -> Statement {
    let now = clock::now();
    Statement {
        kind,
        reasons,
        host_id,
        host_key: keys.host_key(),
        epoch: keys.epoch(),
        stream_id: reach.stream_id,
        seq: reach.seq,
        hash: reach.hash,
        boot_id: reach.boot_id,
        boot_ns: now.boot_ns,
        wall_ns: i64::try_from(now.boot_ns).unwrap_or(i64::MAX).saturating_add(now.wall_offset_ns),
        session: [0; 16],
        session_seq: 0,
        numbers: Vec::new(),
    }
}

fn sign(keys: &dyn KeyStore, statement: Statement) -> Result<Signed, KeyError> {
    let signature = keys.sign(&Statement::signing_input(&statement.encode()))?;
    Ok(Signed { statement, signature })
}
