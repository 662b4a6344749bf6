//! What is looked at, and what keys do. Pure.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::seen::Seen;
use crate::cli::{human::At, queues::Queue, shown::Job, workers::Worker};

/// A part of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Panel {
    Queues,
    Workers,
    Failures,
}

impl Panel {
    pub(super) const ALL: [Self; 3] = [Self::Queues, Self::Workers, Self::Failures];

    fn index(self) -> usize {
        self as usize
    }

    /// What its rows may be in the order of, the first one at the start.
    pub(super) fn orders(self) -> &'static [&'static str] {
        match self {
            Self::Queues => &["ready", "oldest", "dead", "in/s", "name"],
            Self::Workers => &["running", "age", "name"],
            Self::Failures => &["time", "kind", "queue"],
        }
    }
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    GoOn,
    End,
}

#[derive(Debug, Clone)]
pub(super) struct State {
    /// The server's address.
    pub(super) server: String,
    every: Duration,
    seen: Option<Arc<Seen>>,
    /// What came while the view was paused.
    later: Option<Arc<Seen>>,
    /// Why the last look failed.
    pub(super) trouble: Option<String>,
    pub(super) is_paused: bool,
    pub(super) is_help: bool,
    pub(super) focus: Panel,
    order: [usize; 3],
    /// The row that is marked, in each panel.
    marked: [usize; 3],
}

impl State {
    pub(super) fn new(server: &str, every: Duration) -> Self {
        Self {
            server: server.to_owned(),
            every,
            seen: None,
            later: None,
            trouble: None,
            is_paused: false,
            is_help: false,
            focus: Panel::Queues,
            order: [0; 3],
            marked: [0; 3],
        }
    }

    pub(super) fn every(&self) -> Duration {
        self.every
    }

    /// The server has answered.
    pub(super) fn see(&mut self, seen: Seen) {
        self.trouble = None;
        let place = if self.is_paused { &mut self.later } else { &mut self.seen };
        *place = Some(Arc::new(seen));
    }

    /// The server has not.
    pub(super) fn trouble(&mut self, why: String) {
        self.trouble = Some(why);
    }

    pub(super) fn seen(&self) -> Option<&Seen> {
        self.seen.as_deref()
    }

    /// By what a panel's rows are in order.
    pub(super) fn order(&self, panel: Panel) -> &'static str {
        panel.orders()[self.order[panel.index()]]
    }

    /// The marked row of a panel that has so many.
    pub(super) fn marked(&mut self, panel: Panel, rows: usize) -> usize {
        let marked = &mut self.marked[panel.index()];
        *marked = (*marked).min(rows.saturating_sub(1));
        *marked
    }

    pub(super) fn key(&mut self, key: KeyEvent) -> Wish {
        if key.kind == KeyEventKind::Release {
            return Wish::GoOn;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if control => return Wish::End,
            KeyCode::Esc if self.is_help => self.is_help = false,
            KeyCode::Char('q') | KeyCode::Esc => return Wish::End,
            KeyCode::Char('?' | 'h') => self.is_help = !self.is_help,
            KeyCode::Char('p' | ' ') => self.pause(),
            KeyCode::Char('s') => {
                let order = &mut self.order[self.focus.index()];
                *order = (*order + 1) % self.focus.orders().len();
            }
            KeyCode::Tab | KeyCode::Right => self.turn(1),
            KeyCode::BackTab | KeyCode::Left => self.turn(Panel::ALL.len() - 1),
            KeyCode::Down | KeyCode::Char('j') => self.mark(|row| row.saturating_add(1)),
            KeyCode::Up | KeyCode::Char('k') => self.mark(|row| row.saturating_sub(1)),
            KeyCode::PageDown => self.mark(|row| row.saturating_add(10)),
            KeyCode::PageUp => self.mark(|row| row.saturating_sub(10)),
            KeyCode::Home => self.mark(|_| 0),
            KeyCode::End => self.mark(|_| usize::MAX),
            _ => {}
        }
        Wish::GoOn
    }

    fn pause(&mut self) {
        self.is_paused = !self.is_paused;
        if !self.is_paused {
            self.seen = self.later.take().or_else(|| self.seen.take());
        }
    }

    fn turn(&mut self, by: usize) {
        self.focus = Panel::ALL[(self.focus.index() + by) % Panel::ALL.len()];
    }

    fn mark(&mut self, to: impl FnOnce(usize) -> usize) {
        let marked = &mut self.marked[self.focus.index()];
        *marked = to(*marked);
    }

    /// The queues in order.
    pub(super) fn queues(&self) -> Vec<&Queue> {
        let mut queues: Vec<&Queue> = self.seen().iter().flat_map(|seen| &seen.queues).collect();
        queues.sort_by(|a, b| a.queue.cmp(&b.queue));
        match self.order(Panel::Queues) {
            "ready" => queues.sort_by_key(|queue| Reverse(queue.ready)),
            "dead" => queues.sort_by_key(|queue| Reverse(queue.dead)),
            "oldest" => descending(&mut queues, |queue| queue.oldest_age.unwrap_or(-1.0)),
            "in/s" => descending(&mut queues, |queue| queue.arrival_rate),
            _ => {}
        }
        queues
    }

    /// The workers in order.
    pub(super) fn workers(&self) -> Vec<&Worker> {
        let mut workers: Vec<&Worker> = self.seen().iter().flat_map(|seen| &seen.workers).collect();
        workers.sort_by(|a, b| a.worker.cmp(&b.worker));
        match self.order(Panel::Workers) {
            "running" => workers.sort_by_key(|worker| Reverse(worker.running())),
            "age" => workers.sort_by_key(|worker| worker.since),
            _ => {}
        }
        workers
    }

    /// The jobs that failed in order.
    pub(super) fn failures(&self) -> Vec<&Job> {
        let mut jobs: Vec<&Job> = self.seen().iter().flat_map(|seen| &seen.failures).collect();
        jobs.sort_by_key(|job| Reverse(job.failed_at()));
        match self.order(Panel::Failures) {
            "kind" => jobs.sort_by(|a, b| a.kind.cmp(&b.kind)),
            "queue" => jobs.sort_by(|a, b| a.queue.cmp(&b.queue)),
            _ => {}
        }
        jobs
    }

    /// When what is shown was seen.
    pub(super) fn at(&self) -> At {
        self.seen().map_or_else(At::now, |seen| seen.at)
    }
}

fn descending<T>(rows: &mut [&T], value: impl Fn(&T) -> f64) {
    rows.sort_by(|a, b| value(b).total_cmp(&value(a)));
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::api::read_json;

    /// A server with two queues, two workers and two jobs that failed.
    pub(in crate::cli::top) fn seen() -> Seen {
        fn read<T: serde::de::DeserializeOwned>(text: &str) -> T {
            read_json(text).unwrap()
        }
        Seen {
            at: "2030-01-01T00:05:00Z".parse().unwrap(),
            queues: read(
                r#"[{"queue":"default","ready":2,"running":0,"dead":7,"oldest_age":240.0,"workers":["w1"]},
                    {"queue":"media","ready":120,"running":8,"scheduled":3,"retrying":1,"dead":2,"oldest_age":4.2,
                     "arrival_rate":10.5,"service_rate":30.0,"time_to_drain":4.0,"workers":["w1","w2"],"paused":true}]"#,
            ),
            workers: read(
                r#"[{"worker":"idle@host","version":"0.1.0","since":"2030-01-01T00:00:00Z",
                     "queues":[{"queue":"media","concurrency":10,"running":0}]},
                    {"worker":"busy@host","version":"0.1.0","since":"2030-01-01T00:04:00Z",
                     "queues":[{"queue":"media","concurrency":10,"running":8,"waiting":3}]}]"#,
            ),
            failures: read(
                r#"[{"id":"j1","kind":"image.thumbnail","queue":"media","status":"dead","attempt":5,"max_attempts":5,
                     "finished_at":"2030-01-01T00:01:00Z","error":{"code":"no_such_file","message":"none.jpg"}},
                    {"id":"j2","kind":"demo.flaky","queue":"default","status":"retrying","attempt":1,
                     "started_at":"2030-01-01T00:04:50Z","error":{"code":"error","message":"not yet"}}]"#,
            ),
        }
    }

    fn press(state: &mut State, codes: &[KeyCode]) -> Wish {
        codes.iter().fold(Wish::GoOn, |_, code| state.key(KeyEvent::new(*code, KeyModifiers::NONE)))
    }

    #[test]
    fn s_takes_the_next_order_of_the_panel_in_focus() {
        let mut state = State::new("http://x", Duration::from_secs(2));
        state.see(seen());
        let names =
            |state: &State| state.queues().iter().map(|queue| queue.queue.clone()).collect::<Vec<_>>();
        assert_eq!(names(&state), ["media", "default"]);
        for (order, first) in [
            ("oldest", "default"),
            ("dead", "default"),
            ("in/s", "media"),
            ("name", "default"),
            ("ready", "media"),
        ] {
            press(&mut state, &[KeyCode::Char('s')]);
            assert_eq!((state.order(Panel::Queues), names(&state)[0].as_str()), (order, first));
        }
        assert_eq!(state.workers()[0].worker, "busy@host");
        press(&mut state, &[KeyCode::Tab, KeyCode::Char('s')]);
        assert_eq!((state.focus, state.workers()[0].worker.as_str()), (Panel::Workers, "idle@host"));
        assert_eq!(state.failures()[0].id, "j2", "the latest first");
        press(&mut state, &[KeyCode::BackTab, KeyCode::Left, KeyCode::Char('s')]);
        assert_eq!((state.focus, state.order(Panel::Failures)), (Panel::Failures, "kind"));
    }

    #[test]
    fn a_paused_view_stays_and_then_shows_the_latest() {
        let mut state = State::new("http://x", Duration::from_secs(2));
        state.see(seen());
        press(&mut state, &[KeyCode::Char('p')]);
        state.see(Seen { queues: Vec::new(), ..seen() });
        assert_eq!(state.queues().len(), 2);
        press(&mut state, &[KeyCode::Char('p')]);
        assert_eq!(state.queues().len(), 0);
        state.trouble("gone".to_owned());
        assert_eq!(
            (state.trouble.as_deref(), state.workers().len()),
            (Some("gone"), 2),
            "what was seen stays"
        );
        state.see(seen());
        assert_eq!(state.trouble, None);
    }

    #[test]
    fn keys_mark_rows_and_end_it() {
        let mut state = State::new("http://x", Duration::from_secs(2));
        press(&mut state, &[KeyCode::Down, KeyCode::Down, KeyCode::Down, KeyCode::Up]);
        assert_eq!(state.marked(Panel::Queues, 10), 2);
        press(&mut state, &[KeyCode::End, KeyCode::PageDown]);
        assert_eq!((state.marked(Panel::Queues, 10), state.marked(Panel::Queues, 0)), (9, 0));
        assert_eq!(
            press(&mut state, &[KeyCode::Char('?'), KeyCode::Esc]),
            Wish::GoOn,
            "Esc leaves the help first"
        );
        for code in [KeyCode::Char('q'), KeyCode::Esc] {
            assert_eq!(press(&mut state, &[code]), Wish::End);
        }
        let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(state.key(key), Wish::End);
    }
}
