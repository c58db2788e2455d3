//! Opening with a one-time code.
//!
//! What policy asks for is checked before the code, so that a request that is refused for another reason costs no code. A code is burnt
//! here, before anybody hears that it was right.

use std::{net::IpAddr, time::Duration};

use breakglass_api::{
    grant::{REASON_MAX, TICKET_MAX, is_plain},
    v1::{self, LoginPlace},
};
use ssh_key::{HashAlg, PublicKey};

use super::source::{Group, Source};
use crate::{
    codes::{self, Book, Code, CodeError},
    grant::{Policy, Refusal, proof},
};

/// Longest public key that is looked at, bytes. RSA-4096 takes 720.
const KEY_MAX: usize = 2048;

/// Permission to break the glass by a one-time code, which is burnt.
#[derive(Clone, Debug)]
pub struct CodeGrant {
    /// The code's serial number.
    pub serial: u32,
    /// Why, or where it was typed.
    pub reason: String,
    /// Ticket, or empty.
    pub ticket: String,
    /// How long.
    pub ttl: Duration,
    /// End with the last process.
    pub close_on_exit: bool,
    /// The key that may log in.
    pub key: Option<PublicKey>,
    /// Where it came from.
    pub source: String,
    /// What the reviewer, and who issues codes, should know at once.
    pub warnings: Vec<String>,
}

/// Who is told apart when guesses are counted: behind PAM the host that the login comes from, not the gate on this machine.
pub fn group(request: &v1::CodeRequest, source: Source) -> Group {
    match remote(request) {
        Some(Ok(ip)) => Source::Tcp((ip, 0).into()).group(),
        Some(Err(())) | None => source.group(),
    }
}

/// Only root's own programs may speak for PAM.
pub fn check_caller(request: &v1::CodeRequest, source: Source) -> Result<(), Refusal> {
    match (&request.login, source) {
        (None, _) | (Some(_), Source::Unix { uid: 0, .. }) => Ok(()),
        _ => Err(Refusal::new("not-allowed", "only the PAM gate may ask for a login; use breakglass open --code")),
    }
}

/// Checks the request and burns its code.
pub fn verify(
    request: &v1::CodeRequest,
    source: Source,
    policy: &Policy,
    default_ttl: Duration,
    book: &Book,
) -> Result<CodeGrant, Refusal> {
    check_policy(request, source, policy)?;
    let (reason, mut warnings) = reason(request, policy)?;
    let ttl = ttl(request, policy, default_ttl)?;
    let key = public_key(&request.public_key)?;
    let code = Code::parse(&request.code).ok_or_else(|| refused(CodeError::Unknown))?;
    let found = book.find(&code).map_err(refused)?;
    book.burn(&found).map_err(refused)?;
    if found.left <= codes::FEW {
        warnings.push(format!(
            "{} one-time codes are left on this host; issue new ones: breakglass-agent codes issue",
            found.left
        ));
    }
    let from = request.login.as_ref().map(place).unwrap_or_default();
    Ok(CodeGrant {
        serial: found.serial,
        reason,
        ticket: request.ticket.clone(),
        ttl,
        close_on_exit: request.close_on_exit,
        key,
        source: if from.is_empty() { source.to_string() } else { format!("{source} ({from})") },
        warnings,
    })
}

fn refused(error: CodeError) -> Refusal {
    Refusal::new(error.code(), error.to_string())
}

fn check_policy(request: &v1::CodeRequest, source: Source, policy: &Policy) -> Result<(), Refusal> {
    if policy.rules.required_signers > 1 {
        return Err(Refusal::new(
            "codes-not-taken",
            format!(
                "this host opens for {} people together, and a code is nobody's consent; sign instead",
                policy.rules.required_signers
            ),
        ));
    }
    let from = match (remote(request), source) {
        (Some(Ok(ip)), _) => Some(ip),
        (Some(Err(())), _) if !policy.rules.sources.is_empty() => {
            return Err(Refusal::new("source-not-allowed", "PAM does not give the address that the login comes from"));
        }
        (_, Source::Tcp(address)) => Some(address.ip()),
        (_, Source::Unix { .. }) => None,
    };
    policy.rules.check_source(from)?;
    match request.login {
        // Nobody is asked for a ticket at a console.
        Some(_) => Ok(()),
        None => policy.rules.check_ticket(&request.ticket),
    }
}

/// The address that a login comes from, where it comes from elsewhere and PAM gives one.
fn remote(request: &v1::CodeRequest) -> Option<Result<IpAddr, ()>> {
    let host = &request.login.as_ref()?.remote_host;
    (!host.is_empty()).then(|| host.parse::<IpAddr>().map(|ip| ip.to_canonical()).map_err(|_| ()))
}

fn reason(request: &v1::CodeRequest, policy: &Policy) -> Result<(String, Vec<String>), Refusal> {
    if let Some(login) = &request.login {
        let reason = format!("one-time code typed at a login prompt ({})", place(login));
        return Ok((reason, vec!["nobody was asked for a reason at the login prompt; ask who used the code".into()]));
    }
    let sound = |text: &str, max: usize| text.len() <= max && text.chars().all(is_plain) && text.trim() == text;
    if !sound(&request.reason, REASON_MAX) || !sound(&request.ticket, TICKET_MAX) {
        return Err(Refusal::new("bad-text", "reason or ticket is too long, or holds characters that cannot be seen"));
    }
    if request.reason.is_empty() {
        return Err(Refusal::new("no-reason", "the request gives no reason; say why with --reason"));
    }
    Ok((request.reason.clone(), policy.rules.reason_warnings(&request.reason)))
}

fn ttl(request: &v1::CodeRequest, policy: &Policy, default_ttl: Duration) -> Result<Duration, Refusal> {
    if request.ttl_seconds == 0 {
        return Ok(default_ttl);
    }
    policy.check_ttl(request.ttl_seconds)?;
    Ok(Duration::from_secs(request.ttl_seconds))
}

fn public_key(text: &str) -> Result<Option<PublicKey>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    let key = Some(text).filter(|text| text.len() <= KEY_MAX).and_then(|text| PublicKey::from_openssh(text).ok());
    let mut key =
        key.ok_or_else(|| Refusal::new("bad-key", "the key that is to log in cannot be read; name another with -i"))?;
    proof::check_strength(key.key_data())?;
    key.set_comment("");
    Ok(Some(key))
}

/// Service, terminal and host, harmless.
fn place(login: &LoginPlace) -> String {
    let parts = [&login.service, &login.tty, &login.remote_host];
    let words: Vec<_> =
        parts.into_iter().filter(|part| !part.is_empty()).map(|p| p.escape_debug().to_string()).collect();
    words.join(", ")
}

impl CodeGrant {
    /// How the record names whoever used the code.
    pub fn operator(&self) -> String {
        format!("code:{}", self.serial)
    }

    /// `TYPE BASE64` and fingerprint of the key that may log in.
    pub fn key_and_fingerprint(&self) -> Option<(String, String)> {
        let key = self.key.as_ref()?;
        Some((key.to_openssh().ok()?, key.fingerprint(HashAlg::Sha256).to_string()))
    }
}
