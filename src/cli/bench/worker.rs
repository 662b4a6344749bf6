//! The worker of a benchmark: a process as any worker, with jobs that do nothing. Says when it has run so many.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{
    ARGS, clock,
    orders::{self, Answer, Order, Orders},
};
use crate::{Config, Context, Job, JobResult, Options, Worker};

/// A job with nothing to do.
#[derive(Serialize, Deserialize)]
pub(super) struct Noop {
    filler: String,
}

impl Job for Noop {
    const KIND: &'static str = "bench.noop";
    const QUEUE: &'static str = "bench";
    type Output = ();
}

/// As [`Noop`], in other queues.
macro_rules! spread {
    ($($name:ident $kind:literal $queue:literal),*) => {
        $(
            #[derive(Serialize, Deserialize)]
            struct $name {
                filler: String,
            }

            impl Job for $name {
                const KIND: &'static str = $kind;
                const QUEUE: &'static str = $queue;
                type Output = ();
            }
        )*

        /// Kind and queue of each.
        pub(super) const SPREAD: &[(&str, &str)] = &[$(($kind, $queue)),*];

        fn register_spread(worker: Worker<Arc<Ran>>) -> Worker<Arc<Ran>> {
            worker$(.register_with(async |_: $name, cx: Context<Arc<Ran>>| { cx.state().one(); Ok(()) }, Options::new()))*
        }
    };
}

spread!(
    Noop0 "bench.noop0" "bench-0",
    Noop1 "bench.noop1" "bench-1",
    Noop2 "bench.noop2" "bench-2",
    Noop3 "bench.noop3" "bench-3"
);

/// Returns its args.
#[derive(Serialize, Deserialize)]
pub(super) struct Echo {
    filler: String,
}

impl Job for Echo {
    const KIND: &'static str = "bench.echo";
    const QUEUE: &'static str = "bench";
    type Output = Self;
}

/// The args of each job of a benchmark, [`ARGS`] bytes.
pub(super) fn args() -> Vec<u8> {
    const AROUND: usize = r#"{"filler":""}"#.len();
    format!(r#"{{"filler":"{}"}}"#, "x".repeat(ARGS - AROUND)).into_bytes()
}

/// How many jobs have been run, and when.
#[derive(Default)]
struct Ran {
    count: AtomicUsize,
    expected: AtomicUsize,
    first: AtomicU64,
    last: AtomicU64,
    reached: Notify,
}

impl Ran {
    fn expect(&self, count: usize) {
        self.count.store(0, Ordering::SeqCst);
        self.expected.store(count, Ordering::SeqCst);
    }

    fn one(&self) {
        let number = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        if number == 1 {
            self.first.store(clock::now(), Ordering::SeqCst);
        }
        if number == self.expected.load(Ordering::SeqCst) {
            self.last.store(clock::now(), Ordering::SeqCst);
            self.reached.notify_one();
        }
    }
}

async fn noop(_: Noop, cx: Context<Arc<Ran>>) -> JobResult<()> {
    cx.state().one();
    Ok(())
}

async fn echo(job: Echo, cx: Context<Arc<Ran>>) -> JobResult<Echo> {
    cx.state().one();
    Ok(job)
}

/// Runs the process until SIGTERM; `spread`: with the jobs of other queues.
pub(super) async fn run(spread: bool) -> anyhow::Result<ExitCode> {
    let ran = Arc::new(Ran::default());
    let worker = Worker::new(Config::load()?)
        .state(Arc::clone(&ran))
        .register_with(noop, Options::new())
        .register_with(echo, Options::new());
    let worker = if spread { register_spread(worker) } else { worker };
    let listening = tokio::spawn(listen(ran));
    worker.run().await?;
    listening.abort();
    Ok(ExitCode::SUCCESS)
}

/// Takes orders until the end of input.
async fn listen(ran: Arc<Ran>) -> anyhow::Result<()> {
    let mut orders = Orders::own();
    while let Some(order) = orders.next().await? {
        let Order::Expect { count } = order else { continue };
        ran.expect(count);
        orders::answer(&Answer::Ready);
        ran.reached.notified().await;
        let (began, ended) = (ran.first.load(Ordering::SeqCst), ran.last.load(Ordering::SeqCst));
        orders::answer(&Answer::Done { began, ended });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_and_the_last_of_what_is_expected_are_noted() {
        let ran = Ran::default();
        ran.one();
        ran.expect(2);
        ran.one();
        assert_eq!((ran.count.load(Ordering::SeqCst), ran.last.load(Ordering::SeqCst)), (1, 0));
        ran.one();
        ran.reached.notified().await;
        assert!(ran.first.load(Ordering::SeqCst) <= ran.last.load(Ordering::SeqCst));
    }

    #[test]
    fn args_have_their_length() {
        assert_eq!(args().len(), ARGS);
        let read: Noop = serde_json::from_slice(&args()).unwrap();
        assert!(read.filler.chars().all(|c| c == 'x'));
    }
}
