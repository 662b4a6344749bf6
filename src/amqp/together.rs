//! What becomes of many publishes, told in one place: at once when all are known ([`Together`]), or one by one
//! ([`Mark`]). A channel and a future for each would cost more than the publish.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::{
    sync::{Notify, mpsc::UnboundedSender},
    time::{Instant, timeout_at},
};

use super::publisher::PublishError;

#[derive(Debug)]
struct Shared {
    results: Box<[OnceLock<Result<(), PublishError>>]>,
    /// How many of them are still to come.
    left: AtomicUsize,
    /// Told when none is.
    all: Notify,
    /// Nobody waits any more.
    abandoned: AtomicBool,
}

/// Waits for all.
#[derive(Debug)]
pub(crate) struct Together {
    shared: Arc<Shared>,
    deadline: Instant,
}

/// One of them; dropped untold, it is lost.
#[derive(Debug)]
pub(crate) struct Part {
    shared: Arc<Shared>,
    index: usize,
}

impl Together {
    /// A place for `count` results, which are waited for until `deadline`, and the parts, in order.
    pub(super) fn of(count: usize, deadline: Instant) -> (Self, impl Iterator<Item = Part>) {
        let shared = Arc::new(Shared {
            results: (0..count).map(|_| OnceLock::new()).collect(),
            left: AtomicUsize::new(count),
            all: Notify::new(),
            abandoned: AtomicBool::new(false),
        });
        let parts = Arc::clone(&shared);
        let parts = (0..count).map(move |index| Part { shared: Arc::clone(&parts), index });
        (Self { shared, deadline }, parts)
    }

    /// All results, in order; what has none at the deadline has [`PublishError::Timeout`].
    pub(crate) async fn results(self) -> Vec<Result<(), PublishError>> {
        let shared = &self.shared;
        if shared.left.load(Ordering::Acquire) > 0 {
            // In time or not: what is there is looked at.
            let _ = timeout_at(self.deadline, shared.all.notified()).await;
        }
        let result = |place: &OnceLock<_>| place.get().cloned().unwrap_or(Err(PublishError::Timeout));
        shared.results.iter().map(result).collect()
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        self.shared.abandoned.store(true, Ordering::Release);
    }
}

impl Part {
    /// Whether nobody waits any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.shared.abandoned.load(Ordering::Acquire)
    }

    pub(super) fn tell(self, result: Result<(), PublishError>) {
        self.set(result);
    }

    fn set(&self, result: Result<(), PublishError>) {
        // The first one counts.
        let _ = self.shared.results[self.index].set(result);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.shared.results[self.index].get().is_none() {
            self.set(Err(PublishError::Lost("the publisher ended".to_owned())));
        }
        if self.shared.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Kept for who waits later.
            self.shared.all.notify_one();
        }
    }
}

/// A publish's number among those of its caller, and what became of it.
pub(crate) type Told = (u64, Result<(), PublishError>);

/// One of many publishes whose caller hears of each as soon as it is known; dropped untold, it is lost.
#[derive(Debug)]
pub(crate) struct Mark {
    number: u64,
    /// Unbounded, but has at most one word for each mark.
    caller: Option<UnboundedSender<Told>>,
}

impl Mark {
    pub(crate) fn new(number: u64, caller: UnboundedSender<Told>) -> Self {
        Self { number, caller: Some(caller) }
    }

    pub(super) fn tell(mut self, result: Result<(), PublishError>) {
        self.say(result);
    }

    fn say(&mut self, result: Result<(), PublishError>) {
        if let Some(caller) = self.caller.take() {
            // Nobody may listen any more.
            let _ = caller.send((self.number, result));
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.say(Err(PublishError::Lost("the publisher ended".to_owned())));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_are_told_in_order_and_what_is_dropped_is_lost() {
        let (together, parts) = Together::of(3, Instant::now() + Duration::from_secs(1));
        let mut parts: Vec<Part> = parts.collect();
        let waiting = tokio::spawn(together.results());
        parts.remove(1).tell(Err(PublishError::Refused));
        assert!(!parts[0].is_abandoned());
        drop(parts.remove(1));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        parts.remove(0).tell(Ok(()));
        let results = waiting.await.unwrap();
        assert!(matches!(results[..], [Ok(()), Err(PublishError::Refused), Err(PublishError::Lost(_))]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_late_times_out_and_is_known_to_be_abandoned() {
        let (together, parts) = Together::of(2, Instant::now() + Duration::from_secs(1));
        let mut parts: Vec<Part> = parts.collect();
        parts.remove(0).tell(Ok(()));
        assert!(matches!(together.results().await[..], [Ok(()), Err(PublishError::Timeout)]));
        assert!(parts[0].is_abandoned());
        parts.remove(0).tell(Ok(()));
        let (none, _) = Together::of(0, Instant::now());
        assert!(none.results().await.is_empty());
    }

    #[tokio::test]
    async fn each_mark_is_told_once_and_what_is_dropped_is_lost() {
        let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
        let [first, second] = [7, 8].map(|number| Mark::new(number, sender.clone()));
        drop(sender);
        second.tell(Err(PublishError::Refused));
        drop(first);
        assert_eq!(told.recv().await, Some((8, Err(PublishError::Refused))));
        assert!(matches!(told.recv().await, Some((7, Err(PublishError::Lost(_))))));
        assert_eq!(told.recv().await, None);
    }
}
