//! Sessions, commands, replay, events, and following them live.

use breakglass_api::v1::event::Body;
use breakglass_api::v1::replay_item::Body as Item;
use breakglass_api::v1::{
    Batch, Event, EventsRequest, ExecFailed, GetSessionRequest, InputWithheld, KernelRef, ListCommandsRequest,
    ListSessionsRequest, ReplayItem, ReplayRequest, Ring, TerminalInput,
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
            (c.number, exec, c.failed.as_ref().map(|f| f.errno), c.exit.as_ref().map(|e| e.status))
        })
        .collect();
    let name = |n: &str| Some(n.to_owned());
    assert_eq!(
        told,
        [
            (1, name("bash"), None, None),
            (2, name("ls"), None, Some(0)),
            (3, None, Some(2), None),
            (4, name("zsh"), None, Some(3))
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
    for n in 2..=50u32 {
        agent.send(spool.frame(session, vec![exec(n, &["b"]), shows(1, &format!("{n};")), exit(n, 0)])).await;
    }
    // Another host's news in between is nobody's business here.
    agent.send(spool.frame(session, vec![closed()])).await;
    agent.acked(51).await;
    let (commands, events, replay) = within(watching).await.unwrap();
    let started: Vec<u64> = commands.iter().filter(|c| c.exit.is_none()).map(|c| c.number).collect();
    let mut numbers: Vec<u64> = commands.iter().map(|c| c.number).collect();
    numbers.dedup();
    let mut ended: Vec<u64> = commands.iter().filter(|c| c.exit.is_some()).map(|c| c.number).collect();
    ended.sort_unstable();
    assert_eq!(ended, (2..=50).collect::<Vec<_>>());
    assert!(started.contains(&1));
    assert_eq!(events.len(), 2 + 49 * 3 + 1);
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
    let event = Event { boot_ns: 5, session: 1, origin: Some(witness), body: Some(exec(1, &["cron"])) };
    let absurd = Event { boot_ns: u64::MAX, session: u32::MAX, origin: None, body: None };
    let sessions = vec![session_id(1).to_vec(), vec![1, 2, 3]];
    agent.send(spool.batch(Batch { sessions, events: vec![event, absurd], resume: vec![] })).await;
    agent.acked(2).await;
    let mut reviewer = collector.reviewer().await;
    let found = reviewer.get_session(GetSessionRequest { session: session_text(1) }).await.unwrap().into_inner();
    assert_eq!((found.commands, found.events), (0, 2));
    let request = EventsRequest { host: "web1".into(), after_frame: 1, ..EventsRequest::default() };
    let events = all(reviewer.events(request).await).await;
    assert_eq!(events.iter().map(|e| (e.frame, e.index)).collect::<Vec<_>>(), [(2, 0), (2, 1)]);
    assert_eq!(events[0].host_id, host.id);
    assert_code(reviewer.events(EventsRequest::default()).await.map(drop), Code::InvalidArgument);
}
