//! From a job to a message. Pure but for its date.
//!
//! Nothing of a job begins a new header: what holds a line break, or another control character, is refused before it is
//! parsed, and lettre encodes what is left.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use lettre::{
    Message,
    message::{
        Attachment as Part, Mailbox, MessageBuilder, MultiPart, SinglePart,
        header::{ContentType, HeaderName, HeaderValue},
    },
};

use crate::{
    email::{Attachment, Email},
    settings::Settings,
};

/// Longest subject, and value of a header, in bytes: a line of RFC 5322.
const LINE_MAX: usize = 998;
/// Longest name of a file, in bytes.
const NAME_MAX: usize = 255;

/// The message of a job and its `Message-ID`, or a sentence on what is wrong with it.
pub(crate) fn build(
    job: &Email,
    id: &str,
    run: u32,
    settings: &Settings,
) -> Result<(Message, String), String> {
    let from = sender(job, settings)?;
    let domain = settings.message_id_domain.as_deref().unwrap_or(from.email.domain());
    // A replay is a mail of its own; an attempt that is repeated is not.
    let message_id = match run {
        1 => format!("<{id}@{domain}>"),
        run => format!("<{id}.{run}@{domain}>"),
    };
    let mut builder = Message::builder().from(from).message_id(Some(message_id.clone()));
    builder = recipients(builder, job, settings)?;
    builder = builder.subject(plain("subject", &job.subject, LINE_MAX)?);
    for (name, value) in &job.headers {
        builder = builder.raw_header(header(name, value, settings)?);
    }
    let message = content(builder, job, settings)?.map_err(|error| error.to_string())?;
    Ok((message, message_id))
}

fn sender(job: &Email, settings: &Settings) -> Result<Mailbox, String> {
    let from = job.from.as_ref().or(settings.from.as_ref());
    let from = mailbox("from", from.ok_or("from is missing: the worker has no sender of its own")?)?;
    match settings.may_send(&from) {
        true => Ok(from),
        false => Err(format!("from: mail may be sent by {} only", settings.senders.join(", "))),
    }
}

fn recipients(
    mut builder: MessageBuilder,
    job: &Email,
    settings: &Settings,
) -> Result<MessageBuilder, String> {
    let count = job.to.iter().len() + job.cc.iter().len() + job.bcc.iter().len();
    if job.to.is_empty() {
        return Err("to is empty".to_owned());
    }
    if count > settings.max_recipients {
        return Err(format!("there are {count} recipients; at most {}", settings.max_recipients));
    }
    for address in job.to.iter() {
        builder = builder.to(mailbox("to", address)?);
    }
    for address in job.cc.iter() {
        builder = builder.cc(mailbox("cc", address)?);
    }
    for address in job.bcc.iter() {
        builder = builder.bcc(mailbox("bcc", address)?);
    }
    for address in job.reply_to.iter() {
        builder = builder.reply_to(mailbox("reply_to", address)?);
    }
    Ok(builder)
}

fn mailbox(what: &str, text: &str) -> Result<Mailbox, String> {
    let text = plain(what, text, LINE_MAX)?;
    text.parse().map_err(|error| format!("{what}: {text:?} is no address: {error}"))
}

/// A text that fits into a line, whole.
fn plain(what: &str, text: &str, most: usize) -> Result<String, String> {
    if text.len() > most {
        return Err(format!("{what} is longer than {most} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("{what} holds a line break or another control character"));
    }
    Ok(text.to_owned())
}

fn header(name: &str, value: &str, settings: &Settings) -> Result<HeaderValue, String> {
    let allowed = settings.headers.iter().find(|allowed| allowed.eq_ignore_ascii_case(name));
    let allowed = allowed.ok_or_else(|| match settings.headers.join(", ") {
        names if names.is_empty() => format!("headers: {name:?} is not allowed: none is"),
        names => format!("headers: {name:?} is not allowed; these are: {names}"),
    })?;
    let value = plain(&format!("headers.{name}"), value, LINE_MAX)?;
    let name = HeaderName::new_from_ascii(allowed.clone()).map_err(|error| error.to_string())?;
    Ok(HeaderValue::new(name, value))
}

/// The message with its content.
fn content(
    builder: MessageBuilder,
    job: &Email,
    settings: &Settings,
) -> Result<Result<Message, lettre::error::Error>, String> {
    let mut files = Vec::new();
    let mut left = settings.max_attachments;
    for attachment in &job.attachments {
        files.push(file(attachment, &mut left, settings)?);
    }
    let (text, html) = (job.text.clone(), job.html.clone());
    Ok(match (text, html, files.is_empty()) {
        (None, None, _) => return Err("there is neither text nor html".to_owned()),
        (Some(text), Some(html), true) => builder.multipart(MultiPart::alternative_plain_html(text, html)),
        (Some(text), None, true) => builder.singlepart(SinglePart::plain(text)),
        (None, Some(html), true) => builder.singlepart(SinglePart::html(html)),
        (text, html, false) => {
            let mixed = match (text, html) {
                (Some(text), Some(html)) => {
                    MultiPart::mixed().multipart(MultiPart::alternative_plain_html(text, html))
                }
                (Some(text), None) => MultiPart::mixed().singlepart(SinglePart::plain(text)),
                (_, html) => MultiPart::mixed().singlepart(SinglePart::html(html.unwrap_or_default())),
            };
            builder.multipart(files.into_iter().fold(mixed, MultiPart::singlepart))
        }
    })
}

fn file(attachment: &Attachment, left: &mut usize, settings: &Settings) -> Result<SinglePart, String> {
    let name = plain("the name of an attachment", &attachment.name, NAME_MAX)?;
    if name.is_empty() || name.contains(['/', '\\', '"']) {
        return Err(format!("attachment {name:?}: a name is not empty, and has no / \\ or \""));
    }
    let content_type = plain("content_type", &attachment.content_type, NAME_MAX)?;
    let content_type = ContentType::parse(&content_type)
        .ok()
        .filter(|_| !content_type.to_ascii_lowercase().starts_with("multipart/"))
        .ok_or_else(|| format!("attachment {name:?}: {content_type:?} is no content type of a file"))?;
    let bytes = BASE64.decode(&attachment.base64).map_err(|error| format!("attachment {name:?}: {error}"))?;
    *left = left.checked_sub(bytes.len()).ok_or_else(|| {
        format!("the attachments are more than {} bytes together", settings.max_attachments)
    })?;
    Ok(Part::new(name).body(bytes, content_type))
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
