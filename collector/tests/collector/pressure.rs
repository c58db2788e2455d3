//! A disk that is slower than the agents: they are held back, and what waits in memory is bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use breakglass_api::v1::agent_message::Body as Up;
use breakglass_api::v1::{AgentMessage, Batch};
use sqlx::{Connection as _, SqliteConnection};

use crate::support::*;

/// Frames that the agent wants to send, and bytes in each that do not compress.
const FRAMES: u64 = 3000;
const FRAME_BYTES: usize = 16 * 1024;
/// Frames that may have left the agent meanwhile: the collector's window for one connection, the agent's own queue, and what HTTP/2 lets
/// be under way, with one frame in every hand that passes it on.
const TAKEN_MAX: u64 = 512 + 64 + (FLOW_BYTES / FRAME_BYTES) as u64 + 8;
/// The collector's flow control for one connection.
const FLOW_BYTES: usize = 4 << 20;
/// How long nothing more must be taken.
const STILL: Duration = Duration::from_millis(700);
/// Memory that so many frames may cost, with what the allocator makes of them.
const GROWTH_MAX_KIB: u64 = 24 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_disk_holds_agents_back_within_bounded_memory() {
    let collector = Collector::start();
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let frames: Vec<Vec<u8>> = (0..FRAMES).map(|_| noise(&mut spool)).collect();
    let mut agent = Agent::connect(&collector, &host, spool.stream, 0).await;
    let before = collector.memory_kib();

    // As a backup that does not end: the collector waits for the lock, as it would for a disk.
    let store = collector.path("collector/data/frames.db");
    let mut other = SqliteConnection::connect(&format!("sqlite://{}", store.display())).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let taken = Arc::new(AtomicU64::new(0));
    let (up, count) = (agent.up.clone(), taken.clone());
    let sending = tokio::spawn(async move {
        for frame in frames {
            up.send(AgentMessage { body: Some(Up::Frame(frame.into())) }).await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let held = stands_still(&taken).await;
    assert!((1..=TAKEN_MAX).contains(&held), "{held} frames were taken while nothing could be stored");
    let grown = collector.memory_kib().saturating_sub(before);
    assert!(grown <= GROWTH_MAX_KIB, "memory grew by {grown} KiB");

    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    assert_eq!(agent.acked(FRAMES).await, spool.hash);
    sending.await.unwrap();
}

/// Waits until the number does not change any more; returns it.
async fn stands_still(taken: &AtomicU64) -> u64 {
    let (mut last, mut since) = (0, Instant::now());
    eventually(async || {
        let now = taken.load(Ordering::SeqCst);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (now > 0 && since.elapsed() > STILL).then_some(now)
    })
    .await
}

fn noise(spool: &mut Spool) -> Vec<u8> {
    let mut state = spool.seq.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let resume = words.take(FRAME_BYTES / 8).collect::<Vec<_>>().into_flattened();
    spool.batch(Batch { resume, ..Batch::default() })
}
