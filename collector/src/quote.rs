//! Command lines as text: what a person would type in a shell to get the same arguments.

use std::fmt::Write;

/// Most text of one command line or terminal line that the index keeps, bytes. The whole stays in the raw frame.
pub const TEXT_MAX: usize = 64 * 1024;
/// Stands at the end of a text that was cut at [`TEXT_MAX`].
pub const CUT_NOTE: &str = " […cut]";

/// `words` quoted for a shell and joined by spaces, cut at [`TEXT_MAX`]. Never holds a control character.
pub fn command_line<W: AsRef<[u8]>>(words: &[W]) -> String {
    let mut line = String::new();
    for (number, word) in words.iter().enumerate() {
        if number > 0 {
            line.push(' ');
        }
        // No quoting makes a word shorter, so what lies beyond the limit need not be looked at; one byte more, so that the cut
        // is noticed below.
        let word = word.as_ref();
        push_word(&mut line, word.get(..=TEXT_MAX).unwrap_or(word));
        if line.len() > TEXT_MAX {
            break;
        }
    }
    bounded(line)
}

/// `text`, cut at [`TEXT_MAX`] with a note that says so.
pub fn bounded(mut text: String) -> String {
    if text.len() > TEXT_MAX {
        text.truncate(text.floor_char_boundary(TEXT_MAX));
        text.push_str(CUT_NOTE);
    }
    text
}

/// `text` in at most `most` bytes, of which a note that says so is the end where it was cut.
pub fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let kept = text.floor_char_boundary(most.saturating_sub(CUT_NOTE.len()));
    format!("{}{CUT_NOTE}", text.get(..kept).unwrap_or_default())
}

fn push_word(line: &mut String, word: &[u8]) {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./:=@%+,".contains(&b);
    match std::str::from_utf8(word) {
        Ok(text) if !text.is_empty() && text.bytes().all(plain) => line.push_str(text),
        Ok(text) if !text.chars().any(char::is_control) => {
            line.push('\'');
            line.push_str(&text.replace('\'', r"'\''"));
            line.push('\'');
        }
        _ => push_escaped(line, word),
    }
}

/// `$'…'` as in bash: control characters and bytes that are not UTF-8 become escapes.
fn push_escaped(line: &mut String, word: &[u8]) {
    line.push_str("$'");
    for chunk in word.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => line.push_str("\\n"),
                '\t' => line.push_str("\\t"),
                '\r' => line.push_str("\\r"),
                '\'' | '\\' => line.extend(['\\', c]),
                c if c.is_control() => {
                    let mut buffer = [0; 4];
                    push_hex(line, c.encode_utf8(&mut buffer).as_bytes());
                }
                c => line.push(c),
            }
        }
        push_hex(line, chunk.invalid());
    }
    line.push('\'');
}

fn push_hex(line: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(line, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_read_as_they_would_be_typed() {
        assert_eq!(command_line(&["ls", "-la", "/etc"]), "ls -la /etc");
        assert_eq!(command_line(&["echo", "a b", "", "it's"]), r"echo 'a b' '' 'it'\''s'");
        assert_eq!(command_line(&["echo", "é$x"]), "echo 'é$x'");
        assert_eq!(command_line(&[b"a\nb\x1b".as_slice(), b"\xff\\"]), r"$'a\nb\x1b' $'\xff\\'");
        assert_eq!(command_line::<&str>(&[]), "");
    }

    #[test]
    fn six_mebibytes_are_cut_with_a_note() {
        let line = command_line(&[vec![b'a'; 6 << 20]]);
        assert!(line.len() <= TEXT_MAX + CUT_NOTE.len() && line.ends_with(CUT_NOTE));
    }

    #[test]
    fn a_text_that_is_cut_says_so_and_is_no_longer_than_it_may_be() {
        assert_eq!(cut("done", 4), "done");
        // Between two bytes of one character: before it.
        let text = cut(&"é".repeat(100), 64);
        assert!(text.len() <= 64 && text.len() > 60 && text.ends_with("é […cut]"), "{text}");
    }

    proptest! {
        #[test]
        fn no_control_character_gets_through(words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8)) {
            prop_assert!(!command_line(&words).chars().any(char::is_control));
        }
    }
}
