//! Tables for people: columns as wide as what is in them, two spaces apart. Pure.

use super::{colour, human, say::Look};

/// Space between columns.
const GAP: usize = 2;
/// What is never cut to let other columns be seen: a job's id, which people copy.
const WHOLE: usize = 36;

/// A column: its title, and the side that its cells stand on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Column {
    /// Text.
    Left(&'static str),
    /// Numbers and ages.
    Right(&'static str),
    /// At the left, too; a word that tells a state, which may have a colour.
    State(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Left(title) | Self::Right(title) | Self::State(title) => title,
        }
    }
}

/// A table that is written page by page: the title stands once, and columns never get narrower.
#[derive(Debug)]
pub(super) struct Table {
    columns: &'static [Column],
    widths: Vec<usize>,
    look: Look,
    titled: bool,
}

impl Table {
    /// A table whose lines are cut at the width. What may be long belongs into the last column.
    pub(super) fn new(columns: &'static [Column], look: Look) -> Self {
        let widths = columns.iter().map(|column| column.title().len()).collect();
        Self { columns, widths, look, titled: false }
    }

    /// The next rows as lines. A row has a cell for each column, on one line each.
    pub(super) fn page(&mut self, rows: &[Vec<String>]) -> String {
        let rows: Vec<Vec<String>> = rows.iter().map(|row| self.bounded(row)).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        if !self.titled {
            self.titled = true;
            let titles: Vec<String> = self.columns.iter().map(|column| column.title().to_owned()).collect();
            self.line(&titles, false, &mut text);
        }
        for row in &rows {
            self.line(row, self.look.colours, &mut text);
        }
        text
    }

    /// A row of which no text takes more than half of the width, so that one long name does not hide what stands after
    /// it; the last column ends where the width does.
    fn bounded(&self, row: &[String]) -> Vec<String> {
        let most = self.look.width.map(|width| (width / 2).max(WHOLE));
        let last = self.columns.len().saturating_sub(1);
        let bounded = |(index, cell): (usize, &String)| match (self.columns.get(index), most) {
            (Some(Column::Left(_)), Some(most)) if index < last => human::cut(cell, most),
            _ => cell.clone(),
        };
        row.iter().enumerate().map(bounded).collect()
    }

    fn line(&self, cells: &[String], with_colours: bool, into: &mut String) {
        let mut line = String::new();
        // The word that has a colour, and where it stands.
        let mut state = None;
        for ((column, width), cell) in self.columns.iter().zip(&self.widths).zip(cells) {
            if !line.is_empty() {
                line.push_str(&" ".repeat(GAP));
            }
            match column {
                Column::Left(_) => line.push_str(&format!("{cell:<width$}")),
                Column::Right(_) => line.push_str(&format!("{cell:>width$}")),
                Column::State(_) => {
                    state = colour::painted(cell).map(|painted| (line.len(), cell.len(), painted));
                    line.push_str(&format!("{cell:<width$}"));
                }
            }
        }
        let line = line.trim_end();
        let mut shown = self.look.width.map_or_else(|| line.to_owned(), |width| human::cut(line, width));
        if let Some((at, length, painted)) = state.filter(|_| with_colours) {
            // A word that was cut stays as it is.
            if shown.get(at..at + length) == line.get(at..at + length) {
                shown.replace_range(at..at + length, &painted);
            }
        }
        into.push_str(&shown);
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
        let mut table = Table::new(COLUMNS, Look::default());
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
        let mut table = Table::new(COLUMNS, Look { width: Some(12), colours: false });
        assert_eq!(
            table.page(&[row(["echo", "1", "long note"])]),
            "KIND  N  NOTE\n".replace("NOTE", "NO…") + "echo  1  lo…\n"
        );
    }

    #[test]
    fn on_a_terminal_a_long_name_leaves_room_for_the_rest() {
        let long = "x".repeat(300);
        let page =
            |width| Table::new(COLUMNS, Look { width, colours: false }).page(&[row([&long, "7", "note"])]);
        for (width, name) in [(Some(80), 39), (Some(100), 49), (Some(60), 35)] {
            assert_eq!(page(width).lines().last(), Some(format!("{}…  7  note", "x".repeat(name)).as_str()));
        }
        assert!(
            page(None).contains(&format!("{long}  7  note")),
            "whoever reads it by a program gets all of it"
        );
    }

    #[test]
    fn states_are_painted_and_stand_where_they_stood() {
        const COLUMNS: &[Column] = &[Column::Left("ID"), Column::State("STATUS"), Column::Left("NOTE")];
        let rows = [["1", "dead", "x"], ["2", "queued", "y"]].map(|row| row.map(str::to_owned).to_vec());
        let page = |width| Table::new(COLUMNS, Look { width, colours: true }).page(&rows);
        assert_eq!(page(None), "ID  STATUS  NOTE\n1   \u{1b}[31mdead\u{1b}[0m    x\n2   queued  y\n");
        assert_eq!(page(Some(6)), "ID  S…\n1   d…\n2   q…\n");
    }

    #[test]
    fn values_stand_below_each_other() {
        let fields =
            [("id", "1".to_owned()), ("status", "dead".to_owned()), ("args", "{\n  1\n}".to_owned())];
        assert_eq!(block(&fields), "id      1\nstatus  dead\nargs    {\n          1\n        }\n");
    }
}
