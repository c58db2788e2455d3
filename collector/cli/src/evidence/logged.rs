//! Whether what the host signed is in a transparency log that others have seen too: the checks `log`, `witnesses` and `consistency`.

use std::collections::HashMap;

use breakglass_api::evidence::Section;
use breakglass_proof::{
    merkle::{Consistency, Inclusion, leaf_hash},
    note::SignedCheckpoint,
    review::LogHead,
};

use super::{
    report::{Place, State},
    trust::Trust,
};

/// Consistency proofs that are kept: one for each review, and one for the reader.
const CONSISTENCIES_MAX: usize = 1024;

/// How a check ended, where and why.
pub type Outcome = (State, Place, String);

/// A checkpoint of the host's that should be in the log.
struct Leaf {
    offset: u64,
    seq: u64,
    proved: bool,
}

/// The log's checkpoint as the file holds it.
struct Note {
    offset: u64,
    checkpoint: SignedCheckpoint,
    /// Signed with a key that the reader trusts.
    trusted: bool,
}

/// What the file says of the log.
#[derive(Default)]
pub struct Logged {
    /// The host's checkpoints by the hash of their leaf.
    leaves: HashMap<[u8; 32], Leaf>,
    note: Option<Note>,
    consistencies: Vec<Consistency>,
}

fn failed(section: &Section, detail: impl Into<String>) -> Outcome {
    (State::Failed, Place::byte(section.offset), detail.into())
}

impl Logged {
    /// How many of the host's checkpoints are remembered.
    pub fn count(&self) -> usize {
        self.leaves.len()
    }

    /// A checkpoint of the host's that holds, about frame `seq`.
    pub fn stated(&mut self, section: &Section, seq: u64) {
        let leaf = Leaf { offset: section.offset, seq, proved: false };
        self.leaves.entry(leaf_hash(&section.content)).or_insert(leaf);
    }

    /// The log's checkpoint.
    pub fn note(&mut self, section: &Section, trust: &Trust) -> Result<(), Outcome> {
        if self.note.is_some() {
            return Err(failed(section, "a second checkpoint of a log"));
        }
        let checkpoint = SignedCheckpoint::parse(&section.content).map_err(|e| failed(section, e.to_string()))?;
        let trusted = trust.logs.iter().any(|key| checkpoint.is_signed_by(key));
        let origin = checkpoint.origin().to_owned();
        self.note = Some(Note { offset: section.offset, checkpoint, trusted });
        match trusted || trust.logs.is_empty() {
            true => Ok(()),
            false => Err(failed(
                section,
                format!("the checkpoint of {origin} is not signed with a key of a log that you trust"),
            )),
        }
    }

    /// That a leaf is in the log.
    pub fn inclusion(&mut self, section: &Section) -> Result<(), Outcome> {
        let (size, root) = self.head(section)?;
        let proof = Inclusion::parse(&section.content).map_err(|error| failed(section, error.to_string()))?;
        let leaf = self.leaves.get_mut(&proof.leaf);
        let frame = leaf.as_ref().map(|leaf| leaf.seq);
        proof.check(size, root).map_err(|error| {
            let place = Place { offset: Some(section.offset), frame };
            (State::Failed, place, format!("leaf {} of {size}: {error}", proof.index))
        })?;
        if let Some(leaf) = leaf {
            leaf.proved = true;
        }
        Ok(())
    }

    /// That the log continues an earlier state.
    pub fn consistency(&mut self, section: &Section) -> Result<(), Outcome> {
        let (size, root) = self.head(section)?;
        let proof = Consistency::parse(&section.content).map_err(|error| failed(section, error.to_string()))?;
        if self.consistencies.len() >= CONSISTENCIES_MAX {
            return Err(failed(section, format!("more than {CONSISTENCIES_MAX} proofs")));
        }
        let told = proof.check(size, root);
        told.map_err(|error| failed(section, format!("from {} to {size} leaves: {error}", proof.size)))?;
        self.consistencies.push(proof);
        Ok(())
    }

    fn head(&self, section: &Section) -> Result<(u64, [u8; 32]), Outcome> {
        let note =
            self.note.as_ref().ok_or_else(|| failed(section, "a proof without the log's checkpoint before it"))?;
        Ok((note.checkpoint.size(), note.checkpoint.root().0))
    }

    /// What the file says that the log looks like.
    pub fn log_head(&self) -> Option<LogHead> {
        let checkpoint = &self.note.as_ref()?.checkpoint;
        Some(LogHead { origin: checkpoint.origin().to_owned(), size: checkpoint.size(), root: checkpoint.root().0 })
    }

    /// The check `log`.
    pub fn conclude_log(&self, trust: &Trust) -> Outcome {
        let place = Place::default();
        let Some(note) = &self.note else {
            let (state, detail) = match trust.logs.is_empty() {
                true => (State::Unproved, "nothing of a transparency log is in the file"),
                false => (State::Failed, "the host's checkpoints are in no transparency log, as far as the file says"),
            };
            return (state, place, detail.to_owned());
        };
        let (origin, size) = (note.checkpoint.origin(), note.checkpoint.size());
        let missing = self.leaves.values().filter(|leaf| !leaf.proved).min_by_key(|leaf| leaf.offset);
        match missing {
            _ if !note.trusted => {
                let proved = self.leaves.values().filter(|leaf| leaf.proved).count();
                let all = self.leaves.len();
                let detail = format!(
                    "{proved} of {all} checkpoints are in a log of {size} leaves called {origin}; whether it is the log is for you to compare: give --log-key"
                );
                (State::Unproved, place, detail)
            }
            Some(leaf) => {
                let detail = format!(
                    "the checkpoint about frame {} is not proved to be in {origin}: it was withheld, or exported before it was published",
                    leaf.seq
                );
                (State::Failed, Place { offset: Some(leaf.offset), frame: Some(leaf.seq) }, detail)
            }
            None if self.leaves.is_empty() => (State::Unproved, place, "there is no checkpoint to look for".to_owned()),
            None => {
                let all = self.leaves.len();
                (State::Passed, place, format!("all {all} checkpoints are in {origin}, a log of {size} leaves"))
            }
        }
    }

    /// The check `witnesses`.
    pub fn conclude_witnesses(&self, trust: &Trust) -> Outcome {
        let unproved = |detail: &str| (State::Unproved, Place::default(), detail.to_owned());
        if trust.witnesses.is_empty() {
            return unproved("who else saw this log is for you to say: give --witness-key");
        }
        let Some(note) = &self.note else {
            let detail = "no checkpoint of a log is in the file, so nobody has cosigned one".to_owned();
            return (State::Failed, Place::default(), detail);
        };
        let cosigned: Vec<String> = trust
            .witnesses
            .iter()
            .filter(|key| note.checkpoint.verify(std::slice::from_ref(key)).is_ok())
            .map(|key| key.holder().to_owned())
            .collect();
        let (count, quorum, all) = (cosigned.len(), trust.quorum, trust.witnesses.len());
        match count >= quorum {
            true => {
                let detail = format!("{count} of {all} cosigned it, {quorum} are enough: {}", cosigned.join(", "));
                (State::Passed, Place::default(), detail)
            }
            false => {
                let detail = format!("{count} of {all} witnesses cosigned the log's checkpoint, {quorum} are needed");
                (State::Failed, Place::byte(note.offset), detail)
            }
        }
    }

    /// The check `consistency`: with what the reader has from earlier, and with what reviewers saw, each at an offset.
    pub fn conclude_consistency(&self, trust: &Trust, seen: &[(u64, LogHead)]) -> Outcome {
        let unproved = |detail: String| (State::Unproved, Place::default(), detail);
        let Some(note) = &self.note else { return unproved("no checkpoint of a log is in the file".to_owned()) };
        for (offset, head) in seen.iter().filter(|(_, head)| head.origin == note.checkpoint.origin()) {
            if let Continues::No(detail) = self.continues(note, head) {
                let detail = format!("a reviewer was shown another log: {detail}");
                return (State::Failed, Place::byte(*offset), detail);
            }
        }
        let Some(earlier) = &trust.earlier else {
            return unproved("whether the log has only grown is for you to compare: give --since".to_owned());
        };
        let head = LogHead { origin: earlier.origin().to_owned(), size: earlier.size(), root: earlier.root().0 };
        let place = Place::byte(note.offset);
        if head.origin != note.checkpoint.origin() {
            let detail =
                format!("your checkpoint is of the log {}, the file's of {}", head.origin, note.checkpoint.origin());
            return (State::Failed, place, detail);
        }
        match self.continues(note, &head) {
            Continues::Yes => (State::Passed, Place::default(), format!("the log continues your {} leaves", head.size)),
            Continues::No(_) if head.size > note.checkpoint.size() => unproved(format!(
                "the file has {} leaves of the log, your checkpoint has {}: the file is older",
                note.checkpoint.size(),
                head.size
            )),
            Continues::No(detail) => (State::Failed, place, detail),
            Continues::Untold => {
                let detail = format!(
                    "the file does not prove that the log continues your {} leaves: export again with --since",
                    head.size
                );
                (State::Failed, place, detail)
            }
        }
    }

    /// Whether the file's log continues an earlier state.
    fn continues(&self, note: &Note, head: &LogHead) -> Continues {
        let (size, root) = (note.checkpoint.size(), note.checkpoint.root().0);
        if head.size > size {
            return Continues::No(format!("{} leaves then, {size} in the file", head.size));
        }
        if head.size == size {
            let detail = || format!("two histories of {size} leaves");
            return if head.root == root { Continues::Yes } else { Continues::No(detail()) };
        }
        let mut known = self.consistencies.iter().filter(|proof| proof.size == head.size).map(|proof| proof.root);
        match known.next() {
            None => Continues::Untold,
            Some(first) if first == head.root || known.any(|root| root == head.root) => Continues::Yes,
            Some(_) => Continues::No(format!("its first {} leaves are others", head.size)),
        }
    }
}

enum Continues {
    Yes,
    No(String),
    /// The file has no proof from there.
    Untold,
}
