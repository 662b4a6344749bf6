//! The newest events, read once for all who follow the log: a thousand streams would else each find, read and write every
//! event for themselves.
//!
//! What is known is kept while somebody follows, up to [`KEPT_BYTES`]; who is behind that reads the record itself. Not
//! here: the tags of jobs, which only the record knows.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Mutex;

use super::{
    model::{Position, Scope, StoredEvent, Stretch},
    reader::{RecordError, Shared},
};
use crate::{
    event::{EventType, batch},
    job::{Kind, QueueName},
};

/// Most bytes that are kept, about.
const KEPT_BYTES: usize = 16 << 20;
/// Events that are read at once.
const PIECE: usize = 500;
/// Most events that one question looks at: as long as that the others wait.
const LOOKED_MAX: usize = 2_000;
/// What an event takes beside its JSON, about.
const BESIDE: usize = 160;

/// An event as followers get it: without args and output.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) position: Position,
    pub(crate) what: EventType,
    pub(crate) queue: Option<QueueName>,
    pub(crate) kind: Option<Kind>,
    /// The CloudEvent, without line breaks.
    pub(crate) json: String,
}

impl Told {
    pub(crate) fn of(stored: &StoredEvent) -> Self {
        let StoredEvent { position, event } = stored;
        let json = batch::encode_one(&event.public());
        Self {
            position: *position,
            what: event.event_type,
            queue: event.data.queue.clone(),
            kind: event.data.kind.clone(),
            // JSON is UTF-8.
            json: String::from_utf8(json).unwrap_or_default(),
        }
    }

    fn size(&self) -> usize {
        self.json.len() + BESIDE
    }

    /// Whether it is of this scope, but for its job and its tags.
    fn is_of(&self, scope: &Scope) -> bool {
        let is_of_queue = scope.queue.is_none() || scope.queue == self.queue;
        is_of_queue && (scope.kind.is_none() || scope.kind == self.kind)
    }
}

/// A stretch of the log, as [`Stretch`].
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) events: Vec<Arc<Told>>,
    pub(crate) searched: Position,
    pub(crate) first: Position,
    pub(crate) tail: Position,
}

/// The newest events of a record.
#[derive(Debug, Default)]
pub(super) struct Latest {
    ring: Mutex<Ring>,
    followers: AtomicUsize,
}

#[derive(Debug, Default)]
struct Ring {
    /// All events behind this position, up to `reached`, are here; none: nothing is.
    from: Option<Position>,
    reached: Position,
    /// Before this position events are missing in the record.
    first: Position,
    events: VecDeque<Arc<Told>>,
    bytes: usize,
}

impl Ring {
    fn begin(tail: Position) -> Self {
        Self { from: Some(tail), reached: tail, ..Self::default() }
    }

    fn holds(&self, after: Position) -> bool {
        self.from.is_some_and(|from| from <= after)
    }

    fn take(&mut self, stretch: &Stretch) {
        (self.reached, self.first) = (stretch.searched, stretch.first);
        for stored in &stretch.events {
            let told = Told::of(stored);
            self.bytes += told.size();
            self.events.push_back(Arc::new(told));
        }
        while self.bytes > KEPT_BYTES
            && let Some(oldest) = self.events.pop_front()
        {
            self.bytes -= oldest.size();
            self.from = Some(oldest.position);
        }
    }

    /// Where the events behind `after` begin.
    fn behind(&self, after: Position) -> usize {
        self.events.partition_point(|told| told.position <= after)
    }

    fn piece(&self, scope: &Scope, after: Position, limit: usize, tail: Position) -> Piece {
        let (mut events, mut searched, mut looked) = (Vec::new(), after, 0);
        let mut following = self.events.range(self.behind(after)..);
        while events.len() < limit
            && looked < LOOKED_MAX
            && let Some(told) = following.next()
        {
            if told.is_of(scope) {
                events.push(Arc::clone(told));
            }
            (searched, looked) = (told.position, looked + 1);
        }
        if following.next().is_none() {
            searched = searched.max(self.reached);
        }
        Piece { events, searched, first: self.first, tail }
    }
}

/// Somebody who follows the log. While there is one, what is new is kept.
pub(crate) struct Follower(Arc<Shared>);

impl Follower {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        shared.latest.followers.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }

    /// Events of `scope` after `after`, in the order of the log, at most `limit`; where few fit, they may be few or none
    /// before the tail is reached.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(crate) async fn events(
        &self,
        scope: &Scope,
        after: Position,
        limit: usize,
    ) -> Result<Piece, RecordError> {
        if scope.job.is_none()
            && scope.tag.is_none()
            && let Some(piece) = self.latest(scope, after, limit).await?
        {
            return Ok(piece);
        }
        let asked = scope.clone();
        let Stretch { events, searched, first, tail } =
            self.0.read(move |store| store.events(&asked, after, limit)).await?;
        let events = events.iter().map(|stored| Arc::new(Told::of(stored))).collect();
        Ok(Piece { events, searched, first, tail })
    }

    /// `None`: what follows `after` is not kept.
    async fn latest(
        &self,
        scope: &Scope,
        after: Position,
        limit: usize,
    ) -> Result<Option<Piece>, RecordError> {
        // For as long as a read takes: who waits needs what is read.
        let mut ring = self.0.latest.ring.lock().await;
        let tail = *self.0.tail.borrow();
        // The first follower; or another log, or the record is rebuilt.
        if ring.from.is_none() || tail < ring.reached {
            *ring = Ring::begin(tail);
        }
        if tail < after || !ring.holds(after) {
            return Ok(None);
        }
        if after > ring.reached {
            // What lies between is nobody's who is as far as this: a record that is being rebuilt has much of that.
            *ring = Ring::begin(after);
        }
        while ring.reached < tail && ring.events.len() - ring.behind(after) < limit {
            let reached = ring.reached;
            let stretch = self.0.read(move |store| store.events(&Scope::default(), reached, PIECE)).await?;
            if stretch.tail < reached {
                *ring = Ring::default();
                return Ok(None);
            }
            ring.take(&stretch);
        }
        Ok(ring.holds(after).then(|| ring.piece(scope, after, limit, tail)))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let Latest { ring, followers } = &self.0.latest;
        if followers.fetch_sub(1, Ordering::Relaxed) == 1
            && let Ok(mut ring) = ring.try_lock()
        {
            *ring = Ring::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{event::Event, job::Envelope};

    fn at(offset: u64, index: u16) -> Position {
        Position { offset, index }
    }

    /// Events of jobs in these queues at `offset`, and a barrier behind them.
    fn stretch(offset: u64, queues: &[&str], length: usize) -> Stretch {
        let events = queues.iter().zip(0..).map(|(queue, index)| {
            let (kind, queue) = (Kind::parse("demo.echo").unwrap(), QueueName::parse(*queue).unwrap());
            let envelope = Envelope::new(kind, queue, bytes::Bytes::from_static(b"{}"));
            let source = "x".repeat(length);
            let event = Event::of(EventType::Submitted, &envelope, &source, Timestamp::UNIX_EPOCH);
            StoredEvent { position: at(offset, index), event }
        });
        let tail = at(offset + 1, 0);
        Stretch { events: events.collect(), searched: tail, first: Position::default(), tail }
    }

    fn seen(piece: &Piece) -> Vec<Position> {
        piece.events.iter().map(|told| told.position).collect()
    }

    #[test]
    fn pieces_are_what_follows_in_order_and_say_how_far_they_go() {
        let mut ring = Ring::begin(at(4, 0));
        ring.take(&stretch(5, &["a", "b", "a"], 1));
        ring.take(&stretch(7, &["a"], 1));
        assert!(ring.holds(at(4, 0)) && ring.holds(at(99, 0)) && !ring.holds(at(3, 9)));
        let (all, tail) = (Scope::default(), at(9, 9));
        let only_a = Scope { queue: QueueName::parse("a").ok(), ..Scope::default() };
        let other = Scope { kind: Kind::parse("other").ok(), ..Scope::default() };
        for (scope, after, limit, events, searched) in [
            (&all, at(4, 0), 9, vec![at(5, 0), at(5, 1), at(5, 2), at(7, 0)], at(8, 0)),
            (&all, at(4, 0), 2, vec![at(5, 0), at(5, 1)], at(5, 1)),
            (&all, at(5, 1), 2, vec![at(5, 2), at(7, 0)], at(8, 0)),
            (&all, at(6, 0), 9, vec![at(7, 0)], at(8, 0)),
            (&all, at(8, 0), 9, vec![], at(8, 0)),
            (&all, at(8, 5), 9, vec![], at(8, 5)),
            (&only_a, at(4, 0), 2, vec![at(5, 0), at(5, 2)], at(5, 2)),
            (&other, at(4, 0), 2, vec![], at(8, 0)),
        ] {
            let piece = ring.piece(scope, after, limit, tail);
            assert_eq!(
                (seen(&piece), piece.searched, piece.tail),
                (events, searched, tail),
                "{after} {limit}"
            );
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_says_where_it_begins() {
        let mut ring = Ring::begin(at(0, 0));
        for offset in 1..40 {
            ring.take(&stretch(offset, &["a"], 1 << 20));
        }
        assert!(ring.bytes <= KEPT_BYTES && ring.events.len() < 20);
        let from = ring.from.unwrap();
        assert!(!ring.holds(at(from.offset - 1, 0)));
        let piece = ring.piece(&Scope::default(), from, 100, at(41, 0));
        assert_eq!(seen(&piece).first(), Some(&at(from.offset + 1, 0)), "nothing is left out");
        assert_eq!(piece.events.len(), ring.events.len());
    }
}
