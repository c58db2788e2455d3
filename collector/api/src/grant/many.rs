//! A request to break the glass on several hosts under one signature: an incident is rarely one host.
//!
//! ```text
//! breakglass-grants v1
//! hosts: NUMBER
//! host: HOST-ID          ┐
//! host-name: NAME        │ as often as said, in strictly ascending order of host ids
//! boot: BOOT-ID          │
//! nonce: NONCE           ┘
//! operator: PRINCIPAL
//! reason: TEXT
//! ticket: TEXT or nothing
//! ttl: SECONDS
//! close-on-exit: yes | no
//! client-time: TIME
//! ```
//!
//! Each host finds its own challenge in it by its id. To a host that is not named the text says nothing; on one that is, it is good
//! once, as its nonce is. All who sign, and every reviewer, see the whole list.

use super::{
    Claim, Encoder, GrantText, HOST_NAME_MAX, ID_MAX, Lines, NONCE_MAX, OPERATOR_MAX, REASON_MAX, TICKET_MAX, TextError,
};

/// First line of such a text.
pub(super) const HEAD: &str = "breakglass-grants v1";

/// Fewest hosts: for one there is [`GrantText`].
pub const HOSTS_MIN: usize = 2;
/// Most hosts in one text.
pub const HOSTS_MAX: usize = 32;
/// Longest text, bytes. All fields at their limits together stay below it.
pub const MANY_TEXT_MAX: usize = 24 * 1024;

/// One host's challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The host's id.
    pub host_id: String,
    /// The host's name, for the eyes of those who sign.
    pub host_name: String,
    /// The host's boot id.
    pub boot_id: [u8; 16],
    /// The host's nonce.
    pub nonce: Vec<u8>,
}

/// A request to break the glass on several hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManyText {
    /// Where, in ascending order of ids.
    pub places: Vec<Place>,
    /// Principal in every host's allowed_signers.
    pub operator: String,
    /// Why. May be empty here; hosts refuse that.
    pub reason: String,
    /// The incident's number, or empty.
    pub ticket: String,
    /// How long, seconds.
    pub ttl_seconds: u64,
    /// Whether each session ends with its last login.
    pub close_on_exit: bool,
    /// The operator's clock, `YYYY-MM-DDThh:mm:ssZ`.
    pub client_time: String,
}

impl ManyText {
    /// The one spelling of these fields, whatever order the places are in; an error names the field that cannot be written.
    pub fn encode(&self) -> Result<String, TextError> {
        let mut places: Vec<&Place> = self.places.iter().collect();
        places.sort_by(|one, other| one.host_id.cmp(&other.host_id));
        let mut out = Encoder::new(HEAD);
        out.line("hosts", &places.len().to_string());
        for place in places {
            out.line("host", &place.host_id);
            out.line("host-name", &place.host_name);
            out.line("boot", &hex::encode(place.boot_id));
            out.line("nonce", &hex::encode(&place.nonce));
        }
        out.line("operator", &self.operator);
        out.terms(&self.reason, &self.ticket, self.ttl_seconds, self.close_on_exit);
        out.line("client-time", &self.client_time);
        Self::parse(out.text.as_bytes())?;
        Ok(out.text)
    }

    /// Reads a text, strictly.
    pub fn parse(bytes: &[u8]) -> Result<Self, TextError> {
        let mut lines = Lines::new(bytes, HEAD, MANY_TEXT_MAX)?;
        let text = Self {
            places: lines.places()?,
            operator: lines.needed("operator", OPERATOR_MAX)?.to_owned(),
            reason: lines.text("reason", REASON_MAX)?.to_owned(),
            ticket: lines.text("ticket", TICKET_MAX)?.to_owned(),
            ttl_seconds: lines.seconds("ttl")?,
            close_on_exit: lines.yes_no("close-on-exit")?,
            client_time: lines.time("client-time")?,
        };
        lines.finish()?;
        Ok(text)
    }

    /// What is asked of the host with this id, as if it were asked alone; `None` where it is not named.
    pub fn for_host(&self, host_id: &str) -> Option<GrantText> {
        let place = self.places.iter().find(|place| place.host_id == host_id)?;
        Some(GrantText {
            claim: Claim {
                host_id: place.host_id.clone(),
                host_name: place.host_name.clone(),
                boot_id: place.boot_id,
                nonce: place.nonce.clone(),
                operator: self.operator.clone(),
            },
            reason: self.reason.clone(),
            ticket: self.ticket.clone(),
            ttl_seconds: self.ttl_seconds,
            close_on_exit: self.close_on_exit,
            client_time: self.client_time.clone(),
        })
    }
}

impl Lines<'_> {
    fn places(&mut self) -> Result<Vec<Place>, TextError> {
        let count = self.seconds("hosts").map_err(|e| TextError { message: "hosts is not a number".into(), ..e })?;
        let count = usize::try_from(count).ok().filter(|count| (HOSTS_MIN..=HOSTS_MAX).contains(count));
        let count =
            count.ok_or_else(|| self.wrong(format!("hosts is not a number from {HOSTS_MIN} to {HOSTS_MAX}")))?;
        let mut places: Vec<Place> = Vec::with_capacity(count);
        for _ in 0..count {
            let host_id = self.needed("host", ID_MAX)?.to_owned();
            if places.last().is_some_and(|before| before.host_id >= host_id) {
                return Err(self.wrong("hosts come once each, in ascending order of their ids".into()));
            }
            places.push(Place {
                host_id,
                host_name: self.needed("host-name", HOST_NAME_MAX)?.to_owned(),
                boot_id: self.hex("boot", 16)?.try_into().map_err(|_| self.wrong("boot: expected 32 digits".into()))?,
                nonce: self.hex("nonce", NONCE_MAX)?,
            });
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::Request;

    fn place(id: &str) -> Place {
        Place { host_id: id.into(), host_name: format!("name-{id}"), boot_id: [0xab; 16], nonce: vec![1, 2] }
    }

    fn text(ids: &[&str]) -> ManyText {
        ManyText {
            places: ids.iter().map(|id| place(id)).collect(),
            operator: "alice".into(),
            reason: "the cluster is down".into(),
            ticket: String::new(),
            ttl_seconds: 1800,
            close_on_exit: true,
            client_time: "2026-01-31T23:59:59Z".into(),
        }
    }

    #[test]
    fn the_spelling_does_not_depend_on_the_order_asked_in() {
        let expected = "breakglass-grants v1\nhosts: 2\n\
            host: a\nhost-name: name-a\nboot: abababababababababababababababab\nnonce: 0102\n\
            host: b\nhost-name: name-b\nboot: abababababababababababababababab\nnonce: 0102\n\
            operator: alice\nreason: the cluster is down\nticket: \nttl: 1800\nclose-on-exit: yes\n\
            client-time: 2026-01-31T23:59:59Z\n";
        assert_eq!(text(&["b", "a"]).encode().unwrap(), expected);
        assert_eq!(ManyText::parse(expected.as_bytes()).unwrap(), text(&["a", "b"]));
        assert_eq!(Request::parse(expected.as_bytes()).unwrap().host_names(), ["name-a", "name-b"]);
    }

    #[test]
    fn a_host_finds_itself_and_no_other_does() {
        let both = text(&["a", "b"]);
        let alone = both.for_host("b").unwrap();
        assert_eq!((alone.claim.host_name.as_str(), alone.claim.nonce.as_slice()), ("name-b", &[1u8, 2][..]));
        assert_eq!((alone.claim.operator.as_str(), alone.ttl_seconds, alone.close_on_exit), ("alice", 1800, true));
        assert!(both.for_host("c").is_none() && both.for_host("").is_none());
    }

    #[test]
    fn every_deviation_is_refused_with_its_line() {
        let good = text(&["a", "b"]).encode().unwrap();
        for (from, to, line) in [
            ("hosts: 2", "hosts: 1", 2),
            ("hosts: 2", "hosts: 33", 2),
            ("hosts: 2", "hosts: 02", 2),
            ("hosts: 2", "hosts: 3", 11),
            ("host: b", "host: a", 7),
            ("host: a", "host: c", 7),
            ("host: a", "host: ", 3),
            ("host-name: name-b\n", "", 8),
            ("operator: alice", "host: c", 11),
            ("down\n", "down \n", 12),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert_eq!(ManyText::parse(bad.as_bytes()).unwrap_err().line, line, "{from:?} -> {to:?}");
        }
        assert!(text(&["a"]).encode().is_err() && text(&["a", "a"]).encode().is_err());
    }

    #[test]
    fn the_longest_fields_fit_together() {
        let places = (0..HOSTS_MAX).map(|i| Place {
            host_id: format!("{i:0>ID_MAX$}"),
            host_name: "n".repeat(HOST_NAME_MAX),
            boot_id: [0; 16],
            nonce: vec![0; NONCE_MAX],
        });
        let long = ManyText {
            places: places.collect(),
            operator: "o".repeat(OPERATOR_MAX),
            reason: "r".repeat(REASON_MAX),
            ticket: "t".repeat(TICKET_MAX),
            ttl_seconds: u64::MAX,
            ..text(&[])
        };
        assert!(long.encode().is_ok());
    }
}
