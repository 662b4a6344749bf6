//! The log as a stream: all events of a scope, in the order of the log.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::Found;
use crate::{
    http::{
        App,
        access::Caller,
        sse::{Frame, Frames, KEEP_ALIVE},
    },
    record::{
        RecordError,
        latest::{Follower, Piece},
        model::{Position, Scope},
    },
};

/// Events that are read and sent at once.
const PIECE: usize = 200;
/// From news to reading them: every stream is woken by all that happens, so news are gathered.
const PAUSE: Duration = Duration::from_millis(50);
/// So much longer for each stream there is: together they read about 1,000 times a second at most, which leaves the
/// record's readers to others.
const PAUSE_EACH: Duration = Duration::from_millis(1);

/// A stream of the log.
pub(super) struct LogStream {
    app: App,
    follower: Follower,
    /// Who sees only the events of his queues.
    caller: Caller,
    scope: Scope,
    /// Up to here everything was sent, or is of no concern.
    after: Position,
    /// What is to be said of a gap first.
    frames: Frames,
    tail: watch::Receiver<Position>,
    /// Nothing more was known when it read last.
    is_current: bool,
    spoken: Instant,
}

impl LogStream {
    /// The stream of `scope` from where the client goes on.
    pub(super) fn new(app: &App, caller: Caller, scope: Scope, at: Found) -> Self {
        let mut frames = Frames::default();
        let after = match at.last {
            Some(last) if at.beyond => {
                frames.gap(last, at.tail);
                at.tail
            }
            Some(last) => last,
            None => at.tail,
        };
        let tail = app.record.tail();
        Self {
            app: app.clone(),
            follower: app.record.follower(),
            caller,
            scope,
            after,
            frames,
            tail,
            is_current: false,
            spoken: Instant::now(),
        }
    }

    /// Reads until there is something to send; none: the record cannot be read now, and the client may come back.
    async fn read(&mut self) -> Option<Frames> {
        loop {
            if self.is_current {
                if !self.news().await {
                    let mut frames = Frames::default();
                    frames.keep_alive(Some(self.after));
                    return Some(frames);
                }
                sleep(pause(self.app.streams_in_use())).await;
            }
            // What comes after this is news.
            self.tail.borrow_and_update();
            let reading = self.follower.events(&self.scope, self.after, PIECE);
            let Piece { events, searched, first, tail } = reading.await.inspect_err(log).ok()?;
            if tail < self.after {
                return Some(self.fall_back().await);
            }
            let mut frames = std::mem::take(&mut self.frames);
            if let Some(next) = missing(self.after, first) {
                frames.gap(self.after, next);
                self.after = next;
            }
            for told in events.iter().filter(|told| told.position > self.after) {
                if self.caller.sees_event(told) {
                    frames.event(told);
                }
            }
            self.after = self.after.max(searched);
            // Else there may be more, if only a long stretch without an event of this scope.
            self.is_current = searched >= tail;
            if !frames.is_empty() {
                return Some(frames);
            }
        }
    }

    /// The record ends before what was sent: it is rebuilt, and will be there again; or the log is another one, or has
    /// lost its end, and goes on from there.
    async fn fall_back(&mut self) -> Frames {
        let mut frames = std::mem::take(&mut self.frames);
        match self.app.caught_up().await {
            Ok(tail) if tail < self.after => {
                frames.gap(self.after, tail);
                self.after = tail;
            }
            // Nobody knows yet.
            _ => frames.keep_alive(None),
        }
        frames
    }

    /// Waits for the log to go on; false: it is time for a sign of life.
    async fn news(&mut self) -> bool {
        tokio::select! {
            changed = self.tail.changed() => changed.is_ok(),
            () = sleep_until(self.spoken + KEEP_ALIVE) => false,
        }
    }
}

impl Frame for LogStream {
    async fn next(&mut self) -> Option<Frames> {
        let begun = Arc::clone(&self.app.0);
        let frames = tokio::select! {
            biased;
            () = begun.stopping.begun.cancelled() => None,
            frames = self.read() => frames,
        };
        self.spoken = Instant::now();
        frames
    }
}

/// From news to reading them, with so many streams.
fn pause(streams: usize) -> Duration {
    PAUSE + PAUSE_EACH * u32::try_from(streams).unwrap_or(u32::MAX)
}

fn log(error: &RecordError) {
    tracing::debug!(%error, "an event stream ends");
}

/// Where a reader goes on who has read up to `after`, if events are missing from there up to `first`.
fn missing(after: Position, first: Position) -> Option<Position> {
    let next = before(first)?;
    (after < next).then_some(next)
}

/// The position before `position`; none before the first.
fn before(position: Position) -> Option<Position> {
    let Position { offset, index } = position;
    match (offset, index) {
        (0, 0) => None,
        (_, 0) => Some(Position { offset: offset - 1, index: u16::MAX }),
        _ => Some(Position { offset, index: index - 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_streams_together_read_no_more_than_a_thousand_times_a_second() {
        assert_eq!(pause(1), Duration::from_millis(51));
        for streams in [1_u32, 20, 1_000, 100_000] {
            let each = 1.0 / pause(streams as usize).as_secs_f64();
            assert!(each * f64::from(streams) < 1_000.0, "{streams}");
        }
    }

    #[test]
    fn a_gap_is_what_lies_before_the_first_position() {
        let at = |text: &str| text.parse::<Position>().unwrap();
        for (after, first, next) in [
            ("0.0", "0.0", None),
            ("7.3", "0.0", None),
            ("7.3", "7.3", None),
            ("7.2", "7.3", None),
            ("7.1", "7.3", Some("7.2")),
            ("7.65535", "8.0", None),
            ("6.1", "8.0", Some("7.65535")),
            ("9.0", "8.0", None),
        ] {
            assert_eq!(missing(at(after), at(first)), next.map(at), "{after} {first}");
        }
    }
}
