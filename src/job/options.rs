//! What a worker's code says of a kind: timeout, concurrency, retry policy.

use std::time::Duration;

use crate::retry::RetryPolicy;

/// The run timeout of a kind that sets none: 10 minutes.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// How one kind is run by this worker. A job may override timeout and retry policy for itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Longest run of one attempt. Default 10 minutes. Must stay below the broker's consumer timeout.
    pub timeout: Duration,
    /// Most attempts of this kind at the same time in this process; `None`: as many as the queue allows.
    pub concurrency: Option<usize>,
    /// When a failed attempt is tried again.
    pub retry: RetryPolicy,
    /// Another queue than [`crate::Job::QUEUE`] to take this kind from.
    pub queue: Option<String>,
    /// Whether args and outputs stay out of the record (for what must not be kept). Default false.
    pub private: bool,
    /// That this kind should not be used any more, and what to use instead; at most 500 bytes, the rest is cut.
    pub deprecated: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: DEFAULT_TIMEOUT,
            concurrency: None,
            retry: RetryPolicy::default(),
            queue: None,
            private: false,
            deprecated: None,
        }
    }
}

impl Options {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the longest run of one attempt.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how many attempts of this kind run at the same time in this process.
    #[must_use]
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = Some(concurrency);
        self
    }

    /// Sets the retry policy.
    #[must_use]
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// Sets the number of attempts, the first included.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.retry.max_attempts = attempts;
        self
    }

    /// Takes this kind from another queue than its type names.
    #[must_use]
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// Keeps args and outputs of this kind out of the record. Whoever submits learns it from the worker's
    /// announcement: what is submitted before the first worker has announced the kind is recorded.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// Says that this kind should not be used any more, and what to use instead. It is announced, and nothing else.
    #[must_use]
    pub fn deprecated(mut self, instead: impl Into<String>) -> Self {
        self.deprecated = Some(instead.into());
        self
    }
}
