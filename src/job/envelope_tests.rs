use proptest::prelude::*;

use super::*;

const LIMIT: usize = 1 << 20;

fn queue() -> QueueName {
    QueueName::parse("media").unwrap()
}

fn incoming(message: Message) -> Incoming {
    Incoming { message, ..Incoming::default() }
}

fn foreign(body: &[u8]) -> Message {
    Message { kind: Some("demo.echo".into()), body: Bytes::copy_from_slice(body), ..Message::default() }
}

fn decode(message: Message) -> Result<Decoded, DecodeError> {
    Envelope::decode(&incoming(message), &queue(), LIMIT)
}

fn with(name: &str, value: impl Into<HeaderValue>) -> Message {
    let mut message = foreign(b"{}");
    message.message_id = Some("5f0c4a3e-0d5e-4a61-9d49-6a8a8c5f2b11".into());
    message.headers.insert(name.into(), value.into());
    message
}

#[test]
fn the_smallest_foreign_message_is_a_job() {
    let decoded = decode(foreign(b"{\"a\": 1.10}")).unwrap();
    assert!(decoded.adopt, "no id: adopted first");
    let envelope = decoded.envelope;
    assert_eq!(envelope.kind.as_str(), "demo.echo");
    assert_eq!((envelope.run, envelope.attempt, envelope.step), (1, 1, 0));
    assert_eq!(&envelope.args[..], b"{\"a\": 1.10}", "the bytes as they came");
    assert_eq!((envelope.max_attempts, envelope.timeout, envelope.expires_at), (None, None, None));
}

#[test]
fn numbers_may_be_text() {
    let mut message = with(header::ATTEMPT, "3");
    message.headers.insert(header::TIMEOUT.into(), "1500".into());
    message.headers.insert(header::RETRY_FACTOR.into(), "1.5".into());
    message.headers.insert(header::UNSURE.into(), "true".into());
    let envelope = decode(message).unwrap().envelope;
    assert_eq!(envelope.attempt, 3);
    assert_eq!(envelope.timeout, Some(Duration::from_millis(1500)));
    assert_eq!(envelope.retry.factor, Some(1.5));
    assert!(envelope.unsure);
}

#[test]
fn ids_are_kept_or_derived() {
    let uuid = decode(with(header::RUN, 1_i64)).unwrap();
    assert_eq!(uuid.envelope.id.to_string(), "5f0c4a3e-0d5e-4a61-9d49-6a8a8c5f2b11");
    let named = decode(Message { message_id: Some("order-17".into()), ..foreign(b"{}") }).unwrap();
    assert_eq!(named.envelope.id, JobId::from_foreign(&queue(), "order-17"));
    assert!(!named.adopt && !uuid.adopt);
    assert!(decode(Message { message_id: Some(String::new()), ..foreign(b"{}") }).unwrap().adopt);
}

#[test]
fn hostile_input_is_refused_with_its_reason() {
    let deep = "[".repeat(100) + &"]".repeat(100);
    let table = HeaderValue::Table(Headers::new());
    let cases: Vec<(Message, &str, Reason)> = vec![
        (foreign(b"{\"a\": "), "truncated", Reason::Undecodable),
        (foreign(b""), "empty body", Reason::Undecodable),
        (foreign(b"\xff\xfe\x00"), "binary", Reason::Undecodable),
        (foreign(deep.as_bytes()), "100 levels", Reason::Undecodable),
        (foreign(&vec![b' '; LIMIT + 1]), "oversize", Reason::Oversize),
        (Message { kind: None, ..foreign(b"{}") }, "no kind", Reason::Undecodable),
        (Message { kind: Some(String::new()), ..foreign(b"{}") }, "empty kind", Reason::Undecodable),
        (Message { kind: Some("Über Kind".into()), ..foreign(b"{}") }, "bad kind", Reason::Undecodable),
        (with(header::VERSION, 2_i64), "newer version", Reason::UnsupportedVersion),
        (with(header::VERSION, "abc"), "version text", Reason::Undecodable),
        (with(header::ATTEMPT, table), "attempt table", Reason::Undecodable),
        (with(header::ATTEMPT, 0_i64), "attempt zero", Reason::Undecodable),
        (with(header::ATTEMPT, -3_i64), "attempt negative", Reason::Undecodable),
        (with(header::ATTEMPT, HeaderValue::Double(1.5)), "attempt 1.5", Reason::Undecodable),
        (with(header::RUN, i64::MAX), "run huge", Reason::Undecodable),
        (with(header::MAX_ATTEMPTS, 1001_i64), "too many attempts", Reason::Undecodable),
        (with(header::TIMEOUT, -1_i64), "negative timeout", Reason::Undecodable),
        (with(header::EXPIRES_AT, i64::MAX), "time out of range", Reason::Undecodable),
        (with(header::EXPIRES_AT, HeaderValue::List(vec![])), "time list", Reason::Undecodable),
        (with(header::UNSURE, "perhaps"), "flag text", Reason::Undecodable),
        (with(header::RETRY_JITTER, 2_i64), "jitter 2", Reason::Undecodable),
        (with(header::RETRY_FACTOR, HeaderValue::Double(f64::NAN)), "factor NaN", Reason::Undecodable),
        (with(header::TAGS, HeaderValue::Bytes(vec![1])), "tags bytes", Reason::Undecodable),
        (with("filler", "x".repeat(HEADERS_MAX)), "headers too long", Reason::Oversize),
    ];
    for (message, what, reason) in cases {
        let error = decode(message).map(|_| ()).expect_err(what);
        assert_eq!(error.reason(), reason, "{what}: {error}");
    }
}

#[test]
fn an_old_reader_carries_new_headers_along() {
    let mut message = with("hopline-invented-later", "value");
    message.headers.insert("mine".into(), HeaderValue::List(vec![1_i64.into()]));
    let again = decode(message.clone()).unwrap().envelope.next_attempt().encode();
    assert_eq!(again.headers["hopline-invented-later"], message.headers["hopline-invented-later"]);
    assert_eq!(again.headers["mine"], message.headers["mine"]);
    assert_eq!(again.headers[header::ATTEMPT], HeaderValue::Int(2));
}

#[test]
fn a_new_reader_understands_messages_without_the_new_headers() {
    // Version 1 as first written: no run, no step, no version.
    let mut message = with(header::ATTEMPT, 2_i64);
    message.headers.insert(header::MAX_ATTEMPTS.into(), 5_i64.into());
    let envelope = decode(message).unwrap().envelope;
    assert_eq!((envelope.run, envelope.step, envelope.attempt, envelope.max_attempts), (1, 0, 2, Some(5)));
}

#[test]
fn what_the_broker_added_is_never_republished() {
    let mut message = foreign(b"{}");
    for name in ["x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count", "CC", "BCC"] {
        message.headers.insert(name.into(), "value".into());
    }
    let again = decode(message.clone()).unwrap().envelope.encode();
    assert!(again.headers.keys().all(|name| name.starts_with("hopline-")), "{:?}", again.headers);
    let copy = patient_copy(&message, &queue());
    assert_eq!(copy.headers.keys().collect::<Vec<_>>(), [header::PATIENCE, header::STEP]);
}

#[test]
fn a_patient_copy_changes_nothing_but_the_counters() {
    let mut message = with(header::VERSION, 7_i64);
    message.body = Bytes::from_static(b"not json at all");
    message.content_type = Some("application/cbor".into());
    message
        .headers
        .insert("nested".into(), HeaderValue::Table(Headers::from([("a".into(), HeaderValue::Void)])));
    let twice = patient_copy(&patient_copy(&message, &queue()), &queue());
    assert_eq!(patience_of(&twice), 2);
    let mut expected = message.clone();
    expected.headers.insert(header::PATIENCE.into(), 2_i64.into());
    expected.headers.insert(header::STEP.into(), 2_i64.into());
    assert_eq!(twice, expected);
}

#[test]
fn an_unreadable_dead_message_moved_back_is_the_next_run_too() {
    let mut message = with(header::VERSION, 7_i64);
    for (name, value) in
        [(header::RUN, 3_i64), (header::STEP, 4), (header::PATIENCE, 5), (header::ATTEMPT, 2)]
    {
        message.headers.insert(name.into(), value.into());
    }
    assert_eq!(place_of(&message), Place { run: 3, attempt: 2, step: 4 });
    message.headers.insert(dead::mark::REASON.into(), "unsupported_version".into());
    assert_eq!(patience_of(&message), 0);
    let place = place_of(&message);
    assert_eq!(place, Place { run: 4, attempt: 1, step: 0 });
    let copy = raw_copy(&message, &queue());
    assert_eq!(place_of(&copy), place, "said by the copy, too");
    assert_eq!(place_of(&patient_copy(&message, &queue())), Place { step: 1, ..place });
    let broken = with(header::RUN, "soon");
    assert_eq!(place_of(&broken), Place { run: 1, attempt: 1, step: 0 });
}

#[test]
fn a_dead_message_moved_back_is_the_next_run() {
    let mut envelope = Envelope::new(Kind::parse("demo.fail").unwrap(), queue(), Bytes::from_static(b"{}"));
    (envelope.attempt, envelope.step) = (20, 19);
    envelope.expires_at = Timestamp::from_millisecond(1).ok();
    envelope.due_at = Timestamp::from_millisecond(2).ok();
    let death = dead::Death {
        reason: Reason::Exhausted,
        code: "error",
        error: "boom",
        attempts: 20,
        worker: "w",
        at: Timestamp::UNIX_EPOCH,
    };
    let replayed = decode(dead::mark(envelope.encode(), &death)).unwrap().envelope;
    assert_eq!((replayed.run, replayed.attempt, replayed.step, replayed.expires_at), (2, 1, 0, None));
    assert_eq!((replayed.id, replayed.due_at), (envelope.id, None));
    assert!(!dead::is_marked(&replayed.encode().headers));
}

#[test]
fn a_job_is_due_when_it_was_submitted_unless_it_says_so_itself() {
    let at = |ms| Timestamp::from_millisecond(ms).ok();
    let mut envelope = Envelope::new(Kind::parse("a.b").unwrap(), queue(), Bytes::from_static(b"{}"));
    assert_eq!(envelope.due(), None, "a foreign message may not say");
    envelope.created_at = at(1_000);
    assert_eq!(envelope.due(), at(1_000));
    envelope.due_at = at(5_000);
    assert_eq!(envelope.due(), at(5_000), "it was delayed");
    // A copy is due at another time, of which only its writer knows.
    let retry = envelope.clone().next_attempt();
    assert_eq!((retry.due_at, retry.due()), (None, None));
    let before = Timestamp::now();
    let due = retry.due_in(Duration::from_secs(60)).due().unwrap();
    assert!(due >= before + Duration::from_secs(60), "{due}");
    let patient = patient_copy(&envelope.encode(), &queue());
    assert!(!patient.headers.contains_key(header::DUE_AT));
}

prop_compose! {
    fn any_envelope()(
        run in 1..1000_u32, attempt in 1..1000_u32, step in 0..1000_u32, patience in 0..10_u32,
        max_attempts in proptest::option::of(1..=1000_u32), timeout in proptest::option::of(1..u64::from(u32::MAX)),
        created in proptest::option::of(0..4_102_444_800_000_i64), unsure: bool,
        expires in proptest::option::of(0..4_102_444_800_000_i64),
        due in proptest::option::of(0..4_102_444_800_000_i64),
        tags in proptest::collection::vec("[a-z0-9:]{1,20}", 0..5),
        factor in proptest::option::of(1.0..100.0_f64), args in "[a-z ]{0,40}",
        reply in proptest::option::of("[a-z.]{1,40}"),
    ) -> Envelope {
        let args = Bytes::from(serde_json::to_vec(&args).unwrap());
        let mut envelope = Envelope::new(Kind::parse("a.b").unwrap(), queue(), args);
        (envelope.run, envelope.attempt, envelope.step, envelope.patience) = (run, attempt, step, patience);
        envelope.max_attempts = max_attempts;
        envelope.timeout = timeout.map(Duration::from_millis);
        envelope.created_at = created.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        envelope.expires_at = expires.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        envelope.due_at = due.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        envelope.unsure = unsure;
        envelope.tags = tags;
        envelope.retry.factor = factor;
        envelope.reply_to.clone_from(&reply);
        envelope.correlation_id = reply;
        envelope.extra.insert("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
        envelope
    }
}

proptest! {
    #[test]
    fn an_envelope_survives_the_wire(envelope in any_envelope()) {
        let decoded = decode(envelope.encode()).unwrap();
        prop_assert!(!decoded.adopt);
        prop_assert_eq!(decoded.envelope, envelope);
    }

    #[test]
    fn no_bytes_make_decoding_panic(body in proptest::collection::vec(any::<u8>(), 0..200), kind in ".{0,20}") {
        let message = Message { kind: Some(kind), body: Bytes::from(body.clone()), ..Message::default() };
        if let Ok(decoded) = decode(message) {
            prop_assert_eq!(&decoded.envelope.args[..], &body[..]);
        }
    }
}
