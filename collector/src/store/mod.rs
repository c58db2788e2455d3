//! The raw frames and who sent them: the only state of the collector that cannot be rebuilt.
//!
//! One SQLite database, `data/frames.db`, in WAL mode with `synchronous=FULL`: when a write returns it is on the disk. All SQL
//! about frames is in this module; everybody else speaks in [`NewFrame`] and [`StoredFrame`], so that another database can
//! take SQLite's place here.

mod open;

use std::path::Path;

use breakglass_api::frame::{Hash, claimed_raw_len};
use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{Row, SqliteConnection};

pub use open::{Durability, OpenError, close, open_pools};

/// Migrations in order; the database's `user_version` counts those that were applied. Only ever appended to.
const MIGRATIONS: &[&str] = &[include_str!("migrations/0001-frames.sql")];

/// Largest number of a frame: SQLite's integers are signed.
pub const SEQ_MAX: u64 = i64::MAX as u64;

/// An SQL error with what was being done.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} in {file}: {source}")]
pub struct StoreError {
    pub(crate) doing: &'static str,
    pub(crate) file: &'static str,
    pub(crate) source: sqlx::Error,
}

/// Result of using a database.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Wraps an SQL error of the frames database.
fn failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError { doing, file: "frames.db", source }
}

/// An unsigned number as SQLite keeps it: the same 64 bits.
pub(crate) fn to_db(value: u64) -> i64 {
    value.cast_signed()
}

/// The reverse of [`to_db`].
pub(crate) fn from_db(value: i64) -> u64 {
    value.cast_unsigned()
}

/// What a host says about itself when it connects.
#[derive(Clone, Debug)]
pub struct HostRecord {
    /// From its certificate.
    pub host_id: String,
    /// The enrolled name.
    pub hostname: String,
    /// Tier of its kernel programs.
    pub tier: String,
    /// Version of its agent.
    pub agent_version: String,
    /// Wall clock, ns since 1970.
    pub last_seen_ns: i64,
}

/// The last frame held of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Row of the host that the stream belongs to.
    pub host: i64,
    /// Its sequence.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
}

/// A frame to be stored.
#[derive(Clone, Debug)]
pub struct NewFrame {
    /// Row of the host, from [`Store::greet`].
    pub host: i64,
    /// From the frame's header.
    pub stream_id: [u8; 16],
    /// From the frame's header.
    pub seq: u64,
    /// The frame's hash.
    pub hash: Hash,
    /// As the header claims.
    pub events: u32,
    /// Frames that are missing just before this one.
    pub missing_before: u64,
    /// Wall clock, ns since 1970.
    pub received_ns: i64,
    /// The whole frame.
    pub bytes: Bytes,
}

/// A frame as it lies in the store.
#[derive(Clone, Debug)]
pub struct StoredFrame {
    /// Position in the order of arrival, over all hosts; increasing, not dense.
    pub arrival: i64,
    /// Row of the host.
    pub host: i64,
    /// Frames that are missing just before this one.
    pub missing_before: u64,
    /// The whole frame.
    pub bytes: Vec<u8>,
}

/// Which frames to read.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Only this host's.
    pub host: Option<i64>,
    /// Only those that arrived after this one.
    pub after: i64,
    /// Only those that arrived up to and with this one.
    pub until: i64,
}

/// How much to read at once. At least one frame is always read.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Stop once this many events are read, by the frames' own count.
    pub events: u64,
    /// Stop once this many bytes are read.
    pub bytes: usize,
    /// Stop before the frames hold more than this, decompressed: a few bytes can be 32 MiB.
    pub raw: usize,
}

/// The database of raw frames. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Store {
    /// Opens or creates the database at `path`.
    pub async fn open(path: &Path) -> std::result::Result<Self, OpenError> {
        let (writer, readers) = open_pools(path, Durability::Full, MIGRATIONS).await?;
        Ok(Self { writer, readers })
    }

    /// The store's own identity, for the index to recognise.
    pub async fn identity(&self) -> Result<Vec<u8>> {
        let query = sqlx::query_scalar("SELECT store_id FROM identity");
        query.fetch_one(&self.readers).await.map_err(failed("read the identity"))
    }

    /// Records that a host connected; returns its row.
    pub async fn greet(&self, host: &HostRecord) -> Result<i64> {
        sqlx::query_scalar(
            "INSERT INTO hosts (host_id, hostname, tier, agent_version, last_seen_ns) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT (host_id) DO UPDATE SET hostname = excluded.hostname, tier = excluded.tier,
             agent_version = excluded.agent_version, last_seen_ns = excluded.last_seen_ns RETURNING id",
        )
        .bind(&host.host_id)
        .bind(&host.hostname)
        .bind(&host.tier)
        .bind(&host.agent_version)
        .bind(host.last_seen_ns)
        .fetch_one(&self.writer)
        .await
        .map_err(failed("record a host"))
    }

    /// Every host that ever connected, by row, in order of first contact.
    pub async fn hosts(&self) -> Result<Vec<(i64, HostRecord)>> {
        let rows =
            sqlx::query("SELECT id, host_id, hostname, tier, agent_version, last_seen_ns FROM hosts ORDER BY id")
                .fetch_all(&self.readers)
                .await
                .map_err(failed("list hosts"))?;
        rows.iter().map(host_of).collect::<sqlx::Result<_>>().map_err(failed("list hosts"))
    }

    /// The last frame held of a stream.
    pub async fn head(&self, stream_id: [u8; 16]) -> Result<Option<Head>> {
        let row = sqlx::query("SELECT host, seq, hash FROM frames WHERE stream_id = ? ORDER BY seq DESC LIMIT 1")
            .bind(stream_id.as_slice())
            .fetch_optional(&self.readers)
            .await
            .map_err(failed("find a stream's last frame"))?;
        row.as_ref().map(head_of).transpose().map_err(failed("find a stream's last frame"))
    }

    /// The hash of a frame, if it is held.
    pub async fn held(&self, stream_id: [u8; 16], seq: u64) -> Result<Option<Hash>> {
        let row = sqlx::query("SELECT hash FROM frames WHERE stream_id = ? AND seq = ?")
            .bind(stream_id.as_slice())
            .bind(to_db(seq))
            .fetch_optional(&self.readers)
            .await
            .map_err(failed("find a frame"))?;
        row.map(|row| hash_at(&row, 0)).transpose().map_err(failed("find a frame"))
    }

    /// The frames of a stream from sequence `from` on, up to the one before `until`: as many as are held and no longer than `longest` bytes.
    pub async fn stretch(&self, stream_id: [u8; 16], from: u64, until: u64, longest: usize) -> Result<Vec<Vec<u8>>> {
        let query =
            "SELECT bytes FROM frames WHERE stream_id = ? AND seq >= ? AND seq < ? AND length(bytes) <= ? ORDER BY seq";
        sqlx::query_scalar(query)
            .bind(stream_id.as_slice())
            .bind(to_db(from))
            .bind(to_db(until))
            .bind(i64::try_from(longest).unwrap_or(i64::MAX))
            .fetch_all(&self.readers)
            .await
            .map_err(failed("read frames"))
    }

    /// Stores all of `frames` or none. They are on the disk when this returns, with the arrival number of the last.
    pub async fn append(&self, frames: &[NewFrame]) -> Result<i64> {
        self.append_in_transaction(frames).await.map_err(failed("store frames"))
    }

    async fn append_in_transaction(&self, frames: &[NewFrame]) -> sqlx::Result<i64> {
        let mut transaction = self.writer.begin().await?;
        let mut last = 0;
        for frame in frames {
            last = insert(&mut transaction, frame).await?;
        }
        transaction.commit().await?;
        Ok(last)
    }

    /// Arrival number of the newest frame; 0 if there is none.
    pub async fn last_arrival(&self) -> Result<i64> {
        let query = sqlx::query_scalar("SELECT coalesce(max(arrival), 0) FROM frames");
        query.fetch_one(&self.readers).await.map_err(failed("find the newest frame"))
    }

    /// Stream and sequence of a frame, by its arrival number.
    pub async fn place(&self, arrival: i64) -> Result<Option<([u8; 16], u64)>> {
        let row = sqlx::query("SELECT stream_id, seq FROM frames WHERE arrival = ?")
            .bind(arrival)
            .fetch_optional(&self.readers)
            .await
            .map_err(failed("find a frame"))?;
        row.map(|row| place_of(&row)).transpose().map_err(failed("find a frame"))
    }

    /// When a frame was received, ns since 1970, by its arrival number.
    pub async fn received_ns(&self, arrival: i64) -> Result<Option<i64>> {
        let query = sqlx::query_scalar("SELECT received_ns FROM frames WHERE arrival = ?").bind(arrival);
        query.fetch_optional(&self.readers).await.map_err(failed("find a frame"))
    }

    /// Arrival number of the first frame of `span` whose sequence is `seq`.
    pub async fn arrival_of(&self, host: i64, span: Span, seq: u64) -> Result<Option<i64>> {
        sqlx::query_scalar(
            "SELECT arrival FROM frames WHERE host = ? AND arrival > ? AND arrival <= ? AND seq = ? ORDER BY arrival LIMIT 1",
        )
        .bind(host)
        .bind(span.after)
        .bind(span.until)
        .bind(to_db(seq))
        .fetch_optional(&self.readers)
        .await
        .map_err(failed("find a frame"))
    }

    /// Reads frames in order of arrival, as many as fit `page`. Empty: there are no more.
    pub async fn read(&self, span: Span, page: Page) -> Result<Vec<StoredFrame>> {
        self.read_page(span, page).await.map_err(failed("read frames"))
    }

    async fn read_page(&self, span: Span, page: Page) -> sqlx::Result<Vec<StoredFrame>> {
        let by_host = "SELECT arrival, host, events, missing_before, bytes FROM frames
                       WHERE host = ? AND arrival > ? AND arrival <= ? ORDER BY arrival";
        let all = "SELECT arrival, host, events, missing_before, bytes FROM frames
                   WHERE arrival > ? AND arrival <= ? ORDER BY arrival";
        let query = match span.host {
            Some(host) => sqlx::query(by_host).bind(host),
            None => sqlx::query(all),
        };
        let mut rows = query.bind(span.after).bind(span.until).fetch(&self.readers);
        let (mut frames, mut events, mut bytes, mut raw) = (Vec::new(), 0u64, 0usize, 0usize);
        while let Some(row) = rows.try_next().await? {
            let frame = StoredFrame {
                arrival: row.try_get(0)?,
                host: row.try_get(1)?,
                missing_before: from_db(row.try_get(3)?),
                bytes: row.try_get(4)?,
            };
            raw += claimed_raw_len(&frame.bytes);
            if raw > page.raw && !frames.is_empty() {
                break;
            }
            events = events.saturating_add(from_db(row.try_get(2)?));
            bytes += frame.bytes.len();
            frames.push(frame);
            if events >= page.events || bytes >= page.bytes {
                break;
            }
        }
        Ok(frames)
    }

    /// One frame by its arrival number.
    pub async fn frame(&self, arrival: i64) -> Result<Option<StoredFrame>> {
        let span = Span { host: None, after: arrival - 1, until: arrival };
        Ok(self.read(span, Page { events: 1, bytes: 1, raw: 1 }).await?.pop())
    }

    /// Closes the database; what was written stays written in any case.
    pub async fn close(&self) {
        close(&self.readers).await;
        close(&self.writer).await;
    }

    #[cfg(test)]
    pub(crate) fn writer(&self) -> &SqlitePool {
        &self.writer
    }
}

async fn insert(connection: &mut SqliteConnection, frame: &NewFrame) -> sqlx::Result<i64> {
    let done = sqlx::query(
        "INSERT INTO frames (host, stream_id, seq, hash, events, missing_before, received_ns, bytes)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(frame.host)
    .bind(frame.stream_id.as_slice())
    .bind(to_db(frame.seq))
    .bind(frame.hash.as_slice())
    .bind(i64::from(frame.events))
    .bind(to_db(frame.missing_before))
    .bind(frame.received_ns)
    .bind(frame.bytes.as_ref())
    .execute(connection)
    .await?;
    Ok(done.last_insert_rowid())
}

fn host_of(row: &SqliteRow) -> sqlx::Result<(i64, HostRecord)> {
    let record = HostRecord {
        host_id: row.try_get(1)?,
        hostname: row.try_get(2)?,
        tier: row.try_get(3)?,
        agent_version: row.try_get(4)?,
        last_seen_ns: row.try_get(5)?,
    };
    Ok((row.try_get(0)?, record))
}

fn head_of(row: &SqliteRow) -> sqlx::Result<Head> {
    Ok(Head { host: row.try_get(0)?, seq: from_db(row.try_get(1)?), hash: hash_at(row, 2)? })
}

fn place_of(row: &SqliteRow) -> sqlx::Result<([u8; 16], u64)> {
    let stream: &[u8] = row.try_get(0)?;
    let stream = stream.try_into().map_err(|_| sqlx::Error::Decode("a stream id of the wrong length".into()))?;
    Ok((stream, from_db(row.try_get(1)?)))
}

fn hash_at(row: &SqliteRow, column: usize) -> sqlx::Result<Hash> {
    let bytes: &[u8] = row.try_get(column)?;
    bytes.try_into().map_err(|_| sqlx::Error::Decode("a hash of the wrong length".into()))
}
