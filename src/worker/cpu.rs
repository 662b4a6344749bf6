//! Threads for CPU-bound work: as many as cores, whatever the number of handlers.
//!
//! They are not the runtime's: a runtime waits for its blocking threads before the process may end, and work that does
//! not look at its [`Stop`] would keep a worker alive after SIGTERM, or a child process after its parent.

use std::{io, num::NonZero, panic::AssertUnwindSafe, sync::Arc, thread};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::context::Slot;
use crate::job::{JobError, JobResult};

/// Tells CPU-bound work whether it should stop.
#[derive(Debug, Clone)]
pub struct Stop(CancellationToken);

impl Stop {
    pub(crate) fn new(token: CancellationToken) -> Self {
        Self(token)
    }

    /// Whether the result is no longer wanted.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// A bounded pool; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct CpuPool(Arc<Semaphore>);

impl CpuPool {
    /// A pool of so many threads; 0: one per core.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let threads = match NonZero::new(threads) {
            Some(threads) => threads,
            None => thread::available_parallelism()?,
        };
        Ok(Self::of(threads.get()))
    }

    /// A pool of so many threads.
    pub(crate) fn of(threads: usize) -> Self {
        Self(Arc::new(Semaphore::new(threads)))
    }

    /// Runs `work` as soon as a thread is free; a caller that goes away before that takes it off the list.
    pub(crate) async fn run<T, W>(&self, stop: Stop, slot: Arc<Slot>, work: W) -> JobResult<T>
    where
        T: Send + 'static,
        W: FnOnce(&Stop) -> JobResult<T> + Send + 'static,
    {
        // The semaphore is never closed.
        let place =
            Arc::clone(&self.0).acquire_owned().await.map_err(|_| JobError::retry("error", "no CPU pool"))?;
        let (done, result) = oneshot::channel();
        let runtime = Handle::current();
        let spawned = thread::Builder::new().name("hopline-cpu".to_owned()).spawn(move || {
            // The places go back when the work returns, not when its caller gives up.
            let _held = (place, slot);
            let _inside = runtime.enter();
            // The caller may have given up.
            let _ = done.send(std::panic::catch_unwind(AssertUnwindSafe(|| work(&stop))));
        });
        spawned.map_err(|error| JobError::retry("error", format!("no thread for CPU work: {error}")))?;
        match result.await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            // The thread always answers.
            Err(_) => Err(JobError::retry("error", "the CPU work ended without a result")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_beyond_the_threads_waits_its_turn() {
        let pool = CpuPool::new(1).unwrap();
        let (release, held) = mpsc::channel::<()>();
        let (began, begun) = oneshot::channel();
        let stop = || Stop::new(CancellationToken::new());
        let first = tokio::spawn({
            let pool = pool.clone();
            async move {
                pool.run(stop(), Arc::default(), move |_| {
                    began.send(()).unwrap();
                    held.recv().unwrap();
                    Ok(1)
                })
                .await
            }
        });
        begun.await.unwrap();
        assert_eq!(pool.0.available_permits(), 0);
        // The caller gives up; the thread does not, and keeps its place.
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert_eq!(pool.0.available_permits(), 0);
        release.send(()).unwrap();
        assert_eq!(pool.run(stop(), Arc::default(), |_| Ok(2)).await, Ok(2));
    }

    #[tokio::test]
    #[should_panic(expected = "in the pool")]
    async fn a_panic_comes_out_where_it_was_asked_for() {
        let pool = CpuPool::new(1).unwrap();
        let stop = Stop::new(CancellationToken::new());
        let _ = pool.run::<(), _>(stop, Arc::default(), |_| panic!("in the pool")).await;
    }
}
