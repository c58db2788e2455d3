//! Questions about signatures.

use breakglass_api::checkpoint::{PublicKey, Signed};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::failed;
use super::read::{IndexReader, Uuid};
use crate::store::{Result, from_db, to_db};

/// A statement that holds.
pub struct StatementRecord {
    /// Its place in the order in which statements came; increasing, not dense.
    pub id: i64,
    /// The statement.
    pub signed: Signed,
}

/// Something that does not hold.
pub struct FindingRecord {
    /// Wall clock, ns.
    pub wall_ns: i64,
    /// A stable word.
    pub code: String,
    /// A sentence.
    pub message: String,
    /// The frame that holds the statement.
    pub carrier: u64,
}

impl IndexReader {
    /// What does not hold in a session's proof, oldest first.
    pub async fn findings(&self, host: i64, session: Uuid, limit: u32) -> Result<Vec<FindingRecord>> {
        let query =
            "SELECT wall_ns, code, message, carrier FROM findings WHERE host = ? AND session = ? ORDER BY id LIMIT ?";
        let rows = sqlx::query(query)
            .bind(host)
            .bind(session.as_slice())
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list findings"))?;
        rows.iter().map(finding_of).collect::<sqlx::Result<_>>().map_err(failed("list findings"))
    }

    /// The statement of the host's that covers frame `seq` and the fewest behind it.
    pub async fn covering(&self, host: i64, stream: [u8; 16], seq: u64) -> Result<Option<StatementRecord>> {
        let row = sqlx::query(
            "SELECT id, signed FROM statements WHERE host = ? AND stream = ? AND seq >= ? ORDER BY seq, id LIMIT 1",
        )
        .bind(host)
        .bind(stream.as_slice())
        .bind(to_db(seq))
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("find a checkpoint"))?;
        row.as_ref().map(statement_of).transpose().map_err(failed("find a checkpoint"))
    }

    /// The statement that marks a session's opening or closing, a bit of [`breakglass_api::checkpoint::reason`].
    pub async fn mark(&self, host: i64, session: Uuid, mark: u16) -> Result<Option<StatementRecord>> {
        let query = "SELECT id, signed FROM statements WHERE session = ? AND host = ? AND mark = ? ORDER BY id LIMIT 1";
        let row = sqlx::query(query)
            .bind(session.as_slice())
            .bind(host)
            .bind(i64::from(mark))
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("find a checkpoint"))?;
        row.as_ref().map(statement_of).transpose().map_err(failed("find a checkpoint"))
    }

    /// Links of a host's chain of keys from epoch `from` on, those below `until`, at most `limit`.
    pub async fn links(
        &self,
        host: i64,
        host_key: PublicKey,
        from: u64,
        until: u64,
        limit: u32,
    ) -> Result<Vec<StatementRecord>> {
        let rows = sqlx::query(
            "SELECT id, signed FROM statements WHERE host = ? AND host_key = ? AND link = 1 AND epoch >= ? AND epoch < ?
             ORDER BY epoch LIMIT ?",
        )
        .bind(host)
        .bind(host_key.as_slice())
        .bind(to_db(from))
        .bind(to_db(until))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list keys"))?;
        rows.iter().map(statement_of).collect::<sqlx::Result<_>>().map_err(failed("list keys"))
    }

    /// Checkpoints of a stream about frames from `from` to `to`, in the order in which they came after `after`, at most `limit`.
    pub async fn checkpoints(
        &self,
        host: i64,
        stream: [u8; 16],
        (from, to): (u64, u64),
        after: i64,
        limit: u32,
    ) -> Result<Vec<StatementRecord>> {
        let rows = sqlx::query(
            "SELECT id, signed FROM statements WHERE host = ? AND stream = ? AND link = 0 AND seq >= ? AND seq <= ? AND id > ?
             ORDER BY id LIMIT ?",
        )
        .bind(host)
        .bind(stream.as_slice())
        .bind(to_db(from))
        .bind(to_db(to))
        .bind(after)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list checkpoints"))?;
        rows.iter().map(statement_of).collect::<sqlx::Result<_>>().map_err(failed("list checkpoints"))
    }

    /// Leaves for the transparency log: every statement that holds, of all hosts, in the order in which they came after `after`
    /// (0 at first), each with its place in that order. Rebuilding the index changes neither order nor content.
    pub async fn leaves(&self, after: i64, limit: u32) -> Result<Vec<(i64, Vec<u8>)>> {
        sqlx::query_as("SELECT id, signed FROM statements WHERE id > ? ORDER BY id LIMIT ?")
            .bind(after)
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list checkpoints"))
    }
}

fn statement_of(row: &SqliteRow) -> sqlx::Result<StatementRecord> {
    let bytes: &[u8] = row.try_get(1)?;
    let signed = Signed::parse(bytes).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(StatementRecord { id: row.try_get(0)?, signed })
}

fn finding_of(row: &SqliteRow) -> sqlx::Result<FindingRecord> {
    Ok(FindingRecord {
        wall_ns: row.try_get(0)?,
        code: row.try_get(1)?,
        message: row.try_get(2)?,
        carrier: from_db(row.try_get(3)?),
    })
}
