//! The clients: they submit while things break, and remember every answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Write,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hopline::JobId;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    book::{Tail, now_ms},
    support::process::KIND,
};

/// Clients at the same time.
const CLIENTS: usize = 4;
/// How often a named submission is repeated before the client gives up.
const REPEATS: usize = 100;
/// What follows a refusal, or no answer: a client's manners, as `Retry-After` asks for them.
const AGAIN: Duration = Duration::from_millis(100);
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How often the ledger and the answers are looked at: files and counters of which nobody is told.
const LOOK: Duration = Duration::from_millis(50);

/// How much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// So many are accepted before it ends, at least.
    pub(crate) jobs: usize,
    /// Items of a batch.
    pub(crate) batch: usize,
    /// A client's pause between requests.
    pub(crate) pause: Duration,
    /// No more are submitted while so many have not ended.
    pub(crate) open_max: usize,
}

/// What clients were told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Answered 202, or 200 to a repeat: by job, the client's number.
    pub(crate) accepted: BTreeMap<String, u64>,
    /// Answered 504 and nothing better later.
    pub(crate) unsure: BTreeMap<String, u64>,
    /// Answered 503: nothing accepted.
    pub(crate) refused: BTreeSet<u64>,
    /// Not answered at all.
    pub(crate) unanswered: BTreeSet<u64>,
    pub(crate) codes: BTreeMap<String, usize>,
    pub(crate) undocumented: Vec<String>,
}

struct Shared {
    told: Mutex<Told>,
    /// On disk, too: when, number, status, code, job.
    file: Mutex<File>,
    fronts: Vec<String>,
    queue: String,
    pace: Pace,
    next: AtomicU64,
    ended: AtomicUsize,
    /// Clients that wait for an answer.
    busy: AtomicUsize,
    /// Accepted, but not to end well.
    doomed: AtomicUsize,
    /// The longest time without an end while jobs were open.
    stall: Mutex<Duration>,
    hold: tokio::sync::watch::Sender<bool>,
    stop: CancellationToken,
}

/// One that a row has submit when it wants to.
pub(crate) struct Client {
    shared: Arc<Shared>,
    http: reqwest::Client,
    front: String,
}

impl Client {
    /// Submits a job; its number, if it was accepted.
    pub(crate) async fn submit(&self, mut args: Value) -> Option<u64> {
        let n = self.shared.next.fetch_add(1, Ordering::Relaxed);
        args["n"] = json!(n);
        let job = json!({ "kind": KIND, "queue": self.shared.queue, "args": args });
        send(&self.shared, &self.http, &self.front, n, &job).await.then_some(n)
    }
}

/// The clients at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
    watching: tokio::task::JoinHandle<()>,
}

/// One answer about one submission.
enum Answer {
    Accepted(String),
    Unsure(String),
    Refused,
    Silence,
    /// To a named one: ask again.
    InFlight,
    Undocumented,
}

impl Load {
    pub(crate) fn start(fronts: Vec<String>, queue: &str, dir: &Path, pace: Pace) -> Self {
        let shared = Arc::new(Shared {
            told: Mutex::default(),
            file: Mutex::new(File::create(dir.join("clients")).expect("a file")),
            fronts,
            queue: queue.to_owned(),
            pace,
            next: AtomicU64::new(1),
            ended: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            doomed: AtomicUsize::new(0),
            stall: Mutex::default(),
            hold: tokio::sync::watch::Sender::new(false),
            stop: CancellationToken::new(),
        });
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            clients.spawn(client(Arc::clone(&shared), number));
        }
        let watching = tokio::spawn(watch(Arc::clone(&shared), Tail::of(&dir.join("ledger"))));
        Self { shared, clients, watching }
    }

    pub(crate) fn accepted(&self) -> usize {
        self.shared.told().accepted.len()
    }

    pub(crate) fn ended(&self) -> usize {
        self.shared.ended.load(Ordering::Relaxed)
    }

    /// Accepted ones that have not ended.
    pub(crate) fn open(&self) -> usize {
        self.shared.open()
    }

    /// A number for a submission that a row makes itself.
    pub(crate) fn number(&self) -> u64 {
        self.shared.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A client of a row's own, at one front.
    pub(crate) fn client(&self, front: usize) -> Client {
        let front = self.shared.fronts[front].clone();
        Client { shared: Arc::clone(&self.shared), http: http(), front }
    }

    /// A row's own submission was accepted; `doomed`: it is not to end well.
    pub(crate) fn add(&self, job: &str, n: u64, doomed: bool) {
        self.shared.doomed.fetch_add(usize::from(doomed), Ordering::Relaxed);
        self.shared.note(n, 202, "", &Answer::Accepted(job.to_owned()));
    }

    /// No more submissions until [`Load::go_on`].
    pub(crate) fn pause(&self) {
        self.shared.hold.send_replace(true);
    }

    /// While paused: nobody waits for an answer, and all that was accepted has ended.
    pub(crate) fn is_quiet(&self) -> bool {
        self.shared.busy.load(Ordering::SeqCst) == 0 && self.open() == 0
    }

    pub(crate) fn go_on(&self) {
        self.shared.hold.send_replace(false);
    }

    /// Waits until the clients have got what they were to get, and ends them.
    pub(crate) async fn enough(&mut self, patience: Duration) {
        self.go_on();
        let begun = Instant::now();
        while self.accepted() < self.shared.pace.jobs {
            assert!(begun.elapsed() < patience, "only {} accepted in {patience:?}", self.accepted());
            // Clients count their answers; nobody is told of each.
            sleep(LOOK).await;
        }
        self.shared.stop.cancel();
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client does not fail");
        }
    }

    /// After [`Load::enough`]: what they were told, and the longest stall.
    pub(crate) fn told(&self) -> (MutexGuard<'_, Told>, Duration) {
        let stall = *self.shared.stall.lock().unwrap_or_else(PoisonError::into_inner);
        (self.shared.told(), stall)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.watching.abort();
    }
}

impl Shared {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stalled(&self, time: Duration) {
        let mut stall = self.stall.lock().unwrap_or_else(PoisonError::into_inner);
        *stall = (*stall).max(time);
    }

    fn open(&self) -> usize {
        let settled = self.ended.load(Ordering::Relaxed) + self.doomed.load(Ordering::Relaxed);
        self.told().accepted.len().saturating_sub(settled)
    }

    /// A job of the mix: most are quick, some fail once, some come later.
    fn job(&self) -> (u64, Value) {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let args = json!({ "n": n, "ms": 2 + n % 20, "flaky": n % 10 == 3 });
        let mut job = json!({ "kind": KIND, "queue": self.queue, "args": args });
        if n % 10 == 7 {
            job["delay"] = json!("1s");
        }
        (n, job)
    }

    fn note(&self, n: u64, status: u16, code: &str, answer: &Answer) {
        let job = match answer {
            Answer::Accepted(job) | Answer::Unsure(job) => job,
            _ => "-",
        };
        let line = format!("{} {n} {status} {code} {job}\n", now_ms());
        let _ = self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
        let mut told = self.told();
        *told.codes.entry(format!("{status} {code}").trim().to_owned()).or_default() += 1;
        match answer {
            Answer::Accepted(job) => {
                told.unsure.remove(job);
                told.unanswered.remove(&n);
                told.refused.remove(&n);
                told.accepted.insert(job.clone(), n);
            }
            Answer::Unsure(job) => drop(told.unsure.insert(job.clone(), n)),
            Answer::Refused => drop(told.refused.insert(n)),
            Answer::Silence => drop(told.unanswered.insert(n)),
            Answer::InFlight => {}
            Answer::Undocumented => told.undocumented.push(line.trim_end().to_owned()),
        }
    }
}

/// Follows the ledger: how many have ended, and how long none did.
async fn watch(shared: Arc<Shared>, mut tail: Tail) {
    let (mut ended, mut last) = (BTreeSet::new(), Instant::now());
    loop {
        let lines = tail.read();
        let ends = lines.into_iter().filter(|line| line.word == "end");
        let before = ended.len();
        let any = ends.fold(false, |_, line| {
            ended.insert(line.job);
            true
        });
        if ended.len() > before {
            // Only those that the clients know of are open.
            let told = shared.told();
            let known = ended.iter().filter(|job| told.accepted.contains_key(*job)).count();
            drop(told);
            shared.ended.store(known, Ordering::Relaxed);
        }
        if any || shared.open() == 0 {
            last = Instant::now();
        }
        shared.stalled(last.elapsed());
        // What workers write tells nobody: it is looked at.
        sleep(LOOK).await;
    }
}

fn http() -> reqwest::Client {
    reqwest::Client::builder().timeout(ANSWER).build().expect("a client")
}

async fn client(shared: Arc<Shared>, number: usize) {
    let http = http();
    let mut hold = shared.hold.subscribe();
    for turn in number.. {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            _ = hold.wait_for(|hold| !hold) => {}
        }
        if shared.open() > shared.pace.open_max {
            // The load waits for the jobs, not they for it.
            sleep(AGAIN).await;
            continue;
        }
        let front = &shared.fronts[turn % shared.fronts.len()];
        shared.busy.fetch_add(1, Ordering::SeqCst);
        if *hold.borrow() {
            // Since it was looked at: whoever paused the clients may not have seen this one.
            shared.busy.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let good = match turn % 8 {
            0 => batch(&shared, &http, front).await,
            1 | 5 => named(&shared, &http, turn).await,
            _ => single(&shared, &http, front).await,
        };
        shared.busy.fetch_sub(1, Ordering::SeqCst);
        // The load's rate.
        sleep(if good { shared.pace.pause } else { AGAIN }).await;
    }
}

async fn single(shared: &Shared, http: &reqwest::Client, front: &str) -> bool {
    let (n, job) = shared.job();
    send(shared, http, front, n, &job).await
}

async fn send(shared: &Shared, http: &reqwest::Client, front: &str, n: u64, job: &Value) -> bool {
    let sent = http.post(format!("{front}/v1/jobs")).json(job).send().await;
    let (status, body) = read(sent).await;
    let (code, answer) = judge(status, &body, &body["id"]);
    shared.note(n, status, &code, &answer);
    matches!(answer, Answer::Accepted(_))
}

/// Under an id of its own, so it is repeated until it is known to be there.
async fn named(shared: &Shared, http: &reqwest::Client, turn: usize) -> bool {
    let (n, job) = shared.job();
    let id = JobId::new().to_string();
    for repeat in 0..REPEATS {
        let front = &shared.fronts[(turn + repeat) % shared.fronts.len()];
        let sent = http.put(format!("{front}/v1/jobs/{id}")).json(&job).send().await;
        let (status, body) = read(sent).await;
        let (code, answer) = judge(status, &body, &json!(id));
        shared.note(n, status, &code, &answer);
        match answer {
            Answer::Accepted(_) | Answer::Undocumented => return true,
            // A repeat may be refused although the first one is there.
            _ if shared.stop.is_cancelled() => return false,
            // As a client would, which was told to come again.
            _ => sleep(AGAIN).await,
        }
    }
    false
}

async fn batch(shared: &Shared, http: &reqwest::Client, front: &str) -> bool {
    let jobs: Vec<(u64, Value)> = (0..shared.pace.batch).map(|_| shared.job()).collect();
    let body: Vec<&Value> = jobs.iter().map(|(_, job)| job).collect();
    let sent = http.post(format!("{front}/v1/jobs/batch")).json(&body).send().await;
    let (status, body) = read(sent).await;
    let items = body["items"].as_array().cloned().unwrap_or_default();
    for (index, (n, _)) in jobs.iter().enumerate() {
        let (status, code, answer) = match items.iter().find(|item| item["index"] == json!(index)) {
            None => {
                let (code, answer) = judge(status, &body, &Value::Null);
                (status, code, answer)
            }
            Some(item) => {
                let problem = &item["error"];
                let status = if problem.is_null() { 202 } else { problem["status"].as_u64().unwrap_or(0) };
                let status = u16::try_from(status).unwrap_or(0);
                let (code, answer) = judge(status, problem, &item["id"]);
                (status, code, answer)
            }
        };
        shared.note(*n, status, &code, &answer);
    }
    status == 202
}

async fn read(sent: Result<reqwest::Response, reqwest::Error>) -> (u16, Value) {
    let Ok(response) = sent else { return (0, Value::Null) };
    let status = response.status().as_u16();
    let job = response.headers().get("hopline-job-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let Ok(mut body) = response.json::<Value>().await else { return (0, Value::Null) };
    if let (Some(job), Some(members)) = (job, body.as_object_mut()) {
        members.entry("id").or_insert(json!(job));
    }
    (status, body)
}

fn judge(status: u16, problem: &Value, id: &Value) -> (String, Answer) {
    let code = problem["code"].as_str().unwrap_or_default().to_owned();
    let id = || id.as_str().unwrap_or_default().to_owned();
    let answer = match (status, code.as_str()) {
        (202 | 200, _) => Answer::Accepted(id()),
        (504, "confirm_timeout" | "confirm_lost") => Answer::Unsure(id()),
        (409, "in_flight") => Answer::InFlight,
        (
            503,
            "broker_unavailable" | "broker_blocked" | "broker_refused" | "record_behind" | "overloaded"
            | "keys_unavailable" | "body_memory_full" | "spool_full" | "spool_unavailable",
        ) => Answer::Refused,
        // Where a queue was deleted: nothing was accepted either.
        (422, "unknown_queue") => Answer::Refused,
        (0, _) => Answer::Silence,
        _ => Answer::Undocumented,
    };
    (code, answer)
}
