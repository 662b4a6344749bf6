//! A table that fits a width: what matters least is left out first. Pure.

use crate::cli::human::cut;

/// A column: its title, on which side its cells stand, and how much it matters, 0 most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) right: bool,
    pub(super) rank: u8,
}

/// Cells at the left.
pub(super) const fn left(title: &'static str, rank: u8) -> Column {
    Column { title, right: false, rank }
}

/// Cells at the right: numbers.
pub(super) const fn right(title: &'static str, rank: u8) -> Column {
    Column { title, right: true, rank }
}

const GAP: usize = 2;

/// The lines of a table, its titles first, each at most `width` characters long. No text takes more than half of that but
/// the last column's, so that one long name does not hide what stands after it.
pub(super) fn lines(columns: &[Column], rows: &[Vec<String>], width: usize) -> Vec<String> {
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| {
            let cells = rows.iter().filter_map(|row| row.get(index));
            let most = if column.right || index + 1 == columns.len() { usize::MAX } else { width / 2 };
            cells.map(|cell| cell.chars().count().min(most)).fold(column.title.len(), usize::max)
        })
        .collect();
    let shown = fitting(columns, &widths, width);
    let titles: Vec<String> = columns.iter().map(|column| column.title.to_owned()).collect();
    std::iter::once(&titles).chain(rows).map(|row| line(columns, &widths, &shown, row, width)).collect()
}

/// Which columns fit, by their index: those that matter least, and of these the last ones, go first. The last column of
/// rank 0 may be cut, and only its title must fit.
fn fitting(columns: &[Column], widths: &[usize], width: usize) -> Vec<usize> {
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let needed = |shown: &[usize]| -> usize {
        let last = shown.last().copied();
        let each = shown.iter().map(|&index| {
            let may_be_cut = Some(index) == last && !columns[index].right;
            GAP + if may_be_cut { columns[index].title.len() } else { widths[index] }
        });
        each.sum::<usize>().saturating_sub(GAP)
    };
    while shown.len() > 1 && needed(&shown) > width {
        let least = shown.iter().enumerate().max_by_key(|&(place, &index)| (columns[index].rank, place));
        match least {
            Some((place, &index)) if columns[index].rank > 0 => {
                shown.remove(place);
            }
            _ => break,
        }
    }
    shown
}

fn line(columns: &[Column], widths: &[usize], shown: &[usize], row: &[String], width: usize) -> String {
    let mut line = String::new();
    for &index in shown {
        if !line.is_empty() {
            line.push_str(&" ".repeat(GAP));
        }
        let wide = widths[index];
        let cell = row.get(index).map(|cell| cut(cell, wide)).unwrap_or_default();
        if columns[index].right {
            line.push_str(&format!("{cell:>wide$}"));
        } else {
            line.push_str(&format!("{cell:<wide$}"));
        }
    }
    cut(line.trim_end(), width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_least_goes_first() {
        let columns =
            [left("QUEUE", 0), right("READY", 0), right("IN/S", 2), right("DEAD", 1), left("NOTE", 3)];
        let rows = [["media", "12", "0.5", "3", "paused by eve"].map(str::to_owned).to_vec()];
        let shown = |width| lines(&columns, &rows, width).join("|");
        assert_eq!(shown(80), "QUEUE  READY  IN/S  DEAD  NOTE|media     12   0.5     3  paused by eve");
        assert_eq!(shown(30), "QUEUE  READY  IN/S  DEAD  NOTE|media     12   0.5     3  pau…");
        assert_eq!(shown(25), "QUEUE  READY  IN/S  DEAD|media     12   0.5     3");
        assert_eq!(shown(20), "QUEUE  READY  DEAD|media     12     3");
        assert_eq!(shown(12), "QUEUE  READY|media     12");
        assert_eq!(shown(8), "QUEUE  …|media  …");
        assert_eq!(shown(0), "…|…");
    }

    #[test]
    fn a_long_name_does_not_hide_the_rest() {
        let columns = [left("WORKER", 0), right("RUNNING", 0), right("AGE", 1), left("QUEUES", 2)];
        let row = |name: &str| [name, "8/10", "1m", "media"].map(str::to_owned).to_vec();
        let shown = lines(&columns, &[row(&"x".repeat(300)), row("w")], 80);
        assert_eq!(shown[1], format!("{}…     8/10   1m  media", "x".repeat(39)));
        assert_eq!(shown[2], format!("w{}     8/10   1m  media", " ".repeat(39)));
    }
}
