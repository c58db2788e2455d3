//! Reads an evidence file once and checks it, by the rules of `docs/EVIDENCE.md`.

use std::{collections::BTreeMap, io::Read};

use anyhow::{Result, bail};
use breakglass_api::{
    checkpoint::{Kind, PublicKey, Signed, Statement, reason},
    evidence::{FileError, MANIFEST_MAX, Reader, Section, kind},
    frame::{Frame, Hash, Header},
};
use uuid::Uuid;

use super::{
    logged::{Logged, Outcome},
    numbers::Hole,
    report::{Check, Facts, Place, Report, State},
    reviewed::{Reviewed, Subject},
    session::Told,
    trust::Trust,
};

/// Statements kept in memory, of a hundred bytes each: a year of checkpoints, or a million changes of the key.
const STATEMENTS_MAX: usize = 1 << 20;
/// How much older than the key that signed for it an opening may be, ns: how long an event may wait for the disk, and more.
const AGE_SLACK_NS: i64 = 120_000_000_000;

/// What the file says that it is.
struct Manifest {
    session: [u8; 16],
    host_id: [u8; 16],
    stream: [u8; 16],
}

/// When a key came into use.
#[derive(Clone, Copy)]
struct Birth {
    boot_id: [u8; 16],
    boot_ns: u64,
    wall_ns: i64,
}

/// What a statement says of a frame.
struct Claim {
    hash: Hash,
    offset: u64,
}

/// A statement that marks the session's opening or closing.
struct Marked {
    statement: Statement,
}

/// Where the frames stand.
struct Chain {
    first: u64,
    last: u64,
    /// Hash of the last frame, if it could be read.
    hash: Option<Hash>,
    /// The last frame that a statement was held against.
    signed: Option<u64>,
    bytes: u64,
    count: u64,
}

/// Checks one file.
pub struct Verifier {
    trust: Trust,
    checks: Vec<Check>,
    manifest: Option<Manifest>,
    facts: Facts,
    /// Public keys by epoch, as far as the chain of keys holds.
    keys: Vec<PublicKey>,
    /// When the key of epoch n + 1 came into use.
    births: Vec<Birth>,
    links: u64,
    checkpoints: u64,
    claims: BTreeMap<u64, Claim>,
    opening: Option<Marked>,
    closing: Option<Marked>,
    /// The header of the frame that holds the opening.
    opening_frame: Option<Header>,
    chain: Option<Chain>,
    /// Hash of the last frame of the file, if it could be read.
    last_hash: Option<Hash>,
    told: Told,
    reviewed: Reviewed,
    logged: Logged,
}

/// The checks in the order in which they are told.
const CHECKS: [&str; 16] = [
    "file",
    "host-key",
    "key-chain",
    "checkpoints",
    "frames",
    "chain",
    "covered",
    "opening",
    "closing",
    "time",
    "content",
    "complete",
    "log",
    "witnesses",
    "consistency",
    "review",
];

impl Verifier {
    /// A verifier that holds a file against what the reader trusts.
    pub fn new(trust: Trust) -> Self {
        Self {
            trust,
            checks: CHECKS.into_iter().map(Check::new).collect(),
            manifest: None,
            facts: Facts::default(),
            keys: Vec::new(),
            births: Vec::new(),
            links: 0,
            checkpoints: 0,
            claims: BTreeMap::new(),
            opening: None,
            closing: None,
            opening_frame: None,
            chain: None,
            last_hash: None,
            told: Told::default(),
            reviewed: Reviewed::default(),
            logged: Logged::default(),
        }
    }

    /// Checks everything. An error means that the medium failed; whatever is wrong with the file is in the report.
    pub fn run(mut self, input: impl Read) -> Result<Report> {
        match self.read(input) {
            Ok(()) => self.pass("file", "whole, and as it was exported".to_owned()),
            Err(FileError::Io(error)) => bail!("the file cannot be read: {error}"),
            Err(error) => {
                let offset = match error {
                    FileError::Short { offset } | FileError::Section { offset, .. } | FileError::Digest { offset } => {
                        offset
                    }
                    FileError::Io(_) | FileError::Magic => 0,
                };
                self.fail("file", Place::byte(offset), error.to_string());
            }
        }
        self.conclude();
        Ok(Report { checks: self.checks, facts: self.facts })
    }

    fn read(&mut self, input: impl Read) -> Result<(), FileError> {
        let mut reader = Reader::new(input)?;
        while let Some(section) = reader.next_section()? {
            match section.kind {
                kind::MANIFEST => self.manifest(&section)?,
                kind::KEY => self.key(&section),
                kind::CHECKPOINT => self.checkpoint(&section),
                kind::FRAME => self.frame(&section),
                kind::REVIEW => self.told_of("review", |verifier| verifier.reviewed.take(&section)),
                kind::LOG_CHECKPOINT => self.told_of("log", |verifier| verifier.logged.note(&section, &verifier.trust)),
                kind::INCLUSION => self.told_of("log", |verifier| verifier.logged.inclusion(&section)),
                kind::CONSISTENCY => self.told_of("consistency", |verifier| verifier.logged.consistency(&section)),
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&mut self, name: &str) -> &mut Check {
        let at = CHECKS.iter().position(|known| *known == name).unwrap_or(0);
        &mut self.checks[at]
    }

    /// The first failure of a check is told, further ones are counted.
    fn fail(&mut self, name: &str, place: Place, detail: String) {
        let check = self.check(name);
        if check.state == State::Failed {
            check.more += 1;
            return;
        }
        (check.state, check.place, check.detail) = (State::Failed, place, detail);
    }

    fn conclude_with(&mut self, name: &str, state: State, detail: String) {
        let check = self.check(name);
        if check.state != State::Failed {
            (check.state, check.detail) = (state, detail);
        }
    }

    fn told_of(&mut self, name: &str, look: impl FnOnce(&mut Self) -> Result<(), Outcome>) {
        if let Err((_, place, detail)) = look(self) {
            self.fail(name, place, detail);
        }
    }

    fn conclude_as(&mut self, name: &str, (state, place, detail): Outcome) {
        match state {
            State::Failed => self.fail(name, place, detail),
            State::Passed | State::Unproved => self.conclude_with(name, state, detail),
        }
    }

    fn pass(&mut self, name: &str, detail: String) {
        self.conclude_with(name, State::Passed, detail);
    }

    fn manifest(&mut self, section: &Section) -> Result<(), FileError> {
        let wrong = FileError::Section { offset: section.offset, what: "the manifest cannot be read" };
        if section.content.len() > MANIFEST_MAX {
            return Err(wrong);
        }
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(&section.content) else { return Err(wrong) };
        let text = |name: &str| value.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
        let uuid = |name: &str| Uuid::try_parse(text(name)).ok().map(Uuid::into_bytes);
        let stream = hex::decode(text("stream")).ok().and_then(|bytes| bytes.try_into().ok());
        let format = value.get("format").and_then(serde_json::Value::as_u64);
        let (Some(1), Some(session), Some(host_id), Some(stream)) = (format, uuid("session"), uuid("host_id"), stream)
        else {
            return Err(wrong);
        };
        self.facts.session = text("session").to_owned();
        self.facts.host_id = text("host_id").to_owned();
        self.facts.hostname = text("hostname").to_owned();
        self.facts.stream = text("stream").to_lowercase();
        self.manifest = Some(Manifest { session, host_id, stream });
        Ok(())
    }

    /// Room for another statement; a file with more of them is not read to its end.
    fn has_room(&mut self, name: &str, offset: u64) -> bool {
        let counts = [self.keys.len(), self.claims.len(), self.logged.count()];
        let room = counts.iter().all(|count| *count < STATEMENTS_MAX);
        if !room {
            self.fail(name, Place::byte(offset), format!("more than {STATEMENTS_MAX} statements"));
        }
        room
    }

    fn key(&mut self, section: &Section) {
        self.links += 1;
        // What does not lead on from a link that holds proves nothing.
        if self.check("key-chain").state == State::Failed || !self.has_room("key-chain", section.offset) {
            return;
        }
        if let Err(detail) = self.link(section) {
            self.fail("key-chain", Place::byte(section.offset), detail);
        }
    }

    fn link(&mut self, section: &Section) -> Result<(), String> {
        let signed = Signed::parse(&section.content).map_err(|error| error.to_string())?;
        let statement = &signed.statement;
        if self.keys.is_empty() {
            self.keys.push(statement.host_key);
        }
        let epoch = self.births.len() as u64;
        let Kind::NextKey(next) = statement.kind else { return Err("a link that names no next key".to_owned()) };
        if Some(&statement.host_key) != self.keys.first() {
            return Err(format!("the link of epoch {} belongs to another host key", statement.epoch));
        }
        if statement.epoch != epoch {
            return Err(format!("the link of epoch {epoch} is missing; that of epoch {} is there", statement.epoch));
        }
        let key = self.keys.last().copied().unwrap_or_default();
        signed.verify(&key).map_err(|error| format!("the link of epoch {epoch}: {error}"))?;
        self.keys.push(next);
        let (boot_id, boot_ns, wall_ns) = (statement.boot_id, statement.boot_ns, statement.wall_ns);
        self.births.push(Birth { boot_id, boot_ns, wall_ns });
        if self.manifest.as_ref().is_some_and(|manifest| manifest.stream == statement.stream_id) {
            self.claim(statement, section.offset);
        }
        Ok(())
    }

    fn checkpoint(&mut self, section: &Section) {
        self.checkpoints += 1;
        if !self.has_room("checkpoints", section.offset) {
            return;
        }
        match self.stated(section) {
            Ok(statement) => {
                self.claim(&statement, section.offset);
                self.logged.stated(section, statement.seq);
                self.mark(statement);
            }
            Err(detail) => self.fail("checkpoints", Place::byte(section.offset), detail),
        }
    }

    fn stated(&mut self, section: &Section) -> Result<Statement, String> {
        let signed = Signed::parse(&section.content).map_err(|error| error.to_string())?;
        let statement = &signed.statement;
        let about = format!("the checkpoint about frame {}", statement.seq);
        if self.keys.is_empty() {
            self.keys.push(statement.host_key);
        }
        let Some(manifest) = &self.manifest else { return Err("no manifest".to_owned()) };
        if matches!(statement.kind, Kind::NextKey(_)) {
            return Err(format!("{about} is a link of the chain of keys"));
        }
        if Some(&statement.host_key) != self.keys.first() || statement.host_id != manifest.host_id {
            return Err(format!("{about} is another host's"));
        }
        if statement.stream_id != manifest.stream {
            return Err(format!("{about} belongs to another stream"));
        }
        let key = usize::try_from(statement.epoch).ok().and_then(|epoch| self.keys.get(epoch));
        let Some(key) = key else {
            return Err(format!(
                "{about} is signed by the key of epoch {}, which nothing vouches for",
                statement.epoch
            ));
        };
        signed.verify(key).map_err(|error| format!("{about}: {error}"))?;
        Ok(signed.statement)
    }

    fn claim(&mut self, statement: &Statement, offset: u64) {
        if statement.seq == 0 {
            return;
        }
        let claim = self.claims.entry(statement.seq).or_insert(Claim { hash: statement.hash, offset });
        if claim.hash != statement.hash {
            let detail = format!("the host signed two different frames {}", statement.seq);
            self.fail("covered", Place { offset: Some(offset), frame: Some(statement.seq) }, detail);
        }
    }

    fn mark(&mut self, statement: Statement) {
        let Some(session) = self.manifest.as_ref().map(|manifest| manifest.session) else { return };
        for (what, marked) in [(reason::OPENED, &mut self.opening), (reason::CLOSED, &mut self.closing)] {
            if marked.is_none() && statement.marks(what, session) {
                *marked = Some(Marked { statement });
                return;
            }
        }
    }

    fn frame(&mut self, section: &Section) {
        let Some((session, stream)) = self.manifest.as_ref().map(|m| (m.session, m.stream)) else { return };
        let place = |frame| Place { offset: Some(section.offset), frame };
        let frame = match Frame::parse(&section.content) {
            Ok(frame) => frame,
            Err(error) => {
                let due = self.chain.as_ref().map(|chain| chain.last.saturating_add(1));
                self.fail("frames", place(due), error.to_string());
                if let Some(chain) = &mut self.chain {
                    (chain.last, chain.hash) = (chain.last.saturating_add(1), None);
                }
                return;
            }
        };
        if self.told.events == 0 {
            // Statements come before frames: by now it is known between which numbers the session lies.
            let numbers =
                |mark: &Option<Marked>| mark.as_ref().map(|m| m.statement.numbers.clone()).unwrap_or_default();
            self.told.numbers.bound(&numbers(&self.opening), &numbers(&self.closing));
        }
        let seq = frame.header.seq;
        if frame.header.stream_id != stream {
            return self.fail("chain", place(Some(seq)), format!("frame {seq} is of another stream"));
        }
        self.follow(&frame, section);
        if self.opening.as_ref().is_some_and(|opening| opening.statement.session_seq == seq) {
            self.opening_frame.get_or_insert(frame.header);
        }
        if let Err(error) = self.told.take(session, &frame) {
            self.fail("content", place(Some(seq)), error);
        }
    }

    /// Puts a frame behind the ones before it, and holds it against what was signed.
    fn follow(&mut self, frame: &Frame<'_>, section: &Section) {
        let (seq, hash, prev) = (frame.header.seq, frame.hash, frame.header.prev);
        let place = Place { offset: Some(section.offset), frame: Some(seq) };
        match &self.chain {
            Some(chain) if seq != chain.last.saturating_add(1) => {
                let detail = format!("frame {seq} follows frame {}", chain.last);
                self.fail("chain", place, detail);
            }
            Some(Chain { hash: Some(before), last, .. }) if *before != prev => {
                let detail = format!("frame {seq} does not continue frame {last}");
                self.fail("chain", place, detail);
            }
            Some(_) => {}
            None => {
                let before = self.claims.get(&(seq - 1)).map(|claim| claim.hash);
                if before.is_some_and(|before| before != prev) {
                    let detail = format!("frame {seq} does not continue the frame {} that the host signed", seq - 1);
                    self.fail("covered", place, detail);
                }
            }
        }
        let signed = self.claims.get(&seq).map(|claim| (claim.hash == hash, claim.offset));
        if let Some((false, at)) = signed {
            let detail = format!("frame {seq} is not the one that the host signed (statement at byte {at})");
            self.fail("covered", place, detail);
        }
        let chain =
            self.chain.get_or_insert(Chain { first: seq, last: seq, hash: None, signed: None, bytes: 0, count: 0 });
        (chain.last, chain.hash) = (seq, Some(hash));
        chain.bytes += section.content.len() as u64;
        chain.count += 1;
        if signed.is_some_and(|(fits, _)| fits) {
            chain.signed = Some(seq);
        }
    }

    /// What can be said only at the end.
    fn conclude(&mut self) {
        self.conclude_keys();
        self.conclude_frames();
        self.conclude_mark("opening", "opened", |verifier| verifier.opening.take());
        self.conclude_mark("closing", "closed", |verifier| verifier.closing.take());
        self.conclude_content();
        self.conclude_complete();
        // After the frames: they tell who the operators were.
        self.conclude_review();
        let log = self.logged.conclude_log(&self.trust);
        self.conclude_as("log", log);
        let witnesses = self.logged.conclude_witnesses(&self.trust);
        self.conclude_as("witnesses", witnesses);
        let consistency = self.logged.conclude_consistency(&self.trust, &self.reviewed.seen);
        self.conclude_as("consistency", consistency);
        self.facts.log = self.logged.log_head();
        self.facts.reviews = std::mem::take(&mut self.reviewed.told);
    }

    fn conclude_review(&mut self) {
        let Some(manifest) = &self.manifest else { return };
        let opener = (self.facts.operator.clone(), self.facts.operator_key.clone());
        let operators = [vec![opener], self.facts.joined.clone()].concat();
        let claimed = |seq| self.claims.get(&seq).map(|claim| claim.hash);
        let subject = Subject {
            ids: [manifest.session, manifest.host_id, manifest.stream],
            last: (self.facts.last_frame, self.last_hash),
            claimed: &claimed,
            operators: &operators,
        };
        let outcome = self.reviewed.conclude(&subject, &self.trust);
        self.conclude_as("review", outcome);
    }

    fn conclude_keys(&mut self) {
        let host_key = self.keys.first().copied();
        self.facts.host_key = host_key.map(hex::encode).unwrap_or_default();
        let name = self.facts.host_key.clone();
        match host_key {
            None => self.fail("host-key", Place::default(), "the file holds no key".to_owned()),
            Some(key) if self.trust.hosts.contains(&key) => self.pass("host-key", format!("{name}, which you trust")),
            Some(_) if self.trust.hosts.is_empty() => self.conclude_with(
                "host-key",
                State::Unproved,
                format!("{name}; whether it is that host's is for you to compare: give --host-key"),
            ),
            Some(_) => self.fail("host-key", Place::default(), format!("{name} is none that you trust")),
        }
        self.facts.epochs = self.births.len() as u64;
        self.pass("key-chain", format!("{} keys, each vouched for by the one before", self.births.len() + 1));
        match self.checkpoints {
            0 if self.links == 0 => {
                self.fail("checkpoints", Place::default(), "nothing in the file is signed".to_owned())
            }
            n => self.pass("checkpoints", format!("{n}, each signed by the key of its epoch")),
        }
    }

    fn conclude_frames(&mut self) {
        let Some(chain) = self.chain.take() else {
            for name in ["frames", "chain", "covered"] {
                self.fail(name, Place::default(), "the file holds no frames".to_owned());
            }
            return;
        };
        (self.facts.first_frame, self.facts.last_frame, self.facts.bytes) = (chain.first, chain.last, chain.bytes);
        self.last_hash = chain.hash;
        self.facts.last_hash = chain.hash.map(hex::encode).unwrap_or_default();
        self.pass("frames", format!("{} frames, {} bytes, each as it was sealed", chain.count, chain.bytes));
        self.pass("chain", format!("frames {} to {}, without a hole", chain.first, chain.last));
        if chain.signed == Some(chain.last) {
            self.pass("covered", format!("everything up to frame {} is signed for", chain.last));
        } else {
            let from = chain.signed.map_or(chain.first, |signed| signed.saturating_add(1));
            self.fail("covered", Place::frame(from), format!("nobody signed for frames {from} to {}", chain.last));
        }
    }

    fn conclude_mark(&mut self, name: &str, what: &str, take: impl FnOnce(&mut Self) -> Option<Marked>) {
        let Some(Marked { statement }) = take(self) else {
            let detail =
                format!("nothing signed says that the session was {what}: it is still open, or this is not all of it");
            return self.fail(name, Place::default(), detail);
        };
        let (first, last) = (self.facts.first_frame, self.facts.last_frame);
        let seq = statement.session_seq;
        if seq < first || statement.seq > last {
            let detail = format!(
                "the session was {what} in frame {seq}, signed for in frame {}, and the file does not reach that far",
                statement.seq
            );
            return self.fail(name, Place::frame(seq), detail);
        }
        self.pass(name, format!("the session was {what} in frame {seq}"));
        if name == "opening" {
            self.conclude_time(&statement);
            self.opening = Some(Marked { statement });
        } else {
            self.closing = Some(Marked { statement });
        }
    }

    /// A thief of a later key cannot sign for an earlier session: the key must be older than what it was the first to sign for.
    fn conclude_time(&mut self, opening: &Statement) {
        let epoch = opening.epoch;
        let birth =
            usize::try_from(epoch).ok().and_then(|e| e.checked_sub(1)).and_then(|at| self.births.get(at)).copied();
        let (Some(birth), Some(frame)) = (birth, self.opening_frame) else {
            let detail = "the first key of the host signed for the opening";
            return self.conclude_with(
                "time",
                if epoch == 0 { State::Passed } else { State::Unproved },
                detail.to_owned(),
            );
        };
        let younger = match birth.boot_id == frame.boot_id {
            true => i64::try_from(birth.boot_ns.saturating_sub(frame.last_boot_ns)).unwrap_or(i64::MAX),
            false => birth.wall_ns.saturating_sub(frame.wall_ns(frame.last_boot_ns)),
        };
        if younger > AGE_SLACK_NS {
            let detail = format!(
                "the opening in frame {} is {} s older than the key of epoch {epoch}, which is the first that signed for it",
                frame.seq,
                younger / 1_000_000_000
            );
            return self.fail("time", Place::frame(frame.seq), detail);
        }
        self.pass("time", format!("the key of epoch {epoch}, which signed for the opening, was in use before it"));
    }

    fn conclude_content(&mut self) {
        let marked = |mark: &Option<Marked>| mark.as_ref().map(|mark| mark.statement.session_seq);
        let (opening, closing) = (marked(&self.opening), marked(&self.closing));
        let opened = self.told.opened.as_ref().map(|(_, frame, _)| *frame);
        let closed = self.told.closed.as_ref().map(|(_, frame, _)| *frame);
        for (what, signed, told) in [("opening", opening, opened), ("closing", closing, closed)] {
            if let Some(seq) = signed
                && told != signed
            {
                let detail = format!("frame {seq} does not hold the {what} of the session");
                self.fail("content", Place::frame(seq), detail);
            }
        }
        self.facts.tell(&self.told);
        let (events, own) = (self.told.events, self.told.own_events);
        self.pass("content", format!("{events} events, {own} of them of this session"));
    }

    fn conclude_complete(&mut self) {
        let (records, declared) = self.told.numbers.counts();
        let bounded = self.told.numbers.is_bounded();
        let holes = self.told.numbers.finish().map(<[Hole]>::to_vec);
        let Some(holes) = holes else {
            let detail = "the numbers of kernel records are too scattered to be compared".to_owned();
            return self.conclude_with("complete", State::Unproved, detail);
        };
        if let Some(hole) = holes.first() {
            let detail = format!(
                "kernel records {} to {} of CPU {} on the {} ring are missing, and nothing says so",
                hole.first,
                hole.last,
                hole.cpu,
                hole.ring_name()
            );
            let place = self.opening.as_ref().map_or(Place::default(), |m| Place::frame(m.statement.session_seq));
            self.fail("complete", place, detail);
            self.check("complete").more = holes.len() as u64 - 1;
            return;
        }
        let (state, detail) = match (records, declared, bounded) {
            (0, 0, _) => (State::Unproved, "the kernel recorded nothing".to_owned()),
            (_, 0, true) => (State::Passed, format!("{records} kernel records, none missing")),
            (_, 0, false) => {
                (State::Unproved, format!("{records} kernel records without a hole; nothing says where they end"))
            }
            _ => (
                State::Unproved,
                format!("{records} kernel records; {declared} more are missing, as the record itself says"),
            ),
        };
        self.conclude_with("complete", state, detail);
    }
}
