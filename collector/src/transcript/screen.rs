//! Lines that a terminal showed.
//!
//! A line becomes final when it can no longer change: it scrolled off the top, or the program wiped or replaced it. What is
//! still on the screen is [`Screen::visible`]. A row that only grows or shrinks, as a command line being typed does, is not
//! final until it is left. Lines that a full-screen program draws again and again become final once.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

use avt::observer::Observer;
use avt::parser::{EdScope, Function, Parser};
use avt::{Observation, Operation, ScreenKind, Terminal};
use serde::{Deserialize, Serialize};

use super::amplify::{Allowance, LEFT_OUT_NOTE, LINES_PER_READ, emulate, switches};
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
    /// Has been fed what the terminal was: knows what comes before it happens.
    parser: Parser,
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
    /// First and last row of the scrolling region where a program set one. The emulator keeps it to itself.
    region: Option<(usize, usize)>,
    /// What may be spent on lines and work.
    allowance: Allowance,
    /// Whether the last read was more than that, so that this has been said.
    exceeds: bool,
    #[serde(skip)]
    is_left_out: bool,
    #[serde(skip)]
    ready: Vec<String>,
    /// Rows that scrolled off since the last look: the text of those that were seen then, and how many in all.
    #[serde(skip)]
    evicted: Vec<String>,
    #[serde(skip)]
    evicted_rows: usize,
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
        let terminal = blank(COLS_DEFAULT, ROWS_DEFAULT);
        Self { terminal, parser: Parser::new(), lines: Lines::default(), partial: Vec::new() }
    }

    /// Takes up a screen that was put away.
    pub fn restore(saved: Saved) -> Self {
        let mut terminal = blank(saved.cols, saved.rows);
        let mut parser = Parser::new();
        terminal.feed(saved.dump.as_str());
        for c in saved.dump.chars() {
            parser.feed(c);
        }
        Self { terminal, parser, lines: saved.lines, partial: saved.partial }
    }

    /// Puts the screen away.
    pub fn save(&self) -> Saved {
        let (cols, rows) = self.terminal.size();
        let lines = Lines {
            seen: self.lines.seen.clone(),
            scrolled: self.lines.scrolled.clone(),
            remembered: self.lines.remembered.clone(),
            region: self.lines.region,
            allowance: self.lines.allowance,
            exceeds: self.lines.exceeds,
            ..Lines::default()
        };
        Saved { cols, rows, dump: self.terminal.dump(), lines, partial: self.partial.clone() }
    }

    /// The terminal showed `data` in a window of `rows` and `cols` (0: unknown). Returns the lines that became final.
    pub fn feed(&mut self, data: &[u8], rows: u32, cols: u32) -> Vec<String> {
        let Self { terminal, parser, lines, partial } = self;
        lines.allowance.earn(data.len());
        // The emulator is given whatever a session writes. If that ever makes it panic, the session's text ends there and the
        // collector goes on.
        let survived = catch_unwind(AssertUnwindSafe(|| {
            resize(terminal, lines, rows, cols);
            decode(partial, data, |text| {
                lines.is_left_out |=
                    emulate(terminal, parser, |lines: &mut &mut Lines| &mut lines.allowance, &mut &mut *lines, text);
            });
            lines.look(terminal);
            lines.say_what_is_left_out();
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
        if !lines.allowance.pay_resize(terminal.size(), wanted) {
            // Tried again with the next read. Until then rows are broken where they were.
            return;
        }
        if wanted.1 != terminal.size().1 {
            lines.region = None;
        }
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
        let (evicted, rows) = (std::mem::take(&mut self.evicted), std::mem::take(&mut self.evicted_rows));
        if !std::mem::take(&mut self.dirty) && rows == 0 {
            return;
        }
        let now = rows_of(terminal.screen());
        let before = std::mem::take(&mut self.seen);
        for (row, old) in before.iter().enumerate() {
            // Rows move up by as many as scrolled off the top.
            let new = evicted.get(row).or_else(|| now.get(row.saturating_sub(rows)));
            if !new.is_some_and(|new| is_edit(old, new)) {
                self.replaced(old);
            }
        }
        self.seen = now;
    }

    fn forget_rows(&mut self, terminal: &Terminal) {
        self.evicted.clear();
        self.evicted_rows = 0;
        self.dirty = false;
        self.seen = rows_of(terminal.screen());
    }

    /// A row gave way to another. Its text is final, once.
    fn replaced(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let hash = hash(text);
        if self.remembered.contains(&hash) || !self.give(text.to_owned()) {
            return;
        }
        if self.remembered.len() >= REMEMBERED {
            self.remembered.pop_front();
        }
        self.remembered.push_back(hash);
    }

    /// Gives a line that is final, if the session has not shown too much for its bytes; says whether it did.
    fn give(&mut self, text: String) -> bool {
        let is_kept = self.ready.len() < LINES_PER_READ && self.allowance.pay_text(text.len());
        match is_kept {
            true => self.ready.push(text),
            false => self.is_left_out = true,
        }
        is_kept
    }

    fn say_what_is_left_out(&mut self) {
        let exceeds = std::mem::take(&mut self.is_left_out);
        if exceeds && !self.exceeds {
            self.ready.push(LEFT_OUT_NOTE.to_owned());
        }
        self.exceeds = exceeds;
    }

    fn scrolled_off(&mut self, line: &avt::Line) {
        let text: String = line.chars().collect();
        self.evicted_rows += 1;
        if self.evicted.len() < self.seen.len() {
            self.evicted.push(text.trim_end().to_owned());
        }
        self.scrolled.push_str(&text);
        if line.is_wrapped() && self.scrolled.len() < TEXT_MAX {
            return;
        }
        let whole = std::mem::take(&mut self.scrolled);
        let whole = whole.trim_end();
        if !whole.is_empty() && !self.remembered.contains(&hash(whole)) {
            self.give(bounded(whole.to_owned()));
        }
    }

    /// The region that scrolls, first and last row.
    fn region(&self, terminal: &Terminal) -> (usize, usize) {
        self.region.unwrap_or((0, terminal.size().1 - 1))
    }

    fn set_region(&mut self, terminal: &Terminal, top: u16, bottom: u16) {
        let rows = terminal.size().1;
        // From 1; 0 stands for the first and for the last row.
        let top = usize::from(top).max(1) - 1;
        let bottom = if bottom == 0 { rows } else { usize::from(bottom) } - 1;
        if top < bottom && bottom < rows {
            self.region = Some((top, bottom));
        }
    }

    /// Rows are about to move up by one. The first one goes for good, unless it goes to the lines that scrolled off.
    fn scrolls(&mut self, terminal: &Terminal) {
        let (top, bottom) = self.region(terminal);
        if top == 0 && terminal.active_screen_kind() == ScreenKind::Primary {
            return;
        }
        let Some(row) = terminal.screen().visible_lines().nth(top) else { return };
        let text = row.text();
        let text = text.trim_end();
        if top < self.seen.len() {
            let old = self.seen.remove(top);
            self.seen.insert(bottom.min(self.seen.len()), String::new());
            if !is_edit(&old, text) {
                self.replaced(&old);
            }
        }
        self.replaced(text);
    }

    /// Everything on the active screen is about to go.
    fn wiped(&mut self, terminal: &Terminal) {
        self.look(terminal);
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
        let cursor = terminal.cursor();
        let (top, bottom) = self.region(terminal);
        match function {
            Function::Lf | Function::Nel if cursor.row == bottom => self.scrolls(terminal),
            Function::Print(_) if cursor.row == bottom && cursor.col >= terminal.size().0 => self.scrolls(terminal),
            Function::Decstbm(top, bottom) => self.set_region(terminal, *top, *bottom),
            Function::Decstr => self.region = None,
            // Rows move and some go: what was drawn since the last look has not been seen.
            Function::Su(_) | Function::Sd(_) | Function::Il(_) | Function::Dl(_) => self.look(terminal),
            Function::Ri if cursor.row == top => self.look(terminal),
            // Erasing all of the primary screen scrolls it off instead, in this emulator.
            Function::Ed(EdScope::All) if !alternate => {}
            Function::Ed(_) => self.wiped(terminal),
            Function::Ris => {
                self.wiped(terminal);
                self.region = None;
            }
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
    fn a_row_that_scrolls_off_where_there_is_no_scrollback_is_kept() {
        // As vi ends when all of it comes in one read: the file's first row has scrolled off when the screen is left.
        let vi =
            "\x1b[?1049h\x1b[1;24r\x1b[H\x1b[2J\x1b[24;1H\"f\" [New]\x1b[1;1Hmax = 400\x1b[24;1H:wq\r\r\n\x1b[?1049l$ ";
        let lines = all_lines(&[vi]);
        assert!(lines.contains(&"max = 400".to_owned()), "{lines:?}");
        // A region below a heading, on the primary screen: what scrolls off there is in no scrollback either.
        let lines = all_lines(&["\x1b[2;4rtop\x1b[4;1Ha\r\nb\r\nc\r\nd\r\ne\r\nf"]);
        assert_eq!(lines, ["a", "b", "c", "top", "d", "e", "f"]);
        // Long lines scroll without a line feed, and programs scroll without one too.
        let wide: String = ["x".repeat(80), "y".repeat(80 * 24)].concat();
        assert_eq!(all_lines(&["\x1b[?1049h\x1b[H", &wide, "\x1b[?1049l"])[0], "x".repeat(80));
        for gone in ["\x1b[S", "\x1b[M", "\x1b[24;1H\n"] {
            assert_eq!(all_lines(&[&format!("\x1b[?1049h\x1b[Hgone\x1b[1;1H{gone}\x1b[?1049l")]), ["gone"], "{gone:?}");
        }
        for gone in ["\x1b[T", "\x1bM", "\x1b[L"] {
            let last = format!("\x1b[?1049h\x1b[24;1Hgone\x1b[1;1H{gone}\x1b[?1049l");
            assert_eq!(all_lines(&[&last]), ["gone"], "{gone:?}");
        }
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
