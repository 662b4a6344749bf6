//! What is said of each call: its parameters, answers and problems. The functions have the calls' names, in the order of
//! the table.

mod pages;
mod queues;
mod server;

use axum::http::StatusCode;
use schemars::SchemaGenerator;
use serde_json::{Value, json};

pub(super) use self::{pages::*, queues::*, server::*};
use super::{
    operation::{Operation, json_media, schema_of},
    shapes::{JOB, act, reference, states},
};
use crate::http::{acts, answer, batch, problem::Code};

/// Where schemas of answers are gathered.
pub(super) struct Shapes {
    pub(super) generator: SchemaGenerator,
}

/// The groups of calls.
pub(super) const TAGS: [(&str, &str); 12] = [
    ("Jobs", "Submitting, looking at and cancelling jobs."),
    ("Calls", "Running a job and waiting for its output."),
    ("Kinds", "A call of each kind that workers have announced, with what it takes and returns."),
    ("Events", "What happens, as server-sent events."),
    ("Queues", "How full queues are; pausing them."),
    ("Dead jobs", "Jobs that failed for good."),
    ("Acts", "What is done to many jobs: acts are jobs themselves."),
    ("Workers", "Who works, and on what."),
    ("Health", "Whether the process is alive and ready, and what it has counted."),
    ("Dashboard", "Pages for people."),
    ("Sessions", "A browser shows its key once, and gets a cookie."),
    ("Description", "This description."),
];

const ABOUT_A_JOB: [&str; 2] = ["Location", "Hopline-Job-Id"];
const WAITED: [&str; 3] = ["Location", "Hopline-Job-Id", "Preference-Applied"];
const SUBMITTED: [&str; 4] = ["Location", "Hopline-Job-Id", "Preference-Applied", "Idempotency-Replayed"];
const ACTED: [&str; 3] = ["Location", "Hopline-Job-Id", "Idempotency-Replayed"];
const RECORD: [Code; 1] = [Code::RecordBehind];
/// What an order that is written to the control log may lead to.
const ORDER: [Code; 5] = [
    Code::BrokerUnavailable,
    Code::BrokerBlocked,
    Code::BrokerRefused,
    Code::ConfirmTimeout,
    Code::ConfirmLost,
];

/// An object with `items`.
fn items(schema: &Value) -> Value {
    json!({ "type": "object", "properties": { "items": { "type": "array", "items": schema } }, "required": ["items"] })
}

fn accepted_example() -> Value {
    json!({
        "id": JOB, "kind": "demo.echo", "queue": "demo", "status": "queued", "created_at": "2030-01-31T12:00:00.000Z",
        "links": {
            "self": format!("/v1/jobs/{JOB}"),
            "output": format!("/v1/jobs/{JOB}/output"),
            "events": format!("/v1/jobs/{JOB}/events"),
        },
    })
}

fn job_example() -> Value {
    json!({
        "id": JOB, "kind": "demo.echo", "queue": "demo", "status": "succeeded", "run": 1, "attempt": 1,
        "args": { "hello": "world" }, "output": { "hello": "world" },
        "attempts": [{
            "run": 1, "attempt": 1, "worker": "demo@host", "started_at": "2030-01-31T12:00:00.010Z",
            "finished_at": "2030-01-31T12:00:00.020Z", "outcome": "succeeded",
        }],
        "tags": [], "worker": "demo@host", "created_at": "2030-01-31T12:00:00.000Z",
        "started_at": "2030-01-31T12:00:00.010Z", "finished_at": "2030-01-31T12:00:00.020Z",
    })
}

impl Operation {
    fn job_path(self) -> Self {
        self.path("id", reference("JobId"), "The job's id.").codes(&[
            Code::JobNotFound,
            Code::RecordBehind,
            Code::SpoolUnavailable,
        ])
    }

    fn queue_path(self) -> Self {
        self.path("queue", reference("QueueName"), "The queue.")
            .codes(&[Code::QueueNotFound, Code::QueueForbidden])
    }

    fn waits(self) -> Self {
        self.query(
            "wait",
            reference("DurationText"),
            "Waits for the end of the job's run, at most `http.max_wait`.",
        )
        .header(
            "Prefer",
            json!({ "type": "string", "examples": ["wait=10"] }),
            "`wait=N` (RFC 7240), in whole seconds. Ignored if malformed; `?wait=` wins.",
        )
        .codes(&[Code::WaitersFull, Code::RecordBehind])
    }

    fn traced(self) -> Self {
        let text = "W3C trace context, carried to the worker; ignored if malformed.";
        self.header("traceparent", json!({ "type": "string" }), text).header(
            "tracestate",
            json!({ "type": "string" }),
            text,
        )
    }

    fn signed(self) -> Self {
        self.query("by", reference("By"), "Who asks.").query("reason", reference("Reason"), "Why.")
    }

    fn filtered(self) -> Self {
        self.query("kind", reference("Kind"), "Of this kind.")
            .query("tag", reference("Tag"), "With this tag.")
            .query("q", reference("Search"), "Whose error holds this text.")
            .query("from", reference("Time"), "Submitted at or after this time.")
            .query("to", reference("Time"), "Submitted before this time; after `from`.")
            .query("fingerprint", reference("Fingerprint"), "Dead with this fingerprint.")
            .codes(&[Code::QueueForbidden])
    }

    fn paged(self) -> Self {
        self.query(
            "limit",
            json!({ "type": "integer", "minimum": 1, "maximum": 500, "default": 50 }),
            "So many on a page; with `include` at most 100.",
        )
        .query("cursor", json!({ "type": "string" }), "`next` of the answer before, with the same filter.")
        .query(
            "include",
            json!({ "type": "string", "pattern": "^(args|output)(, ?(args|output))?$" }),
            "What lists leave out otherwise.",
        )
        .codes(&[Code::BadCursor, Code::RecordBehind])
    }

    fn resumes(self) -> Self {
        // An empty header is none.
        let header =
            json!({ "type": "string", "pattern": r"^([0-9]{1,20}\.[0-9]{1,5})?$", "examples": ["1234.0"] });
        let id = json!({ "type": "string", "pattern": r"^[0-9]{1,20}\.[0-9]{1,5}$", "examples": ["1234.0"] });
        self.query("last_event_id", id, "Goes on after this event.")
            .header("Last-Event-ID", header, "Goes on after this event; wins over the parameter.")
            .codes(&[Code::BadLastEventId, Code::StreamsFull, Code::RecordBehind])
    }

    fn streams(self) -> Self {
        let text = "Server-sent events: each with `id` (its place in the event log), `event` (its type) and `data` (a \
                    CloudEvent as JSON). A comment is sent each 15 s. `hopline.gap` says that events are missing.";
        let data =
            format!("{{\"specversion\":\"1.0\",\"type\":\"hopline.job.succeeded\",\"subject\":\"{JOB}\"}}");
        // OpenAPI 3.1 has no word for a stream: as with others, the schema is that of one event.
        let event = json!({
            "type": "object",
            "description": "An event of the stream.",
            "properties": {
                "id": { "type": "string", "description": "Its place in the event log." },
                "event": { "type": "string", "description": "Its type." },
                "data": { "type": "string", "contentMediaType": "application/json" },
            },
        });
        let example = json!({ "id": "1234.0", "event": "hopline.job.succeeded", "data": data });
        let media = json!({ "text/event-stream": { "schema": event, "example": example } });
        self.answers(StatusCode::OK, text, Some(media), &[])
    }

    /// An act, and what it answers.
    fn acts(self, shapes: &mut Shapes, counts: bool) -> Self {
        let accepted = schema_of::<answer::Accepted>(&mut shapes.generator);
        let job = schema_of::<answer::Shown<'static>>(&mut shapes.generator);
        let count = schema_of::<acts::Count>(&mut shapes.generator);
        let mut example = accepted_example();
        (example["kind"], example["queue"]) = ("hopline.acts.replay".into(), "hopline-acts".into());
        let again = if counts {
            json!({ "anyOf": [count, job, accepted] })
        } else {
            json!({ "anyOf": [job, accepted] })
        };
        let (text, other) = if counts {
            (
                "A dry run: how many jobs fit. Or the repeat of a request with this key: the act as it is now.",
                json!({ "matched": 3 }),
            )
        } else {
            ("The repeat of a request with this key: the act as it is now.", accepted_example())
        };
        self.keyed()
            .submits()
            .gives(
                StatusCode::ACCEPTED,
                "The act, which is a job: its record shows its progress and its output.",
                accepted,
                example,
                &ACTED,
            )
            .gives(StatusCode::OK, text, again, other, &["Idempotency-Replayed"])
    }
}

fn submitting(operation: Operation, shapes: &mut Shapes) -> Operation {
    let accepted = schema_of::<answer::Accepted>(&mut shapes.generator);
    let job = schema_of::<answer::Shown<'static>>(&mut shapes.generator);
    let body = json_media(
        reference("Submit"),
        json!({ "kind": "demo.echo", "args": { "hello": "world" }, "delay": "10s" }),
    );
    operation
        .takes(true, body)
        .waits()
        .traced()
        .submits()
        .codes(&[Code::NotSupported])
        .gives(StatusCode::ACCEPTED, "Accepted: durable, by the broker or in the spool.", accepted.clone(), accepted_example(), &SUBMITTED)
        .gives(
            StatusCode::OK,
            "With a wait: the record at the end of the job's run. For the repeat of a request: the job as it is now.",
            json!({ "anyOf": [job, accepted] }),
            job_example(),
            &SUBMITTED,
        )
}

pub(super) fn submit(shapes: &mut Shapes) -> Operation {
    let operation = Operation::new("submitJob", "Jobs", "Submit a job")
        .text("Waits for the end of its run if asked. 202 means that the job is durable.")
        .keyed();
    submitting(operation, shapes)
}

pub(super) fn list(shapes: &mut Shapes) -> Operation {
    let job = schema_of::<answer::Shown<'static>>(&mut shapes.generator);
    let mut page = items(&job);
    page["properties"]["next"] =
        json!({ "type": ["string", "null"], "description": "The next page's cursor." });
    page["required"] = json!(["items", "next"]);
    let example = json!({ "items": [brief_example()], "next": "AQAAAAAAAAAFAAMABUUIRFvPYg" });
    Operation::new("listJobs", "Jobs", "List jobs, newest first")
        .text("An item is a record without `args`, `output`, `attempts` and `progress`.")
        .takes_query()
        .query("status", states(), "One or more states, joined by commas.")
        .query("queue", reference("QueueName"), "Of this queue.")
        .filtered()
        .paged()
        .gives(StatusCode::OK, "A page.", page, example, &["Link"])
}

fn brief_example() -> Value {
    json!({ "id": JOB, "kind": "demo.echo", "queue": "demo", "status": "succeeded", "run": 1, "attempt": 1, "tags": [] })
}

pub(super) fn batch(shapes: &mut Shapes) -> Operation {
    let answer = schema_of::<batch::Whole<'static>>(&mut shapes.generator);
    let item = reference("BatchItem");
    let media = json!({
        "application/json": {
            "schema": { "type": "array", "minItems": 1, "items": item },
            "example": [{ "kind": "demo.echo" }, { "kind": "demo.sleep", "args": { "ms": 100 }, "idempotency_key": "k" }],
        },
        "application/x-ndjson": {
            "schema": { "type": "array", "minItems": 1, "items": item, "description": "Not an array: a job on each line." },
            "example": [{ "kind": "demo.echo" }, { "kind": "demo.sleep", "args": { "ms": 100 } }],
        },
    });
    let example = json!({
        "accepted": 1, "rejected": 1,
        "items": [
            { "index": 0, "id": JOB, "status": "queued" },
            { "index": 1, "error": { "type": "urn:hopline:problem:invalid_request", "title": "The request is not valid",
              "status": 422, "detail": "/kind: is missing", "code": "invalid_request" } },
        ],
    });
    let none = "No item was accepted: the status is that of the gravest problem of its items.";
    let mut operation = Operation::new("submitJobs", "Jobs", "Submit many jobs")
        .text("An item that is wrong spoils no other. A problem of the whole batch is one problem, and nothing was submitted.")
        .takes(true, media)
        .traced()
        .named()
        .codes(&[Code::TooManyItems, Code::NotSupported])
        .submits()
        .gives(StatusCode::ACCEPTED, "An answer for each item; at least one was accepted.", answer.clone(), example, &[]);
    for status in [400, 403, 409, 413, 422, 500, 503, 504] {
        operation = operation.or_answers(status, none, &answer);
    }
    operation
}

pub(super) fn counts(_: &mut Shapes) -> Operation {
    let schema = json!({
        "type": "object",
        "properties": {
            "counts": { "type": "object", "additionalProperties": { "type": "integer", "minimum": 0 } },
            "total": { "type": "integer", "minimum": 0 },
        },
        "required": ["counts", "total"],
    });
    let example = json!({ "counts": { "queued": 2, "succeeded": 1 }, "total": 3 });
    Operation::new("countJobs", "Jobs", "Count jobs by their state")
        .takes_query()
        .query("queue", reference("QueueName"), "Of this queue.")
        .codes(&RECORD)
        .codes(&[Code::QueueForbidden])
        .gives(StatusCode::OK, "How many jobs are remembered in each state.", schema, example, &[])
}

/// An act says what it is about in exactly one of two ways.
fn filter_or_ids() -> Value {
    json!({ "oneOf": [{ "required": ["filter"] }, { "required": ["ids"] }] })
}

pub(super) fn replay_many(shapes: &mut Shapes) -> Operation {
    let members = &["filter", "ids", "rate", "dry_run", "set", "by", "reason"];
    let example = json!({ "filter": { "queue": "default", "q": "timeout" }, "dry_run": true });
    Operation::new("replayJobs", "Acts", "Replay many dead jobs")
        .takes(true, json_media(act(members, filter_or_ids()), example))
        .codes(&[Code::UnknownGroup])
        // Of a key that does not see one of the jobs.
        .codes(&[Code::JobNotFound, Code::QueueForbidden])
        .acts(shapes, true)
}

pub(super) fn cancel_many(shapes: &mut Shapes) -> Operation {
    let members = &["filter", "ids", "dry_run", "by", "reason"];
    let example = json!({ "filter": { "queue": "default", "kind": "demo.sleep" }, "dry_run": true });
    Operation::new("cancelJobs", "Acts", "Cancel many jobs")
        .takes(true, json_media(act(members, filter_or_ids()), example))
        // Of a key that does not see one of the jobs.
        .codes(&[Code::JobNotFound, Code::QueueForbidden])
        .acts(shapes, true)
}

pub(super) fn job(shapes: &mut Shapes) -> Operation {
    let job = schema_of::<answer::Shown<'static>>(&mut shapes.generator);
    Operation::new("getJob", "Jobs", "Show a job's record")
        .text("With a wait: as it is at the end of the job's run, or when the patience ends.")
        .job_path()
        .takes_query()
        .waits()
        .gives(StatusCode::OK, "The record.", job, job_example(), &WAITED)
}

pub(super) fn put(shapes: &mut Shapes) -> Operation {
    let operation = Operation::new("putJob", "Jobs", "Submit a job under an id of the client's choice")
        .text("The simplest way of repeating safely. Any UUID but the nil and the max UUID.")
        .path("id", reference("JobId"), "The job's id: made by the client, for this job alone.")
        .codes(&[Code::JobNotFound])
        .named();
    submitting(operation, shapes)
}

pub(super) fn cancel(shapes: &mut Shapes) -> Operation {
    let job = schema_of::<answer::Shown<'static>>(&mut shapes.generator);
    Operation::new("cancelJob", "Jobs", "Cancel a job")
        .text("202 means that the order is durable: a job that waits never runs, one that runs is told.")
        .job_path()
        .takes_nothing()
        .signed()
        .codes(&ORDER)
        .codes(&[Code::AlreadyFinished, Code::RecordBehind])
        .gives(
            StatusCode::ACCEPTED,
            "Its cancellation is asked for.",
            job.clone(),
            job_example(),
            &ABOUT_A_JOB,
        )
        .gives(StatusCode::OK, "It was asked for before, or is done.", job, job_example(), &ABOUT_A_JOB)
}

pub(super) fn replay_one(shapes: &mut Shapes) -> Operation {
    let body = json_media(act(&["set", "by", "reason"], Value::Null), json!({}));
    Operation::new("replayJob", "Acts", "Start the next run of a dead job")
        .job_path()
        .takes(false, body)
        .codes(&[Code::NotDead])
        .acts(shapes, false)
}

pub(super) fn output(_: &mut Shapes) -> Operation {
    Operation::new("getOutput", "Jobs", "Show a job's bare output")
        .job_path()
        .takes_query()
        .codes(&[Code::NotFinished, Code::NoOutput, Code::OutputNotRecorded, Code::RecordBehind])
        .gives(StatusCode::OK, "The output's bytes.", json!({}), json!({ "hello": "world" }), &ABOUT_A_JOB)
}

pub(super) fn job_events(_: &mut Shapes) -> Operation {
    Operation::new("followJob", "Events", "Follow a job's events")
        .text("From its beginning, in the order of its life. Ends after the final event.")
        .job_path()
        .takes_query()
        .resumes()
        .streams()
        .answers(StatusCode::NO_CONTENT, "All was sent before: a browser does not ask again.", None, &[])
}

pub(super) fn events(_: &mut Shapes) -> Operation {
    Operation::new("followEvents", "Events", "Follow all events")
        .text(
            "All that are given must fit. Without a last event id it begins now. It does not end by itself.",
        )
        .takes_query()
        .query("queue", reference("QueueName"), "Of this queue.")
        .query("kind", reference("Kind"), "Of this kind.")
        .query("tag", reference("Tag"), "With this tag.")
        .codes(&[Code::QueueForbidden])
        .resumes()
        .streams()
}

/// A call of any kind, or of the one whose args and output these are.
pub(super) fn calling(
    operation: Operation,
    shapes: &mut Shapes,
    args: Value,
    output: Value,
    examples: Option<[Value; 2]>,
) -> Operation {
    let accepted = schema_of::<answer::Accepted>(&mut shapes.generator);
    let media = |schema: Value, example: Option<Value>| match example {
        Some(example) => json_media(schema, example),
        None => json!({ "application/json": { "schema": schema } }),
    };
    let [taken, given] = examples.map_or([None, None], |examples| examples.map(Some));
    operation
        .takes(false, media(args, taken))
        .query("queue", reference("QueueName"), "Where the job waits.")
        .query("timeout", reference("DurationText"), "Longest run of one attempt, at least 1 ms.")
        .query("max_attempts", json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 1 }), "Attempts in all.")
        .query("wait", reference("DurationText"), "The caller's patience, at least 1 ms, at most `http.max_wait`. Default 30 s.")
        .query("on_timeout", json!({ "enum": ["leave", "cancel"], "default": "leave" }), "What becomes of a running job when the patience ends.")
        .header("Prefer", json!({ "type": "string", "examples": ["wait=10", "respond-async"] }), "`wait=N`, in whole seconds; `respond-async`: 202 instead of 504, and the job does not expire. Ignored if malformed.")
        .keyed()
        .traced()
        .submits()
        .codes(&[
            Code::WaitersFull,
            Code::JobFatal,
            Code::JobDead,
            Code::JobCancelled,
            Code::OutputOmitted,
            Code::WaitTimeout,
        ])
        .answers(StatusCode::OK, "The job succeeded: its output's bytes.", Some(media(output, given)), &SUBMITTED)
        .gives(StatusCode::ACCEPTED, "The patience ended, and the client sent `Prefer: respond-async`.", accepted, accepted_example(), &SUBMITTED)
}

pub(super) fn rpc(shapes: &mut Shapes) -> Operation {
    let operation = Operation::new("call", "Calls", "Run a job and answer with its output")
        .text("The body is the args (empty: `{}`), the answer's body is the output. A job that has not started when the patience ends expires.")
        .path("kind", reference("OwnKind"), "What to run.");
    let example = || json!({ "hello": "world" });
    calling(operation, shapes, reference("Args"), json!({}), Some([example(), example()]))
}
