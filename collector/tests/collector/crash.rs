//! Killed at any moment, the collector has what it acknowledged, once, in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use breakglass_api::v1::collector_message::Body as Down;
use breakglass_api::v1::{EventsRequest, GetSessionRequest, ListCommandsRequest, event};

use crate::support::*;

/// How often it is killed.
const KILLS: u64 = 5;
/// Frames sent between two kills.
const FRAMES: u64 = 150;
/// How many of them are acknowledged when the kill comes.
const BEFORE_KILL: u64 = 40;
/// Commands in a frame.
const COMMANDS: u32 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_is_there_twice() {
    let mut collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut frames = Vec::new();
    for n in 0..KILLS * FRAMES {
        let pid = |i: u32| u32::try_from(n).unwrap() * COMMANDS + i + 1;
        let bodies = (0..COMMANDS).flat_map(|i| [exec(pid(i), &["run", &pid(i).to_string()]), exit(pid(i), 0)]);
        frames.push(spool.frame(Some(session_id(1)), bodies.collect()));
    }
    let acked = Arc::new(AtomicU64::new(0));
    for round in 1..=KILLS {
        let before = acked.load(Ordering::SeqCst);
        let agent = Agent::connect(&collector, &host, spool.stream, 1).await;
        assert!(agent.welcome.last_seq >= before, "lost what was acknowledged");
        let sent = usize::try_from(round * FRAMES).unwrap();
        let feeding = tokio::spawn(feed(agent, frames[..sent].to_vec(), acked.clone()));
        let until = Instant::now() + DEADLINE;
        while acked.load(Ordering::SeqCst) < (round - 1) * FRAMES + BEFORE_KILL && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        collector.kill();
        within(feeding).await.unwrap();
        collector.serve();
    }
    let agent = Agent::connect(&collector, &host, spool.stream, 1).await;
    within(feed(agent, frames.clone(), acked.clone())).await;
    assert_eq!(acked.load(Ordering::SeqCst), frames.len() as u64);
    check(&collector, frames.len() as u64).await;
}

/// Sends everything from where the collector stands, until all is acknowledged or the collector is gone.
async fn feed(agent: Agent, frames: Vec<Vec<u8>>, acked: Arc<AtomicU64>) {
    let last = frames.len() as u64;
    let start = usize::try_from(agent.welcome.last_seq).unwrap();
    acked.fetch_max(agent.welcome.last_seq, Ordering::SeqCst);
    let Agent { up, mut down, .. } = agent;
    let sending = tokio::spawn(async move {
        // One held frame again, as after a lost acknowledgement.
        for frame in frames.into_iter().skip(start.saturating_sub(1)) {
            let body = breakglass_api::v1::agent_message::Body::Frame(frame.into());
            if up.send(breakglass_api::v1::AgentMessage { body: Some(body) }).await.is_err() {
                return;
            }
        }
        up.closed().await;
    });
    while acked.load(Ordering::SeqCst) < last {
        match down.message().await {
            Ok(Some(message)) => match message.body {
                Some(Down::Ack(ack)) => drop(acked.fetch_max(ack.seq, Ordering::SeqCst)),
                other => panic!("unexpected {other:?}"),
            },
            Ok(None) | Err(_) => break,
        }
    }
    sending.abort();
}

async fn check(collector: &Collector, frames: u64) {
    let commands = frames * u64::from(COMMANDS);
    let mut reviewer = collector.reviewer().await;
    let session = eventually(async || {
        let request = GetSessionRequest { session: session_text(1) };
        let session = reviewer.get_session(request).await.ok()?.into_inner();
        (session.events >= commands * 2).then_some(session)
    })
    .await;
    assert_eq!((session.events, session.commands, session.execs), (commands * 2, commands, commands));
    let request = ListCommandsRequest { session: session_text(1), ..ListCommandsRequest::default() };
    let listed = all(reviewer.list_commands(request).await).await;
    for (number, command) in (1..).zip(&listed) {
        let argv = &command.exec.as_ref().unwrap().argv;
        assert_eq!((command.number, argv[1].as_slice()), (number, number.to_string().as_bytes()));
        assert!(command.exit.is_some(), "command {number} has no exit");
    }
    assert_eq!(listed.len() as u64, commands);
    let request = EventsRequest { session: session_text(1), ..EventsRequest::default() };
    let events = all(reviewer.events(request).await).await;
    assert_eq!(events.len() as u64, commands * 2);
    assert!(!events.iter().any(|e| matches!(e.event.as_ref().unwrap().body, Some(event::Body::Gap(_)))));
}
