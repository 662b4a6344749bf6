//! A job that kills its process, among good ones: it is convicted after a few crashes, and nobody with it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::time::sleep;

use crate::{
    scene::{Cast, LOOK, Played, Scale, Scene, Site},
    support::process::KIND,
    verdict::Expected,
};

const WIDE: Cast = Cast {
    fronts: 2,
    workers: 3,
    workers_small: 3,
    own_ladder: false,
    open_max: 3000,
    variables: &[
        ("HOPLINE_AMQP_HEARTBEAT", "2"),
        ("HOPLINE_WORKER_PREFETCH", "100"),
        ("HOPLINE_WORKER_CONCURRENCY", "100"),
    ],
};
/// A handful: two ordinary deliveries, which may each take a worker down, and some luck.
const CRASHES: usize = 8;

/// What else happens, once a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Besides {
    Nothing,
    Cut,
    BrokerKilled,
}

pub(crate) async fn poison(site: Site, scale: Scale) -> Played {
    play(site, scale, Besides::Nothing).await
}

pub(crate) async fn poison_and_cuts(site: Site, scale: Scale) -> Played {
    play(site, scale, Besides::Cut).await
}

pub(crate) async fn poison_and_broker(site: Site, scale: Scale) -> Played {
    play(site, scale, Besides::BrokerKilled).await
}

async fn play(site: Site, scale: Scale, besides: Besides) -> Played {
    let mut scene = Scene::set(site, scale, WIDE).await;
    let good = scale.of(1000, 100);
    let poison = submit(&scene, good).await;
    let address = format!("{}/v1/jobs/{poison}", scene.fronts[0].front.url);
    let (begun, mut last, mut crashes, mut others) = (Instant::now(), Instant::now(), 0, 0);
    let record = loop {
        for number in 0..scene.workers.len() {
            if scene.workers[number].process.status().is_some() {
                crashes += 1;
                scene.restart_worker(number);
            }
        }
        if last.elapsed() >= Duration::from_secs(1) && others < scale.of(20, 4) {
            match besides {
                Besides::Nothing => {}
                Besides::Cut => drop(scene.proxies().map(|proxy| proxy.cut()).sum::<usize>()),
                Besides::BrokerKilled if others % 2 == 0 => {
                    let mut node = scene.node().await;
                    node.kill9().await;
                    node.restart().await.expect("the broker comes back");
                }
                Besides::BrokerKilled => {}
            }
            others += 1;
            last = Instant::now();
        }
        if let Ok(answer) = reqwest::get(&address).await {
            let record: serde_json::Value = answer.json().await.unwrap_or_default();
            if record["status"] == "dead" {
                break record;
            }
        }
        assert!(begun.elapsed() < scale.patience(), "{crashes} crashes, and the poison job is not dead");
        // A restarter looks at its processes.
        sleep(LOOK).await;
    };
    let expected = Expected { poison: BTreeSet::from([poison]), judge: 0 };
    let mut played = scene.end(format!("{crashes} crashes"), &expected).await;
    played.note = format!("{} starts in a child process", played.figures.in_child);
    if record["error"]["reason"] != "poison" {
        played.figures.problems.push(format!("dead for another reason: {record}"));
    }
    if besides == Besides::Nothing && crashes > CRASHES {
        played.figures.problems.push(format!("{crashes} crashes are more than a handful"));
    }
    played
}

/// One batch, the poison in its middle; its id.
async fn submit(scene: &Scene, good: usize) -> String {
    let numbers: Vec<u64> = (0..=good).map(|_| scene.load.number()).collect();
    let job = |(index, n): (usize, &u64)| {
        json!({
            "kind": KIND, "queue": scene.stage.queue,
            "args": { "n": n, "ms": 20, "poison": index == good / 2 },
        })
    };
    let jobs = numbers.iter().enumerate().map(job).collect();
    let ids = scene.fronts[0].front.submit_all(jobs).await;
    for (index, (id, n)) in ids.iter().zip(&numbers).enumerate() {
        scene.load.add(id, *n, index == good / 2);
    }
    ids[good / 2].clone()
}
