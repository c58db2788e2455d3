//! Terminals that are no pseudo terminals, below the system call: what drivers of consoles and serial lines took, echo included,
//! and what their line discipline was given, which is what was typed. And on every terminal what was typed by `TIOCSTI`, which no
//! driver sees. Attached while a session is open, each where the kernel has the function.
//!
//! All driver functions here are given the `tty_struct`; the buffer is the kernel's own.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use breakglass_abi::{Kind, Terminal, settings::Site};

use super::{
    pty::{WRITES, hidden, withhold},
    written,
};
use crate::{
    chunk::{self, Copy, Source},
    fault, scope,
    scratch::{self, Slot},
    task::{Identity, Task, follow, offset},
    terminal::{self, End},
};

/// `static int n_tty_receive_buf_common(struct tty_struct *tty, const unsigned char *cp, const char *fp, int count, int flow)`;
/// other integer types from 6.6 on. Called by a kernel worker, or by whoever uses `TIOCSTI`.
#[fentry(function = "n_tty_receive_buf_common")]
pub fn line_input_enter(context: FEntryContext) -> i32 {
    let tty = context.arg::<u64>(0);
    if is_input(tty) && terminal::hides_input(tty) != Some(false) {
        let thread = bpf_get_current_pid_tgid();
        if let Err(error) = WRITES.insert(&thread, &1, 0) {
            fault::count(Site::PendingInsert, i64::from(error));
        }
    }
    0
}

/// The same function at its return: by what it took.
#[fexit(function = "n_tty_receive_buf_common")]
pub fn line_input_exit(context: FExitContext) -> i32 {
    let taken = context.arg::<u64>(5) as i32;
    let tty = context.arg::<u64>(0);
    if !is_input(tty) {
        return 0;
    }
    if taken > 0 {
        input(tty, context.arg::<u64>(1), taken as u64);
    } else {
        let _ = WRITES.remove(&bpf_get_current_pid_tgid());
    }
    0
}

/// `static int uart_write(struct tty_struct *tty, const unsigned char *buf, int count)`.
#[fexit(function = "uart_write")]
pub fn uart_write_exit(context: FExitContext) -> i32 {
    wrote(&context);
    0
}

/// `static int con_write(struct tty_struct *tty, const unsigned char *buf, int count)`: a virtual console.
#[fexit(function = "con_write")]
pub fn con_write_exit(context: FExitContext) -> i32 {
    wrote(&context);
    0
}

/// `static int hvc_write(struct tty_struct *tty, const unsigned char *buf, int count)`: a hypervisor's console.
#[fexit(function = "hvc_write")]
pub fn hvc_write_exit(context: FExitContext) -> i32 {
    wrote(&context);
    0
}

/// `static int uart_put_char(struct tty_struct *tty, unsigned char c)`: echo, and what the line discipline adds.
#[fexit(function = "uart_put_char")]
pub fn uart_put_char_exit(context: FExitContext) -> i32 {
    put(&context);
    0
}

/// `static int con_put_char(struct tty_struct *tty, unsigned char ch)`.
#[fexit(function = "con_put_char")]
pub fn con_put_char_exit(context: FExitContext) -> i32 {
    put(&context);
    0
}

/// `static ssize_t vcs_write(struct file *file, const char __user *buf, size_t count, loff_t *ppos)`: paints a virtual console's
/// screen without a write to it.
#[fexit(function = "vcs_write")]
pub fn vcs_write_exit(context: FExitContext) -> i32 {
    let written = context.arg::<u64>(4) as i64;
    if written > 0 && scope::works_at_functions() {
        written::painted(
            Task::current(),
            context.arg::<u64>(0),
            context.arg::<u64>(1),
            written as u64,
            scratch::CONSOLE,
        );
    }
    0
}

/// Whether what a terminal's line discipline is given is input that no other program records: on a line all of it, on a pseudo
/// terminal what a task types by `TIOCSTI`. (The rest of a pseudo terminal's comes from a kernel worker, after `pty_write`.)
#[inline(always)]
fn is_input(tty: u64) -> bool {
    if !scope::works_at_functions() {
        return false;
    }
    let Some((major, _)) = terminal::device(tty) else { return false };
    match terminal::end_of(major) {
        End::Line => true,
        End::Slave => follow(Task::current().address(), offset!(task_mm)).is_some(),
        End::Master => false,
    }
}

/// The entry of a terminal as the running task sees it.
#[inline(always)]
fn known(tty: u64, task: Task, who: Identity) -> Option<Terminal> {
    match scope::enter(task, who) {
        Some(scope) => terminal::claim(tty, scope.slot),
        None => terminal::find(tty),
    }
}

#[inline(always)]
fn input(tty: u64, buffer: u64, taken: u64) {
    let task = Task::current();
    let who = task.identity();
    let Some(known) = known(tty, task, who) else {
        let _ = WRITES.remove(&bpf_get_current_pid_tgid());
        return;
    };
    if hidden(tty) {
        withhold(scratch::LDISC, known, who, taken);
        return;
    }
    chunk::send_from_ldisc(&copy(Kind::TerminalInput, tty, known, who, buffer, taken));
}

#[inline(always)]
fn wrote(context: &FExitContext) {
    if !scope::works_at_functions() {
        return;
    }
    let taken = context.arg::<u64>(3) as i32;
    if taken > 0 {
        output(context.arg::<u64>(0), context.arg::<u64>(1), taken as u64);
    }
}

#[inline(always)]
fn output(tty: u64, buffer: u64, taken: u64) {
    let task = Task::current();
    let who = task.identity();
    let Some(known) = known(tty, task, who) else { return };
    chunk::send_from_console(&copy(Kind::TerminalOutput, tty, known, who, buffer, taken));
}

#[inline(always)]
fn copy(kind: Kind, tty: u64, known: Terminal, who: Identity, buffer: u64, taken: u64) -> Copy {
    let (rows, cols) = terminal::size(tty);
    Copy {
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
    }
}

/// One character. It is in a register, so it is put where a copy can be made from.
#[inline(always)]
fn put(context: &FExitContext) {
    if !scope::works_at_functions() {
        return;
    }
    if context.arg::<u64>(2) as i32 != 1 {
        return;
    }
    let tty = context.arg::<u64>(0);
    let task = Task::current();
    let who = task.identity();
    let Some(known) = known(tty, task, who) else { return };
    let Some(slot) = Slot::get(scratch::CONSOLE) else { return };
    chunk::send_byte(slot, &copy(Kind::TerminalOutput, tty, known, who, 0, 1), context.arg::<u64>(1) as u8);
}
