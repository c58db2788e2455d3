//! Bytes from the host as text that is safe to show and bounded in length.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// Longest line, option list or name that is shown whole, bytes.
pub(super) const SHOWN_MAX: usize = 256;

/// Longest key that is kept whole, bytes.
pub(super) const KEY_MAX: usize = 1024;

/// Hexadecimal digits of a hash that are shown; the whole is compared.
const HASH_SHOWN: usize = 16;

/// Everything but printable ASCII as `\xNN`, the backslash as `\\`.
pub(super) fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                // Writing to a string cannot fail.
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}

/// [`printable`], cut at [`SHOWN_MAX`] bytes; what is cut is named by the length and the hash of the whole, so that two texts with the
/// same beginning stay apart.
pub(super) fn shown(bytes: &[u8]) -> String {
    match bytes.get(..SHOWN_MAX) {
        Some(start) if bytes.len() > SHOWN_MAX => {
            format!("{}… ({} bytes, sha256 {})", printable(start), bytes.len(), short_hash(bytes))
        }
        _ => printable(bytes),
    }
}

/// A key as it is kept: whole, or its beginning and its hash.
pub(super) fn bounded_key(key: &[u8]) -> Vec<u8> {
    match key.get(..KEY_MAX) {
        Some(start) if key.len() > KEY_MAX => {
            let mut bounded = start.to_vec();
            bounded.extend_from_slice(format!("… (sha256 {})", short_hash(key)).as_bytes());
            bounded
        }
        _ => key.to_vec(),
    }
}

/// Whether `path` is `folder` or in it.
pub(super) fn is_below(path: &[u8], folder: &[u8]) -> bool {
    let folder = folder.strip_suffix(b"/").unwrap_or(folder);
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// The beginning of the SHA-256, hexadecimal.
pub(super) fn short_hash(bytes: &[u8]) -> String {
    short_hex(&Sha256::digest(bytes))
}

/// The beginning of a hash, hexadecimal.
pub(super) fn short_hex(hash: &[u8]) -> String {
    let mut text = hex::encode(hash);
    text.truncate(HASH_SHOWN);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_are_escaped_and_nothing_is_ambiguous() {
        assert_eq!(printable(b"a\x1b[2J\n\\x1b\xff"), r"a\x1b[2J\x0a\\x1b\xff");
    }

    #[test]
    fn long_texts_with_the_same_beginning_stay_apart() {
        let (one, two) = ([b"x".repeat(5000), b"1".to_vec()].concat(), [b"x".repeat(5000), b"2".to_vec()].concat());
        assert_ne!(shown(&one), shown(&two));
        assert_ne!(bounded_key(&one), bounded_key(&two));
        assert!(shown(&one).len() < 2 * SHOWN_MAX && bounded_key(&one).len() < 2 * KEY_MAX);
    }

    #[test]
    fn a_name_that_begins_alike_is_not_below() {
        assert!(is_below(b"/srv/a", b"/srv") && is_below(b"/srv", b"/srv") && is_below(b"/srv", b"/"));
        assert!(!is_below(b"/srv2", b"/srv"));
    }

    proptest! {
        #[test]
        fn only_printable_ascii_comes_out(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(printable(&bytes).bytes().all(|b| (b' '..=b'~').contains(&b)));
        }
    }
}
