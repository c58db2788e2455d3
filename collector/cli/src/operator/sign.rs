//! Signs with the operator's key, by `ssh-keygen -Y sign`: it knows key files, passphrases, ssh-agent and FIDO keys.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{io::AsyncWriteExt, process::Command};

use super::failure::Failure;
use crate::config::Config;

/// Tried in this order where none is named.
const USUAL: [&str; 5] = ["id_ed25519_sk", "id_ecdsa_sk", "id_ed25519", "id_ecdsa", "id_rsa"];

/// The key to sign and log in with: as named, as configured, or the first usual one.
pub fn identity(named: Option<&Path>, config: &Config) -> Result<PathBuf, Failure> {
    if let Some(path) = named.or(config.operator.identity.as_deref()) {
        return if path.exists() {
            Ok(path.to_owned())
        } else {
            Err(Failure::Usage(format!("there is no SSH key {}", path.display())))
        };
    }
    let folder = std::env::var_os("HOME").map(|home| Path::new(&home).join(".ssh"));
    let usual = folder.iter().flat_map(|folder| USUAL.iter().map(|name| folder.join(name)));
    usual.into_iter().find(|path| path.exists()).ok_or_else(|| {
        Failure::Usage("no SSH key was found: name one with -i, or set operator.identity in the configuration".into())
    })
}

/// The key that logs in where this one signed: inside a certificate it is the plain one, whose private half lies beside it.
pub fn login_key(identity: &Path) -> PathBuf {
    let name = identity.file_name().and_then(|name| name.to_str());
    let plain = name.and_then(|name| name.strip_suffix("-cert.pub")).map(|name| identity.with_file_name(name));
    let found = plain.into_iter().flat_map(|plain| [plain.clone(), plain.with_extension("pub")]).find(|p| p.exists());
    found.unwrap_or_else(|| identity.to_owned())
}

/// Whether signing needs a touch of a FIDO key, as far as the files tell.
pub fn needs_touch(identity: &Path) -> bool {
    let mut public = identity.as_os_str().to_owned();
    public.push(".pub");
    let text = std::fs::read_to_string(public).or_else(|_| std::fs::read_to_string(identity));
    text.is_ok_and(|text| text.starts_with("sk-"))
}

/// Signs `text`; returns the armoured signature. Asks for a passphrase on the terminal if need be.
pub async fn sign(ssh_keygen: &OsStr, identity: &Path, namespace: &str, text: &str) -> Result<Vec<u8>, Failure> {
    let failed = |what: String| Failure::Other(format!("cannot sign with {}: {what}", identity.display()));
    let mut child = Command::new(ssh_keygen)
        .args(["-q", "-Y", "sign", "-n", namespace, "-f"])
        .arg(identity)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| failed(format!("{}: {e}; install the OpenSSH client", ssh_keygen.display())))?;
    if let Some(mut stdin) = child.stdin.take() {
        // If it ends early its own message, on standard error, says more than a broken pipe.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("ssh-keygen ended with {}; what it said is above", output.status)));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_logs_in_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert_eq!(login_key(&path("id-cert.pub")), path("id-cert.pub"), "there is nothing else");
        std::fs::write(path("id.pub"), "").unwrap();
        assert_eq!(login_key(&path("id-cert.pub")), path("id.pub"), "its private half is in ssh-agent");
        std::fs::write(path("id"), "").unwrap();
        assert_eq!(login_key(&path("id-cert.pub")), path("id"));
        assert_eq!(login_key(&path("id")), path("id"));
    }
}
