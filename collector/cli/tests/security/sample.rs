//! A believable small incident, with everything hostile that a session can put into its record.

use breakglass_api::v1::{
    Alert, CloseCause, Command, Credentials, Event, Exec, ExecFailed, Exit, Gap, Host, InputWithheld, RecordedEvent,
    ReplayItem, Ring, SearchHit, SearchKind, Session, SessionClosed, SessionOpened, TerminalInfo, TerminalInput,
    TerminalOutput, event, replay_item::Body,
};

use crate::fake::Answers;

/// 2026-11-22T12:00:00Z.
pub const NOON: i64 = 1_795_348_800_000_000_000;
pub const SECOND: i64 = 1_000_000_000;
pub const ID: &str = "019a8c3e-7f00-7c3e-8a01-9e3f5f2c9a1e";
pub const OPEN_ID: &str = "019a8c40-0000-7aaa-8bbb-ccccb0a7d211";

const BOOT: u64 = 86_400_000_000_000;

/// Everything the fake collector knows.
pub fn answers() -> Answers {
    Answers {
        hosts: hosts(),
        sessions: vec![open_session(), session()],
        commands: commands(),
        events: events(),
        replay: replay(),
        hits: hits(),
        ..Answers::default()
    }
}

fn hosts() -> Vec<Host> {
    let host = |hostname: &str, connected, open: &str| Host {
        id: format!("5c1f6c2e-0000-4000-8000-0000000{:05}", hostname.len()),
        hostname: hostname.to_owned(),
        tier: "basic".to_owned(),
        agent_version: "0.1.0".to_owned(),
        connected,
        last_seen_ns: NOON,
        frames: 1_204,
        events: 1_234_567,
        open_session: open.to_owned(),
        ..Host::default()
    };
    vec![host("web1", true, OPEN_ID), host("db-primary", true, ""), host("batch-7", false, "")]
}

fn opened(operator: &str, reason: &str) -> SessionOpened {
    SessionOpened {
        operator: operator.to_owned(),
        key_fingerprint: "SHA256:mVPwvezndPv/ARoIadVY98vAC0g+P/5633yTC4d/wXE".to_owned(),
        key_type: "ssh-ed25519".to_owned(),
        reason: reason.to_owned(),
        ticket: "INC-4711".to_owned(),
        ttl_seconds: 1800,
        account: "breakglass".to_owned(),
        uid: 990,
        tier: "basic".to_owned(),
        source: "10.0.0.9:50122".to_owned(),
        ..SessionOpened::default()
    }
}

/// A session that is over, with an alert and a gap.
pub fn session() -> Session {
    let closed = SessionClosed {
        cause: CloseCause::Operator.into(),
        by: "alice@example.org".to_owned(),
        killed: 3,
        took_us: 12_400,
        produced: vec![1_234, 56, 7_890],
        missing: vec![0, 0, 12],
        ..SessionClosed::default()
    };
    Session {
        id: ID.to_owned(),
        host_id: "5c1f6c2e-0000-4000-8000-000000000004".to_owned(),
        hostname: "web1".to_owned(),
        opened: Some(opened("alice@example.org", "database down after migration,\x1b]0;x\x07 SSO unreachable")),
        opened_ns: NOON,
        closed_ns: NOON + 869 * SECOND,
        closed: Some(closed),
        commands: 9,
        failed_commands: 1,
        terminal_bytes: 48_213,
        input_bytes: 310,
        withheld_bytes: 12,
        events: 2_048,
        gaps: 12,
        alerts: 1,
        terminals: vec![
            TerminalInfo { id: 11, index: 3, output_bytes: 48_213, ..TerminalInfo::default() },
            TerminalInfo { id: 12, index: 4, output_bytes: 1_024, ..TerminalInfo::default() },
        ],
        deadline_ns: NOON + 1800 * SECOND,
        execs: 9,
        ..Session::default()
    }
}

/// A session that is open.
pub fn open_session() -> Session {
    Session {
        id: OPEN_ID.to_owned(),
        opened: Some(opened("bob@example.org", "disk full on /var, cannot log in by SSO")),
        opened_ns: NOON + 3600 * SECOND,
        closed_ns: 0,
        closed: None,
        commands: 4,
        alerts: 0,
        gaps: 0,
        ..session()
    }
}

/// A command by number, second of start, directory, uid, and its arguments.
pub fn command(number: u64, at: i64, cwd: &str, uid: u32, exe: &str, argv: &[&[u8]]) -> Command {
    let exec = Exec {
        exe: exe.into(),
        cwd: cwd.into(),
        argv: argv.iter().map(|a| a.to_vec()).collect(),
        credentials: Some(Credentials { uid, euid: uid, ..Credentials::default() }),
        ..Exec::default()
    };
    Command {
        number,
        wall_ns: NOON + at * SECOND,
        exec: Some(exec),
        session: ID.to_owned(),
        boot_ns: BOOT + at as u64 * SECOND as u64,
        ..Command::default()
    }
}

fn ended(mut command: Command, after_ms: i64, status: u32, signal: u32) -> Command {
    command.exit_wall_ns = command.wall_ns + after_ms * 1_000_000;
    command.exit = Some(Exit { status, signal, ..Exit::default() });
    command
}

fn commands() -> Vec<Command> {
    let home = "/home/breakglass";
    let failed =
        ExecFailed { filename: b"/usr/local/bin/psql".to_vec(), errno: 2, count: 2, uid: 0, ..ExecFailed::default() };
    let hostile: &[&[u8]] = &[b"printf", b"\x1b[2J\x1b[31mroot ok\n", b"\xff\xfe", "invoice\u{202e}fdp.exe".as_bytes()];
    vec![
        ended(command(1, 1, home, 990, "/usr/bin/bash", &[b"-bash"]), 868_000, 0, 0),
        ended(
            command(2, 4, home, 990, "/usr/bin/journalctl", &[b"journalctl", b"-u", b"postgresql", b"-n", b"50"]),
            212,
            0,
            0,
        ),
        ended(command(3, 4, home, 990, "/usr/bin/grep", &[b"grep", b"-i", b"fatal error"]), 220, 1, 0),
        ended(command(4, 30, home, 990, "/usr/bin/sudo", &[b"sudo", b"-i"]), 600_000, 0, 0),
        Command { exec: None, failed: Some(failed), ..command(5, 61, "", 0, "", &[]) },
        ended(
            command(6, 61, "/root", 0, "/usr/bin/psql", &[b"psql", b"-c", b"DROP TABLE customers_old;"]),
            3_250,
            0,
            0,
        ),
        ended(command(7, 90, "/root", 0, "/tmp/.x/miner", &[b"[kworker/0:1]"]), 45_000, 0, 9),
        ended(command(8, 120, "/var/lib/postgresql", 0, "/usr/bin/printf", hostile), 3, 0, 0),
        command(9, 150, "/var/lib/postgresql", 33, "/usr/bin/sleep", &[b"sleep", b"infinity"]),
    ]
}

fn event(at: i64, body: event::Body) -> RecordedEvent {
    let event = Event { boot_ns: BOOT + at as u64 * SECOND as u64, body: Some(body), ..Event::default() };
    RecordedEvent {
        host_id: "5c1f6c2e-0000-4000-8000-000000000004".to_owned(),
        session: ID.to_owned(),
        frame: 7,
        index: at as u32,
        wall_ns: NOON + at * SECOND,
        event: Some(event),
    }
}

fn gap() -> Gap {
    Gap { ring: Ring::Bulk.into(), records: 12, bytes: 4_096, cause: "ring-full".to_owned(), ..Gap::default() }
}

fn events() -> Vec<RecordedEvent> {
    let alert =
        Alert { code: "exec-from-tmp".to_owned(), message: "/tmp/.x/miner was run by root".to_owned(), process: None };
    let exec = Exec { argv: vec![b"\xff".to_vec(), b"\x1b[31m".to_vec()], ..Exec::default() };
    vec![
        event(1, event::Body::Exec(exec)),
        event(90, event::Body::Alert(alert)),
        event(100, event::Body::Gap(gap())),
        event(869, event::Body::SessionClosed(session().closed.unwrap_or_default())),
    ]
}

/// An item of the first terminal, milliseconds after noon.
pub fn item(ms: i64, body: Body) -> ReplayItem {
    ReplayItem { wall_ns: NOON + ms * 1_000_000, boot_ns: BOOT + ms as u64 * 1_000_000, body: Some(body) }
}

/// Output of the first terminal.
pub fn output(data: &[u8]) -> Body {
    Body::Output(TerminalOutput {
        terminal: 11,
        index: 3,
        data: data.to_vec(),
        rows: 24,
        cols: 80,
        ..TerminalOutput::default()
    })
}

/// What the first terminal showed, in pieces that cut a character and a sequence.
pub const SCREEN: [&[u8]; 6] = [
    b"breakglass@web1:~$ ",
    b"caf\xc3",
    b"\xa9\r\nbash: caf\xc3\xa9: command not found\r\n\x1b[",
    b"1;31mred\x1b[0m \x1b]0;owned\x07\x1b[6n\x05\r\n",
    b"\x1b[?1049h\x1b[?25l\x1b[2J\x1b[Hvim\xff",
    b"\x1b[?1049l\x1b[?25hbye\r\n",
];

fn replay() -> Vec<ReplayItem> {
    let [prompt, cafe, rest, red, vim, bye] = SCREEN;
    let typed =
        |data: &[u8]| Body::Input(TerminalInput { terminal: 11, data: data.to_vec(), ..TerminalInput::default() });
    let withheld = InputWithheld { terminal: 11, bytes: 12, ..InputWithheld::default() };
    vec![
        item(0, output(prompt)),
        item(100, typed(b"caf\xc3")),
        item(101, output(cafe)),
        item(120, typed(b"\xa9\r")),
        item(121, Body::Command(command(2, 0, "/", 990, "/bin/sh", &[b"caf\xc3\xa9"]))),
        item(122, output(rest)),
        item(200, Body::Withheld(withheld)),
        item(250, output(red)),
        item(260, Body::Gap(gap())),
        item(300, output(vim)),
        item(400, output(bye)),
    ]
}

fn hits() -> Vec<SearchHit> {
    let hit = |kind: SearchKind, session: &str, at: i64, text: &str, number| SearchHit {
        kind: kind.into(),
        session: session.to_owned(),
        host_id: "5c1f6c2e-0000-4000-8000-000000000004".to_owned(),
        hostname: "web1".to_owned(),
        operator: "alice@example.org".to_owned(),
        wall_ns: NOON + at * SECOND,
        text: text.to_owned(),
        command_number: number,
        terminal: 11,
        times: if at == 64 { 31 } else { 1 },
    };
    let long = format!("{} drop table audit; {}", "-- ".repeat(60), "x".repeat(100));
    vec![
        hit(SearchKind::Command, ID, 61, "psql -c 'DROP TABLE customers_old;'", 6),
        hit(SearchKind::Screen, ID, 64, "DROP TABLE", 0),
        hit(SearchKind::Typed, OPEN_ID, 3700, "drop table\x1b[A users;", 0),
        hit(SearchKind::Screen, OPEN_ID, 3705, &long, 0),
    ]
}
