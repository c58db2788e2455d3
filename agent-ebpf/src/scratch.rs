//! Room to build records in: the stack has 512 bytes, so everything longer is built in per-CPU map values.
//!
//! A program owns its slots while it runs. Tracepoint programs run with preemption off and do not nest, so they share
//! [`EXEC`] and [`TRACE`]; programs at function exits can be preempted by them and have [`FEXIT`] to themselves.

use aya_ebpf::{macros::map, maps::PerCpuArray};

/// Bytes of a slot: the largest value that a per-CPU map takes (`PCPU_MIN_UNIT_SIZE`).
const SLOT_BYTES: usize = 32 * 1024;
/// Bytes of loop state in front of the record.
const STATE_BYTES: usize = 128;

/// One slot.
#[repr(C, align(8))]
pub struct Scratch {
    state: [u8; STATE_BYTES],
    record: [u8; SLOT_BYTES - STATE_BYTES],
}

/// The `Exec` record under construction.
pub const EXEC: u32 = 0;
/// Chunks and small records of tracepoint programs.
pub const TRACE: u32 = 1;
/// Chunks and small records of programs at function exits.
pub const FEXIT: u32 = 2;

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(3, 0);

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

/// `value & MASK` that the compiler cannot take away. The verifier of 6.1 needs to see the mask itself; LLVM would drop one
/// that it can prove idle. The `mov` is there because an empty barrier leaves line information without an instruction.
#[inline(always)]
pub fn masked<const MASK: u64>(value: u64) -> u64 {
    let opaque: u64;
    unsafe { core::arch::asm!("{0} = {1}", out(reg) opaque, in(reg) value, options(pure, nomem, nostack)) };
    opaque & MASK
}
