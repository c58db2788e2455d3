//! Telling what was refused: who tried what, by which rule. Bounded for each process and rule.

use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel_str_bytes, generated},
    macros::map,
    maps::LruHashMap,
};
use breakglass_abi::{Attempt, AttemptKey, Header, Kind, Refusal, Ring, settings::Site};

use crate::{
    emit::{self, Envelope},
    fault,
    task::{Identity, Task, load, offset, peek},
};

/// Processes and rules that are counted apart; beyond that the oldest begins anew.
const ATTEMPTS_MAX: u32 = 4096;
/// How many attempts of one process against one rule are told in a second.
const TOLD_MAX: u32 = 16;
/// The same of the init process, which sets all limits of a control group anew whenever a unit begins beside the agent's.
const TOLD_OF_INIT_MAX: u32 = 1;
const SECOND_NS: u64 = 1_000_000_000;

#[map]
static ATTEMPTS: LruHashMap<AttemptKey, Attempt> = LruHashMap::with_max_entries(ATTEMPTS_MAX, 0);

/// What somebody tried.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Attempted {
    /// Who.
    pub who: Identity,
    /// Number of a [`breakglass_abi::Rule`].
    pub rule: u32,
    /// Number of the session.
    pub slot: u32,
    /// By rule.
    pub value: u64,
    /// Address of the dentry that it was about, 0 if none.
    pub dentry: u64,
    /// The process that it was about, 0 if none.
    pub target: u32,
    /// `REFUSAL_` bits.
    pub how: u32,
}

/// Puts it on the audit ring.
#[inline(always)]
pub fn tell(attempted: &Attempted) {
    guard_tell(attempted);
}

/// A global function, as those of [`crate::guard`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_tell(attempted: *const Attempted) -> u32 {
    if attempted.is_null() {
        return 0;
    }
    let attempted = unsafe { &*attempted };
    let untold = due(attempted);
    if untold == NOT_DUE {
        return 0;
    }
    // On the stack: programs at security hooks can be interrupted by each other.
    let mut refusal = Refusal {
        header: Header { len: 0, kind: 0, flags: 0, cpu: 0, slot: 0, seq: 0, boot_ns: 0, tgid: 0, tid: 0, start_ns: 0 },
        rule: attempted.rule,
        euid: Task::current().cred().map_or(u32::MAX, |cred| load(cred, offset!(cred_euid))),
        value: attempted.value,
        untold,
        inode: 0,
        dev: 0,
        target: attempted.target,
        comm: [0; 16],
        parent: [0; 32],
        name: [0; 32],
        how: attempted.how,
        reserved: 0,
    };
    // In place: the helper's own wrapper would need room for two more of them.
    unsafe { generated::bpf_get_current_comm((&raw mut refusal.comm).cast(), refusal.comm.len() as u32) };
    if attempted.dentry != 0 {
        name(&mut refusal, attempted.dentry);
    }
    let envelope = Envelope {
        ring: Ring::Audit,
        kind: Kind::Refused as u16,
        flags: 0,
        slot: attempted.slot,
        who: attempted.who,
        yields: true,
    };
    u32::from(emit::send(envelope, (&raw mut refusal).cast(), Refusal::SIZE as u64, 0))
}

/// What [`due`] gives for an attempt that is not told.
const NOT_DUE: u64 = u64::MAX;

/// How many attempts before this one were not told. Not in the frame of [`tell`]: the stack of both and of a hook is 512 bytes.
#[inline(never)]
fn due(attempted: &Attempted) -> u64 {
    is_due(attempted).map_or(NOT_DUE, u64::from)
}

/// Whether this attempt is told, and how many before it were not.
#[inline(always)]
fn is_due(attempted: &Attempted) -> Option<u32> {
    let key = AttemptKey { tgid: attempted.who.tgid, rule: attempted.rule, start_ns: attempted.who.start_ns };
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(known) = ATTEMPTS.get_ptr_mut(&key) else {
        let first = Attempt { since_ns: now, told: 1, untold: 0 };
        if let Err(error) = ATTEMPTS.insert(&key, &first, 0) {
            fault::count(Site::AttemptInsert, i64::from(error));
        }
        return Some(0);
    };
    let most = if attempted.who.tgid == 1 { TOLD_OF_INIT_MAX } else { TOLD_MAX };
    unsafe {
        if now.wrapping_sub((*known).since_ns) > SECOND_NS {
            (*known).since_ns = now;
            (*known).told = 0;
        }
        if (*known).told >= most {
            (*known).untold = (*known).untold.saturating_add(1);
            return None;
        }
        (*known).told += 1;
        let untold = (*known).untold;
        (*known).untold = 0;
        Some(untold)
    }
}

/// Name and identity of what it was about.
#[inline(always)]
fn name(refusal: &mut Refusal, dentry: u64) -> Option<()> {
    read_name(dentry, &mut refusal.name)?;
    let parent: u64 = peek(dentry, offset!(dentry_parent), Site::ReadGuard)?;
    if parent != dentry {
        read_name(parent, &mut refusal.parent)?;
    }
    let sb: u64 = peek(dentry, offset!(dentry_sb), Site::ReadGuard)?;
    refusal.dev = peek(sb, offset!(sb_dev), Site::ReadGuard)?;
    let inode: u64 = peek(dentry, offset!(dentry_inode), Site::ReadGuard)?;
    if inode != 0 {
        refusal.inode = peek(inode, offset!(inode_ino), Site::ReadGuard)?;
    }
    Some(())
}

/// Copies a dentry's name, as far as it fits; what is behind it stays as it was.
#[inline(always)]
pub fn read_name(dentry: u64, into: &mut [u8]) -> Option<()> {
    let from: u64 = peek(dentry, offset!(dentry_name), Site::ReadGuard)?;
    match unsafe { bpf_probe_read_kernel_str_bytes(from as *const u8, into) } {
        Ok(_) => Some(()),
        Err(error) => {
            fault::count(Site::ReadGuard, i64::from(error));
            None
        }
    }
}
