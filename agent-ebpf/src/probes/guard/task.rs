//! The agent's process: signals, ptrace, priorities and limits.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use breakglass_abi::Rule;

use crate::{
    guard::{self, ALLOW, Actor, REFUSE},
    life,
    task::{Address, Task},
};

/// `SEND_SIG_PRIV` in place of a pointer: sent by the kernel (include/linux/sched/signal.h).
const FROM_KERNEL: u64 = 1;
const SIGHUP: u32 = 1;
const SIGINT: u32 = 2;
const SIGTERM: u32 = 15;
const SIGCONT: u32 = 18;
/// `PTRACE_MODE_ATTACH` (include/linux/ptrace.h): memory and descriptors, unlike what `ps` reads.
const MODE_ATTACH: u32 = 2;

/// `int task_kill(struct task_struct *p, struct kernel_siginfo *info, int sig, const struct cred *cred)`
#[lsm(hook = "task_kill")]
pub fn guard_signal(context: LsmContext) -> i32 {
    let target = Task::from_argument(context.arg::<Address>(0)).identity();
    if !life::is_agent(target) {
        return ALLOW;
    }
    let info: u64 = context.arg(1);
    signal(info, context.arg::<i32>(2) as u32).unwrap_or(ALLOW)
}

/// Signal 0 does nothing. The init process may always ask the agent to end, which decides what to make of it; while no session is
/// open it may do anything, and others may ask.
#[inline(always)]
fn signal(info: u64, number: u32) -> Option<i32> {
    if info == FROM_KERNEL || number == 0 {
        return None;
    }
    let actor = Actor::current()?;
    let asks = number == SIGTERM || number == SIGCONT;
    if actor.who.tgid == 1 && (asks || !actor.open) {
        return None;
    }
    if !actor.open && !actor.tagged && (asks || number == SIGHUP || number == SIGINT) {
        return None;
    }
    Some(actor.refused(Rule::Signal, u64::from(number), 0, agent_number()))
}

/// `int file_send_sigiotask(struct task_struct *tsk, struct fown_struct *fown, int sig)`: whoever may name the owner of a descriptor's
/// signals and their number (`F_SETOWN`, `F_SETSIG`) can have the kernel send any signal, by which no `task_kill` is asked. It may be sent
/// in an interrupt, in anybody's name and in the agent's own, which has no use for such signals at all.
#[lsm(hook = "file_send_sigiotask")]
pub fn guard_sigio(context: LsmContext) -> i32 {
    let target = Task::from_argument(context.arg::<Address>(0)).identity();
    if !life::is_agent(target) {
        return ALLOW;
    }
    if let Some(actor) = Actor::current() {
        actor.refused(Rule::Signal, u64::from(context.arg::<i32>(2) as u32), 0, target.tgid);
    }
    REFUSE
}

/// `int ptrace_access_check(struct task_struct *child, unsigned int mode)`: also `/proc/PID/mem`, `process_vm_writev`,
/// `pidfd_getfd`.
#[lsm(hook = "ptrace_access_check")]
pub fn guard_ptrace(context: LsmContext) -> i32 {
    let mode = context.arg::<u32>(1);
    if mode & MODE_ATTACH == 0 {
        return ALLOW;
    }
    touch(&context, Rule::Trace)
}

/// `int task_setnice(struct task_struct *p, int nice)`
#[lsm(hook = "task_setnice")]
pub fn guard_setnice(context: LsmContext) -> i32 {
    touch(&context, Rule::Priority)
}

/// `int task_setioprio(struct task_struct *p, int ioprio)`
#[lsm(hook = "task_setioprio")]
pub fn guard_setioprio(context: LsmContext) -> i32 {
    touch(&context, Rule::Priority)
}

/// `int task_setscheduler(struct task_struct *p)`
#[lsm(hook = "task_setscheduler")]
pub fn guard_setscheduler(context: LsmContext) -> i32 {
    if sets_scheduler() { touch(&context, Rule::Priority) } else { ALLOW }
}

/// Whether it is asked by a call that is for that. The kernel asks the same hook about every process of the host when somebody switches
/// the cpuset controller on (kernel/cgroup/cpuset.c, `cpuset_can_attach`), as container runtimes do; that changes nothing for them.
///
/// `sched_setparam`, `sched_setscheduler`, `sched_setaffinity`, `sched_setattr` in both tables; the numbers mean nothing of the kind in
/// the other one.
#[inline(always)]
fn sets_scheduler() -> bool {
    guard::call_number().is_none_or(|number| matches!(number, 142 | 144 | 203 | 314 | 154 | 156 | 241 | 351))
}

/// `int task_setrlimit(struct task_struct *p, unsigned int resource, struct rlimit *new_rlim)`
#[lsm(hook = "task_setrlimit")]
pub fn guard_setrlimit(context: LsmContext) -> i32 {
    touch(&context, Rule::Priority)
}

/// Nobody but the agent.
#[inline(always)]
fn touch(context: &LsmContext, rule: Rule) -> i32 {
    let target = Task::from_argument(context.arg::<Address>(0)).identity();
    if !life::is_agent(target) {
        return ALLOW;
    }
    match Actor::current() {
        Some(actor) => actor.refused(rule, 0, 0, target.tgid),
        None => ALLOW,
    }
}

#[inline(always)]
fn agent_number() -> u32 {
    life::agent().map_or(0, |agent| agent.tgid)
}
