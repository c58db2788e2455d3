//! Signed statements about a stream of frames: checkpoints, and the links of the chain of keys that signs them.
//!
//! A host signs with an Ed25519 key that is replaced again and again. The key of epoch 0 is the *host key*, by which the host is
//! known; the key of epoch e signs a statement that names the key of epoch e + 1 and is then destroyed. Every statement, of
//! either kind, says where the stream stood: so the last thing that a key ever signs fixes everything up to there, and
//! whoever steals a later key cannot sign another past.
//!
//! All integers are little-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `BGS1` |
//! | 4 | 1 | kind: 1 = checkpoint, 2 = next key, 3 = new host key |
//! | 5 | 1 | zero |
//! | 6 | 2 | why it was made, bits of [`reason`] |
//! | 8 | 16 | host id, a UUID |
//! | 24 | 32 | host key: the public key of epoch 0 |
//! | 56 | 8 | epoch of the key that signs |
//! | 64 | 32 | kind 2: public key of the next epoch; kind 3: the new host key; kind 1: zeros |
//! | 96 | 16 | stream id |
//! | 112 | 8 | sequence of the last frame covered; 0: none yet |
//! | 120 | 32 | hash of that frame; zeros for sequence 0 |
//! | 152 | 16 | boot id |
//! | 168 | 8 | when it was made, boot clock (`CLOCK_BOOTTIME`), ns |
//! | 176 | 8 | when it was made, wall clock, ns since 1970, signed |
//! | 184 | 16 | session that was opened or closed; zeros for none |
//! | 200 | 8 | sequence of the frame that holds its opening or closing; 0 for none |
//! | 208 | 4 | n, how many numbers follow; at most [`NUMBERS_MAX`] |
//! | 212 | 4 | zero |
//! | 216 | 16 n | numbers, each: ring (1), zeros (3), CPU (4), number (8); strictly ascending by ring and CPU |
//!
//! A number says that every kernel record of this ring and CPU up to it is in a frame up to the one covered, or was declared missing
//! in one. The signature is Ed25519 (RFC 8032) over `breakglass-statement-v1\0` and the statement. A *signed statement* is the
//! statement followed by the 64 bytes of the signature; this is also a leaf of the transparency log.

use ed25519_dalek::{Signature, VerifyingKey};

use crate::frame::Hash;
use crate::v1;

/// Length of a statement without numbers, bytes.
pub const STATEMENT_LEN: usize = 216;
/// Length of an Ed25519 signature, bytes.
pub const SIGNATURE_LEN: usize = 64;
/// Most numbers in one statement: three rings on 1024 CPUs. With them a signed statement still fits an entry of a transparency
/// log, which is below 64 KiB.
pub const NUMBERS_MAX: usize = 3072;
/// Longest signed statement, bytes.
pub const SIGNED_MAX: usize = STATEMENT_LEN + NUMBERS_MAX * NUMBER_LEN + SIGNATURE_LEN;

const MAGIC: [u8; 4] = *b"BGS1";
const DOMAIN: &[u8] = b"breakglass-statement-v1\0";
const NUMBER_LEN: usize = 16;

/// An Ed25519 public key.
pub type PublicKey = [u8; 32];

/// Why a statement was made, as bits.
pub mod reason {
    /// Frames were added.
    pub const ACTIVITY: u16 = 1;
    /// A session was opened: `session` and `session_seq` say which and where.
    pub const OPENED: u16 = 2;
    /// A session was closed: `session` and `session_seq` say which and where.
    pub const CLOSED: u16 = 4;
    /// A proof was refused.
    pub const REFUSED: u16 = 8;
    /// An alert was recorded.
    pub const ALERT: u16 = 16;
    /// The agent started.
    pub const STARTED: u16 = 32;
    /// The agent stops.
    pub const STOPPING: u16 = 64;
    /// A key had been in use for its time.
    pub const KEY_AGE: u16 = 128;
    /// An administrator asked for a new host key.
    pub const RENEWED: u16 = 256;

    /// The bits as words, for people.
    pub fn words(bits: u16) -> Vec<&'static str> {
        let names = [
            (ACTIVITY, "activity"),
            (OPENED, "opened"),
            (CLOSED, "closed"),
            (REFUSED, "refused"),
            (ALERT, "alert"),
            (STARTED, "started"),
            (STOPPING, "stopping"),
            (KEY_AGE, "key-age"),
            (RENEWED, "renewed"),
        ];
        names.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| name).collect()
    }
}

/// What a statement does beside fixing the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Checkpoint,
    /// Names the key of the next epoch; the last statement of this one.
    NextKey(PublicKey),
    /// Names the host key that begins another chain of keys; the last statement of this chain.
    NewHostKey(PublicKey),
}

/// How far the records of one ring and CPU are accounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// The ring's number in the protocol.
    pub ring: u8,
    /// The CPU.
    pub cpu: u32,
    /// Everything up to and with this number.
    pub upto: u64,
}

/// A statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// What it does.
    pub kind: Kind,
    /// Why it was made, bits of [`reason`].
    pub reasons: u16,
    /// The host's id, a UUID.
    pub host_id: [u8; 16],
    /// The public key of epoch 0.
    pub host_key: PublicKey,
    /// Epoch of the key that signs.
    pub epoch: u64,
    /// The stream.
    pub stream_id: [u8; 16],
    /// Last frame covered; 0 for none.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
    /// The host's boot.
    pub boot_id: [u8; 16],
    /// When it was made, boot clock, ns.
    pub boot_ns: u64,
    /// When it was made, wall clock, ns since 1970.
    pub wall_ns: i64,
    /// Session opened or closed; zeros for none.
    pub session: [u8; 16],
    /// The frame with its opening or closing; 0 for none.
    pub session_seq: u64,
    /// How far kernel records are accounted for, ascending by ring and CPU; empty where it does not say.
    pub numbers: Vec<Number>,
}

/// Why bytes are not a statement, or not one by this key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// The length is none that a statement can have.
    #[error("a signed statement of {0} bytes: the length is wrong")]
    Length(usize),
    /// Wrong magic.
    #[error("not a statement: it does not begin with BGS1")]
    Magic,
    /// A kind that this version does not know.
    #[error("unknown kind of statement {0}")]
    Kind(u8),
    /// Fields that exclude each other.
    #[error("the statement contradicts itself: {0}")]
    Contradiction(&'static str),
    /// The signing key is no key.
    #[error("the signing key is not a usable Ed25519 public key")]
    Key,
    /// The signature does not fit.
    #[error("the signature does not fit the statement and the key")]
    Signature,
}

impl Statement {
    /// The one spelling of these fields.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, next) = match self.kind {
            Kind::Checkpoint => (1, [0; 32]),
            Kind::NextKey(key) => (2, key),
            Kind::NewHostKey(key) => (3, key),
        };
        let mut out = Vec::with_capacity(STATEMENT_LEN + self.numbers.len() * NUMBER_LEN + SIGNATURE_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[kind, 0]);
        out.extend_from_slice(&self.reasons.to_le_bytes());
        out.extend_from_slice(&self.host_id);
        out.extend_from_slice(&self.host_key);
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&next);
        out.extend_from_slice(&self.stream_id);
        out.extend_from_slice(&self.seq.to_le_bytes());
        out.extend_from_slice(&self.hash);
        out.extend_from_slice(&self.boot_id);
        out.extend_from_slice(&self.boot_ns.to_le_bytes());
        out.extend_from_slice(&self.wall_ns.to_le_bytes());
        out.extend_from_slice(&self.session);
        out.extend_from_slice(&self.session_seq.to_le_bytes());
        out.extend_from_slice(&u32::try_from(self.numbers.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for number in &self.numbers {
            out.extend_from_slice(&[number.ring, 0, 0, 0]);
            out.extend_from_slice(&number.cpu.to_le_bytes());
            out.extend_from_slice(&number.upto.to_le_bytes());
        }
        out
    }

    /// Reads a statement, strictly: what is accepted has one spelling.
    pub fn parse(bytes: &[u8]) -> Result<Self, StatementError> {
        let mut rest = Cursor { rest: bytes, len: bytes.len() + SIGNATURE_LEN };
        if rest.take::<4>()? != MAGIC {
            return Err(StatementError::Magic);
        }
        let [kind, zero] = rest.take()?;
        let reasons = u16::from_le_bytes(rest.take()?);
        let (host_id, host_key, epoch) = (rest.take()?, rest.take()?, rest.u64()?);
        let next: PublicKey = rest.take()?;
        let kind = match kind {
            1 => Kind::Checkpoint,
            2 => Kind::NextKey(next),
            3 => Kind::NewHostKey(next),
            other => return Err(StatementError::Kind(other)),
        };
        let (stream_id, seq, hash) = (rest.take()?, rest.u64()?, rest.take()?);
        let (boot_id, boot_ns, wall_ns) = (rest.take()?, rest.u64()?, i64::from_le_bytes(rest.take()?));
        let (session, session_seq) = (rest.take()?, rest.u64()?);
        let count = u32::from_le_bytes(rest.take()?);
        let tail: [u8; 4] = rest.take()?;
        if zero != 0 || tail != [0; 4] {
            return Err(StatementError::Contradiction("a reserved byte is not zero"));
        }
        let numbers = rest.numbers(count)?;
        let statement = Self {
            kind,
            reasons,
            host_id,
            host_key,
            epoch,
            stream_id,
            seq,
            hash,
            boot_id,
            boot_ns,
            wall_ns,
            session,
            session_seq,
            numbers,
        };
        statement.check(next)?;
        Ok(statement)
    }

    fn check(&self, next: PublicKey) -> Result<(), StatementError> {
        let wrong = |what| Err(StatementError::Contradiction(what));
        if self.kind == Kind::Checkpoint && next != [0; 32] {
            return wrong("a checkpoint names a next key");
        }
        if (self.seq == 0) != (self.hash == [0; 32]) {
            return wrong("sequence and hash do not fit each other");
        }
        let marks = self.reasons & (reason::OPENED | reason::CLOSED);
        if marks == reason::OPENED | reason::CLOSED {
            return wrong("it marks an opening and a closing at once");
        }
        if (marks == 0) != (self.session == [0; 16]) || (marks == 0) != (self.session_seq == 0) {
            return wrong("session and reason do not fit each other");
        }
        if self.session_seq > self.seq {
            return wrong("it marks a session in a frame that it does not cover");
        }
        let key = |number: &Number| (number.ring, number.cpu);
        match self.numbers.windows(2).all(|pair| matches!(pair, [a, b] if key(a) < key(b))) {
            true => Ok(()),
            false => wrong("the numbers are not in order"),
        }
    }

    /// What is signed.
    pub fn signing_input(statement: &[u8]) -> Vec<u8> {
        [DOMAIN, statement].concat()
    }

    /// Whether it marks the opening or closing of `session`.
    pub fn marks(&self, what: u16, session: [u8; 16]) -> bool {
        self.reasons & what != 0 && self.session == session
    }
}

/// A statement with its signature, read but not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// What is said.
    pub statement: Statement,
    /// By whom: bytes to be verified.
    pub signature: [u8; SIGNATURE_LEN],
}

impl Signed {
    /// Reads a statement followed by its signature.
    pub fn parse(bytes: &[u8]) -> Result<Self, StatementError> {
        let length = StatementError::Length(bytes.len());
        if bytes.len() > SIGNED_MAX {
            return Err(length);
        }
        let (statement, signature) = bytes.split_last_chunk().ok_or(length)?;
        Ok(Self { statement: Statement::parse(statement)?, signature: *signature })
    }

    /// Reads one from the record.
    pub fn from_message(message: Option<&v1::SignedStatement>) -> Result<Self, StatementError> {
        let message = message.ok_or(StatementError::Length(0))?;
        let signature = message.signature.as_slice().try_into();
        let signature = signature.map_err(|_| StatementError::Length(message.signature.len()))?;
        Ok(Self { statement: Statement::parse(&message.statement)?, signature })
    }

    /// The statement followed by its signature. Also what the transparency log holds: it names host, stream and place.
    pub fn encode(&self) -> Vec<u8> {
        [self.statement.encode().as_slice(), &self.signature].concat()
    }

    /// As the record holds it.
    pub fn to_message(&self) -> v1::SignedStatement {
        v1::SignedStatement { statement: self.statement.encode(), signature: self.signature.to_vec() }
    }

    /// Whether `key` signed it. Strict: no key or signature that could belong to several, RFC 8032 section 5.1.7 without cofactor.
    pub fn verify(&self, key: &PublicKey) -> Result<(), StatementError> {
        let key = VerifyingKey::from_bytes(key).map_err(|_| StatementError::Key)?;
        let signature = Signature::from_bytes(&self.signature);
        let input = Statement::signing_input(&self.statement.encode());
        key.verify_strict(&input, &signature).map_err(|_| StatementError::Signature)
    }
}

struct Cursor<'a> {
    rest: &'a [u8],
    len: usize,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StatementError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(StatementError::Length(self.len))?;
        self.rest = rest;
        Ok(*head)
    }

    fn u64(&mut self) -> Result<u64, StatementError> {
        self.take().map(u64::from_le_bytes)
    }

    /// Everything that is left: exactly `count` numbers.
    fn numbers(&mut self, count: u32) -> Result<Vec<Number>, StatementError> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > NUMBERS_MAX || self.rest.len() != count * NUMBER_LEN {
            return Err(StatementError::Length(self.len));
        }
        (0..count)
            .map(|_| {
                let [ring, zeros @ ..]: [u8; 4] = self.take()?;
                if zeros != [0; 3] {
                    return Err(StatementError::Contradiction("a reserved byte is not zero"));
                }
                Ok(Number { ring, cpu: u32::from_le_bytes(self.take()?), upto: self.u64()? })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};
    use proptest::prelude::*;

    use super::*;

    fn statement() -> Statement {
        Statement {
            kind: Kind::Checkpoint,
            reasons: reason::CLOSED | reason::ALERT,
            host_id: [1; 16],
            host_key: [2; 32],
            epoch: 3,
            stream_id: [4; 16],
            seq: 9,
            hash: [5; 32],
            boot_id: [6; 16],
            boot_ns: 7,
            wall_ns: -8,
            session: [10; 16],
            session_seq: 9,
            numbers: vec![Number { ring: 0, cpu: 1, upto: 2 }, Number { ring: 2, cpu: 0, upto: u64::MAX }],
        }
    }

    fn signed(statement: Statement, key: &SigningKey) -> Signed {
        let signature = key.sign(&Statement::signing_input(&statement.encode())).to_bytes();
        Signed { statement, signature }
    }

    #[test]
    fn every_field_lies_where_the_table_says() {
        let bytes = statement().encode();
        assert_eq!(bytes.len(), STATEMENT_LEN + 32);
        assert_eq!((&bytes[..8], bytes[8], bytes[24], bytes[56]), (&b"BGS1\x01\0\x14\0"[..], 1, 2, 3));
        assert_eq!((bytes[96], bytes[112], bytes[120], bytes[152], bytes[168]), (4, 9, 5, 6, 7));
        assert_eq!((bytes[176], bytes[184], bytes[200], bytes[208]), (0xf8, 10, 9, 2));
        assert_eq!((bytes[220], bytes[224], bytes[232]), (1, 2, 2));
    }

    #[test]
    fn a_signature_covers_every_bit() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let good = signed(statement(), &key).encode();
        let public = key.verifying_key().to_bytes();
        assert_eq!(Signed::parse(&good).unwrap().verify(&public), Ok(()));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let verified = Signed::parse(&bad).and_then(|signed| signed.verify(&public));
            assert!(verified.is_err(), "bit {bit}");
        }
        assert_eq!(signed(statement(), &key).verify(&[1; 32]).unwrap_err(), StatementError::Signature);
    }

    #[test]
    fn contradictions_are_refused() {
        let wrong: [fn(&mut Statement); 6] = [
            |s| s.seq = 0,
            |s| s.reasons |= reason::OPENED,
            |s| s.reasons = reason::ALERT,
            |s| s.session_seq = 0,
            |s| s.session_seq = 10,
            |s| s.numbers.reverse(),
        ];
        for (at, change) in wrong.into_iter().enumerate() {
            let mut bad = statement();
            change(&mut bad);
            let refused = Statement::parse(&bad.encode());
            assert!(matches!(refused, Err(StatementError::Contradiction(_))), "{at}: {refused:?}");
        }
    }

    /// A key of small order has signatures that fit any statement.
    #[test]
    fn a_key_of_small_order_is_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut forged = signed(statement(), &SigningKey::from_bytes(&[7; 32]));
        forged.signature = [0; 64];
        forged.signature[0] = 1;
        assert!(forged.verify(&identity).is_err());
    }

    proptest! {
        #[test]
        fn what_is_accepted_has_one_spelling(edits in proptest::collection::vec((0usize..248, any::<u8>()), 0..3)) {
            let mut bytes = statement().encode();
            for (at, byte) in edits {
                bytes[at] = byte;
            }
            if let Ok(read) = Statement::parse(&bytes) {
                prop_assert_eq!(read.encode(), bytes);
            }
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600), keep in 0usize..248) {
            let mixed = [&statement().encode()[..keep], &bytes].concat();
            for bytes in [&bytes, &mixed] {
                if let Ok(signed) = Signed::parse(bytes) {
                    let _ = signed.verify(&signed.statement.host_key);
                }
            }
        }
    }
}
