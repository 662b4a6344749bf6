use proptest::prelude::*;

use super::*;

#[test]
fn what_takes_long_is_left_behind_when_there_is_room_beside_it() {
    for (prefetch, has, here, before, due) in [
        // Nothing takes long.
        (10, 10, (10, 0), (0, 0), false),
        (10, 10, (0, 0), (7, 0), false),
        // One does, and others could come beside it.
        (10, 10, (1, 1), (0, 0), true),
        (10, 10, (9, 3), (0, 0), true),
        (10, 10, (10, 3), (0, 0), false),
        (10, 8, (6, 3), (4, 2), false),
        (1, 1, (1, 1), (0, 0), false),
        // The room that it took is there again, or not any more.
        (10, 8, (4, 0), (2, 2), false),
        (10, 8, (4, 0), (1, 1), true),
        (10, 10, (4, 0), (1, 1), true),
        (2, 1, (0, 0), (5, 5), false),
    ] {
        assert_eq!(is_due(prefetch, has, here, before), due, "{prefetch} {has} {here:?} {before:?}");
    }
}

#[test]
fn acks_are_joined_up_to_the_first_gap() {
    let mut ledger = Ledger::default();
    ledger.untold.extend([1, 2, 4, 5]);
    assert_eq!(ledger.contiguous(), Some(2));
    assert_eq!(ledger.contiguous(), None);
    assert_eq!(ledger.stragglers(), [4, 5]);
    ledger.untold.insert(3);
    assert_eq!(ledger.contiguous(), Some(3), "4 and 5 are known already");
    assert_eq!(ledger.done, 5);
}

#[test]
fn a_message_handed_back_is_never_acknowledged() {
    let mut ledger = Ledger::default();
    ledger.told.insert(1);
    assert_eq!(ledger.contiguous(), None);
    ledger.untold.insert(2);
    assert_eq!(ledger.contiguous(), Some(2), "1 is settled, so acknowledging up to 2 touches only 2");
}

proptest! {
    /// Whatever the order, each tag is told exactly once, and no `multiple` covers an unsettled one.
    #[test]
    fn every_tag_is_told_once(
        order in Just((1..=40_u64).collect::<Vec<_>>()).prop_shuffle(),
        handed_back in proptest::collection::btree_set(1..=40_u64, 0..10),
        straggle in proptest::collection::vec(any::<bool>(), 40),
    ) {
        let mut ledger = Ledger::default();
        let (mut settled, mut told) = (BTreeSet::new(), BTreeSet::new());
        for (tag, straggle) in order.into_iter().zip(straggle) {
            settled.insert(tag);
            if handed_back.contains(&tag) {
                ledger.told.insert(tag);
                prop_assert!(told.insert(tag));
            } else {
                ledger.untold.insert(tag);
            }
            if let Some(end) = ledger.contiguous() {
                for below in 1..=end {
                    prop_assert!(settled.contains(&below), "{} covers {}, which runs", end, below);
                    told.insert(below);
                }
            }
            if straggle {
                for tag in ledger.stragglers() {
                    prop_assert!(told.insert(tag), "{} told twice", tag);
                }
            }
        }
        prop_assert_eq!(told.len(), 40);
        prop_assert_eq!(ledger.done, 40);
    }
}
