//! What an evidence file holds of the transparency log and of reviews.

use std::collections::BTreeSet;
use std::time::Duration;

use breakglass_api::checkpoint::Signed;
use breakglass_proof::merkle::{Consistency, Inclusion, leaf_hash};
use breakglass_proof::review::{Review, join};
use tlog_tiles::Hash;
use tokio::time::Instant;
use tonic::Status;

use super::evidence::Range;
use super::{QueryService, unavailable};
use crate::index::SessionRecord;
use crate::tlog::log::LogError;
use crate::tlog::note::SignedCheckpoint;

/// How long to wait for the log to publish what was signed just now: a few rounds of the publisher, and its witnesses. After that the
/// file proves less, and the next export more.
const PUBLISHED_WAIT: Duration = Duration::from_secs(10);
/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl QueryService {
    /// The signed reviews of a session.
    pub(super) async fn reviews(&self, record: &SessionRecord) -> Result<Vec<Vec<u8>>, Status> {
        let records = self.signing.queue.reviews(record).await.map_err(unavailable)?;
        Ok(records.into_iter().map(|record| join(&record.text, &record.signature)).collect())
    }

    /// The published checkpoint of the log, with the statements about these frames if that can be waited for; none before the first.
    pub(super) async fn published(&self, range: &Range) -> Result<Option<SignedCheckpoint>, Status> {
        let until = Instant::now() + PUBLISHED_WAIT;
        let last = self.last_leaf(range).await?;
        while !self.is_published(last.as_deref()).await? && Instant::now() < until {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let Some(note) = self.signing.log.checkpoint().await.map_err(failed)? else { return Ok(None) };
        let damaged = |error| Status::data_loss(format!("the log's checkpoint cannot be read: {error}"));
        SignedCheckpoint::parse(&note).map(Some).map_err(damaged)
    }

    async fn is_published(&self, leaf: Option<&[u8]>) -> Result<bool, Status> {
        let Some(leaf) = leaf else { return Ok(true) };
        let index = self.signing.log.index_of(leaf).await.map_err(failed)?;
        let published = self.signing.log.published().map_or(0, |head| head.size);
        Ok(index.is_some_and(|index| index < published))
    }

    /// The statement about these frames that gets into the log last: they do so in the order in which they came.
    async fn last_leaf(&self, range: &Range) -> Result<Option<Vec<u8>>, Status> {
        let (mut after, mut last) = (0, None);
        while let Some((id, checkpoints)) = self.checkpoints(range, after).await? {
            after = id;
            last = checkpoints.last().map(Signed::encode);
        }
        Ok(last)
    }

    /// Proofs that these statements are in the log's first `size` leaves, of those that are.
    pub(super) async fn inclusions(&self, checkpoints: &[Signed], size: u64) -> Result<Vec<Vec<u8>>, Status> {
        let log = &self.signing.log;
        let mut proofs = Vec::with_capacity(checkpoints.len());
        for signed in checkpoints {
            let leaf = signed.encode();
            let index = log.index_of(&leaf).await.map_err(failed)?;
            let Some(index) = index.filter(|index| *index < size) else { continue };
            let path = log.inclusion_proof(index, size).await.map_err(failed)?;
            proofs.push(Inclusion { leaf: leaf_hash(&leaf), index, path: plain(path) }.encode());
        }
        Ok(proofs)
    }

    /// Proofs that the log's first `size` leaves continue what the reviewers saw, and what the reader has from earlier.
    pub(super) async fn consistencies(
        &self,
        reviews: &[Vec<u8>],
        earlier: u64,
        size: u64,
    ) -> Result<Vec<Vec<u8>>, Status> {
        let texts = reviews.iter().filter_map(|signed| breakglass_proof::review::split(signed));
        let seen = texts.filter_map(|(text, _)| Review::parse(text).ok()?.log).map(|head| head.size);
        let sizes: BTreeSet<u64> = seen.chain([earlier]).filter(|from| (1..size).contains(from)).collect();
        let log = &self.signing.log;
        let mut proofs = Vec::with_capacity(sizes.len());
        for from in sizes {
            let root = log.root(from).await.map_err(failed)?.0;
            let path = plain(log.consistency_proof(from, size).await.map_err(failed)?);
            proofs.push(Consistency { size: from, root, path }.encode());
        }
        Ok(proofs)
    }
}

fn plain(path: Vec<Hash>) -> Vec<[u8; 32]> {
    path.into_iter().map(|hash| hash.0).collect()
}

/// The log failed: the caller is told that, and the log file why.
pub(super) fn failed(error: LogError) -> Status {
    tracing::error!(%error, "a question to the transparency log failed");
    Status::unavailable(format!("the transparency log does not answer: {error}"))
}
