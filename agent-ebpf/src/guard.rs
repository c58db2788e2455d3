//! What is guarded, and from whom: the agent's files, pins, maps and process, and the switches by which root could blind or stop
//! the audit. Decided by identity (inodes, numbers of the kernel's, names that nobody can change), never by the text of a path.
//!
//! Everybody but the agent is kept from pins, maps, programs and the agent's process at any time, and from the rest while a
//! session is open: what a tagged task may not do itself it could ask systemd to do.

use aya_ebpf::{
    helpers::{bpf_loop, bpf_probe_read_kernel, generated::bpf_task_pt_regs},
    macros::map,
    maps::HashMap,
};
use breakglass_abi::{
    GuardedKey, Knob, Rule,
    record::REFUSAL_UNTAGGED,
    settings::{
        AGENT_GONE, GUARD_CODE, GUARD_FILE, GUARD_PINS, GUARD_SECRET, GUARD_SHARED, GUARD_TREE, GUARD_UNITS, GUARD_WAY,
        Site,
    },
};
use core::ffi::c_void;

use crate::{
    fault, life,
    refuse::{self, Attempted},
    scope,
    task::{Address, Identity, Task, follow, load, offset},
};

/// Files, folders and pins of one agent; a few dozen.
const GUARDED_MAX: u32 = 4096;
/// Switches; about a hundred.
const KNOBS_MAX: u32 = 512;
/// Maps and programs of one load, and of the one before it while they change over.
const OWNED_MAX: u32 = 1024;
/// Disks and their parts below the agent's files.
const DEVICES_MAX: u32 = 64;
/// Mounts on the agent's paths; about ten.
const PASSED_MAX: u32 = 1024;
/// Folders above a file that are looked at; the agent's own are four deep.
const CLIMB_MAX: u32 = 12;

#[map]
static GUARDED: HashMap<GuardedKey, u32> = HashMap::with_max_entries(GUARDED_MAX, 0);
#[map]
static KNOBS: HashMap<Knob, u32> = HashMap::with_max_entries(KNOBS_MAX, 0);
#[map]
static OWNED: HashMap<u64, u32> = HashMap::with_max_entries(OWNED_MAX, 0);
/// Keyed by device, kernel encoding.
#[map]
static DEVICES: HashMap<u32, u32> = HashMap::with_max_entries(DEVICES_MAX, 0);
/// `GUARD_` bits of the mounts that the agent's paths pass, keyed by their numbers.
#[map]
static PASSED: HashMap<u32, u32> = HashMap::with_max_entries(PASSED_MAX, 0);

/// What a hook returns to let the kernel go on.
pub const ALLOW: i32 = 0;
/// What it returns to refuse: `-EPERM`.
pub const REFUSE: i32 = -1;

// Functions whose names are seen outside are what the kernel calls global: it verifies each once and by itself, rather than at every call
// with all that is known there, of which every combination is a path of its own (kernel/bpf/btf.c, `btf_prepare_func_args`). They take
// numbers and pointers to memory, which they have to hold against null, and the caller knows nothing of what they give.

/// Reads eight bytes of the kernel's; 0 where they cannot be read, which is counted. A function of its own: there are dozens of programs
/// that would each have their copy. Not a global one, as the verifier knows the types of some addresses, and those take numbers only.
#[inline(never)]
pub fn word(address: u64) -> u64 {
    match unsafe { bpf_probe_read_kernel(address as *const u64) } {
        Ok(value) => value,
        Err(error) => {
            fault::count(Site::ReadGuard, i64::from(error));
            0
        }
    }
}

/// The low half of [`word`].
#[inline(always)]
pub fn half(address: u64) -> u32 {
    word(address) as u32
}

/// A pointer; `None` where there is none.
#[inline(always)]
pub fn pointer(base: u64, offset: usize) -> Option<u64> {
    match word(base + offset as u64) {
        0 => None,
        pointer => Some(pointer),
    }
}

/// Somebody who is judged.
#[derive(Clone, Copy)]
pub struct Actor {
    /// Its process.
    pub who: Identity,
    /// Number of its session, or of the open one.
    pub slot: u32,
    /// Whether it is tagged.
    pub tagged: bool,
    /// Whether a session is open.
    pub open: bool,
}

impl Actor {
    /// Who runs now. `None` for the agent, and where programs of another load judge.
    #[inline(always)]
    pub fn current() -> Option<Self> {
        let mut found =
            Found { who: Identity { tgid: 0, tid: 0, start_ns: 0 }, slot: 0, tagged: 0, open: 0, reserved: 0 };
        if guard_actor(&mut found) == 0 {
            return None;
        }
        Some(Self { who: found.who, slot: found.slot, tagged: found.tagged != 0, open: found.open != 0 })
    }

    /// The agent itself, in whose name somebody may act, while a session is open.
    #[inline(always)]
    pub fn agent() -> Option<Self> {
        let slot = scope::open_slot();
        let who = Task::current().identity();
        if slot == 0 || !life::is_agent(who) || !scope::works_at_functions() {
            return None;
        }
        Some(Self { who, slot, tagged: false, open: true })
    }

    /// Tells the attempt.
    #[inline(always)]
    pub fn refused(&self, rule: Rule, value: u64, dentry: u64, target: u32) -> i32 {
        self.tell(rule as u32, value, dentry, target)
    }

    /// The same by the number of a rule, as maps hold it.
    #[inline(always)]
    pub fn refused_by_number(&self, rule: u32, dentry: u64) -> i32 {
        self.tell(rule, 0, dentry, 0)
    }

    /// Whether it is another process of the agent's program, at work where those may be.
    #[inline(always)]
    pub fn helps(&self, place: Place) -> bool {
        if self.tagged || (place.own | place.above) & GUARD_SHARED == 0 {
            return false;
        }
        life::agent().is_some_and(|agent| executes(Task::current()) == Some((agent.exe_dev, agent.exe_inode)))
    }

    #[inline(always)]
    fn tell(&self, rule: u32, value: u64, dentry: u64, target: u32) -> i32 {
        let how = if self.tagged { 0 } else { REFUSAL_UNTAGGED };
        refuse::tell(&Attempted { who: self.who, rule, slot: self.slot, value, dentry, target, how });
        REFUSE
    }
}

/// An [`Actor`] as it is handed out of the function that finds it.
#[repr(C)]
struct Found {
    who: Identity,
    slot: u32,
    tagged: u32,
    open: u32,
    reserved: u32,
}

/// Whether somebody is judged now, and who.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_actor(found: *mut Found) -> u32 {
    if found.is_null() || !scope::works_at_functions() {
        return 0;
    }
    let task = Task::current();
    let who = task.identity();
    let slot = scope::tagged(who);
    let open = scope::open_slot();
    if is_agent(task, who, slot.is_some(), open != 0) {
        return 0;
    }
    unsafe {
        (*found).who = who;
        (*found).slot = slot.unwrap_or(open);
        (*found).tagged = u32::from(slot.is_some());
        (*found).open = u32::from(open != 0);
    }
    1
}

/// Whether a task is the agent, or becomes it: after the end of the last one, whoever executes the same program while a session
/// is open, and anybody who is not tagged while none is, which is how the host's administrators get rid of what was left behind.
#[inline(always)]
fn is_agent(task: Task, who: Identity, tagged: bool, open: bool) -> bool {
    let Some(agent) = life::agent() else { return false };
    if life::is_agent(who) {
        return true;
    }
    if tagged || agent.state != AGENT_GONE {
        return false;
    }
    !open || executes(task) == Some((agent.exe_dev, agent.exe_inode))
}

/// Device and inode of the program that a task executes.
#[inline(always)]
fn executes(task: Task) -> Option<(u32, u64)> {
    let mm = follow(task.address(), offset!(task_mm))? as u64;
    let file: u64 = pointer(mm, offset!(mm_exe_file))?;
    let inode: u64 = pointer(file, offset!(file_inode))?;
    let sb: u64 = pointer(inode, offset!(inode_sb))?;
    Some((half(sb + offset!(sb_dev) as u64), word(inode + offset!(inode_ino) as u64)))
}

/// `__X32_SYSCALL_BIT` (arch/x86/include/uapi/asm/unistd.h).
const X32: u32 = 0x4000_0000;

/// Number of the system call that runs; which of the tables it belongs to the caller has to tell by what is asked. `None` outside of one.
#[inline(always)]
pub fn call_number() -> Option<u32> {
    let task = Task::current().address();
    let registers = unsafe { bpf_task_pt_regs(task.cast_mut().cast()) } as Address;
    if registers.is_null() {
        return None;
    }
    Some(load::<u64>(registers, offset!(regs_orig_ax)) as u32 & !X32)
}

/// Where a dentry lies among what is guarded: `GUARD_` bits.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Place {
    /// Of itself.
    pub own: u32,
    /// Of its folder.
    pub folder: u32,
    /// Of everything above it, those that are inherited.
    pub above: u32,
}

impl Place {
    /// Nowhere near.
    pub const NONE: Self = Self { own: 0, folder: 0, above: 0 };

    /// The rule against changing it, if there is one now.
    #[inline(always)]
    pub fn rule_against_change(self, open: bool) -> Option<Rule> {
        self.rule(open, GUARD_FILE | GUARD_CODE)
    }

    /// The rule against moving it away or hiding it, if there is one now.
    #[inline(always)]
    pub fn rule_against_move(self, open: bool) -> Option<Rule> {
        self.rule(open, GUARD_FILE | GUARD_TREE | GUARD_WAY)
    }

    /// Whether it holds what is guarded itself, and does not just lead there.
    #[inline(always)]
    pub fn holds(self) -> bool {
        self.own & (GUARD_FILE | GUARD_TREE) != 0 || self.above & GUARD_TREE != 0
    }

    /// Against what is done to something that has one of these bits, or lies below a guarded tree.
    #[inline(always)]
    fn rule(self, open: bool, own: u32) -> Option<Rule> {
        if (self.own | self.above) & GUARD_PINS != 0 {
            return Some(Rule::Pins);
        }
        if open && (self.own & own != 0 || self.above & GUARD_TREE != 0) {
            return Some(Rule::File);
        }
        None
    }

    /// Whether it is a secret.
    #[inline(always)]
    pub fn is_secret(self) -> bool {
        (self.own | self.above) & GUARD_SECRET != 0
    }
}

/// State of a climb from a dentry to the root of its file system.
#[repr(C)]
struct Climb {
    dentry: u64,
    dev: u32,
    folder: u32,
    above: u32,
    steps: u32,
}

/// Looks a dentry and the folders above it up.
#[inline(always)]
pub fn place(dentry: u64) -> Place {
    let mut place = Place::NONE;
    guard_place(plain(dentry), &mut place);
    place
}

/// An address of which the verifier does not know that it is one: copied by a helper, from the stack to the stack.
#[inline(always)]
fn plain(address: u64) -> u64 {
    let mut known = 0_u64;
    unsafe { core::ptr::write_volatile(&raw mut known, address) };
    word(&raw const known as u64)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn guard_place(dentry: u64, place: *mut Place) -> u32 {
    if place.is_null() {
        return 0;
    }
    if let Some(found) = look_up(dentry) {
        unsafe { *place = found };
    }
    0
}

#[inline(always)]
fn look_up(dentry: u64) -> Option<Place> {
    let sb: u64 = pointer(dentry, offset!(dentry_sb))?;
    let dev = half(sb + offset!(sb_dev) as u64);
    // Nearly everything on the host ends here; at rest everything that is no pin.
    let any = bits(dev, 0)?;
    if scope::open_slot() == 0 && any & GUARD_PINS == 0 {
        return None;
    }
    let own = inode_bits(dev, word(dentry + offset!(dentry_inode) as u64));
    let mut climb = Climb { dentry, dev, folder: 0, above: 0, steps: 0 };
    let steps = unsafe { bpf_loop(CLIMB_MAX, climb_step as *mut c_void, (&raw mut climb).cast(), 0) };
    if steps < 0 {
        fault::count(Site::Loop, steps);
    }
    if any & (GUARD_TREE | GUARD_SECRET) != 0 && is_adrift(climb.dentry, sb) {
        climb.above |= GUARD_TREE | GUARD_SECRET;
    }
    Some(Place { own, folder: climb.folder, above: climb.above })
}

/// Whether a climb ended without reaching the root of its file system: the file was opened by a handle (`open_by_handle_at`), and may lie
/// anywhere. The kernel's own threads serve files like that (NFS).
#[inline(always)]
fn is_adrift(top: u64, sb: u64) -> bool {
    word(top + offset!(dentry_parent) as u64) == top
        && word(sb + offset!(sb_root) as u64) != top
        && scope::open_slot() != 0
        && follow(Task::current().address(), offset!(task_mm)).is_some()
}

/// One folder up. 1 ends the climb.
extern "C" fn climb_step(_index: u64, context: *mut c_void) -> i64 {
    let climb: *mut Climb = context.cast();
    let (dentry, dev) = unsafe { ((*climb).dentry, (*climb).dev) };
    let Some(parent) = pointer(dentry, offset!(dentry_parent)) else { return 1 };
    if parent == dentry {
        return 1;
    }
    let Some(inode) = pointer(parent, offset!(dentry_inode)) else { return 1 };
    let found = inode_bits(dev, inode);
    unsafe {
        if (*climb).steps == 0 {
            (*climb).folder = found;
        }
        (*climb).steps += 1;
        (*climb).above |= found & (GUARD_TREE | GUARD_SECRET | GUARD_PINS | GUARD_SHARED);
        (*climb).dentry = parent;
    }
    0
}

/// The bits of an inode whose address is known.
#[inline(always)]
pub fn inode_bits(dev: u32, inode: u64) -> u32 {
    if inode == 0 {
        return 0;
    }
    match pointer(inode, offset!(inode_ino)) {
        Some(number) => bits(dev, number).unwrap_or(0),
        None => 0,
    }
}

#[inline(always)]
fn bits(dev: u32, inode: u64) -> Option<u32> {
    let key = GuardedKey { dev, reserved: 0, inode };
    unsafe { GUARDED.get(&key) }.copied()
}

/// The number of the rule against writing to a switch of this file system, if it is one.
#[inline(always)]
pub fn knob(magic: u64, dentry: u64, in_any_folder: bool) -> Option<u32> {
    let mut knob = Knob { magic, parent: [0; 16], name: [0; 32] };
    refuse::read_name(dentry, &mut knob.name)?;
    if !in_any_folder {
        let parent: u64 = pointer(dentry, offset!(dentry_parent))?;
        refuse::read_name(parent, &mut knob.parent)?;
    }
    unsafe { KNOBS.get(&knob) }.copied()
}

/// Whether a unit of the agent's is about to be made or changed in a folder of systemd's.
#[inline(always)]
pub fn is_unit(place: Place, dentry: u64) -> bool {
    /// Little-endian: how the agent's begin, and the folder of what counts for every service.
    const PREFIX: u64 = u64::from_le_bytes(*b"breakgla");
    const ALL: u64 = u64::from_le_bytes(*b"service.");
    const ALL_END: u32 = u32::from_le_bytes(*b"e.d\0");
    if place.folder & GUARD_UNITS == 0 {
        return false;
    }
    let Some(name) = pointer(dentry, offset!(dentry_name)) else { return false };
    let begin = word(name);
    begin == PREFIX || (begin == ALL && half(name + 6) == ALL_END)
}

/// Whether a map or program is the agent's.
#[inline(always)]
pub fn is_owned(kind: u64, id: u32) -> bool {
    let key = kind | u64::from(id);
    unsafe { OWNED.get(&key) }.is_some()
}

/// Whether something guarded is on the file system of a dentry.
#[inline(always)]
pub fn is_lived_on(dentry: u64) -> bool {
    pointer(dentry, offset!(dentry_sb)).is_some_and(|sb| bits(half(sb + offset!(sb_dev) as u64), 0).is_some())
}

/// Whether a disk is below the agent's files.
#[inline(always)]
pub fn is_device(rdev: u32) -> bool {
    unsafe { DEVICES.get(&rdev) }.is_some()
}

/// `GUARD_` bits of a `struct vfsmount` as one that the agent's paths pass; 0 for any other.
#[inline(always)]
pub fn passed(mount: u64) -> u32 {
    let number = half(mount - offset!(mount_mnt) as u64 + offset!(mount_id) as u64);
    unsafe { PASSED.get(&number) }.copied().unwrap_or(0)
}

/// `GUARD_` bits of the folder that a `struct vfsmount` is mounted on.
#[inline(always)]
pub fn mountpoint_bits(mount: u64) -> u32 {
    let whole = mount - offset!(mount_mnt) as u64;
    let Some(dentry) = pointer(whole, offset!(mount_mountpoint)) else { return 0 };
    let Some(sb) = pointer(dentry, offset!(dentry_sb)) else { return 0 };
    inode_bits(half(sb + offset!(sb_dev) as u64), word(dentry + offset!(dentry_inode) as u64))
}

/// Whether what happens to the mounts on a `struct vfsmount` spreads.
#[inline(always)]
pub fn spreads(mount: u64) -> bool {
    is_shared(mount - offset!(mount_mnt) as u64)
}

/// Whether a `struct vfsmount` is in the agent's mount namespace.
#[inline(always)]
pub fn is_agents_mount(mount: u64) -> bool {
    let Some(agent) = life::agent() else { return false };
    let whole = mount - offset!(mount_mnt) as u64;
    pointer(whole, offset!(mount_ns)).is_some_and(|ns| half(ns + offset!(mount_ns_inum) as u64) == agent.mount_ns)
}

/// Whether what is mounted on a `struct vfsmount` may appear in the agent's mount namespace: it is in it, or mounts on it spread.
#[inline(always)]
pub fn reaches_agent(mount: u64) -> bool {
    is_agents_mount(mount) || spreads(mount)
}

/// Whether it lies on a mount on which mounts and unmounts spread.
#[inline(always)]
pub fn is_on_shared(mount: u64) -> bool {
    let whole = mount - offset!(mount_mnt) as u64;
    pointer(whole, offset!(mount_parent)).is_some_and(is_shared)
}

/// Whether a `struct mount` has a peer group (fs/pnode.c): what is shared has one, and nothing else.
#[inline(always)]
fn is_shared(mount: u64) -> bool {
    half(mount + offset!(mount_group) as u64) != 0
}

/// Magic number of the file system of an inode that the verifier knows.
#[inline(always)]
pub fn magic_of(inode: Address) -> u64 {
    follow(inode, offset!(inode_sb)).map_or(0, |sb| load(sb, offset!(sb_magic)))
}
