//! The signature counters of FIDO keys. A counter that does not rise is what a copy of a key looks like (WebAuthn, section 6.1.1).
//!
//! Kept by fingerprint in `counters.json` in the state folder, so that a restart forgets nothing. A file that cannot be read or written
//! lets nobody in and keeps nobody out: what is known stays in memory. Keys without a counter always say 0.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crate::{
    account::replace::{self, Checkpoint, Lasting, Like, NoCheckpoint},
    grant::{Refusal, proof::Signer},
    regular,
};

/// Most keys; beyond that new ones are not remembered. A host knows fewer people.
const KEYS_MAX: usize = 10_000;

/// Largest file, bytes: [`KEYS_MAX`] lines.
const FILE_MAX: u64 = 1 << 20;

/// The highest counter that each key has shown.
pub struct Counters {
    path: PathBuf,
    seen: Mutex<BTreeMap<String, u32>>,
    checkpoint: Box<dyn Checkpoint>,
}

impl Counters {
    /// Goes on with what the state folder holds.
    pub fn open(state: &Path) -> Self {
        let path = state.join("counters.json");
        let seen = read(&path).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::error!(path = %path.display(), %error, "the counters of FIDO keys cannot be read; they begin anew");
            }
            BTreeMap::new()
        });
        Self { path, seen: Mutex::new(seen), checkpoint: Box::new(NoCheckpoint) }
    }

    /// Refuses a counter that went back, and remembers one that rose. To be called once everything else is verified.
    pub fn check(&self, signer: &Signer) -> Result<(), Refusal> {
        let Some(touch) = signer.touch else { return Ok(()) };
        let key = signer.fingerprint();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let last = seen.get(&key).copied().unwrap_or(0);
        if last == 0 && touch.counter == 0 {
            return Ok(());
        }
        if touch.counter <= last {
            return Err(Refusal::new(
                "counter-rollback",
                format!(
                    "the security key {key} counts {} signatures and had counted {last} before: there may be a copy of it; \
                     sign anew, and if that is refused too, with another key",
                    touch.counter
                ),
            ));
        }
        if seen.contains_key(&key) || seen.len() < KEYS_MAX {
            seen.insert(key, touch.counter);
            self.write(&seen);
        }
        Ok(())
    }

    /// Waited for the disk: of a file that is renamed before what it holds is there, a power cut may leave an empty one (XFS), and every
    /// counter would begin anew. That is some milliseconds beside what opening waits for anyway.
    fn write(&self, seen: &BTreeMap<String, u32>) {
        let written = serde_json::to_vec(seen).map_err(io::Error::from).and_then(|text| {
            let checkpoint = self.checkpoint.as_ref();
            replace::replace(&self.path, &text, Like::Mode(0o600), Lasting::Durable, checkpoint)
        });
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "the counters of FIDO keys are kept in memory only");
        }
    }
}

fn read(path: &Path) -> io::Result<BTreeMap<String, u32>> {
    Ok(serde_json::from_slice(&regular::read(path, FILE_MAX)?)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ssh_key::PublicKey;

    use super::*;
    use crate::{
        account::replace::{Step, tests::Steps},
        grant::proof::Touch,
    };

    fn signer(key: u8, counter: Option<u32>) -> Signer {
        let key = PublicKey::from(ssh_key::public::Ed25519PublicKey([key; 32]));
        Signer {
            principal: "alice".into(),
            key: key.key_data().clone(),
            line: 1,
            certificate: None,
            lifetime_s: None,
            touch: counter.map(|counter| Touch { verified: true, counter }),
        }
    }

    #[test]
    fn a_counter_that_goes_back_is_refused_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let counters = Counters::open(dir.path());
        let ok = |counters: &Counters, key, counter| counters.check(&signer(key, counter)).is_ok();
        assert!(ok(&counters, 1, Some(5)) && ok(&counters, 1, Some(6)) && ok(&counters, 2, Some(1)));
        assert!(!ok(&counters, 1, Some(6)) && !ok(&counters, 1, Some(5)) && !ok(&counters, 1, Some(0)));
        let again = Counters::open(dir.path());
        assert!(!ok(&again, 1, Some(6)) && ok(&again, 1, Some(7)));
        for _ in 0..2 {
            assert!(ok(&again, 3, Some(0)) && ok(&again, 3, None), "a key without a counter");
        }
        assert!(ok(&again, 3, Some(1)) && !ok(&again, 3, Some(0)));
    }

    #[test]
    fn a_damaged_file_and_a_full_disk_keep_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("counters.json"), "{").unwrap();
        let counters = Counters::open(dir.path());
        assert!(counters.check(&signer(1, Some(5))).is_ok());
        regular::tests::trap(&dir.path().join("counters.json"));
        let path = dir.path().to_owned();
        let counters = regular::tests::untrapped(move || Counters::open(&path));
        assert!(counters.check(&signer(1, Some(5))).is_ok());
        let counters = Counters::open(Path::new("/nonexistent"));
        assert!(counters.check(&signer(1, Some(5))).is_ok() && counters.check(&signer(1, Some(5))).is_err());
    }

    #[test]
    fn a_counter_is_on_the_disk_before_it_takes_the_earlier_ones_place() {
        let dir = tempfile::tempdir().unwrap();
        let steps = Steps::default();
        let counters = Counters { checkpoint: Box::new(steps.clone()), ..Counters::open(dir.path()) };
        counters.check(&signer(1, Some(5))).unwrap();
        let steps = steps.0.lock().unwrap();
        let at = |step| steps.iter().position(|one| *one == step);
        assert!(at(Step::SyncFile).is_some_and(|synced| Some(synced) < at(Step::Rename)), "{steps:?}");
    }
}
