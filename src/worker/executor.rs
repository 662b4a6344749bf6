//! One attempt: from an envelope to an outcome. Names no AMQP, so it runs in tests and in child processes alike.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{
    context::{Attempt, Lost, Slot},
    cpu::CpuPool,
    news::News,
    registry::{Entry, Registry},
};
use crate::{
    client::Client,
    event::AttemptOutcome,
    job::{Envelope, JobError, JobResult, Verdict, json},
    retry::RetryPolicy,
    trace::{self, TraceContext},
};

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// The handler returned an output.
    Success {
        /// The output's JSON; `null` where it was left out.
        output: Bytes,
        /// The output was over `limits.output`, or nested too deep.
        omitted: bool,
    },
    /// The handler returned an error.
    Failed(JobError),
    /// The attempt ran longer than its timeout.
    TimedOut(Duration),
    /// The handler panicked.
    Panicked(String),
    /// The child process that ran it died.
    Crashed(String),
    /// The job had expired before the attempt.
    Expired,
    /// Someone had the job cancelled, before the attempt or while it ran.
    Cancelled {
        /// Who, if known.
        by: Option<String>,
        /// Why, if said.
        reason: Option<String>,
    },
    /// The worker was told to stop before the attempt ended.
    HandedBack,
}

impl Outcome {
    /// How the record calls it; nothing where there was no attempt, or where nobody knows how it ended.
    pub(crate) fn recorded(&self) -> Option<AttemptOutcome> {
        match self {
            Self::Success { .. } => Some(AttemptOutcome::Succeeded),
            Self::Failed(error) => Some(match error.verdict() {
                Verdict::Retry | Verdict::RetryIn(_) => AttemptOutcome::Failed,
                Verdict::Snooze(_) => AttemptOutcome::Snoozed,
                Verdict::Fatal => AttemptOutcome::Fatal,
            }),
            Self::TimedOut(_) => Some(AttemptOutcome::TimedOut),
            Self::Panicked(_) => Some(AttemptOutcome::Panicked),
            Self::Crashed(_) => Some(AttemptOutcome::Crashed),
            Self::Cancelled { .. } => Some(AttemptOutcome::Cancelled),
            Self::Expired | Self::HandedBack => None,
        }
    }
}

/// Who had a job cancelled, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Cancellation {
    pub(crate) by: Option<String>,
    pub(crate) reason: Option<String>,
}

impl From<Cancellation> for Outcome {
    fn from(Cancellation { by, reason }: Cancellation) -> Self {
        Self::Cancelled { by, reason }
    }
}

/// How a job is to be run, after what its envelope and its kind say.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Terms {
    pub(crate) timeout: Duration,
    pub(crate) retry: RetryPolicy,
}

impl Terms {
    pub(crate) fn of(envelope: &Envelope, entry: &Entry) -> Self {
        let mut retry = envelope.retry.over(entry.options.retry);
        if let Some(max) = envelope.max_attempts {
            retry.max_attempts = max;
        }
        Self { timeout: envelope.timeout.unwrap_or(entry.options.timeout), retry }
    }
}

/// What ties an attempt to what goes on outside.
#[derive(Debug, Clone, Default)]
pub(crate) struct Strings {
    /// Asks the handler to stop: because the worker does, or because there is an order.
    pub(crate) cancel: CancellationToken,
    /// Drops the handler.
    pub(crate) abort: CancellationToken,
    /// Someone's order to cancel the job, once there is one.
    pub(crate) order: Arc<OnceLock<Cancellation>>,
    /// How long the handler has to end by itself after an order; then it is dropped.
    pub(crate) grace: Duration,
    pub(crate) lost: Lost,
    /// What the handler tells.
    pub(crate) news: Arc<News>,
}

impl Strings {
    /// Asks the handler to stop because the job was cancelled. The first order counts.
    pub(crate) fn order(&self, order: Cancellation) {
        // Set before the token is cancelled: whoever sees that knows why.
        if self.order.set(order).is_ok() {
            self.cancel.cancel();
        }
    }

    /// Completes when an order was given and its grace is over.
    async fn overdue(&self) {
        self.cancel.cancelled().await;
        match self.order.get() {
            Some(_) => sleep(self.grace).await,
            // The worker stops: it has its own way to end this.
            None => std::future::pending().await,
        }
    }

    /// What an outcome means if an order was given meanwhile: a success that came in time is one, all else is what was
    /// asked for.
    pub(crate) fn under_order(&self, outcome: Outcome) -> Outcome {
        match (outcome, self.order.get()) {
            (outcome @ (Outcome::Success { .. } | Outcome::Expired), _) | (outcome, None) => outcome,
            (_, Some(order)) => order.clone().into(),
        }
    }
}

/// Runs attempts.
pub(crate) struct Executor {
    registry: Arc<Registry>,
    client: Client,
    cpu: CpuPool,
    output_limit: usize,
}

impl Executor {
    pub(crate) fn new(registry: Arc<Registry>, client: Client, cpu: CpuPool, output_limit: usize) -> Self {
        Self { registry, client, cpu, output_limit }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Runs one attempt of `envelope` by `entry`'s handler.
    pub(crate) async fn execute(
        &self,
        envelope: Envelope,
        entry: &Entry,
        strings: Strings,
        slot: Slot,
    ) -> Outcome {
        if is_expired(&envelope, Timestamp::now()) {
            return Outcome::Expired;
        }
        let terms = Terms::of(&envelope, entry);
        let attempt = self.attempt(envelope, &terms, &strings, slot);
        let outcome = run(entry, &attempt, &strings, terms.timeout).await;
        // Whatever still runs (CPU work, tasks of the handler's own) learns that nobody waits for it.
        attempt.token.cancel();
        self.limit(strings.under_order(outcome))
    }

    fn attempt(&self, envelope: Envelope, terms: &Terms, strings: &Strings, slot: Slot) -> Arc<Attempt> {
        let cause = trace::current().or_else(|| TraceContext::of(&envelope.extra));
        Arc::new(Attempt {
            envelope,
            max_attempts: terms.retry.max_attempts,
            deadline: Instant::now() + terms.timeout,
            token: strings.cancel.child_token(),
            lost: strings.lost.clone(),
            news: Arc::clone(&strings.news),
            client: self.client.caused_by(cause),
            cpu: self.cpu.clone(),
            slot: Arc::new(slot),
        })
    }

    /// An output over the limit does not make finished work fail: it is left out. So is one that is nested deeper than
    /// args may be, which many could not read, nor the record that holds it.
    fn limit(&self, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Success { output, .. }
                if output.len() > self.output_limit || json::check_depth(&output).is_err() =>
            {
                Outcome::Success { output: Bytes::from_static(b"null"), omitted: true }
            }
            other => other,
        }
    }
}

/// Whether no attempt may start any more.
pub(crate) fn is_expired(envelope: &Envelope, now: Timestamp) -> bool {
    envelope.expires_at.is_some_and(|at| at <= now)
}

/// The handler under its timeout, with panics caught.
async fn run(entry: &Entry, attempt: &Arc<Attempt>, strings: &Strings, timeout: Duration) -> Outcome {
    let args = attempt.envelope.args.clone();
    // The closure's own call is inside the guard: it may panic before it returns its future.
    let handler = (entry.run)(args, Arc::clone(attempt));
    let guarded = timeout_at(attempt.deadline, AssertUnwindSafe(handler).catch_unwind());
    let result = tokio::select! {
        result = guarded => result,
        () = strings.abort.cancelled() => return Outcome::HandedBack,
        () = strings.overdue() => return Outcome::HandedBack,
    };
    match result {
        Err(_) => Outcome::TimedOut(timeout),
        Ok(Err(panic)) => Outcome::Panicked(panic_text(panic.as_ref())),
        Ok(Ok(result)) => returned(result, strings),
    }
}

fn returned(result: JobResult<Bytes>, strings: &Strings) -> Outcome {
    match result {
        Ok(output) => Outcome::Success { output, omitted: false },
        // Asked to stop, it stopped: no attempt is spent on a deploy. A verdict of its own still counts.
        Err(error) if strings.cancel.is_cancelled() && error.verdict() == Verdict::Retry => {
            Outcome::HandedBack
        }
        Err(error) => Outcome::Failed(error),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".to_owned())
}
