//! Tests of what follows from the records of the control log.

use proptest::prelude::*;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn queue(name: &str) -> QueueName {
    QueueName::parse(name).unwrap()
}

fn pause(name: &str, paused: bool, by: &str, second: i64) -> PauseOrder {
    PauseOrder { queue: queue(name), paused, by: Some(by.to_owned()), at: at(second) }
}

fn order(id: JobId, run: u32, by: &str, second: i64) -> CancelOrder {
    CancelOrder { id, run, by: Some(by.to_owned()), reason: None, at: at(second) }
}

#[test]
fn a_pause_holds_until_a_later_word() {
    let mut state = State::default();
    assert!(state.learn_pause(pause("a", true, "ops", 10), 10));
    assert!(!state.learn_pause(pause("a", false, "ops", 9), 11), "an older word");
    assert_eq!(state.paused().get("a").map(|pause| pause.at), Some(at(10)));
    assert!(!state.learn_pause(pause("a", true, "ops", 10), 12), "told again");
    assert!(state.learn_pause(pause("a", false, "ops", 11), 13));
    assert!(state.paused().is_empty());
    assert!(!state.learn_pause(pause("b", false, "ops", 1), 1), "was not paused before either");
}

#[test]
fn the_next_word_about_a_queue_is_later_whatever_the_clock_says() {
    let mut state = State::default();
    assert_eq!(state.pause_time(&queue("a"), at(5)), at(5));
    state.learn_pause(pause("a", true, "a clock that is fast", 1000), 5);
    let next = state.pause_time(&queue("a"), at(6));
    assert!(next > at(1000));
    assert!(state.learn_pause(PauseOrder { at: next, ..pause("a", false, "ops", 0) }, 6));
    assert!(state.paused().is_empty());
}

#[test]
fn too_many_pauses_forget_those_that_are_over_first() {
    let mut state = State::default();
    state.learn_pause(pause("over", false, "ops", 99), 1);
    for n in 0..PAUSES_MAX - 1 {
        state.learn_pause(pause(&format!("q{n}"), true, "ops", 100 + i64::try_from(n).unwrap()), 1);
    }
    state.learn_pause(pause("x", true, "ops", 1_000_000), 1);
    assert_eq!(state.paused().len(), PAUSES_MAX);
    state.learn_pause(pause("y", true, "ops", 1_000_001), 1);
    assert_eq!(state.paused().len(), PAUSES_MAX);
    assert!(!state.paused().contains_key("q0"), "then the oldest");
}

#[test]
fn orders_name_a_run() {
    let mut state = State::default();
    let id = JobId::new();
    assert!(state.learn_order(&order(id, 1, "ops", 5), 5));
    assert!(!state.learn_order(&order(id, 1, "ops", 5), 6), "told again");
    assert!(!state.learn_order(&order(id, 1, "late", 9), 9));
    assert_eq!(state.order(id, 1), Some(order(id, 1, "ops", 5)));
    assert_eq!(state.order(id, 2), None);
    assert!(!state.learn_order(&order(id, 1, "first", 3), 9));
    assert_eq!(state.order(id, 1), Some(order(id, 1, "first", 3)), "who asked first");
}

#[test]
fn the_oldest_orders_are_forgotten_first_and_jobs_of_their_time_are_doubted() {
    let mut state = State::with_orders(3);
    let ids: Vec<JobId> = (0..5).map(|_| JobId::new()).collect();
    for (second, id) in (10..).zip(&ids[..3]) {
        assert!(state.learn_order(&order(*id, 1, "ops", second), 1));
    }
    assert!(!state.is_blind(Some(at(0))) && !state.is_blind(None), "all that was ordered is known");
    assert!(state.learn_order(&order(ids[3], 1, "ops", 9), 1), "what runs is told even so");
    assert_eq!(state.blind_before, Some(at(9)));
    assert!(state.learn_order(&order(ids[4], 1, "ops", 11), 1));
    assert_eq!(state.blind_before, Some(at(10)));
    assert!(!state.learn_order(&order(ids[4], 1, "ops", 11), 2));
    let kept: Vec<bool> = ids.iter().map(|id| state.order(*id, 1).is_some()).collect();
    assert_eq!(kept, [false, true, true, false, true]);
    assert_eq!(state.orders.by_age.len(), 3);
    assert!(ids.iter().all(|id| state.order(*id, 1).is_some() || state.is_blind(Some(at(9)))));
}

#[test]
fn who_may_be_cancelled_without_our_knowing() {
    let blind = |missed: &[i64]| {
        let mut state = State::default();
        missed.iter().for_each(|second| state.miss_orders(at(*second)));
        state
    };
    // orders missed until, created at -> doubted
    for (missed, created_at, expected) in [
        (&[][..], None, false),
        (&[], Some(0), false),
        (&[1000], None, true),
        (&[1000], Some(1000), true),
        (&[1000], Some(1060), true),
        (&[1000], Some(1061), false),
        (&[1000, 10], Some(1000), true),
        (&[10, 1000], Some(1000), true),
    ] {
        assert_eq!(blind(missed).is_blind(created_at.map(at)), expected, "{missed:?} {created_at:?}");
    }
    let mut end = State::default();
    end.miss_orders(Timestamp::MAX);
    assert!(end.is_blind(Some(Timestamp::MAX)));
}

#[test]
fn texts_of_a_record_are_kept_once() {
    let mut orders = Orders::new(10);
    let ids = [JobId::new(), JobId::new()];
    for id in ids {
        orders.insert(&order(id, 1, "ops", 1), 1);
    }
    let [a, b] = ids.map(|id| orders.known[&(id, 1)].by.clone().unwrap());
    assert!(Arc::ptr_eq(&a, &b));
}

#[test]
fn what_fades_is_told_again_as_it_was() {
    let mut state = State::default();
    let (young, old, fresh) = (JobId::new(), JobId::new(), JobId::new());
    let day = 86_400;
    let now = at(100 * day);
    state.learn_order(&order(young, 1, "ops", 79 * day), 79 * day);
    state.learn_order(&order(old, 1, "ops", 60 * day), 60 * day);
    // Old, but someone told it again.
    state.learn_order(&order(fresh, 1, "ops", 75 * day), 75 * day);
    state.learn_order(&order(fresh, 1, "ops", 75 * day), 99 * day);
    state.learn_pause(pause("a", true, "ops", day), 50 * day);
    state.learn_pause(pause("b", false, "ops", day), 50 * day);
    state.learn_pause(pause("c", true, "ops", day), 95 * day);
    let month = Duration::from_secs(30 * 86_400);
    let (pauses, orders) = state.to_retell(|told, _| told < 80 * day, now, month);
    assert_eq!(pauses, [pause("a", true, "ops", day), pause("b", false, "ops", day)]);
    // Those in force may be due sooner.
    let sooner = |told, in_force| told < if in_force { 99 * day } else { 40 * day };
    let (pauses, none) = state.to_retell(sooner, now, month);
    assert_eq!(pauses, [pause("a", true, "ops", day), pause("c", true, "ops", day)]);
    assert!(none.is_empty());
    assert_eq!(orders, [order(young, 1, "ops", 79 * day)]);
}

proptest! {
    /// Whatever the order, and however often each is read, the same is known.
    #[test]
    fn pauses_and_orders_depend_on_the_set_of_records(
        mut records in proptest::collection::vec((0..3_u8, any::<bool>(), 0..4_u8, 0..4_i64), 1..20),
        seed in any::<u64>(),
        repeats in proptest::collection::vec(0..20_usize, 0..10),
    ) {
        let ids: Vec<JobId> =
            (0..3).map(|n| format!("00000000-0000-7000-8000-00000000000{n}").parse().unwrap()).collect();
        let fold = |records: &[(u8, bool, u8, i64)]| {
            let mut state = State::default();
            for (what, paused, by, second) in records {
                let by = by.to_string();
                state.learn_pause(pause(&format!("q{what}"), *paused, &by, *second), *second);
                state.learn_order(&order(ids[usize::from(*what)], 1, &by, *second), *second);
            }
            let orders: Vec<_> = ids.iter().map(|id| state.order(*id, 1)).collect();
            (state.paused(), orders)
        };
        let once = fold(&records);
        let more: Vec<_> = repeats.iter().map(|index| records[index % records.len()]).collect();
        records.extend(more);
        let turn = usize::try_from(seed % 1000).unwrap() % records.len();
        records.rotate_left(turn);
        records.reverse();
        prop_assert_eq!(fold(&records), once);
    }
}
