//! Writing to the control log: a process's own word, and what would leave the log although it still holds.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use super::{
    Control,
    record::{ORDERS_MAX, Written, now},
};
use crate::amqp::publisher::{PublishError, Publisher, Target};

/// Longest time for a record to be confirmed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause after a publish that failed.
const AGAIN: Duration = Duration::from_secs(1);
/// A process that has not read its own word by then says it again: the log may have been deleted in between.
const UNSEEN: Duration = Duration::from_secs(5);
/// How often a process says its own on a connection that lasts: what it said may have left the log (its age, a
/// policy), and a front that starts then would send the kinds to `default`.
const REPEAT: Duration = Duration::from_secs(3600);
/// How often it is looked at what is about to leave the log, and how soon again where that failed.
const LOOK: Duration = Duration::from_secs(86_400);
const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// What was written longer ago than this is written again: a third of the log's age of 60 days, so that nothing is
/// lost if no HTTP process runs for a month.
const FADING: Duration = Duration::from_secs(20 * 86_400);

/// What was written so long before a connection was seen to be lost may be lost with the broker's power: streams are
/// not fsynced, and a broker that is gone is noticed late.
const UNSYNCED: Duration = Duration::from_secs(40);

/// Writes `record` and waits for its confirm.
async fn write(publisher: &Publisher, exchange: &str, record: Written) -> Result<(), PublishError> {
    let Written { key, message } = record.stamped(now());
    let target = Target { exchange: exchange.to_owned(), key, mandatory: true };
    publisher.publish_patiently(target, message, Instant::now() + PATIENCE).await
}

/// Says `hello` at each connection, to each new log and every hour, until told to be quiet.
pub(super) async fn tell(publisher: Publisher, exchange: String, hello: Written, control: Control) {
    let (mut state, mut logs) = (publisher.link().watch(), control.0.logs.subscribe());
    let mut told = None;
    loop {
        state.borrow_and_update();
        let log = *logs.borrow_and_update();
        let pause = match publisher.link().up() {
            Ok(up) => {
                let place = (up.epoch, log);
                let still = still(told, place, control.is_caught_up());
                if still.is_zero() {
                    match write(&publisher, &exchange, hello.clone()).await {
                        Ok(()) => {
                            told = Some((place, Instant::now()));
                            continue;
                        }
                        Err(error) => {
                            debug!(%error, "cannot write to the control log");
                            AGAIN
                        }
                    }
                } else {
                    still
                }
            }
            Err(_) => REPEAT,
        };
        tokio::select! {
            () = control.0.quiet.cancelled() => return,
            changed = state.changed() => if changed.is_err() { return },
            // The sender lives in `control`.
            _ = logs.changed() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Which connection, and which log.
type Place = (u64, u64);

/// How long a word still holds that was said at `told.0` at `told.1`; zero: it is due.
fn still(told: Option<(Place, Instant)>, place: Place, seen: bool) -> Duration {
    let lasts = if seen { REPEAT } else { UNSEEN };
    match told {
        Some((at, when)) if at == place => lasts.saturating_sub(when.elapsed()),
        _ => Duration::ZERO,
    }
}

/// Writes again what still holds and is about to leave the log, each day; to a new log all of it; and after a
/// connection was lost what was written shortly before, in case the broker lost it with its power. Idempotent: what is
/// written has its first time, so several processes may do it at once.
pub(super) async fn retell(publisher: Publisher, exchange: String, younger: Duration, control: Control) {
    let (mut state, mut logs) = (publisher.link().watch(), control.0.logs.subscribe());
    tokio::select! {
        () = control.0.quiet.cancelled() => return,
        () = control.caught_up() => {}
    }
    let epoch_now = || publisher.link().up().ok().map(|up| up.epoch);
    let (mut epoch, mut unsynced) = (epoch_now(), None);
    loop {
        logs.borrow_and_update();
        state.borrow_and_update();
        let up = epoch_now();
        if up != epoch {
            unsynced = unsynced.or_else(|| now().checked_sub(UNSYNCED).ok());
            epoch = up.or(epoch);
        }
        let pause = match up {
            None => LOOK,
            Some(_) => match retell_once(&publisher, &exchange, younger, unsynced, &control).await {
                Ok(records) => {
                    if records > 0 {
                        info!(records, "wrote pauses and cancellations to the control log again");
                    }
                    unsynced = None;
                    LOOK
                }
                Err(error) => {
                    debug!(%error, "cannot write to the control log again");
                    if unsynced.is_some() { UNSEEN } else { LOOK_AGAIN }
                }
            },
        };
        tokio::select! {
            () = control.0.quiet.cancelled() => return,
            changed = state.changed() => if changed.is_err() { return },
            // The sender lives in `control`.
            _ = logs.changed() => {}
            () = sleep(pause) => {}
        }
    }
}

/// How many records were written.
async fn retell_once(
    publisher: &Publisher,
    exchange: &str,
    younger: Duration,
    unsynced: Option<Timestamp>,
    control: &Control,
) -> Result<usize, PublishError> {
    let now = now();
    let fading = now.checked_sub(FADING).unwrap_or(Timestamp::MIN).as_second();
    let unsynced = unsynced.map_or(i64::MAX, Timestamp::as_second);
    let due = |told| told < fading || told >= unsynced;
    let (pauses, orders) = control.state().to_retell(due, now, younger);
    let cancels = orders.chunks(ORDERS_MAX).map(Written::cancel);
    let mut count = 0;
    for record in pauses.iter().map(Written::pause).chain(cancels) {
        write(publisher, exchange, record).await?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_word_is_said_on_each_connection_to_each_log_and_every_hour() {
        let told = Some(((1, 0), Instant::now()));
        assert_eq!(still(None, (1, 0), true), Duration::ZERO);
        assert_eq!(still(told, (2, 0), true), Duration::ZERO);
        assert_eq!(still(told, (1, 1), true), Duration::ZERO);
        assert_eq!(still(told, (1, 0), true), REPEAT);
        assert_eq!(still(told, (1, 0), false), UNSEEN, "sooner as long as it has not come back");
        tokio::time::advance(REPEAT).await;
        assert_eq!(still(told, (1, 0), true), Duration::ZERO);
    }
}
