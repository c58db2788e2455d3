//! Rings of `io_uring`, where policy refuses them to sessions.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use breakglass_abi::{Rule, record::REFUSAL_KILLED};

use crate::{
    refuse::{self, Attempted},
    scope,
    task::Task,
};

/// `TP_PROTO(int fd, void *ctx, u32 sq_entries, u32 cq_entries, u32 flags)`, from `io_uring_setup` in the caller's context. No hook can
/// refuse a plain ring, but its descriptor is of no use to who does not live to see it.
#[btf_tracepoint(function = "io_uring_create")]
pub fn uring_made(_context: BtfTracePointContext) -> i32 {
    if scope::works() && scope::deny_uring() {
        refuse_ring();
    }
    0
}

#[inline(always)]
fn refuse_ring() -> Option<()> {
    let task = Task::current();
    let who = task.identity();
    let scope = scope::find(task, who)?;
    if scope::kill_current(who) {
        refuse::tell(&Attempted {
            who,
            rule: Rule::Uring as u32,
            slot: scope.slot,
            value: 0,
            dentry: 0,
            target: 0,
            how: REFUSAL_KILLED,
        });
    }
    Some(())
}
