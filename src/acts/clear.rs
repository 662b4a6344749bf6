//! Purging: the dead messages of a queue, or the jobs that wait in it.
//!
//! Purging a work queue takes message after message: each job ends cancelled, reason `purged`, and its caller is told.
//! What workers have taken already, and what waits on the delay ladder, is not touched. A message may be there whose run
//! has ended already: its worker died before it could acknowledge, or before the copy in the dead-letter queue.

use jiff::Timestamp;

use super::{
    Acts,
    attempt::{Attempt, failed, passing},
    event_error,
    letter::Facts,
    stray::{self, Known},
    sweep::{Deed, Sweep, check_ids},
    wanted::Wanted,
    words::{Done, Purge, Target},
};
use crate::{
    amqp::pass::{Letter, Pass},
    event::{Event, EventType},
    job::{
        Envelope, JobResult, QueueName, Reply, ResultExt, Status, dead,
        envelope::{DecodeError, Decoded},
        reply::Failure as ReplyFailure,
    },
    record::model::{JobStatus, Summary},
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
            Sweep::new(attempt, wanted, deed).over(Some(job.queue), job.ids).await
        }
        Target::Jobs => {
            let attempt = Attempt::begin(cx, job.expected, None).await?;
            jobs(attempt, &job.queue, job.by).await
        }
    }
}

async fn jobs(mut attempt: Attempt, queue: &QueueName, by: Option<String>) -> JobResult<Done> {
    let acts = attempt.acts();
    let mut left = None;
    loop {
        attempt.check()?;
        let begun = acts.passes.over_jobs(queue, left).await;
        let mut pass = begun.map_err(|error| attempt.not_begun(error))?;
        let cleared = over_letters(&mut attempt, &mut pass, queue, by.as_ref()).await;
        let late = pass.is_late();
        left = pass.rest();
        // Also after an error: a pass that is dropped may lose acknowledgements.
        let ended = pass.end().await.map_err(passing);
        cleared.and(ended)?;
        if !late {
            return Ok(attempt.tally.end(0));
        }
    }
}

async fn over_letters(
    attempt: &mut Attempt,
    pass: &mut Pass,
    queue: &QueueName,
    by: Option<&String>,
) -> JobResult<()> {
    let acts = attempt.acts();
    loop {
        attempt.check()?;
        let letters = pass.take(attempt.window()).await.map_err(passing)?;
        if letters.is_empty() {
            return Ok(());
        }
        let mut ends: Vec<End> =
            letters.iter().map(|letter| End::of(&acts, letter, queue, by.cloned())).collect();
        attempt.catch_up().await?;
        let known = attempt.known(ends.iter().map(|end| end.event.job).collect()).await?;
        for (end, known) in ends.iter_mut().zip(&known) {
            end.know(known.as_ref());
        }
        for ((letter, end), known) in letters.iter().zip(&mut ends).zip(&known) {
            end.find_callback(&acts, letter, known.as_ref());
        }
        let told = ends.iter().filter(|end| !end.over);
        let events: Vec<Event> =
            told.flat_map(|end| acts.with_callback(end.event.clone(), end.callback.as_ref())).collect();
        if !events.is_empty() {
            acts.write(events).await.map_err(failed)?;
        }
        for (letter, end) in letters.iter().zip(&ends) {
            acts.call_back(end.callback.as_ref()).await.map_err(failed)?;
            if end.over {
                pass.done(letter).await.map_err(passing)?;
                attempt.tally.skipped += 1;
                continue;
            }
            end.reply(&acts, letter);
            pass.done(letter).await.map_err(passing)?;
            acts.record.touch(end.event.job);
            attempt.tally.done += 1;
        }
        attempt.tell();
    }
}

/// How a job ends that is taken out of its queue.
struct End {
    event: Event,
    status: Status,
    failure: ReplyFailure,
    /// Its run has ended, or went on in another copy: the message is good for nothing.
    over: bool,
    callback: Option<Envelope>,
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
        let failure = ReplyFailure { code: "cancelled".into(), message: "purged from its queue".into() };
        Self { event, status: Status::Cancelled, failure, over: false, callback: None }
    }

    /// Takes in what the record says of the job.
    fn know(&mut self, job: Option<&Summary>) {
        let data = &mut self.event.data;
        self.over = stray::known(data.run, data.step, job) == Known::Over;
        let Some(job) = job.filter(|job| job.run == data.run && job.status == JobStatus::Dead) else {
            return;
        };
        // It died, and what waits here is all that it has left: no copy of it is in the dead-letter queue.
        self.event.event_type = EventType::Purged;
        (data.error, data.finished_at) = (None, None);
        self.status = Status::Dead;
        if let Some(error) = &job.error {
            self.failure = ReplyFailure { code: error.code.clone(), message: error.message.clone() };
        }
    }

    /// That of the end that the purge makes; of one that was made before, in case that was as far as it got.
    fn find_callback(&mut self, acts: &Acts, letter: &Letter, known: Option<&Summary>) {
        let headers = &letter.incoming.message.headers;
        self.callback = if self.over || self.event.event_type == EventType::Purged {
            acts.callback_again(self.event.data.run, known, headers)
        } else {
            // A purge that is interrupted meets the message again.
            acts.callbacks.of(&self.event, headers).map(|callback| Envelope { unsure: true, ..callback })
        };
    }

    fn reply(&self, acts: &Acts, letter: &Letter) {
        let message = &letter.incoming.message;
        let Some(reply_to) = message.reply_to.as_deref().filter(|to| !to.is_empty()) else { return };
        let data = &self.event.data;
        let reply = Reply {
            job_id: self.event.job,
            run: data.run,
            attempt: data.attempt,
            status: self.status,
            reason: data.reason.clone(),
            worker: None,
            started_at: None,
            finished_at: data.finished_at,
            output_omitted: false,
            // Two texts cannot fail to be JSON.
            body: serde_json::to_vec(&self.failure).unwrap_or_default().into(),
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
