//! `GET /openapi.json`: the description of the HTTP interface, OpenAPI 3.1; `GET /docs`: a reader of it.
//!
//! What never changes is made once (`document`), and the kinds that workers have announced are put in at each request
//! (`kinds`). Answers are described by the types that are written (`schemars`), problems by their table. Requests are
//! described by hand (`shapes`), because they are read by hand; `tests/it/openapi.rs` compares the two. It is a
//! description of this server: without keys it has no security, and nothing that only keys lead to.

mod document;
mod kinds;
mod operation;
pub(super) mod reader;
mod shapes;
mod tell;

use axum::http::Method;

pub(super) use self::document::{Description, get};
use self::operation::Operation;

/// What tells of a call.
type Tell = fn(&mut tell::Shapes) -> Operation;

/// Every call of the interface, in the order of the table of access, with what tells of it.
const CALLS: &[(Method, &str, Tell)] = &[
    (Method::POST, "/v1/jobs", tell::submit),
    (Method::GET, "/v1/jobs", tell::list),
    (Method::POST, "/v1/jobs/batch", tell::batch),
    (Method::GET, "/v1/jobs/counts", tell::counts),
    (Method::POST, "/v1/jobs/replay", tell::replay_many),
    (Method::POST, "/v1/jobs/cancel", tell::cancel_many),
    (Method::POST, "/v1/jobs/{id}/replay", tell::replay_one),
    (Method::GET, "/v1/jobs/{id}", tell::job),
    (Method::PUT, "/v1/jobs/{id}", tell::put),
    (Method::DELETE, "/v1/jobs/{id}", tell::cancel),
    (Method::GET, "/v1/jobs/{id}/output", tell::output),
    (Method::GET, "/v1/jobs/{id}/events", tell::job_events),
    (Method::GET, "/v1/events", tell::events),
    (Method::GET, "/v1/queues", tell::queues),
    (Method::GET, "/v1/queues/{queue}", tell::queue),
    (Method::POST, "/v1/queues/{queue}/pause", tell::pause),
    (Method::POST, "/v1/queues/{queue}/resume", tell::resume),
    (Method::GET, "/v1/queues/{queue}/dead", tell::dead),
    (Method::DELETE, "/v1/queues/{queue}/dead", tell::purge_dead),
    (Method::GET, "/v1/queues/{queue}/dead/groups", tell::dead_groups),
    (Method::POST, "/v1/queues/{queue}/dead/replay", tell::replay_dead),
    (Method::DELETE, "/v1/queues/{queue}/jobs", tell::purge_jobs),
    (Method::GET, "/v1/workers", tell::workers),
    (Method::GET, "/v1/kinds", tell::kinds),
    (Method::GET, "/v1/overview", tell::overview),
    (Method::GET, "/v1/overview/events", tell::overview_events),
    (Method::POST, "/v1/rpc/{kind}", tell::rpc),
    (Method::GET, "/", tell::overview_page),
    (Method::GET, "/jobs", tell::jobs_page),
    (Method::GET, "/jobs/{id}", tell::job_page),
    (Method::GET, "/queues", tell::queues_page),
    (Method::GET, "/dead", tell::dead_page),
    (Method::GET, "/workers", tell::workers_page),
    (Method::GET, "/kinds", tell::kinds_page),
    (Method::GET, "/submit", tell::submit_page),
    (Method::GET, "/dashboard/{file}", tell::dashboard_file),
    (Method::GET, "/session", tell::session),
    (Method::GET, "/login", tell::login_form),
    (Method::POST, "/login", tell::log_in),
    (Method::POST, "/logout", tell::log_out),
    (Method::GET, "/healthz", tell::alive),
    (Method::GET, "/readyz", tell::ready),
    (Method::GET, "/metrics", tell::metrics),
    (Method::GET, "/openapi.json", tell::openapi),
    (Method::GET, "/docs", tell::docs),
    (Method::GET, "/docs/reader.js", tell::reader_script),
    (Method::GET, "/docs/reader.css", tell::reader_style),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::access::routes::TABLE;

    #[test]
    fn every_call_is_told_of() {
        let told: Vec<(&Method, &str)> = CALLS.iter().map(|(method, path, _)| (method, *path)).collect();
        let table: Vec<(&Method, &str)> = TABLE.iter().map(|(method, path, _)| (method, *path)).collect();
        assert_eq!(told, table);
    }
}
