//! Submitting many jobs: handed over to the broker in order, and told of in common. A future for each of them, with
//! timers and channels of its own, would cost more than the rest of a submit.

use futures_util::future::join_all;
use tokio::{task::yield_now, time::Instant};

use super::{
    Client, Submission, SubmitError,
    live::{Handed, Live, Patience},
};
use crate::{amqp::PublishError, event::Event};

/// Jobs whose events are written in common, when all of them have their confirm.
const TOGETHER: usize = 100;

/// What is known of a job before it is published: its way, in ticks of the ladder.
type Way = Result<u32, SubmitError>;

impl Client {
    /// Submits jobs in order, waiting for room, and for the confirms until `give_up`. For each the event that says that it
    /// was submitted.
    pub(crate) async fn submit_together(
        &self,
        jobs: &mut [Submission],
        give_up: Instant,
    ) -> Vec<Result<Event, SubmitError>> {
        if self.inner.recording.is_some() {
            return join_all(jobs.iter().map(|job| self.submit_watched(job.clone(), true, give_up, || {})))
                .await;
        }
        let live = match self.live() {
            Ok(live) => live,
            Err(why) => return jobs.iter().map(|_| Err(SubmitError::Unavailable(why.clone()))).collect(),
        };
        let deadline = Instant::now() + self.inner.config.amqp.confirm_timeout;
        let patience = Patience { room: Some(deadline), confirm: give_up };
        let mut parts = Vec::new();
        for jobs in jobs.chunks_mut(TOGETHER) {
            let mut ways = Vec::with_capacity(jobs.len());
            for job in jobs.iter_mut() {
                ways.push(self.way(live, job, deadline).await);
            }
            let fit =
                jobs.iter().zip(&ways).filter_map(|(job, way)| Some((&job.envelope, *way.as_ref().ok()?)));
            let handed = live.hand_over(fit, patience).await;
            parts.push(self.finish(live, jobs, ways, handed, (patience, deadline)));
            // Others get their turn on this thread.
            yield_now().await;
        }
        join_all(parts).await.into_iter().flatten().collect()
    }

    async fn way(&self, live: &Live, job: &mut Submission, deadline: Instant) -> Way {
        let ticks = self.check(job)?;
        self.look_ahead(live, job, ticks, Some(deadline)).await?;
        Ok(ticks)
    }

    /// Waits for the confirms, and writes the events of what was confirmed.
    async fn finish(
        &self,
        live: &Live,
        jobs: &[Submission],
        ways: Vec<Way>,
        handed: Handed,
        (patience, deadline): (Patience, Instant),
    ) -> Vec<Result<Event, SubmitError>> {
        let mut confirmed = handed.results().await.into_iter();
        let (mut published, mut again) = (Vec::with_capacity(jobs.len()), Vec::new());
        for (index, way) in ways.into_iter().enumerate() {
            published.push(match way.map(|ticks| (ticks, confirmed.next())) {
                // By itself: its queue, or a binding, may have to be made anew first.
                Ok((ticks, Some(Err(PublishError::Unroutable)))) => {
                    again.push((index, ticks));
                    Ok(())
                }
                Ok((_, result)) => result.unwrap_or(Err(PublishError::Timeout)).map_err(SubmitError::from),
                Err(error) => Err(error),
            });
        }
        let repeated = again.into_iter().map(async |(index, ticks)| {
            (index, live.publish_job(&live.publisher, &jobs[index].envelope, ticks, patience).await)
        });
        for (index, result) in join_all(repeated).await {
            published[index] = result;
        }
        let accepted: Vec<&Submission> =
            jobs.iter().zip(&published).filter_map(|(job, result)| result.is_ok().then_some(job)).collect();
        let telling = live.untold.begin(accepted.iter().map(|job| job.envelope.id).collect(), &live.events);
        let events: Vec<Event> = accepted.into_iter().map(|job| self.event_of(live, job)).collect();
        if self.tell(live, &events, deadline).await {
            telling.done();
        }
        let mut events = events.into_iter();
        let told = |result: Result<(), SubmitError>| {
            result.and_then(|()| events.next().ok_or_else(|| SubmitError::Lost("it has no event".to_owned())))
        };
        published.into_iter().map(told).collect()
    }
}
