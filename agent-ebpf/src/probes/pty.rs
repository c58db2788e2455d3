//! Terminals below the system call, where the kernel allows programs at function exits: `write`, `writev`, `splice`,
//! `io_uring` and echo all pass here, and the bytes are the kernel's own copy. Attached while a session is open.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{fentry, fexit, map},
    maps::LruHashMap,
    programs::{FEntryContext, FExitContext},
};
use breakglass_abi::{
    Kind, Ring, Terminal, Withheld,
    settings::{CANARY_FUNCTION, Site},
};

use crate::{
    chunk::{self, Copy, Source},
    emit::{self, Envelope},
    fault, life, scope,
    scratch::{self, Slot},
    task::{Identity, Task, offset, peek},
    terminal::{self, End},
};

/// Writes that can be under way at a time. One more evicts the oldest, which is then judged at its exit alone.
const WRITES_MAX: u32 = 4096;

/// Threads inside `pty_write` on a master, or inside a line discipline's input, while the terminal hid its input at the entry.
#[map]
pub(super) static WRITES: LruHashMap<u64, u32> = LruHashMap::with_max_entries(WRITES_MAX, 0);

/// `int pty_write(struct tty_struct *tty, const unsigned char *buf, int c)`; `ssize_t` and `size_t` from 6.6 on.
#[fentry(function = "pty_write")]
pub fn pty_write_enter(context: FEntryContext) -> i32 {
    if scope::works_at_functions() {
        note_write(context.arg::<u64>(0));
    }
    0
}

/// The same function at its return: by what it took, not by what it was offered.
#[fexit(function = "pty_write")]
pub fn pty_write_exit(context: FExitContext) -> i32 {
    if !scope::works_at_functions() {
        return 0;
    }
    life::see_canary(CANARY_FUNCTION, Task::current().identity());
    // Both widths of the result agree in the low half.
    let taken = context.arg::<u64>(3) as i32;
    if taken > 0 {
        record(context.arg::<u64>(0), context.arg::<u64>(1), taken as u64);
    } else {
        // A write that moved nothing must not leave its mark for the next one.
        let _ = WRITES.remove(&bpf_get_current_pid_tgid());
    }
    0
}

#[inline(always)]
fn note_write(tty: u64) {
    let Some((major, _)) = terminal::device(tty) else { return };
    if terminal::end_of(major) != End::Master {
        return;
    }
    let Some(slave) = peek::<u64>(tty, offset!(tty_link), Site::ReadTerminal) else { return };
    if slave == 0 || terminal::hides_input(slave) == Some(false) {
        return;
    }
    let thread = bpf_get_current_pid_tgid();
    if let Err(error) = WRITES.insert(&thread, &1, 0) {
        fault::count(Site::PendingInsert, i64::from(error));
    }
}

#[inline(always)]
fn record(tty: u64, buffer: u64, taken: u64) {
    let Some((major, _)) = terminal::device(tty) else { return };
    let (slave, kind) = match terminal::end_of(major) {
        End::Slave => (tty, Kind::TerminalOutput),
        End::Master => match peek::<u64>(tty, offset!(tty_link), Site::ReadTerminal) {
            Some(slave) if slave != 0 => (slave, Kind::TerminalInput),
            _ => return,
        },
        End::Line => return,
    };
    let task = Task::current();
    let who = task.identity();
    let known = match scope::enter(task, who) {
        Some(scope) => terminal::claim(slave, scope.slot),
        None => terminal::find(slave),
    };
    let Some(known) = known else { return };
    if kind == Kind::TerminalInput && hidden(slave) {
        withhold(scratch::FEXIT, known, who, taken);
        return;
    }
    let (rows, cols) = terminal::size(slave);
    let copy = Copy {
        source: Source::Kernel,
        address: buffer,
        total: taken,
        kind,
        slot: known.slot,
        who,
        part: 0,
        terminal: known.id,
        index: known.index,
        rows,
        cols,
        site: Site::ReadTerminal,
    };
    chunk::send_from_fexit(&copy);
}

/// Whether the terminal hid its input at the entry of what this thread is in, or does now. Unknown counts as hidden.
#[inline(always)]
pub(super) fn hidden(slave: u64) -> bool {
    let thread = bpf_get_current_pid_tgid();
    let at_entry = unsafe { WRITES.get(&thread) }.is_some();
    if at_entry {
        let _ = WRITES.remove(&thread);
    }
    at_entry || terminal::hides_input(slave) != Some(false)
}

/// Sends how much was typed, built in the caller's slot.
#[inline(always)]
pub(super) fn withhold(slot: u32, known: Terminal, who: Identity, bytes: u64) {
    let Some(slot) = Slot::get(slot) else { return };
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
