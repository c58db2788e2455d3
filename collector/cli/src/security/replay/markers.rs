//! Lines put in between a terminal's output: what was typed, commands, gaps.

use anyhow::Result;
use breakglass_api::v1::{self, replay_item::Body};

use super::typed::Typed;
use crate::{
    print::{Printer, Style, counted, quote, safe, shorten},
    security::show::describe_gap,
};

/// Prints them, each on a line of its own.
pub(super) struct Markers {
    end_of_line: &'static str,
    at_line_start: bool,
    typed: Typed,
    typed_ns: i64,
}

impl Markers {
    /// Lines end as given: a terminal in raw mode needs its carriage return.
    pub(super) fn new(end_of_line: &'static str) -> Self {
        Self { end_of_line, at_line_start: true, typed: Typed::default(), typed_ns: 0 }
    }

    /// Whether the output before ended with a line end.
    pub(super) fn at_line_start(&mut self, is: bool) {
        self.at_line_start = is;
    }

    /// Prints what an item other than output says.
    pub(super) fn item(&mut self, printer: &mut Printer, item: &v1::ReplayItem) -> Result<()> {
        match &item.body {
            Some(Body::Input(input)) => {
                self.typed_ns = item.wall_ns;
                for line in self.typed.feed(&input.data) {
                    self.typed(printer, &line)?;
                }
                Ok(())
            }
            Some(Body::Withheld(withheld)) => {
                let text = format!("({} typed unseen)", counted(withheld.bytes, "byte"));
                self.print(printer, item.wall_ns, Style::Dim, "<", &text)
            }
            Some(Body::Command(command)) => self.command(printer, command),
            Some(Body::Gap(gap)) => self.print(printer, item.wall_ns, Style::Bad, "!", &describe_gap(gap)),
            Some(Body::Output(_) | Body::Stdio(_)) | None => Ok(()),
        }
    }

    /// Says that bytes are missing here.
    pub(super) fn missing(&mut self, printer: &mut Printer, wall_ns: i64, bytes: u64) -> Result<()> {
        self.print(printer, wall_ns, Style::Bad, "!", &format!("{} missing", counted(bytes, "byte")))
    }

    /// Prints what was typed without a Return.
    pub(super) fn end(&mut self, printer: &mut Printer) -> Result<()> {
        match self.typed.rest() {
            Some(line) => self.typed(printer, &line),
            None => Ok(()),
        }
    }

    fn typed(&mut self, printer: &mut Printer, line: &[u8]) -> Result<()> {
        self.print(printer, self.typed_ns, Style::Good, "<", &safe::text(line))
    }

    fn command(&mut self, printer: &mut Printer, command: &v1::Command) -> Result<()> {
        let Some(exec) = &command.exec else { return Ok(()) };
        self.print(printer, command.wall_ns, Style::Warn, "$", &quote::line(&exec.argv))
    }

    fn print(&mut self, printer: &mut Printer, wall_ns: i64, style: Style, mark: &str, text: &str) -> Result<()> {
        if !self.at_line_start {
            printer.raw(self.end_of_line.as_bytes())?;
        }
        self.at_line_start = true;
        let line = format!("{mark} {}  {text}", printer.zone().clock(wall_ns));
        let line = printer.width().map_or_else(|| line.clone(), |width| shorten(&line, width.saturating_sub(1)));
        let line = printer.paint(style, &line);
        printer.raw(line.as_bytes())?;
        Ok(printer.raw(self.end_of_line.as_bytes())?)
    }
}
