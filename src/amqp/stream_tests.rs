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

#[tokio::test(start_paused = true)]
async fn a_skipped_record_is_a_gap() {
    let mut state = state(Some(7));
    for (round, from) in [(1, 7), (2, 7), (3, 7), (4, 9)] {
        assert_eq!(state.attach(round), Some(from));
        if round < 4 {
            assert_eq!(read(&mut state, round, [7]), [Seen::Again]);
        }
        state.ended();
    }
    assert_eq!(read(&mut state, 4, [9, 10]), [Seen::After(8), Seen::Next]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_skipped_after_some_attempts() {
    let mut attempt = Attempt::default();
    let mut fail = |next| {
        let from = attempt.begin(next);
        attempt.end();
        from
    };
    // Records 0 to 6 are read; 7 and 8 cannot be.
    assert_eq!(fail(None), None);
    let begun: Vec<_> = (0..6).map(|_| fail(Some(7))).collect();
    assert_eq!(begun, [7, 7, 7, 8, 9, 10].map(Some));
    // 10 could be read, and more: a connection lost at once later on counts anew.
    assert_eq!([fail(Some(20)), fail(Some(20))], [Some(20), Some(20)]);
    // At the very beginning of the log.
    let mut attempt = Attempt::default();
    let begun: Vec<_> = (0..5)
        .map(|_| {
            let from = attempt.begin(None);
            attempt.end();
            from
        })
        .collect();
    assert_eq!(begun, [None, None, None, Some(1), Some(2)]);
    // A connection that lived for a while was not ended by a record.
    let mut attempt = Attempt::default();
    for _ in 0..9 {
        assert_eq!(attempt.begin(Some(7)), Some(7));
        tokio::time::advance(AT_ONCE).await;
        attempt.end();
    }
}
