//! Text in aligned columns.

use std::fmt;

use owo_colors::{OwoColorize, Stream, Style};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Rows under a header; columns are as wide as their widest cell.
#[derive(Debug, Default)]
pub(crate) struct Table {
    header: Vec<(&'static str, Align)>,
    rows: Vec<Vec<Cell>>,
    /// Draws bars between columns, as Markdown does.
    markdown: bool,
}

/// On which side a column's cells begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A text and how it looks on a terminal.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

/// A longer cell is shortened: nobody reads a table of wider columns.
const WIDEST: usize = 64;

impl Table {
    /// A table for people.
    pub(crate) fn plain(header: &[(&'static str, Align)]) -> Self {
        Self {
            header: header.to_vec(),
            ..Self::default()
        }
    }

    /// A table for people that is Markdown, too.
    pub(crate) fn markdown(header: &[(&'static str, Align)]) -> Self {
        Self {
            markdown: true,
            ..Self::plain(header)
        }
    }

    /// Adds a row with a cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    fn widths(&self) -> Vec<usize> {
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let columns = self.header.iter().enumerate();
        columns
            .map(|(i, (name, _))| {
                let widest = cells(i).map(|cell| cell.text.width()).max();
                widest.unwrap_or(0).max(name.width())
            })
            .collect()
    }

    fn line(&self, cells: &[Cell], widths: &[usize]) -> String {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .zip(&self.header)
            .map(|((cell, width), (_, align))| {
                let gap = " ".repeat(width.saturating_sub(cell.text.width()));
                let text = cell.text.as_str();
                let text = text.if_supports_color(Stream::Stdout, |text| text.style(cell.style));
                match align {
                    Align::Left => format!("{text}{gap}"),
                    Align::Right => format!("{gap}{text}"),
                }
            })
            .collect();
        if self.markdown {
            format!("| {} |", padded.join(" | "))
        } else {
            padded.join("  ").trim_end().to_owned()
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        let faint = if self.markdown {
            Style::new()
        } else {
            Style::new().dimmed()
        };
        let names = self
            .header
            .iter()
            .map(|(name, _)| Cell::from(*name).with(faint));
        write!(f, "{}", self.line(&names.collect::<Vec<_>>(), &widths))?;
        if self.markdown {
            let rules = self
                .header
                .iter()
                .zip(&widths)
                .map(|((_, align), width)| match align {
                    Align::Left => "-".repeat(*width + 2),
                    Align::Right => format!("{}:", "-".repeat(*width + 1)),
                });
            write!(f, "\n|{}|", rules.collect::<Vec<_>>().join("|"))?;
        }
        for row in &self.rows {
            write!(f, "\n{}", self.line(row, &widths))?;
        }
        Ok(())
    }
}

impl Cell {
    /// The same text in another look.
    pub(crate) fn with(self, style: Style) -> Self {
        Self { style, ..self }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: shortened(printable(text.as_ref())),
            style: Style::new(),
        }
    }
}

/// A text with control characters as escapes: a phrase must not move the cursor.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars() {
        if letter.is_control() {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

fn shortened(text: String) -> String {
    if text.width() <= WIDEST {
        return text;
    }
    let mut width = 1;
    let fits = |letter: &char| {
        width += letter.width().unwrap_or(0);
        width <= WIDEST
    };
    let short: String = text.chars().take_while(fits).collect();
    format!("{short}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_what_is_seen() {
        let mut table = Table::plain(&[("phrase", Align::Left), ("area", Align::Right)]);
        table.row(["红色的圆".into(), "5".into()]);
        table.row(["the ring".into(), "1024".into()]);
        assert_eq!(
            table.to_string(),
            "phrase    area\n红色的圆     5\nthe ring  1024"
        );
    }

    #[test]
    fn markdown_says_on_which_side_columns_are() {
        let mut table = Table::markdown(&[("kind", Align::Left), ("cIoU", Align::Right)]);
        table.row(["none".into(), "9.5".into()]);
        assert_eq!(
            table.to_string(),
            "| kind | cIoU |\n|------|-----:|\n| none |  9.5 |"
        );
    }

    #[test]
    fn phrases_cannot_move_the_cursor_nor_fill_the_screen() {
        assert_eq!(Cell::from("a\u{1b}[2J").text, "a\\u{1b}[2J");
        assert_eq!(Cell::from("x".repeat(9000)).text.width(), WIDEST);
    }
}
