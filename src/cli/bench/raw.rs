//! A process of bare lapin: does what it is told until its input ends.

use std::process::ExitCode;

use tokio::sync::oneshot;

use super::{
    ARGS, clock,
    orders::{self, Answer, Order, Orders},
};
use crate::{
    Config,
    amqp::baseline::{Baseline, BaselineError, Span},
};

/// Runs the process.
pub(super) async fn run() -> anyhow::Result<ExitCode> {
    let config = Config::load()?;
    let baseline = Baseline::start(&config.amqp, ARGS).await?;
    let mut orders = Orders::own();
    while let Some(order) = orders.next().await? {
        let done = match order {
            Order::Submit { count, events } => baseline.submit(count, events).await.map(done),
            Order::Work { count, events } => {
                told_ready(|ready| baseline.work(count, events, ready)).await.map(done)
            }
            Order::Call { count, events } => {
                let times = baseline.call(count, events).await;
                times.map(|times| Answer::Times { each: times.iter().map(nanos).collect() })
            }
            Order::Serve { events } => {
                let (stop, stopped) = oneshot::channel();
                let stopping = async {
                    // Whatever comes next, the end of input too, ends it.
                    let _ = orders.next().await;
                    drop(stop);
                    Ok::<(), BaselineError>(())
                };
                let serving = told_ready(|ready| baseline.serve(events, ready, stopped));
                tokio::try_join!(serving, stopping).map(|_| Answer::Ready)
            }
            Order::Stop | Order::Expect { .. } => Ok(Answer::Ready),
        };
        orders::answer(&done.unwrap_or_else(|error| Answer::Failed { why: error.to_string() }));
    }
    baseline.end().await?;
    Ok(ExitCode::SUCCESS)
}

/// Does some work, and answers that the order has been taken as soon as it says so: before it is done, however short it is.
async fn told_ready<T, W: Future<Output = T>>(work: impl FnOnce(oneshot::Sender<()>) -> W) -> T {
    let (ready, told) = oneshot::channel();
    let telling = async {
        if told.await.is_ok() {
            orders::answer(&Answer::Ready);
        }
    };
    tokio::join!(work(ready), telling).0
}

fn done(span: Span) -> Answer {
    Answer::Done { began: clock::of(span.began), ended: clock::of(span.ended) }
}

fn nanos(time: &std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
