//! The one path onto the rings: it numbers, stamps, sends, and counts what found a ring full.

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns, bpf_loop},
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};
use breakglass_abi::{Counter, Header, Ring, settings::Site};
use core::ffi::c_void;

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

/// `BPF_RB_AVAIL_DATA`, `BPF_RB_RING_SIZE`, `BPF_RB_CONS_POS`, `BPF_RB_PROD_POS` (include/uapi/linux/bpf.h).
const AVAILABLE_DATA: u64 = 0;
const RING_SIZE: u64 = 1;
const CONSUMED: u64 = 2;
const PRODUCED: u64 = 3;
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

/// How long [`is_taken`] waits: the agent needs some 15 ms, much more under load, and up to a second for records that make no event.
const TAKEN_WAIT_NS: u64 = 2_000_000_000;
/// More looks than fit into that.
const TAKEN_LOOKS: u32 = 1 << 23;

/// What has to be taken, and whether it was.
#[repr(C)]
struct Waits {
    until_ns: u64,
    audit: u64,
    witness: u64,
    bulk: u64,
    taken: u64,
}

/// Whether the agent has taken, and made durable, all that is on the rings now; waits a little for it. The reader's positions move when
/// something is durable, not when it was read. Waiting is looking again and again: programs at security hooks cannot sleep.
#[inline(never)]
pub fn is_taken() -> bool {
    let until_ns = unsafe { bpf_ktime_get_boot_ns() } + TAKEN_WAIT_NS;
    let mut waits = Waits {
        until_ns,
        audit: AUDIT.query(PRODUCED),
        witness: WITNESS.query(PRODUCED),
        bulk: BULK.query(PRODUCED),
        taken: 0,
    };
    let looks = unsafe { bpf_loop(TAKEN_LOOKS, look as *mut c_void, (&raw mut waits).cast(), 0) };
    if looks < 0 {
        fault::count(Site::Loop, looks);
    }
    waits.taken != 0
}

/// 1 ends the wait.
extern "C" fn look(_index: u64, context: *mut c_void) -> i64 {
    let waits: *mut Waits = context.cast();
    let (until_ns, audit, witness, bulk) =
        unsafe { ((*waits).until_ns, (*waits).audit, (*waits).witness, (*waits).bulk) };
    let read = [(AUDIT.query(CONSUMED), audit), (WITNESS.query(CONSUMED), witness), (BULK.query(CONSUMED), bulk)];
    if read.iter().all(|(consumed, produced)| consumed >= produced) {
        unsafe { (*waits).taken = 1 };
        return 1;
    }
    i64::from(unsafe { bpf_ktime_get_boot_ns() } > until_ns)
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
