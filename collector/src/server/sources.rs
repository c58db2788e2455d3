//! How many connections one source may have that have not proved who they are.
//!
//! A connection costs its maker nothing until it does. Without this, one machine that opens connections and says nothing would hold every place there is.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::enrol::network;

/// Such connections of one source: an IPv4 address, or an IPv6 /64. Behind one address may be many hosts, which all come back after an outage; each is
/// through in milliseconds, and tries again.
const PER_SOURCE: usize = 16;
/// The same of this machine itself, through which whole fleets may be tunnelled.
const LOCAL: usize = 64;

/// Counts them. Cheap to clone.
#[derive(Clone, Default)]
pub struct Sources {
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection's place; free again when dropped.
pub struct Place {
    sources: Sources,
    source: IpAddr,
}

impl Sources {
    /// A place for one more connection of `from`; none if that has as many as it may.
    pub fn place(&self, from: IpAddr) -> Option<Place> {
        let source = network(from);
        let most = if from.to_canonical().is_loopback() { LOCAL } else { PER_SOURCE };
        let mut held = self.held();
        let count = held.entry(source).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        drop(held);
        Some(Place { sources: self.clone(), source })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.sources.held();
        if let Some(count) = held.get_mut(&self.source) {
            *count -= 1;
            // Only who is here now is remembered.
            if *count == 0 {
                held.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_leaves_places_for_others_and_gets_its_own_back() {
        let sources = Sources::default();
        let from = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut places: Vec<Place> = (0..PER_SOURCE).filter_map(|_| sources.place(from("10.0.0.1"))).collect();
        assert_eq!(places.len(), PER_SOURCE);
        assert!(sources.place(from("10.0.0.1")).is_none() && sources.place(from("::ffff:10.0.0.1")).is_none());
        assert!(sources.place(from("10.0.0.2")).is_some());
        places.pop();
        assert!(sources.place(from("10.0.0.1")).is_some());
        // All of a /64 are one.
        let six: Vec<_> = (0..100).filter_map(|n| sources.place(from(&format!("2001:db8::{n:x}")))).collect();
        assert_eq!(six.len(), PER_SOURCE);
        assert!(sources.place(from("2001:db8:0:1::1")).is_some());
        drop((places, six));
        assert!(sources.held().is_empty());
    }
}
