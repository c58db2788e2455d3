//! Names of files: made, removed, moved; and what belongs to an inode: mode, owner, length.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use breakglass_abi::Rule;

use crate::{
    guard::{self, ALLOW, Actor, Place},
    task::{Address, load, offset},
};

/// `int inode_create(struct inode *dir, struct dentry *dentry, umode_t mode)`
#[lsm(hook = "inode_create")]
pub fn guard_create(context: LsmContext) -> i32 {
    made(context.arg(1)).unwrap_or(ALLOW)
}

/// `int inode_mkdir(struct inode *dir, struct dentry *dentry, umode_t mode)`
#[lsm(hook = "inode_mkdir")]
pub fn guard_mkdir(context: LsmContext) -> i32 {
    made(context.arg(1)).unwrap_or(ALLOW)
}

/// `int inode_mknod(struct inode *dir, struct dentry *dentry, umode_t mode, dev_t dev)`
#[lsm(hook = "inode_mknod")]
pub fn guard_mknod(context: LsmContext) -> i32 {
    made(context.arg(1)).unwrap_or(ALLOW)
}

/// `int inode_symlink(struct inode *dir, struct dentry *dentry, const char *old_name)`
#[lsm(hook = "inode_symlink")]
pub fn guard_symlink(context: LsmContext) -> i32 {
    made(context.arg(1)).unwrap_or(ALLOW)
}

/// `int inode_link(struct dentry *old_dentry, struct inode *dir, struct dentry *new_dentry)`: a second name could be outside of
/// the folder that guards the first.
#[lsm(hook = "inode_link")]
pub fn guard_link(context: LsmContext) -> i32 {
    if let Some(verdict) = removed(context.arg(0)) {
        return verdict;
    }
    made(context.arg(2)).unwrap_or(ALLOW)
}

/// `int inode_unlink(struct inode *dir, struct dentry *dentry)`
#[lsm(hook = "inode_unlink")]
pub fn guard_unlink(context: LsmContext) -> i32 {
    removed(context.arg(1)).unwrap_or(ALLOW)
}

/// `int inode_rmdir(struct inode *dir, struct dentry *dentry)`
#[lsm(hook = "inode_rmdir")]
pub fn guard_rmdir(context: LsmContext) -> i32 {
    removed(context.arg(1)).unwrap_or(ALLOW)
}

/// `int inode_rename(struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir, struct dentry *new_dentry)`: both
/// ends, since an exchange is one too.
#[lsm(hook = "inode_rename")]
pub fn guard_rename(context: LsmContext) -> i32 {
    if let Some(verdict) = removed(context.arg(1)) {
        return verdict;
    }
    removed(context.arg(3)).unwrap_or(ALLOW)
}

/// `int path_chmod(const struct path *path, umode_t mode)`
#[lsm(hook = "path_chmod")]
pub fn guard_chmod(context: LsmContext) -> i32 {
    changed(&context).unwrap_or(ALLOW)
}

/// `int path_chown(const struct path *path, kuid_t uid, kgid_t gid)`
#[lsm(hook = "path_chown")]
pub fn guard_chown(context: LsmContext) -> i32 {
    changed(&context).unwrap_or(ALLOW)
}

/// `int path_truncate(const struct path *path)`
#[lsm(hook = "path_truncate")]
pub fn guard_truncate(context: LsmContext) -> i32 {
    changed(&context).unwrap_or(ALLOW)
}

/// `int file_truncate(struct file *file)`: `O_TRUNC` from 6.2 on, also of a file opened for reading.
#[lsm(hook = "file_truncate")]
pub fn guard_file_truncate(context: LsmContext) -> i32 {
    of_file(context.arg::<Address>(0)).unwrap_or(ALLOW)
}

/// `FS_IOC_SETFLAGS`, `FS_IOC32_SETFLAGS`, `FS_IOC_FSSETXATTR` (include/uapi/linux/fs.h): make a file immutable, for one.
const SETFLAGS: u32 = 0x4008_6602;
const SETFLAGS32: u32 = 0x4004_6602;
const FSSETXATTR: u32 = 0x401c_5820;

/// `FS_IOC_ENABLE_VERITY` (include/uapi/linux/fsverity.h): the same for good.
const VERITY: u32 = 0x4080_6685;
/// `FIFREEZE`, and what ext4, XFS and F2FS call shutdown (`EXT4_IOC_SHUTDOWN`): nothing on the file system is durable from then on.
const FREEZE: u32 = 0xc004_5877;
const SHUTDOWN: u32 = 0x8004_587d;

/// `int file_ioctl(struct file *file, unsigned int cmd, unsigned long arg)`
#[lsm(hook = "file_ioctl")]
pub fn guard_ioctl(context: LsmContext) -> i32 {
    commanded(&context).unwrap_or(ALLOW)
}

/// `int file_ioctl_compat(struct file *file, unsigned int cmd, unsigned long arg)`: by 32-bit programs, from 6.8 on and in later 6.1 and 6.6.
#[lsm(hook = "file_ioctl_compat")]
pub fn guard_ioctl_compat(context: LsmContext) -> i32 {
    commanded(&context).unwrap_or(ALLOW)
}

#[inline(always)]
fn commanded(context: &LsmContext) -> Option<i32> {
    let file: Address = context.arg(0);
    match context.arg::<u32>(1) {
        SETFLAGS | SETFLAGS32 | FSSETXATTR | VERITY => of_file(file),
        command @ (FREEZE | SHUTDOWN) => stopped(file, command),
        _ => None,
    }
}

/// The file system of `file` is to take no more: refused where the agent's files are on it.
#[inline(always)]
fn stopped(file: Address, command: u32) -> Option<i32> {
    let dentry = guard::pointer(file as u64, offset!(file_path) + offset!(path_dentry))?;
    let actor = Actor::current()?;
    if !actor.open || !guard::is_lived_on(dentry) {
        return None;
    }
    Some(actor.refused(Rule::Device, u64::from(command), dentry, 0))
}

#[inline(always)]
fn of_file(file: Address) -> Option<i32> {
    change_of(guard::pointer(file as u64, offset!(file_path) + offset!(path_dentry))?)
}

#[inline(always)]
fn changed(context: &LsmContext) -> Option<i32> {
    let path: Address = context.arg(0);
    change_of(load(path, offset!(path_dentry)))
}

#[inline(always)]
fn change_of(dentry: u64) -> Option<i32> {
    let place = near(dentry)?;
    let actor = Actor::current()?;
    let rule = rule(place, dentry, &actor, place.rule_against_change(actor.open))?;
    Some(actor.refused(rule, 0, dentry, 0))
}

/// A new name: only its folder counts.
#[inline(always)]
fn made(dentry: u64) -> Option<i32> {
    change_of(dentry)
}

#[inline(always)]
fn removed(dentry: u64) -> Option<i32> {
    let place = near(dentry)?;
    let actor = Actor::current()?;
    let rule = rule(place, dentry, &actor, place.rule_against_move(actor.open))?;
    Some(actor.refused(rule, 0, dentry, 0))
}

/// Nothing where nothing guarded is near, before anything dearer is asked.
#[inline(always)]
fn near(dentry: u64) -> Option<Place> {
    let place = guard::place(dentry);
    if place.own | place.folder | place.above == 0 { None } else { Some(place) }
}

#[inline(always)]
fn rule(place: Place, dentry: u64, actor: &Actor, by_place: Option<Rule>) -> Option<Rule> {
    if actor.helps(place) {
        return None;
    }
    match by_place {
        Some(rule) => Some(rule),
        None if actor.open && guard::is_unit(place, dentry) => Some(Rule::File),
        None => None,
    }
}
