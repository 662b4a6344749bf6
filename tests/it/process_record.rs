//! Two replicas, three workers, jobs of every fate: the records agree with each other and with what the handlers did.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::process::{Answer, Front, KIND, PATIENCE, Stage, eventually, say};

/// Jobs in all; `HOPLINE_TEST_JOBS` asks for more.
const JOBS: usize = 2000;
/// Items of one submit.
const BATCH: usize = 500;
/// How often the replica is killed.
const KILLS: usize = 6;

/// What a job is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Well,
    Flaky,
    Dead,
    Delayed,
    Cancelled,
    Expired,
}

impl Fate {
    /// Every tenth of the jobs; those that expire are submitted before there is a worker.
    fn of(index: usize) -> Self {
        match index % 10 {
            0..=3 => Self::Well,
            4 | 5 => Self::Flaky,
            6 => Self::Dead,
            7 => Self::Delayed,
            8 => Self::Cancelled,
            _ => Self::Expired,
        }
    }

    fn job(self, stage: &Stage) -> Value {
        let (args, more) = match self {
            Self::Well | Self::Cancelled => (json!({}), json!({})),
            Self::Flaky => (json!({ "ends": ["fail", "well"] }), json!({})),
            Self::Dead => (json!({ "ends": ["fatal"] }), json!({})),
            Self::Delayed => (json!({}), json!({ "delay": "300ms" })),
            Self::Expired => (json!({}), json!({ "expires_in": "1ms" })),
        };
        let mut job =
            json!({ "kind": KIND, "queue": stage.queue, "args": args, "tags": [format!("{self:?}")] });
        job.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        if self == Self::Cancelled {
            // Long enough to be cancelled before its time.
            job["delay"] = json!(40 + size() / 300);
        }
        job
    }

    fn status(self) -> &'static str {
        match self {
            Self::Well | Self::Flaky | Self::Delayed => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    fn attempts(self) -> u64 {
        match self {
            Self::Flaky => 2,
            Self::Cancelled | Self::Expired => 0,
            _ => 1,
        }
    }
}

fn size() -> usize {
    std::env::var("HOPLINE_TEST_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(JOBS)
}

/// Submits jobs of these fates to both replicas in turn; the fate of each id.
async fn submit(stage: &Stage, fronts: [&Front; 2], fates: &[Fate]) -> BTreeMap<String, Fate> {
    let mut submitted = BTreeMap::new();
    for (turn, fates) in fates.chunks(BATCH).enumerate() {
        let ids = fronts[turn % 2].submit_all(fates.iter().map(|fate| fate.job(stage)).collect()).await;
        submitted.extend(ids.into_iter().zip(fates.iter().copied()));
    }
    submitted
}

/// Every job of a replica's record, by id: status, run, attempt.
pub(crate) async fn whole_record(front: &Front) -> BTreeMap<String, (String, u64, u64)> {
    let mut found = BTreeMap::new();
    let mut path = "/v1/jobs?limit=500".to_owned();
    loop {
        let Answer { status, body, .. } = front.get(&path).await;
        assert_eq!(status, 200, "{body}");
        for item in body["items"].as_array().expect("items") {
            let text = |name: &str| item[name].as_str().expect(name).to_owned();
            let number = |name: &str| item[name].as_u64().expect(name);
            let twice = found.insert(text("id"), (text("status"), number("run"), number("attempt")));
            assert!(twice.is_none(), "a job stands twice in the list: {item}");
        }
        let Some(cursor) = body["next"].as_str() else { return found };
        path = format!("/v1/jobs?limit=500&cursor={cursor}");
    }
}

/// Waits until all jobs have ended in this replica's record: as long as there is news.
async fn until_all_ended(front: &Front, jobs: usize) {
    let (mut last, mut since) = (Value::Null, Instant::now());
    loop {
        let counts = front.get("/v1/jobs/counts").await.body["counts"].take();
        let of = |status: &str| counts[status].as_u64().unwrap_or(0);
        let ended = of("succeeded") + of("dead") + of("cancelled") + of("expired");
        if usize::try_from(ended) == Ok(jobs) {
            return;
        }
        if counts != last {
            (last, since) = (counts, Instant::now());
        }
        assert!(since.elapsed() < PATIENCE, "not all of {jobs} jobs have ended: {last}");
        // The pause of a bounded look.
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_replicas_agree_with_each_other_and_with_the_handlers() {
    let stage = Stage::new();
    let mut fronts = [stage.serve().await, stage.serve().await];
    let all: Vec<Fate> = (0..size()).map(Fate::of).collect();
    let (early, late): (Vec<Fate>, Vec<Fate>) = all.iter().partition(|fate| **fate == Fate::Expired);
    let mut jobs = submit(&stage, [&fronts[0], &fronts[1]], &early).await;
    let more = [("HOPLINE_WORKER_CONCURRENCY", "20"), ("HOPLINE_WORKER_PREFETCH", "100")];
    let workers = [(); 3].map(|()| stage.ledger_worker(&more));
    // First those that are to be cancelled before they are due.
    let (cancelled, late): (Vec<Fate>, Vec<Fate>) = late.iter().partition(|fate| **fate == Fate::Cancelled);
    let cancelled = submit(&stage, [&fronts[0], &fronts[1]], &cancelled).await;
    for (turn, id) in cancelled.keys().enumerate() {
        let answer = fronts[turn % 2].delete(&format!("/v1/jobs/{id}?reason=test")).await;
        assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    }
    jobs.extend(cancelled);
    jobs.extend(submit(&stage, [&fronts[0], &fronts[1]], &late).await);
    for front in &fronts {
        until_all_ended(front, jobs.len()).await;
    }
    let records = [whole_record(&fronts[0]).await, whole_record(&fronts[1]).await];
    assert_eq!(records[0], records[1], "the replicas differ");
    let starts = stage.ledger().count("start");
    for (id, fate) in &jobs {
        let (status, run, attempt) = &records[0][id];
        let expected = (fate.status(), 1, fate.attempts());
        let ledger = starts.get(id).copied().unwrap_or(0) as u64;
        assert_eq!(
            ((status.as_str(), *run, ledger), *attempt),
            (expected, (*attempt).max(ledger)),
            "{id} {fate:?}"
        );
    }
    assert_eq!(records[0].len(), jobs.len(), "records of jobs that nobody submitted");

    // One replica forgets everything, and reads it again.
    let [_, second] = &mut fronts;
    second.process.stop().await;
    std::fs::remove_dir_all(&second.record).expect("its folder");
    fronts[1] = stage.serve().await;
    until_all_ended(&fronts[1], jobs.len()).await;
    assert_eq!(whole_record(&fronts[1]).await, records[0], "rebuilt differently");
    say(format_args!("{} jobs, two replicas and a rebuilt one agree", jobs.len()));
    drop(workers);
}

/// guarantees: the projector killed in mid-batch. It goes on where its file says: nothing is missing, nothing is counted
/// twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_again_and_again_while_it_projects_agrees_with_the_other() {
    let stage = Stage::new();
    let [front, mut other] = [stage.serve().await, stage.serve().await];
    let more = [("HOPLINE_WORKER_CONCURRENCY", "20"), ("HOPLINE_WORKER_PREFETCH", "100")];
    let _worker = stage.ledger_worker(&more);
    let fates: Vec<Fate> =
        (0..size()).map(Fate::of).filter(|fate| !matches!(fate, Fate::Cancelled | Fate::Expired)).collect();
    let submitting = submit(&stage, [&front, &front], &fates);
    let killing = async {
        for kill in 1..=KILLS {
            // In the middle of its work: it has applied some more, and the rest is on its way.
            let goal = fates.len() * kill / (KILLS + 1);
            eventually("it projects", async || (all_of(&other).await >= goal).then_some(())).await;
            other.process.kill9();
            let record = other.record.clone();
            other = stage.serve_in(&record, &[]).await;
        }
        other
    };
    let (jobs, other) = tokio::join!(submitting, killing);
    for front in [&front, &other] {
        until_all_ended(front, jobs.len()).await;
    }
    assert_eq!(whole_record(&other).await, whole_record(&front).await, "the replicas differ");
    for path in ["/v1/jobs/counts", &format!("/v1/queues/{}/dead/groups", stage.queue)] {
        assert_eq!(other.get(path).await.body, front.get(path).await.body, "{path}");
    }
}

/// How many jobs a replica counts.
async fn all_of(front: &Front) -> usize {
    let counts = front.get("/v1/jobs/counts").await.body["counts"].take();
    let each = counts.as_object().into_iter().flat_map(|counts| counts.values());
    each.filter_map(Value::as_u64).filter_map(|count| usize::try_from(count).ok()).sum()
}
