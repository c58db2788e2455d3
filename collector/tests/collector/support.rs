//! A collector process of one's own, an agent's side of the ingest stream, and people who ask.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use breakglass_api::GRPC_MESSAGE_MAX;
use breakglass_api::frame::{Hash, Header, Sealer};
use breakglass_api::v1::agent_message::Body as Up;
use breakglass_api::v1::collector_message::Body as Down;
use breakglass_api::v1::event::Body;
use breakglass_api::v1::ingest_client::IngestClient;
use breakglass_api::v1::query_client::QueryClient;
use breakglass_api::v1::{
    AgentMessage, Batch, CollectorMessage, Event, Exec, Exit, Hello, Process, SessionClosed, SessionOpened,
    TerminalOutput, Welcome,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status, Streaming};

/// How long anything may take. Far above what it takes; a test that reaches it has failed.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Wall minus boot clock of the synthetic host, ns.
pub const WALL_OFFSET: i64 = 1_700_000_000_000_000_000;

/// A collector's folder and, while it runs, its process. Both are gone with the value.
pub struct Collector {
    dir: tempfile::TempDir,
    home: PathBuf,
    running: Option<Running>,
}

struct Running {
    child: Child,
    address: String,
}

pub fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_breakglass-collector")).args(arguments).output().unwrap()
}

#[track_caller]
pub fn run_ok(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Collector {
    /// Made by `init`, running.
    pub fn start() -> Self {
        let mut collector = Self::init();
        collector.serve();
        collector
    }

    /// Made by `init`, not running.
    pub fn init() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let collector = Self { home: dir.path().join("collector"), dir, running: None };
        run_ok(&["init", "--dir", collector.home(), "--listen", "127.0.0.1:0"]);
        collector
    }

    pub fn home(&self) -> &str {
        self.home.to_str().unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the process and waits until it says where it listens.
    pub fn serve(&mut self) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_breakglass-collector"))
            .args(["serve", "--dir", self.home()])
            .env("BREAKGLASS_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("said {line:?}")).to_owned();
        self.running = Some(Running { child, address });
    }

    pub fn address(&self) -> &str {
        &self.running.as_ref().unwrap().address
    }

    /// Memory of its own, KiB.
    pub fn memory_kib(&self) -> u64 {
        self.status_kib("RssAnon:")
    }

    /// The most memory that it has had since it was started, KiB.
    pub fn memory_peak_kib(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    fn status_kib(&self, field: &str) -> u64 {
        let status = format!("/proc/{}/status", self.running.as_ref().unwrap().child.id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.child.kill().unwrap();
            running.child.wait().unwrap();
        }
    }

    /// SIGTERM; returns the exit code.
    pub async fn stop(&mut self) -> Option<i32> {
        let mut running = self.running.take().unwrap();
        let killed = Command::new("kill").arg(running.child.id().to_string()).status().unwrap();
        assert!(killed.success());
        eventually(async || running.child.try_wait().unwrap()).await.code()
    }

    pub fn enroll_host(&self, name: &str) -> HostIdentity {
        let out = self.path(&format!("host-{name}"));
        run_ok(&["enroll", "host", name, "--dir", self.home(), "--out", out.to_str().unwrap()]);
        HostIdentity { id: std::fs::read_to_string(out.join("host-id")).unwrap().trim().to_owned(), dir: out }
    }

    /// A connection as a person.
    pub async fn person(&self, name: &str, role: &str) -> QueryClient<Channel> {
        let out = self.path(&format!("{role}-{name}"));
        if !out.exists() {
            run_ok(&["enroll", "person", name, "--role", role, "--dir", self.home(), "--out", out.to_str().unwrap()]);
        }
        query_client(self.channel(&out, "person").await)
    }

    pub async fn reviewer(&self) -> QueryClient<Channel> {
        self.person("rita", "reviewer").await
    }

    /// A connection without a certificate.
    pub async fn stranger(&self) -> Channel {
        self.try_stranger().await.unwrap()
    }

    pub async fn try_stranger(&self) -> Result<Channel, tonic::transport::Error> {
        let ca = std::fs::read(self.home.join("ca.crt")).unwrap();
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name("collector");
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address())).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await
    }

    pub async fn channel(&self, identity: &Path, stem: &str) -> Channel {
        let read = |name: String| std::fs::read(identity.join(name)).unwrap();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.crt".into())))
            .identity(Identity::from_pem(read(format!("{stem}.crt")), read(format!("{stem}.key"))))
            .domain_name("collector");
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address())).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await.unwrap()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn query_client(channel: Channel) -> QueryClient<Channel> {
    QueryClient::new(channel).max_decoding_message_size(GRPC_MESSAGE_MAX)
}

pub struct HostIdentity {
    pub id: String,
    pub dir: PathBuf,
}

/// The agent's end of a stream.
pub struct Agent {
    pub up: mpsc::Sender<AgentMessage>,
    pub down: Streaming<CollectorMessage>,
    pub welcome: Welcome,
}

pub fn hello(host: &HostIdentity, stream: [u8; 16], oldest_seq: u64) -> Hello {
    Hello {
        host_id: host.id.clone(),
        hostname: "as-claimed".into(),
        stream_id: stream.to_vec(),
        boot_id: vec![9; 16],
        agent_version: "0.0.1".into(),
        tier: "basic".into(),
        oldest_seq,
        ..Hello::default()
    }
}

impl Agent {
    /// Connects, says Hello, and takes Welcome.
    pub async fn connect(collector: &Collector, host: &HostIdentity, stream: [u8; 16], oldest_seq: u64) -> Self {
        match Self::try_connect(collector, host, hello(host, stream, oldest_seq)).await {
            Ok(Ok(agent)) => agent,
            Ok(Err(first)) => panic!("expected Welcome: {first:?}"),
            Err(status) => panic!("expected Welcome: {status}"),
        }
    }

    pub async fn try_connect(
        collector: &Collector,
        host: &HostIdentity,
        hello: Hello,
    ) -> Result<Result<Self, Option<Down>>, Status> {
        let channel = collector.channel(&host.dir, "host").await;
        let mut client = IngestClient::new(channel).max_encoding_message_size(GRPC_MESSAGE_MAX);
        let (up, outgoing) = mpsc::channel(64);
        up.send(AgentMessage { body: Some(Up::Hello(hello)) }).await.unwrap();
        let mut down = client.stream(ReceiverStream::new(outgoing)).await?.into_inner();
        match within(down.message()).await?.and_then(|m| m.body) {
            Some(Down::Welcome(welcome)) => Ok(Ok(Self { up, down, welcome })),
            other => Ok(Err(other)),
        }
    }

    pub async fn send(&self, frame: Vec<u8>) {
        // Fails when the collector has ended the stream: the test sees that on the way down.
        let _ = self.up.send(AgentMessage { body: Some(Up::Frame(frame.into())) }).await;
    }

    /// The next message.
    pub async fn next(&mut self) -> Result<Option<Down>, Status> {
        Ok(within(self.down.message()).await?.and_then(|message| message.body))
    }

    /// Waits for the acknowledgement of frame `seq`; returns its hash.
    pub async fn acked(&mut self, seq: u64) -> Vec<u8> {
        loop {
            match self.next().await.unwrap() {
                Some(Down::Ack(ack)) if ack.seq == seq => return ack.hash,
                Some(Down::Ack(ack)) => assert!(ack.seq < seq, "acknowledged {} before it was sent", ack.seq),
                other => panic!("expected an acknowledgement: {other:?}"),
            }
        }
    }

    /// Waits for a refusal; returns its code.
    pub async fn refused(&mut self) -> String {
        loop {
            match self.next().await.unwrap() {
                Some(Down::Ack(_)) => {}
                Some(Down::Refusal(refusal)) => return refusal.code,
                other => panic!("expected a refusal: {other:?}"),
            }
        }
    }
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("it took too long")
}

/// Asks again and again until the answer is there.
pub async fn eventually<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < until, "it did not come about");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// All of a streamed answer.
pub async fn all<T>(answer: Result<tonic::Response<Streaming<T>>, Status>) -> Vec<T> {
    let mut stream = answer.unwrap().into_inner();
    let mut items = Vec::new();
    while let Some(item) = within(stream.message()).await.unwrap() {
        items.push(item);
    }
    items
}

#[track_caller]
pub fn assert_code<T: std::fmt::Debug>(result: Result<T, Status>, code: Code) -> String {
    let status = result.expect_err("it should be refused");
    assert_eq!(status.code(), code, "{status}");
    status.message().to_owned()
}

/// Makes the frames of one spool.
#[derive(Clone)]
pub struct Spool {
    pub stream: [u8; 16],
    pub seq: u64,
    pub hash: Hash,
    pub clock_ns: u64,
    /// Bytes left in the segment: 0 begins one.
    pub room: u64,
    /// Shared by copies: where they go on differently, their frames begin a run.
    sealer: Arc<Mutex<Sealer>>,
}

impl Spool {
    pub fn new(stream: u8) -> Self {
        let sealer = Arc::new(Mutex::new(Sealer::new(1).unwrap()));
        Self { stream: [stream; 16], seq: 0, hash: [0; 32], clock_ns: 1_000_000_000, room: u64::MAX, sealer }
    }

    /// The next frame, with `events` that all belong to `session`.
    pub fn frame(&mut self, session: Option<[u8; 16]>, bodies: Vec<Body>) -> Vec<u8> {
        let mut events = Vec::new();
        for body in bodies {
            self.clock_ns += 1_000_000;
            let session = u32::from(session.is_some());
            events.push(Event { boot_ns: self.clock_ns, session, origin: None, body: Some(body) });
        }
        self.batch(Batch { sessions: session.iter().map(|s| s.to_vec()).collect(), events, resume: Vec::new() })
    }

    pub fn batch(&mut self, mut batch: Batch) -> Vec<u8> {
        self.seq += 1;
        let header = Header {
            stream_id: self.stream,
            boot_id: [9; 16],
            seq: self.seq,
            prev: self.hash,
            first_boot_ns: batch.events.first().map_or(0, |e| e.boot_ns),
            last_boot_ns: batch.events.last().map_or(0, |e| e.boot_ns),
            wall_offset_ns: WALL_OFFSET,
            events: 0,
        };
        let sealed = self.sealer.lock().unwrap().seal(header, &mut batch, self.room).unwrap();
        self.hash = sealed.hash;
        sealed.bytes
    }
}

pub fn session_id(n: u8) -> [u8; 16] {
    *uuid::Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0000 + u128::from(n)).as_bytes()
}

pub fn session_text(n: u8) -> String {
    uuid::Uuid::from_bytes(session_id(n)).to_string()
}

pub fn opened(operator: &str) -> Body {
    Body::SessionOpened(SessionOpened {
        operator: operator.into(),
        reason: "the database is down".into(),
        ttl_seconds: 600,
        deadline_boot_ns: 600_000_000_000,
        account: "breakglass".into(),
        ..SessionOpened::default()
    })
}

pub fn closed() -> Body {
    Body::SessionClosed(SessionClosed { by: "alice".into(), ..SessionClosed::default() })
}

pub fn process(pid: u32) -> Option<Process> {
    Some(Process { pid, start_ns: u64::from(pid) * 1000 })
}

pub fn exec(pid: u32, argv: &[&str]) -> Body {
    exec_bytes(pid, argv.iter().map(|a| a.as_bytes().to_vec()).collect())
}

pub fn exec_bytes(pid: u32, argv: Vec<Vec<u8>>) -> Body {
    Body::Exec(Exec {
        process: process(pid),
        exe: b"/usr/bin/x".to_vec(),
        cwd: b"/root".to_vec(),
        argv,
        ..Exec::default()
    })
}

pub fn exit(pid: u32, status: u32) -> Body {
    Body::Exit(Exit { process: process(pid), status, ..Exit::default() })
}

pub fn shows(terminal: u64, data: &str) -> Body {
    Body::TerminalOutput(TerminalOutput {
        terminal,
        index: 3,
        data: data.as_bytes().to_vec(),
        rows: 24,
        cols: 80,
        ..TerminalOutput::default()
    })
}
