//! What only shows at a write: the screen of a virtual console painted, an audit login uid set.

use aya_ebpf::helpers::bpf_probe_read_user_buf;
use breakglass_abi::{Kind, record::ACTION_NAME_UNREAD, settings::Site};

use super::{
    action::{clear, send},
    draft::Draft,
};
use crate::{
    fault, scope,
    scratch::masked,
    task::{Task, offset, peek},
};

/// `PROC_SUPER_MAGIC` (include/uapi/linux/magic.h).
const PROC_MAGIC: u64 = 0x9fa0;
/// How much of what is painted on a screen is kept, plus one; a power of two.
const PAINTED_MAX: u64 = 4096;

/// At a write to the screen of a virtual console, by a task in scope: how much, on which, and the beginning of it. `from` is 0 where
/// there is no single buffer. Built in the caller's slot.
#[inline(always)]
pub fn painted(task: Task, file: u64, from: u64, bytes: u64, slot: u32) -> Option<()> {
    let who = task.identity();
    let scope = scope::find(task, who)?;
    let draft = Draft::in_slot(slot)?;
    let inode: u64 = peek(file, offset!(file_inode), Site::ReadAction)?;
    let device: u32 = peek(inode, offset!(inode_rdev), Site::ReadAction)?;
    clear(draft, task, 0);
    unsafe { (*draft.action).values = [u64::from(device & 0xf_ffff), bytes, 0] };
    let len = if from == 0 { 0 } else { beginning(draft, from, bytes) };
    unsafe { (*draft.action).name_len = len as u16 };
    draft.set_pos(len);
    let _ = send(draft, Kind::ScreenPainted as u16, who, scope);
    Some(())
}

/// Copies up to `PAINTED_MAX` bytes from the caller's memory. How many.
#[inline(always)]
fn beginning(draft: Draft, from: u64, bytes: u64) -> u64 {
    let len = if bytes >= PAINTED_MAX { PAINTED_MAX - 1 } else { bytes };
    let len = masked::<{ PAINTED_MAX - 1 }>(len);
    let read = unsafe {
        bpf_probe_read_user_buf(from as *const u8, core::slice::from_raw_parts_mut(draft.tail(), len as usize))
    };
    match read {
        Ok(()) => len,
        Err(error) => {
            fault::count(Site::ReadAction, i64::from(error));
            unsafe { (*draft.action).how |= ACTION_NAME_UNREAD };
            0
        }
    }
}

/// At the exit of a write to a regular file: whether it was the audit login uid of a task, which decides who did what.
#[inline(always)]
pub fn wrote(task: Task, file: u64, inode: u64) -> Option<()> {
    let sb: u64 = peek(inode, offset!(inode_sb), Site::ReadAction)?;
    let magic: u64 = peek(sb, offset!(sb_magic), Site::ReadAction)?;
    if magic != PROC_MAGIC {
        return None;
    }
    let dentry: u64 = peek(file, offset!(file_path) + offset!(path_dentry), Site::ReadAction)?;
    let from: u64 = peek(dentry, offset!(dentry_name), Site::ReadAction)?;
    let len: u32 = peek(dentry, offset!(dentry_name_len), Site::ReadAction)?;
    let name: u64 = peek(from, 0, Site::ReadAction)?;
    if len != 8 || name != u64::from_le_bytes(*b"loginuid") {
        return None;
    }
    let who = task.identity();
    let scope = scope::find(task, who)?;
    let draft = Draft::new()?;
    clear(draft, task, 0);
    unsafe { (*draft.action).values[0] = u64::from(task.loginuid()) };
    let _ = send(draft, Kind::LoginUidSet as u16, who, scope);
    Some(())
}
