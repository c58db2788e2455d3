//! Keys that are no good any more, whatever allowed_signers says: a key revocation list of OpenSSH's ([`super::krl`]), or a text with one
//! key a line, as a fingerprint (`SHA256:…`, as `ssh-keygen -l` prints it) or as the public key itself. Empty lines and lines that begin
//! with `#` are left out. In either, a certificate authority's key revokes all that it certified.
//!
//! Other than in allowed_signers, one line that cannot be understood spoils the file: it could be the one that keeps a stolen key out.
//! `breakglass-agent doctor` reads the file too.

use std::collections::HashSet;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use ssh_key::{HashAlg, PublicKey, public::KeyData};

use super::{
    certificate::Certificate,
    krl::{self, Krl},
};

/// What a SHA-256 fingerprint begins with.
const PREFIX: &str = "SHA256:";

/// A list of revoked keys.
#[derive(Clone, Debug, Default)]
pub struct Revoked {
    fingerprints: HashSet<String>,
    krl: Krl,
}

impl Revoked {
    /// Reads a whole file of either kind; an error says what is not understood.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.starts_with(krl::MAGIC) {
            return Ok(Self { fingerprints: HashSet::new(), krl: Krl::parse(bytes)? });
        }
        Self::parse(std::str::from_utf8(bytes).map_err(|_| "it is neither text nor a key revocation list")?)
    }

    /// Reads a text; an error says which line is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut revoked = Self::default();
        for (index, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
            if !line.is_empty() && !line.starts_with('#') {
                let fingerprint = fingerprint(line)
                    .ok_or_else(|| format!("line {index} is neither a fingerprint (SHA256:…) nor a public key"))?;
                revoked.fingerprints.insert(fingerprint);
            }
        }
        Ok(revoked)
    }

    /// Whether the list revokes the key, or the certificate that it signed with, or that one's authority.
    pub fn revokes(&self, key: &KeyData, certificate: Option<&Certificate>) -> bool {
        let listed = |key: &KeyData| {
            !self.fingerprints.is_empty() && self.fingerprints.contains(&key.fingerprint(HashAlg::Sha256).to_string())
        };
        listed(key)
            || certificate.is_some_and(|certificate| listed(&certificate.authority))
            || self.krl.revokes(key, certificate)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.fingerprints.len() + self.krl.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn fingerprint(line: &str) -> Option<String> {
    let mut words = line.split_ascii_whitespace();
    let first = words.next()?;
    match first.strip_prefix(PREFIX) {
        Some(digest) => {
            let digest = digest.trim_end_matches('=');
            (STANDARD_NO_PAD.decode(digest).ok()?.len() == 32).then(|| format!("{PREFIX}{digest}"))
        }
        None => {
            let key = PublicKey::from_openssh(&format!("{first} {}", words.next()?)).ok()?;
            Some(key.fingerprint(HashAlg::Sha256).to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g";

    #[test]
    fn by_key_and_by_fingerprint() {
        let key = PublicKey::from_openssh(KEY).unwrap();
        let print = key.fingerprint(HashAlg::Sha256).to_string();
        for text in [format!("# lost\n\n{KEY} alice's old one\n"), format!("  {print} stolen\n"), format!("{print}=")] {
            assert!(Revoked::parse(&text).unwrap().revokes(key.key_data(), None), "{text}");
        }
        assert!(!Revoked::parse("").unwrap().revokes(key.key_data(), None));
    }

    #[test]
    fn one_bad_line_spoils_the_file() {
        for bad in ["SHA256:abc", "MD5:00:11", "alice", "ssh-ed25519", "ssh-ed25519 AAAA"] {
            let error = Revoked::parse(&format!("{KEY}\n{bad}\n")).unwrap_err();
            assert!(error.contains("line 2"), "{bad}: {error}");
        }
    }
}
