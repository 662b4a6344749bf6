//! How long a caller waits: `?wait=` and `Prefer: wait=N` (RFC 7240), and what else `Prefer` says. Pure.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName};

/// What a client prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Prefer {
    /// `wait=N`: so many seconds.
    pub(super) wait: Option<Duration>,
    /// `respond-async`.
    pub(super) respond_async: bool,
}

/// The header's name.
const PREFER: HeaderName = HeaderName::from_static("prefer");
/// The answer's header that says what was applied.
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

impl Prefer {
    /// Reads all `Prefer` headers. What is malformed is ignored, as RFC 7240 asks; of a preference that is given
    /// twice, the first counts.
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        let mut wait_seen = false;
        for value in headers.get_all(PREFER) {
            let Ok(value) = value.to_str() else { continue };
            for preference in split_outside_quotes(value, ',') {
                // What follows a semicolon are parameters; none of ours has any.
                let preference = split_outside_quotes(preference, ';').next().unwrap_or_default();
                let (name, value) = match preference.split_once('=') {
                    Some((name, value)) => (name.trim(), Some(unquote(value.trim()))),
                    None => (preference.trim(), None),
                };
                if name.eq_ignore_ascii_case("wait") && !wait_seen {
                    wait_seen = true;
                    found.wait = value.and_then(seconds);
                } else if name.eq_ignore_ascii_case("respond-async") {
                    found.respond_async |= value.is_none_or(str::is_empty);
                }
            }
        }
        found
    }
}

fn seconds(text: &str) -> Option<Duration> {
    if text.is_empty() || !text.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    // More digits than fit are a long wait, not a malformed one.
    Some(Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX)).min(u64::from(u32::MAX))))
}

fn unquote(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

fn split_outside_quotes(text: &str, at: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            c => return c == at && !quoted,
        }
        false
    })
}

/// How long to wait, and which preference led to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait {
    /// So long; zero: do not wait.
    pub(super) patience: Duration,
    /// Whether that is `Prefer: wait=N`.
    pub(super) preferred: bool,
}

impl Wait {
    /// The query's wait, else the preferred one, else `default`; at most `max`.
    pub(super) fn choose(
        query: Option<Duration>,
        preferred: Option<Duration>,
        default: Duration,
        max: Duration,
    ) -> Self {
        let patience = query.or(preferred).unwrap_or(default).min(max);
        Self { patience, preferred: query.is_none() && preferred.is_some() }
    }

    /// The value of `Preference-Applied`, if a preference was.
    pub(super) fn applied(&self, respond_async: bool) -> Option<String> {
        let wait = self.preferred.then(|| format!("wait={}", self.patience.as_secs()));
        match (respond_async, wait) {
            (true, Some(wait)) => Some(format!("respond-async, {wait}")),
            (true, None) => Some("respond-async".to_owned()),
            (false, wait) => wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Prefer {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(PREFER, value.parse().unwrap());
        }
        Prefer::read(&headers)
    }

    #[test]
    fn wait_is_read_as_rfc_7240_writes_it() {
        for (values, seconds) in [
            (&["wait=10"][..], 10),
            (&["WAIT = 10"], 10),
            (&["wait=\"10\""], 10),
            (&["respond-async, wait=10"], 10),
            (&["handling=lenient; x=\"a,wait=3\", wait=10"], 10),
            (&["foo", "wait=10"], 10),
            (&["wait=10; x=y"], 10),
            (&["wait=10, wait=20"], 10),
            (&["wait=0"], 0),
            (&["wait=00000000000000000000000000000000010"], 10),
        ] {
            assert_eq!(read(values).wait, Some(Duration::from_secs(seconds)), "{values:?}");
        }
        assert_eq!(read(&["wait=99999999999999999999999"]).wait, Some(Duration::from_secs(u32::MAX.into())));
    }

    #[test]
    fn what_is_malformed_is_ignored() {
        for value in
            ["wait", "wait=", "wait=-1", "wait=1.5", "wait=10s", "waiting=10", "wait=x, wait=10", "=", ",;"]
        {
            assert_eq!(read(&[value]).wait, None, "{value}");
        }
    }

    #[test]
    fn respond_async_is_seen() {
        assert!(read(&["Respond-Async"]).respond_async);
        assert!(read(&["wait=3", "respond-async; x"]).respond_async);
        assert!(!read(&["x=respond-async"]).respond_async);
    }

    #[test]
    fn the_query_wins_and_both_are_capped() {
        let s = Duration::from_secs;
        let wait = Wait::choose(Some(s(5)), Some(s(9)), s(0), s(60));
        assert_eq!((wait.patience, wait.applied(false)), (s(5), None));
        let wait = Wait::choose(None, Some(s(90)), s(0), s(60));
        assert_eq!((wait.patience, wait.applied(true).as_deref()), (s(60), Some("respond-async, wait=60")));
        assert_eq!(Wait::choose(None, None, s(30), s(10)).patience, s(10));
    }
}
