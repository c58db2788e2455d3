//! What only system calls show: execs that failed and, where the kernel allows no programs at function exits, terminals at
//! their master ends. Attached while a session is open.
//!
//! What sshd, sudo, script or tmux read from `/dev/ptmx` is what the screen shows, echo included; what they write to it is what
//! was typed. Data is copied at the exit of the call: at its entry the pages need not be there yet, and nobody knows how much
//! will be taken. Nothing runs at the entry, which every call on the host would pay for; that a write began after some moment is known
//! by the thread's call before, which returned after it.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_boot_ns, bpf_probe_read_user_str_bytes},
    macros::{btf_tracepoint, map},
    maps::LruHashMap,
    programs::BtfTracePointContext,
};
use breakglass_abi::{ExecFailed, Kind, Ring, Terminal, Withheld, calls, record::FLAG_UNTAGGED, settings::Site};

use super::{action, written};
use crate::{
    chunk::{self, Copy, Source},
    descriptor::{self, CHARACTER, FIFO, REGULAR, SOCKET, TYPE_MASK},
    emit::{self, Envelope},
    fault, scope,
    scratch::{self, Slot, masked},
    stdio,
    task::{Address, Identity, Task, constant, load, offset, peek},
    terminal::{self, End},
};

/// Set by the agent before loading: 1 where terminals are recorded here, 0 where `pty_write` is.
#[unsafe(no_mangle)]
static TERMINALS_BY_SYSCALL: u32 = 0;

/// Threads that use masters at a time. One more evicts the one that did not read or write for longest, whose next write is then judged as
/// if it had begun long ago.
const USERS_MAX: u32 = 4096;

/// Threads that have read or written a session's terminal at its master end, and when their last read or write returned, on the boot clock, nanoseconds.
#[map]
static MASTER_USERS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(USERS_MAX, 0);

/// `thread_info.status`: the call came by the 32-bit entry (arch/x86/include/asm/thread_info.h).
const TS_COMPAT: u32 = 2;
/// Bit of the x32 calls in the number.
const X32: u32 = 0x4000_0000;
/// Device number of `/dev/ptmx`, in every instance of devpts.
const PTMX: u32 = (5 << 20) | 2;
/// Major number of `/dev/vcs*` (Documentation/admin-guide/devices.txt, as the next ones).
const VCS_MAJOR: u32 = 7;
/// Of terminals that are no pseudo terminals: consoles and serial lines; `/dev/tty` and `/dev/console` too, whatever they stand for;
/// modems and serial lines on USB, serial lines of other machines, a hypervisor's console.
const LINE_MAJORS: [u32; 6] = [4, 5, 166, 188, 204, 229];
/// `TTYAUX_MAJOR`: `/dev/tty` is whatever terminal the task has.
const OWN_TERMINAL_MAJOR: u32 = 5;
/// Second byte of the requests of terminals, those that change modes among them (include/uapi/asm-generic/ioctls.h).
const TERMINAL_REQUESTS: u64 = b'T' as u64;
/// Longest name of a program that is kept, bytes.
const NAME_MAX: usize = 4096;
/// Greatest errno.
const ERRNO_MAX: i64 = 4095;

/// By number, what is looked at; see the abi crate.
static TABLE: [u16; calls::NUMBERS] = calls::TABLE;

/// A system call that is looked at, and how its arguments lie.
#[derive(Clone, Copy)]
struct Decoded {
    /// Its code in the list of calls.
    call: u16,
    /// Arguments in the 32-bit registers.
    registers32: bool,
    /// Vectors with 32-bit members.
    vectors32: bool,
}

/// A call that has returned, in notes; see [`Slot::notes`].
#[derive(Clone, Copy)]
struct Call(*mut Notes);

#[repr(C)]
struct Notes {
    first: u64,
    second: u64,
    third: u64,
    since: u64,
    call: u32,
    registers32: u32,
    vectors32: u32,
    reserved: u32,
}

/// Reads a note.
macro_rules! noted {
    ($call:expr, $field:ident) => {
        unsafe { core::ptr::read_volatile(&raw const (*$call.0).$field) }
    };
}

impl Call {
    #[inline(always)]
    fn note(regs: Address, decoded: Decoded) -> Option<Self> {
        let notes: *mut Notes = Slot::get(scratch::TRACE)?.notes();
        let (first, second) = registers(regs, decoded);
        unsafe {
            (*notes).first = first;
            (*notes).second = second;
            (*notes).third = load(regs, offset!(regs_dx));
            (*notes).since = 0;
            (*notes).call = u32::from(decoded.call);
            (*notes).registers32 = u32::from(decoded.registers32);
            (*notes).vectors32 = u32::from(decoded.vectors32);
        }
        Some(Self(notes))
    }

    #[inline(always)]
    fn code(self) -> u16 {
        noted!(self, call) as u16
    }

    #[inline(always)]
    fn first(self) -> u64 {
        noted!(self, first)
    }

    #[inline(always)]
    fn second(self) -> u64 {
        noted!(self, second)
    }

    #[inline(always)]
    fn third(self) -> u64 {
        noted!(self, third)
    }

    /// When the call before this one returned; 0 where nobody noted it. See [`MASTER_USERS`].
    #[inline(always)]
    fn since(self) -> u64 {
        noted!(self, since)
    }

    #[inline(always)]
    fn set_since(self, since: u64) {
        unsafe { core::ptr::write_volatile(&raw mut (*self.0).since, since) };
    }

    #[inline(always)]
    fn writes(self) -> bool {
        let code = self.code();
        code == calls::WRITE || code == calls::WRITE_VECTOR
    }

    #[inline(always)]
    fn vectored(self) -> bool {
        let code = self.code();
        code == calls::READ_VECTOR || code == calls::WRITE_VECTOR
    }

    /// Where a read or write keeps its data.
    #[inline(always)]
    fn source(self) -> Source {
        match (self.vectored(), noted!(self, vectors32) != 0) {
            (false, _) => Source::User,
            (true, false) => Source::UserVector,
            (true, true) => Source::UserVectorCompat,
        }
    }
}

/// `TP_PROTO(struct pt_regs *regs, long ret)`, host-wide: the number is tested before anything else is looked at.
#[btf_tracepoint(function = "sys_exit")]
#[inline(always)]
pub fn syscall_exit(context: BtfTracePointContext) -> i32 {
    let regs = context.arg::<Address>(0);
    let result: i64 = context.arg(1);
    if let Some(decoded) = decode(regs) {
        finished(regs, decoded, result);
    }
    0
}

/// At the exit of a call that is looked at.
#[inline(always)]
fn finished(regs: Address, decoded: Decoded, result: i64) {
    let task = Task::current();
    if action::is_idle(task, regs, decoded.call, decoded.registers32, result) || !scope::works() {
        return;
    }
    let Some(call) = Call::note(regs, decoded) else { return };
    match call.code() {
        calls::READ | calls::READ_VECTOR | calls::WRITE | calls::WRITE_VECTOR => {
            moved(task, call, result);
        }
        calls::EXEC | calls::EXEC_AT => {
            if (-ERRNO_MAX..0).contains(&result) {
                exec_failed(task, call, -result);
            }
        }
        calls::SPLICE => {
            if by_syscall() && result > 0 {
                spliced(task, call, result as u64);
            }
        }
        calls::PIPE | calls::DUP => {
            if result >= 0 {
                connects(task, call, result);
            }
        }
        action => {
            if by_syscall() && action::is_ioctl(action) {
                changes_modes(task, call);
            }
            action::finished(task, regs, action, noted!(call, registers32) != 0, result);
        }
    }
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

/// What a call is to us; `None` for almost all, by their number alone.
#[inline(always)]
fn decode(regs: Address) -> Option<Decoded> {
    // The upper half of the register is whatever the caller left in it.
    let number = load::<u64>(regs, offset!(regs_orig_ax)) as u32;
    let row = number & !X32;
    if row >= calls::NUMBERS as u32 {
        return None;
    }
    let row = masked::<{ calls::NUMBERS as u64 - 1 }>(u64::from(row));
    let entry = unsafe { core::ptr::read_volatile((&raw const TABLE).cast::<u16>().add(row as usize)) };
    if entry == 0 {
        return None;
    }
    let compat = compat(Task::current());
    let call = if compat { entry >> 8 } else { entry & 0xff };
    if call == 0 {
        return None;
    }
    Some(Decoded { call, registers32: compat, vectors32: compat || number & X32 != 0 })
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

/// The master's `tty_struct` behind a file; `None` for everything that is not `/dev/ptmx`.
#[inline(always)]
fn master_of(file: u64, inode: u64) -> Option<u64> {
    let device: u32 = peek(inode, offset!(inode_rdev), Site::ReadTerminal)?;
    if device == PTMX { terminal_of(file) } else { None }
}

/// The `tty_struct` behind a file of a terminal.
#[inline(always)]
fn terminal_of(file: u64) -> Option<u64> {
    let private: u64 = peek(file, offset!(file_private), Site::ReadTerminal)?;
    if private == 0 {
        return None;
    }
    peek(private, offset!(tty_file_tty), Site::ReadTerminal)
}

/// At the exit of an ioctl: on a terminal it may have changed whether input is hidden.
#[inline(always)]
fn changes_modes(task: Task, call: Call) -> Option<()> {
    if call.second() >> 8 & 0xff != TERMINAL_REQUESTS {
        return None;
    }
    let file = descriptor::file(task, call.first(), Site::ReadTerminal)?;
    let (inode, mode) = descriptor::inode(file, Site::ReadTerminal)?;
    if mode & TYPE_MASK != CHARACTER {
        return None;
    }
    let device: u32 = peek(inode, offset!(inode_rdev), Site::ReadTerminal)?;
    let slave = if device == PTMX {
        // The modes of a pair are those of its slave, at either end (drivers/tty/tty_ioctl.c, `tty_mode_ioctl`).
        peek(terminal_of(file)?, offset!(tty_link), Site::ReadTerminal)?
    } else if device >> 20 == OWN_TERMINAL_MAJOR || terminal::end_of(device >> 20) == End::Slave {
        terminal_of(file)?
    } else {
        return None;
    };
    terminal::note_modes(slave);
    Some(())
}

/// When the read or write before this one of this thread returned, so that this one began later; 0 where nobody noted it.
#[inline(always)]
fn read_or_wrote_before() -> u64 {
    let thread = bpf_get_current_pid_tgid();
    let Some(returned) = MASTER_USERS.get_ptr_mut(&thread) else { return 0 };
    let before = unsafe { core::ptr::read_volatile(returned) };
    unsafe { core::ptr::write_volatile(returned, bpf_ktime_get_boot_ns()) };
    before
}

/// Has the calls of this thread timed from now on.
#[inline(always)]
fn uses_masters() {
    let thread = bpf_get_current_pid_tgid();
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if let Err(error) = MASTER_USERS.insert(&thread, &now, 0) {
        fault::count(Site::PendingInsert, i64::from(error));
    }
}

/// At the exit of a read or write: sends what it moved at the master end of a session's terminal, or at an end of its stdio.
#[inline(always)]
fn moved(task: Task, call: Call, result: i64) {
    if by_syscall() {
        call.set_since(read_or_wrote_before());
    }
    if result <= 0 {
        return;
    }
    let Some(file) = descriptor::file(task, call.first(), Site::ReadTerminal) else { return };
    let Some((inode, mode)) = descriptor::inode(file, Site::ReadTerminal) else { return };
    match mode & TYPE_MASK {
        CHARACTER => {
            if by_syscall() {
                character(task, file, inode, call, result);
            }
        }
        FIFO | SOCKET => {
            stdio::moved(task, inode, call.writes(), call.source(), call.second(), result as u64);
        }
        REGULAR => {
            if call.writes() {
                written::wrote(task, file, inode);
            }
        }
        _ => {}
    }
}

/// A login makes a pipe, or puts a descriptor where a program will look for its stdio.
#[inline(always)]
fn connects(task: Task, call: Call, result: i64) {
    if call.code() == calls::DUP && result > 2 {
        return;
    }
    let who = task.identity();
    let Some(scope) = scope::find(task, who) else { return };
    if !scope::logs_in(who) {
        return;
    }
    if call.code() == calls::DUP {
        stdio::take(task, who, scope.slot, result as u32);
    } else {
        stdio::take_pipe(task, who, scope.slot, call.first());
    }
}

/// At the exit of a read or write on a character device: a terminal's master end, a line, or the screen of a virtual console.
#[inline(always)]
fn character(task: Task, file: u64, inode: u64, call: Call, result: i64) {
    let Some(device) = peek::<u32>(inode, offset!(inode_rdev), Site::ReadTerminal) else { return };
    if device == PTMX {
        if let Some(master) = terminal_of(file) {
            master_end(task, master, call, result);
        }
    } else if call.writes() {
        let major = device >> 20;
        if major == VCS_MAJOR {
            // Of several buffers only the number of bytes is kept.
            let from = if call.vectored() { 0 } else { call.second() };
            written::painted(task, file, from, result as u64, scratch::EXEC);
        } else if LINE_MAJORS.contains(&major) {
            line_write(task, file, call, result);
        }
    }
}

/// At the exit of a write to a console or serial line: what the program wrote, before the line discipline, and without echo.
#[inline(always)]
fn line_write(task: Task, file: u64, call: Call, result: i64) -> Option<()> {
    let tty = terminal_of(file)?;
    let (major, _) = terminal::device(tty)?;
    if terminal::end_of(major) != End::Line {
        return None;
    }
    let who = task.identity();
    let known = known(tty, task, who)?;
    let mut copy = copy(Kind::TerminalOutput, tty, known, who, result as u64);
    copy.source = call.source();
    copy.address = call.second();
    chunk::send_from_trace(&copy);
    Some(())
}

/// At the exit of a `splice` out of or into a master: its bytes never were in anybody's memory.
#[inline(always)]
fn spliced(task: Task, call: Call, bytes: u64) {
    missing(task, call.first(), Kind::TerminalOutput, bytes);
    missing(task, call.third(), Kind::TerminalInput, bytes);
}

#[inline(always)]
fn missing(task: Task, descriptor: u64, kind: Kind, bytes: u64) -> Option<()> {
    let file = descriptor::file(task, descriptor, Site::ReadTerminal)?;
    let (inode, mode) = descriptor::inode(file, Site::ReadTerminal)?;
    if mode & TYPE_MASK != CHARACTER {
        return None;
    }
    let slave: u64 = peek(master_of(file, inode)?, offset!(tty_link), Site::ReadTerminal)?;
    if slave == 0 {
        return None;
    }
    let who = task.identity();
    let known = known(slave, task, who)?;
    chunk::send_missing(&copy(kind, slave, known, who, bytes));
    Some(())
}

/// The entry of a terminal as the running task sees it.
#[inline(always)]
fn known(slave: u64, task: Task, who: Identity) -> Option<Terminal> {
    match scope::enter(task, who) {
        Some(scope) => terminal::claim(slave, scope.slot),
        None => terminal::find(slave),
    }
}

/// A copy whose bytes are still to be found.
#[inline(always)]
fn copy(kind: Kind, slave: u64, known: Terminal, who: Identity, total: u64) -> Copy {
    let (rows, cols) = terminal::size(slave);
    Copy {
        source: Source::User,
        address: 0,
        total,
        kind,
        slot: known.slot,
        who,
        part: 0,
        terminal: known.id,
        index: known.index,
        rows,
        cols,
        site: Site::ReadTerminal,
    }
}

/// At the exit of a read or write on a terminal's master end.
#[inline(always)]
fn master_end(task: Task, master: u64, call: Call, result: i64) {
    let Some(slave) = peek::<u64>(master, offset!(tty_link), Site::ReadTerminal) else { return };
    if slave == 0 {
        return;
    }
    let who = task.identity();
    let Some(known) = known(slave, task, who) else { return };
    let since = match call.since() {
        0 => {
            uses_masters();
            task.started()
        }
        since => since,
    };
    if !call.writes() {
        terminal::note_modes(slave);
    } else if terminal::hid_input(slave, since) {
        withhold(known, who, result as u64);
        return;
    }
    // In packet mode a read begins with a control byte that no screen shows.
    let packet = if call.code() == calls::READ { packet_byte(master) } else { 0 };
    let kind = if call.writes() { Kind::TerminalInput } else { Kind::TerminalOutput };
    let mut copy = copy(kind, slave, known, who, result as u64 - packet);
    copy.source = call.source();
    copy.address = call.second() + packet;
    chunk::send_from_trace(&copy);
}

/// 1 where the master is in packet mode.
#[inline(always)]
fn packet_byte(master: u64) -> u64 {
    match peek::<u8>(master, offset!(tty_packet), Site::ReadTerminal) {
        Some(packet) if packet != 0 => 1,
        _ => 0,
    }
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
    let envelope = Envelope {
        ring: Ring::Audit,
        kind: Kind::TerminalWithheld as u16,
        flags: 0,
        slot: known.slot,
        who,
        yields: false,
    };
    emit::send(envelope, slot.record(), Withheld::SIZE as u64, bytes);
}

/// An exec of a task in scope that the kernel refused. The name is read from the caller's memory and is only what it claims.
#[inline(always)]
fn exec_failed(task: Task, call: Call, errno: i64) {
    let who = task.identity();
    let Some(scope) = scope::enter(task, who) else { return };
    let Some(slot) = Slot::get(scratch::TRACE) else { return };
    let from = if call.code() == calls::EXEC_AT { call.second() } else { call.first() };
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
    let envelope =
        Envelope { ring: Ring::Audit, kind: Kind::ExecFailed as u16, flags, slot: scope.slot, who, yields: true };
    emit::send(envelope, slot.record(), ExecFailed::SIZE as u64 + name_len, 0);
}
