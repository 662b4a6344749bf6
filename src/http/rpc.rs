//! `POST /v1/rpc/{kind}`: runs a job and answers with its output.
//!
//! A job that has not started when its caller's patience ends expires: nobody would see what it does. With
//! `Prefer: respond-async` the caller wants to see it later, so it does not expire.

use std::time::Duration;

use axum::{
    extract::{Path, Request, State, rejection::PathRejection},
    http::StatusCode,
    response::Response,
};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::{
    App,
    answer::{self, Accepted, Record},
    body::{self, Inbound, Media},
    fields::Errors,
    jobs::{say_applied, wait_of},
    problem::{Code, End, Problem},
    submission::{self, Draft, ERRORS_MAX, trace_context},
    wait::{Prefer, Wait},
};
use crate::{
    config::parse_duration,
    job::{
        Envelope, Kind, QueueName, Reply, Status,
        dead::Reason,
        envelope::RetryOverrides,
        json::{self, JsonError},
    },
    retry::MAX_ATTEMPTS,
};

/// How long a caller waits that does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);

/// `POST /v1/rpc/{kind}`.
pub(super) async fn post(
    State(app): State<App>,
    kind: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = call(&app, kind.ok().map(|Path(kind)| kind), &mut inbound).await;
    inbound.answer(result).await
}

async fn call(app: &App, kind: Option<String>, inbound: &mut Inbound) -> Result<Response, Problem> {
    // Without a body its type does not matter: `curl -d ''` names one all the same.
    let media = if inbound.is_empty() { Media::Unsaid } else { inbound.media(false)? };
    let received = inbound.read(app.limits.args).await?;
    if media == Media::Unsaid && !received.bytes.is_empty() {
        return Err(body::content_type_missing());
    }
    let (start, now) = (Instant::now(), Timestamp::now());
    let mut errors = Errors::new(ERRORS_MAX);
    let kind = read_kind(kind.as_deref(), &mut errors);
    let asked = Asked::read(inbound, &mut errors);
    let args = read_args(received.bytes, &mut errors)?;
    let kind = errors.none_or(kind)?;

    let prefer = Prefer::read(&inbound.parts.headers);
    let preferred = prefer.wait.filter(|wait| !wait.is_zero());
    let wait = Wait::choose(asked.wait, preferred, DEFAULT_WAIT, app.http.max_wait);
    let expires_at = SignedDuration::try_from(wait.patience).ok().and_then(|wait| now.checked_add(wait).ok());
    let draft = Draft {
        named: None,
        too_late: None,
        kind,
        queue: asked.queue,
        args,
        run_at: None,
        expires_at: expires_at.filter(|_| !prefer.respond_async),
        timeout: asked.timeout,
        max_attempts: Some(asked.max_attempts.unwrap_or(1)),
        retry: RetryOverrides::default(),
        tags: Vec::new(),
    };
    let job = draft.into_submission(&app.client, &trace_context(&inbound.parts.headers), now);
    let accepted = Accepted::new(&job);
    // Without the args: no answer has them, so their memory is free once the broker has the job.
    let envelope = Envelope { args: Bytes::new(), ..job.envelope.clone() };
    let (mut response, later) = match app.call(job, start + wait.patience, Some(received.room)).await? {
        Some(reply) => (ended(&envelope, &reply)?, false),
        None if prefer.respond_async => (accepted.response(), true),
        None => return Err(no_reply(&envelope, &wait, app.stopping.hurry.is_cancelled())),
    };
    say_applied(&mut response, &wait, later);
    Ok(response)
}

/// What the query asks for.
#[derive(Debug, Default)]
struct Asked {
    queue: Option<QueueName>,
    timeout: Option<Duration>,
    max_attempts: Option<u32>,
    wait: Option<Duration>,
}

impl Asked {
    fn read(inbound: &Inbound, errors: &mut Errors) -> Self {
        let [queue, timeout, max_attempts, wait, on_timeout] =
            inbound.query(["queue", "timeout", "max_attempts", "wait", "on_timeout"], errors);
        match on_timeout.as_deref() {
            None | Some("leave") => {}
            Some("cancel") => {
                errors
                    .unsupported_parameter("on_timeout", "cancel is not available yet; leave is the default");
            }
            Some(_) => errors.parameter("on_timeout", "must be leave"),
        }
        let mut note = |name, detail: String| errors.parameter(name, detail);
        let found = Self {
            queue: queue.and_then(|queue| {
                QueueName::parse(queue).map_err(|error| note("queue", error.to_string())).ok()
            }),
            timeout: timeout.and_then(|timeout| {
                let timeout = parse_duration(&timeout).map_err(|error| error.to_string());
                timeout.and_then(submission::timeout).map_err(|detail| note("timeout", detail)).ok()
            }),
            max_attempts: max_attempts.and_then(|attempts| {
                let attempts = attempts.parse().ok().filter(|attempts| (1..=MAX_ATTEMPTS).contains(attempts));
                if attempts.is_none() {
                    note("max_attempts", format!("must be a whole number from 1 to {MAX_ATTEMPTS}"));
                }
                attempts
            }),
            wait: None,
        };
        let wait = wait_of(wait.as_deref(), errors);
        if wait.is_some_and(|wait| wait < Duration::from_millis(1)) {
            errors.parameter("wait", "must be at least 1 ms: to submit without waiting, use POST /v1/jobs");
        }
        Self { wait, ..found }
    }
}

fn read_kind(kind: Option<&str>, errors: &mut Errors) -> Option<Kind> {
    Kind::parse(kind.unwrap_or_default()).map_err(|error| errors.parameter("kind", error.to_string())).ok()
}

fn read_args(bytes: Bytes, errors: &mut Errors) -> Result<Bytes, Problem> {
    if bytes.is_empty() {
        return Ok(Bytes::from_static(b"{}"));
    }
    match json::check(&bytes) {
        Ok(()) => Ok(bytes),
        Err(JsonError::TooDeep) => {
            errors.deep(String::new());
            Ok(bytes)
        }
        Err(error) => Err(Problem::json(&error)),
    }
}

/// The answer for a run that ended.
fn ended(job: &Envelope, reply: &Reply) -> Result<Response, Problem> {
    let about = |problem: Problem| Problem {
        job: Some(job.id),
        end: Some(Box::new(End {
            job: serde_json::to_value(Record::new(job, reply).brief()).unwrap_or_default(),
            error: answer::failure(reply).and_then(|error| serde_json::to_value(error).ok()),
        })),
        ..problem
    };
    match reply.status {
        Status::Succeeded => {
            if answer::output(reply).is_none() {
                let detail = "the output is over limits.output, or not JSON; the job itself succeeded";
                return Err(about(Problem::new(Code::OutputOmitted, detail)));
            }
            let mut response = answer::json(StatusCode::OK, reply.body.clone());
            answer::name_job(&mut response, job.id);
            Ok(response)
        }
        Status::Dead => {
            let fatal = reply.reason.as_deref() == Some(Reason::Fatal.as_str());
            let code = if fatal { Code::JobFatal } else { Code::JobDead };
            let detail = reply.failure().map_or_else(String::new, |failure| failure.message);
            Err(about(Problem::new(code, detail)))
        }
        Status::Cancelled => {
            let detail = reply.failure().map_or_else(String::new, |failure| failure.message);
            Err(about(Problem::new(Code::JobCancelled, detail)))
        }
        Status::Expired => Err(about(Problem::new(
            Code::WaitTimeout,
            "no worker could start the job in time; it has expired and will not run",
        ))),
    }
}

/// The answer when the patience is over: what has started runs on, the rest expires.
fn no_reply(job: &Envelope, wait: &Wait, hurried: bool) -> Problem {
    let so_far = if hurried {
        "the server is ending and there is no reply yet".to_owned()
    } else {
        format!("no reply within {} s", wait.patience.as_secs_f64())
    };
    let detail = format!("{so_far}: if the job has started it runs on, else it expires");
    let record = serde_json::json!({ "id": job.id, "kind": job.kind.as_str(), "queue": job.queue.as_str() });
    let error = serde_json::json!({ "code": Code::WaitTimeout.as_str(), "message": detail });
    Problem {
        job: Some(job.id),
        end: Some(Box::new(End { job: record, error: Some(error) })),
        ..Problem::new(Code::WaitTimeout, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobId;

    fn job() -> Envelope {
        Envelope::new(
            Kind::parse("demo.echo").unwrap(),
            QueueName::parse("default").unwrap(),
            Bytes::from_static(b"{\"secret\":1}"),
        )
    }

    fn reply(status: Status, reason: Option<&str>, body: &'static str) -> Reply {
        Reply {
            job_id: JobId::new(),
            run: 1,
            attempt: 1,
            status,
            reason: reason.map(str::to_owned),
            worker: None,
            started_at: None,
            finished_at: None,
            output_omitted: false,
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn each_end_has_its_answer() {
        let error = r#"{"code":"c","message":"m"}"#;
        for (reply, code) in [
            (reply(Status::Dead, Some("exhausted"), error), Code::JobDead),
            (reply(Status::Dead, Some("poison"), error), Code::JobDead),
            (reply(Status::Dead, Some("fatal"), error), Code::JobFatal),
            (reply(Status::Expired, None, error), Code::WaitTimeout),
        ] {
            let job = job();
            let problem = ended(&job, &reply).unwrap_err();
            assert_eq!(problem.code, code);
            let value: serde_json::Value = serde_json::from_str(&problem.to_json()).unwrap();
            assert_eq!(value["job"]["id"], job.id.to_string());
            assert_eq!(value["job"]["status"], reply.status.as_str());
            assert_eq!(value["error"]["code"], "c");
            assert!(value["job"].get("args").is_none() && value["job"].get("error").is_none());
        }
        let good = ended(&job(), &reply(Status::Succeeded, None, "null")).unwrap();
        assert_eq!(good.status(), 200);
        let omitted = Reply { output_omitted: true, ..reply(Status::Succeeded, None, "null") };
        assert_eq!(ended(&job(), &omitted).unwrap_err().code, Code::OutputOmitted);
        assert_eq!(ended(&job(), &reply(Status::Succeeded, None, "")).unwrap_err().code, Code::OutputOmitted);
    }

    #[test]
    fn a_timeout_names_the_job() {
        let (job, wait) = (job(), Wait { patience: Duration::from_secs(3), preferred: true });
        let text = no_reply(&job, &wait, false).to_json();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["job"]["id"], job.id.to_string());
        assert_eq!(value["error"]["code"], "wait_timeout");
    }

    #[test]
    fn args_are_any_json() {
        for good in ["null", " 1 ", "[]", "{\"a\":1.0}"] {
            let mut errors = Errors::new(5);
            let args = read_args(Bytes::from_static(good.as_bytes()), &mut errors).unwrap();
            assert_eq!(args, good.as_bytes());
        }
        let mut errors = Errors::new(5);
        assert_eq!(read_args(Bytes::new(), &mut errors).unwrap(), "{}");
        assert_eq!(read_args(Bytes::from_static(b"{"), &mut errors).unwrap_err().code, Code::MalformedJson);
        assert_eq!(
            read_args(Bytes::from_static(b"\"\xff\""), &mut errors).unwrap_err().code,
            Code::MalformedJson
        );
        read_args("[".repeat(65).into_bytes().into(), &mut errors).unwrap();
        assert_eq!(errors.into_list().0, Code::TooDeep);
    }
}
