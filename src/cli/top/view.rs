//! How it looks. Pure: what is seen onto a frame of any size.

use std::time::Duration;

use ratatui::{
    Frame,
    buffer::Buffer,
    layout::Rect,
    style::{Color, Modifier, Style},
    text::Line,
};

use super::{
    grid::{self, Column, left, right},
    state::{Panel, State},
};
use crate::cli::human::{age, count, one_line, rate};

const QUEUES: [Column; 12] = [
    left("QUEUE", 0),
    right("READY", 0),
    right("RUNNING", 1),
    right("OLDEST", 1),
    right("DRAIN", 2),
    right("DEAD", 1),
    right("RETRYING", 3),
    right("SCHEDULED", 4),
    right("IN/S", 2),
    right("OUT/S", 2),
    right("WORKERS", 3),
    left("STATE", 2),
];
const WORKERS: [Column; 6] = [
    left("WORKER", 0),
    right("RUNNING", 0),
    right("WAITING", 2),
    right("AGE", 1),
    left("VERSION", 3),
    left("QUEUES", 2),
];
const FAILURES: [Column; 6] = [
    left("KIND", 0),
    left("STATUS", 1),
    right("ATTEMPT", 3),
    right("AGO", 1),
    left("QUEUE", 2),
    left("ERROR", 0),
];

const KEYS: &str = "q quit  p pause  tab panel  ↑↓ row  s sort  ? help";
const HELP: [&str; 9] = [
    "q, Esc, Ctrl-C   end",
    "p, space         pause the view, and go on with what is seen then",
    "tab, ← →         the next panel",
    "↑ ↓, PgUp PgDn   the marked row",
    "s                sort the panel by something else",
    "?                this help",
    "",
    "RUNNING of a worker: jobs that run, of how many could. WAITING: taken ahead.",
    "DRAIN: until READY is worked off if nothing arrives. OLDEST: waits for so long.",
];

/// A line and how it looks.
type Styled = (String, Style);

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, state: &mut State) {
    let area = frame.area();
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    let mut lines = head(state, width);
    let room = height.saturating_sub(lines.len() + 1);
    if state.is_help {
        lines.extend(HELP.iter().map(|line| ((*line).to_owned(), Style::new())));
    } else {
        lines.extend(body(state, width, room));
    }
    lines.truncate(height.saturating_sub(1));
    lines.resize(height.saturating_sub(1), (String::new(), Style::new()));
    lines.push(foot(state));
    for (row, (text, style)) in (area.y..area.bottom()).zip(lines) {
        frame.render_widget(Line::styled(text, style), Rect { y: row, height: 1, ..area });
    }
}

/// So many lines show all of it.
pub(super) fn height(state: &State, width: u16) -> u16 {
    let head = head(state, usize::from(width)).len();
    let rows = state.queues().len() + state.workers().len() + state.failures().len();
    u16::try_from(head + rows + 3 * FRAME + 1).unwrap_or(u16::MAX)
}

/// What a buffer holds, without styles and without the last line, which is for keys.
pub(super) fn text(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width).max(1);
    let lines = buffer.content.chunks(width).map(|cells| {
        let line: String = cells.iter().map(|cell| cell.symbol()).collect();
        line.trim_end().to_owned() + "\n"
    });
    let lines: Vec<String> = lines.collect();
    let shown = &lines[..lines.len().saturating_sub(1)];
    shown.concat().trim_end().to_owned() + "\n"
}

/// The server, and all of it in numbers.
fn head(state: &State, width: usize) -> Vec<Styled> {
    let at = state.at().text();
    let clock = at.split('T').nth(1).and_then(|time| time.split('.').next()).unwrap_or_default().to_owned();
    let how =
        if state.is_paused { "paused".to_owned() } else { format!("every {}", age_or_ms(state.every())) };
    let title = format!("hopline top  {}  {clock}Z  {how}", one_line(&state.server));
    let colour = if state.is_paused { Style::new().fg(Color::Yellow) } else { Style::new() };
    let mut lines = vec![(title, colour.add_modifier(Modifier::BOLD))];
    lines.extend(wrapped(&numbers(state), width).into_iter().map(|line| (line, Style::new())));
    lines
}

fn age_or_ms(span: Duration) -> String {
    if span < Duration::from_secs(1) { format!("{}ms", span.as_millis()) } else { age(span) }
}

fn numbers(state: &State) -> Vec<String> {
    let Some(seen) = state.seen() else { return vec!["nothing was seen yet".to_owned()] };
    let sum = |part: fn(&crate::cli::queues::Queue) -> u64| seen.queues.iter().map(part).sum::<u64>();
    let per_second = |part: fn(&crate::cli::queues::Queue) -> f64| rate(seen.queues.iter().map(part).sum());
    let oldest = seen
        .queues
        .iter()
        .filter_map(|queue| queue.oldest_age)
        .fold(None, |most: Option<f64>, age| Some(most.map_or(age, |most| most.max(age))));
    let busy = seen.workers.iter().filter(|worker| worker.running() > 0).count();
    let slots: u64 = seen.workers.iter().map(|worker| worker.concurrency()).sum();
    let running: u64 = seen.workers.iter().map(|worker| worker.running()).sum();
    vec![
        format!("in {}/s", per_second(|queue| queue.arrival_rate)),
        format!("out {}/s", per_second(|queue| queue.service_rate)),
        format!("ready {}", sum(|queue| queue.ready.unwrap_or_default())),
        format!("running {}", sum(|queue| queue.running)),
        format!("scheduled {}", sum(|queue| queue.scheduled)),
        format!("retrying {}", sum(|queue| queue.retrying)),
        format!("dead {}", sum(|queue| queue.dead)),
        format!("oldest {}", oldest.map_or_else(|| "-".to_owned(), span)),
        format!("{}: {busy} busy, {running}/{slots}", count(seen.workers.len() as u64, "worker")),
    ]
}

/// Words, two spaces apart, on as many lines as it takes.
fn wrapped(words: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 2 + word.chars().count() <= width => {
                line.push_str("  ");
                line.push_str(word);
            }
            _ => lines.push(word.clone()),
        }
    }
    lines
}

fn span(seconds: f64) -> String {
    age(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// The keys, or what is wrong.
fn foot(state: &State) -> Styled {
    match &state.trouble {
        Some(trouble) => (one_line(trouble), Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)),
        None => (KEYS.to_owned(), Style::new().add_modifier(Modifier::DIM)),
    }
}

/// Lines of a panel besides its rows: an empty one, its title, the titles of its columns.
const FRAME: usize = 3;
/// Fewest rows of a panel that is worth being shown beside others.
const FEW: usize = 2;

/// The panels: all of them where there is room, else the one in focus.
fn body(state: &mut State, width: usize, room: usize) -> Vec<Styled> {
    let tables = Panel::ALL.map(|panel| (panel, rows(state, panel)));
    let shares = shares(&tables.each_ref().map(|(_, rows)| rows.len()), state.focus as usize, room);
    let mut lines = Vec::new();
    for ((panel, rows), share) in tables.into_iter().zip(shares) {
        if let Some(share) = share {
            lines.extend(panel_lines(state, panel, &rows, width, share));
        }
    }
    lines
}

/// How many rows each panel shows: as many as it has, or less where there is no room; `None`: it is not shown.
fn shares(rows: &[usize; 3], focus: usize, room: usize) -> [Option<usize>; 3] {
    if room < 3 * (FRAME + FEW) {
        let mut shares = [None; 3];
        shares[focus] = Some(room.saturating_sub(FRAME));
        return shares;
    }
    let mut left = room - 3 * FRAME;
    let mut shares = rows.map(|rows| rows.min(FEW));
    left -= shares.iter().sum::<usize>();
    // One row each in turn, the panel in focus twice.
    let mut turn = [focus, 0, 1, 2].into_iter().cycle();
    while left > 0 && shares.iter().zip(rows).any(|(share, rows)| share < rows) {
        if let Some(panel) = turn.next().filter(|panel| shares[*panel] < rows[*panel]) {
            shares[panel] += 1;
            left -= 1;
        }
    }
    shares.map(Some)
}

/// A row's cells, and how it looks.
struct Row {
    cells: Vec<String>,
    style: Style,
}

fn panel_lines(state: &mut State, panel: Panel, rows: &[Row], width: usize, share: usize) -> Vec<Styled> {
    let (name, columns): (_, &[Column]) = match panel {
        Panel::Queues => ("Queues", &QUEUES),
        Panel::Workers => ("Workers", &WORKERS),
        Panel::Failures => ("Failures", &FAILURES),
    };
    let in_focus = state.focus == panel;
    let marked = state.marked(panel, rows.len());
    // The marked row is always among those shown.
    let first = (marked + 1).saturating_sub(share.max(1));
    let sign = if in_focus { "▸" } else { " " };
    let title = format!("{sign} {name} {}, by {}", rows.len(), state.order(panel));
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let cells: Vec<Vec<String>> = rows.iter().map(|row| row.cells.clone()).collect();
    // Of all rows, so that columns stay where they are while one scrolls.
    let mut table = grid::lines(columns, &cells, width).into_iter();
    let titles = table.next().unwrap_or_default();
    let mut lines = vec![
        (String::new(), Style::new()),
        (title, if in_focus { bold.fg(Color::Cyan) } else { bold }),
        (titles, Style::new().add_modifier(Modifier::DIM)),
    ];
    let shown = table.zip(rows).enumerate().skip(first).take(share);
    lines.extend(shown.map(|(index, (text, row))| {
        let is_marked = in_focus && index == marked;
        (text, if is_marked { row.style.add_modifier(Modifier::REVERSED) } else { row.style })
    }));
    lines
}

fn rows(state: &State, panel: Panel) -> Vec<Row> {
    let plain = Style::new();
    let now = state.at();
    match panel {
        Panel::Queues => {
            let row = |queue: &&crate::cli::queues::Queue| {
                let [
                    name,
                    ready,
                    running,
                    scheduled,
                    retrying,
                    dead,
                    oldest,
                    arrivals,
                    services,
                    drain,
                    workers,
                    paused,
                ] = queue.row();
                let style =
                    match (queue.paused, queue.workers.is_empty() && queue.ready.unwrap_or_default() > 0) {
                        (true, _) => plain.fg(Color::Yellow),
                        (false, true) => plain.fg(Color::Red),
                        _ => plain,
                    };
                let cells = vec![
                    name, ready, running, oldest, drain, dead, retrying, scheduled, arrivals, services,
                    workers, paused,
                ];
                Row { cells, style }
            };
            state.queues().iter().map(row).collect()
        }
        Panel::Workers => {
            let row = |worker: &&crate::cli::workers::Worker| {
                let [name, version, age, running, waiting, queues, _] = worker.row(now);
                let style = if worker.running() > 0 { plain.fg(Color::Green) } else { plain };
                Row { cells: vec![name, running, waiting, age, version, queues], style }
            };
            state.workers().iter().map(row).collect()
        }
        Panel::Failures => {
            let row = |job: &&crate::cli::shown::Job| {
                let [_, kind, queue, status, attempt, _, _] = job.row(now);
                let ago =
                    job.failed_at().map_or_else(|| "-".to_owned(), |at| crate::cli::human::ago(at, now));
                let style = if job.status == "dead" { plain.fg(Color::Red) } else { plain.fg(Color::Yellow) };
                Row { cells: vec![kind, status, attempt, ago, queue, job.error_line()], style }
            };
            state.failures().iter().map(row).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::cli::top::{seen::Seen, state::tests::seen};

    fn state(seen: Seen) -> State {
        let mut state = State::new("http://127.0.0.1:8080/", Duration::from_secs(2));
        state.see(seen);
        state
    }

    fn drawn(state: &mut State, width: u16, height: u16) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        terminal.backend().buffer().clone()
    }

    #[test]
    fn a_usual_terminal_shows_all_of_it() {
        let mut state = state(seen());
        let shown = text(&drawn(&mut state, 80, 24));
        assert_eq!(
            shown,
            "\
hopline top  http://127.0.0.1:8080/  00:05:00Z  every 2s
in 10.5/s  out 30.0/s  ready 122  running 8  scheduled 3  retrying 1  dead 9
oldest 4m  2 workers: 1 busy, 8/20

▸ Queues 2, by ready
QUEUE    READY  RUNNING  OLDEST  DRAIN  DEAD  RETRYING  IN/S  OUT/S  STATE
media      120        8      4s     4s     2         1  10.5   30.0  paused
default      2        0      4m      -     7         0     0      0

  Workers 2, by running
WORKER     RUNNING  WAITING  AGE  VERSION  QUEUES
busy@host     8/10        3   1m  0.1.0    media
idle@host     0/10        0   5m  0.1.0    media

  Failures 2, by time
KIND             STATUS    ATTEMPT  AGO  QUEUE    ERROR
demo.flaky       retrying        1  10s  default  error: not yet
image.thumbnail  dead          5/5   4m  media    no_such_file: none.jpg
"
        );
    }

    #[test]
    fn a_narrow_one_shows_what_matters_and_a_low_one_the_panel_in_focus() {
        let mut state = state(seen());
        let shown = text(&drawn(&mut state, 40, 12));
        assert!(
            shown.contains("QUEUE    READY  RUNNING  OLDEST  DEAD\nmedia      120        8      4s     2"),
            "{shown}"
        );
        assert!(!shown.contains("Workers"), "{shown}");
        state.key(KeyEvent::new(KeyCode::Tab, KeyModifiers::NONE));
        let shown = text(&drawn(&mut state, 40, 12));
        assert!(shown.contains("▸ Workers 2") && !shown.contains("Queues"), "{shown}");
    }

    #[test]
    fn the_marked_row_is_in_sight() {
        let one = seen().queues.remove(0);
        let queues = (0..500).map(|number| {
            let mut queue = one.clone();
            queue.queue = format!("q{number:03}");
            queue
        });
        let mut state = state(Seen { queues: queues.collect(), ..seen() });
        for _ in 0..30 {
            state.key(KeyEvent::new(KeyCode::PageDown, KeyModifiers::NONE));
        }
        let buffer = drawn(&mut state, 80, 24);
        let reversed = buffer.content.iter().filter(|cell| cell.modifier.contains(Modifier::REVERSED));
        assert_eq!(reversed.map(|cell| cell.symbol()).take(4).collect::<String>(), "q300");
    }

    #[test]
    fn no_size_is_too_small_and_nothing_is_too_much() {
        let many = Seen {
            failures: std::iter::repeat_with(seen).take(50).flat_map(|seen| seen.failures).collect(),
            ..seen()
        };
        for seen in [many, Seen { queues: Vec::new(), workers: Vec::new(), failures: Vec::new(), ..seen() }] {
            for help in [false, true] {
                let mut state = state(seen.clone());
                state.is_help = help;
                state.trouble("the server is gone".to_owned());
                for width in [1, 2, 7, 20, 40, 79, 200] {
                    for height in 1..40 {
                        drawn(&mut state, width, height);
                    }
                }
            }
        }
    }

    #[test]
    fn trouble_and_pause_are_told() {
        let mut state = state(seen());
        state.key(KeyEvent::new(KeyCode::Char('p'), KeyModifiers::NONE));
        state.trouble("no answer\u{1b}[2J".to_owned());
        let buffer = drawn(&mut state, 80, 24);
        let all: String = buffer.content.iter().map(|cell| cell.symbol()).collect();
        assert!(
            all.contains("paused") && all.contains("no answer\u{fffd}[2J") && !all.contains("q quit"),
            "{all}"
        );
    }

    #[test]
    fn a_printed_frame_has_every_row() {
        let many: Vec<_> = std::iter::repeat_with(seen).take(30).flat_map(|seen| seen.failures).collect();
        let mut state = state(Seen { failures: many, ..seen() });
        let height = height(&state, 120);
        let shown = text(&drawn(&mut state, 120, height));
        assert_eq!(shown.matches("demo.flaky").count(), 30, "{shown}");
        assert!(!shown.contains("q quit"), "{shown}");
    }
}
