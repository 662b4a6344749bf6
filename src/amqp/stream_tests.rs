use super::*;

fn state(at: Option<u64>) -> State {
    State { place: at.map(place), ..State::default() }
}

fn place(offset: u64) -> Place {
    Place { offset, mark: format!("m{offset}") }
}

/// What a reader makes of deliveries of records that are what they were.
fn read(state: &mut State, round: u64, offsets: impl IntoIterator<Item = u64>) -> Vec<Seen> {
    offsets.into_iter().map(|offset| state.see(round, offset, || format!("m{offset}"))).collect()
}

#[test]
fn reading_goes_on_where_it_was_left() {
    let mut state = state(None);
    assert_eq!(state.attach(1), None);
    assert_eq!(read(&mut state, 1, 0..3), [Seen::Next, Seen::Next, Seen::Next]);
    assert_eq!(state.attach(2), Some(2));
    assert_eq!(state.silent(), None, "it does not listen yet");
    state.started();
    assert_eq!(state.silent(), Some(2), "nothing has come, and something should have");
    // What the first consumer had delivered, but was not looked at, is passed over: it comes again.
    assert_eq!(read(&mut state, 1, [3]), [Seen::Again]);
    assert_eq!(read(&mut state, 2, [2, 3, 4]), [Seen::Again, Seen::Next, Seen::Next]);
    assert_eq!(state.silent(), None);
}

#[test]
fn another_record_at_the_place_is_another_log() {
    let mut there = state(Some(7));
    assert_eq!(there.attach(1), Some(7));
    assert_eq!(there.see(1, 7, || "other".to_owned()), Seen::Other);
    let mut short = state(Some(7));
    short.attach(1);
    assert_eq!(read(&mut short, 1, [3]), [Seen::Other]);
}

#[test]
fn what_retention_removed_is_a_gap() {
    let mut behind = state(Some(7));
    behind.attach(1);
    assert_eq!(read(&mut behind, 1, [20, 21]), [Seen::After(8), Seen::Next]);
    // The place itself is gone, and nothing else.
    let mut just = state(Some(7));
    just.attach(1);
    assert_eq!(read(&mut just, 1, [8]), [Seen::Next]);
    // Under the reader's hands. A few that are missing are the broker's own.
    assert_eq!(read(&mut behind, 1, [23, 500]), [Seen::Next, Seen::After(24)]);
    let mut fresh = state(None);
    fresh.attach(1);
    assert_eq!(read(&mut fresh, 1, [5, 6]), [Seen::After(0), Seen::Next]);
}

/// The connection ended with something that cannot be parsed, behind so many deliveries.
fn unparsable(delivered: u64) -> Ending {
    Ending { unparsable: true, delivered }
}

#[test]
fn a_skipped_record_is_a_gap() {
    let mut state = state(Some(7));
    for (round, from) in [(1, 7), (2, 7), (3, 7), (4, 9)] {
        assert_eq!(state.attach(round), Some(from));
        state.started();
        if round < 4 {
            assert_eq!(read(&mut state, round, [7]), [Seen::Again]);
            state.ended(unparsable(1));
        }
    }
    assert_eq!(read(&mut state, 4, [9, 10]), [Seen::After(8), Seen::Next]);
}

#[test]
fn what_cannot_be_read_is_skipped_after_some_attempts() {
    let mut attempt = Attempt::default();
    let mut fail = |next| {
        let from = attempt.begin(next);
        attempt.end(Last::Stuck);
        from
    };
    // Records 0 to 6 are read; 7 and 8 cannot be.
    assert_eq!(fail(None), None);
    let begun: Vec<_> = (0..6).map(|_| fail(Some(7))).collect();
    assert_eq!(begun, [7, 7, 7, 8, 9, 10].map(Some));
    // 10 could be read, and more: the next one counts anew.
    assert_eq!([fail(Some(20)), fail(Some(20))], [Some(20), Some(20)]);
    // At the very beginning of the log.
    let mut attempt = Attempt::default();
    let begun: Vec<_> = (0..5)
        .map(|_| {
            let from = attempt.begin(None);
            attempt.end(Last::Stuck);
            from
        })
        .collect();
    assert_eq!(begun, [None, None, None, Some(1), Some(2)]);
}

#[test]
fn nothing_is_skipped_because_the_broker_refuses_or_the_connection_is_cut() {
    let mut state = state(Some(7));
    for round in 1..40 {
        assert_eq!(state.attach(round), Some(7), "{round}");
        // Refused at once, or cut: before it read anything, behind the place, or behind what waits to be looked at.
        if round % 4 > 0 {
            state.started();
        }
        if round % 4 > 1 {
            assert_eq!(read(&mut state, round, [7]), [Seen::Again]);
        }
        state.ended(Ending { unparsable: false, delivered: round % 4 });
        // No connection at all.
        state.ended(Ending::default());
    }
    assert_eq!(state.attach(40), Some(7));
    assert_eq!(read(&mut state, 40, [7, 8]), [Seen::Again, Seen::Next]);
}

#[test]
fn a_record_far_ahead_of_a_slow_reader_costs_none_before_it() {
    let mut state = state(Some(7));
    for round in 1..10 {
        assert_eq!(state.attach(round), Some(7), "{round}");
        state.started();
        // 8 and 9 were delivered and not looked at.
        state.ended(unparsable(3));
    }
    assert_eq!(state.attach(10), Some(7));
    assert_eq!(read(&mut state, 10, [7, 8, 9]), [Seen::Again, Seen::Next, Seen::Next]);
}

#[test]
fn a_refusal_forgets_no_failure() {
    let mut state = state(Some(7));
    for round in 1..4 {
        assert_eq!(state.attach(round), Some(7));
        state.started();
        state.ended(unparsable(1));
        assert_eq!(state.attach(round), Some(if round < 3 { 7 } else { 9 }));
        state.ended(Ending::default());
    }
    assert_eq!(state.attach(4), Some(9), "8 stays skipped");
    // A connection that could read begins at the place again: the log may be another one, and shorter.
    state.started();
    state.ended(Ending::default());
    assert_eq!(state.attach(5), Some(7));
}
