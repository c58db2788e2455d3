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
                record.state.closed_ns.saturating_add(i64::from(self.settings.due_hours).saturating_mul(HOUR_NS))
            }
            None => 0,
        };
        let overdue = !reviewed && due_ns != 0 && due_ns < wall_clock_ns();
        Ok(Standing { reviews: self.book.of(record.uuid).await?, reviewed, due_ns, overdue })
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

    async fn tell_overdue(&self, told: &mut HashSet<[u8; 16]>) -> Result<()> {
        let mut before = None;
        loop {
            let page = self.index.sessions(None, None, false, before.as_ref(), PAGE).await?;
            let Some(last) = page.last().map(|record| record.state.clone()) else { return Ok(()) };
            for record in page {
                if told.contains(&record.uuid) || !self.standing(&record).await?.overdue {
                    continue;
                }
                told.insert(record.uuid);
                let (session, operator) = (uuid::Uuid::from_bytes(record.uuid), &record.state.operator);
                tracing::error!(%session, operator, "the review of this session is overdue");
            }
            before = Some(last);
        }
    }
}
