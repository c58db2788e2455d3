//! What tasks in scope do by system calls: files, sockets, credentials, namespaces, other processes, the system itself.
//!
//! Looked at where the call returns, so that what was done is known, and files can be named by the descriptor that the kernel
//! gave or took rather than by the caller's words. A name in the caller's memory is recorded as a claim. Which arguments a
//! record takes is data, in the list of calls of the abi crate.

use aya_ebpf::{
    helpers::{bpf_probe_read_user, bpf_probe_read_user_buf, bpf_probe_read_user_str_bytes},
    macros::map,
    maps::LruHashMap,
};
use breakglass_abi::{
    Action, Kind, MappedKey, Ring,
    calls::{RESULT, ROWS_MAX, SHAPES, Shape, Special},
    record::{
        ACTION_ADDRESS, ACTION_COMPAT, ACTION_FILE, ACTION_NAME_UNREAD, ACTION_PATH_UNREAD, ACTION_PEER, FLAG_UNTAGGED,
    },
    settings::Site,
};

use super::{draft::Draft, opened};
use crate::{
    descriptor,
    emit::{self, Envelope},
    fault,
    path::{self, TAIL_MASK},
    scope::{self, Scope},
    scratch::masked,
    task::{Address, Identity, Task, follow, load, offset, peek, process_of},
};

/// By code, how a call becomes a record.
static HOW: [u64; ROWS_MAX] = SHAPES;

/// Files and processes whose executable memory has been recorded. One more than this many, and the one seen longest ago may be
/// recorded again.
const MAPPED_MAX: u32 = 8192;
#[map]
static MAPPED: LruHashMap<MappedKey, u32> = LruHashMap::with_max_entries(MAPPED_MAX, 0);

/// Longest name that the kernel takes (`PATH_MAX`), bytes, its NUL included.
const NAME_MAX: usize = 4096;
// With two paths and two names.
const _: () = assert!(2 * (path::PATH_MAX + NAME_MAX as u64) <= TAIL_MASK, "a tail is never cut");
/// Longest address of a socket (`struct sockaddr_storage`), bytes; a power of two.
const ADDRESS_MAX: u64 = 128;
/// `AT_FDCWD` (include/uapi/linux/fcntl.h).
const AT_FDCWD: i32 = -100;
/// `PROT_EXEC`, `MAP_ANONYMOUS` (include/uapi/asm-generic/mman-common.h).
const PROT_EXEC: u64 = 4;
const MAP_ANONYMOUS: u64 = 0x20;
/// `CLONE_NEW…`: time, mount, cgroup, uts, ipc, user, pid, net (include/uapi/linux/sched.h).
const CLONE_NEW: u64 = 0x7e02_0080;
/// `TIOCSTI`, `TIOCLINUX` (include/uapi/asm-generic/ioctls.h).
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;
/// Requests of ptrace that attach or write (include/uapi/linux/ptrace.h); those between are harmless without them.
const PTRACE_TRACEME: u64 = 0;
const PTRACE_POKETEXT: u64 = 4;
const PTRACE_POKEDATA: u64 = 5;
const PTRACE_POKEUSR: u64 = 6;
const PTRACE_SETREGS: u64 = 13;
const PTRACE_ATTACH: u64 = 16;
const PTRACE_SETREGSET: u64 = 0x4205;
const PTRACE_SEIZE: u64 = 0x4206;
/// `EINPROGRESS`.
const EINPROGRESS: i64 = 115;
/// Numbers of `socketcall(2)` (include/uapi/linux/net.h).
const SYS_BIND: u64 = 2;
const SYS_CONNECT: u64 = 3;
/// Families (include/linux/socket.h).
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// How a call becomes a record; 0 for one that the list has no kind for.
#[inline(always)]
fn shape_of(call: u16) -> u64 {
    let code = masked::<{ ROWS_MAX as u64 - 1 }>(u64::from(call));
    unsafe { core::ptr::read_volatile((&raw const HOW).cast::<u64>().add(code as usize)) }
}

/// Whether one look tells that a call is not worth a record. That comes before everything dearer: a program that starts makes a dozen of
/// them, to map its libraries.
#[inline(always)]
pub fn is_idle(task: Task, regs: Address, call: u16, compat: bool, result: i64) -> bool {
    let shape = shape_of(call);
    let special = (shape >> Shape::SPECIAL) as u8;
    if special == Special::Map as u8 || special == Special::Protect as u8 {
        // The third argument, in either way to call.
        return load::<u64>(regs, offset!(regs_dx)) & PROT_EXEC == 0;
    }
    if special == Special::Open as u8 {
        return opened::is_idle(task, regs, compat, shape, result);
    }
    special == Special::OpenHow as u8 && opened::is_idle_how(task, regs, compat, result)
}

/// Whether a call is `ioctl`.
#[inline(always)]
pub fn is_ioctl(call: u16) -> bool {
    (shape_of(call) >> Shape::SPECIAL) as u8 == Special::Ioctl as u8
}

/// At the exit of a call that the list has a kind for.
#[inline(always)]
pub fn finished(task: Task, regs: Address, call: u16, compat: bool, result: i64) {
    let shape = shape_of(call);
    if result < 0 && result >= -4095 && shape >> Shape::REFUSED & 1 == 0 {
        return;
    }
    let who = task.identity();
    let Some(scope) = scope::find(task, who) else { return };
    let Some(draft) = Draft::new() else { return };
    let who = Identity { start_ns: draft.forget::<1>(who.start_ns), ..who };
    clear(draft, task, result as u64);
    arguments(draft, regs, compat, result as u64);
    record(draft, task, who, scope, shape, result);
}

#[inline(always)]
pub(super) fn clear(draft: Draft, task: Task, result: u64) {
    draft.set_pos(0);
    unsafe {
        (*draft.action).result = result;
        (*draft.action).values = [0; 3];
        (*draft.action).extra = [0; 4];
        (*draft.action).inode = 0;
        (*draft.action).dev = 0;
        (*draft.action).mode = 0;
        (*draft.action).file_flags = 0;
        (*draft.action).euid = task.cred().map_or(u32::MAX, |cred| load(cred, offset!(cred_euid)));
        (*draft.action).walks = 0;
        (*draft.action).how = 0;
        (*draft.action).name_len = 0;
        (*draft.action).base_len = 0;
        (*draft.action).name2_len = 0;
        (*draft.action).base2_len = 0;
    }
}

#[inline(always)]
fn arguments(draft: Draft, regs: Address, compat: bool, result: u64) {
    const LOW: u64 = 0xffff_ffff;
    unsafe {
        let places = draft.places;
        (*places)[0] = 0;
        if compat {
            (*draft.action).how |= ACTION_COMPAT;
            (*places)[1] = load::<u64>(regs, offset!(regs_bx)) & LOW;
            (*places)[2] = load::<u64>(regs, offset!(regs_cx)) & LOW;
            (*places)[3] = load::<u64>(regs, offset!(regs_dx)) & LOW;
            (*places)[4] = load::<u64>(regs, offset!(regs_si)) & LOW;
            (*places)[5] = load::<u64>(regs, offset!(regs_di)) & LOW;
            (*places)[6] = load::<u64>(regs, offset!(regs_bp)) & LOW;
        } else {
            (*places)[1] = load(regs, offset!(regs_di));
            (*places)[2] = load(regs, offset!(regs_si));
            (*places)[3] = load(regs, offset!(regs_dx));
            (*places)[4] = load(regs, offset!(regs_r10));
            (*places)[5] = load(regs, offset!(regs_r8));
            (*places)[6] = load(regs, offset!(regs_r9));
        }
        (*places)[RESULT as usize] = result;
    }
}

#[inline(always)]
fn record(draft: Draft, task: Task, who: Identity, scope: Scope, shape: u64, result: i64) {
    let mut kind = shape as u16;
    unsafe {
        (*draft.action).values = [
            draft.place(shape, Shape::VALUES),
            draft.place(shape, Shape::VALUES + 4),
            draft.place(shape, Shape::VALUES + 8),
        ];
    }
    if !worth_a_look(draft, (shape >> Shape::SPECIAL) as u8) {
        return;
    }
    let shape = draft.forget::<2>(shape);
    let special = (shape >> Shape::SPECIAL) as u8;
    if special == Special::Map as u8 && is_anonymous(draft) {
        kind = Kind::MemoryExecutable as u16;
    } else if special == Special::SocketCall as u8 && draft.argument(1) == SYS_BIND {
        kind = Kind::SocketBound as u16;
    }
    let kind = draft.forget::<3>(u64::from(kind)) as u16;
    let file = if draft.has(shape, Shape::FILE) && kind != Kind::MemoryExecutable as u16 {
        file_of(draft, task, draft.place(shape, Shape::FILE)).unwrap_or(0)
    } else {
        0
    };
    let file = draft.forget::<4>(file);
    let shape = draft.forget::<2>(shape);
    let special = (shape >> Shape::SPECIAL) as u8;
    if !wanted(draft, task, who, scope, special, file, result) {
        return;
    }
    if file != 0 {
        file_path(draft, task, file);
    }
    let shape = draft.forget::<2>(shape);
    let special = (shape >> Shape::SPECIAL) as u8;
    if special == Special::Socket as u8 || special == Special::SocketCall as u8 {
        address(draft);
    } else {
        names(draft, task, shape);
    }
    let sent = send(draft, kind, who, scope);
    let special = (draft.forget::<2>(shape) >> Shape::SPECIAL) as u8;
    if !sent && (special == Special::Map as u8 || special == Special::Protect as u8) {
        // It is told the next time. Gone already if others took its room.
        let _ = MAPPED.remove(&mapped_key(draft, who, scope));
    }
}

/// Whether it is on the ring.
#[inline(always)]
pub(super) fn send(draft: Draft, kind: u16, who: Identity, scope: Scope) -> bool {
    let flags = if scope.tagged { 0 } else { FLAG_UNTAGGED };
    let envelope = Envelope {
        ring: Ring::Audit,
        kind,
        flags,
        slot: scope.slot,
        who,
        yields: kind != Kind::CredentialsChanged as u16,
    };
    let len = Action::SIZE as u64 + masked::<TAIL_MASK>(draft.pos());
    emit::send(envelope, draft.slot.record(), len, 0)
}

/// Whether a call may be worth a record, by more of its arguments.
#[inline(always)]
fn worth_a_look(draft: Draft, special: u8) -> bool {
    let first = draft.argument(1);
    if special == Special::CloneFlags as u8 {
        return first & CLONE_NEW != 0;
    }
    if special == Special::Ioctl as u8 {
        let request = draft.argument(2) & 0xffff_ffff;
        return request == TIOCSTI || request == TIOCLINUX;
    }
    if special == Special::Trace as u8 {
        return is_intrusive(first);
    }
    true
}

/// Whether a call is worth a record; reads what its kind needs beside arguments and names.
#[inline(always)]
fn wanted(draft: Draft, task: Task, who: Identity, scope: Scope, special: u8, file: u64, result: i64) -> bool {
    if special == Special::OpenHow as u8 {
        let flags: u64 = from_user(unsafe { (*draft.action).values[0] });
        unsafe { (*draft.action).values[0] = flags };
    }
    if special == Special::Creat as u8 {
        unsafe { (*draft.action).values[0] = opened::CREAT };
    }
    if special == Special::Open as u8 || special == Special::OpenHow as u8 || special == Special::Creat as u8 {
        return file == 0 || opened::keeps_what_is_written(draft, file);
    }
    if special == Special::CloneStruct as u8 {
        let flags: u64 = from_user(draft.argument(1));
        unsafe { (*draft.action).values[0] = flags };
        if flags & CLONE_NEW == 0 {
            return false;
        }
    }
    if special == Special::Map as u8 || special == Special::Protect as u8 {
        return is_new(draft, who, scope);
    }
    if special == Special::Adjust as u8 {
        let place = unsafe { (*draft.action).values[1] };
        let modes: u32 = from_user(place);
        unsafe { (*draft.action).values[1] = u64::from(modes) };
        return modes != 0;
    }
    if special == Special::Socket as u8 {
        return socket(draft, task, result);
    }
    if special == Special::SocketCall as u8 {
        return old_socket_call(draft) && socket(draft, task, result);
    }
    if special == Special::Credentials as u8 {
        credentials(draft, task);
        return true;
    }
    let clone = special == Special::CloneFlags as u8 || special == Special::CloneStruct as u8;
    // The child returns from the call as well, with 0.
    if special == Special::Namespaces as u8 || (clone && result == 0) {
        namespaces(draft, task);
    }
    true
}

/// A value from the caller's memory, 0 where it cannot be read.
#[inline(always)]
fn from_user<T: Copy + Default>(at: u64) -> T {
    match unsafe { bpf_probe_read_user(at as *const T) } {
        Ok(value) => value,
        Err(error) => {
            fault::count(Site::ReadAction, i64::from(error));
            T::default()
        }
    }
}

#[inline(always)]
fn is_anonymous(draft: Draft) -> bool {
    draft.argument(4) & MAP_ANONYMOUS != 0
}

#[inline(always)]
fn is_intrusive(request: u64) -> bool {
    request == PTRACE_TRACEME
        || request == PTRACE_POKETEXT
        || request == PTRACE_POKEDATA
        || request == PTRACE_POKEUSR
        || request == PTRACE_SETREGS
        || request == PTRACE_ATTACH
        || request == PTRACE_SETREGSET
        || request == PTRACE_SEIZE
}

/// The file behind a descriptor, and what it is.
#[inline(always)]
fn file_of(draft: Draft, task: Task, descriptor: u64) -> Option<u64> {
    let file = descriptor::file(task, descriptor, Site::ReadAction)?;
    let (inode, mode) = descriptor::inode(file, Site::ReadAction)?;
    let (dev, number) = descriptor::place(inode, Site::ReadAction)?;
    unsafe {
        (*draft.action).inode = number;
        (*draft.action).dev = dev;
        (*draft.action).mode = mode;
        (*draft.action).file_flags = peek(file, offset!(file_flags), Site::ReadAction)?;
        (*draft.action).how |= ACTION_FILE;
    }
    Some(file)
}

/// What executable memory is remembered by: its file, or the process where it has none.
#[inline(always)]
fn mapped_key(draft: Draft, who: Identity, scope: Scope) -> MappedKey {
    let (dev, inode) = unsafe { ((*draft.action).dev, (*draft.action).inode) };
    if inode == 0 {
        MappedKey { slot: scope.slot, place: who.tgid, inode: 0, start_ns: who.start_ns }
    } else {
        MappedKey { slot: scope.slot, place: dev, inode, start_ns: 0 }
    }
}

/// Whether this file has not been mapped executable in the session yet, or the process has had no executable memory of its own.
#[inline(always)]
fn is_new(draft: Draft, who: Identity, scope: Scope) -> bool {
    let key = mapped_key(draft, who, scope);
    if unsafe { MAPPED.get(&key) }.is_some() {
        return false;
    }
    if let Err(error) = MAPPED.insert(&key, &1, 0) {
        fault::count(Site::MappedInsert, i64::from(error));
    }
    true
}

/// Brings the arguments of a 32-bit program's `socketcall` where those of the calls themselves are.
#[inline(always)]
fn old_socket_call(draft: Draft) -> bool {
    let call = draft.argument(1);
    if call != SYS_BIND && call != SYS_CONNECT {
        return false;
    }
    let [descriptor, address, len]: [u32; 3] = from_user(draft.argument(2));
    unsafe {
        (*draft.places)[1] = u64::from(descriptor);
        (*draft.places)[2] = u64::from(address);
        (*draft.places)[3] = u64::from(len);
        (*draft.action).values = [u64::from(descriptor), u64::from(address), u64::from(len)];
    }
    true
}

/// Where a socket is connected now, as the kernel holds it. What is refused or bound is known by the caller's address alone.
#[inline(always)]
fn socket(draft: Draft, task: Task, result: i64) -> bool {
    if result == 0 || result == -EINPROGRESS {
        connected(draft, task);
    }
    true
}

#[inline(always)]
fn connected(draft: Draft, task: Task) -> Option<()> {
    let file = descriptor::file(task, draft.argument(1), Site::ReadAction)?;
    let private: u64 = peek(file, offset!(file_private), Site::ReadAction)?;
    let sock: u64 = peek(private, offset!(socket_sk), Site::ReadAction)?;
    let family: u16 = peek(sock, offset!(sock_family), Site::ReadAction)?;
    if family == AF_UNIX {
        return listener(draft, sock);
    }
    let port: u16 = peek(sock, offset!(sock_port), Site::ReadAction)?;
    if port == 0 {
        return None;
    }
    if family == AF_INET {
        let address: u32 = peek(sock, offset!(sock_address), Site::ReadAction)?;
        unsafe { (*draft.action).extra[0] = u64::from(address) };
    } else if family == AF_INET6 {
        let at = offset!(sock_address6);
        let [low, high]: [u64; 2] = peek(sock, at, Site::ReadAction)?;
        unsafe {
            (*draft.action).extra[0] = low;
            (*draft.action).extra[1] = high;
        }
    } else {
        return None;
    }
    unsafe {
        (*draft.action).extra[2] = u64::from(port) | u64::from(family) << 16;
        (*draft.action).extra[3] = u64::from(peek::<u16>(sock, offset!(sock_num), Site::ReadAction)?);
        (*draft.action).how |= ACTION_ADDRESS;
    }
    Some(())
}

/// Who listens where a Unix socket is connected to: whoever called `listen` there, which is PID 1 for what it starts on demand.
#[inline(always)]
fn listener(draft: Draft, sock: u64) -> Option<()> {
    let pid: u64 = peek(sock, offset!(sock_peer_pid), Site::ReadAction)?;
    if pid == 0 {
        return None;
    }
    let peer = process_of(pid, Site::ReadAction)?;
    unsafe {
        (*draft.action).extra[0] = u64::from(peer.tgid);
        (*draft.action).extra[1] = peer.start_ns;
        (*draft.action).how |= ACTION_PEER;
    }
    Some(())
}

#[inline(always)]
fn credentials(draft: Draft, task: Task) {
    let Some(cred) = task.cred() else { return };
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    unsafe {
        (*draft.action).values = [u64::from(task.loginuid()), u64::from(task.audit_session()), 0];
        (*draft.action).extra = [
            pair(load(cred, offset!(cred_uid)), load(cred, offset!(cred_gid))),
            pair(load(cred, offset!(cred_euid)), load(cred, offset!(cred_egid))),
            pair(load(cred, offset!(cred_suid)), load(cred, offset!(cred_sgid))),
            load(cred, offset!(cred_cap_effective)),
        ];
    }
}

#[inline(always)]
fn namespaces(draft: Draft, task: Task) {
    let Some(proxy) = follow(task.address(), offset!(task_nsproxy)) else { return };
    let pid: u32 = follow(proxy, offset!(nsproxy_pid)).map_or(0, |ns| load(ns, offset!(pid_ns_inum)));
    let mount: u32 = follow(proxy, offset!(nsproxy_mount)).map_or(0, |ns| load(ns, offset!(mount_ns_inum)));
    let net: u32 = follow(proxy, offset!(nsproxy_net)).map_or(0, |ns| load(ns, offset!(net_ns_inum)));
    let user: u32 = task
        .cred()
        .and_then(|cred| follow(cred, offset!(cred_user_ns)))
        .map_or(0, |ns| load(ns, offset!(user_ns_inum)));
    unsafe {
        (*draft.action).extra[0] = u64::from(pid) | u64::from(mount) << 32;
        (*draft.action).extra[1] = u64::from(user) | u64::from(net) << 32;
    }
}

/// The kernel's own path of a file.
#[inline(always)]
fn file_path(draft: Draft, task: Task, file: u64) {
    let fs = follow(task.address(), offset!(task_fs));
    let walked = path::append_file(draft.slot, file, fs, Action::SIZE as u64, 0);
    unsafe {
        (*draft.action).base_len = walked.pos as u16;
        (*draft.action).walks |= walked.flags;
        if walked.failed {
            (*draft.action).how |= ACTION_PATH_UNREAD;
        }
    }
    draft.set_pos(walked.pos);
}

/// The caller's address of a socket.
#[inline(always)]
fn address(draft: Draft) {
    let len = draft.argument(3) as u32;
    let len = if u64::from(len) >= ADDRESS_MAX { ADDRESS_MAX - 1 } else { u64::from(len) };
    let len = masked::<{ ADDRESS_MAX - 1 }>(len);
    let read = unsafe {
        let at = draft.slot.record::<u8>().add(Action::SIZE);
        bpf_probe_read_user_buf(draft.argument(2) as *const u8, core::slice::from_raw_parts_mut(at, len as usize))
    };
    if let Err(error) = read {
        fault::count(Site::ReadAction, i64::from(error));
        unsafe { (*draft.action).how |= ACTION_NAME_UNREAD };
        return;
    }
    unsafe { (*draft.action).name_len = len as u16 };
    draft.set_pos(len);
}

/// The caller's names, and the folders that they are relative to.
#[inline(always)]
fn names(draft: Draft, task: Task, shape: u64) {
    let words = shape >> Shape::WORDS & 1 != 0;
    // A file that is known needs no claim, and its path is where that of a name's folder would be.
    let known = unsafe { (*draft.action).how } & ACTION_FILE != 0;
    if !known && draft.has(shape, Shape::NAME) {
        let at = draft.pos();
        let len = name(draft, draft.place(shape, Shape::NAME), at);
        unsafe { (*draft.action).name_len = len as u16 };
        draft.set_pos(at + len);
        if !words && is_relative(draft, at, len) {
            let (len, walk) = folder(draft, task, base(draft, shape, Shape::BASE));
            unsafe {
                (*draft.action).base_len = len;
                (*draft.action).walks |= walk;
            }
        }
    }
    if draft.has(shape, Shape::NAME2) {
        let at = draft.pos();
        let len = name(draft, draft.place(shape, Shape::NAME2), at);
        unsafe { (*draft.action).name2_len = len as u16 };
        draft.set_pos(at + len);
        if shape >> Shape::PATH2 & 1 != 0 && is_relative(draft, at, len) {
            let (len, walk) = folder(draft, task, base(draft, shape, Shape::BASE2));
            unsafe {
                (*draft.action).base2_len = len;
                (*draft.action).walks |= walk << 16;
            }
        }
    }
}

/// The descriptor of the folder that a name is relative to.
#[inline(always)]
fn base(draft: Draft, shape: u64, at: u32) -> u64 {
    if draft.has(shape, at) { draft.place(shape, at) } else { AT_FDCWD as u64 }
}

#[inline(always)]
fn is_relative(draft: Draft, pos: u64, len: u64) -> bool {
    let first = unsafe { *draft.slot.record::<u8>().add(Action::SIZE + masked::<TAIL_MASK>(pos) as usize) };
    len == 0 || first != b'/'
}

/// Copies a name from the caller's memory. Its length.
#[inline(always)]
fn name(draft: Draft, from: u64, pos: u64) -> u64 {
    if from == 0 {
        return 0;
    }
    let read = unsafe {
        let at = draft.slot.record::<u8>().add(Action::SIZE + masked::<TAIL_MASK>(pos) as usize);
        bpf_probe_read_user_str_bytes(from as *const u8, core::slice::from_raw_parts_mut(at, NAME_MAX))
    };
    match read {
        Ok(read) => masked::<{ 2 * 4096 - 1 }>(read.len() as u64),
        Err(error) => {
            fault::count(Site::ReadName, i64::from(error));
            unsafe { (*draft.action).how |= ACTION_NAME_UNREAD };
            0
        }
    }
}

/// Appends the path of the folder that a descriptor stands for. Its length, and how it ended.
#[inline(always)]
fn folder(draft: Draft, task: Task, descriptor: u64) -> (u16, u32) {
    let fs = follow(task.address(), offset!(task_fs));
    let at = draft.pos();
    let walked = if descriptor as i32 == AT_FDCWD {
        fs.map(|fs| path::append(draft.slot, unsafe { fs.add(offset!(fs_pwd)) }, Some(fs), Action::SIZE as u64, at))
    } else {
        descriptor::file(task, descriptor, Site::ReadAction)
            .map(|file| path::append_file(draft.slot, file, fs, Action::SIZE as u64, at))
    };
    if walked.as_ref().is_none_or(|walked| walked.failed) {
        unsafe { (*draft.action).how |= ACTION_PATH_UNREAD };
    }
    match walked {
        Some(walked) => {
            draft.set_pos(walked.pos);
            ((walked.pos - at) as u16, walked.flags)
        }
        None => (0, 0),
    }
}
