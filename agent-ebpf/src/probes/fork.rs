//! New processes of a session.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use aya_log_ebpf::warn;
use breakglass_abi::{
    Fork, Kind, Ring,
    record::{FLAG_CROWDED, FLAG_KILLED, FLAG_UNTAGGED},
    settings::CANARY_TRACEPOINT,
};

use crate::{
    emit::{self, Envelope},
    life, scope,
    scratch::{self, Slot},
    task::{Address, Task},
};

/// `TP_PROTO(struct task_struct *parent, struct task_struct *child)`, from `kernel_clone` before the child can run, so the tag
/// precedes anything that it does. Kernels 5.17 and later.
#[btf_tracepoint(function = "sched_process_fork")]
pub fn process_fork(context: BtfTracePointContext) -> i32 {
    if !scope::works() {
        return 0;
    }
    let parent = Task::from_argument(context.arg::<Address>(0));
    let child = Task::from_argument(context.arg::<Address>(1));
    record(&context, parent, child);
    0
}

#[inline(always)]
fn record(context: &BtfTracePointContext, parent: Task, child: Task) {
    let who = parent.identity();
    let made = child.identity();
    if who.tgid == made.tgid {
        life::see_canary(CANARY_TRACEPOINT, who);
        return;
    }
    let Some(scope) = scope::inherit(parent, who, made) else { return };
    let mut flags = 0;
    if !scope.tagged {
        flags = FLAG_UNTAGGED;
        warn!(
            context,
            "the child {} of {} is not followed: the table of tagged processes is full", made.tgid, who.tgid
        );
    }
    let crowded = scope::is_crowded();
    let ends = scope::closing(scope.slot) || ((crowded || !scope.tagged) && scope::deny_unrecorded());
    if ends && scope::kill_current(who) {
        flags |= FLAG_KILLED;
        if crowded && scope.tagged {
            flags |= FLAG_CROWDED;
        }
    }
    let Some(slot) = Slot::get(scratch::TRACE) else { return };
    let fork: *mut Fork = slot.record();
    unsafe {
        (*fork).child_start_ns = made.start_ns;
        (*fork).child_tgid = made.tgid;
        (*fork).reserved = 0;
    }
    let envelope = Envelope { ring: Ring::Audit, kind: Kind::Fork as u16, flags, slot: scope.slot, who, yields: false };
    emit::send(envelope, slot.record(), Fork::SIZE as u64, 0);
}
