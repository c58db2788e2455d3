//! What a witness decides: pure functions of the request and of what it has cosigned before, and the state between them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};
use signed_note::Signature;
use tlog_tiles::{EMPTY_HASH, check_tree};

use crate::tlog::disk::{Disk, SharedDisk, replace};
use crate::tlog::note::{NOTE_MAX, NoteKey, SignedCheckpoint, VerifierKey};
use crate::tlog::request::{AddCheckpoint, REQUEST_MAX};

/// Checkpoints of one log that are cosigned at once, and how often another one may be. A log publishes at most one a
/// second, and asks up to three times for it.
const BURST: u32 = 20;
const REFILL: Duration = Duration::from_millis(250);

/// Why there is no cosignature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not the format, or a size that contradicts itself.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// A log that the witness was not told of.
    #[error("this witness does not know the log")]
    UnknownLog,
    /// Not signed by the log.
    #[error("not signed by the log: {0}")]
    Signature(String),
    /// The proof starts from another size than the one that was cosigned last.
    #[error("{0} leaves are cosigned")]
    Size(u64),
    /// The log is not the one that was seen before.
    #[error("inconsistent: {0}")]
    Inconsistent(&'static str),
    /// Too many checkpoints.
    #[error("too many checkpoints of this log")]
    TooMany,
    /// The clock is behind what was cosigned before.
    #[error("the clock of this witness stands before its last cosignature")]
    Clock,
    /// The state cannot be kept.
    #[error("this witness cannot keep its state")]
    Storage,
}

/// What was cosigned last of a log.
#[derive(Debug)]
struct Last {
    checkpoint: SignedCheckpoint,
    /// Seconds since 1970.
    time: u64,
}

struct Known {
    keys: Vec<VerifierKey>,
    path: PathBuf,
    turn: Mutex<Turn>,
}

struct Turn {
    last: Option<Last>,
    /// Cosignatures that may be given, and when that was worked out.
    tokens: u32,
    counted: Instant,
}

impl Turn {
    fn take_token(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.counted).as_millis() / REFILL.as_millis();
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(u32::try_from(earned).unwrap_or(BURST)).min(BURST);
            self.counted = now;
        }
        let granted = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        granted
    }
}

/// The witness.
pub struct Witness {
    disk: SharedDisk,
    key: NoteKey,
    logs: BTreeMap<String, Known>,
}

/// The name by which a log's checkpoint is fetched, and of its file: SHA-256 of its origin in hex.
pub fn origin_hash(origin: &str) -> String {
    hex::encode(Sha256::digest(origin))
}

/// Refuses to go on without the folder of what was cosigned.
pub fn ensure_kept(disk: &dyn Disk, state: &Path) -> anyhow::Result<()> {
    ensure!(
        disk.is_dir(state),
        "{} is missing: a witness that has lost its state would cosign a rewritten log. \
         Put it back, or make a new witness with another key",
        state.display()
    );
    Ok(())
}

impl Witness {
    /// A witness with its state in folder `state`, which must exist.
    pub fn open(
        disk: SharedDisk,
        state: &Path,
        key: NoteKey,
        logs: BTreeMap<String, Vec<VerifierKey>>,
    ) -> anyhow::Result<Self> {
        ensure_kept(disk.as_ref(), state)?;
        let mut known = BTreeMap::new();
        for (origin, keys) in logs {
            let path = state.join(origin_hash(&origin));
            let last = read_last(&disk, &path, &origin, &key)?;
            let turn = Mutex::new(Turn { last, tokens: BURST, counted: Instant::now() });
            known.insert(origin, Known { keys, path, turn });
        }
        Ok(Self { disk, key, logs: known })
    }

    /// Its public key.
    pub fn public(&self) -> &VerifierKey {
        self.key.public()
    }

    /// Origin and cosigned size of every log.
    pub fn sizes(&self) -> impl Iterator<Item = (&str, Option<u64>)> {
        self.logs.iter().map(|(origin, log)| {
            let turn = log.turn.lock().unwrap_or_else(PoisonError::into_inner);
            (origin.as_str(), turn.last.as_ref().map(|last| last.checkpoint.size()))
        })
    }

    /// The last cosigned checkpoint of the log with this [`origin_hash`].
    pub fn checkpoint(&self, hash: &str) -> Option<Vec<u8>> {
        let (_, log) = self.logs.iter().find(|(origin, _)| origin_hash(origin) == hash)?;
        let turn = log.turn.lock().unwrap_or_else(PoisonError::into_inner);
        turn.last.as_ref().map(|last| last.checkpoint.to_bytes())
    }

    /// Handles `add-checkpoint` at the time `now`, seconds since 1970; the answer is a signature line.
    pub fn add_checkpoint(&self, body: &[u8], now: u64) -> Result<Vec<u8>, Refusal> {
        let request = AddCheckpoint::parse(body).ok_or(Refusal::Malformed("not an add-checkpoint request"))?;
        let checkpoint = SignedCheckpoint::parse(request.note).map_err(|_| Refusal::Malformed("not a checkpoint"))?;
        let log = self.logs.get(checkpoint.origin()).ok_or(Refusal::UnknownLog)?;
        let signatures = checkpoint.verify(&log.keys).map_err(|error| Refusal::Signature(error.to_string()))?;
        // What comes from here on was signed by the log. Held to the end, so that checking and keeping are one step.
        let mut turn = log.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !turn.take_token(Instant::now()) {
            return Err(Refusal::TooMany);
        }
        if let Err(refusal) = check(turn.last.as_ref(), &request, &checkpoint) {
            if matches!(refusal, Refusal::Inconsistent(_)) {
                self.keep_evidence(log, body);
            }
            return Err(refusal);
        }
        if turn.last.as_ref().is_some_and(|last| now < last.time) {
            return Err(Refusal::Clock);
        }
        self.cosign(log, &mut turn, checkpoint, signatures, now)
    }

    fn cosign(
        &self,
        log: &Known,
        turn: &mut Turn,
        checkpoint: SignedCheckpoint,
        mut signatures: Vec<Signature>,
        now: u64,
    ) -> Result<Vec<u8>, Refusal> {
        let cosignature = self.key.sign(checkpoint.text(), now).map_err(|_| Refusal::Storage)?;
        let line = cosignature.to_bytes();
        signatures.push(cosignature);
        let checkpoint = checkpoint.with_signatures(&signatures).map_err(|_| Refusal::Storage)?;
        if let Err(error) = replace(self.disk.as_ref(), &log.path, &checkpoint.to_bytes()) {
            tracing::error!(%error, path = %log.path.display(), "cannot keep a cosigned checkpoint, so it is not cosigned");
            return Err(Refusal::Storage);
        }
        tracing::debug!(log = checkpoint.origin(), size = checkpoint.size(), "cosigned");
        turn.last = Some(Last { checkpoint, time: now });
        Ok(line)
    }

    /// Keeps the first request that shows, signed by the log itself, that it has two histories. One is proof enough.
    fn keep_evidence(&self, log: &Known, body: &[u8]) {
        let path = log.path.with_extension("conflict");
        tracing::error!(path = %path.display(), "a log has signed a checkpoint that contradicts an earlier one");
        let kept = match self.disk.read(&path, REQUEST_MAX) {
            Ok(None) => replace(self.disk.as_ref(), &path, body),
            Ok(Some(_)) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::error!(%error, path = %path.display(), "cannot keep the evidence");
        }
    }
}

/// Whether a checkpoint of the log may be cosigned after what was cosigned last. In the order of the specification.
fn check(last: Option<&Last>, request: &AddCheckpoint, new: &SignedCheckpoint) -> Result<(), Refusal> {
    if request.old > new.size() {
        return Err(Refusal::Malformed("the old size is larger than the checkpoint's"));
    }
    let size = last.map_or(0, |last| last.checkpoint.size());
    if request.old != size {
        return Err(Refusal::Size(size));
    }
    if new.size() == 0 && new.root() != EMPTY_HASH {
        return Err(Refusal::Inconsistent("an empty tree has another root"));
    }
    let Some(last) = last.filter(|_| size > 0) else {
        return match request.proof.is_empty() {
            true => Ok(()),
            false => Err(Refusal::Inconsistent("a proof from size 0 is empty")),
        };
    };
    check_tree(&request.proof, new.size(), new.root(), size, last.checkpoint.root())
        .map_err(|_| Refusal::Inconsistent("the proof does not show that the tree only grew"))
}

fn read_last(disk: &SharedDisk, path: &Path, origin: &str, key: &NoteKey) -> anyhow::Result<Option<Last>> {
    let Some(note) = disk.read(path, NOTE_MAX).with_context(|| format!("cannot read {}", path.display()))? else {
        return Ok(None);
    };
    let checkpoint = SignedCheckpoint::parse(&note).with_context(|| path.display().to_string())?;
    ensure!(checkpoint.origin() == origin, "{} is of the log {:?}", path.display(), checkpoint.origin());
    let own = checkpoint
        .verify(std::slice::from_ref(key.public()))
        .with_context(|| format!("{} was not cosigned with witness.key", path.display()))?;
    let time = own.first().and_then(|own| key.public().cosigned_at(checkpoint.text(), own.signature()));
    let time = time.with_context(|| format!("{} has no time", path.display()))?;
    Ok(Some(Last { checkpoint, time }))
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
