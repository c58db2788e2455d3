//! Lines that a terminal showed.
//!
//! A line becomes final when it can no longer change: it scrolled off the top, or the program wiped or replaced it. What is
//! still on the screen is [`Screen::visible`]. A row that only grows or shrinks, as a command line being typed does, is not
//! final until it is left. Lines that a full-screen program draws again and again become final once.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

use avt::observer::Observer;
use avt::parser::{DecMode, EdScope, Function};
use avt::{Observation, Operation, ScreenKind, Terminal};
use serde::{Deserialize, Serialize};

use crate::quote::{TEXT_MAX, bounded};

/// Window size where none is known: that of a VT100.
const COLS_DEFAULT: usize = 80;
const ROWS_DEFAULT: usize = 24;
/// Largest window that is emulated. A screen of this size takes some 6 MiB; larger windows are cut.
const COLS_MAX: usize = 512;
const ROWS_MAX: usize = 256;
/// How many replaced lines are remembered, so as not to repeat them: a few screens of a full-screen program.
const REMEMBERED: usize = 512;

/// An emulated terminal and the lines it has yet to give.
pub struct Screen {
    terminal: Terminal,
    lines: Lines,
    /// The beginning of a character whose rest has not come yet.
    partial: Vec<u8>,
}

/// A screen that is put away. The emulator itself is kept as the output that draws it.
#[derive(Serialize, Deserialize)]
pub struct Saved {
    cols: usize,
    rows: usize,
    dump: String,
    lines: Lines,
    partial: Vec<u8>,
}

/// What is known of the lines, beside the emulator.
#[derive(Default, Serialize, Deserialize)]
struct Lines {
    /// The active screen's rows when they were last looked at.
    seen: Vec<String>,
    /// The beginning of a long line whose first rows scrolled off already.
    scrolled: String,
    /// Hashes of lines that were final because they were replaced.
    remembered: VecDeque<u64>,
    #[serde(skip)]
    ready: Vec<String>,
    #[serde(skip)]
    evicted: Vec<String>,
    #[serde(skip)]
    dirty: bool,
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}

impl Screen {
    /// A blank screen of the default size.
    pub fn new() -> Self {
        Self { terminal: blank(COLS_DEFAULT, ROWS_DEFAULT), lines: Lines::default(), partial: Vec::new() }
    }

    /// Takes up a screen that was put away.
    pub fn restore(saved: Saved) -> Self {
        let mut terminal = blank(saved.cols, saved.rows);
        terminal.feed(saved.dump.as_str());
        Self { terminal, lines: saved.lines, partial: saved.partial }
    }

    /// Puts the screen away.
    pub fn save(&self) -> Saved {
        let (cols, rows) = self.terminal.size();
        let lines = Lines {
            seen: self.lines.seen.clone(),
            scrolled: self.lines.scrolled.clone(),
            remembered: self.lines.remembered.clone(),
            ..Lines::default()
        };
        Saved { cols, rows, dump: self.terminal.dump(), lines, partial: self.partial.clone() }
    }

    /// The terminal showed `data` in a window of `rows` and `cols` (0: unknown). Returns the lines that became final.
    pub fn feed(&mut self, data: &[u8], rows: u32, cols: u32) -> Vec<String> {
        let Self { terminal, lines, partial } = self;
        // The emulator is given whatever a session writes. If that ever makes it panic, the session's text ends there and the
        // collector goes on.
        let survived = catch_unwind(AssertUnwindSafe(|| {
            resize(terminal, lines, rows, cols);
            decode(partial, data, |text| terminal.feed_with(text, &mut *lines));
            lines.look(terminal);
        }));
        if survived.is_err() {
            tracing::error!("the terminal emulator failed on recorded output; its screen starts afresh");
            let ready = std::mem::take(&mut lines.ready);
            *self = Self::new();
            return ready;
        }
        std::mem::take(&mut self.lines.ready)
    }

    /// The lines that can be seen now, and those of the primary screen behind a full-screen program.
    pub fn visible(&self) -> Vec<String> {
        let mut lines = joined(self.terminal.primary_screen(), self.lines.scrolled.clone());
        if self.terminal.active_screen_kind() == ScreenKind::Alternate {
            lines.extend(joined(self.terminal.screen(), String::new()));
        }
        lines
    }
}

fn blank(cols: usize, rows: usize) -> Terminal {
    let (cols, rows) = (cols.clamp(1, COLS_MAX), rows.clamp(1, ROWS_MAX));
    match Terminal::new(cols, rows) {
        Ok(terminal) => terminal,
        Err(_) => unreachable!("a size of at least 1x1 is always accepted"),
    }
}

fn resize(terminal: &mut Terminal, lines: &mut Lines, rows: u32, cols: u32) {
    if rows == 0 || cols == 0 {
        return;
    }
    let wanted = (bounded_size(cols, COLS_MAX), bounded_size(rows, ROWS_MAX));
    if wanted != terminal.size() {
        terminal.resize_with(wanted.0, wanted.1, &mut *lines);
        // Rows were broken anew: nothing was replaced by that.
        lines.forget_rows(terminal);
    }
}

fn bounded_size(value: u32, max: usize) -> usize {
    usize::try_from(value).unwrap_or(max).clamp(1, max)
}

impl Lines {
    /// Compares the screen with what it was; rows that were replaced become final.
    fn look(&mut self, terminal: &Terminal) {
        let evicted = std::mem::take(&mut self.evicted);
        if !std::mem::take(&mut self.dirty) && evicted.is_empty() {
            return;
        }
        let now = rows_of(terminal.screen());
        let before = std::mem::take(&mut self.seen);
        for (row, old) in before.iter().enumerate() {
            // Rows move up by as many as scrolled off the top.
            let new = evicted.get(row).or_else(|| now.get(row - evicted.len().min(row)));
            if !new.is_some_and(|new| is_edit(old, new)) {
                self.replaced(old);
            }
        }
        self.seen = now;
    }

    fn forget_rows(&mut self, terminal: &Terminal) {
        self.evicted.clear();
        self.dirty = false;
        self.seen = rows_of(terminal.screen());
    }

    /// A row gave way to another. Its text is final, once.
    fn replaced(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let hash = hash(text);
        if self.remembered.contains(&hash) {
            return;
        }
        if self.remembered.len() >= REMEMBERED {
            self.remembered.pop_front();
        }
        self.remembered.push_back(hash);
        self.ready.push(text.to_owned());
    }

    fn scrolled_off(&mut self, line: &avt::Line) {
        let text: String = line.chars().collect();
        self.evicted.push(text.trim_end().to_owned());
        self.scrolled.push_str(&text);
        if line.is_wrapped() && self.scrolled.len() < TEXT_MAX {
            return;
        }
        let whole = std::mem::take(&mut self.scrolled);
        let whole = whole.trim_end();
        if !whole.is_empty() && !self.remembered.contains(&hash(whole)) {
            self.ready.push(bounded(whole.to_owned()));
        }
    }

    /// Everything on the active screen is about to go.
    fn wiped(&mut self, terminal: &Terminal) {
        for line in joined(terminal.screen(), String::new()) {
            self.replaced(&line);
        }
        self.seen.clear();
    }
}

impl Observer for &mut Lines {
    type Output = ();

    fn before(&mut self, context: &mut Observation<'_>, operation: &Operation) {
        let Operation::Function(function) = operation else { return };
        let terminal = context.terminal();
        let alternate = terminal.active_screen_kind() == ScreenKind::Alternate;
        match function {
            // Erasing all of the primary screen scrolls it off instead, in this emulator.
            Function::Ed(EdScope::All) if !alternate => {}
            Function::Ed(_) | Function::Ris => self.wiped(terminal),
            Function::Decrst(modes) if alternate && switches(modes.as_slice()) => self.wiped(terminal),
            // The primary screen stays, behind: its rows are not replaced.
            Function::Decset(modes) if !alternate && switches(modes.as_slice()) => self.seen.clear(),
            _ => {}
        }
    }

    fn dirty(&mut self, _rows: std::ops::Range<usize>) {
        self.dirty = true;
    }

    fn evicted(&mut self, _context: &mut Observation<'_>, line: &avt::Line) {
        self.scrolled_off(line);
    }

    fn end(&mut self, _context: &mut Observation<'_>) {}
}

/// Whether these modes are the choice between primary and alternate screen.
fn switches(modes: &[DecMode]) -> bool {
    modes.iter().any(|mode| matches!(mode, DecMode::AltScreenBuffer | DecMode::SaveCursorAltScreenBuffer))
}

/// Whether one text came from the other by typing at its end or erasing there.
fn is_edit(old: &str, new: &str) -> bool {
    new.starts_with(old) || (!new.is_empty() && old.starts_with(new))
}

fn hash(text: &str) -> u64 {
    // Fixed keys: the same in every run of the same program. Only ever compared with others of its kind.
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn rows_of(screen: avt::Screen<'_>) -> Vec<String> {
    screen.visible_lines().map(|line| line.text().trim_end().to_owned()).collect()
}

/// The screen's lines, rows joined where they were only wrapped, blank ones left out.
fn joined(screen: avt::Screen<'_>, before: String) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = before;
    for row in screen.visible_lines() {
        line.extend(row.chars());
        if !row.is_wrapped() {
            push_trimmed(&mut lines, std::mem::take(&mut line));
        }
    }
    push_trimmed(&mut lines, line);
    lines
}

fn push_trimmed(lines: &mut Vec<String>, line: String) {
    let line = line.trim_end();
    if !line.is_empty() {
        lines.push(bounded(line.to_owned()));
    }
}

/// Decodes UTF-8 that comes in pieces: what cannot be part of a character becomes U+FFFD, an unfinished one waits in `partial`.
pub(super) fn decode(partial: &mut Vec<u8>, data: &[u8], mut sink: impl FnMut(&str)) {
    let joined;
    let data = if partial.is_empty() {
        data
    } else {
        joined = [std::mem::take(partial).as_slice(), data].concat();
        &joined
    };
    let mut chunks = data.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        sink(chunk.valid());
        let invalid = chunk.invalid();
        if invalid.is_empty() {
            continue;
        }
        let unfinished =
            chunks.peek().is_none() && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
        match unfinished {
            true => *partial = invalid.to_vec(),
            false => sink("\u{fffd}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every line that comes out in the end: the final ones, then what is left on the screen.
    fn all_lines(chunks: &[&str]) -> Vec<String> {
        let mut screen = Screen::new();
        let mut lines: Vec<String> = chunks.iter().flat_map(|chunk| screen.feed(chunk.as_bytes(), 0, 0)).collect();
        lines.extend(screen.visible());
        lines
    }

    #[test]
    fn a_corrected_word_stands_as_it_was_in_the_end() {
        let typed = ["$ ", "s", "u", "o", "d", "\x08 \x08", "\x08 \x08", "d", "o", " -i\r\n", "# "];
        assert_eq!(all_lines(&typed), ["$ sudo -i", "#"]);
    }

    #[test]
    fn lines_that_scroll_off_are_given_once_and_in_order() {
        let output: String = (0..500).map(|n| format!("line {n}\r\n")).collect();
        let expected: Vec<String> = (0..500).map(|n| format!("line {n}")).collect();
        assert_eq!(all_lines(&[&output]), expected);
        let single: Vec<String> = output.chars().map(String::from).collect();
        assert_eq!(all_lines(&single.iter().map(String::as_str).collect::<Vec<_>>()), expected);
    }

    #[test]
    fn what_is_wiped_is_kept() {
        assert_eq!(all_lines(&["secret\x1b[H\x1b[2Jnew"]), ["secret", "new"]);
        assert_eq!(all_lines(&["secret\x1b[H\x1b[Jnew"]), ["secret", "new"]);
        assert_eq!(all_lines(&["secret\x1bcnew"]), ["secret", "new"]);
        assert_eq!(all_lines(&["10%", "\r\x1b[2Kdone"]), ["10%", "done"]);
    }

    #[test]
    fn a_full_screen_program_leaves_what_it_showed() {
        let lines = all_lines(&["$ vi\r\n", "\x1b[?1049h\x1b[Hroot:x:0:0", "\x1b[2;1H~", "\x1b[?1049l", "$ "]);
        assert_eq!(lines, ["root:x:0:0", "~", "$ vi", "$"]);
    }

    #[test]
    fn a_wrapped_line_is_one_line() {
        let long = "x".repeat(200);
        assert_eq!(all_lines(&[&long]), [long.as_str()]);
        let scrolled = format!("{long}{}", "\r\ny".repeat(30));
        assert_eq!(all_lines(&[&scrolled])[0], long);
    }

    #[test]
    fn absurd_windows_are_cut() {
        let mut screen = Screen::new();
        screen.feed(b"a", u32::MAX, u32::MAX);
        assert_eq!(screen.terminal.size(), (COLS_MAX, ROWS_MAX));
        screen.feed("ä".as_bytes(), 1, 1);
        assert_eq!(screen.terminal.size(), (1, 1));
    }

    fn output() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "[ -~]{1,30}",
            Just("\r\n".to_owned()),
            Just("\x08".to_owned()),
            Just("界é".to_owned()),
            "\x1b\\[[0-9]{0,2}[ABCDGHJKLMPSTXdm@]",
            "\x1b\\[[0-9]{1,2};[0-9]{1,2}[Hr]",
            Just("\x1b[?1049h".to_owned()),
            Just("\x1b[?1049l".to_owned()),
            Just("\x1bc".to_owned()),
        ];
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn putting_a_screen_away_changes_nothing(first in output(), second in output()) {
            let mut kept = Screen::new();
            kept.feed(first.as_bytes(), 10, 40);
            let json = serde_json::to_vec(&kept.save()).unwrap();
            let mut restored = Screen::restore(serde_json::from_slice(&json).unwrap());
            prop_assert_eq!(kept.visible(), restored.visible());
            prop_assert_eq!(kept.feed(second.as_bytes(), 10, 40), restored.feed(second.as_bytes(), 10, 40));
            prop_assert_eq!(kept.visible(), restored.visible());
        }

        #[test]
        fn noise_never_panics(chunks in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..80), 0u32..60, 0u32..60), 0..20)) {
            let mut screen = Screen::new();
            for (data, rows, cols) in chunks {
                screen.feed(&data, rows, cols);
            }
            screen.visible();
        }
    }
}
