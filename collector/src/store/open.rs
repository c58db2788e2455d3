//! Opening SQLite databases: one connection that writes, a few that read, and migrations.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Executor};

/// Connections for reading. More than the queries that a small machine can work on at once.
const READERS: u32 = 8;
/// Rows that a query may be ahead of its reader. Small, because a row may hold a whole frame.
const ROWS_AHEAD: usize = 4;
/// How long to wait for another process's lock. Nobody else writes; a backup may read.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a query waits for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// Prepared statements kept per connection: every statement there is, bulk ones in each of their sizes.
const STATEMENTS: usize = 256;

/// How hard a database tries to keep what was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A commit survives a power cut.
    Full,
    /// A power cut may undo the last commits, never tear one.
    Rebuildable,
}

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened or migrated.
    #[error("cannot open the database {path}: {source}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: sqlx::Error,
    },
    /// Written by a later version of this program.
    #[error("{path} has format {found}, this program knows up to {known}: use the newer breakglass-collector")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// Latest known format.
        known: usize,
    },
}

/// Opens or creates a database, brings it up to date and returns its writing and its reading side.
pub async fn open_pools(
    path: &Path,
    durability: Durability,
    migrations: &[&str],
) -> Result<(SqlitePool, SqlitePool), OpenError> {
    let synchronous = match durability {
        Durability::Full => SqliteSynchronous::Full,
        Durability::Rebuildable => SqliteSynchronous::Normal,
    };
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .busy_timeout(BUSY_TIMEOUT)
        .statement_cache_capacity(STATEMENTS)
        .row_buffer_size(ROWS_AHEAD)
        .disable_statement_logging();
    let at = |source| OpenError::Open { path: path.to_owned(), source };
    let writer = writer_pool().connect_with(options.clone().create_if_missing(true)).await.map_err(at)?;
    migrate(&writer, path, migrations).await?;
    let readers = pool(READERS).connect_with(options.read_only(true)).await.map_err(at)?;
    Ok((writer, readers))
}

/// Closes every connection of a pool, so that the last one folds the write-ahead log into the database.
pub async fn close(pool: &SqlitePool) {
    // A connection that was on its way back to the pool when it was closed is only put with the idle ones (sqlx 0.8): the second
    // round takes it from there.
    pool.close().await;
    pool.close().await;
}

fn pool(connections: u32) -> SqlitePoolOptions {
    // Connections to a file do not go stale.
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

/// One connection, thrown away where a failed transaction has left it in the middle of one. After a full disk SQLite has undone a
/// transaction that the library (sqlx 0.8) takes to be open; the next failure then leaves a savepoint open for good, and whatever follows
/// "commits" inside it: it looks done, would be acknowledged, and is never on the disk.
fn writer_pool() -> SqlitePoolOptions {
    pool(1).before_acquire(|connection, _| Box::pin(async move { Ok(is_at_rest(connection).await) }))
}

/// Whether a transaction can be begun, which is so only where none is open.
async fn is_at_rest(connection: &mut SqliteConnection) -> bool {
    connection.execute("BEGIN").await.is_ok() && connection.execute("ROLLBACK").await.is_ok()
}

async fn migrate(writer: &SqlitePool, path: &Path, migrations: &[&str]) -> Result<(), OpenError> {
    let at = |source| OpenError::Open { path: path.to_owned(), source };
    let found: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(writer).await.map_err(at)?;
    let Some(pending) = usize::try_from(found).ok().and_then(|done| migrations.get(done..)) else {
        return Err(OpenError::Newer { path: path.to_owned(), found, known: migrations.len() });
    };
    if pending.is_empty() {
        return Ok(());
    }
    let mut connection = writer.acquire().await.map_err(at)?;
    let mut transaction = connection.begin().await.map_err(at)?;
    for migration in pending {
        transaction.execute(*migration).await.map_err(at)?;
    }
    // A pragma takes no parameters.
    let version = format!("PRAGMA user_version = {}", migrations.len());
    transaction.execute(version.as_str()).await.map_err(at)?;
    transaction.commit().await.map_err(at)
}
