//! Mounts: nothing over what is guarded, and nothing that holds it taken away. Pins are guarded at rest as well.
//!
//! Services with a mount namespace of their own bind and unmount half the tree in it when they start. That concerns nobody else,
//! so a mount counts only in the agent's namespace, or where a tagged task makes it.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use breakglass_abi::{Rule, settings::GUARD_PINS};

use crate::{
    guard::{self, ALLOW, Actor},
    task::{Address, load, offset},
};

/// Flags of mount(2) (include/uapi/linux/mount.h): nothing but how mounts spread, in which nothing is hidden; and a move.
const SPREADS: u64 = 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20;
const MOVES: u64 = 1 << 13;

/// `int sb_mount(const char *dev_name, const struct path *path, const char *type, unsigned long flags, void *data)`
#[lsm(hook = "sb_mount")]
pub fn guard_mount(context: LsmContext) -> i32 {
    let path: Address = context.arg(1);
    mount(load(path, offset!(path_mnt)), load(path, offset!(path_dentry)), context.arg::<u64>(3)).unwrap_or(ALLOW)
}

#[inline(always)]
fn mount(mount: u64, dentry: u64, flags: u64) -> Option<i32> {
    if flags & SPREADS != 0 {
        return None;
    }
    // What the old call moves it names by text alone.
    if flags & MOVES != 0 {
        let actor = Actor::current()?;
        if actor.open && guard::is_agents_mount(mount) {
            return Some(actor.refused(Rule::Mount, flags, dentry, 0));
        }
    }
    hidden(mount, dentry, flags)
}

/// `int move_mount(const struct path *from_path, const struct path *to_path)`
#[lsm(hook = "move_mount")]
pub fn guard_move_mount(context: LsmContext) -> i32 {
    let (from, to): (Address, Address) = (context.arg(0), context.arg(1));
    let verdict = hidden(load(from, offset!(path_mnt)), load(from, offset!(path_dentry)), MOVES);
    if let Some(verdict) = verdict {
        return verdict;
    }
    hidden(load(to, offset!(path_mnt)), load(to, offset!(path_dentry)), 0).unwrap_or(ALLOW)
}

/// `int sb_umount(struct vfsmount *mnt, int flags)`
#[lsm(hook = "sb_umount")]
pub fn guard_umount(context: LsmContext) -> i32 {
    let mount: u64 = context.arg::<Address>(0) as u64;
    match guard::pointer(mount, offset!(vfsmount_root)) {
        Some(root) => hidden(mount, root, 0).unwrap_or(ALLOW),
        None => ALLOW,
    }
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

/// Something guarded, or the way to it, would be hidden or taken away.
#[inline(always)]
fn hidden(mount: u64, dentry: u64, flags: u64) -> Option<i32> {
    let place = guard::place(dentry);
    if place.own | place.above == 0 {
        return None;
    }
    let actor = Actor::current()?;
    if !actor.tagged && !guard::is_agents_mount(mount) {
        return None;
    }
    if actor.helps(place) {
        return None;
    }
    let pins = (place.own | place.above) & GUARD_PINS != 0;
    if !pins && place.rule_against_move(actor.open).is_none() {
        return None;
    }
    Some(actor.refused(Rule::Mount, flags, dentry, 0))
}
