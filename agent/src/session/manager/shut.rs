//! Closing, and what goes on after it.

use std::{
    future::Future,
    pin::Pin,
    time::{Duration, Instant},
};

use breakglass_api::v1::{AccountChanged, CloseCause, Process, SessionClosed, event::Body};
use tokio::{sync::MutexGuard, time::timeout};
use uuid::Uuid;

use super::{Journal, Manager};
use crate::session::{
    intent::Intent,
    machine::{Counts, Machine, MachineError},
    processes::Hunt,
};

/// Pause before locking is tried again after it failed.
const RELOCK_PAUSE: Duration = Duration::from_secs(1);

/// How long the processes are left alone while the account is being locked. It takes milliseconds, unless somebody, such as one of them, holds
/// the lock of the account files, or the disk does not answer: neither may move the deadline.
const LOCK_PATIENCE: Duration = Duration::from_millis(300);

/// How long the account is waited for after that; more than the lock of the account files is waited for ([`crate::account::pwd_lock::WAIT`]).
const LOCK_LIMIT: Duration = Duration::from_secs(20);

/// How long making credentials anew may take. A new RSA key takes seconds on a slow machine.
const ROTATION_LIMIT: Duration = Duration::from_secs(60);

/// A lock under way; it goes on whether or not somebody waits.
type Locking = Pin<Box<dyn Future<Output = Result<String, MachineError>> + Send>>;

/// How long a change under way is waited for before the session's processes are ended without it.
const CHANGE_PATIENCE: Duration = Duration::from_millis(300);

impl<M: Machine, J: Journal> Manager<M, J> {
    /// The open session, to be ended, or only `session` where one is named. A change of it that hangs, as an extension does whose account
    /// files somebody of the session holds up, keeps nothing alive: then the processes are ended first, which lets it go on, and the session
    /// has to end. Whether that was so.
    pub(super) async fn active_at_the_end(&self, session: Option<Uuid>) -> (MutexGuard<'_, Option<Intent>>, bool) {
        if let Ok(active) = timeout(CHANGE_PATIENCE, self.inner.active.lock()).await {
            return (active, false);
        }
        let view = self.view();
        let open = view.session.filter(|open| view.state != "closing" && session.is_none_or(|s| s == open.session));
        if let Some(Intent { slot, .. }) = open {
            tracing::warn!("a change of the session hangs while it has to end; its processes are ended first");
            if let Err(error) = self.on_machine(move |m| m.forbid_new(slot)).await {
                tracing::error!(%error, "the kernel was not told that the session ends; its processes are hunted all the same");
            }
            self.on_machine(move |m| m.end_processes(slot)).await;
        }
        (self.inner.active.lock().await, open.is_some())
    }

    /// Account, kernel, processes, record, note, in this order. Goes on whatever fails: each step makes the host safer.
    pub(super) async fn shut(&self, intent: &Intent, cause: CloseCause, by: &str) -> SessionClosed {
        let started = Instant::now();
        self.show("closing", Some(intent.clone()));
        let slot = intent.slot;
        let mut locking = self.locking();
        let mut locked = timeout(LOCK_PATIENCE, &mut locking).await.ok();
        if let Err(error) = self.on_machine(move |m| m.forbid_new(slot)).await {
            tracing::error!(%error, "the kernel was not told that the session ends; its processes are hunted all the same");
        }
        let mut hunt = self.on_machine(move |m| m.end_processes(slot)).await;
        if locked.is_none() {
            locked = timeout(LOCK_LIMIT, &mut locking).await.ok();
            // Whoever has come in before it held.
            let rest = self.on_machine(move |m| m.end_processes(slot)).await;
            hunt = Hunt { killed: hunt.killed.saturating_add(rest.killed), ..rest };
        }
        let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.note_locked(intent.session, locked, locking).await;
        // Read while the programs are attached, after the last process: what follows belongs to nobody.
        let barrier = self.inner.journal.barrier().await;
        let counts = self.on_machine(|m| m.counts()).await.since(&intent.counts);
        if let Err(error) = self.on_machine(move |m| m.end_recording(slot)).await {
            tracing::error!(%error, "the session's kernel programs could not be detached");
        }
        if let Err(error) = barrier {
            tracing::error!(%error, "the end of the session is not on disk yet");
        }
        if !hunt.survivors.is_empty() || hunt.unsure {
            let more = if hunt.unsure { ", and not every process could be looked at: there may be more" } else { "" };
            let message = format!("{} processes of the session could not be killed{more}", hunt.survivors.len());
            self.alert(Some(intent.session), "survivors", message).await;
        }
        let closed = closed_event(cause, by, &hunt, took_us, &counts);
        self.note(Some(intent.session), Body::SessionClosed(closed.clone())).await;
        // Before the note goes: after a crash it is done again, rather than not at all.
        let session = intent.clone();
        match timeout(ROTATION_LIMIT, self.on_machine(move |m| m.rotate(&session))).await {
            Ok(rotated) => self.note(Some(intent.session), Body::CredentialsRotated(rotated)).await,
            Err(_) => {
                let message = format!("whether credentials were made anew is not known after {ROTATION_LIMIT:?}");
                self.alert(Some(intent.session), "rotation-failed", message).await;
            }
        }
        self.inner.intents.clear().await;
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
    pub(super) async fn lock(&self, session: Uuid) {
        let mut locking = self.locking();
        let locked = timeout(LOCK_LIMIT, &mut locking).await.ok();
        self.note_locked(session, locked, locking).await;
    }

    fn locking(&self) -> Locking {
        let this = self.clone();
        Box::pin(async move { this.on_machine(|m| m.lock()).await })
    }

    /// Records how locking went; where it failed or still goes on, sees to it that the account gets locked.
    async fn note_locked(&self, session: Uuid, locked: Option<Result<String, MachineError>>, locking: Locking) {
        let (message, under_way) = match locked {
            Some(Ok(detail)) => {
                let (account, uid) = self.inner.machine.account();
                self.note(Some(session), Body::AccountChanged(AccountChanged { account, uid, enabled: false, detail }))
                    .await;
                return;
            }
            Some(Err(error)) => (error.0, None),
            None => {
                (format!("the account is not locked after {LOCK_LIMIT:?}: the disk does not answer"), Some(locking))
            }
        };
        self.alert(Some(session), "lock-failed", message).await;
        let this = self.clone();
        tokio::spawn(async move { this.relock(session, under_way).await });
    }

    /// Ends when the account is locked, or a new grant has enabled it anyway. Nobody is kept from opening meanwhile.
    async fn relock(&self, session: Uuid, mut under_way: Option<Locking>) {
        loop {
            let locking = match under_way.take() {
                Some(locking) => locking,
                None => {
                    tokio::time::sleep(RELOCK_PAUSE).await;
                    if self.view().state == "open" {
                        return;
                    }
                    self.locking()
                }
            };
            let result = locking.await;
            let active = self.inner.active.lock().await;
            if self.view().state == "open" {
                if let (Ok(_), Some(open)) = (&result, active.as_ref()) {
                    self.enable_again(open).await;
                }
                return;
            }
            drop(active);
            match result {
                Ok(detail) => return self.alert(Some(session), "lock-repaired", detail).await,
                Err(error) => tracing::error!(%error, "the account still cannot be locked"),
            }
        }
    }

    /// The account is for those again for whom it was.
    pub(super) async fn enable_again(&self, open: &Intent) {
        if let Err(error) = self.enable_account(open.access()).await {
            self.alert(Some(open.session), "enable-failed", error.0).await;
        }
    }
}

fn closed_event(cause: CloseCause, by: &str, hunt: &Hunt, took_us: u64, counts: &Counts) -> SessionClosed {
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
