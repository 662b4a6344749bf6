//! The broker goes away, or takes nothing. What is slept is how long the fault lasts.

use tokio::time::sleep;

use crate::{
    scene::{Played, Scale, Scene, Site, USUAL},
    verdict::Expected,
};

pub(crate) async fn killed(site: Site, scale: Scale) -> Played {
    let scene = Scene::set(site, scale, USUAL).await;
    let times = scale.of(10, 2);
    for _ in 0..times {
        scene.until_more_ended(scale.of(200, 10)).await;
        let mut node = scene.node().await;
        node.kill9().await;
        node.restart().await.expect("the broker comes back");
    }
    scene.end(times, &Expected::default()).await
}

pub(crate) async fn away(site: Site, scale: Scale) -> Played {
    let scene = Scene::set(site, scale, USUAL).await;
    let time = scale.seconds(60, 5);
    {
        let mut node = scene.node().await;
        node.stop().await;
        // How long the fault lasts.
        sleep(time).await;
        node.restart().await.expect("the broker comes back");
    }
    scene.end(format!("{} s", time.as_secs()), &Expected::default()).await
}

/// Fronts, workers and broker, one after the other, each when the one before is well again.
pub(crate) async fn rolling(site: Site, scale: Scale) -> Played {
    let mut scene = Scene::set(site, scale, USUAL).await;
    let times = scale.of(3, 1);
    for _ in 0..times {
        for number in 0..scene.fronts.len() {
            Scene::stop(&mut scene.fronts[number].front.process, scale.patience()).await;
            scene.restart_front(number).await;
            scene.until_ready().await;
        }
        for number in 0..scene.workers.len() {
            Scene::stop(&mut scene.workers[number].process, scale.patience()).await;
            scene.restart_worker(number);
            scene.until_more_ended(scale.of(100, 5)).await;
        }
        scene.node().await.restart().await.expect("the broker comes back");
        scene.until_more_ended(scale.of(100, 5)).await;
    }
    scene.end(times, &Expected::default()).await
}

pub(crate) async fn memory(site: Site, scale: Scale) -> Played {
    let set = |value: &'static str| ["set_vm_memory_high_watermark", value];
    alarm(site, scale, set("0.00001"), set("0.4")).await
}

pub(crate) async fn disk(site: Site, scale: Scale) -> Played {
    let set = |value: &'static str| ["set_disk_free_limit", value];
    alarm(site, scale, set("100000000000000"), set("50000000")).await
}

async fn alarm(site: Site, scale: Scale, on: [&str; 2], off: [&str; 2]) -> Played {
    let scene = Scene::set(site, scale, USUAL).await;
    let time = scale.seconds(30, 3);
    scene.ctl(&on).await;
    // How long the fault lasts.
    sleep(time).await;
    scene.ctl(&off).await;
    scene.end(format!("{} s", time.as_secs()), &Expected::default()).await
}
