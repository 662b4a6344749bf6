//! The command line against a real front: what it prints, and how it exits.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Read,
    os::fd::OwnedFd,
    process::Stdio,
    sync::{Arc, Mutex},
};

use hopline::JobId;
use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{LocalModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::support::process::{Front, KIND, PATIENCE, Stage, eventually, hopline};

/// How a command ended, and what it said.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    /// Checks the exit code, and returns what was printed.
    fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect("an object per line")).collect()
    }

    fn says(&self, text: &str) {
        assert!(self.err.contains(text), "no {text:?} in {self:?}");
    }

    fn shows(&self, text: &str) {
        assert!(self.out.contains(text), "no {text:?} in {self:?}");
    }
}

/// A person, or a script, at the command line.
struct Shell<'a> {
    stage: &'a Stage,
    url: String,
}

impl<'a> Shell<'a> {
    fn new(stage: &'a Stage, front: &Front) -> Self {
        Self { stage, url: front.url.clone() }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::from(self.stage.command(&hopline()));
        command.args(words).env("HOPLINE_URL", &self.url).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn run(&self, words: &[&str]) -> Ran {
        let output = timeout(PATIENCE, self.command(words).output()).await;
        let output = output.unwrap_or_else(|_| panic!("did not end: {words:?}")).expect("a process");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    fn spawn(&self, words: &[&str]) -> Child {
        self.command(words).spawn().expect("a process")
    }

    /// Submits a job of the ledger worker; its id.
    async fn submit(&self, args: &Value) -> String {
        let args = args.to_string();
        let words = ["jobs", "submit", KIND, &args, "--queue", &self.stage.queue, "--json"];
        self.run(&words).await.exits(0).json()["id"].as_str().expect("an id").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_submitted_waited_for_and_shown() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let _worker = stage.ledger_worker(&[]);
    let shell = Shell::new(&stage, &front);
    let id = shell.submit(&json!({ "ms": 1 })).await;
    shell.run(&["jobs", "wait", &id]).await.exits(0).shows(&format!("{id} succeeded"));

    let record = front.get(&format!("/v1/jobs/{id}")).await.body;
    let shown = shell.run(&["jobs", "show", &id, "--json"]).await.exits(0);
    assert_eq!(shown.json(), record);
    let block = shell.run(&["jobs", "show", &id]).await.exits(0);
    for text in [&format!("id        {id}"), "status    succeeded", "attempts  1  ", "\"ms\": 1"] {
        block.shows(text);
    }
    let output = shell.run(&["jobs", "output", &id]).await.exits(0);
    assert_eq!(output.json(), record["output"]);

    let list =
        shell.run(&["jobs", "ls", "--queue", &stage.queue, "--status", "succeeded,dead"]).await.exits(0);
    assert_eq!(list.out.lines().count(), 2, "{list:?}");
    list.shows("ID  ");
    list.shows(&id);
    let none = shell.run(&["jobs", "ls", "--tag", "none"]).await.exits(0);
    assert_eq!((none.out.as_str(), none.err.as_str()), ("", "No jobs.\n"));

    let chosen = JobId::new().to_string();
    for name in [["--id", &chosen], ["--key", "order-17"]] {
        let words = ["jobs", "submit", KIND, "--queue", &stage.queue, "--json", name[0], name[1]];
        let mut ids = BTreeSet::new();
        for _ in 0..2 {
            ids.extend(shell.run(&words).await.exits(0).json()["id"].as_str().map(str::to_owned));
        }
        assert!(ids.len() == 1 && (name[0] == "--key" || ids.contains(&chosen)), "one job: {ids:?}");
        shell.run(&[&words[..], &["--tag", "other"]].concat()).await.exits(1).says("[key_reused]");
    }
    let workers = shell.run(&["workers", "ls", "--json"]).await.exits(0);
    assert!(workers.lines().iter().any(|worker| worker["queues"][0]["queue"] == stage.queue), "{workers:?}");
    shell.run(&["kinds", "ls"]).await.exits(0).shows(KIND);
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_how_jobs_ended() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let _worker = stage.ledger_worker(&[]);
    let shell = Shell::new(&stage, &front);
    let queue = stage.queue.as_str();
    let call = ["jobs", "call", KIND, "--queue", queue, "--wait", "60s"];
    shell.run(&call).await.exits(0);
    let fatal = shell.run(&[&call[..], &[r#"{"ends":["fatal"]}"#]].concat()).await.exits(3);
    fatal.says("[job_fatal]");
    let submit =
        ["jobs", "submit", KIND, r#"{"ends":["fatal"]}"#, "--queue", queue, "--wait", "60s", "--json"];
    let dead = shell.run(&submit).await.exits(3).json()["id"].as_str().expect("an id").to_owned();
    shell.run(&["jobs", "wait", &dead]).await.exits(3);
    shell.run(&["jobs", "output", &dead]).await.exits(3).says("[no_output]");

    let long = shell.submit(&json!({ "ms": 600_000 })).await;
    shell.run(&["jobs", "wait", &long, "--timeout", "50ms"]).await.exits(6);
    shell.run(&["jobs", "output", &long]).await.exits(6).says("[not_finished]");
    shell.run(&["jobs", "cancel", &long, "--reason", "late", "--by", "eve"]).await.exits(0).shows(&long);
    let cancelled = shell.run(&["jobs", "wait", &long, "--json"]).await.exits(4).json();
    assert_eq!(
        (&cancelled["cancel_requested_by"], &cancelled["cancel_reason"]),
        (&json!("eve"), &json!("late"))
    );
    let both = shell.run(&["jobs", "cancel", &dead, &long]).await.exits(1);
    both.says("[already_finished]");
    both.shows(&format!("{long} cancelled"));

    shell.run(&["queues", "pause", queue, "--by", "eve"]).await.exits(0);
    shell.run(&["queues", "ls"]).await.exits(0).shows("paused");
    let late = ["jobs", "submit", KIND, "--queue", queue, "--expires-in", "1ms", "--json"];
    let late = shell.run(&late).await.exits(0).json()["id"].as_str().expect("an id").to_owned();
    let typo = shell.run(&["jobs", "submit", "ledger.od", "--queue", queue]).await.exits(0);
    typo.says("no worker has announced kind ledger.od yet");
    typo.says(&format!("Did you mean {KIND}?"));
    let cancel = ["jobs", "cancel", "--queue", queue, "--kind", "ledger.od", "--all"];
    shell.run(&cancel).await.exits(1).says("--yes");
    shell.run(&[&cancel[..], &["--dry-run"]].concat()).await.exits(0).shows("about 1 job.");
    shell.run(&[&cancel[..], &["--yes", "--wait"]].concat()).await.exits(0).shows("1 done");
    let held = ["jobs", "submit", KIND, "--queue", queue, "--wait", "1s", "--json"];
    let held = shell.run(&held).await.exits(6);
    held.says(": queued");
    held.says(&format!("queue {queue} is paused"));
    assert_eq!(held.json()["run"], 1, "the record, not what was answered at first: {held:?}");
    let delayed = ["jobs", "submit", KIND, "--queue", queue, "--delay", "1h", "--json"];
    let delayed = shell.run(&delayed).await.exits(0).json()["id"].as_str().expect("an id").to_owned();
    for command in ["cancel", "show"] {
        shell.run(&["jobs", command, &delayed]).await.exits(0).shows("will not run; shown as cancelled when");
    }
    shell.run(&["queues", "resume", queue]).await.exits(0);
    shell.run(&["jobs", "wait", &late]).await.exits(5).shows("expired");

    shell
        .run(&["jobs", "show", "0198c0de-0000-7000-8000-000000000001"])
        .await
        .exits(1)
        .says("[job_not_found]");
    shell.run(&["jobs", "show", "17"]).await.exits(2).says("a job id is a UUID");
    shell.run(&["jobs", "cancel", "--queue", queue]).await.exits(2).says("--all");
    shell
        .run(&["queues", "show", &format!("{queue}x")])
        .await
        .exits(1)
        .says(&format!("Did you mean {queue}"));
    let wrong = ["jobs", "submit", KIND, "--delay", "soon", "--max-attempts", "0"];
    let wrong = shell.run(&wrong).await.exits(1);
    wrong.says("\n  /delay: ");
    wrong.says("\n  /max_attempts: ");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_jobs_are_grouped_replayed_and_purged() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let _worker = stage.ledger_worker(&[]);
    let shell = Shell::new(&stage, &front);
    let queue = stage.queue.as_str();
    let mut ids = Vec::new();
    for ends in [json!(["fatal", "well"]), json!(["fatal", "well"]), json!(["fatal"])] {
        ids.push(shell.submit(&json!({ "ends": ends })).await);
    }
    for id in &ids {
        shell.run(&["jobs", "wait", id]).await.exits(3);
    }
    let groups = shell.run(&["dead", "groups", queue, "--json"]).await.exits(0).lines();
    assert_eq!((groups.len(), &groups[0]["count"]), (1, &json!(3)), "{groups:?}");
    let fingerprint = groups[0]["fingerprint"].as_str().expect("a fingerprint");
    shell.run(&["dead", "groups", queue]).await.exits(0).shows(fingerprint);
    assert_eq!(shell.run(&["dead", "ls", queue, "--all", "--json"]).await.exits(0).lines().len(), 3);

    let some = ["dead", "replay", queue, "--id", &ids[0], "--id", &ids[1]];
    shell.run(&["dead", "replay", queue]).await.exits(2).says("--all");
    shell.run(&[&some[..], &["--dry-run"]].concat()).await.exits(0).shows("about 2 jobs");
    for _ in 0..2 {
        // The second time it is the same act, and nothing is dead any more.
        let replay = shell.run(&[&some[..], &["--wait", "--key", "once"]].concat()).await.exits(0);
        replay.shows("2 replayed, 0 skipped, 0 failed");
    }
    for id in &ids[..2] {
        shell.run(&["jobs", "wait", id]).await.exits(0);
    }
    let alone = shell.run(&["jobs", "replay", &ids[0]]).await.exits(1);
    alone.says("[not_dead]");

    // Of one job the new run is waited for.
    let again = shell.submit(&json!({ "ends": ["fatal"] })).await;
    shell.run(&["jobs", "wait", &again]).await.exits(3);
    let set = ["--wait", "--set-args", r#"{"colour":"red"}"#];
    let replay = shell.run(&[&["jobs", "replay", &again][..], &set].concat()).await.exits(3);
    replay.shows("1 replayed, 0 skipped, 0 failed.\n");
    replay.shows(&format!("{again} dead, bad_args: "));
    let one = ["dead", "replay", queue, "--id", &again, "--wait", "--set-args", "{}", "--json"];
    let record = shell.run(&one).await.exits(0).json();
    assert_eq!(
        (&record["id"], &record["status"], &record["run"]),
        (&json!(again), &json!("succeeded"), &json!(3))
    );

    let purge = ["dead", "purge", queue, "--fingerprint", fingerprint];
    shell.run(&purge).await.exits(1).says("--yes");
    shell.run(&[&purge[..], &["--dry-run"]].concat()).await.exits(0).shows("about 1 job.");
    shell.run(&[&purge[..], &["--yes", "--wait"]].concat()).await.exits(0).shows("1 done");
    let none = shell.run(&["dead", "ls", queue]).await.exits(0);
    assert_eq!(none.err, "No jobs.\n");
    shell.run(&["jobs", "show", &ids[2]]).await.exits(0).shows("purged");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_follow_pages_and_readers_may_leave() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let shell = Shell::new(&stage, &front);
    let queue = stage.queue.as_str();
    let item = json!({ "kind": KIND, "queue": queue });
    let ids: BTreeSet<String> = front.submit_all(vec![item; 1100]).await.into_iter().collect();
    let count = format!("/v1/jobs/counts?queue={queue}");
    eventually("all are in the record", async || {
        (front.get(&count).await.body["total"] == 1100).then_some(())
    })
    .await;
    let listed = |ran: &Ran| -> BTreeSet<String> {
        ran.lines().iter().map(|job| job["id"].as_str().expect("an id").to_owned()).collect()
    };
    let all = shell.run(&["jobs", "ls", "--queue", queue, "--all", "--json"]).await.exits(0);
    assert_eq!((all.out.lines().count(), listed(&all)), (1100, ids));
    for (words, count) in [(&["--limit", "700"][..], 700), (&[], 50)] {
        let some = shell.run(&[&["jobs", "ls", "--queue", queue, "--json"], words].concat()).await.exits(0);
        assert_eq!((some.out.lines().count(), listed(&some).len()), (count, count));
    }

    let mut left = shell.spawn(&["jobs", "ls", "--all", "--json"]);
    drop(left.stdout.take());
    assert!(timeout(PATIENCE, left.wait()).await.expect("an end").expect("a process").success());

    shell.run(&["queues", "purge", queue]).await.exits(1).says("--yes");
    let purged = shell.run(&["queues", "purge", queue, "--yes", "--wait"]).await.exits(0);
    purged.shows("1100 done");
    shell.run(&["jobs", "wait", last_of(&all)]).await.exits(4).shows("purged");
}

/// The id on the last line of a list.
fn last_of(ran: &Ran) -> &str {
    let line = ran.out.lines().last().expect("a line");
    line.split('"').nth(3).expect("the id comes first")
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_followed_to_the_end_of_a_job_and_across_a_restart() {
    let stage = Stage::new();
    let mut front = stage.serve().await;
    let address = front.url.trim_start_matches("http://").to_owned();
    let _worker = stage.ledger_worker(&[]);
    let shell = Shell::new(&stage, &front);
    let first = shell.submit(&json!({ "ms": 400 })).await;
    let story = shell.run(&["events", "tail", "--job", &first, "--json"]).await.exits(0).lines();
    let types: Vec<_> = story.iter().map(|event| event["type"].as_str().unwrap_or_default()).collect();
    assert_eq!(types, ["hopline.job.submitted", "hopline.job.started", "hopline.job.succeeded"], "{story:?}");
    let begin = story[0]["position"].as_str().expect("a position");
    let told = shell.run(&["events", "tail", "--job", &first]).await.exits(0);
    assert_eq!(told.out.lines().count(), 4, "a title and three events: {told:?}");

    let mut tail = shell.spawn(&["events", "tail", "--queue", &stage.queue, "--from", begin, "--json"]);
    let mut lines = BufReader::new(tail.stdout.take().expect("a pipe")).lines();
    let mut next = async || -> Value {
        let line = timeout(PATIENCE, lines.next_line()).await.expect("an event in time").expect("a pipe");
        serde_json::from_str(&line.expect("an event")).expect("JSON")
    };
    assert_eq!(next().await["type"], "hopline.job.started", "what follows the position");
    assert_eq!(next().await["type"], "hopline.job.succeeded");
    front.process.kill9();
    let again = stage.serve_with(&[("HOPLINE_HTTP_LISTEN", &address)]).await;
    again.until_ready().await;
    let second = shell.submit(&json!({})).await;
    // Those of two processes, in the order in which they came into the log.
    let mut types = BTreeSet::new();
    for _ in 0..2 {
        let told = next().await;
        assert_eq!(told["subject"], second);
        types.extend(told["type"].as_str().map(str::to_owned));
    }
    assert_eq!(types, BTreeSet::from(["hopline.job.submitted", "hopline.job.succeeded"].map(str::to_owned)));
    let id = tail.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).expect("it runs");
    kill_process(id, Signal::INT).expect("it runs");
    let ended = timeout(PATIENCE, tail.wait()).await.expect("an end").expect("a process");
    assert!(ended.success(), "Ctrl-C is how it ends: {ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_imported_and_imported_again() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let shell = Shell::new(&stage, &front);
    let queue = stage.queue.as_str();
    let job = |number: usize| json!({ "kind": KIND, "queue": queue, "args": { "n": number } }).to_string();
    let mut lines: Vec<String> = (1..=25).map(job).collect();
    lines[4] = "no json".to_owned();
    lines[16] = json!({ "kind": "", "queue": queue }).to_string();
    lines[20] = String::new();
    let file = stage.dir.join("jobs.ndjson");
    std::fs::write(&file, lines.join("\n")).expect("a file");
    let path = file.to_str().expect("a path");
    shell.run(&["jobs", "import", path, "--key", ""]).await.exits(2).says("must not be empty");
    let import = ["jobs", "import", path, "--key", "once", "--batch", "10"];
    let first = shell.run(&import).await.exits(1);
    first.shows("22 jobs accepted, 2 refused");
    first.says("line 5: no JSON object");
    first.says("line 17: 422");
    let second = shell.run(&[&import[..], &["--json"]].concat()).await.exits(1).json();
    assert_eq!(second, json!({ "accepted": 22, "repeated": 22, "refused": 2 }));
    let rest = shell.run(&["jobs", "import", path, "--from-line", "18"]).await.exits(0);
    rest.shows("7 jobs accepted, 0 refused");
    let listed = shell.run(&["jobs", "ls", "--queue", queue, "--all", "--json"]).await.exits(0);
    assert_eq!(listed.out.lines().count(), 29);
    shell.run(&["queues", "purge", queue, "--yes", "--wait"]).await.exits(0).shows("29 done");
}

/// A terminal, and what was written to it.
struct Tty {
    end: OwnedFd,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Tty {
    fn open() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags).expect("a terminal");
        grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("its other end");
        let end = ioctl_tiocgptpeer(&ours, flags).expect("its other end");
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&end, size).expect("a size");
        let written = Arc::new(Mutex::new(Vec::new()));
        let (into, mut ours) = (Arc::clone(&written), File::from(ours));
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            // An error is its end: nobody has the other one any more.
            while let Ok(length @ 1..) = ours.read(&mut part) {
                into.lock().expect("no panic").extend_from_slice(&part[..length]);
            }
        });
        Self { end, written }
    }

    fn other_end(&self) -> OwnedFd {
        self.end.try_clone().expect("a descriptor")
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.end).expect("its modes").local_modes.contains(LocalModes::ICANON)
    }

    async fn until_written(&self, text: &str, times: usize) {
        eventually(&format!("{text:?} {times} times"), async || {
            let written = String::from_utf8_lossy(&self.written.lock().expect("no panic")).into_owned();
            (written.matches(text).count() >= times).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn top_has_the_terminal_again_after_a_stop_and_gives_it_back_at_its_end() {
    let stage = Stage::new();
    let front = stage.serve().await;
    let shell = Shell::new(&stage, &front);
    for signal in [Signal::QUIT, Signal::TERM] {
        let tty = Tty::open();
        let usual = tcgetattr(&tty.end).expect("its modes");
        let mut command = shell.command(&["top"]);
        command.stdin(tty.other_end()).stdout(tty.other_end()).stderr(tty.other_end());
        let mut top = command.spawn().expect("a process");
        let pid =
            top.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw).expect("a process id");
        let send = |signal| kill_process(pid, signal).expect("it runs");
        tty.until_written("Queues", 1).await;
        assert!(tty.is_raw());

        // As a shell does while it has the terminal.
        send(Signal::STOP);
        tcsetattr(&tty.end, OptionalActions::Now, &usual).expect("its modes");
        send(Signal::CONT);
        tty.until_written("\u{1b}[?1049h", 2).await;
        tty.until_written("Queues", 2).await;
        assert!(tty.is_raw());

        send(signal);
        let status = timeout(PATIENCE, top.wait()).await.expect("it ends").expect("our own child");
        assert_eq!(status.code(), Some(0), "{signal:?}");
        tty.until_written("\u{1b}[?1049l", 1).await;
        assert!(!tty.is_raw());
    }
}

#[tokio::test]
async fn bash_loads_the_completions_and_completes() {
    let script = r#"eval "$("$0" completions bash)"
        complete -p hopline
        COMP_WORDS=(hopline jobs su) COMP_CWORD=2
        _hopline hopline su jobs
        echo "${COMPREPLY[@]}""#;
    let output = Command::new("bash").args(["--noprofile", "--norc", "-euc", script]).arg(hopline()).output();
    let output = output.await.expect("bash");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.ends_with("hopline\nsubmit\n"), "{out}{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_named() {
    let stage = Stage::new();
    let shell = Shell { stage: &stage, url: "http://127.0.0.1:1".to_owned() };
    let ran = shell.run(&["queues", "ls"]).await.exits(1);
    ran.says("http://127.0.0.1:1/");
    ran.says("HOPLINE_URL");
    let mut command = shell.command(&["queues", "ls", "--server", "localhost:8080"]);
    let output = command.output().await.expect("a process");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("http://HOST:PORT"), "{text}");
}
