//! What the collector has to keep beside frames: alarms that no host could have recorded, and what people did here.
//!
//! One SQLite database, `data/desk.db`, with `synchronous=FULL`. Nothing in it can be derived from frames, and nothing in the
//! frames from it.

use std::path::Path;

use breakglass_api::v1::{Act, Alarm};
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use crate::store::{Durability, OpenError, Result, StoreError, close, from_db, open_pools, to_db};
use crate::wall_clock_ns;

/// Migrations in order. Only ever appended to.
const MIGRATIONS: &[&str] = &[include_str!("0001-desk.sql")];

const ALARM: &str = "id, host_id, hostname, session, code, message, began_ns, ended_ns, reviewed_by, reviewed_ns, note";

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Desk {
    writer: SqlitePool,
    readers: SqlitePool,
}

/// An alarm that is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lasting {
    /// Its number.
    pub id: u64,
    /// The host that it is about.
    pub host_id: String,
    /// Whether a session was open when it was raised.
    pub in_session: bool,
}

fn failed(doing: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError { doing, file: "desk.db", source }
}

impl Desk {
    /// Opens or creates the database at `path`.
    pub async fn open(path: &Path) -> std::result::Result<Self, OpenError> {
        let (writer, readers) = open_pools(path, Durability::Full, MIGRATIONS).await?;
        Ok(Self { writer, readers })
    }

    /// Closes the database.
    pub async fn close(&self) {
        close(&self.readers).await;
        close(&self.writer).await;
    }

    /// Raises an alarm; durable when this returns. Its number is chosen here.
    pub async fn raise(&self, alarm: &Alarm) -> Result<u64> {
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO alarms (host_id, hostname, session, code, message, began_ns) VALUES (?, ?, ?, ?, ?, ?) RETURNING id",
        )
        .bind(&alarm.host_id)
        .bind(&alarm.hostname)
        .bind(&alarm.session)
        .bind(&alarm.code)
        .bind(&alarm.message)
        .bind(alarm.began_ns)
        .fetch_one(&self.writer)
        .await
        .map_err(failed("raise an alarm"))?;
        Ok(from_db(id))
    }

    /// Notes that what an alarm was raised for is over, and since when.
    pub async fn end(&self, id: u64, ended_ns: i64) -> Result<()> {
        let update = sqlx::query("UPDATE alarms SET ended_ns = ? WHERE id = ? AND ended_ns = 0");
        let done = update.bind(ended_ns).bind(to_db(id)).execute(&self.writer).await;
        done.map(drop).map_err(failed("end an alarm"))
    }

    /// Every alarm that is not over.
    pub async fn lasting(&self) -> Result<Vec<Lasting>> {
        let rows = sqlx::query("SELECT id, host_id, session FROM alarms WHERE ended_ns = 0 ORDER BY id")
            .fetch_all(&self.readers)
            .await
            .map_err(failed("list alarms"))?;
        let lasting = |row: &SqliteRow| -> sqlx::Result<Lasting> {
            let session: String = row.try_get(2)?;
            Ok(Lasting { id: from_db(row.try_get(0)?), host_id: row.try_get(1)?, in_session: !session.is_empty() })
        };
        rows.iter().map(lasting).collect::<sqlx::Result<_>>().map_err(failed("list alarms"))
    }

    /// Alarms, newest first.
    pub async fn alarms(&self, open_only: bool, limit: u32) -> Result<Vec<Alarm>> {
        let only = if open_only { "WHERE reviewed_ns = 0" } else { "" };
        let query = format!("SELECT {ALARM} FROM alarms {only} ORDER BY id DESC LIMIT ?");
        let rows = sqlx::query(&query).bind(limit).fetch_all(&self.readers).await.map_err(failed("list alarms"))?;
        rows.iter().map(alarm_of).collect::<sqlx::Result<_>>().map_err(failed("list alarms"))
    }

    /// Notes that somebody has looked at an alarm. The first look stays; `None` if there is no such alarm.
    pub async fn review(&self, id: u64, by: &str, note: &str) -> Result<Option<Alarm>> {
        sqlx::query("UPDATE alarms SET reviewed_by = ?, reviewed_ns = ?, note = ? WHERE id = ? AND reviewed_ns = 0")
            .bind(by)
            .bind(wall_clock_ns())
            .bind(note)
            .bind(to_db(id))
            .execute(&self.writer)
            .await
            .map_err(failed("review an alarm"))?;
        let query = format!("SELECT {ALARM} FROM alarms WHERE id = ?");
        // By the writer, which sees its own change.
        let row = sqlx::query(&query).bind(to_db(id)).fetch_optional(&self.writer).await;
        row.map_err(failed("read an alarm"))?.as_ref().map(alarm_of).transpose().map_err(failed("read an alarm"))
    }

    /// Writes down what somebody is about to do; durable when this returns.
    pub async fn begin(&self, act: &Act) -> Result<u64> {
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO acts (wall_ns, who, what, host_id, session, reason, outcome) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
        )
        .bind(wall_clock_ns())
        .bind(&act.who)
        .bind(&act.what)
        .bind(&act.host_id)
        .bind(&act.session)
        .bind(&act.reason)
        .bind(&act.outcome)
        .fetch_one(&self.writer)
        .await
        .map_err(failed("write down an act"))?;
        Ok(from_db(id))
    }

    /// Fills in what came of an act.
    pub async fn finish(&self, id: u64, outcome: &str) -> Result<()> {
        let update = sqlx::query("UPDATE acts SET outcome = ? WHERE id = ?");
        let done = update.bind(outcome).bind(to_db(id)).execute(&self.writer).await;
        done.map(drop).map_err(failed("fill in an act"))
    }

    /// What people did, newest first.
    pub async fn acts(&self, limit: u32) -> Result<Vec<Act>> {
        let rows = sqlx::query(
            "SELECT id, wall_ns, who, what, host_id, session, reason, outcome FROM acts ORDER BY id DESC LIMIT ?",
        )
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .map_err(failed("list acts"))?;
        rows.iter().map(act_of).collect::<sqlx::Result<_>>().map_err(failed("list acts"))
    }
}

fn alarm_of(row: &SqliteRow) -> sqlx::Result<Alarm> {
    Ok(Alarm {
        id: from_db(row.try_get(0)?),
        host_id: row.try_get(1)?,
        hostname: row.try_get(2)?,
        session: row.try_get(3)?,
        code: row.try_get(4)?,
        message: row.try_get(5)?,
        began_ns: row.try_get(6)?,
        ended_ns: row.try_get(7)?,
        reviewed_by: row.try_get(8)?,
        reviewed_ns: row.try_get(9)?,
        note: row.try_get(10)?,
    })
}

fn act_of(row: &SqliteRow) -> sqlx::Result<Act> {
    Ok(Act {
        id: from_db(row.try_get(0)?),
        wall_ns: row.try_get(1)?,
        who: row.try_get(2)?,
        what: row.try_get(3)?,
        host_id: row.try_get(4)?,
        session: row.try_get(5)?,
        reason: row.try_get(6)?,
        outcome: row.try_get(7)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_lasts_until_it_ends_and_is_open_until_it_is_reviewed() {
        let dir = tempfile::tempdir().unwrap();
        let desk = Desk::open(&dir.path().join("desk.db")).await.unwrap();
        let alarm = Alarm { host_id: "h".into(), session: "s".into(), code: "silent".into(), ..Alarm::default() };
        let id = desk.raise(&alarm).await.unwrap();
        assert_eq!(desk.lasting().await.unwrap(), [Lasting { id, host_id: "h".into(), in_session: true }]);
        desk.end(id, 7).await.unwrap();
        assert!(desk.lasting().await.unwrap().is_empty());
        assert_eq!(desk.alarms(true, 9).await.unwrap().len(), 1, "over, and nobody has looked yet");
        let first = desk.review(id, "reviewer/rita", "maintenance").await.unwrap().unwrap();
        let second = desk.review(id, "reviewer/bob", "other").await.unwrap().unwrap();
        assert_eq!((first.note.as_str(), &first), ("maintenance", &second), "the first look stays");
        assert!(desk.alarms(true, 9).await.unwrap().is_empty());
        assert!(desk.review(99, "x", "y").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_act_is_there_before_its_outcome() {
        let dir = tempfile::tempdir().unwrap();
        let desk = Desk::open(&dir.path().join("desk.db")).await.unwrap();
        let act = Act { who: "admin/a".into(), what: "terminate".into(), reason: "r".into(), ..Act::default() };
        let id = desk.begin(&act).await.unwrap();
        assert_eq!(desk.acts(9).await.unwrap()[0].outcome, "");
        desk.finish(id, "done").await.unwrap();
        let acts = desk.acts(9).await.unwrap();
        assert_eq!((acts.len(), acts[0].outcome.as_str(), acts[0].who.as_str()), (1, "done", "admin/a"));
    }
}
