//! What only system calls show: execs that failed and, where the kernel allows no programs at function exits, terminals at
//! their master ends. Attached while a session is open.
//!
//! What sshd, sudo, script or tmux read from `/dev/ptmx` is what the screen shows, echo included; what they write to it is what
//! was typed. Data is copied at the exit of the call: at its entry the pages need not be there yet, and nobody knows how much
//! will be taken.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user_str_bytes},
    macros::{btf_tracepoint, map},
    maps::LruHashMap,
    programs::BtfTracePointContext,
};
use breakglass_abi::{ExecFailed, Kind, Ring, Terminal, Withheld, record::FLAG_UNTAGGED, settings::Site};

use crate::{
    chunk::{self, Copy, Source},
    emit::{self, Envelope},
    fault, scope,
    scratch::{self, Slot, masked},
    task::{Address, Identity, Task, constant, follow, load, offset, peek},
    terminal,
};

/// Set by the agent before loading: 1 where terminals are recorded here, 0 where `pty_write` is.
#[unsafe(no_mangle)]
static TERMINALS_BY_SYSCALL: u32 = 0;

/// Writes to masters that can be under way at a time. One more evicts the oldest, which is then judged at its exit alone.
const PENDING_MAX: u32 = 4096;

/// Threads inside a write to a master end while the slave hid its input at the entry.
#[map]
static PENDING: LruHashMap<u64, u32> = LruHashMap::with_max_entries(PENDING_MAX, 0);

/// `thread_info.status`: the call came by the 32-bit entry (arch/x86/include/asm/thread_info.h).
const TS_COMPAT: u32 = 2;
/// Bit of the x32 calls in the number.
const X32: u32 = 0x4000_0000;
/// Device number of `/dev/ptmx`, in every instance of devpts.
const PTMX: u32 = (5 << 20) | 2;
/// Longest name of a program that is kept, bytes.
const NAME_MAX: usize = 4096;
/// Greatest errno.
const ERRNO_MAX: i64 = 4095;

/// What a system call is to us.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Read,
    Write,
    Exec,
    ExecAt,
    Other,
}

/// A system call by number, and how its arguments lie.
#[derive(Clone, Copy)]
struct Decoded {
    call: Call,
    vectored: bool,
    /// Arguments in the 32-bit registers.
    registers32: bool,
    /// Vectors with 32-bit members.
    vectors32: bool,
}

/// `TP_PROTO(struct pt_regs *regs, long id)`, host-wide: the number is tested before anything else is looked at.
#[btf_tracepoint(function = "sys_enter")]
pub fn syscall_enter(context: BtfTracePointContext) -> i32 {
    if by_syscall() {
        note_write(context.arg::<Address>(0));
    }
    0
}

/// `TP_PROTO(struct pt_regs *regs, long ret)`.
#[btf_tracepoint(function = "sys_exit")]
pub fn syscall_exit(context: BtfTracePointContext) -> i32 {
    let regs = context.arg::<Address>(0);
    let result: i64 = context.arg(1);
    let task = Task::current();
    let decoded = decode(regs, task);
    match decoded.call {
        Call::Other => {}
        Call::Exec | Call::ExecAt => {
            if (-ERRNO_MAX..0).contains(&result) {
                exec_failed(task, regs, decoded, -result);
            }
        }
        Call::Read | Call::Write => {
            if by_syscall() {
                master_end(task, regs, decoded, result);
            }
        }
    }
    0
}

#[inline(always)]
fn by_syscall() -> bool {
    constant(&TERMINALS_BY_SYSCALL) == 1
}

/// Whether the kernel took the call by its 32-bit entry: that, not the code segment, chooses its table.
#[inline(always)]
fn compat(task: Task) -> bool {
    load::<u32>(task.address(), offset!(task_status)) & TS_COMPAT != 0
}

#[inline(always)]
fn decode(regs: Address, task: Task) -> Decoded {
    // The upper half of the register is whatever the caller left in it.
    let number = load::<u64>(regs, offset!(regs_orig_ax)) as u32;
    if compat(task) {
        let (call, vectored) = decode_32(number);
        return Decoded { call, vectored, registers32: true, vectors32: true };
    }
    let (call, vectored) = decode_64(number);
    Decoded { call, vectored, registers32: false, vectors32: number & X32 != 0 }
}

/// arch/x86/entry/syscalls/syscall_64.tbl; the numbers from 512 on are x32's.
#[inline(always)]
fn decode_64(number: u32) -> (Call, bool) {
    match number & !X32 {
        0 => (Call::Read, false),
        1 => (Call::Write, false),
        19 | 295 | 327 | 515 | 534 | 546 => (Call::Read, true),
        20 | 296 | 328 | 516 | 535 | 547 => (Call::Write, true),
        59 | 520 => (Call::Exec, false),
        322 | 545 => (Call::ExecAt, false),
        _ => (Call::Other, false),
    }
}

/// arch/x86/entry/syscalls/syscall_32.tbl.
#[inline(always)]
fn decode_32(number: u32) -> (Call, bool) {
    match number {
        3 => (Call::Read, false),
        4 => (Call::Write, false),
        145 | 333 | 378 => (Call::Read, true),
        146 | 334 | 379 => (Call::Write, true),
        11 => (Call::Exec, false),
        358 => (Call::ExecAt, false),
        _ => (Call::Other, false),
    }
}

/// First and second argument of a call.
#[inline(always)]
fn registers(regs: Address, decoded: Decoded) -> (u64, u64) {
    if decoded.registers32 {
        let first: u64 = load(regs, offset!(regs_bx));
        let second: u64 = load(regs, offset!(regs_cx));
        (first & 0xffff_ffff, second & 0xffff_ffff)
    } else {
        (load(regs, offset!(regs_di)), load(regs, offset!(regs_si)))
    }
}

/// The master's `tty_struct` behind a descriptor of the task; `None` for everything that is not `/dev/ptmx`.
#[inline(always)]
fn master_of(task: Task, descriptor: u64) -> Option<u64> {
    let files = follow(task.address(), offset!(task_files))?;
    let table = follow(files, offset!(files_fdt))?;
    let descriptor = descriptor as u32;
    let max: u32 = load(table, offset!(fdt_max));
    if descriptor >= max {
        return None;
    }
    let array: u64 = load(table, offset!(fdt_fd));
    let file: u64 = peek(array + 8 * u64::from(descriptor), 0, Site::ReadTerminal)?;
    if file == 0 {
        return None;
    }
    let inode: u64 = peek(file, offset!(file_inode), Site::ReadTerminal)?;
    let device: u32 = peek(inode, offset!(inode_rdev), Site::ReadTerminal)?;
    if device != PTMX {
        return None;
    }
    let private: u64 = peek(file, offset!(file_private), Site::ReadTerminal)?;
    if private == 0 {
        return None;
    }
    peek(private, offset!(tty_file_tty), Site::ReadTerminal)
}

/// At the entry of a write to a master: remembers whether its slave hides its input.
#[inline(always)]
fn note_write(regs: Address) {
    let task = Task::current();
    let decoded = decode(regs, task);
    if decoded.call != Call::Write {
        return;
    }
    let (descriptor, _) = registers(regs, decoded);
    let Some(master) = master_of(task, descriptor) else { return };
    let Some(slave) = peek::<u64>(master, offset!(tty_link), Site::ReadTerminal) else { return };
    if slave == 0 || terminal::hides_input(slave) == Some(false) {
        return;
    }
    let thread = bpf_get_current_pid_tgid();
    if let Err(error) = PENDING.insert(&thread, &1, 0) {
        fault::count(Site::PendingInsert, i64::from(error));
    }
}

/// At the exit of a read or write: if it was at the master end of a session's terminal, sends what it moved.
#[inline(always)]
fn master_end(task: Task, regs: Address, decoded: Decoded, result: i64) {
    if result <= 0 {
        forget(decoded);
        return;
    }
    let (descriptor, address) = registers(regs, decoded);
    let Some(master) = master_of(task, descriptor) else { return };
    let Some(slave) = peek::<u64>(master, offset!(tty_link), Site::ReadTerminal) else { return };
    if slave == 0 {
        return;
    }
    let who = task.identity();
    let known = match scope::enter(task, who) {
        Some(scope) => terminal::claim(slave, scope.slot),
        None => terminal::find(slave),
    };
    let Some(known) = known else { return };
    if decoded.call == Call::Write && hidden(slave) {
        withhold(known, who, result as u64);
        return;
    }
    let (rows, cols) = terminal::size(slave);
    // In packet mode a read begins with a control byte that no screen shows.
    let packet = if decoded.call == Call::Read && !decoded.vectored { packet_byte(master) } else { 0 };
    let copy = Copy {
        source: match (decoded.vectored, decoded.vectors32) {
            (false, _) => Source::User,
            (true, false) => Source::UserVector,
            (true, true) => Source::UserVectorCompat,
        },
        address: address + packet,
        total: result as u64 - packet,
        kind: if decoded.call == Call::Read { Kind::TerminalOutput } else { Kind::TerminalInput },
        slot: known.slot,
        who,
        part: 0,
        terminal: known.id,
        index: known.index,
        rows,
        cols,
        site: Site::ReadTerminal,
    };
    chunk::send_from_trace(&copy);
}

/// A write that moved nothing must not leave its mark for the next one.
#[inline(always)]
fn forget(decoded: Decoded) {
    if decoded.call == Call::Write {
        let thread = bpf_get_current_pid_tgid();
        let _ = PENDING.remove(&thread);
    }
}

/// 1 where the master is in packet mode.
#[inline(always)]
fn packet_byte(master: u64) -> u64 {
    match peek::<u8>(master, offset!(tty_packet), Site::ReadTerminal) {
        Some(packet) if packet != 0 => 1,
        _ => 0,
    }
}

/// Whether the slave hid its input at the entry of this thread's write, or does now. Unknown counts as hidden.
#[inline(always)]
fn hidden(slave: u64) -> bool {
    let thread = bpf_get_current_pid_tgid();
    let at_entry = unsafe { PENDING.get(&thread) }.is_some();
    if at_entry {
        let _ = PENDING.remove(&thread);
    }
    at_entry || terminal::hides_input(slave) != Some(false)
}

#[inline(always)]
fn withhold(known: Terminal, who: Identity, bytes: u64) {
    let Some(slot) = Slot::get(scratch::TRACE) else { return };
    let withheld: *mut Withheld = slot.record();
    unsafe {
        (*withheld).terminal = known.id;
        (*withheld).bytes = bytes;
        (*withheld).index = known.index;
        (*withheld).reserved = 0;
    }
    let envelope = Envelope { ring: Ring::Audit, kind: Kind::TerminalWithheld, flags: 0, slot: known.slot, who };
    emit::send(envelope, slot.record(), Withheld::SIZE as u64, bytes);
}

/// An exec of a task in scope that the kernel refused. The name is read from the caller's memory and is only what it claims.
#[inline(always)]
fn exec_failed(task: Task, regs: Address, decoded: Decoded, errno: i64) {
    let who = task.identity();
    let Some(scope) = scope::enter(task, who) else { return };
    let Some(slot) = Slot::get(scratch::TRACE) else { return };
    let (first, second) = registers(regs, decoded);
    let from = if decoded.call == Call::ExecAt { second } else { first };
    let failed: *mut ExecFailed = slot.record();
    let name_len = unsafe {
        let into = core::slice::from_raw_parts_mut(slot.record::<u8>().add(ExecFailed::SIZE), NAME_MAX);
        match bpf_probe_read_user_str_bytes(from as *const u8, into) {
            Ok(read) => masked::<{ 2 * NAME_MAX as u64 - 1 }>(read.len() as u64),
            Err(error) => {
                fault::count(Site::ReadName, i64::from(error));
                0
            }
        }
    };
    unsafe {
        (*failed).errno = errno as u32;
        (*failed).uid = task.cred().map_or(u32::MAX, |cred| load(cred, offset!(cred_uid)));
        (*failed).name_len = name_len as u32;
        (*failed).reserved = 0;
    }
    let flags = if scope.tagged { 0 } else { FLAG_UNTAGGED };
    let envelope = Envelope { ring: Ring::Audit, kind: Kind::ExecFailed, flags, slot: scope.slot, who };
    emit::send(envelope, slot.record(), ExecFailed::SIZE as u64 + name_len, 0);
}
