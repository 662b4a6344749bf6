//! Which jobs, and which events, a query asks for. Pure.

use super::{
    fields::{self, Errors},
    submission,
};
use crate::{
    job::{Kind, NameError, QueueName},
    record::model::{Filter, JobStatus, Scope},
};

/// Longest text that is searched for, in bytes.
const SEARCH_MAX: usize = 200;
/// Digits of a fingerprint.
const FINGERPRINT_LEN: usize = 16;

/// The parameters that make a [`Filter`], in the order in which [`read`] takes their values.
pub(super) const PARAMETERS: [&str; 8] = ["status", "queue", "kind", "tag", "q", "from", "to", "fingerprint"];

/// Reads a filter; what is wrong with it goes to `errors`.
pub(super) fn read(values: [Option<String>; 8], errors: &mut Errors) -> Filter {
    let [status, queue, kind, tag, q, from, to, fingerprint] = values;
    let status = status.map(|text| statuses(&text, errors)).unwrap_or_default();
    let Scope { queue, kind, tag, .. } = scope([queue, kind, tag], errors);
    let (from, to) = (time("from", from, errors), time("to", to, errors));
    if let (Some(from), Some(to)) = (from, to)
        && from >= to
    {
        errors.parameter("to", "is not after from: no time lies between them");
    }
    Filter {
        status,
        queue,
        queues: None,
        kind,
        tag,
        q: q.and_then(|text| checked("q", text, search, errors)),
        from: from.map(|at| at.to_string()),
        to: to.map(|at| at.to_string()),
        fingerprint: fingerprint.and_then(|text| checked("fingerprint", text, self::fingerprint, errors)),
    }
}

/// Reads `queue`, `kind` and `tag`; what is wrong with them goes to `errors`.
pub(super) fn scope(values: [Option<String>; 3], errors: &mut Errors) -> Scope {
    let [queue, kind, tag] = values;
    let name = |error: NameError| error.to_string();
    Scope {
        job: None,
        queue: queue
            .and_then(|text| checked("queue", text, |text| QueueName::parse(text).map_err(name), errors)),
        kind: kind.and_then(|text| checked("kind", text, |text| Kind::parse(text).map_err(name), errors)),
        tag: tag.and_then(|text| checked("tag", text, submission::tag, errors)),
    }
}

fn checked<T>(
    name: &str,
    text: String,
    read: impl FnOnce(String) -> Result<T, String>,
    errors: &mut Errors,
) -> Option<T> {
    read(text).map_err(|detail| errors.parameter(name, detail)).ok()
}

fn statuses(text: &str, errors: &mut Errors) -> Vec<JobStatus> {
    let mut found: Vec<JobStatus> = Vec::new();
    for name in text.split(',') {
        match JobStatus::parse(name.trim()) {
            Some(status) => found.push(status),
            None => {
                let known = JobStatus::ALL.map(JobStatus::as_str).join(", ");
                errors.parameter("status", format!("must be some of {known}, joined by commas"));
                return Vec::new();
            }
        }
    }
    // The same states in another order are the same list, and have the same cursors.
    found.sort_unstable();
    found.dedup();
    found
}

fn time(name: &str, text: Option<String>, errors: &mut Errors) -> Option<jiff::Timestamp> {
    checked(name, text?, |text| fields::time_of(&text), errors)
}

fn search(text: String) -> Result<String, String> {
    let good = !text.trim().is_empty() && text.len() <= SEARCH_MAX && !text.chars().any(char::is_control);
    if good { Ok(text) } else { Err(format!("must be 1 to {SEARCH_MAX} bytes of text")) }
}

fn fingerprint(text: String) -> Result<String, String> {
    let good = text.len() == FINGERPRINT_LEN && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    if good { Ok(text) } else { Err(format!("must be {FINGERPRINT_LEN} of 0-9 a-f")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> (Filter, Vec<String>) {
        let mut errors = Errors::new(20);
        let value =
            |name: &&str| pairs.iter().find(|(known, _)| known == name).map(|(_, value)| (*value).to_owned());
        let filter = read(PARAMETERS.each_ref().map(value), &mut errors);
        let wrong = errors.into_list().1.into_iter().filter_map(|error| error.parameter).collect();
        (filter, wrong)
    }

    #[test]
    fn a_filter_is_read_whole() {
        let (filter, wrong) = of(&[
            ("status", "dead, queued,dead"),
            ("queue", "media"),
            ("kind", "a.b"),
            ("tag", "x y"),
            ("q", "Timeout"),
            ("from", "2030-01-01T01:00:00+01:00"),
            ("to", "2030-01-01T00:00:00.0005Z"),
            ("fingerprint", "0123456789abcdef"),
        ]);
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(filter.status, [JobStatus::Queued, JobStatus::Dead]);
        assert_eq!((filter.queue.unwrap().as_str(), filter.kind.unwrap().as_str()), ("media", "a.b"));
        assert_eq!((filter.tag.as_deref(), filter.q.as_deref()), (Some("x y"), Some("Timeout")));
        assert_eq!(filter.from.as_deref(), Some("2030-01-01T00:00:00Z"));
        assert_eq!(filter.to.as_deref(), Some("2030-01-01T00:00:00.0005Z"));
        assert_eq!(of(&[]), (Filter::default(), Vec::new()));
    }

    #[test]
    fn each_bad_value_is_named() {
        for (name, bad) in [
            ("status", ""),
            ("status", "dead,done"),
            ("status", "Dead"),
            ("queue", "A B"),
            ("queue", ""),
            ("kind", "a..b"),
            ("tag", ""),
            ("tag", "a,b"),
            ("q", " "),
            ("q", "a\u{0}b"),
            ("from", "yesterday"),
            ("from", "2030-01-01"),
            ("to", "1700000000"),
            ("fingerprint", "xyz"),
            ("fingerprint", "0123456789ABCDEF"),
        ] {
            assert_eq!(of(&[(name, bad)]).1, [name], "{name}={bad}");
        }
        let long = "x".repeat(SEARCH_MAX + 1);
        assert_eq!(of(&[("q", &long)]).1, ["q"]);
        let swapped = [("from", "2030-01-02T00:00:00Z"), ("to", "2030-01-01T00:00:00Z")];
        assert_eq!(of(&swapped).1, ["to"]);
        assert_eq!(of(&[("kind", "A"), ("queue", "B"), ("status", "c")]).1.len(), 3, "all at once");
    }
}
