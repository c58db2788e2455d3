//! OpenSSH's `allowed_signers` file, `ssh-keygen(1)`, section ALLOWED SIGNERS.
//!
//! A line that cannot be understood allows nothing and is reported with its number; the other lines stay good. There is no
//! line that takes a permission away, so leaving one out can only keep somebody out; and one slip of the pen does not shut
//! everybody out of a host whose other ways in are dead.
//!
//! Times without `Z` are local to the host, as `ssh-keygen` has them.

use jiff::{civil, tz::TimeZone};
use ssh_key::{PublicKey, public::KeyData};

use super::pattern;

/// Largest file, bytes. Ten thousand lines with RSA-4096 keys fit.
pub const FILE_MAX: usize = 8 << 20;

/// Who may sign, with which key, for what, and when.
#[derive(Clone, Debug, Default)]
pub struct AllowedSigners {
    entries: Vec<Entry>,
    problems: Vec<Problem>,
}

/// One usable line.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Line in the file, from 1.
    pub line: usize,
    /// Pattern list of the people who may use the key.
    pub principals: String,
    /// Pattern list of SSHSIG namespaces; any where absent.
    pub namespaces: Option<String>,
    /// First second at which the key may be used, Unix time.
    pub valid_after: Option<i64>,
    /// Last second at which the key may be used, Unix time.
    pub valid_before: Option<i64>,
    /// The key signs certificates, whose holders sign grants; it signs none itself.
    pub cert_authority: bool,
    /// The key.
    pub key: KeyData,
}

/// A line that allows nothing because it cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

impl AllowedSigners {
    /// Reads a whole file. `zone` is the host's, for times without `Z`; absent where it is not known.
    pub fn parse(text: &str, zone: Option<&TimeZone>) -> Self {
        let mut signers = Self::default();
        for (index, line) in text.lines().enumerate() {
            let trimmed = line.trim_start_matches([' ', '\t']);
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            match parse_line(index + 1, trimmed, zone) {
                Ok(entry) => signers.entries.push(entry),
                Err(message) => signers.problems.push(Problem { line: index + 1, message }),
            }
        }
        signers
    }

    /// The usable lines, in the file's order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The lines that allow nothing because they cannot be understood.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl Entry {
    /// Whether the line is about this person and this key.
    pub fn names(&self, principal: &str, key: &KeyData) -> bool {
        self.key == *key && pattern::list_matches(&self.principals, principal)
    }

    /// Whether the key may be used for signatures in this namespace.
    pub fn allows_namespace(&self, namespace: &str) -> bool {
        self.namespaces.as_deref().is_none_or(|list| pattern::list_matches(list, namespace))
    }

    /// For how long the key may be used in all, seconds; `None`: the line does not bound it on both sides.
    pub fn lifetime_s(&self) -> Option<u64> {
        u64::try_from(self.valid_before?.saturating_sub(self.valid_after?)).ok()
    }

    /// Whether the key may be used at this time, Unix seconds.
    pub fn valid_at(&self, now: i64) -> bool {
        self.valid_after.is_none_or(|after| now >= after) && self.valid_before.is_none_or(|before| now <= before)
    }
}

fn parse_line(number: usize, line: &str, zone: Option<&TimeZone>) -> Result<Entry, String> {
    let (principals, rest) = split_principals(line)?;
    let mut entry = Entry {
        line: number,
        principals,
        namespaces: None,
        valid_after: None,
        valid_before: None,
        cert_authority: false,
        // Replaced below; a line without a key is refused.
        key: KeyData::Ed25519(ssh_key::public::Ed25519PublicKey([0; 32])),
    };
    // A key may follow at once; what is not a key is options and then a key, as sshsig.c reads it.
    let key = if starts_with_key_type(rest) {
        rest
    } else {
        let (options, key) = split_options(rest)?;
        parse_options(options, &mut entry, zone)?;
        key
    };
    entry.key = parse_key(key)?;
    if let (Some(after), Some(before)) = (entry.valid_after, entry.valid_before)
        && after >= before
    {
        return Err("valid-before is not later than valid-after".into());
    }
    Ok(entry)
}

fn split_principals(line: &str) -> Result<(String, &str), String> {
    let (principals, rest) = match line.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"').ok_or("the quoted principals do not end")?,
        None => line.split_once([' ', '\t']).ok_or("only principals; a key must follow")?,
    };
    if principals.is_empty() {
        return Err("the principals are empty".into());
    }
    Ok((principals.to_owned(), rest.trim_start_matches([' ', '\t'])))
}

fn starts_with_key_type(text: &str) -> bool {
    let word = text.split([' ', '\t']).next().unwrap_or_default();
    ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"].iter().any(|prefix| word.starts_with(prefix))
}

fn parse_key(text: &str) -> Result<KeyData, String> {
    let mut words = text.split([' ', '\t']).filter(|word| !word.is_empty());
    let (Some(kind), Some(blob)) = (words.next(), words.next()) else {
        return Err("no key: expected its type and its base64 form".into());
    };
    if kind.contains("-cert-v01@") {
        return Err(format!(
            "{kind} is a certificate; list the key itself, or its authority's key with cert-authority"
        ));
    }
    // The comment is left out: it may hold anything.
    let key = PublicKey::from_openssh(&format!("{kind} {blob}"))
        .map_err(|e| format!("the {kind} key cannot be read: {e}"))?;
    Ok(key.key_data().clone())
}

/// Splits at the first white space outside double quotes.
fn split_options(text: &str) -> Result<(&str, &str), String> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' | '\t' if !quoted => {
                let (options, key) = text.split_at(at);
                return Ok((options, key.trim_start_matches([' ', '\t'])));
            }
            _ => {}
        }
    }
    Err(if quoted { "a quoted option does not end" } else { "no key follows" }.into())
}

fn parse_options(options: &str, entry: &mut Entry, zone: Option<&TimeZone>) -> Result<(), String> {
    for option in split_commas(options) {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => {
                (name, Some(unquote(value).ok_or_else(|| format!("{name}: expected {name}=\"…\""))?))
            }
            None => (option, None),
        };
        match (name.to_ascii_lowercase().as_str(), value) {
            ("cert-authority", None) => entry.cert_authority = true,
            ("namespaces", Some(list)) => once("namespaces", &mut entry.namespaces, list)?,
            ("valid-after", Some(time)) => once("valid-after", &mut entry.valid_after, parse_time(&time, zone)?)?,
            ("valid-before", Some(time)) => once("valid-before", &mut entry.valid_before, parse_time(&time, zone)?)?,
            _ => return Err(format!("unknown option {option:?}")),
        }
    }
    Ok(())
}

fn once<T>(name: &str, slot: &mut Option<T>, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{name} is given twice")),
    }
}

/// Splits at commas outside double quotes.
fn split_commas(options: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, c) in options.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                parts.push(&options[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&options[start..]);
    parts
}

/// The content of a double-quoted string; `\"` stands for a quote.
fn unquote(text: &str) -> Option<String> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let plain = inner.replace("\\\"", "\u{0}");
    (!plain.contains('"') && !inner.ends_with('\\')).then(|| plain.replace('\u{0}', "\""))
}

/// `YYYYMMDD[Z]` or `YYYYMMDDHHMM[SS][Z]` as Unix time.
fn parse_time(text: &str, zone: Option<&TimeZone>) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a time of the form YYYYMMDD[Z] or YYYYMMDDHHMM[SS][Z]");
    let (digits, utc) = match text.strip_suffix(['Z', 'z']) {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    if !matches!(digits.len(), 8 | 12 | 14) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number = |from: usize, to: usize| digits.get(from..to).and_then(|d| d.parse::<i8>().ok()).unwrap_or(0);
    let year = digits.get(..4).and_then(|d| d.parse().ok()).ok_or_else(wrong)?;
    let time = civil::DateTime::new(year, number(4, 6), number(6, 8), number(8, 10), number(10, 12), number(12, 14), 0)
        .map_err(|_| wrong())?;
    let zone = match (utc, zone) {
        (true, _) => &TimeZone::UTC,
        (false, Some(zone)) => zone,
        (false, None) => return Err(format!("{text:?} is local time and this host's time zone is not known; add Z")),
    };
    Ok(zone.to_timestamp(time).map_err(|_| wrong())?.as_second())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g";

    fn one(line: &str) -> Result<Entry, String> {
        let signers = AllowedSigners::parse(line, Some(&TimeZone::fixed(jiff::tz::offset(2))));
        assert_eq!(signers.entries.len() + signers.problems.len(), 1, "{line}");
        match signers.problems.first() {
            Some(problem) => Err(problem.message.clone()),
            None => Ok(signers.entries[0].clone()),
        }
    }

    #[test]
    fn lines_that_are_understood() {
        let plain = one(&format!("alice@example.org,bob {KEY} a comment with \"quotes\"")).unwrap();
        assert!(plain.names("bob", &plain.key) && !plain.names("carol", &plain.key));
        assert!(plain.allows_namespace("anything") && plain.valid_at(0) && !plain.cert_authority);
        let quoted = one(&format!("\"*@example.org\"\t{KEY}")).unwrap();
        assert!(quoted.names("alice@example.org", &quoted.key));
        let options = format!(
            "* NameSpaces=\"breakglass-*@v1,file\",valid-after=\"20260101Z\",valid-before=\"202601012359\" {KEY}"
        );
        let full = one(&options).unwrap();
        assert!(full.allows_namespace("breakglass-grant@v1") && !full.allows_namespace("git"));
        assert_eq!(full.valid_after, Some(1_767_225_600));
        assert_eq!(full.valid_before, Some(1_767_225_600 + (24 - 2) * 3600 - 60), "local time, two hours east");
        assert!(full.valid_at(1_767_225_600) && !full.valid_at(1_767_225_599));
        assert!(one(&format!("* cert-authority {KEY}")).unwrap().cert_authority);
    }

    #[test]
    fn lines_that_are_not() {
        for (line, expected) in [
            ("alice".to_owned(), "a key must follow"),
            ("alice ssh-ed25519".to_owned(), "expected its type"),
            ("alice ssh-ed25519 AAAA".to_owned(), "cannot be read"),
            (format!("\"alice {KEY}"), "do not end"),
            (format!("alice namespaces=\"x {KEY}"), "does not end"),
            (format!("alice namespaces=x {KEY}"), "expected namespaces=\"…\""),
            (format!("alice namespaces=\"a\",namespaces=\"b\" {KEY}"), "given twice"),
            (format!("alice no-touch-required {KEY}"), "unknown option"),
            (format!("alice valid-after=\"2026\" {KEY}"), "is not a time"),
            (format!("alice valid-after=\"20261301\" {KEY}"), "is not a time"),
            (format!("alice valid-after=\"20260102Z\",valid-before=\"20260101Z\" {KEY}"), "not later"),
            (format!("alice ssh-ed25519-cert-v01@openssh.com {}", &KEY[12..]), "is a certificate"),
        ] {
            let message = one(&line).unwrap_err();
            assert!(message.contains(expected), "{line}: {message}");
        }
    }

    #[test]
    fn a_bad_line_costs_only_itself_and_gives_its_number() {
        let text = format!("# operators\n\nalice {KEY}\nbob oops\n  carol {KEY}\r\n");
        let signers = AllowedSigners::parse(&text, None);
        assert_eq!(signers.entries().iter().map(|e| e.line).collect::<Vec<_>>(), [3, 5]);
        assert_eq!(signers.problems()[0].line, 4);
    }

    #[test]
    fn local_time_without_a_zone_is_not_guessed() {
        let signers = AllowedSigners::parse(&format!("alice valid-before=\"20300101\" {KEY}"), None);
        assert!(signers.problems()[0].message.contains("time zone"));
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in "(\\PC|[\n\",= *!Z0-9]|ssh-ed25519 |valid-after=|namespaces=){0,60}") {
            let _ = AllowedSigners::parse(&text, None);
        }
    }
}
