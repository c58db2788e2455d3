//! What may reach a reviewer's terminal.
//!
//! A replay must draw what the operator saw, so escape sequences cannot be neutralised; but some do more than draw. A
//! terminal answers certain requests as if its answer were typed, other sequences set the clipboard, print, resize or retitle
//! the window, or switch on reports of the mouse. Played back to the reviewer, each of those is the operator's hand on the reviewer's
//! keyboard. So the stream is parsed as a terminal would, and only what draws is let through: a list of what is allowed, not
//! of what is not. `replay --raw` has every byte.
//!
//! Dropped: operating-system commands, device control and application strings (titles, clipboard, colours of the palette, images),
//! every request for a report, window operations, modes that make the terminal send anything, 8-bit controls.

/// Longest control sequence that is drawn, bytes. The longest in use are colours with some dozen parameters.
const SEQUENCE_MAX: usize = 256;

/// How many bytes of an unfinished string are swallowed. Images are about this large; a string without an end must not hide the
/// rest of a session.
const STRING_MAX: usize = 1024 * 1024;

/// Private modes (`CSI ? … h`) that only change how things are drawn: cursor keys, width, scrolling, reverse video, origin, wrap,
/// blinking and visible cursor, reverse wrap, alternate screens, keypad, margins, saved cursor, synchronized drawing.
const MODES: &[u16] = &[1, 3, 4, 5, 6, 7, 12, 25, 45, 47, 66, 69, 1047, 1048, 1049, 2026];

/// Private modes that show the alternate screen.
const ALTERNATE: &[u16] = &[47, 1047, 1049];

const ESC: u8 = 0x1b;

/// A terminal's parser that passes on what draws. It is fed in pieces; sequences and characters may be cut anywhere.
#[derive(Debug, Default)]
pub struct Filter {
    state: State,
    alternate: bool,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Ground,
    /// Inside a character: its bytes so far.
    Character(Vec<u8>),
    /// After ESC: intermediate bytes so far.
    Escape(Vec<u8>),
    /// After CSI: parameter and intermediate bytes so far; too long a one is swallowed.
    Sequence(Vec<u8>),
    /// Inside a string that is not drawn: its length so far, and whether BEL ends it.
    Text { length: usize, bell: bool },
}

impl Filter {
    /// Whether what was let through has left the terminal on its alternate screen.
    pub fn on_alternate_screen(&self) -> bool {
        self.alternate
    }

    /// Appends what may be drawn of the next bytes.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for byte in bytes {
            self.step(*byte, out);
        }
    }

    fn step(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.state = match std::mem::take(&mut self.state) {
            State::Ground => ground(byte, out),
            State::Character(seen) => character(seen, byte, out),
            State::Escape(seen) => escape(seen, byte, out),
            State::Sequence(seen) => self.sequence(seen, byte, out),
            State::Text { length, bell } => text(length, bell, byte),
        };
    }

    fn sequence(&mut self, mut seen: Vec<u8>, byte: u8, out: &mut Vec<u8>) -> State {
        match byte {
            ESC => State::Escape(Vec::new()),
            // CAN and SUB end a sequence without effect.
            0x18 | 0x1a => State::Ground,
            0..0x20 => {
                // A control in the middle of a sequence acts at once.
                control(byte, out);
                State::Sequence(seen)
            }
            0x20..0x40 => {
                if seen.len() <= SEQUENCE_MAX {
                    seen.push(byte);
                }
                State::Sequence(seen)
            }
            0x40..0x7f => {
                self.finish(&seen, byte, out);
                State::Ground
            }
            0x7f => State::Sequence(seen),
            _ => ground(byte, out),
        }
    }

    fn finish(&mut self, seen: &[u8], last: u8, out: &mut Vec<u8>) {
        let parameters = seen.iter().take_while(|b| (0x30..0x40).contains(*b)).count();
        let (parameters, between) = seen.split_at_checked(parameters).unwrap_or((seen, &[]));
        let ordered = between.iter().all(|b| (0x20..0x30).contains(b));
        if seen.len() > SEQUENCE_MAX || !ordered {
            return;
        }
        let (mark, parameters) = match parameters.split_first() {
            Some((mark @ b'<'..=b'?', rest)) => (Some(*mark), rest),
            _ => (None, parameters),
        };
        match (mark, between, last) {
            (Some(b'?'), [], b'h' | b'l') => self.modes(parameters, last, out),
            (Some(b'?'), [], b'J' | b'K') => emit(b"\x1b[?", parameters, &[], last, out),
            (None, [], b'h' | b'l') => {
                let drawn = pick(parameters, &[4, 20]);
                if !drawn.is_empty() {
                    emit(b"\x1b[", &drawn, &[], last, out);
                }
            }
            // With more parameters this one tracks the mouse.
            (None, [], b'T') if parameters.contains(&b';') => {}
            (None, _, _) if draws(between, last) => emit(b"\x1b[", parameters, between, last, out),
            _ => {}
        }
    }

    fn modes(&mut self, parameters: &[u8], last: u8, out: &mut Vec<u8>) {
        let drawn = pick(parameters, MODES);
        if drawn.is_empty() {
            return;
        }
        if !pick(&drawn, ALTERNATE).is_empty() {
            self.alternate = last == b'h';
        }
        emit(b"\x1b[?", &drawn, &[], last, out);
    }
}

fn ground(byte: u8, out: &mut Vec<u8>) -> State {
    match byte {
        ESC => State::Escape(Vec::new()),
        0x20..=0x7e => {
            out.push(byte);
            State::Ground
        }
        0xc2..=0xf4 => State::Character(vec![byte]),
        0x80.. => {
            replace(out);
            State::Ground
        }
        _ => {
            control(byte, out);
            State::Ground
        }
    }
}

/// Passes on the controls that draw or sound: BEL, BS, HT, LF, VT, FF, CR, SO, SI. ENQ, above all, asks for an answer.
fn control(byte: u8, out: &mut Vec<u8>) {
    if (0x07..=0x0f).contains(&byte) {
        out.push(byte);
    }
}

fn replace(out: &mut Vec<u8>) {
    out.extend_from_slice("\u{fffd}".as_bytes());
}

/// Collects a character of several bytes. One that is not UTF-8, or is an 8-bit control, becomes U+FFFD.
fn character(mut seen: Vec<u8>, byte: u8, out: &mut Vec<u8>) -> State {
    if !(0x80..0xc0).contains(&byte) {
        replace(out);
        return ground(byte, out);
    }
    seen.push(byte);
    match std::str::from_utf8(&seen) {
        Ok(text) if text.chars().any(char::is_control) => replace(out),
        Ok(text) => out.extend_from_slice(text.as_bytes()),
        Err(error) if error.error_len().is_none() => return State::Character(seen),
        Err(_) => replace(out),
    }
    State::Ground
}

fn escape(mut seen: Vec<u8>, byte: u8, out: &mut Vec<u8>) -> State {
    match (seen.as_slice(), byte) {
        (_, ESC) => return State::Escape(Vec::new()),
        (_, 0x18 | 0x1a) => {}
        (_, 0..0x20) => {
            control(byte, out);
            return State::Escape(seen);
        }
        (_, 0x20..0x30) if seen.len() < 4 => {
            seen.push(byte);
            return State::Escape(seen);
        }
        ([], b'[') => return State::Sequence(Vec::new()),
        ([], b']') => return State::Text { length: 0, bell: true },
        ([], b'P' | b'X' | b'^' | b'_') => return State::Text { length: 0, bell: false },
        // Cursor saved and restored, lines fed, tab set, single shifts, keypad, reset, locking shifts.
        ([], b'7' | b'8' | b'D' | b'E' | b'H' | b'M' | b'N' | b'O' | b'=' | b'>' | b'c' | b'n' | b'o' | b'|' | b'}' | b'~')
        // Character sets, and the alignment and double-size lines.
        | ([b'(' | b')' | b'*' | b'+' | b'#'], 0x30..=0x7e) => {
            out.push(ESC);
            out.extend_from_slice(&seen);
            out.push(byte);
        }
        (_, 0x80..) => return ground(byte, out),
        _ => {}
    }
    State::Ground
}

/// Swallows a string up to its end. ESC ends one, whatever follows it: with `\` that is what it is for.
fn text(length: usize, bell: bool, byte: u8) -> State {
    match byte {
        ESC => State::Escape(Vec::new()),
        0x18 | 0x1a => State::Ground,
        0x07 if bell => State::Ground,
        _ if length >= STRING_MAX => State::Ground,
        _ => State::Text { length: length + 1, bell },
    }
}

/// Whether a sequence without a private mark only draws: cursor movements, erasing, inserting, deleting, scrolling, repeating, tabs,
/// attributes, margins, saved cursor; cursor style, soft reset, protection, rectangles.
fn draws(between: &[u8], last: u8) -> bool {
    match between {
        [] => b"@ABCDEFGHIJKLMPSTXZ`abdefgmrsu".contains(&last),
        b" " => b"q@A".contains(&last),
        b"!" => last == b'p',
        b"\"" => last == b'q',
        b"$" => b"rtvxz{".contains(&last),
        _ => false,
    }
}

/// Those of the parameters that are allowed, separated by semicolons.
fn pick(parameters: &[u8], allowed: &[u16]) -> Vec<u8> {
    let number = |part: &&[u8]| std::str::from_utf8(part).ok().and_then(|part| part.parse::<u16>().ok());
    let parts = parameters.split(|b| *b == b';').filter(|part| number(part).is_some_and(|n| allowed.contains(&n)));
    parts.collect::<Vec<_>>().join(&b';')
}

fn emit(begin: &[u8], parameters: &[u8], between: &[u8], last: u8, out: &mut Vec<u8>) {
    for part in [begin, parameters, between, &[last]] {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drawn(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Filter::default().feed(bytes, &mut out);
        out
    }

    #[test]
    fn lets_through_what_draws() {
        let table: &[&[u8]] = &[
            b"plain\r\n\ttext\x08\x07",
            "größe 漢字 🦀".as_bytes(),
            b"\x1b[1;38;2;10;20;30mred\x1b[0m\x1b[38:5:1m",
            b"\x1b[2J\x1b[H\x1b[10;20H\x1b[K\x1b[3A\x1b[1;24r\x1b[4h\x1b[3b",
            b"\x1b[?1049h\x1b[?25l\x1b[?7h\x1b7\x1b8\x1bM\x1bc",
            b"\x1b(0lqk\x1b(B\x1b=\x1b>",
            b"\x1b[2 q\x1b[!p",
            b"",
        ];
        for bytes in table {
            assert_eq!(drawn(bytes), *bytes, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn drops_what_does_more() {
        let table: &[(&[u8], &[u8])] = &[
            (b"a\x1b[cb", b"ab"),
            (b"a\x1b[>c\x1b[=c\x1b[0c\x1bZb", b"ab"),
            (b"a\x1b[6n\x1b[?6n\x1b[5nb", b"ab"),
            (b"a\x05b", b"ab"),
            (b"a\x1b]0;title\x07b", b"ab"),
            (b"a\x1b]52;c;cm0gLXJmIC8=\x1b\\b", b"ab"),
            (b"a\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\b", b"alinkb"),
            (b"a\x1bP$qm\x1b\\b", b"ab"),
            (b"a\x1b_Gi=1;AAAA\x1b\\b", b"ab"),
            (b"a\x1b[21t\x1b[8;100;200tb", b"ab"),
            (b"a\x1b[?1000h\x1b[?1004h\x1b[?2004hb", b"ab"),
            (b"\x1b[?1000;25;1006h", b"\x1b[?25h"),
            (b"a\x1b[?25$p\x1b[>0q\x1b[>4;1m\x1b[=1u\x1b[?ub", b"ab"),
            (b"a\x1b[5i\x1b[2hb", b"ab"),
            (b"a\x1b[1;2;3;4;5Tb", b"ab"),
            (b"a\x1b F\x1b%@b", b"ab"),
            ("a\u{9b}6nb".as_bytes(), "a\u{fffd}6nb".as_bytes()),
            (b"a\x9b6nb\xff", "a\u{fffd}6nb\u{fffd}".as_bytes()),
            (b"\xe2\x82A\xe2\x82\x1b[m", "\u{fffd}A\u{fffd}\x1b[m".as_bytes()),
            (b"a\x1b[3\x1b[6nb", b"ab"),
            (b"a\x1b[3\x18b", b"ab"),
            (b"\x1b[3\r1m", b"\r\x1b[31m"),
        ];
        for (bytes, wanted) in table {
            let got = drawn(bytes);
            assert_eq!(got, *wanted, "{:?} gave {:?}", String::from_utf8_lossy(bytes), String::from_utf8_lossy(&got));
        }
    }

    #[test]
    fn an_endless_string_does_not_hide_the_rest() {
        let mut bytes = b"\x1b]0;".to_vec();
        bytes.resize(STRING_MAX + 10, b'x');
        bytes.extend_from_slice(b"seen");
        assert!(drawn(&bytes).ends_with(b"seen"));
        let long = [b"\x1b[".to_vec(), vec![b'1'; SEQUENCE_MAX + 1], b"mseen".to_vec()].concat();
        assert_eq!(drawn(&long), b"seen");
    }

    #[test]
    fn knows_the_alternate_screen() {
        let mut filter = Filter::default();
        filter.feed(b"\x1b[?1049h", &mut Vec::new());
        assert!(filter.on_alternate_screen());
        filter.feed(b"\x1b[?25;1049l", &mut Vec::new());
        assert!(!filter.on_alternate_screen());
    }

    fn bits() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            3 => proptest::collection::vec(any::<u8>(), 0..8),
            3 => "\x1b[\\[\\]P_(%# ][0-9;?>=!$ \"]{0,6}[@-~]".prop_map(String::into_bytes),
            1 => ".{0,5}".prop_map(String::into_bytes),
        ];
        proptest::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter_and_twice_is_once(bytes in bits(), cut in any::<prop::sample::Index>()) {
            let whole = drawn(&bytes);
            let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
            let (mut filter, mut pieces) = (Filter::default(), Vec::new());
            filter.feed(head, &mut pieces);
            filter.feed(tail, &mut pieces);
            prop_assert_eq!(&pieces, &whole);
            prop_assert_eq!(drawn(&whole), whole.clone());
            // No request for an answer, no string, no 8-bit control, in what is left.
            let eight_bit = |c: char| c.is_control() && !c.is_ascii();
            prop_assert!(std::str::from_utf8(&whole).is_ok_and(|text| !text.contains(eight_bit)));
            prop_assert!(!whole.contains(&5));
            for strange in [b"\x1b]", b"\x1bP", b"\x1b_", b"\x1b^", b"\x1bX", b"\x1bZ"] {
                prop_assert!(!whole.windows(2).any(|pair| pair == strange));
            }
        }
    }
}
