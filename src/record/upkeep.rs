//! What must be done every now and then, by every process that keeps a record: jobs whose time has come, jobs whose
//! time is over, and jobs that live longer than the log remembers.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::{
    reader::{Failed, Shared, in_full},
    store::{Store, StoreError},
};
use crate::{
    amqp::{
        Names,
        publisher::{Publisher, Target},
        topology::LOG_AGE_DAYS,
    },
    event::batch,
    job::{JobId, wire::Message},
};

/// How often jobs whose time has come are looked for.
const PROMOTE: Duration = Duration::from_secs(1);
/// How often jobs whose time is over are.
const EXPIRE: Duration = Duration::from_secs(60);
/// How often jobs are whose events get old.
const REPEAT: Duration = Duration::from_secs(3600);
/// Most jobs of one step: others write in between.
const STEP: usize = 500;
/// Most jobs whose events are written again in one go; the rest an hour later.
const REPEATED_MAX: usize = 50_000;
/// Longest time to write the events of a job again, and to read them back.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Upkeep {
    pub(super) shared: Arc<Shared>,
    /// How long a job that has ended is remembered.
    pub(super) retention: Duration,
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

    /// Writes events once more that would leave the log before their job has ended. Others do the same with the same
    /// jobs: copies change nothing.
    async fn repeat(&self) {
        let half = Duration::from_secs(u64::from(LOG_AGE_DAYS) * 86_400 / 2);
        let mut caught_up = self.shared.barriers.caught_up();
        loop {
            // Who has not read everything takes living jobs for silent ones.
            if caught_up.wait_for(|caught_up| *caught_up).await.is_err() {
                return;
            }
            if let Ok(before) = Timestamp::now().checked_sub(half) {
                let jobs = self.repeat_before(before).await;
                if jobs > 0 {
                    info!(jobs, "wrote events of jobs that wait for long into the log once more");
                }
            }
            sleep(REPEAT).await;
        }
    }

    async fn repeat_before(&self, before: Timestamp) -> usize {
        let mut sum = 0;
        while sum < REPEATED_MAX {
            let jobs = match self.shared.ask(move |store| store.stale_live(before, STEP)).await {
                Ok(jobs) => jobs,
                Err(failed) => {
                    self.note("cannot look for jobs whose events get old", &failed);
                    return sum;
                }
            };
            for (_, events) in &jobs {
                let encoded: Vec<Vec<u8>> = events.iter().map(batch::encode_one).collect();
                let body = batch::join(encoded.iter().map(Vec::as_slice));
                if !self.write(body.into()).await {
                    return sum;
                }
                sum += 1;
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
