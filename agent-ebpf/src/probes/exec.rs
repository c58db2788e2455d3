//! Programs started in a session.
//!
//! Everything is read where the kernel already holds it: arguments and environment from the new address space, the path from
//! `bprm->file`. Nothing that the caller can still change is looked at, and a field that cannot be read is flagged, never a
//! reason to drop the record.

use aya_ebpf::{
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_probe_read_kernel_str_bytes, bpf_probe_read_user_buf,
    },
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use aya_log_ebpf::warn;
use breakglass_abi::{
    Exec, Kind, Ring,
    record::{
        FAULT_ARGV, FAULT_CREDENTIALS, FAULT_CWD, FAULT_ENV, FAULT_EXE, FAULT_FILENAME, FAULT_PARENT, FLAG_KILLED,
        FLAG_UNTAGGED, PART_ARGV, PART_CHUNKS, PART_ENV, PART_INLINE,
    },
    settings::Site,
};

use crate::{
    chunk::{self, CHUNKS_LOST, CHUNKS_SENT, CHUNKS_UNREAD, Copy, Outcome, Source},
    emit::{self, Envelope},
    fault,
    path::{self, TAIL_MASK},
    scope::{self, Scope},
    scratch::{self, Slot, masked},
    stdio,
    task::{Address, Identity, Task, follow, load, offset},
    terminal::{self, End},
};

/// Longest arguments or environment that go into the record itself, bytes; a power of two.
const INLINE_MAX: u64 = 4096;
/// Longest name of a program that is kept, bytes. With two paths and two names the tail stays below `TAIL_MASK`.
const NAME_MAX: usize = 4080;

/// `TP_PROTO(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, from `exec_binprm` in the new program's
/// context, once for each exec that succeeded and before its first instruction. Kernels 5.17 and later.
#[btf_tracepoint(function = "sched_process_exec")]
pub fn process_exec(context: BtfTracePointContext) -> i32 {
    let task = Task::from_argument(context.arg::<Address>(0));
    let who = task.identity();
    if let Some(scope) = scope::enter(task, who) {
        if scope::executes(who) {
            stdio::take_descriptors(task, who, scope.slot);
        }
        record(&context, task, who, scope);
    }
    0
}

/// Records, and kills what may not run: a closing session's, or what could not be recorded or followed.
#[inline(always)]
fn record(context: &BtfTracePointContext, task: Task, who: Identity, scope: Scope) {
    let mut flags = 0;
    if !scope.tagged {
        flags = FLAG_UNTAGGED;
        warn!(context, "the process {} is not followed: the table of tagged processes is full", who.tgid);
    }
    let closing = scope::closing(scope.slot);
    if closing && scope::kill_current(who) {
        flags |= FLAG_KILLED;
    }
    let recorded = build_and_send(task, who, scope, flags, context.arg::<Address>(2));
    if !closing && !(recorded && scope.tagged) && scope::deny_unrecorded() {
        scope::kill_current(who);
    }
}

#[inline(always)]
fn build_and_send(task: Task, who: Identity, scope: Scope, flags: u16, bprm: Address) -> bool {
    let Some(slot) = Slot::get(scratch::EXEC) else { return false };
    let exec: *mut Exec = slot.record();
    unsafe {
        (*exec).faults = 0;
        (*exec).comm = bpf_get_current_comm().unwrap_or_default();
        (*exec).cgroup_id = bpf_get_current_cgroup_id();
    }
    parent(exec, task);
    credentials(exec, task);
    namespaces(exec, task);
    tty(exec, task, scope.slot);
    let pos = paths(exec, slot, task, bprm);
    let pos = names(exec, slot, bprm, pos);
    let (pos, lost) = arguments(exec, slot, task, who, scope.slot, pos);
    let envelope = Envelope { ring: Ring::Audit, kind: Kind::Exec as u16, flags, slot: scope.slot, who, yields: false };
    // `place` and the lengths of names and paths keep the tail within the mask.
    let len = Exec::SIZE as u64 + masked::<TAIL_MASK>(pos);
    emit::send(envelope, slot.record(), len, 0) && !lost
}

#[inline(always)]
fn parent(exec: *mut Exec, task: Task) {
    let parent = task.parent().map(Task::identity);
    unsafe {
        match parent {
            Some(parent) => {
                (*exec).parent_tgid = parent.tgid;
                (*exec).parent_start_ns = parent.start_ns;
            }
            None => {
                (*exec).parent_tgid = 0;
                (*exec).parent_start_ns = 0;
                (*exec).faults |= FAULT_PARENT;
            }
        }
    }
}

#[inline(always)]
fn credentials(exec: *mut Exec, task: Task) {
    unsafe {
        (*exec).loginuid = task.loginuid();
        (*exec).audit_session = task.audit_session();
        let Some(cred) = task.cred() else {
            (*exec).faults |= FAULT_CREDENTIALS;
            return;
        };
        (*exec).uid = load(cred, offset!(cred_uid));
        (*exec).gid = load(cred, offset!(cred_gid));
        (*exec).suid = load(cred, offset!(cred_suid));
        (*exec).sgid = load(cred, offset!(cred_sgid));
        (*exec).euid = load(cred, offset!(cred_euid));
        (*exec).egid = load(cred, offset!(cred_egid));
        (*exec).cap_effective = load(cred, offset!(cred_cap_effective));
        (*exec).user_ns = match follow(cred, offset!(cred_user_ns)) {
            Some(ns) => load(ns, offset!(user_ns_inum)),
            None => 0,
        };
    }
}

#[inline(always)]
fn namespaces(exec: *mut Exec, task: Task) {
    let Some(proxy) = follow(task.address(), offset!(task_nsproxy)) else {
        unsafe {
            (*exec).pid_ns = 0;
            (*exec).mount_ns = 0;
            (*exec).net_ns = 0;
        }
        return;
    };
    let pid = follow(proxy, offset!(nsproxy_pid)).map_or(0, |ns| load(ns, offset!(pid_ns_inum)));
    let mount = follow(proxy, offset!(nsproxy_mount)).map_or(0, |ns| load(ns, offset!(mount_ns_inum)));
    let net = follow(proxy, offset!(nsproxy_net)).map_or(0, |ns| load(ns, offset!(net_ns_inum)));
    unsafe {
        (*exec).pid_ns = pid;
        (*exec).mount_ns = mount;
        (*exec).net_ns = net;
    }
}

/// The controlling terminal; a pseudo terminal becomes one of the session's by this.
#[inline(always)]
fn tty(exec: *mut Exec, task: Task, slot: u32) {
    let tty = task.signal().and_then(|signal| follow(signal, offset!(signal_tty)));
    let (mut number, mut id) = (0, 0);
    if let Some(tty) = tty {
        let tty = tty as u64;
        if let Some((major, minor)) = terminal::device(tty) {
            number = (major << 20) | minor;
            if terminal::end_of(major) == End::Slave {
                id = terminal::claim(tty, slot).map_or(0, |terminal| terminal.id);
            }
        }
    }
    unsafe {
        (*exec).tty = number;
        (*exec).terminal = id;
    }
}

/// Identity and path of the executable, and the working directory. The end of the tail.
#[inline(always)]
fn paths(exec: *mut Exec, slot: Slot, task: Task, bprm: Address) -> u64 {
    let fs = follow(task.address(), offset!(task_fs));
    let mut pos = 0;
    let mut walks = 0;
    unsafe {
        (*exec).inode = 0;
        (*exec).dev = 0;
        (*exec).links = 0;
        (*exec).mode = 0;
        match follow(bprm, offset!(bprm_file)) {
            Some(file) => {
                inode(exec, file);
                let walked = path::append(slot, file.add(offset!(file_path)), fs, Exec::SIZE as u64, pos);
                pos = walked.pos;
                walks |= walked.flags;
                if walked.failed {
                    (*exec).faults |= FAULT_EXE;
                }
            }
            None => (*exec).faults |= FAULT_EXE,
        }
        (*exec).path_len = pos as u16;
        let before = pos;
        match fs {
            Some(fs) => {
                let walked = path::append(slot, fs.add(offset!(fs_pwd)), Some(fs), Exec::SIZE as u64, pos);
                pos = walked.pos;
                walks |= walked.flags << 16;
                if walked.failed {
                    (*exec).faults |= FAULT_CWD;
                }
            }
            None => (*exec).faults |= FAULT_CWD,
        }
        (*exec).cwd_len = (pos - before) as u16;
        (*exec).walks = walks;
    }
    pos
}

#[inline(always)]
unsafe fn inode(exec: *mut Exec, file: Address) {
    unsafe {
        let Some(inode) = follow(file, offset!(file_inode)) else {
            (*exec).faults |= FAULT_EXE;
            return;
        };
        (*exec).inode = load(inode, offset!(inode_ino));
        (*exec).links = load(inode, offset!(inode_nlink));
        (*exec).mode = u32::from(load::<u16>(inode, offset!(inode_mode)));
        if let Some(sb) = follow(inode, offset!(inode_sb)) {
            (*exec).dev = load(sb, offset!(sb_dev));
        }
    }
}

/// The program as the caller named it, and the interpreter where it is another. The end of the tail.
#[inline(always)]
fn names(exec: *mut Exec, slot: Slot, bprm: Address, pos: u64) -> u64 {
    let filename: u64 = load(bprm, offset!(bprm_filename));
    let interp: u64 = load(bprm, offset!(bprm_interp));
    let filename_len = name(exec, slot, filename, pos);
    let interp_len = if interp == filename { 0 } else { name(exec, slot, interp, pos + filename_len) };
    unsafe {
        (*exec).filename_len = filename_len as u16;
        (*exec).interp_len = interp_len as u16;
    }
    pos + filename_len + interp_len
}

#[inline(always)]
fn name(exec: *mut Exec, slot: Slot, from: u64, pos: u64) -> u64 {
    unsafe {
        let at = slot.record::<u8>().add(Exec::SIZE + masked::<TAIL_MASK>(pos) as usize);
        let into = core::slice::from_raw_parts_mut(at, NAME_MAX);
        match bpf_probe_read_kernel_str_bytes(from as *const u8, into) {
            Ok(read) => read.len() as u64,
            Err(error) => {
                fault::count(Site::ReadName, i64::from(error));
                (*exec).faults |= FAULT_FILENAME;
                0
            }
        }
    }
}

/// One of the two areas of strings at the bottom of a new stack.
struct Area {
    start: u64,
    len: u64,
    part: u16,
    site: Site,
}

/// Arguments and environment: in the tail if short, else in chunks. The end of the tail, and whether records were lost.
#[inline(always)]
fn arguments(exec: *mut Exec, slot: Slot, task: Task, who: Identity, session: u32, pos: u64) -> (u64, bool) {
    let (argv, env) = match follow(task.address(), offset!(task_mm)) {
        Some(mm) => (
            area(load(mm, offset!(mm_arg_start)), load(mm, offset!(mm_arg_end)), PART_ARGV, Site::ReadArgv),
            area(load(mm, offset!(mm_env_start)), load(mm, offset!(mm_env_end)), PART_ENV, Site::ReadEnv),
        ),
        None => {
            unsafe { (*exec).faults |= FAULT_ARGV | FAULT_ENV };
            (area(0, 0, PART_ARGV, Site::ReadArgv), area(0, 0, PART_ENV, Site::ReadEnv))
        }
    };
    let (argv_len, argv_out) = place(slot, &argv, who, session, pos);
    let (env_len, env_out) = place(slot, &env, who, session, pos + argv_len);
    unsafe {
        (*exec).argv_bytes = argv.len;
        (*exec).env_bytes = env.len;
        (*exec).argv_len = argv_len as u32;
        (*exec).env_len = env_len as u32;
        (*exec).parts = how(argv_out) | (how(env_out) << 16);
        if argv_out & CHUNKS_UNREAD != 0 {
            (*exec).faults |= FAULT_ARGV;
        }
        if env_out & CHUNKS_UNREAD != 0 {
            (*exec).faults |= FAULT_ENV;
        }
    }
    (pos + argv_len + env_len, (argv_out | env_out) & CHUNKS_LOST != 0)
}

#[inline(always)]
fn how(outcome: Outcome) -> u32 {
    if outcome & CHUNKS_SENT == 0 { PART_INLINE } else { PART_CHUNKS }
}

#[inline(always)]
fn area(start: u64, end: u64, part: u16, site: Site) -> Area {
    Area { start, len: end.saturating_sub(start), part, site }
}

/// Puts an area into the tail at `pos` if it is short and readable there; else sends chunks. Bytes in the tail, and the
/// outcome of the chunks, 0 if there were none.
#[inline(always)]
fn place(slot: Slot, area: &Area, who: Identity, session: u32, pos: u64) -> (u64, Outcome) {
    if area.len == 0 {
        return (0, 0);
    }
    if area.len < INLINE_MAX && pos + area.len < TAIL_MASK {
        let len = masked::<{ INLINE_MAX - 1 }>(area.len);
        let read = unsafe {
            let at = slot.record::<u8>().add(Exec::SIZE + masked::<TAIL_MASK>(pos) as usize);
            bpf_probe_read_user_buf(area.start as *const u8, core::slice::from_raw_parts_mut(at, len as usize))
        };
        // Where it cannot be read the chunk says so, with the error.
        if read.is_ok() {
            return (len, 0);
        }
    }
    let copy = Copy {
        source: Source::User,
        address: area.start,
        total: area.len,
        kind: Kind::ExecPart,
        slot: session,
        who,
        part: area.part,
        terminal: 0,
        index: 0,
        rows: 0,
        cols: 0,
        site: area.site,
    };
    (0, chunk::send_from_trace(&copy))
}
