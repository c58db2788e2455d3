//! The texts that operators sign: what is asked for, in a form with exactly one spelling.
//!
//! ```text
//! breakglass-grant v1          breakglass-close v1
//! host: HOST-ID                host: HOST-ID
//! host-name: NAME              host-name: NAME
//! boot: BOOT-ID                boot: BOOT-ID
//! nonce: NONCE                 nonce: NONCE
//! operator: PRINCIPAL          operator: PRINCIPAL
//! reason: TEXT                 session: SESSION-ID or nothing
//! ticket: TEXT or nothing      client-time: TIME
//! ttl: SECONDS
//! close-on-exit: yes | no
//! client-time: TIME
//! ```
//!
//! Grammar, the same for both:
//!
//! - UTF-8; every line, the last one too, ends in one LF; nothing follows. At most [`TEXT_MAX`] bytes.
//! - The first line names the kind and the version. Every key follows once, in the order above, as `key: value`; a value
//!   that is nothing leaves `key: ` with its space.
//! - No value begins or ends with white space. None holds a control character, a line or paragraph separator, or an
//!   invisible or direction-changing character (U+200B–200F, U+202A–202E, U+2060–206F, U+FEFF, tags): a reviewer must see what was signed.
//! - `BOOT-ID` is 32, `NONCE` 2 to [`NONCE_MAX`]·2 lower-case hexadecimal digits. `SECONDS` is decimal without sign or
//!   leading zero. `TIME` is `YYYY-MM-DDThh:mm:ssZ`; it says what the operator's clock showed and decides nothing.
//!
//! A text that breaks any rule is refused as a whole, with the line. For every text that is accepted, encoding what was
//! parsed gives the same bytes; so two readers cannot understand one signature differently.
//!
//! Two further forms ask for the same by the same grammar: [`many`] for several hosts at once, and [`prepared`] for a host that
//! cannot be asked for a challenge.

pub mod many;
pub mod prepared;

use std::fmt;

pub use self::{
    many::{ManyText, Place},
    prepared::PreparedText,
};

/// Longest text, bytes. All fields at their limits together stay below it.
pub const TEXT_MAX: usize = 4096;
/// Longest host id and session id, bytes.
pub const ID_MAX: usize = 64;
/// Longest host name, bytes: that of a domain name.
pub const HOST_NAME_MAX: usize = 253;
/// Longest principal, bytes.
pub const OPERATOR_MAX: usize = 256;
/// Longest reason, bytes.
pub const REASON_MAX: usize = 1024;
/// Longest ticket, bytes.
pub const TICKET_MAX: usize = 128;
/// Longest nonce, bytes before hexadecimal.
pub const NONCE_MAX: usize = 128;

const GRANT_HEAD: &str = "breakglass-grant v1";
const CLOSE_HEAD: &str = "breakglass-close v1";

/// What both texts begin with: which boot of which host is meant, and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The host's id, from its challenge.
    pub host_id: String,
    /// The host's name, for the eyes of those who sign.
    pub host_name: String,
    /// The host's boot id, from its challenge.
    pub boot_id: [u8; 16],
    /// From the host's challenge.
    pub nonce: Vec<u8>,
    /// Principal in the host's allowed_signers.
    pub operator: String,
}

/// A request to break the glass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantText {
    /// Where, and who.
    pub claim: Claim,
    /// Why. May be empty here; hosts refuse that.
    pub reason: String,
    /// The incident's number, or empty.
    pub ticket: String,
    /// How long, seconds.
    pub ttl_seconds: u64,
    /// Whether the session ends with its last login.
    pub close_on_exit: bool,
    /// The operator's clock, `YYYY-MM-DDThh:mm:ssZ`.
    pub client_time: String,
}

/// A request to close a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseText {
    /// Where, and who.
    pub claim: Claim,
    /// Which session; empty: the one that is open.
    pub session: String,
    /// The operator's clock, `YYYY-MM-DDThh:mm:ssZ`.
    pub client_time: String,
}

/// A request to break the glass in any of its forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// On one host.
    One(GrantText),
    /// On several hosts.
    Many(ManyText),
    /// On a host that was not asked for a challenge.
    Prepared(PreparedText),
}

impl Request {
    /// Reads a text of whichever form its first line names, strictly.
    pub fn parse(bytes: &[u8]) -> Result<Self, TextError> {
        let head = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        if head == many::HEAD.as_bytes() {
            ManyText::parse(bytes).map(Self::Many)
        } else if head == prepared::HEAD.as_bytes() {
            PreparedText::parse(bytes).map(Self::Prepared)
        } else {
            GrantText::parse(bytes).map(Self::One)
        }
    }

    /// The one spelling of it.
    pub fn encode(&self) -> Result<String, TextError> {
        match self {
            Self::One(text) => text.encode(),
            Self::Many(text) => text.encode(),
            Self::Prepared(text) => text.encode(),
        }
    }

    /// Who asks.
    pub fn operator(&self) -> &str {
        match self {
            Self::One(text) => &text.claim.operator,
            Self::Many(text) => &text.operator,
            Self::Prepared(text) => &text.operator,
        }
    }

    /// Why.
    pub fn reason(&self) -> &str {
        match self {
            Self::One(text) => &text.reason,
            Self::Many(text) => &text.reason,
            Self::Prepared(text) => &text.reason,
        }
    }

    /// Names of the hosts, in the text's order.
    pub fn host_names(&self) -> Vec<&str> {
        match self {
            Self::One(text) => vec![&text.claim.host_name],
            Self::Many(text) => text.places.iter().map(|place| place.host_name.as_str()).collect(),
            Self::Prepared(text) => vec![&text.host_name],
        }
    }
}

/// Why bytes are not such a text, or fields cannot make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextError {
    /// Line, from 1; 0 for the text as a whole.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.message),
            line => write!(f, "line {line}: {}", self.message),
        }
    }
}

impl std::error::Error for TextError {}

impl GrantText {
    /// The one spelling of these fields; an error names the field that cannot be written.
    pub fn encode(&self) -> Result<String, TextError> {
        let mut out = Encoder::new(GRANT_HEAD);
        out.claim(&self.claim);
        out.terms(&self.reason, &self.ticket, self.ttl_seconds, self.close_on_exit);
        out.line("client-time", &self.client_time);
        // Whatever the parser would refuse is refused here already, with the same words.
        Self::parse(out.text.as_bytes())?;
        Ok(out.text)
    }

    /// Reads a text, strictly.
    pub fn parse(bytes: &[u8]) -> Result<Self, TextError> {
        let mut lines = Lines::new(bytes, GRANT_HEAD, TEXT_MAX)?;
        let text = Self {
            claim: lines.claim()?,
            reason: lines.text("reason", REASON_MAX)?.to_owned(),
            ticket: lines.text("ticket", TICKET_MAX)?.to_owned(),
            ttl_seconds: lines.seconds("ttl")?,
            close_on_exit: lines.yes_no("close-on-exit")?,
            client_time: lines.time("client-time")?,
        };
        lines.finish()?;
        Ok(text)
    }
}

impl CloseText {
    /// The one spelling of these fields; an error names the field that cannot be written.
    pub fn encode(&self) -> Result<String, TextError> {
        let mut out = Encoder::new(CLOSE_HEAD);
        out.claim(&self.claim);
        out.line("session", &self.session);
        out.line("client-time", &self.client_time);
        Self::parse(out.text.as_bytes())?;
        Ok(out.text)
    }

    /// Reads a text, strictly.
    pub fn parse(bytes: &[u8]) -> Result<Self, TextError> {
        let mut lines = Lines::new(bytes, CLOSE_HEAD, TEXT_MAX)?;
        let text = Self {
            claim: lines.claim()?,
            session: lines.text("session", ID_MAX)?.to_owned(),
            client_time: lines.time("client-time")?,
        };
        lines.finish()?;
        Ok(text)
    }
}

struct Encoder {
    text: String,
}

impl Encoder {
    fn new(head: &str) -> Self {
        Self { text: format!("{head}\n") }
    }

    fn line(&mut self, key: &str, value: &str) {
        self.text.push_str(key);
        self.text.push_str(": ");
        self.text.push_str(value);
        self.text.push('\n');
    }

    fn claim(&mut self, claim: &Claim) {
        self.line("host", &claim.host_id);
        self.line("host-name", &claim.host_name);
        self.line("boot", &hex::encode(claim.boot_id));
        self.line("nonce", &hex::encode(&claim.nonce));
        self.line("operator", &claim.operator);
    }

    fn terms(&mut self, reason: &str, ticket: &str, ttl_seconds: u64, close_on_exit: bool) {
        self.line("reason", reason);
        self.line("ticket", ticket);
        self.line("ttl", &ttl_seconds.to_string());
        self.line("close-on-exit", if close_on_exit { "yes" } else { "no" });
    }
}

struct Lines<'a> {
    lines: std::str::Split<'a, char>,
    at: usize,
}

impl<'a> Lines<'a> {
    fn new(bytes: &'a [u8], head: &str, max: usize) -> Result<Self, TextError> {
        if bytes.len() > max {
            return Err(whole(format!("the text has {} bytes, the limit is {max}", bytes.len())));
        }
        let text = std::str::from_utf8(bytes).map_err(|e| whole(format!("the text is not UTF-8: {e}")))?;
        let text = text.strip_suffix('\n').ok_or_else(|| whole("the text does not end in a line feed".into()))?;
        let mut lines = Self { lines: text.split('\n'), at: 0 };
        if lines.next("the first line")? != head {
            return Err(lines.wrong(format!("expected {head:?}")));
        }
        Ok(lines)
    }

    fn next(&mut self, what: &str) -> Result<&'a str, TextError> {
        self.at += 1;
        self.lines.next().ok_or_else(|| self.wrong(format!("the text ends before {what}")))
    }

    fn wrong(&self, message: String) -> TextError {
        TextError { line: self.at, message }
    }

    fn claim(&mut self) -> Result<Claim, TextError> {
        Ok(Claim {
            host_id: self.needed("host", ID_MAX)?.to_owned(),
            host_name: self.needed("host-name", HOST_NAME_MAX)?.to_owned(),
            boot_id: self.hex("boot", 16)?.try_into().map_err(|_| self.wrong("boot: expected 32 digits".into()))?,
            nonce: self.hex("nonce", NONCE_MAX)?,
            operator: self.needed("operator", OPERATOR_MAX)?.to_owned(),
        })
    }

    fn value(&mut self, key: &str) -> Result<&'a str, TextError> {
        let line = self.next(key)?;
        line.strip_prefix(key)
            .and_then(|rest| rest.strip_prefix(": "))
            .ok_or_else(|| self.wrong(format!("expected \"{key}: …\"; keys come once each, in the documented order")))
    }

    fn text(&mut self, key: &str, max: usize) -> Result<&'a str, TextError> {
        let value = self.value(key)?;
        if value.len() > max {
            return Err(self.wrong(format!("{key} has {} bytes, the limit is {max}", value.len())));
        }
        if let Some(c) = value.chars().find(|c| !is_plain(*c)) {
            return Err(self.wrong(format!("{key} holds the character U+{:04X}, which cannot be seen", u32::from(c))));
        }
        if value.trim() != value {
            return Err(self.wrong(format!("{key} begins or ends with white space")));
        }
        Ok(value)
    }

    fn needed(&mut self, key: &str, max: usize) -> Result<&'a str, TextError> {
        match self.text(key, max)? {
            "" => Err(self.wrong(format!("{key} is empty"))),
            value => Ok(value),
        }
    }

    fn hex(&mut self, key: &str, max: usize) -> Result<Vec<u8>, TextError> {
        let value = self.needed(key, 2 * max)?;
        if value.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(self.wrong(format!("{key}: hexadecimal digits are written in lower case")));
        }
        hex::decode(value).map_err(|e| self.wrong(format!("{key}: {e}")))
    }

    fn seconds(&mut self, key: &str) -> Result<u64, TextError> {
        let value = self.needed(key, 20)?;
        let canonical = value.bytes().all(|b| b.is_ascii_digit()) && (value == "0" || !value.starts_with('0'));
        match value.parse() {
            Ok(seconds) if canonical => Ok(seconds),
            _ => Err(self.wrong(format!("{key} is not a number of seconds"))),
        }
    }

    fn yes_no(&mut self, key: &str) -> Result<bool, TextError> {
        match self.value(key)? {
            "yes" => Ok(true),
            "no" => Ok(false),
            _ => Err(self.wrong(format!("{key} is neither \"yes\" nor \"no\""))),
        }
    }

    fn time(&mut self, key: &str) -> Result<String, TextError> {
        let value = self.value(key)?;
        let fits = value.len() == TIME_SHAPE.len()
            && value.bytes().zip(TIME_SHAPE).all(|(b, s)| if *s == b'0' { b.is_ascii_digit() } else { b == *s });
        if !fits {
            return Err(self.wrong(format!("{key} is not of the form 2026-01-31T23:59:59Z")));
        }
        Ok(value.to_owned())
    }

    fn finish(mut self) -> Result<(), TextError> {
        self.at += 1;
        match self.lines.next() {
            None => Ok(()),
            Some(_) => Err(self.wrong("something follows the last key".into())),
        }
    }
}

const TIME_SHAPE: &[u8] = b"0000-00-00T00:00:00Z";

fn whole(message: String) -> TextError {
    TextError { line: 0, message }
}

/// Whether a character can be seen for what it is. Trojan-source characters could show reviewers another reason than the
/// one that was signed.
pub fn is_plain(c: char) -> bool {
    !(c.is_control()
        || matches!(u32::from(c), 0xAD | 0x61C | 0x180E | 0x200B..=0x200F | 0x2028..=0x202E | 0x2060..=0x206F | 0xFEFF)
        || matches!(u32::from(c), 0xFFF9..=0xFFFB | 0xE0000..=0xE0FFF))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim() -> Claim {
        Claim {
            host_id: "0b5e9a52-6a6e-4b0c-9a52-0d2f3a4b5c6d".into(),
            host_name: "web1".into(),
            boot_id: [0xab; 16],
            nonce: vec![1, 2, 0xfe],
            operator: "alice@example.org".into(),
        }
    }

    fn grant() -> GrantText {
        GrantText {
            claim: claim(),
            reason: "database does not answer".into(),
            ticket: "INC-17".into(),
            ttl_seconds: 1800,
            close_on_exit: false,
            client_time: "2026-01-31T23:59:59Z".into(),
        }
    }

    #[test]
    fn the_spelling() {
        let expected = "breakglass-grant v1\nhost: 0b5e9a52-6a6e-4b0c-9a52-0d2f3a4b5c6d\nhost-name: web1\n\
            boot: abababababababababababababababab\nnonce: 0102fe\noperator: alice@example.org\n\
            reason: database does not answer\nticket: INC-17\nttl: 1800\nclose-on-exit: no\n\
            client-time: 2026-01-31T23:59:59Z\n";
        assert_eq!(grant().encode().unwrap(), expected);
        let close = CloseText { claim: claim(), session: String::new(), client_time: "2026-01-31T23:59:59Z".into() };
        assert!(
            close
                .encode()
                .unwrap()
                .ends_with("operator: alice@example.org\nsession: \nclient-time: 2026-01-31T23:59:59Z\n")
        );
        assert_eq!(CloseText::parse(close.encode().unwrap().as_bytes()).unwrap(), close);
    }

    #[test]
    fn every_deviation_is_refused_with_its_line() {
        let good = grant().encode().unwrap();
        for (from, to, line) in [
            ("breakglass-grant v1", "breakglass-grant v2", 1),
            ("breakglass-grant v1", "breakglass-close v1", 1),
            ("host-name: web1\n", "", 3),
            ("host-name: web1\n", "host-name: web1\nhost-name: web1\n", 4),
            ("host-name: web1", "host-name:web1", 3),
            ("host-name: web1", "Host-Name: web1", 3),
            ("host-name: web1", "host-name:  web1", 3),
            ("host-name: web1", "host-name: ", 3),
            ("boot: abab", "boot: ABAB", 4),
            ("boot: abab", "boot: abxb", 4),
            ("boot: abab", "boot: ab", 4),
            ("nonce: 0102fe", "nonce: 0102f", 5),
            ("alice@example.org", "alice@example.org ", 6),
            ("does not", "does\tnot", 7),
            ("does not", "does\rnot", 7),
            ("does not", "does\u{202e}not", 7),
            ("does not", "does\u{200b}not", 7),
            ("INC-17", "INC\u{7f}17", 8),
            ("ttl: 1800", "ttl: 01800", 9),
            ("ttl: 1800", "ttl: +1800", 9),
            ("ttl: 1800", "ttl: 99999999999999999999", 9),
            ("close-on-exit: no", "close-on-exit: No", 10),
            ("23:59:59Z", "23:59:59", 11),
            ("23:59:59Z\n", "23:59:59Z\nextra: 1\n", 12),
            ("23:59:59Z\n", "23:59:59Z\n\n", 12),
            ("23:59:59Z\n", "23:59:59Z", 0),
            ("\n", "\r\n", 1),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert_eq!(GrantText::parse(bad.as_bytes()).unwrap_err().line, line, "{from:?} -> {to:?}");
        }
        let mut bytes = good.into_bytes();
        bytes[60] = 0xff;
        assert!(GrantText::parse(&bytes).unwrap_err().message.contains("UTF-8"));
        let long = GrantText { reason: "x".repeat(REASON_MAX + 1), ..grant() };
        assert!(long.encode().unwrap_err().message.contains("limit is 1024"));
    }

    #[test]
    fn the_longest_fields_fit_together() {
        let claim = Claim {
            host_id: "h".repeat(ID_MAX),
            host_name: "n".repeat(HOST_NAME_MAX),
            boot_id: [0; 16],
            nonce: vec![0; NONCE_MAX],
            operator: "o".repeat(OPERATOR_MAX),
        };
        let text = GrantText {
            claim,
            reason: "r".repeat(REASON_MAX),
            ticket: "t".repeat(TICKET_MAX),
            ttl_seconds: u64::MAX,
            close_on_exit: true,
            client_time: "2026-01-31T23:59:59Z".into(),
        };
        assert!(text.encode().is_ok());
    }

    proptest! {
        #[test]
        fn what_is_accepted_has_one_spelling(bytes in mutated()) {
            if let Ok(text) = GrantText::parse(&bytes) {
                prop_assert_eq!(text.encode().unwrap().into_bytes(), bytes);
            }
        }

        #[test]
        fn any_plain_reason_survives(reason in "\\PC{0,200}", ticket in "[A-Z]{0,5}-?[0-9]{0,6}", ttl: u64) {
            let text = GrantText { reason: reason.trim().to_owned(), ticket, ttl_seconds: ttl, ..grant() };
            if let Ok(encoded) = text.encode() {
                prop_assert_eq!(GrantText::parse(encoded.as_bytes()).unwrap(), text);
            } else {
                prop_assert!(!text.reason.chars().all(is_plain));
            }
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = GrantText::parse(&bytes);
            let _ = CloseText::parse(&bytes);
        }
    }

    /// A good text with a few bytes changed, taken out or put in.
    fn mutated() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec((any::<u16>(), any::<u8>(), 0..3u8), 0..4).prop_map(|edits| {
            let mut bytes = grant().encode().unwrap().into_bytes();
            for (at, byte, kind) in edits {
                let at = usize::from(at) % bytes.len();
                match kind {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => drop(bytes.remove(at)),
                }
            }
            bytes
        })
    }
}
