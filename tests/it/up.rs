//! `hopline up --worker`: a crate is built, supervised like the others, and started again after a change.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;

use crate::support::process::{Stage, hopline};

/// A worker for the supervisor's eyes: it answers where its health is asked for, and needs nothing to be built.
const SOURCE: &str = r#"
use std::io::{Read, Write};

fn main() -> std::io::Result<()> {
    let address = std::env::var("HOPLINE_WORKER_HEALTH").unwrap();
    for stream in std::net::TcpListener::bind(address)?.incoming() {
        let mut stream = stream?;
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nONE");
    }
    Ok(())
}
"#;

/// A `hopline up` with no workers but one's own; ended on drop.
struct Up {
    stage: Stage,
    hopline: PathBuf,
}

impl Up {
    fn new() -> Self {
        let stage = Stage::new();
        // By itself in its folder: no workers lie beside it.
        let lonely = stage.dir.join("hopline");
        fs::copy(hopline(), &lonely).unwrap();
        fs::create_dir_all(stage.dir.join("tiny/src")).unwrap();
        let manifest = "[package]\nname = \"tiny\"\nedition = \"2024\"\n\n[workspace]\n";
        fs::write(stage.dir.join("tiny/Cargo.toml"), manifest).unwrap();
        Self { stage, hopline: lonely }
    }

    fn write(&self, source: &str) {
        fs::write(self.stage.dir.join("tiny/src/main.rs"), source).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.stage.command(&self.hopline);
        command.args(words).env("CARGO_TARGET_DIR", self.stage.dir.join("target"));
        command
    }

    fn run(&self, words: &[&str]) -> (Output, String) {
        let output = self.command(words).output().unwrap();
        let told = [&output.stdout[..], &output.stderr].concat();
        (output, String::from_utf8(told).unwrap())
    }

    fn succeeds(&self, words: &[&str]) -> String {
        let (output, told) = self.run(words);
        assert!(output.status.success(), "{words:?}: {told}");
        told
    }

    /// What the worker answers now.
    async fn answer(&self) -> String {
        let state = fs::read_to_string(self.stage.dir.join("var/up.json")).unwrap();
        let state: Value = serde_json::from_str(&state).unwrap();
        let address = state["processes"]["worker-tiny-1"]["address"].as_str().expect("its address");
        reqwest::get(format!("{address}/healthz")).await.unwrap().text().await.unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let (output, told) = self.run(&["down"]);
        if !std::thread::panicking() {
            assert!(output.status.success(), "{told}");
        }
    }
}

#[tokio::test]
async fn a_crate_of_ones_own_is_built_supervised_and_started_again_after_a_change() {
    let up = Up::new();
    up.write(SOURCE);
    let told = up.succeeds(&["up", "--detach", "--worker", "tiny"]);
    assert!(told.contains("Compiling tiny") && told.contains("tiny ×1"), "{told}");
    assert_eq!(up.answer().await, "ONE");

    up.write(&SOURCE.replace("ONE", "TWO"));
    let told = up.succeeds(&["up", "--worker", "tiny", "--scale", "tiny=2"]);
    assert!(told.contains("with the workers asked for") && told.contains("tiny ×2"), "{told}");
    assert_eq!(up.answer().await, "TWO");

    // From within the crate's folder it would be another Hopline, with another broker.
    let inside =
        up.command(&["up", "--worker", "."]).current_dir(up.stage.dir.join("tiny")).output().unwrap();
    let told = String::from_utf8(inside.stderr).unwrap();
    assert!(inside.status.code() == Some(2) && told.contains("did you mean --dir ../var?"), "{told}");

    up.write(&SOURCE.replace("ONE", "\""));
    let (output, told) = up.run(&["up", "--worker", "tiny"]);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("error") && told.contains("main.rs") && told.contains("could not build"), "{told}");
    assert_eq!(up.answer().await, "TWO", "what runs goes on");

    // A program by itself, whatever became of its source.
    let told = up.succeeds(&["up", "--worker", "target/debug/tiny"]);
    assert!(!told.contains("Not in force"), "{told}");
    assert_eq!(up.answer().await, "TWO");

    let output = up.command(&["up"]).env("HOPLINE_WORKER_CONCURRENCY", "4").output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && told.contains("others: worker.concurrency."), "{told}");
}
