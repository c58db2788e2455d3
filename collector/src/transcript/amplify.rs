//! What a screen may cost, whatever is written to it.
//!
//! Few bytes can make a terminal do much: repeat a character 65,535 times, clear or shift all of a screen, jump over a row of blanks. What is shown
//! therefore earns an allowance by its bytes, out of which lines and such work are paid. What programs draw stays far within it. What goes beyond is
//! left out of what can be searched, with a note that says so; frames and replay have all of it.

use avt::Terminal;
use avt::observer::Observer;
use avt::parser::{DecMode, EdScope, Function, Parser};
use serde::{Deserialize, Serialize};

/// Stands where lines were left out.
pub const LEFT_OUT_NOTE: &str = "[…more was shown than is kept for searching: see the replay]";

/// Most lines of one read of a terminal. An agent reads fewer bytes than that at once.
pub const LINES_PER_READ: usize = 128 * 1024;
/// Bytes of lines for each byte that is shown: tabs, jumps and rows that change in one place come to three or four.
const TEXT_PER_BYTE: usize = 8;
/// Bytes of lines for each read of a terminal, however short: one keystroke may change a long row.
const TEXT_PER_READ: usize = 1024;
/// Most unused text that is kept for later, bytes.
const TEXT_KEPT: usize = 256 * 1024;
/// Cells that may be cleared, moved or looked at for each byte that is shown, beside printing it.
const CELLS_PER_BYTE: usize = 64;
/// The same for each read: one change of a large window's size, or of its whole content.
const CELLS_PER_READ: usize = 128 * 1024;
/// Most unused work that is kept for later, cells.
const CELLS_KEPT: usize = 4 * 1024 * 1024;

/// Ends an unfinished control sequence without effect.
const CANCEL: &str = "\u{18}";

/// What may still be spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowance {
    /// Bytes of lines.
    text: usize,
    cells: usize,
}

impl Allowance {
    /// A read of the terminal gave `bytes`.
    pub fn earn(&mut self, bytes: usize) {
        self.text = self.text.min(TEXT_KEPT) + bytes.saturating_mul(TEXT_PER_BYTE) + TEXT_PER_READ;
        self.cells = self.cells.min(CELLS_KEPT) + bytes.saturating_mul(CELLS_PER_BYTE) + CELLS_PER_READ;
    }

    /// Pays for a line of `bytes`; says whether there was enough.
    pub fn pay_text(&mut self, bytes: usize) -> bool {
        pay(&mut self.text, bytes)
    }

    /// Pays for a change of a window's size between these; says whether there was enough.
    pub fn pay_resize(&mut self, from: (usize, usize), to: (usize, usize)) -> bool {
        pay(&mut self.cells, (from.0 * from.1).max(to.0 * to.1))
    }
}

fn pay(purse: &mut usize, cost: usize) -> bool {
    let rest = purse.checked_sub(cost);
    *purse = rest.unwrap_or(*purse);
    rest.is_some()
}

/// Feeds `text` to a terminal, but for what costs more than its bytes are worth. `parser` has been fed all that the terminal was, so that it knows what comes.
/// Says whether something was left out.
pub fn emulate<O: Observer>(
    terminal: &mut Terminal,
    parser: &mut Parser,
    allowance: impl Fn(&mut O) -> &mut Allowance,
    observer: &mut O,
    text: &str,
) -> bool {
    let (mut begin, mut is_left_out) = (0, false);
    for (at, c) in text.char_indices() {
        let Some(function) = parser.feed(c) else { continue };
        let Some(costly) = Costly::of(&function) else { continue };
        terminal.feed_with(&text[begin..at], &mut *observer);
        begin = at;
        let (cols, rows) = terminal.size();
        let purse = allowance(observer);
        let instead = match costly {
            Costly::Pattern => None,
            Costly::Whole if pay(&mut purse.cells, cols * rows) => continue,
            Costly::Whole => {
                is_left_out = true;
                None
            }
            // More than a row at once is no program's way of drawing.
            Costly::Repeat(times) => match usize::from(times).max(1).min(cols).min(purse.text) {
                0 => {
                    is_left_out = true;
                    None
                }
                times => {
                    purse.text -= times;
                    u16::try_from(times).ok().map(Function::Rep)
                }
            },
        };
        begin += c.len_utf8();
        terminal.feed_with(CANCEL, &mut *observer);
        if let Some(function) = instead {
            terminal.execute_with(function, &mut *observer);
        }
    }
    terminal.feed_with(&text[begin..], observer);
    is_left_out
}

/// What costs a terminal more than printing.
enum Costly {
    /// So many times the last character.
    Repeat(u16),
    /// Every cell may be looked at, moved or cleared.
    Whole,
    /// The screen is filled with a test pattern, which nobody wrote and which nothing has to be found in.
    Pattern,
}

impl Costly {
    fn of(function: &Function) -> Option<Self> {
        match function {
            Function::Rep(times) => Some(Self::Repeat(*times)),
            Function::Decaln => Some(Self::Pattern),
            Function::Su(_) | Function::Sd(_) | Function::Il(_) | Function::Dl(_) | Function::Ri | Function::Ris => {
                Some(Self::Whole)
            }
            Function::Ed(EdScope::Below | EdScope::Above | EdScope::All) => Some(Self::Whole),
            Function::Decset(modes) | Function::Decrst(modes) if switches(modes.as_slice()) => Some(Self::Whole),
            _ => None,
        }
    }
}

/// Whether these modes are the choice between primary and alternate screen.
pub fn switches(modes: &[DecMode]) -> bool {
    modes.iter().any(|mode| matches!(mode, DecMode::AltScreenBuffer | DecMode::SaveCursorAltScreenBuffer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcript::screen::Screen;

    /// The lines that come of one read, and what can be seen after it.
    fn shown(data: &str, rows: u32, cols: u32) -> (Vec<String>, Vec<String>) {
        let mut screen = Screen::new();
        let lines = screen.feed(data.as_bytes(), rows, cols);
        (lines, screen.visible())
    }

    fn bytes(lines: &[String]) -> usize {
        lines.iter().map(String::len).sum()
    }

    #[test]
    fn a_repeated_character_fills_one_row_at_most() {
        let (lines, visible) = shown("-\x1b[65535b\r\nnext", 24, 80);
        assert_eq!(lines, Vec::<String>::new());
        assert_eq!(visible, ["-".repeat(81), "next".to_owned()]);
        // As programs draw with it, whole or in pieces.
        assert_eq!(shown("+-\x1b[77b+", 24, 80).1, [format!("+{}+", "-".repeat(78))]);
        let mut screen = Screen::new();
        for piece in ["+-\x1b[", "7", "7", "b+"] {
            screen.feed(piece.as_bytes(), 24, 80);
        }
        assert_eq!(screen.visible(), [format!("+{}+", "-".repeat(78))]);
    }

    #[test]
    fn few_bytes_do_not_become_many_lines() {
        let repeated = "a\x1b[65535b\r\n".repeat(20_000);
        let jumped = "\x1b[512Cx\r\n".repeat(20_000);
        let patterns = "\x1b#8\x1b[2J".repeat(20_000);
        let scrolled = "\x1b#8\x1b[65535S".repeat(20_000);
        let redrawn = "\x1b[Hx\x1b[500b\x1b[2J".repeat(20_000);
        let switched = "\x1b[?1049h\x1b[Hx\x1b[500b\x1b[?1049l".repeat(5_000);
        let shifted: String =
            (0..20_000u32).map(|n| format!("\r\x1b[@{}\x1b[L", char::from(b'a' + (n % 26) as u8))).collect();
        for data in [repeated, jumped, patterns, scrolled, redrawn, switched, shifted] {
            let (lines, visible) = shown(&data, 256, 512);
            let most = data.len() * TEXT_PER_BYTE + TEXT_PER_READ + LEFT_OUT_NOTE.len();
            assert!(bytes(&lines) <= most, "{} of {}", bytes(&lines), data.len());
            assert!(bytes(&visible) <= 2 * 512 * 256, "{}", bytes(&visible));
        }
    }

    #[test]
    fn a_read_of_nothing_but_line_feeds_is_bounded_too() {
        let data = "a\r\n".repeat(4 * LINES_PER_READ);
        let lines = shown(&data, 24, 80).0;
        assert_eq!((lines.len(), lines.last().map(String::as_str)), (LINES_PER_READ + 1, Some(LEFT_OUT_NOTE)));
    }

    #[test]
    fn what_is_left_out_is_said_once_until_all_is_kept_again() {
        let mut screen = Screen::new();
        let amplified = "\x1b[512Cx\r\n".repeat(20_000);
        let notes = |lines: &[String]| lines.iter().filter(|line| *line == LEFT_OUT_NOTE).count();
        let first = screen.feed(amplified.as_bytes(), 24, 512);
        assert_eq!(notes(&first), 1);
        // Put away in between: the same.
        let mut screen = Screen::restore(screen.save());
        assert_eq!(notes(&screen.feed(amplified.as_bytes(), 24, 512)), 0);
        // An honest program afterwards loses nothing.
        let plain: String = (0..500).map(|n| format!("line {n}\r\n")).collect();
        let lines = screen.feed(plain.as_bytes(), 24, 512);
        assert!(lines.contains(&"line 400".to_owned()) && notes(&lines) == 0, "{lines:?}");
        assert_eq!(notes(&screen.feed(amplified.as_bytes(), 24, 512)), 1);
    }

    #[test]
    fn work_is_bounded_by_what_was_shown() {
        let mut allowance = Allowance::default();
        allowance.earn(0);
        // A large window is changed once for a read, not back and forth within many.
        assert!(allowance.pay_resize((80, 24), (512, 256)));
        assert!(!allowance.pay_resize((512, 256), (1, 1)));
        let began = std::time::Instant::now();
        let (_, visible) = shown(&"x\x1b[L\x1bM\x1b[2J".repeat(100_000), 256, 512);
        assert!(!visible.is_empty());
        // 400,000 operations on 131,072 cells each would be some minutes.
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "{:?}", began.elapsed());
    }
}
