//! How many connections there may be, and who has to go when there are too many.
//!
//! Nobody who has proved nothing may keep others out, and an operator cannot be told from a flood before the proof. So a
//! new connection is let in at the cost of one that is waiting, of the source that has most: the one with most wrong proofs,
//! then the oldest. Clients connect anew when that hits them; a challenge is not tied to its connection. A connection whose
//! request is being worked on is never ended.
//!
//! Over TLS that is not enough: of a thousand new connections a second each would live for the few milliseconds until the next sixteen, too
//! short to shake hands in, and the operator's would be one of them. So on that door there is a *grace*: within it a connection that has sent nothing
//! wrong is not pushed out by others of its source. Those are turned away before TLS, which costs next to nothing, and clients try again. Over a
//! Unix socket a request is there as soon as the connection is, and not everybody who connects tries again: there is no grace.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::source::Group;

/// Most connections of one source on one listener.
pub const PER_SOURCE: usize = 16;
/// Most connections on one listener.
pub const IN_ALL: usize = 64;

/// The grace over TLS: two ways there and back over a slow line, and the wait for a turn. It counts from the connection's beginning, whatever
/// comes over it.
pub const TLS_GRACE: Duration = Duration::from_millis(300);

/// The connections of one listener; by default without a grace.
#[derive(Default)]
pub struct Admission {
    grace: Duration,
    next: AtomicU64,
    /// By number; smaller is older.
    entries: Mutex<HashMap<u64, Entry>>,
}

struct Entry {
    group: Group,
    busy: bool,
    leaving: bool,
    failures: u32,
    began: Instant,
    leave: Arc<Notify>,
}

/// The right to be connected; given back when dropped.
pub struct Ticket {
    admission: Arc<Admission>,
    number: u64,
    leave: Arc<Notify>,
}

impl Admission {
    /// With a grace.
    pub fn with_grace(grace: Duration) -> Self {
        Self { grace, ..Self::default() }
    }

    /// Lets a connection in, if need be at the cost of a waiting one; `None` where every other one is being worked on or has its grace.
    pub fn admit(self: &Arc<Self>, group: Group) -> Option<Ticket> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let leave = Arc::new(Notify::new());
        let mut entries = self.entries();
        // Those that were told to leave still hold a task until they have left: they count twice over at most.
        if entries.len() >= 2 * IN_ALL {
            return None;
        }
        let mut counts: HashMap<Group, usize> = HashMap::new();
        for entry in entries.values().filter(|entry| !entry.leaving) {
            *counts.entry(entry.group).or_default() += 1;
        }
        let had_its_time = |entry: &Entry| entry.failures > 0 || entry.began.elapsed() >= self.grace;
        if counts.get(&group).is_some_and(|n| *n >= PER_SOURCE) {
            evict(&mut entries, group, had_its_time)?;
        } else if counts.values().sum::<usize>() >= IN_ALL {
            let mut largest: Vec<(usize, Group)> = counts.into_iter().map(|(group, n)| (n, group)).collect();
            largest.sort_unstable_by(|a, b| b.cmp(a));
            largest
                .into_iter()
                .find_map(|(_, other)| evict(&mut entries, other, |entry| other != group || had_its_time(entry)))?;
        }
        let entry =
            Entry { group, busy: false, leaving: false, failures: 0, began: Instant::now(), leave: Arc::clone(&leave) };
        entries.insert(number, entry);
        Some(Ticket { admission: Arc::clone(self), number, leave })
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        // Each change is complete within one statement.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells one waiting connection of the group to leave, of those that may be told.
fn evict(entries: &mut HashMap<u64, Entry>, group: Group, may_be: impl Fn(&Entry) -> bool) -> Option<()> {
    let waiting =
        entries.iter_mut().filter(|(_, entry)| entry.group == group && !entry.busy && !entry.leaving && may_be(entry));
    let (_, victim) = waiting.max_by_key(|(number, entry)| (entry.failures, std::cmp::Reverse(**number)))?;
    victim.leaving = true;
    victim.leave.notify_one();
    Some(())
}

impl Ticket {
    /// Resolves when the connection has to make room.
    pub async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }

    /// Asks this connection itself to leave once it waits for a request.
    pub fn leave_when_idle(&self) {
        self.leave.notify_one();
    }

    /// While busy, the connection is left alone.
    pub fn set_busy(&self, busy: bool) {
        self.change(|entry| entry.busy = busy);
    }

    /// Notes a wrong proof.
    pub fn failed(&self) {
        self.change(|entry| entry.failures = entry.failures.saturating_add(1));
    }

    /// Whether a wrong proof was noted.
    pub fn has_failed(&self) -> bool {
        self.admission.entries().get(&self.number).is_some_and(|entry| entry.failures > 0)
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.admission.entries().get_mut(&self.number) {
            change(entry);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.entries().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn told_to_leave(ticket: &Ticket) -> bool {
        ticket.asked_to_leave().now_or_never().is_some()
    }

    #[test]
    fn a_source_makes_room_for_itself() {
        let admission = Arc::new(Admission::default());
        let flood: Vec<_> = (0..PER_SOURCE).map(|_| admission.admit(Group::User(1)).unwrap()).collect();
        flood[5].failed();
        let more = admission.admit(Group::User(1)).unwrap();
        assert_eq!(flood.iter().position(told_to_leave), Some(5), "the one with a wrong proof");
        let _more = admission.admit(Group::User(1)).unwrap();
        assert_eq!(flood.iter().position(told_to_leave), Some(0), "then the oldest");
        let other = admission.admit(Group::User(2)).unwrap();
        assert!(!told_to_leave(&other) && !told_to_leave(&more));
    }

    #[test]
    fn the_largest_source_makes_room_for_others() {
        let admission = Arc::new(Admission::default());
        let mut held = Vec::new();
        for user in 0..4 {
            held.extend((0..PER_SOURCE).map(|_| admission.admit(Group::User(user)).unwrap()));
        }
        drop(held.pop());
        let single = admission.admit(Group::User(100)).unwrap();
        let second = admission.admit(Group::User(101)).unwrap();
        assert!(!told_to_leave(&single) && !told_to_leave(&second));
        assert_eq!(held.iter().filter(|t| told_to_leave(t)).count(), 1);
    }

    #[test]
    fn a_grace_holds_against_the_own_source_until_something_wrong_came() {
        let admission = Arc::new(Admission::with_grace(Duration::MAX));
        let mut held: Vec<_> = (0..PER_SOURCE).map(|_| admission.admit(Group::User(1)).unwrap()).collect();
        assert!(admission.admit(Group::User(1)).is_none());
        held[3].failed();
        held.push(admission.admit(Group::User(1)).unwrap());
        assert_eq!(held.iter().position(told_to_leave), Some(3));
        // Against others it does not hold.
        for user in 2..5 {
            held.extend((0..PER_SOURCE).map(|_| admission.admit(Group::User(user)).unwrap()));
        }
        let single = admission.admit(Group::User(100)).unwrap();
        assert_eq!(held.iter().filter(|ticket| told_to_leave(ticket)).count(), 1);
        assert!(!told_to_leave(&single));
    }

    #[test]
    fn a_grace_ends() {
        let admission = Arc::new(Admission::with_grace(Duration::from_millis(1)));
        let held: Vec<_> = (0..PER_SOURCE).map(|_| admission.admit(Group::User(1)).unwrap()).collect();
        std::thread::sleep(Duration::from_millis(1));
        let _more = admission.admit(Group::User(1)).unwrap();
        assert_eq!(held.iter().position(told_to_leave), Some(0));
    }

    #[test]
    fn work_is_not_interrupted() {
        let admission = Arc::new(Admission::default());
        let held: Vec<_> = (0..PER_SOURCE).map(|_| admission.admit(Group::User(1)).unwrap()).collect();
        held.iter().for_each(|t| t.set_busy(true));
        assert!(admission.admit(Group::User(1)).is_none());
        held[3].set_busy(false);
        assert!(admission.admit(Group::User(1)).is_some());
    }

    #[test]
    fn those_that_do_not_leave_are_bounded_too() {
        let admission = Arc::new(Admission::default());
        let held: Vec<_> = (0..10 * IN_ALL).filter_map(|i| admission.admit(Group::User(i as u32 % 7))).collect();
        assert_eq!(held.len(), 2 * IN_ALL);
        drop(held);
        assert!(admission.entries().is_empty());
    }
}
