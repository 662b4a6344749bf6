//! One job's events as a stream, in the order of its life.
//!
//! The log has them in another order at times: several processes write about one job. So what is sent is ordered by
//! [`Event::rank`](crate::event::Event::rank), an event that comes when later ones were sent is left out, and before the
//! last one, and before one whose `submitted` is missing, the record catches up once. The stream ends with the final
//! event of the latest run. Where a client goes on follows from the id of what it had last and nothing else.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

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
        JobWatch,
        model::{Position, StoredEvent, Summary},
    },
};

/// Events that are sent at once.
const PIECE: usize = 200;

/// Where an event stands in the story.
type Place = (Rank, Position);

fn place(stored: &StoredEvent) -> Place {
    (stored.event.rank(), stored.position)
}

/// What is known of a job's life, in order.
#[derive(Debug)]
struct Story(Vec<StoredEvent>);

impl Story {
    fn new(mut events: Vec<StoredEvent>) -> Self {
        events.sort_by_key(place);
        Self(events)
    }

    /// Whether the latest run has ended.
    fn ended(&self) -> bool {
        self.0.last().is_some_and(|last| last.event.event_type.is_final())
    }

    /// What follows after `told`.
    fn after(&self, told: Option<Place>) -> &[StoredEvent] {
        let from = told.map_or(0, |told| self.0.partition_point(|stored| place(stored) <= told));
        &self.0[from..]
    }

    /// What a client was told that had the event at `last`: that and all before it. If it is none of this story,
    /// whatever the log had up to there.
    fn told(&self, last: Position) -> Option<Place> {
        let exact = self.0.iter().find(|stored| stored.position == last);
        exact.map(place).or_else(|| self.0.iter().filter(|stored| stored.position < last).map(place).max())
    }

    /// Whether what follows after `told` may be told as it is: its runs' beginnings are known, and it is not the end.
    fn is_whole(&self, told: Option<Place>) -> bool {
        let begins = |run: u32| {
            self.0
                .iter()
                .any(|stored| stored.event.event_type == EventType::Submitted && stored.event.data.run == run)
        };
        !self.ended() && self.after(told).iter().all(|stored| begins(stored.event.data.run))
    }
}

/// A stream of a job's events.
pub(super) struct StoryStream {
    app: App,
    id: JobId,
    watch: JobWatch,
    told: Option<Place>,
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
        let events = app.record.job_events(job.id).await.map_err(|error| Problem::record(&error))?;
        let story = Story::new(events);
        let mut frames = Frames::default();
        let told = match at {
            // The story is told from its beginning.
            Some(Found { last: Some(last), beyond: true, .. }) => {
                frames.gap(last, Position::default());
                None
            }
            Some(Found { last: Some(last), .. }) => story.told(last),
            _ => None,
        };
        let over = story.after(told).is_empty() && (story.ended() || job.status.is_final());
        let stream = Self {
            app: app.clone(),
            id: job.id,
            watch,
            told,
            settled: None,
            frames,
            over: false,
            spoken: Instant::now(),
        };
        Ok((!over).then_some(stream))
    }

    async fn read(&mut self) -> Option<Frames> {
        loop {
            let events = self.app.record.job_events(self.id).await.ok()?;
            let story = Story::new(events);
            let more = story.after(self.told);
            if more.is_empty() {
                if !self.frames.is_empty() {
                    return Some(std::mem::take(&mut self.frames));
                }
                if !self.news().await {
                    let mut frames = Frames::default();
                    frames.keep_alive(None);
                    return Some(frames);
                }
                continue;
            }
            let last = story.0.last().map(place);
            if !story.is_whole(self.told) && self.settled != last {
                self.settled = last;
                // Late or not at all: then it is told as it is known.
                let _ = self.app.record.catch_up(Instant::now() + CATCH_UP).await;
                continue;
            }
            let mut frames = std::mem::take(&mut self.frames);
            let piece = &more[..more.len().min(PIECE)];
            piece.iter().for_each(|stored| frames.event(stored));
            self.told = piece.last().map(place).or(self.told);
            self.over = story.ended() && piece.len() == more.len();
            return Some(frames);
        }
    }

    /// Waits for news of the job; false: it is time for a sign of life.
    async fn news(&mut self) -> bool {
        tokio::select! {
            () = self.watch.changed() => true,
            () = sleep_until(self.spoken + KEEP_ALIVE) => false,
        }
    }
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

    fn names(events: &[StoredEvent]) -> Vec<&'static str> {
        events.iter().map(|stored| stored.event.event_type.as_str()).collect()
    }

    fn at(offset: u64) -> Position {
        Position { offset, index: 0 }
    }

    /// A life whose events came in an order of their own.
    fn life() -> Story {
        use EventType::{Dead, Retrying, Started, Submitted, Succeeded};
        Story::new(vec![
            stored(Succeeded, 2, 0, 9),
            stored(Started, 1, 0, 1),
            stored(Submitted, 1, 0, 2),
            stored(Dead, 1, 1, 4),
            stored(Retrying, 1, 0, 5),
            stored(Submitted, 2, 0, 7),
        ])
    }

    #[test]
    fn a_story_is_told_in_order_and_goes_on_after_any_of_its_events() {
        let story = life();
        let order = ["submitted", "started", "retrying", "dead", "submitted", "succeeded"];
        assert_eq!(names(story.after(None)), order);
        assert!(story.ended());
        for (index, stored) in story.0.iter().enumerate() {
            let told = story.told(stored.position);
            assert_eq!(names(story.after(told)), order[index + 1..], "after {}", stored.position);
        }
    }

    #[test]
    fn an_id_that_is_not_of_the_story_stands_for_all_before_it() {
        let story = life();
        assert_eq!(names(story.after(story.told(at(0)))).len(), 6);
        // The log had `dead` by then: what ranks below it was told, or is left out.
        assert_eq!(names(story.after(story.told(at(6)))), ["submitted", "succeeded"]);
        assert!(story.after(story.told(at(99))).is_empty());
    }

    #[test]
    fn the_end_of_a_run_that_was_replayed_is_no_end() {
        let mut events = life().0;
        events.retain(|stored| stored.event.event_type != EventType::Succeeded);
        let story = Story::new(events);
        assert!(!story.ended());
        let told = story.told(at(4));
        assert_eq!(names(story.after(told)), ["submitted"], "goes on after the first run's end");
    }

    #[test]
    fn a_final_event_that_was_replaced_is_followed_by_the_truth() {
        use EventType::{DeliveryLost, Submitted, Succeeded};
        let lost = vec![stored(Submitted, 1, 0, 1), stored(DeliveryLost, 1, 0, 2)];
        let told = Story::new(lost.clone()).told(at(2));
        let story = Story::new([lost, vec![stored(Succeeded, 1, 0, 3)]].concat());
        assert_eq!(names(story.after(told)), ["succeeded"]);
    }

    #[test]
    fn ends_and_missing_beginnings_wait_for_the_log() {
        use EventType::{Started, Submitted, Succeeded};
        let story = |events: &[StoredEvent]| Story::new(events.to_vec());
        let (begin, run, end) =
            (stored(Submitted, 1, 0, 3), stored(Started, 1, 0, 1), stored(Succeeded, 1, 0, 2));
        assert!(story(&[begin.clone(), run.clone()]).is_whole(None));
        assert!(!story(std::slice::from_ref(&run)).is_whole(None), "no beginning");
        assert!(!story(&[begin, run, end]).is_whole(None), "the end");
    }

    proptest! {
        /// Whatever order the log has, and wherever a stream is cut: no event twice, none out of order, and the end.
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
            let mut heard: Vec<StoredEvent> = Vec::new();
            for count in known {
                // Each time another replica, which knows so much of the log.
                let story = Story::new(all[..count].to_vec());
                let told = heard.last().and_then(|last| story.told(last.position));
                heard.extend(story.after(told).to_vec());
            }
            prop_assert!(heard.windows(2).all(|pair| place(&pair[0]) < place(&pair[1])), "{:?}", names(&heard));
            prop_assert_eq!(heard.last().map(|last| last.event.event_type), Some(Succeeded));
        }
    }
}
