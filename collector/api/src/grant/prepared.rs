//! A request to break the glass that was signed ahead, for a host that cannot be reached: somebody carries it there by hand.
//!
//! ```text
//! breakglass-prepared v1
//! host: HOST-ID
//! host-name: NAME
//! number: 32 hexadecimal digits
//! operator: PRINCIPAL
//! reason: TEXT
//! ticket: TEXT or nothing
//! ttl: SECONDS
//! close-on-exit: yes | no
//! not-before: TIME
//! not-after: TIME
//! client-time: TIME
//! ```
//!
//! There is no challenge to answer, so nothing ties it to a boot of the host or to a minute. What takes that place: a random number, of
//! which the host keeps for good that it was used; a window of time, by the host's clock; and that only somebody who is on the host can
//! hand it in. It has a namespace of its own, so that no other signature is one.

use super::{Encoder, HOST_NAME_MAX, ID_MAX, Lines, OPERATOR_MAX, REASON_MAX, TEXT_MAX, TICKET_MAX, TextError};

/// First line of such a text.
pub(super) const HEAD: &str = "breakglass-prepared v1";

/// Length of the number that makes a request single use, bytes.
pub const NUMBER_LEN: usize = 16;

/// A request that was signed ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedText {
    /// The host's id.
    pub host_id: String,
    /// The host's name, for the eyes of those who sign.
    pub host_name: String,
    /// Random; used once.
    pub number: [u8; NUMBER_LEN],
    /// Principal in the host's allowed_signers.
    pub operator: String,
    /// Why. May be empty here; hosts refuse that.
    pub reason: String,
    /// The incident's number, or empty.
    pub ticket: String,
    /// How long a session, seconds.
    pub ttl_seconds: u64,
    /// Whether the session ends with its last login.
    pub close_on_exit: bool,
    /// When it may be used first, `YYYY-MM-DDThh:mm:ssZ`.
    pub not_before: String,
    /// When it may be used last.
    pub not_after: String,
    /// The operator's clock.
    pub client_time: String,
}

impl PreparedText {
    /// The one spelling of these fields; an error names the field that cannot be written.
    pub fn encode(&self) -> Result<String, TextError> {
        let mut out = Encoder::new(HEAD);
        out.line("host", &self.host_id);
        out.line("host-name", &self.host_name);
        out.line("number", &hex::encode(self.number));
        out.line("operator", &self.operator);
        out.terms(&self.reason, &self.ticket, self.ttl_seconds, self.close_on_exit);
        out.line("not-before", &self.not_before);
        out.line("not-after", &self.not_after);
        out.line("client-time", &self.client_time);
        Self::parse(out.text.as_bytes())?;
        Ok(out.text)
    }

    /// Reads a text, strictly. Whether its times are days of a calendar is not looked at.
    pub fn parse(bytes: &[u8]) -> Result<Self, TextError> {
        let mut lines = Lines::new(bytes, HEAD, TEXT_MAX)?;
        let text = Self {
            host_id: lines.needed("host", ID_MAX)?.to_owned(),
            host_name: lines.needed("host-name", HOST_NAME_MAX)?.to_owned(),
            number: lines
                .hex("number", NUMBER_LEN)?
                .try_into()
                .map_err(|_| lines.wrong("number: expected 32 digits".into()))?,
            operator: lines.needed("operator", OPERATOR_MAX)?.to_owned(),
            reason: lines.text("reason", REASON_MAX)?.to_owned(),
            ticket: lines.text("ticket", TICKET_MAX)?.to_owned(),
            ttl_seconds: lines.seconds("ttl")?,
            close_on_exit: lines.yes_no("close-on-exit")?,
            not_before: lines.time("not-before")?,
            not_after: lines.time("not-after")?,
            client_time: lines.time("client-time")?,
        };
        lines.finish()?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::Request;

    fn text() -> PreparedText {
        PreparedText {
            host_id: "host-1".into(),
            host_name: "web1".into(),
            number: [0xcd; 16],
            operator: "alice".into(),
            reason: "no network in cage 4".into(),
            ticket: "INC-1".into(),
            ttl_seconds: 3600,
            close_on_exit: false,
            not_before: "2026-01-30T00:00:00Z".into(),
            not_after: "2026-02-01T00:00:00Z".into(),
            client_time: "2026-01-31T23:59:59Z".into(),
        }
    }

    #[test]
    fn the_spelling() {
        let expected = "breakglass-prepared v1\nhost: host-1\nhost-name: web1\nnumber: cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd\n\
            operator: alice\nreason: no network in cage 4\nticket: INC-1\nttl: 3600\nclose-on-exit: no\n\
            not-before: 2026-01-30T00:00:00Z\nnot-after: 2026-02-01T00:00:00Z\nclient-time: 2026-01-31T23:59:59Z\n";
        assert_eq!(text().encode().unwrap(), expected);
        assert_eq!(PreparedText::parse(expected.as_bytes()).unwrap(), text());
        assert_eq!(Request::parse(expected.as_bytes()), Ok(Request::Prepared(text())));
    }

    #[test]
    fn every_deviation_is_refused_with_its_line() {
        let good = text().encode().unwrap();
        for (from, to, line) in [
            ("prepared v1", "grant v1", 1),
            ("number: cd", "number: ", 4),
            ("number: cd", "number: CD", 4),
            ("not-before: 2026-01-30T00:00:00Z\n", "", 10),
            ("not-after: 2026-02-01T00:00:00Z", "not-after: 2026-02-01", 11),
            ("23:59:59Z\n", "23:59:59Z\nextra: 1\n", 13),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert_eq!(PreparedText::parse(bad.as_bytes()).unwrap_err().line, line, "{from:?} -> {to:?}");
        }
    }
}
