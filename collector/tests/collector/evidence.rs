//! What the collector makes of a host's signatures, and the file that proves a session.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use breakglass_api::checkpoint::{Kind, Signed, reason};
use breakglass_api::evidence::{Reader, kind};
use breakglass_api::frame::Frame;
use breakglass_api::v1::{ExportEvidenceRequest, GetSessionRequest, ListHostsRequest, Session};
use breakglass_proof::merkle::{Consistency, Inclusion, leaf_hash};
use breakglass_proof::note::SignedCheckpoint;
use ed25519_dalek::SigningKey;
use tonic::Code;

use crate::host::Host;
use crate::support::{Collector, all, assert_code, closed, eventually, exec, opened, run_ok, session_id, session_text};

pub async fn session(collector: &Collector, n: u8) -> Session {
    let mut query = collector.reviewer().await;
    let request = GetSessionRequest { session: session_text(n) };
    query.get_session(request).await.unwrap().into_inner()
}

fn codes(session: &Session) -> Vec<&str> {
    session.findings.iter().map(|finding| finding.code.as_str()).collect()
}

/// Everything that does not hold is told in the session, and nothing is refused.
#[tokio::test]
async fn what_does_not_hold_is_an_alert_of_the_session() {
    let collector = Collector::start();
    type Act = fn(&mut Host);
    let cases: [(u8, &str, Act); 8] = [
        (1, "bad-signature", |host| {
            let mut forged = host.sign(host.statement(Kind::Checkpoint));
            forged.signature[5] ^= 1;
            host.say(&forged);
        }),
        (2, "bad-signature", |host| {
            // With a key that is out of use.
            host.key = host.host_key.clone();
            host.checkpoint(|statement| statement.epoch = 0);
        }),
        (3, "fork", |host| host.checkpoint(|statement| statement.hash = [7; 32])),
        (4, "fork", |host| host.checkpoint(|statement| statement.seq += 9)),
        (5, "fork", |host| {
            // The first key names another successor.
            host.key = host.host_key.clone();
            host.epoch = 0;
            let other = host.sign(host.statement(Kind::NextKey([1; 32])));
            host.say(&other);
        }),
        (6, "broken-key-chain", |host| {
            host.epoch += 1;
            host.turn();
            host.checkpoint(|_| {});
        }),
        (7, "foreign-statement", |host| host.checkpoint(|statement| statement.host_id = [3; 16])),
        (8, "host-key-changed", |host| {
            host.host_key = SigningKey::from_bytes(&[77; 32]);
            (host.key, host.epoch) = (host.host_key.clone(), 0);
            host.introduce(None);
            host.checkpoint(|_| {});
        }),
    ];
    for (n, code, act) in cases {
        let session = Host::session(&collector, n, act).await;
        assert_eq!(codes(&session), [code], "case {n}: {:?}", session.findings);
        assert_eq!(session.alerts, 1, "case {n}");
    }
    let honest = Host::session(&collector, 9, |host| {
        host.checkpoint(|_| {});
        host.turn();
        host.checkpoint(|_| {});
    });
    let honest = honest.await;
    assert_eq!((codes(&honest), honest.alerts), (Vec::new(), 0));
}

#[tokio::test]
async fn a_new_host_key_that_the_old_one_names_is_said_to_be_vouched_for() {
    let collector = Collector::start();
    let session = Host::session(&collector, 1, |host| {
        let next = SigningKey::from_bytes(&[88; 32]);
        let renewal = host.sign(host.statement(Kind::NewHostKey(next.verifying_key().to_bytes())));
        (host.host_key, host.key, host.epoch) = (next.clone(), next, 0);
        host.introduce(Some(&renewal));
        host.checkpoint(|_| {});
    });
    let session = session.await;
    assert_eq!(codes(&session), ["host-key-changed"]);
    assert!(session.findings[0].message.contains("the old key vouches for it"), "{:?}", session.findings);
    let hosts = collector.reviewer().await.list_hosts(ListHostsRequest {}).await.unwrap().into_inner().hosts;
    let expected = SigningKey::from_bytes(&[88; 32]).verifying_key().to_bytes();
    let expected: String = expected.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hosts[0].host_key, expected);
}

/// Sections of the exported file.
pub async fn export(collector: &Collector, n: u8) -> Vec<(u32, Vec<u8>)> {
    export_of(collector, ExportEvidenceRequest { session: session_text(n), log_size: 2 }).await
}

pub async fn export_of(collector: &Collector, request: ExportEvidenceRequest) -> Vec<(u32, Vec<u8>)> {
    let mut query = collector.reviewer().await;
    let chunks = all(query.export_evidence(request).await).await;
    let bytes: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.data).collect();
    let mut reader = Reader::new(bytes.as_slice()).unwrap();
    let mut sections = Vec::new();
    while let Some(section) = reader.next_section().unwrap() {
        sections.push((section.kind, section.content));
    }
    sections
}

#[tokio::test]
async fn the_file_holds_the_session_its_signatures_and_the_keys_to_verify_them() {
    let collector = Collector::start();
    let session = Host::session(&collector, 1, |host| {
        host.frame(Some(session_id(1)), exec(10, &["ls"]));
        host.frame(Some(session_id(1)), closed());
        host.mark(reason::CLOSED, 1);
        host.turn();
        host.frame(None, exec(11, &["after"]));
        host.checkpoint(|_| {});
    });
    assert_ne!(session.await.closed_ns, 0);
    let sections = export(&collector, 1).await;
    let of = |wanted| sections.iter().filter(move |(kind, _)| *kind == wanted).map(|(_, content)| content.as_slice());
    let seqs: Vec<u64> = of(kind::FRAME).map(|frame| Frame::parse(frame).unwrap().header.seq).collect();
    // 1 introduces the key; 2 opens; 3 and 4 hold statements; 6 closes, and what 7 holds covers up to there.
    assert_eq!(seqs, [2, 3, 4, 5, 6]);
    let links: Vec<Signed> = of(kind::KEY).map(|link| Signed::parse(link).unwrap()).collect();
    assert_eq!(links.iter().map(|link| link.statement.epoch).collect::<Vec<_>>(), [0, 1]);
    let checkpoints: Vec<u64> =
        of(kind::CHECKPOINT).map(|signed| Signed::parse(signed).unwrap().statement.seq).collect();
    assert_eq!(checkpoints, [2, 6]);
    assert_logged(&sections);
}

/// The file proves that its checkpoints are in the log, and that the log continues its first two leaves.
fn assert_logged(sections: &[(u32, Vec<u8>)]) {
    let of = |wanted| sections.iter().filter(move |(kind, _)| *kind == wanted).map(|(_, content)| content.as_slice());
    let note = SignedCheckpoint::parse(of(kind::LOG_CHECKPOINT).next().unwrap()).unwrap();
    let (size, root) = (note.size(), note.root().0);
    let proved: Vec<[u8; 32]> = of(kind::INCLUSION)
        .map(|content| {
            let proof = Inclusion::parse(content).unwrap();
            proof.check(size, root).unwrap();
            proof.leaf
        })
        .collect();
    let leaves: Vec<[u8; 32]> = of(kind::CHECKPOINT).map(leaf_hash).collect();
    assert!(!leaves.is_empty());
    assert_eq!(proved, leaves);
    let consistencies: Vec<Consistency> = of(kind::CONSISTENCY).map(|c| Consistency::parse(c).unwrap()).collect();
    assert_eq!(consistencies.iter().map(|proof| proof.size).collect::<Vec<_>>(), [2]);
    consistencies[0].check(size, root).unwrap();
}

#[tokio::test]
async fn an_open_session_is_exported_as_far_as_it_is_and_only_by_those_who_see_everything() {
    let collector = Collector::start();
    Host::session(&collector, 1, |host| host.frame(Some(session_id(1)), exec(10, &["ls"]))).await;
    let frames = export(&collector, 1).await.into_iter().filter(|(kind, _)| *kind == kind::FRAME).count();
    assert_eq!(frames, 4);
    let mut alice = collector.person("alice", "operator").await;
    let refused = alice.export_evidence(ExportEvidenceRequest { session: session_text(1), log_size: 2 }).await;
    assert_code(refused.map(drop), Code::PermissionDenied);
    let mut query = collector.reviewer().await;
    let unknown = query.export_evidence(ExportEvidenceRequest { session: session_text(99), log_size: 2 }).await;
    assert_code(unknown.map(drop), Code::NotFound);
}

/// The proof of a session that is closed just now is waited for.
#[tokio::test]
async fn an_export_waits_for_the_signature_over_the_closing() {
    let collector = Collector::start();
    let mut host = Host::new(&collector, 1);
    host.introduce(None);
    host.frame(Some(session_id(1)), opened("alice"));
    host.checkpoint(|_| {});
    host.frame(Some(session_id(1)), closed());
    host.ship(&collector).await;
    eventually(async || (session(&collector, 1).await.closed_ns != 0).then_some(())).await;
    let exporting = tokio::spawn({
        let mut query = collector.reviewer().await;
        async move {
            all(query.export_evidence(ExportEvidenceRequest { session: session_text(1), log_size: 2 }).await).await
        }
    });
    host.mark(reason::CLOSED, 1);
    host.ship(&collector).await;
    let bytes: Vec<u8> = exporting.await.unwrap().into_iter().flat_map(|chunk| chunk.data).collect();
    let mut reader = Reader::new(bytes.as_slice()).unwrap();
    let mut marked = false;
    while let Some(section) = reader.next_section().unwrap() {
        let signed = Signed::parse(&section.content).ok().filter(|_| section.kind == kind::CHECKPOINT);
        marked |= signed.is_some_and(|signed| signed.statement.marks(reason::CLOSED, session_id(1)));
    }
    assert!(marked);
}

/// The tree that is published, as `log status` tells it.
pub fn published_size(collector: &Collector) -> u64 {
    let status = run_ok(&["log", "status", "--dir", collector.home(), "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status["published"]["size"].as_u64().unwrap_or_default()
}

/// Whether leaf `index` of the published tree is this statement, by the proof that `log proof` prints.
fn is_leaf(collector: &Collector, index: usize, signed: &Signed) -> bool {
    let proof = run_ok(&["log", "proof", "--dir", collector.home(), "--leaf", &index.to_string()]);
    let (head, note) = proof.split_once("\n\n").unwrap();
    let checkpoint = SignedCheckpoint::parse(note.as_bytes()).unwrap();
    let path = head.lines().skip(2).map(|hash| BASE64.decode(hash).unwrap().try_into().unwrap()).collect();
    let proof = Inclusion { leaf: leaf_hash(&signed.encode()), index: index as u64, path };
    proof.check(checkpoint.size(), checkpoint.root().0).is_ok()
}

#[tokio::test]
async fn every_statement_of_a_host_is_logged_once_whenever_the_collector_dies() {
    let mut collector = Collector::start();
    let mut host = Host::new(&collector, 1);
    host.introduce(None);
    host.frame(Some(session_id(1)), opened("alice"));
    for _ in 0..4 {
        host.checkpoint(|_| {});
        host.turn();
        host.ship(&collector).await;
        // At whatever it is: indexing, appending, signing, publishing.
        collector.kill();
        collector.serve();
    }
    // Sent again, signed the same: nothing new. A forged one: not the host's word.
    host.ship(&collector).await;
    let mut forged = host.sign(host.statement(Kind::Checkpoint));
    forged.signature[5] ^= 1;
    host.say(&forged);
    host.said.pop();
    host.checkpoint(|_| {});
    host.ship(&collector).await;
    eventually(async || (published_size(&collector) >= host.said.len() as u64).then_some(())).await;
    assert_eq!(published_size(&collector), host.said.len() as u64);
    for (index, signed) in host.said.iter().enumerate() {
        assert!(is_leaf(&collector, index, signed), "leaf {index}");
    }
    assert!(!is_leaf(&collector, 0, &forged));
}
