//! What must be done every now and then, by every process that keeps a record: jobs whose time has come, jobs whose
//! time is over, and jobs that live, or can be replayed, for longer than the log remembers.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{
    reader::{Failed, Shared, in_full},
    store::{Store, StoreError, written_at},
};
use crate::{
    amqp::{
        Names,
        connection::Link,
        publisher::{Publisher, Target},
        stream::{self, Place},
        topology::LOG_AGE_DAYS,
    },
    event::batch,
    job::{JobId, wire::Message},
};

/// How often jobs whose time has come are looked for.
const PROMOTE: Duration = Duration::from_secs(1);
/// How often jobs whose time is over are.
const EXPIRE: Duration = Duration::from_secs(60);
/// How often jobs are whose events get old: at least so often, and more often where the log keeps less than this many
/// times as much; but with a pause.
const REPEAT: Duration = Duration::from_secs(3600);
const REPEATS: u32 = 16;
const REPEAT_PAUSE: Duration = Duration::from_secs(60);
/// A log that has lost nothing yet is not asked to keep what is younger than this.
const YOUNG: SignedDuration = SignedDuration::from_mins(15);
/// Most jobs of one step: others write in between.
const STEP: usize = 500;
/// Most jobs whose events are written again in one go, and about most bytes: they push others out of the log. The rest
/// comes the next time.
const REPEATED_MAX: usize = 50_000;
const REPEATED_BYTES: usize = 64 << 20;
/// Longest time to write the events of a job again, and to read them back.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Upkeep {
    pub(super) shared: Arc<Shared>,
    /// How long a job that has ended is remembered.
    pub(super) retention: Duration,
    /// Where the log is read.
    pub(super) link: Link,
    pub(super) publisher: Publisher,
    pub(super) names: Names,
}

impl Upkeep {
    /// Goes on until told to stop.
    pub(super) async fn run(self, stop: CancellationToken) {
        let all = async {
            tokio::join!(self.promote(), self.expire(), self.repeat());
        };
        stop.run_until_cancelled(all).await;
    }

    async fn promote(&self) {
        loop {
            self.steps("cannot look for jobs whose time has come", |store| {
                store.promote(Timestamp::now(), STEP)
            })
            .await;
            sleep(PROMOTE).await;
        }
    }

    async fn expire(&self) {
        let retention = self.retention;
        loop {
            let forgotten = self.steps("cannot forget old jobs", move |store| {
                store.expire(Timestamp::now(), retention, STEP)
            });
            let forgotten = forgotten.await;
            if forgotten > 0 {
                info!(jobs = forgotten, "forgot jobs that ended long ago (record.retention)");
            }
            sleep(EXPIRE).await;
        }
    }

    /// Does something step by step until a step finds less than it may; how much there was.
    async fn steps(
        &self,
        failure: &str,
        step: impl Fn(&Store) -> Result<usize, StoreError> + Clone + Send + 'static,
    ) -> usize {
        let mut sum = 0;
        loop {
            match self.shared.ask(step.clone()).await {
                Ok(count) => {
                    sum += count;
                    if count < STEP {
                        return sum;
                    }
                    tokio::task::yield_now().await;
                }
                Err(failed) => {
                    self.note(failure, &failed);
                    return sum;
                }
            }
        }
    }

    /// Writes events once more that would leave the log before their job is done with. Others do the same with the same
    /// jobs: copies change nothing.
    async fn repeat(&self) {
        let mut caught_up = self.shared.barriers.caught_up();
        loop {
            // Who has not read everything takes living jobs for silent ones.
            if caught_up.wait_for(|caught_up| *caught_up).await.is_err() {
                return;
            }
            let first = stream::first(&self.link, &self.names.log()).await;
            let first = first.inspect_err(|down| debug!(reason = %down, "cannot see where the log begins"));
            let (before, pause) = due(Timestamp::now(), first.ok().flatten().as_ref());
            let jobs = self.repeat_before(before).await;
            if jobs > 0 {
                info!(jobs, "wrote events of jobs that wait for long, or are dead, into the log once more");
            }
            sleep(pause).await;
        }
    }

    async fn repeat_before(&self, before: Timestamp) -> usize {
        let (mut sum, mut bytes) = (0, 0);
        while sum < REPEATED_MAX {
            let jobs = match self.shared.ask(move |store| store.stale(before, STEP)).await {
                Ok(jobs) => jobs,
                Err(failed) => {
                    self.note("cannot look for jobs whose events get old", &failed);
                    return sum;
                }
            };
            for (_, events) in &jobs {
                let encoded: Vec<Vec<u8>> = events.iter().map(batch::encode_one).collect();
                let body = batch::join(encoded.iter().map(Vec::as_slice));
                bytes += body.len();
                if !self.write(body.into()).await {
                    return sum;
                }
                sum += 1;
                if bytes >= REPEATED_BYTES {
                    return sum;
                }
            }
            // They are silent no more when they have been read back.
            let read_back = self.shared.barriers.catch_up(Instant::now() + PATIENCE).await;
            if jobs.len() < STEP || !read_back {
                return sum;
            }
        }
        sum
    }

    /// Writes a batch into the log, and nowhere else: this is no news.
    async fn write(&self, body: Bytes) -> bool {
        let message = Message {
            message_id: Some(JobId::new().to_string()),
            kind: Some(batch::MESSAGE_TYPE.to_owned()),
            content_type: Some(batch::CONTENT_TYPE.to_owned()),
            body,
            ..Message::default()
        };
        let target = Target { exchange: self.names.record(), key: String::new(), mandatory: true };
        let written = self.publisher.publish_patiently(target, message, Instant::now() + PATIENCE).await;
        written.inspect_err(|error| debug!(%error, "cannot write events once more")).is_ok()
    }

    fn note(&self, failure: &str, failed: &Failed) {
        if let Failed::Store(error) = failed {
            if matches!(error, StoreError::Corrupt(_)) {
                self.shared.damaged.notify_one();
            }
            debug!(reason = in_full(error), "{failure}");
        }
    }
}

/// Jobs that the log has not told of since when are told again, and how long it is until the next look, for a log that
/// begins with `first`. Its age is bounded, and its bytes are, so what is older than half of what it has is repeated.
fn due(now: Timestamp, first: Option<&Place>) -> (Timestamp, Duration) {
    let half = SignedDuration::from_hours(i64::from(LOG_AGE_DAYS) * 24 / 2);
    let by_age = now.checked_sub(half).unwrap_or(Timestamp::MIN);
    let written = first.and_then(|first| Timestamp::from_millisecond(written_at(&first.mark)?).ok());
    let (Some(first), Some(written)) = (first, written) else { return (by_age, REPEAT) };
    let span = now.duration_since(written).max(SignedDuration::ZERO);
    let kept = if first.offset == 0 { (span / 2).max(YOUNG) } else { span / 2 };
    let before = now.checked_sub(kept).unwrap_or(Timestamp::MIN).max(by_age);
    let pause = Duration::try_from(span).unwrap_or_default() / REPEATS;
    (before, pause.clamp(REPEAT_PAUSE, REPEAT))
}

#[cfg(test)]
mod tests {
    use uuid::{NoContext, Uuid};

    use super::*;

    #[test]
    fn what_is_older_than_half_of_the_log_is_repeated() {
        let (minute, hour, day) = (60, 3600, 86_400);
        let now = 400 * day;
        // The first record's offset and age, what is repeated, and the pause.
        let cases = [
            (Some((0, minute)), 15 * minute, minute),
            (Some((0, 2 * hour)), hour, 2 * hour / 16),
            (Some((0, 10 * day)), 5 * day, hour),
            (Some((0, 100 * day)), 45 * day, hour),
            (Some((7, 8 * minute)), 4 * minute, minute),
            (Some((7, 8 * day)), 4 * day, hour),
            (Some((7, -minute)), 0, minute),
            (None, 45 * day, hour),
        ];
        for (first, age, pause) in cases {
            let place = first.map(|(offset, age)| {
                let seconds = u64::try_from(now - age).unwrap();
                let time = uuid::Timestamp::from_unix(NoContext, seconds, 0);
                Place { offset, mark: Uuid::new_v7(time).to_string() }
            });
            let (before, next) = due(Timestamp::from_second(now).unwrap(), place.as_ref());
            assert_eq!((now - before.as_second(), next.as_secs()), (age, pause.unsigned_abs()), "{first:?}");
        }
        let foreign = Place { offset: 7, mark: "message 7".to_owned() };
        let (before, _) = due(Timestamp::from_second(now).unwrap(), Some(&foreign));
        assert_eq!(now - before.as_second(), 45 * day);
    }
}
