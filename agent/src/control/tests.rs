//! The doors as an operator meets them: real sockets, real TLS, signatures by `ssh-keygen`.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use breakglass_api::{
    CONTROL_MESSAGE_MAX, GRANT_NAMESPACE,
    grant::{Claim, GrantText},
    v1::{
        Challenge, ChallengeRequest, CloseRequest, ControlRequest, ControlResponse, OpenRequest, ProofRefused,
        StatusRequest, control_request::Body as Request, control_response::Body as Answer,
    },
};
use prost::Message;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use super::{verifier::Identity, *};

mod codes;
mod doors;

const PATIENCE: Duration = Duration::from_secs(20);

/// Grants everything that is verified, and remembers.
#[derive(Default)]
struct Fake {
    opened: Mutex<Vec<(String, Source)>>,
    closed: Mutex<Vec<String>>,
    refused: Mutex<Vec<ProofRefused>>,
    logins: Mutex<Vec<v1::LoginNotice>>,
    stopped: Mutex<Vec<(v1::StopRequest, Peer)>>,
    alerts: Mutex<Vec<v1::Alert>>,
    unready: AtomicBool,
}

impl Sessions for Fake {
    async fn open(&self, permit: Permit, source: Source) -> Result<v1::Opened, Refusal> {
        let who = match permit {
            Permit::Signed(grant) => {
                if grant.terms.reason == "slow" {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                grant.signer.principal
            }
            Permit::Code(grant) => grant.operator(),
        };
        self.opened.lock().unwrap().push((who, source));
        Ok(v1::Opened { session: "s1".into(), ..v1::Opened::default() })
    }

    async fn ready(&self) -> Result<(), Refusal> {
        match self.unready.load(Ordering::Relaxed) {
            true => Err(Refusal::new("cannot-record", "no room")),
            false => Ok(()),
        }
    }

    async fn logged_in(&self, notice: v1::LoginNotice) {
        self.logins.lock().unwrap().push(notice);
    }

    async fn close(&self, by: CloseBy, _: Source) -> Result<v1::Closed, Refusal> {
        self.closed.lock().unwrap().push(format!("{by:?}").split(['(', ' ']).next().unwrap().to_owned());
        Ok(v1::Closed::default())
    }

    async fn stop(&self, request: v1::StopRequest, _: Source, peer: Peer) -> Result<v1::Stopping, Refusal> {
        self.stopped.lock().unwrap().push((request, peer));
        Ok(v1::Stopping::default())
    }

    async fn refused(&self, refused: ProofRefused) {
        self.refused.lock().unwrap().push(refused);
    }

    async fn alert(&self, alert: v1::Alert) {
        self.alerts.lock().unwrap().push(alert);
    }

    async fn status(&self, local: bool) -> v1::Status {
        v1::Status { state: if local { "local" } else { "remote" }.into(), ..v1::Status::default() }
    }
}

struct Bench {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    handle: ControlHandle,
    stop: watch::Sender<bool>,
}

impl Bench {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        enrol(dir.path());
        let key = dir.path().join("key");
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(&key), b"");
        let public = fs::read_to_string(dir.path().join("key.pub")).unwrap();
        fs::write(dir.path().join("allowed_signers"), format!("alice {public}")).unwrap();
        let (stop, stopped) = watch::channel(false);
        let fake = Arc::new(Fake::default());
        let handle =
            serve(options(dir.path()), Arc::clone(&fake), Arc::new(verifier(dir.path())), stopped).await.unwrap();
        Self { dir, fake, handle, stop }
    }

    async fn unix(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("run/control.sock")).await.unwrap()
    }

    async fn tls(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
        self.try_tls().await.unwrap()
    }

    async fn try_tls(&self) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(fs::read(self.dir.path().join("ca.der")).unwrap())).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.handle.address().unwrap()).await.unwrap();
        let name = ServerName::try_from("web1").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    fn sign(&self, challenge: &Challenge, change: impl FnOnce(&mut GrantText)) -> OpenRequest {
        let mut text = GrantText {
            claim: Claim {
                host_id: challenge.host_id.clone(),
                host_name: challenge.hostname.clone(),
                boot_id: challenge.boot_id.clone().try_into().unwrap(),
                nonce: challenge.nonce.clone(),
                operator: "alice".into(),
            },
            reason: "a test".into(),
            ticket: String::new(),
            ttl_seconds: 60,
            close_on_exit: false,
            client_time: "2026-01-31T23:59:59Z".into(),
        };
        change(&mut text);
        let grant_text = text.encode().unwrap().into_bytes();
        let key = self.dir.path().join("key");
        let sign = &mut Command::new("ssh-keygen");
        let signature = run(sign.args(["-q", "-Y", "sign", "-n", GRANT_NAMESPACE, "-f"]).arg(key), &grant_text);
        OpenRequest { grant_text, signature, ..OpenRequest::default() }
    }

    async fn recorded(&self, count: usize) -> Vec<ProofRefused> {
        let until = Instant::now() + PATIENCE;
        loop {
            let refused = self.fake.refused.lock().unwrap().clone();
            if refused.len() >= count {
                return refused;
            }
            assert!(Instant::now() < until, "recorded are only {refused:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn options(dir: &Path) -> Options {
    Options {
        socket: dir.join("run/control.sock"),
        listen: Some("127.0.0.1:0".parse().unwrap()),
        runtime: dir.join("run"),
        enrolment: dir.to_owned(),
    }
}

fn verifier(dir: &Path) -> Verifier {
    let identity = Identity {
        host_id: "host-1".into(),
        host_name: "web1".into(),
        boot_id: [7; 16],
        account: "bg".into(),
        account_uid: 4242,
    };
    let config = crate::config::Grant { allowed_signers: dir.join("allowed_signers"), ..Default::default() };
    Verifier::new(identity, &config, dir)
}

fn enrol(dir: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["web1".into()]).unwrap().self_signed(&key).unwrap();
    fs::write(dir.join("host.crt"), certificate.pem()).unwrap();
    fs::write(dir.join("ca.der"), certificate.der()).unwrap();
    fs::write(dir.join("host.key"), key.serialize_pem()).unwrap();
}

fn run(command: &mut Command, stdin: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

async fn receive<T: AsyncRead + Unpin>(stream: &mut T) -> Option<Answer> {
    let length = stream.read_u32().await.ok()?;
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).await.ok()?;
    ControlResponse::decode(bytes.as_slice()).unwrap().body
}

async fn ask<T: AsyncRead + AsyncWrite + Unpin>(stream: &mut T, request: Request) -> Answer {
    let body = ControlRequest { body: Some(request) }.encode_to_vec();
    stream.write_u32(body.len() as u32).await.unwrap();
    stream.write_all(&body).await.unwrap();
    stream.flush().await.unwrap();
    tokio::time::timeout(PATIENCE, receive(stream)).await.unwrap().expect("an answer")
}

async fn challenge<T: AsyncRead + AsyncWrite + Unpin>(stream: &mut T) -> Challenge {
    match ask(stream, Request::Challenge(ChallengeRequest::default())).await {
        Answer::Challenge(challenge) => challenge,
        other => panic!("{other:?}"),
    }
}

fn code(answer: Answer) -> String {
    match answer {
        Answer::Refused(refused) => refused.code,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn opens_over_both_doors_once_per_challenge() {
    let bench = Bench::start().await;
    let (mut unix, mut tls) = (bench.unix().await, bench.tls().await);
    for round in 0..2 {
        let asked = if round == 0 { challenge(&mut unix).await } else { challenge(&mut tls).await };
        assert_eq!((asked.account.as_str(), asked.valid_seconds), ("bg", 60));
        let request = bench.sign(&asked, |_| {});
        // A challenge is not tied to the connection that it came over.
        let answer = ask(&mut tls, Request::Open(request.clone())).await;
        let Answer::Opened(opened) = answer else { panic!("{answer:?}") };
        assert!(opened.session == "s1" && opened.agent_us > 0);
        assert_eq!(code(ask(&mut unix, Request::Open(request)).await), "replayed-nonce");
    }
    assert_eq!(bench.fake.opened.lock().unwrap().len(), 2);
    let Answer::Status(near) = ask(&mut unix, Request::Status(StatusRequest {})).await else { panic!() };
    let Answer::Status(far) = ask(&mut tls, Request::Status(StatusRequest {})).await else { panic!() };
    assert_eq!((near.state.as_str(), far.state.as_str()), ("local", "remote"));
}

#[tokio::test]
async fn refusals_say_why_and_are_recorded() {
    let bench = Bench::start().await;
    let mut stream = bench.unix().await;
    let asked = challenge(&mut stream).await;
    let long = bench.sign(&asked, |text| text.ttl_seconds = 1_000_000);
    assert_eq!(code(ask(&mut stream, Request::Open(long)).await), "ttl-too-long");
    let mut damaged = bench.sign(&asked, |_| {});
    let near_the_end = damaged.signature.len() - 50;
    damaged.signature[near_the_end] ^= 1;
    assert_eq!(code(ask(&mut stream, Request::Open(damaged)).await), "bad-signature");
    assert_eq!(code(ask(&mut stream, Request::Open(OpenRequest::default())).await), "bad-text");
    let recorded = bench.recorded(3).await;
    let long = recorded.iter().find(|r| r.code == "ttl-too-long").unwrap();
    assert_eq!((long.claimed_operator.as_str(), long.claimed_reason.as_str()), ("alice", "a test"));
    assert!(long.key_fingerprint.starts_with("SHA256:") && long.source.starts_with("unix:pid="));
    assert!(bench.fake.opened.lock().unwrap().is_empty());
}

#[tokio::test]
async fn oversized_and_garbage_are_answered_and_then_the_connection_ends() {
    let bench = Bench::start().await;
    for (bytes, expected) in [
        (&(CONTROL_MESSAGE_MAX as u32 + 1).to_be_bytes()[..], "too-large"),
        (b"GET / HTTP/1.1\r\n\r\n", "too-large"),
        (b"\0\0\0\x04\xff\xff\xff\xff", "bad-request"),
    ] {
        let mut stream = bench.tls().await;
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(code(receive(&mut stream).await.unwrap()), expected);
        assert!(receive(&mut stream).await.is_none());
    }
    let mut stream = bench.unix().await;
    stream.write_all(&[0; 4]).await.unwrap();
    assert_eq!(code(receive(&mut stream).await.unwrap()), "bad-request");
    challenge(&mut stream).await;
}

#[tokio::test]
async fn who_may_close_without_a_signature() {
    let bench = Bench::start().await;
    let empty = || Request::Close(CloseRequest::default());
    assert_eq!(code(ask(&mut bench.tls().await, empty()).await), "not-allowed");
    let answer = ask(&mut bench.unix().await, empty()).await;
    if nix::unistd::geteuid().is_root() {
        assert!(matches!(answer, Answer::Closed(_)), "{answer:?}");
        assert_eq!(*bench.fake.closed.lock().unwrap(), ["Root"]);
    } else {
        assert_eq!(code(answer), "not-allowed");
    }
}

#[tokio::test]
async fn waiting_connections_do_not_keep_an_operator_out() {
    let bench = Bench::start().await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(TcpStream::connect(bench.handle.address().unwrap()).await.unwrap());
    }
    // Those that have only come are given their time; whoever is turned away meanwhile tries again, as clients do.
    let until = Instant::now() + PATIENCE;
    let mut stream = loop {
        match bench.try_tls().await {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    challenge(&mut stream).await;
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_stop_what_has_begun_nor_does_shutdown() {
    let bench = Bench::start().await;
    let mut gone = bench.unix().await;
    let asked = challenge(&mut gone).await;
    let request = ControlRequest { body: Some(Request::Open(bench.sign(&asked, |t| t.reason = "slow".into()))) };
    gone.write_all(&[&(request.encoded_len() as u32).to_be_bytes()[..], &request.encode_to_vec()].concat())
        .await
        .unwrap();
    drop(gone);

    let mut waiting = bench.unix().await;
    let asked = challenge(&mut waiting).await;
    let signed = bench.sign(&asked, |t| t.reason = "slow".into());
    let mut idle = bench.unix().await;
    challenge(&mut idle).await;
    let answer = tokio::spawn(async move { ask(&mut waiting, Request::Open(signed)).await });
    // The request must have been read before the doors close.
    let until = Instant::now() + PATIENCE;
    while bench.fake.opened.lock().unwrap().is_empty() {
        assert!(Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.stop.send(true).unwrap();
    assert!(matches!(answer.await.unwrap(), Answer::Opened(_)));
    assert!(receive(&mut idle).await.is_none());
    let socket = bench.dir.path().join("run/control.sock");
    tokio::time::timeout(PATIENCE, bench.handle.stopped()).await.unwrap();
    assert_eq!(bench.fake.opened.lock().unwrap().len(), 2);
    assert!(!socket.exists());
}
