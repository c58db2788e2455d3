//! Makes what a session wrote harmless to print.
//!
//! Everything recorded was chosen by somebody who may want to mislead its reader: escape sequences that move the cursor
//! or retitle the window, bidirectional controls that reorder a line, characters that have no width. [`text`] replaces
//! them by visible escapes. It is for people; programs read JSON, which is lossless.

use std::fmt::Write as _;

use unicode_width::UnicodeWidthChar;

/// Ranges of characters that print as nothing, reorder or break a line, or look like an ordinary space without being one.
/// From Unicode 16: general categories Cf, Zl, Zp and Zs, the default-ignorable ones, and the blanks that are letters by
/// category. U+0020 and U+3000 (as wide as it looks) are fine; controls are dealt with apart.
const DECEPTIVE: &[(char, char)] = &[
    ('\u{a0}', '\u{a0}'),
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{1680}', '\u{1680}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{2000}', '\u{200f}'),
    ('\u{2028}', '\u{202f}'),
    ('\u{205f}', '\u{206f}'),
    ('\u{2800}', '\u{2800}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{fffe}', '\u{ffff}'),
    ('\u{13430}', '\u{1345f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
    ('\u{ffffe}', '\u{fffff}'),
];

/// Whether a character may be shown as itself.
pub fn is_plain(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    c.width().is_some() && !DECEPTIVE.iter().any(|(first, last)| (*first..=*last).contains(&c))
}

/// One line of harmless text: control characters, invalid UTF-8 and deceptive characters become visible escapes
/// (`\n`, `\x1b`, `\u{202e}`). A backslash stays one, so this is not reversible; [`super::quote`] and JSON are.
pub fn text(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| push(&mut out, c));
        for byte in chunk.invalid() {
            push_byte(&mut out, *byte);
        }
    }
    out
}

/// As [`text`], keeping line ends as they are.
pub fn lines(bytes: &[u8]) -> String {
    bytes.split(|b| *b == b'\n').map(text).collect::<Vec<_>>().join("\n")
}

/// Appends `\xNN`.
pub fn push_byte(out: &mut String, byte: u8) {
    // Writing to a String cannot fail.
    let _ = write!(out, "\\x{byte:02x}");
}

fn push(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if is_plain(c) => out.push(c),
        c if c.is_ascii() => push_byte(out, c as u8),
        c => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shows_what_would_have_acted() {
        let table: &[(&[u8], &str)] = &[
            (b"plain \\ text", "plain \\ text"),
            ("größe 漢字 🦀".as_bytes(), "größe 漢字 🦀"),
            ("e\u{301}".as_bytes(), "e\u{301}"),
            (b"\x1b[2J\x07\x7f\0", "\\x1b[2J\\x07\\x7f\\x00"),
            (b"a\tb\r\nc", "a\\tb\\r\\nc"),
            ("\u{9b}31m".as_bytes(), "\\u{9b}31m"),
            (b"\x9b31m\xff", "\\x9b31m\\xff"),
            (b"cut \xe2\x82", "cut \\xe2\\x82"),
            ("\u{202e}gpj.exe".as_bytes(), "\\u{202e}gpj.exe"),
            ("\u{2066}\u{2069}\u{200b}\u{feff}".as_bytes(), "\\u{2066}\\u{2069}\\u{200b}\\u{feff}"),
            ("a\u{2028}b\u{2029}".as_bytes(), "a\\u{2028}b\\u{2029}"),
            ("r\u{a0}m".as_bytes(), "r\\u{a0}m"),
            ("\u{e0041}".as_bytes(), "\\u{e0041}"),
        ];
        for (input, shown) in table {
            assert_eq!(text(input), *shown, "{input:?}");
        }
        assert_eq!(lines(b"a\n\x1bb\n"), "a\n\\x1bb\n");
    }

    proptest! {
        #[test]
        fn never_lets_a_control_through(bytes in proptest::collection::vec(any::<u8>(), 0..200), s in ".*") {
            for input in [bytes.as_slice(), s.as_bytes()] {
                prop_assert!(text(input).chars().all(is_plain));
                prop_assert!(lines(input).chars().all(|c| c == '\n' || is_plain(c)));
            }
        }

        #[test]
        fn any_character_is_plain_or_escaped(c in any::<char>()) {
            let shown = text(c.to_string().as_bytes());
            prop_assert_eq!(shown.starts_with('\\') && shown != "\\", !is_plain(c));
            prop_assert!(!(c.is_control() && is_plain(c)));
        }
    }
}
