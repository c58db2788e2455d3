//! `bpf(2)`: for a session only what container engines and networks need, and for nobody on what is the agent's.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use breakglass_abi::{
    Rule,
    settings::{OWNED_MAP, OWNED_PROGRAM},
};

use crate::{
    guard::{self, ALLOW, Actor},
    task::{Address, offset},
};

/// `BPF_PROG_LOAD` (include/uapi/linux/bpf.h).
const PROG_LOAD: u32 = 5;
/// Types of programs that see or stop what others do, one bit each: kprobe, tracepoint, perf_event, raw_tracepoint,
/// raw_tracepoint_writable, tracing, struct_ops, ext, lsm, syscall. Those of networks and control groups, which systemd and
/// container engines load for every unit, are not among them.
const TRACING_TYPES: u64 =
    1 << 2 | 1 << 5 | 1 << 7 | 1 << 17 | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31;

/// Commands that a tagged task may give, one bit each: `MAP_CREATE`, `MAP_LOOKUP_ELEM`, `MAP_UPDATE_ELEM`, `MAP_DELETE_ELEM`,
/// `MAP_GET_NEXT_KEY`, `PROG_LOAD` of types that see nobody else, `PROG_ATTACH`, `PROG_DETACH`, `PROG_QUERY`, `BTF_LOAD`. Nothing that
/// finds what is there by numbers or pins, or attaches to functions and tracepoints.
const OF_SESSIONS: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << PROG_LOAD | 1 << 8 | 1 << 9 | 1 << 16 | 1 << 18;

/// `int bpf(int cmd, union bpf_attr *attr, unsigned int size)`; later kernels add an argument. `attr` is the kernel's copy.
#[lsm(hook = "bpf")]
pub fn guard_bpf(context: LsmContext) -> i32 {
    call(context.arg::<i32>(0) as u32, context.arg::<u64>(1)).unwrap_or(ALLOW)
}

#[inline(always)]
fn call(command: u32, attributes: u64) -> Option<i32> {
    let actor = Actor::current()?;
    let refused = if command == PROG_LOAD {
        (actor.open || actor.tagged) && is_among(TRACING_TYPES, guard::half(attributes))
    } else {
        actor.tagged && !is_among(OF_SESSIONS, command)
    };
    if refused { Some(actor.refused(Rule::Bpf, u64::from(command), 0, 0)) } else { None }
}

#[inline(always)]
fn is_among(set: u64, number: u32) -> bool {
    number < 64 && set >> number & 1 != 0
}

/// `int bpf_map(struct bpf_map *map, fmode_t fmode)`: whoever gets a descriptor of a map, by its number or its pin.
#[lsm(hook = "bpf_map")]
pub fn guard_bpf_map(context: LsmContext) -> i32 {
    let map: u64 = context.arg::<Address>(0) as u64;
    owned(OWNED_MAP, guard::half(map + offset!(bpf_map_id) as u64)).unwrap_or(ALLOW)
}

/// `int bpf_prog(struct bpf_prog *prog)`: likewise of a program.
#[lsm(hook = "bpf_prog")]
pub fn guard_bpf_prog(context: LsmContext) -> i32 {
    let program: u64 = context.arg::<Address>(0) as u64;
    let aux = guard::word(program + offset!(bpf_prog_aux) as u64);
    owned(OWNED_PROGRAM, guard::half(aux + offset!(bpf_aux_id) as u64)).unwrap_or(ALLOW)
}

#[inline(always)]
fn owned(kind: u64, id: u32) -> Option<i32> {
    if !guard::is_owned(kind, id) {
        return None;
    }
    let actor = Actor::current()?;
    Some(actor.refused(Rule::Bpf, u64::from(id), 0, 0))
}
