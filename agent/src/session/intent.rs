//! The durable note that the glass is about to be, or is, broken.
//!
//! Written before anything is unlocked and removed after everything is locked, so that whatever happens between the two, the
//! next start knows what to close. Kept in the state folder, which outlives a reboot, and in the runtime folder, which still
//! works when the disk is full or read-only; one of the two is enough. The file is JSON, one object, replaced atomically.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    grant::Grant,
    machine::{Access, Counts},
};

const FILE: &str = "session.json";

/// Larger than any note we write; a file above it is damage.
const SIZE_LIMIT: u64 = 64 * 1024;

/// What a restarted agent needs to know of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// The session.
    pub session: Uuid,
    /// The kernel's number of it.
    pub slot: u32,
    /// Boot that it belongs to, hexadecimal.
    pub boot_id: String,
    /// When it must end, `CLOCK_BOOTTIME`, nanoseconds.
    pub deadline_boot_ns: u64,
    /// Who broke the glass.
    pub operator: String,
    /// Why.
    pub reason: String,
    /// End with the last process.
    pub close_on_exit: bool,
    /// The kernel's counters when it began.
    pub counts: Counts,
    /// Whose keys may log in.
    #[serde(default)]
    pub admitted: Vec<Admitted>,
    /// Whether a one-time code was used.
    #[serde(default)]
    pub by_code: bool,
    /// Counts the changes of one session's note; of several notes the highest is the newest.
    #[serde(default)]
    pub revision: u64,
}

/// A key that may log in, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admitted {
    /// Principal.
    pub operator: String,
    /// `TYPE BASE64`.
    pub key: String,
    /// `SHA256:…`.
    pub fingerprint: String,
}

impl Admitted {
    /// Whom a grant admits by key.
    pub fn from(grant: &Grant) -> Option<Self> {
        let key = grant.key.clone()?;
        Some(Self { operator: grant.operator.clone(), key, fingerprint: grant.key_fingerprint.clone() })
    }
}

impl Intent {
    /// What the machine is told.
    pub fn access(&self) -> Access {
        Access {
            session: self.session,
            keys: self.admitted.iter().map(|admitted| admitted.key.clone()).collect(),
            by_code: self.by_code,
            deadline_boot_ns: self.deadline_boot_ns,
        }
    }

    /// Whose key has this fingerprint.
    pub fn operator_of(&self, fingerprint: &str) -> Option<&str> {
        self.admitted.iter().find(|admitted| admitted.fingerprint == fingerprint).map(|a| a.operator.as_str())
    }
}

/// Where intents are kept.
#[derive(Clone)]
pub struct IntentStore {
    folders: [PathBuf; 2],
    /// Called before each step that lasts, so that tests can stop a run between any two.
    checkpoint: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl IntentStore {
    /// `state` outlives a reboot; `runtime` need not.
    pub fn new(state: &Path, runtime: &Path) -> Self {
        Self { folders: [state.to_owned(), runtime.to_owned()], checkpoint: None }
    }

    /// The same, with a call before each step that lasts.
    #[cfg(test)]
    pub fn watched(self, checkpoint: impl Fn() + Send + Sync + 'static) -> Self {
        Self { checkpoint: Some(Arc::new(checkpoint)), ..self }
    }

    fn before_step(&self) {
        if let Some(checkpoint) = &self.checkpoint {
            checkpoint();
        }
    }

    /// Writes the note; an error only if neither folder took it.
    pub fn write(&self, intent: &Intent) -> io::Result<()> {
        let text = serde_json::to_vec(intent)?;
        let results = self.folders.each_ref().map(|folder| {
            self.before_step();
            replace(folder, &text)
        });
        for (folder, result) in self.folders.iter().zip(&results) {
            if let Err(error) = result {
                tracing::warn!(folder = %folder.display(), %error, "cannot keep the session's note here");
            }
        }
        let [state, runtime] = results;
        state.or(runtime)
    }

    /// The note, if there is one. A damaged file is reported and treated as none: the start locks in any case. Where the two folders
    /// disagree, because one of them did not take a change, the newer one counts: session ids are ordered by time.
    pub fn read(&self) -> Option<Intent> {
        let notes = self.folders.iter().filter_map(|folder| {
            let path = folder.join(FILE);
            match read(&path) {
                Ok(intent) => Some(intent),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "the note of an earlier session is damaged; it is ignored");
                    None
                }
            }
        });
        notes.max_by_key(|intent| (intent.session, intent.revision))
    }

    /// Removes the note everywhere.
    pub fn clear(&self) -> io::Result<()> {
        let mut result = Ok(());
        for folder in &self.folders {
            self.before_step();
            match fs::remove_file(folder.join(FILE)) {
                Ok(()) => sync_folder(folder)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => result = Err(error),
            }
        }
        result
    }
}

fn read(path: &Path) -> io::Result<Intent> {
    if fs::metadata(path)?.len() > SIZE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than any note we write"));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Writes beside the file, then renames over it.
fn replace(folder: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".session-").tempfile_in(folder)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(folder.join(FILE))?;
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
impl Intent {
    /// One for tests.
    pub fn sample() -> Self {
        Self {
            session: Uuid::now_v7(),
            slot: 7,
            boot_id: "00".into(),
            deadline_boot_ns: 1,
            operator: "alice@example.org".into(),
            reason: "disk \"full\"\n".into(),
            close_on_exit: true,
            counts: Counts::default(),
            admitted: vec![Admitted { operator: "alice".into(), key: "t b".into(), fingerprint: "f".into() }],
            by_code: false,
            revision: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_folder_is_enough() {
        let good = tempfile::tempdir().unwrap();
        let missing = good.path().join("missing");
        for store in [IntentStore::new(good.path(), &missing), IntentStore::new(&missing, good.path())] {
            let intent = Intent::sample();
            store.write(&intent).unwrap();
            assert_eq!(store.read(), Some(intent));
            store.clear().unwrap();
            assert_eq!(store.read(), None);
        }
        let error = IntentStore::new(&missing, &missing).write(&Intent::sample()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_newer_of_two_notes_counts() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let older = Intent::sample();
        let newer = Intent { revision: 1, deadline_boot_ns: 2, ..older.clone() };
        let missing = first.path().join("missing");
        for (state, runtime) in [(&older, &newer), (&newer, &older)] {
            IntentStore::new(first.path(), &missing).write(state).unwrap();
            IntentStore::new(second.path(), &missing).write(runtime).unwrap();
            assert_eq!(IntentStore::new(first.path(), second.path()).read(), Some(newer.clone()));
        }
    }

    #[test]
    fn damage_is_not_a_session() {
        let folder = tempfile::tempdir().unwrap();
        let store = IntentStore::new(folder.path(), &folder.path().join("missing"));
        for damaged in [&b""[..], b"{", b"{\"session\":1}", &[b'x'; 100_000]] {
            fs::write(folder.path().join(FILE), damaged).unwrap();
            assert_eq!(store.read(), None);
        }
    }
}
