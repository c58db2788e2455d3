//! How fast frames are taken and indexed. Prints figures; fails only where something is off by an order of magnitude.

use std::time::{Duration, Instant};

use breakglass_api::v1::ListHostsRequest;

use crate::support::*;

/// Frames sent. More by BREAKGLASS_TEST_FRAMES, for figures that mean something.
const FRAMES: u64 = 60;
/// Events in each frame.
const EVENTS: u32 = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_acknowledged_and_indexed() {
    let frames = std::env::var("BREAKGLASS_TEST_FRAMES").ok().and_then(|n| n.parse().ok()).unwrap_or(FRAMES);
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let sealed: Vec<Vec<u8>> = (0..frames).map(|n| frame(&mut spool, u32::try_from(n).unwrap())).collect();
    let bytes: usize = sealed.iter().map(Vec::len).sum();
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    let up = agent.up.clone();
    let began = Instant::now();
    let sending = tokio::spawn(async move {
        for frame in sealed {
            let body = breakglass_api::v1::agent_message::Body::Frame(frame.into());
            up.send(breakglass_api::v1::AgentMessage { body: Some(body) }).await.unwrap();
        }
    });
    agent.acked(frames).await;
    let durable = began.elapsed();
    sending.await.unwrap();
    let events = frames * u64::from(EVENTS);
    let mut reviewer = collector.reviewer().await;
    eventually(async || {
        let hosts = reviewer.list_hosts(ListHostsRequest {}).await.unwrap().into_inner().hosts;
        (hosts[0].events == events).then_some(())
    })
    .await;
    let indexed = began.elapsed();
    let rate = |took: Duration| events as f64 / took.as_secs_f64();
    println!(
        "{events} events in {bytes} bytes: {:.0} events/s durable and acknowledged, {:.0} events/s indexed",
        rate(durable),
        rate(indexed)
    );
    assert!(rate(durable) > 1000.0 && rate(indexed) > 1000.0);
}

/// A mix like a busy shell: a third each of starts, ends, and terminal output.
fn frame(spool: &mut Spool, n: u32) -> Vec<u8> {
    let words = ["systemctl", "grep", "journalctl", "cat", "psql", "tail"];
    let bodies = (0..EVENTS).map(|i| {
        let pid = n * EVENTS + i / 3 + 1;
        let word = words[pid as usize % words.len()];
        match i % 3 {
            0 => exec(pid, &[word, "--unit", "postgresql", &format!("/var/log/file-{pid}.log")]),
            1 => shows(1, &format!("{word}: line {pid} of the output\r\n")),
            _ => exit(pid, u32::from(pid.is_multiple_of(7))),
        }
    });
    spool.frame(Some(session_id(1)), bodies.collect())
}
