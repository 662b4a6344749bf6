//! What keeps a browser from being used against us, with keys and without: checks of `Host`, `Origin` and
//! `Sec-Fetch-Site`. Pure.
//!
//! A page anywhere can make a browser send requests to a server on loopback, and by DNS rebinding even under a
//! name of its own. Neither is let in. Clients that are no browsers send no `Origin` and are not concerned.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};

use super::problem::{Code, Problem};
use crate::config;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Which hosts are ours.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    hosts: Vec<String>,
    open: bool,
}

impl Guard {
    /// The guard that this configuration asks for.
    pub(super) fn new(config: &config::Http) -> Self {
        let hosts = config.hosts.iter().map(|host| host.trim().trim_end_matches('.').to_ascii_lowercase());
        // With keys a page that got here under a name of its own has none, nor a session, which is bound to our name.
        Self { hosts: hosts.collect(), open: config.allow_unauthenticated || config.keys.is_some() }
    }

    /// Checks a request's head.
    ///
    /// # Errors
    /// The problem, when it names another server, or comes from a page of another origin.
    pub(super) fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let host = self.check_host(uri, headers)?;
        if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
            return Ok(());
        }
        check_origin(headers, host)
    }

    fn check_host<'a>(&self, uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, Problem> {
        let mut values = headers.get_all(header::HOST).iter();
        let (value, another) = (values.next(), values.next());
        let header = value.map(|value| value.to_str().unwrap_or("\u{fffd}"));
        let authority = uri.authority().map(axum::http::uri::Authority::as_str);
        if another.is_some() {
            return Err(Problem::new(Code::BadHost, "there is more than one Host header"));
        }
        let host = authority.or(header).unwrap_or_default();
        // A target with a host in it must not disagree with what the header says.
        for host in [Some(host), header].into_iter().flatten() {
            if !self.is_ours(host) {
                return Err(Problem::new(
                    Code::BadHost,
                    "the Host header is neither a loopback address, nor localhost, nor in http.hosts",
                ));
            }
        }
        Ok(host)
    }

    fn is_ours(&self, host: &str) -> bool {
        if self.open && self.hosts.is_empty() {
            return true;
        }
        let Some((name, _)) = split_port(host) else { return false };
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        match address(&name) {
            // A rebinding attack needs a name. Probes of an orchestrator use the bare address.
            Some(address) => self.open || is_loopback(address) || self.hosts.contains(&name),
            None => name == "localhost" || self.hosts.contains(&name),
        }
    }
}

fn check_origin(headers: &HeaderMap, host: &str) -> Result<(), Problem> {
    let refused = |detail: &'static str| Err(Problem::new(Code::CrossOrigin, detail));
    if headers.get_all(SEC_FETCH_SITE).iter().any(|site| site.as_bytes().eq_ignore_ascii_case(b"cross-site"))
    {
        return refused("Sec-Fetch-Site says that a page of another site sent this");
    }
    for origin in headers.get_all(header::ORIGIN) {
        if !origin.to_str().is_ok_and(|origin| is_same_origin(origin, host)) {
            return refused("the Origin header names another origin than the Host header");
        }
    }
    Ok(())
}

/// Whether a browser says that a page of this origin sent the request. That an `Origin` names no other one was checked.
pub(super) fn shows_origin(headers: &HeaderMap) -> bool {
    let same = |site: &HeaderValue| site.as_bytes().eq_ignore_ascii_case(b"same-origin");
    headers.contains_key(header::ORIGIN) || headers.get(SEC_FETCH_SITE).is_some_and(same)
}

/// Whether host and port of `origin` are those of `host`; a port that is left out is the scheme's.
fn is_same_origin(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let default = match scheme.to_ascii_lowercase().as_str() {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    match (split_port(authority), split_port(host)) {
        (Some((a, a_port)), Some((b, b_port))) => {
            !a.is_empty()
                && a.eq_ignore_ascii_case(b)
                && a_port.unwrap_or(default) == b_port.unwrap_or(default)
        }
        _ => false,
    }
}

/// Host and port; none if it is neither. An IPv6 address keeps its brackets.
fn split_port(host: &str) -> Option<(&str, Option<u16>)> {
    let end = match host.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => host.find(':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(end);
    match port.strip_prefix(':') {
        None if port.is_empty() => Some((name, None)),
        Some("") => Some((name, None)),
        Some(port) if port.bytes().all(|c| c.is_ascii_digit()) => Some((name, Some(port.parse().ok()?))),
        _ => None,
    }
}

fn address(name: &str) -> Option<IpAddr> {
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(name) => name.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => name.parse().ok(),
    }
}

/// Whether only this machine reaches the address.
pub(super) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(hosts: &[&str], open: bool) -> Guard {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        Guard::new(&config::Http { hosts, allow_unauthenticated: open, ..config::Http::default() })
    }

    fn check(guard: &Guard, method: &str, headers: &[(&'static str, &str)]) -> Result<(), Code> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            });
        let (method, uri) = (method.parse().unwrap(), Uri::from_static("/v1/jobs"));
        guard.check(&method, &uri, &headers).map_err(|problem| problem.code)
    }

    #[test]
    fn only_our_own_hosts_pass() {
        let plain = guard(&["Jobs.Example"], false);
        for good in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.",
            "127.0.0.1",
            "127.0.0.1:1",
            "127.9.9.9:80",
            "[::1]",
            "[::1]:8080",
            "[::ffff:127.0.0.1]:1",
            "jobs.example",
            "jobs.example.:9",
            "localhost:",
        ] {
            assert_eq!(check(&plain, "GET", &[("host", good)]), Ok(()), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::2]",
            "[::1",
            "localhost:x",
            "localhost:80:80",
            "evil@localhost",
            "::1",
            "localhost:99999",
            "0.0.0.0",
            "[localhost]",
        ] {
            assert_eq!(check(&plain, "GET", &[("host", bad)]), Err(Code::BadHost), "{bad}");
        }
        assert_eq!(check(&plain, "GET", &[]), Err(Code::BadHost));
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(check(&plain, "GET", &twice), Err(Code::BadHost));
    }

    #[test]
    fn an_open_server_takes_what_its_hosts_list() {
        assert_eq!(check(&guard(&[], true), "POST", &[("host", "anything:80")]), Ok(()));
        let listed = guard(&["http"], true);
        for (host, result) in [("http:8080", Ok(())), ("10.1.2.3:8080", Ok(())), ("evil", Err(Code::BadHost))]
        {
            assert_eq!(check(&listed, "POST", &[("host", host)]), result, "{host}");
        }
    }

    #[test]
    fn with_keys_any_name_passes_that_is_not_ruled_out() {
        let with = |hosts: &[&str]| {
            let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
            Guard::new(&config::Http { hosts, keys: Some("keys".into()), ..config::Http::default() })
        };
        assert_eq!(check(&with(&[]), "GET", &[("host", "jobs.example")]), Ok(()));
        assert_eq!(check(&with(&["a"]), "GET", &[("host", "jobs.example")]), Err(Code::BadHost));
        let evil = [("host", "jobs.example"), ("origin", "https://evil.example")];
        assert_eq!(check(&with(&[]), "POST", &evil), Err(Code::CrossOrigin));
    }

    #[test]
    fn a_browser_says_where_a_request_comes_from() {
        for (name, value, shows) in [
            ("origin", "http://localhost", true),
            ("sec-fetch-site", "same-origin", true),
            ("sec-fetch-site", "same-site", false),
            ("sec-fetch-site", "none", false),
            ("referer", "http://localhost/", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), value.parse().unwrap());
            assert_eq!(shows_origin(&headers), shows, "{name}: {value}");
        }
    }

    #[test]
    fn a_target_with_a_host_cannot_hide_it() {
        let mut headers = HeaderMap::new();
        headers.insert("host", "localhost".parse().unwrap());
        let uri = Uri::from_static("http://evil.example/v1/jobs");
        assert!(guard(&[], false).check(&Method::GET, &uri, &headers).is_err());
        headers.insert("host", "evil.example".parse().unwrap());
        let uri = Uri::from_static("http://localhost/v1/jobs");
        assert!(guard(&[], false).check(&Method::GET, &uri, &headers).is_err());
    }

    #[test]
    fn foreign_pages_cannot_submit() {
        let guard = guard(&[], false);
        let host = ("host", "localhost:8080");
        for (name, value, result) in [
            ("sec-fetch-site", "cross-site", Err(Code::CrossOrigin)),
            ("sec-fetch-site", "Cross-Site", Err(Code::CrossOrigin)),
            ("sec-fetch-site", "same-origin", Ok(())),
            ("sec-fetch-site", "none", Ok(())),
            ("origin", "http://localhost:8080", Ok(())),
            ("origin", "HTTP://LOCALHOST:8080", Ok(())),
            ("origin", "http://localhost", Err(Code::CrossOrigin)),
            ("origin", "http://localhost:8081", Err(Code::CrossOrigin)),
            ("origin", "http://evil.example:8080", Err(Code::CrossOrigin)),
            ("origin", "null", Err(Code::CrossOrigin)),
            ("origin", "", Err(Code::CrossOrigin)),
            ("origin", "chrome-extension://x", Err(Code::CrossOrigin)),
        ] {
            assert_eq!(check(&guard, "POST", &[host, (name, value)]), result, "{name}: {value}");
            assert_eq!(check(&guard, "DELETE", &[host, (name, value)]), result, "{name}: {value}");
            assert_eq!(check(&guard, "GET", &[host, (name, value)]), Ok(()), "{name}: {value}");
        }
        let default_port = [("host", "localhost"), ("origin", "http://localhost:80")];
        assert_eq!(check(&guard, "POST", &default_port), Ok(()));
        let behind_tls = [("host", "localhost"), ("origin", "https://localhost")];
        assert_eq!(check(&guard, "POST", &behind_tls), Ok(()));
    }
}
