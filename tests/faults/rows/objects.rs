//! What is at the broker is deleted, closed, purged or full.

use std::time::Duration;

use lapin::{
    options::{
        ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
    },
    types::{AMQPValue, FieldTable},
};
use reqwest::Method;
use tokio::time::sleep;

use crate::{
    scene::{Cast, Played, Scale, Scene, Site, USUAL},
    verdict::Expected,
};

/// The rhythm of deletions: under load, something is published in between.
const SOON: Duration = Duration::from_millis(700);
/// Jobs fall off the ladder where a queue is away.
const OWN_LADDER: Cast = Cast { own_ladder: true, ..USUAL };

/// Whoever publishes to an exchange that is not there gets a 404, which closes the channel and leaves the connection.
pub(crate) async fn channels(site: Site, scale: Scale) -> Played {
    let scene = Scene::set(site, scale, USUAL).await;
    let (_connection, channel) = scene.channel().await;
    let mut times = 0;
    for _ in 0..scale.of(5, 1) {
        for name in ["jobs", "record", "events", "replies", "dead", "control"] {
            let exchange = format!("{}.{name}", scene.stage.prefix);
            let deleted = channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await;
            deleted.expect("deleted");
            times += 1;
            // The rhythm of the fault.
            sleep(SOON).await;
        }
        scene.until_more_ended(scale.of(200, 10)).await;
    }
    scene.end(times, &Expected::default()).await
}

/// By the management API, as an operator does it.
pub(crate) async fn connections(site: Site, scale: Scale) -> Played {
    let scene = Scene::set(site, scale, USUAL).await;
    let (rounds, mut closed) = (scale.of(5, 1), 0);
    for _ in 0..rounds {
        // The management API learns of a connection within some seconds.
        let names = crate::support::process::eventually("our connections are listed", async || {
            let ours: Vec<u16> = scene.proxies().flat_map(|proxy| proxy.peers()).collect();
            let all = scene.manage(Method::GET, "connections", None).await;
            let listed = all.as_array().into_iter().flatten().filter(|connection| {
                let port = connection["peer_port"].as_u64().and_then(|port| u16::try_from(port).ok());
                port.is_some_and(|port| ours.contains(&port))
            });
            let names: Vec<String> =
                listed.filter_map(|connection| connection["name"].as_str().map(str::to_owned)).collect();
            (names.len() >= scene.proxies().count()).then_some(names)
        })
        .await;
        for name in names {
            let name = name.replace(' ', "%20").replace('>', "%3E");
            scene.manage(Method::DELETE, &format!("connections/{name}"), None).await;
            closed += 1;
        }
        scene.until_more_ended(scale.of(200, 10)).await;
    }
    assert!(closed >= rounds * scene.proxies().count(), "only {closed} connections were closed");
    scene.end(closed, &Expected::default()).await
}

/// A queue that holds nothing is deleted: its consumers are cancelled, and somebody declares it again.
pub(crate) async fn queues(site: Site, scale: Scale) -> Played {
    let scene = Scene::set(site, scale, OWN_LADDER).await;
    let times = scale.of(10, 3);
    let (_connection, channel) = scene.channel().await;
    for _ in 0..times {
        scene.drained().await;
        for queue in
            [scene.stage.work_queue(), scene.stage.dead_queue(), format!("{}.lookup", scene.stage.prefix)]
        {
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("deleted");
        }
        scene.load.go_on();
        scene.until_more_ended(scale.of(300, 20)).await;
    }
    scene.end(times, &Expected::default()).await
}

/// The work queue's way from the exchanges of jobs, and from the foot of the delay ladder.
pub(crate) async fn bindings(site: Site, scale: Scale) -> Played {
    let scene = Scene::set(site, scale, OWN_LADDER).await;
    let times = scale.of(30, 4);
    let (_connection, channel) = scene.channel().await;
    let (queue, key) = (scene.stage.work_queue(), format!("{}.normal.#", scene.stage.queue));
    for time in 0..times {
        let gone = if time % 2 == 0 {
            vec![("direct", format!("{}.normal", scene.stage.queue)), ("jobs", key.clone())]
        } else {
            vec![("delay.ready", format!("{}{key}", "*.".repeat(28)))]
        };
        for (exchange, key) in gone {
            let exchange = format!("{}.{exchange}", scene.stage.prefix);
            let (queue, none) = (queue.as_str().into(), FieldTable::default());
            channel.queue_unbind(queue, exchange.into(), key.into(), none).await.expect("unbound");
        }
        // The rhythm of the fault.
        sleep(Duration::from_secs(1)).await;
    }
    scene.end(times, &Expected::default()).await
}

pub(crate) async fn purge(site: Site, scale: Scale) -> Played {
    let scene = Scene::set(site, scale, USUAL).await;
    let times = scale.of(10, 3);
    let (_connection, channel) = scene.channel().await;
    for _ in 0..times {
        scene.drained().await;
        let queue = scene.stage.work_queue();
        channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await.expect("purged");
        scene.load.go_on();
        scene.until_more_ended(scale.of(300, 20)).await;
    }
    scene.end(times, &Expected::default()).await
}

/// RabbitMQ nacks a publish that any of the queues refuses.
pub(crate) async fn subscriber(site: Site, scale: Scale) -> Played {
    let scene = Scene::set(site, scale, USUAL).await;
    let (_connection, channel) = scene.channel().await;
    let queue = format!("{}.subscriber", scene.stage.prefix);
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(5));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let name = queue.as_str();
    channel.queue_declare(name.into(), QueueDeclareOptions::default(), arguments).await.expect("a queue");
    let (events, options) = (format!("{}.events", scene.stage.prefix), QueueBindOptions::default());
    let bound = channel.queue_bind(name.into(), events.into(), "#".into(), options, FieldTable::default());
    bound.await.expect("bound");
    let time = scale.seconds(30, 3);
    // How long the fault lasts.
    sleep(time).await;
    let site = scene.site.clone();
    let full = site.broker.waiting(&queue).await;
    let played = scene.end(format!("{} s", time.as_secs()), &Expected::default()).await;
    assert!(full >= 5, "the subscriber's queue was not full: {full}");
    let _ = channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
    played
}
