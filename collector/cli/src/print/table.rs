//! Tables: aligned columns without lines. On a terminal a row is one line, shortened with `…`; into a pipe it is whole.

use std::io;

use comfy_table::{Attribute, Cell, CellAlignment, ColumnConstraint, ContentArrangement, Row, presets};

use super::{Printer, Style};

/// One column.
pub struct Column {
    /// Heading.
    pub title: &'static str,
    /// How it is laid out.
    pub layout: Layout,
}

/// How a column is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Never shortened.
    Whole,
    /// Never shortened, aligned to the right.
    Number,
    /// Gives way where the terminal is narrow.
    Flexible,
}

/// A table being filled.
pub struct Table {
    table: comfy_table::Table,
    fitted: bool,
}

impl Table {
    /// An empty table for this output.
    pub fn new<'a>(printer: &Printer, columns: impl IntoIterator<Item = &'a Column>) -> Self {
        let columns: Vec<&Column> = columns.into_iter().collect();
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_truncation_indicator("…");
        // Cut anywhere: a text that ends at its last whole word wastes the room that is there.
        table.set_delimiter('\0');
        table.force_no_tty();
        if printer.color {
            table.enforce_styling();
        }
        if let Some(width) = printer.width() {
            table.set_content_arrangement(ContentArrangement::Dynamic);
            table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
        }
        let mut header = Row::from(columns.iter().map(|c| Cell::new(c.title).add_attribute(Attribute::Dim)));
        header.max_height(1);
        table.set_header(header);
        for (index, column) in columns.iter().enumerate() {
            if let Some(cells) = table.column_mut(index) {
                // Two spaces between columns, none before the first.
                cells.set_padding((0, 2));
                if column.layout != Layout::Flexible {
                    cells.set_constraint(ColumnConstraint::ContentWidth);
                }
                if column.layout == Layout::Number {
                    cells.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Self { table, fitted: printer.width().is_some() }
    }

    /// Adds a row. The texts must be harmless already.
    pub fn row(&mut self, cells: impl IntoIterator<Item = (String, Option<Style>)>) {
        let mut row = Row::from(cells.into_iter().map(|(text, style)| cell(text, style)));
        if self.fitted {
            row.max_height(1);
        }
        self.table.add_row(row);
    }

    /// Prints it.
    pub fn print(&self, printer: &mut Printer) -> io::Result<()> {
        for line in self.table.lines() {
            printer.line(line.trim_end())?;
        }
        Ok(())
    }
}

fn cell(text: String, style: Option<Style>) -> Cell {
    let cell = Cell::new(text);
    match style {
        None => cell,
        Some(Style::Dim) => cell.add_attribute(Attribute::Dim),
        Some(Style::Bold | Style::Match) => cell.add_attribute(Attribute::Bold),
        Some(Style::Good) => cell.fg(comfy_table::Color::DarkGreen),
        Some(Style::Warn) => cell.fg(comfy_table::Color::DarkYellow),
        Some(Style::Bad) => cell.fg(comfy_table::Color::DarkRed),
    }
}
