//! Keys in the hands of real processes: made, used and revoked by the command line, and never written anywhere.

use std::process::Output;

use serde_json::json;
use tokio::process::Command;

use crate::support::process::{Front, KIND, Process, Stage, eventually, hopline};

/// The command line beside a front that asks for keys.
struct Desk<'a> {
    stage: &'a Stage,
    keys: String,
}

impl<'a> Desk<'a> {
    fn new(stage: &'a Stage) -> Self {
        Self { stage, keys: stage.dir.join("keys").to_string_lossy().into_owned() }
    }

    async fn run(&self, words: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::from(self.stage.command(&hopline()));
        command.args(words).env("HOPLINE_HTTP_KEYS", &self.keys).envs(variables.iter().copied());
        command.output().await.expect("a process")
    }

    /// Runs a command that must succeed; what it printed.
    async fn done(&self, words: &[&str], variables: &[(&str, &str)]) -> String {
        let output = self.run(words, variables).await;
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }

    async fn serve(&self, variables: &[(&str, &str)]) -> Front {
        let keys = [("HOPLINE_HTTP_KEYS", self.keys.as_str())];
        let variables: Vec<_> = keys.into_iter().chain(variables.iter().copied()).collect();
        let front = self.stage.serve_with(&variables).await;
        front.until_ready().await;
        front
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Nothing of a request that proves who sent it is in a log, however much is logged.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_logged() {
    let stage = Stage::new();
    let desk = Desk::new(&stage);
    let key = desk.done(&["key", "new", "ops", "--scope", "submit,read,operate"], &[]).await;
    let (secret, wrong) = (&key[16..], "f".repeat(64));
    let wrong_key = format!("{}{wrong}", &key[..16]);
    let front = desk.serve(&[("HOPLINE_LOG_LEVEL", "trace")]).await;
    let origin = front.url.clone();
    for key in [key.as_str(), &wrong_key] {
        let bearer = format!("Bearer {key}");
        let sent = [("authorization", bearer.as_str())];
        let job = json!({ "kind": KIND, "queue": stage.queue, "delay": "1h" });
        front.post_with("/v1/jobs", &job, &sent).await;
        front.post_with(&format!("/v1/queues/{}/pause", stage.queue), &json!({}), &sent).await;
        front.post_with(&format!("/v1/queues/{}/resume", stage.queue), &json!({}), &sent).await;
        let login = reqwest::Client::new().post(format!("{origin}/login")).header("origin", &origin);
        let form =
            login.header("content-type", "application/x-www-form-urlencoded").body(format!("key={key}"));
        form.send().await.expect("an answer");
    }
    // Where a careless program may put it.
    front.get(&format!("/v1/jobs?key={key}")).await;
    front.get(&format!("/login?key={key}")).await;
    let mut front = front;
    front.process.until_logged("operator action", "key.name=").await;
    front.process.stop().await;
    let log = front.process.log();
    assert!(log.contains("http.status=401") || log.contains("http.status: 401"), "requests are logged");
    for never in [secret, &wrong, "Bearer", "bearer", "uthorization", "hopline_session"] {
        let line = log.lines().find(|line| line.contains(never));
        assert!(line.is_none(), "{never}: {line:?}");
    }
    let action = log.lines().find(|line| line.contains("operator action")).expect("a line");
    assert!(action.contains("ops") && action.contains("/pause"), "{action}");
    assert!(!std::fs::read_to_string(&desk.keys).expect("the file").contains(secret));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_makes_uses_and_revokes_keys() {
    let stage = Stage::new();
    let desk = Desk::new(&stage);
    let submit = desk.done(&["key", "new", "ci", "--scope", "submit", "--queue", &stage.queue], &[]).await;
    let read = desk.done(&["key", "new", "eye", "--scope", "read", "--rate", "1000"], &[]).await;
    let again = desk.run(&["key", "new", "ci", "--scope", "read"], &[]).await;
    assert!(!again.status.success() && said(&again).contains("already"), "{again:?}");
    let front = desk.serve(&[]).await;
    let url = ("HOPLINE_URL", front.url.as_str());
    let words = ["jobs", "submit", KIND, "--queue", &stage.queue, "--json"];

    let refused = desk.run(&words, &[url]).await;
    assert!(!refused.status.success() && said(&refused).contains("HOPLINE_API_KEY"), "{refused:?}");
    let taken = desk.done(&words, &[url, ("HOPLINE_API_KEY", &submit)]).await;
    assert!(taken.contains("queued"), "{taken}");
    let file = stage.dir.join("key");
    std::fs::write(&file, format!("{read}\n")).expect("a file");
    let by_file = ("HOPLINE_API_KEY_FILE", file.to_str().expect("text"));
    let listed = eventually("the job is listed", async || {
        let listed = desk.done(&["jobs", "ls", "--json"], &[url, by_file]).await;
        (!listed.is_empty()).then_some(listed)
    });
    assert!(listed.await.contains(KIND));
    let under = desk.run(&words, &[url, by_file]).await;
    assert!(said(&under).contains("scope_missing"), "{under:?}");
    let elsewhere =
        desk.run(&["jobs", "submit", KIND, "--queue", "other"], &[url, ("HOPLINE_API_KEY", &submit)]).await;
    assert!(said(&elsewhere).contains("queue_forbidden"), "{elsewhere:?}");

    let list = desk.done(&["key", "list"], &[]).await;
    assert!(list.contains("ci") && list.contains("eye") && !list.contains(&submit[16..]), "{list}");
    desk.done(&["key", "revoke", "ci"], &[]).await;
    eventually("the key is refused", async || {
        said(&desk.run(&words, &[url, ("HOPLINE_API_KEY", &submit)]).await)
            .contains("unauthorized")
            .then_some(())
    })
    .await;
    let list = desk.done(&["key", "list", "--json"], &[]).await;
    assert!(!list.contains("\"ci\"") && list.contains("\"eye\""), "{list}");
    assert!(desk.done(&["key", "list", "--all"], &[]).await.contains("ci"));
    assert!(!desk.run(&["key", "revoke", "ci"], &[]).await.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_with_keys_listens_beyond_loopback() {
    let stage = Stage::new();
    let desk = Desk::new(&stage);
    let start = |keys: &str| {
        let mut command = stage.command(&hopline());
        command.arg("serve").env("HOPLINE_HTTP_KEYS", keys).env("HOPLINE_HTTP_LISTEN", "0.0.0.0:0");
        Process::spawn(command, &stage.dir, "open")
    };
    // A file that is not there is no file without keys.
    let mut missing = start(&desk.keys);
    assert!(!missing.ended().await.success());
    assert!(missing.log().contains("hopline key new"), "{}", missing.log());
    let key = desk.done(&["key", "new", "a", "--scope", "read"], &[]).await;
    let mut open = start(&desk.keys);
    let address = open.until_logged("listening", "http.address=").await;
    let port = address.rsplit(':').next().expect("a port");
    let client = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    let url = format!("http://127.0.0.1:{port}/v1/queues");
    assert_eq!(client.get(&url).send().await.expect("an answer").status(), 401);
    assert_eq!(client.get(&url).bearer_auth(key).send().await.expect("an answer").status(), 200);
    open.stop().await;
    for (name, value) in
        [("HOPLINE_HTTP_ALLOW_UNAUTHENTICATED", "true"), ("HOPLINE_HTTP_TLS_CERT", "cert.pem")]
    {
        let refused = desk.run(&["serve"], &[(name, value)]).await;
        assert!(!refused.status.success() && said(&refused).contains("http."), "{refused:?}");
    }
}
