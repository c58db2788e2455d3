//! Which hosts are connected right now, when they were last heard, and how to reach them. In memory only: after a restart nobody
//! is connected until they call again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use breakglass_api::v1::order::What;
use breakglass_api::v1::{Order, OrderDone};
use tokio::sync::{mpsc, oneshot};

use crate::wall_clock_ns;

/// Orders handed to one connection and not taken by it.
const ORDERS_MAX: usize = 8;
/// How long a host may take to answer an order: longer than ending a session takes.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The connected hosts, by host id. Cheap to clone.
#[derive(Clone)]
pub struct Presence {
    hosts: Arc<Mutex<HashMap<String, Entry>>>,
    began: Instant,
}

/// Bounded by the number of certificates that were issued: only enrolled hosts get this far.
#[derive(Default)]
struct Entry {
    /// Which visit is the current one; 0 when none is.
    visit: u64,
    visits: u64,
    last_seen_ns: i64,
    heard: Option<Instant>,
    keeps_talking: bool,
    superseded: Option<oneshot::Sender<()>>,
    orders: Option<mpsc::Sender<Order>>,
    last_order: u64,
    /// Who waits for the answer to an order. What belongs to a connection that ended is dropped with it.
    waiting: HashMap<u64, oneshot::Sender<OrderDone>>,
}

/// A host's connection, for as long as it lives.
pub struct Visit {
    presence: Presence,
    host_id: String,
    visit: u64,
}

/// What a connection is told by others.
pub struct Called {
    /// The same host has connected again.
    pub superseded: oneshot::Receiver<()>,
    /// What the host is asked.
    pub orders: mpsc::Receiver<Order>,
}

/// What is known of a host's connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sighting {
    /// Whether it is connected now.
    pub connected: bool,
    /// Wall clock of the last message, ns since 1970; 0 if none since the collector started.
    pub last_seen_ns: i64,
}

/// How long a host has said nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Since its last message, or since this collector started.
    pub lasts: Duration,
    /// Whether its agent says something every second. An older one may be silent for longer without meaning it, and so may one that
    /// has not called yet since this collector started.
    pub keeps_talking: bool,
}

/// Why a host did not answer an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// No connection.
    #[error("the host is not connected")]
    NotConnected,
    /// An older agent, or one whose configuration says so.
    #[error("the host's agent takes no orders: it is too old, or its configuration says collector.orders = false")]
    TakesNone,
    /// Too many at once.
    #[error("the host has not taken the orders before this one")]
    Busy,
    /// The connection broke first.
    #[error("the host's connection ended before it answered; whether it acted is in its record")]
    Gone,
    /// Nothing came.
    #[error("the host has not answered in time; whether it acted is in its record")]
    Late,
}

impl OrderError {
    /// A stable word for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotConnected => "not-connected",
            Self::TakesNone => "takes-no-orders",
            Self::Busy => "busy",
            Self::Gone | Self::Late => "no-answer",
        }
    }
}

impl Default for Presence {
    fn default() -> Self {
        Self { hosts: Arc::default(), began: Instant::now() }
    }
}

impl Presence {
    /// One in which nobody was heard since `began`.
    #[cfg(test)]
    pub(crate) fn begun(began: Instant) -> Self {
        Self { began, ..Self::default() }
    }

    /// A host connected. An older connection of the same host is told to end: a restarted agent calls again long before its old
    /// connection is known to be dead.
    pub fn arrive(&self, host_id: &str, takes_orders: bool, keeps_talking: bool) -> (Visit, Called) {
        let (tell, superseded) = oneshot::channel();
        let (order, orders) = mpsc::channel(ORDERS_MAX);
        let mut hosts = self.lock();
        let entry = hosts.entry(host_id.to_owned()).or_default();
        entry.visits += 1;
        entry.visit = entry.visits;
        entry.hear();
        entry.keeps_talking = keeps_talking;
        entry.orders = takes_orders.then_some(order);
        entry.waiting.clear();
        // Dropping the older sender would do; sending says it on purpose.
        if let Some(older) = entry.superseded.replace(tell) {
            let _ = older.send(());
        }
        let visit = Visit { presence: self.clone(), host_id: host_id.to_owned(), visit: entry.visit };
        (visit, Called { superseded, orders })
    }

    /// What is known of `host_id`.
    pub fn sighting(&self, host_id: &str) -> Sighting {
        let hosts = self.lock();
        hosts
            .get(host_id)
            .map_or_else(Sighting::default, |e| Sighting { connected: e.visit != 0, last_seen_ns: e.last_seen_ns })
    }

    /// How long `host_id` has said nothing.
    pub fn silence(&self, host_id: &str) -> Silence {
        let hosts = self.lock();
        let entry = hosts.get(host_id);
        let heard = entry.and_then(|entry| entry.heard).unwrap_or(self.began);
        Silence { lasts: heard.elapsed(), keeps_talking: entry.is_some_and(|entry| entry.keeps_talking) }
    }

    /// Asks something of a host and waits for its answer.
    pub async fn order(&self, host_id: &str, what: What, by: &str, reason: &str) -> Result<OrderDone, OrderError> {
        let answer = self.give(host_id, what, by, reason)?;
        match tokio::time::timeout(ANSWER_MAX, answer).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) => Err(OrderError::Gone),
            Err(_) => Err(OrderError::Late),
        }
    }

    fn give(
        &self,
        host_id: &str,
        what: What,
        by: &str,
        reason: &str,
    ) -> Result<oneshot::Receiver<OrderDone>, OrderError> {
        let mut hosts = self.lock();
        let entry = hosts.get_mut(host_id).filter(|entry| entry.visit != 0).ok_or(OrderError::NotConnected)?;
        let orders = entry.orders.as_ref().ok_or(OrderError::TakesNone)?;
        let number = entry.last_order + 1;
        let order = Order { number, by: by.to_owned(), reason: reason.to_owned(), what: Some(what) };
        orders.try_send(order).map_err(|_| OrderError::Busy)?;
        entry.last_order = number;
        entry.waiting.retain(|_, waiting| !waiting.is_closed());
        let (tell, answer) = oneshot::channel();
        entry.waiting.insert(number, tell);
        Ok(answer)
    }

    /// The map is valid after any panic in between: each field stands for itself.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn hear(&mut self) {
        self.heard = Some(Instant::now());
        self.last_seen_ns = wall_clock_ns();
    }
}

impl Visit {
    /// The host sent something.
    pub fn seen(&self) {
        if let Some(entry) = self.presence.lock().get_mut(&self.host_id) {
            entry.hear();
        }
    }

    /// The host answered an order. An answer that nobody waits for is nothing.
    pub fn done(&self, done: OrderDone) {
        let mut hosts = self.presence.lock();
        let entry = hosts.get_mut(&self.host_id).filter(|entry| entry.visit == self.visit);
        if let Some(waiting) = entry.and_then(|entry| entry.waiting.remove(&done.number)) {
            let _ = waiting.send(done);
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
            entry.orders = None;
            entry.waiting.clear();
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
        let (first, mut called) = presence.arrive("h", true, true);
        assert!(called.superseded.try_recv().is_err());
        let (second, _keep) = presence.arrive("h", true, true);
        assert_eq!(called.superseded.try_recv(), Ok(()));
        drop(first);
        assert!(presence.sighting("h").connected);
        drop(second);
        let sighting = presence.sighting("h");
        assert!(!sighting.connected && sighting.last_seen_ns > 0);
    }

    #[tokio::test]
    async fn an_order_reaches_the_connection_and_its_answer_comes_back() {
        let presence = Presence::default();
        let ask = || presence.order("h", What::AreYouThere(Default::default()), "admin/a", "why");
        assert_eq!(ask().await, Err(OrderError::NotConnected));
        let (old, _called) = presence.arrive("h", false, true);
        assert_eq!(ask().await, Err(OrderError::TakesNone));
        let (visit, mut called) = presence.arrive("h", true, true);
        let answering = async {
            let order = called.orders.recv().await.unwrap();
            assert_eq!((order.by.as_str(), order.reason.as_str()), ("admin/a", "why"));
            let done = |number| OrderDone { number, code: "done".into(), message: String::new() };
            visit.done(done(order.number + 1));
            old.done(done(order.number));
            visit.done(OrderDone { message: "here".into(), ..done(order.number) });
        };
        let (answer, ()) = tokio::join!(ask(), answering);
        assert_eq!(answer.unwrap().message, "here", "the answer to this order, of this connection");
        let leaving = async {
            called.orders.recv().await.unwrap();
            drop(visit);
        };
        let (answer, ()) = tokio::join!(ask(), leaving);
        assert_eq!(answer, Err(OrderError::Gone));
    }

    #[test]
    fn orders_that_nobody_takes_are_refused_beyond_a_bound() {
        let presence = Presence::default();
        let (_visit, _called) = presence.arrive("h", true, true);
        let give = || presence.give("h", What::AreYouThere(Default::default()), "", "").map(drop);
        assert!((0..ORDERS_MAX).all(|_| give().is_ok()));
        assert_eq!(give(), Err(OrderError::Busy));
        assert!(presence.lock()["h"].waiting.len() <= ORDERS_MAX);
    }
}
