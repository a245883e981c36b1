//! Tables that fit a terminal.
//!
//! What does not fit is shortened, the widest column first, and never without a mark; `--output json` has all of it.

use super::text::{WIDTH, printable, shortened};

/// Between two columns.
const GAP: &str = "  ";

/// A table; each of its rows may have notes below it.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Row>,
}

/// How a column is called, and which side its cells are on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    Left(&'static str),
    Right(&'static str),
}

#[derive(Debug)]
struct Row {
    cells: Vec<String>,
    note: Vec<String>,
}

impl Table {
    pub(super) fn new(columns: &[Column]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.row_with(cells, []);
    }

    /// The parts of the note stand below the row, indented.
    pub(super) fn row_with<const N: usize, const M: usize>(
        &mut self,
        cells: [String; N],
        note: [String; M],
    ) {
        let harmless = |parts: &[String]| parts.iter().map(|part| printable(part)).collect();
        self.rows.push(Row {
            cells: harmless(&cells),
            note: harmless(&note),
        });
    }

    /// The lines, without a newline at the end.
    pub(super) fn text(&self) -> String {
        let heads: Vec<String> = self.columns.iter().map(|column| column.name()).collect();
        let mut widths: Vec<usize> = heads.iter().map(|head| head.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(&row.cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        fit(&mut widths, WIDTH);
        let mut lines = vec![self.line(&heads, &widths)];
        for row in &self.rows {
            lines.push(self.line(&row.cells, &widths));
            if !row.note.is_empty() {
                let mut widths: Vec<usize> =
                    row.note.iter().map(|part| part.chars().count()).collect();
                fit(&mut widths, WIDTH - GAP.len());
                let parts = row.note.iter().zip(widths);
                let parts: Vec<_> = parts.map(|(part, width)| shortened(part, width)).collect();
                lines.push(format!("{GAP}{}", parts.join(GAP)));
            }
        }
        lines.join("\n")
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let cells = cells.iter().zip(widths).zip(&self.columns);
        let cells = cells.map(|((cell, &width), column)| {
            let cell = shortened(cell, width);
            match column {
                Column::Left(_) => format!("{cell:width$}"),
                Column::Right(_) => format!("{cell:>width$}"),
            }
        });
        let line = cells.collect::<Vec<_>>().join(GAP);
        line.trim_end().to_owned()
    }
}

impl Column {
    fn name(self) -> String {
        let (Self::Left(name) | Self::Right(name)) = self;
        name.to_owned()
    }
}

/// Makes the widest narrower until all fit into `room`.
fn fit(widths: &mut [usize], room: usize) {
    let gaps = GAP.len() * widths.len().saturating_sub(1);
    let room = room.saturating_sub(gaps);
    for width in &mut *widths {
        *width = (*width).min(room);
    }
    while widths.iter().sum::<usize>() > room {
        // The first of the widest: of equal ones, names lose before what explains them.
        let Some(widest) = widths.iter().copied().max().filter(|width| *width > 1) else {
            return;
        };
        if let Some(width) = widths.iter_mut().find(|width| **width == widest) {
            *width -= 1;
        }
    }
}

/// What a limit has left out, if it has.
pub(super) fn left_out(count: usize) -> String {
    match count {
        0 => String::new(),
        _ => format!("\n{count} more are not shown: see --limit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_fits_whatever_the_mesh_says() {
        let long = "x".repeat(300);
        let hostile = format!("shop/\u{1b}[2J{long}\r\n\u{202e}end");
        let mut table = Table::new(&[
            Column::Left("POD"),
            Column::Left("ADDRESSES"),
            Column::Left("NODE"),
            Column::Right("BYTES"),
        ]);
        table.row(["shop/web", "10.0.0.1", "one", "1.0 KiB"].map(str::to_owned));
        let hostile = [&*hostile, &long, &long, "9.9 KiB"].map(str::to_owned);
        table.row_with(hostile.clone(), hostile);
        let text = table.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        for line in &lines {
            assert!(line.chars().count() <= WIDTH, "{line}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
            assert!(!line.contains('\u{202e}'), "{line:?}");
        }
        for line in &lines[2..] {
            assert_eq!(line.matches('…').count(), 3, "{line}");
            assert!(line.contains("end") && line.contains("shop/"), "{line}");
            assert!(line.ends_with("9.9 KiB"), "what is short is whole: {line}");
        }
        assert!(lines[1].starts_with("shop/web "), "{text}");
        assert!(lines[1].ends_with("1.0 KiB"), "{text}");
    }

    #[test]
    fn columns_are_as_wide_as_they_have_to_be() {
        let mut table = Table::new(&[Column::Left("POD"), Column::Right("N"), Column::Left("X")]);
        table.row(["shop/web", "12", ""].map(str::to_owned));
        assert_eq!(table.text(), "POD        N  X\nshop/web  12");
    }
}
