//! Which sessions wait for a review, and since when too long.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::watch;

use super::ReviewSettings;
use super::book::{Book, ReviewRecord};
use crate::index::{IndexReader, SessionRecord};
use crate::store::{Result, Store};
use crate::wall_clock_ns;

/// Sessions read at once while looking for those that wait.
const PAGE: u32 = 200;
/// How often overdue reviews are looked for: they are late by days, and every session is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(300);
const HOUR_NS: i64 = 3_600_000_000_000;

/// How a session stands.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its reviews, oldest first.
    pub reviews: Vec<ReviewRecord>,
    /// One of them covers everything that is recorded of it.
    pub reviewed: bool,
    /// Wall clock by which it should be reviewed, ns; 0 while it is open.
    pub due_ns: i64,
    /// It waits for longer than that.
    pub overdue: bool,
}

/// The queue. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    store: Store,
    index: IndexReader,
    book: Book,
    settings: ReviewSettings,
}

impl Queue {
    /// The sessions of `index` that have no review in `book`.
    pub fn new(store: Store, index: IndexReader, book: Book, settings: ReviewSettings) -> Self {
        Self { store, index, book, settings }
    }

    /// Where reviews are kept.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// How a session stands.
    pub async fn standing(&self, record: &SessionRecord) -> Result<Standing> {
        let reviewed = self.is_reviewed(record).await?;
        let due_ns = match record.state.closed {
            Some(_) => {
                let wait_ns = i64::from(self.settings.due_hours).saturating_mul(HOUR_NS);
                self.ended_ns(record).await?.saturating_add(wait_ns)
            }
            None => 0,
        };
        let overdue = !reviewed && due_ns != 0 && due_ns < wall_clock_ns();
        Ok(Standing { reviews: self.reviews(record).await?, reviewed, due_ns, overdue })
    }

    /// When a closed session ended: as its host says, but not after the close was received here. Whoever was root in it could set the host's
    /// clock, and put the review off for ever.
    async fn ended_ns(&self, record: &SessionRecord) -> Result<i64> {
        let received = self.store.received_ns(record.state.closed_arrival).await?;
        Ok(received.map_or(record.state.closed_ns, |received| received.min(record.state.closed_ns)))
    }

    /// The reviews of a session, oldest first. Those of another host's under the same id are not.
    pub async fn reviews(&self, record: &SessionRecord) -> Result<Vec<ReviewRecord>> {
        let mut reviews = self.book.of(record.uuid).await?;
        if !reviews.is_empty() {
            let hosts = self.store.hosts().await?;
            let host = hosts.iter().find(|(row, _)| *row == record.host);
            let id = host.and_then(|(_, host)| uuid::Uuid::try_parse(&host.host_id).ok());
            reviews.retain(|one| id.is_some_and(|id| id.into_bytes() == one.review.host_id));
        }
        Ok(reviews)
    }

    /// Whether a review covers everything that is recorded of a session.
    pub async fn is_reviewed(&self, record: &SessionRecord) -> Result<bool> {
        if record.state.closed.is_none() {
            return Ok(false);
        }
        let Some((stream, seq)) = self.store.place(record.state.last_arrival).await? else { return Ok(false) };
        self.book.covers(record.uuid, stream, seq).await
    }

    /// Says in the log which reviews are overdue, each once, until `stopping` is true.
    pub async fn watch(self, mut stopping: watch::Receiver<bool>) {
        let mut told = HashSet::new();
        loop {
            if let Err(error) = self.tell_overdue(&mut told).await {
                tracing::warn!(%error, "cannot look for overdue reviews");
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                // An error means that nobody is left who could stop it otherwise.
                _ = stopping.wait_for(|stop| *stop) => return,
            }
        }
    }

    async fn tell_overdue(&self, told: &mut HashSet<(i64, [u8; 16])>) -> Result<()> {
        let mut before = None;
        loop {
            let page = self.index.sessions(None, None, false, before.as_ref(), PAGE).await?;
            let Some(last) = page.last().map(|record| record.state.clone()) else { return Ok(()) };
            for record in page {
                let key = (record.host, record.uuid);
                if told.contains(&key) || !self.standing(&record).await?.overdue {
                    continue;
                }
                told.insert(key);
                let (session, operator) = (uuid::Uuid::from_bytes(record.uuid), &record.state.operator);
                tracing::error!(%session, operator, "the review of this session is overdue");
            }
            before = Some(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Indexer, SessionState};
    use crate::store::{HostRecord, NewFrame};

    #[tokio::test]
    async fn whoever_sets_the_hosts_clock_does_not_put_the_review_off() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("frames.db")).await.unwrap();
        let indexer = Indexer::open(store.clone(), &dir.path().join("index.db")).await.unwrap();
        let book = Book::open(&dir.path().join("reviews.db")).await.unwrap();
        let host = HostRecord {
            host_id: "h".into(),
            hostname: "web1".into(),
            tier: String::new(),
            agent_version: String::new(),
            last_seen_ns: 1,
        };
        let host = store.greet(&host).await.unwrap();
        let frame = NewFrame {
            host,
            stream_id: [1; 16],
            seq: 1,
            hash: [0; 32],
            events: 1,
            missing_before: 0,
            received_ns: 5000,
            bytes: vec![0].into(),
        };
        let arrival = store.append(&[frame]).await.unwrap();
        let queue = Queue::new(store, indexer.reader(), book, ReviewSettings { due_hours: 1 });
        for (closed_ns, ended_ns) in [(7_258_118_400_000_000_000, 5000), (3000, 3000)] {
            let state = SessionState {
                closed: Some(Vec::new()),
                closed_ns,
                closed_arrival: arrival,
                last_arrival: arrival,
                ..SessionState::default()
            };
            let standing = queue.standing(&SessionRecord { uuid: [2; 16], host, state }).await.unwrap();
            assert_eq!((standing.due_ns, standing.overdue), (ended_ns + HOUR_NS, true), "closed at {closed_ns}");
        }
    }
}
