//! Grants that were signed ahead and carried to the host by hand: [`breakglass_api::grant::prepared`].
//!
//! What a challenge proves otherwise is asked for here in other ways: the request must come from this machine itself, within its window
//! by this host's clock, and the number in it must never have been used. The last is the caller's to keep, durably, and comes after
//! everything else ([`crate::control::used`]).

use std::time::Duration;

use breakglass_api::{PREPARED_NAMESPACE, grant::PreparedText, v1};
use jiff::Timestamp;

use super::{Check, Refusal, Signed, Terms, VerifiedGrant, check_signature, check_terms, other_host, quorum};

/// What makes a prepared grant single use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    /// The number.
    pub number: [u8; 16],
    /// After which it is refused anyhow, Unix seconds.
    pub not_after_s: i64,
}

pub(super) fn verify(
    signed: Signed,
    text: PreparedText,
    cosignatures: &[v1::Cosignature],
    check: &Check<'_>,
) -> Result<VerifiedGrant, Refusal> {
    let rules = &check.policy.rules;
    if check.source.is_some() {
        return Err(Refusal::new(
            "prepared-elsewhere",
            "a prepared grant is handed in on the host itself: breakglass-agent open --grant FILE",
        ));
    }
    if text.host_id != check.policy.host_id {
        return Err(other_host(&[&text.host_id], &check.policy.host_id));
    }
    let number = check_window(&text, rules.prepared_max, check.clock.wall_s)?;
    let terms = Terms {
        reason: text.reason,
        ticket: text.ticket,
        ttl_seconds: text.ttl_seconds,
        close_on_exit: text.close_on_exit,
    };
    check_terms(&terms, check.policy)?;
    let signer = check_signature(&signed, PREPARED_NAMESPACE, &text.operator, check)?;
    rules.check_operator(&signer.principal)?;
    let cosigned = quorum::verify(cosignatures, &signed.text, &signer, check)?;
    let mut warnings = rules.reason_warnings(&terms.reason);
    warnings.push(format!("the grant was signed ahead ({}) and carried to the host by hand", text.client_time));
    Ok(VerifiedGrant { terms, signer, cosigned, warnings, signed, prepared: Some(number) })
}

fn check_window(text: &PreparedText, longest: Duration, wall_s: i64) -> Result<Number, Refusal> {
    if longest.is_zero() {
        return Err(Refusal::new(
            "prepared-not-taken",
            "this host takes no prepared grants (grant.prepared_max); use a one-time code",
        ));
    }
    let (from, until) = (seconds(&text.not_before)?, seconds(&text.not_after)?);
    if until <= from {
        return Err(Refusal::new("bad-text", "the grant's window ends before it begins; prepare another"));
    }
    if until.abs_diff(from) > longest.as_secs() {
        return Err(Refusal::new(
            "prepared-too-long",
            format!(
                "the grant is good for {}, this host takes them for at most {}; prepare another with --valid-for",
                humantime::format_duration(Duration::from_secs(until.abs_diff(from))),
                humantime::format_duration(longest)
            ),
        ));
    }
    if wall_s < from || wall_s > until {
        let now = Timestamp::from_second(wall_s).map_or_else(|_| wall_s.to_string(), |now| now.to_string());
        return Err(Refusal::new(
            "prepared-not-now",
            format!(
                "the grant is good from {} to {}, and this host's clock says {now}; where the clock is wrong, use a one-time code",
                text.not_before, text.not_after
            ),
        ));
    }
    Ok(Number { number: text.number, not_after_s: until })
}

fn seconds(time: &str) -> Result<i64, Refusal> {
    let parsed: Result<Timestamp, _> = time.parse();
    parsed
        .map(|time| time.as_second())
        .map_err(|_| Refusal::new("bad-text", format!("{time} is no day of the calendar; prepare another grant")))
}
