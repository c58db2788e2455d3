//! Everything that reaches standard output goes through here: style, width, neutralising, tables, times and JSON.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use anyhow::Result;
use clap::ValueEnum;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::print::{json::Described, time::Zone};

pub mod json;
pub mod quote;
pub mod safe;
pub mod table;
pub mod time;

/// Width assumed where standard output is no terminal and something must still be laid out, columns.
const DEFAULT_WIDTH: usize = 80;

/// Columns that folded text takes at least, however narrow the terminal.
const FOLDED_MIN: usize = 20;

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set or TERM is dumb.
    #[default]
    Auto,
    /// Also into a pipe.
    Always,
    /// Not at all.
    Never,
}

/// How to print; from the global options.
#[derive(Clone, Debug)]
pub struct Options {
    /// One JSON object a line in place of text for people.
    pub json: bool,
    /// When to colour.
    pub color: Color,
    /// Show times in UTC, not in this machine's zone.
    pub utc: bool,
}

/// What a piece of text is, for its look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Of secondary interest.
    Dim,
    /// Of first interest.
    Bold,
    /// As it should be.
    Good,
    /// To be noticed.
    Warn,
    /// Failed, missing or refused.
    Bad,
    /// What was searched for.
    Match,
}

impl Style {
    fn sgr(self) -> &'static str {
        match self {
            Self::Dim => "2",
            Self::Bold => "1",
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "31",
            Self::Match => "1;4",
        }
    }
}

/// Standard output.
pub struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    terminal: bool,
    color: bool,
    json: bool,
    zone: Zone,
}

impl Printer {
    /// Looks at what standard output is.
    pub fn new(options: &Options) -> Self {
        let terminal = io::stdout().is_terminal();
        Self {
            out: BufWriter::new(io::stdout().lock()),
            terminal,
            color: wants_color(options.color, terminal),
            json: options.json,
            zone: Zone::new(options.utc),
        }
    }

    /// Whether standard output is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether JSON was asked for.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// The zone to show times in.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// Columns of the terminal; `None` where output is not to be fitted to any width.
    pub fn width(&self) -> Option<usize> {
        self.terminal.then(|| size().map_or(DEFAULT_WIDTH, |(cols, _)| cols.into()))
    }

    /// The text in a style, if colours are on. The text must be harmless already.
    pub fn paint(&self, style: Style, text: &str) -> String {
        if self.color && !text.is_empty() { format!("\x1b[{}m{text}\x1b[0m", style.sgr()) } else { text.to_owned() }
    }

    /// Prints a line. The text must be harmless already.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.write_all(b"\n")
    }

    /// Prints text behind what is `indent` columns wide; on a terminal it is folded between words and goes on below itself. The text
    /// must be harmless already, but for styles.
    pub fn folded(&mut self, front: &str, indent: usize, text: &str) -> io::Result<()> {
        let room = self.width().map_or(usize::MAX, |width| width.saturating_sub(indent).max(FOLDED_MIN));
        let mut front = front;
        let below = " ".repeat(indent);
        for line in fold(text, room) {
            self.line(&format!("{front}{line}"))?;
            front = &below;
        }
        Ok(())
    }

    /// Prints a message as one line of JSON.
    pub fn json<M: Described>(&mut self, message: &M) -> Result<()> {
        json::write(&mut self.out, message)?;
        Ok(self.out.write_all(b"\n")?)
    }

    /// Writes bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Hands on what was printed so far.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn wants_color(color: Color, terminal: bool) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
    }
}

/// Columns and rows of the terminal on standard output.
pub fn size() -> Option<(u16, u16)> {
    terminal_size::terminal_size_of(io::stdout()).map(|(cols, rows)| (cols.0, rows.0))
}

/// Prints text on standard output at once. That whoever read it has closed it is no failure: they have seen enough, and what was
/// done stays done.
pub fn out(text: &str) -> io::Result<()> {
    write_out(&mut io::stdout().lock(), text)
}

fn write_out(out: &mut impl Write, text: &str) -> io::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// A note for the person at the terminal, on standard error, so that it stays out of pipes. Harmless text only.
pub fn note(text: &str) {
    // Nobody to tell when standard error is gone.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Shortens text to a display width, ending in `…` where something was cut off.
pub fn shorten(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut used = 1;
    let mut out: String = text
        .chars()
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= width
        })
        .collect();
    out.push('…');
    out
}

/// Folds text between words to lines of a display width; a longer word is not broken.
fn fold(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let columns = styled_width(word);
        match lines.last_mut() {
            Some(line) if used == 0 || used + 1 + columns <= width => {
                if used > 0 {
                    line.push(' ');
                    used += 1;
                }
                line.push_str(word);
                used += columns;
            }
            _ => {
                lines.push(word.to_owned());
                used = columns;
            }
        }
    }
    lines
}

/// Columns of a text with styles in it.
fn styled_width(text: &str) -> usize {
    let mut pieces = text.split("\x1b[");
    let plain = pieces.next().unwrap_or_default().width();
    plain + pieces.map(|piece| piece.split_once('m').map_or(0, |(_, after)| after.width())).sum::<usize>()
}

/// Pads text with spaces on the right to a display width.
pub fn pad(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(text.width())))
}

/// A count with separators: `1,572,864`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count and what is counted: `1 command`, `2 commands`.
pub fn counted(n: u64, what: &str) -> String {
    format!("{} {what}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A size in at most seven characters: `310 B`, `12.3 KB`, `4.0 MB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KB", "MB", "GB", "TB"];
    if n < 1000 {
        return format!("{n} B");
    }
    // Six significant digits are plenty for a size that people read.
    let mut value = n as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS.get(unit).unwrap_or(&""))
}

/// The short form of a session's id: its last eight characters. A UUIDv7 begins with the time, which many share; its end is
/// random. The collector takes it in place of the whole.
pub fn short_id(id: &str) -> String {
    let start = id.char_indices().rev().nth(7).map_or(0, |(at, _)| at);
    safe::text(id.get(start..).unwrap_or(id).as_bytes())
}

/// The name of a signal, such as `SIGKILL`.
pub fn signal(number: u32) -> String {
    let known = i32::try_from(number).ok().and_then(|n| nix::sys::signal::Signal::try_from(n).ok());
    known.map_or_else(|| format!("signal {number}"), |signal| signal.as_str().to_owned())
}

/// What an errno means, such as `ENOENT: No such file or directory`.
pub fn errno(number: u32) -> String {
    match i32::try_from(number).map(nix::errno::Errno::from_raw) {
        Ok(known) if known != nix::errno::Errno::UnknownErrno => format!("{known}"),
        _ => format!("errno {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortens_by_display_width() {
        assert_eq!(shorten("plain", 5), "plain");
        assert_eq!(shorten("plainer", 5), "plai…");
        assert_eq!(shorten("漢字漢字", 5), "漢字…");
        assert_eq!(pad("漢字", 6), "漢字  ");
    }

    #[test]
    fn folds_between_words() {
        assert_eq!(fold("one two three", 7), ["one two", "three"]);
        assert_eq!(fold("one  two", 80), ["one  two"]);
        assert_eq!(fold("wwwwwwwwww a b", 4), ["wwwwwwwwww", "a b"]);
        assert_eq!(fold("\x1b[31mone\x1b[0m two", 7), ["\x1b[31mone\x1b[0m two"]);
        assert_eq!(fold("", 7), [""]);
    }

    #[test]
    fn counts_and_sizes() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_572_864), "1,572,864");
        assert_eq!(counted(1, "gap"), "1 gap");
        assert_eq!(bytes(310), "310 B");
        assert_eq!(bytes(12_345), "12.3 KB");
        assert_eq!(bytes(999_999), "1.0 MB");
        assert!(bytes(u64::MAX).ends_with(" TB"));
    }

    #[test]
    fn names() {
        assert_eq!(short_id("0199c1b2-5a77-7c3e-8a01-9e3f5f2c9a1e"), "5f2c9a1e");
        assert_eq!(short_id("abc"), "abc");
        assert_eq!(signal(9), "SIGKILL");
        assert_eq!(signal(u32::MAX), format!("signal {}", u32::MAX));
        assert_eq!(errno(2), "ENOENT: No such file or directory");
        assert_eq!(errno(99_999), "errno 99999");
    }
}
