//! How fast the collector takes events: frames of an imitated host, as fast as they are acknowledged.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use breakglass_api::{
    GRPC_MESSAGE_MAX,
    frame::{Hash, Header, seal},
    v1::{
        AgentMessage, AgentStarted, Batch, Credentials, Event, Exec, Exit, Fork, Hello, KernelRef, Process,
        SessionOpened, agent_message, collector_message, event::Body, ingest_client::IngestClient,
    },
};
use breakglass_tests::{
    binaries::Binaries,
    machine, poll,
    query::{Query, tls},
    stack::start_new_collector,
    undo::Run,
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::transport::Endpoint;

use crate::{
    Effort,
    figure::{Budget, Figure},
};

/// Frames sent, and programs in each, as an agent makes them of a thousand programs a second; a program is three events.
const FRAMES: u64 = 16_000;
const PROGRAMS: u64 = 12;

/// Frames that may be under way without an acknowledgement, as an agent bounds them.
const WINDOW: usize = 64;

/// How often the index is asked how far it is.
const LOOK: Duration = Duration::from_millis(20);

const HOST: &str = "imitated";
const SESSION: [u8; 16] = [0x5a; 16];

pub fn measure(effort: Effort) -> Result<Vec<Figure>> {
    let binaries = Binaries::find()?;
    let run = Run::begin()?;
    let (mut collector, address) = start_new_collector(&run, &binaries)?;
    for (kind, name) in [(&["host"][..], HOST), (&["person", "--role", "reviewer"], "reviewer")] {
        let mut enroll = Command::new(&binaries.collector);
        enroll.arg("enroll").args(kind).arg(name).arg("--dir").arg(run.folder().join("collector"));
        machine::run(enroll.arg("--out").arg(run.folder().join(name)))?;
    }
    let frames = frames(effort.runs(FRAMES))?;
    let programs = frames.len() as u64 * PROGRAMS;
    let events = (programs * 3) as f64;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let host = run.folder().join(HOST);
    let start = Instant::now();
    let last = frames.len() as u64;
    runtime.block_on(async { send(address, &host, frames, last).await })?;
    let acknowledged = start.elapsed().as_secs_f64();
    let mut query = Query::new(address, &run.folder().join("reviewer"))?;
    let session = uuid_text(SESSION);
    poll::until("the index to have everything", Duration::from_secs(600), || {
        std::thread::sleep(LOOK);
        Ok((query.session(&session)?.execs >= programs).then_some(()))
    })?;
    let indexed = start.elapsed().as_secs_f64();
    collector.check()?;
    Ok(vec![
        Figure::new(
            "collector: durable and acknowledged",
            "events/s",
            vec![events / acknowledged],
            Budget::MedianAtLeast(100_000.0),
        ),
        Figure::new(
            "collector: indexed for search",
            "events/s",
            vec![events / indexed],
            Budget::MedianAtLeast(30_000.0),
        ),
    ])
}

async fn send(address: SocketAddr, host: &std::path::Path, frames: Vec<Vec<u8>>, last: u64) -> Result<()> {
    let channel = Endpoint::from_shared(format!("https://{address}"))?
        .tls_config(tls(host, "host", "collector")?)?
        .connect()
        .await?;
    let mut client = IngestClient::new(channel).max_encoding_message_size(GRPC_MESSAGE_MAX);
    let (sender, receiver) = mpsc::channel(WINDOW);
    let hello = Hello {
        host_id: std::fs::read_to_string(host.join("host-id"))?.trim().to_owned(),
        hostname: HOST.into(),
        stream_id: STREAM.to_vec(),
        boot_id: BOOT.to_vec(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        tier: "basic".into(),
        oldest_seq: 1,
        ..Hello::default()
    };
    sender.send(message(agent_message::Body::Hello(hello))).await?;
    let mut answers = client.stream(ReceiverStream::new(receiver)).await?.into_inner();
    let first = answers.next().await.context("no welcome")??;
    ensure!(matches!(first.body, Some(collector_message::Body::Welcome(_))), "not a welcome: {first:?}");
    let sending = tokio::spawn(async move {
        for frame in frames {
            if sender.send(message(agent_message::Body::Frame(frame.into()))).await.is_err() {
                break;
            }
        }
        // Open until everything is acknowledged.
        sender
    });
    while let Some(answer) = answers.next().await {
        match answer?.body {
            Some(collector_message::Body::Ack(ack)) if ack.seq == last => {
                sending.await?;
                return Ok(());
            }
            Some(collector_message::Body::Refusal(refusal)) => bail!("refused: {refusal:?}"),
            _ => {}
        }
    }
    bail!("the collector ended the stream")
}

fn message(body: agent_message::Body) -> AgentMessage {
    AgentMessage { body: Some(body) }
}

const STREAM: [u8; 16] = [0x11; 16];
const BOOT: [u8; 16] = [0x22; 16];

/// A chain of frames: one session's programs, each forked, run and ended, with arguments that differ.
fn frames(count: u64) -> Result<Vec<Vec<u8>>> {
    let mut previous: Hash = [0; 32];
    let mut frames = Vec::new();
    for seq in 1..=count {
        let mut events = if seq == 1 { opening() } else { Vec::new() };
        for number in 0..PROGRAMS {
            events.extend(program((seq - 1) * PROGRAMS + number));
        }
        let header = Header {
            stream_id: STREAM,
            boot_id: BOOT,
            seq,
            prev: previous,
            first_boot_ns: seq * 1_000_000,
            last_boot_ns: seq * 1_000_000 + PROGRAMS * 1000,
            wall_offset_ns: 1_700_000_000_000_000_000,
            events: 0,
        };
        let sealed = seal(header, &Batch { sessions: vec![SESSION.to_vec()], events, resume: Vec::new() }, 1)?;
        previous = sealed.hash;
        frames.push(sealed.bytes);
    }
    Ok(frames)
}

fn opening() -> Vec<Event> {
    let started =
        AgentStarted { hostname: HOST.into(), tier: "basic".into(), boot_id: BOOT.to_vec(), ..Default::default() };
    let opened =
        SessionOpened { operator: "alice".into(), reason: "measured".into(), ttl_seconds: 600, ..Default::default() };
    vec![
        Event { boot_ns: 1, body: Some(Body::AgentStarted(started)), ..Default::default() },
        Event { boot_ns: 2, session: 1, body: Some(Body::SessionOpened(opened)), ..Default::default() },
    ]
}

fn program(number: u64) -> [Event; 3] {
    let process = Process { pid: 1000 + (number % 30_000) as u32, start_ns: number * 1000 };
    let parent = Process { pid: 999, start_ns: 1 };
    let names = ["ls", "grep", "systemctl", "cat", "journalctl", "ps", "awk", "curl"];
    let name = names[number as usize % names.len()];
    let exec = Exec {
        process: Some(process),
        parent: Some(parent),
        exe: format!("/usr/bin/{name}").into(),
        cwd: b"/var/lib/app".to_vec(),
        argv: vec![
            name.into(),
            format!("--item={}", number.wrapping_mul(0x9e37_79b9)).into(),
            "/srv/app/current/config.yaml".into(),
        ],
        credentials: Some(Credentials { uid: 1001, loginuid: 1001, ..Default::default() }),
        comm: name.into(),
        ..Default::default()
    };
    let bodies = [
        Body::Fork(Fork { process: Some(parent), child: Some(process) }),
        Body::Exec(exec),
        Body::Exit(Exit { process: Some(process), ..Default::default() }),
    ];
    let mut seq = number * 3;
    bodies.map(|body| {
        seq += 1;
        let origin = Some(KernelRef { seq, ..Default::default() });
        Event { boot_ns: 1_000_000 + seq, session: 1, origin, body: Some(body) }
    })
}

/// A UUID as it is written.
fn uuid_text(bytes: [u8; 16]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)].map(|(from, to)| hex.get(from..to).unwrap_or_default());
    parts.join("-")
}
