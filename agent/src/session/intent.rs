//! The durable note that the glass is about to be, or is, broken.
//!
//! Written before anything is unlocked and removed after everything is locked, so that whatever happens between the two, the
//! next start knows what to close. Kept in the state folder, which outlives a reboot, and in the runtime folder, which still
//! works when the disk is full or read-only; one of the two is enough. The file is JSON, one object, replaced atomically.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    grant::Grant,
    machine::{Access, Counts},
};
use crate::{blocking, regular};

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
    /// Folders that have not answered yet. They are left out until they do: every call that waits for a disk holds a thread.
    waiting: Arc<[AtomicBool; 2]>,
    /// Called before each step that lasts, so that tests can stop a run between any two.
    checkpoint: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// How long a folder may take for a note. One of the two is in memory, and one is enough.
const FOLDER_LIMIT: Duration = Duration::from_secs(2);

impl IntentStore {
    /// `state` outlives a reboot; `runtime` need not.
    pub fn new(state: &Path, runtime: &Path) -> Self {
        Self { folders: [state.to_owned(), runtime.to_owned()], waiting: Arc::default(), checkpoint: None }
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

    /// Writes the note; an error only if neither folder took it in time.
    pub async fn write(&self, intent: &Intent) -> io::Result<()> {
        let text: Arc<[u8]> = serde_json::to_vec(intent)?.into();
        self.in_folders("cannot keep the session's note here", move |folder| replace(folder, &text)).await
    }

    /// Does something in both folders, one after the other, off the runtime's threads. The first folder's error, if neither did it.
    async fn in_folders(
        &self,
        trouble: &'static str,
        act: impl Fn(&Path) -> io::Result<()> + Clone + Send + 'static,
    ) -> io::Result<()> {
        let mut results = [Ok(()), Ok(())];
        for (number, result) in results.iter_mut().enumerate() {
            let (this, act) = (self.clone(), act.clone());
            let done = blocking::run(move || this.in_folder(number, act));
            *result =
                tokio::time::timeout(FOLDER_LIMIT, done).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            if let (Err(error), Some(folder)) = (result, self.folders.get(number)) {
                tracing::warn!(folder = %folder.display(), %error, "{trouble}");
            }
        }
        let [state, runtime] = results;
        state.or(runtime)
    }

    fn in_folder(&self, number: usize, act: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let (Some(folder), Some(waiting)) = (self.folders.get(number), self.waiting.get(number)) else { return Ok(()) };
        if waiting.swap(true, Ordering::AcqRel) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the disk has not answered the last time yet"));
        }
        self.before_step();
        let result = act(folder);
        waiting.store(false, Ordering::Release);
        result
    }

    /// The note, if there is one. A damaged file is reported and treated as none: the start locks in any case. Where the two folders
    /// disagree, because one of them did not take a change, the newer one counts: the kernel's numbers of sessions go up, whatever the
    /// wall clock does.
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
        notes.max_by_key(|intent| (intent.slot, intent.revision))
    }

    /// Removes the note everywhere, as far as the disks answer.
    pub async fn clear(&self) {
        let trouble = "the session's note could not be removed here; the next start will close it again";
        // Said for each folder; nothing else can be done.
        let _ = self.in_folders(trouble, remove).await;
    }
}

fn read(path: &Path) -> io::Result<Intent> {
    Ok(serde_json::from_slice(&regular::read(path, SIZE_LIMIT)?)?)
}

/// Writes beside the file, then renames over it.
fn replace(folder: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".session-").tempfile_in(folder)?;
    file.write_all(text)?;
    file.as_file().sync_all()?;
    file.persist(folder.join(FILE))?;
    sync_folder(folder)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_file(folder.join(FILE)) {
        Ok(()) => sync_folder(folder),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
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

    #[tokio::test]
    async fn one_folder_is_enough() {
        let good = tempfile::tempdir().unwrap();
        let missing = good.path().join("missing");
        for store in [IntentStore::new(good.path(), &missing), IntentStore::new(&missing, good.path())] {
            let intent = Intent::sample();
            store.write(&intent).await.unwrap();
            assert_eq!(store.read(), Some(intent));
            store.clear().await;
            assert_eq!(store.read(), None);
        }
        let error = IntentStore::new(&missing, &missing).write(&Intent::sample()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn the_newer_of_two_notes_counts() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let older = Intent::sample();
        let changed = Intent { revision: 1, deadline_boot_ns: 2, ..older.clone() };
        // The wall clock, from which ids are made, was set back between the two.
        let next = Intent { slot: older.slot + 1, session: Uuid::nil(), ..older.clone() };
        let missing = first.path().join("missing");
        for newer in [changed, next] {
            for (state, runtime) in [(&older, &newer), (&newer, &older)] {
                IntentStore::new(first.path(), &missing).write(state).await.unwrap();
                IntentStore::new(second.path(), &missing).write(runtime).await.unwrap();
                assert_eq!(IntentStore::new(first.path(), second.path()).read(), Some(newer.clone()));
            }
        }
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_holds_nobody_up_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let store = IntentStore::new(&folder.path().join("missing"), folder.path());
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        let first = std::sync::atomic::AtomicBool::new(true);
        let hanging = store.watched(move || {
            if first.swap(false, Ordering::AcqRel) {
                let _ = held.lock().unwrap().recv();
            }
        });
        let intent = Intent::sample();
        hanging.write(&intent).await.unwrap();
        assert_eq!(hanging.read(), Some(intent.clone()));
        // The second time the one that hangs is not asked.
        let asked = std::time::Instant::now();
        hanging.write(&Intent { revision: 1, ..intent }).await.unwrap();
        assert!(asked.elapsed() < FOLDER_LIMIT);
        drop(hold);
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
