//! Search over the lines of the index.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use breakglass_api::v1::SearchKind;
use futures_util::TryStreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::failed;
use super::load::uuid_of;
use super::model::{SessionState, Uuid};
use super::read::{IndexReader, push_hosts};
use crate::store::{Result, from_db};

/// Candidates looked at for one search: what can be read in a fraction of a second.
const CANDIDATES_MAX: usize = 200_000;
/// Current lines looked at for one search.
const CURRENT_MAX: i64 = 50_000;
/// Text of hits that is gathered of current lines, and as much of final ones, bytes. Then there are more. One message of an answer holds both.
const TEXT_GATHERED: usize = 4 * 1024 * 1024;
/// Trigrams asked for at once; further ones hardly narrow a search.
const TRIGRAMS_MAX: usize = 24;

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
    /// A command's number, a terminal's id, or 0.
    pub subject: u64,
    /// The line.
    pub text: String,
    /// Equal lines that it stands for; it is the latest.
    pub times: u32,
}

/// What a search has found so far.
#[derive(Default)]
struct Found {
    /// The text in lower case.
    needle: String,
    hits: Vec<HitRecord>,
    more: bool,
    /// Bytes of text that may still be gathered; once it is 0, further hits are only known to be there.
    room: usize,
    /// Where in `hits` a line of a session's screens is, by host, session and text.
    screens: HashMap<(i64, Uuid, String), usize>,
}

impl IndexReader {
    /// Lines that hold the filter's text, newest first, and whether there are more than the limit. Equal lines of one session's
    /// screens are one hit.
    pub async fn search(&self, filter: &SearchFilter) -> Result<(Vec<HitRecord>, bool)> {
        // One transaction: a line that becomes final between two queries would be in neither.
        let mut snapshot = self.pool.begin().await.map_err(failed("begin a search"))?;
        let mut found = Found { needle: filter.text.to_lowercase(), ..Found::default() };
        search_current(&mut snapshot, filter, &mut found).await.map_err(failed("search current lines"))?;
        search_final(&mut snapshot, filter, &mut found).await.map_err(failed("search"))?;
        Ok(found.newest(filter.limit))
    }
}

async fn search_final(connection: &mut SqliteConnection, filter: &SearchFilter, found: &mut Found) -> sqlx::Result<()> {
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
    let mut rows = query.build().fetch(connection);
    found.room = TEXT_GATHERED;
    let (mut seen, enough) = (0, found.hits.len().saturating_add(filter.limit));
    while let Some(row) = rows.try_next().await? {
        seen += 1;
        if seen > CANDIDATES_MAX {
            tracing::warn!(CANDIDATES_MAX, "a search was cut short: too many lines are similar");
            found.more = true;
            break;
        }
        found.look_at(&row)?;
        // One more than is wanted, to know that there are more.
        if found.hits.len() > enough || found.room == 0 {
            break;
        }
    }
    Ok(())
}

/// Reads all of them: they are few, and newer than most.
async fn search_current(
    connection: &mut SqliteConnection,
    filter: &SearchFilter,
    found: &mut Found,
) -> sqlx::Result<()> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT c.kind, s.uuid, s.host, s.operator, c.wall_ns, t.terminal, c.text FROM current_lines c
         JOIN terminals t ON t.id = c.terminal JOIN sessions s ON s.id = t.session WHERE 1",
    );
    push_filter(&mut query, filter, "c.kind", "c.wall_ns");
    query.push(" ORDER BY c.terminal DESC, c.place LIMIT ").push_bind(CURRENT_MAX);
    let mut rows = query.build().fetch(connection);
    found.room = TEXT_GATHERED;
    while let Some(row) = rows.try_next().await? {
        found.look_at(&row)?;
    }
    Ok(())
}

impl Found {
    /// Takes a line, if it matches.
    fn look_at(&mut self, row: &SqliteRow) -> sqlx::Result<()> {
        let text: &str = row.try_get(6)?;
        if !text.to_lowercase().contains(&self.needle) {
            return Ok(());
        }
        if self.room == 0 {
            self.more = true;
            return Ok(());
        }
        let hit = hit_of(row)?;
        if hit.kind == SearchKind::Screen {
            match self.screens.entry((hit.host, hit.session, hit.text.clone())) {
                Entry::Vacant(new) => drop(new.insert(self.hits.len())),
                Entry::Occupied(known) => {
                    if let Some(same) = self.hits.get_mut(*known.get()) {
                        same.again(&hit);
                    }
                    return Ok(());
                }
            }
        }
        self.room = self.room.saturating_sub(hit.text.len());
        self.more |= self.room == 0;
        self.hits.push(hit);
        Ok(())
    }

    /// The newest `limit` hits, newest first, and whether there are more.
    fn newest(mut self, limit: usize) -> (Vec<HitRecord>, bool) {
        self.hits.sort_by_key(|hit| std::cmp::Reverse(hit.wall_ns));
        let more = self.more || self.hits.len() > limit;
        self.hits.truncate(limit);
        (self.hits, more)
    }
}

impl HitRecord {
    /// Stands for an equal line too.
    fn again(&mut self, other: &HitRecord) {
        self.times = self.times.saturating_add(1);
        if self.wall_ns < other.wall_ns {
            (self.wall_ns, self.subject) = (other.wall_ns, other.subject);
        }
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
        times: 1,
    })
}
