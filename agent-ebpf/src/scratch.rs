//! Room to build records in: the stack has 512 bytes, so everything longer is built in per-CPU map values.
//!
//! A program owns its slots while it runs. Tracepoint programs run with preemption off and do not nest, so they share
//! [`EXEC`] and [`TRACE`]. Programs at function exits can be preempted by them, and on a fully preemptible kernel by each other, but
//! never by themselves (the kernel leaves such a run out and counts it): [`FEXIT`] is `pty_write`'s alone, [`LDISC`] the line
//! discipline's, and [`CONSOLE`] is shared by the drivers of consoles and serial lines, of which a host has one in use at a time.

use aya_ebpf::{macros::map, maps::PerCpuArray};

/// Bytes of a slot: the largest value that a per-CPU map takes (`PCPU_MIN_UNIT_SIZE`).
const SLOT_BYTES: usize = 32 * 1024;
/// Bytes of loop state in front of the record.
const STATE_BYTES: usize = 128;
/// Bytes of notes in front of that.
const NOTE_BYTES: usize = 64;

/// One slot.
#[repr(C, align(8))]
pub struct Scratch {
    notes: [u8; NOTE_BYTES],
    state: [u8; STATE_BYTES],
    record: [u8; SLOT_BYTES - STATE_BYTES - NOTE_BYTES],
}

/// The `Exec` record under construction.
pub const EXEC: u32 = 0;
/// Chunks and small records of tracepoint programs.
pub const TRACE: u32 = 1;
/// Chunks and small records of the program at the exit of `pty_write`.
pub const FEXIT: u32 = 2;
/// Of that at the exit of the line discipline's input.
pub const LDISC: u32 = 3;
/// Of those at the exits of console and serial drivers.
pub const CONSOLE: u32 = 4;

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(5, 0);

/// A slot of this CPU.
#[derive(Clone, Copy)]
pub struct Slot(*mut Scratch);

impl Slot {
    /// Looks it up; `None` only for an index that does not exist.
    #[inline(always)]
    pub fn get(index: u32) -> Option<Self> {
        SCRATCH.get_ptr_mut(index).map(Self)
    }

    /// Where the record is built.
    #[inline(always)]
    pub fn record<T>(self) -> *mut T {
        unsafe { (&raw mut (*self.0).record).cast() }
    }

    /// What a loop carries from step to step. In a map rather than on the stack, so that the verifier need not follow it.
    #[inline(always)]
    pub fn state<T>(self) -> *mut T {
        const { assert!(size_of::<T>() <= STATE_BYTES) };
        unsafe { (&raw mut (*self.0).state).cast() }
    }
}

impl Slot {
    /// What a program carries from step to step. What the verifier knows of a value in a register it tells apart in every path from
    /// there on, and paths multiply; of a value in a map it knows nothing, and the paths meet again. It halves the time to load.
    #[inline(always)]
    pub fn notes<T>(self) -> *mut T {
        const { assert!(size_of::<T>() <= NOTE_BYTES) };
        unsafe { (&raw mut (*self.0).notes).cast() }
    }
}

/// `value & MASK` that the compiler cannot take away. The verifier of 6.1 needs to see the mask itself; LLVM would drop one
/// that it can prove idle. The `mov` is there because an empty barrier leaves line information without an instruction.
#[inline(always)]
pub fn masked<const MASK: u64>(value: u64) -> u64 {
    let opaque: u64;
    unsafe { core::arch::asm!("{0} = {1}", out(reg) opaque, in(reg) value, options(pure, nomem, nostack)) };
    opaque & MASK
}
