//! Signals that a session sends out of itself.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use breakglass_abi::{Action, Kind, Ring, settings::Site};

use crate::{
    emit::{self, Envelope},
    scope,
    scratch::{self, Slot},
    task::{Address, Task, load, offset, peek},
};

/// `SEND_SIG_NOINFO` and `SEND_SIG_PRIV` in place of a pointer (include/linux/sched/signal.h).
const SPECIAL_INFO: u64 = 1;
/// `SI_USER`, `SI_TKILL`, `SI_QUEUE` (include/uapi/asm-generic/siginfo.h): sent by a process, not by the kernel or a timer.
const SI_USER: i32 = 0;
const SI_TKILL: i32 = -6;
const SI_QUEUE: i32 = -1;
/// `THREAD_SIZE` (arch/x86/include/asm/page_64_types.h, without KASAN).
const STACK_BYTES: u64 = 16 << 10;

/// `TP_PROTO(int sig, struct kernel_siginfo *info, struct task_struct *task, int group, int result)`, in the sender's context.
/// Timers send from interrupts; those are left out before any scratch is touched.
#[btf_tracepoint(function = "signal_generate")]
pub fn signal_sent(context: BtfTracePointContext) -> i32 {
    let info: u64 = context.arg(1);
    if info > SPECIAL_INFO && scope::works() {
        sent(context.arg::<i32>(0), info, Task::from_argument(context.arg::<Address>(2)));
    }
    0
}

/// Whether the running task made the information up. `rt_sigqueueinfo` and its kin (kernel/signal.c) take any negative code from the caller, and keep
/// it on the caller's stack; a timer's lies in a `sigqueue`, and what interrupts send, on their own stack.
#[inline(always)]
fn is_own(task: Task, info: u64) -> bool {
    // A plain number: the older verifier takes no difference of a pointer that it knows and one that it does not.
    let mut known = 0_u64;
    unsafe { core::ptr::write_volatile(&raw mut known, info) };
    let Some(info) = peek::<u64>(&raw const known as u64, 0, Site::ReadAction) else { return false };
    info.wrapping_sub(load(task.address(), offset!(task_stack))) < STACK_BYTES
}

#[inline(always)]
fn sent(signal: i32, info: u64, target: Task) -> Option<()> {
    let code: i32 = peek(info, offset!(siginfo_code), Site::ReadAction)?;
    let task = Task::current();
    if code != SI_USER && code != SI_TKILL && code != SI_QUEUE && !(code < 0 && is_own(task, info)) {
        return None;
    }
    let who = task.identity();
    let scope = scope::find(task, who)?;
    let target = target.identity();
    if scope::tagged(target) == Some(scope.slot) {
        return None;
    }
    let action: *mut Action = Slot::get(scratch::TRACE)?.record();
    unsafe {
        (*action).result = 0;
        (*action).values = [signal as u32 as u64, 0, 0];
        (*action).extra = [u64::from(target.tgid), target.start_ns, 0, 0];
        (*action).inode = 0;
        (*action).dev = 0;
        (*action).mode = 0;
        (*action).file_flags = 0;
        (*action).euid = task.cred().map_or(u32::MAX, |cred| load(cred, offset!(cred_euid)));
        (*action).walks = 0;
        (*action).how = 0;
        (*action).name_len = 0;
        (*action).base_len = 0;
        (*action).name2_len = 0;
        (*action).base2_len = 0;
    }
    let envelope =
        Envelope { ring: Ring::Audit, kind: Kind::Signalled as u16, flags: 0, slot: scope.slot, who, yields: true };
    emit::send(envelope, action.cast(), Action::SIZE as u64, 0);
    Some(())
}
