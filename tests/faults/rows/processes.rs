//! Workers and HTTP fronts are killed, stopped and frozen.

use rustix::process::Signal;
use tokio::time::sleep;

use crate::{
    scene::{Played, Scale, Scene, Site, USUAL},
    verdict::Expected,
};

pub(crate) async fn worker_killed(site: Site, scale: Scale) -> Played {
    let mut scene = Scene::set(site, scale, USUAL).await;
    let times = scale.of(50, 5);
    for time in 0..times {
        scene.until_more_ended(scale.of(100, 5)).await;
        let number = time % scene.workers.len();
        scene.workers[number].process.kill9();
        scene.restart_worker(number);
    }
    scene.end(times, &Expected::default()).await
}

pub(crate) async fn worker_stopped(site: Site, scale: Scale) -> Played {
    let mut scene = Scene::set(site, scale, USUAL).await;
    let times = scale.of(50, 5);
    for time in 0..times {
        scene.until_more_ended(scale.of(100, 5)).await;
        let number = time % scene.workers.len();
        Scene::stop(&mut scene.workers[number].process, scale.patience()).await;
        scene.restart_worker(number);
    }
    let mut played = scene.end(times, &Expected::default()).await;
    if played.figures.before > 0 {
        played.figures.problems.push("a stopped worker let jobs run again".to_owned());
    }
    played
}

pub(crate) async fn worker_frozen(site: Site, scale: Scale) -> Played {
    let scene = Scene::set(site, scale, USUAL).await;
    let (times, time) = (scale.of(6, 1), scale.seconds(15, 6));
    for turn in 0..times {
        let worker = &scene.workers[turn % scene.workers.len()].process;
        worker.signal(Signal::STOP);
        // How long the fault lasts.
        sleep(time).await;
        worker.signal(Signal::CONT);
        scene.until_more_ended(scale.of(200, 10)).await;
    }
    scene.end(format!("{times} × {} s", time.as_secs()), &Expected::default()).await
}

pub(crate) async fn http_killed(site: Site, scale: Scale) -> Played {
    let mut scene = Scene::set(site, scale, USUAL).await;
    let times = scale.of(20, 3);
    for time in 0..times {
        scene.until_more_ended(scale.of(100, 5)).await;
        let number = time % scene.fronts.len();
        scene.fronts[number].front.process.kill9();
        scene.restart_front(number).await;
        scene.until_ready().await;
    }
    scene.end(times, &Expected::default()).await
}
