//! What a session does to the machine, as a seam: the manager decides, an implementation acts, a fake proves the decisions.

use breakglass_api::v1::{CredentialsRotated, LeftBehind};
use uuid::Uuid;

use super::{intent::Intent, processes::Hunt};
use crate::{config::Tier, kernel::ProcessId};

/// Number of rings, as in `breakglass.v1.Ring`.
pub const RINGS: usize = 3;

/// Kernel records by ring since the rings were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Records that the kernel numbered.
    pub produced: [u64; RINGS],
    /// Of those, records that found no room.
    pub missing: [u64; RINGS],
}

impl Counts {
    /// What came since an earlier reading; zero where the counters began anew.
    pub fn since(&self, base: &Self) -> Self {
        let difference =
            |now: &[u64; RINGS], then: &[u64; RINGS]| std::array::from_fn(|ring| now[ring].saturating_sub(then[ring]));
        Self { produced: difference(&self.produced, &base.produced), missing: difference(&self.missing, &base.missing) }
    }
}

/// Why the machine would not do something; a sentence that says what happened, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MachineError(pub String);

/// Who may log in, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// For which session.
    pub session: Uuid,
    /// As in `authorized_keys`, without options.
    pub keys: Vec<String>,
    /// Whether logins without a key are to be expected, because a one-time code was used.
    pub by_code: bool,
    /// Until the boot clock shows this, nanoseconds.
    pub deadline_boot_ns: u64,
}

/// The account, the kernel programs and the processes. Every call may block and is made off the runtime's threads.
pub trait Machine: Send + Sync + 'static {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    fn boot_ns(&self) -> u64;
    /// The boot's id, 32 hexadecimal digits.
    fn boot_id(&self) -> String;
    /// What this kernel allows.
    fn tier(&self) -> Tier;
    /// The account's name and uid.
    fn account(&self) -> (String, u32);
    /// Whether a session could be recorded now, and if not, why.
    fn can_record(&self) -> Result<(), MachineError>;
    /// Lets these in, and nobody else. Says what was done. Calling it on an enabled account changes for whom it is. Where it fails the
    /// account may be locked.
    fn enable(&self, access: &Access) -> Result<String, MachineError>;
    /// Shuts every way in. Says what was done. Calling it on a locked account is no error.
    fn lock(&self) -> Result<String, MachineError>;
    /// From now on everything of the account and its descendants is recorded under `slot`. May be called again for a session that
    /// an earlier agent began.
    fn begin_recording(&self, slot: u32) -> Result<(), MachineError>;
    /// From now on no task of `slot` may start a program or a process.
    fn forbid_new(&self, slot: u32) -> Result<(), MachineError>;
    /// Kills every task of `slot` and of the account.
    fn end_processes(&self, slot: u32) -> Hunt;
    /// The dear programs are detached, the slot's terminals and tags forgotten.
    fn end_recording(&self, slot: u32) -> Result<(), MachineError>;
    /// Tasks of `slot` that are alive.
    fn live(&self, slot: u32) -> Vec<ProcessId>;
    /// Whether there are any. Asked several times a second, so it looks at no more than it must.
    fn is_live(&self, slot: u32) -> bool {
        !self.live(slot).is_empty()
    }
    /// Makes what the session used to get in, and what its root could read, useless to whoever had it. Comes after the last process.
    fn rotate(&self, session: &Intent) -> CredentialsRotated;
    /// Looks at what could open a door later, before the session can change it. Takes tens of milliseconds.
    fn look_before(&self, session: Uuid);
    /// Looks again after the last process, and compares. Takes seconds.
    fn left_behind(&self, session: Uuid) -> LeftBehind;
    /// What the kernel counted so far.
    fn counts(&self) -> Counts;
}
