//! Checks the host's signatures as its frames come: pure, without I/O.
//!
//! A host is known by the first host key that it introduces. From then on every link of its chain of keys must be signed by
//! the key before, every checkpoint by the key in use, and what a statement says of a frame must be true of the frame that is held. What
//! does not fit becomes a finding, which counts as an alert of the session; frames are kept whatever they say, since they
//! are evidence of that too.

use std::collections::HashMap;

use breakglass_api::checkpoint::{Kind, PublicKey, Signed, Statement, StatementError, reason};
use breakglass_api::frame::{Hash, Header};
use breakglass_api::v1::event::Body;
use breakglass_api::v1::{Event, KeyIntroduced, SignedStatement};

use super::model::{Changes, Decoded, Uuid, Working};

/// Statements of one frame that are looked at: each costs a signature check of some 60 µs, and a host sends a handful. The
/// announcement of a new stream has 512.
const STATEMENTS_MAX: usize = 1024;

/// What a host signs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// What it is known by.
    pub host_key: PublicKey,
    /// Epoch of the key in use.
    pub epoch: u64,
    /// The key in use.
    pub key: PublicKey,
}

/// A statement that holds.
#[derive(Debug)]
pub struct StatementRow {
    pub host: i64,
    pub signed: Signed,
    /// The frame that holds it.
    pub carrier: u64,
    pub arrival: i64,
}

/// Something that does not hold.
#[derive(Debug)]
pub struct FindingRow {
    pub host: i64,
    /// The session that was open.
    pub session: Option<Uuid>,
    pub carrier: u64,
    pub wall_ns: i64,
    pub code: &'static str,
    pub message: String,
}

/// What was known before the pass: hashes of frames that statements are about, and statements that are there already.
#[derive(Default)]
pub struct Known {
    /// By stream and sequence, if held.
    pub hashes: HashMap<([u8; 16], u64), Hash>,
    /// Ids of hosts by row.
    pub host_ids: HashMap<i64, [u8; 16]>,
    /// Links that are held, by host, host key and epoch.
    pub links: HashMap<(i64, PublicKey, u64), Signed>,
}

impl Known {
    /// Takes up the links that `changes` add, so that those that follow are compared with them. The first of an epoch counts, as in the index.
    pub fn take(&mut self, changes: &Changes) {
        for StatementRow { host, signed, .. } in &changes.statements {
            let statement = &signed.statement;
            if let Kind::NextKey(_) = statement.kind {
                let key = (*host, statement.host_key, statement.epoch);
                self.links.entry(key).or_insert_with(|| signed.clone());
            }
        }
    }
}

/// Every statement that an event carries.
pub fn carried(event: &Event) -> Vec<&SignedStatement> {
    match &event.body {
        Some(Body::Checkpoint(checkpoint)) => checkpoint.signed.iter().collect(),
        Some(Body::KeyEvolved(evolved)) => evolved.signed.iter().collect(),
        Some(Body::KeyIntroduced(introduced)) => introduced.links.iter().chain(&introduced.renewal).collect(),
        _ => Vec::new(),
    }
}

/// As [`carried`] over a whole frame, read, as many as are looked at.
pub fn statements(frame: &Decoded) -> impl Iterator<Item = Statement> {
    let all = frame.events().flat_map(|(event, _)| carried(event));
    all.take(STATEMENTS_MAX).filter_map(|signed| Statement::parse(&signed.statement).ok())
}

/// Checks the statements of one frame.
pub fn frame(working: &mut Working, changes: &mut Changes, known: &Known, frame: &Decoded) {
    let Ok((header, _)) = &frame.content else { return };
    let (host, arrival) = (frame.host, frame.arrival);
    let mut place = Place { working, changes, known, host, arrival, header, wall_ns: 0, marked: None };
    let mut seen = 0;
    for (event, _) in frame.events() {
        let count = carried(event).len();
        if count == 0 && !matches!(event.body, Some(Body::KeyIntroduced(_))) {
            continue;
        }
        seen += count;
        place.marked = None;
        place.wall_ns = header.wall_ns(event.boot_ns);
        if seen > STATEMENTS_MAX {
            let message =
                format!("more than {STATEMENTS_MAX} statements in one frame; the rest of them is not looked at");
            return place.find("bad-signature", message);
        }
        match &event.body {
            Some(Body::KeyIntroduced(introduced)) => place.introduced(introduced),
            Some(Body::Checkpoint(checkpoint)) => place.stated(checkpoint.signed.as_ref()),
            Some(Body::KeyEvolved(evolved)) => place.stated(evolved.signed.as_ref()),
            _ => {}
        }
    }
}

struct Place<'a> {
    working: &'a mut Working,
    changes: &'a mut Changes,
    known: &'a Known,
    host: i64,
    arrival: i64,
    header: &'a Header,
    wall_ns: i64,
    /// The session that the statement at hand marks.
    marked: Option<Uuid>,
}

impl Place<'_> {
    fn find(&mut self, code: &'static str, message: String) {
        let open = self.working.hosts.get(&self.host).and_then(|host| host.open);
        let session = self.marked.or(open);
        tracing::error!(host = self.host, frame = self.header.seq, code, message, "the record's proof does not hold");
        if let Some(uuid) = session
            && let Some(state) = self.working.sessions.get_mut(&(self.host, uuid))
        {
            state.alerts += 1;
            self.changes.sessions.insert((self.host, uuid));
        }
        let carrier = self.header.seq;
        let row = FindingRow { host: self.host, session, carrier, wall_ns: self.wall_ns, code, message };
        self.changes.findings.push(row);
    }

    fn signer(&self) -> Option<&Signer> {
        self.working.hosts.get(&self.host).and_then(|host| host.signer.as_ref())
    }

    fn adopt(&mut self, signer: Signer) {
        self.working.hosts.entry(self.host).or_default().signer = Some(signer);
        self.changes.hosts.insert(self.host);
    }

    fn keep(&mut self, signed: Signed) {
        let row = StatementRow { host: self.host, signed, carrier: self.header.seq, arrival: self.arrival };
        self.changes.statements.push(row);
    }

    fn introduced(&mut self, introduced: &KeyIntroduced) {
        let keys = (introduced.host_key.as_slice().try_into(), introduced.key.as_slice().try_into());
        let (Ok(host_key), Ok(key)) = keys else {
            return self.find("bad-signature", "a key was introduced that is none".to_owned());
        };
        match self.signer().map(|signer| signer.host_key) {
            Some(pinned) if pinned == host_key => {}
            Some(_) => self.replaced(host_key, introduced),
            None => self.adopt(Signer { host_key, epoch: 0, key: host_key }),
        }
        for link in &introduced.links {
            self.announced(link);
        }
        let signer = Signer { host_key, epoch: introduced.epoch, key };
        if self.signer() != Some(&signer) {
            let from = self.signer().map_or(0, |signer| signer.epoch);
            let message = format!(
                "the host signs with the key of epoch {}, and nothing here leads to it from the last key that is known, of epoch {from}",
                introduced.epoch
            );
            self.find("broken-key-chain", message);
            self.adopt(signer);
        }
    }

    /// Another host key than the one that the host was known by.
    fn replaced(&mut self, host_key: PublicKey, introduced: &KeyIntroduced) {
        let vouched = match (Signed::from_message(introduced.renewal.as_ref()), self.signer()) {
            (Ok(renewal), Some(signer)) => {
                let fits = renewal.statement.kind == Kind::NewHostKey(host_key)
                    && renewal.statement.host_key == signer.host_key
                    && renewal.statement.epoch == signer.epoch
                    && renewal.verify(&signer.key).is_ok();
                fits.then_some(renewal)
            }
            _ => None,
        };
        let how = match &vouched {
            Some(_) => "the old key vouches for it, so somebody with root on the host asked for it",
            None => "the old key does not vouch for it: the host was set up anew, or is not the same",
        };
        let message =
            format!("the host has a new host key {}: {how} (reason given: {})", hex(&host_key), word(introduced));
        self.find("host-key-changed", message);
        if let Some(renewal) = vouched {
            self.keep(renewal);
        }
        self.adopt(Signer { host_key, epoch: 0, key: host_key });
    }

    /// A link that is told again, or for the first time where the frame that held it is lost.
    fn announced(&mut self, message: &SignedStatement) {
        match Signed::from_message(Some(message)) {
            Ok(link) => self.link(link, true),
            Err(error) => self.find("bad-signature", format!("a link of the chain of keys cannot be read: {error}")),
        }
    }

    fn stated(&mut self, message: Option<&SignedStatement>) {
        let signed = match Signed::from_message(message) {
            Ok(signed) => signed,
            Err(error) => return self.find("bad-signature", format!("a statement cannot be read: {error}")),
        };
        let statement = &signed.statement;
        self.marked = mark(statement).map(|(session, _)| session);
        let ours = self.known.host_ids.get(&self.host).is_some_and(|id| *id == statement.host_id);
        match statement.kind {
            Kind::NextKey(_) => self.link(signed, false),
            Kind::Checkpoint if !ours => {
                self.find("foreign-statement", "a checkpoint of another host lies in this host's record".to_owned());
            }
            Kind::Checkpoint => self.checkpoint(signed),
            Kind::NewHostKey(_) => self.find("bad-signature", "a new host key where a checkpoint belongs".to_owned()),
        }
    }

    fn checkpoint(&mut self, signed: Signed) {
        let statement = &signed.statement;
        let Some(signer) = self.signer() else {
            return self.find("broken-key-chain", "a checkpoint before any key was introduced".to_owned());
        };
        if statement.host_key != signer.host_key {
            let message = format!("a checkpoint under another host key, {}", hex(&statement.host_key));
            return self.find("foreign-statement", message);
        }
        if statement.epoch != signer.epoch {
            // A repaired spool tells again what the old one had told.
            if statement.stream_id != self.header.stream_id {
                return;
            }
            let (epoch, now) = (statement.epoch, signer.epoch);
            let message = format!("a checkpoint by the key of epoch {epoch}, while that of epoch {now} is in use");
            return self.find("bad-signature", message);
        }
        if let Err(error) = signed.verify(&signer.key) {
            return self.unsigned("checkpoint", statement.seq, &error);
        }
        if self.fits(&signed.statement) {
            self.keep(signed);
        }
    }

    fn link(&mut self, link: Signed, announced: bool) {
        let Some(signer) = self.signer().cloned() else {
            return self.find("broken-key-chain", "a key was replaced before any was introduced".to_owned());
        };
        let statement = &link.statement;
        let Kind::NextKey(next) = statement.kind else {
            return self.find("bad-signature", "a link of the chain of keys names no next key".to_owned());
        };
        if statement.host_key != signer.host_key {
            let message = format!("a link under another host key, {}", hex(&statement.host_key));
            return self.find("foreign-statement", message);
        }
        let epoch = statement.epoch;
        if epoch < signer.epoch {
            let held = self.known.links.get(&(self.host, signer.host_key, epoch));
            let added = self.changes.statements.iter().map(|row| &row.signed);
            let same = held.into_iter().chain(added).any(|known| *known == link);
            if !same {
                let message =
                    format!("the key of epoch {epoch} has two successors: its secret was used by somebody else");
                self.find("fork", message);
            }
            return;
        }
        if epoch > signer.epoch {
            // What is introduced is adopted at the end of the introduction.
            if !announced {
                let now = signer.epoch;
                let message =
                    format!("the key of epoch {epoch} was replaced, and the last one known is of epoch {now}");
                self.find("broken-key-chain", message);
                self.adopt(Signer { host_key: signer.host_key, epoch: epoch.saturating_add(1), key: next });
            }
            return;
        }
        if let Err(error) = link.verify(&signer.key) {
            return self.unsigned("change of the key", statement.seq, &error);
        }
        self.fits(&link.statement);
        self.keep(link);
        self.adopt(Signer { host_key: signer.host_key, epoch: epoch.saturating_add(1), key: next });
    }

    fn unsigned(&mut self, what: &str, seq: u64, error: &StatementError) {
        self.find("bad-signature", format!("a {what} about frame {seq}: {error}"));
    }

    /// Whether what is said of a frame is true of the one that is held. One that is not held cannot be compared.
    fn fits(&mut self, statement: &Statement) -> bool {
        let (stream, seq) = (statement.stream_id, statement.seq);
        let ours = stream == self.header.stream_id;
        if ours && seq >= self.header.seq {
            let message =
                format!("a statement about frame {seq} lies in frame {}, which is not behind it", self.header.seq);
            self.find("fork", message);
            return false;
        }
        match self.known.hashes.get(&(stream, seq)) {
            Some(hash) if *hash != statement.hash => {
                let message = format!("the host signed another frame {seq} than the one that it sent");
                self.find("fork", message);
                false
            }
            _ => true,
        }
    }
}

/// The session that a statement marks, and how.
pub fn mark(statement: &Statement) -> Option<(Uuid, u16)> {
    let marks = statement.reasons & (reason::OPENED | reason::CLOSED);
    (marks != 0).then_some((statement.session, marks))
}

/// The host's own word, harmless and short.
fn word(introduced: &KeyIntroduced) -> String {
    introduced.reason.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(32).collect()
}

/// A key as it is written.
pub fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}
