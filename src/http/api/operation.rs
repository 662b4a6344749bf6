//! One call as OpenAPI tells of it: an operation, built step by step.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::shapes;
use crate::{access::Scope, http::problem::Code};

/// What any call may answer.
const ALWAYS: [Code; 4] = [Code::BadHost, Code::RequestTimeout, Code::Internal, Code::Overloaded];
/// What calls that read a body may answer besides.
const BODY: [Code; 3] = [Code::UnreadableBody, Code::TooLarge, Code::BodyMemoryFull];
/// What calls that read JSON may answer besides.
const JSON: [Code; 4] =
    [Code::UnsupportedMediaType, Code::MalformedJson, Code::TooDeep, Code::InvalidRequest];
/// What a key may lead to.
const KEYED: [Code; 6] = [
    Code::BadIdempotencyKey,
    Code::KeyReused,
    Code::InFlight,
    Code::KeysFull,
    Code::KeysUnavailable,
    Code::RecordBehind,
];
/// What a submit may lead to.
const SUBMIT: [Code; 10] = [
    Code::UnknownQueue,
    Code::InvalidRequest,
    Code::TooLarge,
    Code::BrokerUnavailable,
    Code::BrokerBlocked,
    Code::BrokerRefused,
    Code::SpoolFull,
    Code::SpoolUnavailable,
    Code::ConfirmTimeout,
    Code::ConfirmLost,
];

/// What calls that need a key may answer besides.
const LOCKED: [Code; 4] = [Code::Unauthorized, Code::ScopeMissing, Code::RateLimited, Code::AccessUnknown];
/// What only keys lead to.
const KEYS_ALONE: [Code; 5] =
    [Code::Unauthorized, Code::ScopeMissing, Code::QueueForbidden, Code::RateLimited, Code::AccessUnknown];
/// Problems whose answer may name a job.
const ABOUT_A_JOB: [Code; 16] = [
    Code::OutputNotRecorded,
    Code::JobCancelled,
    Code::InFlight,
    Code::NotFinished,
    Code::NoOutput,
    Code::AlreadyFinished,
    Code::NotDead,
    Code::KeyReused,
    Code::JobFatal,
    Code::JobDead,
    Code::OutputOmitted,
    Code::RecordBehind,
    Code::SpoolUnavailable,
    Code::ConfirmTimeout,
    Code::ConfirmLost,
    Code::WaitTimeout,
];

/// What an operation depends on besides its call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Browsers of other origins may ask.
    pub(super) is_safe: bool,
    /// What a key needs.
    pub(super) scope: Option<Scope>,
    /// Whether there are keys.
    pub(super) keys: bool,
}

/// A call on its way into the document.
#[derive(Debug, Default)]
pub(super) struct Operation {
    id: String,
    tag: &'static str,
    summary: String,
    text: String,
    deprecated: bool,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: BTreeMap<u16, Value>,
    codes: Vec<Code>,
    /// What may be answered at the status of a problem besides.
    instead: Vec<(u16, &'static str, Value)>,
}

/// A body or an answer of JSON.
pub(super) fn json_media(schema: Value, example: Value) -> Value {
    let mut media = json!({});
    (media["schema"], media["example"]) = (schema, example);
    json!({ "application/json": media })
}

impl Operation {
    pub(super) fn new(id: impl Into<String>, tag: &'static str, summary: impl Into<String>) -> Self {
        Self { id: id.into(), tag, summary: summary.into(), codes: ALWAYS.to_vec(), ..Self::default() }
    }

    /// What else is to be said of it, in Markdown.
    pub(super) fn text(mut self, text: impl Into<String>) -> Self {
        self.text = text.into();
        self
    }

    pub(super) fn deprecated(mut self, deprecated: bool) -> Self {
        self.deprecated = deprecated;
        self
    }

    fn parameter(mut self, place: &str, name: &str, required: bool, schema: Value, text: &str) -> Self {
        let mut parameter = json!({ "name": name, "in": place, "description": text });
        parameter["schema"] = schema;
        if required {
            parameter["required"] = true.into();
        }
        self.parameters.push(parameter);
        self
    }

    pub(super) fn path(self, name: &str, schema: Value, text: &str) -> Self {
        self.parameter("path", name, true, schema, text)
    }

    pub(super) fn query(self, name: &str, schema: Value, text: &str) -> Self {
        self.parameter("query", name, false, schema, text)
    }

    pub(super) fn header(self, name: &str, schema: Value, text: &str) -> Self {
        self.parameter("header", name, false, schema, text)
    }

    /// Takes JSON of this schema; another problem than [`JSON`] is not told of here.
    pub(super) fn takes(mut self, required: bool, media: Value) -> Self {
        let mut body = json!({ "required": required });
        body["content"] = media;
        self.body = Some(body);
        self.codes(&BODY).codes(&JSON)
    }

    /// Takes nothing, and says so if something comes.
    pub(super) fn takes_nothing(self) -> Self {
        self.codes(&BODY).codes(&[Code::InvalidRequest])
    }

    /// Takes parameters of the query alone.
    pub(super) fn takes_query(self) -> Self {
        self.codes(&[Code::InvalidRequest])
    }

    /// A request that can be repeated by an idempotency key.
    pub(super) fn keyed(self) -> Self {
        self.header(
            "Idempotency-Key",
            shapes::key_header(),
            "Stands for this request: a repeat with the same key makes no second job. A text as in RFC 8941, or the key \
             as it is.",
        )
        .codes(&KEYED)
    }

    /// A request whose client chose the id.
    pub(super) fn named(self) -> Self {
        self.codes(&KEYED)
    }

    /// A request that submits a job.
    pub(super) fn submits(self) -> Self {
        self.codes(&SUBMIT).codes(&[Code::QueueForbidden])
    }

    pub(super) fn codes(mut self, codes: &[Code]) -> Self {
        self.codes.extend(codes);
        self
    }

    /// An answer that is no problem.
    pub(super) fn answers(
        mut self,
        status: StatusCode,
        text: &str,
        content: Option<Value>,
        headers: &[&str],
    ) -> Self {
        let mut answer = json!({ "description": text, "headers": self::headers(headers) });
        if let Some(content) = content {
            answer["content"] = content;
        }
        self.answers.insert(status.as_u16(), answer);
        self
    }

    /// An answer with JSON.
    pub(super) fn gives(
        self,
        status: StatusCode,
        text: &str,
        schema: Value,
        example: Value,
        headers: &[&str],
    ) -> Self {
        self.answers(status, text, Some(json_media(schema, example)), headers)
    }

    /// Another call that is like this one.
    pub(super) fn renamed(self, id: &str, tag: &'static str, summary: &str) -> Self {
        Self { id: id.to_owned(), tag, summary: summary.to_owned(), ..self }
    }

    /// Without these parameters.
    pub(super) fn without(mut self, names: &[&str]) -> Self {
        self.parameters.retain(|parameter| !names.iter().any(|name| parameter["name"] == *name));
        self
    }

    /// At a status that problems have, too, JSON of this schema instead.
    pub(super) fn or_answers(mut self, status: u16, text: &'static str, schema: &Value) -> Self {
        self.instead.push((status, text, schema.clone()));
        self
    }

    /// The operation in its place.
    pub(super) fn written(mut self, place: &Place) -> Value {
        if !place.is_safe {
            self.codes.push(Code::CrossOrigin);
        }
        let scope = place.scope.filter(|_| place.keys);
        if scope.is_some() {
            self.codes.extend(LOCKED);
        }
        self.codes.retain(|code| place.keys || !KEYS_ALONE.contains(code));
        let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
        for code in Code::ALL.iter().filter(|code| self.codes.contains(code)) {
            by_status.entry(code.status().as_u16()).or_default().push(*code);
        }
        for (status, codes) in by_status {
            self.answers.insert(status, problem(status, &codes));
        }
        for (status, text, schema) in self.instead {
            let answer = self
                .answers
                .entry(status)
                .or_insert_with(|| json!({ "description": "", "headers": headers(&[]), "content": {} }));
            let before = answer["description"].as_str().unwrap_or_default();
            answer["description"] = format!("{text}\n\n{before}").trim().into();
            answer["content"]["application/json"] = json!({ "schema": schema });
        }
        let answers: Map<_, _> =
            self.answers.into_iter().map(|(status, answer)| (status.to_string(), answer)).collect();
        let mut written = json!({ "operationId": self.id, "tags": [self.tag], "summary": self.summary, "responses": answers });
        if !self.text.is_empty() {
            written["description"] = self.text.into();
        }
        if self.deprecated {
            written["deprecated"] = true.into();
        }
        self.parameters.push(json!({ "$ref": "#/components/parameters/X-Request-Id" }));
        written["parameters"] = self.parameters.into();
        if let Some(body) = self.body {
            written["requestBody"] = body;
        }
        if let Some(scope) = scope {
            let scope = scope.to_string();
            written["security"] = json!([{ "key": [scope] }, { "session": [scope] }]);
        }
        written
    }
}

/// The headers of an answer: the request's id, which all have, and these.
fn headers(more: &[&str]) -> Value {
    let all = ["X-Request-Id"].into_iter().chain(more.iter().copied());
    let header = |name: &str| (name.to_owned(), json!({ "$ref": format!("#/components/headers/{name}") }));
    all.map(header).collect::<Map<_, _>>().into()
}

/// The answer with one of these problems, with an example of each.
fn problem(status: u16, codes: &[Code]) -> Value {
    let names: Vec<&str> = codes.iter().map(|code| code.as_str()).collect();
    let mut more = Vec::new();
    if matches!(status, 429 | 503) || codes.contains(&Code::InFlight) {
        more.push("Retry-After");
    }
    if codes.contains(&Code::Unauthorized) {
        more.push("WWW-Authenticate");
    }
    if codes.iter().any(|code| ABOUT_A_JOB.contains(code)) {
        more.extend(["Location", "Hopline-Job-Id"]);
    }
    let examples: Map<_, _> = codes
        .iter()
        .map(|code| {
            let value = json!({
                "type": format!("urn:hopline:problem:{}", code.as_str()),
                "title": code.title(),
                "status": status,
                "detail": code.title(),
                "code": code.as_str(),
            });
            (code.as_str().to_owned(), json!({ "summary": code.title(), "value": value }))
        })
        .collect();
    let schema = json!({
        "allOf": [
            { "$ref": "#/components/schemas/Problem" },
            { "properties": { "status": { "const": status }, "code": { "enum": names } } },
        ],
    });
    json!({
        "description": codes.iter().map(|code| format!("`{}`: {}", code.as_str(), code.title())).collect::<Vec<_>>().join("\n\n"),
        "headers": headers(&more),
        "content": { "application/problem+json": { "schema": schema, "examples": examples } },
    })
}

/// The schema of a type that is answered, as a reference into the components.
pub(super) fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().into()
}
