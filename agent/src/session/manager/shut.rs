//! Closing, and what goes on after it.

use std::time::{Duration, Instant};

use breakglass_api::v1::{AccountChanged, CloseCause, Process, SessionClosed, event::Body};
use uuid::Uuid;

use super::{Journal, Manager};
use crate::session::{
    intent::Intent,
    machine::{Counts, Machine},
    processes::Hunt,
};

/// Pause before locking is tried again after it failed.
const RELOCK_PAUSE: Duration = Duration::from_secs(1);

impl<M: Machine, J: Journal> Manager<M, J> {
    /// Account, kernel, processes, record, note, in this order. Goes on whatever fails: each step makes the host safer.
    pub(super) async fn shut(&self, intent: &Intent, cause: CloseCause, by: &str) -> SessionClosed {
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
        // Before the note goes: after a crash it is done again, rather than not at all.
        let session = intent.clone();
        let rotated = self.on_machine(move |m| m.rotate(&session)).await;
        self.note(Some(intent.session), Body::CredentialsRotated(rotated)).await;
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
    pub(super) async fn lock(&self, session: Uuid) {
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
            if self.view().state == "open" {
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
