//! The workers of this workspace as processes, through the front and the broker. What their handlers do is tested beside them
//! (`workers/*/tests`).

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

#[path = "../../workers/mail/tests/support/mod.rs"]
mod smtp;

use crate::support::{
    process::{Front, Process, Stage, eventually},
    receiver::{Receiver, SECRET, status},
};

/// A file of the test's own.
fn file(stage: &Stage, name: &str, text: &str) -> String {
    let path: PathBuf = stage.dir.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Waits until the front knows the kind, and with it its queue.
async fn until_announced(front: &Front, kind: &str) {
    eventually(kind, async || {
        let kinds = front.get("/v1/kinds").await.body;
        kinds["items"].as_array()?.iter().any(|item| item["kind"] == kind).then_some(())
    })
    .await;
}

/// The job's record once it has ended.
async fn ended(front: &Front, job: &str) -> Value {
    eventually("its end", async || {
        let job = front.get(&format!("/v1/jobs/{job}?wait=10s")).await.body;
        job["finished_at"].is_string().then_some(job)
    })
    .await
}

/// How many processes have `token` in their command line.
fn processes_with(token: &str) -> usize {
    let lines = fs::read_dir("/proc").unwrap().flatten();
    let lines = lines.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(token)).count()
}

async fn until_processes(token: &str, some: bool) {
    let what = format!("processes with {token}: {some}");
    eventually(&what, async || ((processes_with(token) > 0) == some).then_some(())).await;
}

fn exec_worker(stage: &Stage, commands: &str) -> Process {
    let user = match rustix::process::geteuid().is_root() {
        true => "user = { uid = 65534, gid = 65534 }\n",
        false => "",
    };
    let path = file(stage, "exec.toml", &format!("{user}{commands}"));
    stage.worker("exec", &[("EXEC_CONFIG", &path)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_and_ends_with_its_order_and_with_its_worker() {
    let stage = Stage::of("exec");
    let token = stage.prefix.clone();
    let commands = format!(
        "[commands.count]\nprogram = \"/usr/bin/wc\"\nargs = [\"--{{what}}\"]\noutput = \"text\"\n\
         params.what.choices = [\"bytes\", \"lines\"]\n\
         [commands.hang]\nprogram = \"/bin/sh\"\nargs = [\"-c\", \"setsid sleep 1000 & sleep 1000; : {token}\"]\n"
    );
    let front = stage.serve().await;
    let mut worker = exec_worker(&stage, &commands);
    until_announced(&front, "exec.run").await;
    let submit = async |args: Value| {
        let answer = front.post("/v1/jobs", &json!({"kind": "exec.run", "args": args})).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.id()
    };
    let args = json!({"command": "count", "params": {"what": "bytes"}, "input": "12345"});
    let counted = ended(&front, &submit(args).await).await;
    // With its quotes.
    assert_eq!((&counted["status"], &counted["output"]), (&json!("succeeded"), &json!("7")), "{counted}");
    let unlisted = ended(&front, &submit(json!({"command": "rm"})).await).await;
    assert_eq!(
        (&unlisted["status"], &unlisted["error"]["code"]),
        (&json!("dead"), &json!("no_such_command"))
    );

    let hanging = submit(json!({"command": "hang"})).await;
    until_processes(&token, true).await;
    front.delete(&format!("/v1/jobs/{hanging}")).await;
    until_processes(&token, false).await;
    assert_eq!(ended(&front, &hanging).await["status"], "cancelled");

    submit(json!({"command": "hang"})).await;
    until_processes(&token, true).await;
    worker.kill9();
    until_processes(&token, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_is_sent_and_stays_out_of_the_record() {
    let stage = Stage::of("mail");
    let server = smtp::Server::new(smtp::Manner::default()).await;
    let front = stage.serve().await;
    let settings = format!(
        "senders = [\"example.org\"]\nfrom = \"a@example.org\"\n[smtp]\nhost = \"127.0.0.1\"\nport = {}\ntls = \"none\"\n",
        server.port
    );
    let settings = file(&stage, "mail.toml", &settings);
    let mut worker = stage.worker("mail", &[("MAIL_CONFIG", &settings)]);
    until_announced(&front, "email.send").await;
    let args = json!({"to": "ada@example.net", "subject": "Hello", "text": "a link that lets somebody in"});
    let answer = front.post("/v1/jobs", &json!({"kind": "email.send", "args": args})).await;
    let job = ended(&front, &answer.id()).await;
    assert_eq!(job["status"], "succeeded", "{job}");
    assert!(!job.to_string().contains("lets somebody in"), "{job}");
    let [taken] = &server.taken()[..] else { panic!("{:?}", server.taken()) };
    assert!(taken.data.contains(&format!("Message-ID: <{}@example.org>", answer.id())), "{taken:?}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_sent_signed_and_its_answer_is_the_output() {
    let stage = Stage::of("webhook");
    let mut receiver = Receiver::new(vec![status(204)]).await;
    let front = stage.serve().await;
    let settings = format!("allow = [\"127.0.0.1\"]\nsecrets.partner = \"{SECRET}\"\n");
    let settings = file(&stage, "webhook.toml", &settings);
    let mut worker = stage.worker("webhook", &[("WEBHOOK_CONFIG", &settings)]);
    until_announced(&front, "http.request").await;
    let args = json!({"url": receiver.url(), "json": {"a": 1}, "sign": "partner"});
    let answer = front.post("/v1/jobs", &json!({"kind": "http.request", "args": args})).await;
    let job = ended(&front, &answer.id()).await;
    assert_eq!((&job["status"], &job["output"]["status"]), (&json!("succeeded"), &json!(204)), "{job}");
    let request = receiver.next().await;
    assert_eq!((request.verified(), request.json()), (answer.id(), json!({"a": 1})));

    let args = json!({"url": "https://169.254.169.254/"});
    let answer = front.post("/v1/jobs", &json!({"kind": "http.request", "args": args})).await;
    let job = ended(&front, &answer.id()).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("dead"), &json!("address_refused")), "{job}");
    // Args that do not fit are refused at the door.
    let answer = front.post("/v1/jobs", &json!({"kind": "http.request", "args": {"url": 5}})).await;
    assert_eq!(answer.status, 422, "{answer:?}");
    worker.stop().await;
}
