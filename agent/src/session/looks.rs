//! When the host is looked at for what a session leaves behind, and where the looks are kept.
//!
//! The walk for files with special rights takes seconds, so it is made while the host is at rest and kept. The settings are read as a
//! session opens. Both are held in memory, where the session's root cannot edit them, and lie on disk, so that an agent that is killed
//! during the session can still compare.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use breakglass_api::v1::LeftBehind;
use uuid::Uuid;

use crate::{
    aftermath::{self, Limits, Part, Snapshot},
    regular,
};

/// The walk that was made at rest.
const REST: &str = "rest";

/// Largest stored look, bytes, compressed.
const STORED_MAX: u64 = 64 << 20;

/// Looks at the host; every call blocks.
pub struct Looks {
    folder: PathBuf,
    own_pins: PathBuf,
    walk: bool,
    /// Stored looks by name: the walk at rest, and one a session whose comparison is not done, which is one or two.
    memory: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Looks {
    /// Keeps looks in `folder`. Pins of the agent's own are not compared; file systems are walked only where `walk` says so.
    pub fn new(folder: PathBuf, own_pins: PathBuf, walk: bool) -> Self {
        Self { folder, own_pins, walk, memory: Mutex::default() }
    }

    /// Walks the file systems; takes seconds. To be called while no session is open.
    pub fn at_rest(&self) -> io::Result<()> {
        if !self.walk {
            return Ok(());
        }
        self.keep(REST, &self.look(Part::Walk))
    }

    /// Reads the settings as they are before the session; tens of milliseconds.
    pub fn before(&self, session: Uuid) -> io::Result<()> {
        self.keep(&session.to_string(), &self.look(Part::Settings))
    }

    /// Looks again and compares; takes seconds. The look from before is used up, and this one's walk is kept for the next session.
    pub fn after(&self, session: Uuid) -> LeftBehind {
        let name = session.to_string();
        let settings = self.kept(&name);
        let now_settings = self.look(Part::Settings);
        let walks = self.walk_again();
        self.memory().remove(&name);
        // Missing already where it could not be kept.
        let _ = fs::remove_file(self.folder.join(&name));
        match (settings, walks) {
            (Ok(settings), Ok((walk, now_walk))) => {
                aftermath::left_behind(&settings.join(walk), &now_settings.join(now_walk))
            }
            (Ok(settings), Err(why)) => {
                let mut left = aftermath::left_behind(&settings, &now_settings);
                incomplete(&mut left, format!("files with special rights: {why}"));
                left
            }
            (Err(error), _) => {
                let mut left = LeftBehind::default();
                incomplete(&mut left, format!("nothing: there is no look from before the session ({error})"));
                left
            }
        }
    }

    /// The walk from before and a new one, which takes its place; or why there is nothing to compare.
    fn walk_again(&self) -> Result<(Snapshot, Snapshot), String> {
        if !self.walk {
            return Err("aftermath.walk is off".to_owned());
        }
        let before = self.kept(REST);
        let now = self.look(Part::Walk);
        if let Err(error) = self.keep(REST, &now) {
            tracing::warn!(folder = %self.folder.display(), %error, "the look at the host cannot be kept");
        }
        before.map(|before| (before, now)).map_err(|error| format!("there is no look from before ({error})"))
    }

    fn memory(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, part: Part) -> Snapshot {
        let limits = Limits { part, own_pins: vec![self.own_pins.clone()], ..Limits::default() };
        Snapshot::take(Path::new("/"), limits)
    }

    fn keep(&self, name: &str, snapshot: &Snapshot) -> io::Result<()> {
        let bytes = snapshot.to_bytes().map_err(io::Error::other)?;
        self.memory().insert(name.to_owned(), bytes.clone());
        fs::create_dir_all(&self.folder)?;
        let file = tempfile::Builder::new().prefix(".look-").tempfile_in(&self.folder)?;
        fs::write(file.path(), bytes)?;
        file.persist(self.folder.join(name))?;
        Ok(())
    }

    fn kept(&self, name: &str) -> io::Result<Snapshot> {
        if let Some(bytes) = self.memory().get(name) {
            return Snapshot::from_bytes(bytes).map_err(io::Error::other);
        }
        Snapshot::from_bytes(&regular::read(&self.folder.join(name), STORED_MAX)?).map_err(io::Error::other)
    }
}

fn incomplete(left: &mut LeftBehind, what: String) {
    left.complete = false;
    left.not_covered.push(what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_is_a_trap_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let looks = Looks::new(folder.path().to_owned(), "/nowhere".into(), true);
        regular::tests::trap(&folder.path().join(REST));
        let kept = regular::tests::untrapped(move || looks.kept(REST).map(drop));
        assert_eq!(kept.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn without_a_look_from_before_the_event_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let looks = Looks::new(folder.path().join("looks"), "/nowhere".into(), true);
        let left = looks.after(Uuid::now_v7());
        assert!(!left.complete && left.changes.is_empty());
        assert!(left.not_covered.iter().any(|line| line.contains("no look from before")), "{:?}", left.not_covered);
    }
}
