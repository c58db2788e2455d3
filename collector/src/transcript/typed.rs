//! Lines assembled from keystrokes.
//!
//! Understands what a line discipline and readline do with the commonest keys: erase a character, a word or the line; cursor
//! keys and other escape sequences are left out. It cannot know what completion or history put on the line: the screen shows.

use serde::{Deserialize, Serialize};

use super::amplify::{LEFT_OUT_NOTE, LINES_PER_READ};

/// Longest line, characters: as much as a line discipline in canonical mode takes. A longer one is broken there.
const LINE_MAX: usize = 4096;

/// Keystrokes on their way to becoming lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Typed {
    line: String,
    chars: usize,
    escape: Escape,
    /// The beginning of a character whose rest has not come yet.
    partial: Vec<u8>,
}

/// Where in an escape sequence the input stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Escape {
    #[default]
    No,
    /// After ESC.
    Begun,
    /// After ESC O: one more character belongs to it.
    SingleShift,
    /// After ESC [: until a final character.
    Control,
}

impl Typed {
    /// Adds keystrokes; returns the lines that they finished.
    pub fn feed(&mut self, data: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        super::screen::decode(&mut self.partial, data, |text| {
            for c in text.chars() {
                match self_feed(&mut self.line, &mut self.chars, &mut self.escape, c) {
                    Some(line) if lines.len() < LINES_PER_READ => lines.push(line),
                    Some(_) if lines.len() == LINES_PER_READ => lines.push(LEFT_OUT_NOTE.to_owned()),
                    _ => {}
                }
            }
        });
        lines
    }

    /// The line so far, if there is anything on it.
    pub fn unfinished(&self) -> Option<String> {
        (!self.line.trim().is_empty()).then(|| self.line.clone())
    }
}

fn self_feed(line: &mut String, chars: &mut usize, escape: &mut Escape, c: char) -> Option<String> {
    match (*escape, c) {
        (Escape::Begun, '[') => *escape = Escape::Control,
        (Escape::Begun, 'O') => *escape = Escape::SingleShift,
        // Alt and a key: a readline command, not text.
        (Escape::Begun | Escape::SingleShift, _) => *escape = Escape::No,
        (Escape::Control, '\u{40}'..='\u{7e}') => *escape = Escape::No,
        (Escape::Control, '\u{20}'..='\u{3f}') => {}
        (_, '\x1b') => *escape = Escape::Begun,
        (_, '\r' | '\n' | '\x03' | '\x04') => {
            *escape = Escape::No;
            *chars = 0;
            let done = std::mem::take(line);
            return (!done.trim().is_empty()).then_some(done);
        }
        (_, '\x08' | '\x7f') => {
            *chars -= usize::from(line.pop().is_some());
        }
        // ^U
        (_, '\x15') => {
            line.clear();
            *chars = 0;
        }
        // ^W
        (_, '\x17') => {
            let kept = line.trim_end();
            let kept = kept
                .rfind(char::is_whitespace)
                .map_or(0, |at| at + kept[at..].chars().next().map_or(0, char::len_utf8));
            line.truncate(kept);
            *chars = line.chars().count();
        }
        (_, c) => {
            *escape = Escape::No;
            if c == '\t' || !c.is_control() {
                line.push(c);
                *chars += 1;
            }
            if *chars >= LINE_MAX {
                *chars = 0;
                return Some(std::mem::take(line));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(input: &str) -> Vec<String> {
        Typed::default().feed(input.as_bytes())
    }

    #[test]
    fn corrections_are_applied() {
        assert_eq!(lines("suod\x7f\x7fdo -i\r"), ["sudo -i"]);
        assert_eq!(lines("\x7f\x7fls\x08\x08pwd\n"), ["pwd"]);
        assert_eq!(lines("rm -rf /\x15echo no\r"), ["echo no"]);
        assert_eq!(lines("cat one two\x17three\r"), ["cat one three"]);
        assert_eq!(lines("één\x7f\x7f\x7fäh\r"), ["äh"]);
    }

    #[test]
    fn keys_that_are_not_text_are_left_out() {
        assert_eq!(lines("a\x1b[Ab\x1bOPc\x1b[1;5Cd\x1bfe\x01\x05\r"), ["abcde"]);
        assert_eq!(lines("\x1b[200~pasted\x1b[201~\r"), ["pasted"]);
        assert_eq!(lines("\r\r  \r"), Vec::<String>::new());
        assert_eq!(lines("given up\x03"), ["given up"]);
    }

    #[test]
    fn an_endless_line_is_broken() {
        let mut typed = Typed::default();
        let lines = typed.feed(&vec![b'x'; LINE_MAX * 2 + 3]);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [LINE_MAX, LINE_MAX]);
        assert_eq!(typed.unfinished().unwrap(), "xxx");
    }

    #[test]
    fn a_read_of_nothing_but_short_lines_is_bounded() {
        let lines = Typed::default().feed(&b"a\r".repeat(2 * LINES_PER_READ));
        assert_eq!((lines.len(), lines.last().map(String::as_str)), (LINES_PER_READ + 1, Some(LEFT_OUT_NOTE)));
    }

    proptest! {
        #[test]
        fn the_cut_between_reads_does_not_matter(data in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..200) {
            let at = at.min(data.len());
            let mut whole = Typed::default();
            let mut parts = Typed::default();
            let mut lines = parts.feed(&data[..at]);
            lines.extend(parts.feed(&data[at..]));
            prop_assert_eq!(whole.feed(&data), lines);
            prop_assert_eq!(whole, parts);
        }
    }
}
