//! Server-sent events: how they are written, where a client goes on reading, and the answer that carries them.
//!
//! A stream is pulled: nothing is read from the record before the client has taken what was read before, so a slow
//! reader costs no memory. One that takes nothing at all is cut off by the connection (`http.read_timeout`).

use std::{convert::Infallible, fmt::Write as _, future::Future, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    App,
    problem::{Code, Problem},
};
use crate::{
    event::TYPE_PREFIX,
    record::{latest::Told, model::Position},
};

/// How often something is sent, so that nobody in between takes the stream for dead.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The pause that browsers are asked to make before they reconnect, in ms.
const RETRY: u32 = 1000;
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Frames of server-sent events, to be sent together.
#[derive(Debug, Default)]
pub(super) struct Frames(String);

impl Frames {
    /// What a stream begins with.
    pub(super) fn opening() -> Self {
        Self(format!("retry: {RETRY}\n\n"))
    }

    /// An event, without args and output.
    pub(super) fn event(&mut self, told: &Told) {
        let Told { position, what, json, .. } = told;
        let name = what.as_str();
        // Writing to a text cannot fail, here and below.
        let _ = write!(self.0, "id: {position}\nevent: {TYPE_PREFIX}{name}\ndata: {json}\n\n");
    }

    /// Something that is no event of the log: it has no id, as nobody can go on after it.
    pub(super) fn plain(&mut self, name: &str, json: &str) {
        let _ = write!(self.0, "event: {name}\ndata: {json}\n\n");
    }

    /// Events between `after` and `next` are missing: the log, or this record, has them no more.
    pub(super) fn gap(&mut self, after: Position, next: Position) {
        let _ = write!(
            self.0,
            "id: {next}\nevent: hopline.gap\ndata: {{\"last_event_id\":\"{after}\",\"goes_on_after\":\"{next}\"}}\n\n"
        );
    }

    /// Nothing has happened, up to `reached` if that is known: from there a client goes on that reconnects.
    pub(super) fn keep_alive(&mut self, reached: Option<Position>) {
        self.0.push_str(": keep-alive\n");
        if let Some(reached) = reached {
            let _ = writeln!(self.0, "id: {reached}");
        }
        self.0.push('\n');
    }

    /// Whether there is nothing to send.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What yields the frames of a stream, one piece after the other.
pub(super) trait Frame: Send + 'static {
    /// The next piece; none: the stream ends.
    fn next(&mut self) -> impl Future<Output = Option<Frames>> + Send;
}

/// Where the client goes on: the header, which a browser sends when it reconnects by itself, else the parameter.
///
/// # Errors
/// The problem, when that is no position.
pub(super) fn last_event_id(
    headers: &HeaderMap,
    parameter: Option<&str>,
) -> Result<Option<Position>, Problem> {
    let header = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty());
    let header = header.map(|value| value.to_str().unwrap_or("\u{fffd}"));
    let read = |name: &str, text: &str| {
        text.trim().parse().map_err(|error: crate::record::model::PositionError| {
            Problem::new(Code::BadLastEventId, format!("{name} is {error}"))
        })
    };
    // The parameter is read strictly, also where the header wins.
    let parameter = parameter.map(|text| read("last_event_id", text)).transpose()?;
    let header = header.map(|text| read("Last-Event-ID", text)).transpose()?;
    Ok(header.or(parameter))
}

impl App {
    /// A place among the streams.
    pub(super) fn enter_stream(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let full = |_| {
            let limit = self.http.max_streams;
            Problem::new(Code::StreamsFull, format!("there are {limit} streams already (http.max_streams)"))
        };
        Arc::clone(&self.streams).try_acquire_owned().map_err(full)
    }

    /// How many streams there are.
    pub(super) fn streams_in_use(&self) -> usize {
        in_use(&self.streams, self.http.max_streams)
    }
}

/// How many of `most` places are taken.
pub(super) fn in_use(places: &Semaphore, most: usize) -> usize {
    most.min(Semaphore::MAX_PERMITS).saturating_sub(places.available_permits())
}

/// The answer that sends what `source` yields, and holds `place` until it ends or the client is gone.
pub(super) fn response(source: impl Frame, place: OwnedSemaphorePermit) -> Response {
    struct State<S> {
        source: S,
        _place: OwnedSemaphorePermit,
        opened: bool,
    }
    let state = State { source, _place: place, opened: false };
    let frames = stream::unfold(state, |mut state| async move {
        let frames = if state.opened { state.source.next().await? } else { Frames::opening() };
        state.opened = true;
        Some((Ok::<_, Infallible>(Bytes::from(frames.0)), state))
    });
    let mut response = Response::new(Body::from_stream(frames));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would hold events back until it has a buffer full.
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// The answer for a stream that has nothing to send any more: a browser does not ask again.
pub(super) fn over() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Event, EventType},
        http::answer::tests::envelope,
        record::model::StoredEvent,
    };

    fn at(text: &str) -> Position {
        text.parse().unwrap()
    }

    #[test]
    fn an_event_is_one_frame_without_args() {
        let mut event = Event::of(EventType::Submitted, &envelope("{}"), "a\nb", jiff::Timestamp::UNIX_EPOCH);
        event.data.args = serde_json::from_str("{\n\"secret\":1}").ok();
        let mut frames = Frames::default();
        frames.event(&Told::of(&StoredEvent { position: at("17.2"), event }));
        let lines: Vec<&str> = frames.0.split('\n').collect();
        let ["id: 17.2", "event: hopline.job.submitted", data, "", ""] = lines.as_slice() else {
            panic!("{lines:?}")
        };
        let value: serde_json::Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(
            (&value["type"], &value["data"]["args_omitted"]),
            (&"hopline.job.submitted".into(), &true.into())
        );
        assert!(!data.contains("secret"));
    }

    #[test]
    fn gaps_and_keep_alives_say_where_it_goes_on() {
        let mut frames = Frames::default();
        assert!(frames.is_empty());
        frames.gap(at("1.0"), at("9.65535"));
        frames.keep_alive(Some(at("10.1")));
        frames.keep_alive(None);
        assert_eq!(
            frames.0,
            "id: 9.65535\nevent: hopline.gap\ndata: {\"last_event_id\":\"1.0\",\"goes_on_after\":\"9.65535\"}\n\n\
             : keep-alive\nid: 10.1\n\n: keep-alive\n\n"
        );
    }

    #[test]
    fn the_header_wins_over_the_parameter() {
        let headers = |value: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(LAST_EVENT_ID, HeaderValue::from_static(value));
            }
            headers
        };
        for (header, parameter, expected) in [
            (None, None, Ok(None)),
            (Some(""), None, Ok(None)),
            (Some("3.1"), Some("2.0"), Ok(Some(at("3.1")))),
            (Some(""), Some("2.0"), Ok(Some(at("2.0")))),
            (None, Some("2.0"), Ok(Some(at("2.0")))),
            (None, Some(""), Err(Code::BadLastEventId)),
            (Some("3.1"), Some("x"), Err(Code::BadLastEventId)),
            (Some("x"), Some("2.0"), Err(Code::BadLastEventId)),
            (Some("-1.0"), None, Err(Code::BadLastEventId)),
            (Some("1"), None, Err(Code::BadLastEventId)),
        ] {
            let read = last_event_id(&headers(header), parameter).map_err(|problem| problem.code);
            assert_eq!(read, expected, "{header:?} {parameter:?}");
        }
    }
}
