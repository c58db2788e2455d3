//! What a host asks of a proof beyond its signature: `[grant]` of the configuration.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use regex_lite::Regex;
use ssh_key::public::KeyData;

use super::{Refusal, pattern, proof::Signer};

/// Longest ticket pattern, bytes; and what its compiled form may take.
const TICKET_PATTERN_MAX: usize = 256;
const TICKET_PROGRAM_MAX: usize = 64 * 1024;

/// Reasons that say nothing, in lower case. Flagged for the reviewer, never refused.
const GENERIC: &[&str] = &[
    "test",
    "testing",
    "tests",
    "debug",
    "debugging",
    "fix",
    "fixing",
    "issue",
    "problem",
    "emergency",
    "urgent",
    "asap",
    "incident",
    "broken",
    "outage",
    "prod",
    "production",
    "access",
    "login",
    "check",
    "checking",
    "maintenance",
    "work",
    "stuff",
    "asdf",
    "foo",
    "bar",
    "xxx",
    "tbd",
    "todo",
    "none",
    "n/a",
    "na",
    "reason",
    "break glass",
    "breakglass",
    "break-glass",
    "root",
    "shell",
    "see ticket",
];

/// Shortest reason that can say something, letters and digits.
const REASON_MIN: usize = 8;

/// The rules of one host. The default asks for nothing.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Patterns of principals that may open; empty: whoever allowed_signers lists.
    pub operators: Vec<String>,
    /// Only FIDO keys are taken.
    pub hardware_only: bool,
    /// Only FIDO keys that verified a PIN or a fingerprint are taken.
    pub user_verification: bool,
    /// What the ticket must look like.
    pub ticket: Option<TicketPattern>,
    /// Networks from which proofs are taken; empty: any. The Unix socket is always taken.
    pub sources: Vec<IpNet>,
    /// How many distinct people must sign; 0 is as good as 1.
    pub required_signers: usize,
    /// For how long a key, or its certificate, may be good in all; absent: for ever.
    pub max_key_lifetime: Option<Duration>,
    /// Longest window of a grant that was signed ahead; zero: none is taken.
    pub prepared_max: Duration,
}

/// A regular expression that a whole ticket must match.
#[derive(Clone, Debug)]
pub struct TicketPattern {
    text: String,
    whole: Regex,
}

impl TicketPattern {
    /// Understands a pattern; an error says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.len() > TICKET_PATTERN_MAX {
            return Err(format!("it has {} bytes, the limit is {TICKET_PATTERN_MAX}", text.len()));
        }
        let whole = regex_lite::RegexBuilder::new(&format!("^(?:{text})$")).size_limit(TICKET_PROGRAM_MAX).build();
        Ok(Self { text: text.to_owned(), whole: whole.map_err(|e| e.to_string())? })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Rules {
    /// Whether a proof may come from there; `None` is this machine itself.
    pub fn check_source(&self, source: Option<IpAddr>) -> Result<(), Refusal> {
        let Some(ip) = source.map(|ip| ip.to_canonical()) else { return Ok(()) };
        if self.sources.is_empty() || self.sources.iter().any(|net| net.contains(&ip)) {
            return Ok(());
        }
        Err(Refusal::new(
            "source-not-allowed",
            format!("this host takes no requests from {ip}; ask from a network that its policy names (grant.sources)"),
        ))
    }

    /// Whether the ticket is one.
    pub fn check_ticket(&self, ticket: &str) -> Result<(), Refusal> {
        let Some(pattern) = self.ticket.as_ref().filter(|pattern| !pattern.whole.is_match(ticket)) else {
            return Ok(());
        };
        let found = if ticket.is_empty() { "there is none".to_owned() } else { format!("{ticket:?} does not") };
        Err(Refusal::new(
            "bad-ticket",
            format!("this host asks for a ticket of the form {}; {found}; give one with --ticket", pattern.text),
        ))
    }

    /// Whether this person may open here, once it is known who it is.
    pub fn check_operator(&self, principal: &str) -> Result<(), Refusal> {
        if self.operators.is_empty() || self.operators.iter().any(|list| pattern::list_matches(list, principal)) {
            return Ok(());
        }
        Err(Refusal::new(
            "operator-not-allowed",
            format!("{principal:?} may not break the glass on this host (grant.operators); ask somebody who may"),
        ))
    }

    /// Whether a key of this kind may sign.
    pub fn check_key(&self, signer: &Signer) -> Result<(), Refusal> {
        let hardware = matches!(signer.key, KeyData::SkEd25519(_) | KeyData::SkEcdsaSha2NistP256(_));
        if (self.hardware_only || self.user_verification) && !hardware {
            return Err(Refusal::new(
                "not-hardware",
                format!(
                    "this host takes FIDO keys only, and the key of {:?} is none; sign with a security key",
                    signer.principal
                ),
            ));
        }
        self.check_lifetime(signer)?;
        if self.user_verification && !signer.touch.is_some_and(|touch| touch.verified) {
            return Err(Refusal::new(
                "not-verified",
                "this host asks that the security key checks a PIN or a fingerprint, which it did not; \
                 make the key with: ssh-keygen -t ed25519-sk -O verify-required",
            ));
        }
        Ok(())
    }

    fn check_lifetime(&self, signer: &Signer) -> Result<(), Refusal> {
        let Some(longest) = self.max_key_lifetime else { return Ok(()) };
        if signer.lifetime_s.is_some_and(|lifetime| lifetime <= longest.as_secs()) {
            return Ok(());
        }
        let longest = humantime::format_duration(longest);
        let what = match &signer.certificate {
            Some(_) => {
                format!("the certificate of {:?} is good for longer; get one for at most {longest}", signer.principal)
            }
            None => format!(
                "line {} of allowed_signers does not bound the key of {:?} so; give it valid-after and valid-before",
                signer.line, signer.principal
            ),
        };
        Err(Refusal::new(
            "key-lifetime",
            format!("this host takes only keys that are good for at most {longest}: {what}"),
        ))
    }

    /// What the reviewer should know of a reason at once.
    pub fn reason_warnings(&self, reason: &str) -> Vec<String> {
        generic(reason).into_iter().collect()
    }
}

/// Says so if a reason says nothing.
fn generic(reason: &str) -> Option<String> {
    let plain = reason.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let letters = plain.chars().filter(|c| c.is_alphanumeric());
    let mut distinct: Vec<char> = letters.clone().collect();
    distinct.sort_unstable();
    distinct.dedup();
    let empty = letters.count() < REASON_MIN || distinct.len() < 4 || GENERIC.contains(&plain.as_str());
    empty.then(|| format!("the reason {reason:?} says little; the reviewer will ask"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reasons_that_say_nothing() {
        for reason in ["test", "Testing!", "fix", "aaaaaaaaaaaa", "…", "x", "break glass", "Emergency."] {
            assert!(generic(reason).is_some(), "{reason}");
        }
        for reason in ["database does not answer", "disk of web1 is full", "прод не отвечает на запросы"]
        {
            assert!(generic(reason).is_none(), "{reason}");
        }
    }

    #[test]
    fn tickets_match_as_a_whole() {
        let rules = Rules { ticket: Some(TicketPattern::new("INC-[0-9]+|CHG-[0-9]+").unwrap()), ..Rules::default() };
        for good in ["INC-1", "CHG-20"] {
            assert!(rules.check_ticket(good).is_ok(), "{good}");
        }
        for bad in ["", "INC-", "xINC-1", "INC-1x", "INC-1|CHG-"] {
            let refusal = rules.check_ticket(bad).unwrap_err();
            assert!(refusal.code == "bad-ticket" && refusal.message.contains("--ticket"), "{bad}");
        }
        assert!(Rules::default().check_ticket("").is_ok());
        assert!(TicketPattern::new("(").is_err() && TicketPattern::new(&"a".repeat(300)).is_err());
    }

    #[test]
    fn sources_by_network() {
        let sources = ["10.1.0.0/16", "2001:db8::/32"].map(|net| net.parse().unwrap()).to_vec();
        let rules = Rules { sources, ..Rules::default() };
        let check = |ip: &str| rules.check_source(Some(ip.parse().unwrap())).is_ok();
        assert!(check("10.1.2.3") && check("::ffff:10.1.2.3") && check("2001:db8::1"));
        assert!(!check("10.2.0.1") && !check("2001:db9::1"));
        assert!(
            rules.check_source(None).is_ok() && Rules::default().check_source(Some("1.1.1.1".parse().unwrap())).is_ok()
        );
    }

    #[test]
    fn operators_by_pattern() {
        let rules = Rules { operators: vec!["*@dba.example.org".into(), "carol".into()], ..Rules::default() };
        assert!(rules.check_operator("alice@dba.example.org").is_ok() && rules.check_operator("carol").is_ok());
        assert_eq!(rules.check_operator("alice@example.org").unwrap_err().code, "operator-not-allowed");
    }

    proptest! {
        #[test]
        fn noise_never_panics(pattern in "\\PC{0,40}", ticket in "\\PC{0,60}") {
            if let Ok(pattern) = TicketPattern::new(&pattern) {
                let _ = Rules { ticket: Some(pattern), ..Rules::default() }.check_ticket(&ticket);
            }
            let _ = generic(&ticket);
        }
    }
}
