//! What each call needs. A call that is not here is refused, and a test compares this with the router.

use axum::http::Method;

use crate::access::Scope;

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Need {
    /// Nothing: it tells nothing of anybody's jobs.
    Nothing,
    /// A key with this scope.
    Scope(Scope),
}

impl Need {
    /// The scope, if one is needed.
    pub(in crate::http) fn scope(self) -> Option<Scope> {
        match self {
            Self::Nothing => None,
            Self::Scope(scope) => Some(scope),
        }
    }
}

const NOTHING: Need = Need::Nothing;
const SUBMIT: Need = Need::Scope(Scope::Submit);
const READ: Need = Need::Scope(Scope::Read);
const OPERATE: Need = Need::Scope(Scope::Operate);

/// Every call: its method, its path as the router has it, what it needs.
pub(in crate::http) const TABLE: &[(Method, &str, Need)] = &[
    (Method::POST, "/v1/jobs", SUBMIT),
    (Method::GET, "/v1/jobs", READ),
    (Method::POST, "/v1/jobs/batch", SUBMIT),
    (Method::GET, "/v1/jobs/counts", READ),
    (Method::POST, "/v1/jobs/replay", OPERATE),
    (Method::POST, "/v1/jobs/cancel", OPERATE),
    (Method::POST, "/v1/jobs/{id}/replay", OPERATE),
    (Method::GET, "/v1/jobs/{id}", READ),
    (Method::PUT, "/v1/jobs/{id}", SUBMIT),
    (Method::DELETE, "/v1/jobs/{id}", OPERATE),
    (Method::GET, "/v1/jobs/{id}/output", READ),
    (Method::GET, "/v1/jobs/{id}/events", READ),
    (Method::GET, "/v1/events", READ),
    (Method::GET, "/v1/queues", READ),
    (Method::GET, "/v1/queues/{queue}", READ),
    (Method::POST, "/v1/queues/{queue}/pause", OPERATE),
    (Method::POST, "/v1/queues/{queue}/resume", OPERATE),
    (Method::GET, "/v1/queues/{queue}/dead", READ),
    (Method::DELETE, "/v1/queues/{queue}/dead", OPERATE),
    (Method::GET, "/v1/queues/{queue}/dead/groups", READ),
    (Method::POST, "/v1/queues/{queue}/dead/replay", OPERATE),
    (Method::DELETE, "/v1/queues/{queue}/jobs", OPERATE),
    (Method::GET, "/v1/workers", READ),
    (Method::GET, "/v1/kinds", READ),
    (Method::GET, "/v1/overview", READ),
    (Method::GET, "/v1/overview/events", READ),
    (Method::POST, "/v1/rpc/{kind}", SUBMIT),
    // The pages are the same for everybody; what they ask for is not.
    (Method::GET, "/", NOTHING),
    (Method::GET, "/jobs", NOTHING),
    (Method::GET, "/jobs/{id}", NOTHING),
    (Method::GET, "/queues", NOTHING),
    (Method::GET, "/dead", NOTHING),
    (Method::GET, "/workers", NOTHING),
    (Method::GET, "/kinds", NOTHING),
    (Method::GET, "/submit", NOTHING),
    (Method::GET, "/dashboard/{file}", NOTHING),
    (Method::GET, "/session", NOTHING),
    (Method::GET, "/login", NOTHING),
    (Method::POST, "/login", NOTHING),
    (Method::POST, "/logout", NOTHING),
    (Method::GET, "/healthz", NOTHING),
    (Method::GET, "/readyz", NOTHING),
    (Method::GET, "/metrics", READ),
    (Method::GET, "/openapi.json", READ),
    // The reader is the same for everybody; what it reads is not.
    (Method::GET, "/docs", NOTHING),
    (Method::GET, "/docs/reader.js", NOTHING),
    (Method::GET, "/docs/reader.css", NOTHING),
];

/// What a call needs; none: it has no place in the table.
pub(super) fn need(method: &Method, path: &str) -> Option<Need> {
    // The router answers HEAD as GET.
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    TABLE.iter().find(|(known, route, _)| known == method && *route == path).map(|(.., need)| *need)
}

/// Whether the paths of a route name a queue.
pub(super) fn names_queue(route: &str) -> bool {
    route.split('/').any(|part| part == "{queue}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The calls that `src/http.rs` has.
    fn router() -> BTreeSet<(String, String)> {
        let source = include_str!("../../http.rs");
        let routes = source.split(".route(\"").skip(1);
        let mut found = BTreeSet::new();
        for route in routes {
            let (path, rest) = route.split_once('"').unwrap();
            let handlers = rest.split(".route(").next().unwrap().split(';').next().unwrap();
            for method in ["get", "post", "put", "delete", "patch", "any", "on", "head", "options"] {
                let call = format!("{method}(");
                let is_call = |at: usize| {
                    !handlers[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                };
                if handlers.match_indices(&call).any(|(at, _)| is_call(at)) {
                    found.insert((method.to_uppercase(), path.to_owned()));
                }
            }
        }
        found
    }

    #[test]
    fn every_call_of_the_router_has_its_place() {
        let table: BTreeSet<(String, String)> =
            TABLE.iter().map(|(method, path, _)| (method.to_string(), (*path).to_owned())).collect();
        assert_eq!(table.len(), TABLE.len(), "each once");
        assert_eq!(table, router());
    }

    #[test]
    fn what_changes_something_needs_more_than_reading() {
        for (method, path, need) in TABLE {
            match *need {
                Need::Nothing => assert!(!path.starts_with("/v1/"), "{path}"),
                need => assert_eq!(need == READ, *method == Method::GET, "{method} {path}"),
            }
        }
        assert_eq!(need(&Method::HEAD, "/v1/jobs"), Some(READ));
        assert_eq!(need(&Method::PATCH, "/v1/jobs"), None);
        assert_eq!(need(&Method::GET, "/v1/new"), None);
    }

    #[test]
    fn the_documented_table_is_this_one() {
        let page = include_str!("../../../docs/http.md");
        let rows: Vec<&str> = page
            .lines()
            .skip_while(|line| !line.starts_with("| scope | calls |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .collect();
        let mut expected = Vec::new();
        for (name, wanted) in
            [("none", NOTHING), ("`submit`", SUBMIT), ("`read`", READ), ("`operate`", OPERATE)]
        {
            let calls = TABLE.iter().filter(|(.., need)| *need == wanted);
            let calls: Vec<String> = calls.map(|(method, path, _)| format!("`{method} {path}`")).collect();
            expected.push(format!("| {name} | {} |", calls.join(", ")));
        }
        assert_eq!(rows, expected, "should be:\n{}", expected.join("\n"));
    }

    #[test]
    fn a_queue_is_named_where_the_route_says_so() {
        for (route, named) in [
            ("/v1/queues/{queue}", true),
            ("/v1/queues/{queue}/dead/groups", true),
            ("/v1/queues", false),
            ("/v1/jobs/{id}", false),
        ] {
            assert_eq!(names_queue(route), named, "{route}");
        }
    }
}
