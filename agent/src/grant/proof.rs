//! Signatures: SSHSIG as `ssh-keygen -Y sign` writes it (PROTOCOL.sshsig in OpenSSH), by a key of an allowed signer.
//!
//! `ssh-key` does the arithmetic. What it leaves to its caller is checked here: that the signature's algorithm is the
//! key's, the key's strength, and for FIDO keys the application and that somebody touched the key; the library takes a
//! signature made without a touch.

use std::net::IpAddr;

use ssh_key::{Algorithm, HashAlg, PublicKey, SshSig, public::KeyData};

use super::{
    Refusal,
    certificate::Certificate,
    signers::{AllowedSigners, Entry},
    sshsig,
};

/// RSA keys of fewer bits are refused; more than the upper bound the library does not take.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// FIDO flag: somebody touched the key. PROTOCOL.u2f, and CTAP section 6.1.
const FLAG_PRESENT: u8 = 0x01;
/// FIDO flag: the key verified a PIN or a fingerprint.
const FLAG_VERIFIED: u8 = 0x04;
/// FIDO keys sign for SSH only under applications that begin so; others belong to web sites.
const APPLICATION: &str = "ssh:";

/// Who signed, once everything has been checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Signer {
    /// As claimed, and allowed for this key.
    pub principal: String,
    /// The key.
    pub key: KeyData,
    /// Line of the allowed_signers file.
    pub line: usize,
    /// What a FIDO key says about its owner; absent for other keys.
    pub touch: Option<Touch>,
    /// What says whose key it is; absent where the key itself is listed.
    pub certificate: Option<Box<Certificate>>,
    /// For how long the key, or its certificate, may be used in all, seconds; absent: for ever.
    pub lifetime_s: Option<u64>,
}

/// What a FIDO key says about its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// A PIN or a fingerprint was verified, not only presence.
    pub verified: bool,
    /// The key's signature counter; 0 in keys that have none.
    pub counter: u32,
}

impl Signer {
    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        self.key.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Name of the key's type, such as `ssh-ed25519`.
    pub fn key_type(&self) -> String {
        self.key.algorithm().to_string()
    }

    /// What the certificate says, for the record; empty where there is none.
    pub fn certificate(&self) -> String {
        self.certificate.as_ref().map(|certificate| certificate.described()).unwrap_or_default()
    }

    /// `TYPE BASE64`, as in authorized_keys.
    pub fn public_key(&self) -> Result<String, ssh_key::Error> {
        PublicKey::from(self.key.clone()).to_openssh()
    }
}

/// When and from where a signature comes.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// Unix seconds.
    pub wall_s: i64,
    /// Where the request came from; absent: this machine.
    pub source: Option<IpAddr>,
}

/// Checks that `armour` is a signature over `text` in `namespace` by a key that `signers` allows `principal`. Everything cheap comes
/// before the arithmetic.
pub fn verify(
    text: &[u8],
    armour: &[u8],
    namespace: &str,
    principal: &str,
    signers: &AllowedSigners,
    at: Circumstances,
) -> Result<Signer, Refusal> {
    let sshsig::Envelope { signature, certificate } = sshsig::read(armour)?;
    if signature.namespace() != namespace {
        return Err(Refusal::new(
            "wrong-namespace",
            format!(
                "the signature is for the namespace {:?}; sign with: ssh-keygen -Y sign -n {namespace}",
                signature.namespace()
            ),
        ));
    }
    let key = signature.public_key();
    let entry = find(signers, principal, namespace, key, certificate.as_deref(), at.wall_s)?;
    check_strength(key)?;
    check_algorithm(&signature)?;
    let touch = check_touch(&signature)?;
    if let Some(certificate) = &certificate {
        certificate.check(principal, at.wall_s, at.source)?;
        if certificate.needs_verification() && !touch.is_some_and(|touch| touch.verified) {
            return Err(Refusal::new(
                "not-verified",
                "the certificate asks that the security key checks a PIN or a fingerprint, which it did not",
            ));
        }
        certificate.check_authority(&entry.key)?;
    }
    PublicKey::from(key.clone()).verify(namespace, text, &signature).map_err(|_| {
        Refusal::new("bad-signature", "the signature does not fit the text and the key; sign the text as it is sent")
    })?;
    let lifetime_s = match &certificate {
        Some(certificate) => Some(certificate.lifetime_s()),
        None => entry.lifetime_s(),
    };
    Ok(Signer { principal: principal.to_owned(), key: key.clone(), line: entry.line, touch, certificate, lifetime_s })
}

/// `SHA256:…` of the key that a signature names, if it is a signature at all. Nothing is verified.
pub fn claimed_fingerprint(armour: &[u8]) -> Option<String> {
    sshsig::read(armour).ok().map(|read| read.signature.public_key().fingerprint(HashAlg::Sha256).to_string())
}

/// The line that allows this use, or why none does.
fn find<'a>(
    signers: &'a AllowedSigners,
    principal: &str,
    namespace: &str,
    key: &KeyData,
    certificate: Option<&Certificate>,
    wall_s: i64,
) -> Result<&'a Entry, Refusal> {
    // As OpenSSH has it: a certificate counts for its authority's lines only, and a key for its own only.
    let (listed, what) = match certificate {
        Some(certificate) => (&certificate.authority, "the certificate authority"),
        None => (key, "the key"),
    };
    let mut first = None;
    for entry in signers.entries().iter().filter(|entry| entry.names(principal, listed)) {
        match usable(entry, namespace, certificate.is_some(), wall_s) {
            Ok(()) => return Ok(entry),
            Err(refusal) => drop(first.get_or_insert(refusal)),
        }
    }
    Err(first.unwrap_or_else(|| {
        let unread = match signers.problems().len() {
            0 => String::new(),
            n => format!("; {n} of its lines cannot be understood, the agent's log says which"),
        };
        Refusal::new(
            "unknown-signer",
            format!(
                "the host's allowed_signers file does not list {what} {} for {principal:?}{unread}; sign with a listed key and under its name",
                listed.fingerprint(HashAlg::Sha256)
            ),
        )
    }))
}

fn usable(entry: &Entry, namespace: &str, certified: bool, wall_s: i64) -> Result<(), Refusal> {
    let line = entry.line;
    match (entry.cert_authority, certified) {
        (true, false) => {
            return Err(Refusal::new(
                "certificate",
                format!(
                    "line {line} of allowed_signers lists the key as a certificate authority, which cannot sign for itself"
                ),
            ));
        }
        (false, true) => {
            return Err(Refusal::new(
                "certificate",
                format!(
                    "line {line} of allowed_signers lists the key, but not as a certificate authority (cert-authority)"
                ),
            ));
        }
        _ => {}
    }
    if !entry.allows_namespace(namespace) {
        return Err(Refusal::new(
            "namespace-not-allowed",
            format!("line {line} of allowed_signers does not allow the key for {namespace}; add it to its namespaces"),
        ));
    }
    if !entry.valid_at(wall_s) {
        return Err(Refusal::new(
            "not-valid-now",
            format!(
                "line {line} of allowed_signers does not allow the key at this time (the host's clock says {}); use another key",
                jiff::Timestamp::from_second(wall_s).map_or_else(|_| wall_s.to_string(), |t| t.to_string())
            ),
        ));
    }
    Ok(())
}

pub(crate) fn check_strength(key: &KeyData) -> Result<(), Refusal> {
    let weak = |what: String| Err(Refusal::new("weak-key", format!("{what}; use an Ed25519, ECDSA or FIDO key")));
    match key {
        KeyData::Rsa(rsa) => {
            let bits = rsa.n.as_positive_bytes().map_or(0, bit_length);
            if RSA_BITS.contains(&bits) {
                return Ok(());
            }
            weak(format!("the RSA key has {bits} bits, taken are {} to {}", RSA_BITS.start(), RSA_BITS.end()))
        }
        KeyData::Ed25519(ed) => check_point(&ed.0),
        KeyData::SkEd25519(sk) => check_point(&sk.public_key().0),
        KeyData::Ecdsa(ecdsa) if ecdsa.curve() == ssh_key::EcdsaCurve::NistP521 => {
            weak("ECDSA keys on the curve P-521 are not taken".into())
        }
        KeyData::Ecdsa(_) | KeyData::SkEcdsaSha2NistP256(_) => Ok(()),
        KeyData::Dsa(_) => weak("DSA keys are not taken".into()),
        other => weak(format!("keys of the type {} are not taken", other.algorithm())),
    }
}

/// Refuses points of small order, under which one signature fits many texts.
fn check_point(key: &[u8; 32]) -> Result<(), Refusal> {
    match ed25519_dalek::VerifyingKey::from_bytes(key) {
        Ok(point) if !point.is_weak() => Ok(()),
        _ => Err(Refusal::new("weak-key", "the Ed25519 key is not a proper one; make a new key")),
    }
}

fn bit_length(big_endian: &[u8]) -> usize {
    let digits = big_endian.iter().skip_while(|byte| **byte == 0);
    let mut bits = 0;
    for (index, byte) in digits.enumerate() {
        bits = if index == 0 { 8 - byte.leading_zeros() as usize } else { bits + 8 };
    }
    bits
}

/// The signature's algorithm must be the key's; RSA with SHA-1 the library does not even read.
fn check_algorithm(signature: &SshSig) -> Result<(), Refusal> {
    let (key, used) = (signature.public_key(), signature.algorithm());
    if algorithm_fits(key, &used) {
        return Ok(());
    }
    let key = key.algorithm();
    Err(Refusal::new("bad-signature", format!("the signature is of type {used}, which does not go with a {key} key")))
}

pub(super) fn algorithm_fits(key: &KeyData, used: &Algorithm) -> bool {
    match key.algorithm() {
        Algorithm::Rsa { .. } => matches!(used, Algorithm::Rsa { hash: Some(HashAlg::Sha256 | HashAlg::Sha512) }),
        key => key == *used,
    }
}

fn check_touch(signature: &SshSig) -> Result<Option<Touch>, Refusal> {
    let application = match signature.public_key() {
        KeyData::SkEd25519(key) => key.application(),
        KeyData::SkEcdsaSha2NistP256(key) => key.application(),
        _ => return Ok(None),
    };
    if !application.starts_with(APPLICATION) {
        return Err(Refusal::new(
            "wrong-application",
            format!(
                "the FIDO key belongs to the application {application:?}; make one for SSH: ssh-keygen -t ed25519-sk"
            ),
        ));
    }
    let bytes = signature.signature_bytes();
    let Some((_, [flags, counter @ ..])) = bytes.split_last_chunk::<{ sshsig::SK_TRAILER }>() else {
        return Err(Refusal::new("bad-signature", "the FIDO signature is cut short"));
    };
    if flags & FLAG_PRESENT == 0 {
        return Err(Refusal::new(
            "no-presence",
            "nobody touched the FIDO key for this signature; sign again and touch it",
        ));
    }
    Ok(Some(Touch { verified: flags & FLAG_VERIFIED != 0, counter: u32::from_be_bytes(*counter) }))
}
