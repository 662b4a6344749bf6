//! Real processes of Hopline: started with a configuration of the test's own, watched, signalled, and killed when the
//! test ends, however it ends.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use hopline::JobId;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::broker::Broker;

/// Longest wait for anything that should happen; a loaded machine is slow, so it says nothing about speed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(50);
/// The kind and the test function of the worker in `process_ledger.rs`.
pub(crate) const KIND: &str = "ledger.do";
const LEDGER_WORKER: &str = "process_ledger::ledger_worker";

/// Waits until `look` finds something.
pub(crate) async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look).await
}

async fn within<T>(patience: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < patience, "{what}: not within {} s", patience.as_secs());
        sleep(LOOK).await;
    }
}

/// A prefix, a queue and a folder of one test's own. Dropped, it removes them.
pub(crate) struct Stage {
    pub(crate) broker: Broker,
    pub(crate) prefix: String,
    pub(crate) queue: String,
    pub(crate) ladder: &'static str,
    pub(crate) dir: PathBuf,
}

impl Stage {
    /// On the shared broker, with a queue name of its own: all such tests share one ladder.
    pub(crate) fn new() -> Self {
        Self::over(Broker::shared())
    }

    /// As [`Stage::new`], by another way to the shared broker.
    pub(crate) fn over(broker: Broker) -> Self {
        let name = unique();
        Self::on(broker, folder(&name), name.clone(), name, "hltest")
    }

    /// On the shared broker, for the demo worker, whose queue has a fixed name: nothing here may be delayed, because
    /// all such tests share one ladder.
    pub(crate) fn demo() -> Self {
        Self::of("demo")
    }

    /// The same for any worker of this workspace whose queue has a fixed name.
    pub(crate) fn of(queue: &str) -> Self {
        let name = unique();
        Self::on(Broker::shared(), folder(&name), name, queue.to_owned(), "hltest-demo")
    }

    /// On a broker that is the test's own.
    pub(crate) fn private(broker: Broker, dir: PathBuf) -> Self {
        Self::on(broker, dir, "hltest".into(), unique(), "hltest")
    }

    /// On a broker, with names of the test's own and no ladder that is shared.
    pub(crate) fn at(broker: Broker, prefix: String, queue: String, dir: PathBuf) -> Self {
        Self { broker, prefix, queue, ladder: "", dir }
    }

    fn on(broker: Broker, dir: PathBuf, prefix: String, queue: String, ladder: &'static str) -> Self {
        super::broker::crypto();
        Self { broker, prefix, queue, ladder, dir }
    }

    pub(crate) fn ledger(&self) -> Ledger {
        Ledger(self.dir.join("ledger"))
    }

    /// The full name of the work queue; with `.dead`, of its dead-letter queue.
    pub(crate) fn work_queue(&self) -> String {
        format!("{}.q.{}", self.prefix, self.queue)
    }

    pub(crate) fn dead_queue(&self) -> String {
        format!("{}.dead", self.work_queue())
    }

    /// `hopline serve`, ready to take jobs.
    pub(crate) async fn serve(&self) -> Front {
        let front = self.serve_with(&[]).await;
        front.until_ready().await;
        front
    }

    /// `hopline serve`, listening.
    pub(crate) async fn serve_with(&self, variables: &[(&str, &str)]) -> Front {
        self.serve_in(&self.dir.join(format!("record-{}", unique())), variables).await
    }

    /// `hopline serve`, listening, with its record in this folder.
    pub(crate) async fn serve_in(&self, record: &Path, variables: &[(&str, &str)]) -> Front {
        let mut command = self.command(&hopline());
        command
            .arg("serve")
            .env("HOPLINE_HTTP_LISTEN", "127.0.0.1:0")
            .env("HOPLINE_RECORD_PATH", record)
            .envs(variables.iter().copied());
        self.serve_by(command, record).await
    }

    /// A front that this command starts, listening.
    pub(crate) async fn serve_by(&self, command: Command, record: &Path) -> Front {
        let process = Process::spawn(command, &self.dir, "http");
        let address = process.until_logged("listening", "http.address=").await;
        let (url, record) = (format!("http://{address}"), record.to_owned());
        Front { process, url, record, client: reqwest::Client::new() }
    }

    /// The worker that keeps a ledger.
    pub(crate) fn ledger_worker(&self, variables: &[(&str, &str)]) -> Process {
        let mut command = self.command(&std::env::current_exe().expect("the tests' own program"));
        command
            .args([LEDGER_WORKER, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env("HOPLINE_TEST_LEDGER", self.ledger().0)
            .env("HOPLINE_TEST_QUEUE", &self.queue)
            .envs(variables.iter().copied());
        Process::spawn(command, &self.dir, "worker")
    }

    /// The demo worker of this workspace.
    pub(crate) fn demo_worker(&self, variables: &[(&str, &str)]) -> Process {
        self.worker("demo", variables)
    }

    /// A worker of this workspace.
    pub(crate) fn worker(&self, name: &str, variables: &[(&str, &str)]) -> Process {
        let mut command = self.command(&beside(&format!("hopline-worker-{name}")));
        command.envs(variables.iter().copied());
        Process::spawn(command, &self.dir, name)
    }

    /// A program with this test's configuration and nobody else's.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HOPLINE_"))
        {
            command.env_remove(name);
        }
        command
            .current_dir(&self.dir)
            .env("HOPLINE_AMQP_URL", &self.broker.amqp)
            .env("HOPLINE_AMQP_PREFIX", &self.prefix)
            .env("HOPLINE_AMQP_LADDER_PREFIX", self.ladder)
            .env("HOPLINE_AMQP_QUEUES", &self.queue);
        command
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return; // what is there may explain it
        }
        let _ = std::fs::remove_dir_all(&self.dir);
        let (broker, prefix, queue) = (self.broker.clone(), self.prefix.clone(), self.queue.clone());
        // A runtime cannot be waited for inside another one.
        let removing = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            let limit = Duration::from_secs(10);
            let _ =
                runtime.block_on(async { tokio::time::timeout(limit, broker.remove(&prefix, &queue)).await });
        });
        let _ = removing.join();
    }
}

fn unique() -> String {
    let id = JobId::new().to_string().replace('-', "");
    format!("hlt{}", &id[id.len() - 12..])
}

/// A new folder.
pub(crate) fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("hopline-it-{name}"));
    std::fs::create_dir_all(&dir).expect("a temporary folder");
    dir
}

pub(crate) fn new_folder() -> PathBuf {
    folder(&unique())
}

pub(crate) fn hopline() -> PathBuf {
    env!("CARGO_BIN_EXE_hopline").into()
}

fn beside(name: &str) -> PathBuf {
    let program = hopline().with_file_name(name);
    assert!(
        program.exists(),
        "{} is not built: run the tests with `make test`, or `cargo build --workspace --bins --all-features` first",
        program.display()
    );
    program
}

/// A process that does not outlive its test.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn spawn(mut command: Command, dir: &Path, name: &str) -> Self {
        let (log, file) = new_log(dir, name);
        let second = file.try_clone().expect("the log");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(second).spawn();
        let child = child
            .unwrap_or_else(|error| panic!("{} does not start: {error}", command.get_program().display()));
        Self { child, log }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    #[allow(dead_code, reason = "for the fault harness")]
    pub(crate) fn log_path(&self) -> &Path {
        &self.log
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("it still runs, or waits to be reaped");
    }

    /// How many threads it has; 0 where the system does not say.
    pub(crate) fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.id())).map_or(0, Iterator::count)
    }

    /// How it ended; `None`: it runs.
    pub(crate) fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        self.ended_within(PATIENCE).await
    }

    /// Waits for its end: of one that has much to do.
    pub(crate) async fn ended_within(&mut self, patience: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.log.display());
        within(patience, &what, async || self.status()).await
    }

    /// SIGKILL, and waits for its end.
    pub(crate) fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM; it must end with code 0.
    pub(crate) async fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.ended().await;
        assert!(status.success(), "{status} after SIGTERM; its log:\n{}", self.log());
    }

    /// Waits for a log line with `mark`, and returns the word after `field` in it.
    pub(crate) async fn until_logged(&self, mark: &str, field: &str) -> String {
        let what = format!("`{mark}` in {}", self.log.display());
        eventually(&what, async || {
            let log = self.log();
            let line = log.lines().find(|line| line.contains(mark) && line.contains(field))?;
            line.split_once(field)?.1.split_whitespace().next().map(str::to_owned)
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- the last of {}:\n{}",
                self.log.display(),
                lines[lines.len().saturating_sub(30)..].join("\n")
            );
        }
    }
}

fn new_log(dir: &Path, name: &str) -> (PathBuf, File) {
    for number in 1.. {
        let path = dir.join(format!("{name}-{number}.log"));
        match File::create_new(&path) {
            Ok(file) => return (path, file),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
    unreachable!("there are numbers enough")
}

/// A running `hopline serve`.
pub(crate) struct Front {
    pub(crate) process: Process,
    pub(crate) url: String,
    /// The folder of its record.
    pub(crate) record: PathBuf,
    client: reqwest::Client,
}

/// What a request was answered: status and JSON; status 0 where there was no answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
    /// The job that the answer is about, by its `Hopline-Job-Id`.
    job: Option<String>,
}

impl Answer {
    pub(crate) fn id(&self) -> String {
        self.body["id"].as_str().unwrap_or_else(|| panic!("no id in {self:?}")).to_owned()
    }

    /// The job it is about, also where it is a problem.
    pub(crate) fn job(&self) -> String {
        self.job.clone().unwrap_or_else(|| panic!("no job in {self:?}"))
    }

    pub(crate) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

impl Front {
    pub(crate) async fn until_ready(&self) {
        eventually("/readyz is 200", async || (self.get("/readyz").await.status == 200).then_some(())).await;
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        answer(self.client.get(format!("{}{path}", self.url)).send().await).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        answer(self.client.delete(format!("{}{path}", self.url)).send().await).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        answer(self.client.post(format!("{}{path}", self.url)).json(body).send().await).await
    }

    /// As [`Front::post`], with headers.
    pub(crate) async fn post_with(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Answer {
        let mut request = self.client.post(format!("{}{path}", self.url)).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.send().await).await
    }

    /// Submits one job of the ledger worker; its id.
    pub(crate) async fn submit(&self, stage: &Stage, args: Value) -> String {
        let answer =
            self.post("/v1/jobs", &json!({ "kind": KIND, "queue": stage.queue, "args": args })).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.id()
    }

    /// Submits many jobs at once; their ids.
    pub(crate) async fn submit_all(&self, jobs: Vec<Value>) -> Vec<String> {
        let count = jobs.len();
        let answer = self.post("/v1/jobs/batch", &Value::Array(jobs)).await;
        assert_eq!((answer.status, &answer.body["accepted"]), (202, &json!(count)), "{answer:?}");
        let items = answer.body["items"].as_array().expect("items");
        items.iter().map(|item| item["id"].as_str().expect("an id").to_owned()).collect()
    }
}

/// What became of submits while things broke.
#[derive(Debug, Default)]
pub(crate) struct Submitted {
    /// 202: these must end.
    pub(crate) accepted: Vec<String>,
    /// 504: these may end.
    pub(crate) unsure: Vec<String>,
    /// 503: these must not.
    pub(crate) refused: usize,
    /// How often each code was answered.
    pub(crate) codes: BTreeMap<String, usize>,
}

impl Submitted {
    /// Both together.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.accepted.extend(other.accepted);
        self.unsure.extend(other.unsure);
        self.refused += other.refused;
        for (code, count) in other.codes {
            *self.codes.entry(code).or_default() += count;
        }
        self
    }
}

/// Submits these jobs in turn, one every `pause`, until told to stop. Every answer must be a documented one.
pub(crate) async fn submit_until(
    stop: &CancellationToken,
    front: &Front,
    jobs: [Value; 2],
    pause: Duration,
) -> Submitted {
    let mut submitted = Submitted::default();
    for job in jobs.iter().cycle() {
        if stop.is_cancelled() {
            break;
        }
        let answer = front.post("/v1/jobs", job).await;
        let code = if answer.status == 202 { "accepted" } else { answer.code() };
        *submitted.codes.entry(code.to_owned()).or_default() += 1;
        match (answer.status, code) {
            (202, _) => submitted.accepted.push(answer.id()),
            (504, "confirm_timeout" | "confirm_lost") => submitted.unsure.push(answer.job()),
            (503, "broker_unavailable" | "broker_blocked" | "overloaded") => submitted.refused += 1,
            _ => panic!("not documented: {answer:?}"),
        }
        // The load's rate.
        sleep(pause).await;
    }
    submitted
}

async fn answer(sent: Result<reqwest::Response, reqwest::Error>) -> Answer {
    match sent {
        Ok(response) => {
            let status = response.status().as_u16();
            let job =
                response.headers().get("hopline-job-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
            Answer { status, body: response.json().await.unwrap_or_default(), job }
        }
        Err(_) => Answer { status: 0, body: Value::Null, job: None },
    }
}

/// Prints a line also where the test is well and its output is captured.
pub(crate) fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Polls a worker's or front's health until it has this status.
pub(crate) async fn until_status(url: &str, status: u16) {
    let client = reqwest::Client::new();
    let what = format!("{url} is {status}");
    eventually(&what, async || (answer(client.get(url).send().await).await.status == status).then_some(()))
        .await;
}

/// A port that is free now.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// What the ledger worker wrote: who ran what, how often. Outside of Hopline, so that it can be believed.
pub(crate) struct Ledger(pub(crate) PathBuf);

/// One line of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) job: String,
    pub(crate) attempt: u32,
    /// `start`, or how it ended.
    pub(crate) word: String,
    pub(crate) pid: u32,
    /// Whether it ran in a child process.
    pub(crate) child: bool,
}

impl Ledger {
    pub(crate) fn lines(&self) -> Vec<Line> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().filter_map(Line::parse).collect()
    }

    pub(crate) fn of(&self, job: &str) -> Vec<Line> {
        self.lines().into_iter().filter(|line| line.job == job).collect()
    }

    /// How often each job has this word.
    pub(crate) fn count(&self, word: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for line in self.lines().into_iter().filter(|line| line.word == word) {
            *counts.entry(line.job).or_default() += 1;
        }
        counts
    }

    /// Waits until so many lines have this word.
    pub(crate) async fn until(&self, word: &str, count: usize) {
        let what = format!("{count} × {word} in the ledger");
        eventually(&what, async || {
            (self.lines().iter().filter(|line| line.word == word).count() >= count).then_some(())
        })
        .await;
    }

    /// Waits until this process has run something.
    pub(crate) async fn until_run_by(&self, pid: u32) {
        let what = format!("a line of process {pid} in the ledger");
        eventually(&what, async || self.lines().iter().any(|line| line.pid == pid).then_some(())).await;
    }

    /// Waits until all these jobs have ended well.
    pub(crate) async fn until_all_ended(&self, jobs: &[String]) {
        self.until_all_ended_within(PATIENCE, jobs).await;
    }

    /// As [`Ledger::until_all_ended`], with another patience.
    pub(crate) async fn until_all_ended_within(&self, patience: Duration, jobs: &[String]) {
        let begun = Instant::now();
        loop {
            let ended = self.count("end");
            let missing = jobs.iter().filter(|job| !ended.contains_key(*job)).count();
            if missing == 0 {
                return;
            }
            assert!(begun.elapsed() < patience, "{missing} of {} jobs have not ended", jobs.len());
            sleep(LOOK * 4).await;
        }
    }
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Self {
            job: words.next()?.to_owned(),
            attempt: words.next()?.parse().ok()?,
            word: words.next()?.to_owned(),
            pid: words.next()?.parse().ok()?,
            child: words.next()? == "child",
        })
    }
}
