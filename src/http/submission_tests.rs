use super::*;
use crate::job::{JobId, wire::HeaderValue};

const NOW: &str = "2030-01-01T00:00:00.5Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn read(text: &str) -> Result<Draft, Problem> {
    read_as(Choice::Ours, text)
}

fn read_as(choice: Choice, text: &str) -> Result<Draft, Problem> {
    let source = Bytes::copy_from_slice(text.as_bytes());
    let text = std::str::from_utf8(&source).unwrap();
    let guard = Guard::default();
    Draft::read(text, &source, &Limits::default(), Some(&guard), now(), choice, Errors::new(ERRORS_MAX))
}

/// A job with one more member.
fn with(member: &str) -> Result<Draft, Problem> {
    read(&format!(r#"{{"kind":"demo.echo",{member}}}"#))
}

/// The pointers of all that is wrong, in order of text.
fn pointers(result: Result<Draft, Problem>) -> Vec<String> {
    let mut pointers: Vec<String> =
        result.unwrap_err().errors.into_iter().filter_map(|error| error.pointer).collect();
    pointers.sort();
    pointers
}

#[test]
fn a_kind_is_enough() {
    let draft = read(r#"{"kind":"demo.echo"}"#).unwrap();
    assert_eq!(draft.kind.as_str(), "demo.echo");
    assert_eq!(draft.args, "{}");
    assert_eq!((draft.queue, draft.run_at, draft.expires_at, draft.timeout), (None, None, None, None));
    assert_eq!((draft.max_attempts, draft.retry, draft.tags), (None, RetryOverrides::default(), vec![]));
}

#[test]
fn every_member_is_read() {
    let draft = read(
        r#"{"kind":"k","args":[1],"queue":"media","delay":"90s","expires_in":"1h","timeout":2.5,"max_attempts":3,
            "retry":{"initial":"100ms","factor":1.5,"max":60,"jitter":0},"tags":["a","b c"]}"#,
    )
    .unwrap();
    assert_eq!(draft.queue.unwrap().as_str(), "media");
    assert_eq!(draft.run_at.unwrap(), "2030-01-01T00:01:30.5Z".parse().unwrap());
    assert_eq!(draft.expires_at.unwrap(), "2030-01-01T01:00:00.5Z".parse().unwrap());
    assert_eq!(draft.timeout, Some(Duration::from_millis(2500)));
    assert_eq!(draft.max_attempts, Some(3));
    let retry = RetryOverrides {
        initial: Some(Duration::from_millis(100)),
        factor: Some(1.5),
        max: Some(Duration::from_secs(60)),
        jitter: Some(0.0),
    };
    assert_eq!(draft.retry, retry);
    assert_eq!(draft.tags, ["a", "b c"]);
}

#[test]
fn args_are_the_bytes_that_came() {
    for args in [
        r#"{"b":1.0000000000000000000001, "a" : 1e2, "a":2}"#,
        "12345678901234567890123",
        "null",
        r#""\ud800""#,
        "\"ä\\u00e4\"",
    ] {
        assert_eq!(with(&format!("\"args\": {args} ")).unwrap().args, args.as_bytes(), "{args}");
    }
}

#[test]
fn all_problems_are_named_at_once() {
    let result = read(
        r#"{"kind":"","queue":"a.b","delay":-1,"run_at":"soon","expires_in":0,"expires_at":"2001-01-01T00:00:00Z",
            "timeout":0,"max_attempts":0,"retry":{"factor":0.5,"jitter":2,"initial":"x","y":1},"tags":["ok","","a,b"],
            "colour":1,"a/b":2,"queue":"c"}"#,
    );
    let expected = [
        "/a~1b",
        "/colour",
        "/delay",
        "/expires_at",
        "/expires_at",
        "/expires_in",
        "/kind",
        "/max_attempts",
        "/queue",
        "/queue",
        "/retry/factor",
        "/retry/initial",
        "/retry/jitter",
        "/retry/y",
        "/run_at",
        "/run_at",
        "/tags/1",
        "/tags/2",
        "/timeout",
    ];
    assert_eq!(pointers(result), expected);
}

#[test]
fn a_kind_must_be_there_and_be_one() {
    for text in
        ["{}", r#"{"args":{}}"#, r#"{"kind":null}"#, r#"{"kind":1}"#, r#"{"kind":"A"}"#, r#"{"kind":["a"]}"#]
    {
        assert_eq!(pointers(read(text)), ["/kind"], "{text}");
    }
}

#[test]
fn wrong_values_are_refused() {
    for (member, pointer) in [
        (r#""queue":null"#, "/queue"),
        (r#""queue":"""#, "/queue"),
        (r#""queue":"dead""#, "/queue"),
        (r#""queue":7"#, "/queue"),
        (r#""delay":true"#, "/delay"),
        (r#""delay":"1 parsec""#, "/delay"),
        (r#""delay":"31d""#, "/delay"),
        (r#""delay":1e400"#, "/delay"),
        (r#""run_at":1893456000"#, "/run_at"),
        (r#""run_at":"2030-06-01T00:00:00Z""#, "/run_at"),
        (r#""run_at":"2030-01-01""#, "/run_at"),
        (r#""expires_in":0"#, "/expires_in"),
        (r#""expires_at":"2030-01-01T00:00:00.5Z""#, "/expires_at"),
        (r#""timeout":0"#, "/timeout"),
        (r#""timeout":0.0001"#, "/timeout"),
        (r#""max_attempts":1001"#, "/max_attempts"),
        (r#""max_attempts":1.5"#, "/max_attempts"),
        (r#""max_attempts":"3""#, "/max_attempts"),
        (r#""retry":5"#, "/retry"),
        (r#""retry":{"max":"400d"}"#, "/retry/max"),
        (r#""retry":{"factor":"2"}"#, "/retry/factor"),
        (r#""retry":{"factor":101}"#, "/retry/factor"),
        (r#""retry":{"jitter":-0.1}"#, "/retry/jitter"),
        (r#""retry":{"max":1,"max":2}"#, "/retry/max"),
        (r#""tags":"a""#, "/tags"),
        (r#""tags":{}"#, "/tags"),
        (r#""tags":[1]"#, "/tags/0"),
        (r#""tags":["a\nb"]"#, "/tags/0"),
        (r#""tags":[" a"]"#, "/tags/0"),
        (r#""kind":"demo.echo""#, "/kind"),
        (r#""id":"x""#, "/id"),
        (r#""idempotency_key":"x""#, "/idempotency_key"),
    ] {
        let problem = with(member).unwrap_err();
        assert_eq!(problem.code, Code::InvalidRequest, "{member}");
        assert_eq!(pointers(Err(problem)), [pointer], "{member}");
    }
}

#[test]
fn tags_are_bounded() {
    let tags = |count: usize, len: usize| with(&format!("\"tags\":{:?}", vec!["t".repeat(len); count]));
    assert_eq!(tags(TAGS_MAX, TAG_MAX).unwrap().tags.len(), TAGS_MAX);
    assert_eq!(pointers(tags(TAGS_MAX + 1, 1)), ["/tags"]);
    assert_eq!(pointers(tags(1, TAG_MAX + 1)), ["/tags/0"]);
}

#[test]
fn delay_and_expiry_must_leave_time_to_run() {
    assert!(with(r#""delay":"1h","expires_in":"2h""#).is_ok());
    assert_eq!(pointers(with(r#""delay":"1h","expires_in":"30m""#)), ["/expires_in"]);
    assert_eq!(pointers(with(r#""delay":"1h","expires_in":"1h""#)), ["/expires_in"]);
    assert_eq!(pointers(with(r#""delay":1,"run_at":"2030-01-01T00:00:02Z""#)), ["/run_at"]);
    assert_eq!(pointers(with(r#""expires_in":1,"expires_at":"2030-01-01T00:00:02Z""#)), ["/expires_at"]);
    let past = with(r#""run_at":"2001-01-01T00:00:00Z","expires_in":1"#).unwrap();
    assert_eq!(past.run_at, None, "a time that has passed means now");
    assert!(with(r#""delay":"30d""#).is_ok());
}

#[test]
fn nesting_is_bounded_in_args_alike_everywhere() {
    let args = |depth: usize| format!("\"args\":{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(with(&args(64)).is_ok());
    for text in [args(65), args(5000), args(65).replace("args", "tags"), args(65).replace("args", "x")] {
        assert_eq!(with(&text).unwrap_err().code, Code::TooDeep);
    }
}

#[test]
fn args_have_a_limit_of_their_own() {
    let limit = Limits::default().args;
    let args = |len: usize| format!("\"args\":\"{}\"", "x".repeat(len - 2));
    assert_eq!(with(&args(limit)).unwrap().args.len(), limit);
    assert_eq!(with(&args(limit + 1)).unwrap_err().code, Code::TooLarge);
}

#[test]
fn without_a_secret_there_are_no_callbacks() {
    let read = |member: &str| {
        let source = Bytes::from(format!(r#"{{"kind":"demo.echo",{member}}}"#));
        let text = std::str::from_utf8(&source).unwrap();
        let errors = Errors::new(ERRORS_MAX);
        Draft::read(text, &source, &Limits::default(), None, now(), Choice::Ours, errors)
    };
    let problem = read(r#""callback_url":"https://example.org""#).unwrap_err();
    assert_eq!(problem.code, Code::NotSupported);
    let both = read(r#""callback_url":"https://example.org","delay":-1"#).unwrap_err();
    assert_eq!(both.code, Code::InvalidRequest);
    assert_eq!(both.errors.len(), 2);
}

#[test]
fn a_callback_is_carried_and_refused_by_what_its_url_tells() {
    let url = "https://example.org/hook?a=1";
    let draft = with(&format!(r#""callback_url":"{url}""#)).unwrap();
    let queue_of = |_: &_| QueueName::parse("media").unwrap();
    let job = draft.into_submission(queue_of, &Headers::new(), now());
    assert_eq!(job.envelope.extra[header::CALLBACK_URL], HeaderValue::from(url));
    for bad in
        ["5", "\"\"", r#""https://127.0.0.1/""#, r#""http://example.org/""#, r#""https://u:p@example.org""#]
    {
        let problem = with(&format!(r#""callback_url":{bad}"#)).unwrap_err();
        assert_eq!(problem.code, Code::InvalidRequest, "{bad}");
        assert_eq!(pointers(Err(problem)), ["/callback_url"], "{bad}");
    }
}

#[test]
fn trace_context_is_carried_if_it_looks_right() {
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let carried = |parent: &str, state: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", parent.parse().unwrap());
        headers.insert("tracestate", state.parse().unwrap());
        trace_context(&headers)
    };
    let both = carried(parent, "a=1,b=2");
    assert_eq!(both["traceparent"], HeaderValue::from(parent));
    assert_eq!(both["tracestate"], HeaderValue::from("a=1,b=2"));
    assert_eq!(carried(parent, &format!("a={}", "x".repeat(600))).len(), 1);
    for bad in [
        "",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
    ] {
        assert!(carried(bad, "a=1").is_empty(), "{bad}");
    }
}

#[test]
fn a_repeat_may_come_after_its_expiry() {
    let late = r#"{"kind":"demo.echo","expires_at":"2029-12-31T23:59:59Z"}"#;
    assert_eq!(read(late).unwrap_err().code, Code::InvalidRequest);
    let draft = read_as(Choice::Client(JobId::new()), late).unwrap();
    assert_eq!(draft.too_late.unwrap().to_string(), "/expires_at: is not in the future");
    let good = r#"{"kind":"demo.echo","expires_at":"2030-12-31T23:59:59Z"}"#;
    assert_eq!(read_as(Choice::Client(JobId::new()), good).unwrap().too_late, None);
}

#[test]
fn a_named_job_is_submitted_as_one_that_may_have_a_copy() {
    let id = JobId::new();
    let job = |choice| {
        let draft = read_as(choice, r#"{"kind":"demo.echo"}"#).unwrap();
        draft.into_submission(|_| QueueName::parse("default").unwrap(), &Headers::new(), now())
    };
    let named = job(Choice::Client(id));
    assert_eq!((named.envelope.id, named.envelope.unsure), (id, true));
    assert_eq!(named.request.unwrap().len(), 32);
    let ours = job(Choice::Ours);
    assert_eq!((ours.envelope.unsure, ours.request), (false, None));
    assert_eq!(job(Choice::Members(None)).request, None, "it may be named and is not");
}

#[test]
fn only_an_item_may_name_its_job() {
    let text = format!(r#"{{"kind":"demo.echo","id":"{}"}}"#, JobId::new());
    assert_eq!(pointers(read(&text)), ["/id"]);
    assert!(read_as(Choice::Members(None), &text).unwrap().named.is_some());
}
