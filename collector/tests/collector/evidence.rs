//! What the collector makes of a host's signatures, and the file that proves a session.

use breakglass_api::checkpoint::{Kind, Signed, Statement, reason};
use breakglass_api::evidence::{Reader, kind};
use breakglass_api::frame::Frame;
use breakglass_api::v1::event::Body;
use breakglass_api::v1::{
    Checkpoint, ExportEvidenceRequest, GetSessionRequest, KeyEvolved, KeyIntroduced, ListHostsRequest, Session,
};
use ed25519_dalek::{Signer, SigningKey};
use tonic::Code;

use crate::support::{
    Agent, Collector, HostIdentity, Spool, all, assert_code, closed, eventually, exec, opened, session_id, session_text,
};

/// A host that signs as the agent does.
struct Host {
    identity: HostIdentity,
    spool: Spool,
    frames: Vec<Vec<u8>>,
    host_key: SigningKey,
    key: SigningKey,
    epoch: u64,
}

impl Host {
    fn new(collector: &Collector, number: u8) -> Self {
        let key = SigningKey::from_bytes(&[number; 32]);
        Self {
            identity: collector.enroll_host(&format!("host{number}")),
            spool: Spool::new(number),
            frames: Vec::new(),
            host_key: key.clone(),
            key,
            epoch: 0,
        }
    }

    fn frame(&mut self, session: Option<[u8; 16]>, body: Body) {
        self.frames.push(self.spool.frame(session, vec![body]));
    }

    fn introduce(&mut self, renewal: Option<&Signed>) {
        self.frame(
            None,
            Body::KeyIntroduced(KeyIntroduced {
                host_key: self.host_key.verifying_key().to_bytes().to_vec(),
                epoch: self.epoch,
                key: self.key.verifying_key().to_bytes().to_vec(),
                links: Vec::new(),
                renewal: renewal.map(Signed::to_message),
                reason: "first-start".into(),
            }),
        );
    }

    fn statement(&self, kind: Kind) -> Statement {
        Statement {
            kind,
            reasons: reason::ACTIVITY,
            host_id: *uuid::Uuid::parse_str(&self.identity.id).unwrap().as_bytes(),
            host_key: self.host_key.verifying_key().to_bytes(),
            epoch: self.epoch,
            stream_id: self.spool.stream,
            seq: self.spool.seq,
            hash: self.spool.hash,
            boot_id: [9; 16],
            boot_ns: self.spool.clock_ns,
            wall_ns: 0,
            session: [0; 16],
            session_seq: 0,
            numbers: Vec::new(),
        }
    }

    fn sign(&self, statement: Statement) -> Signed {
        let signature = self.key.sign(&Statement::signing_input(&statement.encode())).to_bytes();
        Signed { statement, signature }
    }

    fn say(&mut self, signed: &Signed) {
        let message = Some(signed.to_message());
        let body = match signed.statement.kind {
            Kind::NextKey(_) => Body::KeyEvolved(KeyEvolved { signed: message }),
            Kind::Checkpoint | Kind::NewHostKey(_) => Body::Checkpoint(Checkpoint { signed: message }),
        };
        self.frame(None, body);
    }

    fn checkpoint(&mut self, change: impl FnOnce(&mut Statement)) {
        let mut statement = self.statement(Kind::Checkpoint);
        change(&mut statement);
        let signed = self.sign(statement);
        self.say(&signed);
    }

    fn mark(&mut self, what: u16, session: u8) {
        let seq = self.spool.seq;
        self.checkpoint(|statement| {
            (statement.reasons, statement.session, statement.session_seq) = (what, session_id(session), seq);
        });
    }

    fn turn(&mut self) {
        let next = SigningKey::from_bytes(&[self.epoch as u8 + 100; 32]);
        let link = self.sign(self.statement(Kind::NextKey(next.verifying_key().to_bytes())));
        self.say(&link);
        (self.key, self.epoch) = (next, self.epoch + 1);
    }

    /// Sends everything and waits until all of it is acknowledged, whatever is wrong with it.
    async fn ship(&self, collector: &Collector) {
        let mut agent = Agent::connect(collector, &self.identity, self.spool.stream, 1).await;
        for frame in &self.frames {
            agent.send(frame.clone()).await;
        }
        agent.acked(self.spool.seq).await;
    }

    /// Introduces itself, opens session `n`, lets `act` do what it does, and sends it.
    async fn session(collector: &Collector, n: u8, act: impl FnOnce(&mut Self)) -> Session {
        let mut host = Self::new(collector, n);
        host.introduce(None);
        host.frame(Some(session_id(n)), opened("alice"));
        host.checkpoint(|_| {});
        host.turn();
        act(&mut host);
        host.ship(collector).await;
        session(collector, n).await
    }
}

async fn session(collector: &Collector, n: u8) -> Session {
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
async fn export(collector: &Collector, n: u8) -> Vec<(u32, Vec<u8>)> {
    let mut query = collector.reviewer().await;
    let chunks = all(query.export_evidence(ExportEvidenceRequest { session: session_text(n) }).await).await;
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
}

#[tokio::test]
async fn an_open_session_is_exported_as_far_as_it_is_and_only_by_those_who_see_everything() {
    let collector = Collector::start();
    Host::session(&collector, 1, |host| host.frame(Some(session_id(1)), exec(10, &["ls"]))).await;
    let frames = export(&collector, 1).await.into_iter().filter(|(kind, _)| *kind == kind::FRAME).count();
    assert_eq!(frames, 4);
    let mut alice = collector.person("alice", "operator").await;
    let refused = alice.export_evidence(ExportEvidenceRequest { session: session_text(1) }).await;
    assert_code(refused.map(drop), Code::PermissionDenied);
    let mut query = collector.reviewer().await;
    let unknown = query.export_evidence(ExportEvidenceRequest { session: session_text(99) }).await;
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
        async move { all(query.export_evidence(ExportEvidenceRequest { session: session_text(1) }).await).await }
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
