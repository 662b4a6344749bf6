//! A broker that goes away and comes back under load.

use std::time::Duration;

use futures_util::future::join_all;
use hopline::up::Node;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    process_worker::item,
    support::{
        broker::Broker,
        process::{
            Front, Stage, Submitted, eventually, free_port, new_folder, say, submit_until, until_status,
        },
    },
};

/// Lines of the ledger between two outages.
const LINES: usize = 1000;

/// A starting broker may move a message off the ladder before the queue it goes to is up. It notices after 3 minutes
/// (RabbitMQ's `dead_letter_worker_publisher_confirm_timeout`), and moves it again.
const LATE: Duration = Duration::from_secs(180 + 60);

/// guarantees: broker stopped, broker killed. Every job that was answered 202 ends; http and workers come back alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_restarted_three_times_under_load_loses_nothing() {
    let dir = new_folder();
    let (mut node, broker) = Broker::private(&dir).await;
    let stage = Stage::private(broker, dir);
    let mut front = stage.serve().await;
    let health = format!("127.0.0.1:{}", free_port());
    let mut workers = [stage.ledger_worker(&[("HOPLINE_WORKER_HEALTH", &health)]), stage.ledger_worker(&[])];
    let health = format!("http://{health}/healthz");
    until_status(&health, 200).await;

    let stop = CancellationToken::new();
    let quick = item(&stage, &json!({ "ms": 20 }));
    let failing = item(&stage, &json!({ "ms": 20, "ends": ["fail", "well"] }));
    let submitters = (0..4)
        .map(|_| submit_until(&stop, &front, [quick.clone(), failing.clone()], Duration::from_millis(5)));
    let submitting = join_all(submitters);
    let restarting = async {
        for killed in [false, true, true] {
            restart_under_load(&mut node, &stage, &front, &health, killed).await;
        }
        stop.cancel();
    };
    let (submitted, ()) = tokio::join!(submitting, restarting);
    let submitted = submitted.into_iter().fold(Submitted::default(), Submitted::and);
    stage.ledger().until_all_ended_within(LATE, &submitted.accepted).await;
    for worker in &mut workers {
        worker.stop().await;
    }
    front.process.stop().await;
    assert_nothing_lost(&stage, &submitted).await;
    node.stop().await;
}

/// Waits for some progress, takes the broker away, and sees that everybody notices and comes back.
async fn restart_under_load(node: &mut Node, stage: &Stage, front: &Front, health: &str, killed: bool) {
    let so_far = stage.ledger().lines().len();
    eventually("work goes on", async || (stage.ledger().lines().len() > so_far + LINES).then_some(())).await;
    if killed {
        node.kill9().await;
    } else {
        node.stop().await;
    }
    until_status(health, 503).await;
    until_status(&format!("{}/readyz", front.url), 503).await;
    node.restart().await.expect("the broker comes back");
    until_status(health, 200).await;
    front.until_ready().await;
}

async fn assert_nothing_lost(stage: &Stage, submitted: &Submitted) {
    let Submitted { accepted, unsure, refused, codes } = submitted;
    let ledger = stage.ledger();
    let ends = ledger.count("end");
    let lost: Vec<_> = accepted.iter().filter(|job| !ends.contains_key(*job)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    let stranger: Vec<_> =
        ends.keys().filter(|job| !accepted.contains(job) && !unsure.contains(job)).collect();
    assert!(stranger.is_empty(), "refused with 503, but run: {stranger:?}");
    let repeats = ends.values().map(|count| count - 1).sum::<usize>();
    let late = unsure.iter().filter(|job| ends.contains_key(*job)).count();
    say(format_args!(
        "{} jobs accepted, all ended; {repeats} ends more than one; {} unsure, {late} of them ended; {refused} refused; {codes:?}",
        accepted.len(),
        unsure.len(),
    ));
    assert!(*refused > 0, "nobody was refused: the broker was not away");
    assert_eq!(stage.broker.waiting(&stage.dead_queue()).await, 0, "somebody was convicted");
    assert_eq!(stage.broker.waiting(&stage.work_queue()).await, 0);
}
