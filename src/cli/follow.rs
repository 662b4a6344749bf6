//! Waiting for the end of a job's run, request after request.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;

use super::{
    api::{self, Answer, Failure, Request, Server, exit, read_json},
    human::At,
    queues::Queue,
    say,
    shown::Job,
};

/// Longest wait of one request: another follows.
const SLICE: Duration = Duration::from_secs(30);
/// Between two requests where the first did not wait.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a server may be away in the middle of a wait.
const ABSENCE: Duration = Duration::from_secs(60);

/// Waits until a job's run has ended, or the deadline, and says how it ended or stands; the exit code that tells it.
pub(super) async fn tell_end(
    server: &Server,
    id: &str,
    deadline: Option<Instant>,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let (answer, job) = await_end(server, id, deadline, SLICE, |_| {}).await?;
    say::result_line(&if as_json { answer.text } else { job.sentence(At::now()) })?;
    let ended = api::exit_code(&job.status);
    if ended.is_none() {
        tell_hindrance(server, &job).await;
    }
    Ok(ended.unwrap_or(ExitCode::from(exit::NOT_FINISHED)))
}

/// Says on standard error why nobody takes a job that has not ended, if its queue shows that.
pub(super) async fn tell_hindrance(server: &Server, job: &Job) {
    // Who may wait for a job need not be allowed to look at its queue: then nothing is said.
    let asked = server.ask(&Request::get(["v1", "queues", &job.queue])).await.ok();
    let queue = asked.and_then(|answer| answer.read::<Queue>().ok());
    if let Some(hindrance) = queue.and_then(|queue| queue.hindrance()) {
        say::error(format_args!("hopline: {hindrance}"));
    }
}

/// Waits until a job's run has ended, or the deadline, in requests that wait for `slice` each; hands over each record
/// on the way. A server that goes away in the meantime is given time to come back.
pub(super) async fn await_end(
    server: &Server,
    id: &str,
    deadline: Option<Instant>,
    slice: Duration,
    mut on_record: impl FnMut(&Job),
) -> anyhow::Result<(Answer, Job)> {
    let mut known: Option<(Answer, Job)> = None;
    let mut away_since = None;
    loop {
        let asked = Instant::now();
        let left = deadline.map_or(slice, |deadline| deadline.saturating_duration_since(asked).min(slice));
        match ask_waiting(server, id, left).await {
            Ok(answer) => {
                away_since = None;
                let job: Job = read_json(&answer.text)?;
                on_record(&job);
                if job.is_final() {
                    return Ok((answer, job));
                }
                known = Some((answer, job));
            }
            // Before the first answer nothing says that it will be better later.
            Err(failure) if known.is_none() || !failure.may_pass() => return Err(failure.into()),
            Err(failure) => {
                let since = *away_since.get_or_insert_with(Instant::now);
                if since.elapsed() > ABSENCE {
                    return Err(failure).context("still waiting, and the server does not come back");
                }
            }
        }
        match known.take() {
            Some(known) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return Ok(known),
            other => known = other,
        }
        // A request that could wait has been the pause.
        tokio::time::sleep(PAUSE.min(left).saturating_sub(asked.elapsed())).await;
    }
}

async fn ask_waiting(server: &Server, id: &str, wait: Duration) -> Result<Answer, Failure> {
    // A wait of nothing is no wait, and no bad one either.
    let asked = Some(wait.as_millis()).filter(|ms| *ms > 0).map(|ms| format!("{ms}ms"));
    server.ask(&Request::get(["v1", "jobs", id]).query("wait", asked).longer(wait)).await
}
