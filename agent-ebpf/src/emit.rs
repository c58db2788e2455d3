//! The one path onto the rings: it numbers, stamps, sends, and counts what found a ring full.

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns},
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};
use breakglass_abi::{Counter, Header, Ring, settings::Site};

use crate::{fault, task::Identity};

// Sizes are set by the agent before loading.
#[map]
static AUDIT: RingBuf = RingBuf::with_byte_size(1 << 24, 0);
#[map]
static WITNESS: RingBuf = RingBuf::with_byte_size(1 << 16, 0);
#[map]
static BULK: RingBuf = RingBuf::with_byte_size(1 << 24, 0);

/// Indexed by ring.
#[map]
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(3, 0);

/// Written once by the agent, when it makes the maps: tells these rings from those of another load.
#[map]
static GENERATION: Array<[u8; 16]> = Array::with_max_entries(1, 0);

/// What the caller knows of a record.
#[derive(Clone, Copy)]
pub struct Envelope {
    /// Where it goes.
    pub ring: Ring,
    /// What it is, a number of [`breakglass_abi::Kind`].
    pub kind: u16,
    /// `FLAG_` bits.
    pub flags: u16,
    /// The session.
    pub slot: u32,
    /// Whom it is about.
    pub who: Identity,
    /// Whether the last quarter of the audit ring is not for it: a flood of it must not keep programs from being recorded.
    pub yields: bool,
}

/// `BPF_RB_AVAIL_DATA`, `BPF_RB_RING_SIZE` (include/uapi/linux/bpf.h).
const AVAILABLE_DATA: u64 = 0;
const RING_SIZE: u64 = 1;
/// What a record that had to yield is counted as.
const ENOSPC: i32 = 28;

/// Fills in the header at `record` and sends `len` bytes. `terminal_bytes` is what a loss would cost, for the counters.
///
/// Returns whether it is on the ring. A lost record has used up its number, which is how the agent proves the loss.
#[inline(always)]
pub fn send(envelope: Envelope, record: *mut u8, len: u64, terminal_bytes: u64) -> bool {
    let Some(counter) = COUNTERS.get_ptr_mut(envelope.ring as u32) else { return false };
    let seq = unsafe { fetch_add(&raw mut (*counter).seq, 1) } + 1;
    unsafe {
        let header = record.cast::<Header>();
        (*header).len = len as u32;
        (*header).kind = envelope.kind;
        (*header).flags = envelope.flags;
        (*header).cpu = bpf_get_smp_processor_id();
        (*header).slot = envelope.slot;
        (*header).seq = seq;
        (*header).boot_ns = bpf_ktime_get_boot_ns();
        (*header).tgid = envelope.who.tgid;
        (*header).tid = envelope.who.tid;
        (*header).start_ns = envelope.who.start_ns;
    }
    let bytes = unsafe { core::slice::from_raw_parts(record, len as usize) };
    let (sent, site) = match envelope.ring {
        Ring::Audit if envelope.yields && crowded() => (Err(-ENOSPC), Site::RingAudit),
        Ring::Audit => (AUDIT.output::<[u8]>(bytes, 0), Site::RingAudit),
        Ring::Witness => (WITNESS.output::<[u8]>(bytes, 0), Site::RingWitness),
        Ring::Bulk => (BULK.output::<[u8]>(bytes, 0), Site::RingBulk),
    };
    match sent {
        Ok(()) => true,
        Err(error) => {
            unsafe {
                (*counter).dropped = (*counter).dropped.wrapping_add(1);
                (*counter).dropped_bytes = (*counter).dropped_bytes.wrapping_add(terminal_bytes);
            }
            fault::count(site, i64::from(error));
            false
        }
    }
}

/// Whether only the last quarter of the audit ring is free.
#[inline(always)]
fn crowded() -> bool {
    let size = AUDIT.query(RING_SIZE);
    AUDIT.query(AVAILABLE_DATA) > size - size / 4
}

/// Whether so little of the audit ring is free that no program should start: the longest exec that is usual, and what others
/// write at the same time, must still find room.
#[inline(always)]
pub fn past_high_water() -> bool {
    let size = AUDIT.query(RING_SIZE);
    AUDIT.query(AVAILABLE_DATA) > size - size / 8
}

/// Adds to a counter of this CPU and returns what it was. Atomic because a program at a function exit can be preempted by a
/// tracepoint program; in assembly because the target's `AtomicU64` has no `fetch_add`.
#[inline(always)]
pub unsafe fn fetch_add(counter: *mut u64, add: u64) -> u64 {
    let mut value = add;
    unsafe {
        core::arch::asm!("{value} = atomic_fetch_add((u64 *)({counter} + 0), {value})",
            value = inout(reg) value, counter = in(reg) counter, options(nostack));
    }
    value
}
