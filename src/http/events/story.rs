//! One job's events as a stream, in the order of its life.
//!
//! The log has them in another order at times: several processes write about one job. So what is sent is ordered by
//! [`Event::rank`](crate::event::Event::rank), an event that comes when later ones were sent is left out, and before the
//! last one, and before one whose `submitted` is missing, the record catches up once. The stream ends with the final
//! event of the latest run. Where a client goes on follows from the id of what it had last and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};

use super::Found;
use crate::{
    event::{EventType, Rank},
    http::{
        App,
        ending::CATCH_UP,
        problem::Problem,
        sse::{Frame, Frames, KEEP_ALIVE},
    },
    job::JobId,
    record::{
        JobWatch, RecordError,
        latest::Told,
        model::{Position, Scope, StoredEvent, Stretch, Summary},
    },
};

/// Events that are sent at once.
const PIECE: usize = 200;
/// Most events that a stream holds for its client; what lies behind them is read again when they are sent.
const AHEAD: usize = 1_000;
/// From news to reading them: they often come several at a time.
const PAUSE: Duration = Duration::from_millis(50);

/// Where an event stands in the story.
type Place = (Rank, Position);

fn place(stored: &StoredEvent) -> Place {
    (stored.event.rank(), stored.position)
}

/// What a client was told that had the event at `last`: that and all before it. If it is none of these events,
/// whatever the log had up to there.
fn told_by(events: &[StoredEvent], last: Position) -> Option<Place> {
    let exact = events.iter().find(|stored| stored.position == last);
    exact.map(place).or_else(|| events.iter().filter(|stored| stored.position < last).map(place).max())
}

/// A job's life as far as it is known: what is still to be told of it, in order.
#[derive(Debug, Default)]
struct Story {
    /// The last event that was told; what belongs before it comes too late.
    told: Option<Place>,
    /// What follows.
    next: BTreeMap<Place, StoredEvent>,
    /// More follows behind that, which was not kept: it is to be learned again.
    more: bool,
    /// Runs whose beginning is known.
    begun: BTreeSet<u32>,
    /// The last event known, and whether a run ends with it.
    last: Option<(Place, bool)>,
}

impl Story {
    fn new(told: Option<Place>, events: Vec<StoredEvent>) -> Self {
        let mut story = Self { told, ..Self::default() };
        story.learn(events);
        story
    }

    /// Takes in events, known ones among them.
    fn learn(&mut self, events: Vec<StoredEvent>) {
        for stored in events {
            let (place, what) = (place(&stored), stored.event.event_type);
            if what == EventType::Submitted {
                self.begun.insert(stored.event.data.run);
            }
            self.last = self.last.max(Some((place, what.is_final())));
            if self.told < Some(place) {
                self.next.insert(place, stored);
            }
        }
        while self.next.len() > AHEAD {
            self.next.pop_last();
            self.more = true;
        }
    }

    /// Tells what comes next, at most so many.
    fn tell(&mut self, most: usize) -> Vec<StoredEvent> {
        let mut piece = Vec::new();
        while piece.len() < most
            && let Some((place, stored)) = self.next.pop_first()
        {
            self.told = Some(place);
            piece.push(stored);
        }
        piece
    }

    /// Whether the latest run has ended.
    fn ended(&self) -> bool {
        self.last.is_some_and(|(_, ends)| ends)
    }

    /// Whether all that is known was told.
    fn is_told(&self) -> bool {
        self.next.is_empty() && !self.more
    }

    /// Whether what follows may be told as it is: its runs' beginnings are known, and it is not the end.
    fn is_whole(&self) -> bool {
        !self.ended() && self.next.values().all(|stored| self.begun.contains(&stored.event.data.run))
    }
}

/// A stream of a job's events.
pub(super) struct StoryStream {
    app: App,
    id: JobId,
    watch: JobWatch,
    story: Story,
    /// Up to here the log was read for it.
    seen: Position,
    /// The last event that was known when the record had caught up.
    settled: Option<Place>,
    /// What is to be said of a gap first.
    frames: Frames,
    /// Whether the end was sent.
    over: bool,
    spoken: Instant,
}

impl StoryStream {
    /// The stream of a job from where the client goes on; none: there is nothing more to come.
    ///
    /// # Errors
    /// The problem, when the record cannot be read.
    pub(super) async fn open(app: &App, job: &Summary, at: Option<Found>) -> Result<Option<Self>, Problem> {
        let watch = app.record.watch_job(job.id);
        let (seen, events) = all(app, job.id).await.map_err(|error| Problem::record(&error))?;
        let mut frames = Frames::default();
        let told = match at {
            // The story is told from its beginning.
            Some(Found { last: Some(last), beyond: true, .. }) => {
                frames.gap(last, Position::default());
                None
            }
            Some(Found { last: Some(last), .. }) => told_by(&events, last),
            _ => None,
        };
        let story = Story::new(told, events);
        let over = story.is_told() && (story.ended() || job.status.is_final());
        let stream = Self {
            app: app.clone(),
            id: job.id,
            watch,
            story,
            seen,
            settled: None,
            frames,
            over: false,
            spoken: Instant::now(),
        };
        Ok((!over).then_some(stream))
    }

    async fn read(&mut self) -> Option<Frames> {
        loop {
            self.learn().await.ok()?;
            if self.story.next.is_empty() {
                if !self.frames.is_empty() {
                    return Some(std::mem::take(&mut self.frames));
                }
                if !self.news().await {
                    let mut frames = Frames::default();
                    frames.keep_alive(None);
                    return Some(frames);
                }
                sleep(PAUSE).await;
                continue;
            }
            let last = self.story.last.map(|(place, _)| place);
            if !self.story.is_whole() && self.settled != last {
                self.settled = last;
                // Late or not at all: then it is told as it is known.
                let _ = self.app.record.catch_up(Instant::now() + CATCH_UP).await;
                continue;
            }
            let mut frames = std::mem::take(&mut self.frames);
            self.story.tell(PIECE).iter().for_each(|stored| frames.event(&Told::of(stored)));
            self.over = self.story.ended() && self.story.is_told();
            return Some(frames);
        }
    }

    /// Reads what was not read yet: a job that tells its progress each second for hours has thousands of events.
    async fn learn(&mut self) -> Result<(), RecordError> {
        loop {
            if self.story.more {
                return if self.story.next.is_empty() { self.learn_all().await } else { Ok(()) };
            }
            let scope = Scope { job: Some(self.id), ..Scope::default() };
            let Stretch { events, searched, tail, .. } =
                self.app.record.events(scope, self.seen, AHEAD).await?;
            if tail < self.seen {
                // The record was begun anew.
                return self.learn_all().await;
            }
            self.seen = searched;
            self.story.learn(events);
            if searched >= tail {
                return Ok(());
            }
        }
    }

    async fn learn_all(&mut self) -> Result<(), RecordError> {
        let (seen, events) = all(&self.app, self.id).await?;
        (self.seen, self.story.more) = (seen, false);
        self.story.learn(events);
        Ok(())
    }

    /// Waits for news of the job; false: it is time for a sign of life.
    async fn news(&mut self) -> bool {
        tokio::select! {
            () = self.watch.changed() => true,
            () = sleep_until(self.spoken + KEEP_ALIVE) => false,
        }
    }
}

/// All events of a job, and up to where at least that goes: what is applied meanwhile is read twice.
async fn all(app: &App, id: JobId) -> Result<(Position, Vec<StoredEvent>), RecordError> {
    let seen = *app.record.tail().borrow();
    Ok((seen, app.record.job_events(id).await?))
}

impl Frame for StoryStream {
    async fn next(&mut self) -> Option<Frames> {
        if self.over {
            return None;
        }
        let shared = Arc::clone(&self.app.0);
        let frames = tokio::select! {
            biased;
            () = shared.stopping.begun.cancelled() => None,
            frames = self.read() => frames,
        };
        self.spoken = Instant::now();
        frames
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{event::Event, http::answer::tests::envelope};

    fn stored(event_type: EventType, run: u32, step: u32, offset: u64) -> StoredEvent {
        let mut envelope = envelope("{}");
        (envelope.run, envelope.step) = (run, step);
        let event = Event::of(event_type, &envelope, "test", jiff::Timestamp::UNIX_EPOCH);
        StoredEvent { position: Position { offset, index: 0 }, event }
    }

    fn names<'a>(events: impl IntoIterator<Item = &'a StoredEvent>) -> Vec<&'static str> {
        events.into_iter().map(|stored| stored.event.event_type.as_str()).collect()
    }

    fn at(offset: u64) -> Position {
        Position { offset, index: 0 }
    }

    /// What a client is told that had the event at `last`.
    fn after(events: &[StoredEvent], last: Option<Position>) -> Vec<&'static str> {
        let told = last.and_then(|last| told_by(events, last));
        names(Story::new(told, events.to_vec()).next.values())
    }

    /// A life whose events came in an order of their own.
    fn life() -> Vec<StoredEvent> {
        use EventType::{Dead, Retrying, Started, Submitted, Succeeded};
        vec![
            stored(Succeeded, 2, 0, 9),
            stored(Started, 1, 0, 1),
            stored(Submitted, 1, 0, 2),
            stored(Dead, 1, 1, 4),
            stored(Retrying, 1, 0, 5),
            stored(Submitted, 2, 0, 7),
        ]
    }

    #[test]
    fn a_story_is_told_in_order_and_goes_on_after_any_of_its_events() {
        let life = life();
        let order = ["submitted", "started", "retrying", "dead", "submitted", "succeeded"];
        assert_eq!(after(&life, None), order);
        let mut story = Story::new(None, life.clone());
        assert!(story.ended() && !story.is_told());
        let told = story.tell(100);
        assert!(story.ended() && story.is_told());
        for (index, stored) in told.iter().enumerate() {
            assert_eq!(after(&life, Some(stored.position)), order[index + 1..], "after {}", stored.position);
        }
    }

    #[test]
    fn an_id_that_is_not_of_the_story_stands_for_all_before_it() {
        let life = life();
        assert_eq!(after(&life, Some(at(0))).len(), 6);
        // The log had `dead` by then: what ranks below it was told, or is left out.
        assert_eq!(after(&life, Some(at(6))), ["submitted", "succeeded"]);
        assert!(after(&life, Some(at(99))).is_empty());
    }

    #[test]
    fn the_end_of_a_run_that_was_replayed_is_no_end() {
        let mut events = life();
        events.retain(|stored| stored.event.event_type != EventType::Succeeded);
        assert!(!Story::new(None, events.clone()).ended());
        assert_eq!(after(&events, Some(at(4))), ["submitted"], "goes on after the first run's end");
    }

    #[test]
    fn a_final_event_that_was_replaced_is_followed_by_the_truth() {
        use EventType::{DeliveryLost, Submitted, Succeeded};
        let lost = vec![stored(Submitted, 1, 0, 1), stored(DeliveryLost, 1, 0, 2)];
        let mut story = Story::new(None, lost.clone());
        story.tell(2);
        let truth = vec![stored(Succeeded, 1, 0, 3)];
        assert_eq!(after(&[lost, truth.clone()].concat(), Some(at(2))), ["succeeded"]);
        story.learn(truth);
        assert_eq!(names(&story.tell(2)), ["succeeded"]);
    }

    #[test]
    fn ends_and_missing_beginnings_wait_for_the_log() {
        use EventType::{Started, Submitted, Succeeded};
        let story = |events: &[&StoredEvent]| Story::new(None, events.iter().copied().cloned().collect());
        let (begin, run, end) =
            (stored(Submitted, 1, 0, 3), stored(Started, 1, 0, 1), stored(Succeeded, 1, 0, 2));
        assert!(story(&[&begin, &run]).is_whole());
        assert!(!story(&[&run]).is_whole(), "no beginning");
        assert!(!story(&[&begin, &run, &end]).is_whole(), "the end");
        // A beginning that was told already counts.
        let mut told = story(&[&begin]);
        told.tell(1);
        told.learn(vec![run]);
        assert!(told.is_whole() && !told.next.is_empty());
    }

    #[test]
    fn a_long_story_is_held_in_part_and_told_whole() {
        let mut life = vec![stored(EventType::Submitted, 1, 0, 0)];
        life.extend((1..3_000).map(|offset| stored(EventType::Progress, 1, 0, offset)));
        life.push(stored(EventType::Succeeded, 1, 0, 3_000));
        let (mut story, mut heard) = (Story::new(None, life.clone()), Vec::new());
        while !story.is_told() {
            assert!(story.ended() && story.next.len() <= AHEAD);
            if story.next.is_empty() {
                story.more = false;
                story.learn(life.clone());
            }
            heard.extend(story.tell(PIECE).iter().map(|stored| stored.position));
        }
        assert_eq!(heard, life.iter().map(|stored| stored.position).collect::<Vec<_>>());
    }

    proptest! {
        /// Whatever order the log has, and wherever a stream is cut: no event twice, none out of order, and the end. A
        /// stream that is not cut, and reads only what is new, tells the same.
        #[test]
        fn cut_anywhere_it_goes_on(
            order in Just((0..6_u64).collect::<Vec<_>>()).prop_shuffle(),
            known in proptest::collection::vec(1..7_usize, 1..5),
        ) {
            use EventType::{Retrying, Scheduled, Started, Submitted, Succeeded};
            let types = [(Submitted, 0), (Started, 0), (Retrying, 0), (Started, 1), (Scheduled, 1), (Succeeded, 2)];
            let mut all: Vec<_> =
                types.iter().zip(&order).map(|((event, step), at)| stored(*event, 1, *step, *at)).collect();
            all.sort_by_key(|stored| stored.position);
            let mut known = known;
            known.sort_unstable();
            known.push(all.len());
            let (mut heard, mut uncut): (Vec<StoredEvent>, Vec<StoredEvent>) = (Vec::new(), Vec::new());
            let (mut long, mut seen) = (Story::default(), 0);
            for count in known {
                // Each time another replica, which knows so much of the log.
                let told = heard.last().and_then(|last| told_by(&all[..count], last.position));
                heard.extend(Story::new(told, all[..count].to_vec()).tell(100));
                long.learn(all[seen..count].to_vec());
                uncut.extend(long.tell(100));
                seen = count;
            }
            prop_assert!(heard.windows(2).all(|pair| place(&pair[0]) < place(&pair[1])), "{:?}", names(&heard));
            prop_assert_eq!(heard.last().map(|last| last.event.event_type), Some(Succeeded));
            prop_assert_eq!(names(&uncut), names(&heard));
            prop_assert!(long.ended() && long.is_told());
        }
    }
}
