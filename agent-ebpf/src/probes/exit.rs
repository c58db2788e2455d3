//! Ends of processes of a session.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use breakglass_abi::{Exit, Kind, Ring};

use crate::{
    emit::{self, Envelope},
    life, scope,
    scratch::{self, Slot},
    task::{Address, Task, follow, load, offset},
};

/// `signal_struct.flags`: the whole group exits with `group_exit_code` (include/linux/sched/signal.h).
const SIGNAL_GROUP_EXIT: u32 = 4;

/// `TP_PROTO(struct task_struct *p)`, from `do_exit` of every thread. Later kernels add `bool group_dead`, which 6.1 does not
/// have: the last thread is the one that finds no live one left.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(context: BtfTracePointContext) -> i32 {
    if !scope::works() {
        return 0;
    }
    record(Task::from_argument(context.arg::<Address>(0)));
    0
}

#[inline(always)]
fn record(task: Task) {
    let Some(signal) = task.signal() else { return };
    let live: u32 = load(signal, offset!(signal_live));
    if live != 0 {
        return;
    }
    let who = task.identity();
    life::ends(who);
    let Some(session) = scope::leave(who) else { return };
    let Some(slot) = Slot::get(scratch::TRACE) else { return };
    let exit: *mut Exit = slot.record();
    unsafe {
        (*exit).code = code(task, signal);
        (*exit).reserved = 0;
    }
    let envelope = Envelope { ring: Ring::Audit, kind: Kind::Exit as u16, flags: 0, slot: session, who, yields: false };
    emit::send(envelope, slot.record(), Exit::SIZE as u64, 0);
}

/// What `wait(2)` will say: the group's code if it has one, else that of its leader.
#[inline(always)]
fn code(task: Task, signal: Address) -> u32 {
    let flags: u32 = load(signal, offset!(signal_flags));
    if flags & SIGNAL_GROUP_EXIT != 0 {
        return load(signal, offset!(signal_exit_code));
    }
    match follow(task.address(), offset!(task_group_leader)) {
        Some(leader) => load(leader, offset!(task_exit_code)),
        None => 0,
    }
}
