//! Sessions, commands, replay, events, and following them live.

use breakglass_api::v1::event::Body;
use breakglass_api::v1::left_behind::{Change, Severity};
use breakglass_api::v1::replay_item::Body as Item;
use breakglass_api::v1::{
    Alert, Batch, Event, EventsRequest, ExecFailed, GetSessionRequest, InputWithheld, KernelRef, LeftBehind,
    ListCommandsRequest, ListSessionsRequest, ReplayItem, ReplayRequest, Ring, SearchKind, SearchRequest,
    TerminalInput,
};
use tonic::Code;

use crate::support::*;

fn typed(terminal: u64, data: &str) -> Body {
    Body::TerminalInput(TerminalInput { terminal, index: 3, data: data.into(), ..TerminalInput::default() })
}

fn withheld(terminal: u64, bytes: u64) -> Body {
    Body::InputWithheld(InputWithheld { terminal, index: 3, bytes, ..InputWithheld::default() })
}

fn output_of(items: &[ReplayItem]) -> Vec<u8> {
    let data = |item: &ReplayItem| match &item.body {
        Some(Item::Output(output)) => output.data.clone(),
        _ => Vec::new(),
    };
    items.iter().flat_map(data).collect()
}

#[tokio::test]
async fn a_session_is_what_its_events_say() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    let failed = ExecFailed { process: process(10), filename: b"nosuch".to_vec(), errno: 2, count: 1, uid: 0 };
    let session = Some(session_id(1));
    agent.send(spool.frame(session, vec![opened("alice"), exec(10, &["bash"]), exec(11, &["ls", "-l"])])).await;
    // The shell execs another program in its place: a new command, and the exit is that one's.
    agent.send(spool.frame(session, vec![Body::ExecFailed(failed), exit(11, 0), exec(10, &["zsh"])])).await;
    agent.send(spool.frame(session, vec![shows(5, "hello"), typed(5, "ls\r"), withheld(5, 8), exit(10, 3)])).await;
    agent.send(spool.frame(session, vec![closed()])).await;
    agent.acked(4).await;

    let mut reviewer = collector.reviewer().await;
    let found = reviewer.get_session(GetSessionRequest { session: session_text(1) }).await.unwrap().into_inner();
    assert_eq!((found.commands, found.execs, found.failed_commands), (4, 3, 2));
    assert_eq!((found.terminal_bytes, found.input_bytes, found.withheld_bytes, found.events), (5, 3, 8, 11));
    assert_eq!(found.opened.as_ref().unwrap().reason, "the database is down");
    assert_eq!(found.deadline_ns, 600_000_000_000 + WALL_OFFSET);
    assert!(found.closed.is_some() && found.closed_ns > found.opened_ns);
    assert_eq!((found.hostname.as_str(), found.terminals.len()), ("web1", 1));

    let request = ListCommandsRequest { session: session_text(1), ..ListCommandsRequest::default() };
    let commands = all(reviewer.list_commands(request.clone()).await).await;
    let told: Vec<_> = commands
        .iter()
        .map(|c| {
            let exec = c.exec.as_ref().map(|e| String::from_utf8(e.argv[0].clone()).unwrap());
            (c.number, exec, c.failed.as_ref().map(|f| f.errno), c.exit.as_ref().map(|e| e.status), c.replaced_by)
        })
        .collect();
    let name = |n: &str| Some(n.to_owned());
    assert_eq!(
        told,
        [
            (1, name("bash"), None, None, 4),
            (2, name("ls"), None, Some(0), 0),
            (3, None, Some(2), None, 0),
            (4, name("zsh"), None, Some(3), 0)
        ]
    );
    let later = all(reviewer.list_commands(ListCommandsRequest { after: 3, ..request }).await).await;
    assert_eq!(later.iter().map(|c| c.number).collect::<Vec<_>>(), [4]);

    let request = ReplayRequest { session: session_text(1), input: true, commands: true, ..ReplayRequest::default() };
    let items = all(reviewer.replay(request).await).await;
    let numbers: Vec<_> =
        items.iter().filter_map(|i| if let Some(Item::Command(c)) = &i.body { Some(c.number) } else { None }).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    assert_eq!(output_of(&items), b"hello");
    assert!(items.iter().any(|i| matches!(&i.body, Some(Item::Withheld(w)) if w.bytes == 8)));
}

#[tokio::test]
async fn sessions_are_named_by_any_part_that_is_theirs_alone() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    for n in [1, 0x12] {
        agent.send(spool.frame(Some(session_id(n)), vec![opened("alice")])).await;
    }
    agent.acked(2).await;
    let mut reviewer = collector.reviewer().await;
    let mut get = async |part: &str| reviewer.get_session(GetSessionRequest { session: part.into() }).await;
    assert_eq!(get("000012").await.unwrap().into_inner().id, session_text(0x12));
    assert_eq!(get(&session_text(1).to_uppercase()).await.unwrap().into_inner().id, session_text(1));
    let message = assert_code(get("01920000").await, Code::FailedPrecondition);
    assert!(message.contains(&session_text(1)) && message.contains(&session_text(0x12)), "{message}");
    assert_code(get("abcdef").await, Code::NotFound);
    for bad in ["", "00012", "%_%_%_%", "zzzzzzz", &"0".repeat(33)] {
        assert_code(get(bad).await, Code::InvalidArgument);
    }
    let open = ListSessionsRequest { open_only: true, limit: 1, ..ListSessionsRequest::default() };
    let page = reviewer.list_sessions(open.clone()).await.unwrap().into_inner().sessions;
    assert_eq!(page[0].id, session_text(0x12));
    let page =
        reviewer.list_sessions(ListSessionsRequest { before: page[0].id.clone(), ..open.clone() }).await.unwrap();
    assert_eq!(page.into_inner().sessions[0].id, session_text(1));
    assert_code(reviewer.list_sessions(ListSessionsRequest { host: "nosuch".into(), ..open }).await, Code::NotFound);
}

#[tokio::test]
async fn arguments_of_any_size_and_content_come_back_whole() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    let huge: Vec<Vec<u8>> = (0..600u32).map(|n| n.to_le_bytes().repeat(2560)).collect();
    let vectors = [huge, vec![], vec![vec![]], vec![b"a\nb".to_vec(), b"\x1b[31m".to_vec(), b"\xff\xfe".to_vec()]];
    let mut bodies = vec![opened("alice")];
    bodies.extend((1..).zip(&vectors).map(|(pid, argv)| exec_bytes(pid, argv.clone())));
    agent.send(spool.frame(Some(session_id(1)), bodies)).await;
    agent.acked(1).await;
    let mut reviewer = collector.reviewer().await;
    let request = ListCommandsRequest { session: session_text(1), ..ListCommandsRequest::default() };
    let commands = all(reviewer.list_commands(request).await).await;
    assert_eq!(commands.into_iter().map(|c| c.exec.unwrap().argv).collect::<Vec<_>>(), vectors);
}

#[tokio::test]
async fn replay_gives_the_chosen_terminal_byte_for_byte() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    let mut expected = [Vec::new(), Vec::new()];
    for n in 0..300u32 {
        let chunk: String = format!("\x1b[3{}m{n}\x07\r\n", n % 8).repeat(20);
        let terminal = usize::from(n % 3 == 0);
        expected[terminal].extend_from_slice(chunk.as_bytes());
        agent.send(spool.frame(Some(session_id(1)), vec![shows(100 + terminal as u64, &chunk)])).await;
    }
    agent.acked(300).await;
    let mut reviewer = collector.reviewer().await;
    let request = ReplayRequest { session: session_text(1), ..ReplayRequest::default() };
    // The one that showed something first.
    assert_eq!(output_of(&all(reviewer.replay(request.clone()).await).await), expected[1]);
    let other = ReplayRequest { terminal: 100, ..request.clone() };
    assert_eq!(output_of(&all(reviewer.replay(other).await).await), expected[0]);
    let both = ReplayRequest { all_terminals: true, ..request.clone() };
    let both = output_of(&all(reviewer.replay(both).await).await);
    assert_eq!(both.len(), expected[0].len() + expected[1].len());
    assert_code(reviewer.replay(ReplayRequest { terminal: 7, ..request }).await.map(drop), Code::NotFound);
}

#[tokio::test]
async fn followers_get_everything_once_until_the_session_closes() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    let session = Some(session_id(1));
    agent.send(spool.frame(session, vec![opened("alice"), exec(1, &["a"])])).await;
    agent.acked(1).await;
    let mut reviewer = collector.reviewer().await;
    let follow = session_text(1);
    let request = ListCommandsRequest { session: follow.clone(), after: 0, follow: true };
    let commands = reviewer.list_commands(request).await;
    let request = EventsRequest { session: follow.clone(), follow: true, ..EventsRequest::default() };
    let events = reviewer.events(request).await;
    let replay = reviewer.replay(ReplayRequest { session: follow, follow: true, ..ReplayRequest::default() }).await;
    let watching = tokio::spawn(async move { (all(commands).await, all(events).await, all(replay).await) });
    // The process goes on as another program.
    agent.send(spool.frame(session, vec![exec(1, &["a", "again"])])).await;
    for n in 2..=50u32 {
        agent.send(spool.frame(session, vec![exec(n, &["b"]), shows(1, &format!("{n};")), exit(n, 0)])).await;
    }
    // Another host's news in between is nobody's business here.
    agent.send(spool.frame(session, vec![closed()])).await;
    agent.acked(52).await;
    let (commands, events, replay) = within(watching).await.unwrap();
    let started: Vec<u64> = commands.iter().filter(|c| c.exit.is_none()).map(|c| c.number).collect();
    let mut ended: Vec<u64> = commands.iter().filter(|c| c.exit.is_some()).map(|c| c.number).collect();
    ended.sort_unstable();
    assert_eq!(ended, (3..=51).collect::<Vec<_>>());
    let first: Vec<u64> = commands.iter().filter(|c| c.number == 1).map(|c| c.replaced_by).collect();
    assert_eq!((first, started.contains(&2)), (vec![0, 2], true));
    assert!(commands.iter().all(|c| commands.iter().filter(|other| other.number == c.number).count() <= 2));
    assert_eq!(events.len(), 3 + 49 * 3 + 1);
    let shown: String = (2..=50).map(|n| format!("{n};")).collect();
    assert_eq!(String::from_utf8(output_of(&replay)).unwrap(), shown);
}

#[tokio::test]
async fn events_go_on_after_a_frame_and_witnesses_are_not_commands() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    agent.send(spool.frame(Some(session_id(1)), vec![opened("alice")])).await;
    let witness = KernelRef { ring: Ring::Witness as i32, ..KernelRef::default() };
    let event = Event {
        boot_ns: 5,
        session: 1,
        origin: Some(witness),
        body: Some(exec(1, &["run-parts", "/etc/cron.hourly"])),
    };
    let absurd = Event { boot_ns: u64::MAX, session: u32::MAX, origin: None, body: None };
    let sessions = vec![session_id(1).to_vec(), vec![1, 2, 3]];
    agent.send(spool.batch(Batch { sessions, events: vec![event, absurd], resume: vec![] })).await;
    agent.acked(2).await;
    let mut reviewer = collector.reviewer().await;
    let found = reviewer.get_session(GetSessionRequest { session: session_text(1) }).await.unwrap().into_inner();
    assert_eq!((found.commands, found.events, found.witnessed), (0, 2, 1));
    let request = SearchRequest { text: "cron.hourly".into(), ..SearchRequest::default() };
    let hits = reviewer.search(request.clone()).await.unwrap().into_inner().hits;
    assert_eq!((hits.len(), hits[0].kind(), hits[0].command_number), (1, SearchKind::Witness, 0));
    let commands = SearchRequest { kinds: vec![SearchKind::Command as i32], ..request };
    assert!(reviewer.search(commands).await.unwrap().into_inner().hits.is_empty());
    let request = EventsRequest { host: "web1".into(), after_frame: 1, ..EventsRequest::default() };
    let events = all(reviewer.events(request).await).await;
    assert_eq!(events.iter().map(|e| (e.frame, e.index)).collect::<Vec<_>>(), [(2, 0), (2, 1)]);
    assert_eq!(events[0].host_id, host.id);
    assert_code(reviewer.events(EventsRequest::default()).await.map(drop), Code::InvalidArgument);
}

#[tokio::test]
async fn what_a_session_left_behind_comes_after_its_close_and_is_counted() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    let session = Some(session_id(1));
    agent.send(spool.frame(session, vec![opened("alice"), closed()])).await;
    agent.acked(1).await;
    let mut reviewer = collector.reviewer().await;
    let request = GetSessionRequest { session: session_text(1) };
    let found = reviewer.get_session(request.clone()).await.unwrap().into_inner();
    assert!(!found.compared && found.left_behind.is_none());
    let change =
        |severity: Severity| Change { severity: severity.into(), text: "a change".into(), ..Change::default() };
    let left = LeftBehind {
        changes: vec![change(Severity::OpensDoor), change(Severity::Notable)],
        complete: true,
        not_covered: vec!["never compared: the moon".into()],
        took_us: 5,
    };
    agent.send(spool.frame(session, vec![Body::LeftBehind(left.clone())])).await;
    agent.acked(2).await;
    let found = reviewer.get_session(request).await.unwrap().into_inner();
    assert_eq!((found.compared, found.changes, found.doors, found.left_behind), (true, 2, 1, Some(left)));
    assert!(found.closed.is_some());
    let listed = reviewer.list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner().sessions;
    assert_eq!((listed[0].compared, listed[0].doors, listed[0].left_behind.is_none()), (true, 1, true));
}

#[tokio::test]
async fn events_come_by_kind() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    let alert = || Body::Alert(Alert { code: "c".into(), ..Alert::default() });
    let events = vec![opened("alice"), exec(1, &["a"]), alert(), exit(1, 0), alert(), closed()];
    agent.send(spool.frame(Some(session_id(1)), events)).await;
    agent.acked(1).await;
    let mut reviewer = collector.reviewer().await;
    let mut places = async |kinds: &[&str]| {
        let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        let request = EventsRequest { session: session_text(1), kinds, ..EventsRequest::default() };
        all(reviewer.events(request).await).await.iter().map(|event| event.index).collect::<Vec<_>>()
    };
    assert_eq!(places(&[]).await, [0, 1, 2, 3, 4, 5]);
    assert_eq!(places(&["alert"]).await, [2, 4]);
    assert_eq!(places(&["exec", "session_closed", "of-the-future"]).await, [1, 5]);
    assert_eq!(places(&["of-the-future"]).await, [0u32; 0]);
}
