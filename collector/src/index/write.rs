//! Writes what a pass yielded, many rows in one statement where there are many.

use breakglass_api::checkpoint::Kind;
use sqlx::SqliteConnection;
use std::collections::HashMap;

use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments};

use super::attest::{self, FindingRow, StatementRow};
use super::fold::split;
use super::model::{Changes, CommandRow, HostState, LineRow, SessionKey, SessionState, TerminalKey, Working};
use crate::store::to_db;

/// Most rows in one statement. Halved for what remains, so that there are few different statements to prepare.
const ROWS_MAX: usize = 64;

type Bound<'q> = Query<'q, Sqlite, SqliteArguments<'q>>;

/// Writes all of `changes` and the rows of `working` that they touched.
pub async fn apply(connection: &mut SqliteConnection, working: &mut Working, changes: &Changes) -> sqlx::Result<()> {
    insert_commands(connection, &changes.commands).await?;
    insert_lines(connection, &changes.lines).await?;
    insert_statements(connection, &changes.statements).await?;
    insert_findings(connection, &changes.findings).await?;
    end_commands(connection, working, changes).await?;
    replace_commands(connection, changes).await?;
    let lines = line_ranges(changes);
    for key in &changes.sessions {
        if let Some(session) = working.sessions.get_mut(key) {
            if let Some((first, last)) = lines.get(&session.row) {
                session.first_line = if session.first_line == 0 { *first } else { session.first_line };
                session.last_line = *last;
            }
            write_session(connection, *key, session).await?;
        }
    }
    for host in &changes.hosts {
        if let Some(state) = working.hosts.get(host) {
            write_host(connection, *host, state).await?;
        }
    }
    for key in &changes.terminals {
        write_terminal(connection, working, *key).await?;
    }
    Ok(())
}

/// The first and the last new line of each session, by the session's row.
fn line_ranges(changes: &Changes) -> HashMap<i64, (i64, i64)> {
    let mut ranges = HashMap::new();
    for line in &changes.lines {
        // Ids only grow.
        ranges.entry(line.session).or_insert((line.id, line.id)).1 = line.id;
    }
    ranges
}

/// Runs `head VALUES (…), (…)` over all of `rows`; `bind` binds one row's `columns`.
async fn insert_many<T>(
    connection: &mut SqliteConnection,
    head: &str,
    columns: usize,
    rows: &[T],
    bind: impl for<'q> Fn(Bound<'q>, &'q T) -> Bound<'q>,
) -> sqlx::Result<()> {
    let row = format!("({}?)", "?, ".repeat(columns.saturating_sub(1)));
    let mut rest = rows;
    let mut size = ROWS_MAX;
    while !rest.is_empty() {
        while size > rest.len() {
            size /= 2;
        }
        let (now, later) = rest.split_at(size);
        let sql = format!("{head} VALUES {row}{}", format!(", {row}").repeat(size - 1));
        let mut query = sqlx::query(&sql);
        for item in now {
            query = bind(query, item);
        }
        query.execute(&mut *connection).await?;
        rest = later;
    }
    Ok(())
}

async fn insert_commands(connection: &mut SqliteConnection, rows: &[CommandRow]) -> sqlx::Result<()> {
    let head =
        "INSERT INTO commands (id, session, pid, start_ns, boot_ns, wall_ns, arrival, place, failed, event, exit,
                exit_wall_ns, replaced_by)";
    insert_many(connection, head, 13, rows, |query, row| {
        query
            .bind(row.id)
            .bind(row.session)
            .bind(row.pid)
            .bind(to_db(row.start_ns))
            .bind(to_db(row.boot_ns))
            .bind(row.wall_ns)
            .bind(row.arrival)
            .bind(row.place)
            .bind(row.failed)
            .bind(row.event.as_deref())
            .bind(row.exit.as_deref())
            .bind(row.exit_wall_ns)
            .bind(to_db(row.replaced_by))
    })
    .await
}

async fn insert_lines(connection: &mut SqliteConnection, rows: &[LineRow]) -> sqlx::Result<()> {
    let head = "INSERT INTO lines (id, kind, session, subject, wall_ns, text)";
    insert_many(connection, head, 6, rows, |query, row| {
        query
            .bind(row.id)
            .bind(row.kind as i32)
            .bind(row.session)
            .bind(row.subject)
            .bind(row.wall_ns)
            .bind(row.text.as_str())
    })
    .await?;
    let head = "INSERT INTO lines_text (rowid, text)";
    insert_many(connection, head, 2, rows, |query, row| query.bind(row.id).bind(row.text.as_str())).await
}

/// Gives commands of earlier passes their exits. The exit belongs to the last command of the process.
async fn end_commands(connection: &mut SqliteConnection, working: &mut Working, changes: &Changes) -> sqlx::Result<()> {
    for row in &changes.exits {
        let (session, pid, start_ns) = row.process;
        let ended = sqlx::query(
            "UPDATE commands SET exit = ?, exit_wall_ns = ? WHERE exit IS NULL AND id = (SELECT id FROM commands
             WHERE session = ? AND pid = ? AND start_ns = ? AND failed = 0 AND id <= ? ORDER BY id DESC LIMIT 1)",
        )
        .bind(row.exit.as_slice())
        .bind(row.wall_ns)
        .bind(session)
        .bind(pid)
        .bind(to_db(start_ns))
        .bind(row.last)
        .execute(&mut *connection)
        .await?;
        if ended.rows_affected() > 0
            && row.unsuccessful
            && let Some(session) = working.sessions.get_mut(&row.session)
        {
            session.failed_commands += 1;
        }
    }
    Ok(())
}

async fn write_host(connection: &mut SqliteConnection, host: i64, state: &HostState) -> sqlx::Result<()> {
    let signer = state.signer.as_ref();
    sqlx::query(
        "INSERT OR REPLACE INTO hosts (host, frames, events, open_session, host_key, epoch, signing_key)
         VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(host)
    .bind(to_db(state.frames))
    .bind(to_db(state.events))
    .bind(state.open.as_ref().map(|uuid| uuid.as_slice()))
    .bind(signer.map(|signer| signer.host_key.as_slice()))
    .bind(to_db(signer.map_or(0, |signer| signer.epoch)))
    .bind(signer.map(|signer| signer.key.as_slice()))
    .execute(connection)
    .await
    .map(drop)
}

async fn insert_statements(connection: &mut SqliteConnection, rows: &[StatementRow]) -> sqlx::Result<()> {
    let head =
        "INSERT OR IGNORE INTO statements (host, host_key, epoch, link, stream, seq, carrier, arrival, session, mark,
                signed)";
    insert_many(connection, head, 11, rows, |query, row| {
        let statement = &row.signed.statement;
        let mark = attest::mark(statement);
        query
            .bind(row.host)
            .bind(statement.host_key.as_slice())
            .bind(to_db(statement.epoch))
            .bind(matches!(statement.kind, Kind::NextKey(_)))
            .bind(statement.stream_id.as_slice())
            .bind(to_db(statement.seq))
            .bind(to_db(row.carrier))
            .bind(row.arrival)
            .bind(mark.map(|(session, _)| session.to_vec()))
            .bind(mark.map_or(0, |(_, mark)| i64::from(mark)))
            .bind(row.signed.encode())
    })
    .await
}

async fn insert_findings(connection: &mut SqliteConnection, rows: &[FindingRow]) -> sqlx::Result<()> {
    let head = "INSERT INTO findings (host, session, carrier, wall_ns, code, message)";
    insert_many(connection, head, 6, rows, |query, row| {
        query
            .bind(row.host)
            .bind(row.session.as_ref().map(|uuid| uuid.as_slice()))
            .bind(to_db(row.carrier))
            .bind(row.wall_ns)
            .bind(row.code)
            .bind(row.message.as_str())
    })
    .await
}

/// Tells commands of earlier passes what their processes became. One that has ended was another process's, whatever its number says.
async fn replace_commands(connection: &mut SqliteConnection, changes: &Changes) -> sqlx::Result<()> {
    for row in &changes.replaced {
        let (session, pid, start_ns) = row.process;
        sqlx::query(
            "UPDATE commands SET replaced_by = ? WHERE exit IS NULL AND replaced_by = 0 AND id = (SELECT id FROM commands
             WHERE session = ? AND pid = ? AND start_ns = ? AND failed = 0 AND id < ? ORDER BY id DESC LIMIT 1)",
        )
        .bind(to_db(row.number))
        .bind(session)
        .bind(pid)
        .bind(to_db(start_ns))
        .bind(row.id)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

async fn write_session(
    connection: &mut SqliteConnection,
    (host, uuid): SessionKey,
    session: &SessionState,
) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT OR REPLACE INTO sessions (id, uuid, host, operator, opened, opened_ns, deadline_ns, closed, closed_ns,
         closed_arrival, joined, commands, execs, failed_commands, terminals, terminal_bytes, input_bytes, withheld_bytes,
         stdio_output_bytes, stdio_input_bytes, actions, events, gaps, alerts,
         witnessed, left_behind, changes, doors, first_arrival, last_arrival, first_line, last_line)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(session.row)
    .bind(uuid.as_slice())
    .bind(host)
    .bind(&session.operator)
    .bind(session.opened.as_deref())
    .bind(session.opened_ns)
    .bind(session.deadline_ns)
    .bind(session.closed.as_deref())
    .bind(session.closed_ns)
    .bind(session.closed_arrival)
    .bind(serde_json::to_string(&session.joined).map_err(|error| sqlx::Error::Encode(error.into()))?)
    .bind(to_db(session.commands))
    .bind(to_db(session.execs))
    .bind(to_db(session.failed_commands))
    .bind(to_db(session.terminals))
    .bind(to_db(session.terminal_bytes))
    .bind(to_db(session.input_bytes))
    .bind(to_db(session.withheld_bytes))
    .bind(to_db(session.stdio_output_bytes))
    .bind(to_db(session.stdio_input_bytes))
    .bind(to_db(session.actions))
    .bind(to_db(session.events))
    .bind(to_db(session.gaps))
    .bind(to_db(session.alerts))
    .bind(to_db(session.witnessed))
    .bind(session.left_behind.as_deref())
    .bind(to_db(session.changes))
    .bind(to_db(session.doors))
    .bind(session.first_arrival)
    .bind(session.last_arrival)
    .bind(session.first_line)
    .bind(session.last_line)
    .execute(connection)
    .await?;
    Ok(())
}

async fn write_terminal(
    connection: &mut SqliteConnection,
    working: &mut Working,
    key: TerminalKey,
) -> sqlx::Result<()> {
    let Some(terminal) = working.terminals.get_mut(&key) else { return Ok(()) };
    sqlx::query(
        "INSERT OR REPLACE INTO terminals (id, session, terminal, number, pts, output_bytes, input_bytes, first_ns, last_ns,
         state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(terminal.row)
    .bind(key.0)
    .bind(to_db(key.1))
    .bind(to_db(terminal.number))
    .bind(terminal.pts)
    .bind(to_db(terminal.output_bytes))
    .bind(to_db(terminal.input_bytes))
    .bind(terminal.first_ns)
    .bind(terminal.last_ns)
    .bind(terminal.transcript.saved())
    .execute(&mut *connection)
    .await?;
    let current = terminal.transcript.current();
    if terminal.written.as_ref() == Some(&current) {
        return Ok(());
    }
    sqlx::query("DELETE FROM current_lines WHERE terminal = ?").bind(terminal.row).execute(&mut *connection).await?;
    let rows: Vec<_> = current.iter().cloned().map(split).enumerate().collect();
    let (row, last_ns) = (terminal.row, terminal.last_ns);
    let head = "INSERT INTO current_lines (terminal, place, kind, wall_ns, text)";
    insert_many(connection, head, 5, &rows, move |query, (place, (kind, text))| {
        let place = i64::try_from(*place).unwrap_or(i64::MAX);
        query.bind(row).bind(place).bind(*kind as i32).bind(last_ns).bind(text.as_str())
    })
    .await?;
    terminal.written = Some(current);
    Ok(())
}
