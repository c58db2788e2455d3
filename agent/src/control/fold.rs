//! Every refused proof is recorded, and no flood of them fills the record: the first of a source with a code at once, equal
//! ones that follow as a count, every [`WINDOW`].

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use breakglass_api::v1::ProofRefused;
use tokio::{sync::Notify, time::Instant};

use super::source::Group;

/// How long equal refusals are counted before they are recorded.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Most pairs of source and code that are told apart at a time; beyond, sources are taken together.
const PAIRS_MAX: usize = 256;

/// Refusals that wait to be recorded.
#[derive(Default)]
pub struct Refusals {
    entries: Mutex<HashMap<(Group, String), Entry>>,
    changed: Notify,
}

struct Entry {
    /// The latest one, for its claims.
    refused: ProofRefused,
    /// Not recorded yet.
    pending: u32,
    /// When the next may be recorded.
    due: Instant,
}

impl Refusals {
    /// Takes one refusal in; never waits.
    pub fn add(&self, group: Group, refused: ProofRefused) {
        let mut entries = self.entries();
        let mut key = (group, refused.code.clone());
        if entries.len() >= PAIRS_MAX && !entries.contains_key(&key) {
            key.0 = Group::Many;
        }
        let entry =
            entries.entry(key).or_insert_with(|| Entry { refused: refused.clone(), pending: 0, due: Instant::now() });
        entry.pending = entry.pending.saturating_add(1);
        entry.refused = refused;
        drop(entries);
        self.changed.notify_one();
    }

    /// Resolves to those that are to be recorded now. For one caller.
    pub async fn next(&self) -> Vec<ProofRefused> {
        loop {
            let (ready, wait) = self.take(false);
            if !ready.is_empty() {
                return ready;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Everything that was not recorded yet, at the end.
    pub fn rest(&self) -> Vec<ProofRefused> {
        self.take(true).0
    }

    /// What is due, and how long until something else may be.
    fn take(&self, all: bool) -> (Vec<ProofRefused>, Duration) {
        let now = Instant::now();
        let mut wait = WINDOW;
        let mut ready = Vec::new();
        self.entries().retain(|(group, _), entry| {
            let due = all || entry.due <= now;
            if due && entry.pending > 0 {
                ready.push(folded(*group, entry));
                entry.pending = 0;
                entry.due = now + WINDOW;
            } else if due {
                return false;
            }
            wait = wait.min(entry.due.saturating_duration_since(now));
            true
        });
        (ready, wait)
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<(Group, String), Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn folded(group: Group, entry: &Entry) -> ProofRefused {
    let mut refused = entry.refused.clone();
    refused.count = entry.pending;
    if group == Group::Many {
        refused.source = format!("{} and others", refused.source);
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str) -> ProofRefused {
        ProofRefused { code: code.into(), source: "10.0.0.1:1".into(), ..ProofRefused::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_at_once_and_the_rest_as_a_count() {
        let refusals = Refusals::default();
        for _ in 0..2 {
            refusals.add(Group::User(1), refused("a"));
        }
        assert_eq!(refusals.next().await[0].count, 2);
        let started = Instant::now();
        for _ in 0..1000 {
            refusals.add(Group::User(1), refused("a"));
        }
        refusals.add(Group::User(1), refused("b"));
        let at_once = refusals.next().await;
        assert_eq!((at_once.len(), at_once[0].code.as_str()), (1, "b"));
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!(refusals.next().await[0].count, 1000);
        assert!(started.elapsed() >= WINDOW && started.elapsed() < 2 * WINDOW);
    }

    #[tokio::test(start_paused = true)]
    async fn many_sources_are_bounded_and_none_is_lost() {
        let refusals = Refusals::default();
        for user in 0..10_000 {
            refusals.add(Group::User(user), refused("a"));
        }
        let recorded = refusals.next().await;
        assert_eq!(recorded.len(), PAIRS_MAX + 1);
        assert_eq!(recorded.iter().map(|r| r.count).sum::<u32>(), 10_000);
        assert!(recorded.iter().any(|r| r.source == "10.0.0.1:1 and others"));
        refusals.add(Group::User(1), refused("a"));
        assert_eq!(refusals.rest().len(), 1, "what is not due yet is recorded at the end");
        tokio::time::sleep(2 * WINDOW).await;
        assert!(refusals.take(false).0.is_empty());
        assert!(refusals.entries().is_empty(), "forgotten when quiet");
    }
}
