//! An orderly end of the agent, asked for by root on the host.

use std::sync::atomic::Ordering;

use breakglass_api::v1::{AgentStopAsked, CloseCause, event::Body};
use uuid::Uuid;

use super::{Journal, Manager};
use crate::session::{grant::SessionError, machine::Machine};

impl<M: Machine, J: Journal> Manager<M, J> {
    /// Records that the agent is to end, ends the open session where `force` says so, and locks; from then on nothing opens. Nothing has
    /// been taken down when this returns. The order is that of what must not be lost: the record, and durable, then the session, then the
    /// account, whose lock is a step of its own because it also covers what somebody else left open.
    ///
    /// # Errors
    ///
    /// Where a session is open and is not to be ended, where somebody else stops it already, where the stop cannot be recorded, and
    /// where the account cannot be locked: the agent goes on then.
    pub async fn retire(&self, reason: &str, by: &str, force: bool) -> Result<Option<Uuid>, SessionError> {
        let mut active = self.inner.active.lock().await;
        if self.inner.retired.load(Ordering::SeqCst) {
            return Err(SessionError::Stopping);
        }
        let open = active.clone();
        let session = open.as_ref().map(|intent| intent.session);
        if let (Some(session), false) = (session, force) {
            return Err(SessionError::Open(session));
        }
        let asked = AgentStopAsked {
            reason: reason.to_owned(),
            by: by.to_owned(),
            session: session.map(|id| id.to_string()).unwrap_or_default(),
        };
        let recorded = self.inner.journal.record(session, Body::AgentStopAsked(asked)).await;
        recorded.map_err(|error| SessionError::Failed(format!("the stop cannot be recorded: {error}")))?;
        tracing::warn!(reason, by, "the agent is stopped");
        if let Some(intent) = open {
            let message = format!("{by} had the agent stopped while the session was open: {reason}");
            self.alert(session, "stop-forced", message).await;
            self.shut(&intent, CloseCause::AgentStop, by).await;
            *active = None;
        }
        self.on_machine(|m| m.lock()).await.map_err(|error| SessionError::NotLocked(error.0))?;
        self.inner.retired.store(true, Ordering::SeqCst);
        Ok(session)
    }

    /// Ends the open session, if one is, because the agent ends. Nothing opens from the beginning of this on: what is waited for
    /// afterwards takes seconds, and a session that began meanwhile would outlive its recorder.
    pub async fn wind_up(&self, cause: CloseCause, by: &str) {
        let mut active = self.inner.active.lock().await;
        self.inner.retired.store(true, Ordering::SeqCst);
        if let Some(intent) = active.take() {
            self.shut(&intent, cause, by).await;
        }
    }
}
