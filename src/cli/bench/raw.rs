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
                let working = baseline.work(count, events, tell_ready());
                working.await.map(done)
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
                let serving = baseline.serve(events, tell_ready(), stopped);
                tokio::try_join!(serving, stopping).map(|_| Answer::Ready)
            }
            Order::Stop | Order::Expect { .. } => Ok(Answer::Ready),
        };
        orders::answer(&done.unwrap_or_else(|error| Answer::Failed { why: error.to_string() }));
    }
    baseline.end().await?;
    Ok(ExitCode::SUCCESS)
}

/// Answers that the order has been taken as soon as it has.
fn tell_ready() -> oneshot::Sender<()> {
    let (ready, told) = oneshot::channel();
    tokio::spawn(async move {
        if told.await.is_ok() {
            orders::answer(&Answer::Ready);
        }
    });
    ready
}

fn done(span: Span) -> Answer {
    Answer::Done { began: clock::of(span.began), ended: clock::of(span.ended) }
}

fn nanos(time: &std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
