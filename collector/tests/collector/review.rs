//! Signing sessions off.

use breakglass_api::checkpoint::reason;
use breakglass_api::evidence::kind;
use breakglass_api::frame::Frame;
use breakglass_api::v1::{
    self, ExportEvidenceRequest, GetSessionRequest, LeftBehind, ListSessionsRequest, SessionExtended,
    SubmitReviewRequest, event::Body,
};
use breakglass_proof::REVIEW_NAMESPACE;
use breakglass_proof::note::SignedCheckpoint;
use breakglass_proof::review::{LogHead, Review, Verdict, join};
use ssh_key::private::Ed25519Keypair;
use ssh_key::{HashAlg, LineEnding, PrivateKey};
use tonic::{Code, Status};

use crate::evidence::{export, export_of, session};
use crate::host::Host;
use crate::support::{Collector, assert_code, closed, exec, run_ok, session_id, session_text};

fn key(person: &str) -> PrivateKey {
    let mut seed = [7; 32];
    seed[..person.len()].copy_from_slice(person.as_bytes());
    Ed25519Keypair::from_seed(&seed).into()
}

/// A collector whose file of reviewers lists these people.
fn list(collector: &Collector, people: &[&str]) {
    let line = |name: &&str| format!("{name} {}\n", key(name).public_key().to_openssh().unwrap());
    let text = people.iter().map(line).collect::<String>();
    std::fs::write(collector.path("collector/reviewers"), text).unwrap();
}

/// Session 1, by alice, extended by joan with a key of kim's, closed and signed for.
async fn recorded(collector: &Collector) -> Host {
    let mut host = Host::new(collector, 1);
    host.introduce(None);
    host.frame(Some(session_id(1)), crate::support::opened("alice"));
    host.mark(reason::OPENED, 1);
    host.turn();
    host.frame(Some(session_id(1)), exec(10, &["ls"]));
    let key_fingerprint = key("kim").fingerprint(HashAlg::Sha256).to_string();
    let extended = SessionExtended { operator: "joan".into(), key_fingerprint, ..SessionExtended::default() };
    host.frame(Some(session_id(1)), Body::SessionExtended(extended));
    host.frame(Some(session_id(1)), closed());
    host.mark(reason::CLOSED, 1);
    host.ship(collector).await;
    host
}

/// What a reviewer says of session 1 as it is exported now.
async fn review(collector: &Collector, host: &Host, reviewer: &str) -> Review {
    review_in(&export(collector, 1).await, host, reviewer)
}

/// What a reviewer says of session 1 in this file.
fn review_in(sections: &[(u32, Vec<u8>)], host: &Host, reviewer: &str) -> Review {
    let of = |wanted| sections.iter().filter(move |(kind, _)| *kind == wanted).map(|(_, content)| content);
    let last = Frame::parse(of(kind::FRAME).next_back().unwrap()).unwrap();
    let note = SignedCheckpoint::parse(of(kind::LOG_CHECKPOINT).next().unwrap()).unwrap();
    Review {
        session: session_id(1),
        host_id: *uuid::Uuid::parse_str(&host.identity.id).unwrap().as_bytes(),
        stream: host.spool.stream,
        last_frame: last.header.seq,
        last_hash: last.hash,
        log: Some(LogHead { origin: note.origin().into(), size: note.size(), root: note.root().0 }),
        reviewer: reviewer.into(),
        verdict: Verdict::Ok,
        note: "as agreed".into(),
        client_time: "2026-01-31T23:59:59Z".into(),
    }
}

fn sign(review: &Review, signer: &str) -> SubmitReviewRequest {
    let text = review.encode().unwrap();
    let signature = key(signer).sign(REVIEW_NAMESPACE, HashAlg::Sha512, text.as_bytes()).unwrap();
    let signature = signature.to_pem(LineEnding::LF).unwrap().into_bytes();
    SubmitReviewRequest { text: text.into_bytes(), signature }
}

async fn submit(
    collector: &Collector,
    (name, role): (&str, &str),
    request: SubmitReviewRequest,
) -> Result<v1::Review, Status> {
    let mut query = collector.person(name, role).await;
    query.submit_review(request).await.map(tonic::Response::into_inner)
}

/// Ids of the sessions that wait for a review.
async fn waiting(collector: &Collector) -> Vec<String> {
    let request = ListSessionsRequest { unreviewed_only: true, ..ListSessionsRequest::default() };
    let sessions = collector.reviewer().await.list_sessions(request).await.unwrap().into_inner().sessions;
    sessions.into_iter().map(|session| session.id).collect()
}

#[tokio::test]
async fn a_session_waits_until_somebody_else_has_signed_off_all_of_it() {
    let mut collector = Collector::start();
    let mut host = recorded(&collector).await;
    assert_eq!(waiting(&collector).await, [session_text(1)]);
    list(&collector, &["rita"]);
    let first = review(&collector, &host, "rita").await;
    let request = sign(&first, "rita");
    let taken = submit(&collector, ("rita", "reviewer"), request.clone()).await.unwrap();
    assert_eq!((taken.verdict.as_str(), taken.last_frame), ("ok", first.last_frame));
    assert!(taken.key.starts_with("SHA256:"));
    // Handed in twice it counts once, and it outlives the process and the index.
    submit(&collector, ("rita", "reviewer"), request.clone()).await.unwrap();
    collector.kill();
    run_ok(&["reindex", "--dir", collector.home()]);
    collector.serve();
    assert_eq!(waiting(&collector).await, Vec::<String>::new());
    let told = session(&collector, 1).await;
    assert!(told.reviewed && !told.review_overdue && told.reviews.len() == 1, "{told:?}");
    let in_file = export(&collector, 1).await.into_iter().find(|(kind, _)| *kind == kind::REVIEW).unwrap().1;
    assert_eq!(in_file, join(&request.text, &request.signature));

    // More is found out after the closing: it waits again, and the old review is not for that.
    host.frame(Some(session_id(1)), Body::LeftBehind(LeftBehind::default()));
    host.checkpoint(|_| {});
    host.ship(&collector).await;
    assert_eq!(waiting(&collector).await, [session_text(1)]);
    let stale = submit(&collector, ("rita", "reviewer"), sign(&first, "rita")).await;
    assert!(assert_code(stale, Code::FailedPrecondition).contains("stale-head"));
    let again = review(&collector, &host, "rita").await;
    assert!(again.last_frame > first.last_frame);
    submit(&collector, ("rita", "reviewer"), sign(&again, "rita")).await.unwrap();
    assert_eq!(waiting(&collector).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_review_that_does_not_count_is_refused_with_its_reason() {
    let collector = Collector::start();
    let host = recorded(&collector).await;
    let good = review(&collector, &host, "rita").await;
    let rita = ("rita", "reviewer");
    let nobody_listed = submit(&collector, rita, sign(&good, "rita")).await;
    assert!(assert_code(nobody_listed, Code::PermissionDenied).contains("bad-signature"));
    list(&collector, &["rita", "alice", "mallory", "joan", "kim"]);
    let named = |name: &str| Review { reviewer: name.into(), ..good.clone() };
    let log = good.log.clone().unwrap();
    let other_log = Review { log: Some(LogHead { root: [7; 32], ..log.clone() }), ..good.clone() };
    let later_log = Review { log: Some(LogHead { size: log.size + 1, ..log }), ..good.clone() };
    let cases = [
        (sign(&good, "eve"), rita, "bad-signature"),
        (sign(&good, "mallory"), rita, "bad-signature"),
        (sign(&good, "rita"), ("mallory", "reviewer"), "not-you"),
        (sign(&named("alice"), "alice"), ("alice", "admin"), "own-session"),
        (sign(&named("joan"), "joan"), ("joan", "reviewer"), "own-session"),
        (sign(&named("kim"), "kim"), ("kim", "reviewer"), "own-session"),
        (sign(&Review { last_frame: good.last_frame - 1, ..good.clone() }, "rita"), rita, "stale-head"),
        (sign(&Review { last_hash: [7; 32], ..good.clone() }, "rita"), rita, "stale-head"),
        (sign(&Review { stream: [7; 16], ..good.clone() }, "rita"), rita, "other-session"),
        (sign(&other_log, "rita"), rita, "other-log"),
        (sign(&later_log, "rita"), rita, "other-log"),
        (sign(&Review { log: None, ..good.clone() }, "rita"), rita, "other-log"),
        (SubmitReviewRequest { signature: b"x".to_vec(), ..sign(&good, "rita") }, rita, "bad-signature"),
    ];
    for (request, caller, code) in cases {
        let refused = submit(&collector, caller, request).await.expect_err(code);
        assert!(refused.message().ends_with(&format!("({code})")), "{code}: {refused}");
    }
    let operator = submit(&collector, ("alice", "operator"), sign(&named("alice"), "alice")).await;
    assert_code(operator, Code::PermissionDenied);
    let unknown = submit(&collector, rita, sign(&Review { session: session_id(9), ..good.clone() }, "rita")).await;
    assert_code(unknown, Code::NotFound);
    let nonsense = SubmitReviewRequest { text: b"ok\n".to_vec(), signature: Vec::new() };
    assert_code(submit(&collector, rita, nonsense).await, Code::InvalidArgument);
    assert_eq!(waiting(&collector).await, [session_text(1)]);
    submit(&collector, rita, sign(&good, "rita")).await.unwrap();
}

#[tokio::test]
async fn a_session_that_another_host_claims_first_is_named_with_its_host() {
    let collector = Collector::start();
    let mut other = Host::new(&collector, 2);
    other.introduce(None);
    other.frame(Some(session_id(1)), crate::support::opened("eve"));
    other.frame(Some(session_id(1)), closed());
    other.checkpoint(|_| {});
    other.ship(&collector).await;
    assert_eq!(session(&collector, 1).await.hostname, "host2");
    let host = recorded(&collector).await;

    let mut query = collector.reviewer().await;
    let mut get = async |name: &str| query.get_session(GetSessionRequest { session: name.into() }).await;
    let uuid = session_text(1);
    let (own, others) = (format!("{}/{uuid}", host.identity.id), format!("{}/{uuid}", other.identity.id));
    for name in [&uuid, &uuid[uuid.len() - 8..]] {
        let both = assert_code(get(name).await, Code::FailedPrecondition);
        assert!(both.contains(&own) && both.contains(&others) && both.contains("host1"), "{both}");
    }
    for name in [&own, &format!("host1/{uuid}"), &format!("host1/{}", &uuid[uuid.len() - 8..])] {
        let found = get(name).await.unwrap().into_inner();
        assert_eq!((found.host_id, found.opened.unwrap().operator), (host.identity.id.clone(), "alice".into()));
    }
    assert_code(get(&format!("host9/{uuid}")).await, Code::NotFound);
    // Whoever may see only one of them has no need to tell them apart.
    let mut alice = collector.person("alice", "operator").await;
    let found = alice.get_session(GetSessionRequest { session: uuid.clone() }).await.unwrap().into_inner();
    assert_eq!(found.host_id, host.identity.id);

    // A review is for the host that it names, and is in no other's file.
    list(&collector, &["rita"]);
    let request = ExportEvidenceRequest { session: own.clone(), ..ExportEvidenceRequest::default() };
    let file = export_of(&collector, request).await;
    let review = review_in(&file, &host, "rita");
    submit(&collector, ("rita", "reviewer"), sign(&review, "rita")).await.unwrap();
    let (mine, theirs) = (get(&own).await.unwrap().into_inner(), get(&others).await.unwrap().into_inner());
    assert!(mine.reviewed && mine.reviews.len() == 1, "{mine:?}");
    assert!(!theirs.reviewed && theirs.reviews.is_empty(), "{theirs:?}");
}

#[tokio::test]
async fn an_open_session_cannot_be_reviewed_and_an_old_one_is_overdue() {
    let mut collector = Collector::init();
    let config = collector.path("collector/collector.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("due_hours = 72"), "{text}");
    // Its sessions were in 2023.
    std::fs::write(&config, text.replace("due_hours = 72", "due_hours = 4000000")).unwrap();
    collector.serve();
    let host = recorded(&collector).await;
    let told = session(&collector, 1).await;
    assert!(told.review_due_ns > told.closed_ns && !told.review_overdue);
    collector.kill();
    std::fs::write(&config, text).unwrap();
    collector.serve();
    assert!(session(&collector, 1).await.review_overdue);

    list(&collector, &["rita"]);
    let mut other = Host::new(&collector, 2);
    other.introduce(None);
    other.frame(Some(session_id(2)), crate::support::opened("alice"));
    other.checkpoint(|_| {});
    other.ship(&collector).await;
    let open = session(&collector, 2).await;
    assert!(open.closed_ns == 0 && open.review_due_ns == 0 && !open.review_overdue);
    let of_open = Review {
        session: session_id(2),
        host_id: *uuid::Uuid::parse_str(&other.identity.id).unwrap().as_bytes(),
        stream: other.spool.stream,
        ..review(&collector, &host, "rita").await
    };
    let refused = submit(&collector, ("rita", "reviewer"), sign(&of_open, "rita")).await;
    assert!(assert_code(refused, Code::FailedPrecondition).contains("still-open"));
}
