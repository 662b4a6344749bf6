//! What holds for any events, in any order, in any pieces.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::record::fold::tests::any_event;

/// What can be read of a job, but for where in the log it was.
fn show(store: &Store, id: JobId, now: i64) -> String {
    let Some(mut job) = store.job(id, at(now)).unwrap() else { return "none".into() };
    job.summary.position = Position::default();
    format!("{job:?}")
}

/// Events in batches of random lengths, in calls of random lengths.
fn apply_in_pieces(store: &Store, events: Vec<Event>, cuts: &[(usize, bool)]) {
    let mut cuts = cuts.iter().cycle();
    let (mut events, mut offset, mut pending) = (events.into_iter().peekable(), 0, Vec::new());
    while events.peek().is_some() {
        let (length, ends_call) = *cuts.next().unwrap();
        pending.push(batch(offset, events.by_ref().take(length)));
        offset += 1;
        if ends_call {
            store.apply(std::mem::take(&mut pending)).unwrap();
        }
    }
    store.apply(pending).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_record_depends_on_the_set_of_events_only(
        events in prop::collection::vec(any_event(), 1..14),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        cuts in prop::collection::vec((0..4_usize, any::<bool>()), 1..6),
    ) {
        let (one, other) = (Folder::new(), Folder::new());
        let (one, other) = (one.open(), other.open());
        one.apply(vec![batch(0, events.clone())]).unwrap();
        let shuffled = order.iter().map(|index| index.get(&events)).chain(events.iter().rev());
        let cuts: Vec<_> = cuts.into_iter().chain([(1, true)]).collect();
        apply_in_pieces(&other, shuffled.cloned().collect(), &cuts);
        let job = events[0].job;
        for now in [0, 500, 100_000] {
            prop_assert_eq!(show(&one, job, now), show(&other, job, now));
            prop_assert_eq!(one.counts(None, at(now)).unwrap(), other.counts(None, at(now)).unwrap());
        }
        let told = |store: &Store| {
            let events = store.job_events(job).unwrap();
            let mut told: Vec<_> = events.iter().map(|stored| format!("{:?}", stored.event)).collect();
            told.sort();
            told
        };
        prop_assert_eq!(told(&one), told(&other));
        for run in 1..4 {
            let seen = |store: &Store| format!("{:?}", store.lookup(&[(job, run)]).unwrap());
            prop_assert_eq!(seen(&one), seen(&other));
        }
        // Seen once more, nothing is news.
        let again = one.apply(vec![batch(1, events)]).unwrap();
        prop_assert!(again.news.is_empty() && again.ended.is_empty());
    }

    #[test]
    fn lists_and_counts_agree_with_the_jobs(
        events in prop::collection::vec((0..24_u8, any_event()), 1..80),
        cuts in prop::collection::vec((1..6_usize, any::<bool>()), 1..6),
        filters in prop::collection::vec(any_filter(), 12),
        now in 0..1500_i64,
        promoted in prop::option::of(0..1500_i64),
        limit in 1..7_usize,
    ) {
        let folder = Folder::new();
        let store = folder.open();
        let events = events.into_iter().map(|(n, mut event)| {
            event.data.created_at = Some(at(i64::from(n) * 10));
            of(n, event)
        });
        apply_in_pieces(&store, events.collect(), &cuts);
        if let Some(promoted) = promoted {
            store.promote(at(promoted.min(now)), 1000).unwrap();
        }
        let all = list(&store, &Filter::default(), 100, now);
        for filter in &filters {
            let expected: Vec<_> = all.iter().filter(|job| matches(filter, job)).map(|job| job.id).collect();
            let found = list(&store, filter, limit, now);
            prop_assert_eq!(ids(&found), expected, "{:?}", filter);
        }
        let mut counts = Counts::default();
        all.iter().for_each(|job| counts.by_status[job.status as usize] += 1);
        prop_assert_eq!(store.counts(None, at(now)).unwrap(), counts);
        for (queue, known) in store.queues(at(now)).unwrap() {
            let here: Vec<_> = all.iter().filter(|job| job.queue == queue).collect();
            prop_assert_eq!(known.counts.by_status.iter().sum::<u64>(), here.len() as u64);
            prop_assert_eq!(known.counts, store.counts(Some(&queue), at(now)).unwrap());
            let queued = here.iter().filter(|job| job.status == JobStatus::Queued).count();
            prop_assert_eq!(known.oldest_queued_at.is_some(), queued > 0);
            let dead = here.iter().filter(|job| job.status == JobStatus::Dead && !job.purged).count();
            let groups = store.groups(&queue).unwrap();
            prop_assert_eq!(groups.iter().map(|group| group.count).sum::<u64>(), dead as u64);
            for group in groups {
                let alike = here.iter().filter(|job| job.fingerprint.as_ref() == Some(&group.fingerprint));
                let mut times: Vec<_> = alike.filter(|job| !job.purged).map(|job| job.finished_at).collect();
                times.sort();
                prop_assert_eq!((group.first_at, group.last_at), (times[0], times[times.len() - 1]));
            }
        }
    }

    #[test]
    fn a_snapshot_tells_a_live_job_again(mut events in prop::collection::vec(any_event(), 1..10)) {
        // Of twins only one is kept, of progress only the last is told.
        let mut seen = std::collections::HashSet::new();
        events.retain(|event| {
            let is_progress = event.event_type == EventType::Progress;
            seen.insert(if is_progress { "progress".to_owned() } else { event.tag() })
        });
        let (one, other) = (Folder::new(), Folder::new());
        let (one, other) = (one.open(), other.open());
        one.apply(vec![batch(0, events)]).unwrap();
        for (job, told) in one.stale(Timestamp::MAX, 10).unwrap() {
            other.apply(vec![batch(0, told)]).unwrap();
            prop_assert_eq!(show(&one, job, 100), show(&other, job, 100));
        }
    }
}

/// Filters in which each member is there half of the time.
fn any_filter() -> impl Strategy<Value = Filter> {
    let word = |words: &'static [&'static str]| {
        prop::option::of(prop::sample::select(words).prop_map(str::to_owned))
    };
    let time = || prop::option::weighted(0.3, (0..250_i64).prop_map(|ms| at(ms).to_string()));
    (
        prop::collection::vec(prop::sample::select(JobStatus::ALL.as_slice()), 0..4),
        prop::option::weighted(0.3, prop::sample::select(["media", "mail", "none"].as_slice())),
        prop::option::weighted(0.3, prop::sample::select(["image.thumbnail", "none"].as_slice())),
        word(&["all", "t0", "t3", "none"]),
        word(&["TIME", "http_502 hap", "ppened", "e", "dd", "happens", "%", "\"'"]),
        time(),
        time(),
        any::<[bool; 2]>(),
        prop::bool::weighted(0.3),
    )
        .prop_map(|(status, queue, kind, tag, q, from, to, keep, narrow)| Filter {
            status,
            queue: queue.and_then(|name| QueueName::parse(name).ok()),
            queues: match keep {
                [true, true] => Some([media()].into()),
                [false, false] => None,
                [false, true] => Some(["mail", "none"].map(|name| QueueName::parse(name).unwrap()).into()),
                [true, false] => Some(BTreeSet::new()),
            }
            .filter(|_| narrow),
            kind: kind.and_then(|name| Kind::parse(name).ok()),
            tag: tag.filter(|_| keep[0]),
            q: q.filter(|_| keep[1]),
            from,
            to,
            fingerprint: None,
        })
}

/// What a filter means, said once more.
fn matches(filter: &Filter, job: &Summary) -> bool {
    let after = |text: &Option<String>, otherwise| {
        text.as_ref().map_or(otherwise, |text| job.created_at.unwrap() >= text.parse().unwrap())
    };
    (filter.status.is_empty() || filter.status.contains(&job.status))
        && filter.queue.as_ref().is_none_or(|queue| *queue == job.queue)
        && filter.queues.as_ref().is_none_or(|queues| queues.contains(&job.queue))
        && filter.kind.as_ref().is_none_or(|kind| job.kind.as_ref() == Some(kind))
        && filter.tag.as_ref().is_none_or(|tag| job.tags.contains(tag))
        && filter.q.as_ref().is_none_or(|q| {
            job.error.as_ref().is_some_and(|error| {
                let (code, message, q) = (&error.code, &error.message, q.to_lowercase());
                code.to_lowercase().contains(&q) || message.to_lowercase().contains(&q)
            })
        })
        && after(&filter.from, true)
        && !after(&filter.to, false)
}

proptest! {
    #[test]
    fn copies_are_told_by_key_as_they_are_by_tag(one in any_event(), other in any_event()) {
        prop_assert_eq!(one.tag() == other.tag(), coding::key(&one) == coding::key(&other));
    }

    #[test]
    fn an_event_is_read_as_it_was_stored(event in any_event()) {
        let key = coding::key(&event);
        let body = coding::encode(&event, &key);
        let (read, had_args) = coding::decode(coding::Columns {
            job: event.job,
            queue: event.data.queue.clone(),
            kind: event.data.kind.clone(),
            what: key.what,
            run: key.run,
            step: key.step,
            time: event.time.as_millisecond(),
            body: &body,
        }).unwrap();
        prop_assert_eq!(format!("{read:?}"), format!("{:?}", event.public()));
        prop_assert_eq!(had_args, event.data.args.is_some());
    }
}
