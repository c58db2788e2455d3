//! A transparency log with two witnesses, and reviewers with keys of their own.

use std::sync::OnceLock;

use breakglass_api::evidence::kind;
use breakglass_proof::{
    REVIEW_NAMESPACE,
    merkle::{Consistency, Inclusion, leaf_hash},
    note::{KeyType, NoteKey, SignedCheckpoint},
    review::{LogHead, Review, Verdict, join},
};
use sha2::{Digest, Sha256};
use ssh_key::{HashAlg, LineEnding, PrivateKey, private::Ed25519Keypair};

use super::forge::{HOST, Host, Parts, SESSION};

/// The log's key and those of its witnesses; another log's.
pub fn keys() -> &'static [NoteKey; 4] {
    static KEYS: OnceLock<[NoteKey; 4]> = OnceLock::new();
    KEYS.get_or_init(|| {
        [
            ("log.example/1", KeyType::Note),
            ("w.example/1", KeyType::Cosignature),
            ("w.example/2", KeyType::Cosignature),
            ("log.example/1", KeyType::Note),
        ]
        .map(|(name, kind)| NoteKey::generate(name, kind).unwrap())
    })
}

/// The SSH key of a person, by a byte of theirs.
pub fn person(seed: u8) -> PrivateKey {
    Ed25519Keypair::from_seed(&[seed; 32]).into()
}

pub fn operator() -> PrivateKey {
    person(b'a')
}

pub fn rita() -> PrivateKey {
    person(b'r')
}

/// Has an ECDSA key, made for these tests.
pub fn sam() -> PrivateKey {
    PrivateKey::from_openssh(include_str!("sam.key")).unwrap()
}

/// The file of reviewers; the operator is one too.
pub fn reviewers() -> String {
    let line = |name: &str, key: &PrivateKey| format!("{name} {}\n", key.public_key().to_openssh().unwrap());
    let tess = token_key();
    [
        "# who may review\n".to_owned(),
        line("rita,rita@example.org", &rita()),
        line("sam namespaces=\"breakglass-review@v1\"", &sam()),
        line("alice", &operator()),
        format!("tess sk-ssh-ed25519@openssh.com {}\n", base64(&tess)),
        "* ssh-ed25519 AAAA\n".to_owned(),
    ]
    .concat()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// What others put into the log, and everything that the host signed, in the order in which it did.
#[derive(Clone)]
pub struct Ledger {
    leaves: Vec<[u8; 32]>,
}

impl Ledger {
    pub fn of(host: &Host) -> Self {
        let mut said: Vec<_> = host.links.iter().chain(&host.checkpoints).collect();
        said.sort_by_key(|signed| signed.statement.boot_ns);
        let others = (0u8..5).map(|n| leaf_hash(&[n]));
        let leaves = said.iter().map(|signed| leaf_hash(&signed.encode()));
        Self { leaves: others.clone().chain(leaves).chain(others).collect() }
    }

    /// The first leaves.
    pub fn first(&self, size: usize) -> Self {
        Self { leaves: self.leaves[..size].to_vec() }
    }

    pub fn size(&self) -> usize {
        self.leaves.len()
    }

    /// The same but for one leaf.
    pub fn rewritten(mut self, at: usize) -> Self {
        self.leaves[at] = [9; 32];
        self
    }

    pub fn head(&self) -> LogHead {
        LogHead { origin: "log.example/1".into(), size: self.leaves.len() as u64, root: root(&self.leaves) }
    }

    /// The log's checkpoint, cosigned.
    pub fn note(&self, cosigners: &[&NoteKey]) -> Vec<u8> {
        let head = self.head();
        let checkpoint = SignedCheckpoint::sign(&keys()[0], head.size, tlog_tiles::Hash(head.root)).unwrap();
        let mut note = checkpoint.to_bytes();
        for key in cosigners {
            note.extend(key.sign(checkpoint.text(), 1_760_000_000).unwrap().to_bytes());
        }
        note
    }

    pub fn inclusion(&self, signed: &[u8]) -> Option<Vec<u8>> {
        let leaf = leaf_hash(signed);
        let index = self.leaves.iter().position(|other| *other == leaf)?;
        let path = audit_path(&self.leaves, index);
        Some(Inclusion { leaf, index: index as u64, path }.encode())
    }

    pub fn consistency(&self, size: usize) -> Vec<u8> {
        let root = root(&self.leaves[..size]);
        Consistency { size: size as u64, root, path: consistency(&self.leaves, size, true) }.encode()
    }

    /// Adds to a file what the collector adds: the checkpoint, and a proof for each statement that is in the log.
    pub fn prove(&self, parts: &mut Parts) {
        let [_, first, second, _] = keys();
        parts.others.push((kind::LOG_CHECKPOINT, self.note(&[first, second])));
        let proofs = parts.checkpoints.iter().filter_map(|signed| self.inclusion(signed));
        let proofs: Vec<_> = proofs.map(|proof| (kind::INCLUSION, proof)).collect();
        parts.others.extend(proofs);
    }
}

/// Merkle tree hash, RFC 6962 section 2.1, over hashes of leaves.
fn root(leaves: &[[u8; 32]]) -> [u8; 32] {
    match leaves {
        [] => Sha256::digest([]).into(),
        [one] => *one,
        many => {
            let (left, right) = many.split_at(split(many.len()));
            Sha256::digest([&[1][..], &root(left), &root(right)].concat()).into()
        }
    }
}

fn split(n: usize) -> usize {
    1 << (usize::BITS - 1 - (n - 1).leading_zeros())
}

/// Section 2.1.1.
fn audit_path(leaves: &[[u8; 32]], at: usize) -> Vec<[u8; 32]> {
    if leaves.len() < 2 {
        return Vec::new();
    }
    let (left, right) = leaves.split_at(split(leaves.len()));
    let (mut path, sibling) = match at < left.len() {
        true => (audit_path(left, at), root(right)),
        false => (audit_path(right, at - left.len()), root(left)),
    };
    path.push(sibling);
    path
}

/// Section 2.1.2.
fn consistency(leaves: &[[u8; 32]], size: usize, whole: bool) -> Vec<[u8; 32]> {
    if size == leaves.len() {
        return if whole { Vec::new() } else { vec![root(leaves)] };
    }
    let (left, right) = leaves.split_at(split(leaves.len()));
    let (mut path, sibling) = match size <= left.len() {
        true => (consistency(left, size, whole), root(right)),
        false => (consistency(right, size - left.len(), false), root(left)),
    };
    path.push(sibling);
    path
}

/// A review of the recorded session up to frame `last`, whose hash this is.
pub fn review(reviewer: &str, last: (u64, [u8; 32]), log: Option<LogHead>) -> Review {
    Review {
        session: SESSION,
        host_id: HOST,
        stream: super::forge::STREAM,
        last_frame: last.0,
        last_hash: last.1,
        log,
        reviewer: reviewer.to_owned(),
        verdict: Verdict::Ok,
        note: "as agreed".to_owned(),
        client_time: "2026-01-31T23:59:59Z".to_owned(),
    }
}

/// The review with the signature behind it.
pub fn signed(review: &Review, key: &PrivateKey) -> Vec<u8> {
    let text = review.encode().unwrap();
    let signature = key.sign(REVIEW_NAMESPACE, HashAlg::Sha512, text.as_bytes()).unwrap();
    join(text.as_bytes(), signature.to_pem(LineEnding::LF).unwrap().as_bytes())
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

const TOKEN: &[u8] = b"sk-ssh-ed25519@openssh.com";

fn token_secret() -> ed25519_dalek::SigningKey {
    ed25519_dalek::SigningKey::from_bytes(&[b't'; 32])
}

/// The public key of tess's FIDO token.
fn token_key() -> Vec<u8> {
    [string(TOKEN), string(token_secret().verifying_key().as_bytes()), string(b"ssh:")].concat()
}

/// The review signed with tess's token, touched (flag 1) or not; PROTOCOL.sshsig and PROTOCOL.u2f.
pub fn signed_by_token(review: &Review, flags: u8) -> Vec<u8> {
    use ed25519_dalek::Signer;
    let text = review.encode().unwrap();
    let [namespace, hash] = [string(REVIEW_NAMESPACE.as_bytes()), string(b"sha256")];
    let message = [b"SSHSIG".to_vec(), namespace.clone(), string(b""), hash.clone(), string(&Sha256::digest(&text))];
    let trailer = [&[flags][..], &7u32.to_be_bytes()].concat();
    let input = [&Sha256::digest(b"ssh:")[..], &trailer, &Sha256::digest(message.concat())].concat();
    let proper = [string(TOKEN), string(&token_secret().sign(&input).to_bytes()), trailer].concat();
    let head = [&b"SSHSIG"[..], &1u32.to_be_bytes()].concat();
    let blob = [head, string(&token_key()), namespace, string(b""), hash, string(&proper)].concat();
    let armour = format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", base64(&blob));
    join(text.as_bytes(), armour.as_bytes())
}
