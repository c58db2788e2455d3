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
    refuse_ring();
    0
}

/// `TP_PROTO(struct io_kiocb *req)`, where a request is taken from a ring: one that was made before the session, or handed over by somebody
/// who is not of it.
#[btf_tracepoint(function = "io_uring_submit_req")]
pub fn uring_used(_context: BtfTracePointContext) -> i32 {
    refuse_ring();
    0
}

/// `TP_PROTO(struct io_kiocb *req, bool force_nonblock)`: the same before Linux 6.4.
#[btf_tracepoint(function = "io_uring_submit_sqe")]
pub fn uring_used_before_6_4(_context: BtfTracePointContext) -> i32 {
    refuse_ring();
    0
}

#[inline(always)]
fn refuse_ring() -> Option<()> {
    if !scope::works() || !scope::deny_uring() {
        return None;
    }
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
