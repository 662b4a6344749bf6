//! The commands of the README and of `docs/http.md`, run as they stand there, against a `hopline up` of the test's own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use hopline::JobId;

/// The fenced blocks of a language, in order.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("\n```{language}\n");
    text.split(&open).skip(1).filter_map(|rest| rest.split("\n```").next()).collect()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}\n{errors}", output.status);
    output
}

/// What `make up` starts, in a folder of its own; ended on drop.
struct Up {
    folder: PathBuf,
    hopline: &'static str,
    url: String,
}

impl Up {
    fn start() -> Self {
        let hopline = env!("CARGO_BIN_EXE_hopline");
        let folder = std::env::temp_dir().join(format!("hopline-readme-{}", JobId::new()));
        fs::create_dir_all(folder.join("target/release")).unwrap();
        // The README's paths, from the folder of a clone.
        std::os::unix::fs::symlink(hopline, folder.join("target/release/hopline")).unwrap();
        std::os::unix::fs::symlink(root().join("workers"), folder.join("workers")).unwrap();
        let mut up = Self { folder, hopline, url: String::new() };
        let output = run(up.command("target/release/hopline").args(["up", "--detach"]));
        let text = String::from_utf8(output.stdout).unwrap();
        let url = text.split_whitespace().find(|word| word.starts_with("http://"));
        up.url = url.unwrap_or_else(|| panic!("`up` prints the address: {text}")).to_owned();
        up
    }

    /// A command in the folder, which knows of no other Hopline.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder).env_remove("HOPLINE_AMQP_URL").env_remove("HOPLINE_URL");
        command
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let ended = self.command(self.hopline).arg("down").status();
        let removed = fs::remove_dir_all(&self.folder);
        if !std::thread::panicking() {
            assert!(ended.unwrap().success());
            removed.unwrap();
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `text` with the address of this one: the port is another where the usual one is taken.
fn here(up: &Up, text: &str) -> String {
    let host = up.url.trim_start_matches("http://");
    text.replace("localhost:8080", host).replace("127.0.0.1:8080", host)
}

#[test]
fn the_commands_of_the_http_document_work() {
    let document = fs::read_to_string(root().join("docs/http.md")).unwrap();
    let up = Up::start();
    let shell = blocks(&document, "sh");
    assert!(shell.len() >= 12, "the document has commands: {}", shell.len());
    // One after the other in one shell: later ones use what earlier ones have set.
    let script: String = shell
        .into_iter()
        .map(|block| here(&up, block).replace("curl ", "curl -sS --fail-with-body ") + "\necho\n")
        .collect();
    let output = run(up.command("bash").args(["-euxo", "pipefail", "-c", &script]));
    let text = String::from_utf8(output.stdout).unwrap();
    for part in
        ["\"status\":\"succeeded\"", "cancel_requested_at", "event: hopline.job.succeeded", "\"paused\":true"]
    {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn the_commands_of_the_readme_work() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let up = Up::start();
    let here = |text: &str| here(&up, text);
    let shell = blocks(&readme, "sh");
    assert!(shell.len() >= 2, "the README has commands");
    for block in shell {
        // `curl -s` succeeds on an error's answer too.
        let block = here(block).replace("curl -s ", "curl -sS --fail-with-body ");
        let output = run(up.command("bash").args(["-euo", "pipefail", "-c", &block]));
        assert!(!output.stdout.is_empty(), "it answers something: {block}");
    }
    for block in blocks(&readme, "python") {
        run(up.command("python3").args(["-c", &here(block)]));
    }
}
