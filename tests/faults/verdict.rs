//! What came of a row: the ledger, the clients' answers, the event log and the record, held against each other.
//!
//! **A repeat after an end** is a start whose lookup knew the log as far as the final event of its run: the answer that
//! the worker got says how far the log was known (`offset`), the worker logs it, and the stream says where the final event
//! lies. A start without a lookup whose final event had been written before (by the ledger's clock) is counted as one,
//! too, unless its submission was answered with 504: of that two copies may be stored, and the second need not be known
//! for one. Every other start beyond the first of an attempt is a repeat before an end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::StreamExt;
use hopline::{
    JobId,
    event::{EventType, batch},
};
use lapin::{
    BasicProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    },
    types::{AMQPValue, FieldTable},
};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::{
    book::{self, Line},
    scene::{LOOK, Scene},
};

/// What may end otherwise than well.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// These end dead, as poison.
    pub(crate) poison: BTreeSet<String>,
    /// The front whose record is complete.
    pub(crate) judge: usize,
}

/// A row's figures.
#[derive(Debug, Default, Clone)]
pub(crate) struct Figures {
    pub(crate) jobs: usize,
    pub(crate) lost: usize,
    pub(crate) after: usize,
    /// Of submissions that were answered with 504.
    pub(crate) after_unsure: usize,
    pub(crate) before: usize,
    pub(crate) in_child: usize,
    pub(crate) unsure_ended: usize,
    pub(crate) unsure_not: usize,
    pub(crate) refused: usize,
    pub(crate) unanswered: usize,
    pub(crate) stall: Duration,
    pub(crate) codes: BTreeMap<String, usize>,
    /// Empty: the row holds.
    pub(crate) problems: Vec<String>,
}

/// Where the log was known up to, when a worker was told.
#[derive(Debug, Clone, Copy)]
struct LookedUp {
    ms: u64,
    offset: Option<u64>,
}

/// Waits until nothing is left to do, and judges.
pub(crate) async fn judge(scene: &mut Scene, expected: &Expected) -> Figures {
    let patience = scene.scale.patience();
    scene.load.enough(patience).await;
    let (accepted, unsure, refused, unanswered, codes, undocumented) = {
        let (told, _) = scene.load.told();
        (
            told.accepted.clone(),
            told.unsure.clone(),
            told.refused.clone(),
            told.unanswered.clone(),
            told.codes.clone(),
            told.undocumented.clone(),
        )
    };
    let mut problems: Vec<String> =
        undocumented.iter().take(3).map(|line| format!("not documented: {line}")).collect();

    let goal = accepted.keys().filter(|job| !expected.poison.contains(*job)).count();
    let ledger = scene.ledger();
    wait_quietly(patience, async || {
        let ends: BTreeSet<String> = ends(&book::read(&ledger));
        accepted.keys().filter(|job| ends.contains(*job)).count() >= goal
    })
    .await;
    let stall = scene.load.told().1;
    let (work, dead) = (scene.stage.work_queue(), scene.stage.dead_queue());
    let broker = scene.site.broker.clone();
    // What is left is then what nobody settled.
    scene.stop_workers().await;
    let emptied = wait_quietly(scene.scale.seconds(60, 10), async || broker.waiting(&work).await == 0);
    if !emptied.await {
        problems.push(format!("{} messages are left in the queue", broker.waiting(&work).await));
    }
    // Two copies of one dead letter are one.
    let buried = broker.look(&dead).await;
    let convicted: BTreeSet<String> = buried
        .iter()
        .filter_map(|letter| Some(letter.delivery.properties.message_id().as_ref()?.to_string()))
        .collect();
    if convicted != expected.poison {
        problems.push(format!("dead letters of {convicted:?}, not of {:?}", expected.poison));
    }

    let lines = book::read(&ledger);
    let ended = ends(&lines);
    let record = wait_for_record(scene, expected, &accepted).await;
    let fine = |job: &String| {
        let status = record.get(job).map(String::as_str);
        if expected.poison.contains(job) {
            status == Some("dead")
        } else {
            ended.contains(job) && status == Some("succeeded")
        }
    };
    let lost: Vec<&String> = accepted.keys().filter(|job| !fine(job)).collect();
    if let Some(first) = lost.first() {
        let (line, status) = (ended.contains(*first), record.get(*first));
        problems
            .push(format!("{} lost, as {first} (in the ledger: {line}; the record: {status:?})", lost.len()));
    }
    problems.extend(strangers(&lines, &accepted, &unsure, &refused, &unanswered));

    let mut figures = Figures {
        jobs: accepted.len(),
        lost: lost.len(),
        unsure_ended: unsure.keys().filter(|job| ended.contains(*job)).count(),
        unsure_not: unsure.keys().filter(|job| !ended.contains(*job)).count(),
        refused: refused.len(),
        unanswered: unanswered.len(),
        in_child: lines.iter().filter(|line| line.child && line.word == "start").count(),
        stall,
        codes,
        ..Figures::default()
    };
    let finals = read_log(scene).await;
    let lookups = read_lookups(scene);
    let once_unsure = read_once_unsure(scene);
    problems.extend(count_repeats(&mut figures, &lines, &finals, &lookups, &once_unsure));
    figures.problems = problems;
    figures
}

/// Waits, without failing; whether it became so.
async fn wait_quietly(patience: Duration, mut look: impl AsyncFnMut() -> bool) -> bool {
    let waited = timeout(patience, async {
        while !look().await {
            sleep(LOOK * 3).await;
        }
    });
    waited.await.is_ok()
}

fn ends(lines: &[Line]) -> BTreeSet<String> {
    lines.iter().filter(|line| line.word == "end").map(|line| line.job.clone()).collect()
}

/// Runs of what was refused, or that nobody submitted, and submissions that became two jobs.
fn strangers(
    lines: &[Line],
    accepted: &BTreeMap<String, u64>,
    unsure: &BTreeMap<String, u64>,
    refused: &BTreeSet<u64>,
    unanswered: &BTreeSet<u64>,
) -> Vec<String> {
    let maybe: BTreeSet<u64> = unsure.values().chain(unanswered).copied().collect();
    let mut jobs_of: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for line in lines {
        jobs_of.entry(line.n).or_default().insert(&line.job);
    }
    let mut problems = Vec::new();
    for (n, jobs) in jobs_of {
        let known = jobs.iter().any(|job| accepted.contains_key(*job) || unsure.contains_key(*job));
        if refused.contains(&n) && !maybe.contains(&n) && !known {
            problems.push(format!("submission {n} was refused, but ran: {jobs:?}"));
        } else if !known && !maybe.contains(&n) {
            problems.push(format!("submission {n} ran under an id that nobody was told: {jobs:?}"));
        }
        if jobs.len() > 1 {
            problems.push(format!("submission {n} became several jobs: {jobs:?}"));
        }
    }
    problems.truncate(5);
    problems
}

fn count_repeats(
    figures: &mut Figures,
    lines: &[Line],
    finals: &BTreeMap<String, u64>,
    lookups: &BTreeMap<(u32, String), Vec<LookedUp>>,
    once_unsure: &BTreeSet<String>,
) -> Vec<String> {
    let mut problems = Vec::new();
    let mut seen: BTreeSet<(&str, u32)> = BTreeSet::new();
    let mut ended: BTreeSet<&str> = BTreeSet::new();
    for line in lines {
        match line.word.as_str() {
            "end" => drop(ended.insert(&line.job)),
            "start" => {
                let again = !seen.insert((&line.job, line.attempt));
                let asked = lookups.get(&(line.worker, line.job.clone()));
                let asked = asked.and_then(|asked| asked.iter().rev().find(|asked| asked.ms <= line.ms));
                let last = finals.get(&line.job);
                let late = match (asked.and_then(|asked| asked.offset), last) {
                    (Some(known), Some(last)) => last <= &known,
                    // Nobody was asked. The ledger is in order: an `end` above is an end before.
                    (None, _) => ended.contains(line.job.as_str()),
                    (Some(_), None) => false,
                };
                if late && once_unsure.contains(&line.job) {
                    figures.after_unsure += 1;
                } else if late {
                    figures.after += 1;
                    problems.push(format!(
                        "a repeat after the end (at {last:?}): {line:?}, looked up: {asked:?}"
                    ));
                } else if again || ended.contains(line.job.as_str()) {
                    figures.before += 1;
                }
            }
            _ => {}
        }
    }
    problems.truncate(5);
    problems
}

/// Waits until a front's record has the end of each accepted job.
pub(crate) async fn until_recorded(scene: &Scene, front: usize) {
    let accepted = scene.load.told().0.accepted.clone();
    let expected = Expected { judge: front, ..Expected::default() };
    wait_for_record(scene, &expected, &accepted).await;
}

/// The statuses that the judging front has, once it has one for each job.
async fn wait_for_record(
    scene: &Scene,
    expected: &Expected,
    accepted: &BTreeMap<String, u64>,
) -> BTreeMap<String, String> {
    let mut record = BTreeMap::new();
    let url = &scene.fronts[expected.judge].front.url;
    wait_quietly(scene.scale.patience(), async || {
        record = read_record(url, &scene.stage.queue).await;
        let is_final =
            |job: &String| matches!(record.get(job).map(String::as_str), Some("succeeded" | "dead"));
        accepted.keys().all(is_final)
    })
    .await;
    record
}

async fn read_record(url: &str, queue: &str) -> BTreeMap<String, String> {
    let mut statuses = BTreeMap::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut address = format!("{url}/v1/jobs?queue={queue}&limit=500");
        if let Some(cursor) = &cursor {
            address.push_str(&format!("&cursor={cursor}"));
        }
        let Ok(answer) = reqwest::get(address).await else { return statuses };
        let page: Value = answer.json().await.unwrap_or_default();
        for item in page["items"].as_array().into_iter().flatten() {
            if let (Some(id), Some(status)) = (item["id"].as_str(), item["status"].as_str()) {
                statuses.insert(id.to_owned(), status.to_owned());
            }
        }
        cursor = page["next"].as_str().map(str::to_owned);
        if cursor.is_none() {
            return statuses;
        }
    }
}

/// Where the first final event of each job lies in the stream, read raw.
async fn read_log(scene: &Scene) -> BTreeMap<String, u64> {
    let (connection, channel) = scene.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
    let mark = JobId::new().to_string();
    let properties =
        BasicProperties::default().with_message_id(mark.as_str().into()).with_type("hopline.barrier".into());
    let (record, options) = (format!("{}.record", scene.stage.prefix), BasicPublishOptions::default());
    let published = channel.basic_publish(record.into(), "".into(), options, b"{}", properties).await;
    published.expect("published").await.expect("confirmed");
    channel.basic_qos(50, BasicQosOptions::default()).await.expect("a prefetch");
    let mut arguments = FieldTable::default();
    arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    let log = format!("{}.log", scene.stage.prefix);
    let options = BasicConsumeOptions::default();
    let mut consumer =
        channel.basic_consume(log.into(), "verdict".into(), options, arguments).await.expect("the log");
    let mut finals = BTreeMap::new();
    loop {
        let next = timeout(scene.scale.patience(), consumer.next()).await.expect("the log goes on");
        let delivery = next.expect("the consumer lives").expect("a delivery");
        delivery.ack(BasicAckOptions::default()).await.expect("acked");
        let properties = &delivery.properties;
        if properties.message_id().as_ref().is_some_and(|id| id.as_str() == mark) {
            break;
        }
        let offset = offset(properties);
        if properties.kind().as_ref().is_none_or(|kind| kind.as_str() != batch::MESSAGE_TYPE) {
            continue;
        }
        let (events, _) = batch::decode(&delivery.data).expect("a batch");
        for (_, event) in events {
            // `DeliveryLost` ends nothing: the message may turn up.
            if event.event_type.is_final() && event.event_type != EventType::DeliveryLost {
                finals.entry(event.job.to_string()).or_insert(offset);
            }
        }
    }
    let _ = connection.close(200, "".into()).await;
    finals
}

/// What the workers were told, from their logs: by process and job, in their order.
fn read_lookups(scene: &Scene) -> BTreeMap<(u32, String), Vec<LookedUp>> {
    let mut lookups: BTreeMap<_, Vec<LookedUp>> = BTreeMap::new();
    for (pid, path) in scene.worker_logs() {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        for line in text.lines().filter(|line| line.contains("looked up")) {
            let Some(job) = field(line, "job.id=") else { continue };
            let Some(time) =
                line.split_whitespace().next().and_then(|time| time.parse::<jiff::Timestamp>().ok())
            else {
                continue;
            };
            let offset = field(line, "log.offset=").and_then(|offset| offset.parse().ok());
            let ms = u64::try_from(time.as_millisecond()).unwrap_or(0);
            lookups.entry((pid, job.to_owned())).or_default().push(LookedUp { ms, offset });
        }
    }
    lookups
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_once(name)?.1.split_whitespace().next()
}

/// Jobs that were answered with 504 at some time.
fn read_once_unsure(scene: &Scene) -> BTreeSet<String> {
    let text = std::fs::read_to_string(scene.stage.dir.join("clients")).unwrap_or_default();
    let unsure = text.lines().filter(|line| line.split(' ').nth(2) == Some("504"));
    unsure.filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect()
}

/// Where a delivery lies in its stream.
pub(crate) fn offset(properties: &BasicProperties) -> u64 {
    let headers = properties.headers().as_ref();
    match headers.and_then(|headers| headers.inner().get("x-stream-offset")) {
        Some(AMQPValue::LongLongInt(offset)) => u64::try_from(*offset).expect("an offset"),
        other => panic!("no offset: {other:?}"),
    }
}
