//! Which hosts are connected right now. In memory only: after a restart nobody is until they call again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::wall_clock_ns;

/// The connected hosts, by host id. Cheap to clone.
#[derive(Clone, Default)]
pub struct Presence {
    hosts: Arc<Mutex<HashMap<String, Entry>>>,
}

/// Bounded by the number of certificates that were issued: only enrolled hosts get this far.
#[derive(Default)]
struct Entry {
    /// Which visit is the current one; 0 when none is.
    visit: u64,
    visits: u64,
    last_seen_ns: i64,
    superseded: Option<oneshot::Sender<()>>,
}

/// A host's connection, for as long as it lives.
pub struct Visit {
    presence: Presence,
    host_id: String,
    visit: u64,
}

/// What is known of a host's connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sighting {
    /// Whether it is connected now.
    pub connected: bool,
    /// Wall clock of the last message, ns since 1970; 0 if none since the collector started.
    pub last_seen_ns: i64,
}

impl Presence {
    /// A host connected. An older connection of the same host is told to end by its receiver: a restarted agent calls again
    /// long before its old connection is known to be dead.
    pub fn arrive(&self, host_id: &str) -> (Visit, oneshot::Receiver<()>) {
        let (tell, superseded) = oneshot::channel();
        let mut hosts = self.lock();
        let entry = hosts.entry(host_id.to_owned()).or_default();
        entry.visits += 1;
        entry.visit = entry.visits;
        entry.last_seen_ns = wall_clock_ns();
        // Dropping the older sender would do; sending says it on purpose.
        if let Some(older) = entry.superseded.replace(tell) {
            let _ = older.send(());
        }
        let visit = Visit { presence: self.clone(), host_id: host_id.to_owned(), visit: entry.visit };
        (visit, superseded)
    }

    /// What is known of `host_id`.
    pub fn sighting(&self, host_id: &str) -> Sighting {
        let hosts = self.lock();
        hosts
            .get(host_id)
            .map_or_else(Sighting::default, |e| Sighting { connected: e.visit != 0, last_seen_ns: e.last_seen_ns })
    }

    /// The map is valid after any panic in between: each field stands for itself.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visit {
    /// The host sent something.
    pub fn seen(&self) {
        if let Some(entry) = self.presence.lock().get_mut(&self.host_id) {
            entry.last_seen_ns = wall_clock_ns();
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Some(entry) = self.presence.lock().get_mut(&self.host_id)
            && entry.visit == self.visit
        {
            entry.visit = 0;
            entry.superseded = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_connection_replaces_the_older_and_outlives_it() {
        let presence = Presence::default();
        assert_eq!(presence.sighting("h"), Sighting::default());
        let (first, mut told) = presence.arrive("h");
        assert!(told.try_recv().is_err());
        let (second, _keep) = presence.arrive("h");
        assert_eq!(told.try_recv(), Ok(()));
        drop(first);
        assert!(presence.sighting("h").connected);
        drop(second);
        let sighting = presence.sighting("h");
        assert!(!sighting.connected && sighting.last_seen_ns > 0);
    }
}
