//! One line of `shadow(5)`. Pure: bytes in, bytes out; every other line is kept byte for byte.
//!
//! | | password | expiry | why |
//! |---|---|---|---|
//! | locked | `!*` | 0 | `!` keeps keys out where sshd runs without PAM; expiry 0 where it runs with PAM, at any clock |
//! | enabled | `*` | none | no password path, keys allowed |
//!
//! Enabling also switches password ageing off (maximum age, inactivity, and a last change of 0): a host whose policy ages
//! every password would otherwise refuse the emergency login with "change required", months after it was set up.

use std::ops::Range;

/// Fields of a line, `shadow(5)`.
const FIELDS: usize = 9;
const PASSWORD: usize = 1;
const LAST_CHANGE: usize = 2;
const MAX_AGE: usize = 4;
const INACTIVE: usize = 6;
const EXPIRY: usize = 7;

const LOCKED_PASSWORD: &[u8] = b"!*";
const LOCKED_EXPIRY: &[u8] = b"0";
const ENABLED_PASSWORD: &[u8] = b"*";

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Exactly what locking writes.
    Locked,
    /// What enabling writes.
    Enabled,
    /// Anything else, and what.
    Unknown(String),
}

/// Why a shadow file is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShadowError {
    /// No line for the account.
    #[error("it has no line for the account; make the account with useradd")]
    Missing,
    /// Several lines for the account.
    #[error("it has more than one line for the account; remove all but one (pwck)")]
    Duplicated,
    /// The account's line has too few or too many fields.
    #[error("the account's line has {0} fields instead of 9; mend it (pwck)")]
    Fields(usize),
    /// A zero byte, which no text holds: a file after a crash.
    #[error("it holds zero bytes and is damaged; restore it from /etc/shadow- or a backup")]
    Zeros,
}

/// The file with the account's line locked.
pub fn lock(file: &[u8], account: &str) -> Result<Vec<u8>, ShadowError> {
    edit(file, account, |fields| {
        fields[PASSWORD] = LOCKED_PASSWORD;
        fields[EXPIRY] = LOCKED_EXPIRY;
    })
}

/// The file with the account's line enabled.
pub fn enable(file: &[u8], account: &str) -> Result<Vec<u8>, ShadowError> {
    edit(file, account, |fields| {
        fields[PASSWORD] = ENABLED_PASSWORD;
        fields[EXPIRY] = b"";
        fields[MAX_AGE] = b"";
        fields[INACTIVE] = b"";
        if fields[LAST_CHANGE] == b"0" {
            fields[LAST_CHANGE] = b"";
        }
    })
}

/// What the account's line says.
pub fn state(file: &[u8], account: &str) -> Result<State, ShadowError> {
    let fields = split(&file[find(file, account)?])?;
    Ok(match (fields[PASSWORD], fields[EXPIRY]) {
        (LOCKED_PASSWORD, LOCKED_EXPIRY) => State::Locked,
        (ENABLED_PASSWORD, b"") => State::Enabled,
        (password, expiry) => State::Unknown(describe(password, expiry)),
    })
}

/// Never the password itself, not even in part.
fn describe(password: &[u8], expiry: &[u8]) -> String {
    let password = match password {
        b"" => "no password at all",
        b"*" => "the password *",
        [b'!', ..] => "a password that begins with !",
        _ => "a password",
    };
    let expiry = match expiry {
        b"" => "no expiry".to_owned(),
        day => format!("expiry {}", String::from_utf8_lossy(day).escape_debug()),
    };
    format!("{password} and {expiry}")
}

fn edit(file: &[u8], account: &str, change: impl Fn(&mut [&[u8]; FIELDS])) -> Result<Vec<u8>, ShadowError> {
    let line = find(file, account)?;
    let mut fields = split(&file[line.clone()])?;
    change(&mut fields);
    let mut out = Vec::with_capacity(file.len() + 8);
    out.extend_from_slice(&file[..line.start]);
    out.extend_from_slice(&fields.join(&b':'));
    out.extend_from_slice(&file[line.end..]);
    Ok(out)
}

/// Where the account's only line is, without its line feed.
fn find(file: &[u8], account: &str) -> Result<Range<usize>, ShadowError> {
    if file.contains(&0) {
        return Err(ShadowError::Zeros);
    }
    let mut found = None;
    let mut start = 0;
    for line in file.split(|byte| *byte == b'\n') {
        if line.strip_prefix(account.as_bytes()).is_some_and(|rest| rest.first() == Some(&b':'))
            && found.replace(start..start + line.len()).is_some()
        {
            return Err(ShadowError::Duplicated);
        }
        start += line.len() + 1;
    }
    found.ok_or(ShadowError::Missing)
}

fn split(line: &[u8]) -> Result<[&[u8]; FIELDS], ShadowError> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b':').collect();
    fields.try_into().map_err(|fields: Vec<_>| ShadowError::Fields(fields.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: &[u8] = b"root:*:20228:0:99999:7:::\nbg:$y$hash:0:0:90:7:30::\n# odd line\nlast:!:1:2";

    #[test]
    fn lock_and_enable() {
        let locked = lock(FILE, "bg").unwrap();
        assert_eq!(locked, b"root:*:20228:0:99999:7:::\nbg:!*:0:0:90:7:30:0:\n# odd line\nlast:!:1:2");
        let enabled = enable(&locked, "bg").unwrap();
        assert_eq!(enabled, b"root:*:20228:0:99999:7:::\nbg:*::0::7:::\n# odd line\nlast:!:1:2");
        assert_eq!(state(&locked, "bg"), Ok(State::Locked));
        assert_eq!(state(&enabled, "bg"), Ok(State::Enabled));
        assert_eq!(lock(&locked, "bg").unwrap(), locked);
    }

    #[test]
    fn anything_else_is_unknown_and_says_why_without_the_hash() {
        for (line, expected) in [
            (&b"bg:$y$secret:1::::::"[..], "a password and no expiry"),
            (b"bg:!:1::::::", "a password that begins with ! and no expiry"),
            (b"bg:!*:1:::::1:", "a password that begins with ! and expiry 1"),
            (b"bg::1:::::0:", "no password at all and expiry 0"),
            (b"bg:*:1:::::20000:", "the password * and expiry 20000"),
        ] {
            assert_eq!(state(line, "bg"), Ok(State::Unknown(expected.into())));
        }
    }

    #[test]
    fn a_file_that_is_not_understood_is_left_alone() {
        for (file, expected) in [
            (&b""[..], ShadowError::Missing),
            (b"root:*:1::::::\n", ShadowError::Missing),
            (b"bgx:*:1::::::\nxbg:*:1::::::\n", ShadowError::Missing),
            (b"bg:*:1::::::\nbg:*:1::::::\n", ShadowError::Duplicated),
            (b"bg:*:1:::::\n", ShadowError::Fields(8)),
            (b"bg:*:1:::::::\n", ShadowError::Fields(10)),
            (b"bg:*:1::::::\n\0\0\0\0", ShadowError::Zeros),
        ] {
            for change in [lock, enable] {
                assert_eq!(change(file, "bg"), Err(expected));
            }
            assert_eq!(state(file, "bg"), Err(expected));
        }
    }

    fn other_lines() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>().prop_filter("no zero", |b| *b != 0), 0..80)
            .prop_filter("not the account's", |bytes| find(bytes, "bg") == Err(ShadowError::Missing))
    }

    proptest! {
        #[test]
        fn only_the_line_changes(before in other_lines(), after in other_lines(), hash in "[a-z$!*]{0,20}", newline: bool) {
            let line = format!("bg:{hash}:20000:0:99999:7:::").into_bytes();
            let head = if before.is_empty() { vec![] } else { [before, b"\n".to_vec()].concat() };
            let tail = if newline { [b"\n".to_vec(), after].concat() } else { vec![] };
            let file = [&head[..], &line, &tail].concat();
            prop_assume!(find(&file, "bg").is_ok());
            let enabled = enable(&file, "bg").unwrap();
            let locked = lock(&enabled, "bg").unwrap();
            for (changed, middle) in [(&enabled, "bg:*:20000:0::7:::"), (&locked, "bg:!*:20000:0::7::0:")] {
                prop_assert_eq!(changed, &[&head[..], middle.as_bytes(), &tail].concat());
            }
        }

        #[test]
        fn noise_never_panics(file in proptest::collection::vec(prop_oneof![Just(b':'), Just(b'\n'), Just(b'b'), Just(b'g'), any::<u8>()], 0..200)) {
            let _ = (lock(&file, "bg"), enable(&file, "bg"), state(&file, "bg"));
        }
    }
}
