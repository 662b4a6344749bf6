//! Events made by number, and what they fold to.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{event::Data, job::Envelope, record::model::ATTEMPTS_MAX};

/// A time in ms, counted from a day in 2023.
pub(in crate::record) fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(1_700_000_000_000 + ms).unwrap()
}

const ID: JobId = JobId::from_bytes([7; 16]);

pub(in crate::record) fn event(what: EventType, run: u32, step: u32, ms: i64) -> Event {
    let (kind, queue) = (Kind::parse("image.thumbnail").unwrap(), QueueName::parse("media").unwrap());
    let mut envelope = Envelope::new(kind, queue, Bytes::from_static(b"{}"));
    (envelope.id, envelope.run, envelope.step, envelope.attempt) = (ID, run, step, step + 1);
    envelope.created_at = Some(at(0));
    Event::of(what, &envelope, "test", at(ms))
}

pub(in crate::record) fn with(
    what: EventType,
    run: u32,
    step: u32,
    ms: i64,
    change: impl FnOnce(&mut Data),
) -> Event {
    let mut event = event(what, run, step, ms);
    change(&mut event.data);
    event
}

fn error(code: &str) -> Option<EventError> {
    Some(EventError { code: code.into(), message: format!("{code} happened") })
}

fn fold<'a>(events: impl IntoIterator<Item = &'a Event>) -> Row {
    let mut row = Row::default();
    for event in events {
        row.merge(event);
    }
    row
}

fn summary(events: &[Event], now: i64) -> Summary {
    fold(events).summary(ID, Position::default(), at(now)).unwrap()
}

/// One event out of a small pool, so that copies, twins and contradictions are frequent.
pub(in crate::record) fn any_event() -> impl Strategy<Value = Event> {
    let what = (0..EventType::ALL.len()).prop_map(|n| EventType::ALL[n]);
    (what, 1..4_u32, 0..4_u32, 0..4_u32, 0..6_u32, any::<[bool; 8]>()).prop_map(
        |(what, run, step, variant, n, flags)| {
            with(what, run, step, i64::from(step * 100 + variant * 10), |data| {
                let text = |word: &str| Some(format!("{word}-{variant}"));
                let raw = |text: String| RawValue::from_string(text).ok();
                data.attempt = step + 1 - u32::from(flags[0] && step > 0);
                data.queue = QueueName::parse(["media", "mail"][usize::from(variant == 3)]).ok();
                data.kind = data.kind.take().filter(|_| variant != 2);
                data.tags = if flags[1] { vec![format!("t{variant}"), "all".into()] } else { Vec::new() };
                data.max_attempts = flags[2].then_some(variant);
                data.expires_at = flags[3].then(|| at(i64::from(n) * 1000));
                data.created_at = flags[4].then(|| at(i64::from(n)));
                let ended = what.is_final() || matches!(what, EventType::Retrying | EventType::Scheduled);
                if matches!(what, EventType::Submitted | EventType::Retrying | EventType::Scheduled)
                    && flags[5]
                {
                    data.run_at = Some(at(i64::from(n) * 200));
                }
                if what == EventType::Submitted || (what.is_final() && flags[6]) {
                    data.request = text("r").filter(|_| flags[7]);
                    data.trace_id = text("trace").filter(|_| flags[6]);
                    data.args = raw(format!("{{\"args\":{variant}}}")).filter(|_| n > 0);
                    data.args_omitted = n == 0;
                }
                if what == EventType::Started || what == EventType::Progress || (ended && flags[7]) {
                    data.worker = text("w");
                    data.started_at = Some(at(i64::from(n)));
                }
                if ended && flags[7] {
                    data.finished_at = Some(at(i64::from(n) + 50));
                    data.outcome = Some(match what {
                        EventType::Succeeded => AttemptOutcome::Succeeded,
                        EventType::Scheduled => AttemptOutcome::Snoozed,
                        _ => AttemptOutcome::Failed,
                    });
                }
                if ended && what != EventType::Succeeded {
                    data.error = error(["http_502", "timeout", "refused", "odd"][variant as usize]);
                    data.reason = text("because");
                }
                if what == EventType::Succeeded {
                    data.output = raw(format!("[{variant}]")).filter(|_| n > 0);
                    data.output_omitted = n == 0;
                }
                if matches!(what, EventType::CancelRequested | EventType::Cancelled | EventType::Purged) {
                    data.by = text("someone");
                    data.reason = text("because");
                }
                if what == EventType::Progress {
                    data.progress = Some(Progress { percent: 10, message: format!("{variant}"), n });
                }
            })
        },
    )
}

proptest! {
    #[test]
    fn the_order_of_events_does_not_matter(
        events in prop::collection::vec(any_event(), 1..14),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        now in 0..2000_i64,
    ) {
        let straight = fold(&events);
        // Any events first, some of them several times, then all of them backwards.
        let shuffled = order.iter().map(|index| index.get(&events)).chain(events.iter().rev());
        let other = fold(shuffled);
        prop_assert_eq!(&straight, &other);
        let show = |row: &Row| format!("{:?} {:?}", row.summary(ID, Position::default(), at(now)), row.progress());
        prop_assert_eq!(show(&straight), show(&other));
        // And it survives being stored.
        let stored: Row = serde_json::from_str(&serde_json::to_string(&straight).unwrap()).unwrap();
        prop_assert_eq!(&straight, &stored);
        prop_assert_eq!(fold(&events).fingerprint(), stored.fingerprint());
    }
}

#[test]
fn a_status_follows_from_what_happened_last() {
    use EventType::{
        Cancelled, Dead, DeliveryLost, Expired, Progress, Retrying, Scheduled, Started, Submitted, Succeeded,
    };
    let later = |what, step| {
        with(what, 1, step, 10, |data| {
            (data.run_at, data.outcome) = (Some(at(500)), Some(AttemptOutcome::Failed));
        })
    };
    let submitted = || event(Submitted, 1, 0, 0);
    for (name, events, status, attempt, step) in [
        ("waits", vec![submitted()], JobStatus::Queued, 0, 0),
        ("is delayed", vec![later(Submitted, 0)], JobStatus::Scheduled, 0, 0),
        ("runs", vec![submitted(), event(Started, 1, 0, 5)], JobStatus::Running, 1, 0),
        ("failed once", vec![submitted(), later(Retrying, 0)], JobStatus::Retrying, 1, 1),
        (
            "snoozed",
            vec![submitted(), event(Started, 1, 0, 5), later(Scheduled, 0)],
            JobStatus::Scheduled,
            0,
            1,
        ),
        ("failed, and waits at once", vec![event(Retrying, 1, 0, 5)], JobStatus::Queued, 1, 1),
        ("runs again", vec![later(Retrying, 0), event(Started, 1, 1, 9)], JobStatus::Running, 2, 1),
        ("succeeded", vec![later(Succeeded, 0), event(Started, 1, 3, 5)], JobStatus::Succeeded, 1, 3),
        ("two ends", vec![event(Dead, 1, 2, 9), later(Succeeded, 0)], JobStatus::Succeeded, 1, 2),
        ("cancelled while it waited", vec![event(Cancelled, 1, 1, 9)], JobStatus::Cancelled, 1, 1),
        ("expired before it ran", vec![submitted(), event(Expired, 1, 0, 9)], JobStatus::Expired, 0, 0),
        ("lost", vec![submitted(), event(DeliveryLost, 1, 0, 9)], JobStatus::Dead, 0, 0),
        (
            "lost, it seemed",
            vec![event(DeliveryLost, 1, 0, 9), later(Succeeded, 0)],
            JobStatus::Succeeded,
            1,
            0,
        ),
        (
            "lost while it ran",
            vec![event(Started, 1, 0, 5), event(DeliveryLost, 1, 0, 9)],
            JobStatus::Dead,
            1,
            0,
        ),
        ("replayed", vec![later(Dead, 0), event(Submitted, 2, 0, 20)], JobStatus::Queued, 0, 0),
        ("an old run ends late", vec![event(Submitted, 2, 0, 20), later(Dead, 5)], JobStatus::Queued, 0, 0),
        (
            "progress moves nothing",
            vec![submitted(), with(Progress, 1, 0, 9, |data| data.progress = None)],
            JobStatus::Queued,
            0,
            0,
        ),
    ] {
        let job = summary(&events, 100);
        assert_eq!((job.status, job.attempt, job.step), (status, attempt, step), "{name}");
        assert_eq!(job.finished_at.is_some(), status.is_final(), "{name}");
    }
    let job = summary(&[later(Retrying, 0)], 500);
    assert_eq!((job.status, job.run_at), (JobStatus::Queued, Some(at(500))), "its time has come");
    assert_eq!(summary(&[event(DeliveryLost, 1, 0, 9)], 0).reason.as_deref(), Some("lost"));
}

#[test]
fn a_new_run_forgets_what_the_old_one_said() {
    let first = [
        with(EventType::Submitted, 1, 0, 0, |data| {
            data.expires_at = Some(at(300));
            data.request = Some("digest".into());
            data.tags = vec!["old".into()];
        }),
        with(EventType::CancelRequested, 1, 0, 5, |data| data.by = Some("ann".into())),
        with(EventType::Dead, 1, 0, 9, |data| {
            (data.error, data.reason) = (error("fatal"), Some("fatal".into()));
            (data.worker, data.started_at) = (Some("w".into()), Some(at(7)));
        }),
        event(EventType::Purged, 1, 0, 11),
    ];
    let job = summary(&first, 20);
    assert!(job.purged && job.fingerprint.is_some() && job.cancel.is_some() && job.worker.is_some());
    let second = with(EventType::Submitted, 2, 0, 50, |data| data.tags = vec!["new".into()]);
    let job = summary(&[first.to_vec(), vec![second]].concat(), 60);
    assert_eq!((job.run, job.status, job.purged), (2, JobStatus::Queued, false));
    assert_eq!((job.expires_at, job.error, job.reason, job.worker), (None, None, None, None));
    assert!(job.cancel.is_none() && job.fingerprint.is_none() && job.started_at.is_none());
    assert_eq!((job.tags, job.request.as_deref()), (vec!["new".to_owned()], Some("digest")));
}

#[test]
fn the_first_request_to_cancel_counts() {
    let asked = |ms, by: &str| with(EventType::CancelRequested, 1, 0, ms, |data| data.by = Some(by.into()));
    let job = summary(&[event(EventType::Submitted, 1, 0, 0), asked(9, "ann"), asked(5, "bob")], 20);
    let cancel = job.cancel.unwrap();
    assert_eq!((cancel.at, cancel.by.as_deref(), job.by), (at(5), Some("bob"), None));
}

#[test]
fn a_job_of_which_only_side_notes_are_known_is_not_shown() {
    let row = fold(&[event(EventType::CancelRequested, 1, 0, 5), event(EventType::Purged, 1, 0, 6)]);
    assert!(row.summary(ID, Position::default(), at(9)).is_none());
    assert_eq!((row.run(), row.state()), (0, None));
    assert!(row.cancel(1).is_some());
}

#[test]
fn args_are_those_of_the_newest_run_that_has_any() {
    let args = |run, text: &str| {
        with(EventType::Submitted, run, 0, 0, |data| data.args = RawValue::from_string(text.into()).ok())
    };
    let mut row = Row::default();
    assert!(row.merge(&args(2, "[2]")).args, "the first that came");
    assert!(!row.merge(&args(1, "[1]")).args, "an older run's");
    assert!(!row.merge(&args(2, "[2]")).args, "a copy");
    assert!(!row.merge(&args(2, "[2]").public()).args, "a copy without them");
    assert!(row.args().unwrap().kept);
    assert!(row.merge(&with(EventType::Submitted, 3, 0, 0, |data| data.args_omitted = true)).args);
    assert!(!row.args().unwrap().kept, "left out, and the old ones are wrong");
}

#[test]
fn attempts_are_made_of_their_starts_and_ends() {
    let started = |step, worker: &str, ms| {
        with(EventType::Started, 1, step, ms, |data| {
            (data.worker, data.started_at) = (Some(worker.into()), Some(at(ms)));
        })
    };
    let ended = |what, step, worker: &str, ms, outcome| {
        with(what, 1, step, ms, |data| {
            (data.worker, data.started_at) = (Some(worker.into()), Some(at(ms - 10)));
            (data.outcome, data.finished_at) = (Some(outcome), Some(at(ms)));
            data.error = error("odd").filter(|_| outcome == AttemptOutcome::Failed);
        })
    };
    let events = [
        event(EventType::Submitted, 1, 0, 0),
        ended(EventType::Retrying, 0, "a", 20, AttemptOutcome::Failed),
        started(1, "a", 30),
        started(1, "b", 90),
        ended(EventType::Succeeded, 1, "b", 100, AttemptOutcome::Succeeded),
        event(EventType::Scheduled, 2, 0, 200),
        event(EventType::Cancelled, 2, 1, 300),
    ];
    let attempts = attempts(&events);
    let seen: Vec<_> = attempts
        .iter()
        .map(|made| (made.attempt, made.worker.as_deref().unwrap(), made.outcome, made.finished_at))
        .collect();
    assert_eq!(
        seen,
        [
            (1, "a", Some(AttemptOutcome::Failed), Some(at(20))),
            (2, "a", None, None),
            (2, "b", Some(AttemptOutcome::Succeeded), Some(at(100))),
        ],
        "the step that two workers started shows both; waiting makes no attempt"
    );
    assert!(attempts[0].error.is_some() && attempts[0].started_at == Some(at(10)));
    let many = (0..1200).map(|step| started(step, "a", i64::from(step))).collect::<Vec<_>>();
    let newest = super::attempts(&many);
    assert_eq!((newest.len(), newest[0].attempt, newest[999].attempt), (ATTEMPTS_MAX, 201, 1200));
}
