//! Programs started in a session, and by others while one is open.
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
        FAULT_ARGV, FAULT_ARGV_CUT, FAULT_CREDENTIALS, FAULT_CWD, FAULT_ENV, FAULT_ENV_CUT, FAULT_EXE, FAULT_FILENAME,
        FAULT_PARENT, FLAG_KILLED, FLAG_UNTAGGED, PART_ARGV, PART_CHUNKS, PART_ENV, PART_INLINE,
    },
    settings::Site,
};

use crate::{
    chunk::{self, CHUNKS_LOST, CHUNKS_UNREAD, Copy, Source},
    emit::{self, Envelope},
    fault,
    path::{self, TAIL_MASK},
    scope::{self, Scope, Witness},
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
    if !scope::works() {
        return 0;
    }
    let task = Task::from_argument(context.arg::<Address>(0));
    let who = task.identity();
    if let Some(subject) = subject(task, who)
        && let Some(draft) = Draft::begin(subject, who)
    {
        if !subject.scope.tagged {
            draft.note(UNTAGGED);
        }
        record(&context, task, draft);
    }
    0
}

/// Whose program it is, and where its record goes.
#[derive(Clone, Copy)]
struct Subject {
    scope: Scope,
    ring: Ring,
}

#[inline(always)]
fn subject(task: Task, who: Identity) -> Option<Subject> {
    if let Some(scope) = scope::enter(task, who) {
        return Some(Subject { scope, ring: Ring::Audit });
    }
    match scope::witness(task, who)? {
        Witness::Late(scope) => Some(Subject { scope, ring: Ring::Audit }),
        Witness::Other(slot) => Some(Subject { scope: Scope { slot, tagged: true }, ring: Ring::Witness }),
    }
}

/// Records, and kills what may not run: a closing session's, the account's without a session where that is policy, or what could
/// not be recorded or followed. Other people's programs are never killed.
#[inline(always)]
fn record(context: &BtfTracePointContext, task: Task, draft: Draft) {
    let who = draft.who();
    if draft.audited() && scope::executes(who) {
        stdio::take_descriptors(task, who, draft.session());
    }
    if draft.noted(UNTAGGED) {
        warn!(context, "the process {} is not followed: the table of tagged processes is full", who.tgid);
    }
    let slot = draft.session();
    if draft.audited() && (scope::closing(slot) || (slot == 0 && scope::kill_ungranted())) {
        draft.note(BARRED);
        if scope::kill_current(who) {
            draft.note(KILLED);
        }
    }
    build(draft, task, who, context.arg::<Address>(2));
    if !send(draft, who) {
        draft.note(LOST);
    }
    let incomplete = draft.noted(LOST) || draft.noted(UNTAGGED);
    if draft.audited() && incomplete && !draft.noted(BARRED) && scope::deny_unrecorded() {
        scope::kill_current(who);
    }
}

/// An exec's record under construction, with [`Notes`].
#[derive(Clone, Copy)]
struct Draft {
    slot: Slot,
    exec: *mut Exec,
}

/// What is carried along; see [`Slot::notes`].
#[repr(C)]
struct Notes {
    /// End of the tail.
    pos: u64,
    who: Identity,
    session: u32,
    ring: u32,
    /// What was noted: bits of the next constants.
    bits: u32,
    reserved: u32,
}

/// The process could not be tagged.
const UNTAGGED: u32 = 1;
/// It may not run, whether or not it is recorded.
const BARRED: u32 = 2;
/// It was killed for that.
const KILLED: u32 = 4;
/// Records of this exec were lost.
const LOST: u32 = 8;

impl Draft {
    #[inline(always)]
    fn begin(subject: Subject, who: Identity) -> Option<Self> {
        let slot = Slot::get(scratch::EXEC)?;
        let notes: *mut Notes = slot.notes();
        unsafe {
            (*notes).pos = 0;
            core::ptr::write_volatile(&raw mut (*notes).who, who);
            (*notes).session = subject.scope.slot;
            (*notes).ring = subject.ring as u32;
            (*notes).bits = 0;
        }
        Some(Self { slot, exec: slot.record() })
    }

    #[inline(always)]
    fn notes(self) -> *mut Notes {
        self.slot.notes()
    }

    #[inline(always)]
    fn who(self) -> Identity {
        unsafe { core::ptr::read_volatile(&raw const (*self.notes()).who) }
    }

    #[inline(always)]
    fn note(self, bit: u32) {
        unsafe { (*self.notes()).bits |= bit };
    }

    #[inline(always)]
    fn noted(self, bit: u32) -> bool {
        let bits = unsafe { core::ptr::read_volatile(&raw const (*self.notes()).bits) };
        bits & bit != 0
    }

    #[inline(always)]
    fn audited(self) -> bool {
        let ring = unsafe { core::ptr::read_volatile(&raw const (*self.notes()).ring) };
        ring == Ring::Audit as u32
    }

    #[inline(always)]
    fn session(self) -> u32 {
        unsafe { core::ptr::read_volatile(&raw const (*self.notes()).session) }
    }

    /// End of the tail.
    #[inline(always)]
    fn pos(self) -> u64 {
        unsafe { core::ptr::read_volatile(&raw const (*self.notes()).pos) }
    }

    #[inline(always)]
    fn set_pos(self, pos: u64) {
        unsafe { core::ptr::write_volatile(&raw mut (*self.notes()).pos, pos) };
    }

    #[inline(always)]
    fn advance(self, len: u64) {
        self.set_pos(self.pos() + len);
    }

    /// The tail from its end on.
    #[inline(always)]
    fn end(self) -> *mut u8 {
        unsafe { self.slot.record::<u8>().add(Exec::SIZE + masked::<TAIL_MASK>(self.pos()) as usize) }
    }

    #[inline(always)]
    fn fault(self, bits: u32) {
        unsafe { (*self.exec).faults |= bits };
    }
}

#[inline(always)]
fn build(draft: Draft, task: Task, who: Identity, bprm: Address) {
    let exec = draft.exec;
    unsafe {
        (*exec).faults = 0;
        (*exec).comm = bpf_get_current_comm().unwrap_or_default();
        (*exec).cgroup_id = bpf_get_current_cgroup_id();
    }
    parent(exec, task);
    credentials(exec, task);
    namespaces(exec, task);
    tty(draft, task);
    paths(draft, task, bprm);
    names(draft, bprm);
    arguments(draft, task, who);
}

#[inline(always)]
fn send(draft: Draft, who: Identity) -> bool {
    let untagged = if draft.noted(UNTAGGED) { FLAG_UNTAGGED } else { 0 };
    let flags = untagged | if draft.noted(KILLED) { FLAG_KILLED } else { 0 };
    let ring = if draft.audited() { Ring::Audit } else { Ring::Witness };
    let envelope = Envelope { ring, kind: Kind::Exec as u16, flags, slot: draft.session(), who, yields: false };
    // `place` and the lengths of names and paths keep the tail within the mask.
    let len = Exec::SIZE as u64 + masked::<TAIL_MASK>(draft.pos());
    emit::send(envelope, draft.slot.record(), len, 0)
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

/// The controlling terminal; it becomes one of the session's by this.
#[inline(always)]
fn tty(draft: Draft, task: Task) {
    let tty = task.signal().and_then(|signal| follow(signal, offset!(signal_tty)));
    let (mut number, mut id) = (0, 0);
    if let Some(tty) = tty {
        let tty = tty as u64;
        if let Some((major, minor)) = terminal::device(tty) {
            number = (major << 20) | minor;
            if draft.audited() && terminal::end_of(major) != End::Master {
                id = terminal::claim(tty, draft.session()).map_or(0, |terminal| terminal.id);
            }
        }
    }
    unsafe {
        (*draft.exec).tty = number;
        (*draft.exec).terminal = id;
    }
}

/// Identity and path of the executable, and the working directory.
#[inline(always)]
fn paths(draft: Draft, task: Task, bprm: Address) {
    let exec = draft.exec;
    let fs = follow(task.address(), offset!(task_fs));
    unsafe {
        (*exec).inode = 0;
        (*exec).dev = 0;
        (*exec).links = 0;
        (*exec).mode = 0;
        (*exec).walks = 0;
        (*exec).path_len = 0;
        (*exec).cwd_len = 0;
        match follow(bprm, offset!(bprm_file)) {
            Some(file) => {
                inode(exec, file);
                let walked = path::append(draft.slot, file.add(offset!(file_path)), fs, Exec::SIZE as u64, 0);
                (*exec).path_len = walked.pos as u16;
                (*exec).walks |= walked.flags;
                draft.set_pos(walked.pos);
                if walked.failed {
                    draft.fault(FAULT_EXE);
                }
            }
            None => draft.fault(FAULT_EXE),
        }
        match fs {
            Some(fs) => {
                let before = draft.pos();
                let pwd = fs.add(offset!(fs_pwd));
                let walked = path::append(draft.slot, pwd, Some(fs), Exec::SIZE as u64, before);
                (*exec).cwd_len = (walked.pos - before) as u16;
                (*exec).walks |= walked.flags << 16;
                draft.set_pos(walked.pos);
                if walked.failed {
                    draft.fault(FAULT_CWD);
                }
            }
            None => draft.fault(FAULT_CWD),
        }
    }
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

/// The program as the caller named it, and the interpreter where it is another.
#[inline(always)]
fn names(draft: Draft, bprm: Address) {
    let filename: u64 = load(bprm, offset!(bprm_filename));
    let interp: u64 = load(bprm, offset!(bprm_interp));
    unsafe {
        (*draft.exec).filename_len = name(draft, filename);
        (*draft.exec).interp_len = if interp == filename { 0 } else { name(draft, interp) };
    }
}

/// Appends a name. Its length.
#[inline(always)]
fn name(draft: Draft, from: u64) -> u16 {
    let into = unsafe { core::slice::from_raw_parts_mut(draft.end(), NAME_MAX) };
    match unsafe { bpf_probe_read_kernel_str_bytes(from as *const u8, into) } {
        Ok(read) => {
            draft.advance(read.len() as u64);
            read.len() as u16
        }
        Err(error) => {
            fault::count(Site::ReadName, i64::from(error));
            draft.fault(FAULT_FILENAME);
            0
        }
    }
}

/// One of the two areas of strings at the bottom of a new stack.
struct Area {
    start: u64,
    len: u64,
    part: u16,
    site: Site,
    /// Faults: could not be read; only the beginning was kept.
    unread: u32,
    cut: u32,
}

/// Arguments and environment: in the tail if short, else in chunks.
#[inline(always)]
fn arguments(draft: Draft, task: Task, who: Identity) {
    let exec = draft.exec;
    unsafe {
        (*exec).argv_bytes = 0;
        (*exec).env_bytes = 0;
        (*exec).parts = 0;
        let Some(mm) = follow(task.address(), offset!(task_mm)) else {
            (*exec).argv_len = 0;
            (*exec).env_len = 0;
            draft.fault(FAULT_ARGV | FAULT_ENV);
            return;
        };
        let argv = Area {
            start: load(mm, offset!(mm_arg_start)),
            len: load::<u64>(mm, offset!(mm_arg_end)).saturating_sub(load(mm, offset!(mm_arg_start))),
            part: PART_ARGV,
            site: Site::ReadArgv,
            unread: FAULT_ARGV,
            cut: FAULT_ARGV_CUT,
        };
        (*exec).argv_bytes = argv.len;
        (*exec).argv_len = place(draft, &argv, who) as u32;
        let env = Area {
            start: load(mm, offset!(mm_env_start)),
            len: load::<u64>(mm, offset!(mm_env_end)).saturating_sub(load(mm, offset!(mm_env_start))),
            part: PART_ENV,
            site: Site::ReadEnv,
            unread: FAULT_ENV,
            cut: FAULT_ENV_CUT,
        };
        (*exec).env_bytes = env.len;
        (*exec).env_len = place(draft, &env, who) as u32;
    }
}

/// Puts an area into the tail if it is short and readable there; else sends chunks, or, of a program outside the session, the
/// beginning alone. Bytes in the tail.
#[inline(always)]
fn place(draft: Draft, area: &Area, who: Identity) -> u64 {
    if area.len == 0 {
        how(draft, area, PART_INLINE);
        return 0;
    }
    let witnessed = !draft.audited();
    let cut = witnessed && area.len >= INLINE_MAX;
    let len = if cut { INLINE_MAX - 1 } else { area.len };
    if len < INLINE_MAX && draft.pos() + len < TAIL_MASK {
        let len = masked::<{ INLINE_MAX - 1 }>(len);
        let into = unsafe { core::slice::from_raw_parts_mut(draft.end(), len as usize) };
        // Where it cannot be read the chunk says so, with the error.
        if unsafe { bpf_probe_read_user_buf(area.start as *const u8, into) }.is_ok() {
            how(draft, area, PART_INLINE);
            draft.advance(len);
            if cut {
                draft.fault(area.cut);
            }
            return len;
        }
    }
    if witnessed {
        how(draft, area, PART_INLINE);
        draft.fault(area.unread);
        return 0;
    }
    how(draft, area, PART_CHUNKS);
    in_chunks(draft, area, who);
    0
}

#[inline(always)]
fn in_chunks(draft: Draft, area: &Area, who: Identity) {
    let copy = Copy {
        source: Source::User,
        address: area.start,
        total: area.len,
        kind: Kind::ExecPart,
        slot: draft.session(),
        who,
        part: area.part,
        terminal: 0,
        index: 0,
        rows: 0,
        cols: 0,
        site: area.site,
    };
    let outcome = chunk::send_from_trace(&copy);
    if outcome & CHUNKS_UNREAD != 0 {
        draft.fault(area.unread);
    }
    if outcome & CHUNKS_LOST != 0 {
        draft.note(LOST);
    }
}

/// Says how an area was sent.
#[inline(always)]
fn how(draft: Draft, area: &Area, part: u32) {
    let shift = if area.part == PART_ENV { 16 } else { 0 };
    unsafe { (*draft.exec).parts |= part << shift };
}
