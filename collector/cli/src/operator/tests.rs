//! The commands against a host that is made up, with real signatures and real TLS, and an `ssh` that only takes notes.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

use breakglass_api::v1::{ControlRequest, ControlResponse, Refused, Status};
use clap::Parser;
use prost::Message;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixListener},
};

use super::{status::status_text, *};

mod carried;
mod several;

const HOST_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g";

/// What the made-up host does with a request that is not for a challenge.
type Answers = Box<dyn FnMut(&Request) -> Option<Answer> + Send>;

struct Host {
    dir: tempfile::TempDir,
    requests: Arc<Mutex<Vec<Request>>>,
    config: Config,
}

#[derive(Parser)]
enum Line {
    Cosign(CosignArgs),
    Open(OpenArgs),
    Close(CloseArgs),
    Status(StatusArgs),
    Prepare(PrepareArgs),
}

impl Host {
    /// Serves a socket and TLS. An answer of `None` ends the connection.
    async fn start(answers: impl FnMut(&Request) -> Option<Answer> + Send + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(path("key")));
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let text = format!(
            "[operator]\nidentity = \"key\"\nname = \"alice\"\nca = \"ca.crt\"\n\
             [hosts.web1]\naddress = \"{address}\"\nssh = \"ssh.example.org:2222\"\n\
             [hosts.other]\naddress = \"{address}\"\n[hosts.local]\nsocket = \"control.sock\"\n\
             [hosts.gone]\nsocket = \"gone.sock\"\n",
        );
        let config = Config::parse(&path("config.toml"), &text, None).unwrap();
        fs::write(path("ssh"), format!("#!/bin/sh\n[ \"$1\" = -Q ] && exit 1\nprintf '%s\\n' \"$@\" > {}\nfor a; do case $a in UserKnownHostsFile=*) cat \"${{a#*=}}\" > {};; esac; done\nexit 7\n", path("args").display(), path("known").display())).unwrap();
        fs::set_permissions(path("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let answers: Arc<Mutex<Answers>> = Arc::new(Mutex::new(Box::new(answers)));
        let unix = UnixListener::bind(path("control.sock")).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(certificate(dir.path()));
        let (seen, decide) = (Arc::clone(&requests), Arc::clone(&answers));
        tokio::spawn(async move {
            while let Ok((stream, _)) = unix.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&seen), Arc::clone(&decide)));
            }
        });
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                let (acceptor, seen, decide) = (acceptor.clone(), Arc::clone(&seen), Arc::clone(&answers));
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, seen, decide).await;
                    }
                });
            }
        });
        Self { dir, requests, config }
    }

    async fn run(&self, line: &str) -> Result<u8, Failure> {
        let tools =
            Tools { ssh: self.dir.path().join("ssh").into(), interactive: false, kept: None, ..Tools::default() };
        // The whole command takes this one for all of them.
        let (flags, words): (Vec<_>, Vec<_>) = line.split(' ').partition(|word| *word == "--json");
        let json = !flags.is_empty();
        match Line::try_parse_from(std::iter::once("x").chain(words)).unwrap() {
            Line::Open(args) => open(&OpenArgs { json, ..args }, &self.config, &tools).await,
            Line::Cosign(args) => cosign::cosign(&args, &self.config, &tools, json).await,
            Line::Close(args) => close(&CloseArgs { json, ..args }, &self.config, &tools).await,
            Line::Status(args) => status::status(&StatusArgs { json, ..args }, &self.config).await,
            Line::Prepare(args) => prepare::prepare(&args, &self.config, &tools, json).await,
        }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    fn opens(&self) -> Vec<OpenRequest> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter_map(|r| if let Request::Open(open) = r { Some(open.clone()) } else { None }).collect()
    }
}

/// A certificate for web1; the CA is itself.
fn certificate(dir: &Path) -> Arc<rustls::ServerConfig> {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["web1".into()]).unwrap().self_signed(&key).unwrap();
    fs::write(dir.join("ca.crt"), certificate.pem()).unwrap();
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    let secret = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .unwrap();
    Arc::new(config)
}

async fn serve<T: AsyncRead + AsyncWrite + Unpin>(
    mut stream: T,
    seen: Arc<Mutex<Vec<Request>>>,
    answers: Arc<Mutex<Answers>>,
) {
    while let Ok(length) = stream.read_u32().await {
        let mut bytes = vec![0; length as usize];
        stream.read_exact(&mut bytes).await.unwrap();
        let request = ControlRequest::decode(bytes.as_slice()).unwrap().body.unwrap();
        let answer = match &request {
            Request::Challenge(_) => {
                let own = answers.lock().unwrap()(&request).filter(|answer| matches!(answer, Answer::Challenge(_)));
                Some(own.unwrap_or_else(|| Answer::Challenge(challenge_of_host())))
            }
            other => answers.lock().unwrap()(other),
        };
        seen.lock().unwrap().push(request);
        let Some(answer) = answer else { return };
        let body = ControlResponse { body: Some(answer) }.encode_to_vec();
        stream.write_u32(body.len() as u32).await.unwrap();
        stream.write_all(&body).await.unwrap();
        stream.flush().await.unwrap();
    }
}

fn challenge_of_host() -> Challenge {
    Challenge {
        host_id: "host-1".into(),
        hostname: "web1".into(),
        boot_id: vec![7; 16],
        nonce: vec![1; 56],
        valid_seconds: 60,
        max_ttl_seconds: 3600,
        default_ttl_seconds: 1800,
        account: "bg".into(),
        ..Challenge::default()
    }
}

fn opened() -> Option<Answer> {
    Some(Answer::Opened(Opened {
        session: "s1".into(),
        account: "bg".into(),
        ttl_seconds: 600,
        ssh_host_keys: vec![HOST_KEY.into()],
        ssh_port: 22,
        ..Opened::default()
    }))
}

fn refused(code: &str) -> Option<Answer> {
    Some(Answer::Refused(Refused { code: code.into(), message: "because".into() }))
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn open_asks_for_what_was_said_and_signs_it() {
    let host = Host::start(|_| opened()).await;
    assert_eq!(
        host.run("open local --reason broken --ticket INC-1 --ttl 10m --close-on-exit --no-ssh").await.unwrap(),
        0
    );
    assert_eq!(host.run("open web1 --reason broken --no-ssh").await.unwrap(), 0);
    let opens = host.opens();
    let text = GrantText::parse(&opens[0].grant_text).unwrap();
    assert_eq!((text.claim.operator.as_str(), text.claim.host_id.as_str()), ("alice", "host-1"));
    assert_eq!((text.reason.as_str(), text.ticket.as_str()), ("broken", "INC-1"));
    assert_eq!((text.ttl_seconds, text.close_on_exit), (600, true));
    assert_eq!(GrantText::parse(&opens[1].grant_text).unwrap().ttl_seconds, 1800, "the host's default");

    let path = |name: &str| host.dir.path().join(name);
    fs::write(path("signers"), format!("alice {}", host.read("key.pub"))).unwrap();
    for request in opens {
        fs::write(path("text"), &request.grant_text).unwrap();
        fs::write(path("sig"), &request.signature).unwrap();
        run(Command::new("ssh-keygen")
            .args(["-Y", "verify", "-n", GRANT_NAMESPACE, "-I", "alice", "-f"])
            .arg(path("signers"))
            .arg("-s")
            .arg(path("sig"))
            .stdin(fs::File::open(path("text")).unwrap()));
    }
}

#[tokio::test]
async fn open_goes_on_into_ssh() {
    let host = Host::start(|_| opened()).await;
    assert_eq!(host.run("open web1 --reason broken -- uptime -p").await.unwrap(), 7, "ssh's own exit code");
    let args = host.read("args");
    for expected in
        ["-p\n2222\n", "StrictHostKeyChecking=yes\n", "IdentitiesOnly=yes\n", "--\nbg@ssh.example.org\nuptime\n-p\n"]
    {
        assert!(args.contains(expected), "{expected:?} is not in {args}");
    }
    assert!(args.contains(&format!("-i\n{}\n", host.dir.path().join("key").display())));
    assert_eq!(host.read("known"), format!("breakglass-s1 {HOST_KEY}\n"));
}

#[tokio::test]
async fn what_goes_wrong_has_its_exit_code() {
    let host = Host::start(|_| refused("ttl-too-long")).await;
    let code = |failure: Result<u8, Failure>| {
        let failure = failure.unwrap_err();
        (failure.exit_code(), failure.to_string())
    };
    let (exit, message) = code(host.run("open web1 --reason x").await);
    assert_eq!((exit, message.as_str()), (3, "refused by web1: because (ttl-too-long)"));
    assert!(!host.dir.path().join("args").exists(), "no ssh after a refusal");
    let (exit, message) = code(host.run("open other --reason x").await);
    assert!(exit == 5 && message.contains("\"other\""), "the certificate is for web1: {message}");
    let (exit, message) = code(host.run("open gone --reason x").await);
    assert!(exit == 5 && message.contains("is breakglass-agent running"), "{message}");
    assert_eq!(code(host.run("open nowhere --reason x").await).0, 2);
    assert_eq!(code(host.run("open web1 --reason x -i /nonexistent").await).0, 2);
}

#[tokio::test]
async fn a_broken_connection_is_made_anew() {
    let mut broken = 0;
    let host = Host::start(move |request| {
        broken += u32::from(!matches!(request, Request::Challenge(_)));
        if broken < 3 { None } else { opened() }
    })
    .await;
    assert_eq!(host.run("open web1 --reason x --no-ssh").await.unwrap(), 0);
    let opens = host.opens();
    assert!(opens.len() == 3 && opens.iter().all(|open| *open == opens[0]), "the same request each time");

    let mut first = true;
    let host = Host::start(move |request| match request {
        Request::Challenge(_) => None,
        _ if std::mem::take(&mut first) => None,
        _ => refused("replayed-nonce"),
    })
    .await;
    let lost = host.run("open web1 --reason x --no-ssh").await.unwrap_err();
    assert!(lost.exit_code() == 1 && lost.to_string().contains("its answer was lost"), "{lost}");
    let grant = host.dir.path().join("grant").display().to_string();
    assert_eq!(host.run(&format!("prepare web1 --host-id h --reason x --output {grant}")).await.unwrap(), 0);
    let mut first = true;
    let taken = Host::start(move |request| match request {
        Request::Challenge(_) => None,
        _ if std::mem::take(&mut first) => None,
        _ => refused("used-grant"),
    })
    .await;
    let lost = taken.run(&format!("open web1 --grant {grant} --no-ssh")).await.unwrap_err();
    assert!(lost.exit_code() == 1 && lost.to_string().contains("its answer was lost"), "{lost}");
    let host = Host::start(|_| None).await;
    assert_eq!(host.run("open web1 --reason x --no-ssh").await.unwrap_err().exit_code(), 5);
}

#[tokio::test]
async fn a_quorum_is_asked_for_and_carried() {
    let host = Host::start(|request| match request {
        Request::Challenge(_) => Some(Answer::Challenge(Challenge { required_signers: 2, ..challenge_of_host() })),
        _ => opened(),
    })
    .await;
    let path = |name: &str| host.dir.path().join(name).display().to_string();
    let missing = host.run(&format!("open web1 --reason broken --no-ssh --save-request {}", path("request"))).await;
    assert!(missing.unwrap_err().to_string().contains("--cosignature"), "nobody is there to paste");
    let request = host.read("request");
    assert!(host.run(&format!("cosign --operator bob {}", request.trim())).await.is_ok());
    let own = host.run(&format!("cosign {}", request.trim())).await.unwrap_err();
    assert!(own.exit_code() == 2 && own.to_string().contains("own request"), "{own}");

    let text = cosign::saved_request(path("request").as_ref()).unwrap();
    let signature =
        sign::sign("ssh-keygen".as_ref(), path("key").as_ref(), "breakglass-cosign@v1", &text).await.unwrap();
    let cosignature = breakglass_api::v1::Cosignature { principal: "bob".into(), signature };
    let line = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, cosignature.encode_to_vec());
    fs::write(path("bob"), format!("breakglass-cosignature:{line}\n")).unwrap();
    let again = format!("open web1 --no-ssh --request {} --cosignature {}", path("request"), path("bob"));
    assert_eq!(host.run(&again).await.unwrap(), 0);
    let open = host.opens().pop().unwrap();
    assert_eq!(open.grant_text, text.into_bytes(), "what was co-signed is what is asked for");
    assert_eq!(open.cosignatures, [cosignature]);
}

#[tokio::test]
async fn close_signs_unless_root_is_at_the_socket() {
    let host = Host::start(|_| Some(Answer::Closed(Closed { session: "s1".into(), ..Closed::default() }))).await;
    assert_eq!(host.run("close web1 --session s1").await.unwrap(), 0);
    assert_eq!(host.run("close local").await.unwrap(), 0);
    let requests = host.requests.lock().unwrap();
    let closes: Vec<_> =
        requests.iter().filter_map(|r| if let Request::Close(close) = r { Some(close) } else { None }).collect();
    assert_eq!(CloseText::parse(&closes[0].close_text).unwrap().session, "s1");
    assert_eq!(closes[1].signature.is_empty(), nix::unistd::geteuid().is_root());
}

#[tokio::test]
async fn status_is_harmless_to_print() {
    let status =
        Status { state: "open\x1b[2J".into(), session: "s1".into(), remaining_seconds: 90, ..Status::default() };
    let text = status_text(&status);
    assert!(text.contains("1m 30s") && !text.contains('\x1b'), "{text}");
    let host = Host::start(move |_| Some(Answer::Status(status.clone()))).await;
    assert_eq!(host.run("status web1").await.unwrap(), 0);
    assert_eq!(host.run("status local --json").await.unwrap(), 0);
}
