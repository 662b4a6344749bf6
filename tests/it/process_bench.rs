//! `hopline bench` as a process: with tiny numbers it measures everything, and leaves nothing behind.

use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    process::{PATIENCE, Process, Stage, eventually, hopline},
    rabbit::Rabbit,
};

/// What a run that is given all measurements has numbers of.
const NUMBERS: [&str; 44] = [
    "raw.publish",
    "raw.consume",
    "raw.both",
    "raw.naive",
    "raw.batched",
    "end-to-end",
    "end-to-end.lag",
    "submit-64",
    "submit-64.p50",
    "submit-64.p99",
    "submit-256",
    "submit-256.p50",
    "submit-256.p99",
    "raw.drain",
    "submit-batch",
    "drain",
    "drain.run",
    "raw.call.p50",
    "raw.call.p99",
    "raw.call-events.p50",
    "raw.call-events.p99",
    "call.p50",
    "call.p99",
    "call-64",
    "call-64.p50",
    "call-64.p99",
    "call-1000",
    "call-1000.p50",
    "call-1000.p99",
    "read.job.p50",
    "read.job.p99",
    "read.list.p50",
    "read.list.p99",
    "scale-1",
    "scale-2",
    "scale-4",
    "scale-8",
    "start.http",
    "start.worker",
    "rebuild",
    "idle.http.memory",
    "idle.http.cpu",
    "idle.worker.memory",
    "idle.worker.cpu",
];

const TINY: [&str; 10] =
    ["--jobs", "300", "--backlog", "700", "--calls", "10", "--rounds", "2", "--large", "300"];

/// The names of the broker's queues and exchanges that begin like this; `None`: RabbitMQ 3.10 answers 500 while queues of
/// its list are being deleted.
async fn left_of(prefix: &str) -> Option<Vec<String>> {
    let rabbit = Rabbit::new();
    let mut left = Vec::new();
    for kind in ["queues", "exchanges"] {
        let path =
            format!("{kind}/{{vhost}}?page=1&page_size=500&use_regex=false&name={prefix}.&columns=name");
        let (status, list) = rabbit.ask(Method::GET, &path, None).await;
        if !status.is_success() {
            return None;
        }
        let items = list["items"].as_array().cloned().unwrap_or_default();
        left.extend(items.iter().filter_map(|item| item["name"].as_str().map(str::to_owned)));
    }
    Some(left)
}

/// Queues that belonged to killed processes go a moment later than these.
async fn nothing_is_left_of(prefix: &str) {
    eventually("nothing is left on the broker", async || left_of(prefix).await?.is_empty().then_some(()))
        .await;
}

#[tokio::test]
async fn a_run_measures_everything_and_leaves_nothing_behind() {
    let stage = Stage::new();
    let json = stage.dir.join("report.json");
    let mut command = stage.command(&hopline());
    let docs = stage.dir.join("docs");
    command.arg("bench").args(TINY).arg("--json").arg(&json).arg("--docs").arg(&docs);
    let mut bench = Process::spawn(command, &stage.dir, "bench");
    // All measurements twice, by a debug build: a minute of work where nothing else runs.
    let status = bench.ended_within(PATIENCE * 3).await;
    assert!(status.success(), "{status}:\n{}", bench.log());

    let report: Value = serde_json::from_slice(&std::fs::read(&json).expect("a report")).expect("JSON");
    let numbers = report["numbers"].as_array().expect("numbers");
    let names: Vec<&str> = numbers.iter().filter_map(|number| number["name"].as_str()).collect();
    assert_eq!(names, NUMBERS);
    // A rate once for each measurement that has it as its baseline; idleness only at the start.
    for number in numbers {
        let rounds: Vec<f64> =
            number["rounds"].as_array().expect("rounds").iter().filter_map(Value::as_f64).collect();
        let expected = match number["name"].as_str().unwrap() {
            "raw.publish" | "raw.consume" => 6,
            name if name.starts_with("idle.") => 1,
            _ => 2,
        };
        assert_eq!(rounds.len(), expected, "{number}");
        assert!(
            rounds.iter().all(|value| *value >= 0.0) && number["median"].as_f64().unwrap() >= 0.0,
            "{number}"
        );
    }
    let grown = report["growth"].as_array().expect("what grew");
    for what in ["queues", "streams of events", "jobs waiting", "jobs in the record", "jobs delayed"] {
        let of = grown.iter().filter(|one| one["what"] == what);
        assert!(of.clone().count() > 0 && of.clone().all(|one| one["value"].is_f64()), "{what}: {grown:?}");
    }
    let times = report["times"].as_array().expect("times");
    assert!(times.iter().any(|one| one["measurement"] == "call" && one["count"] == 20), "{times:?}");
    let page = std::fs::read_to_string(docs.join("performance.md")).expect("a page");
    assert!(page.contains("RabbitMQ") && docs.join("images/performance.svg").exists(), "{page}");
    let goals = report["goals"].as_array().expect("goals");
    assert!(goals.len() >= 11 && goals.iter().all(|goal| goal["met"].is_boolean()), "{goals:?}");
    let of = |process: &str| {
        let mut used = report["cpu"].as_array().expect("cpu").iter();
        used.any(|used| used["measurement"] == "end-to-end" && used["process"] == process)
    };
    assert!(!cfg!(target_os = "linux") || of("http") && of("worker") && of("load"), "{}", report["cpu"]);
    let shown = bench.log();
    assert!(shown.contains("end-to-end ÷ raw.batched"), "{shown}");

    let prefix = report["settings"]["prefix"].as_str().expect("a prefix");
    nothing_is_left_of(prefix).await;
    assert!(!std::env::temp_dir().join(prefix).exists());
}

#[tokio::test]
async fn a_run_that_is_interrupted_leaves_nothing_behind() {
    let stage = Stage::new();
    // Where it puts its folder, so that this is found.
    let temporary = stage.dir.join("tmp");
    std::fs::create_dir(&temporary).expect("a folder");
    let mut command = stage.command(&hopline());
    command.args(["bench", "--only", "end-to-end", "--rounds", "1000"]).env("TMPDIR", &temporary);
    let mut bench = Process::spawn(command, &stage.dir, "bench");
    let begun = async || bench.log().contains("round 1 of").then_some(());
    eventually("the first round", begun).await;
    let folder =
        std::fs::read_dir(&temporary).expect("the folder").next().expect("its own").expect("its name");
    let prefix = folder.file_name().to_string_lossy().into_owned();
    assert!(left_of(&prefix).await.is_some_and(|left| left.len() > 30));
    bench.signal(Signal::INT);
    let status = bench.ended().await;
    assert_eq!(status.code(), Some(130), "{}", bench.log());
    assert!(std::fs::read_dir(&temporary).expect("the folder").next().is_none());
    nothing_is_left_of(&prefix).await;
}
