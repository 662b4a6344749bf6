//! Callbacks: the job that tells somebody's URL how a run ended (`docs/wire.md`, "Callbacks").
//!
//! Whoever ends a run of a job with a callback makes this job, and has it confirmed before the job's own message goes.
//! Its id is derived from the end it tells of, so made twice it is one job. Here are its words and its making;
//! `client` publishes it, `courier` carries it out.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    event::{Event, EventType, batch},
    job::{
        Envelope, Job, JobId, Kind, QueueName,
        envelope::header,
        wire::{HeaderValue, Headers},
    },
};

/// `source` of the event that a stranger is sent: which process it was is none of their affair.
const SOURCE: &str = "hopline";
/// Who published. It starts with `hopline-`: there is a `submitted` event.
const APP_ID: &str = "hopline-callback";

/// Sends an event to a URL.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Callback {
    /// Where to.
    pub(crate) url: String,
    /// The final event of the run, as it is sent: without args and output.
    pub(crate) event: Box<RawValue>,
}

/// What the URL answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Answered {
    /// The status, 200 to 299.
    pub(crate) status: u16,
}

impl Job for Callback {
    const KIND: &'static str = "hopline.callback";
    const QUEUE: &'static str = "hopline-callbacks";
    type Output = Answered;
}

/// The URL that a message names.
pub(crate) fn url_of(headers: &Headers) -> Option<&str> {
    match headers.get(header::CALLBACK_URL) {
        Some(HeaderValue::Text(url)) if !url.is_empty() => Some(url),
        _ => None,
    }
}

/// The callback about the end that `event` tells of, for a job with these headers; none where they name no URL.
pub(crate) fn of(event: &Event, headers: &Headers, queue: QueueName) -> Option<Envelope> {
    let url = url_of(headers)?.to_owned();
    // A kind within the rule; the event's own parts are JSON.
    let kind = Kind::parse(Callback::KIND).ok()?;
    let event_json = RawValue::from_string(String::from_utf8(batch::encode_one(&told(event))).ok()?).ok()?;
    let args = serde_json::to_vec(&Callback { url, event: event_json }).ok()?;
    let mut job = Envelope::new(kind, queue, Bytes::from(args));
    job.id = JobId::of_callback(event.job, event.data.run, event.event_type.as_str());
    job.created_at = Some(Timestamp::now());
    job.app_id = Some(APP_ID.to_owned());
    job.tags = vec![format!("callback:{}", event.job)];
    for name in [header::TRACEPARENT, header::TRACESTATE] {
        if let Some(value) = headers.get(name) {
            job.extra.insert(name.to_owned(), value.clone());
        }
    }
    Some(job)
}

/// The event that says that the callback is there. Its args are nobody's but the receiver's: a URL may hold a secret.
pub(crate) fn submitted(job: &Envelope, source: &str) -> Event {
    let mut event = Event::of(EventType::Submitted, job, source, Timestamp::now());
    event.data.args_omitted = true;
    event
}

/// The event without what strangers need not know.
fn told(event: &Event) -> Event {
    let mut told = event.public();
    SOURCE.clone_into(&mut told.source);
    (told.data.worker, told.data.by) = (None, None);
    (told.data.args_omitted, told.data.output_omitted) = (false, false);
    told
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(url: &str) -> Envelope {
        let (kind, queue) = (Kind::parse("a.b").unwrap(), QueueName::parse("q").unwrap());
        let mut job = Envelope::new(kind, queue, Bytes::from_static(b"{\"secret\":1}"));
        job.extra.insert(header::CALLBACK_URL.to_owned(), url.into());
        job.extra.insert(header::TRACEPARENT.to_owned(), "00-1-2-01".into());
        job.extra.insert("mine".to_owned(), "kept from it".into());
        job
    }

    fn ended(job: &Envelope, event_type: EventType) -> Event {
        let mut event = Event::of(event_type, job, "host-1-abc", Timestamp::UNIX_EPOCH);
        event.data.worker = Some("host-1-abc".to_owned());
        event.data.args = RawValue::from_string("{\"secret\":1}".to_owned()).ok();
        event.data.output = RawValue::from_string("{\"secret\":2}".to_owned()).ok();
        event
    }

    fn made(event: &Event, job: &Envelope) -> Envelope {
        of(event, &job.extra, QueueName::parse("hopline-callbacks").unwrap()).unwrap()
    }

    #[test]
    fn the_same_end_makes_the_same_job_and_another_end_another() {
        let job = job("https://example.org/x");
        let event = ended(&job, EventType::Succeeded);
        let callback = made(&event, &job);
        assert_eq!(callback.id, made(&event, &job).id);
        assert_ne!(callback.id, made(&ended(&job, EventType::Dead), &job).id);
        let next_run = Envelope { run: 2, ..job.clone() };
        assert_ne!(callback.id, made(&ended(&next_run, EventType::Succeeded), &job).id);
        let fixed: JobId = "0199c3a1-7c00-7000-8000-000000000001".parse().unwrap();
        // In docs/wire.md, for who makes it in another language.
        assert_eq!(JobId::of_callback(fixed, 1, "dead").to_string(), "f71a9366-4c49-8e84-906c-a9df35ae355f");
    }

    #[test]
    fn it_carries_url_event_and_trace_and_nothing_of_the_jobs_own() {
        let job = job("https://example.org/x");
        let callback = made(&ended(&job, EventType::Succeeded), &job);
        let args: Value = serde_json::from_slice(&callback.args).unwrap();
        assert_eq!(args["url"], "https://example.org/x");
        assert_eq!(
            (&args["event"]["type"], &args["event"]["subject"]),
            (&json!("hopline.job.succeeded"), &json!(job.id))
        );
        let text = args.to_string();
        assert!(!text.contains("secret") && !text.contains("host-1") && !text.contains("omitted"), "{text}");
        assert_eq!(callback.extra.keys().collect::<Vec<_>>(), [header::TRACEPARENT]);
        assert_eq!(callback.tags, [format!("callback:{}", job.id)]);
        assert!(submitted(&callback, "x").data.args.is_none());
    }

    #[test]
    fn what_names_no_url_has_none() {
        let mut job = job("");
        let event = ended(&job, EventType::Succeeded);
        let queue = || QueueName::parse("q").unwrap();
        assert!(of(&event, &job.extra, queue()).is_none());
        job.extra.insert(header::CALLBACK_URL.to_owned(), 5_i64.into());
        assert!(of(&event, &job.extra, queue()).is_none());
        job.extra.remove(header::CALLBACK_URL);
        assert!(of(&event, &job.extra, queue()).is_none());
    }
}
