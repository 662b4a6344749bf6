//! The broker is away and the fronts have a spool; or have none, and say so.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use super::record::{Small, fill_disk};
use crate::{
    book,
    load::Client,
    scene::{Cast, Played, Scale, Scene, Site, USUAL, until},
    verdict::Expected,
};

/// One worker that takes one job at a time: the ledger shows in which order they were stored.
const ORDERLY: Cast = Cast {
    workers: 1,
    workers_small: 1,
    variables: &[
        ("HOPLINE_AMQP_HEARTBEAT", "2"),
        ("HOPLINE_RECORD_LOST_AFTER", "10m"),
        ("HOPLINE_WORKER_CONCURRENCY", "1"),
        ("HOPLINE_WORKER_PREFETCH", "1"),
    ],
    ..USUAL
};
/// Nothing ends while the broker is away.
const LASTING: Cast = Cast { open_max: 50_000, ..USUAL };
/// From the broker's return to the first end of a job.
const RECOVERY: Duration = Duration::from_secs(5);

pub(crate) async fn away(site: Site, scale: Scale) -> Played {
    steady(site, scale, true).await
}

pub(crate) async fn away_without(site: Site, scale: Scale) -> Played {
    steady(site, scale, false).await
}

/// 200 submits a second, one after the other at each front, before, while and after the broker is away.
async fn steady(site: Site, scale: Scale, spools: bool) -> Played {
    let scene = set(site, scale, ORDERLY, spools).await;
    scene.drained().await;
    let stop = CancellationToken::new();
    let clients: Vec<JoinHandle<Vec<u64>>> = (0..scene.fronts.len())
        .map(|front| tokio::spawn(submit_steadily(scene.load.client(front), scale, stop.clone())))
        .collect();
    let accepted = scene.load.accepted();
    until("submits are accepted", scale.patience(), async || {
        scene.load.accepted() > accepted + scale.of(200, 20)
    })
    .await;
    let time = scale.seconds(60, 5);
    let mut node = scene.node().await;
    node.stop().await;
    // How long the fault lasts.
    sleep(time).await;
    let before = book::read(&scene.ledger()).len();
    node.restart().await.expect("the broker comes back");
    drop(node);
    let back = Instant::now();
    until("a job ends again", scale.patience(), async || book::read(&scene.ledger()).len() > before).await;
    let first = back.elapsed();
    scene.until_ready().await;
    let accepted = scene.load.accepted();
    let more = scale.of(200, 20);
    until("submits are accepted again", scale.patience(), async || scene.load.accepted() > accepted + more)
        .await;
    stop.cancel();
    let mut in_order = Vec::new();
    for client in clients {
        in_order.push(client.await.expect("a client does not fail"));
    }
    scene.drained().await;
    let lines = book::read(&scene.ledger());
    let (unsure, refused) = {
        let (told, _) = scene.load.told();
        (
            told.codes
                .iter()
                .filter(|(code, _)| code.starts_with("504"))
                .map(|(_, count)| count)
                .sum::<usize>(),
            told.refused.len(),
        )
    };

    let mut played = scene.end(format!("{} s", time.as_secs()), &Expected::default()).await;
    played.note = format!("work again {:.1} s after the broker", first.as_secs_f64());
    let problems = &mut played.figures.problems;
    for submitted in in_order {
        problems.extend(first_disorder(&submitted, &lines));
    }
    if spools && unsure + refused > 0 {
        problems.push(format!("{refused} refused and {unsure} unsure in spite of a spool"));
    }
    // The small mode shares its cores.
    if scale.full && first > RECOVERY {
        problems.push(format!("it took {first:?} to go on"));
    }
    played
}

/// Submits at a hundred a second (in the small mode, twenty) until told to stop; the numbers of those that were accepted,
/// in their order.
async fn submit_steadily(client: Client, scale: Scale, stop: CancellationToken) -> Vec<u64> {
    let mut due = interval(Duration::from_millis(scale.of(10, 50)));
    // What an answer delays is made up for.
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut accepted = Vec::new();
    while !stop.is_cancelled() {
        due.tick().await;
        if let Some(n) = client.submit(json!({ "ms": 0 })).await {
            accepted.push(n);
        }
    }
    accepted
}

/// Two that began in another order than they were accepted in. Repeats, of which the first counts, aside.
fn first_disorder(submitted: &[u64], lines: &[book::Line]) -> Option<String> {
    let mut began = std::collections::BTreeMap::new();
    for (place, line) in lines.iter().filter(|line| line.word == "start").enumerate() {
        began.entry(line.n).or_insert(place);
    }
    let places: Vec<(u64, usize)> = submitted.iter().filter_map(|n| Some((*n, *began.get(n)?))).collect();
    let wrong = places.windows(2).find(|pair| pair[0].1 > pair[1].1)?;
    Some(format!("not in order: {wrong:?}"))
}

/// Fronts are killed while their spools fill.
pub(crate) async fn killed(site: Site, scale: Scale) -> Played {
    let mut scene = set(site, scale, LASTING, true).await;
    scene.node().await.stop().await;
    let times = scale.of(20, 3);
    for time in 0..times {
        let accepted = scene.load.accepted();
        let more = scale.of(100, 10);
        until("the spool takes jobs", scale.patience(), async || scene.load.accepted() >= accepted + more)
            .await;
        let number = time % scene.fronts.len();
        scene.fronts[number].front.process.kill9();
        scene.restart_front(number).await;
    }
    scene.node().await.restart().await.expect("the broker comes back");
    scene.end(times, &Expected::default()).await
}

/// The disk of a spool fills up while the broker is away, and is still full when it is back.
pub(crate) async fn disk_full(site: Site, scale: Scale) -> Played {
    let mut scene = set(site, scale, LASTING, true).await;
    scene.until_ready().await;
    // What it spooled while it started would lie below the small disk.
    until("the spool is empty", scale.patience(), async || ready(&scene, 1).await["spool"]["jobs"] == 0)
        .await;
    Scene::stop(&mut scene.fronts[1].front.process, scale.patience()).await;
    let dir = scene.stage.dir.join("spool-1");
    let _small = Small::mount(&dir, scale.of(96, 48));
    scene.restart_front(1).await;
    scene.until_ready().await;
    scene.node().await.stop().await;
    let times = scale.of(3, 1);
    for _ in 0..times {
        let refused = scene.load.told().0.codes.get("503 spool_unavailable").copied().unwrap_or(0);
        let filler = fill_disk(&dir);
        until("a full disk is said", scale.patience(), async || {
            scene.load.told().0.codes.get("503 spool_unavailable").copied().unwrap_or(0) > refused
        })
        .await;
        fs::remove_file(filler).expect("removed");
        let taken = spooled(&scene, 1).await;
        until("the spool takes jobs again", scale.patience(), async || spooled(&scene, 1).await > taken)
            .await;
    }
    let filler = fill_disk(&dir);
    scene.node().await.restart().await.expect("the broker comes back");
    until("the full disk is emptied", scale.patience(), async || {
        // A front that does not answer has not emptied it.
        ready(&scene, 1).await["spool"]["jobs"] == 0
    })
    .await;
    fs::remove_file(filler).expect("removed");
    scene.end(times, &Expected::default()).await
}

/// How many jobs wait in a front's spool.
async fn spooled(scene: &Scene, front: usize) -> u64 {
    ready(scene, front).await["spool"]["jobs"].as_u64().unwrap_or(0)
}

async fn ready(scene: &Scene, front: usize) -> serde_json::Value {
    let url = format!("{}/readyz", scene.fronts[front].front.url);
    let Ok(answer) = reqwest::get(url).await else { return serde_json::Value::Null };
    answer.json().await.unwrap_or_default()
}

async fn set(site: Site, scale: Scale, cast: Cast, spools: bool) -> Scene {
    Scene::set_with(site, scale, cast, |dir, is_worker, number| {
        let path = dir.join(format!("spool-{number}")).display().to_string();
        if is_worker || !spools { Vec::new() } else { vec![("HOPLINE_SPOOL_PATH", path)] }
    })
    .await
}
