//! When a session ends by itself.

use std::time::Duration;

use breakglass_api::v1::CloseCause;
use uuid::Uuid;

use super::{Journal, Manager};
use crate::session::{intent::Intent, machine::Machine};

/// How often a deadline is compared with the boot clock. The runtime's timers stop during suspend, the boot clock does not.
const DEADLINE_TICK: Duration = Duration::from_secs(1);

/// How often a session that ends with its last process is looked at.
const EXIT_TICK: Duration = Duration::from_millis(200);

/// Looks in a row that must find no process before the last one counts as gone: a login forks before it runs anything.
const EXIT_QUIET: u32 = 3;

/// What was seen of a session that ends with its last process.
#[derive(Default)]
struct Seen {
    any: bool,
    quiet: u32,
}

impl<M: Machine, J: Journal> Manager<M, J> {
    /// Closes the session at its deadline, or with its last process where that was asked for. Both may change while it is open.
    pub(super) fn watch(&self, session: Uuid) {
        let this = self.clone();
        tokio::spawn(async move {
            let mut seen = Seen::default();
            while let Some(open) = this.view().session.filter(|open| open.session == session) {
                let left = Duration::from_nanos(open.deadline_boot_ns.saturating_sub(this.machine().boot_ns()));
                if left.is_zero() {
                    if this.expire(session).await {
                        return;
                    }
                } else if open.close_on_exit {
                    tokio::time::sleep(left.min(EXIT_TICK)).await;
                    if this.last_exit(&open, &mut seen).await {
                        // Somebody may have closed it meanwhile; then there is nothing to do.
                        let _ = this.close(Some(session), CloseCause::LastExit, "").await;
                        return;
                    }
                } else {
                    tokio::time::sleep(left.min(DEADLINE_TICK)).await;
                }
            }
        });
    }

    /// Closes the session unless its deadline was moved at the last moment; says whether it is over.
    async fn expire(&self, session: Uuid) -> bool {
        let (mut active, ended) = self.active_at_the_end(Some(session)).await;
        let Some(intent) = active.as_ref().filter(|open| open.session == session).cloned() else { return true };
        if !ended && intent.deadline_boot_ns > self.machine().boot_ns() {
            return false;
        }
        self.shut(&intent, CloseCause::Deadline, "").await;
        *active = None;
        true
    }

    /// Whether the session had processes and has none any more.
    async fn last_exit(&self, open: &Intent, seen: &mut Seen) -> bool {
        let slot = open.slot;
        let live = self.on_machine(move |m| m.is_live(slot)).await;
        seen.any |= live;
        seen.quiet = if live { 0 } else { seen.quiet + 1 };
        seen.any && seen.quiet >= EXIT_QUIET
    }
}
