//! What a front keeps on disk, the log it is made from, and the clock.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use lapin::{
    BasicProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use reqwest::Method;
use serde_json::json;
use tokio::time::sleep;

use super::faketime;
use crate::{
    scene::{Played, Scale, Scene, Site, USUAL},
    verdict::{self, Expected},
};

/// Its own record is asked at the end.
const SECOND: Expected = Expected { poison: std::collections::BTreeSet::new(), judge: 1 };

pub(crate) async fn corrupted(site: Site, scale: Scale) -> Played {
    let mut scene = Scene::set(site, scale, USUAL).await;
    let times = scale.of(4, 2);
    for time in 0..times {
        scene.until_more_ended(scale.of(500, 20)).await;
        scene.fronts[1].front.process.kill9();
        let path = scene.fronts[1].record.join("record.db");
        // Now its head, now what is in it.
        overwrite(&path, if time % 2 == 0 { 4096 } else { 0 });
        scene.restart_front(1).await;
        scene.until_ready().await;
    }
    scene.end(times, &SECOND).await
}

fn overwrite(path: &Path, from: u64) {
    let mut file = OpenOptions::new().write(true).open(path).expect("the database");
    file.seek(SeekFrom::Start(from)).expect("sought");
    file.write_all(&[0xa5; 64 * 1024]).expect("written");
    file.sync_all().expect("on disk");
}

/// A small file system on a folder, until it is dropped.
pub(super) struct Small(PathBuf);

impl Small {
    pub(super) fn mount(dir: &Path, mebibytes: u64) -> Self {
        fs::create_dir_all(dir).expect("a folder");
        let size = format!("size={mebibytes}m");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir).status();
        assert!(done.is_ok_and(|status| status.success()), "cannot mount a tmpfs");
        Self(dir.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Takes what is left of the disk; the file that does.
pub(super) fn fill_disk(dir: &Path) -> PathBuf {
    let filler = dir.join("filler");
    let mut file = File::create(&filler).expect("a file");
    for size in [64 * 1024, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    filler
}

pub(crate) async fn disk_full(site: Site, scale: Scale) -> Played {
    let mut scene = Scene::set(site, scale, USUAL).await;
    let time = scale.seconds(20, 4);
    Scene::stop(&mut scene.fronts[1].front.process, scale.patience()).await;
    let dir = scene.fronts[1].record.clone();
    let _small = Small::mount(&dir, scale.of(256, 24));
    scene.restart_front(1).await;
    scene.until_ready().await;
    let times = scale.of(3, 1);
    for _ in 0..times {
        let filler = fill_disk(&dir);
        // How long the fault lasts.
        sleep(time).await;
        fs::remove_file(filler).expect("removed");
        scene.until_ready().await;
        scene.until_more_ended(scale.of(200, 10)).await;
    }
    scene.end(format!("{times} × {} s", time.as_secs()), &SECOND).await
}

pub(crate) async fn clock_ahead(site: Site, scale: Scale) -> Played {
    clock(site, scale, "+1h").await
}

pub(crate) async fn clock_behind(site: Site, scale: Scale) -> Played {
    clock(site, scale, "-1h").await
}

async fn clock(site: Site, scale: Scale, off: &str) -> Played {
    let library = faketime().expect("a row that needs it has it").to_string_lossy().into_owned();
    let scene = Scene::set_with(site, scale, USUAL, |_, _, number| {
        if number != 1 {
            return Vec::new();
        }
        let monotonic = ["FAKETIME_DONT_FAKE_MONOTONIC", "DONT_FAKE_MONOTONIC"];
        let mut variables = monotonic.map(|name| (name, "1".to_owned())).to_vec();
        variables.extend([("LD_PRELOAD", library.clone()), ("FAKETIME", off.to_owned())]);
        variables
    })
    .await;
    // How long the fault lasts, at least.
    sleep(scale.seconds(20, 3)).await;
    scene.end("all the time", &SECOND).await
}

/// Retention goes by whole segments, of 64 MiB: the log is filled with what is no event, under a policy that leaves it
/// little.
pub(crate) async fn truncated(site: Site, scale: Scale) -> Played {
    let mut scene = Scene::set(site, scale, USUAL).await;
    scene.until_more_ended(scale.of(2000, 50)).await;
    scene.fronts[1].front.process.kill9();
    let prefix = scene.stage.prefix.clone();
    let policy = format!("policies/%2f/{prefix}");
    let small = json!({
        "pattern": format!("^{prefix}\\.log$"), "apply-to": "queues", "priority": 99,
        "definition": { "max-length-bytes": 1_000_000 },
    });
    scene.manage(Method::PUT, &policy, Some(small)).await;
    // The policy reaches the stream in its own time.
    sleep(Duration::from_secs(2)).await;
    // What ends now may leave the log before the other front has read it: nobody could tell it then.
    scene.drained().await;
    verdict::until_recorded(&scene, 0).await;
    fill(&scene).await;
    scene.load.go_on();
    let first = first_offset(&scene).await;
    scene.restart_front(1).await;
    scene.until_ready().await;
    scene.manage(Method::DELETE, &policy, None).await;
    // The other front's record is asked: this one cannot know what the log has lost.
    let mut played = scene.end(1, &Expected::default()).await;
    played.note = format!("the log began at {first}");
    if first == 0 {
        played.figures.problems.push("the log was not truncated".to_owned());
    }
    played
}

async fn fill(scene: &Scene) {
    const MEBIBYTES: usize = 140;
    let (connection, channel) = scene.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let body = vec![b'x'; 1 << 20];
    for _ in 0..MEBIBYTES {
        let record = format!("{}.record", scene.stage.prefix);
        let properties = BasicProperties::default().with_type("faults.filler".into());
        let options = BasicPublishOptions::default();
        let published = channel.basic_publish(record.into(), "".into(), options, &body, properties).await;
        published.expect("published").await.expect("confirmed");
    }
    let _ = connection.close(200, "".into()).await;
}

async fn first_offset(scene: &Scene) -> u64 {
    use futures_util::StreamExt;
    use lapin::{
        options::{BasicConsumeOptions, BasicQosOptions},
        types::{AMQPValue, FieldTable},
    };
    let (_connection, channel) = scene.channel().await;
    channel.basic_qos(1, BasicQosOptions::default()).await.expect("a prefetch");
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    let log = format!("{}.log", scene.stage.prefix);
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume(log.into(), "first".into(), options, arguments).await.expect("the log");
    let delivery = consumer.next().await.expect("the consumer lives").expect("a delivery");
    verdict::offset(&delivery.properties)
}
