//! A fresh proof while a session is open: the same session goes on, the proof's key may log in as well, and the deadline moves if the
//! proof's own is later. After a restart of the agent, which locks, this is also how the account is enabled again.
//!
//! The order is that of opening: note, record, kernel, account. Where a step fails the session is as it was before.

use std::time::Instant;

use breakglass_api::v1::{SessionExtended, event::Body};

use super::{Journal, Manager};
use crate::{
    account::keys::KEYS_MAX,
    session::{
        grant::{Grant, Opened, SessionError},
        intent::{Admitted, Intent},
        machine::Machine,
    },
};

impl<M: Machine, J: Journal> Manager<M, J> {
    /// Extends `open`, which the caller holds locked.
    pub(super) async fn extend(
        &self,
        open: &mut Intent,
        grant: Grant,
        started: Instant,
    ) -> Result<Opened, SessionError> {
        self.can_record().await?;
        let reenabled = self.view().state == "resumed";
        let next = self.extended(open, &grant, reenabled)?;
        self.note_durably(&next).await?;
        if let Err(error) = self.admit(&next, grant, reenabled).await {
            self.fall_back(open, &next, reenabled).await;
            return Err(error);
        }
        self.show("open", Some(next.clone()));
        *open = next;
        Ok(Opened {
            session: open.session,
            deadline_boot_ns: open.deadline_boot_ns,
            extended: true,
            took: started.elapsed(),
        })
    }

    /// What the session becomes.
    fn extended(&self, open: &Intent, grant: &Grant, reenabled: bool) -> Result<Intent, SessionError> {
        let ttl_ns = u64::try_from(grant.ttl.as_nanos()).unwrap_or(u64::MAX);
        let deadline = self.machine().boot_ns().saturating_add(ttl_ns);
        let mut next = open.clone();
        next.revision = open.revision.saturating_add(1);
        next.deadline_boot_ns = open.deadline_boot_ns.max(deadline);
        next.close_on_exit &= grant.close_on_exit;
        if reenabled {
            // The restart locked them out; each comes back with a proof of its own.
            next.admitted.clear();
            next.by_code = false;
        }
        next.by_code |= grant.by_code;
        if let Some(admitted) = Admitted::from(grant) {
            next.admitted.retain(|other| other.key != admitted.key);
            next.admitted.push(admitted);
        }
        if next.admitted.len() > KEYS_MAX {
            return Err(SessionError::TooManyKeys);
        }
        Ok(next)
    }

    /// Record, kernel, account, in this order.
    async fn admit(&self, next: &Intent, grant: Grant, reenabled: bool) -> Result<(), SessionError> {
        let extended = SessionExtended {
            operator: grant.operator.clone(),
            key_fingerprint: grant.key_fingerprint,
            key_type: grant.key_type,
            certificate: grant.certificate,
            reason: grant.reason,
            ticket: grant.ticket,
            ttl_seconds: grant.ttl.as_secs(),
            deadline_boot_ns: next.deadline_boot_ns,
            source: grant.source,
            grant_text: grant.text,
            signature: grant.signature,
            cosigners: grant.cosigners,
            warnings: grant.warnings,
            reenabled,
        };
        let recorded = self.journal().record(Some(next.session), Body::SessionExtended(extended)).await;
        recorded.map_err(SessionError::CannotRecord)?;
        let access = next.access();
        let detail = self.enable_account(access).await.map_err(|e| SessionError::Failed(e.0))?;
        tracing::warn!(session = %next.session, operator = %grant.operator, reenabled, "the session is extended");
        let (account, uid) = self.machine().account();
        self.note_enabled(next.session, account, uid, detail);
        Ok(())
    }

    /// After a step failed: the account is for those again for whom it was.
    async fn fall_back(&self, open: &mut Intent, failed: &Intent, was_locked: bool) {
        // Higher than the failed one's: the newest note is the one that counts.
        open.revision = failed.revision.saturating_add(1);
        if let Err(error) = self.note_durably(open).await {
            tracing::error!(%error, "the session's note says more than was granted");
        }
        if was_locked {
            self.lock(open.session).await;
            return;
        }
        self.enable_again(open).await;
    }
}
