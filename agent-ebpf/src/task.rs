//! Kernel objects, read through pointers that the verifier knows or by plain addresses.
//!
//! Two ways of reading. [`load`] dereferences a pointer whose type the verifier knows (`PTR_TO_BTF_ID`): no helper, works under
//! lockdown, and the offset must be one of [`OFFSETS`], a constant to the verifier. [`peek`] copies from any address with
//! `bpf_probe_read_kernel`; it is for what lies behind `void *` and arrays of pointers, whose types the verifier loses.

use aya_ebpf::{
    bindings::task_struct,
    helpers::{bpf_get_current_task_btf, bpf_probe_read_kernel},
};
use breakglass_abi::{
    Offsets, ProcessKey,
    offsets::ABSENT,
    settings::{NO_UID, Site},
};

use crate::fault;

/// Set by the agent before loading. Read-only, so that the verifier takes every offset as a constant.
#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = Offsets::UNSET;

/// A field's offset, opaque to the compiler (which sees only zeros) and constant to the verifier.
macro_rules! offset {
    ($field:ident) => {
        $crate::task::constant(&$crate::task::OFFSETS.$field) as usize
    };
}
pub(crate) use offset;

/// A read-only global, read where the compiler cannot replace it by its value in the object.
#[inline(always)]
pub fn constant(global: &u32) -> u32 {
    unsafe { core::ptr::read_volatile(global) }
}

/// An address in the kernel.
pub type Address = *const u8;

/// Loads a value through a pointer that the verifier knows.
#[inline(always)]
pub fn load<T: Copy>(base: Address, offset: usize) -> T {
    unsafe { core::ptr::read_volatile(base.add(offset).cast::<T>()) }
}

/// Loads a pointer through a pointer that the verifier knows. From 6.2 on the verifier insists on the null check for some.
#[inline(always)]
pub fn follow(base: Address, offset: usize) -> Option<Address> {
    let pointer: Address = load(base, offset);
    if pointer.is_null() { None } else { Some(pointer) }
}

/// Copies a value from an address.
#[inline(always)]
pub fn peek<T: Copy>(base: u64, offset: usize, site: Site) -> Option<T> {
    match unsafe { bpf_probe_read_kernel((base + offset as u64) as *const T) } {
        Ok(value) => Some(value),
        Err(error) => {
            fault::count(site, i64::from(error));
            None
        }
    }
}

/// The process whose number a `struct pid` is; `None` where it has ended. The list of threads with that number is the first of
/// the pid's lists, whatever the others are.
#[inline(always)]
pub fn process_of(pid: u64, site: Site) -> Option<Identity> {
    let node: u64 = peek(pid, offset!(pid_tasks), site)?;
    if node == 0 {
        return None;
    }
    let task = node - offset!(task_pid_links) as u64;
    let leader: u64 = peek(task, offset!(task_group_leader), site)?;
    Some(Identity {
        tgid: peek(task, offset!(task_tgid), site)?,
        tid: peek(task, offset!(task_pid), site)?,
        start_ns: peek(leader, offset!(task_start), site)?,
    })
}

/// `PF_EXITING` (include/linux/sched.h).
const EXITING: u32 = 4;

/// Whether the thread whose number a `struct pid` is has ended, or is about to.
#[inline(always)]
pub fn ends(pid: u64, site: Site) -> bool {
    match peek::<u64>(pid, offset!(pid_tasks), site) {
        Some(0) => true,
        Some(node) => {
            let task = node - offset!(task_pid_links) as u64;
            peek::<u32>(task, offset!(task_flags), site).is_some_and(|flags| flags & EXITING != 0)
        }
        None => false,
    }
}

/// A `task_struct` that the verifier knows.
#[derive(Clone, Copy)]
pub struct Task(Address);

/// Who a record is about.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Identity {
    /// The process.
    pub tgid: u32,
    /// The thread.
    pub tid: u32,
    /// When the process started.
    pub start_ns: u64,
}

impl Identity {
    /// As the tag table wants it.
    #[inline(always)]
    pub fn key(self) -> ProcessKey {
        ProcessKey { tgid: self.tgid, reserved: 0, start_ns: self.start_ns }
    }
}

impl Task {
    /// Wraps an argument of a `tp_btf` program.
    #[inline(always)]
    pub fn from_argument(task: Address) -> Self {
        Self(task)
    }

    /// The running task.
    #[inline(always)]
    pub fn current() -> Self {
        let task: *mut task_struct = unsafe { bpf_get_current_task_btf() };
        Self(task.cast_const().cast())
    }

    /// The pointer, for further loads.
    #[inline(always)]
    pub fn address(self) -> Address {
        self.0
    }

    /// Process, thread and start time.
    #[inline(always)]
    pub fn identity(self) -> Identity {
        let start_ns = match follow(self.0, offset!(task_group_leader)) {
            Some(leader) => load(leader, offset!(task_start)),
            None => 0,
        };
        Identity { tgid: load(self.0, offset!(task_tgid)), tid: load(self.0, offset!(task_pid)), start_ns }
    }

    /// When this thread was made, on the boot clock, nanoseconds.
    #[inline(always)]
    pub fn started(self) -> u64 {
        load(self.0, offset!(task_start))
    }

    /// Audit login uid, [`NO_UID`] where unset or not kept by this kernel.
    #[inline(always)]
    pub fn loginuid(self) -> u32 {
        let at = offset!(task_loginuid);
        if at == ABSENT as usize { NO_UID } else { load(self.0, at) }
    }

    /// Audit session, all ones where unset or not kept by this kernel.
    #[inline(always)]
    pub fn audit_session(self) -> u32 {
        let at = offset!(task_sessionid);
        if at == ABSENT as usize { u32::MAX } else { load(self.0, at) }
    }

    /// The credentials that others see.
    #[inline(always)]
    pub fn cred(self) -> Option<Address> {
        follow(self.0, offset!(task_cred))
    }

    /// What the threads of the process share.
    #[inline(always)]
    pub fn signal(self) -> Option<Address> {
        follow(self.0, offset!(task_signal))
    }

    /// The process that made it, or adopted it.
    #[inline(always)]
    pub fn parent(self) -> Option<Self> {
        follow(self.0, offset!(task_parent)).map(Self)
    }
}
