//! Programs in another language, with nothing but the wire contract: Python and pika.
//!
//! pika is installed once, into a virtual environment below Cargo's target directory. Without Python, or without
//! the package index, these tests fail: a contract that is not tried is not kept. On a machine that can have
//! neither, `HOPLINE_TEST_PYTHON=skip` leaves them out; where `CI` is set it does not.

use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tokio::{process::Command, task::spawn_blocking};

use crate::support::stage::{Stage, stage};

const PIKA: &str = "pika==1.3.2";

/// Runs a command to its end, and returns what it printed.
async fn run(mut command: Command) -> Result<String, String> {
    let what = format!("{:?}", command.as_std());
    let output = command.kill_on_drop(true).output().await.map_err(|error| format!("{what}: {error}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{what}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr)))
}

/// A Python that has pika: made at the first use, kept for the next.
async fn python_with_pika() -> Result<PathBuf, String> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let (python, ready) = (home.join("bin/python"), home.join(PIKA));
    // Tests of other processes may be at it as well; the lock ends with its file.
    let lock = File::create(home.with_extension("lock")).map_err(|error| error.to_string())?;
    let locked =
        spawn_blocking(move || lock.lock().map(|()| lock)).await.map_err(|error| error.to_string())?;
    let _lock = locked.map_err(|error| error.to_string())?;
    if !ready.exists() {
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv", "--clear"]).arg(&home);
        run(venv).await?;
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PIKA]);
        run(pip).await?;
        File::create(&ready).map_err(|error| error.to_string())?;
    }
    Ok(python)
}

/// Runs one of the programs beside this file; `None` where they are left out.
async fn program(stage: &Stage, file: &str, args: &[&str]) -> Option<Vec<Value>> {
    let skip =
        env::var("HOPLINE_TEST_PYTHON").is_ok_and(|wish| wish == "skip") && env::var_os("CI").is_none();
    if skip {
        return None;
    }
    let python = python_with_pika().await.unwrap_or_else(|error| {
        panic!("these tests need python3 with venv and pip, and {PIKA} (HOPLINE_TEST_PYTHON=skip leaves them out):\n{error}")
    });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/python").join(file);
    let mut command = Command::new(python);
    command.arg(path).args([
        &stage.rabbit.url,
        &stage.config.amqp.prefix,
        stage.queue.as_str(),
        "test.probe",
    ]);
    command.args(args);
    let printed = run(command).await.unwrap_or_else(|error| panic!("{error}"));
    Some(printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect())
}

#[tokio::test]
async fn a_python_producer() {
    stage(async |stage| {
        let (worker, mut log) = stage.probes();
        stage.front().await;
        let Some(printed) = program(stage, "producer.py", &["50"]).await else { return };
        assert_eq!(printed, [json!({"published": 50, "unroutable": true})]);
        let mut seen: Vec<u64> = Vec::new();
        for start in log.take(50).await {
            let args: Value = serde_json::from_str(&start.args).expect("JSON");
            seen.push(args["n"].as_u64().expect("a number"));
            if args["n"] != 0 {
                assert_eq!((start.max_attempts, start.tags.len()), (4, 2));
                assert_eq!(args["text"], "käse ✓");
            }
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..50));
        assert_eq!(worker.stop().await.succeeded, 50);
    })
    .await;
}

#[tokio::test]
async fn a_python_caller_by_direct_reply_to() {
    stage(async |stage| {
        let (_worker, mut log) = stage.probes();
        stage.front().await;
        let calls =
            [r#"{"hello":"wörld"}"#, r#"{"script":["fail","ok"]}"#, r#"{"script":["fatal"]}"#, "{oops"];
        let Some(printed) = program(stage, "caller.py", &calls).await else { return };
        let [fine, again, fatal, broken] = &printed[..] else { panic!("{printed:?}") };
        assert_eq!((&fine["status"], &fine["output"]), (&json!("succeeded"), &json!({"hello": "wörld"})));
        assert_eq!((&again["status"], &again["attempt"]), (&json!("succeeded"), &json!(2)));
        assert_eq!((&fatal["status"], &fatal["reason"]), (&json!("dead"), &json!("fatal")));
        assert_eq!(fatal["output"], json!({"code": "probe_fatal", "message": "never again"}));
        assert_eq!((&broken["status"], &broken["reason"]), (&json!("dead"), &json!("undecodable")));
        let ids: Vec<String> = log.take(4).await.iter().map(|start| start.id.to_string()).collect();
        assert_eq!(
            [&ids[0], &ids[1], &ids[3]],
            [&fine["job"], &again["job"], &fatal["job"]].map(|id| id.as_str().unwrap())
        );
    })
    .await;
}
