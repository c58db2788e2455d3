//! What one hostile host, or somebody without any right, can make the collector do to everybody else.

use std::time::Duration;

use breakglass_api::v1::agent_message::Body as Up;
use breakglass_api::v1::collector_message::Body as Down;
use breakglass_api::v1::event::Body;
use breakglass_api::v1::manage_client::ManageClient;
use breakglass_api::v1::*;
use prost::Message;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tonic::Code;

use crate::support::*;

#[tokio::test]
async fn frames_that_are_small_only_on_the_wire_do_not_fill_the_memory() {
    let mut collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    let session = Some(session_id(1));
    agent.send(spool.frame(session, vec![opened("mallory")])).await;
    for pid in 1..=24 {
        let frame = spool.frame(session, vec![exec_bytes(pid, vec![vec![b'a'; 31 << 20]])]);
        assert!(frame.len() < 100_000, "{}", frame.len());
        agent.send(frame).await;
    }
    // And one of a terminal that is made to show far more than was written to it.
    agent.send(spool.frame(session, vec![shows(1, &"a\x1b[65535b\r\n\x1b#8\x1b[2J".repeat(50_000))])).await;
    agent.acked(26).await;
    // All at once: the index is built anew.
    assert_eq!(collector.stop().await, Some(0));
    std::fs::remove_file(collector.path("collector/data/index.db")).unwrap();
    collector.serve();
    let mut reviewer = collector.reviewer().await;
    let request = GetSessionRequest { session: session_text(1) };
    let indexed = eventually(async || {
        let session = reviewer.get_session(request.clone()).await.ok()?.into_inner();
        (session.events == 26).then_some(session)
    });
    assert_eq!(indexed.await.commands, 24);
    let peak = collector.memory_peak_kib() / 1024;
    assert!(peak < 450, "{peak} MiB");
    // And read again, as a replay does.
    let replay = ReplayRequest { session: session_text(1), ..ReplayRequest::default() };
    assert_eq!(all(reviewer.replay(replay).await).await.len(), 1);
    let peak = collector.memory_peak_kib() / 1024;
    assert!(peak < 450, "{peak} MiB");
}

#[tokio::test]
async fn sessions_that_a_host_made_huge_are_listed_with_all_others() {
    let collector = Collector::start();
    let (bad, good) = (collector.enroll_host("bad"), collector.enroll_host("good"));
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &bad, spool.stream, 0).await;
    let huge = |n: u8| {
        let Body::SessionOpened(opened) = opened("mallory") else { unreachable!() };
        let opened = SessionOpened { grant_text: vec![n; 60_000], reason: "x".repeat(4000), ..opened };
        let terminals = (1..=600).map(|terminal| shows(terminal, "x"));
        std::iter::once(Body::SessionOpened(opened)).chain(terminals).collect::<Vec<_>>()
    };
    for n in 1..=40 {
        agent.send(spool.frame(Some(session_id(n)), huge(n))).await;
    }
    agent.acked(40).await;
    let mut spool = Spool::new(2);
    let mut agent = Agent::connect(&collector, &good, spool.stream, 0).await;
    agent.send(spool.frame(Some(session_id(100)), vec![opened("alice"), shows(7, "hello")])).await;
    agent.acked(1).await;

    let mut reviewer = collector.reviewer().await;
    let request = ListSessionsRequest { limit: 1000, ..ListSessionsRequest::default() };
    let listed = eventually(async || {
        let answer = reviewer.list_sessions(request.clone()).await.unwrap().into_inner();
        (!answer.behind).then_some(answer)
    })
    .await;
    assert_eq!(listed.sessions.len(), 41);
    assert!(listed.sessions.iter().all(|session| session.terminals.is_empty() && session.encoded_len() <= 16 * 1024));
    let cut = listed.sessions.iter().find(|session| session.hostname == "bad").unwrap();
    let opened = cut.opened.as_ref().unwrap();
    assert_eq!((opened.operator.as_str(), opened.grant_text.len(), opened.reason.len()), ("mallory", 0, 128));
    assert!(opened.warnings.iter().any(|warning| warning.contains("too much for a list")), "{:?}", opened.warnings);
    let whole = listed.sessions.iter().find(|session| session.hostname == "good").unwrap();
    assert_eq!(whole.opened.as_ref().unwrap().reason, "the database is down");
    // Pages are as full as was asked for, so that there is always a next one to ask for.
    let mut page = ListSessionsRequest { limit: 20, ..request };
    for expected in [20, 20, 1] {
        let ListSessionsResponse { sessions, more, .. } =
            reviewer.list_sessions(page.clone()).await.unwrap().into_inner();
        assert_eq!((sessions.len(), more), (expected, expected == 20));
        page.before = sessions.last().map(|last| last.id.clone()).unwrap_or_default();
    }

    let get = |n| GetSessionRequest { session: session_text(n) };
    let session = reviewer.get_session(get(1)).await.unwrap().into_inner();
    assert_eq!((session.terminals.len(), session.terminals_recorded), (500, 600));
    assert_eq!(session.opened.unwrap().grant_text.len(), 60_000);
    let session = reviewer.get_session(get(100)).await.unwrap().into_inner();
    assert_eq!((session.terminals.len(), session.terminals_recorded), (1, 1));
    // One that is not among the first is replayed all the same.
    let replay = ReplayRequest { session: session_text(1), terminal: 590, ..ReplayRequest::default() };
    assert_eq!(all(reviewer.replay(replay.clone()).await).await.len(), 1);
    assert_code(reviewer.replay(ReplayRequest { terminal: 700, ..replay }).await.map(drop), Code::NotFound);
}

#[tokio::test]
async fn hits_that_are_long_lines_fit_one_answer() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    let long = |pid: u32| exec_bytes(pid, vec![format!("findme-{pid}").into_bytes(), vec![b'a'; 60_000]]);
    agent.send(spool.frame(Some(session_id(1)), (1..=400).map(long).collect())).await;
    agent.acked(1).await;
    let mut reviewer = collector.reviewer().await;
    let request = SearchRequest { text: "findme".into(), limit: 1000, ..SearchRequest::default() };
    let answer = eventually(async || {
        let answer = reviewer.search(request.clone()).await.unwrap().into_inner();
        (!answer.behind).then_some(answer)
    })
    .await;
    assert!(answer.more && answer.hits.len() > 50 && answer.encoded_len() < 9 << 20, "{}", answer.encoded_len());
    let narrower = SearchRequest { text: "findme-7".into(), limit: 30, ..request };
    let answer = reviewer.search(narrower).await.unwrap().into_inner();
    assert_eq!((answer.hits.len(), answer.more), (11, false), "7, and 70 to 79");
}

#[tokio::test]
async fn a_question_that_is_too_long_is_not_read() {
    let collector = Collector::start();
    let mut client = collector.person("olga", "operator").await;
    let request = SearchRequest { text: "x".repeat(1 << 20), ..SearchRequest::default() };
    assert_code(client.search(request).await, Code::OutOfRange);
}

#[tokio::test]
async fn what_a_host_says_is_cut() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let hello = Hello {
        takes_orders: true,
        keeps_talking: true,
        tier: "t".repeat(1 << 20),
        agent_version: format!("\u{1b}[2J{}", "é".repeat(1 << 20)),
        ..hello(&host, [1; 16], 0)
    };
    let mut agent = Agent::try_connect(&collector, &host, hello.clone()).await.unwrap().ok().unwrap();
    collector.person("rita", "reviewer").await;
    let mut rita = ManageClient::new(collector.channel(&collector.path("reviewer-rita"), "person").await);
    let answering = async {
        loop {
            if let Some(Down::Order(Order { number, .. })) = agent.next().await.unwrap() {
                let (code, message) = ("c".repeat(1 << 20), "é".repeat(1 << 20));
                let done = OrderDone { number, code, message };
                return agent.up.send(AgentMessage { body: Some(Up::OrderDone(done)) }).await.unwrap();
            }
        }
    };
    let (answer, ()) = tokio::join!(rita.reach(ReachRequest { host: "web1".into() }), answering);
    let OrderAnswer { code, message, .. } = answer.unwrap().into_inner();
    assert!(code.len() <= 64 && code.ends_with("ccc […cut]"), "{code}");
    assert!(message.len() <= 1024 && message.ends_with("ééé […cut]"), "{message}");
    collector.person("adam", "admin").await;
    let mut adam = ManageClient::new(collector.channel(&collector.path("admin-adam"), "person").await);
    let acts = adam.list_acts(ListActsRequest { limit: 10 }).await.unwrap().into_inner().acts;
    let act = acts.iter().find(|act| act.what == "reach").unwrap();
    assert_eq!(act.outcome, format!("{code}: {message}"));

    let mut reviewer = query_client(collector.channel(&collector.path("reviewer-rita"), "person").await);
    let hosts = reviewer.list_hosts(ListHostsRequest {}).await.unwrap().into_inner().hosts;
    assert!(hosts[0].tier.len() <= 256 && hosts[0].agent_version.len() <= 256, "{:?}", hosts[0]);
    let other = Hello { host_id: "h".repeat(1 << 20), ..hello };
    let refused = Agent::try_connect(&collector, &host, other).await.unwrap().err().unwrap();
    let Some(Down::Refusal(refusal)) = refused else { panic!("{refused:?}") };
    assert!(refusal.code == "not-this-host" && refusal.message.len() < 1024, "{}", refusal.message.len());
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_else_out() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(collector.address()).await.unwrap());
    }
    // Those that are too many are closed at once, the others when their time is over.
    let mut closed = 0;
    for stream in &mut idle {
        let ended = tokio::time::timeout(Duration::from_millis(10), stream.read_u8()).await;
        closed += usize::from(ended.is_ok());
    }
    assert!((200..300).contains(&closed), "{closed}");
    // Another source has its own places.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(collector.address().parse().unwrap()).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(200), other.read_u8()).await.is_err(), "it is heard");
    // Places are given back.
    drop(idle);
    eventually(async || collector.try_stranger().await.ok()).await;
    let spool = Spool::new(1);
    Agent::connect(&collector, &host, spool.stream, 0).await;
}
