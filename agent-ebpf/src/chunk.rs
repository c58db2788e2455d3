//! Long things, in pieces: arguments, environment, terminal data.

use aya_ebpf::{
    cty::c_void,
    helpers::{bpf_loop, bpf_probe_read_kernel_buf, bpf_probe_read_user, bpf_probe_read_user_buf},
};
use breakglass_abi::{Chunk, Kind, Ring, record::CHUNK_DATA_MAX, settings::Site};

use crate::{
    emit::{self, Envelope},
    fault,
    scratch::{self, Slot, masked},
    task::Identity,
};

/// Most steps of one copy. Arguments and environment are at most 6 MiB each (384 steps); terminal data beyond 16 MiB in one
/// call, or in more than a thousand vectors, is reported as missing.
const STEPS_MAX: u32 = 1024;
/// What a chunk says where the copy ended early.
const E2BIG: u16 = 7;
const EFAULT: u16 = 14;
/// Where it cannot be made: the bytes never were in the caller's memory.
const EOPNOTSUPP: u16 = 95;

/// Where the bytes are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// One range of the process's memory.
    User,
    /// An array of `struct iovec` in the process's memory.
    UserVector,
    /// The same with 32-bit members.
    UserVectorCompat,
    /// One range of the kernel's memory.
    Kernel,
}

/// What is to be copied, and as what.
pub struct Copy {
    /// Where the bytes are.
    pub source: Source,
    /// Address of the bytes, or of the vectors.
    pub address: u64,
    /// How many bytes in all.
    pub total: u64,
    /// Kind of the records; output goes to the bulk ring, all else to the audit ring.
    pub kind: Kind,
    /// Session.
    pub slot: u32,
    /// Whom they are about.
    pub who: Identity,
    /// `PART_ARGV`, `PART_ENV`, the stream of stdio, or 0.
    pub part: u16,
    /// The terminal, 0 for none; the start time of the process whose stdio it is.
    pub terminal: u64,
    /// Its index; that process.
    pub index: u32,
    /// Its height.
    pub rows: u16,
    /// Its width.
    pub cols: u16,
    /// Where failures are counted.
    pub site: Site,
}

/// State of a copy, in the scratch slot.
#[repr(C)]
struct State {
    /// Next bytes.
    address: u64,
    /// Bytes left in this range.
    range_left: u64,
    /// Next vector, 0 if there are none.
    vector: u64,
    /// Bytes left in all.
    left: u64,
    offset: u64,
    who: Identity,
    slot: u32,
    kind: u16,
    compat: u8,
    kernel: u8,
    site: u32,
    /// Chunks that could not be read.
    unread: u32,
    /// Chunks that found the ring full.
    lost: u32,
}

/// How a copy went: bits of the `CHUNKS_` values. A plain word: the verifier loses track of small structs on the stack.
pub type Outcome = u64;

/// Chunks were sent at all.
pub const CHUNKS_SENT: Outcome = 1;
/// Bytes could not be read; chunks say which.
pub const CHUNKS_UNREAD: Outcome = 2;
/// Records were lost.
pub const CHUNKS_LOST: Outcome = 4;

/// Sends all of it in chunks. The step function tells the slots apart, so each slot has its own.
#[inline(always)]
pub fn send_from_trace(copy: &Copy) -> Outcome {
    run(scratch::TRACE, copy, trace_step as *mut c_void)
}

/// The same for the program at the exit of `pty_write`.
#[inline(always)]
pub fn send_from_fexit(copy: &Copy) -> Outcome {
    run(scratch::FEXIT, copy, fexit_step as *mut c_void)
}

/// For that at the exit of the line discipline's input.
#[inline(always)]
pub fn send_from_ldisc(copy: &Copy) -> Outcome {
    run(scratch::LDISC, copy, ldisc_step as *mut c_void)
}

/// For those at the exits of console and serial drivers.
#[inline(always)]
pub fn send_from_console(copy: &Copy) -> Outcome {
    run(scratch::CONSOLE, copy, console_step as *mut c_void)
}

/// Sends a single byte that is in no memory.
#[inline(always)]
pub fn send_byte(slot: Slot, copy: &Copy, byte: u8) {
    let state: *mut State = slot.state();
    unsafe {
        begin(slot, copy);
        *slot.record::<u8>().add(Chunk::SIZE) = byte;
        emit_chunk(slot, state, 1, 1, 0);
    }
}

/// Says that so many bytes passed where they cannot be seen.
#[inline(always)]
pub fn send_missing(copy: &Copy) {
    let Some(slot) = Slot::get(scratch::TRACE) else { return };
    let state: *mut State = slot.state();
    unsafe {
        begin(slot, copy);
        emit_chunk(slot, state, copy.total, 0, EOPNOTSUPP);
    }
}

extern "C" fn trace_step(_index: u64, _context: *mut c_void) -> i64 {
    step(scratch::TRACE)
}

extern "C" fn fexit_step(_index: u64, _context: *mut c_void) -> i64 {
    step(scratch::FEXIT)
}

extern "C" fn ldisc_step(_index: u64, _context: *mut c_void) -> i64 {
    step(scratch::LDISC)
}

extern "C" fn console_step(_index: u64, _context: *mut c_void) -> i64 {
    step(scratch::CONSOLE)
}

/// The parts of a copy that every chunk of it has, and nothing done yet.
#[inline(always)]
unsafe fn begin(slot: Slot, copy: &Copy) {
    let state: *mut State = slot.state();
    let chunk: *mut Chunk = slot.record();
    unsafe {
        (*state).left = copy.total;
        (*state).offset = 0;
        (*state).who = copy.who;
        (*state).slot = copy.slot;
        (*state).kind = copy.kind as u16;
        (*state).unread = 0;
        (*state).lost = 0;
        (*chunk).total = copy.total;
        (*chunk).terminal = copy.terminal;
        (*chunk).index = copy.index;
        (*chunk).rows = copy.rows;
        (*chunk).cols = copy.cols;
        (*chunk).part = copy.part;
    }
}

#[inline(always)]
fn run(index: u32, copy: &Copy, step: *mut c_void) -> Outcome {
    let Some(slot) = Slot::get(index) else { return CHUNKS_SENT | CHUNKS_UNREAD | CHUNKS_LOST };
    let state: *mut State = slot.state();
    unsafe {
        begin(slot, copy);
        let vectored = copy.source == Source::UserVector || copy.source == Source::UserVectorCompat;
        (*state).address = copy.address;
        (*state).vector = if vectored { copy.address } else { 0 };
        (*state).range_left = if vectored { 0 } else { copy.total };
        (*state).site = copy.site as u32;
        (*state).compat = u8::from(copy.source == Source::UserVectorCompat);
        (*state).kernel = u8::from(copy.source == Source::Kernel);
        let steps = bpf_loop(STEPS_MAX, step, core::ptr::null_mut(), 0);
        if steps < 0 {
            fault::count(Site::Loop, steps);
        }
        if (*state).left > 0 {
            // Cut short by the bound, or by a vector that could not be read: one empty chunk stands for the rest.
            let error = if (*state).unread > 0 { EFAULT } else { E2BIG };
            emit_chunk(slot, state, (*state).left, 0, error);
            (*state).unread += 1;
        }
        let unread = if (*state).unread > 0 { CHUNKS_UNREAD } else { 0 };
        let lost = if (*state).lost > 0 { CHUNKS_LOST } else { 0 };
        CHUNKS_SENT | unread | lost
    }
}

/// Copies one piece. 1 ends the loop.
#[inline(always)]
fn step(index: u32) -> i64 {
    let Some(slot) = Slot::get(index) else { return 1 };
    let state: *mut State = slot.state();
    unsafe {
        if (*state).left == 0 {
            return 1;
        }
        if (*state).range_left == 0 {
            return i64::from(!next_vector(state));
        }
        let mut want = (*state).range_left;
        if want > (*state).left {
            want = (*state).left;
        }
        if want > CHUNK_DATA_MAX as u64 {
            want = CHUNK_DATA_MAX as u64;
        }
        const { assert!(CHUNK_DATA_MAX.is_power_of_two()) };
        // 1..=CHUNK_DATA_MAX, in a way that the verifier can see.
        let want = masked::<{ CHUNK_DATA_MAX as u64 - 1 }>(want - 1) + 1;
        let into = core::slice::from_raw_parts_mut(slot.record::<u8>().add(Chunk::SIZE), want as usize);
        let from = (*state).address as *const u8;
        let read = if (*state).kernel != 0 {
            bpf_probe_read_kernel_buf(from, into)
        } else {
            bpf_probe_read_user_buf(from, into)
        };
        match read {
            Ok(()) => emit_chunk(slot, state, want, want, 0),
            Err(error) => {
                (*state).unread += 1;
                count(state, i64::from(error));
                emit_chunk(slot, state, want, 0, error.unsigned_abs() as u16);
            }
        }
        (*state).address += want;
        (*state).range_left -= want;
        i64::from((*state).left == 0)
    }
}

/// Goes on to the next vector. Whether there is one.
#[inline(always)]
unsafe fn next_vector(state: *mut State) -> bool {
    unsafe {
        let at = (*state).vector;
        if at == 0 {
            return false;
        }
        let read = if (*state).compat != 0 {
            (*state).vector = at + 8;
            bpf_probe_read_user(at as *const [u32; 2]).map(|[base, len]| [u64::from(base), u64::from(len)])
        } else {
            (*state).vector = at + 16;
            bpf_probe_read_user(at as *const [u64; 2])
        };
        match read {
            Ok([base, len]) => {
                (*state).address = base;
                (*state).range_left = len;
                true
            }
            Err(error) => {
                (*state).unread += 1;
                count(state, i64::from(error));
                false
            }
        }
    }
}

/// Sends the chunk under construction: `data` bytes copied, standing for `span`.
#[inline(always)]
unsafe fn emit_chunk(slot: Slot, state: *mut State, span: u64, data: u64, error: u16) {
    unsafe {
        let chunk: *mut Chunk = slot.record();
        (*chunk).offset = (*state).offset;
        (*chunk).span = span;
        (*chunk).error = error;
        (*chunk).data_len = data as u32;
        let terminal_bytes = if (*chunk).terminal != 0 { span } else { 0 };
        let kind = (*state).kind;
        let bulk = kind == Kind::TerminalOutput as u16 || kind == Kind::StdioOutput as u16;
        let ring = if bulk { Ring::Bulk } else { Ring::Audit };
        let envelope = Envelope {
            ring,
            kind,
            flags: 0,
            slot: (*state).slot,
            who: (*state).who,
            yields: kind == Kind::StdioInput as u16,
        };
        let data = if data == 0 { 0 } else { masked::<{ CHUNK_DATA_MAX as u64 - 1 }>(data - 1) + 1 };
        let len = Chunk::SIZE as u64 + data;
        if !emit::send(envelope, slot.record(), len, terminal_bytes) {
            (*state).lost += 1;
        }
        (*state).offset += span;
        (*state).left -= span;
    }
}

#[inline(always)]
unsafe fn count(state: *mut State, error: i64) {
    let site = unsafe { (*state).site };
    let site = if site == Site::ReadArgv as u32 {
        Site::ReadArgv
    } else if site == Site::ReadEnv as u32 {
        Site::ReadEnv
    } else if site == Site::ReadStdio as u32 {
        Site::ReadStdio
    } else {
        Site::ReadTerminal
    };
    fault::count(site, error);
}
