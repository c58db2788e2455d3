//! Questions to the index.

use std::time::Duration;

use breakglass_api::v1::SearchKind;
use futures_util::TryStreamExt;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row, Sqlite};
use tokio::sync::watch;

use super::failed;
use super::load::{session_of, signer_of, terminal_of, uuid_of};
use super::model::{HostState, SessionState, TerminalState, command_id, command_number};
use crate::store::{Result, from_db};

pub use super::model::Uuid;

/// How long a question waits for the index to reach the frames that were durable when it was asked.
const CATCH_UP_MAX: Duration = Duration::from_millis(500);
/// Candidates looked at for one search: what can be read in a fraction of a second.
const CANDIDATES_MAX: usize = 200_000;
/// Current lines looked at for one search.
const CURRENT_MAX: i64 = 50_000;
/// Trigrams asked for at once; further ones hardly narrow a search.
const TRIGRAMS_MAX: usize = 24;

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
}

/// Which lines to search.
#[derive(Clone, Debug, Default)]
pub struct SearchFilter {
    /// The text, at least three characters.
    pub text: String,
    /// Only these hosts; `None`: all.
    pub hosts: Option<Vec<i64>>,
    /// Only this session.
    pub session: Option<SessionState>,
    /// Only sessions of this operator.
    pub operator: Option<String>,
    /// Only lines from this time on, ns; 0: no bound.
    pub since_ns: i64,
    /// Only lines before this time, ns; 0: no bound.
    pub until_ns: i64,
    /// Only these kinds; empty: all.
    pub kinds: Vec<SearchKind>,
    /// At most this many.
    pub limit: usize,
}

/// A line that was found.
pub struct HitRecord {
    /// What kind of line.
    pub kind: SearchKind,
    /// The session's UUID.
    pub session: Uuid,
    /// Row of the host.
    pub host: i64,
    /// Who opened the session.
    pub operator: String,
    /// Wall clock, ns.
    pub wall_ns: i64,
    /// A command's number or a terminal's id.
    pub subject: u64,
    /// The line.
    pub text: String,
}

impl IndexReader {
    pub(super) fn new(pool: SqlitePool, indexed: watch::Receiver<i64>) -> Self {
        Self { pool, indexed }
    }

    /// Arrival number of the last indexed frame, to be watched.
    pub fn indexed(&self) -> watch::Receiver<i64> {
        self.indexed.clone()
    }

    /// Waits until frame `arrival` is indexed, so that what was acknowledged is seen. Gives up after a while: an index that
    /// lags far behind is better than no answer.
    pub async fn catch_up(&self, arrival: i64) {
        let mut indexed = self.indexed.clone();
        let reached = indexed.wait_for(|indexed| *indexed >= arrival);
        if tokio::time::timeout(CATCH_UP_MAX, reached).await.is_err() {
            tracing::warn!(arrival, "the index lags behind; answering from what it has");
        }
    }

    /// Counters of every host that has sent frames.
    pub async fn hosts(&self) -> Result<Vec<(i64, HostState)>> {
        let rows = sqlx::query("SELECT host, frames, events, open_session, host_key, epoch, signing_key FROM hosts")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list hosts"))?;
        rows.iter().map(host_of).collect::<sqlx::Result<_>>().map_err(failed("list hosts"))
    }

    /// Sessions, newest first. `before`: only sessions older than this one.
    pub async fn sessions(
        &self,
        hosts: Option<&[i64]>,
        operator: Option<&str>,
        open_only: bool,
        before: Option<&SessionState>,
        limit: u32,
    ) -> Result<Vec<SessionRecord>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM sessions s WHERE 1");
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
    pub async fn find_sessions(&self, digits: &str, limit: u32) -> Result<Vec<SessionRecord>> {
        let rows = sqlx::query(
            "SELECT * FROM sessions WHERE lower(hex(uuid)) LIKE ?1 || '%' OR lower(hex(uuid)) LIKE '%' || ?1
             ORDER BY id LIMIT ?2",
        )
        .bind(digits)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find a session"))?;
        rows.iter().map(record_of).collect::<sqlx::Result<_>>().map_err(failed("find a session"))
    }

    /// The session with this UUID. Where two hosts claim it, the one that recorded it first.
    pub async fn session(&self, uuid: Uuid) -> Result<Option<SessionRecord>> {
        let row = sqlx::query("SELECT * FROM sessions WHERE uuid = ? ORDER BY id LIMIT 1")
            .bind(uuid.as_slice())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("find a session"))?;
        row.as_ref().map(record_of).transpose().map_err(failed("find a session"))
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

    /// A session's terminals, in order of first use.
    pub async fn terminals(&self, session: i64) -> Result<Vec<TerminalRecord>> {
        let rows = sqlx::query("SELECT * FROM terminals WHERE session = ? ORDER BY number")
            .bind(session)
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list terminals"))?;
        let record = |row: &SqliteRow| {
            Ok(TerminalRecord { terminal: from_db(row.try_get("terminal")?), state: terminal_of(row)? })
        };
        rows.iter().map(record).collect::<sqlx::Result<_>>().map_err(failed("list terminals"))
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

    /// Lines that hold the filter's text, newest first, and whether there are more than the limit.
    pub async fn search(&self, filter: &SearchFilter) -> Result<(Vec<HitRecord>, bool)> {
        let (mut hits, more) = self.search_final(filter).await.map_err(failed("search"))?;
        let current = self.search_current(filter).await.map_err(failed("search current lines"))?;
        hits.extend(current);
        hits.sort_by_key(|hit| std::cmp::Reverse(hit.wall_ns));
        let more = more || hits.len() > filter.limit;
        hits.truncate(filter.limit);
        Ok((hits, more))
    }

    async fn search_final(&self, filter: &SearchFilter) -> sqlx::Result<(Vec<HitRecord>, bool)> {
        // The trigrams narrow the lines down, newest first; whether a line really matches is decided below.
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT l.kind, s.uuid, s.host, s.operator, l.wall_ns, l.subject, l.text FROM lines_text f
             CROSS JOIN lines l ON l.id = f.rowid CROSS JOIN sessions s ON s.id = l.session WHERE f.lines_text MATCH ",
        );
        query.push_bind(trigrams(&filter.text));
        push_filter(&mut query, filter, "l.kind", "l.wall_ns");
        if let Some(session) = &filter.session {
            query.push(" AND f.rowid BETWEEN ").push_bind(session.first_line);
            query.push(" AND ").push_bind(session.last_line);
        }
        query.push(" ORDER BY f.rowid DESC");
        self.matching(query, filter, CANDIDATES_MAX).await
    }

    async fn search_current(&self, filter: &SearchFilter) -> sqlx::Result<Vec<HitRecord>> {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT c.kind, s.uuid, s.host, s.operator, c.wall_ns, t.terminal, c.text FROM current_lines c
             JOIN terminals t ON t.id = c.terminal JOIN sessions s ON s.id = t.session WHERE 1",
        );
        push_filter(&mut query, filter, "c.kind", "c.wall_ns");
        query.push(" ORDER BY c.terminal DESC, c.place LIMIT ").push_bind(CURRENT_MAX);
        Ok(self.matching(query, filter, usize::MAX).await?.0)
    }

    async fn matching(
        &self,
        mut query: QueryBuilder<'_, Sqlite>,
        filter: &SearchFilter,
        candidates: usize,
    ) -> sqlx::Result<(Vec<HitRecord>, bool)> {
        let needle = filter.text.to_lowercase();
        let mut rows = query.build().fetch(&self.pool);
        let (mut hits, mut seen) = (Vec::new(), 0);
        while let Some(row) = rows.try_next().await? {
            seen += 1;
            if seen > candidates {
                tracing::warn!(candidates, "a search was cut short: too many lines are similar");
                return Ok((hits, true));
            }
            let text: &str = row.try_get(6)?;
            if !text.to_lowercase().contains(&needle) {
                continue;
            }
            if hits.len() == filter.limit {
                return Ok((hits, true));
            }
            hits.push(hit_of(&row)?);
        }
        Ok((hits, false))
    }
}

fn push_hosts(query: &mut QueryBuilder<'_, Sqlite>, hosts: Option<&[i64]>) {
    if let Some(hosts) = hosts {
        query.push(" AND s.host IN (");
        let mut list = query.separated(", ");
        for host in hosts {
            list.push_bind(*host);
        }
        query.push(")");
    }
}

fn push_filter(query: &mut QueryBuilder<'_, Sqlite>, filter: &SearchFilter, kind: &str, wall_ns: &str) {
    push_hosts(query, filter.hosts.as_deref());
    if let Some(session) = &filter.session {
        query.push(" AND s.id = ").push_bind(session.row);
    }
    if let Some(operator) = &filter.operator {
        query.push(" AND s.operator = ").push_bind(operator.clone());
    }
    if filter.since_ns != 0 {
        query.push(format_args!(" AND {wall_ns} >= ")).push_bind(filter.since_ns);
    }
    if filter.until_ns != 0 {
        query.push(format_args!(" AND {wall_ns} < ")).push_bind(filter.until_ns);
    }
    if !filter.kinds.is_empty() {
        query.push(format_args!(" AND {kind} IN ("));
        let mut list = query.separated(", ");
        for kind in &filter.kinds {
            list.push_bind(*kind as i32);
        }
        query.push(")");
    }
}

/// An FTS5 query for lines that hold every trigram of `text`. Each one is a string literal, in which nothing but the quotation
/// mark has a meaning.
fn trigrams(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut terms: Vec<String> = Vec::new();
    for window in chars.windows(3) {
        let trigram: String = window.iter().collect();
        let term = format!("\"{}\"", trigram.replace('"', "\"\""));
        if !terms.contains(&term) {
            terms.push(term);
        }
        if terms.len() == TRIGRAMS_MAX {
            break;
        }
    }
    terms.join(" AND ")
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
    })
}

fn hit_of(row: &SqliteRow) -> sqlx::Result<HitRecord> {
    let kind: i32 = row.try_get(0)?;
    let uuid: &[u8] = row.try_get(1)?;
    Ok(HitRecord {
        kind: SearchKind::try_from(kind).unwrap_or_default(),
        session: uuid_of(uuid)?,
        host: row.try_get(2)?,
        operator: row.try_get(3)?,
        wall_ns: row.try_get(4)?,
        subject: from_db(row.try_get(5)?),
        text: row.try_get(6)?,
    })
}
