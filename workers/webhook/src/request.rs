//! `http.request`: asks a URL.

use std::{collections::BTreeMap, sync::Arc};

use hopline::{
    Context, Job, JobError, JobResult, Schemas,
    egress::{Egress, Guard, Resolver, SystemResolver, Timeouts},
    schemars::JsonSchema,
    sign::Secrets,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    answer,
    outgoing::{self, Attempt},
    settings::{ALLOW, Settings, SettingsError},
};

/// The arguments. An unknown member is an error, so that a misspelt one is not silently ignored.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The method. Default `GET`, with a body `POST`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Whom to ask: `https://`, at a public address, unless the operator allows more; at most 2,000 bytes.
    pub url: String,
    /// Headers, at most 64. Not those that the connection needs (`host`, `content-length`), nor `webhook-*`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// A body of JSON, sent as it stands here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "serde_json::Value")]
    pub json: Option<Box<RawValue>>,
    /// A body of text, instead of `json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Statuses that are a success. Default: 200 to 299.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 200, max = 599)))]
    pub expect: Vec<u16>,
    /// Statuses after which it is tried again, besides 408, 425, 429 and those from 500.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 200, max = 599)))]
    pub retry: Vec<u16>,
    /// Longest time of the request, its answer included, in seconds. Default: the operator's, 30.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 900))]
    pub timeout: Option<u32>,
    /// Headers of the answer that become output, besides those that the operator lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<String>,
    /// The name of a secret to sign with, by the Standard Webhooks specification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign: Option<String>,
}

/// A method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "they are HTTP's")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

/// The output: what was answered. Its body is one of `json`, `text` and `base64`, or there was none.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
pub struct Answered {
    /// The status.
    pub status: u16,
    /// Headers that were listed, by their names in lower case; what is there several times, with commas between.
    pub headers: BTreeMap<String, String>,
    /// The body, where it says that it is JSON, and is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "serde_json::Value")]
    pub json: Option<Box<RawValue>>,
    /// The body, where it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The body, where it is neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// Whether there was more of the body than is kept.
    pub truncated: bool,
}

impl Job for Request {
    const KIND: &'static str = "http.request";
    const QUEUE: &'static str = "webhook";
    type Output = Answered;

    fn schemas() -> Schemas {
        Schemas::of::<Self>()
    }
}

/// Asks URLs. Cheap to clone.
#[derive(Clone)]
pub struct Webhook(Arc<Inner>);

struct Inner {
    egress: Egress,
    keys: BTreeMap<String, Secrets>,
    settings: Settings,
}

impl Webhook {
    /// One as it is set.
    ///
    /// # Errors
    /// A secret or an allowed address is none, or there can be no HTTP client.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let resolver: Arc<dyn Resolver> = Arc::new(SystemResolver);
        Self::with_resolver(settings, &resolver)
    }

    /// The same, with other answers to what the address of a name is.
    ///
    /// # Errors
    /// As [`Webhook::new`].
    pub fn with_resolver(settings: Settings, resolver: &Arc<dyn Resolver>) -> Result<Self, SettingsError> {
        let invalid = |problem| SettingsError::Invalid(vec![problem]);
        let keys = settings.keys()?;
        let guard = Guard::new(&settings.allow).map_err(invalid)?.allowed_by(ALLOW);
        let timeouts = Timeouts { connect: settings.connect_timeout, total: settings.max_timeout };
        let egress = Egress::new(guard, resolver, timeouts).map_err(invalid)?;
        Ok(Self(Arc::new(Inner { egress, keys, settings })))
    }
}

/// Sends one request.
///
/// # Errors
/// Fatal for what the job got wrong, the rest as [`answer`] says.
pub async fn request(job: Request, cx: Context<Webhook>) -> JobResult<Answered> {
    let Inner { egress, keys, settings } = &*cx.state().0;
    let attempt = Attempt { id: cx.job_id().to_string(), run: cx.run() };
    let request = outgoing::request(&job, &attempt, keys, settings)
        .map_err(|problem| JobError::fatal("bad_args", problem))?;
    let sent = tokio::select! {
        sent = egress.send(request) => sent,
        () = cx.cancelled() => return Err(JobError::retry("stopped", "told to stop before there was an answer")),
    };
    let response = sent.map_err(|error| answer::failed(&error))?;
    answer::judge(&job, settings, response)
}
