//! The text that a reviewer signs: which session, up to where, and what they say of it.
//!
//! ```text
//! breakglass-review v1
//! session: UUID
//! host: UUID
//! stream: 32 DIGITS
//! last-frame: NUMBER
//! last-hash: 64 DIGITS
//! log: ORIGIN or nothing
//! log-size: NUMBER
//! log-root: 64 DIGITS or nothing
//! reviewer: NAME
//! verdict: ok | concern
//! note: TEXT or nothing
//! client-time: TIME
//! ```
//!
//! The grammar is that of the texts that operators sign, `breakglass_api::grant`: UTF-8, one LF behind every line, every key once and in this
//! order, no value with white space at an end or with a character that cannot be seen. UUIDs and digits are in lower case, numbers
//! decimal without leading zero. `last-frame` is at least 1. Without a log `log` and `log-root` are nothing and `log-size` is 0; else the size is at least 1.
//!
//! A *signed review* is the text followed by the armoured signature as `ssh-keygen -Y sign -n breakglass-review@v1` writes it.

use breakglass_api::grant::is_plain;
use uuid::Uuid;

use crate::sshsig::ARMOUR_MAX;

/// Longest text, bytes.
pub const TEXT_MAX: usize = 4096;
/// Longest note, bytes.
pub const NOTE_MAX: usize = 2048;
/// Longest name of a reviewer, bytes.
pub const REVIEWER_MAX: usize = 256;
/// Longest name of a log, bytes.
const ORIGIN_MAX: usize = 255;

const HEAD: &str = "breakglass-review v1";
const ARMOUR: &str = "-----BEGIN SSH SIGNATURE-----";
const TIME_SHAPE: &[u8] = b"0000-00-00T00:00:00Z";

/// What a reviewer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to object to.
    Ok,
    /// Something has to be looked into.
    Concern,
}

impl Verdict {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Concern => "concern",
        }
    }
}

/// A state of a transparency log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// The log's name.
    pub origin: String,
    /// Leaves.
    pub size: u64,
    /// Root hash.
    pub root: [u8; 32],
}

/// A review.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Review {
    /// The session.
    pub session: [u8; 16],
    /// The host's id.
    pub host_id: [u8; 16],
    /// The stream of the session's frames.
    pub stream: [u8; 16],
    /// Last frame of the session's evidence as the reviewer saw it.
    pub last_frame: u64,
    /// Its hash.
    pub last_hash: [u8; 32],
    /// The log as the reviewer saw it; absent where there was none.
    pub log: Option<LogHead>,
    /// Who.
    pub reviewer: String,
    /// What they say of it.
    pub verdict: Verdict,
    /// And in words.
    pub note: String,
    /// The reviewer's clock, `YYYY-MM-DDThh:mm:ssZ`.
    pub client_time: String,
}

/// Why bytes are not a review, or fields cannot make one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the review cannot be read: {0}")]
pub struct ReviewError(String);

impl Review {
    /// The one spelling of these fields; an error names the field that cannot be written.
    pub fn encode(&self) -> Result<String, ReviewError> {
        let (origin, size, root) = match &self.log {
            Some(log) => (log.origin.as_str(), log.size, hex::encode(log.root)),
            None => ("", 0, String::new()),
        };
        let values = [
            ("session", Uuid::from_bytes(self.session).to_string()),
            ("host", Uuid::from_bytes(self.host_id).to_string()),
            ("stream", hex::encode(self.stream)),
            ("last-frame", self.last_frame.to_string()),
            ("last-hash", hex::encode(self.last_hash)),
            ("log", origin.to_owned()),
            ("log-size", size.to_string()),
            ("log-root", root),
            ("reviewer", self.reviewer.clone()),
            ("verdict", self.verdict.word().to_owned()),
            ("note", self.note.clone()),
            ("client-time", self.client_time.clone()),
        ];
        let lines = values.iter().map(|(key, value)| format!("{key}: {value}\n"));
        let text = format!("{HEAD}\n{}", lines.collect::<String>());
        // Whatever the parser would refuse is refused here already, with the same words.
        Self::parse(text.as_bytes()).map(|_| text)
    }

    /// Reads a text, strictly: what is accepted has one spelling.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReviewError> {
        if bytes.len() > TEXT_MAX {
            return Err(ReviewError(format!("it has {} bytes, the limit is {TEXT_MAX}", bytes.len())));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| ReviewError(error.to_string()))?;
        let text = text.strip_suffix('\n').ok_or_else(|| ReviewError("it does not end in a line feed".to_owned()))?;
        let mut lines = text.split('\n');
        if lines.next() != Some(HEAD) {
            return Err(ReviewError(format!("it does not begin with {HEAD:?}")));
        }
        let mut fields = Fields { lines };
        let review = Self {
            session: fields.uuid("session")?,
            host_id: fields.uuid("host")?,
            stream: fields.digits("stream")?,
            last_frame: fields.number("last-frame", 1)?,
            last_hash: fields.digits("last-hash")?,
            log: fields.log()?,
            reviewer: fields.needed("reviewer", REVIEWER_MAX)?.to_owned(),
            verdict: fields.verdict()?,
            note: fields.text("note", NOTE_MAX)?.to_owned(),
            client_time: fields.time("client-time")?,
        };
        match fields.lines.next() {
            None => Ok(review),
            Some(_) => Err(ReviewError("something follows its last line".to_owned())),
        }
    }
}

/// Splits a signed review into text and armoured signature; `None` where there is no signature, or one of either is too long.
pub fn split(signed: &[u8]) -> Option<(&[u8], &[u8])> {
    if signed.len() > TEXT_MAX + ARMOUR_MAX {
        return None;
    }
    // No line of a text begins like that.
    let begin = format!("\n{ARMOUR}");
    let at = signed.windows(begin.len()).position(|window| window == begin.as_bytes())? + 1;
    let (text, armour) = signed.split_at_checked(at)?;
    (text.len() <= TEXT_MAX && armour.len() <= ARMOUR_MAX).then_some((text, armour))
}

/// The reverse of [`split`].
pub fn join(text: &[u8], armour: &[u8]) -> Vec<u8> {
    [text, armour].concat()
}

struct Fields<'a> {
    lines: std::str::Split<'a, char>,
}

impl<'a> Fields<'a> {
    fn text(&mut self, key: &str, max: usize) -> Result<&'a str, ReviewError> {
        let wrong = |what: String| ReviewError(format!("{key}: {what}"));
        let line = self.lines.next().ok_or_else(|| wrong("it is missing".to_owned()))?;
        let value = line.strip_prefix(key).and_then(|rest| rest.strip_prefix(": "));
        let value = value.ok_or_else(|| wrong("another line is in its place".to_owned()))?;
        if value.len() > max {
            return Err(wrong(format!("it has {} bytes, the limit is {max}", value.len())));
        }
        if let Some(c) = value.chars().find(|c| !is_plain(*c)) {
            return Err(wrong(format!("it holds the character U+{:04X}, which cannot be seen", u32::from(c))));
        }
        match value.trim() == value {
            true => Ok(value),
            false => Err(wrong("it begins or ends with white space".to_owned())),
        }
    }

    fn needed(&mut self, key: &str, max: usize) -> Result<&'a str, ReviewError> {
        match self.text(key, max)? {
            "" => Err(ReviewError(format!("{key}: it is empty"))),
            value => Ok(value),
        }
    }

    fn uuid(&mut self, key: &str) -> Result<[u8; 16], ReviewError> {
        let value = self.needed(key, 36)?;
        let uuid = Uuid::try_parse(value).ok().filter(|uuid| uuid.to_string() == value);
        uuid.map(Uuid::into_bytes).ok_or_else(|| ReviewError(format!("{key}: {value:?} is not a UUID")))
    }

    fn digits<const N: usize>(&mut self, key: &str) -> Result<[u8; N], ReviewError> {
        let value = self.needed(key, 2 * N)?;
        lower_hex(value).ok_or_else(|| ReviewError(format!("{key}: it is not {} digits", 2 * N)))
    }

    fn number(&mut self, key: &str, least: u64) -> Result<u64, ReviewError> {
        let value = self.needed(key, 20)?;
        let number = value.parse().ok().filter(|number: &u64| number.to_string() == value && *number >= least);
        number.ok_or_else(|| ReviewError(format!("{key}: {value:?} is not a number from {least} on")))
    }

    fn log(&mut self) -> Result<Option<LogHead>, ReviewError> {
        let origin = self.text("log", ORIGIN_MAX)?.to_owned();
        if origin.is_empty() {
            let (size, root) = (self.number("log-size", 0)?, self.text("log-root", 0)?);
            debug_assert!(root.is_empty());
            return match size {
                0 => Ok(None),
                _ => Err(ReviewError("log-size: there is no log that could have it".to_owned())),
            };
        }
        Ok(Some(LogHead { origin, size: self.number("log-size", 1)?, root: self.digits("log-root")? }))
    }

    fn verdict(&mut self) -> Result<Verdict, ReviewError> {
        match self.needed("verdict", 16)? {
            "ok" => Ok(Verdict::Ok),
            "concern" => Ok(Verdict::Concern),
            other => Err(ReviewError(format!("verdict: {other:?} is neither \"ok\" nor \"concern\""))),
        }
    }

    fn time(&mut self, key: &str) -> Result<String, ReviewError> {
        let value = self.needed(key, TIME_SHAPE.len())?;
        let fits = value.len() == TIME_SHAPE.len()
            && value.bytes().zip(TIME_SHAPE).all(|(b, s)| if *s == b'0' { b.is_ascii_digit() } else { b == *s });
        match fits {
            true => Ok(value.to_owned()),
            false => Err(ReviewError(format!("{key}: it is not of the form 2026-01-31T23:59:59Z"))),
        }
    }
}

fn lower_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let bytes: [u8; N] = hex::decode(text).ok()?.try_into().ok()?;
    (hex::encode(bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn review() -> Review {
        Review {
            session: [0xe5; 16],
            host_id: [0x11; 16],
            stream: [0x57; 16],
            last_frame: 18,
            last_hash: [0xab; 32],
            log: Some(LogHead { origin: "log.example/1".into(), size: 12, root: [0xcd; 32] }),
            reviewer: "rita".into(),
            verdict: Verdict::Ok,
            note: "restarted the database, as agreed".into(),
            client_time: "2026-01-31T23:59:59Z".into(),
        }
    }

    #[test]
    fn one_spelling_both_ways() {
        for review in [review(), Review { log: None, verdict: Verdict::Concern, note: String::new(), ..review() }] {
            let text = review.encode().unwrap();
            assert_eq!(Review::parse(text.as_bytes()).unwrap(), review);
        }
        let text = review().encode().unwrap();
        assert!(text.starts_with("breakglass-review v1\nsession: e5e5e5e5-e5e5-e5e5-e5e5-e5e5e5e5e5e5\n"), "{text}");
    }

    #[test]
    fn other_spellings_are_refused_with_the_field() {
        let good = review().encode().unwrap();
        for (from, to, field) in [
            ("breakglass-review v1", "breakglass-review v2", "begin"),
            ("session: e5", "session: E5", "session"),
            ("session: e5e5e5e5-e5e5", "session: e5e5e5e5e5e5", "session"),
            ("last-frame: 18", "last-frame: 018", "last-frame"),
            ("last-frame: 18", "last-frame: 0", "last-frame"),
            ("last-frame: 18", "last-frame: +18", "last-frame"),
            ("last-hash: ab", "last-hash: AB", "last-hash"),
            ("log: log.example/1", "log: ", "log-root"),
            ("log-size: 12", "log-size: 0", "log-size"),
            ("verdict: ok", "verdict: fine", "verdict"),
            ("verdict: ok\n", "", "verdict"),
            ("reviewer: rita", "reviewer: ", "reviewer"),
            ("note: restarted", "note:  restarted", "note"),
            ("note: restarted", "note: \u{202e}restarted", "note"),
            ("23:59:59Z\n", "23:59:59\n", "client-time"),
            ("23:59:59Z\n", "23:59:59Z", "line feed"),
            ("23:59:59Z\n", "23:59:59Z\nmore: 1\n", "follows"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from}");
            let error = Review::parse(bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(field), "{bad}: {error}");
        }
        let long = Review { note: "x".repeat(NOTE_MAX + 1), ..review() };
        assert!(long.encode().unwrap_err().to_string().contains("note"));
        assert!(Review { note: "two\nlines".into(), ..review() }.encode().is_err());
    }

    #[test]
    fn a_signed_review_falls_into_its_two_parts() {
        let text = review().encode().unwrap();
        let armour = b"-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n";
        let signed = join(text.as_bytes(), armour);
        assert_eq!(split(&signed), Some((text.as_bytes(), &armour[..])));
        assert_eq!(split(text.as_bytes()), None);
        assert_eq!(split(&[&signed[..], &[b'x'; ARMOUR_MAX]].concat()), None);
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_the_one_spelling(noise in prop::collection::vec(any::<u8>(), 0..400), at: prop::sample::Index, byte: u8) {
            let mut text = review().encode().unwrap().into_bytes();
            *at.get_mut(&mut text) = byte;
            for bytes in [noise, text] {
                let _ = split(&bytes);
                if let Ok(review) = Review::parse(&bytes) {
                    prop_assert_eq!(review.encode().unwrap().into_bytes(), bytes);
                }
            }
        }
    }
}
