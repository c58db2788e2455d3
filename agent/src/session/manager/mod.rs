//! Opens and closes sessions, one at a time, in an order in which a crash at any point leaves the account locked or about to be.
//!
//! Opening: the note on disk, the record, the kernel, and only then the account. Closing: the account, then the kernel, then the
//! processes, the record, and the note last. What starts after a crash finds the note and closes, or, if the session's processes
//! still run under a live deadline, keeps recording them behind a locked account until a fresh proof enables it again.
//!
//! A proof that comes while a session is open extends that session ([`extend`]); there is never a second one.

mod extend;
mod retire;
mod shut;
mod watch;

use std::{
    future::Future,
    sync::{
        Arc, Mutex as StdMutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use breakglass_api::v1::{
    AccountChanged, Alert, CloseCause, Login, LoginNotice, SessionClosed, SessionOpened, SessionResumed, event::Body,
};
use tokio::{sync::Mutex, task::JoinSet, time::timeout};
use uuid::Uuid;

use super::{
    grant::{Grant, Opened, SessionError, View},
    intent::{Admitted, Intent, IntentStore},
    machine::{Access, Machine, MachineError},
};
use crate::blocking;

/// How long enabling may take; more than the lock of the account files is waited for ([`crate::account::pwd_lock::WAIT`]).
const ENABLE_LIMIT: Duration = Duration::from_secs(20);

/// Where the manager records what it does.
pub trait Journal: Send + Sync + 'static {
    /// Resolves once the event is durable.
    fn record(&self, session: Option<Uuid>, body: Body) -> impl Future<Output = Result<u64, String>> + Send;
    /// Ties the kernel's number to the session, before the kernel hears of it.
    fn name_session(&self, slot: u32, session: Uuid);
    /// Resolves once everything that the kernel produced so far is durable.
    fn barrier(&self) -> impl Future<Output = Result<u64, String>> + Send;
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
    /// Whether the agent is about to end; changed and asked for while `active` is held.
    retired: AtomicBool,
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
                retired: AtomicBool::new(false),
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
            let session = intent.session;
            *active = Some(intent);
            drop(active);
            self.watch(session);
            return;
        }
        let cause = match (same_boot, past) {
            (false, _) => CloseCause::Reboot,
            (true, true) => CloseCause::Deadline,
            (true, false) => CloseCause::AgentStop,
        };
        self.shut(&intent, cause, "").await;
    }

    /// Breaks the glass, or extends the session that is open.
    pub async fn open(&self, grant: Grant) -> Result<Opened, SessionError> {
        let started = Instant::now();
        let mut active = self.inner.active.lock().await;
        if self.inner.retired.load(Ordering::SeqCst) {
            return Err(SessionError::Stopping);
        }
        if let Some(open) = &mut *active {
            if open.deadline_boot_ns > self.inner.machine.boot_ns() {
                return self.extend(open, grant, started).await;
            }
            // Past its deadline and about to be closed: this grant is for a session of its own.
            let open = open.clone();
            self.shut(&open, CloseCause::Deadline, "").await;
            *active = None;
        }
        self.can_record().await?;
        let intent = self.intent_for(&grant).await;
        self.note_durably(&intent).await?;
        // Not waited for: it is done long before ssh has shaken hands, and the operator must not wait.
        let (this, session) = (self.clone(), intent.session);
        tokio::spawn(async move { this.on_machine(move |m| m.look_before(session)).await });
        if let Err(error) = self.enable(&intent, grant).await {
            self.shut(&intent, CloseCause::OpenFailed, "").await;
            return Err(error);
        }
        let opened = Opened {
            session: intent.session,
            deadline_boot_ns: intent.deadline_boot_ns,
            extended: false,
            took: started.elapsed(),
        };
        self.show("open", Some(intent.clone()));
        *active = Some(intent);
        drop(active);
        self.watch(opened.session);
        Ok(opened)
    }

    /// Whether a session could be recorded now. Asked before a one-time code is burnt.
    pub async fn can_record(&self) -> Result<(), SessionError> {
        self.on_machine(|m| m.can_record()).await.map_err(|e| SessionError::CannotRecord(e.0))
    }

    /// Ends the open session, or only `session` where one is named. Returns once every process is dead and the record is durable.
    pub async fn close(
        &self,
        session: Option<Uuid>,
        cause: CloseCause,
        by: &str,
    ) -> Result<(Uuid, SessionClosed), SessionError> {
        let (mut active, _) = self.active_at_the_end(session).await;
        let intent = active.as_ref().filter(|a| session.is_none_or(|s| s == a.session)).ok_or(SessionError::NotOpen)?;
        let intent = intent.clone();
        let closed = self.shut(&intent, cause, by).await;
        *active = None;
        Ok((intent.session, closed))
    }

    /// Records that somebody has logged in, as the PAM gate says. What is not of the open session is not believed.
    pub async fn logged_in(&self, notice: LoginNotice) {
        let Some(open) = self.view().session else { return };
        if notice.session != open.session.to_string() {
            return;
        }
        let place = notice.place.unwrap_or_default();
        let login = Login {
            service: place.service,
            tty: place.tty,
            remote_host: place.remote_host,
            remote_user: place.remote_user,
            method: notice.method,
            operator: open.operator_of(&notice.key_fingerprint).unwrap_or_default().to_owned(),
            key_fingerprint: notice.key_fingerprint,
        };
        self.note(Some(open.session), Body::Login(login)).await;
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
            admitted: Admitted::from(grant).into_iter().collect(),
            by_code: grant.by_code,
            revision: 0,
        }
    }

    async fn note_durably(&self, intent: &Intent) -> Result<(), SessionError> {
        let written = self.inner.intents.write(intent).await;
        written.map_err(|e| SessionError::Failed(format!("no folder takes the session's note: {e}")))
    }

    /// Record, kernel, account, in this order.
    async fn enable(&self, intent: &Intent, grant: Grant) -> Result<(), SessionError> {
        let (account, uid) = self.inner.machine.account();
        let opened = SessionOpened {
            operator: grant.operator,
            key_fingerprint: grant.key_fingerprint,
            key_type: grant.key_type,
            certificate: grant.certificate,
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
            cosigners: grant.cosigners,
            warnings: grant.warnings,
        };
        let (session, slot, access) = (intent.session, intent.slot, intent.access());
        self.inner.journal.name_session(slot, session);
        self.inner
            .journal
            .record(Some(session), Body::SessionOpened(opened))
            .await
            .map_err(SessionError::CannotRecord)?;
        self.on_machine(move |m| m.begin_recording(slot)).await.map_err(|e| SessionError::CannotRecord(e.0))?;
        let detail = self.enable_account(access).await.map_err(|e| SessionError::Failed(e.0))?;
        tracing::warn!(session = %session, operator = %intent.operator, reason = %intent.reason, "the glass is broken");
        self.note_enabled(session, account, uid, detail);
        Ok(())
    }

    /// Lets these in. Takes milliseconds, unless somebody holds the account files up. Should it happen after all when nobody waits any more,
    /// whoever has locked since has the last word.
    async fn enable_account(&self, access: Access) -> Result<String, MachineError> {
        let enabled = timeout(ENABLE_LIMIT, self.on_machine(move |m| m.enable(&access))).await;
        enabled.unwrap_or_else(|_| {
            Err(MachineError(format!(
                "the account files do not answer for {ENABLE_LIMIT:?}; see what holds /etc/shadow up"
            )))
        })
    }

    /// The operator need not wait for this one: what they may do is on disk already.
    fn note_enabled(&self, session: Uuid, account: String, uid: u32, detail: String) {
        let this = self.clone();
        let changed = AccountChanged { account, uid, enabled: true, detail };
        tokio::spawn(async move { this.note(Some(session), Body::AccountChanged(changed)).await });
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
        blocking::run(move || act(&machine)).await
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
