//! What is behind a task's descriptors. No symbol address is needed, and nothing sleeps; the descriptor may have been replaced by
//! another thread since the call that it is read for.

use breakglass_abi::settings::Site;

use crate::task::{Task, follow, load, offset, peek};

/// `S_IFMT` (include/uapi/linux/stat.h) and what it selects.
pub const TYPE_MASK: u32 = 0o170_000;
/// A pipe.
pub const FIFO: u32 = 0o010_000;
/// A character device.
pub const CHARACTER: u32 = 0o020_000;
/// A regular file.
pub const REGULAR: u32 = 0o100_000;
/// A socket.
pub const SOCKET: u32 = 0o140_000;

/// The `struct file` of a descriptor; `None` where there is none.
#[inline(always)]
pub fn file(task: Task, descriptor: u64, site: Site) -> Option<u64> {
    let files = follow(task.address(), offset!(task_files))?;
    let table = follow(files, offset!(files_fdt))?;
    let descriptor = descriptor as u32;
    let max: u32 = load(table, offset!(fdt_max));
    if descriptor >= max {
        return None;
    }
    let array: u64 = load(table, offset!(fdt_fd));
    let file: u64 = peek(array + 8 * u64::from(descriptor), 0, site)?;
    if file == 0 { None } else { Some(file) }
}

/// The inode of a file, and its type and permissions.
#[inline(always)]
pub fn inode(file: u64, site: Site) -> Option<(u64, u32)> {
    let inode: u64 = peek(file, offset!(file_inode), site)?;
    let mode: u16 = peek(inode, offset!(inode_mode), site)?;
    Some((inode, u32::from(mode)))
}

/// Device and number of an inode.
#[inline(always)]
pub fn place(inode: u64, site: Site) -> Option<(u32, u64)> {
    let sb: u64 = peek(inode, offset!(inode_sb), site)?;
    Some((peek(sb, offset!(sb_dev), site)?, peek(inode, offset!(inode_ino), site)?))
}
