//! `GET /v1/jobs`: jobs, newest first, page by page; `GET /v1/jobs/counts`: how many there are in each state.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use serde::Serialize;

use super::{
    App,
    answer::{self, Shown},
    body::Inbound,
    cursor,
    dead::check_queue,
    fields::Errors,
    filter,
    problem::Problem,
    submission::ERRORS_MAX,
};
use crate::{
    job::{JobId, QueueName},
    record::model::{Counts, Filter, JobRecord, JobStatus, Page, Position},
};

/// Jobs on a page that does not say.
const LIMIT: usize = 50;
/// Most jobs on a page.
const LIMIT_MAX: usize = 500;
/// Most jobs on a page with args or output: these may be long.
const LIMIT_MAX_LONG: usize = 100;
/// A page ends after so many bytes of args and outputs.
const LONG_MAX: usize = 8 << 20;

/// `GET /v1/jobs`.
pub(super) async fn get(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = list(&app, &mut inbound).await;
    inbound.answer(result).await
}

/// What a list is to show of each job besides what all show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Include {
    args: bool,
    output: bool,
}

async fn list(app: &App, inbound: &mut Inbound) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [status, queue, kind, tag, q, from, to, fingerprint] = filter::PARAMETERS;
    let [status, queue, kind, tag, q, from, to, fingerprint, limit, cursor, include] = inbound.query(
        [status, queue, kind, tag, q, from, to, fingerprint, "limit", "cursor", "include"],
        &mut errors,
    );
    let mut filter = filter::read([status, queue, kind, tag, q, from, to, fingerprint], &mut errors);
    inbound.caller.narrow_list(&mut filter)?;
    let asked = Asked::read(filter, [limit, cursor, include], errors)?;
    let query = inbound.parts.uri.query().unwrap_or_default();
    show(app, query, asked, "/v1/jobs").await
}

/// `GET /v1/queues/{queue}/dead`: the dead jobs of a queue that can be replayed.
pub(super) async fn dead(app: &App, inbound: &mut Inbound, queue: QueueName) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [kind, tag, q, from, to, fingerprint, limit, cursor, include] = inbound
        .query(["kind", "tag", "q", "from", "to", "fingerprint", "limit", "cursor", "include"], &mut errors);
    let filter = filter::read([None, None, kind, tag, q, from, to, fingerprint], &mut errors);
    let path = format!("/v1/queues/{queue}/dead");
    check_queue(app, &queue).await?;
    let mut filter = Filter { status: vec![JobStatus::Dead], queue: Some(queue), ..filter };
    inbound.caller.narrow_list(&mut filter)?;
    let asked = Asked::read(filter, [limit, cursor, include], errors)?;
    let query = inbound.parts.uri.query().unwrap_or_default();
    show(app, query, Asked { purged: false, ..asked }, &path).await
}

/// Which page of which list.
struct Asked {
    filter: Filter,
    limit: usize,
    after: Option<Position>,
    include: Include,
    /// Whether dead jobs whose message was purged are among them.
    purged: bool,
}

impl Asked {
    fn read(filter: Filter, values: [Option<String>; 3], mut errors: Errors) -> Result<Self, Problem> {
        let [limit, cursor, include] = values;
        let include = read_include(include.as_deref(), &mut errors);
        let limit = read_limit(limit.as_deref(), include, &mut errors);
        errors.none_or(Some(()))?;
        let after = cursor.map(|cursor| cursor::decode(&cursor, &filter)).transpose()?;
        Ok(Self { filter, limit, after, include, purged: true })
    }
}

async fn show(app: &App, query: &str, asked: Asked, path: &str) -> Result<Response, Problem> {
    let Asked { filter, limit, after, include, purged } = asked;
    let page = app.record.jobs(filter.clone(), limit, after).await;
    let mut page = page.map_err(|error| Problem::record(&error))?;
    // Such a page is shorter, and has a next one all the same.
    page.items.retain(|job| purged || !job.purged);
    let records = if include == Include::default() { BTreeMap::new() } else { records(app, &mut page).await };
    let next = page.next.map(|next| cursor::encode(next, &filter));
    let shown = page.items.iter().map(|job| {
        let mut shown = Shown::summary(job);
        if let Some(record) = records.get(&job.id) {
            shown = if include.args { shown.with_args(record) } else { shown };
            shown = if include.output { shown.with_output(record) } else { shown };
        }
        shown
    });
    let items: Vec<Shown<'_>> = shown.collect();
    let mut response = answer::json_of(StatusCode::OK, &Answer { items, next: next.as_deref() });
    if let Some(link) = next.and_then(|next| link(path, query, &next)) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

#[derive(Serialize)]
struct Answer<'a> {
    items: Vec<Shown<'a>>,
    next: Option<&'a str>,
}

/// The whole records of a page's jobs; of one that was forgotten meanwhile, none. A page that gets too long ends early.
async fn records(app: &App, page: &mut Page) -> BTreeMap<JobId, JobRecord> {
    let (mut records, mut bytes) = (BTreeMap::new(), 0);
    for (index, job) in page.items.iter().enumerate() {
        if bytes > LONG_MAX {
            page.next = Some(page.items[index - 1].position);
            page.items.truncate(index);
            break;
        }
        if let Ok(Some(record)) = app.record.job(job.id, Duration::ZERO).await {
            let long = [&record.args, &record.output];
            bytes += long.into_iter().flatten().map(|long| long.get().len()).sum::<usize>();
            records.insert(job.id, record);
        }
    }
    records
}

fn read_include(text: Option<&str>, errors: &mut Errors) -> Include {
    let mut include = Include::default();
    for word in text.into_iter().flat_map(|text| text.split(',')) {
        match word.trim() {
            "args" => include.args = true,
            "output" => include.output = true,
            _ => errors.parameter("include", "must be args, output, or both joined by a comma"),
        }
    }
    include
}

fn read_limit(text: Option<&str>, include: Include, errors: &mut Errors) -> usize {
    let most = if include == Include::default() { LIMIT_MAX } else { LIMIT_MAX_LONG };
    let Some(text) = text else { return LIMIT };
    match text.parse() {
        Ok(limit) if (1..=most).contains(&limit) && !text.starts_with('+') => limit,
        _ => {
            let detail = format!(
                "must be a whole number from 1 to {LIMIT_MAX}, with include from 1 to {LIMIT_MAX_LONG}"
            );
            errors.parameter("limit", detail);
            LIMIT
        }
    }
}

/// The `Link` to the next page: the same query with another cursor.
fn link(path: &str, query: &str, next: &str) -> Option<HeaderValue> {
    let mut target = format!("<{path}?");
    for pair in query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("cursor=")) {
        // The client's own text, in a header: what delimits the target is escaped.
        let _ = write!(target, "{}&", pair.replace('<', "%3C").replace('>', "%3E"));
    }
    HeaderValue::try_from(format!("{target}cursor={next}>; rel=\"next\"")).ok()
}

/// `GET /v1/jobs/counts`.
pub(super) async fn counts(State(app): State<App>, request: Request) -> Response {
    let mut inbound = Inbound::new(request, &app.memory, app.http.read_timeout);
    let result = count(&app, &mut inbound).await;
    inbound.answer(result).await
}

async fn count(app: &App, inbound: &mut Inbound) -> Result<Response, Problem> {
    let mut errors = Errors::new(ERRORS_MAX);
    let [queue] = inbound.query(["queue"], &mut errors);
    let mut queue = filter::scope([queue, None, None], &mut errors).queue;
    errors.none_or(Some(()))?;
    inbound.caller.narrow(&mut queue)?;
    let queues = match (&queue, inbound.caller.queues()) {
        (None, Some(own)) => own.iter().cloned().map(Some).collect(),
        _ => vec![queue],
    };
    let mut counts = Counts::default();
    for queue in queues {
        let some = app.record.counts(queue).await.map_err(|error| Problem::record(&error))?;
        counts.by_status.iter_mut().zip(some.by_status).for_each(|(sum, count)| *sum += count);
    }
    let by_status: serde_json::Map<_, _> =
        JobStatus::ALL.iter().map(|status| (status.to_string(), counts.of(*status).into())).collect();
    let total: u64 = counts.by_status.iter().sum();
    Ok(answer::json_of(StatusCode::OK, &serde_json::json!({ "counts": by_status, "total": total })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::problem::Code;

    #[test]
    fn limits_and_includes_are_checked() {
        let both = Include { args: true, output: true };
        let none = Include::default();
        for (text, include, limit) in [
            (None, none, Some(LIMIT)),
            (Some("1"), none, Some(1)),
            (Some("500"), none, Some(500)),
            (Some("100"), both, Some(100)),
            (Some("101"), both, None),
            (Some("0"), none, None),
            (Some("501"), none, None),
            (Some("-1"), none, None),
            (Some("+1"), none, None),
            (Some("1e1"), none, None),
            (Some(""), none, None),
        ] {
            let mut errors = Errors::new(5);
            let read = read_limit(text, include, &mut errors);
            match limit {
                Some(limit) => assert_eq!((read, errors.into_list().1.len()), (limit, 0), "{text:?}"),
                None => assert_eq!(errors.into_list().0, Code::InvalidRequest, "{text:?}"),
            }
        }
        let mut errors = Errors::new(5);
        assert_eq!(read_include(Some("output, args"), &mut errors), both);
        assert_eq!(read_include(None, &mut errors), none);
        assert_eq!(errors.into_list().1.len(), 0);
        for bad in ["", "all", "args;output"] {
            let mut errors = Errors::new(5);
            read_include(Some(bad), &mut errors);
            assert_eq!(errors.into_list().1.len(), 1, "{bad}");
        }
    }

    #[test]
    fn the_link_keeps_the_query() {
        for (query, target) in [
            ("", "</v1/jobs?cursor=abc>; rel=\"next\""),
            ("status=dead&limit=2", "</v1/jobs?status=dead&limit=2&cursor=abc>; rel=\"next\""),
            ("cursor=old&tag=%3E,x>", "</v1/jobs?tag=%3E,x%3E&cursor=abc>; rel=\"next\""),
        ] {
            assert_eq!(link("/v1/jobs", query, "abc").unwrap(), target);
        }
    }
}
