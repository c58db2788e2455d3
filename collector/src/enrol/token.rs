//! One-time tokens, as a person carries them and as the collector keeps them.
//!
//! A token is `bge1.` and the base64url (no padding) of 8 bytes of id, 32 bytes of secret and the SHA-256 of the collector's CA
//! certificate (DER). The secret has 256 random bits, so that its plain SHA-256 at rest gives nothing away.
//!
//! On disk, in the folder `tokens`: `ID.toml` says for whom the token is. `ID.used` appears, by an exclusive create, when a host
//! joins with it, and holds the SHA-256 of that host's public key: the same host may ask again, because its answer may have been
//! lost; nobody else can.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::pki::{Owner, create_private_dir};
use crate::wall_clock_ns;

const PREFIX: &str = "bge1.";
const ID_LEN: usize = 8;
/// Length of a token's secret, bytes.
pub const SECRET_LEN: usize = 32;
/// Longest time for which a token can be good: it is carried, not kept.
pub const VALID_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// For whom a token is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Hash of the secret, hexadecimal.
    secret_sha256: String,
    /// The host's id.
    pub host_id: String,
    /// The host's name.
    pub name: String,
    /// Until when, seconds since 1970.
    expires_s: i64,
}

/// Why a token is not taken. What is wrong with it in detail is for the collector's log, not for whoever sent it.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Never made, expired long ago, or another secret.
    #[error("the token is not one of this collector's")]
    Unknown,
    /// Too late.
    #[error("the token for {0} has expired")]
    Expired(String),
    /// Another host has used it.
    #[error("the token for {0} was used with another key")]
    Used(String),
    /// A file operation.
    #[error("cannot use the folder of tokens: {0}")]
    Io(#[from] std::io::Error),
}

/// The tokens of a collector.
#[derive(Clone, Debug)]
pub struct Tokens {
    folder: PathBuf,
}

impl Tokens {
    /// Those in `folder`, which need not exist.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Makes a token for one host. `ca` is the CA certificate, DER.
    pub fn make(&self, host_id: &str, name: &str, valid: Duration, ca: &[u8]) -> anyhow::Result<String> {
        if valid.is_zero() || valid > VALID_MAX {
            bail!("a token is good for a week at most");
        }
        let (mut id, mut secret) = ([0; ID_LEN], [0; SECRET_LEN]);
        rand::rng().fill_bytes(&mut id);
        rand::rng().fill_bytes(&mut secret);
        let entry = Entry {
            secret_sha256: hex::encode(Sha256::digest(secret)),
            host_id: host_id.to_owned(),
            name: name.to_owned(),
            expires_s: now_s().saturating_add(i64::try_from(valid.as_secs()).unwrap_or(i64::MAX)),
        };
        create_private_dir(&self.folder)?;
        self.sweep();
        let text = toml::to_string(&entry).context("cannot write a token")?;
        Owner::of(&self.folder)?.write_private(&self.entry(&id), &text)?;
        let bytes = [&id[..], &secret, &Sha256::digest(ca)].concat();
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Takes a token for the host that holds the private key to `public_key` (DER). Once it was taken, only for that one again.
    pub fn take(&self, id: &str, secret: &[u8], public_key: &[u8]) -> Result<Entry, TokenError> {
        let id: [u8; ID_LEN] = hex::decode(id).ok().and_then(|id| id.try_into().ok()).ok_or(TokenError::Unknown)?;
        let entry = self.read(&id)?;
        // Hashes are compared, so that the time that it takes says nothing of use.
        if hex::encode(Sha256::digest(secret)) != entry.secret_sha256 {
            return Err(TokenError::Unknown);
        }
        if entry.expires_s <= now_s() {
            return Err(TokenError::Expired(entry.name));
        }
        match self.claim(&id, &hex::encode(Sha256::digest(public_key)))? {
            true => Ok(entry),
            false => Err(TokenError::Used(entry.name)),
        }
    }

    /// Forgets what has expired.
    pub fn sweep(&self) {
        let Ok(files) = std::fs::read_dir(&self.folder) else { return };
        for path in files.flatten().map(|file| file.path()).filter(|path| path.extension().is_some_and(|e| e == "toml"))
        {
            let entry = std::fs::read_to_string(&path).ok().and_then(|text| toml::from_str::<Entry>(&text).ok());
            if entry.is_none_or(|entry| entry.expires_s <= now_s()) {
                // The entry first: without it the mark of its use is nothing.
                let _ = std::fs::remove_file(&path);
                let _ = std::fs::remove_file(path.with_extension("used"));
            }
        }
    }

    fn read(&self, id: &[u8; ID_LEN]) -> Result<Entry, TokenError> {
        match std::fs::read_to_string(self.entry(id)) {
            Ok(text) => toml::from_str(&text).map_err(|_| TokenError::Unknown),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(TokenError::Unknown),
            Err(error) => Err(error.into()),
        }
    }

    /// Marks a token as used by a key; whether it is that key's.
    fn claim(&self, id: &[u8; ID_LEN], key: &str) -> Result<bool, TokenError> {
        let path = self.entry(id).with_extension("used");
        match File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(mut file) => {
                file.write_all(key.as_bytes())?;
                file.sync_all()?;
                sync_folder(&self.folder)?;
                Ok(true)
            }
            // One that was cut short by a crash is nobody's: then a new token is needed.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(std::fs::read_to_string(&path)? == key),
            Err(error) => Err(error.into()),
        }
    }

    fn entry(&self, id: &[u8; ID_LEN]) -> PathBuf {
        self.folder.join(format!("{}.toml", hex::encode(id)))
    }
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

fn now_s() -> i64 {
    wall_clock_ns() / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(token: &str) -> (String, Vec<u8>) {
        let bytes = URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX).unwrap()).unwrap();
        assert_eq!(bytes.len(), ID_LEN + SECRET_LEN + 32);
        (hex::encode(&bytes[..ID_LEN]), bytes[ID_LEN..ID_LEN + SECRET_LEN].to_vec())
    }

    #[test]
    fn a_token_is_good_once_for_one_key_until_it_expires() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(dir.path().join("tokens"));
        let (id, secret) = parts(&tokens.make("h", "web1", Duration::from_secs(60), b"ca").unwrap());
        assert!(matches!(tokens.take("00", &secret, b"key"), Err(TokenError::Unknown)));
        assert!(matches!(tokens.take("../../x", &secret, b"key"), Err(TokenError::Unknown)));
        assert!(matches!(tokens.take(&id, &[0; 32], b"key"), Err(TokenError::Unknown)));
        let entry = tokens.take(&id, &secret, b"key").unwrap();
        assert_eq!((entry.host_id.as_str(), entry.name.as_str()), ("h", "web1"));
        assert_eq!(tokens.take(&id, &secret, b"key").unwrap(), entry, "the answer may have been lost");
        assert!(matches!(tokens.take(&id, &secret, b"other"), Err(TokenError::Used(_))));

        let (short, secret) = parts(&tokens.make("i", "web2", Duration::from_secs(1), b"ca").unwrap());
        std::thread::sleep(Duration::from_millis(1100));
        assert!(matches!(tokens.take(&short, &secret, b"key"), Err(TokenError::Expired(_))));
        tokens.sweep();
        assert!(matches!(tokens.take(&short, &secret, b"key"), Err(TokenError::Unknown)));
        assert!(tokens.make("i", "web2", VALID_MAX + Duration::from_secs(1), b"ca").is_err());
    }

    #[test]
    fn the_secret_is_nowhere_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(dir.path().to_owned());
        let token = tokens.make("h", "web1", Duration::from_secs(60), b"ca").unwrap();
        let (_, secret) = parts(&token);
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            assert!(!text.contains(&hex::encode(&secret)) && !text.contains(&token[PREFIX.len()..]), "{text}");
        }
    }
}
