//! What the server says of itself and of workers: kinds, health, sessions, this description.

use axum::http::StatusCode;
use serde_json::json;

use super::{Shapes, items};
use crate::{
    client::{KindInfo, WorkerInfo},
    http::{
        api::{
            operation::{Operation, schema_of},
            shapes::JOB,
        },
        health, overview,
        problem::Code,
        session,
    },
    metrics::CONTENT_TYPE,
};

pub(in crate::http::api) fn workers(shapes: &mut Shapes) -> Operation {
    let worker = schema_of::<WorkerInfo>(&mut shapes.generator);
    let example = json!({
        "worker": "demo@host", "version": "0.1.0", "host": "host", "pid": 4711, "since": "2030-01-31T12:00:00.000Z",
        "queues": [{ "queue": "demo", "concurrency": 10, "prefetch": 20, "running": 3, "waiting": 1, "paused": false }],
        "kinds": [{ "kind": "demo.echo", "queue": "demo" }], "jobs": [JOB],
    });
    Operation::new("listWorkers", "Workers", "List the workers that are alive").takes_query().gives(
        StatusCode::OK,
        "Those that said something in the last 20 s.",
        items(&worker),
        json!({ "items": [example] }),
        &[],
    )
}

pub(in crate::http::api) fn kinds(shapes: &mut Shapes) -> Operation {
    let kind = schema_of::<KindInfo>(&mut shapes.generator);
    let example = json!({
        "kind": "image.thumbnail", "queue": "media", "private": false, "announced_by": "media@host",
        "announced_at": "2030-01-31T12:00:00.000Z", "workers": ["media@host"], "timeout": 60.0,
        "schemas": [{ "args": { "type": "object" }, "announced_by": ["media@host"] }],
    });
    Operation::new("listKinds", "Workers", "List the kinds of jobs that workers have announced")
        .takes_query()
        .gives(StatusCode::OK, "All that are remembered.", items(&kind), json!({ "items": [example] }), &[])
}

pub(in crate::http::api) fn overview(shapes: &mut Shapes) -> Operation {
    let overview = schema_of::<overview::Shown<'static>>(&mut shapes.generator);
    let example = json!({
        "at": "2030-01-31T12:00:00.000Z",
        "jobs": { "queued": 120, "running": 8, "succeeded": 9000, "dead": 2 },
        "arrival_rate": 10.5, "service_rate": 30.0, "mean_duration": 0.25, "queues": [], "worker_count": 1,
        "workers": [{ "worker": "demo@host", "running": 3, "concurrency": 10, "since": "2030-01-31T11:00:00.000Z" }],
        "history": { "seconds": 5, "arrived": [50, 55], "ended": [150, 148], "failed": [0, 2], "mean_duration": [0.25, null] },
    });
    Operation::new("getOverview", "Queues", "How everything stands")
        .text("At most a second old.")
        .takes_query()
        .codes(&[Code::RecordBehind])
        .gives(StatusCode::OK, "Jobs, queues and workers.", overview, example, &[])
}

pub(in crate::http::api) fn overview_events(_: &mut Shapes) -> Operation {
    let event = json!({
        "type": "object",
        "description": "An event of the stream.",
        "properties": {
            "event": { "const": "hopline.overview" },
            "data": { "type": "string", "contentMediaType": "application/json" },
        },
    });
    let media = json!({ "text/event-stream": { "schema": event } });
    Operation::new("followOverview", "Events", "Follow how everything stands")
        .text("What `GET /v1/overview` answers, about once a second, as `hopline.overview`. It does not end by itself.")
        .takes_query()
        .codes(&[Code::StreamsFull])
        .answers(StatusCode::OK, "Server-sent events.", Some(media), &[])
}

pub(in crate::http::api) fn alive(_: &mut Shapes) -> Operation {
    let schema =
        json!({ "type": "object", "properties": { "alive": { "const": true } }, "required": ["alive"] });
    Operation::new("isAlive", "Health", "Whether the process answers").gives(
        StatusCode::OK,
        "It does.",
        schema,
        json!({ "alive": true }),
        &[],
    )
}

pub(in crate::http::api) fn ready(shapes: &mut Shapes) -> Operation {
    let schema = schema_of::<health::Readiness>(&mut shapes.generator);
    let example = json!({
        "ready": true, "stopping": false, "publish": "connected", "consume": "connected", "control": "caught up",
        "record": "caught up",
    });
    Operation::new("isReady", "Health", "Whether a submit and a call would be taken now")
        .gives(StatusCode::OK, "They would.", schema.clone(), example, &[])
        .or_answers(503, "They would not; the body says what is missing.", &schema)
}

pub(super) fn html(operation: Operation, status: StatusCode, text: &str, headers: &[&str]) -> Operation {
    let page = json!({ "text/html; charset=utf-8": { "schema": { "type": "string" } } });
    operation.answers(status, text, Some(page), headers)
}

pub(in crate::http::api) fn metrics(_: &mut Shapes) -> Operation {
    let example = "# HELP hopline_http_requests_total HTTP requests answered.\n# TYPE hopline_http_requests_total counter\n";
    let media = json!({ CONTENT_TYPE: { "schema": { "type": "string" }, "example": example } });
    Operation::new("getMetrics", "Health", "What this process has counted, for Prometheus")
        .text("A key must be for all queues.")
        .codes(&[Code::QueueForbidden])
        .answers(StatusCode::OK, "Metrics in Prometheus's text format.", Some(media), &[])
}

pub(in crate::http::api) fn session(shapes: &mut Shapes) -> Operation {
    let session = schema_of::<session::Shown<'static>>(&mut shapes.generator);
    let example = json!({ "keys": true, "name": "ops", "scopes": ["read", "operate"], "version": "0.1.0" });
    Operation::new("getSession", "Sessions", "Who asks, and what the one may do")
        .takes_query()
        .codes(&[Code::AccessUnknown])
        .gives(StatusCode::OK, "Without a key that holds there are no scopes.", session, example, &[])
}

pub(in crate::http::api) fn login_form(_: &mut Shapes) -> Operation {
    let operation = Operation::new("showLogin", "Sessions", "A form for an API key").takes_query().query(
        "next",
        json!({ "type": "string" }),
        "The page to be shown after the login: a path of this server. Anything else is left out.",
    );
    html(operation, StatusCode::OK, "The form; with a session, whose it is.", &[])
}

pub(in crate::http::api) fn log_in(_: &mut Shapes) -> Operation {
    let form = json!({
        "type": "object",
        "properties": {
            "key": { "type": "string", "description": "An API key." },
            "next": { "type": "string", "description": "The page to be shown then: a path of this server." },
        },
        "required": ["key"],
    });
    let media = json!({ "application/x-www-form-urlencoded": { "schema": form } });
    let operation = Operation::new("logIn", "Sessions", "Begin a session")
        .takes(true, media)
        .codes(&[Code::AccessUnknown])
        .answers(StatusCode::SEE_OTHER, "The session is there.", None, &["Location", "Set-Cookie"]);
    html(operation, StatusCode::UNAUTHORIZED, "No such key: the form again.", &["WWW-Authenticate"])
}

pub(in crate::http::api) fn log_out(_: &mut Shapes) -> Operation {
    Operation::new("logOut", "Sessions", "End a session").takes_query().answers(
        StatusCode::SEE_OTHER,
        "The session is gone.",
        None,
        &["Location", "Set-Cookie"],
    )
}

pub(in crate::http::api) fn openapi(_: &mut Shapes) -> Operation {
    let schema = json!({ "type": "object", "required": ["openapi", "info", "paths"] });
    let example =
        json!({ "openapi": "3.1.0", "info": { "title": "Hopline", "version": "0.1.0" }, "paths": {} });
    Operation::new("getDescription", "Description", "This description")
        .text("With the kinds that workers have announced, and for a key those of its queues: it changes when they do.")
        .takes_query()
        .header("If-None-Match", json!({ "type": "string" }), "The `ETag` of what the client has.")
        .gives(StatusCode::OK, "OpenAPI 3.1.", schema, example, &["ETag"])
        .answers(StatusCode::NOT_MODIFIED, "The client has it.", None, &["ETag"])
}

pub(in crate::http::api) fn docs(_: &mut Shapes) -> Operation {
    let operation = Operation::new("readDescription", "Description", "A reader of this description");
    html(operation, StatusCode::OK, "A page that needs nothing from elsewhere.", &[])
}

fn file(id: &str, summary: &str, media: &str) -> Operation {
    let content = json!({ media: { "schema": { "type": "string" } } });
    Operation::new(id, "Description", summary).answers(StatusCode::OK, "The file.", Some(content), &[])
}

pub(in crate::http::api) fn reader_script(_: &mut Shapes) -> Operation {
    file("getReaderScript", "The reader's script", "text/javascript; charset=utf-8")
}

pub(in crate::http::api) fn reader_style(_: &mut Shapes) -> Operation {
    file("getReaderStyle", "The reader's style", "text/css; charset=utf-8")
}
