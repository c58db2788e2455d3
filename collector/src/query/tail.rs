//! Reads the frames of one host in order, to the end or on and on.

use tokio::sync::watch;
use tonic::Status;

use super::QueryService;
use super::unavailable;
use crate::index::{Decoded, Decoder, IndexReader, SessionRecord};
use crate::store::{Page, Span, Store};

/// Frames read at once: small, because an answer is sent while the next page is read.
const PAGE: Page = Page { events: 4096, bytes: 1024 * 1024, raw: 4 * 1024 * 1024 };

/// A reader of one host's frames.
pub(super) struct Tail {
    store: Store,
    decoder: Decoder,
    index: IndexReader,
    shutdown: watch::Receiver<bool>,
    host: i64,
    after: i64,
    until: i64,
    /// What ends the reading, once all up to `until` is read.
    end: End,
}

/// When a reader is done.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// At the newest frame there was when it began.
    Now,
    /// When the session in this row is closed.
    SessionClosed(i64),
    /// Never.
    Never,
}

impl QueryService {
    /// Reads the frames of a session.
    pub(super) async fn tail_session(&self, record: &SessionRecord, follow: bool) -> Result<Tail, Status> {
        let end = if follow { End::SessionClosed(record.state.row) } else { End::Now };
        let mut tail = self.tail(record.host, end).await?;
        tail.after = record.state.first_arrival - 1;
        if record.state.closed.is_some() {
            tail.until = record.state.last_arrival;
        }
        Ok(tail)
    }

    /// Reads the frames of a host.
    pub(super) async fn tail(&self, host: i64, end: End) -> Result<Tail, Status> {
        Ok(Tail {
            store: self.store.clone(),
            decoder: Decoder::new(self.store.clone()),
            index: self.index.clone(),
            shutdown: self.shutdown.clone(),
            host,
            after: 0,
            until: self.store.last_arrival().await.map_err(unavailable)?,
            end,
        })
    }
}

impl Tail {
    /// Skips everything up to and with the first frame ahead whose sequence is `seq`.
    pub(super) async fn skip_through(&mut self, seq: u64) -> Result<(), Status> {
        let span = Span { host: Some(self.host), after: self.after, until: self.until };
        if let Some(arrival) = self.store.arrival_of(self.host, span, seq).await.map_err(unavailable)? {
            self.after = arrival;
        }
        Ok(())
    }

    /// The next frames; `None` at the end. Waits for more where it follows.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Decoded>>, Status> {
        loop {
            if self.after < self.until {
                let span = Span { host: Some(self.host), after: self.after, until: self.until };
                let frames = self.store.read(span, PAGE).await.map_err(unavailable)?;
                self.after = frames.last().map_or(self.until, |last| last.arrival);
                if !frames.is_empty() {
                    return self.decoder.decode(frames).await.map(Some).map_err(unavailable);
                }
            }
            if self.is_over().await? {
                return Ok(None);
            }
        }
    }

    /// At the end of what is known: waits for more, or says that there will be none.
    async fn is_over(&mut self) -> Result<bool, Status> {
        if let End::Now = self.end {
            return Ok(true);
        }
        let mut indexed = self.index.indexed();
        let newest = *indexed.borrow_and_update();
        if newest > self.until {
            self.until = newest;
            return Ok(false);
        }
        if let End::SessionClosed(row) = self.end {
            let session = self.index.session_again(row).await.map_err(unavailable)?;
            // The index may have gone on since; then it has announced that, and this comes round again.
            if session.is_none_or(|s| s.state.closed.is_some() && s.state.last_arrival <= self.until) {
                return Ok(true);
            }
        }
        wait(&mut indexed, &mut self.shutdown).await.map(|()| false)
    }
}

/// Waits for the index to go on.
pub(super) async fn wait(
    indexed: &mut watch::Receiver<i64>,
    shutdown: &mut watch::Receiver<bool>,
) -> Result<(), Status> {
    let ended = || Status::unavailable("the collector is shutting down");
    tokio::select! {
        changed = indexed.changed() => changed.map_err(|_| ended()),
        _ = shutdown.wait_for(|down| *down) => Err(ended()),
    }
}
