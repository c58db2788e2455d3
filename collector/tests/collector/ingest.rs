//! The ingest stream: what is taken, what is refused, and what is said about it.

use breakglass_api::v1::agent_message::Body as Up;
use breakglass_api::v1::collector_message::Body as Down;
use breakglass_api::v1::{AgentMessage, EventsRequest, ListHostsRequest, Ping, event};
use tonic::Code;

use crate::support::*;

#[tokio::test]
async fn frames_are_acknowledged_in_order_and_welcomed_after_a_reconnect() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    assert_eq!((agent.welcome.last_seq, agent.welcome.last_hash.len()), (0, 0));
    for _ in 0..20 {
        agent.send(spool.frame(Some(session_id(1)), vec![exec(1, &["ls"])])).await;
    }
    assert_eq!(agent.acked(20).await, spool.hash);
    agent.up.send(AgentMessage { body: Some(Up::Ping(Ping { nonce: 7 })) }).await.unwrap();
    assert!(matches!(agent.next().await.unwrap(), Some(Down::Pong(pong)) if pong.nonce == 7));

    let again = Agent::connect(&collector, &host, spool.stream, 0).await;
    assert_eq!((again.welcome.last_seq, again.welcome.last_hash), (20, spool.hash.to_vec()));
    // The host was connected already: the older connection gives way.
    assert_eq!(agent.next().await.unwrap_err().code(), Code::Aborted);
}

#[tokio::test]
async fn a_frame_sent_again_is_acknowledged_again_and_stored_once() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let frames: Vec<_> = (0..5).map(|_| spool.frame(None, vec![exec(1, &["ls"])])).collect();
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    for frame in frames.iter().chain(&frames) {
        agent.send(frame.clone()).await;
    }
    agent.acked(5).await;
    drop(agent);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    for frame in &frames[2..] {
        agent.send(frame.clone()).await;
    }
    assert_eq!(agent.acked(5).await, spool.hash);
    let mut reviewer = collector.reviewer().await;
    let hosts = reviewer.list_hosts(ListHostsRequest {}).await.unwrap().into_inner().hosts;
    assert_eq!((hosts[0].frames, hosts[0].events, hosts[0].connected), (5, 5, true));
    assert_eq!(hosts[0].hostname, "web1", "the name is the enrolled one, not the claimed one");
    drop(agent);
    eventually(async || {
        let hosts = reviewer.list_hosts(ListHostsRequest {}).await.unwrap().into_inner().hosts;
        (!hosts[0].connected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_does_not_continue_the_chain_is_refused_by_name() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let first = spool.frame(None, vec![exec(1, &["first"])]);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    agent.send(first.clone()).await;
    agent.acked(1).await;

    // Another frame with the same number.
    let fork = Spool::new(1).frame(None, vec![exec(1, &["other"])]);
    agent.send(fork).await;
    assert_eq!(agent.refused().await, "fork");

    // The next number, from another chain.
    let mut broken = spool.clone();
    broken.hash = [5; 32];
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    agent.send(broken.frame(None, vec![])).await;
    assert_eq!(agent.refused().await, "broken-chain");

    // A number too far.
    let mut ahead = spool.clone();
    ahead.seq += 1;
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    agent.send(ahead.frame(None, vec![])).await;
    assert_eq!(agent.refused().await, "missing-frames");

    // Damaged; what came before it is acknowledged all the same.
    let second = spool.frame(None, vec![exec(2, &["second"])]);
    let mut damaged = spool.clone().frame(None, vec![]);
    damaged[130] ^= 1;
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    agent.send(second).await;
    agent.send(damaged).await;
    assert!(matches!(agent.next().await.unwrap(), Some(Down::Ack(ack)) if ack.seq == 2));
    assert_eq!(agent.refused().await, "bad-frame");

    // A frame of another stream than Hello said.
    let mut agent = Agent::connect(&collector, &host, [8; 16], 0).await;
    agent.send(first).await;
    assert_eq!(agent.refused().await, "bad-frame");
}

#[tokio::test]
async fn a_host_writes_only_as_itself_and_only_its_own_stream() {
    let collector = Collector::start();
    let (one, two) = (collector.enroll_host("web1"), collector.enroll_host("web2"));
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &one, spool.stream, 0).await;
    agent.send(spool.frame(None, vec![])).await;
    agent.acked(1).await;

    let impostor = Agent::try_connect(&collector, &two, hello(&one, spool.stream, 0)).await.unwrap();
    assert!(matches!(impostor.err().unwrap(), Some(Down::Refusal(r)) if r.code == "not-this-host"));
    let thief = Agent::try_connect(&collector, &two, hello(&two, spool.stream, 0)).await.unwrap();
    assert!(matches!(thief.err().unwrap(), Some(Down::Refusal(r)) if r.code == "not-this-host"));
    let mut nameless = hello(&two, spool.stream, 0);
    nameless.stream_id = vec![1, 2, 3];
    let refused = Agent::try_connect(&collector, &two, nameless).await;
    assert_eq!(refused.err().unwrap().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_hole_that_the_agent_declares_is_an_explicit_gap() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    agent.send(spool.frame(Some(session_id(1)), vec![opened("alice"), exec(1, &["before"])])).await;
    agent.acked(1).await;
    drop(agent);
    let lost: Vec<_> = (0..3).map(|_| spool.frame(Some(session_id(1)), vec![exec(2, &["lost"])])).collect();
    let mut agent = Agent::connect(&collector, &host, spool.stream, 5).await;
    // What an agent loses are whole segments.
    spool.room = 0;
    agent.send(spool.frame(Some(session_id(1)), vec![exec(3, &["after"])])).await;
    agent.acked(5).await;

    let mut reviewer = collector.reviewer().await;
    let request = EventsRequest { session: session_text(1), ..EventsRequest::default() };
    let events = all(reviewer.events(request).await).await;
    let gap = &events[2];
    let Some(event::Body::Gap(body)) = gap.event.as_ref().and_then(|e| e.body.as_ref()) else { panic!("{gap:?}") };
    assert_eq!((gap.frame, body.records), (2, 3));
    assert_eq!(events.len(), 4);
    // What was declared lost does not come back.
    agent.send(lost[0].clone()).await;
    assert_eq!(agent.refused().await, "fork");
}
