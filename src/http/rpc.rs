//! `POST /v1/rpc/{kind}`: runs a job and answers with its output.
//!
//! A job that has not started when its caller's patience ends expires: nobody would see what it does. One that runs is
//! left alone or cancelled, as the caller chose (`on_timeout`). A caller that hangs up has no patience left. With
//! `Prefer: respond-async` the caller wants to see it later, so it does not expire.

use std::time::Duration;

use axum::{
    extract::{Path, Request, State, rejection::PathRejection},
    http::StatusCode,
    response::Response,
};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{
    App,
    answer::{self, Accepted},
    body::{self, Inbound, Media, Received},
    ending::{End, told},
    fields::Errors,
    jobs::{say_applied, wait_of},
    keyed::{self, Begun},
    naming::{self, Choice},
    problem::{self, Code, Problem},
    spooling::Taken,
    submission::{self, Draft, ERRORS_MAX, trace_context},
    wait::{Prefer, Wait},
};
use crate::{
    client::CancelTarget,
    config::parse_duration,
    job::{
        Envelope, Kind, QueueName,
        dead::Reason,
        envelope::RetryOverrides,
        json::{self, JsonError},
    },
    record::{
        keys::Digest,
        model::{JobRecord, JobStatus},
    },
    retry::MAX_ATTEMPTS,
};

/// How long a caller waits that does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
/// Longest time for the order to cancel what nobody waits for any more.
const CANCEL_TIME: Duration = Duration::from_secs(2);

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
    // Memory for what comes next is taken when the body is there: slow clients are many.
    Box::pin(call_received(app, kind, inbound, received)).await
}

async fn call_received(
    app: &App,
    kind: Option<String>,
    inbound: &mut Inbound,
    received: Received,
) -> Result<Response, Problem> {
    let (start, now) = (Instant::now(), Timestamp::now());
    let mut errors = Errors::new(ERRORS_MAX);
    let choice = Choice::of(None, &inbound.parts.headers, inbound.caller.scope(), &mut errors);
    let kind = read_kind(kind.as_deref(), &mut errors);
    let asked = Asked::read(inbound, &mut errors);
    let args = read_args(received.bytes, &mut errors)?;
    let kind = errors.none_or(kind)?;

    let prefer = Prefer::read(&inbound.parts.headers);
    // Who wants it cancelled at the deadline cannot want to see its end later.
    let respond_async = prefer.respond_async && !asked.cancel;
    let preferred = prefer.wait.filter(|wait| !wait.is_zero());
    let wait = Wait::choose(asked.wait, preferred, DEFAULT_WAIT, app.http.max_wait);
    let expires_at = SignedDuration::try_from(wait.patience).ok().and_then(|wait| now.checked_add(wait).ok());
    let named = choice.named(|| asked.digest(&kind, &args));
    let draft = Draft {
        named,
        too_late: None,
        kind,
        queue: asked.queue,
        args,
        run_at: None,
        expires_at: expires_at.filter(|_| !respond_async),
        timeout: asked.timeout,
        max_attempts: Some(asked.max_attempts.unwrap_or(1)),
        retry: RetryOverrides::default(),
        tags: Vec::new(),
        callback: None,
    };
    let mut job =
        draft.into_submission(|kind| app.client.queue_of(kind), &trace_context(&inbound.parts.headers), now);
    inbound.caller.check(app, &mut job)?;
    let accepted = Accepted::new(&job);
    // Without the args: no answer has them, so their memory is free once the broker has the job.
    let envelope = Envelope { args: Bytes::new(), ..job.envelope.clone() };
    let (begun, deadline) = (keyed::begin(app, named, &envelope.kind, None).await?, start + wait.patience);
    if matches!(begun, Begun::New(_)) {
        app.checking().check(&job.envelope, "", ERRORS_MAX).await?;
    }
    let replayed = matches!(begun, Begun::Repeat(_));
    let (accepted_now, is_accepted) = oneshot::channel();
    let mut abandoned = asked.cancel.then(|| Abandoned::new(app, &envelope, is_accepted));
    let (taken, end) = match begun {
        Begun::New(claim) => app.call(job, claim, deadline, received.room, Some(accepted_now)).await?,
        Begun::Repeat(_) => {
            drop((job, received.room));
            // Nobody listens unless it is to be cancelled.
            let _ = accepted_now.send(());
            (Taken::Broker, app.attach(envelope.id, deadline).await?)
        }
    };
    let (answered, later) = match end {
        Some(end) => {
            abandoned.as_mut().map(Abandoned::done);
            (ended(&record_of(app, &envelope, end)), false)
        }
        None if respond_async => (Ok(accepted.taken(taken).response()), true),
        None => {
            let became = match &mut abandoned {
                Some(abandoned) => abandoned.give_up().await,
                None => "it runs on",
            };
            (Err(no_reply(&envelope, &wait, app.stopping.hurry.is_cancelled(), became)), false)
        }
    };
    let mut response = answered.map_err(|problem| Problem { replayed, ..problem })?;
    if replayed {
        keyed::say_replayed(&mut response);
    }
    say_applied(&mut response, &wait, later);
    Ok(response)
}

/// How the run ended. The record is not read after a reply: that would cost more than the call.
fn record_of(app: &App, job: &Envelope, end: End) -> JobRecord {
    match end {
        End::Record(record) => *record,
        End::Reply(reply) => {
            app.record.touch(job.id);
            told(job, &reply)
        }
    }
}

/// A call that is to be cancelled when nobody waits for it any more. Dropped before it is done, it is: the caller has
/// hung up.
struct Abandoned {
    app: App,
    job: Envelope,
    /// Told when the job is accepted: one that is not must not get a record by being cancelled. None: done.
    accepted: Option<oneshot::Receiver<()>>,
}

impl Abandoned {
    fn new(app: &App, job: &Envelope, accepted: oneshot::Receiver<()>) -> Self {
        Self { app: app.clone(), job: job.clone(), accepted: Some(accepted) }
    }

    /// The job has ended, or is cancelled.
    fn done(&mut self) {
        self.accepted = None;
    }

    /// Cancels the job at the deadline, and says what becomes of it if it has started.
    async fn give_up(&mut self) -> &'static str {
        let ordered = timeout(CANCEL_TIME, self.app.order_cancel(self.target())).await;
        self.done();
        match ordered {
            Ok(Ok(())) => "it is cancelled",
            Ok(Err(_)) | Err(_) => "it runs on, because it could not be cancelled now",
        }
    }

    fn target(&self) -> CancelTarget {
        let Envelope { id, run, attempt, step, kind, queue, .. } = self.job.clone();
        CancelTarget {
            id,
            run,
            attempt,
            step,
            kind: Some(kind),
            queue,
            by: Some("caller".to_owned()),
            reason: Some("nobody waits for the call any more".to_owned()),
        }
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        let (Some(accepted), Ok(runtime)) = (self.accepted.take(), Handle::try_current()) else { return };
        let (app, target) = (self.app.clone(), self.target());
        runtime.spawn(async move {
            // The submit has a deadline, and goes on without its caller.
            if accepted.await.is_err() {
                return;
            }
            let ordered = timeout(CANCEL_TIME, app.order_cancel(target)).await;
            if !matches!(ordered, Ok(Ok(()))) {
                tracing::debug!("a call whose caller hung up could not be cancelled");
            }
        });
    }
}

/// What the query asks for.
#[derive(Debug, Default)]
struct Asked {
    queue: Option<QueueName>,
    timeout: Option<Duration>,
    max_attempts: Option<u32>,
    wait: Option<Duration>,
    /// Whether a running job is cancelled at the deadline.
    cancel: bool,
}

impl Asked {
    /// The digest of the call, without what is about its caller alone.
    fn digest(&self, kind: &Kind, args: &[u8]) -> Digest {
        let timeout = self.timeout.map(|timeout| timeout.as_nanos().to_string());
        let max_attempts = self.max_attempts.map(|attempts| attempts.to_string());
        let query = [
            ("max_attempts", max_attempts.as_deref()),
            ("queue", self.queue.as_ref().map(QueueName::as_str)),
            ("timeout", timeout.as_deref()),
        ];
        naming::digest_of_call(kind, &query, args)
    }

    fn read(inbound: &Inbound, errors: &mut Errors) -> Self {
        let [queue, timeout, max_attempts, wait, on_timeout] =
            inbound.query(["queue", "timeout", "max_attempts", "wait", "on_timeout"], errors);
        if !matches!(on_timeout.as_deref(), None | Some("leave" | "cancel")) {
            errors.parameter("on_timeout", "must be leave or cancel");
        }
        let mut note = |name, detail: String| errors.parameter(name, detail);
        let found = Self {
            queue: queue.and_then(|queue| {
                let queue = QueueName::parse(queue).map_err(|error| error.to_string());
                queue.and_then(submission::open_queue).map_err(|detail| note("queue", detail)).ok()
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
            cancel: on_timeout.as_deref() == Some("cancel"),
        };
        let wait = wait_of(wait.as_deref(), errors);
        if wait.is_some_and(|wait| wait < Duration::from_millis(1)) {
            errors.parameter("wait", "must be at least 1 ms: to submit without waiting, use POST /v1/jobs");
        }
        Self { wait, ..found }
    }
}

fn read_kind(kind: Option<&str>, errors: &mut Errors) -> Option<Kind> {
    let kind = Kind::parse(kind.unwrap_or_default()).map_err(|error| error.to_string());
    kind.and_then(submission::open_kind).map_err(|detail| errors.parameter("kind", detail)).ok()
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
fn ended(job: &JobRecord) -> Result<Response, Problem> {
    let summary = &job.summary;
    let message = || answer::failure(summary).map(|failure| failure.message).unwrap_or_default();
    let (code, detail) = match (&job.output, summary.status) {
        (Some(output), JobStatus::Succeeded) => {
            let mut response = answer::json(StatusCode::OK, output.get().to_owned());
            answer::name_job(&mut response, summary.id);
            return Ok(response);
        }
        (None, JobStatus::Succeeded) => (
            Code::OutputOmitted,
            "the job succeeded; its output is over limits.output, nested too deep, no JSON, or was lost and is not \
             in the record"
                .to_owned(),
        ),
        (_, JobStatus::Dead) if summary.reason.as_deref() == Some(Reason::Fatal.as_str()) => {
            (Code::JobFatal, message())
        }
        (_, JobStatus::Cancelled) => (Code::JobCancelled, message()),
        (_, JobStatus::Expired) => (
            Code::WaitTimeout,
            "no worker could start the job in time; it has expired and will not run".to_owned(),
        ),
        (..) => (Code::JobDead, message()),
    };
    Err(Problem::new(code, detail).about(summary))
}

/// The answer when the patience is over: what has not started expires, and what has, `became` tells.
fn no_reply(job: &Envelope, wait: &Wait, hurried: bool, became: &str) -> Problem {
    let so_far = if hurried {
        "the server is ending and there is no reply yet".to_owned()
    } else {
        format!("no reply within {} s", wait.patience.as_secs_f64())
    };
    let detail = format!("{so_far}: if the job has started {became}, else it expires");
    let record = serde_json::json!({ "id": job.id, "kind": job.kind.as_str(), "queue": job.queue.as_str() });
    let error = serde_json::json!({ "code": Code::WaitTimeout.as_str(), "message": detail });
    Problem {
        job: Some(job.id),
        end: Some(Box::new(problem::End { job: record, error: Some(error) })),
        ..Problem::new(Code::WaitTimeout, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http::answer::tests::{envelope, reply},
        job::{Reply, Status},
    };

    #[test]
    fn each_end_has_its_answer() {
        let error = r#"{"code":"c","message":"m"}"#;
        for (reply, code, error) in [
            (reply(Status::Dead, Some("exhausted"), error), Code::JobDead, "c"),
            (reply(Status::Dead, Some("poison"), error), Code::JobDead, "c"),
            (reply(Status::Dead, Some("fatal"), error), Code::JobFatal, "c"),
            (reply(Status::Cancelled, Some("why"), error), Code::JobCancelled, "cancelled"),
            (reply(Status::Expired, None, error), Code::WaitTimeout, "expired"),
        ] {
            let job = envelope("{}");
            let problem = ended(&told(&job, &reply)).unwrap_err();
            assert_eq!(problem.code, code);
            let value: serde_json::Value = serde_json::from_str(&problem.to_json()).unwrap();
            assert_eq!(value["job"]["id"], job.id.to_string());
            assert_eq!(value["job"]["status"], reply.status.as_str());
            assert_eq!(value["error"]["code"], error);
            assert!(value["job"].get("args").is_none() && value["job"].get("error").is_none());
        }
        let end = |reply: Reply| ended(&told(&envelope("{}"), &reply));
        let good = end(reply(Status::Succeeded, None, "null")).unwrap();
        assert_eq!(good.status(), 200);
        let omitted = Reply { output_omitted: true, ..reply(Status::Succeeded, None, "null") };
        assert_eq!(end(omitted).unwrap_err().code, Code::OutputOmitted);
        assert_eq!(end(reply(Status::Succeeded, None, "")).unwrap_err().code, Code::OutputOmitted);
    }

    #[test]
    fn a_timeout_names_the_job() {
        let (job, wait) = (envelope("{}"), Wait { patience: Duration::from_secs(3), preferred: true });
        let text = no_reply(&job, &wait, false, "it runs on").to_json();
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
