//! What a transparency log tells of hosts, read from its first leaf to its last: which sessions there were, and whether anything that a
//! host signed is missing.
//!
//! A host signs with one key after the other, and each names the next. So nothing can be left out of the log without a hole: without the
//! statement that names a key, nothing signed with that key can be there. A key is replaced after every opening and every closing of a
//! session, and says so by giving no other reason; so where such a change is there and the checkpoint that marks the session is not, it
//! was left out. Only what comes last can be: that is silence, and for each host it is told since when.

use std::collections::BTreeMap;

use breakglass_api::checkpoint::{Kind, PublicKey, Signed, Statement, reason};

/// Findings that are told of one host; more of the same say no more.
const FINDINGS_MAX: usize = 100;
/// Hosts that are followed. A log with more is one that somebody fills.
const HOSTS_MAX: usize = 1 << 16;

/// A session as the log tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Leaf that marks its opening, and when that was signed, wall clock, ns.
    pub opened: Option<(u64, i64)>,
    /// The same of its closing.
    pub closed: Option<(u64, i64)>,
}

/// Something that should not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The leaf where it shows.
    pub leaf: u64,
    /// A stable word: `missing-keys`, `missing-mark`, `bad-signature`, `fork`.
    pub code: &'static str,
    /// A sentence.
    pub message: String,
}

/// What the log tells of one host.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Its ids; more than one where it was enrolled again.
    pub ids: Vec<[u8; 16]>,
    /// Statements.
    pub statements: u64,
    /// When the last of them was signed, wall clock, ns.
    pub last_ns: i64,
    /// Sessions by id.
    pub sessions: BTreeMap<[u8; 16], Seen>,
    /// What should not be, in order.
    pub findings: Vec<Finding>,
    /// The host key that took the place of this one.
    pub succeeded_by: Option<PublicKey>,
    /// Keys by epoch, those that the log names.
    keys: BTreeMap<u64, PublicKey>,
    /// The first epoch of which nothing is known yet.
    due: u64,
    /// Something under the key in use marked a session.
    marked: bool,
    /// The last frame that was signed for in a stream, and its hash.
    reach: Option<([u8; 16], u64, [u8; 32])>,
}

/// A log, leaf by leaf.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Hosts by their keys.
    pub hosts: BTreeMap<PublicKey, Host>,
    /// Leaves that are no statement of a host.
    pub foreign: u64,
}

impl History {
    /// Takes the next leaf.
    pub fn take(&mut self, leaf: u64, content: &[u8]) {
        let Ok(signed) = Signed::parse(content) else {
            self.foreign += 1;
            return;
        };
        let key = signed.statement.host_key;
        if !self.hosts.contains_key(&key) && self.hosts.len() >= HOSTS_MAX {
            self.foreign += 1;
            return;
        }
        let host = self.hosts.entry(key).or_insert_with(|| Host {
            keys: BTreeMap::from([(0, key)]),
            due: 1,
            ..Host::default()
        });
        host.take(leaf, &signed);
    }

    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.hosts.values().all(|host| host.findings.is_empty())
    }
}

impl Host {
    fn take(&mut self, leaf: u64, signed: &Signed) {
        let statement = &signed.statement;
        match self.key(leaf, statement.epoch) {
            Some(key) if signed.verify(&key).is_err() => {
                let message = format!("it is not signed with the key of epoch {}, as it says", statement.epoch);
                return self.find(leaf, "bad-signature", message);
            }
            // One that nothing names cannot be verified; that is told already.
            _ => {}
        }
        self.statements += 1;
        self.last_ns = self.last_ns.max(statement.wall_ns);
        if !self.ids.contains(&statement.host_id) && self.ids.len() < FINDINGS_MAX {
            self.ids.push(statement.host_id);
        }
        self.follow(leaf, statement);
        match statement.kind {
            Kind::Checkpoint => self.mark(leaf, statement),
            Kind::NextKey(next) => self.turn(leaf, statement, next),
            Kind::NewHostKey(next) => self.succeeded_by = Some(next),
        }
    }

    /// The key of an epoch. What leads to it may be missing.
    fn key(&mut self, leaf: u64, epoch: u64) -> Option<PublicKey> {
        if epoch >= self.due {
            let message = format!(
                "signed with the key of epoch {epoch}, and what names the keys of epochs {} to {epoch} is not in the log: what the host signed then was left out",
                self.due
            );
            self.find(leaf, "missing-keys", message);
            self.due = epoch.saturating_add(1);
            self.marked = true;
        }
        self.keys.get(&epoch).copied()
    }

    fn mark(&mut self, leaf: u64, statement: &Statement) {
        let at = (leaf, statement.wall_ns);
        for (bit, what) in [(reason::OPENED, true), (reason::CLOSED, false)] {
            if statement.reasons & bit == 0 {
                continue;
            }
            self.marked = true;
            let seen = self.sessions.entry(statement.session).or_default();
            let slot = if what { &mut seen.opened } else { &mut seen.closed };
            slot.get_or_insert(at);
        }
    }

    fn turn(&mut self, leaf: u64, statement: &Statement, next: PublicKey) {
        let epoch = statement.epoch.saturating_add(1);
        match self.keys.get(&epoch) {
            Some(known) if *known != next => {
                let message = format!("the key of epoch {} has two successors", statement.epoch);
                return self.find(leaf, "fork", message);
            }
            Some(_) => return,
            None => {}
        }
        self.keys.insert(epoch, next);
        self.due = self.due.max(epoch.saturating_add(1));
        if statement.reasons == reason::ACTIVITY && !self.marked {
            let message = format!(
                "the key of epoch {} was replaced because a session was opened or closed, and the checkpoint that marks it is not in the log",
                statement.epoch
            );
            self.find(leaf, "missing-mark", message);
        }
        self.marked = false;
    }

    /// Two statements about one frame must say the same.
    fn follow(&mut self, leaf: u64, statement: &Statement) {
        let now = (statement.stream_id, statement.seq, statement.hash);
        if let Some((stream, seq, hash)) = self.reach
            && (stream, seq) == (now.0, now.1)
            && hash != now.2
        {
            let message = format!("the host signed two different frames {seq} of one stream");
            self.find(leaf, "fork", message);
        }
        self.reach = Some(now);
    }

    fn find(&mut self, leaf: u64, code: &'static str, message: String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(Finding { leaf, code, message });
        }
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};
    use proptest::prelude::*;

    use super::*;

    fn key(epoch: u64) -> SigningKey {
        SigningKey::from_bytes(&[epoch as u8 + 1; 32])
    }

    fn signed(epoch: u64, kind: Kind, reasons: u16, session: u8) -> Signed {
        let marked = reasons & (reason::OPENED | reason::CLOSED) != 0;
        let statement = Statement {
            kind,
            reasons,
            host_id: [1; 16],
            host_key: key(0).verifying_key().to_bytes(),
            epoch,
            stream_id: [2; 16],
            seq: epoch + 1,
            hash: [epoch as u8 + 1; 32],
            boot_id: [3; 16],
            boot_ns: epoch,
            wall_ns: epoch as i64,
            session: if marked { [session; 16] } else { [0; 16] },
            session_seq: if marked { 1 } else { 0 },
            numbers: Vec::new(),
        };
        let signature = key(epoch).sign(&Statement::signing_input(&statement.encode())).to_bytes();
        Signed { statement, signature }
    }

    fn turn(epoch: u64, reasons: u16) -> Signed {
        signed(epoch, Kind::NextKey(key(epoch + 1).verifying_key().to_bytes()), reasons, 0)
    }

    /// Start, two sessions with a minute of activity in each, and a key of age.
    fn log() -> Vec<Signed> {
        let mut log = vec![signed(0, Kind::Checkpoint, reason::STARTED, 0), turn(0, reason::STARTED)];
        for (session, first) in [(7, 1), (8, 4)] {
            log.push(signed(first, Kind::Checkpoint, reason::OPENED, session));
            log.push(turn(first, reason::ACTIVITY));
            log.push(signed(first + 1, Kind::Checkpoint, reason::ACTIVITY, 0));
            log.push(turn(first + 1, reason::KEY_AGE));
            log.push(signed(first + 2, Kind::Checkpoint, reason::CLOSED, session));
            log.push(turn(first + 2, reason::ACTIVITY));
        }
        log.push(signed(7, Kind::Checkpoint, reason::STOPPING, 0));
        log
    }

    fn read(log: &[Signed]) -> Host {
        let mut history = History::default();
        (0..).zip(log).for_each(|(leaf, signed)| history.take(leaf, &signed.encode()));
        assert_eq!(history.is_sound(), history.hosts.values().all(|host| host.findings.is_empty()));
        history.hosts.into_values().next().unwrap()
    }

    fn codes(host: &Host) -> Vec<&'static str> {
        host.findings.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn sessions_are_told_and_nothing_is_missing() {
        let host = read(&log());
        assert_eq!(codes(&host), Vec::<&str>::new(), "{:?}", host.findings);
        let sessions: Vec<(u8, bool, bool)> =
            host.sessions.iter().map(|(id, seen)| (id[0], seen.opened.is_some(), seen.closed.is_some())).collect();
        assert_eq!(sessions, [(7, true, true), (8, true, true)]);
        assert_eq!((host.statements, host.last_ns), (15, 7));
    }

    #[test]
    fn whatever_is_left_out_but_the_end_leaves_a_hole() {
        let whole = log();
        // A session, from its opening to its closing, with or without the changes of keys; and each statement by itself.
        let mut left_out = vec![(2..8, "missing-keys"), (8..14, "missing-keys")];
        for (at, signed) in whole.iter().enumerate() {
            match signed.statement.kind {
                Kind::NextKey(_) => left_out.push((at..at + 1, "missing-keys")),
                _ if signed.statement.reasons & (reason::OPENED | reason::CLOSED) != 0 => {
                    left_out.push((at..at + 1, "missing-mark"));
                }
                _ => {}
            }
        }
        for (range, code) in left_out {
            let rest: Vec<Signed> = [&whole[..range.start], &whole[range.end..]].concat();
            let host = read(&rest);
            assert!(codes(&host).contains(&code), "{range:?}: {:?}", host.findings);
        }
        // What comes last nobody can miss yet.
        assert!(read(&whole[..8]).findings.is_empty());
    }

    #[test]
    fn forgeries_and_forks_are_told() {
        let mut forged = log();
        forged[4].signature[3] ^= 1;
        assert_eq!(codes(&read(&forged)), ["bad-signature"]);
        let mut forked = log();
        let mut other = forked[4].statement.clone();
        other.hash = [99; 32];
        let signature = key(2).sign(&Statement::signing_input(&other.encode())).to_bytes();
        forked.insert(5, Signed { statement: other, signature });
        assert!(codes(&read(&forked)).contains(&"fork"));
        let mut turned = log();
        turned.push(signed(3, Kind::NextKey([9; 32]), reason::KEY_AGE, 0));
        assert_eq!(codes(&read(&turned)), ["fork"]);
    }

    proptest! {
        #[test]
        fn noise_never_panics(leaves in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..20), cut: prop::sample::Index, byte: u8) {
            let mut history = History::default();
            let mut signed = log()[2].encode();
            *cut.get_mut(&mut signed) = byte;
            for (leaf, content) in (0..).zip(leaves.into_iter().chain([signed])) {
                history.take(leaf, &content);
            }
        }
    }
}
