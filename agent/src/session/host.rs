//! The real machine behind a session: this host's account, kernel programs and processes.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use breakglass_api::v1::{CredentialsRotated, LeftBehind, left_behind::Category};
use uuid::Uuid;

use super::{
    backstop::Backstop,
    clock,
    intent::Intent,
    looks::Looks,
    machine::{Access, Counts, Machine, MachineError},
    processes::{self, Hunt},
    rotate::Rotation,
    systemd,
};
use crate::{
    account::{Account, Way, keys::KeyGrant},
    config::Tier,
    kernel::{Health, Kernel, KernelError, ProcessId},
    sys,
};

/// This host.
pub struct Host {
    boot_id: [u8; 16],
    account: Account,
    tier: Tier,
    /// How the programs are; `None` where there are none.
    health: Option<Arc<Health>>,
    minimum: Tier,
    looks: Looks,
    backstop: Backstop,
    /// Whether FIDO keys must check their holder.
    verify: bool,
    rotation: Rotation,
    /// How often locking was begun: enabling may hang for as long as somebody likes, and must not win in the end.
    locks: AtomicU64,
    /// Where nothing could be loaded, the reason. None after unloading.
    kernel: Result<Mutex<Option<Kernel>>, String>,
}

impl Host {
    /// `kernel` is the loaded programs, or why there are none. No session is opened below `minimum`.
    pub fn new(
        boot_id: [u8; 16],
        account: Account,
        kernel: Result<Kernel, String>,
        minimum: Tier,
        looks: Looks,
        backstop: Backstop,
    ) -> Self {
        let tier = kernel.as_ref().map_or(Tier::None, |kernel| kernel.info().tier);
        let health = kernel.as_ref().ok().map(|kernel| Arc::clone(kernel.health()));
        let kernel = kernel.map(|kernel| Mutex::new(Some(kernel)));
        Self {
            boot_id,
            account,
            tier,
            health,
            minimum,
            looks,
            backstop,
            verify: false,
            rotation: Rotation::default(),
            locks: AtomicU64::new(0),
            kernel,
        }
    }

    /// Whether FIDO keys log in only where they have checked a PIN or a fingerprint.
    pub fn verifying(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// What is made anew after a session.
    pub fn rotating(mut self, rotation: Rotation) -> Self {
        self.rotation = rotation;
        self
    }

    /// Looks at the host while no session is open, for the comparison after the next one. Takes seconds.
    pub fn look_at_rest(&self) {
        if let Err(error) = self.looks.at_rest() {
            tracing::warn!(%error, "the look at the host at rest cannot be kept");
        }
        sys::trim_heap();
    }

    /// Removes the programs from the kernel, for a stop after which nothing is to be recorded.
    pub fn unload(&self) -> Result<(), KernelError> {
        let Ok(kernel) = &self.kernel else { return Ok(()) };
        let kernel = kernel.lock().unwrap_or_else(PoisonError::into_inner).take();
        kernel.map_or(Ok(()), Kernel::unload)
    }

    /// Whether others are kept from stopping the agent.
    pub fn is_guarded(&self) -> bool {
        Machine::tier(self) == Tier::Full
    }

    /// What `act` makes of the programs; `T::default()` where there are none: whether that is allowed was decided before.
    fn with_kernel<T: Default>(
        &self,
        act: impl FnOnce(&mut Kernel) -> Result<T, KernelError>,
    ) -> Result<T, MachineError> {
        let Ok(kernel) = &self.kernel else { return Ok(T::default()) };
        let mut kernel = kernel.lock().unwrap_or_else(PoisonError::into_inner);
        kernel.as_mut().map_or_else(|| Ok(T::default()), act).map_err(|e| MachineError(e.to_string()))
    }

    fn tagged(&self, slot: u32) -> Vec<ProcessId> {
        self.with_kernel(|kernel| kernel.tagged(slot)).unwrap_or_else(|error| {
            tracing::error!(%error, "the kernel's list of the session's tasks cannot be read; the account's uid is searched alone");
            Vec::new()
        })
    }
}

impl Machine for Host {
    fn boot_ns(&self) -> u64 {
        clock::boot_ns()
    }

    fn boot_id(&self) -> String {
        hex::encode(self.boot_id)
    }

    fn tier(&self) -> Tier {
        self.health.as_ref().map_or(self.tier, |health| health.tier(self.tier))
    }

    fn account(&self) -> (String, u32) {
        (self.account.name().to_owned(), self.account.uid())
    }

    fn can_record(&self) -> Result<(), MachineError> {
        let tier = self.tier();
        if tier >= self.minimum {
            return Ok(());
        }
        let why = self.kernel.as_ref().err().map(|why| format!(" ({why})")).unwrap_or_default();
        Err(MachineError(format!(
            "the kernel allows tier {tier}{why}, kernel.minimum_tier asks for {}; see `breakglass-agent doctor`",
            self.minimum
        )))
    }

    fn enable(&self, access: &Access) -> Result<String, MachineError> {
        let grant = KeyGrant {
            session: access.session,
            boot_id: self.boot_id,
            deadline_boot_ns: access.deadline_boot_ns,
            by_code: access.by_code,
            verify: self.verify,
            keys: access.keys.clone(),
        };
        // First: should the agent hang while it enables, something else locks.
        self.backstop.arm(clock::until(access.deadline_boot_ns));
        let locks = self.locks.load(Ordering::SeqCst);
        let way = self.account.enable(&grant).map_err(|e| MachineError(e.to_string()))?;
        if self.locks.load(Ordering::SeqCst) != locks {
            self.account.lock().map_err(|e| MachineError(e.to_string()))?;
            return Err(MachineError("the account was locked while it was being enabled, and stays locked".into()));
        }
        let shadow = match way {
            Way::Shadow => "shadow entry opened",
            Way::Overlay => "a copy with the entry opened mounted over the shadow file",
        };
        Ok(format!("{shadow}, key source set for {} keys", access.keys.len()))
    }

    fn lock(&self) -> Result<String, MachineError> {
        self.locks.fetch_add(1, Ordering::SeqCst);
        self.rotation.see(self.account.state().ok());
        self.account.lock().map_err(|e| MachineError(e.to_string()))?;
        self.backstop.disarm();
        Ok("key source removed, shadow entry locked and expired".into())
    }

    fn begin_recording(&self, slot: u32) -> Result<(), MachineError> {
        self.with_kernel(|kernel| kernel.begin_session(slot))
    }

    fn forbid_new(&self, slot: u32) -> Result<(), MachineError> {
        self.with_kernel(|kernel| kernel.closing(slot))
    }

    fn end_processes(&self, slot: u32) -> Hunt {
        systemd::end_user(self.account.name(), self.account.uid());
        processes::hunt(self.account.uid(), || self.tagged(slot))
    }

    fn end_recording(&self, slot: u32) -> Result<(), MachineError> {
        self.with_kernel(|kernel| kernel.end_session(slot))
    }

    fn live(&self, slot: u32) -> Vec<ProcessId> {
        let mut live = self.tagged(slot);
        // sshd's own child runs as the account without ever having run a program, so it has no tag.
        live.extend(processes::of_uid(self.account.uid()));
        live.sort_unstable();
        live.dedup_by_key(|process| process.tgid);
        live
    }

    fn is_live(&self, slot: u32) -> bool {
        // Every process of the host has to be looked at only where the kernel knows of none.
        !self.tagged(slot).is_empty() || !processes::of_uid(self.account.uid()).is_empty()
    }

    fn rotate(&self, session: &Intent) -> CredentialsRotated {
        self.rotation.run(self.account.name(), session)
    }

    fn look_before(&self, session: Uuid) {
        if let Err(error) = self.looks.before(session) {
            tracing::error!(%error, "the host cannot be compared after this session: there is no look from before");
        }
    }

    fn left_behind(&self, session: Uuid) -> LeftBehind {
        let mut left = self.looks.after(session);
        // The look from before is taken while the agent opens this very entry, and it is locked again by now: no news to anybody.
        left.changes.retain(|change| !(change.category() == Category::Password && change.item == self.account.name()));
        sys::trim_heap();
        left
    }

    fn counts(&self) -> Counts {
        self.with_kernel(|kernel| {
            let rings = kernel.counters()?.rings;
            Ok(Counts { produced: rings.map(|ring| ring.produced), missing: rings.map(|ring| ring.dropped) })
        })
        .unwrap_or_else(|error| {
            tracing::error!(%error, "the kernel's counters cannot be read");
            Counts::default()
        })
    }
}
