//! Code for the kernel, another kernel, the machine's own ports and registers, its end, and performance events.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use breakglass_abi::Rule;

use crate::{
    emit,
    guard::{self, ALLOW, Actor, REFUSE},
    scope,
};

/// `enum kernel_load_data_id`, `enum kernel_read_file_id` (include/linux/kernel_read_file.h): the same numbers. Firmware is 1,
/// policies and certificates are 5 and 6; what came later is a form of a module.
const FIRMWARE: u32 = 1;
const MODULE: u32 = 2;
const KEXEC_IMAGE: u32 = 3;
const KEXEC_INITRAMFS: u32 = 4;
const NEWER: u32 = 7;

/// `int kernel_load_data(enum kernel_load_data_id id, bool contents)`: from memory.
#[lsm(hook = "kernel_load_data")]
pub fn guard_load_data(context: LsmContext) -> i32 {
    loads(context.arg::<u32>(0)).unwrap_or(ALLOW)
}

/// `int kernel_read_file(struct file *file, enum kernel_read_file_id id, bool contents)`: from a file.
#[lsm(hook = "kernel_read_file")]
pub fn guard_read_file(context: LsmContext) -> i32 {
    loads(context.arg::<u32>(1)).unwrap_or(ALLOW)
}

#[inline(always)]
fn loads(what: u32) -> Option<i32> {
    if what <= FIRMWARE {
        return None;
    }
    let rule = if what == KEXEC_IMAGE || what == KEXEC_INITRAMFS {
        Rule::Kexec
    } else if what == MODULE || what >= NEWER {
        Rule::Module
    } else {
        return None;
    };
    let actor = Actor::current()?;
    if !actor.open {
        return None;
    }
    Some(actor.refused(rule, u64::from(what), 0, 0))
}

/// `enum lockdown_reason` (include/linux/security.h), those that have had the same number since there are any: the machine's memory,
/// EFI's runtime services, PCI configuration and windows, I/O ports, model-specific registers, ACPI's tables. Not hibernation, which asks
/// even where its state is read, and not what a hook of its own is for.
const REASONS: u64 = 1 << 2 | 1 << 3 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 9;

/// `int locked_down(enum lockdown_reason what)`: asked wherever root could reach around the kernel (security/lockdown).
#[lsm(hook = "locked_down")]
pub fn guard_lockdown(context: LsmContext) -> i32 {
    let reason = context.arg::<u32>(0);
    if reason >= u64::BITS || REASONS & (1 << reason) == 0 {
        return ALLOW;
    }
    match Actor::current() {
        Some(actor) if actor.open => actor.refused(Rule::Memory, u64::from(reason), 0, 0),
        _ => ALLOW,
    }
}

/// `CAP_SYS_BOOT` (include/uapi/linux/capability.h): `reboot(2)`.
const SYS_BOOT: i32 = 22;
/// `reboot(2)` in the table of 64-bit and of 32-bit programs.
const REBOOT: u32 = 169;
const REBOOT32: u32 = 88;

/// `int capable(const struct cred *cred, struct user_namespace *ns, int cap, unsigned int opts)`
#[lsm(hook = "capable")]
pub fn guard_boot(context: LsmContext) -> i32 {
    let verdict = match context.arg::<i32>(2) {
        SYS_BOOT => ends_machine(),
        KILL => signals_by_event(),
        _ => None,
    };
    verdict.unwrap_or(ALLOW)
}

/// Whoever would end the machine waits until what was recorded before is durable, and may not while it is not: it would be gone with
/// the rings. The init process is not held up: it has asked the agent to end before.
#[inline(always)]
fn ends_machine() -> Option<i32> {
    // Loading another kernel asks for the same right, and is refused elsewhere.
    if !matches!(guard::call_number(), Some(REBOOT | REBOOT32)) {
        return None;
    }
    let actor = Actor::current()?;
    if !actor.open || actor.who.tgid == 1 || !scope::deny_unrecorded() || emit::is_taken() {
        return None;
    }
    Some(actor.refused(Rule::Boot, 0, 0, 0))
}

/// `int perf_event_open(struct perf_event_attr *attr, int type)`; from 6.16 on `type` alone. What is asked for is not known yet here on older
/// kernels.
#[lsm(hook = "perf_event_open")]
pub fn guard_perf(_context: LsmContext) -> i32 {
    match Actor::current() {
        Some(actor) if actor.tagged => actor.refused(Rule::Perf, 0, 0, 0),
        _ => ALLOW,
    }
}

/// `CAP_KILL`; and `perf_event_open(2)` in both tables.
const KILL: i32 = 5;
const PERF: u32 = 298;
const PERF32: u32 = 336;

/// An event can send its task a signal (`sigtrap`), past `task_kill`. Whoever asks for that needs this right, or else to be one who may
/// attach to the task (kernel/events/core.c, `perf_check_permission`): without the right that is what the kernel asks `guard_ptrace`.
#[inline(always)]
fn signals_by_event() -> Option<i32> {
    if !matches!(guard::call_number(), Some(PERF | PERF32)) {
        return None;
    }
    let actor = Actor::current()?;
    if actor.open { Some(REFUSE) } else { None }
}
