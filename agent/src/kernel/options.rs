//! What the kernel side is told: sizes, policy, and what belongs to the agent.

use std::{path::PathBuf, time::Duration};

use breakglass_abi::{
    Settings,
    settings::{SETTING_DENY, SETTING_KILL_UNGRANTED, SETTING_NO_URING},
};

use super::{guard::Belongings, load::Sizes, object::Means, pins::Pins, probe::Verdict};
use crate::config::{self, Tier};

/// Processes that can be tagged at a time: twice the kernel's usual limit of processes.
pub const TAG_TABLE: u32 = 65_536;
/// Age at which the agent's last sign of life means that it has stopped; it gives four a second, and a machine short of processors
/// or memory can delay a thread by seconds.
pub const STALE_AFTER: Duration = Duration::from_secs(5);

/// What the kernel side needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder on a bpffs for maps, programs and links.
    pub pins: PathBuf,
    /// Uid of the emergency account.
    pub account_uid: u32,
    /// Bytes of the audit ring; a power of two of at least a page, as are the others.
    pub audit_ring: u32,
    /// Bytes of the witness ring.
    pub witness_ring: u32,
    /// Bytes of the bulk ring.
    pub bulk_ring: u32,
    /// Processes that can be tagged at a time: [`TAG_TABLE`] but in tests of what happens beyond.
    pub tag_table: u32,
    /// No more of the kernel is used than this, whatever it allows.
    pub maximum_tier: Tier,
    /// Whether what the account runs while no session is open is killed before it runs.
    pub kill_ungranted: bool,
    /// Whether an exec of a session that cannot be recorded does not run.
    pub deny_unrecorded: bool,
    /// Whether a task of a session may have a ring of `io_uring`.
    pub allow_uring: bool,
    /// Age at which the agent's last sign of life means that it has stopped.
    pub stale_after: Duration,
    /// What of this host belongs to the agent.
    pub belongings: Belongings,
    /// Hash that stands for the object's own in the name of the pin folder; for tests, to whom two builds are to look different.
    pub build: Option<String>,
}

impl Options {
    /// From the configuration, which has checked the sizes.
    pub fn new(config: &config::Kernel, account_uid: u32) -> Self {
        let ring = |bytes: u64| u32::try_from(bytes).unwrap_or(1 << 30);
        Self {
            pins: config.pins.clone(),
            account_uid,
            audit_ring: ring(config.audit_ring),
            witness_ring: ring(config.witness_ring),
            bulk_ring: ring(config.bulk_ring),
            tag_table: TAG_TABLE,
            maximum_tier: config.maximum_tier,
            kill_ungranted: config.ungranted == config::Ungranted::Kill,
            deny_unrecorded: config.unrecorded == config::Unrecorded::Deny,
            allow_uring: config.io_uring == config::Unrecorded::Record,
            stale_after: STALE_AFTER,
            belongings: Belongings::default(),
            build: None,
        }
    }

    /// What may be used of the kernel.
    pub(super) fn means(&self) -> Means {
        Means { function_exits: self.maximum_tier >= Tier::Trace, security_hooks: self.maximum_tier >= Tier::Full }
    }

    pub(super) fn above_maximum(&self) -> Verdict {
        Verdict::Refused(format!("kernel.maximum_tier is {}", self.maximum_tier))
    }

    pub(super) fn pins(&self) -> Pins {
        match &self.build {
            Some(build) => Pins::of_build(&self.pins, build),
            None => Pins::of_this_build(&self.pins),
        }
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes { rings: [self.audit_ring, self.witness_ring, self.bulk_ring], tags: self.tag_table }
    }

    /// What the programs are told from now on; which session is open, and which load works, stays as it was.
    pub(super) fn settings(&self, before: Settings) -> Settings {
        let mut flags = 0;
        if self.deny_unrecorded {
            flags |= SETTING_DENY;
        }
        if self.kill_ungranted {
            flags |= SETTING_KILL_UNGRANTED;
        }
        if !self.allow_uring {
            flags |= SETTING_NO_URING;
        }
        Settings { account_uid: self.account_uid, flags, ..before }
    }
}
