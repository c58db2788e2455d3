//! A file system in memory that can be stopped before or in the middle of any change.
//!
//! A crash keeps, of every folder, what it held when it was last synced and then as many of the later changes as chance
//! says, in order (a file system journals them per folder at best); what lies in a folder that is gone is gone.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::Disk;

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Dir,
    File(Vec<u8>),
}

/// Names that changed together, with what they were before.
type Change = Vec<(PathBuf, Option<Node>)>;

#[derive(Debug)]
struct Inner {
    nodes: BTreeMap<PathBuf, Node>,
    /// Changes since the last sync, by folder, oldest first.
    unsynced: BTreeMap<PathBuf, Vec<Change>>,
    /// Changes that go well before the machine stops; `None` for ever.
    budget: Option<usize>,
    stopped: bool,
}

impl Default for Inner {
    fn default() -> Self {
        let nodes = [(PathBuf::from("/"), Node::Dir)].into();
        Self { nodes, unsynced: BTreeMap::new(), budget: None, stopped: false }
    }
}

/// The file system; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct FakeDisk {
    inner: Arc<Mutex<Inner>>,
}

impl FakeDisk {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Stops the machine in the middle of the change after the next `changes`.
    pub fn stop_after(&self, changes: usize) {
        self.inner().budget = Some(changes);
    }

    /// Whether it has stopped.
    pub fn has_stopped(&self) -> bool {
        self.inner().stopped
    }

    /// Restarts the machine with what survives; `chance(n)` is below `n`.
    pub fn restart(&self, mut chance: impl FnMut(usize) -> usize) {
        let mut inner = self.inner();
        for (_, changes) in std::mem::take(&mut inner.unsynced) {
            let kept = chance(changes.len() + 1);
            for change in changes.into_iter().skip(kept).rev() {
                inner.undo(change);
            }
        }
        let orphan = |nodes: &BTreeMap<PathBuf, Node>, path: &PathBuf| {
            path.ancestors().skip(1).any(|dir| !nodes.contains_key(dir))
        };
        let before = inner.nodes.clone();
        inner.nodes.retain(|path, _| path.parent().is_none() || !orphan(&before, path));
        (inner.budget, inner.stopped) = (None, false);
    }

    /// A machine of its own with the same files, all of them durable.
    pub fn fork(&self) -> Self {
        let inner = Inner { nodes: self.inner().nodes.clone(), ..Inner::default() };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// All files with their contents.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let inner = self.inner();
        let files = inner.nodes.iter().filter_map(|(path, node)| match node {
            Node::File(content) => Some((path.clone(), content.clone())),
            Node::Dir => None,
        });
        files.collect()
    }

    /// Puts another file in place, durably and behind the program's back.
    pub fn plant(&self, path: &Path, content: &[u8]) {
        self.inner().nodes.insert(path.to_owned(), Node::File(content.to_vec()));
    }

    fn mutate(
        &self,
        dir: &Path,
        torn: impl FnOnce(&mut Inner),
        change: impl FnOnce(&mut Inner) -> Change,
    ) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.spend() {
            torn(&mut inner);
            return Err(io::Error::other("the machine stopped"));
        }
        if inner.stopped {
            return Err(io::Error::other("the machine has stopped"));
        }
        if !inner.nodes.contains_key(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let change = change(&mut inner);
        inner.unsynced.entry(dir.to_owned()).or_default().push(change);
        Ok(())
    }
}

impl Inner {
    /// Whether the machine stops just now.
    fn spend(&mut self) -> bool {
        match &mut self.budget {
            Some(0) if !self.stopped => {
                self.stopped = true;
                true
            }
            Some(left) => {
                *left = left.saturating_sub(1);
                false
            }
            None => false,
        }
    }

    fn undo(&mut self, change: Change) {
        for (path, before) in change {
            match before {
                Some(node) => self.nodes.insert(path, node),
                None => self.nodes.remove(&path),
            };
        }
    }

    fn set(&mut self, path: &Path, node: Option<Node>) -> (PathBuf, Option<Node>) {
        let before = match node {
            Some(node) => self.nodes.insert(path.to_owned(), node),
            None => self.nodes.remove(path),
        };
        (path.to_owned(), before)
    }
}

impl Disk for FakeDisk {
    fn read(&self, path: &Path, max: usize) -> io::Result<Option<Vec<u8>>> {
        let inner = self.inner();
        match inner.nodes.get(path) {
            _ if inner.stopped => Err(io::Error::other("the machine has stopped")),
            Some(Node::File(content)) if content.len() > max => Err(io::ErrorKind::FileTooLarge.into()),
            Some(Node::File(content)) => Ok(Some(content.clone())),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Ok(None),
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if self.is_dir(path) {
            return Ok(());
        }
        let parent = path.parent().unwrap();
        self.mutate(parent, |_| {}, |inner| vec![inner.set(path, Some(Node::Dir))])
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let half = content[..content.len() / 2].to_vec();
        let torn = |inner: &mut Inner| {
            inner.nodes.insert(path.to_owned(), Node::File(half));
        };
        self.mutate(path.parent().unwrap(), torn, |inner| vec![inner.set(path, Some(Node::File(content.to_vec())))])
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.mutate(
            from.parent().unwrap(),
            |_| {},
            |inner| {
                let node = inner.nodes.get(from).cloned();
                assert!(node.is_some(), "{} is not there", from.display());
                vec![inner.set(from, None), inner.set(to, node)]
            },
        )
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.spend() || inner.stopped {
            return Err(io::Error::other("the machine stopped"));
        }
        inner.unsynced.remove(path);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        if !self.is_dir(path) {
            return Ok(());
        }
        let inside = |inner: &mut Inner| -> Vec<PathBuf> {
            inner.nodes.keys().filter(|there| there.starts_with(path)).cloned().collect()
        };
        let torn = |inner: &mut Inner| {
            let some: Vec<_> = inside(inner).into_iter().skip(1).step_by(2).collect();
            some.iter().for_each(|path| {
                inner.nodes.remove(path);
            });
        };
        self.mutate(path.parent().unwrap(), torn, |inner| {
            inside(inner).iter().map(|path| inner.set(path, None)).collect()
        })
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.inner().nodes.get(path) == Some(&Node::Dir)
    }
}
