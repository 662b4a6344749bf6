//! Settling: carrying out a disposition. The only caller of ack.
//!
//! The order is what makes a crash at any point repeat work at worst: what follows from an attempt (the copy that
//! asks for the next one, the copy in the dead-letter queue) is published **and confirmed** before the delivery is
//! acknowledged. Once the broker has taken the delivery back, only a success still counts; a retry or a death is
//! left to the redelivery, or there would be two.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{disposition::Disposition, reply::Replier};
use crate::{
    amqp::{
        Names, PublishError,
        consumer::Receipt,
        delay,
        publisher::{Publisher, Target},
    },
    client::Live,
    job::{
        Envelope, Reply, Status,
        dead::{self, Death, Reason},
        envelope::{self, HEADERS_MAX, header},
        reply::Failure,
        wire::{HeaderValue, Message, headers_size},
    },
};

/// Pause before a publish that failed is tried again.
const AGAIN: Duration = Duration::from_millis(250);
/// How often it is asked whether the broker has taken a delivery back.
const LOOK: Duration = Duration::from_millis(250);
/// No deadline: longer than the broker lets a delivery be unsettled.
const FOREVER: Duration = Duration::from_secs(100 * 86_400);

/// The deliveries of one job and step in this process: usually one; a second one when the broker took the first
/// back and handed the job to this very process again, or when a twin of the message exists.
#[derive(Debug)]
pub(super) struct Hold(Mutex<Vec<Receipt>>);

impl Hold {
    pub(super) fn new(receipt: Receipt) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![receipt])))
    }

    /// Takes another delivery of the same job and step: it is settled with the first.
    pub(super) fn attach(&self, receipt: Receipt) {
        let mut receipts = self.receipts();
        receipts.retain(Receipt::is_live);
        receipts.push(receipt);
    }

    /// Completes when the broker no longer counts on this process.
    async fn lost(&self) {
        while self.is_live() {
            sleep(LOOK).await;
        }
    }

    /// Whether the broker still counts on this process.
    pub(super) fn is_live(&self) -> bool {
        self.receipts().iter().any(Receipt::is_live)
    }

    fn ack(&self) {
        self.receipts().drain(..).for_each(Receipt::ack);
    }

    fn hand_back(&self) {
        self.receipts().drain(..).for_each(Receipt::hand_back);
    }

    fn receipts(&self) -> MutexGuard<'_, Vec<Receipt>> {
        // The list is whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job whose attempt has ended.
pub(super) struct Ended<'a> {
    pub(super) envelope: Envelope,
    pub(super) hold: &'a Hold,
    pub(super) started_at: Timestamp,
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
    replier: Replier,
}

impl Settler {
    pub(super) fn new(live: &Live, replier: Replier) -> Self {
        Self {
            names: live.names.clone(),
            worker: live.instance.clone(),
            publisher: live.publisher.clone(),
            replier,
        }
    }

    /// Waits until the replies sent so far are confirmed or have failed.
    pub(super) async fn flush(&self) {
        self.replier.flush().await;
    }

    /// Settles a job whose attempt has ended. `give_up` ends the waiting for a broker that does not confirm.
    pub(super) async fn settle(
        &self,
        ended: Ended<'_>,
        disposition: Disposition,
        give_up: &CancellationToken,
    ) -> Settled {
        let hold = ended.hold;
        match disposition {
            Disposition::Succeed { output, omitted } => {
                // Also on an epoch that is over: what a handler finished is the truth.
                self.reply(&ended, Status::Succeeded, None, omitted, output);
                hold.ack();
                Settled::Done
            }
            Disposition::Expire => {
                let body = failure_body(&Failure {
                    code: "expired".into(),
                    message: "expired before an attempt started".into(),
                });
                self.reply(&ended, Status::Expired, None, false, body);
                hold.ack();
                Settled::Done
            }
            Disposition::Retry { delay, error } => {
                warn_failed(&ended.envelope, &error, delay);
                let copy = ended.envelope.next_attempt();
                self.republish(copy, delay, hold, give_up).await
            }
            Disposition::Snooze { delay } => {
                let copy = ended.envelope.next_step();
                self.republish(copy, delay, hold, give_up).await
            }
            Disposition::Die { reason, error } => self.bury(ended, reason, error, give_up).await,
            Disposition::HandBack => {
                hold.hand_back();
                Settled::HandedBack
            }
        }
    }

    /// Settles a message that is no job we can run: dead, with its body untouched.
    pub(super) async fn bury_raw(
        &self,
        message: &Message,
        queue: &crate::job::QueueName,
        reason: Reason,
        error: &str,
        hold: &Hold,
        give_up: &CancellationToken,
    ) -> Settled {
        let id = envelope::id_of(message, queue);
        warn!(job.id = %id, queue = %queue, reason = reason.as_str(), error, "dead: not a job that can be run");
        let mut copy = Message { message_id: Some(id.to_string()), ..message.clone() };
        copy.headers = envelope::carried_all(&message.headers);
        if headers_size(&copy.headers) > HEADERS_MAX {
            copy.headers = [(dead::mark::HEADERS_DROPPED.to_owned(), HeaderValue::Bool(true))].into();
        }
        let now = Timestamp::now();
        let code = reason.as_str();
        let death = Death { reason, code, error, attempts: 0, worker: &self.worker, at: now };
        let target = Target {
            exchange: self.names.dead(),
            // The kind may be anything; only the queue routes.
            key: Names::dead_key(queue, None),
            mandatory: true,
        };
        if let Err(left) = self.publish_surely(target, dead::mark(copy, &death), hold, give_up).await {
            return left;
        }
        if let Some(reply_to) = message.reply_to.as_deref().filter(|to| !to.is_empty()) {
            let body = failure_body(&Failure { code: code.to_owned(), message: error.to_owned() });
            let reply = Reply {
                job_id: id,
                run: 1,
                attempt: 1,
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

    /// Publishes a message once more, after `delay`, and acknowledges the delivery it came from: a message that
    /// waits for a worker that knows it, or one that is given its id.
    pub(super) async fn pass_on(
        &self,
        message: Message,
        queue: &crate::job::QueueName,
        delay: Duration,
        hold: &Hold,
        give_up: &CancellationToken,
    ) -> Settled {
        // The routing key needs a word for the kind; queues are bound by what comes before it.
        let kind = message.kind.as_deref().and_then(|kind| crate::job::Kind::parse(kind).ok());
        let kind = kind.as_ref().map_or("unknown", crate::job::Kind::as_str);
        let (exchange, key) = self.names.route(queue, kind, delay::ticks_capped(delay));
        match self.publish_surely(Target { exchange, key, mandatory: true }, message, hold, give_up).await {
            Ok(()) => {
                hold.ack();
                Settled::Done
            }
            Err(left) => left,
        }
    }

    async fn republish(
        &self,
        copy: Envelope,
        delay: Duration,
        hold: &Hold,
        give_up: &CancellationToken,
    ) -> Settled {
        self.pass_on(copy.encode(), &copy.queue, delay, hold, give_up).await
    }

    async fn bury(
        &self,
        ended: Ended<'_>,
        reason: Reason,
        error: Failure,
        give_up: &CancellationToken,
    ) -> Settled {
        let Envelope { id, kind, queue, attempt, .. } = &ended.envelope;
        warn!(job.id = %id, kind = %kind, queue = %queue, attempt, reason = reason.as_str(), code = error.code, error = error.message, "dead");
        let death = Death {
            reason,
            code: &error.code,
            error: &error.message,
            attempts: *attempt,
            worker: &self.worker,
            at: Timestamp::now(),
        };
        let target =
            Target { exchange: self.names.dead(), key: Names::dead_key(queue, Some(kind)), mandatory: true };
        let copy = dead::mark(ended.envelope.encode(), &death);
        if let Err(left) = self.publish_surely(target, copy, ended.hold, give_up).await {
            return left;
        }
        self.reply(&ended, Status::Dead, Some(reason), false, failure_body(&error));
        ended.hold.ack();
        Settled::Done
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
                () = give_up.cancelled() => {
                    // Not acknowledged: nothing is known to follow, so the job must be handed over again.
                    hold.hand_back();
                    return Err(Settled::HandedBack);
                }
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
            started_at: Some(ended.started_at),
            finished_at: Some(Timestamp::now()),
            output_omitted: omitted,
            body,
        };
        self.replier.send(reply_to, envelope.correlation_id.clone(), &reply);
    }
}

fn failure_body(failure: &Failure) -> Bytes {
    // Two texts cannot fail to be JSON.
    Bytes::from(serde_json::to_vec(failure).unwrap_or_default())
}

fn warn_failed(envelope: &Envelope, error: &Failure, delay: Duration) {
    warn!(
        job.id = %envelope.id,
        kind = %envelope.kind,
        queue = %envelope.queue,
        attempt = envelope.attempt,
        code = error.code,
        error = error.message,
        retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
        "attempt failed",
    );
}
