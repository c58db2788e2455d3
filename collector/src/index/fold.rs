//! From events to rows: pure, without I/O. The same frames in the same order always give the same rows.

use breakglass_api::frame::Header;
use breakglass_api::v1::event::Body;
use breakglass_api::v1::left_behind::Severity;
use breakglass_api::v1::stdio_data::Direction;
use breakglass_api::v1::{
    Event, Exec, ExecFailed, Exit, LeftBehind, Process, Ring, SearchKind, SessionClosed, SessionExtended, SessionOpened,
};
use prost::Message;

use super::actions;
use super::attest::{self, Known};
use super::model::{
    Changes, CommandRow, Decoded, ExitRow, LineRow, ProcessKey, ReplacedRow, SessionKey, SessionState, Slot,
    TerminalKey, TerminalState, Uuid, Working, command_id,
};
use crate::quote::{bounded, command_line};
use crate::store::to_db;
use crate::transcript::Line;

/// Largest encoded event kept in the index, bytes. A larger one is read from its frame when it is asked for.
const EVENT_MAX: usize = 64 * 1024;
/// Terminals of one session whose text is searchable. A session with more is replayed, not searched, in the rest.
const TRANSCRIPTS_PER_SESSION: u64 = 256;
/// Most warnings that are kept of a SessionOpened that is too large as a whole.
const WARNINGS_MAX: usize = 8;

/// Longest text of a SessionOpened that is too large as a whole, characters.
const OPENED_TEXT_MAX: usize = 4096;
/// Most people, and longest names of theirs, that are kept of those who extended a session.
const JOINED_MAX: usize = 256;
const JOINED_TEXT_MAX: usize = 256;
/// Most survivors, and most counters, kept of a SessionClosed.
const CLOSED_LIST_MAX: usize = 1024;

/// Where an event lies.
#[derive(Clone, Copy)]
struct Place<'a> {
    host: i64,
    arrival: i64,
    place: usize,
    header: &'a Header,
    boot_ns: u64,
}

impl Place<'_> {
    fn wall_ns(&self) -> i64 {
        self.header.wall_ns(self.boot_ns)
    }
}

/// Whether an event starts a command of its session: what a tagged task ran or tried to run. Witness records are about others.
pub fn starts_command(event: &Event) -> bool {
    let witness = event.origin.is_some_and(|origin| origin.ring == Ring::Witness as i32);
    !witness && matches!(event.body, Some(Body::Exec(_) | Body::ExecFailed(_)))
}

/// How far frames have been added.
#[derive(Clone, Copy, Default)]
pub struct At {
    /// The frame that is next, or being added.
    pub frame: usize,
    /// Its event that is next.
    event: usize,
}

impl At {
    /// Whether no frame is added only in part.
    pub fn is_between(&self) -> bool {
        self.event == 0
    }
}

/// Adds frames from `at` on, until there is much to write or all are added. Everything that they refer to must have been loaded into `working`.
pub fn some(working: &mut Working, changes: &mut Changes, known: &mut Known, frames: &[Decoded], at: &mut At) {
    while let Some(next) = frames.get(at.frame).filter(|_| !changes.is_large()) {
        match frame(working, changes, next, at.event) {
            Some(event) => at.event = event,
            None => {
                attest::frame(working, changes, known, next);
                *at = At { frame: at.frame + 1, event: 0 };
                if working.is_heavy() {
                    break;
                }
            }
        }
    }
    known.take(changes);
}

/// Adds one frame from its event `first` on. Says which event is next where it was cut short, because there is much to write.
fn frame(working: &mut Working, changes: &mut Changes, frame: &Decoded, first: usize) -> Option<usize> {
    let host = working.hosts.entry(frame.host).or_default();
    host.frames += u64::from(first == 0);
    changes.hosts.insert(frame.host);
    if frame.missing_before > 0 && first == 0 {
        host_gap(working, changes, frame.host, frame.missing_before);
    }
    let (header, batch) = match &frame.content {
        Ok(content) => content,
        Err(error) => {
            tracing::error!(arrival = frame.arrival, %error, "a stored frame cannot be read; it is counted as a gap");
            host_gap(working, changes, frame.host, 1);
            return None;
        }
    };
    if first == 0 {
        let host = working.hosts.entry(frame.host).or_default();
        host.events = host.events.saturating_add(batch.events.len() as u64);
    }
    for (place, (event, session)) in frame.events().enumerate().skip(first) {
        if changes.is_large() {
            return Some(place);
        }
        let at = Place { host: frame.host, arrival: frame.arrival, place, header, boot_ns: event.boot_ns };
        match session {
            Some(uuid) => session_event(working, changes, at, uuid, event),
            None => {
                if let Some(Body::Gap(gap)) = &event.body {
                    host_gap(working, changes, frame.host, gap.records.max(1));
                }
            }
        }
    }
    None
}

/// Something is missing that no event ties to a session: it may have been the open one's.
fn host_gap(working: &mut Working, changes: &mut Changes, host: i64, records: u64) {
    let Some(uuid) = working.hosts.get(&host).and_then(|host| host.open) else { return };
    if let Some(session) = working.sessions.get_mut(&(host, uuid)) {
        session.gaps = session.gaps.saturating_add(records);
        changes.sessions.insert((host, uuid));
    }
}

fn session_event(working: &mut Working, changes: &mut Changes, at: Place<'_>, uuid: Uuid, event: &Event) {
    let key = (at.host, uuid);
    changes.sessions.insert(key);
    let next = &mut working.next_session;
    let session = working.sessions.entry(key).or_insert_with(|| {
        *next += 1;
        SessionState { row: *next, opened_ns: at.wall_ns(), first_arrival: at.arrival, ..SessionState::default() }
    });
    session.events = session.events.saturating_add(1);
    session.last_arrival = at.arrival;
    let row = session.row;
    match &event.body {
        Some(Body::Exec(exec)) if starts_command(event) => {
            session.execs += 1;
            let number = next_command(session);
            start_exec(working, changes, at, row, number, exec);
        }
        Some(Body::Exec(exec)) => {
            session.witnessed += 1;
            push_line(working, changes, SearchKind::Witness, row, 0, at.wall_ns(), exec_line(exec));
        }
        Some(Body::ExecFailed(failed)) if starts_command(event) => {
            session.failed_commands += 1;
            let number = next_command(session);
            start_failed(working, changes, at, row, number, failed);
        }
        Some(Body::Exit(exit)) => end_process(session, changes, at, key, exit),
        Some(Body::TerminalOutput(output)) => {
            session.terminal_bytes = session.terminal_bytes.saturating_add(output.data.len() as u64);
            let used = Use { terminal: output.terminal, pts: output.index, shown: output.data.len(), typed: 0 };
            let window = (output.rows, output.cols);
            terminal_event(working, changes, at, key, used, |slot| {
                slot.live().output(&output.data, window.0, window.1)
            });
        }
        Some(Body::TerminalInput(input)) => {
            session.input_bytes = session.input_bytes.saturating_add(input.data.len() as u64);
            let used = Use { terminal: input.terminal, pts: input.index, shown: 0, typed: input.data.len() };
            terminal_event(working, changes, at, key, used, |slot| slot.live().input(&input.data));
        }
        Some(Body::InputWithheld(withheld)) => {
            session.withheld_bytes = session.withheld_bytes.saturating_add(withheld.bytes);
        }
        Some(Body::StdioData(data)) => {
            let bytes = match data.direction() {
                Direction::Input => &mut session.stdio_input_bytes,
                Direction::Output | Direction::Unspecified => &mut session.stdio_output_bytes,
            };
            *bytes = bytes.saturating_add(data.data.len() as u64);
        }
        Some(
            body @ (Body::FileAction(_)
            | Body::SocketAction(_)
            | Body::CredentialsChanged(_)
            | Body::NamespacesChanged(_)
            | Body::SystemAction(_)),
        ) => {
            session.actions += 1;
            if let Some((kind, text)) = actions::line(body) {
                push_line(working, changes, kind, row, 0, at.wall_ns(), text);
            }
        }
        Some(Body::SessionOpened(opened)) => open(working, at, key, opened),
        Some(Body::SessionExtended(extended)) => {
            session.deadline_ns = at.header.wall_ns(extended.deadline_boot_ns);
            join(session, extended);
        }
        Some(Body::SessionResumed(resumed)) => session.deadline_ns = at.header.wall_ns(resumed.deadline_boot_ns),
        Some(Body::SessionClosed(closed)) => close(working, changes, at, key, closed),
        Some(Body::Gap(gap)) => session.gaps = session.gaps.saturating_add(gap.records.max(1)),
        Some(Body::Alert(_)) => session.alerts += 1,
        Some(Body::LeftBehind(left)) => leave_behind(session, left),
        Some(
            Body::ExecFailed(_)
            | Body::Fork(_)
            | Body::ProofRefused(_)
            | Body::AccountChanged(_)
            | Body::AgentStarted(_)
            | Body::AgentStopping(_)
            | Body::AgentStopAsked(_)
            | Body::ClockStep(_)
            | Body::Login(_)
            | Body::CredentialsRotated(_)
            | Body::Checkpoint(_)
            | Body::KeyEvolved(_)
            | Body::KeyIntroduced(_)
            | Body::CollectorOrder(_),
        )
        | None => {}
    }
}

fn next_command(session: &mut SessionState) -> u64 {
    session.commands += 1;
    session.commands
}

fn start_exec(working: &mut Working, changes: &mut Changes, at: Place<'_>, session: i64, number: u64, exec: &Exec) {
    let process = exec.process.unwrap_or_default();
    if let Some(row) = command_row(changes, at, session, number, process, encoded(exec), false) {
        if is_known(process) {
            replace(changes, (session, process.pid, process.start_ns), row.id, number);
        }
        push_line(working, changes, SearchKind::Command, session, to_db(number), at.wall_ns(), exec_line(exec));
        changes.commands.push(row);
    }
}

/// Whether a process is one: commands whose process could not be read have nothing in common.
fn is_known(process: Process) -> bool {
    process != Process::default()
}

/// A process goes on as the command that is about to be added to `changes`: the one that it was will never end.
fn replace(changes: &mut Changes, process: ProcessKey, id: i64, number: u64) {
    let before = changes.started.insert(process, changes.commands.len());
    match before.map(|at| changes.commands.get_mut(at)) {
        Some(Some(command)) if command.exit.is_none() => command.replaced_by = number,
        Some(_) => {}
        None => changes.replaced.push(ReplacedRow { process, id, number }),
    }
}

fn exec_line(exec: &Exec) -> String {
    match exec.argv.is_empty() {
        true => command_line(&[&exec.exe]),
        false => command_line(&exec.argv),
    }
}

fn start_failed(
    working: &mut Working,
    changes: &mut Changes,
    at: Place<'_>,
    session: i64,
    number: u64,
    failed: &ExecFailed,
) {
    // The process goes on as what it was: its exit is not this command's.
    let process = failed.process.unwrap_or_default();
    if let Some(row) = command_row(changes, at, session, number, process, encoded(failed), true) {
        let text = command_line(&[&failed.filename]);
        push_line(working, changes, SearchKind::Command, session, to_db(number), at.wall_ns(), text);
        changes.commands.push(row);
    }
}

fn command_row(
    changes: &mut Changes,
    at: Place<'_>,
    session: i64,
    number: u64,
    process: Process,
    event: Option<Vec<u8>>,
    failed: bool,
) -> Option<CommandRow> {
    changes.bytes += size_of::<CommandRow>() + event.as_ref().map_or(0, Vec::len);
    Some(CommandRow {
        id: command_id(session, number)?,
        session,
        pid: process.pid,
        start_ns: process.start_ns,
        boot_ns: at.boot_ns,
        wall_ns: at.wall_ns(),
        arrival: at.arrival,
        place: i64::try_from(at.place).ok()?,
        failed,
        event,
        exit: None,
        exit_wall_ns: 0,
        replaced_by: 0,
    })
}

fn encoded(message: &impl Message) -> Option<Vec<u8>> {
    (message.encoded_len() <= EVENT_MAX).then(|| message.encode_to_vec())
}

fn end_process(session: &mut SessionState, changes: &mut Changes, at: Place<'_>, key: SessionKey, exit: &Exit) {
    let Some(process) = exit.process.filter(|process| is_known(*process)) else { return };
    let unsuccessful = exit.status != 0 || exit.signal != 0;
    let process = (session.row, process.pid, process.start_ns);
    let started = changes.started.get(&process).and_then(|at| changes.commands.get_mut(*at));
    let (wall_ns, exit) = (at.wall_ns(), exit.encode_to_vec());
    match started {
        Some(command) if command.exit.is_none() => {
            command.exit = Some(exit);
            command.exit_wall_ns = wall_ns;
            session.failed_commands += u64::from(unsuccessful);
        }
        Some(_) => {}
        None => {
            let last = command_id(session.row, session.commands.min(u32::MAX.into())).unwrap_or(i64::MAX);
            changes.exits.push(ExitRow { process, last, session: key, exit, wall_ns, unsuccessful });
        }
    }
}

/// How an event used a terminal.
struct Use {
    terminal: u64,
    pts: u32,
    shown: usize,
    typed: usize,
}

fn terminal_event(
    working: &mut Working,
    changes: &mut Changes,
    at: Place<'_>,
    key: SessionKey,
    used: Use,
    apply: impl FnOnce(&mut Slot) -> Vec<Line>,
) {
    let Some(session) = working.sessions.get_mut(&key) else { return };
    let row = session.row;
    let terminal_key: TerminalKey = (row, used.terminal);
    changes.terminals.insert(terminal_key);
    let next = &mut working.next_terminal;
    let state = working.terminals.entry(terminal_key).or_insert_with(|| {
        *next += 1;
        session.terminals += 1;
        TerminalState { row: *next, number: session.terminals, first_ns: at.wall_ns(), ..TerminalState::default() }
    });
    state.pts = used.pts;
    state.last_ns = at.wall_ns();
    state.output_bytes = state.output_bytes.saturating_add(used.shown as u64);
    state.input_bytes = state.input_bytes.saturating_add(used.typed as u64);
    let begins = matches!(state.transcript, Slot::Empty);
    if state.number > TRANSCRIPTS_PER_SESSION || begins && !working.may_begin(at.arrival) {
        return;
    }
    working.make_room(terminal_key);
    let Some(state) = working.terminals.get_mut(&terminal_key) else { return };
    let lines = apply(&mut state.transcript);
    push_transcript(working, changes, row, used.terminal, at.wall_ns(), lines);
}

fn push_transcript(
    working: &mut Working,
    changes: &mut Changes,
    session: i64,
    terminal: u64,
    wall_ns: i64,
    lines: Vec<Line>,
) {
    for line in lines {
        let (kind, text) = split(line);
        push_line(working, changes, kind, session, to_db(terminal), wall_ns, text);
    }
}

/// The kind of a terminal's line, and its text.
pub fn split(line: Line) -> (SearchKind, String) {
    match line {
        Line::Shown(text) => (SearchKind::Screen, text),
        Line::Typed(text) => (SearchKind::Typed, text),
    }
}

fn push_line(
    working: &mut Working,
    changes: &mut Changes,
    kind: SearchKind,
    session: i64,
    subject: i64,
    wall_ns: i64,
    text: String,
) {
    working.next_line += 1;
    changes.bytes += size_of::<LineRow>() + text.len();
    changes.lines.push(LineRow { id: working.next_line, kind, session, subject, wall_ns, text });
}

fn open(working: &mut Working, at: Place<'_>, key: SessionKey, opened: &SessionOpened) {
    let Some(session) = working.sessions.get_mut(&key) else { return };
    // The first word counts: a later one can only be a mistake or a lie.
    if session.opened.is_some() {
        return;
    }
    session.operator = bounded(opened.operator.clone());
    session.opened = Some(bounded_opened(opened).encode_to_vec());
    session.opened_ns = at.wall_ns();
    session.deadline_ns = at.header.wall_ns(opened.deadline_boot_ns);
    if session.closed.is_none() {
        working.hosts.entry(key.0).or_default().open = Some(key.1);
    }
}

/// Notes who extended a session: it is theirs as well.
fn join(session: &mut SessionState, extended: &SessionExtended) {
    let cut = |text: &str| -> String { text.chars().take(JOINED_TEXT_MAX).collect() };
    let who = (cut(&extended.operator), cut(&extended.key_fingerprint));
    if session.joined.len() < JOINED_MAX && !session.joined.contains(&who) {
        session.joined.push(who);
    }
}

fn bounded_opened(opened: &SessionOpened) -> SessionOpened {
    if opened.encoded_len() <= EVENT_MAX {
        return opened.clone();
    }
    let cut = |text: &str| -> String { text.chars().take(OPENED_TEXT_MAX).collect() };
    SessionOpened {
        operator: cut(&opened.operator),
        key_fingerprint: cut(&opened.key_fingerprint),
        key_type: cut(&opened.key_type),
        reason: cut(&opened.reason),
        ticket: cut(&opened.ticket),
        account: cut(&opened.account),
        tier: cut(&opened.tier),
        source: cut(&opened.source),
        grant_text: Vec::new(),
        signature: Vec::new(),
        cosigners: Vec::new(),
        warnings: opened.warnings.iter().take(WARNINGS_MAX).map(|text| cut(text)).collect(),
        certificate: cut(&opened.certificate),
        ..*opened
    }
}

fn close(working: &mut Working, changes: &mut Changes, at: Place<'_>, key: SessionKey, closed: &SessionClosed) {
    if let Some(host) = working.hosts.get_mut(&key.0)
        && host.open == Some(key.1)
    {
        host.open = None;
    }
    let Some(session) = working.sessions.get_mut(&key) else { return };
    if session.closed.is_none() {
        session.closed = Some(bounded_closed(closed).encode_to_vec());
        session.closed_ns = at.wall_ns();
        session.closed_arrival = at.arrival;
    }
    let row = session.row;
    finish_terminals(working, changes, row);
}

fn bounded_closed(closed: &SessionClosed) -> SessionClosed {
    SessionClosed {
        cause: closed.cause,
        by: bounded(closed.by.clone()),
        killed: closed.killed,
        survivors: closed.survivors.iter().take(CLOSED_LIST_MAX).copied().collect(),
        took_us: closed.took_us,
        produced: closed.produced.iter().take(CLOSED_LIST_MAX).copied().collect(),
        missing: closed.missing.iter().take(CLOSED_LIST_MAX).copied().collect(),
    }
}

/// Takes what a session left behind. The first word counts, as with its opening.
fn leave_behind(session: &mut SessionState, left: &LeftBehind) {
    if session.left_behind.is_some() {
        return;
    }
    let doors = left.changes.iter().filter(|change| change.severity() == Severity::OpensDoor);
    session.doors = doors.count() as u64;
    session.changes = left.changes.len() as u64;
    session.left_behind = Some(bounded_left_behind(left).encode_to_vec());
}

/// As much as fits of what comes first, which are the doors; what is cut off is said in `not_covered`.
fn bounded_left_behind(left: &LeftBehind) -> LeftBehind {
    if left.encoded_len() <= EVENT_MAX {
        return left.clone();
    }
    let mut room = EVENT_MAX;
    // A few bytes for each field's frame.
    let mut fits = |len: usize| {
        room = room.saturating_sub(len + 8);
        room > 0
    };
    let cut = "not all changes and omissions are in this list; the event in the record has all".to_owned();
    let changes: Vec<_> = left.changes.iter().take_while(|change| fits(change.encoded_len())).cloned().collect();
    let not_covered = left.not_covered.iter().take_while(|text| fits(text.len())).cloned();
    LeftBehind { not_covered: std::iter::once(cut).chain(not_covered).collect(), changes, complete: false, ..*left }
}

/// What stands on a session's terminals at its end is final.
fn finish_terminals(working: &mut Working, changes: &mut Changes, session: i64) {
    let of_session = |key: &&TerminalKey| key.0 == session;
    let mut keys: Vec<TerminalKey> = working.terminals.keys().filter(of_session).copied().collect();
    keys.sort_by_key(|key| working.terminals.get(key).map(|terminal| terminal.number));
    for key in keys {
        let Some(terminal) = working.terminals.get_mut(&key) else { continue };
        let lines = terminal.transcript.current();
        let last_ns = terminal.last_ns;
        terminal.transcript = Slot::Empty;
        changes.terminals.insert(key);
        push_transcript(working, changes, session, key.1, last_ns, lines);
    }
}
