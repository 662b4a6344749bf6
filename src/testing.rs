//! Testing handlers without a broker.
//!
//! [`run`] runs one attempt of a handler in memory, as a worker would: args through JSON, timeout, panics caught,
//! the disposition decided. What the handler enqueues is recorded. What only a broker shows (redelivery, order,
//! delays) is not simulated: test that against a real RabbitMQ.
//!
//! ```
//! use hopline::{Context, Job, JobError, JobResult, testing};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Double { number: i64 }
//! impl Job for Double {
//!     const KIND: &'static str = "math.double";
//!     type Output = i64;
//! }
//!
//! async fn double(job: Double, cx: Context) -> JobResult<i64> {
//!     if job.number < 0 {
//!         return Err(JobError::fatal("negative", "only positive numbers"));
//!     }
//!     if job.number > 100 {
//!         cx.client().enqueue(&Double { number: job.number / 2 }).await?;
//!     }
//!     Ok(job.number * 2)
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let tested = testing::run(double, Double { number: 200 }).await;
//! assert_eq!(tested.output::<i64>().unwrap(), 400);
//! assert_eq!(tested.enqueued[0].args::<Double>().unwrap().number, 100);
//!
//! let tested = testing::run(double, Double { number: -1 }).await;
//! assert!(tested.is_dead());
//! # });
//! ```

use std::{future::IntoFuture, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;

use crate::{
    client::{Client, Recorded},
    config,
    job::{Envelope, Job, JobResult, Kind, Options, QueueName},
    worker::{Cancellation, Context, Disposition, News, Outcome, Registry, Strings, attempt_in_memory},
};

/// How one attempt of a handler ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Tested {
    /// How the attempt ended.
    pub outcome: Outcome,
    /// What a worker would do about it.
    pub disposition: Disposition,
    /// What the handler enqueued, in order.
    pub enqueued: Vec<Recorded>,
    /// What it told by `cx.progress`, in order: percent and text. A worker passes on only the last of each second.
    pub progress: Vec<(u8, String)>,
}

impl Tested {
    /// The output of a success.
    ///
    /// # Errors
    /// How the attempt ended instead, or what serde says when the output is of another type.
    pub fn output<T: serde::de::DeserializeOwned>(&self) -> Result<T, String> {
        match &self.outcome {
            Outcome::Success { output, .. } => {
                serde_json::from_slice(output).map_err(|error| error.to_string())
            }
            other => Err(format!("{other:?}")),
        }
    }

    /// Whether the job would be tried again, and after what pause.
    #[must_use]
    pub fn retried_in(&self) -> Option<Duration> {
        match &self.disposition {
            Disposition::Retry { delay, .. } => Some(*delay),
            _ => None,
        }
    }

    /// Whether the job would be dead now.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.disposition, Disposition::Die { .. })
    }
}

/// One attempt to be made: say more about it, then await it.
#[must_use = "await it"]
pub struct Attempt<J, F, S> {
    job: J,
    handler: F,
    state: S,
    options: Options,
    attempt: u32,
    expired: bool,
    cancelled: Option<Cancelled>,
    client: Client,
}

/// Why the handler finds its token cancelled.
enum Cancelled {
    Stopping,
    Ordered(Cancellation),
}

/// Runs a handler without state on `job`: the first attempt, with default options.
pub fn run<J: Job, F>(handler: F, job: J) -> Attempt<J, F, ()> {
    Attempt {
        job,
        handler,
        state: (),
        options: Options::default(),
        attempt: 1,
        expired: false,
        cancelled: None,
        client: Client::recording(),
    }
}

impl<J, F, S> Attempt<J, F, S> {
    /// Gives the handler this state.
    pub fn state<T>(self, state: T) -> Attempt<J, F, T> {
        let Self { job, handler, options, attempt, expired, cancelled, client, .. } = self;
        Attempt { job, handler, state, options, attempt, expired, cancelled, client }
    }

    /// Runs it under these options.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Makes this the given attempt, from 1.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// The job has expired already.
    pub fn expired(mut self) -> Self {
        self.expired = true;
        self
    }

    /// The worker is being told to stop: the handler finds its token cancelled.
    pub fn cancelled(mut self) -> Self {
        self.cancelled = Some(Cancelled::Stopping);
        self
    }

    /// Someone has the job cancelled: the handler finds its token cancelled, and is dropped 10 s later (the default of
    /// `cancel.grace`).
    pub fn cancelled_by(mut self, who: impl Into<String>) -> Self {
        let order = Cancellation { by: Some(who.into()), reason: None };
        self.cancelled = Some(Cancelled::Ordered(order));
        self
    }
}

impl<J, F, S, R> IntoFuture for Attempt<J, F, S>
where
    J: Job,
    S: Send + Sync + 'static,
    F: Fn(J, Context<S>) -> R + Send + Sync + 'static,
    R: Future<Output = JobResult<J::Output>> + Send + 'static,
{
    type Output = Tested;
    type IntoFuture = BoxFuture<'static, Tested>;

    /// # Panics
    /// When the job cannot be written as JSON, or its kind breaks the rule: it could not be enqueued either.
    fn into_future(self) -> Self::IntoFuture {
        let args = serde_json::to_vec(&self.job).expect("a job is enqueued as JSON");
        let kind = Kind::parse(J::KIND).expect("a kind follows its rule");
        let queue = QueueName::parse(J::QUEUE).expect("a queue follows its rule");
        let mut envelope = Envelope::new(kind, queue, Bytes::from(args));
        envelope.attempt = self.attempt;
        envelope.expires_at = self.expired.then_some(Timestamp::UNIX_EPOCH);
        let mut registry = Registry::default();
        registry.add(self.handler, self.state, self.options);
        let grace = config::Cancel::default().grace;
        let strings = Strings { news: Arc::new(News::remembering()), grace, ..Strings::default() };
        match self.cancelled {
            Some(Cancelled::Stopping) => strings.cancel.cancel(),
            Some(Cancelled::Ordered(order)) => strings.order(order),
            None => {}
        }
        let (client, news) = (self.client, Arc::clone(&strings.news));
        Box::pin(async move {
            let (outcome, disposition) =
                attempt_in_memory(Arc::new(registry), client.clone(), envelope, strings).await;
            let progress = news.all().into_iter().map(|said| (said.percent, said.message)).collect();
            Tested { outcome, disposition, enqueued: client.recorded(), progress }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::{Deserialize, Serialize};
    use serde_json::value::RawValue;

    use super::*;
    use crate::{EnqueueOptions, JobError, job::json};

    /// One job whose args say what is to happen: one line per outcome.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        Fine,
        Fails,
        Fatal,
        Snoozes,
        Panics,
        Hangs,
        Stops,
        LargeOutput,
        Enqueues,
        Tells,
        FinishesAnyway,
    }

    impl Job for Mode {
        const KIND: &'static str = "test.mode";
        type Output = String;
    }

    async fn mode(job: Mode, cx: Context<u32>) -> JobResult<String> {
        match job {
            Mode::Fine => Ok(format!("{} of {}, state {}", cx.attempt(), cx.max_attempts(), cx.state())),
            Mode::Fails => Err("broken")?,
            Mode::Fatal => Err(JobError::fatal("never", "never again")),
            Mode::Snoozes => Err(JobError::snooze(Duration::from_secs(9))),
            Mode::Panics => panic!("at the disco"),
            Mode::Hangs => std::future::pending().await,
            Mode::Stops => {
                cx.cancelled().await;
                Err("stopped")?
            }
            Mode::Tells => {
                cx.progress(50, "half");
                cx.progress(700, format!("{:2000}", "done"));
                Ok(String::new())
            }
            Mode::FinishesAnyway => {
                cx.cancelled().await;
                Ok("done".to_owned())
            }
            Mode::LargeOutput => Ok("x".repeat(2 << 20)),
            Mode::Enqueues => {
                let options = EnqueueOptions { delay: Duration::from_secs(60), ..EnqueueOptions::default() };
                Ok(cx.client().enqueue_with(&Mode::Fine, options).await?.to_string())
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_end_of_an_attempt() {
        let try_it = |job| run(mode, job).state(7_u32).options(Options::new().max_attempts(3));
        assert_eq!(try_it(Mode::Fine).attempt(2).await.output::<String>().unwrap(), "2 of 3, state 7");
        let failed = try_it(Mode::Fails).await;
        assert!((0.8..=1.2).contains(&failed.retried_in().unwrap().as_secs_f64()), "{failed:?}");
        assert!(try_it(Mode::Fails).attempt(3).await.is_dead());
        assert!(try_it(Mode::Fatal).await.is_dead());
        assert_eq!(
            try_it(Mode::Snoozes).await.disposition,
            Disposition::Snooze { delay: Duration::from_secs(9) }
        );
        assert_eq!(try_it(Mode::Panics).await.outcome, Outcome::Panicked("at the disco".into()));
        let timeout = Options::new().timeout(Duration::from_secs(5));
        assert_eq!(
            try_it(Mode::Hangs).options(timeout).await.outcome,
            Outcome::TimedOut(Duration::from_secs(5))
        );
        assert_eq!(try_it(Mode::Stops).cancelled().await.disposition, Disposition::HandBack);
        assert_eq!(try_it(Mode::Fine).expired().await.disposition, Disposition::Expire);
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_ends_all_but_a_success_that_comes_in_time() {
        let try_it = |job| run(mode, job).state(0_u32).cancelled_by("ops");
        let cancelled = Disposition::Cancel { by: Some("ops".to_owned()), reason: None };
        for job in [Mode::Stops, Mode::Fails, Mode::Fatal, Mode::Snoozes, Mode::Panics, Mode::Hangs] {
            let tested = try_it(job).await;
            assert_eq!(tested.disposition, cancelled, "{tested:?}");
        }
        assert_eq!(try_it(Mode::FinishesAnyway).await.output::<String>().unwrap(), "done");
        assert_eq!(try_it(Mode::Fine).expired().await.disposition, Disposition::Expire);
    }

    #[tokio::test]
    async fn what_a_handler_tells_is_kept_within_bounds() {
        let tested = run(mode, Mode::Tells).state(0_u32).await;
        let [half, done] = &tested.progress[..] else { panic!("{tested:?}") };
        assert_eq!(half, &(50, "half".to_owned()));
        assert_eq!((done.0, done.1.len()), (100, 1024));
    }

    #[tokio::test]
    async fn an_output_over_the_limit_still_succeeds() {
        let tested = run(mode, Mode::LargeOutput).state(0_u32).await;
        assert_eq!(tested.outcome, Outcome::Success { output: Bytes::from_static(b"null"), omitted: true });
    }

    /// Its output is nested this deep.
    #[derive(Serialize, Deserialize)]
    struct Nested(usize);

    impl Job for Nested {
        const KIND: &'static str = "test.nested";
        type Output = Box<RawValue>;
    }

    async fn nested(Nested(levels): Nested, _: Context<()>) -> JobResult<Box<RawValue>> {
        Ok(RawValue::from_string(format!("{}{}", "[".repeat(levels), "]".repeat(levels)))?)
    }

    #[tokio::test]
    async fn an_output_may_be_as_deep_as_args() {
        for (levels, left_out) in [(json::MAX_DEPTH, false), (json::MAX_DEPTH + 1, true), (30_000, true)] {
            let Outcome::Success { omitted, .. } = run(nested, Nested(levels)).await.outcome else {
                panic!("{levels}")
            };
            assert_eq!(omitted, left_out, "{levels}");
        }
    }

    #[tokio::test]
    async fn what_a_handler_enqueues_is_recorded() {
        let tested = run(mode, Mode::Enqueues).state(0_u32).await;
        let [recorded] = &tested.enqueued[..] else { panic!("{tested:?}") };
        assert_eq!(recorded.delay, Duration::from_secs(60));
        assert_eq!(recorded.envelope.id.to_string(), tested.output::<String>().unwrap());
    }

    #[tokio::test]
    async fn args_of_another_shape_are_fatal() {
        #[derive(Serialize, Deserialize)]
        struct Other;
        impl Job for Other {
            const KIND: &'static str = "test.mode";
            type Output = ();
        }
        let mut registry = Registry::default();
        registry.add(mode, 0_u32, Options::default());
        let mut envelope =
            Envelope::new(Kind::parse(Other::KIND).unwrap(), QueueName::parse("q").unwrap(), Bytes::new());
        envelope.args = Bytes::from_static(b"{\"what\": 1}");
        let (outcome, disposition) =
            attempt_in_memory(Arc::new(registry), Client::recording(), envelope, Strings::default()).await;
        assert!(matches!(&outcome, Outcome::Failed(error) if error.code() == "bad_args"), "{outcome:?}");
        assert!(matches!(disposition, Disposition::Die { .. }));
    }
}
