//! Notices against a webhook that is made up, over real TLS.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use breakglass_api::v1::{Alert, Exit, ProofRefused, SessionClosed, SessionOpened, event::Body};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{
    bound::{Bound, PER_MINUTE},
    message::Kind,
    settings::{Hook, Notices as Settings},
    *,
};

const SECRET: &str = "0123456789abcdef";

fn event(body: Body) -> Event {
    Event { body: Some(body), ..Event::default() }
}

fn opened() -> Event {
    event(Body::SessionOpened(SessionOpened {
        operator: "alice".into(),
        reason: "database \"down\"\n".into(),
        ttl_seconds: 600,
        ..SessionOpened::default()
    }))
}

fn refused(count: u32) -> Event {
    event(Body::ProofRefused(ProofRefused { code: "unknown-signer".into(), count, ..ProofRefused::default() }))
}

/// What came in: head and body of each request.
type Seen = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A webhook that answers with these codes in turn, the last for ever.
async fn webhook(dir: &Path, codes: &'static [&'static str]) -> (Hook, Seen) {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(dir.join("ca.pem"), certificate.pem()).unwrap();
    std::fs::write(dir.join("secret"), format!("{SECRET}\n")).unwrap();
    std::fs::set_permissions(dir.join("secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let secret = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(certificate.der().to_vec())], secret)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/hook", listener.local_addr().unwrap().port());
    let seen = Seen::default();
    let notes = Arc::clone(&seen);
    tokio::spawn(async move {
        let mut codes = codes.iter().cycle().take(codes.len()).chain(std::iter::repeat(codes.last().unwrap()));
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut bytes = Vec::new();
            while !is_whole(&bytes) && stream.read_buf(&mut bytes).await.unwrap_or(0) > 0 {}
            let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
            notes.lock().unwrap().push((String::from_utf8(bytes[..at].to_vec()).unwrap(), bytes[at + 4..].to_vec()));
            let code = codes.next().unwrap();
            let _ = stream.write_all(format!("HTTP/1.1 {code} x\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (Hook { url, secret: dir.join("secret"), ca: Some(dir.join("ca.pem")) }, seen)
}

fn is_whole(bytes: &[u8]) -> bool {
    let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&bytes[..at]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    bytes.len() >= at + 4 + length
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < limit, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn start(hook: Hook) -> Notices {
    let settings = Settings { syslog: false, webhook: Some(hook) };
    let (notices, error) = Notices::start(&settings, Origin { host_id: "id-1".into(), host: "web1".into() });
    assert_eq!(error, None);
    notices
}

#[tokio::test]
async fn a_notice_is_signed_and_tried_again_until_it_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (hook, seen) = webhook(dir.path(), &["503", "500", "204"]).await;
    let notices = start(hook);
    let session = Uuid::now_v7();
    notices.see(&opened(), Some(session));
    notices.see(&event(Body::Exit(Exit::default())), Some(session));
    notices.settle(Duration::from_secs(20)).await;
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 3, "twice refused, then taken, and no more");
    let header = |head: &str, name: &str| -> String {
        head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap_or_default().to_owned()
    };
    let ids: Vec<_> = seen.iter().map(|(head, _)| header(head, "breakglass-id")).collect();
    assert!(ids.iter().all(|id| *id == ids[0] && !id.is_empty()), "{ids:?}");
    let (head, body) = &seen[2];
    let signed = header(head, "breakglass-signature");
    let time: i64 = signed.strip_prefix("t=").and_then(|rest| rest.split_once(',')).unwrap().0.parse().unwrap();
    assert_eq!(signed, webhook::signature(SECRET.as_bytes(), time, body));
    assert_ne!(signed, webhook::signature(b"another secret..", time, body));
    let object: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!((object["kind"].as_str(), object["host"].as_str()), (Some("session-opened"), Some("web1")));
    assert_eq!(object["session"], session.to_string());
    assert_eq!(object["reason"], "database \"down\"\n");
}

#[tokio::test]
async fn what_is_not_taken_is_given_up_on_and_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (hook, seen) = webhook(dir.path(), &["500"]).await;
    let notices = start(hook);
    let started = Instant::now();
    for _ in 0..10_000 {
        notices.see(&opened(), None);
    }
    assert!(started.elapsed() < Duration::from_secs(2), "showing an event waits for nothing: {:?}", started.elapsed());
    until("attempts at the first", || seen.lock().unwrap().len() > webhook::PAUSES.len()).await;
    let id = |at: usize| {
        seen.lock().unwrap()[at].0.lines().find(|line| line.starts_with("breakglass-id")).map(str::to_owned)
    };
    until("the second", || seen.lock().unwrap().len() > 1 + webhook::PAUSES.len()).await;
    assert_eq!(id(0), id(webhook::PAUSES.len()));
    assert_ne!(id(0), id(1 + webhook::PAUSES.len()), "after its attempts the next one's turn comes");
}

#[tokio::test]
async fn an_unusable_webhook_is_said_and_the_rest_works() {
    let dir = tempfile::tempdir().unwrap();
    let (good, _) = webhook(dir.path(), &["204"]).await;
    std::fs::write(dir.path().join("short"), "short").unwrap();
    std::fs::set_permissions(dir.path().join("short"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(dir.path().join("open"), SECRET).unwrap();
    std::fs::set_permissions(dir.path().join("open"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let at = |name: &str| dir.path().join(name);
    for (hook, expected) in [
        (Hook { url: "https://".into(), ..good.clone() }, "notice.webhook.url"),
        (Hook { url: "http://localhost/x".into(), ..good.clone() }, "https://HOST/PATH"),
        (Hook { secret: at("none"), ..good.clone() }, "notice.webhook.secret"),
        (Hook { secret: at("short"), ..good.clone() }, "wanted are 16"),
        (Hook { secret: at("open"), ..good.clone() }, "chmod 600"),
        (Hook { ca: Some(at("short")), ..good.clone() }, "notice.webhook.ca"),
    ] {
        let settings = Settings { syslog: false, webhook: Some(hook) };
        let (notices, error) = Notices::start(&settings, Origin::default());
        let error = error.expect(expected);
        assert!(error.contains(expected), "{error}");
        notices.see(&opened(), None);
        notices.settle(Duration::from_secs(10)).await;
        assert_eq!(notices.pending.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test]
async fn a_secret_or_certificates_that_are_a_trap_are_said() {
    use crate::regular::tests::{trap, untrapped};
    let dir = tempfile::tempdir().unwrap();
    let (good, _) = webhook(dir.path(), &["204"]).await;
    let path = dir.path().join("fifo");
    trap(&path);
    for hook in [Hook { secret: path.clone(), ..good.clone() }, Hook { ca: Some(path), ..good.clone() }] {
        let error = untrapped(move || webhook::Webhook::new(&hook, Origin::default()).map(drop)).unwrap_err();
        assert!(error.contains("not a regular file"), "{error}");
    }
}

/// The recorder shows what it made durable, and the system's log has it.
#[tokio::test]
async fn what_is_recorded_reaches_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = std::os::unix::net::UnixDatagram::bind(dir.path().join("log")).unwrap();
    log.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let settings = Settings { syslog: true, webhook: None };
    let origin = Origin { host_id: "id-1".into(), host: "web1".into() };
    let (notices, error) = Notices::start_at(&settings, origin, &dir.path().join("log"));
    assert_eq!(error, None);
    let limits = crate::spool::Limits { max_bytes: 64 << 20, segment_bytes: 1 << 20 };
    let (spool, recovery) = crate::spool::Spool::open(&dir.path().join("spool"), limits).unwrap();
    let recorder =
        crate::recorder::Recorder::start(None, spool, &recovery, &[], crate::recorder::Options::default()).unwrap();
    recorder.tell(notices.clone());
    let session = Uuid::now_v7();
    for event in [event(Body::Exit(Exit::default())), opened(), refused(3)] {
        recorder.record(Some(session), event.body.unwrap()).await.unwrap();
    }
    notices.settle(Duration::from_secs(20)).await;
    let line = || {
        let mut bytes = [0; 2048];
        let length = log.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    let first = line();
    assert!(
        first.starts_with("<81>breakglass[")
            && first.contains(&format!("session-opened host=\"web1\" session={session}")),
        "{first}"
    );
    assert!(line().contains("proof-refused"), "in order, and nothing of the program's end");
    recorder.stop().await;
}

#[test]
fn floods_are_bounded_and_counted_and_openings_are_not() {
    let mut bound = Bound::default();
    let now = Instant::now();
    let mut told = 0;
    for _ in 0..1000 {
        let mut notice = message::of(&refused(7), None).unwrap();
        told += u32::from(bound.admit(&mut notice, now));
    }
    assert_eq!(told, PER_MINUTE);
    let mut alert = message::of(&event(Body::Alert(Alert { code: "x".into(), ..Alert::default() })), None).unwrap();
    assert!(bound.admit(&mut alert, now), "another kind");
    for _ in 0..1000 {
        assert!(bound.admit(&mut message::of(&opened(), None).unwrap(), now));
        assert!(
            bound.admit(&mut message::of(&event(Body::SessionClosed(SessionClosed::default())), None).unwrap(), now)
        );
    }
    let mut later = message::of(&refused(1), None).unwrap();
    assert!(bound.admit(&mut later, now + Duration::from_secs(60)));
    assert_eq!(later.more, 7 * (1000 - u64::from(PER_MINUTE)));
}

#[test]
fn a_line_is_one_line() {
    let notice = message::of(&opened(), None).unwrap();
    assert_eq!(notice.kind, Kind::Opened);
    let line = notice.line("web1");
    assert!(!line.contains('\n') && line.contains(r#"reason="database \"down\"\n""#), "{line}");
    assert!(line.starts_with("session-opened host=\"web1\"") && !line.contains("count="), "{line}");
    assert!(message::of(&refused(12), None).unwrap().line("web1").ends_with("count=12"));
    assert!(message::of(&event(Body::Exit(Exit::default())), None).is_none());
}
