//! Reads the rows that a pass may change, before it changes them.

use std::collections::HashSet;
use std::collections::hash_map::Entry;

use breakglass_api::checkpoint::{Kind, PublicKey, Signed};
use breakglass_api::v1::event::Body;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::attest::{self, Known, Signer};
use super::model::{Decoded, HostState, SessionKey, SessionState, Slot, TerminalKey, TerminalState, Uuid, Working};
use crate::store::{Store, StoreError, from_db, to_db};

/// The numbers of the last rows, for a working state that knows nothing else.
pub async fn begin(connection: &mut SqliteConnection) -> sqlx::Result<Working> {
    let (next_session, next_terminal, next_line) = sqlx::query_as(
        "SELECT (SELECT coalesce(max(id), 0) FROM sessions), (SELECT coalesce(max(id), 0) FROM terminals),
         (SELECT coalesce(max(id), 0) FROM lines)",
    )
    .fetch_one(connection)
    .await?;
    Ok(Working::after(next_session, next_terminal, next_line))
}

/// Loads everything that `frames` refer to and that `working` does not have yet.
pub async fn refer(connection: &mut SqliteConnection, working: &mut Working, frames: &[Decoded]) -> sqlx::Result<()> {
    let mut sessions: HashSet<SessionKey> = HashSet::new();
    for frame in frames {
        if let Entry::Vacant(missing) = working.hosts.entry(frame.host) {
            missing.insert(load_host(connection, frame.host).await?);
        }
        let open = working.hosts.get(&frame.host).and_then(|host| host.open);
        sessions.extend(open.map(|uuid| (frame.host, uuid)));
        sessions.extend(frame.events().filter_map(|(_, uuid)| Some((frame.host, uuid?))));
        let marked = attest::statements(frame).filter_map(|statement| attest::mark(&statement));
        sessions.extend(marked.map(|(uuid, _)| (frame.host, uuid)));
    }
    for key in sessions {
        if !working.sessions.contains_key(&key)
            && let Some(session) = load_session(connection, key).await?
        {
            working.sessions.insert(key, session);
        }
    }
    refer_terminals(connection, working, frames).await
}

async fn refer_terminals(
    connection: &mut SqliteConnection,
    working: &mut Working,
    frames: &[Decoded],
) -> sqlx::Result<()> {
    let mut used: HashSet<TerminalKey> = HashSet::new();
    let mut closed: HashSet<i64> = HashSet::new();
    for frame in frames {
        for (event, uuid) in frame.events() {
            // A session that is new in this pass has no terminals yet.
            let Some(session) = uuid.and_then(|uuid| working.sessions.get(&(frame.host, uuid))) else { continue };
            match &event.body {
                Some(Body::TerminalOutput(output)) => drop(used.insert((session.row, output.terminal))),
                Some(Body::TerminalInput(input)) => drop(used.insert((session.row, input.terminal))),
                Some(Body::SessionClosed(_)) => drop(closed.insert(session.row)),
                _ => {}
            }
        }
    }
    for session in closed {
        let query = "SELECT * FROM terminals WHERE session = ? AND state IS NOT NULL ORDER BY id";
        let rows = sqlx::query(query).bind(session).fetch_all(&mut *connection).await?;
        for row in rows {
            let key = (session, from_db(row.try_get("terminal")?));
            if !working.terminals.contains_key(&key) {
                working.take_terminal(key, terminal_of(&row)?);
            }
        }
    }
    for key in used {
        if working.terminals.contains_key(&key) {
            continue;
        }
        let row = sqlx::query("SELECT * FROM terminals WHERE session = ? AND terminal = ?")
            .bind(key.0)
            .bind(to_db(key.1))
            .fetch_optional(&mut *connection)
            .await?;
        if let Some(row) = row {
            working.take_terminal(key, terminal_of(&row)?);
        }
    }
    Ok(())
}

async fn load_host(connection: &mut SqliteConnection, host: i64) -> sqlx::Result<HostState> {
    let row =
        sqlx::query("SELECT frames, events, open_session, host_key, epoch, signing_key FROM hosts WHERE host = ?")
            .bind(host)
            .fetch_optional(connection)
            .await?;
    let Some(row) = row else { return Ok(HostState::default()) };
    Ok(HostState {
        frames: from_db(row.try_get(0)?),
        events: from_db(row.try_get(1)?),
        open: row.try_get::<Option<Vec<u8>>, _>(2)?.as_deref().map(uuid_of).transpose()?,
        signer: signer_of(&row)?,
    })
}

/// What a host signs with, from its row.
pub fn signer_of(row: &SqliteRow) -> sqlx::Result<Option<Signer>> {
    let key = |column: &str| {
        let bytes: Option<Vec<u8>> = row.try_get(column)?;
        let wrong = |_| sqlx::Error::Decode("a key of the wrong length".into());
        bytes.map(|bytes| PublicKey::try_from(bytes.as_slice()).map_err(wrong)).transpose()
    };
    let epoch = from_db(row.try_get("epoch")?);
    let keys = key("host_key")?.zip(key("signing_key")?);
    Ok(keys.map(|(host_key, key)| Signer { host_key, epoch, key }))
}

/// What the statements of `frames` are to be compared with.
pub async fn known(connection: &mut SqliteConnection, store: &Store, frames: &[Decoded]) -> sqlx::Result<Known> {
    let mut known = Known::default();
    if frames.iter().all(|frame| attest::statements(frame).next().is_none()) {
        return Ok(known);
    }
    let failed = |error: StoreError| error.source;
    for (row, host) in store.hosts().await.map_err(failed)? {
        known.host_ids.extend(uuid::Uuid::parse_str(&host.host_id).ok().map(|id| (row, id.into_bytes())));
    }
    for frame in frames {
        for statement in attest::statements(frame) {
            let place = (statement.stream_id, statement.seq);
            if statement.seq > 0 && !known.hashes.contains_key(&place) {
                let held = store.held(statement.stream_id, statement.seq).await.map_err(failed)?;
                known.hashes.extend(held.map(|hash| (place, hash)));
            }
            let key = (frame.host, statement.host_key, statement.epoch);
            if let Kind::NextKey(_) = statement.kind
                && !known.links.contains_key(&key)
                && let Some(link) = load_link(connection, key).await?
            {
                known.links.insert(key, link);
            }
        }
    }
    Ok(known)
}

async fn load_link(
    connection: &mut SqliteConnection,
    (host, host_key, epoch): (i64, PublicKey, u64),
) -> sqlx::Result<Option<Signed>> {
    let query = "SELECT signed FROM statements WHERE host = ? AND host_key = ? AND epoch = ? AND link = 1";
    let row: Option<Vec<u8>> = sqlx::query_scalar(query)
        .bind(host)
        .bind(host_key.as_slice())
        .bind(to_db(epoch))
        .fetch_optional(connection)
        .await?;
    Ok(row.and_then(|bytes| Signed::parse(&bytes).ok()))
}

async fn load_session(connection: &mut SqliteConnection, key: SessionKey) -> sqlx::Result<Option<SessionState>> {
    let row = sqlx::query("SELECT * FROM sessions WHERE host = ? AND uuid = ?")
        .bind(key.0)
        .bind(key.1.as_slice())
        .fetch_optional(connection)
        .await?;
    row.map(|row| session_of(&row)).transpose()
}

/// A session from its row.
pub fn session_of(row: &SqliteRow) -> sqlx::Result<SessionState> {
    let count = |column: &str| row.try_get(column).map(from_db);
    Ok(SessionState {
        row: row.try_get("id")?,
        operator: row.try_get("operator")?,
        opened: row.try_get("opened")?,
        opened_ns: row.try_get("opened_ns")?,
        deadline_ns: row.try_get("deadline_ns")?,
        closed: row.try_get("closed")?,
        closed_ns: row.try_get("closed_ns")?,
        closed_arrival: row.try_get("closed_arrival")?,
        joined: joined_of(row.try_get("joined")?)?,
        commands: count("commands")?,
        execs: count("execs")?,
        failed_commands: count("failed_commands")?,
        terminals: count("terminals")?,
        terminal_bytes: count("terminal_bytes")?,
        input_bytes: count("input_bytes")?,
        withheld_bytes: count("withheld_bytes")?,
        stdio_output_bytes: count("stdio_output_bytes")?,
        stdio_input_bytes: count("stdio_input_bytes")?,
        actions: count("actions")?,
        events: count("events")?,
        gaps: count("gaps")?,
        alerts: count("alerts")?,
        witnessed: count("witnessed")?,
        left_behind: row.try_get("left_behind")?,
        changes: count("changes")?,
        doors: count("doors")?,
        first_arrival: row.try_get("first_arrival")?,
        last_arrival: row.try_get("last_arrival")?,
        first_line: row.try_get("first_line")?,
        last_line: row.try_get("last_line")?,
    })
}

fn joined_of(text: &str) -> sqlx::Result<Vec<(String, String)>> {
    serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// A terminal from its row.
pub fn terminal_of(row: &SqliteRow) -> sqlx::Result<TerminalState> {
    let count = |column: &str| row.try_get(column).map(from_db);
    Ok(TerminalState {
        row: row.try_get("id")?,
        number: count("number")?,
        pts: row.try_get("pts")?,
        output_bytes: count("output_bytes")?,
        input_bytes: count("input_bytes")?,
        first_ns: row.try_get("first_ns")?,
        last_ns: row.try_get("last_ns")?,
        transcript: row.try_get::<Option<Vec<u8>>, _>("state")?.map_or(Slot::Empty, Slot::Parked),
        written: None,
    })
}

/// A UUID from its column.
pub fn uuid_of(bytes: &[u8]) -> sqlx::Result<Uuid> {
    bytes.try_into().map_err(|_| sqlx::Error::Decode("a session id of the wrong length".into()))
}
