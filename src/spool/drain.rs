//! Forwarding what waits in the spool, in the order in which it came.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::{
    task::coop::unconstrained,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use super::{Entry, Spool};
use crate::{
    client::{Client, SubmitError},
    job::JobId,
};

/// Jobs that are on their way to the broker at the same time.
const WINDOW: usize = 500;
/// Longest wait for the fate of a publish, see `http::keyed`: it is not repeated before.
const FATE: Duration = Duration::from_secs(600);
/// Pause after a pass that left something: the broker is away or blocked, a queue refuses, or the disk does.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the broker is waited for at a time.
const LOOK: Duration = Duration::from_secs(10);

/// How a pass over the spool ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drained {
    /// Jobs that the broker has now.
    pub forwarded: u64,
    /// Why others are left; none: the spool is empty.
    pub left: Option<String>,
}

/// Forwards all that waits, again and again, for as long as it is polled. `forwarded` is told of each job that the
/// broker has, before it leaves the spool.
pub(crate) async fn keep_empty(spool: &Spool, client: &Client, forwarded: impl Fn(JobId)) {
    loop {
        spool.filled().await;
        let fill = spool.fill();
        info!(spool.jobs = fill.jobs, spool.bytes = fill.bytes, "the spool holds jobs, to be forwarded");
        let mut count = 0;
        loop {
            let pass = drain(spool, client, Instant::now() + LOOK, &forwarded).await;
            count += pass.forwarded;
            let Some(why) = pass.left else { break };
            tracing::debug!(reason = why, "the spool is not empty yet");
            sleep(AGAIN).await;
        }
        info!(spool.forwarded = count, "the spool is empty");
    }
}

/// Forwards what waits, once: jobs that the broker refuses stay, and so does everything once the broker is away. A
/// broker that is away is waited for until `patience`.
pub async fn drain(spool: &Spool, client: &Client, patience: Instant, forwarded: impl Fn(JobId)) -> Drained {
    let mut drained = Drained::default();
    if let Err(why) = client.wait_ready(patience).await {
        drained.left = Some(why);
        return drained;
    }
    let mut place = 0;
    loop {
        let entries = match spool.take(place, WINDOW).await {
            Ok(entries) => entries,
            Err(error) => {
                drained.left = Some(error.to_string());
                return drained;
            }
        };
        let Some(last) = entries.last() else { return drained };
        place = last.place;
        let (gone, left, away) = forward(client, entries).await;
        drained.forwarded += u64::try_from(gone.len()).unwrap_or(u64::MAX);
        gone.iter().for_each(|entry| forwarded(entry.job.envelope.id));
        if !gone.is_empty()
            && let Err(error) = spool.remove(gone).await
        {
            // They are forwarded once more, and recognised.
            warn!(%error, "forwarded jobs could not be taken out of the spool");
            drained.left = Some(error.to_string());
            return drained;
        }
        if let Some(error) = left {
            drained.left = Some(error.to_string());
        }
        if away {
            return drained;
        }
    }
}

/// Forwards a window of jobs: those that the broker has, why another one is left, and whether the broker is away.
async fn forward(client: &Client, entries: Vec<Entry>) -> (Vec<Entry>, Option<SubmitError>, bool) {
    // Polled in this order, so handed to the publisher in it. Not with the runtime's budget: it would put off all but the
    // first hundred, and then wake them in reverse.
    let give_up = Instant::now() + FATE;
    let each = entries.iter().map(|entry| client.forward(&entry.job, give_up));
    let results = unconstrained(join_all(each)).await;
    let (mut gone, mut left, mut away) = (Vec::with_capacity(entries.len()), None, false);
    for (entry, result) in entries.into_iter().zip(results) {
        match result {
            Ok(()) => gone.push(entry),
            Err(error) => {
                away |= !matches!(error, SubmitError::Refused);
                left = Some(error);
            }
        }
    }
    (gone, left, away)
}
