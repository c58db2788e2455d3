//! The log itself: leaves in, signed checkpoints out.
//!
//! What was decided is made durable in this order, each step before the next begins:
//!
//! 1. [`Log::append`]: the leaf has its index (`leaves.db`).
//! 2. [`Log::advance`]: the tiles and bundles of the larger tree are written.
//! 3. [`Log::advance`]: its checkpoint is signed and kept in `signed`. No signature leaves the process before that.
//! 4. [`Log::publish`]: the checkpoint, with whatever witnesses have cosigned, becomes `checkpoint`, which is served.
//!
//! Each step's result follows from the one before, so a crash anywhere means doing the rest again with the same outcome.
//! Against everything else that could happen to the files (a restored backup, a second copy of the folder) stand these
//! refusals: a tile is never replaced by another content, nothing is signed unless the tree still begins with the tree
//! that was signed before, and nothing is published that is smaller than, or differs from, what was.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tlog_tiles::Hash;
use tokio::sync::Notify;

use super::disk::{SharedDisk, create_dirs, place, replace};
use super::leaves::{Leaves, Source};
use super::note::{CheckpointError, NOTE_MAX, NoteKey, SignedCheckpoint};
use super::publish::Status;
use super::tile::LEAF_MAX;
use super::tree::{Tree, TreeError};
use crate::store::OpenError;

/// Leaves that are built into the tree at a time; fewer where they are large.
const BATCH_MAX: u32 = 4096;
/// Leaves taken by one call of [`Log::append`].
pub const APPEND_MAX: usize = 4096;

/// Where the files of a log lie.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// The log in folder `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is served, as it is served: it can be copied to, or mounted at, any web server.
    pub fn public(&self) -> PathBuf {
        self.root.join("public")
    }

    /// The published checkpoint.
    pub fn checkpoint(&self) -> PathBuf {
        self.public().join("checkpoint")
    }

    /// The last checkpoint that was signed, published or not.
    pub fn signed(&self) -> PathBuf {
        self.root.join("signed")
    }

    /// The database of leaves.
    pub fn leaves_db(&self) -> PathBuf {
        self.root.join("leaves.db")
    }

    /// What the publisher last knew of itself and the witnesses; for people.
    pub fn status(&self) -> PathBuf {
        self.root.join("status.json")
    }
}

/// Why the log does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database of leaves cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database of leaves failed.
    #[error("cannot use leaves.db of the log: {0}")]
    Leaves(#[from] sqlx::Error),
    /// The tiles.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A file of the log.
    #[error("cannot {doing} {path}: {source}")]
    File {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A checkpoint that this log is said to have signed is not one.
    #[error("{path} is not a checkpoint of this log: {source}")]
    Checkpoint {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: CheckpointError,
    },
    /// What is there now is not what was signed before.
    #[error("the log is inconsistent and publishes nothing more: {0}")]
    Inconsistent(String),
    /// A leaf or a call that is too large.
    #[error("{0}")]
    TooLarge(String),
    /// The runtime is shutting down.
    #[error("stopped while {0}")]
    Stopped(&'static str),
}

/// Result of using the log.
pub type Result<T> = std::result::Result<T, LogError>;

/// A tree head: what a checkpoint says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Head {
    /// Leaves.
    pub size: u64,
    /// Root hash.
    pub root: Hash,
}

impl Head {
    fn of(checkpoint: &SignedCheckpoint) -> Self {
        Self { size: checkpoint.size(), root: checkpoint.root() }
    }
}

#[derive(Debug)]
struct Heads {
    signed: Option<Head>,
    published: Option<Head>,
}

/// The log.
pub struct Log {
    disk: SharedDisk,
    paths: Paths,
    key: NoteKey,
    leaves: Leaves,
    /// As far as it is durable. Only [`Log::advance`] grows it.
    tree: Mutex<Tree>,
    heads: Mutex<Heads>,
    /// Held while the tree grows or a checkpoint is written, so that those happen one at a time.
    turn: tokio::sync::Mutex<()>,
    appended: Notify,
}

impl Log {
    /// Opens or creates the log in `paths`; its name is that of its key. Everything that is there is checked against what
    /// was signed.
    pub async fn open(disk: SharedDisk, paths: Paths, key: NoteKey) -> Result<Arc<Self>> {
        create_dirs(disk.as_ref(), &paths.public()).map_err(at("create", &paths.public()))?;
        let leaves = Leaves::open(&paths.leaves_db()).await?;
        let opened = Self::over(leaves.clone(), disk, paths, key).await;
        if opened.is_err() {
            // Connections that are only dropped end some time later, and write to the database once more when they do.
            leaves.close().await;
        }
        opened
    }

    async fn over(leaves: Leaves, disk: SharedDisk, paths: Paths, key: NoteKey) -> Result<Arc<Self>> {
        let count = leaves.size().await?;
        let heads = read_heads(&disk, &paths, &key)?;
        let head = heads.signed.map_or(0, |head| head.size);
        if count < head {
            return Err(LogError::Inconsistent(format!(
                "leaves.db holds {count} leaves, but {head} were signed; put back the newest copy of {}",
                paths.root().display()
            )));
        }
        let log = Arc::new(Self {
            tree: Mutex::new(Tree::new(disk.clone(), &paths.public(), head)),
            disk,
            paths,
            key,
            leaves,
            heads: Mutex::new(heads),
            turn: tokio::sync::Mutex::default(),
            appended: Notify::new(),
        });
        let heads = [log.signed(), log.published()];
        let checked = log.clone();
        blocking("checking the log", move || heads.into_iter().flatten().try_for_each(|head| checked.check(head)))
            .await?;
        log.leaves.forget_before(head).await?;
        Ok(log)
    }

    /// Where its files lie.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Its key.
    pub fn key(&self) -> &NoteKey {
        &self.key
    }

    /// Gives every leaf its index, durably. A leaf that the log has already keeps the index that it has.
    pub async fn append(&self, leaves: &[Vec<u8>]) -> Result<Vec<u64>> {
        self.take(None, leaves).await
    }

    /// As [`Log::append`], of leaves that come from `source` in order; a crash leaves both undone or both done.
    pub async fn append_from(&self, source: Source<'_>, leaves: &[Vec<u8>]) -> Result<Vec<u64>> {
        self.take(Some(source), leaves).await
    }

    /// How far a source was followed; 0 for one that is new.
    pub async fn position(&self, source: &str) -> Result<i64> {
        Ok(self.leaves.position(source).await?)
    }

    async fn take(&self, source: Option<Source<'_>>, leaves: &[Vec<u8>]) -> Result<Vec<u64>> {
        if leaves.len() > APPEND_MAX {
            return Err(LogError::TooLarge(format!("{} leaves at once, at most {APPEND_MAX} are taken", leaves.len())));
        }
        if let Some(leaf) = leaves.iter().find(|leaf| leaf.len() > LEAF_MAX) {
            return Err(LogError::TooLarge(format!("a leaf of {} bytes, at most {LEAF_MAX} are taken", leaf.len())));
        }
        let indices = self.leaves.append(source, leaves).await?;
        self.appended.notify_one();
        Ok(indices)
    }

    /// Leaves that have an index, whether or not a tree holds them yet.
    pub async fn len(&self) -> Result<u64> {
        Ok(self.leaves.size().await?)
    }

    /// Index of a leaf that was appended.
    pub async fn index_of(&self, leaf: &[u8]) -> Result<Option<u64>> {
        Ok(self.leaves.index_of(&tlog_tiles::record_hash(leaf).0).await?)
    }

    /// Resolves after [`Log::append`] has been called.
    pub async fn appended(&self) {
        self.appended.notified().await;
    }

    /// The last tree that was signed.
    pub fn signed(&self) -> Option<Head> {
        lock(&self.heads).signed
    }

    /// The tree whose checkpoint is served.
    pub fn published(&self) -> Option<Head> {
        lock(&self.heads).published
    }

    /// The published checkpoint with its signatures.
    pub async fn checkpoint(self: &Arc<Self>) -> Result<Option<Vec<u8>>> {
        let path = self.paths.checkpoint();
        let log = self.clone();
        blocking("reading the checkpoint", move || log.disk.read(&path, NOTE_MAX).map_err(at("read", &path))).await
    }

    /// A leaf that a tree holds.
    pub async fn leaf(self: &Arc<Self>, index: u64) -> Result<Vec<u8>> {
        let tree = self.tree();
        blocking("reading a leaf", move || Ok(tree.leaf(index)?)).await
    }

    /// The root hash of the first `size` leaves.
    pub async fn root(self: &Arc<Self>, size: u64) -> Result<Hash> {
        let tree = self.tree();
        blocking("reading a root", move || Ok(tree.root_at(size)?)).await
    }

    /// The audit path of leaf `index` in the tree of `size` leaves, after RFC 6962.
    pub async fn inclusion_proof(self: &Arc<Self>, index: u64, size: u64) -> Result<Vec<Hash>> {
        let tree = self.tree();
        blocking("reading a proof", move || Ok(tree.inclusion_proof(index, size)?)).await
    }

    /// The proof that the tree of `new` leaves begins with that of `old`, after RFC 6962.
    pub async fn consistency_proof(self: &Arc<Self>, old: u64, new: u64) -> Result<Vec<Hash>> {
        let tree = self.tree();
        blocking("reading a proof", move || Ok(tree.consistency_proof(old, new)?)).await
    }

    /// Builds all leaves into the tree and signs it. Returns the checkpoint, signed by the log alone; the last one where
    /// there is nothing new, and none before the first leaf.
    pub async fn advance(self: &Arc<Self>) -> Result<Option<SignedCheckpoint>> {
        let _turn = self.turn.lock().await;
        let mut tree = self.tree();
        let count = self.leaves.size().await?;
        if count == 0 {
            return Ok(None);
        }
        // Before anything is built on it.
        let log = self.clone();
        blocking("checking the log", move || log.signed().map_or(Ok(()), |before| log.check(before))).await?;
        while tree.size() < count {
            let leaves = self.leaves.pending(tree.size(), BATCH_MAX).await?;
            if leaves.is_empty() {
                let missing = tree.size();
                return Err(LogError::Inconsistent(format!("leaf {missing} of {count} is not in leaves.db")));
            }
            let mut growing = tree;
            tree = blocking("writing tiles", move || growing.extend(&leaves).map(|()| growing).map_err(inconsistent))
                .await?;
        }
        *lock(&self.tree) = tree;
        let log = self.clone();
        let signed = blocking("signing", move || log.sign()).await?;
        self.leaves.forget_before(signed.size()).await?;
        Ok(Some(signed))
    }

    /// Publishes a checkpoint of this log, with all signatures that it carries.
    pub async fn publish(self: &Arc<Self>, note: Vec<u8>) -> Result<()> {
        let _turn = self.turn.lock().await;
        let log = self.clone();
        blocking("publishing", move || log.publish_now(&note)).await
    }

    /// Writes down what the publisher knows, for `log status` in another process. Worth nothing after a crash, so not synced.
    pub async fn keep_status(self: &Arc<Self>, status: &Status) -> Result<()> {
        let path = self.paths.status();
        let text = serde_json::to_vec_pretty(status).map_err(|error| at("write", &path)(error.into()))?;
        let log = self.clone();
        blocking("writing the status", move || place(log.disk.as_ref(), &path, &text).map_err(at("write", &path))).await
    }

    /// Ends the use of its database.
    pub async fn close(&self) {
        self.leaves.close().await;
    }

    fn tree(&self) -> Tree {
        lock(&self.tree).clone()
    }

    /// Whether the tree still begins with what a checkpoint says.
    fn check(&self, head: Head) -> Result<()> {
        let root = self.tree().root_at(head.size)?;
        match root == head.root {
            true => Ok(()),
            false => Err(LogError::Inconsistent(format!(
                "a tree of {} leaves with the root {} was signed, the tiles give {root}",
                head.size, head.root
            ))),
        }
    }

    fn sign(&self) -> Result<SignedCheckpoint> {
        let tree = self.tree();
        let head = Head { size: tree.size(), root: tree.root_at(tree.size())? };
        let path = self.paths.signed();
        let wrong = |source| LogError::Checkpoint { path: path.clone(), source };
        let checkpoint = SignedCheckpoint::sign(&self.key, head.size, head.root).map_err(wrong)?;
        if let Some(before) = self.signed() {
            self.check(before)?;
            if before.size == head.size {
                return Ok(checkpoint);
            }
        }
        replace(self.disk.as_ref(), &path, &checkpoint.to_bytes()).map_err(at("write", &path))?;
        lock(&self.heads).signed = Some(head);
        Ok(checkpoint)
    }

    fn publish_now(&self, note: &[u8]) -> Result<()> {
        let path = self.paths.checkpoint();
        let checkpoint = verified(note, &path, &self.key)?;
        let head = Head::of(&checkpoint);
        let published = self.published();
        let shrinks = published.is_some_and(|published| head.size < published.size);
        if shrinks || self.signed().is_none_or(|signed| signed.size < head.size) {
            return Err(LogError::Inconsistent(format!("a checkpoint of size {} does not follow", head.size)));
        }
        self.check(head)?;
        if let Some(published) = published {
            self.check(published)?;
        }
        replace(self.disk.as_ref(), &path, note).map_err(at("write", &path))?;
        lock(&self.heads).published = Some(head);
        Ok(())
    }
}

/// A tile with another content is the same finding as a root that does not fit.
fn inconsistent(error: TreeError) -> LogError {
    match error {
        TreeError::Conflict(_) => LogError::Inconsistent(error.to_string()),
        other => LogError::Tree(other),
    }
}

fn read_heads(disk: &SharedDisk, paths: &Paths, key: &NoteKey) -> Result<Heads> {
    let read = |path: PathBuf| -> Result<Option<Head>> {
        match disk.read(&path, NOTE_MAX).map_err(at("read", &path))? {
            Some(note) => Ok(Some(Head::of(&verified(&note, &path, key)?))),
            None => Ok(None),
        }
    };
    let heads = Heads { signed: read(paths.signed())?, published: read(paths.checkpoint())? };
    match heads.published {
        Some(published) if heads.signed.is_none_or(|signed| signed.size < published.size) => {
            Err(LogError::Inconsistent(format!(
                "a checkpoint of size {} was published, but {} does not know of it",
                published.size,
                paths.signed().display()
            )))
        }
        _ => Ok(heads),
    }
}

fn verified(note: &[u8], path: &Path, key: &NoteKey) -> Result<SignedCheckpoint> {
    let wrong = |source| LogError::Checkpoint { path: path.to_owned(), source };
    let checkpoint = SignedCheckpoint::parse(note).map_err(wrong)?;
    checkpoint.verify(std::slice::from_ref(key.public())).map_err(wrong)?;
    Ok(checkpoint)
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> LogError {
    move |source| LogError::File { doing, path: path.to_owned(), source }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is locked is replaced whole, never left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what reads or writes files where it may block.
async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| LogError::Stopped(doing))?
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
