//! Files opened for writing: the agent's own, the kernel's switches, memory and disks. Keys opened for reading. And code that the agent
//! is brought to run.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use breakglass_abi::{
    Rule,
    settings::{CANARY_HOOK, GUARD_CANARY, GUARD_CGROUP, GUARD_CODE, Site},
};

use crate::{
    guard::{self, ALLOW, Actor, REFUSE},
    life, scope,
    task::{Address, Task, follow, load, offset, process_of},
};

/// `FMODE_WRITE` (include/linux/fs.h).
const MODE_WRITE: u32 = 2;
/// Type of a file in its mode (include/uapi/linux/stat.h).
const TYPE_MASK: u16 = 0o170_000;
const BLOCK: u16 = 0o060_000;
const CHARACTER: u16 = 0o020_000;
/// `/dev/mem`, `/dev/kmem`, `/dev/port`: major 1; and `/dev/snapshot`, by which all memory is replaced (Documentation/admin-guide/devices.txt).
const MEMORY_DEVICES: [u32; 4] = [1 << 20 | 1, 1 << 20 | 2, 1 << 20 | 4, 10 << 20 | 231];
/// include/uapi/linux/magic.h
const PROC: u64 = 0x9fa0;
const TRACEFS: u64 = 0x7472_6163;
const DEBUGFS: u64 = 0x6462_6720;
const SECURITYFS: u64 = 0x7363_6673;
const CGROUP2: u64 = 0x6367_7270;
const CGROUP1: u64 = 0x0027_e0eb;
const SYSFS: u64 = 0x6265_6572;

/// `int file_open(struct file *file)`, for every open on the host: what is not opened for writing, by nobody of a session, is let go
/// after two look-ups.
#[lsm(hook = "file_open")]
pub fn guard_open(context: LsmContext) -> i32 {
    let file: Address = context.arg(0);
    let writes = load::<u32>(file, offset!(file_mode)) & MODE_WRITE != 0;
    let verdict = if writes { write(file) } else { read(file) };
    verdict.unwrap_or(ALLOW)
}

/// Keys are not read by a session.
#[inline(always)]
fn read(file: Address) -> Option<i32> {
    if scope::open_slot() == 0 {
        return None;
    }
    let actor = Actor::current()?;
    if !actor.tagged {
        return None;
    }
    let dentry = dentry(file)?;
    if !guard::place(dentry).is_secret() {
        return None;
    }
    Some(actor.refused(Rule::Secret, 0, dentry, 0))
}

#[inline(always)]
fn write(file: Address) -> Option<i32> {
    let inode = follow(file, offset!(file_inode))?;
    let Some(actor) = Actor::current() else { return canary(inode) };
    if !actor.open {
        return None;
    }
    let kind = load::<u16>(inode, offset!(inode_mode)) & TYPE_MASK;
    let dentry = dentry(file)?;
    let found = if kind == BLOCK {
        if guard::is_device(load(inode, offset!(inode_rdev))) { Some(Rule::Device as u32) } else { None }
    } else if kind == CHARACTER {
        memory(load(inode, offset!(inode_rdev)))
    } else {
        plain(&actor, inode, dentry)
    };
    let rule = found?;
    Some(actor.refused_by_number(rule, dentry))
}

/// The agent opens it only to be refused.
#[inline(always)]
fn canary(inode: Address) -> Option<i32> {
    let who = Task::current().identity();
    if !life::is_agent(who) {
        return None;
    }
    let sb = follow(inode, offset!(inode_sb))?;
    if guard::inode_bits(load(sb, offset!(sb_dev)), inode as u64) & GUARD_CANARY == 0 {
        return None;
    }
    life::count_canary(CANARY_HOOK);
    Some(REFUSE)
}

#[inline(always)]
fn memory(rdev: u32) -> Option<u32> {
    if rdev == MEMORY_DEVICES[0] || rdev == MEMORY_DEVICES[1] || rdev == MEMORY_DEVICES[2] || rdev == MEMORY_DEVICES[3]
    {
        Some(Rule::Memory as u32)
    } else {
        None
    }
}

/// The number of the rule against writing to what is neither a disk nor a device.
#[inline(always)]
fn plain(actor: &Actor, inode: Address, dentry: u64) -> Option<u32> {
    let magic = guard::magic_of(inode);
    if magic == TRACEFS || magic == DEBUGFS {
        return Some(Rule::Tracing as u32);
    }
    if magic == SECURITYFS {
        return Some(Rule::Lockdown as u32);
    }
    if magic == PROC {
        return match guard::knob(magic, dentry, false) {
            Some(rule) => Some(rule),
            None if is_agents(inode) => Some(Rule::Priority as u32),
            None => None,
        };
    }
    if magic == SYSFS || magic == CGROUP1 {
        return match guard::knob(magic, dentry, true) {
            Some(rule) => Some(rule),
            None => guard::knob(magic, dentry, false),
        };
    }
    let place = guard::place(dentry);
    if magic == CGROUP2 {
        if place.folder & GUARD_CGROUP != 0 {
            return guard::knob(magic, dentry, true);
        }
        // The agent can be moved into any group and killed there before it has moved back.
        return if actor.who.tgid != 1 && kills(dentry) { Some(Rule::Cgroup as u32) } else { None };
    }
    if actor.helps(place) {
        return None;
    }
    if guard::is_unit(place, dentry) {
        return Some(Rule::File as u32);
    }
    place.rule_against_change(true).map(|rule| rule as u32)
}

/// Whether it is called `cgroup.kill`.
#[inline(always)]
fn kills(dentry: u64) -> bool {
    /// Little-endian, the two halves overlap.
    const BEGIN: u64 = u64::from_le_bytes(*b"cgroup.k");
    const END: u64 = u64::from_le_bytes(*b"up.kill\0");
    guard::pointer(dentry, offset!(dentry_name)).is_some_and(|name| {
        let (begin, end) = (guard::word(name), guard::word(name + 4));
        begin == BEGIN && end == END
    })
}

/// Whether a file of procfs is one of the agent's process, in whatever mount or pid namespace.
#[inline(always)]
fn is_agents(inode: Address) -> bool {
    let whole = inode as u64 - offset!(proc_inode) as u64;
    let Some(pid) = guard::pointer(whole, offset!(proc_pid)) else { return false };
    process_of(pid, Site::ReadGuard).is_some_and(life::is_agent)
}

#[inline(always)]
fn dentry(file: Address) -> Option<u64> {
    guard::pointer(file as u64, offset!(file_path) + offset!(path_dentry))
}

/// `PROT_EXEC` (include/uapi/asm-generic/mman-common.h).
const EXECUTES: u64 = 4;

/// `int mmap_file(struct file *file, unsigned long reqprot, unsigned long prot, unsigned long flags)`; no file for plain memory.
#[lsm(hook = "mmap_file")]
pub fn guard_map(context: LsmContext) -> i32 {
    if context.arg::<u64>(2) & EXECUTES == 0 {
        return ALLOW;
    }
    code(context.arg(0)).unwrap_or(ALLOW)
}

/// The C library loads what `/etc/nsswitch.conf` names, which root of a session can change: in a session the agent runs what it ran
/// before. What it starts is another process.
#[inline(always)]
fn code(file: Address) -> Option<i32> {
    let agent = Actor::agent()?;
    if file.is_null() {
        return None;
    }
    let inode = follow(file, offset!(file_inode))?;
    let sb = follow(inode, offset!(inode_sb))?;
    if guard::inode_bits(load(sb, offset!(sb_dev)), inode as u64) & GUARD_CODE != 0 {
        return None;
    }
    Some(agent.refused(Rule::Code, 0, dentry(file)?, 0))
}
