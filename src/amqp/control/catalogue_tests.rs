//! Tests of what is known of kinds, and of which schemas hold.

use std::time::Duration;

use super::*;

const NOW: i64 = 1_000_000;

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn kind() -> Kind {
    Kind::parse("k").unwrap()
}

fn announced(schema: &str) -> Announced {
    let plain = Announced::new(kind(), QueueName::parse("a").unwrap());
    if schema.is_empty() { plain } else { plain.with_schemas(Schemas::none().args_of(schema)) }
}

fn catalogue() -> Catalogue {
    Catalogue { with_schemas: true, ..Catalogue::default() }
}

/// As if all were heard at once: `said` are workers, what they say, and how many seconds ago that was written.
fn heard(said: &[(&str, &str, i64)]) -> Catalogue {
    let (mut catalogue, now) = (catalogue(), (second(NOW), Instant::now()));
    for (worker, schema, ago) in said {
        catalogue.learn(worker, vec![announced(schema)], Some(second(NOW - ago)), now);
    }
    catalogue
}

/// The schemas that hold, each with its workers, where `gone` are known to be gone.
fn holding(catalogue: &Catalogue, gone: &[&str]) -> Vec<String> {
    let versions = catalogue.versions(&kind(), second(NOW), |worker, _| gone.contains(&worker));
    let told = |version: &Version| {
        let schema = version.schemas.args.as_ref().map_or("any", Schema::as_str);
        format!("{schema}: {}", version.workers.join(" "))
    };
    versions.iter().map(told).collect()
}

#[test]
fn jobs_go_where_the_newest_announcement_says() {
    let mut catalogue = catalogue();
    let say = |catalogue: &mut Catalogue, worker: &str, queue: &str, private, ago| {
        let announced = Announced { private, ..Announced::new(kind(), QueueName::parse(queue).unwrap()) };
        catalogue.learn(worker, vec![announced], Some(second(NOW - ago)), (second(NOW), Instant::now()));
    };
    assert_eq!(catalogue.route(&kind()), None);
    say(&mut catalogue, "w-1", "a", true, 0);
    say(&mut catalogue, "w-2", "b", false, 5);
    let route = catalogue.route(&kind()).unwrap();
    assert_eq!((route.queue.as_str(), route.private, &*route.worker), ("b", false, "w-2"));
    assert_eq!((route.at, catalogue.len()), (Some(second(NOW - 5)), 1));
}

#[test]
fn what_any_worker_says_holds_as_long_as_it_may_be_there() {
    let (one, two) = ("{}", r#"{"type":"object"}"#);
    // said by workers, so many seconds ago; gone -> what holds
    for (said, gone, expected) in [
        (&[][..], &[][..], &[][..]),
        (&[("a", one, 0)], &[], &["{}: a"]),
        (&[("a", one, 0), ("b", one, 0)], &[], &["{}: b a"]),
        (&[("a", one, 9), ("b", two, 0)], &[], &[r#"{"type":"object"}: b"#, "{}: a"]),
        (&[("a", one, 9), ("b", two, 0)], &["a"], &[r#"{"type":"object"}: b"#]),
        // A deploy was rolled back.
        (&[("a", one, 9), ("b", two, 0)], &["b"], &["{}: a"]),
        // Nobody is there: what was said last.
        (&[("a", one, 9), ("b", two, 0)], &["a", "b"], &[r#"{"type":"object"}: b"#]),
        // One that takes anything.
        (&[("a", one, 9), ("b", "", 0)], &[], &["any: b", "{}: a"]),
        // Said again: the order in which they came stays, and so does the schema if that is left out.
        (&[("a", one, 9), ("b", two, 5), ("a", "", 0)], &[], &[r#"{"type":"object"}: b"#, "{}: a"]),
        (&[("a", one, 9), ("b", two, 5), ("a", two, 0)], &[], &[r#"{"type":"object"}: b a"#]),
        // Not said again for hours.
        (&[("a", one, STALE + 1), ("b", two, 0)], &[], &[r#"{"type":"object"}: b"#]),
        (&[("a", one, STALE + 1)], &[], &["{}: a"]),
        // Said in the morning, and again in brief since then.
        (
            &[("a", one, 20 * 3600), ("b", two, 20 * 3600), ("b", "", 0), ("a", "", 0)],
            &[],
            &[r#"{"type":"object"}: b"#, "{}: a"],
        ),
        // By a clock that is fast.
        (&[("a", one, -9_999_999), ("b", two, 0)], &[], &[r#"{"type":"object"}: b"#, "{}: a"]),
    ] {
        assert_eq!(holding(&heard(said), gone), expected, "{said:?} {gone:?}");
    }
}

#[test]
fn who_has_no_use_for_schemas_keeps_none() {
    let mut catalogue = Catalogue::default();
    catalogue.learn("a", vec![announced("{}")], None, (second(NOW), Instant::now()));
    assert_eq!(catalogue.route(&kind()).map(|route| &*route.worker), Some("a"));
    assert!(catalogue.kinds.values().all(|known| known.said.is_empty()) && catalogue.texts.is_empty());
}

#[test]
fn workers_are_bounded_and_beyond_that_any_args_are_taken() {
    let (mut catalogue, now) = (catalogue(), (second(NOW), Instant::now()));
    for worker in 0..WORKERS_MAX {
        catalogue.learn(&worker.to_string(), vec![announced("{}")], Some(second(NOW - 5)), now);
    }
    assert_eq!(holding(&catalogue, &[]).len(), 1);
    catalogue.learn("more", vec![announced("{}")], None, now);
    assert_eq!(catalogue.kinds[&kind()].said.len(), WORKERS_MAX);
    assert_eq!(holding(&catalogue, &[]), [""; 0]);
    let later = second(NOW + STALE + 1);
    catalogue.learn("more", vec![announced("")], Some(later), (later, now.1));
    assert_eq!(
        catalogue.versions(&kind(), later, |_, _| false).len(),
        1,
        "until the others were not heard for long"
    );
}

#[test]
fn schemas_are_kept_once_and_bounded() {
    let (mut catalogue, now) = (catalogue(), (second(NOW), Instant::now()));
    let schema =
        |n: usize| format!(r#"{{"description":"{n}{}"}}"#, "x".repeat(crate::job::schema::SCHEMA_MAX - 50));
    let room = SCHEMAS_BYTES / schema(1000).len();
    let name = |n: usize| Kind::parse(format!("k{n}")).unwrap();
    let say = |catalogue: &mut Catalogue, kind: usize, text: usize| {
        let announced = Announced { kind: name(kind), ..announced(&schema(text)) };
        catalogue.learn("a", vec![announced], None, now)
    };
    for n in 0..room {
        assert_eq!((say(&mut catalogue, n, 1000 + n), say(&mut catalogue, n + room, 1000 + n)), (0, 0));
    }
    assert_eq!(catalogue.texts.len(), room);
    assert_eq!(say(&mut catalogue, 2 * room, 9999), 1, "no room");
    assert_eq!(catalogue.versions(&name(2 * room), second(NOW), |_, _| false)[0].schemas, Schemas::none());
    // What nobody says any more makes room.
    for kind in [0, room] {
        assert_eq!(say(&mut catalogue, kind, 1001), 0);
    }
    assert_eq!(say(&mut catalogue, 2 * room, 9999), 0);
    assert!(catalogue.bytes <= SCHEMAS_BYTES);
}

#[test]
fn whether_a_worker_is_gone_is_asked_with_when_it_was_heard() {
    let (mut catalogue, start) = (catalogue(), Instant::now());
    catalogue.learn("a", vec![announced("{}")], None, (second(NOW), start));
    catalogue.learn("a", vec![announced("")], None, (second(NOW), start + Duration::from_secs(5)));
    let versions = catalogue.versions(&kind(), second(NOW), |worker, heard| {
        assert_eq!((worker, heard), ("a", start + Duration::from_secs(5)));
        false
    });
    assert_eq!(versions.len(), 1);
}

#[cfg(feature = "server")]
#[test]
fn args_are_checked_by_all_that_may_be_there_and_in_their_own_queue_alone() {
    let (one, two) = ("{}", r#"{"type":"object"}"#);
    let queue = |name: &str| QueueName::parse(name).unwrap();
    for (said, gone, expected) in [
        (&[][..], &[][..], None::<&[&str]>),
        (&[("a", one, 9), ("b", two, 0), ("c", one, 0)], &[], Some(&[one, two][..])),
        (&[("a", one, 9), ("b", two, 0)], &["a"], Some(&[two])),
        (&[("a", one, 9), ("b", two, 0)], &["a", "b"], Some(&[two])),
        // One that takes anything.
        (&[("a", one, 9), ("b", "", 0)], &[], None),
        (&[("a", one, 9), ("b", "", 0)], &["b"], Some(&[one])),
    ] {
        let catalogue = heard(said);
        let args =
            |name| catalogue.args(&kind(), &queue(name), second(NOW), |worker, _| gone.contains(&worker));
        let found = args("a");
        let found = found.as_ref().map(|found| found.iter().map(Schema::as_str).collect::<Vec<_>>());
        assert_eq!(found.as_deref(), expected, "{said:?}");
        assert_eq!(args("b"), None, "another queue's workers say nothing of it");
    }
}
