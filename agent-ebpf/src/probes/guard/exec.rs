//! No program of a session that could not be recorded.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use breakglass_abi::Rule;

use crate::{
    guard::{self, ALLOW, Actor},
    life, scope,
    task::{Address, offset},
};

/// `int bprm_creds_for_exec(struct linux_binprm *bprm)`, once for each exec, scripts included, and before anything of the old
/// program is given up: the caller gets an error and goes on. What slips through is killed by `process_exec`.
#[lsm(hook = "bprm_creds_for_exec")]
pub fn guard_exec(context: LsmContext) -> i32 {
    // While the glass is whole the emergency account has no programs to run; `process_exec` kills what cannot be recorded.
    if scope::open_slot() == 0 {
        return ALLOW;
    }
    let bprm: u64 = context.arg::<Address>(0) as u64;
    judge(bprm).unwrap_or(ALLOW)
}

#[inline(always)]
fn judge(bprm: u64) -> Option<i32> {
    let actor = Actor::current()?;
    if !actor.tagged || actor.who.tgid == 1 || !scope::deny_unrecorded() {
        return None;
    }
    let reason = life::obstacle();
    if reason == 0 {
        return None;
    }
    let file = guard::pointer(bprm, offset!(bprm_file))?;
    let dentry = guard::pointer(file, offset!(file_path) + offset!(path_dentry));
    Some(actor.refused(Rule::Exec, u64::from(reason), dentry.unwrap_or(0), 0))
}
