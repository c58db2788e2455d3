//! A host that records and signs as the agent does, made of nothing but frames.

use breakglass_api::checkpoint::{Kind, Signed, Statement, reason};
use breakglass_api::v1::event::Body;
use breakglass_api::v1::{Checkpoint, KeyEvolved, KeyIntroduced, Session};
use ed25519_dalek::{Signer, SigningKey};

use crate::evidence::session;
use crate::support::{Agent, Collector, HostIdentity, Spool, opened, session_id};

/// A host that signs as the agent does.
pub struct Host {
    pub identity: HostIdentity,
    pub spool: Spool,
    pub frames: Vec<Vec<u8>>,
    pub host_key: SigningKey,
    pub key: SigningKey,
    pub epoch: u64,
    /// Everything that it signed and recorded.
    pub said: Vec<Signed>,
}

impl Host {
    pub fn new(collector: &Collector, number: u8) -> Self {
        let key = SigningKey::from_bytes(&[number; 32]);
        Self {
            identity: collector.enroll_host(&format!("host{number}")),
            spool: Spool::new(number),
            frames: Vec::new(),
            host_key: key.clone(),
            key,
            epoch: 0,
            said: Vec::new(),
        }
    }

    pub fn frame(&mut self, session: Option<[u8; 16]>, body: Body) {
        self.frames.push(self.spool.frame(session, vec![body]));
    }

    pub fn introduce(&mut self, renewal: Option<&Signed>) {
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

    pub fn statement(&self, kind: Kind) -> Statement {
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

    pub fn sign(&self, statement: Statement) -> Signed {
        let signature = self.key.sign(&Statement::signing_input(&statement.encode())).to_bytes();
        Signed { statement, signature }
    }

    pub fn say(&mut self, signed: &Signed) {
        self.said.push(signed.clone());
        let message = Some(signed.to_message());
        let body = match signed.statement.kind {
            Kind::NextKey(_) => Body::KeyEvolved(KeyEvolved { signed: message }),
            Kind::Checkpoint | Kind::NewHostKey(_) => Body::Checkpoint(Checkpoint { signed: message }),
        };
        self.frame(None, body);
    }

    pub fn checkpoint(&mut self, change: impl FnOnce(&mut Statement)) {
        let mut statement = self.statement(Kind::Checkpoint);
        change(&mut statement);
        let signed = self.sign(statement);
        self.say(&signed);
    }

    pub fn mark(&mut self, what: u16, session: u8) {
        let seq = self.spool.seq;
        self.checkpoint(|statement| {
            (statement.reasons, statement.session, statement.session_seq) = (what, session_id(session), seq);
        });
    }

    pub fn turn(&mut self) {
        let next = SigningKey::from_bytes(&[self.epoch as u8 + 100; 32]);
        let link = self.sign(self.statement(Kind::NextKey(next.verifying_key().to_bytes())));
        self.say(&link);
        (self.key, self.epoch) = (next, self.epoch + 1);
    }

    /// Sends everything and waits until all of it is acknowledged, whatever is wrong with it.
    pub async fn ship(&self, collector: &Collector) {
        let mut agent = Agent::connect(collector, &self.identity, self.spool.stream, 1).await;
        for frame in &self.frames {
            agent.send(frame.clone()).await;
        }
        agent.acked(self.spool.seq).await;
    }

    /// Introduces itself, opens session `n`, lets `act` do what it does, and sends it.
    pub async fn session(collector: &Collector, n: u8, act: impl FnOnce(&mut Self)) -> Session {
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
