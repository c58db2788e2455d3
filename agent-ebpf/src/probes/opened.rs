//! Opens: which of them are worth a record. Almost none is, and most are let go by the caller's flags alone.

use aya_ebpf::helpers::bpf_probe_read_user;
use breakglass_abi::{calls::Shape, settings::Site};

use super::draft::Draft;
use crate::{
    descriptor::{self, CHARACTER, TYPE_MASK},
    fault,
    task::{Address, Task, load, offset, peek},
};

/// Flags (include/uapi/asm-generic/fcntl.h).
const O_ACCMODE: u64 = 0o3;
const O_WRONLY: u64 = 0o1;
const O_RDWR: u64 = 0o2;
const O_CREAT: u64 = 0o100;
const O_TRUNC: u64 = 0o1000;
const O_PATH: u64 = 0o1000_0000;
/// What `creat` stands for.
pub(super) const CREAT: u64 = O_CREAT | O_WRONLY | O_TRUNC;
/// `FMODE_WRITE`, `FMODE_CREATED` (include/linux/fs.h).
const FMODE_WRITE: u32 = 2;
const FMODE_CREATED: u32 = 0x10_0000;

/// Whether an open changed nothing and cannot. By the caller's flags as far as they tell: what is at the descriptor by now may be another
/// thread's doing.
#[inline(always)]
pub(super) fn is_idle(task: Task, regs: Address, compat: bool, shape: u64, result: i64) -> bool {
    if result < 0 {
        return true;
    }
    // The second argument or the third.
    let flags: u64 = if shape >> Shape::VALUES & 0xf == 3 {
        load(regs, offset!(regs_dx))
    } else if compat {
        load(regs, offset!(regs_cx))
    } else {
        load(regs, offset!(regs_si))
    };
    // With O_PATH the kernel ignores the rest.
    if flags & O_PATH != 0 {
        return true;
    }
    if changes(flags) {
        return false;
    }
    flags & O_CREAT == 0 || leaves_as_it_was(task, result as u64)
}

/// The same where the flags are in the caller's memory, which may not be as it was.
#[inline(always)]
pub(super) fn is_idle_how(task: Task, regs: Address, compat: bool, result: i64) -> bool {
    if result < 0 {
        return true;
    }
    if !leaves_as_it_was(task, result as u64) {
        return false;
    }
    // The third argument, in either way to call.
    let how: u64 = load(regs, offset!(regs_dx));
    let how = if compat { how & 0xffff_ffff } else { how };
    match unsafe { bpf_probe_read_user(how as *const u64) } {
        Ok(flags) => !changes(flags),
        Err(error) => {
            fault::count(Site::ReadAction, i64::from(error));
            false
        }
    }
}

/// Whether the flags alone say that something can be written or was emptied.
#[inline(always)]
fn changes(flags: u64) -> bool {
    let access = flags & O_ACCMODE;
    access == O_WRONLY || access == O_RDWR || flags & O_TRUNC != 0
}

/// Whether what was opened cannot be written to and was there before.
#[inline(always)]
fn leaves_as_it_was(task: Task, descriptor: u64) -> bool {
    let Some(file) = descriptor::file(task, descriptor, Site::ReadAction) else { return false };
    let mode: Option<u32> = peek(file, offset!(file_mode), Site::ReadAction);
    mode.is_some_and(|mode| mode & (FMODE_WRITE | FMODE_CREATED) == 0)
}

/// Terminals, and what takes everything and keeps nothing, are left out.
#[inline(always)]
pub(super) fn keeps_what_is_written(draft: Draft, file: u64) -> bool {
    if unsafe { (*draft.action).mode } & TYPE_MASK != CHARACTER {
        return true;
    }
    let Some(inode) = peek::<u64>(file, offset!(file_inode), Site::ReadAction) else { return true };
    let Some(device) = peek::<u32>(inode, offset!(inode_rdev), Site::ReadAction) else { return true };
    let (major, minor) = (device >> 20, device & 0xf_ffff);
    // null, zero, full; tty, ptmx; pts.
    let idle = major == 1 && (minor == 3 || minor == 5 || minor == 7);
    let terminal = (major == 5 && (minor == 0 || minor == 2)) || (136..=143).contains(&major);
    !idle && !terminal
}
