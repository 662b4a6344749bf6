//! The dashboard's pages and files.

use axum::http::StatusCode;
use serde_json::json;

use super::{Shapes, html};
use crate::http::{api::operation::Operation, problem::Code};

fn page(id: &str, summary: &str) -> Operation {
    let operation = Operation::new(id, "Dashboard", summary)
        .header("If-None-Match", json!({ "type": "string" }), "The `ETag` of what the client has.")
        .answers(StatusCode::NOT_MODIFIED, "The client has it.", None, &["ETag"]);
    html(operation, StatusCode::OK, "The dashboard: the same document for all its pages.", &["ETag"])
}

pub(in crate::http::api) fn overview_page(_: &mut Shapes) -> Operation {
    page("showOverview", "How everything stands, as a page")
}

pub(in crate::http::api) fn jobs_page(_: &mut Shapes) -> Operation {
    page("showJobs", "Jobs, as a page").text("Its parameters are read by the page.")
}

pub(in crate::http::api) fn job_page(_: &mut Shapes) -> Operation {
    page("showJob", "A job, as a page").path(
        "id",
        json!({ "type": "string" }),
        "The job's id, which the page reads.",
    )
}

pub(in crate::http::api) fn queues_page(_: &mut Shapes) -> Operation {
    page("showQueues", "Queues, as a page")
}

pub(in crate::http::api) fn dead_page(_: &mut Shapes) -> Operation {
    page("showDead", "Dead jobs, as a page")
}

pub(in crate::http::api) fn workers_page(_: &mut Shapes) -> Operation {
    page("showWorkers", "Workers, as a page")
}

pub(in crate::http::api) fn kinds_page(_: &mut Shapes) -> Operation {
    page("showKinds", "Kinds, as a page")
}

pub(in crate::http::api) fn submit_page(_: &mut Shapes) -> Operation {
    page("showSubmit", "A form for a job, as a page")
}

pub(in crate::http::api) fn dashboard_file(_: &mut Shapes) -> Operation {
    let text = |media: &str| (media.to_owned(), json!({ "schema": { "type": "string" } }));
    let media = [
        "text/html; charset=utf-8",
        "text/javascript; charset=utf-8",
        "text/css; charset=utf-8",
        "image/svg+xml",
    ];
    let content: serde_json::Map<_, _> = media.into_iter().map(text).collect();
    Operation::new("getDashboardFile", "Dashboard", "A file of the dashboard")
        .path("file", json!({ "type": "string" }), "Its name.")
        .header("If-None-Match", json!({ "type": "string" }), "The `ETag` of what the client has.")
        .codes(&[Code::NotFound])
        .answers(StatusCode::OK, "The file.", Some(content.into()), &["ETag"])
        .answers(StatusCode::NOT_MODIFIED, "The client has it.", None, &["ETag"])
}
