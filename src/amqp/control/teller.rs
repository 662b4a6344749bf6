//! Writing to the control log: a process's own word, and what would leave the log although it still holds.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

#[cfg(feature = "worker")]
use super::Announced;
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
/// How often a process says all of its own on a connection that lasts: schemas are long, and what it said once holds as
/// long as it is in the log.
const REPEAT_WHOLE: Duration = Duration::from_secs(86_400);
/// How often it is looked at what is to be written again, and how soon again where that failed.
const LOOK: Duration = Duration::from_secs(3600);
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// What was written longer ago than this is written again: a third of the log's age of 60 days, so that nothing is
/// lost if no HTTP process runs for a month.
const FADING: Duration = Duration::from_secs(20 * 86_400);
/// Pauses in force are written again much sooner. There are few; the log's size may push one out within hours, and a
/// worker that starts then would work on a paused queue.
const PAUSES_FADING: Duration = LOOK;

/// What was written so long before a connection was seen to be lost may be lost with the broker's power: streams are
/// not fsynced, and a broker that is gone is noticed late.
const UNSYNCED: Duration = Duration::from_secs(40);

/// Writes `record` and waits for its confirm.
async fn write(publisher: &Publisher, exchange: &str, record: Written) -> Result<(), PublishError> {
    let Written { key, message } = record.stamped(now());
    let target = Target { exchange: exchange.to_owned(), key, mandatory: true };
    publisher.publish_patiently(target, message, Instant::now() + PATIENCE).await
}

/// A process's own word.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    /// All of it.
    whole: Written,
    /// Without what holds since it was said whole.
    brief: Written,
}

impl Hello {
    /// What a worker takes.
    #[cfg(feature = "worker")]
    pub(crate) fn kinds(worker: &str, kinds: &[Announced]) -> Self {
        let brief = Written::kinds(worker, &Announced::briefly(kinds));
        Self { whole: Written::kinds(worker, kinds), brief }
    }

    /// That there is an HTTP process.
    pub(crate) fn front(instance: &str) -> Self {
        let whole = Written::front(instance);
        Self { brief: whole.clone(), whole }
    }
}

/// Says `hello` at each connection, to each new log, when asked and every hour, until told to be quiet.
pub(super) async fn tell(publisher: Publisher, exchange: String, hello: Hello, control: Control) {
    let words = &control.0.words;
    let (mut state, mut logs) = (publisher.link().watch(), control.0.logs.subscribe());
    let mut wanted = words.wanted.subscribe();
    let (mut told, mut told_whole) = (None, None);
    loop {
        state.borrow_and_update();
        let log = *logs.borrow_and_update();
        let due = *wanted.borrow_and_update();
        let pause = match publisher.link().up() {
            Ok(up) => {
                let place = (up.epoch, log);
                let still = still(told, place, due, words.are_awaited());
                if still.is_zero() {
                    let (number, id) = words.begin();
                    let brief = is_told_whole(told_whole, place);
                    let mut word = if brief { &hello.brief } else { &hello.whole }.clone();
                    word.message.message_id = Some(id);
                    match write(&publisher, &exchange, word).await {
                        Ok(()) => {
                            told = Some((place, number, Instant::now()));
                            if !brief {
                                told_whole = Some((place, Instant::now()));
                            }
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
            // The senders live in `control`.
            _ = logs.changed() => {}
            _ = wanted.changed() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Which connection, and which log.
type Place = (u64, u64);

/// How long the last word still holds: said where, which and when. Zero: another one is due, `wanted` or a later one.
fn still(told: Option<(Place, u64, Instant)>, place: Place, wanted: u64, awaited: bool) -> Duration {
    let lasts = if awaited { UNSEEN } else { REPEAT };
    match told {
        Some((at, number, when)) if at == place && number >= wanted => lasts.saturating_sub(when.elapsed()),
        _ => Duration::ZERO,
    }
}

/// Whether all was said there, and not long ago.
fn is_told_whole(told: Option<(Place, Instant)>, place: Place) -> bool {
    told.is_some_and(|(at, when)| at == place && when.elapsed() < REPEAT_WHOLE)
}

/// Writes again what still holds and is about to leave the log; to a new log all of it; and after a connection was lost what was written shortly before, in case the broker lost it with its power. Idempotent: what is
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

/// Whether what was last written at `told` is to be written again: it is about to leave the log, or may never have been
/// synced.
fn is_due(told: i64, is_pause: bool, now: Timestamp, unsynced: Option<Timestamp>) -> bool {
    let lasts = if is_pause { PAUSES_FADING } else { FADING };
    let fading = now.checked_sub(lasts).unwrap_or(Timestamp::MIN).as_second();
    told < fading || unsynced.is_some_and(|since| told >= since.as_second())
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
    let due = |told, is_pause| is_due(told, is_pause, now, unsynced);
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

    #[test]
    fn pauses_are_written_again_every_hour_and_orders_before_they_fade() {
        let (hour, day) = (3600, 86_400);
        let now = Timestamp::from_second(100 * day).unwrap();
        let lost = now.checked_sub(Duration::from_secs(60)).unwrap();
        // written so many seconds ago, a pause in force, connection lost -> due
        for (ago, is_pause, unsynced, due) in [
            (hour - 1, true, None, false),
            (hour + 1, true, None, true),
            (hour + 1, false, None, false),
            (20 * day - 1, false, None, false),
            (20 * day + 1, false, None, true),
            (30, false, Some(lost), true),
            (60, true, Some(lost), true),
            (61, true, Some(lost), false),
        ] {
            let told = now.as_second() - ago;
            assert_eq!(is_due(told, is_pause, now, unsynced), due, "{ago} {is_pause} {unsynced:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_word_is_said_on_each_connection_to_each_log_when_asked_and_every_hour() {
        let told = Some(((1, 0), 3, Instant::now()));
        assert_eq!(still(None, (1, 0), 1, true), Duration::ZERO);
        assert_eq!(still(told, (2, 0), 3, false), Duration::ZERO);
        assert_eq!(still(told, (1, 1), 3, false), Duration::ZERO);
        assert_eq!(still(told, (1, 0), 4, true), Duration::ZERO);
        assert_eq!(still(told, (1, 0), 3, false), REPEAT);
        assert_eq!(still(told, (1, 0), 3, true), UNSEEN, "sooner as long as it has not come back");
        tokio::time::advance(REPEAT).await;
        assert_eq!(still(told, (1, 0), 3, false), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn schemas_are_said_on_each_connection_to_each_log_and_every_day() {
        let told = Some(((1, 0), Instant::now()));
        assert!(!is_told_whole(None, (1, 0)));
        assert!(!is_told_whole(told, (2, 0)) && !is_told_whole(told, (1, 1)));
        tokio::time::advance(REPEAT_WHOLE - Duration::from_secs(1)).await;
        assert!(is_told_whole(told, (1, 0)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!is_told_whole(told, (1, 0)));
    }
}
