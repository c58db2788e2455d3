//! The database of reviews, `data/reviews.db`.

use std::path::Path;

use breakglass_proof::review::Review;
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use crate::index::Uuid;
use crate::store::{Durability, OpenError, Result, StoreError, close, from_db, open_pools, to_db};

const MIGRATIONS: &[&str] = &[include_str!("migrations/0001-reviews.sql")];

/// Reviews told of one session; more than anybody signs.
const OF_SESSION_MAX: u32 = 64;

fn failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError { doing, file: "reviews.db", source }
}

/// A review that counts.
#[derive(Clone, Debug)]
pub struct ReviewRecord {
    /// What it says.
    pub review: Review,
    /// The text that was signed.
    pub text: Vec<u8>,
    /// The armoured signature.
    pub signature: Vec<u8>,
    /// Fingerprint of the key.
    pub key: String,
    /// Wall clock, ns.
    pub received_ns: i64,
}

/// The database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Book {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Book {
    /// Opens or creates it.
    pub async fn open(path: &Path) -> std::result::Result<Self, OpenError> {
        let (writer, readers) = open_pools(path, Durability::Full, MIGRATIONS).await?;
        Ok(Self { writer, readers })
    }

    /// Keeps a review, durably. One that is there already stays as it was.
    pub async fn add(&self, record: &ReviewRecord) -> Result<()> {
        let ReviewRecord { review, text, signature, key, received_ns } = record;
        sqlx::query(
            "INSERT OR IGNORE INTO reviews (session, host_id, stream, last_frame, text, signature, key, received_ns)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(review.session.as_slice())
        .bind(review.host_id.as_slice())
        .bind(review.stream.as_slice())
        .bind(to_db(review.last_frame))
        .bind(text.as_slice())
        .bind(signature.as_slice())
        .bind(key)
        .bind(received_ns)
        .execute(&self.writer)
        .await
        .map_err(failed("keep a review"))?;
        Ok(())
    }

    /// The reviews of a session, oldest first.
    pub async fn of(&self, session: Uuid) -> Result<Vec<ReviewRecord>> {
        let query = "SELECT text, signature, key, received_ns FROM reviews WHERE session = ? ORDER BY id LIMIT ?";
        let rows = sqlx::query(query).bind(session.as_slice()).bind(OF_SESSION_MAX).fetch_all(&self.readers).await;
        let rows = rows.map_err(failed("list reviews"))?;
        rows.iter().map(record_of).collect::<sqlx::Result<_>>().map_err(failed("list reviews"))
    }

    /// Whether a review of a session covers frame `seq` of a stream.
    pub async fn covers(&self, session: Uuid, stream: [u8; 16], seq: u64) -> Result<bool> {
        let query = "SELECT max(last_frame) FROM reviews WHERE session = ? AND stream = ?";
        let last: Option<i64> = sqlx::query_scalar(query)
            .bind(session.as_slice())
            .bind(stream.as_slice())
            .fetch_one(&self.readers)
            .await
            .map_err(failed("find a review"))?;
        Ok(last.is_some_and(|last| from_db(last) >= seq))
    }

    /// Ends all connections.
    pub async fn close(&self) {
        close(&self.readers).await;
        close(&self.writer).await;
    }
}

fn record_of(row: &SqliteRow) -> sqlx::Result<ReviewRecord> {
    let text: Vec<u8> = row.try_get(0)?;
    let review = Review::parse(&text).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(ReviewRecord { review, text, signature: row.try_get(1)?, key: row.try_get(2)?, received_ns: row.try_get(3)? })
}
