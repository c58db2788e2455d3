//! Mounts: nothing over what is guarded, and nothing that holds it taken away. Pins are guarded at rest as well.
//!
//! Services and containers have mount namespaces of their own and bind, unmount and pivot half the tree in them when they start. That
//! concerns nobody else, so a mount counts where it reaches the agent: in its namespace, and in every other one as far as it spreads.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use breakglass_abi::{Rule, settings::GUARD_PINS};

use crate::{
    guard::{self, ALLOW, Actor, Place},
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
    if !is_near(taken) && !is_near(covered) {
        return None;
    }
    let actor = Actor::current()?;
    let (flags, about) = if hides(&actor, taken, guard::is_agents_mount(load(from, offset!(path_mnt)))) {
        (MOVES, dentry)
    } else if hides(&actor, covered, guard::reaches_agent(load(to, offset!(path_mnt)))) {
        (0, onto)
    } else {
        return None;
    };
    Some(actor.refused(Rule::Mount, flags, about, 0))
}

/// `int sb_umount(struct vfsmount *mnt, int flags)`
#[lsm(hook = "sb_umount")]
pub fn guard_umount(context: LsmContext) -> i32 {
    unmounted(context.arg::<Address>(0) as u64).unwrap_or(ALLOW)
}

/// An unmounting spreads as the mount below it does.
#[inline(always)]
fn unmounted(mount: u64) -> Option<i32> {
    let root = guard::pointer(mount, offset!(vfsmount_root))?;
    let place = guard::place(root);
    if !is_near(place) {
        return None;
    }
    let actor = Actor::current()?;
    let reaches = guard::is_agents_mount(mount) || guard::is_on_shared(mount);
    if hides(&actor, place, reaches) { Some(actor.refused(Rule::Mount, 0, root, 0)) } else { None }
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
