//! Terminals of sessions, known by the slave's `tty_struct`: echo runs in a kernel worker and sshd types for the user, so the
//! current task says nothing about whose terminal it is.
//!
//! Nothing tells these programs when a `tty_struct` is freed. An entry is trusted only while the slave's session is the one
//! remembered, or none (its leader has exited and data still flows); otherwise a task in scope renews it under a new id, and
//! anybody else's use of it removes it unless the new leader is tagged.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns},
    macros::map,
    maps::HashMap,
};
use breakglass_abi::{Terminal, settings::Site};

use crate::{
    emit, fault, scope,
    task::{ends, offset, peek, process_of},
};

/// Most terminals of sessions at a time; `kernel.pty.max` is 4,096 by default.
const TERMINALS_MAX: u32 = 4096;
/// Major numbers of `/dev/pts/N`.
const SLAVE_MAJORS: core::ops::RangeInclusive<u32> = 136..=143;
/// Major numbers of Unix98 masters.
const MASTER_MAJORS: core::ops::RangeInclusive<u32> = 128..=135;

const ISIG: u32 = 0x1;
const ICANON: u32 = 0x2;
const ECHO: u32 = 0x8;
const INLCR: u32 = 0x40;
const ICRNL: u32 = 0x100;

#[map]
static TERMINALS: HashMap<u64, Terminal> = HashMap::with_max_entries(TERMINALS_MAX, 0);

/// Which end of a pseudo terminal a `tty_struct` is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// `/dev/ptmx`.
    Master,
    /// `/dev/pts/N`.
    Slave,
    /// A console or a serial line: it has one end only.
    Line,
}

/// The driver's numbers of a `tty_struct`: major, and minor of this terminal.
#[inline(always)]
pub fn device(tty: u64) -> Option<(u32, u32)> {
    let driver: u64 = peek(tty, offset!(tty_driver), Site::ReadTerminal)?;
    let major: u32 = peek(driver, offset!(driver_major), Site::ReadTerminal)?;
    let first: u32 = peek(driver, offset!(driver_minor), Site::ReadTerminal)?;
    let index: u32 = peek(tty, offset!(tty_index), Site::ReadTerminal)?;
    Some((major, first + index))
}

/// Which end a major number means. The numbers are in the kernel's documented list of devices, unlike the driver subtypes.
#[inline(always)]
pub fn end_of(major: u32) -> End {
    if SLAVE_MAJORS.contains(&major) {
        End::Slave
    } else if MASTER_MAJORS.contains(&major) {
        End::Master
    } else {
        End::Line
    }
}

/// The entry of a slave as a task in scope sees it: found, renewed or made.
#[inline(always)]
pub fn claim(slave: u64, slot: u32) -> Option<Terminal> {
    let session = session_of(slave)?;
    if let Some(known) = TERMINALS.get_ptr_mut(&slave) {
        let known = unsafe { &mut *known };
        if known.session == session || session == 0 || known.session == 0 {
            if session != 0 {
                known.session = session;
            }
            if known.slot == 0 {
                known.slot = slot;
            }
            return Some(*known);
        }
    }
    let (major, minor) = device(slave)?;
    let index = match end_of(major) {
        End::Line => (major << 20) | minor,
        _ => peek(slave, offset!(tty_index), Site::ReadTerminal)?,
    };
    // What it hid before nobody knows.
    let (hid, shown_ns) = (u32::from(hides_input(slave) != Some(false)), unsafe { bpf_ktime_get_boot_ns() });
    let terminal = Terminal { id: new_id(), slot, session, index, hid, shown_ns };
    if let Err(error) = TERMINALS.insert(&slave, &terminal, 0) {
        fault::count(Site::TerminalInsert, i64::from(error));
    }
    Some(terminal)
}

/// The entry of a slave as anybody else sees it. Where its session leader is another than the one remembered, the entry goes on
/// under a new id if the new leader is tagged (it took the terminal over), and is dropped if not: somebody else's terminal.
#[inline(always)]
pub fn find(slave: u64) -> Option<Terminal> {
    let known = TERMINALS.get_ptr_mut(&slave)?;
    let known = unsafe { &mut *known };
    let session = session_of(slave)?;
    if session == 0 || session == known.session {
        return Some(*known);
    }
    match leader(slave) {
        Leader::Tagged(slot) => claim(slave, slot),
        Leader::Ending => Some(*known),
        Leader::Other => {
            // Gone already if another CPU was faster.
            let _ = TERMINALS.remove(&slave);
            None
        }
    }
}

/// Whose the slave's session is.
enum Leader {
    /// Tagged for the session with this number.
    Tagged(u32),
    /// Nobody's in a moment. A process gives up its tag some way before its terminal (kernel/exit.c, `do_exit`), and what it wrote may be read
    /// just then.
    Ending,
    /// Somebody else's.
    Other,
}

#[inline(always)]
fn leader(slave: u64) -> Leader {
    let Some(pid) = peek::<u64>(slave, offset!(tty_session), Site::ReadTerminal) else { return Leader::Other };
    if pid == 0 {
        return Leader::Ending;
    }
    let Some(slot) = process_of(pid, Site::ReadTerminal).and_then(scope::tagged) else {
        return if ends(pid, Site::ReadTerminal) { Leader::Ending } else { Leader::Other };
    };
    Leader::Tagged(slot)
}

/// Whether what is typed now must not be kept: the program echoes nothing and
///
/// - reads lines (a password prompt), or
/// - takes raw bytes (the outer end of a nest of terminals, whose inner end is the record), or
/// - takes single keys and still has Enter made a newline (a password prompt that shows an asterisk for each key: sudo's `pwfeedback`,
///   sudo-rs, systemd-ask-password).
///
/// Line editors, whose keys are kept, tell Enter from newline: readline and fish clear `ICRNL`, zsh and libedit swap the two by `INLCR`.
#[inline(always)]
pub fn hides_input(slave: u64) -> Option<bool> {
    let modes: u32 = peek(slave, offset!(tty_lflag), Site::ReadTerminal)?;
    if modes & ECHO != 0 {
        return Some(false);
    }
    if modes & ICANON != 0 || modes & ISIG == 0 {
        return Some(true);
    }
    let modes: u32 = peek(slave, offset!(tty_iflag), Site::ReadTerminal)?;
    Some(modes & (ICRNL | INLCR) == ICRNL)
}

/// At the exit of a call that may have changed the modes of a terminal, or that read what it shows, a prompt perhaps: whatever was missed until
/// then is known before the answer is typed.
#[inline(always)]
pub fn note_modes(slave: u64) {
    let Some(known) = TERMINALS.get_ptr_mut(&slave) else { return };
    if hides_input(slave) != Some(false) {
        unsafe { write_volatile(&raw mut (*known).hid, 1) };
    } else if unsafe { read_volatile(&raw const (*known).hid) } == 1 {
        shows_again(slave, known);
    }
}

/// Whether what was written to the master end of a known terminal may have been delivered while the slave hid its input, where the write began
/// after `since` on the boot clock. Unknown counts as hidden.
///
/// Whoever reads what was hidden shows input again only afterwards, and that is seen late at worst: either the slave is still known to have
/// hidden it, or the moment of its end is later than it was. The order matters: first what the modes are now, then what they were.
#[inline(always)]
pub fn hid_input(slave: u64, since: u64) -> bool {
    let hides = hides_input(slave) != Some(false);
    let Some(known) = TERMINALS.get_ptr_mut(&slave) else { return true };
    if hides {
        unsafe { write_volatile(&raw mut (*known).hid, 1) };
        return true;
    }
    if unsafe { read_volatile(&raw const (*known).hid) } == 1 {
        // Its end was not seen, or not yet. What is written from now on is judged by now.
        shows_again(slave, known);
        return true;
    }
    since <= unsafe { read_volatile(&raw const (*known).shown_ns) }
}

/// The time first: who sees that input is shown has to see since when. Whoever hides it meanwhile may have noted it before it is taken back
/// here, so the modes are looked at once more, after a barrier.
#[inline(always)]
fn shows_again(slave: u64, known: *mut Terminal) {
    unsafe {
        write_volatile(&raw mut (*known).shown_ns, bpf_ktime_get_boot_ns());
        write_volatile(&raw mut (*known).hid, 0);
        emit::fetch_add(&raw mut (*known).shown_ns, 0);
        if hides_input(slave) != Some(false) {
            write_volatile(&raw mut (*known).hid, 1);
        }
    }
}

/// Height and width, 0 where unknown.
#[inline(always)]
pub fn size(slave: u64) -> (u16, u16) {
    let rows = peek(slave, offset!(tty_rows), Site::ReadTerminal).unwrap_or(0);
    let cols = peek(slave, offset!(tty_cols), Site::ReadTerminal).unwrap_or(0);
    (rows, cols)
}

/// Pid of the session leader, 0 for none.
#[inline(always)]
fn session_of(slave: u64) -> Option<u32> {
    let pid: u64 = peek(slave, offset!(tty_session), Site::ReadTerminal)?;
    if pid == 0 { Some(0) } else { peek(pid, offset!(pid_nr), Site::ReadTerminal) }
}

/// The boot clock with the CPU in its low byte: two terminals would have to be met within 256 ns on one CPU to share it.
#[inline(always)]
fn new_id() -> u64 {
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let cpu = unsafe { bpf_get_smp_processor_id() };
    (now & !0xff) | u64::from(cpu & 0xff)
}
