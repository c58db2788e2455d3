//! Whether somebody listens: the agent's sign of life, and the proof that programs of each kind still run.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::map, maps::Array};
use breakglass_abi::{
    Agent, Pulse,
    settings::{
        AGENT_GONE, CANARIES, PULSE_BLIND, PULSE_SPOOL_FULL, REASON_BLIND, REASON_GONE, REASON_RING, REASON_SPOOL,
        REASON_STALE, TICK_NS,
    },
};

use crate::{emit, task::Identity};

#[map]
static AGENT: Array<Agent> = Array::with_max_entries(1, 0);
#[map]
static PULSE: Array<Pulse> = Array::with_max_entries(1, 0);
/// Indexed by the `CANARY_` values.
#[map]
static CANARIES_SEEN: Array<u64> = Array::with_max_entries(CANARIES, 0);

const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;

/// The agent as it made itself known.
#[inline(always)]
pub fn agent() -> Option<&'static Agent> {
    AGENT.get(0)
}

/// Whether the process is the one that made itself known as the agent.
#[inline(always)]
pub fn is_agent(who: Identity) -> bool {
    agent().is_some_and(|agent| is(agent, who))
}

#[inline(always)]
fn is(agent: &Agent, who: Identity) -> bool {
    agent.tgid == who.tgid && agent.start_ticks == who.start_ns / TICK_NS
}

/// Notes that the last thread of a process has ended; if it is the agent's, nothing can be recorded for certain from now on.
#[inline(always)]
pub fn ends(who: Identity) {
    let Some(agent) = AGENT.get_ptr_mut(0) else { return };
    unsafe {
        if is(&*agent, who) {
            (*agent).state = AGENT_GONE;
        }
    }
}

/// Counts what the agent did for a program of some kind to see.
#[inline(always)]
pub fn see_canary(kind: u32, who: Identity) {
    if is_agent(who) {
        count_canary(kind);
    }
}

/// The same where it is known already that it is the agent.
#[inline(always)]
pub fn count_canary(kind: u32) {
    if let Some(seen) = CANARIES_SEEN.get_ptr_mut(kind) {
        unsafe { emit::fetch_add(seen, 1) };
    }
}

/// Why a program that starts now could not be recorded for certain, a `REASON_` value; 0 if it can. On local grounds only: what
/// the collector does is of no matter.
#[inline(always)]
pub fn obstacle() -> u32 {
    if emit::past_high_water() {
        return REASON_RING;
    }
    let (Some(agent), Some(pulse)) = (agent(), PULSE.get(0)) else { return REASON_STALE };
    if agent.state == AGENT_GONE {
        return REASON_GONE;
    }
    if pulse.flags & PULSE_SPOOL_FULL != 0 {
        return REASON_SPOOL;
    }
    if pulse.flags & PULSE_BLIND != 0 {
        return REASON_BLIND;
    }
    let age = unsafe { bpf_ktime_get_ns() }.wrapping_sub(pulse.beat_ns);
    // A beat later than now was written meanwhile, on another CPU.
    let stale = age as i64 > 0 && age > u64::from(pulse.limit_ms) * NANOSECONDS_PER_MILLISECOND;
    if stale { REASON_STALE } else { 0 }
}
