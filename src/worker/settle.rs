//! Settling: carrying out a disposition. The only caller of ack.
//!
//! The order is what makes a crash at any point repeat work at worst, and never contradict the record
//! (`docs/wire.md`, "The order of settling"): each step is **confirmed** before the next one, but for replies, which
//! nobody waits for.
//!
//! | | |
//! |---|---|
//! | success, expired, cancelled | event, callback, reply, ack |
//! | retry, snooze, patience | the copy, event, ack |
//! | dead | event, the copy in the dead-letter queue, callback, reply, ack |
//!
//! The callback is that of a job which asks for one (`crate::callback`). It follows the event, so nobody is told of an
//! end that may yet turn out otherwise, and a redelivery makes up for one that was not published.
//!
//! Once the broker has taken the delivery back, only a success still counts, and the event of a copy that exists;
//! everything else is left to the redelivery, or there would be two.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    again::{self, cancelled, expired, failure_body},
    disposition::Disposition,
    hold::Hold,
    registry::BAD_ARGS,
    reply::Replier,
    tell::Teller,
};
use crate::{
    amqp::{
        Names, PublishError, delay,
        publisher::{Publisher, Target},
    },
    client::{Callbacks, Live},
    event::{AttemptOutcome, Event},
    job::{
        Envelope, QueueName, Reply, Status,
        dead::{self, Death, Reason},
        envelope::{self, HEADERS_MAX, header},
        reply::Failure,
        wire::{HeaderValue, Message, headers_size},
    },
    record::{lookup::End, writer::EventWriter},
};

/// Pause before a publish that failed is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// No deadline: longer than the broker lets a delivery be unsettled.
const FOREVER: Duration = Duration::from_secs(100 * 86_400);

/// Events of ends wait for others, up to this part of all deliveries that a queue may have: the rest goes on
/// meanwhile.
const COMPANY: usize = 4;

/// A job whose attempt has ended, or whose run ends without one.
pub(super) struct Ended<'a> {
    pub(super) envelope: Envelope,
    pub(super) hold: &'a Hold,
    /// The attempt, where one was made.
    pub(super) attempt: Option<Attempted>,
    /// Attempts in all, by what the job and its kind say.
    pub(super) max_attempts: Option<u32>,
    /// Its args and output stay out of the record.
    pub(super) private: bool,
    /// What the handler told last, if that is not on its way yet.
    pub(super) untold: Option<Box<Event>>,
}

/// An attempt that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempted {
    pub(super) started_at: Timestamp,
    pub(super) finished_at: Timestamp,
    pub(super) outcome: AttemptOutcome,
}

/// A message that is no job that can be run.
pub(super) struct Stray<'a> {
    pub(super) message: &'a Message,
    pub(super) queue: &'a QueueName,
    pub(super) reason: Reason,
    pub(super) error: &'a str,
    /// Its args stay out of the record.
    pub(super) private: bool,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    /// Acknowledged, or done with on an epoch that is over: a redelivery needs no further run.
    Done,
    /// Given back to its queue.
    HandedBack,
    /// Left to the redelivery: the broker has taken it back already.
    Left,
}

/// Carries dispositions out.
pub(super) struct Settler {
    names: Names,
    worker: String,
    publisher: Publisher,
    events: EventWriter,
    teller: Arc<Teller>,
    replier: Replier,
    callbacks: Callbacks,
    /// So many events of ends are worth writing.
    enough: usize,
}

impl Settler {
    /// `taken`: how many deliveries a queue has at most at a time.
    pub(super) fn new(live: &Live, teller: Arc<Teller>, replier: Replier, taken: usize) -> Self {
        Self {
            enough: taken / COMPANY,
            names: live.names.clone(),
            worker: live.instance.clone(),
            publisher: live.publisher.clone(),
            events: live.events.clone(),
            teller,
            replier,
            callbacks: live.callbacks(),
        }
    }

    /// Waits until the replies sent so far are confirmed or have failed.
    pub(super) async fn flush(&self) {
        self.replier.flush().await;
    }

    /// Settles a job whose attempt has ended. `give_up` ends the waiting for a broker that does not confirm.
    ///
    /// What is not the usual end is boxed: each attempt would have room for it, some KiB that are moved and cleared.
    pub(super) async fn settle(
        &self,
        ended: &mut Ended<'_>,
        disposition: Disposition,
        give_up: &CancellationToken,
    ) -> Settled {
        match disposition {
            Disposition::Succeed { output, omitted } => self.succeed(ended, output, omitted, give_up).await,
            Disposition::Expire => {
                let event = self.teller.expired(ended);
                Box::pin(self.end(ended, Status::Expired, event, &expired(), give_up)).await
            }
            Disposition::Cancel { by, reason } => {
                let failure = cancelled(by.as_deref(), reason.as_deref());
                let event = self.teller.cancelled(ended, by, reason);
                Box::pin(self.end(ended, Status::Cancelled, event, &failure, give_up)).await
            }
            Disposition::Retry { delay, error } => {
                warn_failed(&ended.envelope, &error, delay);
                let event = self.teller.retrying(ended, delay, &error);
                let copy = ended.envelope.clone().next_attempt().due_in(delay);
                Box::pin(self.republish(ended, &copy, delay, event, give_up)).await
            }
            Disposition::Snooze { delay } => {
                let event = self.teller.scheduled(ended, delay);
                let copy = ended.envelope.clone().next_step().due_in(delay);
                Box::pin(self.republish(ended, &copy, delay, event, give_up)).await
            }
            Disposition::Die { reason, error } => Box::pin(self.bury(ended, reason, error, give_up)).await,
            Disposition::HandBack => {
                ended.hold.hand_back();
                Settled::HandedBack
            }
        }
    }

    /// Also on an epoch that is over: what a handler finished is the truth. A redelivery to this process is then
    /// acknowledged as known.
    async fn succeed(
        &self,
        ended: &mut Ended<'_>,
        output: Bytes,
        omitted: bool,
        give_up: &CancellationToken,
    ) -> Settled {
        let event = self.teller.succeeded(ended, &output, omitted);
        let callback = self.callbacks.of(&event, &ended.envelope.extra);
        let events = self.with_company(ended, event, callback.as_ref());
        // Somebody waits for a reply, or for a callback.
        let is_urgent = ended.envelope.reply_to.is_some() || callback.is_some();
        let written = async {
            let deadline = Instant::now() + FOREVER;
            if is_urgent {
                self.events.write(&events, deadline).await
            } else {
                self.events.write_in_company(&events, self.enough, deadline).await
            }
        };
        tokio::select! {
            written = written => if written.is_err() {
                // The connection is closed for good.
                return hand_back(ended.hold);
            },
            // Not acknowledged: without a record the job would have no end. It is run again.
            () = give_up.cancelled() => return hand_back(ended.hold),
        }
        if let Err(left) = self.call_back(callback, ended.hold, give_up).await {
            return left;
        }
        self.reply(ended, Status::Succeeded, None, omitted, output);
        ended.hold.ack();
        Settled::Done
    }

    /// Ends a run that did not succeed and leaves no message behind.
    async fn end(
        &self,
        ended: &mut Ended<'_>,
        status: Status,
        event: Event,
        failure: &Failure,
        give_up: &CancellationToken,
    ) -> Settled {
        let callback = self.callbacks.of(&event, &ended.envelope.extra);
        let events = self.with_company(ended, event, callback.as_ref());
        if let Err(left) = self.write_while_held(events, ended.hold, give_up).await {
            return left;
        }
        if let Err(left) = self.call_back(callback, ended.hold, give_up).await {
            return left;
        }
        self.reply(ended, status, None, false, failure_body(failure));
        ended.hold.ack();
        Settled::Done
    }

    async fn bury(
        &self,
        ended: &mut Ended<'_>,
        reason: Reason,
        error: Failure,
        give_up: &CancellationToken,
    ) -> Settled {
        let Envelope { id, kind, queue, attempt, .. } = &ended.envelope;
        warn!(job.id = %id, kind = %kind, queue = %queue, attempt, reason = reason.as_str(), code = error.code, error = loggable(&error), "dead");
        let death = Death {
            reason,
            code: &error.code,
            error: &error.message,
            attempts: *attempt,
            worker: &self.worker,
            at: Timestamp::now(),
        };
        let target = self.dead_target(&ended.envelope);
        let copy = dead::mark(ended.envelope.encode(), &death);
        let event = self.teller.dead(ended, reason, &error);
        let callback = self.callbacks.of(&event, &ended.envelope.extra);
        let events = self.with_company(ended, event, callback.as_ref());
        if let Err(left) = self.write_while_held(events, ended.hold, give_up).await {
            return left;
        }
        if let Err(left) = self.publish_surely(target, copy, ended.hold, give_up).await {
            return left;
        }
        if let Err(left) = self.call_back(callback, ended.hold, give_up).await {
            return left;
        }
        self.reply(ended, Status::Dead, Some(reason), false, failure_body(&error));
        ended.hold.ack();
        Settled::Done
    }

    /// Settles a message that is no job we can run: dead, with its body untouched.
    pub(super) async fn bury_raw(
        &self,
        stray: &Stray<'_>,
        hold: &Hold,
        give_up: &CancellationToken,
    ) -> Settled {
        let Stray { message, queue, reason, error, .. } = *stray;
        let mut copy = envelope::raw_copy(message, queue);
        let (id, place) = (envelope::id_of(&copy, queue), envelope::place_of(message));
        warn!(job.id = %id, queue = %queue, reason = reason.as_str(), error, "dead: not a job that can be run");
        if headers_size(&copy.headers) > HEADERS_MAX {
            copy.headers = [
                (dead::mark::HEADERS_DROPPED.to_owned(), HeaderValue::Bool(true)),
                (header::RUN.to_owned(), place.run.into()),
            ]
            .into();
        }
        let (now, code) = (Timestamp::now(), reason.as_str());
        let death = Death { reason, code, error, attempts: 0, worker: &self.worker, at: now };
        let target = Target {
            exchange: self.names.dead(),
            // The kind may be anything; only the queue routes.
            key: Names::dead_key(queue, None),
            mandatory: true,
        };
        let event = self.teller.dead_stray(stray, &copy, place);
        let callback = self.callbacks.of(&event, &message.headers);
        let submitted = callback.as_ref().map(|callback| self.callbacks.submitted(callback));
        let events = [event].into_iter().chain(submitted).collect();
        if let Err(left) = self.write_while_held(events, hold, give_up).await {
            return left;
        }
        if let Err(left) = self.publish_surely(target, dead::mark(copy, &death), hold, give_up).await {
            return left;
        }
        if let Err(left) = self.call_back(callback, hold, give_up).await {
            return left;
        }
        if let Some(reply_to) = message.reply_to.as_deref().filter(|to| !to.is_empty()) {
            let body = failure_body(&Failure { code: code.to_owned(), message: error.to_owned() });
            let reply = Reply {
                job_id: id,
                run: place.run,
                attempt: place.attempt,
                status: Status::Dead,
                reason: Some(code.to_owned()),
                worker: Some(self.worker.clone()),
                started_at: None,
                finished_at: Some(now),
                output_omitted: false,
                body,
            };
            self.replier.send(reply_to, message.correlation_id.clone(), &reply);
        }
        hold.ack();
        Settled::Done
    }

    /// Settles a delivery of a run that has ended elsewhere, by what the record knows: does what may be missing, the
    /// copy in the dead-letter queue, the callback and the reply, and acknowledges.
    pub(super) async fn settle_again(
        &self,
        envelope: &Envelope,
        end: End,
        hold: &Hold,
        give_up: &CancellationToken,
    ) -> Settled {
        if end.status == Status::Dead {
            let copy = again::dead_letter(envelope, &end, &self.worker);
            let target = self.dead_target(envelope);
            if let Err(left) = self.publish_surely(target, copy, hold, give_up).await {
                return left;
            }
        }
        // It may have been published before, and even be done with.
        let callback = self.callbacks.of(&again::event(envelope, &end, &self.worker), &envelope.extra);
        let callback = callback.map(|callback| Envelope { unsure: true, ..callback });
        if let Err(left) = self.call_back(callback, hold, give_up).await {
            return left;
        }
        if let Some(reply_to) = &envelope.reply_to {
            let reply = again::reply(envelope, end);
            self.replier.send(reply_to, envelope.correlation_id.clone(), &reply);
        }
        hold.ack();
        Settled::Done
    }

    /// Publishes a message once more, after `delay`, and acknowledges the delivery it came from: a message that
    /// waits for a worker that knows it, with the event that says so, or one that is given its id.
    pub(super) async fn pass_on(
        &self,
        message: Message,
        queue: &QueueName,
        delay: Duration,
        event: Option<Event>,
        hold: &Hold,
        give_up: &CancellationToken,
    ) -> Settled {
        // The routing key needs a word for the kind; queues are bound by what comes before it.
        let kind = message.kind.as_deref().and_then(|kind| crate::job::Kind::parse(kind).ok());
        let kind = kind.as_ref().map_or("unknown", crate::job::Kind::as_str);
        let (exchange, key) = self.names.route(queue, kind, delay::ticks_capped(delay));
        let target = Target { exchange, key, mandatory: true };
        if let Err(left) = self.publish_surely(target, message, hold, give_up).await {
            return left;
        }
        if let Some(event) = event {
            self.write_fact(vec![event], give_up).await;
        }
        hold.ack();
        Settled::Done
    }

    async fn republish(
        &self,
        ended: &mut Ended<'_>,
        copy: &Envelope,
        delay: Duration,
        event: Event,
        give_up: &CancellationToken,
    ) -> Settled {
        let (exchange, key) = self.names.route(&copy.queue, copy.kind.as_str(), delay::ticks_capped(delay));
        let target = Target { exchange, key, mandatory: true };
        if let Err(left) = self.publish_surely(target, copy.encode(), ended.hold, give_up).await {
            return left;
        }
        self.write_fact(with_untold(ended, event), give_up).await;
        ended.hold.ack();
        Settled::Done
    }

    /// Writes events, and waits until the log has them. Gives up when the broker takes the delivery back (the
    /// redelivery decides anew), or when the process has to end (then it is handed back).
    async fn write_while_held(
        &self,
        events: Vec<Event>,
        hold: &Hold,
        give_up: &CancellationToken,
    ) -> Result<(), Settled> {
        if !hold.is_live() {
            // Not acknowledged: the broker has taken the delivery back and hands the job over again.
            return Err(Settled::Left);
        }
        tokio::select! {
            written = self.events.write(&events, Instant::now() + FOREVER) => match written {
                Ok(()) => Ok(()),
                // The connection is closed for good.
                Err(_) => Err(hand_back(hold)),
            },
            () = hold.lost() => Err(Settled::Left),
            // Not acknowledged: without a record the run would have no end.
            () = give_up.cancelled() => Err(hand_back(hold)),
        }
    }

    /// Writes what is true whatever becomes of the delivery: the copy that it speaks of exists. So the delivery is
    /// done with even if the process has to end before the confirm; the copy's own events say the same.
    async fn write_fact(&self, events: Vec<Event>, give_up: &CancellationToken) {
        tokio::select! {
            written = self.events.write(&events, Instant::now() + FOREVER) => drop(written),
            () = give_up.cancelled() => {}
        }
    }

    /// Publishes until the broker has confirmed it. Gives up when the broker takes the delivery back (the
    /// redelivery decides anew), or when the process has to end (then it is handed back).
    ///
    /// Waits for a confirm as long as it may come: to publish once more beside it would make two jobs of one. An
    /// alarm may hold it up for hours; the publisher answers when the connection ends or the broker is stuck.
    async fn publish_surely(
        &self,
        target: Target,
        mut message: Message,
        hold: &Hold,
        give_up: &CancellationToken,
    ) -> Result<(), Settled> {
        let mut told = false;
        loop {
            if !hold.is_live() {
                // Not acknowledged: the broker has taken the delivery back and hands the job over again.
                return Err(Settled::Left);
            }
            let deadline = Instant::now() + FOREVER;
            let error = tokio::select! {
                () = hold.lost() => return Err(Settled::Left),
                result = self.publisher.publish_patiently(target.clone(), message.clone(), deadline) => match result {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                },
                // Not acknowledged: nothing is known to follow, so the job must be handed over again.
                () = give_up.cancelled() => return Err(hand_back(hold)),
            };
            if !told {
                info!(%error, exchange = target.exchange, "not confirmed, trying again");
                told = true;
            }
            match error {
                PublishError::Timeout | PublishError::Lost(_) => {
                    // It may be stored all the same: the next copy is marked as a possible twin.
                    message.headers.insert(header::UNSURE.to_owned(), true.into());
                }
                PublishError::Unroutable => {
                    // What should be there is not: someone deleted a queue or a binding.
                    let _ = self.publisher.link().repair().await;
                }
                _ => {}
            }
            drop(timeout(AGAIN, give_up.cancelled()).await);
        }
    }

    /// Publishes a callback, whatever becomes of the delivery: the end that it tells of is certain.
    async fn call_back(
        &self,
        callback: Option<Envelope>,
        hold: &Hold,
        give_up: &CancellationToken,
    ) -> Result<(), Settled> {
        let Some(callback) = callback else { return Ok(()) };
        match give_up.run_until_cancelled(Box::pin(self.callbacks.publish_surely(callback))).await {
            Some(()) => Ok(()),
            // Not acknowledged: the redelivery is known as ended, and its callback published.
            None => Err(hand_back(hold)),
        }
    }

    fn dead_target(&self, envelope: &Envelope) -> Target {
        let key = Names::dead_key(&envelope.queue, Some(&envelope.kind));
        Target { exchange: self.names.dead(), key, mandatory: true }
    }

    /// The event of an end, after what the handler told last and before that of the callback.
    fn with_company(&self, ended: &mut Ended<'_>, event: Event, callback: Option<&Envelope>) -> Vec<Event> {
        let submitted = callback.map(|callback| self.callbacks.submitted(callback));
        with_untold(ended, event).into_iter().chain(submitted).collect()
    }

    fn reply(&self, ended: &Ended<'_>, status: Status, reason: Option<Reason>, omitted: bool, body: Bytes) {
        let envelope = &ended.envelope;
        debug!(job.id = %envelope.id, kind = %envelope.kind, queue = %envelope.queue, attempt = envelope.attempt, status = status.as_str(), "ended");
        let Some(reply_to) = &envelope.reply_to else { return };
        let reply = Reply {
            job_id: envelope.id,
            run: envelope.run,
            attempt: envelope.attempt,
            status,
            reason: reason.map(|reason| reason.as_str().to_owned()),
            worker: Some(self.worker.clone()),
            started_at: ended.attempt.map(|attempt| attempt.started_at),
            finished_at: Some(ended.attempt.map_or_else(Timestamp::now, |attempt| attempt.finished_at)),
            output_omitted: omitted,
            body,
        };
        self.replier.send(reply_to, envelope.correlation_id.clone(), &reply);
    }
}

fn hand_back(hold: &Hold) -> Settled {
    hold.hand_back();
    Settled::HandedBack
}

/// The event, after what the handler told last.
fn with_untold(ended: &mut Ended<'_>, event: Event) -> Vec<Event> {
    ended.untold.take().map(|told| *told).into_iter().chain([event]).collect()
}

/// An error's text for a log line, which never quotes args.
fn loggable(error: &Failure) -> &str {
    match error.code.as_str() {
        BAD_ARGS => "the args do not fit the kind's type; the job's record says where",
        _ => &error.message,
    }
}

fn warn_failed(envelope: &Envelope, error: &Failure, delay: Duration) {
    warn!(
        job.id = %envelope.id,
        kind = %envelope.kind,
        queue = %envelope.queue,
        attempt = envelope.attempt,
        code = error.code,
        error = loggable(error),
        retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
        "attempt failed",
    );
}
