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
        sse::{Frame, Frames, KEEP_ALIVE},
    },
    record::{
        RecordError,
        model::{Position, Scope},
    },
};

/// Events that are read and sent at once.
const PIECE: usize = 200;
/// From news to reading them: every stream is woken by all that happens, so news are gathered.
const PAUSE: Duration = Duration::from_millis(50);

/// A stream of the log.
pub(super) struct LogStream {
    app: App,
    scope: Scope,
    /// Up to here everything was sent, or is of no concern.
    after: Position,
    /// What is to be said of a gap first.
    frames: Frames,
    tail: watch::Receiver<Position>,
    spoken: Instant,
}

impl LogStream {
    /// The stream of `scope` from where the client goes on.
    pub(super) fn new(app: &App, scope: Scope, at: Found) -> Self {
        let mut frames = Frames::default();
        let after = match at.last {
            Some(last) if at.beyond => {
                frames.gap(last, at.tail);
                at.tail
            }
            Some(last) => last,
            None => at.tail,
        };
        Self { app: app.clone(), scope, after, frames, tail: app.record.tail(), spoken: Instant::now() }
    }

    /// Reads until there is something to send; none: the record cannot be read now, and the client may come back.
    async fn read(&mut self) -> Option<Frames> {
        loop {
            let mut frames = std::mem::take(&mut self.frames);
            let tail = *self.tail.borrow_and_update();
            let record = &self.app.record;
            let (events, searched) =
                record.events(self.scope.clone(), self.after, PIECE).await.inspect_err(log).ok()?;
            // After reading, because what is read meanwhile may be forgotten meanwhile.
            let first = record.first().await.inspect_err(log).ok()?;
            if let Some(next) = missing(self.after, first) {
                frames.gap(self.after, next);
                self.after = next;
            }
            for stored in events.iter().filter(|stored| stored.position > self.after) {
                frames.event(stored);
            }
            let moved = searched > self.after;
            self.after = self.after.max(searched);
            if !frames.is_empty() {
                return Some(frames);
            }
            // Else this was a long stretch without an event of this scope, and there is more.
            if !moved || self.after >= tail {
                if !self.news().await {
                    frames.keep_alive(Some(self.after));
                    return Some(frames);
                }
                sleep(PAUSE).await;
            }
        }
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
