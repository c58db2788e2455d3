//! What the key files hold: pure functions; the format is described in [`super::keys`].

use breakglass_api::checkpoint::{Kind, PublicKey, SIGNATURE_LEN, STATEMENT_LEN, Signed};
use ed25519_dalek::SigningKey;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// A link: a signed statement without numbers, bytes.
pub const LINK_LEN: usize = STATEMENT_LEN + SIGNATURE_LEN;
/// Longest key file, bytes; more than any has.
pub const FILE_MAX: usize = 1024;

const MAGIC: [u8; 4] = *b"BGK1";
const CHECK_LEN: usize = 8;

/// A key in use, and how it came to be.
pub struct KeyState {
    /// Public key of epoch 0.
    pub host_key: PublicKey,
    /// Which epoch this is.
    pub epoch: u64,
    /// The secret.
    pub key: SigningKey,
    /// By the key before, where there was one: of this chain, or at epoch 0 of the one that this chain replaces.
    pub link: Option<Signed>,
    /// By the chain that this one replaces, where there was one.
    pub renewal: Option<Signed>,
}

impl KeyState {
    /// Epoch 0 of a chain.
    pub fn first(key: SigningKey) -> Self {
        Self { host_key: key.verifying_key().to_bytes(), epoch: 0, key, link: None, renewal: None }
    }

    /// What follows when `link` has named `key`; `None` where it names another, or nothing that can follow.
    pub fn after(&self, link: &Signed, key: SigningKey) -> Option<Self> {
        let public = key.verifying_key().to_bytes();
        let (host_key, epoch, renewal) = match link.statement.kind {
            Kind::NextKey(next) if next == public => (self.host_key, self.epoch.checked_add(1)?, self.renewal.clone()),
            Kind::NewHostKey(next) if next == public => (public, 0, Some(link.clone())),
            Kind::Checkpoint | Kind::NextKey(_) | Kind::NewHostKey(_) => return None,
        };
        let ours = link.statement.host_key == self.host_key && link.statement.epoch == self.epoch;
        (ours && link.statement.numbers.is_empty()).then(|| Self {
            host_key,
            epoch,
            key,
            link: Some(link.clone()),
            renewal,
        })
    }

    /// The bytes of a file; they hold the secret.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Room from the start: a buffer that grows leaves copies of the secret behind.
        let mut out = Zeroizing::new(Vec::with_capacity(FILE_MAX));
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.host_key);
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        for signed in [&self.link, &self.renewal] {
            let bytes = signed.as_ref().map(Signed::encode).unwrap_or_default();
            out.push(u8::from(!bytes.is_empty()));
            out.extend_from_slice(&bytes);
        }
        let check = check(&out);
        out.extend_from_slice(&check);
        out
    }

    /// `None` for anything but exactly one file.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, found) = bytes.split_last_chunk::<CHECK_LEN>()?;
        if check(body) != *found {
            return None;
        }
        let mut rest = body;
        if take::<4>(&mut rest)? != MAGIC {
            return None;
        }
        let (host_key, epoch) = (take(&mut rest)?, u64::from_le_bytes(take(&mut rest)?));
        let key = SigningKey::from_bytes(&Zeroizing::new(take(&mut rest)?));
        let (link, renewal) = (signed(&mut rest)?, signed(&mut rest)?);
        rest.is_empty().then_some(Self { host_key, epoch, key, link, renewal })
    }
}

/// A signed statement behind a byte that says whether there is one.
fn signed(rest: &mut &[u8]) -> Option<Option<Signed>> {
    match take(rest)? {
        [0] => Some(None),
        [1] => Some(Some(Signed::parse(&take::<LINK_LEN>(rest)?).ok()?)),
        _ => None,
    }
}

fn check(bytes: &[u8]) -> [u8; CHECK_LEN] {
    let mut out = [0; CHECK_LEN];
    out.copy_from_slice(&Sha256::digest(bytes)[..CHECK_LEN]);
    out
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}
