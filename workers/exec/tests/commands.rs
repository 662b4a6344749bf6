//! Real commands under real limits, as a job runs them: the handler, its keepers and launchers, without a broker.
//!
//! Run by root, commands are user 65534 (nobody); else they are whoever runs the tests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by unwrapping, also in its helpers"
)]

use std::{fs, path::PathBuf, time::Duration};

use hopline::{JobId, testing};
use hopline_worker_exec::{
    Commands, Exec,
    run::{self, Run},
};
use serde_json::{Value, json};

/// Longest wait for anything that must happen; a loaded machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// A text that no other process has in its command line.
fn token() -> String {
    JobId::new().to_string()
}

/// How many processes have `token` in their command line.
fn processes_with(token: &str) -> usize {
    let lines = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(token)).count()
}

/// An exec worker with one command `x`: a shell script, and settings.
fn exec(script: &str, settings: &str) -> Exec {
    let root = rustix::process::geteuid().is_root();
    let user = if root { "user = { uid = 65534, gid = 65534 }" } else { "" };
    // A JSON string is a TOML one; braces are for params.
    let script = json!(script.replace('{', "{{").replace('}', "}}"));
    let text = format!("{user}\n[commands.x]\nprogram = \"/bin/sh\"\nargs = [\"-c\", {script}]\n{settings}");
    let path = std::env::temp_dir().join(format!("hopline-exec-{}.toml", token()));
    fs::write(&path, text).unwrap();
    let commands = Commands::read(&path);
    fs::remove_file(&path).unwrap();
    Exec::new(commands.unwrap(), PathBuf::from(env!("CARGO_BIN_EXE_hopline-worker-exec"))).unwrap()
}

fn job(args: Value) -> Run {
    serde_json::from_value(args).unwrap()
}

async fn run(exec: Exec, args: Value) -> testing::Tested {
    testing::run(run::run, job(args)).state(exec).await
}

/// How the script ended: `ok` and its output, or the code and the message; whether it is dead.
async fn end(script: &str, settings: &str, input: Value) -> (String, String, bool) {
    let tested = run(exec(script, settings), json!({"command": "x", "input": input})).await;
    let dead = tested.is_dead();
    match (tested.output::<Value>(), &tested.outcome) {
        (Ok(output), _) => ("ok".to_owned(), output.to_string(), dead),
        (_, hopline::worker::Outcome::Failed(error)) => {
            (error.code().to_owned(), error.message().to_owned(), dead)
        }
        (_, other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn json_goes_in_and_comes_out() {
    let (code, output, _) = end("cat", "", json!({"text": "ä\n", "number": 1})).await;
    assert_eq!((code.as_str(), output.as_str()), ("ok", r#"{"number":1,"text":"ä\n"}"#));
    // Larger than any pipe, and never read.
    let (code, output, _) = end("echo null", "", json!("x".repeat(300_000))).await;
    assert_eq!((code.as_str(), output.as_str()), ("ok", "null"));
    let (code, output, dead) = end("echo done", "", Value::Null).await;
    assert_eq!((code.as_str(), dead), ("bad_output", true), "{output}");
    assert!(output.contains("is no JSON"), "{output}");
    let (code, output, _) = end("echo done", "output = \"text\"", Value::Null).await;
    assert_eq!((code.as_str(), output.as_str()), ("ok", "\"done\""));
}

#[tokio::test]
async fn exit_codes_and_errors_say_what_becomes_of_the_job() {
    for (script, code, dead) in [
        ("echo no disk >&2; exit 75", "exit_75", false),
        ("echo no disk >&2; exit 65", "exit_65", true),
        ("echo no disk >&2; exit 3", "exit_3", false),
        ("echo no disk >&2; kill -9 $$", "signal_9", false),
    ] {
        let (got, message, is_dead) = end(script, "", Value::Null).await;
        assert_eq!((got.as_str(), is_dead), (code, dead), "{script}: {message}");
        assert!(message.ends_with("no disk"), "{message}");
    }
    // A command that says what a launcher would say.
    let (code, message, _) = end("echo 01234567 cannot start >&2; exit 126", "", Value::Null).await;
    assert_eq!(code, "exit_126", "{message}");
    let (code, message, _) = end("true", "dir = \"/nowhere\"", Value::Null).await;
    assert_eq!(code, "cannot_start");
    assert!(message.contains("/nowhere") && message.contains("No such file"), "{message}");
}

#[tokio::test]
async fn only_what_is_listed_is_run() {
    let settings = "[commands.y]\nprogram = \"/bin/echo\"\nargs = [\"{word}\"]\noutput = \"text\"\nparams.word.pattern = \"[a-z ;$()]+\"";
    let exec = exec("exit 1", settings);
    let tested = run(exec.clone(), json!({"command": "z"})).await;
    assert!(tested.is_dead() && format!("{tested:?}").contains("there is x, y"), "{tested:?}");
    for word in ["A", "a\nb", "", "-n"] {
        let tested = run(exec.clone(), json!({"command": "y", "params": {"word": word}})).await;
        assert!(tested.is_dead() && format!("{tested:?}").contains("bad_args"), "{word}: {tested:?}");
    }
    let tested = run(exec, json!({"command": "y", "params": {"word": "a; $(b)"}})).await;
    assert_eq!(tested.output::<String>().unwrap(), "a; $(b)");
}

#[tokio::test]
async fn the_environment_is_the_listed_one_and_no_more_rights_are_left() {
    let script = r#"printf '"%s|' "$(env | cut -d= -f1 | sort | tr '\n' ' ')"; id -u | tr -d '\n'; grep NoNewPrivs /proc/self/status | tr -cd 0-9; echo '"'"#;
    let (code, output, _) = end(script, "env = { MINE = \"1\" }", Value::Null).await;
    let uid = if rustix::process::geteuid().is_root() { 65534 } else { rustix::process::geteuid().as_raw() };
    assert_eq!(code, "ok", "{output}");
    let names = "HOPLINE_ATTEMPT HOPLINE_JOB_ID HOPLINE_MAX_ATTEMPTS HOPLINE_RUN MINE PATH PWD ";
    assert_eq!(output, format!("\"{names}|{uid}1\""));
}

#[tokio::test]
async fn files_that_the_worker_has_open_are_not_for_its_commands() {
    // As a shell or a supervisor leaves one behind: inherited by every program that is started.
    let path = std::env::temp_dir().join(format!("hopline-exec-open-{}", token()));
    let left = rustix::io::dup(fs::File::create(&path).unwrap()).unwrap();
    fs::remove_file(&path).unwrap();
    let (code, output, _) =
        end("ls -l /proc/self/fd | grep -c hopline-exec-open || :", "", Value::Null).await;
    drop(left);
    assert_eq!((code.as_str(), output.as_str()), ("ok", "0"));
}

#[tokio::test]
async fn endless_output_is_cut() {
    let token = token();
    let script = format!("while :; do echo {token}; done");
    let (code, message, dead) = end(&script, "limits.output = 100000", Value::Null).await;
    assert_eq!((code.as_str(), dead, processes_with(&token)), ("output_limit", true, 0), "{message}");
    // Of an endless standard error only the end is kept; its time ends it.
    let script = format!("while :; do echo {token} >&2; done");
    let (code, message, _) = end(&script, "limits.time = \"1s\"", Value::Null).await;
    assert_eq!((code.as_str(), processes_with(&token)), ("time_limit", 0));
    assert!(message.len() < 4096 && message.ends_with(&token), "{message}");
}

#[tokio::test]
async fn time_and_cpu_time_end() {
    let token = token();
    let (code, message, dead) =
        end(&format!("sleep 1000; : {token}"), "limits.time = \"1s\"", Value::Null).await;
    assert_eq!((code.as_str(), dead, processes_with(&token)), ("time_limit", false, 0), "{message}");
    let (code, message, _) =
        end(&format!("while :; do : {token}; done"), "limits.cpu = 1", Value::Null).await;
    assert_eq!((code.as_str(), processes_with(&token)), ("cpu_limit", 0), "{message}");
    // Who does not heed the signal is killed a second later.
    let script = format!("trap '' XCPU; while :; do : {token}; done");
    let (code, message, _) = end(&script, "limits.cpu = 1", Value::Null).await;
    assert_eq!((code.as_str(), processes_with(&token)), ("signal_9", 0), "{message}");
}

#[tokio::test]
async fn memory_files_and_descriptors_are_bounded() {
    let memory = "limits.memory = 67108864";
    let (code, message, _) = end("dd if=/dev/zero of=/dev/null bs=128M count=1", memory, Value::Null).await;
    assert_eq!(code, "exit_1", "{message}");
    assert!(message.contains("memory"), "{message}");
    let file = std::env::temp_dir().join(token());
    let script = format!(
        "trap '' XFSZ; dd if=/dev/zero of={} bs=1M count=10; e=$?; rm -f {0}; exit $e",
        file.display()
    );
    let (code, message, _) = end(&script, "limits.file_size = 1048576", Value::Null).await;
    assert!(code == "exit_1" && message.contains("File too large"), "{code}: {message}");
    let (code, output, _) = end("ulimit -n; ", "limits.open_files = 17", Value::Null).await;
    assert_eq!((code.as_str(), output.as_str()), ("ok", "17"));
}

#[tokio::test]
async fn a_fork_bomb_is_bounded_and_ends() {
    let token = token();
    // Each of them starts two more and stays; the first forks once and becomes a sleep, so that its time has to end it.
    let script = format!("b() {{ (b) & (b) & sleep 1000; }}; (b) & exec sleep 1000; : {token}");
    let settings = "limits = { processes = 40, time = \"2s\", cpu = \"5s\" }";
    let bomb = tokio::spawn(async move { end(&script, settings, Value::Null).await });
    let mut most = 0;
    while !bomb.is_finished() {
        most = most.max(processes_with(&token));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (code, message, _) = bomb.await.unwrap();
    assert_eq!(code, "time_limit", "{message}");
    assert!(most >= 5, "it was one: {most}");
    assert!(most <= 60, "there were {most}");
    assert_eq!(processes_with(&token), 0);
}

#[tokio::test]
async fn who_detaches_himself_is_ended_too() {
    let token = token();
    // Its parents end at once, it has a session of its own, ignores what it can and holds no pipe.
    let daemon = format!("trap '' TERM HUP; sleep 1000; : {token}");
    let script = format!("(setsid sh -c \"{daemon}\" </dev/null >/dev/null 2>&1 &); sleep 0.2; echo 1");
    let (code, output, _) = end(&script, "", Value::Null).await;
    assert_eq!((code.as_str(), output.as_str(), processes_with(&token)), ("ok", "1", 0));
    // The same where its pipes are held open: the attempt does not wait for it.
    let script = format!("(setsid sh -c \"{daemon}\" &); echo 2");
    let (code, output, _) = end(&script, "", Value::Null).await;
    assert_eq!((code.as_str(), output.as_str(), processes_with(&token)), ("ok", "2", 0));
}

#[tokio::test]
async fn who_is_told_to_stop_stops() {
    let token = token();
    let script = format!("sleep 1000; : {token}");
    let tested = testing::run(run::run, job(json!({"command": "x"})))
        .state(exec(&script, ""))
        .cancelled_by("ops")
        .await;
    assert!(matches!(tested.disposition, hopline::worker::Disposition::Cancel { .. }), "{tested:?}");
    assert_eq!(processes_with(&token), 0);
}

#[tokio::test]
async fn what_is_dropped_is_ended() {
    let token = token();
    let script = format!("setsid sleep 1000 & sleep 1000; : {token}");
    let running = tokio::spawn(run(exec(&script, ""), json!({"command": "x"})));
    let until = async |some: bool| {
        tokio::time::timeout(PATIENCE, async {
            while (processes_with(&token) > 0) != some {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("it starts, and ends");
    };
    until(true).await;
    running.abort();
    until(false).await;
}
