//! The description, put together from the calls, their shapes and the announced kinds.

use std::{
    collections::BTreeMap,
    sync::{Mutex, OnceLock, PoisonError},
};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode},
    response::Response,
};
use bytes::Bytes;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{
    CALLS, kinds,
    operation::{Place, schema_of},
    shapes,
    tell::{self, Shapes},
};
use crate::{
    client::KindInfo,
    http::{
        App,
        access::routes,
        answer,
        body::Inbound,
        etag,
        fields::Errors,
        problem::{self, Code, Problem},
        submission::ERRORS_MAX,
    },
};

/// The description, as far as it is made.
#[derive(Debug, Default)]
pub(in crate::http) struct Description {
    /// What does not depend on the kinds.
    whole: OnceLock<Value>,
    /// What was answered last.
    last: Mutex<Option<Written>>,
}

/// The description with these kinds.
#[derive(Debug, Clone)]
struct Written {
    kinds: Vec<KindInfo>,
    text: Bytes,
    tag: HeaderValue,
}

/// `GET /openapi.json`.
pub(in crate::http) async fn get(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = describe(&app, &mut inbound).await;
    inbound.answer(result).await
}

async fn describe(app: &App, inbound: &mut Inbound) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [] = inbound.query([], &mut errors);
    errors.none_or(Some(()))?;
    let known = kinds::known(app, &inbound.caller);
    let Written { text, tag, .. } = match app.description.written(&known) {
        Some(written) => written,
        None => app.describe(known).await,
    };
    // It changes with the kinds.
    Ok(etag::answer(&inbound.parts.headers, tag, || answer::json(StatusCode::OK, text)))
}

impl Description {
    /// What was answered last, if it is of these kinds.
    fn written(&self, kinds: &[KindInfo]) -> Option<Written> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone().filter(|last| last.kinds == kinds)
    }
}

impl App {
    /// The description with these kinds.
    async fn describe(&self, kinds: Vec<KindInfo>) -> Written {
        let cookie = self.access.keyring().map(|_| self.access.cookie());
        let made = || made(self.limits.max_delay.as_secs_f64(), cookie);
        let mut document = self.description.whole.get_or_init(made).clone();
        let complete = kinds::put_in(self, &kinds, &mut document).await;
        // Text as keys, and nothing that fails.
        let text = serde_json::to_vec(&document).unwrap_or_default();
        let tag = etag::of(&text);
        let written = Written { kinds, text: text.into(), tag };
        if complete {
            let mut last = self.description.last.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some(written.clone());
        }
        written
    }
}

/// A place where schemas of answers are gathered.
pub(super) fn gathering() -> Shapes {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    Shapes { generator: settings.into_generator() }
}

/// What an operation depends on besides its call.
pub(super) fn place(method: &Method, path: &str, keys: bool) -> Place {
    let need = routes::TABLE.iter().find(|(known, route, _)| known == method && *route == path);
    let scope = need.and_then(|(.., need)| need.scope());
    Place { is_safe: *method == Method::GET, scope, keys }
}

/// The description without the kinds. `session`: the name of a session's cookie, if there are keys.
fn made(max_delay: f64, session: Option<&str>) -> Value {
    let mut shapes = gathering();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for (method, path, tell) in CALLS {
        // Without keys there is nothing there.
        if session.is_none() && matches!(*path, "/login" | "/logout") {
            continue;
        }
        let operation = tell(&mut shapes).written(&place(method, path, session.is_some()));
        paths.entry(path).or_default().insert(method.as_str().to_lowercase(), operation);
    }
    schema_of::<problem::Shape<'static>>(&mut shapes.generator);
    let mut schemas = shapes.generator.take_definitions(true);
    schemas.values_mut().for_each(finish);
    schemas.insert("ProblemCode".to_owned(), codes());
    schemas["Problem"]["properties"]["code"] = shapes::reference("ProblemCode");
    schemas.extend(shapes::shared(max_delay));
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Hopline",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Background jobs on RabbitMQ",
            "description": INFO,
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": tell::TAGS.map(|(name, text)| json!({ "name": name, "description": text })),
        "paths": paths,
        "components": { "schemas": schemas, "headers": headers(), "parameters": parameters() },
    });
    if let Some(session) = session {
        document["components"]["securitySchemes"] = schemes(session);
        for (name, means) in [("Set-Cookie", "The session."), ("WWW-Authenticate", "`Bearer`.")] {
            document["components"]["headers"][name] = text(means);
        }
    }
    document
}

const INFO: &str = "Any path that is not here is 404 `not_found`, a wrong method 405 `method_not_allowed` with `Allow`. \
    What goes wrong is `application/problem+json` (RFC 9457): programs look at `code`. Within v1 members, codes and calls \
    are only added: ignore members you do not know. Requests are read strictly: unknown members and parameters are \
    refused.";

/// Every code that a problem may have.
fn codes() -> Value {
    let row = |code: &Code| format!("- `{}` ({}): {}", code.as_str(), code.status().as_u16(), code.title());
    let rows: Vec<String> = Code::ALL.iter().map(row).collect();
    let names: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    json!({
        "type": "string",
        "enum": names,
        "description": format!("What went wrong, for programs. Codes are added; they do not change.\n\n{}", rows.join("\n")),
    })
}

fn schemes(cookie: &str) -> Value {
    json!({
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key (`hopline key new`): `hl_<id>_<secret>`. The roles of an operation are the scopes \
                            that the key must have.",
        },
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": cookie,
            "description": "A browser's session, from `POST /login`. Unsafe methods need an `Origin` that is ours, or \
                            `Sec-Fetch-Site: same-origin`, too.",
        },
    })
}

/// A header of any text.
fn text(description: &str) -> Value {
    json!({ "description": description, "schema": { "type": "string" } })
}

fn headers() -> Value {
    json!({
        "X-Request-Id": text("The request's own id, if it has a sane one, else a new one."),
        "Location": text("The job's path."),
        "Hopline-Job-Id": text("The job's id."),
        "Preference-Applied": text("Which preferences were applied (RFC 7240)."),
        "Idempotency-Replayed": text("`true`: nothing new was submitted."),
        "Link": text("The next page, `rel=\"next\"`."),
        "ETag": text("Stands for this content."),
        "Retry-After": {
            "description": "Seconds to stay away.",
            "schema": { "type": "integer", "minimum": 0 },
        },
    })
}

fn parameters() -> Value {
    json!({
        "X-Request-Id": {
            "name": "X-Request-Id",
            "in": "header",
            "schema": { "type": "string" },
            "description": "Taken over if it has 1 to 128 of `A-Z a-z 0-9 - _ . : / + = @`.",
        },
    })
}

/// What the types of answers do not say: what is not there is left out and never null, and what a time is.
fn finish(schema: &mut Value) {
    let required = schema.get("required").cloned().unwrap_or_default();
    let is_required =
        |name: &String| required.as_array().is_some_and(|names| names.iter().any(|known| known == name));
    let Some(Value::Object(members)) = schema.get_mut("properties") else { return };
    for (name, member) in members.iter_mut() {
        if !is_required(name) {
            not_null(member);
        }
        if (name.ends_with("_at") || name == "since") && member["type"] == "string" {
            member["format"] = "date-time".into();
        }
    }
}

fn not_null(member: &mut Value) {
    if let Some(Value::Array(types)) = member.get_mut("type") {
        types.retain(|name| name != "null");
        if let [one] = types.as_slice() {
            member["type"] = one.clone();
        }
    }
    if let Some(Value::Array(any)) = member.get_mut("anyOf") {
        any.retain(|schema| *schema != json!({ "type": "null" }));
        if let [Value::Object(one)] = any.as_slice() {
            let one = one.clone();
            if let Value::Object(member) = member {
                member.remove("anyOf");
                member.extend(one);
            }
        }
    }
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
