//! Everything that can be searched and listed, derived from the raw frames.
//!
//! The [`Indexer`] follows the frames in their order of arrival. Each pass writes what its frames yielded and how far it came in
//! one transaction, so that every frame counts exactly once whenever the process is killed. The database, `data/index.db`,
//! can be deleted at any time: it is built again, with the same content.

mod actions;
mod attest;
mod decode;
mod fold;
mod load;
mod model;
mod proof;
mod read;
mod search;
mod write;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use breakglass_api::frame::RAW_MAX;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqlitePool;
use tokio::sync::watch;
use tokio::time::Instant;

pub use attest::hex;
pub use decode::Decoder;
pub use fold::starts_command;
pub(crate) use model::SessionState;
pub use model::{Decoded, HostState, session_of};
pub use proof::{FindingRecord, StatementRecord};
pub use read::{CommandRecord, IndexReader, SessionRecord, TerminalRecord, Uuid};
pub use search::{HitRecord, SearchFilter};

use self::model::{Changes, Working};
use crate::store::{Durability, OpenError, Page, Result, Span, Store, StoreError, close, open_pools};

/// Version of what is derived and how. An index of another version is built again.
const VERSION: i64 = 5;
const SCHEMA: &[&str] = &[include_str!("schema.sql")];
/// Frames in one pass: enough to share a transaction, few enough that the first is soon found.
const PASS: Page = Page { events: 16_384, bytes: 8 * 1024 * 1024, raw: RAW_MAX };
/// Events below which a pass is small: the next one then waits for company, so that many small transactions become few.
const PASS_SMALL: u64 = 1024;
/// How long after the last pass the next one begins, at the earliest, when there is little to do.
const PACE: Duration = Duration::from_millis(20);
/// Pause after the index could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// SQLite's result codes for a file that is not what it should be: SQLITE_ERROR (a table is missing), SQLITE_CORRUPT and
/// SQLITE_NOTADB.
const DAMAGE: [i32; 3] = [1, 11, 26];

/// Why the index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The database cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An old index cannot be deleted, or a new one put in its place.
    #[error("cannot replace the index {path}: {source}")]
    Replace {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl IndexError {
    /// Whether the file is not an index of this version: damaged, another program's, or a later version's.
    fn is_damage(&self) -> bool {
        let source = match self {
            IndexError::Open(OpenError::Newer { .. }) => return true,
            IndexError::Open(OpenError::Open { source, .. }) | IndexError::Store(StoreError { source, .. }) => source,
            IndexError::Replace { .. } => return false,
        };
        match source {
            sqlx::Error::Database(error) => {
                // The lowest byte is the code, the rest says more about it.
                let code = error.code().and_then(|code| code.parse::<i32>().ok());
                code.is_some_and(|code| DAMAGE.contains(&(code & 0xff)))
            }
            _ => false,
        }
    }
}

/// What was indexed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Frames.
    pub frames: u64,
    /// Events in them.
    pub events: u64,
}

/// Builds the index.
pub struct Indexer {
    store: Store,
    /// The identity of `store`.
    identity: Vec<u8>,
    decoder: Decoder,
    writer: SqlitePool,
    readers: SqlitePool,
    /// Arrival number of the last frame that was indexed.
    position: i64,
    announce: watch::Sender<i64>,
    /// Absent before the first pass and after one that failed.
    working: Option<Working>,
}

/// Wraps an SQL error of the index database.
fn failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError { doing, file: "index.db", source }
}

impl Indexer {
    /// Opens the index at `path`; one that does not belong to `store` or is of another version is begun anew.
    pub async fn open(store: Store, path: &Path) -> std::result::Result<Self, IndexError> {
        match Self::open_existing(&store, path).await {
            Ok(Some(indexer)) => return Ok(indexer),
            Ok(None) => tracing::warn!(path = %path.display(), "the index does not fit the frames; building it anew"),
            Err(error) if error.is_damage() => tracing::warn!(%error, "the index is damaged; building it anew"),
            // A full disk or a missing permission is no reason to throw an index away.
            Err(error) => return Err(error),
        }
        remove(path)?;
        match Self::open_existing(&store, path).await? {
            Some(indexer) => Ok(indexer),
            None => Err(IndexError::Replace {
                path: path.to_owned(),
                source: std::io::Error::other("a new index does not fit either"),
            }),
        }
    }

    async fn open_existing(store: &Store, path: &Path) -> std::result::Result<Option<Self>, IndexError> {
        let (writer, readers) = open_pools(path, Durability::Rebuildable, SCHEMA).await?;
        let identity = store.identity().await?;
        let newest = store.last_arrival().await?;
        let position = match position(&writer).await.map_err(failed("read the position"))? {
            None => {
                begin(&writer, &identity).await.map_err(failed("write the position"))?;
                0
            }
            Some((VERSION, of, arrival)) if of == identity && arrival <= newest => arrival,
            Some(_) => {
                close(&readers).await;
                close(&writer).await;
                return Ok(None);
            }
        };
        let (announce, _) = watch::channel(position);
        let (store, decoder) = (store.clone(), Decoder::new(store.clone()));
        Ok(Some(Self { store, identity, decoder, writer, readers, position, announce, working: None }))
    }

    /// A name that stays the same as long as the index numbers what it derives the same: with the same frames and the same version.
    pub fn source(&self) -> String {
        format!("index {VERSION} of {}", hex(&self.identity))
    }

    /// The reading side.
    pub fn reader(&self) -> IndexReader {
        IndexReader::new(self.readers.clone(), self.announce.subscribe())
    }

    /// Follows `durable`, the arrival number of the newest frame, until its sender is gone.
    pub async fn follow(mut self, mut durable: watch::Receiver<i64>) {
        loop {
            let target = *durable.borrow_and_update();
            while self.position < target && durable.has_changed().is_ok() {
                let began = Instant::now();
                match self.pass(target).await {
                    Ok(done) if done.events < PASS_SMALL => tokio::time::sleep_until(began + PACE).await,
                    Ok(_) => {}
                    Err(error) => {
                        tracing::error!(%error, "cannot index; frames are safe, trying again");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
            if durable.changed().await.is_err() {
                self.close().await;
                return;
            }
        }
    }

    /// Builds the index of `store` at `path` from nothing. An old one stays in place until the new one is complete.
    pub async fn rebuild(store: Store, path: &Path) -> std::result::Result<Done, IndexError> {
        let building = path.with_extension("db.new");
        remove(&building)?;
        let mut indexer = Self::open(store.clone(), &building).await?;
        let target = store.last_arrival().await?;
        let mut all = Done::default();
        while indexer.position < target {
            let done = indexer.pass(target).await?;
            all = Done { frames: all.frames + done.frames, events: all.events + done.events };
        }
        // The last connection to go takes the write-ahead log with it.
        indexer.close().await;
        remove(path)?;
        std::fs::rename(&building, path).map_err(|source| IndexError::Replace { path: path.to_owned(), source })?;
        Ok(all)
    }

    /// Closes the database, for readers too.
    async fn close(&self) {
        close(&self.readers).await;
        close(&self.writer).await;
    }

    /// Indexes the next frames, up to arrival number `until`.
    async fn pass(&mut self, until: i64) -> Result<Done> {
        let frames = self.store.read(Span { host: None, after: self.position, until }, PASS).await?;
        let Some(last) = frames.last().map(|frame| frame.arrival) else {
            // Nothing in between: the numbers of frames need not be dense.
            self.position = until;
            return Ok(Done::default());
        };
        let decoded = self.decoder.decode(frames).await?;
        let written = self.write(decoded).await.map_err(failed("index frames"))?;
        self.working = Some(written.working);
        self.position = written.last.unwrap_or(last);
        self.announce.send_replace(self.position);
        Ok(written.done)
    }

    /// The one transaction of a pass. On failure the working state is gone and is read again next time.
    async fn write(&mut self, mut decoded: Vec<Decoded>) -> sqlx::Result<Written> {
        let mut transaction = self.writer.begin().await?;
        let mut working = match self.working.take() {
            Some(working) => working,
            None => load::begin(&mut transaction).await?,
        };
        let mut referred = 0;
        for frame in &decoded {
            load::refer(&mut transaction, &mut working, std::slice::from_ref(frame)).await?;
            referred += 1;
            if working.is_heavy() {
                break;
            }
        }
        // The others are read again by the next pass.
        decoded.truncate(referred);
        let mut known = load::known(&mut transaction, &self.store, &decoded).await?;
        // In parts: what a frame yields can be many times what it takes, and only the frame is bounded.
        let mut at = fold::At::default();
        while at.frame < decoded.len() && !(at.is_between() && at.frame > 0 && working.is_heavy()) {
            let folding = tokio::task::spawn_blocking(move || {
                let mut changes = Changes::default();
                fold::some(&mut working, &mut changes, &mut known, &decoded, &mut at);
                (working, changes, known, decoded, at)
            });
            let changes;
            (working, changes, known, decoded, at) = folding.await.map_err(worker_failed)?;
            write::apply(&mut transaction, &mut working, &changes).await?;
        }
        decoded.truncate(at.frame);
        let last = decoded.last().map(|frame| frame.arrival);
        if let Some(last) = last {
            set_position(&mut transaction, last).await?;
        }
        transaction.commit().await?;
        working.trim();
        let events =
            decoded.iter().map(|frame| frame.content.as_ref().map_or(0, |(_, batch)| batch.events.len() as u64));
        Ok(Written { working, last, done: Done { frames: decoded.len() as u64, events: events.sum() } })
    }
}

/// What a pass wrote.
struct Written {
    working: Working,
    /// Arrival number of the last frame.
    last: Option<i64>,
    done: Done,
}

fn worker_failed(error: tokio::task::JoinError) -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::other(error))
}

async fn position(writer: &SqlitePool) -> sqlx::Result<Option<(i64, Vec<u8>, i64)>> {
    sqlx::query_as("SELECT version, store_id, arrival FROM position").fetch_optional(writer).await
}

async fn begin(writer: &SqlitePool, identity: &[u8]) -> sqlx::Result<()> {
    let query = sqlx::query("INSERT INTO position (version, store_id, arrival) VALUES (?, ?, 0)");
    query.bind(VERSION).bind(identity).execute(writer).await.map(drop)
}

async fn set_position(connection: &mut SqliteConnection, arrival: i64) -> sqlx::Result<()> {
    sqlx::query("UPDATE position SET arrival = ?").bind(arrival).execute(connection).await.map(drop)
}

/// Deletes a database with its write-ahead log; one that does not exist is fine.
fn remove(path: &Path) -> std::result::Result<(), IndexError> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let path = PathBuf::from(name);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(IndexError::Replace { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}
