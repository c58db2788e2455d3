//! Questions to the index.

use std::time::Duration;

use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row, Sqlite};
use tokio::sync::watch;

use super::failed;
use super::load::{session_of, signer_of, terminal_of, uuid_of};
use super::model::{HostState, SessionState, TerminalState, command_id, command_number};
use crate::store::{Result, from_db, to_db};

pub use super::model::Uuid;

/// How long a question waits for the index to reach the frames that were durable when it was asked. People wait for that long
/// sooner than they ask again; an index that is being built anew takes longer.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// The columns of a session for a list, where what it left behind, 64 KiB of it, is not shown.
const LISTED: &str = "SELECT id, uuid, host, operator, opened, opened_ns, deadline_ns, closed, closed_ns, closed_arrival, joined,
    commands, execs, failed_commands, terminals, terminal_bytes, input_bytes, withheld_bytes, stdio_output_bytes,
    stdio_input_bytes, actions, events, gaps, alerts, witnessed, iif(left_behind IS NULL, NULL, x'') AS left_behind, changes,
    doors, first_arrival, last_arrival, first_line, last_line FROM sessions s WHERE 1";

/// The reading side of the index. Cheap to clone.
#[derive(Clone)]
pub struct IndexReader {
    pub(super) pool: SqlitePool,
    indexed: watch::Receiver<i64>,
}

/// A session with its identity.
pub struct SessionRecord {
    /// Its UUID.
    pub uuid: Uuid,
    /// Row of its host.
    pub host: i64,
    /// Everything else.
    pub state: SessionState,
}

/// A terminal of a session.
pub struct TerminalRecord {
    /// Its id on the host.
    pub terminal: u64,
    /// Everything else.
    pub state: TerminalState,
}

/// A command of a session.
pub struct CommandRecord {
    /// From 1 within the session.
    pub number: u64,
    /// Wall clock of its start, ns.
    pub wall_ns: i64,
    /// Boot clock of its start, ns.
    pub boot_ns: u64,
    /// Arrival number of the frame that holds it.
    pub arrival: i64,
    /// Its place in that frame.
    pub place: usize,
    /// Whether it is an exec that failed.
    pub failed: bool,
    /// The encoded Exec or ExecFailed, unless it is large.
    pub event: Option<Vec<u8>>,
    /// The encoded Exit.
    pub exit: Option<Vec<u8>>,
    /// Wall clock of its exit, ns; 0 while it runs.
    pub exit_wall_ns: i64,
    /// Number of the command that its process became; 0 if none.
    pub replaced_by: u64,
}

impl IndexReader {
    pub(super) fn new(pool: SqlitePool, indexed: watch::Receiver<i64>) -> Self {
        Self { pool, indexed }
    }

    /// Arrival number of the last indexed frame, to be watched.
    pub fn indexed(&self) -> watch::Receiver<i64> {
        self.indexed.clone()
    }

    /// Waits until frame `arrival` is indexed, so that what was acknowledged is seen. Gives up after a while, and says whether it
    /// did not: an index that lags far behind is better than no answer.
    pub async fn catch_up(&self, arrival: i64) -> bool {
        let mut indexed = self.indexed.clone();
        let reached = indexed.wait_for(|indexed| *indexed >= arrival);
        let caught_up = tokio::time::timeout(CATCH_UP_MAX, reached).await.is_ok();
        if !caught_up {
            tracing::warn!(arrival, "the index lags behind; answering from what it has");
        }
        caught_up
    }

    /// Counters of every host that has sent frames.
    pub async fn hosts(&self) -> Result<Vec<(i64, HostState)>> {
        let rows = sqlx::query("SELECT host, frames, events, open_session, host_key, epoch, signing_key FROM hosts")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list hosts"))?;
        rows.iter().map(host_of).collect::<sqlx::Result<_>>().map_err(failed("list hosts"))
    }

    /// Sessions, newest first. `before`: only sessions older than this one. Of what a session left behind only whether it is known.
    pub async fn sessions(
        &self,
        hosts: Option<&[i64]>,
        operator: Option<&str>,
        open_only: bool,
        before: Option<&SessionState>,
        limit: u32,
    ) -> Result<Vec<SessionRecord>> {
        let mut query = QueryBuilder::<Sqlite>::new(LISTED);
        push_hosts(&mut query, hosts);
        if let Some(operator) = operator {
            query.push(" AND s.operator = ").push_bind(operator.to_owned());
        }
        if open_only {
            query.push(" AND s.closed IS NULL");
        }
        if let Some(before) = before {
            query.push(" AND (s.opened_ns, s.id) < (").push_bind(before.opened_ns);
            query.push(", ").push_bind(before.row).push(")");
        }
        query.push(" ORDER BY s.opened_ns DESC, s.id DESC LIMIT ").push_bind(limit);
        let rows = query.build().fetch_all(&self.pool).await.map_err(failed("list sessions"))?;
        rows.iter().map(record_of).collect::<sqlx::Result<_>>().map_err(failed("list sessions"))
    }

    /// Sessions whose UUID, as 32 hexadecimal digits, begins or ends with `digits`: at most `limit`, in order of first record.
    pub async fn find_sessions(&self, digits: &str, hosts: Option<&[i64]>, limit: u32) -> Result<Vec<SessionRecord>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM sessions s WHERE (lower(hex(s.uuid)) LIKE ");
        query
            .push_bind(format!("{digits}%"))
            .push(" OR lower(hex(s.uuid)) LIKE ")
            .push_bind(format!("%{digits}"))
            .push(")");
        self.found(query, hosts, limit).await
    }

    /// The session with this UUID; several where hosts claim it that did not record it, as only the host itself can tell.
    pub async fn sessions_of(&self, uuid: Uuid, hosts: Option<&[i64]>, limit: u32) -> Result<Vec<SessionRecord>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM sessions s WHERE s.uuid = ");
        query.push_bind(uuid.to_vec());
        self.found(query, hosts, limit).await
    }

    async fn found(
        &self,
        mut query: QueryBuilder<'_, Sqlite>,
        hosts: Option<&[i64]>,
        limit: u32,
    ) -> Result<Vec<SessionRecord>> {
        push_hosts(&mut query, hosts);
        query.push(" ORDER BY s.id LIMIT ").push_bind(limit);
        let rows = query.build().fetch_all(&self.pool).await.map_err(failed("find a session"))?;
        rows.iter().map(record_of).collect::<sqlx::Result<_>>().map_err(failed("find a session"))
    }

    /// A session by its row, as it is now.
    pub async fn session_again(&self, row: i64) -> Result<Option<SessionRecord>> {
        let row = sqlx::query("SELECT * FROM sessions WHERE id = ?")
            .bind(row)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("read a session"))?;
        row.as_ref().map(record_of).transpose().map_err(failed("read a session"))
    }

    /// A session's first terminals, at most `limit`, in order of first use. Without their transcripts.
    pub async fn terminals(&self, session: i64, limit: u32) -> Result<Vec<TerminalRecord>> {
        let query = "SELECT id, terminal, number, pts, output_bytes, input_bytes, first_ns, last_ns, NULL AS state
                     FROM terminals WHERE session = ? ORDER BY number LIMIT ?";
        let rows = sqlx::query(query)
            .bind(session)
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list terminals"))?;
        let record = |row: &SqliteRow| {
            Ok(TerminalRecord { terminal: from_db(row.try_get("terminal")?), state: terminal_of(row)? })
        };
        rows.iter().map(record).collect::<sqlx::Result<_>>().map_err(failed("list terminals"))
    }

    /// The first of a session's terminals that showed something.
    pub async fn first_shown(&self, session: i64) -> Result<Option<u64>> {
        let query = "SELECT terminal FROM terminals WHERE session = ? AND output_bytes <> 0 ORDER BY number LIMIT 1";
        let found: Option<i64> = sqlx::query_scalar(query)
            .bind(session)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("find a terminal"))?;
        Ok(found.map(from_db))
    }

    /// Whether a session used this terminal.
    pub async fn has_terminal(&self, session: i64, terminal: u64) -> Result<bool> {
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM terminals WHERE session = ? AND terminal = ?)")
            .bind(session)
            .bind(to_db(terminal))
            .fetch_one(&self.pool)
            .await
            .map_err(failed("find a terminal"))
    }

    /// A session's commands after number `after`, at most `limit`.
    pub async fn commands(&self, session: i64, after: u64, limit: u32) -> Result<Vec<CommandRecord>> {
        let last = u64::from(u32::MAX);
        let bounds = command_id(session, after.min(last)).zip(command_id(session, last));
        let Some((after, last)) = bounds else { return Ok(Vec::new()) };
        let rows = sqlx::query("SELECT * FROM commands WHERE id > ? AND id <= ? ORDER BY id LIMIT ?")
            .bind(after)
            .bind(last)
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list commands"))?;
        rows.iter().map(command_of).collect::<sqlx::Result<_>>().map_err(failed("list commands"))
    }

    /// One command of a session.
    pub async fn command(&self, session: i64, number: u64) -> Result<Option<CommandRecord>> {
        let Some(before) = number.checked_sub(1) else { return Ok(None) };
        let found = self.commands(session, before, 1).await?.pop();
        Ok(found.filter(|command| command.number == number))
    }
}

pub(super) fn push_hosts(query: &mut QueryBuilder<'_, Sqlite>, hosts: Option<&[i64]>) {
    if let Some(hosts) = hosts {
        query.push(" AND s.host IN (");
        let mut list = query.separated(", ");
        for host in hosts {
            list.push_bind(*host);
        }
        query.push(")");
    }
}

fn host_of(row: &SqliteRow) -> sqlx::Result<(i64, HostState)> {
    let open: Option<&[u8]> = row.try_get(3)?;
    let state = HostState {
        frames: from_db(row.try_get(1)?),
        events: from_db(row.try_get(2)?),
        open: open.map(uuid_of).transpose()?,
        signer: signer_of(row)?,
    };
    Ok((row.try_get(0)?, state))
}

fn record_of(row: &SqliteRow) -> sqlx::Result<SessionRecord> {
    let uuid: &[u8] = row.try_get("uuid")?;
    Ok(SessionRecord { uuid: uuid_of(uuid)?, host: row.try_get("host")?, state: session_of(row)? })
}

fn command_of(row: &SqliteRow) -> sqlx::Result<CommandRecord> {
    let place: i64 = row.try_get("place")?;
    Ok(CommandRecord {
        number: command_number(row.try_get("id")?),
        wall_ns: row.try_get("wall_ns")?,
        boot_ns: from_db(row.try_get("boot_ns")?),
        arrival: row.try_get("arrival")?,
        place: usize::try_from(place).map_err(|error| sqlx::Error::Decode(error.into()))?,
        failed: row.try_get("failed")?,
        event: row.try_get("event")?,
        exit: row.try_get("exit")?,
        exit_wall_ns: row.try_get("exit_wall_ns")?,
        replaced_by: from_db(row.try_get("replaced_by")?),
    })
}
