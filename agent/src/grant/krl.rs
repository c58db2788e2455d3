//! OpenSSH's key revocation lists: PROTOCOL.krl, as `ssh-keygen -k` writes them.
//!
//! | field | type |
//! |---|---|
//! | magic `SSHKRL\n\0` | 8 bytes |
//! | format version, 1 | uint32 |
//! | list version, date, flags | uint64 each |
//! | reserved, comment | string each |
//! | sections | type (1 byte) and content (string), to the end |
//!
//! What is not understood spoils the list, as a bad line does in a plain one: it could be what keeps a stolen key out. Exceptions are
//! those of the protocol: an extension that says that it is not critical. Signatures on lists are left out, as OpenSSH leaves them out
//! since 9.1: the file is as trustworthy as its owner.

use std::collections::HashSet;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use ssh_key::{PublicKey, public::KeyData};

use super::{certificate::Certificate, sshsig::Fields};

/// What every list begins with.
pub const MAGIC: &[u8; 8] = b"SSHKRL\n\0";

const SECTION_CERTIFICATES: u8 = 1;
const SECTION_EXPLICIT_KEY: u8 = 2;
const SECTION_FINGERPRINT_SHA1: u8 = 3;
const SECTION_SIGNATURE: u8 = 4;
const SECTION_FINGERPRINT_SHA256: u8 = 5;
const SECTION_EXTENSION: u8 = 255;

const CERT_SERIAL_LIST: u8 = 0x20;
const CERT_SERIAL_RANGE: u8 = 0x21;
const CERT_SERIAL_BITMAP: u8 = 0x22;
const CERT_KEY_ID: u8 = 0x23;
const CERT_EXTENSION: u8 = 0x39;

/// What a list revokes.
#[derive(Clone, Debug, Default)]
pub struct Krl {
    /// Blobs of keys.
    keys: HashSet<Vec<u8>>,
    sha1: HashSet<[u8; 20]>,
    sha256: HashSet<[u8; 32]>,
    certificates: Vec<Certificates>,
}

/// Certificates of one authority, or of any.
#[derive(Clone, Debug, Default)]
struct Certificates {
    authority: Option<KeyData>,
    /// First and last serial, both included.
    ranges: Vec<(u64, u64)>,
    /// Offset of the lowest bit, and bits from the highest byte down, as an mpint has them.
    bitmaps: Vec<(u64, Vec<u8>)>,
    key_ids: HashSet<Vec<u8>>,
}

impl Krl {
    /// Reads a whole list; an error says what is not understood.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let rest = bytes.strip_prefix(MAGIC).ok_or("it does not begin as a key revocation list does")?;
        let mut fields = Fields::new(rest);
        let version = fields.u32().ok_or_else(cut)?;
        if version != 1 {
            return Err(format!("it is a key revocation list of version {version}; taken is version 1"));
        }
        for _ in 0..3 {
            fields.u64().ok_or_else(cut)?;
        }
        for _ in 0..2 {
            fields.string().ok_or_else(cut)?;
        }
        let mut list = Self::default();
        while fields.left() > 0 {
            let kind = fields.u8().ok_or_else(cut)?;
            list.section(kind, fields.string().ok_or_else(cut)?)?;
        }
        Ok(list)
    }

    fn section(&mut self, kind: u8, content: &[u8]) -> Result<(), String> {
        let mut fields = Fields::new(content);
        match kind {
            SECTION_CERTIFICATES => self.certificates.push(certificates(&mut fields)?),
            SECTION_EXPLICIT_KEY => each(&mut fields, |blob| {
                // A blob that is no key would revoke nothing and look as if it did.
                PublicKey::from_bytes(blob).map_err(|e| format!("a key in it cannot be read: {e}"))?;
                self.keys.insert(blob.to_vec());
                Ok(())
            })?,
            SECTION_FINGERPRINT_SHA1 => each(&mut fields, |hash| {
                self.sha1.insert(hash.try_into().map_err(|_| "a SHA-1 hash in it has another length")?);
                Ok(())
            })?,
            SECTION_FINGERPRINT_SHA256 => each(&mut fields, |hash| {
                self.sha256.insert(hash.try_into().map_err(|_| "a SHA-256 hash in it has another length")?);
                Ok(())
            })?,
            SECTION_SIGNATURE => {}
            SECTION_EXTENSION => extension(&mut fields)?,
            other => return Err(format!("its section of type {other} is not understood")),
        }
        Ok(())
    }

    /// Whether the list revokes the key, or the certificate that it signed with, or that one's authority.
    pub fn revokes(&self, key: &KeyData, certificate: Option<&Certificate>) -> bool {
        self.has_key(key)
            || certificate.is_some_and(|certificate| {
                self.has_key(&certificate.authority)
                    || self.certificates.iter().any(|section| section.revokes(certificate))
            })
    }

    fn has_key(&self, key: &KeyData) -> bool {
        // A key that cannot be written was not read either.
        let Ok(blob) = PublicKey::from(key.clone()).to_bytes() else { return true };
        self.keys.contains(&blob)
            || self.sha256.contains::<[u8; 32]>(&Sha256::digest(&blob).into())
            || (!self.sha1.is_empty() && self.sha1.contains::<[u8; 20]>(&Sha1::digest(&blob).into()))
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        let certificates = self.certificates.iter().map(|s| s.ranges.len() + s.bitmaps.len() + s.key_ids.len());
        self.keys.len() + self.sha1.len() + self.sha256.len() + certificates.sum::<usize>()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Certificates {
    fn revokes(&self, certificate: &Certificate) -> bool {
        if self.authority.as_ref().is_some_and(|authority| *authority != certificate.authority) {
            return false;
        }
        let serial = certificate.serial;
        // Serial 0 is what an authority gives that does not number; it names no certificate.
        let numbered = serial != 0
            && (self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&serial))
                || self.bitmaps.iter().any(|(offset, bits)| has_bit(bits, serial.checked_sub(*offset))));
        numbered || self.key_ids.contains(certificate.key_id.as_bytes())
    }
}

fn has_bit(bits: &[u8], index: Option<u64>) -> bool {
    let Some(index) = index.and_then(|index| usize::try_from(index).ok()) else { return false };
    bits.iter().rev().nth(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

fn certificates(fields: &mut Fields<'_>) -> Result<Certificates, String> {
    let authority = match fields.string().ok_or_else(cut)? {
        [] => None,
        blob => {
            let key = PublicKey::from_bytes(blob).map_err(|e| format!("an authority in it cannot be read: {e}"))?;
            Some(key.key_data().clone())
        }
    };
    fields.string().ok_or_else(cut)?; // reserved
    let mut found = Certificates { authority, ..Certificates::default() };
    while fields.left() > 0 {
        let kind = fields.u8().ok_or_else(cut)?;
        let mut content = Fields::new(fields.string().ok_or_else(cut)?);
        match kind {
            CERT_SERIAL_LIST => {
                while content.left() > 0 {
                    let serial = content.u64().ok_or_else(cut)?;
                    found.ranges.push((serial, serial));
                }
            }
            CERT_SERIAL_RANGE => {
                found.ranges.push((content.u64().ok_or_else(cut)?, content.u64().ok_or_else(cut)?));
                content.end().ok_or_else(cut)?;
            }
            CERT_SERIAL_BITMAP => {
                found.bitmaps.push((content.u64().ok_or_else(cut)?, content.string().ok_or_else(cut)?.to_vec()));
                content.end().ok_or_else(cut)?;
            }
            CERT_KEY_ID => each(&mut content, |id| {
                found.key_ids.insert(id.to_vec());
                Ok(())
            })?,
            CERT_EXTENSION => extension(&mut content)?,
            other => return Err(format!("its section of certificates of type {other} is not understood")),
        }
    }
    Ok(found)
}

fn each(fields: &mut Fields<'_>, mut take: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
    while fields.left() > 0 {
        take(fields.string().ok_or_else(cut)?)?;
    }
    Ok(())
}

fn extension(fields: &mut Fields<'_>) -> Result<(), String> {
    let name = fields.string().ok_or_else(cut)?;
    match fields.u8().ok_or_else(cut)? {
        0 => Ok(()),
        _ => Err(format!("its extension {:?} is not understood", String::from_utf8_lossy(name))),
    }
}

fn cut() -> String {
    "it is cut short".into()
}
