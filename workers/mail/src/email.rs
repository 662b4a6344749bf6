//! `email.send`: sends one mail.

use std::{collections::BTreeMap, sync::Arc};

use hopline::{Context, Job, JobError, JobResult, Schemas, schemars::JsonSchema};
use serde::{Deserialize, Serialize};

use crate::{
    message,
    settings::{Settings, SettingsError},
    smtp::Mailer,
    verdict,
};

/// The arguments. An unknown member is an error, so that a misspelt one is not silently ignored. An address is
/// `ada@example.org` or `Ada <ada@example.org>`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
#[serde(deny_unknown_fields)]
pub struct Email {
    /// The sender, one that the operator allows. Default: the operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Whom it is for: one address or several.
    pub to: Addresses,
    /// Who gets a copy.
    #[serde(default, skip_serializing_if = "Addresses::is_empty")]
    pub cc: Addresses,
    /// Who gets a copy that the others do not see.
    #[serde(default, skip_serializing_if = "Addresses::is_empty")]
    pub bcc: Addresses,
    /// Where answers go.
    #[serde(default, skip_serializing_if = "Addresses::is_empty")]
    pub reply_to: Addresses,
    /// The subject, at most 998 bytes.
    pub subject: String,
    /// The mail as text; it or `html`, or both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The mail as HTML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
    /// Headers, of those that the operator allows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
}

/// One address or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
#[serde(untagged)]
pub enum Addresses {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// A file that goes with a mail.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// Its name, without folders.
    pub name: String,
    /// What it is, as in `application/pdf`.
    pub content_type: String,
    /// Its bytes.
    pub base64: String,
}

/// The output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
pub struct Sent {
    /// The mail's `Message-ID`, made of the job's id: a repeated attempt has the same.
    pub message_id: String,
    /// How many recipients the server took it for.
    pub recipients: usize,
    /// What the server said.
    pub response: String,
}

impl Default for Addresses {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl Addresses {
    /// Each address.
    pub fn iter(&self) -> std::slice::Iter<'_, String> {
        match self {
            Self::One(address) => std::slice::from_ref(address).iter(),
            Self::Several(addresses) => addresses.iter(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().len() == 0
    }
}

impl Job for Email {
    const KIND: &'static str = "email.send";
    const QUEUE: &'static str = "mail";
    type Output = Sent;

    fn schemas() -> Schemas {
        Schemas::of::<Self>()
    }
}

/// Sends mail. Cheap to clone.
#[derive(Clone)]
pub struct Mail(Arc<Inner>);

struct Inner {
    settings: Settings,
    mailer: Mailer,
}

impl Mail {
    /// One as it is set. Nothing is asked of the server yet.
    ///
    /// # Errors
    /// The certificates of authorities cannot be read.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let mailer = Mailer::new(&settings.smtp)?;
        Ok(Self(Arc::new(Inner { settings, mailer })))
    }
}

/// Sends one mail.
///
/// # Errors
/// Fatal for what the job got wrong, the rest as [`verdict`] says.
pub async fn send(job: Email, cx: Context<Mail>) -> JobResult<Sent> {
    let Inner { settings, mailer } = &*cx.state().0;
    let built = message::build(&job, &cx.job_id().to_string(), cx.run(), settings);
    let (message, message_id) = built.map_err(|problem| JobError::fatal("bad_args", problem))?;
    // Not broken off when the job is cancelled meanwhile: half a conversation leaves open whether the mail is sent.
    let response = mailer.send(&message).await.map_err(|error| verdict::of(&error))?;
    Ok(Sent { message_id, recipients: message.envelope().to().len(), response })
}
