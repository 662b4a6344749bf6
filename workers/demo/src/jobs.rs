//! The demo jobs. Each shows one thing that can happen to a job, in a few lines; together they are one file.

use std::time::Duration;

use hopline::{Context, Job, JobError, JobResult, Schemas, schemars::JsonSchema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

/// Returns its args, byte for byte: a raw value keeps the digits of numbers and the order of keys. Takes anything, so it
/// announces no schema.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Echo(Box<RawValue>);

impl Job for Echo {
    const KIND: &'static str = "demo.echo";
    const QUEUE: &'static str = "demo";
    type Output = Box<RawValue>;
}

pub(crate) async fn echo(job: Echo, _cx: Context) -> JobResult<Box<RawValue>> {
    Ok(job.0)
}

/// Sleeps for `ms`, telling how far it is, then returns how often it was tried. Stops early when it is told to.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
#[serde(deny_unknown_fields)]
pub(crate) struct Sleep {
    /// Milliseconds; at most a day.
    ms: u64,
}

impl Job for Sleep {
    const KIND: &'static str = "demo.sleep";
    const QUEUE: &'static str = "demo";
    type Output = Value;

    fn schemas() -> Schemas {
        Schemas::of::<Self>()
    }
}

pub(crate) async fn sleep(job: Sleep, cx: Context) -> JobResult<Value> {
    let parts = 20;
    let part = Duration::from_millis(job.ms.min(86_400_000)) / parts;
    for slept in 0..parts {
        cx.progress(u64::from(slept * 100 / parts), format!("slept {:?}", part * slept));
        tokio::select! {
            () = tokio::time::sleep(part) => {}
            // Cancelled, or handed back: then the next worker sleeps from the start.
            () = cx.cancelled() => return Err(JobError::retry("stopped", "told to stop")),
        }
    }
    Ok(serde_json::json!({ "slept_ms": job.ms, "attempt": cx.attempt() }))
}

/// Fails the first `failures` attempts, then succeeds.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
#[serde(deny_unknown_fields)]
pub(crate) struct Flaky {
    /// How many attempts fail.
    failures: u32,
}

impl Job for Flaky {
    const KIND: &'static str = "demo.flaky";
    const QUEUE: &'static str = "demo";
    type Output = Value;

    fn schemas() -> Schemas {
        Schemas::of::<Self>()
    }
}

pub(crate) async fn flaky(job: Flaky, cx: Context) -> JobResult<Value> {
    if cx.attempt() <= job.failures {
        let text = format!("attempt {} of {} that fail", cx.attempt(), job.failures);
        return Err(JobError::retry("flaky", text));
    }
    Ok(serde_json::json!({ "attempts": cx.attempt() }))
}

/// Always fails: `{"fatal": true}` at once, else after all attempts.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
pub(crate) struct Fail {
    /// Dead at the first attempt.
    #[serde(default)]
    fatal: bool,
    /// The error's text.
    #[serde(default)]
    message: Option<String>,
}

impl Job for Fail {
    const KIND: &'static str = "demo.fail";
    const QUEUE: &'static str = "demo";
    type Output = ();

    fn schemas() -> Schemas {
        Schemas::of::<Self>()
    }
}

pub(crate) async fn fail(job: Fail, _cx: Context) -> JobResult<()> {
    let message = job.message.unwrap_or_else(|| "this job always fails".to_owned());
    Err(if job.fatal {
        JobError::fatal("demo_fatal", message)
    } else {
        JobError::retry("demo_failed", message)
    })
}

/// Panics.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
pub(crate) struct Panic {}

impl Job for Panic {
    const KIND: &'static str = "demo.panic";
    const QUEUE: &'static str = "demo";
    type Output = ();

    fn schemas() -> Schemas {
        Schemas::of::<Self>()
    }
}

pub(crate) async fn panic(_job: Panic, _cx: Context) -> JobResult<()> {
    panic!("this job always panics")
}

/// Kills the process that runs it.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
pub(crate) struct Abort {}

impl Job for Abort {
    const KIND: &'static str = "demo.abort";
    const QUEUE: &'static str = "demo";
    type Output = ();

    fn schemas() -> Schemas {
        Schemas::of::<Self>()
    }
}

pub(crate) async fn abort(_job: Abort, _cx: Context) -> JobResult<()> {
    std::process::abort()
}
