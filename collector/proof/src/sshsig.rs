//! Signatures as `ssh-keygen -Y sign` writes them: armour, then OpenSSH's `PROTOCOL.sshsig`. Read strictly, so that every length fits its
//! content and a signature has one spelling; the arithmetic is the library's.
//!
//! Taken are `ssh-ed25519` and `ecdsa-sha2-nistp256`, plain or on a FIDO token (`sk-…@openssh.com`), over SHA-256 or SHA-512.
//! A FIDO signature must say that somebody was present, and its key must be one made for SSH.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ssh_key::public::KeyData;
use ssh_key::{EcdsaCurve, HashAlg, PublicKey, Signature, SshSig};

/// Longest armoured signature, bytes. One of the keys that are taken has some 600.
pub const ARMOUR_MAX: usize = 4096;

const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const END: &str = "-----END SSH SIGNATURE-----";
/// Flags and counter behind the signature proper of a FIDO key, bytes. PROTOCOL.u2f.
const SK_TRAILER: usize = 5;
/// Flag of a FIDO signature: somebody touched the token.
const FLAG_PRESENT: u8 = 1;
/// What the application of a FIDO key made for SSH begins with.
const APPLICATION: &str = "ssh:";

/// Why a signature does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not the armour, or not what belongs inside.
    #[error("this is not a signature as ssh-keygen -Y sign writes it")]
    Malformed,
    /// A type of key that is not taken.
    #[error("the key is of the type {0}; taken are Ed25519 and ECDSA on P-256, plain or on a FIDO token")]
    KeyType(String),
    /// Made for something else.
    #[error("the signature is for {0:?}")]
    Namespace(String),
    /// Nobody touched the token, or the key is not for SSH.
    #[error("{0}")]
    Token(&'static str),
    /// It does not fit.
    #[error("the signature does not fit the text and the key")]
    Mismatch,
}

/// A signature, read but not verified.
#[derive(Debug)]
pub struct Armoured {
    signature: SshSig,
}

impl Armoured {
    /// Reads an armoured signature.
    pub fn parse(armour: &[u8]) -> Result<Self, SignatureError> {
        let blob = unarmour(armour).ok_or(SignatureError::Malformed)?;
        let signature = envelope(&blob).ok_or(SignatureError::Malformed)?;
        Ok(Self { signature })
    }

    /// The key that it names.
    pub fn key(&self) -> &KeyData {
        self.signature.public_key()
    }

    /// `SHA256:…` of that key, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        self.key().fingerprint(HashAlg::Sha256).to_string()
    }

    /// Whether that key signed `text` for `namespace`.
    pub fn verify(&self, namespace: &str, text: &[u8]) -> Result<(), SignatureError> {
        check_type(self.key())?;
        if self.signature.namespace() != namespace {
            return Err(SignatureError::Namespace(self.signature.namespace().to_owned()));
        }
        if self.key().algorithm() != self.signature.algorithm() {
            return Err(SignatureError::Mismatch);
        }
        self.check_token()?;
        let key = PublicKey::from(self.key().clone());
        key.verify(namespace, text, &self.signature).map_err(|_| SignatureError::Mismatch)
    }

    fn check_token(&self) -> Result<(), SignatureError> {
        let application = match self.key() {
            KeyData::SkEd25519(key) => key.application(),
            KeyData::SkEcdsaSha2NistP256(key) => key.application(),
            _ => return Ok(()),
        };
        if !application.starts_with(APPLICATION) {
            return Err(SignatureError::Token("the FIDO key was not made for SSH"));
        }
        match self.signature.signature_bytes().split_last_chunk::<SK_TRAILER>() {
            Some((_, [flags, ..])) if flags & FLAG_PRESENT != 0 => Ok(()),
            _ => Err(SignatureError::Token("nobody touched the FIDO key for this signature")),
        }
    }
}

/// Whether keys of this type are taken, and this one is a proper one.
pub fn check_type(key: &KeyData) -> Result<(), SignatureError> {
    let refused = || SignatureError::KeyType(key.algorithm().to_string());
    let point = match key {
        KeyData::Ed25519(key) => key.0,
        KeyData::SkEd25519(key) => key.public_key().0,
        KeyData::Ecdsa(key) if key.curve() == EcdsaCurve::NistP256 => return Ok(()),
        KeyData::SkEcdsaSha2NistP256(_) => return Ok(()),
        _ => return Err(refused()),
    };
    // Under a point of small order one signature fits many texts.
    match ed25519_dalek::VerifyingKey::from_bytes(&point) {
        Ok(point) if !point.is_weak() => Ok(()),
        _ => Err(refused()),
    }
}

fn unarmour(armour: &[u8]) -> Option<Vec<u8>> {
    if armour.len() > ARMOUR_MAX {
        return None;
    }
    let text = std::str::from_utf8(armour).ok()?;
    let mut lines = text.trim_end_matches(['\r', '\n']).lines();
    if lines.next()? != BEGIN || lines.next_back()? != END {
        return None;
    }
    STANDARD.decode(lines.collect::<String>()).ok()
}

struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(usize::try_from(length).ok()?)
    }
}

fn envelope(blob: &[u8]) -> Option<SshSig> {
    let mut fields = Fields { rest: blob };
    if fields.take(6)? != b"SSHSIG" || fields.u32()? != SshSig::VERSION {
        return None;
    }
    let (key, namespace, reserved) = (fields.string()?, fields.string()?, fields.string()?);
    let (hash, signature) = (fields.string()?, fields.string()?);
    if !fields.rest.is_empty() || !reserved.is_empty() {
        return None;
    }
    let hash = match hash {
        b"sha256" => HashAlg::Sha256,
        b"sha512" => HashAlg::Sha512,
        _ => return None,
    };
    // The library takes a length inside the key that does not fit.
    let key = PublicKey::from_bytes(key).ok().filter(|read| read.to_bytes().is_ok_and(|bytes| bytes == key))?;
    SshSig::new(key.into(), std::str::from_utf8(namespace).ok()?, hash, signature_proper(signature)?).ok()
}

/// Algorithm, bytes, and behind those of FIDO keys flags and counter; nothing more, which the library does not check.
fn signature_proper(bytes: &[u8]) -> Option<Signature> {
    let mut fields = Fields { rest: bytes };
    let algorithm = fields.string()?;
    fields.string()?;
    let trailer = if algorithm.starts_with(b"sk-") { SK_TRAILER } else { 0 };
    (fields.rest.len() == trailer).then(|| Signature::try_from(bytes).ok())?
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};
    use proptest::prelude::*;
    use sha2::{Digest, Sha256, Sha512};

    use super::*;

    fn string(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
    }

    fn armour(blob: &[u8]) -> Vec<u8> {
        format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(blob)).into_bytes()
    }

    /// What PROTOCOL.sshsig has signed.
    fn signed_data(namespace: &str, text: &[u8]) -> Vec<u8> {
        let hash = Sha512::digest(text);
        [b"SSHSIG".to_vec(), string(namespace.as_bytes()), string(b""), string(b"sha512"), string(&hash)].concat()
    }

    fn envelope_of(key: &[u8], namespace: &str, signature: &[u8]) -> Vec<u8> {
        let head = [b"SSHSIG".as_slice(), &1u32.to_be_bytes()].concat();
        let tail = [string(namespace.as_bytes()), string(b""), string(b"sha512"), string(signature)].concat();
        armour(&[head, string(key), tail].concat())
    }

    fn plain(namespace: &str, text: &[u8]) -> Vec<u8> {
        let secret = SigningKey::from_bytes(&[3; 32]);
        let key = [string(b"ssh-ed25519"), string(secret.verifying_key().as_bytes())].concat();
        let signature = secret.sign(&signed_data(namespace, text)).to_bytes();
        envelope_of(&key, namespace, &[string(b"ssh-ed25519"), string(&signature)].concat())
    }

    /// A FIDO token's signature, PROTOCOL.u2f.
    fn token(application: &str, flags: u8, text: &[u8]) -> Vec<u8> {
        let secret = SigningKey::from_bytes(&[4; 32]);
        let kind = b"sk-ssh-ed25519@openssh.com";
        let key = [string(kind), string(secret.verifying_key().as_bytes()), string(application.as_bytes())].concat();
        let trailer = [&[flags][..], &7u32.to_be_bytes()].concat();
        let message = Sha256::digest(signed_data("n@v1", text));
        let input = [&Sha256::digest(application)[..], &trailer, &message].concat();
        let signature = [string(kind), string(&secret.sign(&input).to_bytes()), trailer].concat();
        envelope_of(&key, "n@v1", &signature)
    }

    fn verify(armour: &[u8], text: &[u8]) -> Result<(), SignatureError> {
        Armoured::parse(armour)?.verify("n@v1", text)
    }

    #[test]
    fn only_the_signature_of_this_text_for_this_purpose_holds() {
        let good = plain("n@v1", b"text");
        assert_eq!(verify(&good, b"text"), Ok(()));
        assert_eq!(verify(&good, b"other"), Err(SignatureError::Mismatch));
        assert_eq!(verify(&plain("m@v1", b"text"), b"text"), Err(SignatureError::Namespace("m@v1".into())));
        assert!(Armoured::parse(&good).unwrap().fingerprint().starts_with("SHA256:"));
    }

    #[test]
    fn a_token_must_have_been_touched_and_be_for_ssh() {
        assert_eq!(verify(&token("ssh:", 1, b"text"), b"text"), Ok(()));
        assert!(matches!(verify(&token("ssh:", 0, b"text"), b"text"), Err(SignatureError::Token(_))));
        assert!(matches!(verify(&token("https://example.org", 1, b"text"), b"text"), Err(SignatureError::Token(_))));
    }

    #[test]
    fn other_types_of_keys_are_refused() {
        let line = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQCqGKukO1De7zhZj6+H0qtjTkVxwTCpvKe4eCZ0FPqri0cb2JZfXJ/DgYSF6vUpwmJG8wVQZKjeGcjDOL5UlsuusFncCzWBQ7RKNUSesmQRMSGkVb1/3j+skZ6UtW+5u09lHNsj6tQ51s1SPrCBkedbNf0Tp0GbMJDyR4e9T04ZZw==";
        let rsa = PublicKey::from_openssh(line).unwrap();
        assert!(matches!(check_type(rsa.key_data()), Err(SignatureError::KeyType(_))));
        let weak = [&string(b"ssh-ed25519")[..], &string(&[0; 32])].concat();
        let weak = PublicKey::from_bytes(&weak).unwrap();
        assert!(matches!(check_type(weak.key_data()), Err(SignatureError::KeyType(_))));
    }

    proptest! {
        #[test]
        fn a_changed_signature_does_not_hold(at: prop::sample::Index, flip in 1u8..) {
            let text = String::from_utf8(plain("n@v1", b"text")).unwrap();
            let mut blob = STANDARD.decode(text.lines().nth(1).unwrap()).unwrap();
            *at.get_mut(&mut blob) ^= flip;
            prop_assert!(verify(&armour(&blob), b"text").is_err());
        }

        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(verify(&noise, b"").is_err());
            prop_assert!(verify(&armour(&noise), b"").is_err());
        }
    }
}
