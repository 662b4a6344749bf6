//! Purging: the dead messages of a queue, or the jobs that wait in it.
//!
//! Purging a work queue takes message after message: each job ends cancelled, reason `purged`, and its caller is told.
//! What workers have taken already, and what waits on the delay ladder, is not touched.

use jiff::Timestamp;

use super::{
    Acts,
    attempt::{Attempt, failed, passing},
    event_error,
    letter::Facts,
    sweep::{Deed, Sweep, check_ids},
    wanted::Wanted,
    words::{Done, Purge, Target},
};
use crate::{
    amqp::pass::Letter,
    event::{Event, EventType},
    job::{
        Envelope, JobResult, QueueName, Reply, ResultExt, Status, dead,
        envelope::{DecodeError, Decoded},
        reply::Failure as ReplyFailure,
    },
    worker::Context,
};

/// Why jobs end that a purge took.
const REASON: &str = "purged";

/// Purges.
pub(super) async fn purge(job: Purge, cx: Context<Acts>) -> JobResult<Done> {
    check_ids(job.ids.as_deref())?;
    match job.target {
        Target::Dead => {
            let wanted = Wanted::new(&job.filter, job.ids.as_deref(), None).fatal("bad_args")?;
            let attempt = Attempt::begin(cx, job.expected, None).await?;
            let deed = Deed::Purge { by: job.by, reason: job.reason };
            Sweep { attempt, wanted, deed }.over(Some(job.queue), job.ids).await
        }
        Target::Jobs => {
            let attempt = Attempt::begin(cx, job.expected, None).await?;
            jobs(attempt, &job.queue, job.by).await
        }
    }
}

async fn jobs(mut attempt: Attempt, queue: &QueueName, by: Option<String>) -> JobResult<Done> {
    let acts = attempt.acts();
    loop {
        attempt.check()?;
        let mut pass = acts.passes.over_jobs(queue).await.map_err(passing)?;
        loop {
            attempt.check()?;
            let letters = pass.take(attempt.window()).await.map_err(passing)?;
            if letters.is_empty() {
                break;
            }
            let ends: Vec<End> =
                letters.iter().map(|letter| End::of(&acts, letter, queue, by.clone())).collect();
            acts.write(ends.iter().map(|end| end.event.clone()).collect()).await.map_err(failed)?;
            for (letter, end) in letters.iter().zip(&ends) {
                end.reply(&acts, letter);
                pass.done(letter).await.map_err(passing)?;
                acts.record.touch(end.event.job);
                attempt.tally.done += 1;
            }
            attempt.tell();
        }
        let late = pass.is_late();
        pass.end().await.map_err(passing)?;
        if !late {
            return Ok(attempt.tally.end(0));
        }
    }
}

/// How a job ends that is taken out of its queue.
struct End {
    event: Event,
}

impl End {
    fn of(acts: &Acts, letter: &Letter, queue: &QueueName, by: Option<String>) -> Self {
        let now = Timestamp::now();
        let mut event = match Envelope::decode(&letter.incoming, queue, acts.config.limits.args) {
            Ok(decoded) => of_job(acts, &decoded, now),
            Err(error) => of_message(acts, letter, queue, &error, now),
        };
        event.data.reason = Some(REASON.to_owned());
        event.data.by = by;
        event.data.finished_at = Some(now);
        Self { event }
    }

    fn reply(&self, acts: &Acts, letter: &Letter) {
        let message = &letter.incoming.message;
        let Some(reply_to) = message.reply_to.as_deref().filter(|to| !to.is_empty()) else { return };
        let failure = ReplyFailure { code: "cancelled".into(), message: "purged from its queue".into() };
        let data = &self.event.data;
        let reply = Reply {
            job_id: self.event.job,
            run: data.run,
            attempt: data.attempt,
            status: Status::Cancelled,
            reason: data.reason.clone(),
            worker: None,
            started_at: None,
            finished_at: data.finished_at,
            output_omitted: false,
            // Two texts cannot fail to be JSON.
            body: serde_json::to_vec(&failure).unwrap_or_default().into(),
        };
        acts.replier.send(reply_to, message.correlation_id.clone(), &reply);
    }
}

fn of_job(acts: &Acts, decoded: &Decoded, now: Timestamp) -> Event {
    let envelope = &decoded.envelope;
    let mut event = Event::of(EventType::Cancelled, envelope, &acts.instance, now);
    if !envelope.app_id.as_deref().is_some_and(|app| app.starts_with("hopline-")) {
        // Nobody has told the log what it was.
        acts.inline_args(&mut event, &envelope.args);
    }
    event
}

fn of_message(acts: &Acts, letter: &Letter, queue: &QueueName, error: &DecodeError, now: Timestamp) -> Event {
    let message = &letter.incoming.message;
    let mut facts = Facts::of(message, queue);
    if dead::is_marked(&message.headers) {
        // Moved here from the dead-letter queue: its next run.
        facts.run = facts.run.saturating_add(1);
    }
    let mut event = facts.event(EventType::Cancelled, &acts.instance, now);
    event.data.error = Some(event_error(error.reason().as_str(), &error.to_string()));
    event
}
