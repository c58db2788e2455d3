//! A host that records and signs as the agent does, and a thief who has some of its keys.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use breakglass_api::{
    checkpoint::{Kind, Number, Signed, Statement, reason},
    evidence::{Writer, kind},
    frame::{self, Frame, Hash, Header, Sealer, Unpacker},
    v1::{
        AccountChanged, AgentStarted, Batch, Event, Exec, Gap, KernelRef, SessionClosed, SessionExtended,
        SessionOpened, event::Body,
    },
};
use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};
use ssh_key::HashAlg;

use super::ledger::operator;

pub const SESSION: [u8; 16] = [0xe5; 16];
pub const HOST: [u8; 16] = [0x11; 16];
pub const STREAM: [u8; 16] = [0x57; 16];
const BOOT: [u8; 16] = [0xb0; 16];
const SECOND: u64 = 1_000_000_000;
const WALL_OFFSET: i64 = 1_750_000_000_000_000_000;

/// Everything that a host's record holds.
#[derive(Clone)]
pub struct Host {
    /// Secrets by epoch. A thief has the last one.
    pub keys: Vec<SigningKey>,
    pub stream: [u8; 16],
    pub frames: Vec<Vec<u8>>,
    pub links: Vec<Signed>,
    pub checkpoints: Vec<Signed>,
    /// Numbers given out, by CPU of the audit ring.
    pub numbers: BTreeMap<u32, u64>,
    pub now_ns: u64,
    /// Makes keys differ from host to host.
    pub salt: u8,
    /// What puts frames into runs; none: each can be read by itself.
    pub sealer: Option<Rc<RefCell<Sealer>>>,
}

impl Host {
    pub fn new(salt: u8) -> Self {
        Self {
            keys: vec![key(salt, 0)],
            stream: STREAM,
            frames: Vec::new(),
            links: Vec::new(),
            checkpoints: Vec::new(),
            numbers: BTreeMap::from([(0, 40), (1, 7)]),
            now_ns: 1000 * SECOND,
            salt,
            sealer: None,
        }
    }

    /// One whose frames are in runs, as those of an agent are.
    pub fn with_runs(salt: u8) -> Self {
        Self { sealer: Some(Rc::new(RefCell::new(Sealer::new(1).unwrap()))), ..Self::new(salt) }
    }

    pub fn host_key(&self) -> [u8; 32] {
        self.keys[0].verifying_key().to_bytes()
    }

    pub fn seq(&self) -> u64 {
        self.frames.len() as u64
    }

    fn hash(&self) -> Hash {
        self.frames.last().map_or([0; 32], |frame| Frame::parse(frame).unwrap().hash)
    }

    /// Records events of the session, or of none.
    pub fn record(&mut self, of_session: bool, bodies: Vec<(Option<KernelRef>, Body)>) -> u64 {
        let events: Vec<Event> = bodies
            .into_iter()
            .map(|(origin, body)| {
                self.now_ns += SECOND / 10;
                Event { boot_ns: self.now_ns, session: of_session.into(), origin, body: Some(body) }
            })
            .collect();
        let header = Header {
            stream_id: self.stream,
            boot_id: BOOT,
            seq: self.seq() + 1,
            prev: self.hash(),
            first_boot_ns: events.first().map_or(self.now_ns, |event| event.boot_ns),
            last_boot_ns: self.now_ns,
            wall_offset_ns: WALL_OFFSET,
            events: 0,
        };
        let sessions = if of_session { vec![SESSION.to_vec()] } else { Vec::new() };
        let mut batch = Batch { sessions, events, resume: Vec::new() };
        self.frames.push(match &self.sealer {
            Some(sealer) => sealer.borrow_mut().seal(header, &mut batch, u64::MAX).unwrap().bytes,
            // Both codecs in turn.
            None => sealed(header, &mut batch, header.seq.is_multiple_of(2)),
        });
        self.seq()
    }

    pub fn open(&mut self) -> u64 {
        let opened = SessionOpened {
            operator: "alice@example.org".into(),
            key_fingerprint: operator().fingerprint(HashAlg::Sha256).to_string(),
            reason: "fire".into(),
            ..Default::default()
        };
        self.record(true, vec![(None, Body::SessionOpened(opened))])
    }

    pub fn close(&mut self) -> u64 {
        self.record(true, vec![(None, Body::SessionClosed(SessionClosed::default()))])
    }

    /// Runs a program on each of two CPUs.
    pub fn work(&mut self, what: &str) -> u64 {
        self.runs(true, what)
    }

    fn runs(&mut self, of_session: bool, what: &str) -> u64 {
        let origins = [self.number(0, 2), self.number(1, 0)];
        let exec = |argument: &str| Body::Exec(Exec { argv: vec![argument.into()], ..Default::default() });
        self.record(of_session, origins.into_iter().map(|origin| (Some(origin), exec(what))).collect())
    }

    pub fn gap(&mut self, declared: bool) -> u64 {
        let origin = self.number(0, 4);
        let gap = Gap { cpu: 0, first_seq: origin.seq, records: 5, cause: "ring-full".into(), ..Default::default() };
        let other = Body::AccountChanged(AccountChanged::default());
        self.record(false, vec![(None, if declared { Body::Gap(gap) } else { other })])
    }

    pub fn started(&mut self, took_over: bool) -> u64 {
        if !took_over {
            self.numbers.clear();
        }
        self.record(false, vec![(None, Body::AgentStarted(AgentStarted { took_over, ..Default::default() }))])
    }

    fn number(&mut self, cpu: u32, more: u32) -> KernelRef {
        let upto = self.numbers.entry(cpu).or_default();
        let seq = *upto + 1;
        *upto += u64::from(more) + 1;
        KernelRef { cpu, seq, more, ..Default::default() }
    }

    pub fn statement(&self, kind: Kind, reasons: u16) -> Statement {
        Statement {
            kind,
            reasons,
            host_id: HOST,
            host_key: self.host_key(),
            epoch: self.keys.len() as u64 - 1,
            stream_id: self.stream,
            seq: self.seq(),
            hash: self.hash(),
            boot_id: BOOT,
            boot_ns: self.now_ns,
            wall_ns: self.now_ns as i64 + WALL_OFFSET,
            session: [0; 16],
            session_seq: 0,
            numbers: Vec::new(),
        }
    }

    /// A checkpoint over everything so far, which a frame of its own then holds.
    pub fn checkpoint(&mut self, mark: Option<(u16, u64)>) {
        let mut statement = self.statement(Kind::Checkpoint, reason::ACTIVITY);
        if let Some((what, seq)) = mark {
            (statement.reasons, statement.session, statement.session_seq) = (what, SESSION, seq);
            let numbers = self.numbers.iter().map(|(cpu, upto)| Number { ring: 0, cpu: *cpu, upto: *upto });
            statement.numbers = numbers.collect();
        }
        self.checkpoints.push(sign(statement, self.keys.last().unwrap()));
        self.carry();
    }

    /// A new key.
    pub fn turn(&mut self) {
        let next = key(self.salt, self.keys.len() as u8);
        let statement = self.statement(Kind::NextKey(next.verifying_key().to_bytes()), reason::ACTIVITY);
        self.links.push(sign(statement, self.keys.last().unwrap()));
        self.keys.push(next);
        self.carry();
    }

    /// The frame that holds a statement; what is in it does not matter here.
    fn carry(&mut self) {
        self.record(false, vec![(None, Body::AccountChanged(AccountChanged::default()))]);
    }
}

/// A whole session as a host records it: opened in frame 5, closed in frame 18.
pub fn recorded(salt: u8) -> Host {
    recorded_by(Host::new(salt))
}

/// The same, by a host that has recorded nothing yet.
pub fn recorded_by(host: Host) -> Host {
    recorded_with(host, |_| {})
}

/// The same, and somebody with that name and key extends it.
pub fn extended(salt: u8, operator: &str, key_fingerprint: &str) -> Host {
    let (operator, key_fingerprint) = (operator.to_owned(), key_fingerprint.to_owned());
    let extended = SessionExtended { operator, key_fingerprint, ..Default::default() };
    recorded_with(Host::new(salt), |host| {
        host.record(true, vec![(None, Body::SessionExtended(extended))]);
    })
}

fn recorded_with(mut host: Host, meanwhile: impl FnOnce(&mut Host)) -> Host {
    host.started(true);
    host.checkpoint(None);
    host.turn();
    host.now_ns += 600 * SECOND;
    host.runs(false, "before");
    let opened = host.open();
    host.checkpoint(Some((reason::OPENED, opened)));
    host.turn();
    host.work("id");
    host.work("cat /etc/shadow");
    host.work("rm -rf /var/log");
    host.checkpoint(None);
    host.now_ns += 60 * SECOND;
    host.turn();
    for what in ["ls", "vi", "reboot"] {
        host.work(what);
    }
    host.checkpoint(None);
    meanwhile(&mut host);
    host.work("exit");
    let closed = host.close();
    host.checkpoint(Some((reason::CLOSED, closed)));
    host.turn();
    host
}

fn key(salt: u8, epoch: u8) -> SigningKey {
    SigningKey::from_bytes(&[[salt; 16], [epoch; 16]].concat().try_into().unwrap())
}

pub fn sign(statement: Statement, key: &SigningKey) -> Signed {
    let signature = key.sign(&Statement::signing_input(&statement.encode())).to_bytes();
    Signed { statement, signature }
}

/// What a file is made of, to be changed at will.
#[derive(Clone)]
pub struct Parts {
    pub manifest: String,
    pub links: Vec<Vec<u8>>,
    pub checkpoints: Vec<Vec<u8>>,
    pub frames: Vec<Vec<u8>>,
    /// Sections of types that may come one day.
    pub others: Vec<(u32, Vec<u8>)>,
}

impl Parts {
    /// What the collector exports: from the opening to the last frame that the statement over the closing covers.
    pub fn of(host: &Host) -> Self {
        let seq_of = |what| {
            let marks = host.checkpoints.iter().filter(|signed| signed.statement.marks(what, SESSION));
            marks.map(|signed| signed.statement.session_seq).next()
        };
        let first = seq_of(reason::OPENED).unwrap_or(1);
        let last = seq_of(reason::CLOSED).unwrap_or(host.seq());
        let signer = host.checkpoints.iter().find(|signed| signed.statement.seq >= last);
        let signer = signer.map_or(u64::MAX, |signed| signed.statement.epoch);
        let about = |signed: &&Signed| (first - 1..=last).contains(&signed.statement.seq);
        let uuid = |bytes| uuid::Uuid::from_bytes(bytes);
        Self {
            manifest: serde_json::json!({
                "format": 1, "session": uuid(SESSION), "host_id": uuid(HOST), "hostname": "web1",
                "stream": hex::encode(host.stream),
            })
            .to_string(),
            links: host.links.iter().filter(|l| l.statement.epoch <= signer).map(Signed::encode).collect(),
            checkpoints: host.checkpoints.iter().filter(about).map(Signed::encode).collect(),
            frames: host.frames[first as usize - 1..last as usize].to_vec(),
            others: Vec::new(),
        }
    }

    /// The position of frame `seq` in a file that begins with frame 5.
    pub fn frame(&mut self, seq: u64) -> &mut Vec<u8> {
        &mut self.frames[seq as usize - 5]
    }

    pub fn file(&self) -> Vec<u8> {
        let (mut writer, mut bytes) = Writer::new();
        bytes.extend(writer.section(kind::MANIFEST, self.manifest.as_bytes()));
        for (kind, contents) in
            [(kind::KEY, &self.links), (kind::CHECKPOINT, &self.checkpoints), (kind::FRAME, &self.frames)]
        {
            contents.iter().for_each(|content| bytes.extend(writer.section(kind, content)));
        }
        self.others.iter().for_each(|(kind, content)| bytes.extend(writer.section(*kind, content)));
        bytes.extend(writer.end());
        bytes
    }
}

/// A frame with its content changed and a hash that fits again.
pub fn resealed(bytes: &[u8], change: impl FnOnce(&mut Header, &mut Batch)) -> Vec<u8> {
    let parsed = Frame::parse(bytes).unwrap();
    let (mut header, mut batch) = (parsed.header, parsed.batch().unwrap());
    // By the codec that it had, so that a frame in which nothing changes stays as it is.
    let plain = sealed(header, &mut batch, true) == bytes;
    change(&mut header, &mut batch);
    sealed(header, &mut batch, plain)
}

fn sealed(header: Header, batch: &mut Batch, plain: bool) -> Vec<u8> {
    let sealed = match plain {
        true => frame::seal(header, batch, 1),
        false => Sealer::new(1).and_then(|mut sealer| sealer.seal(header, batch, u64::MAX)),
    };
    sealed.unwrap().bytes
}

/// A frame with another payload and a hash that fits it.
pub fn with_payload(bytes: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut forged = bytes[..frame::HEADER_LEN].to_vec();
    forged[112..116].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    forged.extend_from_slice(payload);
    let hash = Sha256::new().chain_update(b"breakglass-frame-v1\0").chain_update(&forged).finalize();
    forged.extend_from_slice(&hash);
    forged
}

/// The last of `frames`, which may be in runs, as one that can be read by itself.
pub fn taken_out(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut unpacker = Unpacker::default();
    let mut read = frames.iter().map(|bytes| {
        let frame = Frame::parse(bytes).unwrap();
        (frame.header, unpacker.batch(&frame).unwrap())
    });
    let (header, mut batch) = read.by_ref().last().unwrap();
    sealed(header, &mut batch, true)
}

/// Makes every frame from `seq` on name the one before it again.
pub fn rechain(parts: &mut Parts, seq: u64) {
    for at in seq as usize - 5..parts.frames.len() {
        if let Some(before) = at.checked_sub(1) {
            let prev = Frame::parse(&parts.frames[before]).unwrap().hash;
            parts.frames[at] = resealed(&parts.frames[at], |header, _| header.prev = prev);
        }
    }
}
