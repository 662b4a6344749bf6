//! The network between processes and broker.
//!
//! What is slept is how long a fault lasts, or its rhythm.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    proxy::{Mode, Proxy},
    scene::{Played, Scale, Scene, Site, USUAL},
    verdict::Expected,
};

pub(crate) async fn cut(site: Site, scale: Scale) -> Played {
    every_second(site, scale, Proxy::cut).await
}

pub(crate) async fn reset(site: Site, scale: Scale) -> Played {
    every_second(site, scale, Proxy::reset).await
}

async fn every_second(site: Site, scale: Scale, end: fn(&Proxy) -> usize) -> Played {
    let scene = Scene::set(site, scale, USUAL).await;
    let times = scale.of(60, 5);
    let mut ended = 0;
    for _ in 0..times {
        // The rhythm of the fault.
        sleep(Duration::from_secs(1)).await;
        ended += scene.proxies().map(end).sum::<usize>();
    }
    assert!(ended > times, "only {ended} connections were ended");
    let mut played = scene.end(times, &Expected::default()).await;
    played.note = format!("{ended} connections");
    played
}

pub(crate) async fn half_open(site: Site, scale: Scale) -> Played {
    let scene = Scene::set(site, scale, USUAL).await;
    let (times, time) = (scale.of(5, 1), scale.seconds(15, 6));
    for _ in 0..times {
        scene.proxies().for_each(|proxy| proxy.set(Mode::Hang));
        // Beyond the heartbeat: each side notices.
        sleep(time).await;
        scene.heal();
        scene.until_more_ended(scale.of(200, 10)).await;
    }
    scene.end(format!("{times} × {} s", time.as_secs()), &Expected::default()).await
}

pub(crate) async fn delay(site: Site, scale: Scale) -> Played {
    let late = Duration::from_millis(50);
    slow(site, scale, Mode::Delay(late), "50 ms").await
}

pub(crate) async fn throttle(site: Site, scale: Scale) -> Played {
    slow(site, scale, Mode::Throttle(32 * 1024), "32 KiB/s").await
}

async fn slow(site: Site, scale: Scale, mode: Mode, how: &str) -> Played {
    let scene = Scene::set(site, scale, USUAL).await;
    let time = scale.seconds(30, 5);
    scene.proxies().for_each(|proxy| proxy.set(mode));
    // How long the fault lasts.
    sleep(time).await;
    scene.end(format!("{how}, {} s", time.as_secs()), &Expected::default()).await
}

pub(crate) async fn partition(site: Site, scale: Scale) -> Played {
    let scene = Scene::set(site, scale, USUAL).await;
    let time = scale.seconds(20, 4);
    let alone = &scene.fronts[1].proxy;
    alone.set(Mode::Refuse);
    alone.cut();
    // How long the fault lasts.
    sleep(time).await;
    alone.set(Mode::Pass);
    scene.until_ready().await;
    alone.set(Mode::Hang);
    // As long again.
    sleep(time).await;
    // The one that was away has it all at the end.
    let expected = Expected { judge: 1, ..Expected::default() };
    scene.end(format!("2 × {} s", time.as_secs()), &expected).await
}
