//! Keys, signed notes, checkpoints and cosignatures, after C2SP signed-note, tlog-checkpoint and tlog-cosignature.
//!
//! Notes are parsed and their signatures sorted by the `signed_note` crate, checkpoints by `tlog_tiles`; the two types of
//! keys are here, because the crate knows only the first.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature as Ed25519Signature, Signer as _, SigningKey, VerifyingKey};
use signed_note::{Note, NoteError, Signature, Verifier, VerifierList, is_key_name_valid, key_id};
use tlog_tiles::{Checkpoint, Hash};

/// Largest signed checkpoint that is read, bytes. Room for 16 signatures of any type, which every reader must take.
pub const NOTE_MAX: usize = 128 * 1024;
/// Longest name of a key, and so of a log, bytes.
pub const NAME_MAX: usize = 255;
/// Longest verifier key that is read, bytes: name, two signs, eight digits, and 33 bytes in base 64.
const VKEY_MAX: usize = NAME_MAX + 2 + 8 + 44;
/// Before the fields of a private key, as Go's note package writes it.
const PRIVATE: &str = "PRIVATE+KEY+";

/// What a key's signatures say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// The note as it is: what a log signs.
    Note,
    /// That at a time this was the largest tree that the signer had seen: what a witness signs.
    Cosignature,
}

impl KeyType {
    fn byte(self) -> u8 {
        match self {
            Self::Note => 1,
            Self::Cosignature => 4,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Note, Self::Cosignature].into_iter().find(|known| known.byte() == byte)
    }
}

/// Why a text is not a key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not the syntax.
    #[error("this is not a key of the form {0}")]
    Form(&'static str),
    /// The name could not stand in a note.
    #[error("{0:?} cannot be the name of a key: 1 to {NAME_MAX} bytes without spaces, control characters and +")]
    Name(String),
    /// A type that is not known here.
    #[error("the key of {0} is of type {1:#04x}; only Ed25519 keys (0x01 of logs, 0x04 of witnesses) are known")]
    Type(String, u8),
    /// The identifier does not fit the key: some of it was changed or mistyped.
    #[error("the key of {0} does not fit its identifier: was it copied completely?")]
    Id(String),
    /// Not a usable Ed25519 public key.
    #[error("the key of {0} is not a good Ed25519 public key")]
    Weak(String),
}

/// Checks the name of a log or a witness.
pub fn check_name(name: &str) -> Result<(), KeyError> {
    match is_key_name_valid(name) && name.len() <= NAME_MAX && !name.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(KeyError::Name(name.chars().take(NAME_MAX).collect())),
    }
}

/// A public key as notes know it: its name belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    kind: KeyType,
    id: u32,
    key: VerifyingKey,
}

const VKEY_FORM: &str = "NAME+8 HEX DIGITS+BASE64";

impl VerifierKey {
    fn new(name: &str, kind: KeyType, key: VerifyingKey) -> Self {
        let id = key_id(name, &typed(kind, key.as_bytes()));
        Self { name: name.to_owned(), kind, id, key }
    }

    /// What its signatures say.
    pub fn kind(&self) -> KeyType {
        self.kind
    }

    /// Whose it is: the name of the log or the witness.
    pub fn holder(&self) -> &str {
        &self.name
    }

    /// The time of a cosignature of `text`, seconds since 1970, if the signature is good. Only for keys of witnesses.
    pub fn cosigned_at(&self, text: &[u8], signature: &[u8]) -> Option<u64> {
        let (time, signature) = signature.split_first_chunk::<8>()?;
        let time = u64::from_be_bytes(*time);
        let known = self.kind == KeyType::Cosignature && time > 0 && i64::try_from(time).is_ok();
        (known && self.verify_ed25519(&cosigned(text, time), signature)).then_some(time)
    }

    fn verify_ed25519(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = Ed25519Signature::from_slice(signature) else { return false };
        self.key.verify_strict(message, &signature).is_ok()
    }
}

impl Verifier for VerifierKey {
    fn name(&self) -> &str {
        &self.name
    }

    fn key_id(&self) -> u32 {
        self.id
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match self.kind {
            KeyType::Note => self.verify_ed25519(message, signature),
            KeyType::Cosignature => self.cosigned_at(message, signature).is_some(),
        }
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:08x}+{}", self.name, self.id, BASE64.encode(typed(self.kind, self.key.as_bytes())))
    }
}

impl FromStr for VerifierKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let form = KeyError::Form(VKEY_FORM);
        if text.len() > VKEY_MAX {
            return Err(form);
        }
        let (name, kind, bytes) = fields(text).ok_or(form)?;
        check_name(&name)?;
        let kind = KeyType::from_byte(kind).ok_or(KeyError::Type(name.clone(), kind))?;
        let key = VerifyingKey::from_bytes(&bytes).ok().filter(|key| !key.is_weak());
        let parsed = Self::new(&name, kind, key.ok_or(KeyError::Weak(name.clone()))?);
        match parsed.to_string() == text {
            true => Ok(parsed),
            false => Err(KeyError::Id(name)),
        }
    }
}

/// A private key with its name.
#[derive(Clone)]
pub struct NoteKey {
    public: VerifierKey,
    key: SigningKey,
}

impl fmt::Debug for NoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "private key of {}", self.public)
    }
}

impl NoteKey {
    /// A new key from the system's random numbers.
    pub fn generate(name: &str, kind: KeyType) -> Result<Self, KeyError> {
        check_name(name)?;
        Ok(Self::new(name, kind, SigningKey::from_bytes(&rand::random())))
    }

    fn new(name: &str, kind: KeyType, key: SigningKey) -> Self {
        Self { public: VerifierKey::new(name, kind, key.verifying_key()), key }
    }

    /// The key as text, to be kept where nobody else can read it.
    pub fn to_secret(&self) -> String {
        let VerifierKey { name, kind, id, .. } = &self.public;
        format!("{PRIVATE}{name}+{id:08x}+{}\n", BASE64.encode(typed(*kind, self.key.as_bytes())))
    }

    /// The reverse of [`NoteKey::to_secret`].
    pub fn from_secret(text: &str) -> Result<Self, KeyError> {
        let form = || KeyError::Form("PRIVATE+KEY+NAME+8 HEX DIGITS+BASE64");
        let (name, kind, bytes) = text.trim_end().strip_prefix(PRIVATE).and_then(fields).ok_or_else(form)?;
        check_name(&name)?;
        let kind = KeyType::from_byte(kind).ok_or(KeyError::Type(name.clone(), kind))?;
        let parsed = Self::new(&name, kind, SigningKey::from_bytes(&bytes));
        match parsed.to_secret().trim_end() == text.trim_end() {
            true => Ok(parsed),
            false => Err(KeyError::Id(name)),
        }
    }

    /// Its public half.
    pub fn public(&self) -> &VerifierKey {
        &self.public
    }

    /// Signs the text of a note; `time`, seconds since 1970, stands in cosignatures.
    pub fn sign(&self, text: &[u8], time: u64) -> Result<Signature, NoteError> {
        let signature = match self.public.kind {
            KeyType::Note => self.key.sign(text).to_vec(),
            KeyType::Cosignature => {
                let signature = self.key.sign(&cosigned(text, time));
                [&time.to_be_bytes()[..], &signature.to_bytes()].concat()
            }
        };
        Signature::new(self.public.name.clone(), self.public.id, signature)
    }
}

fn typed(kind: KeyType, key: &[u8]) -> Vec<u8> {
    [&[kind.byte()], key].concat()
}

/// What a witness signs, after tlog-cosignature.
fn cosigned(text: &[u8], time: u64) -> Vec<u8> {
    [format!("cosignature/v1\ntime {time}\n").as_bytes(), text].concat()
}

/// Name, type and 32 bytes of `NAME+ID+BASE64`; the identifier is left to the caller, who writes the key again and compares.
fn fields(text: &str) -> Option<(String, u8, [u8; 32])> {
    let (name, rest) = text.split_once('+')?;
    let (_, key) = rest.split_once('+')?;
    let key = BASE64.decode(key).ok()?;
    let (kind, bytes) = key.split_first()?;
    Some((name.to_owned(), *kind, bytes.try_into().ok()?))
}

/// Why a note is not a checkpoint to rely on.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Longer than anybody writes.
    #[error("the checkpoint is longer than {NOTE_MAX} bytes")]
    TooLong,
    /// Not a note or not a checkpoint.
    #[error("this is not a checkpoint in the format of c2sp.org/tlog-checkpoint")]
    Malformed,
    /// No signature by a key that was asked for, or one that is wrong.
    #[error("the signatures of the checkpoint do not hold: {0}")]
    Signature(NoteError),
}

/// A checkpoint and the signatures on it, of which nothing has been verified.
#[derive(Debug)]
pub struct SignedCheckpoint {
    checkpoint: Checkpoint,
    note: Note,
}

impl SignedCheckpoint {
    /// Makes and signs the checkpoint of a log whose name is the key's.
    pub fn sign(key: &NoteKey, size: u64, root: Hash) -> Result<Self, CheckpointError> {
        let origin = key.public().name();
        let checkpoint = Checkpoint::new(origin, size, root, "").map_err(|_| CheckpointError::Malformed)?;
        let text = checkpoint.to_bytes();
        let signature = key.sign(&text, 0).map_err(CheckpointError::Signature)?;
        let note = Note::new(&text, &[signature]).map_err(CheckpointError::Signature)?;
        Ok(Self { checkpoint, note })
    }

    /// Parses a signed note.
    pub fn parse(bytes: &[u8]) -> Result<Self, CheckpointError> {
        if bytes.len() > NOTE_MAX {
            return Err(CheckpointError::TooLong);
        }
        let note = Note::from_bytes(bytes).map_err(|_| CheckpointError::Malformed)?;
        let checkpoint = Checkpoint::from_bytes(note.text()).map_err(|_| CheckpointError::Malformed)?;
        Ok(Self { checkpoint, note })
    }

    /// The log's name.
    pub fn origin(&self) -> &str {
        self.checkpoint.origin()
    }

    /// Leaves.
    pub fn size(&self) -> u64 {
        self.checkpoint.size()
    }

    /// Root hash.
    pub fn root(&self) -> Hash {
        *self.checkpoint.hash()
    }

    /// What is signed.
    pub fn text(&self) -> &[u8] {
        self.note.text()
    }

    /// The whole note.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.note.to_bytes()
    }

    /// The signatures by those of `keys` that signed. One that is wrong is an error, as is none.
    pub fn verify(&self, keys: &[VerifierKey]) -> Result<Vec<Signature>, CheckpointError> {
        let known = VerifierList::new(keys.iter().map(|key| Box::new(key.clone()) as Box<dyn Verifier>).collect());
        Ok(self.note.verify(&known).map_err(CheckpointError::Signature)?.0)
    }

    /// Whether this is a checkpoint of the log with this key, signed with it.
    pub fn is_signed_by(&self, key: &VerifierKey) -> bool {
        key.kind == KeyType::Note && key.name == self.origin() && self.verify(std::slice::from_ref(key)).is_ok()
    }

    /// The same checkpoint with just these signatures.
    pub fn with_signatures(self, signatures: &[Signature]) -> Result<Self, CheckpointError> {
        let note = Note::new(self.note.text(), signatures).map_err(CheckpointError::Signature)?;
        Ok(Self { checkpoint: self.checkpoint, note })
    }
}

#[cfg(test)]
#[path = "note_tests.rs"]
mod tests;
