//! Which key exchange `ssh` is asked to try first.
//!
//! What OpenSSH prefers from 8.9 to 9.8, `sntrup761x25519-sha512`, costs a client some 150 ms and a server 55 ms: half of all the
//! time that a login takes. From 9.9 on there is an exchange that withstands quantum computers as well and costs next to nothing.
//! Where the client has that it comes first, otherwise plain `curve25519-sha256`: see
//! `docs/decisions/0005-fast-key-exchange.md`. Whatever else the client offers stays behind them.

use std::{ffi::OsString, process::Stdio};

use tokio::process::Command;

/// Fast ones, the best first (sshd_config(5), `KexAlgorithms`).
const FAST: [&str; 2] = ["mlkem768x25519-sha256", "curve25519-sha256"];

/// An option for `ssh -o`; nothing where the client does not say what it knows.
pub async fn option(ssh: OsString) -> Option<String> {
    let known = Command::new(ssh).args(["-Q", "kex"]).stdin(Stdio::null()).stderr(Stdio::null()).output().await.ok()?;
    prefer(&String::from_utf8_lossy(&known.stdout))
}

/// `known` has one name on each line. A name that the client does not know would make it refuse the whole option.
fn prefer(known: &str) -> Option<String> {
    let fast: Vec<&str> = FAST.into_iter().filter(|name| known.lines().any(|line| line.trim() == *name)).collect();
    (!fast.is_empty()).then(|| format!("KexAlgorithms=^{}", fast.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_client_knows() {
        let old = "diffie-hellman-group14-sha256\ncurve25519-sha256\ncurve25519-sha256@libssh.org\n";
        assert_eq!(prefer(old).as_deref(), Some("KexAlgorithms=^curve25519-sha256"));
        let new = format!("{old}mlkem768x25519-sha256\nsntrup761x25519-sha512\n");
        assert_eq!(prefer(&new).as_deref(), Some("KexAlgorithms=^mlkem768x25519-sha256,curve25519-sha256"));
        assert_eq!(prefer("ssh: illegal option -- Q\n"), None);
        assert_eq!(prefer(""), None);
    }
}
