//! Whether a proof allows to break the glass. Pure functions: clock, randomness and files are arguments.
//!
//! What is signed is defined in [`breakglass_api::grant`]. The checks, in their order; each has its own code, and each
//! message says what is wrong and what to do. What costs little comes first, the arithmetic last, and only what has
//! passed everything uses up its nonce.
//!
//! | code | refused because |
//! |---|---|
//! | `bad-text` | the text is not in its one spelling |
//! | `other-host`, `other-boot` | it answers another host's challenge, or one from before a reboot |
//! | `forged-nonce`, `stale-nonce`, `replayed-nonce` | its nonce is not this agent's, too old, or used |
//! | `no-reason` | it gives no reason |
//! | `ttl-too-short`, `ttl-too-long` | its length is zero or above policy |
//! | `bad-signature` | the signature cannot be read, or does not fit text and key |
//! | `certificate`, `certificate-principal` | the certificate is not taken, or is for somebody else |
//! | `wrong-namespace` | it was signed for something else |
//! | `unknown-signer` | allowed_signers does not list key and name together |
//! | `namespace-not-allowed`, `not-valid-now` | the line lists them, but not for this or not now |
//! | `weak-key` | the key's type or size is not taken |
//! | `wrong-application`, `no-presence` | the FIDO key is not for SSH, or nobody touched it |
//! | `source-not-allowed`, `bad-ticket`, `operator-not-allowed` | policy asks for another network, ticket or person |
//! | `not-hardware`, `not-verified`, `key-lifetime`, `revoked-key` | policy asks for another key |
//! | `quorum`, `same-person`, `too-many-signatures` | not enough distinct people signed |
//! | `counter-rollback` | the FIDO key's counter went back, as that of a copy would |
//! | `too-many-grants` | more grants were verified within a minute than can be remembered |
//! | `prepared-elsewhere`, `prepared-not-taken`, `prepared-too-long`, `prepared-not-now` | a grant signed ahead is not handed in on the host, or not one that it takes |
//! | `used-grant`, `cannot-note-use` | a grant signed ahead was used, or its use cannot be noted for good |
//!
//! Refusals tell a caller who already has a public key whether it is listed. That is accepted: public keys open nothing,
//! and in an emergency the reason for a refusal is worth more.

pub mod certificate;
pub mod krl;
pub mod nonce;
mod pattern;
pub mod policy;
pub mod prepared;
pub mod proof;
pub mod quorum;
pub mod revoked;
pub mod signers;
mod sshsig;

use std::{fmt, net::IpAddr, time::Duration};

use breakglass_api::{
    CLOSE_NAMESPACE, GRANT_NAMESPACE,
    grant::{Claim, CloseText, GrantText, ManyText, Request, TextError},
    v1,
};

use self::{
    nonce::{NonceError, Nonces},
    policy::Rules,
    proof::Signer,
    quorum::Cosigned,
    revoked::Revoked,
    signers::AllowedSigners,
};

/// Why something is not done, for the caller and for the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Stable word, such as `unknown-signer`.
    pub code: &'static str,
    /// A sentence: what is wrong and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal with its sentence.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Refusal {}

/// What the host holds a proof against.
#[derive(Clone, Debug)]
pub struct Policy {
    /// This host.
    pub host_id: String,
    /// This boot of it.
    pub boot_id: [u8; 16],
    /// Longest session.
    pub max_ttl: Duration,
    /// What else is asked for.
    pub rules: Rules,
}

/// Everything that a proof is held against.
#[derive(Clone, Copy)]
pub struct Check<'a> {
    /// The host and its rules.
    pub policy: &'a Policy,
    /// Who may sign.
    pub signers: &'a AllowedSigners,
    /// Whose keys are no good any more.
    pub revoked: &'a Revoked,
    /// Which challenges are good.
    pub nonces: &'a Nonces,
    /// The time.
    pub clock: Clock,
    /// Where the request came from; absent: this machine.
    pub source: Option<IpAddr>,
}

impl Check<'_> {
    fn circumstances(&self) -> proof::Circumstances {
        proof::Circumstances { wall_s: self.clock.wall_s, source: self.source }
    }
}

/// What both clocks showed when the proof arrived.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub boot_ns: u64,
    /// Unix time, seconds.
    pub wall_s: i64,
}

/// A text and the armoured SSHSIG over it, as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// What was signed.
    pub text: Vec<u8>,
    /// The signature.
    pub signature: Vec<u8>,
}

/// What is asked for, in whichever form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Why.
    pub reason: String,
    /// The incident's number, or empty.
    pub ticket: String,
    /// How long, seconds.
    pub ttl_seconds: u64,
    /// Whether the session ends with its last login.
    pub close_on_exit: bool,
}

/// Permission to break the glass. Its nonce is used up.
#[derive(Clone, Debug)]
pub struct VerifiedGrant {
    /// What was asked for.
    pub terms: Terms,
    /// Who asked.
    pub signer: Signer,
    /// Who consented.
    pub cosigned: Vec<Cosigned>,
    /// What the reviewer should know at once.
    pub warnings: Vec<String>,
    /// The bytes, for the record.
    pub signed: Signed,
    /// What has yet to be used up, where the grant was signed ahead and so has no nonce.
    pub prepared: Option<prepared::Number>,
}

/// Permission to close a session. Its nonce is used up.
#[derive(Clone, Debug)]
pub struct VerifiedClose {
    /// What was asked for.
    pub text: CloseText,
    /// Who asked.
    pub signer: Signer,
    /// The bytes, for the record.
    pub signed: Signed,
}

impl VerifiedGrant {
    /// Length of the session.
    pub fn ttl(&self) -> Duration {
        Duration::from_secs(self.terms.ttl_seconds)
    }
}

/// Checks a request to break the glass.
pub fn verify_grant(
    signed: Signed,
    cosignatures: &[v1::Cosignature],
    check: &Check<'_>,
) -> Result<VerifiedGrant, Refusal> {
    let rules = &check.policy.rules;
    rules.check_source(check.source)?;
    let text = match Request::parse(&signed.text).map_err(bad_text)? {
        Request::One(text) => text,
        Request::Many(many) => own_part(&many, check.policy)?,
        Request::Prepared(text) => return prepared::verify(signed, text, cosignatures, check),
    };
    check_claim(&text.claim, check)?;
    let terms = Terms {
        reason: text.reason,
        ticket: text.ticket,
        ttl_seconds: text.ttl_seconds,
        close_on_exit: text.close_on_exit,
    };
    check_terms(&terms, check.policy)?;
    let signer = check_signature(&signed, GRANT_NAMESPACE, &text.claim.operator, check)?;
    rules.check_operator(&signer.principal)?;
    let cosigned = quorum::verify(cosignatures, &signed.text, &signer, check)?;
    claim(&text.claim, check)?;
    let warnings = rules.reason_warnings(&terms.reason);
    Ok(VerifiedGrant { terms, signer, cosigned, warnings, signed, prepared: None })
}

/// What a text for several hosts asks of this one.
fn own_part(many: &ManyText, policy: &Policy) -> Result<GrantText, Refusal> {
    many.for_host(&policy.host_id).ok_or_else(|| {
        let named: Vec<&str> = many.places.iter().map(|place| place.host_id.as_str()).collect();
        other_host(&named, &policy.host_id)
    })
}

fn other_host(named: &[&str], own: &str) -> Refusal {
    Refusal::new(
        "other-host",
        format!("the text is for {}, this is {own}; ask this host for a challenge and sign for it", named.join(", ")),
    )
}

/// Checks a request to close a session.
pub fn verify_close(signed: Signed, check: &Check<'_>) -> Result<VerifiedClose, Refusal> {
    let text = CloseText::parse(&signed.text).map_err(bad_text)?;
    check_claim(&text.claim, check)?;
    let signer = check_signature(&signed, CLOSE_NAMESPACE, &text.claim.operator, check)?;
    claim(&text.claim, check)?;
    Ok(VerifiedClose { text, signer, signed })
}

fn claim(claim: &Claim, check: &Check<'_>) -> Result<(), Refusal> {
    check.nonces.claim(&claim.nonce, check.clock.boot_ns).map_err(refused_nonce)
}

fn check_claim(claim: &Claim, check: &Check<'_>) -> Result<(), Refusal> {
    let policy = check.policy;
    if claim.host_id != policy.host_id {
        return Err(other_host(&[&claim.host_id], &policy.host_id));
    }
    if claim.boot_id != policy.boot_id {
        return Err(Refusal::new(
            "other-boot",
            "the host was rebooted since its challenge; ask for a new one and sign again",
        ));
    }
    check.nonces.check(&claim.nonce, check.clock.boot_ns).map_err(refused_nonce)
}

fn check_terms(terms: &Terms, policy: &Policy) -> Result<(), Refusal> {
    if terms.reason.is_empty() {
        return Err(Refusal::new("no-reason", "the request gives no reason; say why with --reason"));
    }
    policy.check_ttl(terms.ttl_seconds)?;
    policy.rules.check_ticket(&terms.ticket)
}

impl Policy {
    /// Whether a session may be that long.
    pub fn check_ttl(&self, seconds: u64) -> Result<(), Refusal> {
        if seconds == 0 {
            return Err(Refusal::new("ttl-too-short", "the request is for no time at all; ask for longer with --ttl"));
        }
        let max = self.max_ttl.as_secs();
        if seconds > max {
            return Err(Refusal::new(
                "ttl-too-long",
                format!(
                    "the request is for {}, this host allows at most {}; ask for less with --ttl",
                    humantime::format_duration(Duration::from_secs(seconds)),
                    humantime::format_duration(Duration::from_secs(max))
                ),
            ));
        }
        Ok(())
    }
}

fn check_signature(signed: &Signed, namespace: &str, operator: &str, check: &Check<'_>) -> Result<Signer, Refusal> {
    let signer =
        proof::verify(&signed.text, &signed.signature, namespace, operator, check.signers, check.circumstances())?;
    check_signer(&signer, check)?;
    Ok(signer)
}

/// What is asked of every key that signs, the first one's and a co-signer's.
fn check_signer(signer: &Signer, check: &Check<'_>) -> Result<(), Refusal> {
    if check.revoked.revokes(&signer.key, signer.certificate.as_deref()) {
        return Err(Refusal::new(
            "revoked-key",
            format!(
                "the key {} of {:?} is revoked on this host; sign with another",
                signer.fingerprint(),
                signer.principal
            ),
        ));
    }
    check.policy.rules.check_key(signer)
}

fn bad_text(error: TextError) -> Refusal {
    Refusal::new("bad-text", format!("the signed text is not understood: {error}; use a client of this host's version"))
}

fn refused_nonce(error: NonceError) -> Refusal {
    match error {
        NonceError::Forged => Refusal::new(
            "forged-nonce",
            "the challenge is not from this agent, or the agent was restarted since; ask for a new one and sign again",
        ),
        NonceError::Stale(valid) => Refusal::new(
            "stale-nonce",
            format!("the challenge is older than {valid} s; ask for a new one and sign again"),
        ),
        NonceError::Replayed => {
            Refusal::new("replayed-nonce", "the request was used before; ask for a new challenge and sign again")
        }
        NonceError::Full => Refusal::new("too-many-grants", "too many requests were granted in a row; wait a minute"),
    }
}

#[cfg(test)]
mod tests;
