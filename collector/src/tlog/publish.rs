//! The publisher: signs what was appended, has it cosigned, and publishes it.
//!
//! It works in rounds. A round signs the log as it is, asks every witness for a cosignature at the same time, and publishes
//! as soon as there are enough of them (the quorum; at once where that is 0), then again with each further one. A round
//! ends when every witness has answered or taken too long, and the next begins a second after it began, or when there is
//! something new. A witness that failed sits out some rounds, longer each time, so that one that is away delays nothing.
//! Ingest never waits for any of this: it only appends.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use signed_note::Signature;
use tokio::sync::watch;
use tokio::time::Instant;

use super::client::{Http, Witness, WitnessError, find_cosignature};
use super::log::{Log, LogError};
use super::note::SignedCheckpoint;

/// Least time between the beginnings of two rounds.
const ROUND_EVERY: Duration = Duration::from_secs(1);
/// How long a witness sits out after its first failure, and at most.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// What the publisher knows; also written to `status.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Leaves that were appended.
    pub leaves: u64,
    /// Leaves of the last checkpoint that was signed.
    pub signed_size: u64,
    /// Leaves of the checkpoint that is served.
    pub published_size: u64,
    /// Cosignatures that a checkpoint needs before it is served.
    pub quorum: usize,
    /// Cosignatures on the last checkpoint that was signed.
    pub cosignatures: usize,
    /// Rounds since the start.
    pub rounds: u64,
    /// Why the log publishes nothing, if so.
    pub fault: Option<String>,
    /// The witnesses, in the order of the settings.
    pub witnesses: Vec<WitnessStatus>,
}

/// What is known of a witness.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WitnessStatus {
    /// Its name.
    pub name: String,
    /// Largest size that it has cosigned since the start.
    pub cosigned_size: u64,
    /// Failures since its last cosignature.
    pub failures: u32,
    /// The last of them.
    pub error: Option<String>,
}

struct Peer {
    witness: Witness,
    /// Not asked before this.
    rests_until: Option<Instant>,
    failures: u32,
    error: Option<String>,
    /// It contradicted itself, and its cosignatures no longer count.
    discredited: bool,
}

impl Peer {
    fn succeeded(&mut self) {
        if self.failures > 0 {
            tracing::info!(witness = self.name(), "cosigns again");
        }
        (self.failures, self.error, self.rests_until) = (0, None, None);
    }

    fn failed(&mut self, error: &WitnessError) {
        let text = error.to_string();
        match error {
            WitnessError::Ahead { .. } | WitnessError::Inconsistent(_) | WitnessError::RolledBack { .. } => {
                tracing::error!(witness = self.name(), error = text, "a witness contradicts the log");
            }
            _ if self.error.as_ref() != Some(&text) => {
                tracing::warn!(witness = self.name(), error = text, "no cosignature");
            }
            _ => {}
        }
        self.discredited |= matches!(error, WitnessError::RolledBack { .. });
        let rest = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(6)).min(BACKOFF_MAX);
        self.rests_until = Some(Instant::now() + rest);
        self.failures = self.failures.saturating_add(1);
        self.error = Some(text);
    }

    fn rests(&self) -> bool {
        self.discredited || self.rests_until.is_some_and(|until| until > Instant::now())
    }

    fn name(&self) -> &str {
        signed_note::Verifier::name(self.witness.key())
    }
}

/// The publisher of a log.
pub struct Publisher {
    log: Arc<Log>,
    http: Http,
    quorum: usize,
    peers: Vec<Peer>,
    /// Cosignatures on the last checkpoint that was signed, by the place of the witness.
    cosignatures: Vec<Option<Signature>>,
    size: u64,
    status: watch::Sender<Status>,
}

impl Publisher {
    /// A publisher that serves a checkpoint once `quorum` of `witnesses` have cosigned it.
    pub fn new(log: Arc<Log>, http: Http, witnesses: Vec<Witness>, quorum: usize) -> Self {
        let cosignatures = witnesses.iter().map(|_| None).collect();
        let peers = witnesses
            .into_iter()
            .map(|witness| Peer { witness, rests_until: None, failures: 0, error: None, discredited: false })
            .collect();
        Self { log, http, quorum, peers, cosignatures, size: 0, status: watch::Sender::default() }
    }

    /// What it knows, as it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Publishes until told to stop, and once more then.
    pub async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        loop {
            let next = Instant::now() + ROUND_EVERY;
            self.round().await;
            let idle = async {
                tokio::time::sleep_until(next).await;
                tokio::select! {
                    () = self.log.appended() => {}
                    () = tokio::time::sleep(self.retry_in()) => {}
                }
            };
            tokio::select! {
                () = idle => {}
                // An error means that nobody is left who could stop it otherwise.
                _ = stopping.wait_for(|stop| *stop) => break,
            }
        }
        self.round().await;
    }

    /// How long until there is something to do even though nothing was appended.
    fn retry_in(&self) -> Duration {
        let lacking = self.peers.iter().zip(&self.cosignatures).filter(|(_, cosignature)| cosignature.is_none());
        let rests = lacking.filter(|(peer, _)| !peer.discredited).filter_map(|(peer, _)| peer.rests_until);
        rests.min().map_or(BACKOFF_MAX, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Signs, has cosigned and publishes once.
    pub async fn round(&mut self) {
        let done = self.try_round().await;
        if let Err(error) = &done {
            tracing::error!(%error, "the transparency log publishes nothing");
        }
        let leaves = self.log.len().await.unwrap_or_else(|_| self.status.borrow().leaves);
        self.report(leaves, done.err().map(|error| error.to_string())).await;
    }

    async fn try_round(&mut self) -> Result<(), LogError> {
        let Some(checkpoint) = self.log.advance().await? else { return Ok(()) };
        if checkpoint.size() != self.size {
            self.size = checkpoint.size();
            self.recall(&checkpoint).await?;
        }
        if self.log.published().is_none_or(|published| published.size < self.size) {
            self.publish(&checkpoint).await?;
        }
        let (log, http) = (self.log.clone(), self.http.clone());
        let asked = self
            .peers
            .iter_mut()
            .enumerate()
            .filter(|(place, peer)| !peer.rests() && self.cosignatures.get(*place).is_some_and(Option::is_none));
        let mut answers: FuturesUnordered<_> = asked
            .map(|(place, peer)| {
                let (log, http, checkpoint) = (&log, &http, &checkpoint);
                async move {
                    let answer = peer.witness.cosign(http, log, checkpoint).await;
                    match &answer {
                        Ok(_) => peer.succeeded(),
                        Err(error) => peer.failed(error),
                    }
                    (place, answer.ok())
                }
            })
            .collect();
        while let Some((place, cosignature)) = answers.next().await {
            let (Some(cosignature), Some(slot)) = (cosignature, self.cosignatures.get_mut(place)) else { continue };
            *slot = Some(cosignature);
            publish(&log, self.quorum, &checkpoint, &self.cosignatures).await?;
        }
        Ok(())
    }

    /// Takes up the cosignatures that the checkpoint was published with, if it was: those of an earlier run.
    async fn recall(&mut self, checkpoint: &SignedCheckpoint) -> Result<(), LogError> {
        let served = self.log.checkpoint().await?.unwrap_or_default();
        for (peer, slot) in self.peers.iter_mut().zip(&mut self.cosignatures) {
            *slot = find_cosignature(peer.witness.key(), checkpoint, &served);
            if slot.is_some() {
                peer.witness.has_cosigned(checkpoint.size());
            }
        }
        Ok(())
    }

    async fn publish(&self, checkpoint: &SignedCheckpoint) -> Result<(), LogError> {
        publish(&self.log, self.quorum, checkpoint, &self.cosignatures).await
    }

    async fn report(&mut self, leaves: u64, fault: Option<String>) {
        let witnesses = self.peers.iter().map(|peer| WitnessStatus {
            name: peer.name().to_owned(),
            cosigned_size: peer.witness.known(),
            failures: peer.failures,
            error: peer.error.clone(),
        });
        let status = Status {
            leaves,
            signed_size: self.log.signed().map_or(0, |head| head.size),
            published_size: self.log.published().map_or(0, |head| head.size),
            quorum: self.quorum,
            cosignatures: self.cosignatures.iter().flatten().count(),
            rounds: self.status.borrow().rounds + 1,
            fault,
            witnesses: witnesses.collect(),
        };
        if let Err(error) = self.log.keep_status(&status).await {
            tracing::warn!(%error, "cannot keep the state of the transparency log for `log status`");
        }
        self.status.send_replace(status);
    }
}

/// Publishes the checkpoint with the cosignatures that there are, if they are enough.
async fn publish(
    log: &Arc<Log>,
    quorum: usize,
    checkpoint: &SignedCheckpoint,
    cosignatures: &[Option<Signature>],
) -> Result<(), LogError> {
    if cosignatures.iter().flatten().count() < quorum {
        return Ok(());
    }
    let mut note = checkpoint.to_bytes();
    cosignatures.iter().flatten().for_each(|cosignature| note.extend(cosignature.to_bytes()));
    log.publish(note).await
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
