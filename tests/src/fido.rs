//! A FIDO authenticator in software: keys of both kinds that OpenSSH knows, and an ssh-agent that holds one.
//!
//! Formats: OpenSSH's `PROTOCOL.u2f` and `PROTOCOL.sshsig`, and draft-miller-ssh-agent. What a real authenticator decides, whether it was
//! touched, whether it checked its holder, and how often it has signed, is decided here by the test.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256, Sha512};

use crate::grant::Proof;

/// Somebody touched the authenticator.
pub const TOUCHED: u8 = 0x01;

/// It checked a PIN or a fingerprint.
pub const VERIFIED: u8 = 0x04;

/// Messages of the agent's protocol that are answered.
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES: u8 = 12;
const SIGN: u8 = 13;
const SIGNED: u8 = 14;
const FAILURE: u8 = 5;

/// Longest message that is read from a client, bytes.
const MESSAGE_MAX: usize = 64 * 1024;

/// Which of OpenSSH's two kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `sk-ssh-ed25519@openssh.com`.
    Ed25519,
    /// `sk-ecdsa-sha2-nistp256@openssh.com`.
    Ecdsa,
}

enum Secret {
    Ed25519(ed25519_dalek::SigningKey),
    Ecdsa(p256::ecdsa::SigningKey),
}

/// A key in an authenticator.
pub struct SecurityKey {
    secret: Secret,
    /// What the key is for; `ssh:` for OpenSSH's.
    pub application: String,
    /// What the next signatures say of the holder: [`TOUCHED`], [`VERIFIED`].
    pub flags: u8,
    /// What the next signature counts; it rises with each.
    pub counter: u32,
}

impl SecurityKey {
    /// A key that is touched for every signature. `seed` tells keys apart; they are no secrets.
    pub fn new(kind: Kind, seed: u8) -> Result<Self> {
        let bytes = [seed; 32];
        let secret = match kind {
            Kind::Ed25519 => Secret::Ed25519(ed25519_dalek::SigningKey::from_bytes(&bytes)),
            Kind::Ecdsa => Secret::Ecdsa(p256::ecdsa::SigningKey::from_slice(&bytes).context("not a scalar")?),
        };
        Ok(Self { secret, application: "ssh:".into(), flags: TOUCHED, counter: 1 })
    }

    /// The public key as one line, as in `.pub` files.
    pub fn public_line(&self) -> String {
        format!("{} {} security key", self.algorithm(), STANDARD.encode(self.public_blob()))
    }

    /// Signs a text for a purpose, as `ssh-keygen -Y sign` does.
    pub fn prove(&mut self, text: Vec<u8>, namespace: &str) -> Proof {
        let hashed = Sha512::digest(&text);
        let part = |field: &[u8]| string(field);
        let named = [part(namespace.as_bytes()), part(b""), part(b"sha512")].concat();
        let message = [&b"SSHSIG"[..], &named, &part(&hashed)].concat();
        let signature = self.sign(&message);
        let head = [&b"SSHSIG"[..], &1_u32.to_be_bytes(), &part(&self.public_blob())].concat();
        let armoured = STANDARD.encode([head, named, part(&signature)].concat());
        let lines: Vec<_> = armoured.as_bytes().chunks(70).map(String::from_utf8_lossy).collect();
        let signature =
            format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", lines.join("\n")).into_bytes();
        Proof { text, signature }
    }

    fn algorithm(&self) -> &'static str {
        match self.secret {
            Secret::Ed25519(_) => "sk-ssh-ed25519@openssh.com",
            Secret::Ecdsa(_) => "sk-ecdsa-sha2-nistp256@openssh.com",
        }
    }

    fn public_blob(&self) -> Vec<u8> {
        let point = match &self.secret {
            Secret::Ed25519(key) => string(key.verifying_key().as_bytes()),
            Secret::Ecdsa(key) => {
                [string(b"nistp256"), string(key.verifying_key().to_encoded_point(false).as_bytes())].concat()
            }
        };
        [string(self.algorithm().as_bytes()), point, string(self.application.as_bytes())].concat()
    }

    /// A signature as OpenSSH has it, over what the authenticator makes of `message`.
    fn sign(&mut self, message: &[u8]) -> Vec<u8> {
        let trailer = [&[self.flags][..], &self.counter.to_be_bytes()].concat();
        self.counter = self.counter.saturating_add(1);
        let signed = [&Sha256::digest(&self.application)[..], &trailer, &Sha256::digest(message)[..]].concat();
        let signature = match &self.secret {
            Secret::Ed25519(key) => ed25519_dalek::Signer::sign(key, &signed).to_bytes().to_vec(),
            Secret::Ecdsa(key) => {
                let signature: p256::ecdsa::Signature = p256::ecdsa::signature::Signer::sign(key, &signed);
                let (r, s) = signature.split_bytes();
                [number(&r), number(&s)].concat()
            }
        };
        [string(self.algorithm().as_bytes()), string(&signature), trailer].concat()
    }
}

/// Length and bytes, RFC 4251.
fn string(bytes: &[u8]) -> Vec<u8> {
    // Everything here is a few hundred bytes.
    [&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes()[..], bytes].concat()
}

/// A positive number, RFC 4251: without leading zeros, but for one where the first bit is set.
fn number(big_endian: &[u8]) -> Vec<u8> {
    let digits: Vec<u8> = big_endian.iter().copied().skip_while(|byte| *byte == 0).collect();
    match digits.first() {
        Some(first) if first & 0x80 != 0 => string(&[&[0][..], &digits].concat()),
        _ => string(&digits),
    }
}

/// An ssh-agent with one security key in it. It ends when it is dropped.
pub struct KeyAgent {
    /// The key, to be set up between signatures.
    pub key: Arc<Mutex<SecurityKey>>,
    socket: PathBuf,
    ending: Arc<AtomicBool>,
}

impl KeyAgent {
    /// Listens at `socket`.
    pub fn start(key: SecurityKey, socket: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
        let this = Self {
            key: Arc::new(Mutex::new(key)),
            socket: socket.to_owned(),
            ending: Arc::new(AtomicBool::new(false)),
        };
        let (key, ending) = (Arc::clone(&this.key), Arc::clone(&this.ending));
        thread::spawn(move || {
            for stream in listener.incoming().flatten().take_while(|_| !ending.load(Ordering::SeqCst)) {
                // A client that goes away in the middle is the client's own business.
                let _ = serve(stream, &key);
            }
        });
        Ok(this)
    }

    /// For `SSH_AUTH_SOCK`.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Changes what the next signatures say.
    pub fn set(&self, change: impl FnOnce(&mut SecurityKey)) {
        change(&mut self.key.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for KeyAgent {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        // Wakes the thread, which then sees that it is to end; gone already is gone.
        let _ = UnixStream::connect(&self.socket);
        let _ = fs::remove_file(&self.socket);
    }
}

fn serve(mut stream: UnixStream, key: &Mutex<SecurityKey>) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MESSAGE_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut message = vec![0; length];
        stream.read_exact(&mut message)?;
        let answer = answer(&message, &mut key.lock().unwrap_or_else(PoisonError::into_inner));
        stream.write_all(&string(&answer))?;
    }
}

fn answer(message: &[u8], key: &mut SecurityKey) -> Vec<u8> {
    match message.split_first() {
        Some((&REQUEST_IDENTITIES, _)) => {
            [&[IDENTITIES][..], &1_u32.to_be_bytes(), &string(&key.public_blob()), &string(b"security key")].concat()
        }
        Some((&SIGN, rest)) => match take_string(rest).and_then(|(blob, rest)| Some((blob, take_string(rest)?.0))) {
            Some((blob, data)) if blob == key.public_blob() => [vec![SIGNED], string(&key.sign(data))].concat(),
            _ => vec![FAILURE],
        },
        _ => vec![FAILURE],
    }
}

fn take_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::machine;

    /// ssh-keygen checks the signature; it takes any flags and counter, which is why the agent must not go by it alone.
    #[test]
    fn openssh_takes_the_signatures() {
        let folder = std::env::temp_dir().join(format!("breakglass-fido-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let Ok(program) = machine::program("ssh-keygen") else {
            println!("skipped: there is no ssh-keygen");
            return;
        };
        for kind in [Kind::Ed25519, Kind::Ecdsa] {
            for seed in 1..6 {
                let mut key = SecurityKey::new(kind, seed).unwrap();
                let proof = key.prove(b"text".to_vec(), "purpose");
                fs::write(folder.join("signers"), format!("alice {}\n", key.public_line())).unwrap();
                fs::write(folder.join("signature"), &proof.signature).unwrap();
                let mut verify = Command::new(&program);
                verify.args(["-Y", "verify", "-I", "alice", "-n", "purpose", "-f"]).arg(folder.join("signers"));
                verify.arg("-s").arg(folder.join("signature")).stdin(Stdio::piped()).stdout(Stdio::null());
                let mut child = verify.spawn().unwrap();
                child.stdin.take().unwrap().write_all(&proof.text).unwrap();
                assert!(child.wait().unwrap().success(), "{kind:?} {seed}");
            }
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
