//! Whether a program that starts in a session could be recorded for certain. Attached before the program that records it.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use breakglass_abi::{Rule, record::REFUSAL_KILLED};

use crate::{
    life,
    refuse::{self, Attempted},
    scope,
    task::{Address, Task},
};

/// `sched_process_exec`, as `process_exec`: in the new program's context and before its first instruction. A program of its own, so
/// that the verifier does not follow every way through it into the recording of the exec. Where security hooks work they have
/// refused before, and this is for when they are blinded.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn process_judge(context: BtfTracePointContext) -> i32 {
    if scope::works() && scope::deny_unrecorded() {
        judge(Task::from_argument(context.arg::<Address>(0)));
    }
    0
}

#[inline(always)]
fn judge(task: Task) -> Option<()> {
    let who = task.identity();
    let scope = scope::enter(task, who)?;
    let reason = life::obstacle();
    if reason != 0 && scope::kill_current(who) {
        refuse::tell(&Attempted {
            who,
            rule: Rule::Exec as u32,
            slot: scope.slot,
            value: u64::from(reason),
            dentry: 0,
            target: 0,
            how: REFUSAL_KILLED,
        });
    }
    Some(())
}
