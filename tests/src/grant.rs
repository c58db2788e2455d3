//! Proofs made by hand, right ones and wrong ones.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};
use breakglass_api::{
    GRANT_NAMESPACE,
    grant::{Claim, GrantText},
    v1::Challenge,
};

use crate::machine;

/// A text and its signature, ready to be handed in.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The canonical text.
    pub text: Vec<u8>,
    /// Armoured SSHSIG.
    pub signature: Vec<u8>,
}

/// The request that answers `challenge` as the command would.
pub fn request(challenge: &Challenge, operator: &str, reason: &str, ttl_seconds: u64) -> Result<GrantText> {
    Ok(GrantText {
        claim: Claim {
            host_id: challenge.host_id.clone(),
            host_name: challenge.hostname.clone(),
            boot_id: challenge.boot_id.as_slice().try_into().context("a boot id that is not 16 bytes")?,
            nonce: challenge.nonce.clone(),
            operator: operator.into(),
        },
        reason: reason.into(),
        ticket: String::new(),
        ttl_seconds,
        close_on_exit: false,
        // Decides nothing, so it need not be now.
        client_time: "2026-01-31T23:59:59Z".into(),
    })
}

/// Signs `request` for breaking the glass.
pub fn prove(request: &GrantText, key: &Path) -> Result<Proof> {
    prove_as(request.encode()?.into_bytes(), key, GRANT_NAMESPACE)
}

/// Signs any text for any purpose.
pub fn prove_as(text: Vec<u8>, key: &Path, namespace: &str) -> Result<Proof> {
    let file = key.with_extension(format!("text-{:?}", std::thread::current().id()));
    fs::write(&file, &text)?;
    let program = machine::program("ssh-keygen")?;
    machine::run(Command::new(program).args(["-q", "-Y", "sign", "-n", namespace, "-f"]).arg(key).arg(&file))?;
    let signed = Path::new(&file).with_extension(format!("text-{:?}.sig", std::thread::current().id()));
    let signature = fs::read(&signed).with_context(|| format!("ssh-keygen made no {}", signed.display()))?;
    fs::remove_file(&file)?;
    fs::remove_file(&signed)?;
    Ok(Proof { text, signature })
}
