//! What `show` says beyond commands: successors, what was left behind, others' programs; and in which order.

use breakglass_api::v1::{
    Alert, Cosigner, CredentialsRotated, Event, Exec, KernelRef, LeftBehind, Process, RecordedEvent, Ring, Session,
    WitnessLink,
    credentials_rotated::{Credential, Kind},
    event::Body,
    left_behind::{Change, Severity},
    witness_link,
};
use serde_json::Value;

use crate::{
    fake::{Answers, Fake},
    run::{breakglass, complained, printed, run},
    sample::{self, ID, NOON, OPEN_ID, SECOND},
    terminal::OnTerminal,
};

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn change(severity: Severity, text: &str) -> Change {
    Change { severity: severity.into(), text: text.to_owned(), ..Change::default() }
}

/// The sample's session, compared.
fn compared(left: LeftBehind) -> Answers {
    let doors = left.changes.iter().filter(|change| change.severity() == Severity::OpensDoor).count() as u64;
    let changes = left.changes.len() as u64;
    let session = Session { compared: true, doors, changes, left_behind: Some(left), ..sample::session() };
    Answers { sessions: vec![session], ..sample::answers() }
}

#[test]
fn a_process_that_became_another_has_no_unknown_end() {
    let mut replaced = sample::command(1, 1, "/", 990, "/usr/bin/nohup", &[b"nohup", b"sleep", b"9"]);
    replaced.replaced_by = 2;
    let commands = vec![replaced.clone(), sample::command(2, 1, "/", 990, "/usr/bin/sleep", &[b"sleep", b"9"])];
    let fake = Fake::start(Answers { commands: commands.clone(), ..sample::answers() });
    let text = printed(&fake, &["show", ID]);
    assert!(text.contains("    1  12:00:01  breakglass  → 2               nohup sleep 9\n"), "{text}");
    assert!(text.contains("    2  12:00:01  breakglass  ?                 sleep 9\n"), "{text}");
    let commands_told = json_lines(&printed(&fake, &["show", ID, "--json"]));
    let command = commands_told.iter().find(|line| line["type"] == "command").unwrap();
    assert_eq!(command["replaced_by"], 2);

    // Followed, it runs first and then gives way; nothing is printed twice.
    let mut running = replaced.clone();
    running.replaced_by = 0;
    let commands = vec![running, commands[1].clone(), replaced];
    let fake = Fake::start(Answers { commands, ..sample::answers() });
    let text = printed(&fake, &["show", OPEN_ID, "--follow"]);
    assert_eq!(text.matches("runs              nohup sleep 9").count(), 1, "{text}");
    assert_eq!(text.matches("→ 2               became another: nohup").count(), 1, "{text}");
    assert_eq!(text.matches("nohup").count(), 2, "{text}");
}

#[test]
fn a_collector_that_is_behind_says_that_there_may_be_more() {
    let session = Session { behind: true, ..sample::session() };
    let fakes = [sample::answers(), Answers { sessions: vec![session], ..sample::answers() }].map(Fake::start);
    for arguments in [&["show", ID][..], &["sessions"]] {
        let [up_to_date, behind] = fakes.each_ref().map(|fake| {
            let output = breakglass(fake, "config.toml").args(arguments).output().unwrap();
            assert_eq!(output.status.code(), Some(0), "{arguments:?}");
            String::from_utf8(output.stderr).unwrap()
        });
        assert!(!up_to_date.contains("behind"), "{up_to_date}");
        assert!(behind.contains("The collector is behind: "), "{behind}");
    }
}

#[test]
fn a_session_that_is_followed_may_still_be_on_its_way() {
    for command in ["show", "events", "replay"] {
        let late = || Fake::start(Answers { late: 2, ..sample::answers() });
        let output = run(&late(), &[command, OPEN_ID, "--follow"]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}: {message}");
        assert_eq!(message.matches("waiting a few seconds for it").count(), 1, "{command}: {message}");
        assert!(!output.stdout.is_empty(), "{command}");
        assert_eq!(run(&late(), &[command, OPEN_ID]).status.code(), Some(4), "{command}");
    }
    // One that never comes is told of in the end.
    let (code, message) = complained(&Fake::start(sample::answers()), "config.toml", &["show", "0badf00d", "--follow"]);
    assert_eq!(code, 4, "{message}");
    assert!(message.contains("there is no session 0badf00d"), "{message}");
}

/// The sample's session with the host's word about its credentials.
fn rotated(credentials: &[(Kind, &str, &str, bool, bool)]) -> Answers {
    let credentials = credentials.iter().map(|(kind, name, detail, void, attention)| Credential {
        kind: (*kind).into(),
        name: (*name).to_owned(),
        detail: (*detail).to_owned(),
        void: *void,
        attention: *attention,
        ..Credential::default()
    });
    let body = Body::CredentialsRotated(CredentialsRotated { credentials: credentials.collect() });
    let event = Event { body: Some(body), ..Event::default() };
    let mut answers = sample::answers();
    answers.events.push(RecordedEvent {
        session: ID.to_owned(),
        wall_ns: NOON + 870 * SECOND,
        event: Some(event),
        ..RecordedEvent::default()
    });
    answers
}

#[test]
fn what_became_of_the_credentials_stands_below() {
    let all = [
        (Kind::LoginKey, "SHA256:k", "the key of alice\x1b[2J logs in no more", true, false),
        (Kind::OneTimeCode, "", "the code is burnt; only 1 are left", true, true),
        (Kind::SshHostKey, "SHA256:h", "kept, as configured", false, false),
    ];
    let text = printed(&Fake::start(rotated(&all)), &["show", ID]);
    let below = &text[text.find("\n  credentials").unwrap() + 1..];
    assert!(below.starts_with("  credentials  1 kept, as configured; no other is good any more\n"), "{text}");
    for line in [
        "    - login key SHA256:k: the key of alice\\x1b[2J logs in no more\n",
        "    ! one-time code: the code is burnt; only 1 are left\n",
        "    - host key SHA256:h: kept, as configured\n",
    ] {
        assert!(below.contains(line), "{line:?} is not in {text}");
    }
    let lines = json_lines(&printed(&Fake::start(rotated(&all)), &["show", ID, "--json"]));
    let told: Vec<_> = lines.iter().filter(|line| line["event"]["kind"] == "credentials_rotated").collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["event"]["credentials_rotated"]["credentials"][1]["kind"], "one_time_code");

    let good = printed(&Fake::start(rotated(&all[..1])), &["show", ID]);
    assert!(good.contains("  credentials  none of them is good any more\n"), "{good}");
    let failed = [(Kind::SshHostKey, "SHA256:h", "is as it was: the disk is full", false, true)];
    let bad = printed(&Fake::start(rotated(&failed)), &["show", ID]);
    assert!(bad.contains("  credentials  1 as good as before\n    ! host key SHA256:h: is as it was"), "{bad}");
}

#[test]
fn a_host_that_says_nothing_of_credentials_is_told_of_and_an_open_session_has_none() {
    let text = printed(&Fake::start(sample::answers()), &["show", ID]);
    assert!(text.contains("  credentials  not known: the host has not told what became of them\n"), "{text}");
    assert!(!printed(&Fake::start(sample::answers()), &["show", OPEN_ID]).contains("credentials"));
}

#[test]
fn who_else_signed_and_what_a_reviewer_should_know_stand_in_the_head() {
    let mut session = sample::session();
    let opened = session.opened.as_mut().unwrap();
    opened.warnings = vec!["the reason \"test\" says little\x1b[2J; the reviewer will ask".to_owned()];
    opened.certificate = "\"laptop\", serial 7, by SHA256:abc".to_owned();
    opened.cosigners = vec![Cosigner {
        principal: "bob@example.org".to_owned(),
        key_type: "ssh-ed25519".to_owned(),
        key_fingerprint: "SHA256:xyz".to_owned(),
        ..Cosigner::default()
    }];
    let fake = Fake::start(Answers { sessions: vec![session], ..sample::answers() });
    let text = printed(&fake, &["show", ID]);
    for expected in [
        "  co-signed  bob@example.org (ssh-ed25519 SHA256:xyz)\n",
        "  certified  \"laptop\", serial 7, by SHA256:abc\n",
        "  note       the reason \"test\" says little\\x1b[2J; the reviewer will ask\n",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in {text}");
    }
}

#[test]
fn what_was_left_behind_stands_below_the_commands_doors_first() {
    let mut changes = vec![change(Severity::Notable, "listening socket tcp 0.0.0.0:8080 appeared\x1b[2J")];
    changes.extend((0..12).map(|n| change(Severity::Notable, &format!("notable thing {n}"))));
    changes.push(change(
        Severity::OpensDoor,
        "authorized key SHA256:x ssh-ed25519 in /root/.ssh/authorized_keys was added",
    ));
    let left = LeftBehind { changes, complete: true, not_covered: vec!["never compared: the moon".into()], took_us: 1 };
    let fake = Fake::start(compared(left));
    let text = printed(&fake, &["show", ID]);
    let below = &text[text.find("\n  left behind").unwrap()..];
    let wanted = [
        "  left behind  1 change that may open a door\n    ! authorized key SHA256:x",
        "    - listening socket tcp 0.0.0.0:8080 appeared\\x1b[2J\n",
        "    - notable thing 8\n      --all shows 3 more that open no door, and what is never compared\n",
    ];
    assert!(wanted.iter().all(|part| below.contains(part)), "{below}");
    assert!(text.find("psql -c").unwrap() < text.find("left behind").unwrap());
    let all = printed(&fake, &["show", ID, "--all"]);
    assert!(all.contains("    - notable thing 11\n    ? not covered: never compared: the moon\n"), "{all}");
    let session = &json_lines(&printed(&fake, &["show", ID, "--json"]))[0];
    assert_eq!(
        (&session["doors"], &session["left_behind"]["changes"][13]["severity"]),
        (&1.into(), &"opens_door".into())
    );
    let table = printed(&fake, &["sessions"]);
    assert!(table.lines().next().unwrap().contains("DOORS") && table.contains("     1    12      1  "), "{table}");
}

#[test]
fn a_host_that_is_as_it_was_is_said_to_be() {
    let clean = LeftBehind { complete: true, ..LeftBehind::default() };
    let text = printed(&Fake::start(compared(clean.clone())), &["show", ID]);
    assert!(text.ends_with("\n\n  left behind  nothing that opens a door\n"), "{text}");
    let cut = LeftBehind { complete: false, not_covered: vec!["after the session: /home".into()], ..clean };
    let text = printed(&Fake::start(compared(cut)), &["show", ID]);
    let wanted = "nothing that opens a door, as far as was compared\n      --all shows what could not be compared\n";
    assert!(text.ends_with(wanted), "{text}");
    let mut long_ago = sample::answers();
    for session in &mut long_ago.sessions {
        session.closed_ns = session.closed_ns.min(NOON - 365 * 24 * 3600 * SECOND);
    }
    let text = printed(&Fake::start(long_ago), &["show", ID]);
    assert!(text.ends_with("  left behind  not known: no comparison of the host is recorded\n"), "{text}");
    assert!(!printed(&Fake::start(sample::answers()), &["show", OPEN_ID]).contains("left behind"));
}

fn recorded(at: i64, body: Body, ring: Ring) -> RecordedEvent {
    let origin = Some(KernelRef { ring: ring.into(), ..KernelRef::default() });
    let event = Event { origin, body: Some(body), ..Event::default() };
    RecordedEvent {
        session: ID.to_owned(),
        wall_ns: NOON + at * SECOND,
        event: Some(event),
        ..RecordedEvent::default()
    }
}

/// Two alerts, a program outside the session, and one of it.
fn mixed() -> Answers {
    let exec = |name: &[u8]| Body::Exec(Exec { exe: name.to_vec(), argv: vec![name.to_vec()], ..Exec::default() });
    let alert = |code: &str| Body::Alert(Alert { code: code.to_owned(), ..Alert::default() });
    let events = vec![
        recorded(20, alert("second-alert"), Ring::Audit),
        recorded(10, alert("first-alert"), Ring::Audit),
        recorded(15, exec(b"/usr/sbin/cron"), Ring::Witness),
        recorded(15, exec(b"/usr/bin/own"), Ring::Audit),
    ];
    let session = Session { witnessed: 1, ..sample::session() };
    let open = Session { witnessed: 1, ..sample::open_session() };
    Answers { events, sessions: vec![session, open], ..sample::answers() }
}

#[test]
fn programs_outside_the_session_are_counted_and_listed_when_asked_for() {
    let fake = Fake::start(mixed());
    let text = printed(&fake, &["show", ID]);
    assert!(text.contains("  witnessed  1 program outside the session\n") && !text.contains("cron"), "{text}");
    let text = printed(&fake, &["show", ID, "--witness"]);
    assert!(text.contains("    ~  12:00:15  ?           outside           /usr/sbin/cron\n"), "{text}");
    assert!(!text.contains("/usr/bin/own"), "{text}");
    let lines = json_lines(&printed(&fake, &["show", ID, "--witness", "--json"]));
    let execs: Vec<_> = lines.iter().filter(|line| line["event"]["kind"] == "exec").collect();
    assert_eq!((execs.len(), &execs[0]["event"]["origin"]["ring"]), (1, &"witness".into()));
}

#[test]
fn what_the_session_had_others_start_is_shown_unasked_with_its_link() {
    let link = WitnessLink {
        kind: witness_link::Kind::Unit.into(),
        by: Some(Process { pid: 77, start_ns: 5 }),
        through: b"run-u1\x1b.service".to_vec(),
        after_ns: 2_000_000_000,
        tagged: true,
        ..WitnessLink::default()
    };
    let exec = Exec { exe: b"/bin/nc".to_vec(), argv: vec![b"nc".to_vec()], link: Some(link), ..Exec::default() };
    let mut answers = mixed();
    answers.events.push(recorded(16, Body::Exec(exec), Ring::Witness));
    let fake = Fake::start(answers);
    let text = printed(&fake, &["show", ID]);
    let line = text.lines().find(|line| line.contains("nc")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("outside"), "{line}");
    for part in ["perhaps unit of this session, asked by process 77", "before through run-u1", "followed]"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!text.contains('\x1b') && !text.contains("cron"), "{text}");
}

#[test]
fn history_comes_in_order_of_time_also_when_following() {
    let fake = Fake::start(mixed());
    for args in [&["show", ID, "--witness"][..], &["show", OPEN_ID, "--follow", "--witness"]] {
        let text = printed(&fake, args);
        let places = ["journalctl -u", "first-alert", "/usr/sbin/cron", "second-alert", "sudo -i"].map(|part| {
            assert_eq!(text.matches(part).count(), 1, "{part} in {text}");
            text.find(part).unwrap()
        });
        assert!(places.is_sorted(), "{args:?}: {text}");
    }
}

#[test]
fn nothing_wraps_on_narrow_or_wide_terminals() {
    let changes = vec![change(Severity::OpensDoor, &"a long sentence about a door ".repeat(8))];
    let mut answers = compared(LeftBehind { changes, complete: true, ..LeftBehind::default() });
    answers.sessions.push(Session { hostname: "database-primary-01".to_owned(), ..sample::open_session() });
    answers.hosts[0].hostname = "database-primary-01".to_owned();
    let fake = Fake::start(answers);
    for columns in [80, 140] {
        for args in [&["sessions"][..], &["hosts"], &["search", "drop table"], &["show", ID]] {
            let mut terminal =
                OnTerminal::start(breakglass(&fake, "config.toml").env("NO_COLOR", "1").args(args), columns);
            terminal.until_the_end();
            let text = String::from_utf8(terminal.shown.clone()).unwrap();
            // A command line of a session may take more than one.
            let header = text.lines().take_while(|line| !line.contains("COMMAND"));
            let footer = text.lines().skip_while(|line| !line.contains("left behind"));
            let mut lines =
                if args[0] == "show" { header.chain(footer).collect() } else { Vec::from_iter(text.lines()) };
            lines.retain(|line| unicode_width::UnicodeWidthStr::width(line.trim_end()) > columns.into());
            assert_eq!(lines, Vec::<&str>::new(), "{args:?} at {columns}");
        }
    }
}
