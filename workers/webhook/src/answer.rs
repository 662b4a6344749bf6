//! What an answer means for the job, and what is told of it. Pure.
//!
//! | the answer | then | code |
//! |---|---|---|
//! | a status in `expect` (200 to 299 where it is empty) | success | |
//! | 408, 425, 429, from 500, or in `retry` | tried again; a `Retry-After` says when, from 1 s to 1 d | `http_503` |
//! | another one, redirects too: they are not followed | dead | `http_404` |
//! | none | tried again | `timeout`, `no_connection`, `no_answer` |
//! | the URL, or the address it leads to, is refused: nobody was asked | dead | `bad_url`, `address_refused` |

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hopline::{
    JobError, JobResult,
    egress::{EgressError, HeaderMap, Response},
};
use serde_json::value::RawValue;

use crate::{
    request::{Answered, Request},
    settings::Settings,
};

/// The pauses that an answer may ask for.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(86_400));
/// How much of a body is quoted in an error, in characters.
const QUOTED: usize = 500;

/// What follows from an answer.
pub(crate) fn judge(job: &Request, settings: &Settings, response: Response) -> JobResult<Answered> {
    let status = response.answer.status;
    let expected = match job.expect.as_slice() {
        [] => (200..300).contains(&status),
        listed => listed.contains(&status),
    };
    if expected {
        return Ok(told(job, settings, response));
    }
    let (code, what) = (format!("http_{status}"), describe(&response));
    let passing = matches!(status, 408 | 425 | 429 | 500..) || job.retry.contains(&status);
    Err(match (passing, response.answer.retry_after) {
        (true, Some(after)) => JobError::retry_in(after.clamp(PAUSE.0, PAUSE.1), code, what),
        (true, None) => JobError::retry(code, what),
        (false, _) => JobError::fatal(code, what),
    })
}

/// What follows where there is no answer.
pub(crate) fn failed(error: &EgressError) -> JobError {
    match error {
        EgressError::Refused(refusal) => JobError::fatal(refusal.code(), format!("the url {refusal}")),
        EgressError::NoAnswer { code, .. } => JobError::retry(*code, error),
        other => JobError::retry("no_answer", other),
    }
}

fn describe(response: &Response) -> String {
    let mut what = format!("{} answered {}", response.answer.host, response.answer.status);
    let location = response.headers.get("location").and_then(|value| value.to_str().ok());
    if let (300..=399, Some(location)) = (response.answer.status, location) {
        what += &format!("; redirects are not followed, this one leads to {location}");
    }
    let text = String::from_utf8_lossy(&response.body);
    let text: String = text.trim().chars().filter(|c| !c.is_control() || *c == '\n').take(QUOTED).collect();
    if !text.is_empty() {
        what += &format!(": {text}");
    }
    what
}

fn told(job: &Request, settings: &Settings, response: Response) -> Answered {
    let Response { answer, headers, body, truncated } = response;
    let named =
        settings.response_headers.iter().chain(&job.response_headers).map(|name| name.to_ascii_lowercase());
    let headers_told =
        named.filter_map(|name| value_of(&headers, &name).map(|value| (name, value))).collect();
    let mut told = Answered {
        status: answer.status,
        headers: headers_told,
        json: None,
        text: None,
        base64: None,
        truncated,
    };
    match as_json(&headers, &body, truncated) {
        _ if body.is_empty() => {}
        Some(json) => told.json = Some(json),
        None => match as_text(body, truncated) {
            Ok(text) => told.text = Some(text),
            Err(bytes) => told.base64 = Some(BASE64.encode(bytes)),
        },
    }
    told
}

fn value_of(headers: &HeaderMap, name: &str) -> Option<String> {
    let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let values = values.collect::<Vec<_>>().join(", ");
    headers.contains_key(name).then_some(values)
}

fn as_json(headers: &HeaderMap, body: &[u8], truncated: bool) -> Option<Box<RawValue>> {
    let content_type = headers.get("content-type")?.to_str().ok()?;
    let media_type = content_type.split(';').next()?.trim().to_ascii_lowercase();
    let says_so = media_type == "application/json" || media_type.ends_with("+json");
    if truncated || !says_so {
        return None;
    }
    serde_json::from_slice(body).ok()
}

/// Text; of one that was cut within a character, all before it.
fn as_text(mut body: Vec<u8>, truncated: bool) -> Result<String, Vec<u8>> {
    if let Err(error) = std::str::from_utf8(&body)
        && truncated
        && error.error_len().is_none()
    {
        body.truncate(error.valid_up_to());
    }
    String::from_utf8(body).map_err(|error| error.into_bytes())
}

#[cfg(test)]
mod tests {
    use hopline::{
        egress::{Answer, HeaderValue},
        job::Verdict,
    };
    use serde_json::{Value, json};

    use super::*;

    fn response(status: u16, retry_after: Option<u64>, content_type: &'static str, body: &[u8]) -> Response {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static(content_type));
        headers.insert("location", HeaderValue::from_static("https://b.example/"));
        headers.append("set-cookie", HeaderValue::from_static("a=1"));
        headers.append("set-cookie", HeaderValue::from_static("b=2"));
        let retry_after = retry_after.map(Duration::from_secs);
        let answer = Answer { status, retry_after, host: "a.example".to_owned() };
        Response { answer, headers, body: body.to_vec(), truncated: false }
    }

    fn job(args: Value) -> Request {
        serde_json::from_value(args).unwrap()
    }

    #[test]
    fn statuses_decide_what_follows() {
        let plain = || job(json!({"url": "x"}));
        let listed = || job(json!({"url": "x", "expect": [404, 503], "retry": [409]}));
        let pause = |seconds| Some(Verdict::RetryIn(Duration::from_secs(seconds)));
        for (job, status, retry_after, expected) in [
            (plain(), 200, None, None),
            (plain(), 204, Some(5), None),
            (plain(), 301, None, Some(Verdict::Fatal)),
            (plain(), 400, Some(5), Some(Verdict::Fatal)),
            (plain(), 404, None, Some(Verdict::Fatal)),
            (plain(), 408, None, Some(Verdict::Retry)),
            (plain(), 409, None, Some(Verdict::Fatal)),
            (plain(), 425, None, Some(Verdict::Retry)),
            (plain(), 429, Some(7), pause(7)),
            (plain(), 429, Some(0), pause(1)),
            (plain(), 429, Some(10_000_000), pause(86_400)),
            (plain(), 500, None, Some(Verdict::Retry)),
            (plain(), 503, Some(120), pause(120)),
            (listed(), 404, None, None),
            (listed(), 503, None, None),
            (listed(), 200, None, Some(Verdict::Fatal)),
            (listed(), 409, None, Some(Verdict::Retry)),
        ] {
            let judged =
                judge(&job, &Settings::default(), response(status, retry_after, "text/plain", b"why"));
            assert_eq!(judged.as_ref().err().map(JobError::verdict), expected, "{status}");
            if let Err(error) = judged {
                assert_eq!(error.code(), format!("http_{status}"));
                assert!(error.message().ends_with(": why"), "{error}");
                assert_eq!(error.message().contains("leads to https://b.example/"), status == 301, "{error}");
            }
        }
    }

    #[test]
    fn a_body_is_told_as_what_it_is() {
        let job = job(json!({"url": "x", "response_headers": ["Set-Cookie", "x-none"]}));
        for (content_type, body, truncated, expected) in [
            ("application/json", &b"{\"a\": 1.0}"[..], false, json!({"json": {"a": 1.0}})),
            ("application/problem+json; charset=utf-8", b"[]", false, json!({"json": []})),
            ("application/json", b"{", false, json!({"text": "{"})),
            ("application/json", b"[1]", true, json!({"text": "[1]"})),
            ("text/plain", b"[1]", false, json!({"text": "[1]"})),
            ("image/png", b"\x89\xff", false, json!({"base64": "if8="})),
            ("text/plain", b"a\xc3", true, json!({"text": "a"})),
            ("text/plain", b"a\xc3", false, json!({"base64": "YcM="})),
            ("application/json", b"", false, json!({})),
        ] {
            let response = Response { truncated, ..response(200, None, content_type, body) };
            let told = serde_json::to_value(judge(&job, &Settings::default(), response).unwrap()).unwrap();
            let mut expected = expected;
            let headers = json!({"content-type": content_type, "location": "https://b.example/", "set-cookie": "a=1, b=2"});
            let rest = json!({"status": 200, "truncated": truncated, "headers": headers});
            expected.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            assert_eq!(told, expected);
        }
    }
}
