//! Reads the envelope of an SSH signature: armour, then PROTOCOL.sshsig.
//!
//! `ssh-key` reads it too, but takes lengths that do not fit their content. Here every length must fit, so that a
//! signature has one spelling; key and signature proper are left to the library.

use base64::{Engine, engine::general_purpose::STANDARD};
use ssh_key::{HashAlg, PublicKey, Signature, SshSig};

use super::{
    Refusal,
    certificate::{self, Certificate},
};

/// Longest armoured signature, bytes. RSA-4096 takes 1.5 KiB.
pub const ARMOUR_MAX: usize = 16 * 1024;

/// Flags and counter behind the signature proper of a FIDO key, bytes. PROTOCOL.u2f.
pub const SK_TRAILER: usize = 5;

const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const END: &str = "-----END SSH SIGNATURE-----";

/// A signature, and the certificate that it was made with, if one was.
pub struct Envelope {
    /// The signature; its key is the plain one.
    pub signature: SshSig,
    /// What says whose key it is.
    pub certificate: Option<Box<Certificate>>,
}

/// Reads an armoured signature.
pub fn read(armour: &[u8]) -> Result<Envelope, Refusal> {
    if armour.len() > ARMOUR_MAX {
        return Err(bad(format!("the signature has {} bytes, the limit is {ARMOUR_MAX}", armour.len())));
    }
    let blob = unarmour(armour).ok_or_else(|| {
        bad("the signature is not in the armoured form that ssh-keygen -Y sign writes; send that file as it is".into())
    })?;
    let mut fields = Fields::new(&blob);
    envelope(&mut fields).unwrap_or_else(|| Err(bad("the SSH signature is damaged; sign again".into())))
}

fn bad(message: String) -> Refusal {
    Refusal::new("bad-signature", message)
}

fn unarmour(armour: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(armour).ok()?;
    let mut lines = text.trim_end_matches(['\r', '\n']).lines();
    if lines.next()? != BEGIN || lines.next_back()? != END {
        return None;
    }
    STANDARD.decode(lines.collect::<String>()).ok()
}

/// Reads fields one behind the other, as RFC 4251 section 5 has them. `None` where bytes are missing.
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// From the first byte on.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// `None` where bytes are left.
    pub fn end(&self) -> Option<()> {
        self.rest.is_empty().then_some(())
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    /// Four bytes, big-endian.
    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    /// Eight bytes, big-endian.
    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    /// A length of four bytes, and as many.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.take(usize::try_from(length).ok()?)
    }
}

/// `None` where bytes are missing or left over.
fn envelope(fields: &mut Fields<'_>) -> Option<Result<Envelope, Refusal>> {
    if fields.take(6)? != b"SSHSIG" {
        return None;
    }
    let version = fields.u32()?;
    let (key, namespace, reserved) = (fields.string()?, fields.string()?, fields.string()?);
    let (hash, signature) = (fields.string()?, fields.string()?);
    if !fields.rest.is_empty() {
        return None;
    }
    if version != SshSig::VERSION || !reserved.is_empty() {
        return Some(Err(bad(format!("the SSH signature has version {version} or an extension; taken is version 1"))));
    }
    let hash = match hash {
        b"sha256" => HashAlg::Sha256,
        b"sha512" => HashAlg::Sha512,
        _ => return Some(Err(bad("the signature is over an unknown hash; taken are sha256 and sha512".into()))),
    };
    // Both check by themselves that nothing is left over.
    let certificate = match Fields::new(key).string()?.ends_with(certificate::SUFFIX) {
        true => Some(Box::new(Certificate::read(key)?)),
        false => None,
    };
    let key = match &certificate {
        Some(certificate) => certificate.key.clone(),
        // The library takes a length inside the key that does not fit.
        None => {
            let read = PublicKey::from_bytes(key).ok().filter(|read| read.to_bytes().is_ok_and(|bytes| bytes == key));
            read?.key_data().clone()
        }
    };
    let signature = signature_proper(signature)?;
    let signature = SshSig::new(key, std::str::from_utf8(namespace).ok()?, hash, signature).ok()?;
    Some(Ok(Envelope { signature, certificate }))
}

/// Algorithm, bytes, and behind those of FIDO keys flags and counter; nothing more, which the library does not check.
pub fn signature_proper(bytes: &[u8]) -> Option<Signature> {
    let mut fields = Fields::new(bytes);
    let algorithm = fields.string()?;
    fields.string()?;
    let trailer = if algorithm.starts_with(b"sk-") { SK_TRAILER } else { 0 };
    if fields.rest.len() != trailer {
        return None;
    }
    Signature::try_from(bytes).ok()
}
