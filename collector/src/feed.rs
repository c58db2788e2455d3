//! Carries what hosts sign into the transparency log: every statement that holds, in the order in which they were indexed.
//!
//! Nothing waits for this. Frames are acknowledged once they are durable, the index follows them, and this follows the index; witnesses
//! are asked by the log's publisher, later still. What was taken and how far is one transaction of the log's, and a leaf that is
//! there keeps its index, so that a crash at any moment neither loses a statement nor logs one twice. An index that is built anew, which
//! may number statements otherwise, is a source of its own and followed from its beginning.

use std::sync::Arc;
use std::time::Duration;

use breakglass_api::checkpoint::SIGNED_MAX;
use tokio::sync::watch;

use crate::index::IndexReader;
use crate::store::StoreError;
use crate::tlog::leaves::Source;
use crate::tlog::log::{APPEND_MAX, Log, LogError};
use crate::tlog::tile::LEAF_MAX;

/// Statements taken in one step: with the largest ones 12 MiB of memory.
const STEP: u32 = 256;
/// Pause after the log or the index could not be used.
const RETRY: Duration = Duration::from_secs(1);

const _: () = assert!(SIGNED_MAX <= LEAF_MAX && STEP as usize <= APPEND_MAX, "every statement can be a leaf");

/// Why the log could not be fed.
#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error(transparent)]
    Index(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What follows the index into the log.
pub struct Feed {
    index: IndexReader,
    log: Arc<Log>,
    /// Name of the index as a source of leaves.
    source: String,
}

impl Feed {
    /// Follows `index`, which is called `source` for as long as it numbers statements the same.
    pub fn new(index: IndexReader, log: Arc<Log>, source: String) -> Self {
        Self { index, log, source }
    }

    /// Follows the index until it ends or `stopping` is true; what is left then is taken at the next start.
    pub async fn run(self, mut stopping: watch::Receiver<bool>) {
        let mut indexed = self.index.indexed();
        loop {
            // Before reading: what is indexed meanwhile comes round again.
            indexed.borrow_and_update();
            let pause = async {
                match self.step().await {
                    Ok(true) => true,
                    Ok(false) => indexed.changed().await.is_ok(),
                    Err(error) => {
                        tracing::error!(%error, "hosts' checkpoints do not get into the transparency log; trying again");
                        tokio::time::sleep(RETRY).await;
                        true
                    }
                }
            };
            tokio::select! {
                goes_on = pause => if !goes_on { return },
                // An error means that nobody is left who could stop it otherwise.
                _ = stopping.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Takes the next statements; says whether there were any.
    async fn step(&self) -> Result<bool, FeedError> {
        let after = self.log.position(&self.source).await?;
        let (places, leaves): (Vec<i64>, Vec<Vec<u8>>) = self.index.leaves(after, STEP).await?.into_iter().unzip();
        let Some(position) = places.last().copied() else { return Ok(false) };
        self.log.append_from(Source { name: &self.source, position }, &leaves).await?;
        Ok(true)
    }
}
