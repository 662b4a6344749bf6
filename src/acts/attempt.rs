//! One attempt of an act: how long it may go on, how fast, how far it is, and what it asks the record.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep_until};

use super::{Acts, Failure, is_own_queue, tally::Tally};
use crate::{
    amqp::pass::PassError,
    event::EventType,
    job::{JobError, JobId, JobResult, QueueName},
    record::{Record, RecordError, model::Summary},
    worker::Context,
};

/// What is left of an attempt's time when the act stops, to go on in the next one.
const MARGIN: Duration = Duration::from_secs(5);
/// Pause before an act that was interrupted goes on.
const SOON: Duration = Duration::from_millis(200);
/// Pause before an act looks again whether it can have what another one has: that of the first time, and the longest.
/// Each time costs a message and an event.
const LATER: Duration = Duration::from_secs(2);
const LATER_MAX: Duration = Duration::from_secs(30);
/// Longest wait for a turn while others wait for the queue.
const HOLD_MAX: Duration = Duration::from_secs(5);
/// Questions to the record at the same time.
const QUESTIONS: usize = 16;

/// One attempt of an act.
pub(super) struct Attempt {
    cx: Context<Acts>,
    pub(super) tally: Tally,
    expected: Option<u64>,
    pace: Pace,
    ends_at: Instant,
    /// How often the act has been put off, this run.
    put_off: u32,
}

impl Attempt {
    /// Begins an attempt that does at most `rate` things per second.
    pub(super) async fn begin(
        cx: Context<Acts>,
        expected: Option<u64>,
        rate: Option<f64>,
    ) -> JobResult<Self> {
        let remaining = cx.remaining();
        let mut attempt = Self {
            tally: Tally::default(),
            expected,
            pace: Pace::new(rate)?,
            ends_at: Instant::now() + remaining.saturating_sub(MARGIN.min(remaining / 4)),
            put_off: 0,
            cx,
        };
        attempt.catch_up().await?;
        attempt.remember().await?;
        Ok(attempt)
    }

    pub(super) fn acts(&self) -> Acts {
        self.cx.state().clone()
    }

    pub(super) fn cx(&self) -> &Context<Acts> {
        &self.cx
    }

    /// Takes in what earlier attempts of this act did, as far as they told.
    async fn remember(&mut self) -> JobResult<()> {
        let events = self.cx.state().record.job_events(self.cx.job_id()).await.map_err(behind)?;
        let ours =
            || events.iter().map(|stored| &stored.event).filter(|event| event.data.run == self.cx.run());
        let mut told = ours().filter(|event| event.event_type == EventType::Progress);
        let last = told.next_back().and_then(|event| event.data.progress.as_ref());
        self.tally = last.and_then(|progress| Tally::read(&progress.message)).unwrap_or_default();
        let put_off = ours().filter(|event| event.event_type == EventType::Scheduled).count();
        self.put_off = u32::try_from(put_off).unwrap_or(u32::MAX);
        Ok(())
    }

    /// Tells how far the act is.
    pub(super) fn tell(&self) {
        self.cx.progress(self.tally.percent(self.expected), self.tally.say());
    }

    /// Whether the act may go on now; else, how it ends for now.
    pub(super) fn check(&self) -> JobResult<()> {
        if self.cx.is_cancelled() {
            return Err(JobError::retry("stopped", "told to stop"));
        }
        if self.cx.state().stop.is_cancelled() || Instant::now() >= self.ends_at {
            self.tell();
            return Err(JobError::snooze(SOON));
        }
        Ok(())
    }

    /// When the next thing's turn is. Where that is not soon, the act is put off: it holds nobody up meanwhile.
    pub(super) fn next_turn(&mut self) -> JobResult<Instant> {
        let at = self.pace.next();
        let wait = at.saturating_duration_since(Instant::now());
        if wait > HOLD_MAX || at >= self.ends_at {
            self.tell();
            return Err(JobError::snooze(wait));
        }
        Ok(at)
    }

    /// Waits for a turn.
    pub(super) async fn wait_until(&self, at: Instant) -> JobResult<()> {
        tokio::select! {
            () = sleep_until(at) => {}
            () = self.cx.cancelled() => {}
            () = self.cx.state().stop.cancelled() => {}
        }
        self.check()
    }

    /// What it means for the act that a pass did not begin.
    pub(super) fn not_begun(&self, error: PassError) -> JobError {
        match error {
            PassError::Busy => JobError::snooze(later(self.put_off)),
            error => passing(error),
        }
    }

    /// How many things are best looked at together: about a second of them.
    pub(super) fn window(&self) -> usize {
        self.pace.per_second()
    }

    pub(super) async fn catch_up(&self) -> JobResult<()> {
        self.cx.state().catch_up().await.map_err(behind)
    }

    /// What the record says of each job, in order.
    pub(super) async fn known(&self, ids: Vec<JobId>) -> JobResult<Vec<Option<Summary>>> {
        summaries(&self.cx.state().record, ids).await.map_err(behind)
    }

    /// What the record says of one job.
    pub(super) async fn job(&self, id: JobId) -> JobResult<Option<Summary>> {
        Ok(self.known(vec![id]).await?.pop().flatten())
    }

    /// The queues that an act without a queue is about: all with dead jobs in the record.
    pub(super) async fn queues(&self, named: Option<&QueueName>) -> JobResult<Vec<QueueName>> {
        if let Some(queue) = named {
            return Ok(vec![queue.clone()]);
        }
        let all = self.cx.state().record.queues().await.map_err(behind)?;
        // What "all" is about does not include acts: one that died is not begun again by the way.
        Ok(all.into_keys().filter(|queue| !is_own_queue(queue)).collect())
    }
}

/// What the record says of each job, in order, as far as it knows now.
pub(super) async fn summaries(record: &Record, ids: Vec<JobId>) -> Result<Vec<Option<Summary>>, RecordError> {
    let ask = |id| async move {
        match record.job(id, Duration::ZERO).await {
            Ok(found) => Ok(found.map(|job| job.summary)),
            // Whoever must know it has just caught up: unknown is unknown.
            Err(RecordError::Behind(_)) => Ok(None),
            Err(error) => Err(error),
        }
    };
    let questions: Vec<_> = ids.into_iter().map(ask).collect();
    stream::iter(questions).buffered(QUESTIONS).try_collect().await
}

/// The record cannot say what an act must know: later, and no attempt is spent.
#[expect(clippy::needless_pass_by_value, reason = "an argument of map_err")]
pub(super) fn behind(error: RecordError) -> JobError {
    tracing::debug!(%error, "an act waits for the record");
    JobError::snooze(LATER)
}

/// The pause of an act that has been put off so often.
fn later(put_off: u32) -> Duration {
    LATER.saturating_mul(put_off.saturating_add(1)).min(LATER_MAX)
}

/// What it means for an act that a pass did not begin or end.
pub(super) fn passing(error: PassError) -> JobError {
    match error {
        PassError::Busy => JobError::snooze(LATER),
        PassError::NoQueue => JobError::fatal("unknown_queue", "there is no such queue"),
        PassError::Lost(why) => broker(why),
    }
}

/// What it means for an act that something was not published.
pub(super) fn failed(failure: Failure) -> JobError {
    match failure {
        Failure::Refused(why) => JobError::retry("refused", why),
        Failure::Broker(why) => broker(why),
    }
}

fn broker(why: String) -> JobError {
    JobError::retry("broker_unavailable", why)
}

/// At most so many turns per second, evenly.
#[derive(Debug)]
struct Pace {
    /// Between two turns; none: no limit.
    step: Option<Duration>,
    next: Instant,
}

/// The slowest pace: one in eleven days.
const SLOWEST: f64 = 1e-6;
/// Most turns looked at together.
const TOGETHER: usize = 100;

impl Pace {
    fn new(rate: Option<f64>) -> JobResult<Self> {
        let step = match rate {
            None => None,
            Some(rate) if rate >= SLOWEST && rate.is_finite() => Some(Duration::from_secs_f64(1.0 / rate)),
            Some(_) => return Err(JobError::fatal("bad_args", "rate must be above 0")),
        };
        Ok(Self { step, next: Instant::now() })
    }

    /// When the next turn is. Turns that were not taken are gone.
    fn next(&mut self) -> Instant {
        let now = Instant::now();
        let Some(step) = self.step else { return now };
        let at = self.next.max(now);
        self.next = at + step;
        at
    }

    fn per_second(&self) -> usize {
        let Some(step) = self.step else { return TOGETHER };
        let turns = Duration::from_secs(1).as_nanos() / step.as_nanos().max(1);
        usize::try_from(turns).unwrap_or(TOGETHER).clamp(1, TOGETHER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_come_at_their_rate() {
        let mut pace = Pace::new(Some(50.0)).unwrap();
        let start = Instant::now();
        for _ in 0..100 {
            sleep_until(pace.next()).await;
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(1979) && took < Duration::from_millis(2200), "{took:?}");
        tokio::time::sleep(Duration::from_secs(10)).await;
        let (first, second) = (pace.next(), pace.next());
        assert!(first <= Instant::now() && second > Instant::now(), "no burst after a pause");
        assert_eq!(pace.per_second(), 50);
    }

    #[test]
    fn an_act_that_waits_for_another_asks_less_and_less() {
        let pauses = [0, 1, 4, 100, u32::MAX].map(|put_off| later(put_off).as_secs());
        assert_eq!(pauses, [2, 4, 10, 30, 30]);
    }

    #[test]
    fn a_rate_is_above_nothing() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-9] {
            assert!(Pace::new(Some(bad)).is_err(), "{bad}");
        }
        assert_eq!(Pace::new(Some(0.01)).unwrap().per_second(), 1);
        assert_eq!(Pace::new(Some(1e12)).unwrap().per_second(), TOGETHER);
        assert_eq!(Pace::new(None).unwrap().per_second(), TOGETHER);
    }
}
