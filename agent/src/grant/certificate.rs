//! OpenSSH certificates as signers: PROTOCOL.certkeys, and how `ssh-keygen -Y verify` takes them (`sshsig.c`, `sshkey_cert_check_authority`).
//!
//! A line of allowed_signers with `cert-authority` lets whoever holds a user certificate by that authority sign under a name that both
//! the line's patterns and the certificate's principals have. Beyond OpenSSH: a critical option that is not understood, or that
//! restricts what the certificate may be used for, is a refusal, where OpenSSH's verification of signatures looks at none.
//!
//! `ssh-key` reads certificates too, but not those that are valid for ever, and it checks the authority's signature over its own
//! encoding of what it read. Here what was signed is the bytes as they came.

use std::net::{IpAddr, Ipv4Addr};

use ed25519_dalek::Verifier as _;
use ipnet::IpNet;
use ssh_key::{HashAlg, PublicKey, Signature, public::KeyData};

use super::{
    Refusal, proof,
    sshsig::{Fields, signature_proper},
};

/// What the name of a certificate's type ends with.
pub const SUFFIX: &[u8] = b"-cert-v01@openssh.com";

/// Certificate type of people; the other is that of hosts.
const USER: u32 = 1;
/// Most principals, and most options, that are looked at.
const LIST_MAX: usize = 256;

/// A certificate that was read; its authority's signature is checked by [`Certificate::check`].
#[derive(Clone, Debug, PartialEq)]
pub struct Certificate {
    /// Whom it certifies.
    pub key: KeyData,
    /// Who certifies.
    pub authority: KeyData,
    /// Chosen by the authority; 0 where it numbers none.
    pub serial: u64,
    /// Chosen by the authority, for people.
    pub key_id: String,
    /// Names that the key may use.
    pub principals: Vec<String>,
    /// First second of validity, Unix time.
    pub valid_after: u64,
    /// First second after it.
    pub valid_before: u64,
    user: bool,
    critical: Vec<(String, Vec<u8>)>,
    signed: Vec<u8>,
    signature: Signature,
}

impl Certificate {
    /// Reads a certificate's blob; `None` for what is none, or has bytes left over.
    pub fn read(blob: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(blob);
        let (plain, parts) = plain_type(fields.string()?)?;
        fields.string()?; // nonce
        let key = plain_key(plain, parts, &mut fields)?;
        let serial = fields.u64()?;
        let user = fields.u32()? == USER;
        let key_id = text(fields.string()?)?;
        let principals = strings(fields.string()?)?.into_iter().map(text).collect::<Option<_>>()?;
        let (valid_after, valid_before) = (fields.u64()?, fields.u64()?);
        let critical = options(fields.string()?)?;
        fields.string()?; // extensions permit things that signing does not need
        fields.string()?; // reserved
        let authority = PublicKey::from_bytes(fields.string()?).ok()?.key_data().clone();
        let signed = blob.get(..blob.len() - fields.left())?.to_vec();
        let signature = signature_proper(fields.string()?)?;
        fields.end()?;
        Some(Self {
            key,
            authority,
            serial,
            key_id,
            principals,
            valid_after,
            valid_before,
            user,
            critical,
            signed,
            signature,
        })
    }

    /// Whether it certifies `principal` for signing at `wall_s`, for a request from `source` (absent: this machine). All but the
    /// authority's signature, which costs; see [`Self::check_authority`].
    pub fn check(&self, principal: &str, wall_s: i64, source: Option<IpAddr>) -> Result<(), Refusal> {
        if !self.user {
            return Err(self.refused("it is a host's, not a person's; sign with a user certificate"));
        }
        if !self.principals.iter().any(|one| one == principal) {
            return Err(Refusal::new(
                "certificate-principal",
                format!("the certificate {:?} is not for {principal:?}; sign under one of its principals", self.key_id),
            ));
        }
        let now = u64::try_from(wall_s).unwrap_or_default();
        if now < self.valid_after || now >= self.valid_before {
            return Err(Refusal::new(
                "not-valid-now",
                format!(
                    "the certificate {:?} is not valid at this time (the host's clock says {}); get a new one",
                    self.key_id,
                    jiff::Timestamp::from_second(wall_s).map_or_else(|_| wall_s.to_string(), |t| t.to_string())
                ),
            ));
        }
        self.critical.iter().try_for_each(|(name, data)| self.check_option(name, data, source))
    }

    fn check_option(&self, name: &str, data: &[u8], source: Option<IpAddr>) -> Result<(), Refusal> {
        match name {
            "source-address" => {
                let from = source.unwrap_or(Ipv4Addr::LOCALHOST.into()).to_canonical();
                let list = Fields::new(data).string().and_then(text).unwrap_or_default();
                if list.split(',').any(|part| contains(part, from)) {
                    return Ok(());
                }
                Err(self.refused(&format!("it may be used from {list:?} only, and the request comes from {from}")))
            }
            // Asked of the signature, which says whether it was so: see `needs_verification`.
            "verify-required" => Ok(()),
            other => Err(self.refused(&format!("its critical option {other:?} cannot be kept; get one without it"))),
        }
    }

    /// Whether it asks that the FIDO key checks a PIN or a fingerprint.
    pub fn needs_verification(&self) -> bool {
        self.critical.iter().any(|(name, _)| name == "verify-required")
    }

    /// Checks the authority's signature. `key` is the authority's as allowed_signers has it.
    pub fn check_authority(&self, key: &KeyData) -> Result<(), Refusal> {
        proof::check_strength(key)?;
        if *key != self.authority || !proof::algorithm_fits(key, &self.signature.algorithm()) {
            return Err(self.refused("its signature is not one of its authority's key"));
        }
        key.verify(&self.signed, &self.signature)
            .map_err(|_| self.refused("its authority's signature does not hold; get a new one"))
    }

    /// For how long it is valid in all, seconds.
    pub fn lifetime_s(&self) -> u64 {
        self.valid_before.saturating_sub(self.valid_after)
    }

    /// For the record.
    pub fn described(&self) -> String {
        format!("{:?}, serial {}, by {}", self.key_id, self.serial, self.authority.fingerprint(HashAlg::Sha256))
    }

    fn refused(&self, why: &str) -> Refusal {
        Refusal::new("certificate", format!("the certificate {:?} is not taken: {why}", self.key_id))
    }
}

/// `1.2.3.4` or `1.2.3.0/24`, as sshd has it.
fn contains(part: &str, ip: IpAddr) -> bool {
    part.parse::<IpNet>().is_ok_and(|net| net.contains(&ip)) || part.parse::<IpAddr>() == Ok(ip)
}

/// The type of the key inside, and how many strings it is made of.
fn plain_type(kind: &[u8]) -> Option<(&'static [u8], usize)> {
    match kind.strip_suffix(SUFFIX)? {
        b"ssh-ed25519" => Some((b"ssh-ed25519", 1)),
        b"ecdsa-sha2-nistp256" => Some((b"ecdsa-sha2-nistp256", 2)),
        b"ecdsa-sha2-nistp384" => Some((b"ecdsa-sha2-nistp384", 2)),
        b"ecdsa-sha2-nistp521" => Some((b"ecdsa-sha2-nistp521", 2)),
        b"ssh-rsa" => Some((b"ssh-rsa", 2)),
        b"sk-ssh-ed25519" => Some((b"sk-ssh-ed25519@openssh.com", 2)),
        b"sk-ecdsa-sha2-nistp256" => Some((b"sk-ecdsa-sha2-nistp256@openssh.com", 3)),
        _ => None,
    }
}

/// The key inside, put together as it is written alone.
fn plain_key(kind: &[u8], parts: usize, fields: &mut Fields<'_>) -> Option<KeyData> {
    let mut blob = Vec::new();
    push(&mut blob, kind)?;
    for _ in 0..parts {
        push(&mut blob, fields.string()?)?;
    }
    Some(PublicKey::from_bytes(&blob).ok()?.key_data().clone())
}

fn push(blob: &mut Vec<u8>, string: &[u8]) -> Option<()> {
    blob.extend_from_slice(&u32::try_from(string.len()).ok()?.to_be_bytes());
    blob.extend_from_slice(string);
    Some(())
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(ToOwned::to_owned)
}

fn strings(bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut fields = Fields::new(bytes);
    let mut found = Vec::new();
    while fields.left() > 0 {
        found.push(fields.string()?);
        if found.len() > LIST_MAX {
            return None;
        }
    }
    Some(found)
}

/// Names and data, in strictly ascending order of names as PROTOCOL.certkeys asks.
fn options(bytes: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let parts = strings(bytes)?;
    let (pairs, rest) = parts.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let found: Option<Vec<_>> = pairs.iter().map(|[name, data]| Some((text(name)?, data.to_vec()))).collect();
    found.filter(|options| options.windows(2).all(|pair| pair[0].0 < pair[1].0))
}
