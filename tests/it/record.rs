//! The record: what the event log says, read into a file that can be lost.

use std::{path::PathBuf, time::Duration};

use futures_util::StreamExt;
use hopline::{
    Client, Config, Kind,
    event::{AttemptOutcome, Event, EventError, EventType, batch},
    job::{Envelope, JobId},
    record::{
        Record, RecordError,
        model::{Filter, JobStatus, Position, Scope, StoredEvent, Stretch},
    },
};
use jiff::Timestamp;
use lapin::{
    BasicProperties,
    options::{BasicConsumeOptions, BasicPublishOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use reqwest::Method;
use serde_json::{Value, json, value::RawValue};
use tokio::time::{Instant, timeout};

use crate::support::{
    PATIENCE, eventually,
    stage::{Stage, stage},
};

/// A folder that is removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("hopline-record-{}", JobId::new())))
    }

    fn config(&self, stage: &Stage) -> Config {
        let mut config = stage.config.clone();
        config.record.path.clone_from(&self.0);
        config
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A record that follows the log, and has read all of it.
async fn follow(stage: &Stage, folder: &Folder) -> (Record, Client) {
    let client = stage.client();
    let config = folder.config(stage);
    // Whoever had it a moment ago may still be ending.
    let record = eventually("the folder is free", async || match Record::open(&config) {
        Ok(record) => Some(record),
        Err(RecordError::Locked(_)) => None,
        Err(error) => panic!("{error}"),
    });
    let record = record.await;
    record.follow(&client).expect("a client that works");
    catch_up(&record).await;
    (record, client)
}

async fn catch_up(record: &Record) {
    record.catch_up(Instant::now() + PATIENCE).await.expect("the log is read");
}

/// One of the test's jobs.
fn envelope(stage: &Stage) -> Envelope {
    let mut envelope =
        Envelope::new(Kind::parse("test.record").expect("a kind"), stage.queue.clone(), "{}".into());
    envelope.created_at = Some(Timestamp::now());
    envelope
}

fn event(of: &Envelope, event_type: EventType) -> Event {
    Event::of(event_type, of, "test", Timestamp::now())
}

/// The life of a job: how it ends follows from `n`.
fn life(stage: &Stage, n: usize) -> (JobId, Vec<Event>) {
    let job = envelope(stage);
    let mut submitted = event(&job, EventType::Submitted);
    submitted.data.args = Some(RawValue::from_string(format!("{{\"n\":{n}}}")).expect("JSON"));
    let mut events = vec![submitted];
    let end = |event_type, outcome| {
        let mut end = event(&job, event_type);
        (end.data.outcome, end.data.worker) = (Some(outcome), Some("worker-1".to_owned()));
        (end.data.started_at, end.data.finished_at) = (Some(end.time), Some(end.time));
        end
    };
    match n % 3 {
        0 => {
            let mut succeeded = end(EventType::Succeeded, AttemptOutcome::Succeeded);
            succeeded.data.output = Some(RawValue::from_string(n.to_string()).expect("JSON"));
            events.push(succeeded);
        }
        1 => {
            let mut dead = end(EventType::Dead, AttemptOutcome::Fatal);
            dead.data.reason = Some("fatal".to_owned());
            dead.data.error = Some(EventError { code: "broken".to_owned(), message: format!("number {n}") });
            events.push(dead);
        }
        _ => {}
    }
    (job.id, events)
}

/// The body of a batch.
fn body(events: &[Event]) -> Vec<u8> {
    let encoded: Vec<Vec<u8>> = events.iter().map(batch::encode_one).collect();
    batch::join(encoded.iter().map(Vec::as_slice))
}

async fn write_body(stage: &Stage, body: &[u8]) {
    let properties = BasicProperties::default().with_message_id(JobId::new().to_string().into());
    stage.rabbit.publish_raw(&stage.names.record(), "", properties, body).await;
}

async fn write(stage: &Stage, events: &[Event]) {
    write_body(stage, &body(events)).await;
}

/// Writes `count` lives, an event in a batch of its own where `n` is even; their jobs.
async fn write_lives(stage: &Stage, from: usize, count: usize) -> Vec<JobId> {
    let mut ids = Vec::new();
    for n in from..from + count {
        let (id, events) = life(stage, n);
        ids.push(id);
        if n % 2 == 0 {
            for event in &events {
                write(stage, std::slice::from_ref(event)).await;
            }
        } else {
            write(stage, &events).await;
        }
    }
    ids
}

/// All events that the record has.
async fn all_events(record: &Record) -> Vec<StoredEvent> {
    let (mut all, mut after) = (Vec::new(), Position::default());
    let tail = *record.tail().borrow();
    // Position 0.0 is one too; nothing is before it.
    while after < tail {
        let Stretch { events, searched, .. } =
            record.events(Scope::default(), after, 100).await.expect("events");
        assert!(searched > after, "{searched} after {after}");
        (all, after) = (all.into_iter().chain(events).collect(), searched);
    }
    all
}

/// What a record answers, to be compared: jobs by id, pages, counts. Without places in the log.
async fn answers(record: &Record, ids: &[JobId]) -> Vec<String> {
    let mut answers = Vec::new();
    for id in ids {
        let job = record.job(*id, PATIENCE).await.expect("an answer").expect("a record");
        answers.push(format!("{job:?}"));
    }
    let mut after = None;
    loop {
        // On a busy machine a page may be short.
        let page = record.jobs(Filter::default(), 1000, after).await.expect("a page");
        answers.extend(page.items.iter().map(|item| item.id.to_string()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    answers.push(format!("{:?}", record.counts(None).await.expect("counts")));
    let queues = record.queues().await.expect("queues");
    answers.extend(queues.iter().map(|(queue, record)| format!("{queue} {:?}", record.counts)));
    answers
}

#[tokio::test]
async fn the_record_follows_the_log() {
    stage(async |stage| {
        let folder = Folder::new();
        let (record, _client) = follow(stage, &folder).await;
        assert!(record.is_caught_up() && record.describe() == "caught up", "{}", record.describe());
        let job = envelope(stage);
        assert!(record.job(job.id, PATIENCE).await.expect("an answer").is_none(), "known to be unknown");

        let (mut watch, mut tail) = (record.watch_job(job.id), record.tail());
        let before = *tail.borrow_and_update();
        write(stage, &[event(&job, EventType::Submitted)]).await;
        timeout(PATIENCE, watch.changed()).await.expect("woken");
        assert!(*tail.borrow() > before);
        let queued = record.job(job.id, PATIENCE).await.expect("an answer").expect("a record");
        assert_eq!(queued.summary.status, JobStatus::Queued);

        write(stage, &[event(&job, EventType::Succeeded)]).await;
        record.touch(job.id);
        let ended = record.job(job.id, PATIENCE).await.expect("an answer").expect("a record");
        assert_eq!(ended.summary.status, JobStatus::Succeeded, "what was written before is known");
        timeout(PATIENCE, watch.changed()).await.expect("woken");

        let queues = record.queues().await.expect("queues");
        assert!(queues[&stage.queue].arrival_rate >= 0.0);
        record.close().await;
        assert!(matches!(record.counts(None).await, Err(RecordError::Storage { .. })));
    })
    .await;
}

#[tokio::test]
async fn after_a_crash_it_goes_on_where_it_was() {
    stage(async |stage| {
        let folder = Folder::new();
        let (record, _client) = follow(stage, &folder).await;
        let mut ids = write_lives(stage, 0, 20).await;
        catch_up(&record).await;
        let before = all_events(&record).await;
        // Nothing is closed: what it was doing is left as it was.
        drop(record);
        ids.extend(write_lives(stage, 20, 20).await);
        let (record, _client) = follow(stage, &folder).await;
        let after = all_events(&record).await;
        let known = |events: &[StoredEvent]| -> Vec<String> {
            events.iter().map(|stored| format!("{} {}", stored.position, stored.event.id())).collect()
        };
        let (before, after) = (known(&before), known(&after));
        assert_eq!(after[..before.len()], before[..], "what was known keeps its place");
        let mut once: Vec<&str> = after.iter().map(|known| known.split_once(' ').expect("two").1).collect();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), after.len(), "nothing comes twice");
        for id in ids {
            assert!(record.job(id, PATIENCE).await.expect("an answer").is_some());
        }
        assert_eq!(record.first().await.expect("a position"), Position::default());
    })
    .await;
}

#[tokio::test]
async fn a_lost_or_damaged_file_is_rebuilt() {
    stage(async |stage| {
        let folder = Folder::new();
        let (record, client) = follow(stage, &folder).await;
        // More than one transaction takes.
        let ids = write_lives(stage, 0, 150).await;
        catch_up(&record).await;
        let before = answers(&record, &ids).await;
        record.close().await;

        std::fs::remove_dir_all(&folder.0).expect("removed");
        let (record, _) = follow(stage, &folder).await;
        assert_eq!(answers(&record, &ids).await, before);
        record.close().await;

        let file = folder.0.join("record.db");
        let mut bytes = std::fs::read(&file).expect("the file");
        bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
        std::fs::write(&file, bytes).expect("written");
        let (record, _) = follow(stage, &folder).await;
        assert_eq!(answers(&record, &ids).await, before);
        let aside = std::fs::read_dir(&folder.0).expect("the folder").flatten();
        let aside = aside.filter(|file| file.file_name().to_string_lossy().contains("broken"));
        assert!(aside.count() >= 1, "the damaged file is kept");
        client.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_damaged_under_way_is_rebuilt() {
    stage(async |stage| {
        let folder = Folder::new();
        let (record, _client) = follow(stage, &folder).await;
        let mut ids = write_lives(stage, 0, 30).await;
        catch_up(&record).await;
        // The file and its log, behind the back of whoever has them open.
        for file in std::fs::read_dir(&folder.0).expect("the folder").flatten() {
            if file.file_name().to_string_lossy().starts_with("record.db") {
                let length = file.metadata().expect("its length").len();
                let garbage = vec![0x55; usize::try_from(length).expect("a small file")];
                let mut open = std::fs::OpenOptions::new().write(true).open(file.path()).expect("opened");
                std::io::Write::write_all(&mut open, &garbage).expect("written");
            }
        }
        ids.extend(write_lives(stage, 30, 30).await);
        eventually("the record is rebuilt", async || {
            let aside = std::fs::read_dir(&folder.0).expect("the folder").flatten();
            let mut aside = aside.filter(|file| file.file_name().to_string_lossy().contains("broken"));
            // Reading finds damage too.
            let _ = record.jobs(Filter::default(), 100, None).await;
            aside.next().map(drop)
        })
        .await;
        eventually("it is caught up again", async || {
            let caught_up = record.catch_up(Instant::now() + Duration::from_secs(5)).await;
            (caught_up.is_ok() && record.is_caught_up()).then_some(())
        })
        .await;
        let rebuilt = answers(&record, &ids).await;
        let (fresh, _client) = follow(stage, &Folder::new()).await;
        assert_eq!(rebuilt, answers(&fresh, &ids).await);
    })
    .await;
}

#[tokio::test]
async fn two_records_agree() {
    stage(async |stage| {
        let (one, other) = (Folder::new(), Folder::new());
        let (one, _client) = follow(stage, &one).await;
        let mut ids = write_lives(stage, 0, 15).await;
        // The other one comes later, and reads what was before.
        let (other, _client) = follow(stage, &other).await;
        ids.extend(write_lives(stage, 15, 15).await);
        catch_up(&one).await;
        catch_up(&other).await;
        assert_eq!(answers(&one, &ids).await, answers(&other, &ids).await);
        let places = |events: Vec<StoredEvent>| -> Vec<Position> {
            events.into_iter().map(|stored| stored.position).collect()
        };
        assert_eq!(places(all_events(&one).await), places(all_events(&other).await));
    })
    .await;
}

/// Writes events into a log that may not be there yet.
async fn write_when_possible(stage: &Stage, events: &[Event]) {
    let text = String::from_utf8(body(events)).expect("JSON");
    eventually("the log takes events", async || {
        let path = format!("exchanges/{{vhost}}/{}/publish", stage.names.record());
        let properties = json!({ "message_id": JobId::new().to_string() });
        let message = json!({
            "properties": properties, "routing_key": "", "payload": text, "payload_encoding": "string",
        });
        // The API fails while the log is being deleted or declared.
        let (_, answer) = stage.rabbit.ask(Method::POST, &path, Some(message)).await;
        (answer["routed"] == true).then_some(())
    })
    .await;
}

#[tokio::test]
async fn another_log_is_noticed_under_way_and_at_the_start() {
    stage(async |stage| {
        let folder = Folder::new();
        let (record, client) = follow(stage, &folder).await;
        let ids = write_lives(stage, 0, 10).await;
        catch_up(&record).await;
        let before = *record.tail().borrow();

        stage.rabbit.delete_queue(&stage.names.log()).await;
        let (under_way, events) = life(stage, 0);
        write_when_possible(stage, &events).await;
        eventually("the new log is read", async || {
            let job = record.job(under_way, Duration::from_secs(1)).await;
            job.ok().flatten().map(drop)
        })
        .await;
        catch_up(&record).await;
        let first = record.first().await.expect("a position");
        assert!(first > before, "{first} comes after {before}: events may be missing in between");
        record.close().await;

        stage.rabbit.delete_queue(&stage.names.log()).await;
        // A new connection declares what is missing.
        stage.client().started().expect("a client that works");
        let (at_start, events) = life(stage, 1);
        write_when_possible(stage, &events).await;
        let (record, _) = follow(stage, &folder).await;
        for id in ids.into_iter().chain([under_way, at_start]) {
            let job = record.job(id, PATIENCE).await.expect("an answer");
            assert!(job.is_some(), "what was known stays known, and what is new is known");
        }
        assert!(record.first().await.expect("a position") > first);
        client.close().await;
    })
    .await;
}

/// Sets how the log is kept. To be called before it is declared: its segments keep the size that they begin with.
async fn segments(stage: &Stage, definition: Value) {
    let (prefix, log) = (&stage.config.amqp.prefix, stage.names.log());
    let pattern = format!("^{}$", log.replace('.', "\\."));
    let rule = json!({ "pattern": pattern, "apply-to": "queues", "definition": definition });
    stage.rabbit.done(Method::PUT, &format!("policies/{{vhost}}/{prefix}"), Some(rule)).await;
}

/// Two megabytes of events.
async fn write_much(stage: &Stage) {
    let mut filler = event(&envelope(stage), EventType::Submitted);
    filler.data.args = Some(RawValue::from_string(format!("\"{}\"", "x".repeat(20_000))).expect("JSON"));
    let filler = body(&[filler]);
    for _ in 0..100 {
        write_body(stage, &filler).await;
    }
}

#[tokio::test]
async fn a_new_segment_of_the_log_is_no_gap() {
    stage(async |stage| {
        segments(stage, json!({ "stream-max-segment-size-bytes": 100_000 })).await;
        let (under_way, from_the_start) = (Folder::new(), Folder::new());
        let (record, _client) = follow(stage, &under_way).await;
        write_much(stage).await;
        catch_up(&record).await;
        assert_eq!(record.first().await.expect("a position"), Position::default());
        let (record, _client) = follow(stage, &from_the_start).await;
        assert_eq!(record.first().await.expect("a position"), Position::default());
    })
    .await;
}

#[tokio::test]
async fn what_retention_removed_meanwhile_is_marked() {
    stage(async |stage| {
        segments(stage, json!({ "max-length-bytes": 500_000, "stream-max-segment-size-bytes": 100_000 }))
            .await;
        let folder = Folder::new();
        let (record, client) = follow(stage, &folder).await;
        let ids = write_lives(stage, 0, 3).await;
        catch_up(&record).await;
        let before = *record.tail().borrow();
        assert_eq!(record.first().await.expect("a position"), Position::default());
        record.close().await;

        write_much(stage).await;
        let (record, _) = follow(stage, &folder).await;
        let first = record.first().await.expect("a position");
        assert!(first > before, "{first} after {before}");
        assert!(record.job(ids[0], PATIENCE).await.expect("an answer").is_some());
        client.close().await;
    })
    .await;
}

#[tokio::test]
async fn what_may_have_ended_in_a_gap_is_left_out_of_an_answer() {
    stage(async |stage| {
        segments(stage, json!({ "max-length-bytes": 500_000, "stream-max-segment-size-bytes": 100_000 }))
            .await;
        let folder = Folder::new();
        let (record, client) = follow(stage, &folder).await;
        let (waiting, ended) = (life(stage, 2), life(stage, 0));
        write(stage, &[waiting.1, ended.1].concat()).await;
        catch_up(&record).await;
        record.close().await;
        write_much(stage).await;
        let (after, events) = life(stage, 2);
        write(stage, &events).await;
        let jobs = |ids: &[JobId]| -> Vec<Value> {
            ids.iter().map(|id| json!({ "id": id, "run": 1, "step": 0 })).collect()
        };
        let known = async |ids: &[JobId]| -> Vec<JobId> {
            let answer = ask(stage, &json!({ "jobs": jobs(ids) })).await;
            let known = answer["jobs"].as_array().expect("a list").clone();
            known.into_iter().map(|job| serde_json::from_value(job["id"].clone()).expect("an id")).collect()
        };
        let (record, _) = follow(stage, &folder).await;
        let unknown = JobId::new();
        assert_eq!(known(&[waiting.0, ended.0, after, unknown]).await, [ended.0, after, unknown]);
        record.close().await;
        // From the beginning of what there is.
        let (record, _) = follow(stage, &Folder::new()).await;
        assert_eq!(known(&[waiting.0, ended.0, after, unknown]).await, [after, unknown]);
        record.close().await;
        client.close().await;
    })
    .await;
}

#[tokio::test]
async fn jobs_that_live_or_can_be_replayed_do_not_leave_with_the_logs_old_end() {
    stage(async |stage| {
        segments(stage, json!({ "max-length-bytes": 500_000, "stream-max-segment-size-bytes": 100_000 }))
            .await;
        let folder = Folder::new();
        let (record, client) = follow(stage, &folder).await;
        // Succeeded, dead, waiting.
        let ids = write_lives(stage, 0, 3).await;
        write_much(stage).await;
        catch_up(&record).await;
        // But for their places in the log, which are new.
        let shown = async |record: &Record| {
            let mut shown = Vec::new();
            for id in &ids[1..] {
                let mut job = record.job(*id, PATIENCE).await.expect("an answer").expect("a record");
                job.summary.position = Position::default();
                shown.push(format!("{job:?}"));
            }
            let groups = record.groups(stage.queue.clone()).await.expect("groups");
            (shown, groups.into_iter().map(|group| (group.count, group.latest)).collect::<Vec<_>>())
        };
        let before = shown(&record).await;
        let (other, _) = follow(stage, &Folder::new()).await;
        for id in &ids {
            assert!(other.job(*id, PATIENCE).await.expect("an answer").is_none(), "the log has lost it");
        }
        record.close().await;
        // It looks at the log as soon as it has read all of it.
        let (record, _) = follow(stage, &folder).await;
        eventually("they are told again", async || {
            let known = ids[1..].iter().map(|id| other.job(*id, Duration::ZERO));
            let known = futures_util::future::join_all(known).await;
            known.into_iter().all(|job| job.is_ok_and(|job| job.is_some())).then_some(())
        })
        .await;
        assert_eq!(shown(&other).await, before);
        record.close().await;
        client.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_job_that_ended_while_nobody_read_is_read_up_on_first() {
    stage(async |stage| {
        let folder = Folder::new();
        let (record, client) = follow(stage, &folder).await;
        let job = envelope(stage);
        write(stage, &[event(&job, EventType::Submitted)]).await;
        catch_up(&record).await;
        record.close().await;
        write(stage, &[event(&job, EventType::Succeeded)]).await;
        let record = Record::open(&folder.config(stage)).expect("a record");
        let known = record.job(job.id, Duration::ZERO).await.expect("an answer").expect("a record");
        assert_eq!(known.summary.status, JobStatus::Queued, "what is known now");
        record.follow(&client).expect("a client that works");
        let known = record.job(job.id, PATIENCE).await.expect("an answer").expect("a record");
        assert_eq!(known.summary.status, JobStatus::Succeeded);
        record.close().await;
        client.close().await;
    })
    .await;
}

#[tokio::test]
async fn catching_up_is_exact() {
    stage(async |stage| {
        let (one, other) = (Folder::new(), Folder::new());
        let (one, _client) = follow(stage, &one).await;
        let (other, _client) = follow(stage, &other).await;
        let check = async |n: usize| {
            let (id, events) = life(stage, n);
            write(stage, &events).await;
            // Confirmed before: known now, on both, without waiting any longer.
            for record in [&one, &other] {
                catch_up(record).await;
                let job = record.job(id, Duration::ZERO).await.expect("an answer");
                assert!(job.is_some(), "number {n}");
            }
        };
        for round in 0..5 {
            futures_util::future::join_all((0..20).map(|n| check(round * 20 + n))).await;
            if round == 2 {
                // Also when the connection that reads was lost in between.
                stage.rabbit.cut_connections(&[&stage.config.amqp.prefix, "record"], 2).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn without_a_broker_it_says_so_in_time() {
    stage(async |stage| {
        let folder = Folder::new();
        let mut config = folder.config(stage);
        config.amqp.url = serde_json::from_value("amqp://127.0.0.1:9".into()).expect("an address");
        let record = Record::open(&config).expect("a record");
        assert!(matches!(Record::open(&config), Err(RecordError::Locked(_))));
        let client = Client::new(&config);
        let patience = Duration::from_millis(50);
        let unread = record.job(JobId::new(), patience).await;
        assert!(matches!(&unread, Err(RecordError::Behind(why)) if why.contains("follow")), "{unread:?}");
        record.follow(&client).expect("a client that works");
        let unread = record.job(JobId::new(), patience).await;
        assert!(matches!(&unread, Err(RecordError::Behind(why)) if !why.is_empty()), "{unread:?}");
        assert!(!record.is_caught_up());
        assert_eq!(record.counts(None).await.expect("counts").of(JobStatus::Queued), 0, "reading works");
        record.close().await;
        client.close().await;
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_read_is_passed_over() {
    stage(async |stage| {
        let folder = Folder::new();
        let (record, _client) = follow(stage, &folder).await;
        let (first, events) = life(stage, 0);
        write(stage, &events).await;
        for bad in ["", "no JSON", "{}", "[1,{},null]", "[[[["] {
            write_body(stage, bad.as_bytes()).await;
        }
        let (in_company, events) = life(stage, 1);
        let (good, strange) = (body(&events), b"{\"type\":\"hopline.job.exploded\"}".to_vec());
        let mixed = [b"[".to_vec(), strange, b",".to_vec(), good[1..].to_vec()].concat();
        write_body(stage, &mixed).await;
        catch_up(&record).await;
        for id in [first, in_company] {
            assert!(record.job(id, Duration::ZERO).await.expect("an answer").is_some());
        }
    })
    .await;
}

/// Asks as a worker does, and reads the answer.
async fn ask(stage: &Stage, question: &Value) -> Value {
    let channel = stage.rabbit.channel().await;
    let address = format!("{}.replies.asker.{}", stage.config.amqp.prefix, JobId::new());
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(address.as_str().into(), options, FieldTable::default()).await.expect("declared");
    let replies = stage.names.replies();
    let (queue, bound) = (address.as_str(), QueueBindOptions::default());
    channel
        .queue_bind(queue.into(), replies.as_str().into(), queue.into(), bound, FieldTable::default())
        .await
        .expect("bound");
    let consume = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut answers = channel
        .basic_consume(queue.into(), "".into(), consume, FieldTable::default())
        .await
        .expect("consumed");
    let properties = BasicProperties::default()
        .with_type("hopline.lookup".into())
        .with_reply_to(queue.into())
        .with_correlation_id("question 1".into());
    let (key, body) = (stage.names.lookup(), question.to_string());
    channel
        .basic_publish(
            replies.as_str().into(),
            key.as_str().into(),
            BasicPublishOptions::default(),
            body.as_bytes(),
            properties,
        )
        .await
        .expect("asked");
    let answer = timeout(PATIENCE, answers.next()).await.expect("an answer").expect("one").expect("whole");
    assert_eq!(answer.properties.correlation_id().as_ref().map(|id| id.as_str()), Some("question 1"));
    assert_eq!(answer.properties.kind().as_ref().map(|kind| kind.as_str()), Some("hopline.lookup.answer"));
    drop(channel.close(200, "done".into()).await);
    serde_json::from_slice(&answer.data).expect("JSON")
}

#[tokio::test]
async fn workers_are_told_whether_a_run_has_ended() {
    stage(async |stage| {
        let folder = Folder::new();
        let (record, _client) = follow(stage, &folder).await;
        let ((succeeded, first), (dead, second), (waiting, third)) =
            (life(stage, 0), life(stage, 1), life(stage, 2));
        let unknown = JobId::new();
        let mut cancel = third[0].clone();
        cancel.event_type = EventType::CancelRequested;
        (cancel.data.by, cancel.data.args) = (Some("me".to_owned()), None);
        write(stage, &[first, second, third, vec![cancel]].concat()).await;
        let asked = [(succeeded, 1), (dead, 1), (waiting, 1), (unknown, 1), (dead, 2)];
        let asked: Vec<Value> =
            asked.iter().map(|(id, run)| json!({ "id": id, "run": run, "step": 0 })).collect();
        let answer = ask(stage, &json!({ "jobs": asked })).await;
        let jobs = answer["jobs"].as_array().expect("a list");
        assert_eq!(jobs.len(), 5, "{answer}");
        assert_eq!(
            (&jobs[0]["final"]["status"], &jobs[0]["final"]["output"]),
            (&"succeeded".into(), &0.into())
        );
        assert_eq!(jobs[1]["final"]["status"], "dead");
        assert_eq!(
            (&jobs[1]["final"]["error"]["code"], &jobs[1]["final"]["reason"]),
            (&"broken".into(), &"fatal".into())
        );
        assert_eq!((jobs[2].get("final"), &jobs[2]["cancel"]["by"]), (None, &"me".into()));
        assert_eq!((&jobs[2]["latest_run"], &jobs[3]["latest_run"]), (&1.into(), &0.into()));
        assert_eq!((jobs[4].get("final"), &jobs[4]["latest_run"]), (None, &1.into()));
        // Many at the same time share their barriers.
        let again = json!({ "jobs": asked });
        let answers = futures_util::future::join_all((0..20).map(|_| ask(stage, &again))).await;
        assert!(answers.iter().all(|other| other["jobs"] == answer["jobs"]));
        record.close().await;
    })
    .await;
}
