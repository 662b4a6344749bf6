//! Takes a request in: content type, query, and a body within bounds of bytes, time and memory.
//!
//! All limits are checked before anything is parsed. A body that is not wanted is read on and thrown away for a
//! while, so that the client sees the answer instead of a broken connection.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{BodyDataStream, HttpBody},
    extract::{Query, Request},
    http::{HeaderMap, HeaderValue, header, request::Parts},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use super::{
    access::Caller,
    fields::Errors,
    problem::{Code, Problem},
};

/// What is read of a body that nobody wants, in bytes, before the connection is given up.
const DISCARD_MAX: usize = 32 << 20;
/// The first piece of memory for a body, in bytes.
const FIRST: usize = 16 << 10;

/// The memory that all request bodies share, counted in KiB.
#[derive(Debug, Clone)]
pub(super) struct BodyMemory {
    free: Arc<Semaphore>,
    total_kib: u32,
}

impl BodyMemory {
    /// Room for `bytes`.
    pub(super) fn new(bytes: usize) -> Self {
        let total_kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).max(1);
        Self { free: Arc::new(Semaphore::new(total_kib as usize)), total_kib }
    }

    /// No room taken yet.
    fn room(&self) -> Room {
        Room { memory: self.clone(), held: None }
    }
}

/// A request's part of [`BodyMemory`], given back on drop.
#[derive(Debug)]
pub(super) struct Room {
    memory: BodyMemory,
    held: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Makes this room at least `bytes` large.
    ///
    /// # Errors
    /// The problem, when there is not so much left. Nobody waits for memory.
    pub(super) fn cover(&mut self, bytes: usize) -> Result<(), Problem> {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let wanted = bytes.div_ceil(1024).min(self.memory.total_kib as usize);
        let Ok(missing @ 1..) = u32::try_from(wanted.saturating_sub(held)) else { return Ok(()) };
        let full = |_| {
            Problem::new(Code::BodyMemoryFull, "request bodies take all of http.max_body_memory; try again")
        };
        let more = Arc::clone(&self.memory.free).try_acquire_many_owned(missing).map_err(full)?;
        match &mut self.held {
            Some(held) => held.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }

    /// Takes `bytes` out of this room, as far as it has them, into one of their own.
    pub(super) fn split(&mut self, bytes: usize) -> Self {
        let memory = self.memory.clone();
        let held =
            self.held.as_mut().and_then(|held| held.split(bytes.div_ceil(1024).min(held.num_permits())));
        Self { memory, held }
    }

    /// Gives back what is held beyond `bytes`.
    fn shrink(&mut self, bytes: usize) {
        if let Some(held) = &mut self.held {
            let spare = held.num_permits().saturating_sub(bytes.div_ceil(1024));
            drop(held.split(spare));
        }
    }
}

/// `bytes` that hold their part of `room` until they are dropped: when they are written, or their connection is gone.
pub(super) fn held(bytes: Vec<u8>, room: Option<Room>) -> Bytes {
    struct Held(Vec<u8>, #[expect(dead_code, reason = "given back on drop")] Option<Room>);
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let room = room.map(|mut room| {
        room.shrink(bytes.len());
        room
    });
    Bytes::from_owner(Held(bytes, room))
}

/// What a body is, by its content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Media {
    /// JSON.
    Json,
    /// JSON texts, one a line.
    Ndjson,
    /// The client does not say.
    Unsaid,
}

/// A body that has arrived.
#[derive(Debug)]
pub(super) struct Received {
    /// Its bytes.
    pub(super) bytes: Bytes,
    /// Its memory: held while the bytes, or a part of them, are.
    pub(super) room: Room,
}

/// A request whose body has not been read.
#[derive(Debug)]
pub(super) struct Inbound {
    /// Its head.
    pub(super) parts: Parts,
    /// Who made it.
    pub(super) caller: Caller,
    body: BodyDataStream,
    memory: BodyMemory,
    read_timeout: Duration,
}

impl Inbound {
    /// Takes a request in.
    pub(super) fn new(request: Request, memory: &BodyMemory, read_timeout: Duration) -> Self {
        let (parts, body) = request.into_parts();
        let caller = Caller::of(&parts.extensions);
        Self { parts, caller, body: body.into_data_stream(), memory: memory.clone(), read_timeout }
    }

    /// Whether there is no body, as far as the head says.
    pub(super) fn is_empty(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Takes a body that is to say nothing: none, or an empty object.
    ///
    /// # Errors
    /// The problem, when it says something.
    pub(super) async fn nothing(&mut self) -> Result<(), Problem> {
        let received = self.read(FIRST).await?;
        if matches!(received.bytes.trim_ascii(), b"" | b"{}") {
            return Ok(());
        }
        let mut errors = Errors::new(1);
        errors.at("", "this call takes no body: what it can be told are parameters of the query");
        Err(Problem::invalid(errors))
    }

    /// What the body is.
    ///
    /// # Errors
    /// The problem, when it is neither JSON nor, where `ndjson` says so, NDJSON.
    pub(super) fn media(&self, ndjson: bool) -> Result<Media, Problem> {
        media(&self.parts.headers, ndjson)
    }

    /// Reads the body, of at most `limit` bytes.
    ///
    /// # Errors
    /// The problem, when it is too long, too slow, broken, or there is no memory for it.
    pub(super) async fn read(&mut self, limit: usize) -> Result<Received, Problem> {
        let too_large =
            || Problem::new(Code::TooLarge, format!("the body is over the limit of {limit} bytes"));
        let size = HttpBody::size_hint(&self.body);
        if usize::try_from(size.lower()).unwrap_or(usize::MAX) > limit {
            return Err(too_large());
        }
        let most = size.exact().and_then(|size| usize::try_from(size).ok()).unwrap_or(limit);
        let deadline = Instant::now() + self.read_timeout;
        let mut room = self.memory.room();
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(deadline).await? {
            let len = bytes.len() + chunk.len();
            if len > limit {
                return Err(too_large());
            }
            if len > bytes.capacity() {
                // No more than came at first: what a slow client has announced may never come.
                let capacity = (2 * bytes.capacity()).min(most).max(len);
                room.cover(capacity)?;
                bytes.reserve_exact(capacity - bytes.len());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Received { bytes: bytes.into(), room })
    }

    async fn chunk(&mut self, deadline: Instant) -> Result<Option<Bytes>, Problem> {
        match timeout_at(deadline, self.body.next()).await {
            Ok(chunk) => chunk.transpose().map_err(|_| {
                Problem::new(Code::UnreadableBody, "the body broke off or its framing is wrong")
            }),
            Err(_) => {
                let limit = self.read_timeout.as_secs_f64();
                Err(Problem::new(
                    Code::RequestTimeout,
                    format!("the body did not arrive within {limit} s (http.read_timeout)"),
                ))
            }
        }
    }

    /// The answer, after reading on what is left of the body.
    pub(super) async fn answer(mut self, result: Result<Response, Problem>) -> Response {
        let problem = match result {
            Ok(response) => return response,
            Err(problem) => problem,
        };
        let whole = problem.code != Code::RequestTimeout && self.discard().await;
        let mut response = problem.into_response();
        if !whole {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Reads the rest of the body and throws it away: whether that came to its end.
    async fn discard(&mut self) -> bool {
        if self.body.is_end_stream() {
            return true;
        }
        let declared = usize::try_from(HttpBody::size_hint(&self.body).lower()).unwrap_or(usize::MAX);
        // Who asks before sending waits for our answer and sends nothing.
        if declared > DISCARD_MAX || self.parts.headers.contains_key(header::EXPECT) {
            return false;
        }
        let deadline = Instant::now() + self.read_timeout;
        let mut read = 0;
        while let Ok(Some(Ok(chunk))) = timeout_at(deadline, self.body.next()).await {
            read += chunk.len();
            if read > DISCARD_MAX {
                return false;
            }
        }
        self.body.is_end_stream()
    }

    /// The query's parameters, each by its name in `known`, in that order; what is wrong goes to `errors`.
    pub(super) fn query<const N: usize>(&self, known: [&str; N], errors: &mut Errors) -> [Option<String>; N] {
        let mut found = [const { None }; N];
        let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(&self.parts.uri) else {
            errors.parameter("", "the query string cannot be read");
            return found;
        };
        for (name, value) in pairs {
            match known.iter().position(|known| *known == name) {
                Some(index) if found[index].is_none() => found[index] = Some(value),
                Some(_) => errors.parameter(&name, "is given more than once"),
                None if N == 0 => errors.parameter(&name, "is unknown: this call has no parameters"),
                None => {
                    errors
                        .parameter(&name, format!("is an unknown parameter; known are {}", known.join(", ")));
                }
            }
        }
        found
    }
}

/// The problem of a request for `request`'s path, after reading on its body.
pub(super) async fn refuse(
    request: Request,
    memory: &BodyMemory,
    read_timeout: Duration,
    problem: Problem,
) -> Response {
    Inbound::new(request, memory, read_timeout).answer(Err(problem)).await
}

fn media(headers: &HeaderMap, ndjson: bool) -> Result<Media, Problem> {
    let wanted = if ndjson { "application/json or application/x-ndjson" } else { "application/json" };
    let wrong = |what: String| {
        let header =
            "add the header Content-Type: application/json (curl: -H 'Content-Type: application/json')";
        Problem::new(Code::UnsupportedMediaType, format!("{what}; this call takes {wanted}: {header}"))
    };
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        let detail = "the body has a Content-Encoding: send it as it is, without compression";
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let Some(value) = values.next() else { return Ok(Media::Unsaid) };
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    let text = text.ok_or_else(|| wrong("the Content-Type cannot be read".to_owned()))?;
    let (essence, parameters) = text.split_once(';').unwrap_or((text, ""));
    let essence = essence.trim().to_ascii_lowercase();
    let found = match essence.as_str() {
        "application/json" => Media::Json,
        "application/x-ndjson" if ndjson => Media::Ndjson,
        other if other.starts_with("application/") && other.ends_with("+json") && other.len() > 17 => {
            Media::Json
        }
        other => {
            let other = crate::job::dead::clip(other, 100);
            return Err(wrong(format!("the body's content type is {other:?}")));
        }
    };
    match charset(parameters) {
        None => Ok(found),
        Some(charset) if matches!(charset.as_str(), "utf-8" | "utf8" | "us-ascii") => Ok(found),
        Some(_) => Err(wrong("the body's charset is not UTF-8".to_owned())),
    }
}

fn charset(parameters: &str) -> Option<String> {
    parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let is_charset = name.trim().eq_ignore_ascii_case("charset");
        is_charset.then(|| value.trim().trim_matches('"').to_ascii_lowercase())
    })
}

/// The problem of a body without a content type.
pub(super) fn content_type_missing() -> Problem {
    Problem::new(
        Code::UnsupportedMediaType,
        "the body has no content type: add the header Content-Type: application/json",
    )
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::body::Body;
    use futures_util::stream;

    use super::*;

    fn inbound(request: axum::http::request::Builder, body: impl Into<Body>) -> Inbound {
        let memory = BodyMemory::new(1 << 20);
        Inbound::new(request.body(body.into()).unwrap(), &memory, Duration::from_secs(5))
    }

    fn of(content_type: &str, ndjson: bool) -> Result<Media, Code> {
        let request = Request::builder().header("content-type", content_type);
        inbound(request, "").media(ndjson).map_err(|problem| problem.code)
    }

    #[test]
    fn json_and_its_relatives_pass() {
        for good in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
            "application/vnd.api+json",
            "application/json ; x=y",
        ] {
            assert_eq!(of(good, false), Ok(Media::Json), "{good}");
        }
        assert_eq!(of("application/x-ndjson", true), Ok(Media::Ndjson));
        for bad in [
            "application/x-www-form-urlencoded",
            "text/plain",
            "text/json",
            "",
            "application/+json",
            "application/x-ndjson",
            "application/json; charset=latin1",
            "multipart/form-data; boundary=x",
            "json",
        ] {
            assert_eq!(of(bad, false), Err(Code::UnsupportedMediaType), "{bad}");
        }
        assert_eq!(inbound(Request::builder(), "").media(false).unwrap(), Media::Unsaid);
        let zipped =
            Request::builder().header("content-encoding", "gzip").header("content-type", "application/json");
        assert_eq!(inbound(zipped, "").media(false).unwrap_err().code, Code::UnsupportedMediaType);
    }

    #[tokio::test]
    async fn the_limit_is_exact_for_both_framings() {
        for (len, fits) in [(0, true), (9, true), (10, true), (11, false), (100_000, false)] {
            let whole = inbound(Request::builder(), "x".repeat(len)).read(10).await;
            let chunks = vec![Ok::<_, Infallible>("x"); len];
            let chunked = inbound(Request::builder(), Body::from_stream(stream::iter(chunks))).read(10).await;
            for result in [whole, chunked] {
                match result {
                    Ok(received) => assert!(fits && received.bytes.len() == len, "{len}"),
                    Err(problem) => assert!(!fits && problem.code == Code::TooLarge, "{len}: {problem:?}"),
                }
            }
        }
    }

    #[tokio::test]
    async fn memory_is_bounded_and_given_back() {
        let memory = BodyMemory::new(100 << 10);
        let read = |len: usize| {
            let request = Request::new(Body::from("x".repeat(len)));
            let mut inbound = Inbound::new(request, &memory, Duration::from_secs(5));
            async move { inbound.read(1 << 20).await }
        };
        let first = read(70 << 10).await.unwrap();
        assert_eq!(read(40 << 10).await.unwrap_err().code, Code::BodyMemoryFull);
        assert!(read(20 << 10).await.is_ok());
        drop(first);
        assert!(read(40 << 10).await.is_ok());
        assert_eq!(memory.free.available_permits(), 100);
    }

    #[test]
    fn an_answer_holds_its_part_of_the_room() {
        let memory = BodyMemory::new(100 << 10);
        let mut room = memory.room();
        room.cover(80 << 10).unwrap();
        let answer = held(vec![0; 10 << 10], Some(room));
        assert_eq!(memory.free.available_permits(), 90);
        drop(answer);
        assert_eq!(memory.free.available_permits(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_a_timeout() {
        let stream = stream::once(async { Ok::<_, Infallible>("x") }).chain(stream::pending());
        let mut inbound = inbound(Request::builder(), Body::from_stream(stream));
        let problem = inbound.read(10).await.unwrap_err();
        assert_eq!(problem.code, Code::RequestTimeout);
        let response = inbound.answer(Err(problem)).await;
        assert_eq!(response.headers()["connection"], "close");
    }

    #[test]
    fn unknown_parameters_are_named() {
        let inbound = inbound(Request::builder().uri("/x?wait=1%30s&a=1&wait=2"), "");
        let mut errors = Errors::new(10);
        assert_eq!(inbound.query(["wait"], &mut errors), [Some("10s".to_owned())]);
        let (_, list) = errors.into_list();
        let names: Vec<_> = list.iter().map(|error| error.parameter.as_deref().unwrap()).collect();
        assert_eq!(names, ["a", "wait"]);
    }
}
