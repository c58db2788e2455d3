//! Paths, by walking dentries and mounts up to the root of the mount namespace. `bpf_d_path` is refused where this must run.

use aya_ebpf::helpers::{bpf_loop, bpf_probe_read_kernel_buf};
use breakglass_abi::{
    record::{WALK_PARTIAL, WALK_PASSED_ROOT, WALK_ROOT, WALK_UNMOUNTED},
    settings::Site,
};
use core::ffi::c_void;

use crate::{
    fault,
    scratch::{self, Slot, masked},
    task::{Address, offset, peek},
};

/// Most components and mount points of a path; 4,096 bytes hold at most 2,048 one-letter names, which nobody means.
const STEPS_MAX: u32 = 512;
/// Longest path that is kept, bytes.
pub const PATH_MAX: u64 = 4000;
/// Longest name, `NAME_MAX`.
const NAME_MAX: u64 = 255;
/// Positions in the tail of a record.
pub const TAIL_MASK: u64 = 0x3fff;

/// State of a walk, in the scratch slot of the record.
#[repr(C)]
struct Walk {
    dentry: u64,
    mount: u64,
    root_dentry: u64,
    root_mount: u64,
    /// Where in the slot's record the tail begins.
    tail: u64,
    start: u64,
    pos: u64,
    flags: u32,
    failed: u32,
}

/// What a walk gave.
pub struct Walked {
    /// End of the path in the tail.
    pub pos: u64,
    /// `WALK_` bits.
    pub flags: u32,
    /// Whether a read failed.
    pub failed: bool,
}

/// Appends the components of a `struct path`, deepest first, each followed by a NUL, at `pos` of the tail that begins at
/// `tail` in the record.
#[inline(always)]
pub fn append(slot: Slot, path: Address, fs: Option<Address>, tail: u64, pos: u64) -> Walked {
    let mount = crate::task::load(path, offset!(path_mnt));
    walk(slot, mount, crate::task::load(path, offset!(path_dentry)), fs, tail, pos)
}

/// The same for the path of a `struct file` whose address the verifier does not know.
#[inline(always)]
pub fn append_file(slot: Slot, file: u64, fs: Option<Address>, tail: u64, pos: u64) -> Walked {
    let mount = peek(file, offset!(file_path) + offset!(path_mnt), Site::ReadPath);
    let dentry = peek(file, offset!(file_path) + offset!(path_dentry), Site::ReadPath);
    match (mount, dentry) {
        (Some(mount), Some(dentry)) => walk(slot, mount, dentry, fs, tail, pos),
        _ => Walked { pos, flags: 0, failed: true },
    }
}

#[inline(always)]
fn walk(slot: Slot, mount: u64, dentry: u64, fs: Option<Address>, tail: u64, pos: u64) -> Walked {
    let walk: *mut Walk = slot.state();
    unsafe {
        (*walk).mount = mount;
        (*walk).dentry = dentry;
        (*walk).root_mount = 0;
        (*walk).root_dentry = 0;
        if let Some(fs) = fs {
            (*walk).root_mount = crate::task::load(fs, offset!(fs_root) + offset!(path_mnt));
            (*walk).root_dentry = crate::task::load(fs, offset!(fs_root) + offset!(path_dentry));
        }
        (*walk).tail = tail;
        (*walk).start = pos;
        (*walk).pos = pos;
        (*walk).flags = WALK_PARTIAL;
        (*walk).failed = 0;
        let steps = bpf_loop(STEPS_MAX, step as *mut c_void, core::ptr::null_mut(), 0);
        if steps < 0 {
            fault::count(Site::Loop, steps);
        }
        Walked { pos: (*walk).pos, flags: (*walk).flags, failed: (*walk).failed != 0 }
    }
}

/// One step up: a component, or from the root of a mount to where it is mounted. 1 ends the walk.
extern "C" fn step(_index: u64, _context: *mut c_void) -> i64 {
    let Some(slot) = Slot::get(scratch::EXEC) else { return 1 };
    let walk: *mut Walk = slot.state();
    match climb(slot, walk) {
        Some(done) => i64::from(done),
        None => {
            unsafe { (*walk).failed = 1 };
            1
        }
    }
}

#[inline(always)]
fn climb(slot: Slot, walk: *mut Walk) -> Option<bool> {
    unsafe {
        let dentry = (*walk).dentry;
        let mount = (*walk).mount;
        if dentry == (*walk).root_dentry && mount == (*walk).root_mount {
            (*walk).flags |= WALK_PASSED_ROOT;
        }
        let mount_root: u64 = peek(mount, offset!(vfsmount_root), Site::ReadPath)?;
        if dentry == mount_root {
            let whole = mount - offset!(mount_mnt) as u64;
            let parent: u64 = peek(whole, offset!(mount_parent), Site::ReadPath)?;
            if parent == whole {
                // The topmost mount: the root of the namespace, or of a mount that nobody can reach (a memfd's).
                finish(walk, WALK_ROOT);
                return Some(true);
            }
            (*walk).dentry = peek(whole, offset!(mount_mountpoint), Site::ReadPath)?;
            (*walk).mount = parent + offset!(mount_mnt) as u64;
            return Some(false);
        }
        let parent: u64 = peek(dentry, offset!(dentry_parent), Site::ReadPath)?;
        if parent == dentry {
            name(slot, walk, dentry)?;
            finish(walk, WALK_UNMOUNTED);
            return Some(true);
        }
        (*walk).dentry = parent;
        // A path too long for its room ends the walk and keeps WALK_PARTIAL.
        Some(!name(slot, walk, dentry)?)
    }
}

#[inline(always)]
fn finish(walk: *mut Walk, how: u32) {
    unsafe { (*walk).flags = ((*walk).flags & !WALK_PARTIAL) | how };
}

/// Appends a dentry's name and a NUL. Whether there was room.
#[inline(always)]
fn name(slot: Slot, walk: *mut Walk, dentry: u64) -> Option<bool> {
    unsafe {
        let len: u32 = peek(dentry, offset!(dentry_name_len), Site::ReadPath)?;
        let from: u64 = peek(dentry, offset!(dentry_name), Site::ReadPath)?;
        let pos = (*walk).pos;
        if pos - (*walk).start + NAME_MAX + 1 > PATH_MAX {
            return Some(false);
        }
        let len = masked::<NAME_MAX>(u64::from(len));
        let at = slot.record::<u8>().add(masked::<0x1ff>((*walk).tail) as usize + masked::<TAIL_MASK>(pos) as usize);
        if len > 0 {
            let into = core::slice::from_raw_parts_mut(at, len as usize);
            if let Err(error) = bpf_probe_read_kernel_buf(from as *const u8, into) {
                fault::count(Site::ReadPath, i64::from(error));
                return None;
            }
        }
        *at.add(len as usize) = 0;
        (*walk).pos = pos + len + 1;
        Some(true)
    }
}
