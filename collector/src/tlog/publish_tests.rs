use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use hyper::Uri;
use tokio::net::TcpListener;

use super::*;
use crate::tlog::client;
use crate::tlog::disk::{OsDisk, create_dirs};
use crate::tlog::http;
use crate::tlog::log::Paths;
use crate::tlog::note::{KeyType, NoteKey};
use crate::tlog::witness::server::routes;
use crate::tlog::witness::state;

struct Bench {
    dir: tempfile::TempDir,
    key: NoteKey,
    stop: watch::Sender<bool>,
}

impl Bench {
    fn new() -> Self {
        let key = NoteKey::generate("log.example", KeyType::Note).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), key, stop: watch::Sender::default() }
    }

    async fn log(&self) -> Arc<Log> {
        Log::open(Arc::new(OsDisk), Paths::new(&self.dir.path().join("log")), self.key.clone()).await.unwrap()
    }

    async fn serve(&self, router: Router) -> Uri {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(http::serve(listener, router, self.stop.subscribe()));
        url
    }

    /// A real witness that knows the log.
    async fn witness(&self, name: &str) -> Witness {
        let key = NoteKey::generate(name, KeyType::Cosignature).unwrap();
        let path = self.dir.path().join(name);
        create_dirs(&OsDisk, &path).unwrap();
        let logs = [("log.example".to_owned(), vec![self.key.public().clone()])].into();
        let witness = state::Witness::open(Arc::new(OsDisk), &path, key.clone(), logs).unwrap();
        Witness::new(key.public().clone(), self.serve(routes(Arc::new(witness))).await)
    }

    /// Something that answers always the same.
    async fn stub(&self, name: &str, status: StatusCode, body: &'static str) -> Witness {
        let key = NoteKey::generate(name, KeyType::Cosignature).unwrap();
        let answer = move |_: Bytes| async move { (status, [("content-type", "text/x.tlog.size")], body) };
        Witness::new(key.public().clone(), self.serve(Router::new().route("/add-checkpoint", post(answer))).await)
    }

    /// An address where nobody is.
    async fn absent(&self, name: &str) -> Witness {
        let key = NoteKey::generate(name, KeyType::Cosignature).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        Witness::new(key.public().clone(), url.parse().unwrap())
    }
}

fn publisher(log: &Arc<Log>, witnesses: Vec<Witness>, quorum: usize) -> Publisher {
    Publisher::new(log.clone(), client::http().unwrap(), witnesses, quorum)
}

async fn signatures(log: &Arc<Log>) -> usize {
    let note = log.checkpoint().await.unwrap().unwrap();
    String::from_utf8(note).unwrap().matches("— ").count()
}

#[tokio::test]
async fn a_quorum_is_awaited_and_every_cosignature_served() {
    let bench = Bench::new();
    let log = bench.log().await;
    let witnesses = vec![bench.witness("w1").await, bench.witness("w2").await, bench.absent("w3").await];
    let keys: Vec<_> = witnesses.iter().map(|witness| witness.key().clone()).collect();
    let mut publisher = publisher(&log, witnesses, 2);
    for size in 1..4 {
        log.append(&[vec![size]]).await.unwrap();
        publisher.round().await;
        let note = log.checkpoint().await.unwrap().unwrap();
        let checkpoint = SignedCheckpoint::parse(&note).unwrap();
        assert_eq!(checkpoint.size(), u64::from(size));
        assert_eq!(checkpoint.verify(&keys).unwrap().len(), 2);
    }
    let status = publisher.status().borrow().clone();
    assert_eq!((status.leaves, status.signed_size, status.published_size, status.cosignatures), (3, 3, 3, 2));
    assert_eq!((status.witnesses[0].cosigned_size, &status.witnesses[1].error), (3, &None));
    assert!(status.witnesses[2].error.as_ref().unwrap().contains("cannot be reached"), "{status:?}");
    assert!((1..3).contains(&status.witnesses[2].failures), "it sits out rounds after a failure: {status:?}");
    let kept: Status = serde_json::from_slice(&std::fs::read(log.paths().status()).unwrap()).unwrap();
    assert_eq!(kept, status);
}

#[tokio::test]
async fn without_its_quorum_nothing_is_served_and_ingest_goes_on() {
    let bench = Bench::new();
    let log = bench.log().await;
    let absent = bench.absent("w1").await;
    let mut publisher = publisher(&log, vec![absent], 1);
    for leaf in 0..3 {
        assert_eq!(log.append(&[vec![leaf]]).await.unwrap(), [u64::from(leaf)]);
        publisher.round().await;
    }
    assert_eq!(log.checkpoint().await.unwrap(), None);
    assert_eq!(log.signed().unwrap().size, 3);
    assert_eq!(publisher.status().borrow().published_size, 0);
}

#[tokio::test]
async fn a_restart_learns_the_witness_size_and_keeps_cosignatures() {
    let bench = Bench::new();
    let witness = bench.witness("w1").await;
    let again = || Witness::new(witness.key().clone(), witness_url(&witness));
    let log = bench.log().await;
    log.append(&[b"a".to_vec(), b"b".to_vec()]).await.unwrap();
    publisher(&log, vec![again()], 0).round().await;
    assert_eq!(signatures(&log).await, 2);
    // What was published is taken up, even though nobody answers now.
    let absent = Witness::new(witness.key().clone(), witness_url(&bench.absent("x").await));
    let mut second = publisher(&log, vec![absent], 0);
    second.round().await;
    assert_eq!(signatures(&log).await, 2);
    assert_eq!(second.status().borrow().cosignatures, 1);
    // One that knows nothing is told the size by the witness.
    let fresh_status = {
        log.append(&[b"c".to_vec()]).await.unwrap();
        let mut fresh = publisher(&log, vec![again()], 1);
        fresh.round().await;
        fresh.status().borrow().clone()
    };
    assert_eq!((fresh_status.published_size, fresh_status.witnesses[0].cosigned_size), (3, 3));
}

fn witness_url(witness: &Witness) -> Uri {
    witness.url().clone()
}

#[tokio::test]
async fn every_wrong_answer_is_named_and_none_counts() {
    let bench = Bench::new();
    let log = bench.log().await;
    log.append(&[b"a".to_vec()]).await.unwrap();
    let long: &'static str = Box::leak("x".repeat(100_000).into_boxed_str());
    let cases = [
        (StatusCode::NOT_FOUND, "", "does not know this log"),
        (StatusCode::FORBIDDEN, "no\x1b[2J", "right key of this log? It said: no [2J"),
        (StatusCode::UNPROCESSABLE_ENTITY, "no", "another history"),
        (StatusCode::CONFLICT, "7\n", "has cosigned 7 leaves of this log, which has 1"),
        (StatusCode::CONFLICT, "0\n", "another history"),
        (StatusCode::CONFLICT, "seven\n", "409"),
        (StatusCode::OK, "", "without a valid cosignature"),
        (StatusCode::OK, "— w AAAAAAAA\n", "without a valid cosignature"),
        (StatusCode::OK, long, "cannot be reached"),
        (StatusCode::TOO_MANY_REQUESTS, "", "429"),
        (StatusCode::FOUND, "", "302"),
    ];
    for (number, (status, body, words)) in cases.into_iter().enumerate() {
        let witness = bench.stub(&format!("w{number}"), status, body).await;
        let mut publisher = publisher(&log, vec![witness], 0);
        publisher.round().await;
        let known = publisher.status().borrow().clone();
        let error = known.witnesses[0].error.clone().unwrap();
        assert!(error.contains(words) && error.len() < 600, "{status} {words}: {error}");
        assert_eq!((known.published_size, known.cosignatures), (1, 0), "{status}");
    }
}

#[tokio::test]
async fn a_witness_that_forgets_no_longer_counts() {
    let bench = Bench::new();
    let log = bench.log().await;
    let mut witness = bench.witness("w1").await;
    witness.has_cosigned(1);
    let mut publisher = publisher(&log, vec![witness], 0);
    for leaf in 0..2 {
        log.append(&[vec![leaf]]).await.unwrap();
        publisher.round().await;
    }
    let status = publisher.status().borrow().clone();
    assert!(status.witnesses[0].error.as_ref().unwrap().contains("has forgotten"), "{status:?}");
    assert_eq!((status.witnesses[0].failures, status.cosignatures, status.published_size), (1, 0, 2));
}

#[tokio::test]
async fn a_slow_witness_delays_neither_publication_nor_appending() {
    let bench = Bench::new();
    let log = bench.log().await;
    let asked = Arc::new(AtomicBool::new(false));
    let hang = {
        let asked = asked.clone();
        move || {
            asked.store(true, Ordering::SeqCst);
            std::future::pending::<StatusCode>()
        }
    };
    let key = NoteKey::generate("slow", KeyType::Cosignature).unwrap();
    let url = bench.serve(Router::new().route("/add-checkpoint", post(hang))).await;
    let witnesses = vec![Witness::new(key.public().clone(), url), bench.witness("w1").await];
    let publisher = publisher(&log, witnesses, 1);
    log.append(&[b"a".to_vec()]).await.unwrap();
    let begun = Instant::now();
    let stop = watch::Sender::new(false);
    let running = tokio::spawn(publisher.run(stop.subscribe()));
    while log.published().is_none() || !asked.load(Ordering::SeqCst) {
        assert!(begun.elapsed() < client::WITNESS_TIMEOUT, "waited for the slow witness");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(log.append(&[b"b".to_vec()]).await.unwrap(), [1]);
    stop.send_replace(true);
    running.await.unwrap();
    assert_eq!(log.published().unwrap().size, 2, "what was appended is published before the end");
}
