//! From a job to a request. Pure but for the clock that a signature tells.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use hopline::{
    egress::{self, HeaderMap, HeaderName, HeaderValue},
    sign::Secrets,
};

use crate::{
    request::{Method, Request},
    settings::Settings,
};

/// Most headers of a job.
const HEADERS_MAX: usize = 64;
/// Longest value of a header, in bytes.
const VALUE_MAX: usize = 8 << 10;
/// What the connection says for itself, and what a job could use to confuse those on the way.
const NOT_A_JOBS: [&str; 10] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Which attempt it is.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) id: String,
    pub(crate) run: u32,
}

/// The request of a job, or a sentence on what is wrong with it.
pub(crate) fn request<'a>(
    job: &'a Request,
    attempt: &Attempt,
    keys: &BTreeMap<String, Secrets>,
    settings: &Settings,
) -> Result<egress::Request<'a>, String> {
    let (body, content_type) = match (&job.json, &job.body) {
        (Some(_), Some(_)) => return Err("json and body exclude each other".to_owned()),
        (Some(json), None) => (json.get().to_owned(), Some("application/json")),
        (None, Some(text)) => (text.clone(), Some("text/plain; charset=utf-8")),
        (None, None) => (String::new(), None),
    };
    let usual = if content_type.is_some() { Method::Post } else { Method::Get };
    let method = method(job.method.unwrap_or(usual));
    let mut headers = headers(&job.headers)?;
    let mut unless_said = |name: &'static str, value: &str| {
        // An id is hexadecimal digits, the others are ours.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.entry(HeaderName::from_static(name)).or_insert(value);
        }
    };
    if let Some(content_type) = content_type {
        unless_said("content-type", content_type);
    }
    // A repeated attempt says the same: whoever is asked can recognise it. A replay is meant to count anew.
    let key = match attempt.run {
        1 => attempt.id.clone(),
        run => format!("{}.{run}", attempt.id),
    };
    if ![egress::Method::GET, egress::Method::HEAD, egress::Method::OPTIONS].contains(&method) {
        unless_said("idempotency-key", &key);
    }
    if let Some(name) = &job.sign {
        let keys = keys.get(name).ok_or_else(|| unknown(name, keys))?;
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs().to_string();
        // The specification separates with dots.
        let id = key.replace('.', "_");
        for (name, value) in [
            ("webhook-signature", keys.sign(&id, &now, body.as_bytes())),
            ("webhook-id", id),
            ("webhook-timestamp", now),
        ] {
            unless_said(name, &value);
        }
    }
    Ok(egress::Request {
        method,
        url: &job.url,
        headers,
        body: body.into(),
        timeout: timeout(job.timeout, settings)?,
        body_max: settings.body,
    })
}

fn timeout(asked: Option<u32>, settings: &Settings) -> Result<Duration, String> {
    match asked.map(|seconds| Duration::from_secs(seconds.into())) {
        None => Ok(settings.timeout),
        Some(time) if (Duration::from_secs(1)..=settings.max_timeout).contains(&time) => Ok(time),
        Some(_) => Err(format!("timeout must be 1 to {} seconds", settings.max_timeout.as_secs())),
    }
}

fn unknown(name: &str, keys: &BTreeMap<String, Secrets>) -> String {
    match keys.keys().map(String::as_str).collect::<Vec<_>>().join(", ") {
        names if names.is_empty() => format!("there is no secret {name:?}: the worker has none"),
        names => format!("there is no secret {name:?}; there is {names}"),
    }
}

fn headers(said: &BTreeMap<String, String>) -> Result<HeaderMap, String> {
    if said.len() > HEADERS_MAX {
        return Err(format!("there are more than {HEADERS_MAX} headers"));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in said {
        let name: HeaderName = name.parse().map_err(|_| format!("{name:?} is no name of a header"))?;
        if NOT_A_JOBS.contains(&name.as_str()) || name.as_str().starts_with("webhook-") {
            return Err(format!("the header {name} is not a job's to say"));
        }
        // Line breaks would begin another header: no value takes them.
        let value = HeaderValue::from_str(value).ok().filter(|value| value.len() <= VALUE_MAX);
        let value = value.ok_or_else(|| format!("the header {name} has a value that is none"))?;
        if headers.insert(name.clone(), value).is_some() {
            return Err(format!("the header {name} is there twice"));
        }
    }
    Ok(headers)
}

fn method(method: Method) -> egress::Method {
    match method {
        Method::Get => egress::Method::GET,
        Method::Head => egress::Method::HEAD,
        Method::Post => egress::Method::POST,
        Method::Put => egress::Method::PUT,
        Method::Patch => egress::Method::PATCH,
        Method::Delete => egress::Method::DELETE,
        Method::Options => egress::Method::OPTIONS,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The request of a job with these args besides a URL: method, headers, body; or what is wrong.
    fn built(args: &Value, run: u32) -> Result<(String, BTreeMap<String, String>, String), String> {
        let mut all = json!({"url": "https://example.org/"});
        all.as_object_mut().unwrap().extend(args.as_object().unwrap().clone());
        let job: Request = serde_json::from_str(&all.to_string()).map_err(|error| error.to_string())?;
        let text = "secrets.a = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"";
        let settings: Settings = toml::from_str(text).unwrap();
        let attempt = Attempt { id: "id".to_owned(), run };
        let request = request(&job, &attempt, &settings.keys().unwrap(), &settings)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let headers = request.headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes())));
        Ok((request.method.to_string(), headers.collect(), text(&request.body)))
    }

    #[test]
    fn a_request_is_what_the_job_says() {
        for (args, method, headers, body) in [
            (json!({}), "GET", vec![], ""),
            (
                json!({"json": {"a": [1]}}),
                "POST",
                vec!["content-type: application/json", "idempotency-key: id"],
                r#"{"a":[1]}"#,
            ),
            (
                json!({"body": "x"}),
                "POST",
                vec!["content-type: text/plain; charset=utf-8", "idempotency-key: id"],
                "x",
            ),
            (
                json!({"method": "PUT", "body": "x", "headers": {"Content-Type": "a/b", "Idempotency-Key": "mine"}}),
                "PUT",
                vec!["content-type: a/b", "idempotency-key: mine"],
                "x",
            ),
            (json!({"method": "DELETE"}), "DELETE", vec!["idempotency-key: id"], ""),
            (json!({"method": "HEAD", "headers": {"x-a": "b"}}), "HEAD", vec!["x-a: b"], ""),
        ] {
            let (got, said, sent) = built(&args, 1).unwrap();
            let said: Vec<String> =
                said.into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
            assert_eq!(
                (got.as_str(), said, sent.as_str()),
                (method, headers.into_iter().map(str::to_owned).collect(), body),
                "{args}"
            );
        }
        assert_eq!(built(&json!({"body": "x"}), 2).unwrap().1["idempotency-key"], "id.2");
    }

    #[test]
    fn a_signature_is_over_what_is_sent() {
        let (_, headers, body) = built(&json!({"json": {"a": 1.50}, "sign": "a"}), 2).unwrap();
        assert_eq!((headers["webhook-id"].as_str(), body.as_str()), ("id_2", r#"{"a":1.5}"#));
        let settings: Settings =
            toml::from_str("secrets.a = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"").unwrap();
        let expected =
            settings.keys().unwrap()["a"].sign("id_2", &headers["webhook-timestamp"], body.as_bytes());
        assert_eq!(headers["webhook-signature"], expected);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let many: BTreeMap<String, String> =
            (0..65).map(|number| (format!("x-{number}"), String::new())).collect();
        for (args, part) in [
            (json!({"json": 1, "body": "x"}), "exclude each other"),
            (json!({"headers": {"x-a": "b\r\nx-c: d"}}), "a value that is none"),
            (json!({"headers": {"x-a": "b".repeat(9000)}}), "a value that is none"),
            (json!({"headers": {"x a": "b"}}), "no name of a header"),
            (json!({"headers": {"x-a\r\nx-c": "b"}}), "no name of a header"),
            (json!({"headers": {"Host": "b"}}), "host is not a job's"),
            (json!({"headers": {"Transfer-Encoding": "chunked"}}), "transfer-encoding is not a job's"),
            (json!({"headers": {"Webhook-Id": "b"}}), "webhook-id is not a job's"),
            (json!({"headers": {"X-A": "b", "x-a": "c"}}), "is there twice"),
            (json!({"headers": many}), "more than 64"),
            (json!({"sign": "b"}), "there is a"),
            (json!({"timeout": 0}), "1 to 300 seconds"),
            (json!({"timeout": 301}), "1 to 300 seconds"),
            (json!({"method": "get"}), "unknown variant"),
            (json!({"method": "CONNECT"}), "unknown variant"),
            (json!({"follow": true}), "unknown field"),
        ] {
            let error = built(&args, 1).unwrap_err();
            assert!(error.contains(part), "{args}: {error}");
        }
    }
}
