//! Tests of what becomes of records that come from the log; `tests/it/control.rs` has those with a broker.

use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::*;

fn order(at: Timestamp) -> CancelOrder {
    CancelOrder { id: JobId::new(), run: 1, by: None, reason: None, at }
}

fn pause(queue: &str, paused: bool, second: i64) -> Message {
    let (queue, at) = (QueueName::parse(queue).unwrap(), Timestamp::from_second(second).unwrap());
    Written::pause(&PauseOrder { queue, paused, by: None, at }).message
}

#[tokio::test]
async fn an_order_is_known_before_it_is_told_and_told_once() {
    let control = Control::unread();
    let mut orders = control.orders();
    let (first, second) = (order(record::now()), order(record::now()));
    control.learn_orders(vec![first.clone()]);
    // It comes back from the log, with another one.
    control.apply(&Written::cancel(&[first.clone(), second.clone()]).message);
    assert_eq!(orders.recv().await, Ok(first.clone()));
    assert_eq!(orders.recv().await, Ok(second));
    assert_eq!(orders.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(control.cancelled(first.id, 1), Some(first.clone()));
    assert_eq!(control.cancelled(first.id, 2), None);
}

#[tokio::test]
async fn who_lags_behind_is_told_so_and_finds_all_orders_by_looking() {
    let control = Control::unread();
    let mut orders = control.orders();
    let given: Vec<CancelOrder> = (0..ORDERS_AHEAD + 500).map(|_| order(record::now())).collect();
    for some in given.chunks(record::ORDERS_MAX) {
        control.apply(&Written::cancel(some).message);
    }
    assert_eq!(orders.recv().await, Err(RecvError::Lagged(500)));
    assert!(given.iter().all(|order| control.cancelled(order.id, 1).is_some()));
    assert_eq!(orders.recv().await, Ok(given[500].clone()), "and goes on with what is left");
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let control = Control::unread();
    let paused = control.paused();
    control.apply(&pause("a", true, 1));
    for kind in ["hopline.kinds", "hopline.cancel", "hopline.pause", "hopline.later", ""] {
        for body in
            ["", "{", "null", r#"{"worker":1}"#, r#"{"orders":{}}"#, r#"{"queue":"a","paused":false}"#]
        {
            control.apply(&Message { kind: Some(kind.into()), body: body.into(), ..Message::default() });
        }
    }
    control.apply(&Message::default());
    assert_eq!(paused.borrow().len(), 1);
    control.apply(&pause("a", false, 2));
    assert!(paused.borrow().is_empty());
    assert!(!control.has_front());
    control.apply(&Written::front("web-1").message);
    assert!(control.has_front());
}

#[test]
fn a_watch_of_pauses_changes_only_with_them() {
    let control = Control::unread();
    let mut paused = control.paused();
    for (message, changes) in [
        (pause("a", true, 5), true),
        (pause("a", true, 5), false),
        (pause("a", false, 4), false),
        (pause("b", false, 4), false),
        (pause("a", false, 6), true),
    ] {
        paused.mark_unchanged();
        control.apply(&message);
        assert_eq!(paused.has_changed().unwrap(), changes, "{message:?}");
    }
}

#[test]
fn a_fast_clock_keeps_nothing_from_being_told_again() {
    let control = Control::unread();
    let far = Timestamp::from_second(4_000_000_000).unwrap();
    control.apply(&Written::cancel(&[order(record::now())]).stamped(far).message);
    control.apply(&Written::cancel(&[order(far)]).message);
    let now = Timestamp::now();
    let due = |told, _| told <= now.as_second();
    assert_eq!(control.state().to_retell(due, now, Duration::from_secs(86_400)).1.len(), 2);
}

#[test]
fn what_left_the_log_leaves_a_doubt_about_jobs_of_its_time() {
    let second = |second| Timestamp::from_second(second).unwrap();
    let doubted = |written: Option<Timestamp>, created_at: Timestamp| {
        let control = Control::unread();
        let front = Written::front("web-1");
        let first = written.map_or(front.clone(), |at| front.stamped(at)).message;
        control.miss_until(&first);
        control.is_blind(Some(created_at))
    };
    let now = record::now();
    let later = now.checked_add(jiff::SignedDuration::from_hours(1)).unwrap();
    assert!(doubted(Some(second(1000)), second(1000)) && !doubted(Some(second(1000)), second(2000)));
    assert!(doubted(None, now), "it does not say when it was written");
    let fast = second(4_000_000_000);
    assert!(
        doubted(Some(fast), now) && !doubted(Some(fast), later),
        "a clock that is fast doubts nothing to come"
    );
}

#[tokio::test]
async fn a_word_that_is_asked_for_is_one_that_is_not_under_way() {
    let control = Control::unread();
    let words = &control.0.words;
    assert!(!control.is_caught_up());
    let (first, id) = words.begin();
    let next = control.next_word();
    assert!(next > first);
    control.hear_word(Some(&id));
    assert!(control.is_caught_up() && !control.has_read(next));
    // The same for all who ask before it is begun.
    assert_eq!(control.next_word(), next);
    let (second, id) = words.begin();
    assert_eq!(second, next);
    for other in [None, Some("x-9"), Some(words.id.as_str()), Some("")] {
        control.hear_word(other);
        assert!(!control.has_read(next), "{other:?}");
    }
    control.hear_word(Some(&id));
    assert!(control.has_read(next));
}
