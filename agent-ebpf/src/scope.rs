//! Which tasks count as part of a session, and what may not run.

use aya_ebpf::{
    helpers::bpf_send_signal,
    macros::map,
    maps::{Array, HashMap},
};
use breakglass_abi::{
    ProcessKey, Settings, Tag,
    settings::{
        NO_UID, SETTING_DENY, SETTING_KILL_UNGRANTED, SETTING_NO_URING, SLOT_CLOSING, Site, TAG_BY_DESCENT,
        TAG_BY_LOGINUID, TAG_BY_UID, TAG_EXECUTED,
    },
};

use crate::{
    emit::fetch_add,
    fault,
    task::{Identity, Task, constant, load, offset},
};

/// Set by the agent before loading: which load this is. Programs of another load that share these maps do nothing, so that a new
/// object takes over between one event and the next.
#[unsafe(no_mangle)]
pub static LOAD: u32 = 0;

/// Most processes that can be tagged at a time; twice the kernel's usual limit of processes. A full table is a fault, never an
/// eviction.
const TAGS_MAX: u32 = 65_536;
/// Most sessions whose processes can be closing at a time.
const SLOTS_MAX: u32 = 64;
const SIGKILL: u32 = 9;
/// `BPF_NOEXIST` (include/uapi/linux/bpf.h), and what it gives for a key that is there.
const BPF_NOEXIST: u64 = 1;
const EEXIST: i32 = -17;

#[map]
static TAGS: HashMap<ProcessKey, Tag> = HashMap::with_max_entries(TAGS_MAX, 0);
/// How many of them there are: as these programs counted, and as the agent did, which tags and forgets some itself. It can be less than
/// nothing in either.
#[map]
static TAGGED: Array<i64> = Array::with_max_entries(2, 0);
/// Set by the agent before loading: with so many, none of them may start another.
#[unsafe(no_mangle)]
static TAGS_HIGH: u32 = 0;
#[map]
static SLOTS: HashMap<u32, u32> = HashMap::with_max_entries(SLOTS_MAX, 0);
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// A task in scope.
#[derive(Clone, Copy)]
pub struct Scope {
    /// Number of the session, 0 for none.
    pub slot: u32,
    /// Whether it could be tagged; if not, its children will be missed.
    pub tagged: bool,
}

/// Whether programs of this load at tracepoints are the ones that work. Those of an older load come first at a tracepoint: when
/// the change falls between the two, an event is seen twice, never not at all.
#[inline(always)]
pub fn works() -> bool {
    settings().is_some_and(|settings| settings.load == constant(&LOAD))
}

/// The same for programs at functions and hooks, of which a newer load comes first: for a moment both loads work.
#[inline(always)]
pub fn works_at_functions() -> bool {
    let load = constant(&LOAD);
    settings().is_some_and(|settings| settings.load == load || settings.load_before == load)
}

/// Number of the open session, 0 when the glass is whole.
#[inline(always)]
pub fn open_slot() -> u32 {
    settings().map_or(0, |settings| settings.open_slot)
}

/// Whether a ring of `io_uring` is refused to tasks in scope.
#[inline(always)]
pub fn deny_uring() -> bool {
    settings().is_some_and(|settings| settings.flags & SETTING_NO_URING != 0)
}

/// Whether the process is in scope: it is tagged, or it is the emergency account's (and is tagged by this).
#[inline(always)]
pub fn enter(task: Task, who: Identity) -> Option<Scope> {
    let settings = settings()?;
    let key = who.key();
    if let Some(tag) = TAGS.get_ptr_mut(&key) {
        return Some(Scope { slot: adopt(tag, settings), tagged: true });
    }
    let cause = account_cause(task, settings)?;
    Some(insert(&key, Tag { slot: settings.open_slot, cause, flags: 0 }))
}

/// Whether the process is in scope, as [`enter`], for what is recorded of it but gives no reason to follow it: sshd's own root
/// process has the account's audit login uid, and must live to close the session properly.
#[inline(always)]
pub fn find(task: Task, who: Identity) -> Option<Scope> {
    let settings = settings()?;
    let key = who.key();
    if let Some(tag) = TAGS.get_ptr_mut(&key) {
        return Some(Scope { slot: adopt(tag, settings), tagged: true });
    }
    account_cause(task, settings)?;
    Some(Scope { slot: settings.open_slot, tagged: true })
}

/// Whether a program outside of every session is to be witnessed: the number of the session that is open. A child that was made
/// just before its parent was tagged at the agent's request enters the scope here instead.
#[inline(always)]
pub fn witness(task: Task, who: Identity) -> Option<Witness> {
    let settings = settings()?;
    if settings.open_slot == 0 {
        return None;
    }
    let parent = task.parent()?.identity();
    match unsafe { TAGS.get(&parent.key()) } {
        Some(tag) if tag.slot != 0 => {
            let tag = Tag { slot: tag.slot, cause: TAG_BY_DESCENT, flags: TAG_EXECUTED };
            Some(Witness::Late(insert(&who.key(), tag)))
        }
        _ => Some(Witness::Other(settings.open_slot)),
    }
}

/// What a program is that was started by a task without a tag.
pub enum Witness {
    /// Somebody else's, while this session is open.
    Other(u32),
    /// In scope after all.
    Late(Scope),
}

/// Tags a new process whose parent is in scope. `None` where it is not.
#[inline(always)]
pub fn inherit(parent: Task, parent_who: Identity, child: Identity) -> Option<Scope> {
    let settings = settings()?;
    let parent_key = parent_who.key();
    let tag = match TAGS.get_ptr_mut(&parent_key) {
        Some(tag) => Tag { slot: adopt(tag, settings), cause: TAG_BY_DESCENT, flags: unsafe { (*tag).flags } },
        // sshd's own child runs as the account without ever having executed as it.
        None => Tag { slot: settings.open_slot, cause: account_cause(parent, settings)?, flags: 0 },
    };
    Some(insert(&child.key(), tag))
}

/// The session of a process that is tagged already.
#[inline(always)]
pub fn tagged(who: Identity) -> Option<u32> {
    let key = who.key();
    unsafe { TAGS.get(&key) }.map(|tag| tag.slot)
}

/// Whether a process in scope is still part of a login: nothing has been executed since it, or what it descends from, came
/// into scope.
#[inline(always)]
pub fn logs_in(who: Identity) -> bool {
    let key = who.key();
    unsafe { TAGS.get(&key) }.is_none_or(|tag| tag.flags & TAG_EXECUTED == 0)
}

/// Notes that a process in scope executes a program. Whether it is the first of its login.
#[inline(always)]
pub fn executes(who: Identity) -> bool {
    let key = who.key();
    let Some(tag) = TAGS.get_ptr_mut(&key) else { return false };
    unsafe {
        let first = (*tag).flags & TAG_EXECUTED == 0;
        (*tag).flags |= TAG_EXECUTED;
        first
    }
}

/// Forgets a process. Whether it was tagged, and for which session.
#[inline(always)]
pub fn leave(who: Identity) -> Option<u32> {
    let key = who.key();
    let slot = unsafe { TAGS.get(&key) }?.slot;
    // Two last threads can get here at once; one of them removes it.
    TAGS.remove(&key).ok()?;
    count(-1);
    Some(slot)
}

/// Whether there is so little room for tags that nothing in scope should start a process. Beyond is what those need that are being killed
/// and have not ended.
#[inline(always)]
pub fn is_crowded() -> bool {
    let counted = |at| TAGGED.get(at).map_or(0, |count| unsafe { core::ptr::read_volatile(count) });
    counted(0) + counted(1) >= i64::from(constant(&TAGS_HIGH))
}

#[inline(always)]
fn count(change: i64) {
    if let Some(count) = TAGGED.get_ptr_mut(0) {
        unsafe { fetch_add(count.cast(), change as u64) };
    }
}

/// Whether tasks of this session may neither exec nor fork any more.
#[inline(always)]
pub fn closing(slot: u32) -> bool {
    unsafe { SLOTS.get(&slot) }.is_some_and(|state| *state == SLOT_CLOSING)
}

/// Whether what cannot be recorded may not run.
#[inline(always)]
pub fn deny_unrecorded() -> bool {
    settings().is_some_and(|settings| settings.flags & SETTING_DENY != 0)
}

/// Whether what the account runs outside of every session may not run.
#[inline(always)]
pub fn kill_ungranted() -> bool {
    settings().is_some_and(|settings| settings.flags & SETTING_KILL_UNGRANTED != 0)
}

/// Kills the running process before it returns to its program. The init process is never killed.
#[inline(always)]
pub fn kill_current(who: Identity) -> bool {
    if who.tgid == 1 {
        return false;
    }
    let sent = unsafe { bpf_send_signal(SIGKILL) };
    if sent != 0 {
        fault::count(Site::Signal, sent);
    }
    sent == 0
}

#[inline(always)]
fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// A process tagged while no session was open belongs to the one that is open now.
#[inline(always)]
fn adopt(tag: *mut Tag, settings: &Settings) -> u32 {
    unsafe {
        if (*tag).slot == 0 && settings.open_slot != 0 {
            (*tag).slot = settings.open_slot;
        }
        (*tag).slot
    }
}

#[inline(always)]
fn account_cause(task: Task, settings: &Settings) -> Option<u16> {
    let account = settings.account_uid;
    if account == NO_UID {
        return None;
    }
    if task.loginuid() == account {
        return Some(TAG_BY_LOGINUID);
    }
    let cred = task.cred()?;
    let uid: u32 = load(cred, offset!(cred_uid));
    let euid: u32 = load(cred, offset!(cred_euid));
    if uid == account || euid == account { Some(TAG_BY_UID) } else { None }
}

#[inline(always)]
fn insert(key: &ProcessKey, tag: Tag) -> Scope {
    let tagged = match TAGS.insert(key, &tag, BPF_NOEXIST) {
        Ok(()) => {
            count(1);
            true
        }
        // By another thread, just now.
        Err(EEXIST) => true,
        Err(error) => {
            fault::count(Site::TagInsert, i64::from(error));
            false
        }
    };
    Scope { slot: tag.slot, tagged }
}
