//! Mounts: nothing over what is guarded, and nothing that holds it taken away. Pins are guarded at rest as well.
//!
//! Services and containers have mount namespaces of their own and bind, unmount and pivot half the tree in them when they start. That
//! concerns nobody else, so a mount counts where it reaches the agent: in its namespace, and in every other one as far as it spreads. And
//! whoever repairs a host binds `/sys` and `/run` below another root and takes them away again: of mounts that only lead to what is
//! guarded those count that the agent's paths pass.

use aya_ebpf::{helpers::bpf_probe_read_kernel_str_bytes, macros::lsm, programs::LsmContext};
use breakglass_abi::{
    Rule,
    settings::{BY_OPTION, GUARD_FILE, GUARD_PINS, GUARD_WAY, Site},
};

use crate::{
    fault,
    guard::{self, ALLOW, Actor, Place},
    scope,
    task::{Address, load, offset},
};

/// Flags of mount(2) (include/uapi/linux/mount.h): nothing but how mounts spread, in which nothing is hidden; and a move.
const SPREADS: u64 = 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20;
const MOVES: u64 = 1 << 13;
/// Other flags, of one mount if it is bound and else of the whole file system, which everybody has.
const REMOUNTS: u64 = 1 << 5;
const BINDS: u64 = 1 << 12;
const READ_ONLY: u64 = 1;

/// `int sb_mount(const char *dev_name, const struct path *path, const char *type, unsigned long flags, void *data)`
#[lsm(hook = "sb_mount")]
pub fn guard_mount(context: LsmContext) -> i32 {
    let path: Address = context.arg(1);
    mount(load(path, offset!(path_mnt)), load(path, offset!(path_dentry)), context.arg::<u64>(3)).unwrap_or(ALLOW)
}

/// One copy of the actor for all reasons: of the 512 bytes of stack that a program and what it calls have, telling takes most.
#[inline(always)]
fn mount(mount: u64, dentry: u64, flags: u64) -> Option<i32> {
    if flags & SPREADS != 0 {
        return None;
    }
    let place = guard::place(dentry);
    let moves = flags & MOVES != 0;
    if !is_near(place) && !moves {
        return None;
    }
    let actor = Actor::current()?;
    // What the old call moves it names by text alone.
    let moved = moves && actor.open && guard::is_agents_mount(mount);
    let reaches = if flags & (REMOUNTS | BINDS) == REMOUNTS {
        // To make it writable again is a repair.
        flags & READ_ONLY != 0 || is_pinned(place)
    } else {
        guard::reaches_agent(mount)
    };
    if moved || hides(&actor, place, reaches) { Some(actor.refused(Rule::Mount, flags, dentry, 0)) } else { None }
}

/// `int move_mount(const struct path *from_path, const struct path *to_path)`
#[lsm(hook = "move_mount")]
pub fn guard_move_mount(context: LsmContext) -> i32 {
    let (from, to): (Address, Address) = (context.arg(0), context.arg(1));
    moved(from, to).unwrap_or(ALLOW)
}

#[inline(always)]
fn moved(from: Address, to: Address) -> Option<i32> {
    let (dentry, onto): (u64, u64) = (load(from, offset!(path_dentry)), load(to, offset!(path_dentry)));
    let (taken, covered) = (guard::place(dentry), guard::place(onto));
    let mount: u64 = load(from, offset!(path_mnt));
    let passed = guard::passed(mount);
    if passed == 0 && !is_near(taken) && !is_near(covered) {
        return None;
    }
    let actor = Actor::current()?;
    let (flags, about) = if takes(&actor, taken, passed, guard::is_agents_mount(mount)) {
        (MOVES, dentry)
    } else if hides(&actor, covered, guard::reaches_agent(load(to, offset!(path_mnt)))) {
        (0, onto)
    } else {
        return None;
    };
    Some(actor.refused(Rule::Mount, flags, about, 0))
}

/// `MNT_DETACH` (include/linux/fs.h): with everything that is mounted on it, whoever uses it.
const DETACHES: u32 = 2;

/// `int sb_umount(struct vfsmount *mnt, int flags)`
#[lsm(hook = "sb_umount")]
pub fn guard_umount(context: LsmContext) -> i32 {
    unmounted(context.arg::<Address>(0) as u64, context.arg::<u32>(1)).unwrap_or(ALLOW)
}

#[inline(always)]
fn unmounted(mount: u64, flags: u32) -> Option<i32> {
    let root = guard::pointer(mount, offset!(vfsmount_root))?;
    let (place, mut passed) = (guard::place(root), guard::passed(mount));
    if passed == 0 && !is_near(place) {
        return None;
    }
    // An unmounting spreads as the mount below it does, to what is mounted at the same place there.
    let on_shared = guard::is_on_shared(mount);
    if passed == 0 && on_shared {
        passed = guard::mountpoint_bits(mount) & (GUARD_FILE | GUARD_WAY);
    }
    // And what is mounted on this one goes with it, also where that spreads to.
    if passed == 0 && flags & DETACHES != 0 && guard::spreads(mount) {
        passed = GUARD_WAY;
    }
    if passed != 0 {
        passed |= place.own & GUARD_PINS;
    }
    let actor = Actor::current()?;
    let reaches = on_shared || guard::is_agents_mount(mount);
    if takes(&actor, place, passed, reaches) { Some(actor.refused(Rule::Mount, 0, root, 0)) } else { None }
}

/// `int sb_pivotroot(const struct path *old_path, const struct path *new_path)`
#[lsm(hook = "sb_pivotroot")]
pub fn guard_pivotroot(context: LsmContext) -> i32 {
    let path: Address = context.arg(0);
    pivot(load(path, offset!(path_mnt)), load(path, offset!(path_dentry))).unwrap_or(ALLOW)
}

#[inline(always)]
fn pivot(mount: u64, dentry: u64) -> Option<i32> {
    let actor = Actor::current()?;
    if !actor.open || !guard::is_agents_mount(mount) {
        return None;
    }
    Some(actor.refused(Rule::Mount, 0, dentry, 0))
}

/// Whether it is guarded, or holds or leads to what is.
#[inline(always)]
fn is_near(place: Place) -> bool {
    place.own | place.above != 0
}

#[inline(always)]
fn is_pinned(place: Place) -> bool {
    (place.own | place.above) & GUARD_PINS != 0
}

/// Whether nobody but the agent may mount there, or take that mount away.
#[inline(always)]
fn hides(actor: &Actor, place: Place, reaches: bool) -> bool {
    if !is_near(place) || !reaches || actor.helps(place) {
        return false;
    }
    is_pinned(place) || place.rule_against_move(actor.open).is_some()
}

/// Whether nobody but the agent may take a mount away: its paths pass it, or what it shows is guarded itself, as with what the agent laid
/// over the shadow file.
#[inline(always)]
fn takes(actor: &Actor, place: Place, passed: u32, reaches: bool) -> bool {
    if actor.helps(place) {
        return false;
    }
    if passed != 0 { actor.open || passed & GUARD_PINS != 0 } else { actor.open && place.holds() && reaches }
}

/// `int fs_context_parse_param(struct fs_context *fc, struct fs_parameter *param)`: an option of a mount that is made or changed.
#[lsm(hook = "fs_context_parse_param")]
pub fn guard_option(context: LsmContext) -> i32 {
    option(context.arg::<Address>(1) as u64).unwrap_or(ALLOW)
}

/// Names as two little-endian words.
const fn name(text: &[u8; 16]) -> [u64; 2] {
    let mut words = [0; 2];
    let mut at = 0;
    while at < 16 {
        words[at / 8] |= (text[at] as u64) << (at % 8 * 8);
        at += 1;
    }
    words
}

const ABORT: [u64; 2] = name(b"abort\0\0\0\0\0\0\0\0\0\0\0");
const ERRORS: [u64; 2] = name(b"errors\0\0\0\0\0\0\0\0\0\0");
const FATAL_ERRORS: [u64; 2] = name(b"fatal_errors\0\0\0\0");
const RELEASE_AGENT: [u64; 2] = name(b"release_agent\0\0\0");
const PANIC: [u64; 2] = name(b"panic\0\0\0\0\0\0\0\0\0\0\0");

/// What ends a file system, or the machine with it (ext4's `abort`, `errors=panic`, btrfs' `fatal_errors=panic`); and the program that
/// the kernel starts when an old control group is empty.
#[inline(always)]
fn option(parameter: u64) -> Option<i32> {
    if scope::open_slot() == 0 {
        return None;
    }
    let key = text(guard::pointer(parameter, offset!(parameter_key))?);
    let rule = if key == ABORT {
        Rule::Device
    } else if key == RELEASE_AGENT {
        Rule::Sysctl
    } else if (key == ERRORS || key == FATAL_ERRORS)
        && text(guard::pointer(parameter, offset!(parameter_string))?) == PANIC
    {
        Rule::Device
    } else {
        return None;
    };
    let actor = Actor::current()?;
    Some(actor.refused(rule, BY_OPTION, 0, 0))
}

/// The first 15 bytes of a string, as [`name`] has them.
#[inline(always)]
fn text(from: u64) -> [u64; 2] {
    let mut words = [0_u64; 2];
    let bytes = unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), 16) };
    if let Err(error) = unsafe { bpf_probe_read_kernel_str_bytes(from as *const u8, bytes) } {
        fault::count(Site::ReadGuard, i64::from(error));
    }
    words
}
