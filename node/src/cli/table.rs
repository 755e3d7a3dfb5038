//! Tables for people: no lines, two blanks between columns, colour only on a terminal.

use std::io::{self, IsTerminal as _};

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

/// Width where the terminal does not say.
const WIDTH_DEFAULT: u16 = 100;

/// How a column is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Rows under headings.
#[derive(Debug)]
pub(super) struct Sheet {
    table: Table,
    columns: Vec<Align>,
}

impl Sheet {
    /// Columns with their headings; wraps at `width`, or never.
    pub(super) fn new(columns: &[(&str, Align)], width: Option<u16>) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        match width {
            Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
            None => table.set_content_arrangement(ContentArrangement::Disabled),
        };
        let alignments: Vec<Align> = columns.iter().map(|(_, align)| *align).collect();
        table.set_header(columns.iter().map(|(heading, align)| cell(heading, *align)));
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Self { table, columns: alignments }
    }

    pub(super) fn row<S: AsRef<str>>(&mut self, cells: &[S]) {
        let cells = cells.iter().zip(&self.columns).map(|(text, align)| cell(text.as_ref(), *align));
        self.table.add_row(cells.collect::<Vec<Cell>>());
    }

    /// The table, each line without blanks at its end.
    pub(super) fn render(&self) -> String {
        self.table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

fn cell(text: &str, align: Align) -> Cell {
    Cell::new(text).set_alignment(match align {
        Align::Left => CellAlignment::Left,
        Align::Right => CellAlignment::Right,
    })
}

/// The width to fit: `COLUMNS` when it is set and sensible, else 100.
pub(super) fn width() -> u16 {
    width_of(std::env::var("COLUMNS").ok().as_deref())
}

fn width_of(columns: Option<&str>) -> u16 {
    columns.and_then(|text| text.parse().ok()).filter(|width| (40..=500).contains(width)).unwrap_or(WIDTH_DEFAULT)
}

/// Colours states in `text` when stdout is a terminal and `NO_COLOR` is not set.
pub(super) fn coloured(text: String) -> String {
    if io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) {
        paint(&text)
    } else {
        text
    }
}

/// Colours words that tell a state; the words say the same without colour.
fn paint(text: &str) -> String {
    let mut painted = String::with_capacity(text.len() + 64);
    for piece in text.split_inclusive([' ', '\n', ',']) {
        let word = piece.trim_end_matches([' ', '\n', ',']);
        let colour = match word {
            "alive" | "up" | "ok" | "ready" => "32",
            "suspect" | "joining" | "draining" | "starting" | "conflict" => "33",
            "dead" | "out" | "failing" => "31",
            _ => {
                painted.push_str(piece);
                continue;
            }
        };
        let rest = piece.get(word.len()..).unwrap_or_default();
        painted.push_str(&format!("\u{1b}[{colour}m{word}\u{1b}[0m{rest}"));
    }
    painted
}

/// Seconds as people say them: `850ms`, `12s`, `4m`, `3h`, `9d`.
pub(super) fn age(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    match seconds {
        s if s < 1.0 => format!("{:.0}ms", s * 1e3),
        s if s < 120.0 => format!("{s:.0}s"),
        s if s < 7_200.0 => format!("{:.0}m", s / 60.0),
        s if s < 172_800.0 => format!("{:.0}h", s / 3_600.0),
        s => format!("{:.0}d", s / 86_400.0),
    }
}

/// Milliseconds with as many digits as mean something.
pub(super) fn millis(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.2}ms") } else { format!("{ms:.1}ms") }
}

/// Bytes as people say them.
pub(super) fn bytes(count: u64) -> String {
    bytesize::ByteSize::b(count).display().iec_short().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_wrap_within_the_width() {
        let mut sheet = Sheet::new(&[("NAME", Align::Left), ("N", Align::Right), ("WHY", Align::Left)], Some(40));
        sheet.row(&["a", "100", "short"]);
        sheet.row(&["bcd", "7", "a reason that is much too long for one line of this table"]);
        let text = sheet.render();
        assert!(text.starts_with("NAME    N  WHY\na     100  short\nbcd     7  a reason"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
        assert!(text.lines().count() > 3, "{text}");
    }

    #[test]
    fn the_width_is_what_the_terminal_says_within_reason() {
        for (columns, expected) in [(None, 100), (Some("80"), 80), (Some("7"), 100), (Some("wide"), 100)] {
            assert_eq!(width_of(columns), expected, "{columns:?}");
        }
    }

    #[test]
    fn states_are_coloured_and_nothing_else() {
        assert_eq!(paint("a  alive  x\n"), "a  \u{1b}[32malive\u{1b}[0m  x\n");
        assert_eq!(paint("deadline of groups\n"), "deadline of groups\n");
    }

    #[test]
    fn ages_read_well() {
        for (seconds, expected) in [
            (0.0, "0ms"),
            (0.85, "850ms"),
            (12.2, "12s"),
            (240.0, "4m"),
            (10_800.0, "3h"),
            (777_600.0, "9d"),
            (-1.0, "0ms"),
        ] {
            assert_eq!(age(seconds), expected, "{seconds}");
        }
    }
}
