use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::{
    http::ending::told,
    job::{Envelope, Reply, Status},
    record::model::CancelRequest,
};

pub(in crate::http) fn envelope(args: &'static str) -> Envelope {
    let (kind, queue) = (Kind::parse("demo.echo").unwrap(), QueueName::parse("default").unwrap());
    let created_at = Some("2030-01-01T00:00:00.0019Z".parse().unwrap());
    Envelope { created_at, ..Envelope::new(kind, queue, Bytes::from_static(args.as_bytes())) }
}

pub(in crate::http) fn reply(status: Status, reason: Option<&str>, body: &'static str) -> Reply {
    Reply {
        job_id: JobId::new(),
        run: 1,
        attempt: 2,
        status,
        reason: reason.map(str::to_owned),
        worker: Some("w".into()),
        started_at: None,
        finished_at: Some(Timestamp::UNIX_EPOCH),
        output_omitted: false,
        body: Bytes::from_static(body.as_bytes()),
    }
}

fn job(status: Status, reason: Option<&str>, body: &'static str) -> JobRecord {
    told(&envelope("{}"), &reply(status, reason, body))
}

fn shown(job: &JobRecord) -> Value {
    serde_json::to_value(Shown::record(job)).unwrap()
}

#[test]
fn a_scheduled_job_says_when() {
    let job = Submission::new(envelope("{}"), Duration::from_secs(90));
    let value = serde_json::to_value(Accepted::new(&job)).unwrap();
    assert_eq!(value["status"], "scheduled");
    assert_eq!(value["created_at"], "2030-01-01T00:00:00.001Z");
    assert_eq!(value["run_at"], "2030-01-01T00:01:30.001Z");
    assert_eq!(value["links"]["output"], format!("/v1/jobs/{}/output", job.envelope.id));
}

#[test]
fn args_and_output_keep_their_bytes() {
    let args = r#"{"b":1.0000000000000000000001, "a":1e2}"#;
    let job = told(&envelope(args), &reply(Status::Succeeded, None, "[12345678901234567890123,  1.50]"));
    let text = serde_json::to_string(&Shown::record(&job)).unwrap();
    assert!(text.contains(args) && text.contains("[12345678901234567890123,  1.50]"), "{text}");
    assert!(!text.contains("omitted") && !text.contains("error"));
}

#[test]
fn an_output_that_is_no_json_is_left_out() {
    let value = shown(&job(Status::Succeeded, None, "<html>"));
    assert_eq!(value["output_omitted"], true);
    assert!(value.get("output").is_none());
}

#[test]
fn a_dead_job_has_its_error() {
    let value = shown(&job(Status::Dead, Some("fatal"), r#"{"code":"c","message":"m"}"#));
    assert_eq!(value["error"], json!({"code": "c", "message": "m", "reason": "fatal"}));
    assert!(value.get("output").is_none() && value.get("output_omitted").is_none());
    assert_eq!(value["finished_at"], "1970-01-01T00:00:00.000Z");

    let mut lost = job(Status::Dead, Some("lost"), "{}");
    lost.summary.error = None;
    assert_eq!(shown(&lost)["error"], json!({"code": "lost", "message": "", "reason": "lost"}));
}

#[test]
fn a_cancelled_job_says_who_and_why() {
    let mut job = job(Status::Cancelled, Some("too late"), r#"{"code":"cancelled","message":"m"}"#);
    job.summary.by = Some("eve".into());
    let value = shown(&job);
    let error = json!({"code": "cancelled", "message": "cancelled by eve: too late", "reason": "too late"});
    assert_eq!(value["error"], error);
    assert_eq!((&value["cancel_requested_by"], &value["cancel_reason"]), (&json!("eve"), &json!("too late")));
}

#[test]
fn a_cancellation_shows_before_the_end() {
    let mut job = job(Status::Succeeded, None, "1");
    job.summary.status = JobStatus::Running;
    job.summary.finished_at = None;
    job.summary.cancel =
        Some(CancelRequest { at: Timestamp::UNIX_EPOCH, by: None, reason: Some("r".into()) });
    let value = shown(&job);
    assert_eq!(value["cancel_requested_at"], "1970-01-01T00:00:00.000Z");
    assert_eq!(value["cancel_reason"], "r");
    assert!(value.get("finished_at").is_none() && value.get("cancel_requested_by").is_none());
}

#[test]
fn lists_show_neither_args_nor_output_unless_asked() {
    let job = told(&envelope("[7]"), &reply(Status::Succeeded, None, "[8]"));
    let plain = serde_json::to_value(Shown::summary(&job.summary)).unwrap();
    assert!(["args", "output", "attempts"].iter().all(|member| plain.get(member).is_none()), "{plain}");
    let more = serde_json::to_value(Shown::summary(&job.summary).with_args(&job).with_output(&job)).unwrap();
    assert_eq!((&more["args"], &more["output"]), (&json!([7]), &json!([8])));
}
