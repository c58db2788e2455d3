//! Opens and closes sessions, one at a time, in an order in which a crash at any point leaves the account locked or about to be.
//!
//! Opening: the note on disk, the record, the kernel, and only then the account. Closing: the account, then the kernel, then the
//! processes, the record, and the note last. What starts after a crash finds the note and closes, or, if the session's processes
//! still run under a live deadline, keeps recording them behind a locked account.

use std::{
    future::Future,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::{Duration, Instant},
};

use breakglass_api::v1::{
    AccountChanged, Alert, CloseCause, Process, SessionClosed, SessionOpened, SessionResumed, event::Body,
};
use tokio::{sync::Mutex, task::JoinSet};
use uuid::Uuid;

use super::{
    intent::{Intent, IntentStore},
    machine::{Counts, Machine},
};

/// How often a deadline is compared with the boot clock. The runtime's timers stop during suspend, the boot clock does not.
const DEADLINE_TICK: Duration = Duration::from_secs(1);

/// How often a session that ends with its last process is looked at.
const EXIT_TICK: Duration = Duration::from_millis(200);

/// Looks in a row that must find no process before the last one counts as gone: a login forks before it runs anything.
const EXIT_QUIET: u32 = 3;

/// Pause before locking is tried again after it failed.
const RELOCK_PAUSE: Duration = Duration::from_secs(1);

/// Where the manager records what it does.
pub trait Journal: Send + Sync + 'static {
    /// Resolves once the event is durable.
    fn record(&self, session: Option<Uuid>, body: Body) -> impl Future<Output = Result<u64, String>> + Send;
    /// Ties the kernel's number to the session, before the kernel hears of it.
    fn name_session(&self, slot: u32, session: Uuid);
    /// Resolves once everything that the kernel produced so far is durable.
    fn barrier(&self) -> impl Future<Output = Result<u64, String>> + Send;
}

/// A verified permission to break the glass.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Principal of the signing key.
    pub operator: String,
    /// The key, as in `authorized_keys`, without options.
    pub key: String,
    /// `SHA256:…`.
    pub key_fingerprint: String,
    /// Such as `ssh-ed25519`.
    pub key_type: String,
    /// Why.
    pub reason: String,
    /// Ticket, or empty.
    pub ticket: String,
    /// How long.
    pub ttl: Duration,
    /// End with the last process.
    pub close_on_exit: bool,
    /// What was signed.
    pub text: Vec<u8>,
    /// The signature over it.
    pub signature: Vec<u8>,
    /// Where it came from.
    pub source: String,
}

/// A session that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its id.
    pub session: Uuid,
    /// When it ends, boot clock, nanoseconds.
    pub deadline_boot_ns: u64,
    /// From the verified grant to the account enabled.
    pub took: Duration,
}

/// Why the glass was not broken, or a session not closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// One is open already.
    #[error(
        "the glass is broken already, by {operator} for another {remaining_s} s; join them, or close that session first: breakglass close"
    )]
    AlreadyOpen {
        /// By whom.
        operator: String,
        /// Until it ends, seconds.
        remaining_s: u64,
    },
    /// The host cannot record, so it does not open.
    #[error("this host cannot record a session, so it stays locked: {0}")]
    CannotRecord(String),
    /// Something on the host failed; what was begun was undone.
    #[error("the account could not be enabled and stays locked: {0}")]
    Failed(String),
    /// Nothing to close.
    #[error("no session is open on this host")]
    NotOpen,
}

impl SessionError {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::AlreadyOpen { .. } => "already-open",
            Self::CannotRecord(_) => "cannot-record",
            Self::Failed(_) => "failed",
            Self::NotOpen => "not-open",
        }
    }
}

/// Where the host stands, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// `locked`, `open`, `closing` or `resumed`.
    pub state: &'static str,
    /// The session, unless locked.
    pub session: Option<Intent>,
}

/// Decides what happens to the glass. Cheap to clone.
pub struct Manager<M, J> {
    inner: Arc<Inner<M, J>>,
}

impl<M, J> Clone for Manager<M, J> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct Inner<M, J> {
    machine: Arc<M>,
    journal: J,
    intents: IntentStore,
    /// The open session. Held locked through every change, so that changes happen one after the other.
    active: Mutex<Option<Intent>>,
    view: StdMutex<View>,
    last_slot: StdMutex<u32>,
    /// Comparisons that go on after their session was closed.
    comparing: Mutex<JoinSet<()>>,
}

impl<M: Machine, J: Journal> Manager<M, J> {
    /// The account must have been locked already. Call [`Self::recover`] next.
    pub fn new(machine: Arc<M>, journal: J, intents: IntentStore) -> Self {
        Self {
            inner: Arc::new(Inner {
                machine,
                journal,
                intents,
                active: Mutex::new(None),
                view: StdMutex::new(View { state: "locked", session: None }),
                last_slot: StdMutex::new(0),
                comparing: Mutex::new(JoinSet::new()),
            }),
        }
    }

    /// Deals with what an earlier run left: a session whose processes still run before their deadline goes on being recorded, without
    /// new logins; any other is closed.
    pub async fn recover(&self) {
        let Some(intent) = self.inner.intents.read() else { return };
        self.set_last_slot(intent.slot);
        self.inner.journal.name_session(intent.slot, intent.session);
        let same_boot = intent.boot_id == self.inner.machine.boot_id();
        let slot = intent.slot;
        let live = if same_boot { self.on_machine(move |m| m.live(slot)).await.len() } else { 0 };
        let past = intent.deadline_boot_ns <= self.inner.machine.boot_ns();
        let mut active = self.inner.active.lock().await;
        if same_boot && !past && live > 0 && self.resume(&intent, live).await {
            *active = Some(intent.clone());
            drop(active);
            self.watch(intent);
            return;
        }
        let cause = match (same_boot, past) {
            (false, _) => CloseCause::Reboot,
            (true, true) => CloseCause::Deadline,
            (true, false) => CloseCause::AgentStop,
        };
        self.shut(&intent, cause, "").await;
    }

    /// Breaks the glass.
    pub async fn open(&self, grant: Grant) -> Result<Opened, SessionError> {
        let started = Instant::now();
        let mut active = self.inner.active.lock().await;
        if let Some(open) = &*active {
            let left = open.deadline_boot_ns.saturating_sub(self.inner.machine.boot_ns());
            return Err(SessionError::AlreadyOpen {
                operator: open.operator.clone(),
                remaining_s: left / 1_000_000_000,
            });
        }
        self.on_machine(|m| m.can_record()).await.map_err(|e| SessionError::CannotRecord(e.0))?;
        let intent = self.intent_for(&grant).await;
        self.inner
            .intents
            .write(&intent)
            .map_err(|e| SessionError::Failed(format!("no folder takes the session's note: {e}")))?;
        // Not waited for: it is done long before ssh has shaken hands, and the operator must not wait.
        let (this, session) = (self.clone(), intent.session);
        tokio::spawn(async move { this.on_machine(move |m| m.look_before(session)).await });
        if let Err(error) = self.enable(&intent, grant).await {
            self.shut(&intent, CloseCause::OpenFailed, "").await;
            return Err(error);
        }
        let opened =
            Opened { session: intent.session, deadline_boot_ns: intent.deadline_boot_ns, took: started.elapsed() };
        self.show("open", Some(intent.clone()));
        *active = Some(intent.clone());
        drop(active);
        self.watch(intent);
        Ok(opened)
    }

    /// Ends the open session, or only `session` where one is named. Returns once every process is dead and the record is durable.
    pub async fn close(
        &self,
        session: Option<Uuid>,
        cause: CloseCause,
        by: &str,
    ) -> Result<(Uuid, SessionClosed), SessionError> {
        let mut active = self.inner.active.lock().await;
        let intent = active.as_ref().filter(|a| session.is_none_or(|s| s == a.session)).ok_or(SessionError::NotOpen)?;
        let intent = intent.clone();
        let closed = self.shut(&intent, cause, by).await;
        *active = None;
        Ok((intent.session, closed))
    }

    /// Where the host stands.
    pub fn view(&self) -> View {
        self.inner.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The account, the kernel and the processes.
    pub fn machine(&self) -> &Arc<M> {
        &self.inner.machine
    }

    /// The record.
    pub fn journal(&self) -> &J {
        &self.inner.journal
    }

    async fn intent_for(&self, grant: &Grant) -> Intent {
        let ttl_ns = u64::try_from(grant.ttl.as_nanos()).unwrap_or(u64::MAX);
        Intent {
            session: Uuid::now_v7(),
            slot: self.next_slot(),
            boot_id: self.inner.machine.boot_id(),
            deadline_boot_ns: self.inner.machine.boot_ns().saturating_add(ttl_ns),
            operator: grant.operator.clone(),
            reason: grant.reason.clone(),
            close_on_exit: grant.close_on_exit,
            counts: self.on_machine(|m| m.counts()).await,
        }
    }

    /// Record, kernel, account, in this order.
    async fn enable(&self, intent: &Intent, grant: Grant) -> Result<(), SessionError> {
        let (account, uid) = self.inner.machine.account();
        let opened = SessionOpened {
            operator: grant.operator,
            key_fingerprint: grant.key_fingerprint,
            key_type: grant.key_type,
            reason: grant.reason,
            ticket: grant.ticket,
            ttl_seconds: grant.ttl.as_secs(),
            deadline_boot_ns: intent.deadline_boot_ns,
            account: account.clone(),
            uid,
            tier: self.inner.machine.tier().to_string(),
            source: grant.source,
            close_on_exit: grant.close_on_exit,
            grant_text: grant.text,
            signature: grant.signature,
        };
        let (session, slot, deadline, key) = (intent.session, intent.slot, intent.deadline_boot_ns, grant.key);
        self.inner.journal.name_session(slot, session);
        self.inner
            .journal
            .record(Some(session), Body::SessionOpened(opened))
            .await
            .map_err(SessionError::CannotRecord)?;
        self.on_machine(move |m| m.begin_recording(slot)).await.map_err(|e| SessionError::CannotRecord(e.0))?;
        let detail =
            self.on_machine(move |m| m.enable(session, &key, deadline)).await.map_err(|e| SessionError::Failed(e.0))?;
        tracing::warn!(session = %session, operator = %intent.operator, reason = %intent.reason, "the glass is broken");
        // The operator need not wait for this one: what they may do is on disk already.
        let this = self.clone();
        tokio::spawn(async move {
            this.note(Some(session), Body::AccountChanged(AccountChanged { account, uid, enabled: true, detail }))
                .await;
        });
        Ok(())
    }

    async fn resume(&self, intent: &Intent, live: usize) -> bool {
        let slot = intent.slot;
        if let Err(error) = self.on_machine(move |m| m.begin_recording(slot)).await {
            tracing::error!(%error, "the session of an earlier run cannot be recorded any more; it is closed");
            return false;
        }
        tracing::warn!(session = %intent.session, live, "a session of an earlier run goes on until its deadline, without new logins");
        self.show("resumed", Some(intent.clone()));
        let resumed = SessionResumed {
            deadline_boot_ns: intent.deadline_boot_ns,
            live_processes: u32::try_from(live).unwrap_or(u32::MAX),
        };
        self.note(Some(intent.session), Body::SessionResumed(resumed)).await;
        true
    }

    /// Account, kernel, processes, record, note, in this order. Goes on whatever fails: each step makes the host safer.
    async fn shut(&self, intent: &Intent, cause: CloseCause, by: &str) -> SessionClosed {
        let started = Instant::now();
        self.show("closing", Some(intent.clone()));
        self.lock(intent.session).await;
        let slot = intent.slot;
        if let Err(error) = self.on_machine(move |m| m.forbid_new(slot)).await {
            tracing::error!(%error, "the kernel was not told that the session ends; its processes are hunted all the same");
        }
        let hunt = self.on_machine(move |m| m.end_processes(slot)).await;
        let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        // Read while the programs are attached, after the last process: what follows belongs to nobody.
        let barrier = self.inner.journal.barrier().await;
        let counts = self.on_machine(|m| m.counts()).await.since(&intent.counts);
        if let Err(error) = self.on_machine(move |m| m.end_recording(slot)).await {
            tracing::error!(%error, "the session's kernel programs could not be detached");
        }
        if let Err(error) = barrier {
            tracing::error!(%error, "the end of the session is not on disk yet");
        }
        if !hunt.survivors.is_empty() {
            let message = format!("{} processes of the session could not be killed", hunt.survivors.len());
            self.alert(Some(intent.session), "survivors", message).await;
        }
        let closed = closed_event(cause, by, &hunt, took_us, &counts);
        self.note(Some(intent.session), Body::SessionClosed(closed.clone())).await;
        if let Err(error) = self.inner.intents.clear() {
            tracing::error!(%error, "the session's note could not be removed; the next start will close it again");
        }
        self.compare(intent.session).await;
        tracing::warn!(session = %intent.session, cause = cause.as_str_name(), killed = hunt.killed, "the session is closed");
        self.show("locked", None);
        closed
    }

    /// Records what the session left behind, once that is known. Nobody waits for it: the next session may open meanwhile.
    async fn compare(&self, session: Uuid) {
        let this = self.clone();
        let mut comparing = self.inner.comparing.lock().await;
        while comparing.try_join_next().is_some() {}
        comparing.spawn(async move {
            let left = this.on_machine(move |m| m.left_behind(session)).await;
            this.note(Some(session), Body::LeftBehind(left)).await;
        });
    }

    /// Waits for the comparisons of closed sessions, which take seconds.
    pub async fn settle(&self) {
        let mut comparing = self.inner.comparing.lock().await;
        while comparing.join_next().await.is_some() {}
    }

    /// Locks now, or says so loudly and goes on trying until it holds.
    async fn lock(&self, session: Uuid) {
        match self.on_machine(|m| m.lock()).await {
            Ok(detail) => {
                let (account, uid) = self.inner.machine.account();
                self.note(Some(session), Body::AccountChanged(AccountChanged { account, uid, enabled: false, detail }))
                    .await;
            }
            Err(error) => {
                self.alert(Some(session), "lock-failed", error.0).await;
                let this = self.clone();
                tokio::spawn(async move { this.relock(session).await });
            }
        }
    }

    /// Ends when the account is locked, or a new grant has enabled it anyway.
    async fn relock(&self, session: Uuid) {
        loop {
            tokio::time::sleep(RELOCK_PAUSE).await;
            let active = self.inner.active.lock().await;
            if active.as_ref().is_some_and(|open| open.session != session) {
                return;
            }
            match self.on_machine(|m| m.lock()).await {
                Ok(detail) => {
                    drop(active);
                    self.alert(Some(session), "lock-repaired", detail).await;
                    return;
                }
                Err(error) => tracing::error!(%error, "the account still cannot be locked"),
            }
        }
    }

    /// Closes the session at its deadline, or with its last process where that was asked for.
    fn watch(&self, intent: Intent) {
        let this = self.clone();
        tokio::spawn(async move {
            let cause = if intent.close_on_exit {
                tokio::select! {
                    () = this.deadline(&intent) => CloseCause::Deadline,
                    () = this.last_exit(intent.slot) => CloseCause::LastExit,
                }
            } else {
                this.deadline(&intent).await;
                CloseCause::Deadline
            };
            // Somebody may have closed it meanwhile; then there is nothing to do.
            let _ = this.close(Some(intent.session), cause, "").await;
        });
    }

    async fn deadline(&self, intent: &Intent) {
        loop {
            let left = Duration::from_nanos(intent.deadline_boot_ns.saturating_sub(self.inner.machine.boot_ns()));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(DEADLINE_TICK)).await;
        }
    }

    /// Returns when the session had processes and has none any more.
    async fn last_exit(&self, slot: u32) {
        let mut seen = false;
        let mut quiet = 0;
        loop {
            tokio::time::sleep(EXIT_TICK).await;
            let live = !self.on_machine(move |m| m.live(slot)).await.is_empty();
            seen |= live;
            quiet = if live { 0 } else { quiet + 1 };
            if seen && quiet >= EXIT_QUIET {
                return;
            }
        }
    }

    /// Records what the manager cannot undo any more; a failure is logged, not returned.
    async fn note(&self, session: Option<Uuid>, body: Body) {
        if let Err(error) = self.inner.journal.record(session, body).await {
            tracing::error!(%error, "an event of the agent could not be recorded");
        }
    }

    async fn alert(&self, session: Option<Uuid>, code: &str, message: String) {
        tracing::error!(code, message, "alert");
        self.note(session, Body::Alert(Alert { code: code.to_owned(), message, process: None })).await;
    }

    /// Runs a call on the machine, which may block, off the runtime's threads.
    pub async fn on_machine<T: Send + 'static>(&self, act: impl FnOnce(&M) -> T + Send + 'static) -> T {
        let machine = Arc::clone(&self.inner.machine);
        match tokio::task::spawn_blocking(move || act(&machine)).await {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    fn next_slot(&self) -> u32 {
        let mut last = self.inner.last_slot.lock().unwrap_or_else(PoisonError::into_inner);
        // 0 means "no session" in the kernel.
        *last = last.checked_add(1).unwrap_or(1);
        *last
    }

    fn set_last_slot(&self, slot: u32) {
        *self.inner.last_slot.lock().unwrap_or_else(PoisonError::into_inner) = slot;
    }

    fn show(&self, state: &'static str, session: Option<Intent>) {
        *self.inner.view.lock().unwrap_or_else(PoisonError::into_inner) = View { state, session };
    }
}

fn closed_event(
    cause: CloseCause,
    by: &str,
    hunt: &super::processes::Hunt,
    took_us: u64,
    counts: &Counts,
) -> SessionClosed {
    SessionClosed {
        cause: cause.into(),
        by: by.to_owned(),
        killed: hunt.killed,
        survivors: hunt.survivors.iter().map(|p| Process { pid: p.tgid, start_ns: p.start_ns }).collect(),
        took_us,
        produced: counts.produced.to_vec(),
        missing: counts.missing.to_vec(),
    }
}
