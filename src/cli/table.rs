//! Tables for people: columns as wide as what is in them, two spaces apart. Pure.

use super::human;

/// Space between columns.
const GAP: usize = 2;

/// A column: its title, and the side that its cells stand on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Column {
    /// Text.
    Left(&'static str),
    /// Numbers and ages.
    Right(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Left(title) | Self::Right(title) => title,
        }
    }
}

/// A table that is written page by page: the title stands once, and columns never get narrower.
#[derive(Debug)]
pub(super) struct Table {
    columns: &'static [Column],
    widths: Vec<usize>,
    /// Longest line.
    limit: Option<usize>,
    titled: bool,
}

impl Table {
    /// A table whose lines are cut at `limit` characters. What may be long belongs into the last column.
    pub(super) fn new(columns: &'static [Column], limit: Option<usize>) -> Self {
        let widths = columns.iter().map(|column| column.title().len()).collect();
        Self { columns, widths, limit, titled: false }
    }

    /// The next rows as lines. A row has a cell for each column, on one line each.
    pub(super) fn page(&mut self, rows: &[Vec<String>]) -> String {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        if !self.titled {
            self.titled = true;
            let titles: Vec<String> = self.columns.iter().map(|column| column.title().to_owned()).collect();
            self.line(&titles, &mut text);
        }
        for row in rows {
            self.line(row, &mut text);
        }
        text
    }

    fn line(&self, cells: &[String], into: &mut String) {
        let mut line = String::new();
        for ((column, width), cell) in self.columns.iter().zip(&self.widths).zip(cells) {
            if !line.is_empty() {
                line.push_str(&" ".repeat(GAP));
            }
            match column {
                Column::Left(_) => line.push_str(&format!("{cell:<width$}")),
                Column::Right(_) => line.push_str(&format!("{cell:>width$}")),
            }
        }
        let line = line.trim_end();
        match self.limit {
            Some(limit) => into.push_str(&human::cut(line, limit)),
            None => into.push_str(line),
        }
        into.push('\n');
    }
}

/// Lines of a name and a value, the values below each other. Values of several lines are indented alike.
pub(super) fn block(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for (name, value) in fields {
        for (index, line) in value.lines().enumerate() {
            let name = if index == 0 { *name } else { "" };
            text.push_str(format!("{name:<width$}  {line}").trim_end());
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[Column::Left("KIND"), Column::Right("N"), Column::Left("NOTE")];

    fn row(cells: [&str; 3]) -> Vec<String> {
        cells.map(str::to_owned).to_vec()
    }

    #[test]
    fn columns_fit_what_is_in_them() {
        let mut table = Table::new(COLUMNS, None);
        let rows = [row(["image.thumbnail", "7", "größer"]), row(["echo", "1200", ""])];
        assert_eq!(
            table.page(&rows),
            "KIND                N  NOTE\n\
             image.thumbnail     7  größer\n\
             echo             1200\n"
        );
        assert_eq!(table.page(&[row(["x", "1", "y"])]), "x                   1  y\n", "the next page");
    }

    #[test]
    fn lines_are_cut_at_the_limit() {
        let mut table = Table::new(COLUMNS, Some(12));
        assert_eq!(
            table.page(&[row(["echo", "1", "long note"])]),
            "KIND  N  NOTE\n".replace("NOTE", "NO…") + "echo  1  lo…\n"
        );
    }

    #[test]
    fn values_stand_below_each_other() {
        let fields =
            [("id", "1".to_owned()), ("status", "dead".to_owned()), ("args", "{\n  1\n}".to_owned())];
        assert_eq!(block(&fields), "id      1\nstatus  dead\nargs    {\n          1\n        }\n");
    }
}
