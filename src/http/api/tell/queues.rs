//! Queues, and their dead jobs.

use axum::http::StatusCode;
use serde_json::json;

use super::{ORDER, RECORD, Shapes, items, json_media, list};
use crate::http::{
    api::{
        operation::{Operation, schema_of},
        shapes::{JOB, act, reference},
    },
    dead,
    problem::Code,
    queues,
};

const UUID: &str = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}";

fn queue_example() -> serde_json::Value {
    json!({
        "queue": "demo", "ready": 120, "running": 8, "scheduled": 3, "retrying": 1, "dead": 2, "oldest_age": 4.2,
        "arrival_rate": 10.5, "service_rate": 30.0, "mean_duration": 0.25, "time_to_drain": 4.0,
        "suggested_replicas": 1, "consumers": 2, "workers": ["demo@host-1", "demo@host-2"], "paused": false,
    })
}

pub(in crate::http::api) fn queues(shapes: &mut Shapes) -> Operation {
    let queue = schema_of::<queues::Shown<'static>>(&mut shapes.generator);
    Operation::new("listQueues", "Queues", "List queues").takes_query().codes(&RECORD).gives(
        StatusCode::OK,
        "All queues that anything is known of.",
        items(&queue),
        json!({ "items": [queue_example()] }),
        &[],
    )
}

pub(in crate::http::api) fn queue(shapes: &mut Shapes) -> Operation {
    let queue = schema_of::<queues::Shown<'static>>(&mut shapes.generator);
    Operation::new("getQueue", "Queues", "Show a queue")
        .queue_path()
        .takes_query()
        .codes(&RECORD)
        .codes(&ORDER)
        .gives(StatusCode::OK, "How full it is, and how fast it empties.", queue, queue_example(), &[])
}

fn switching(operation: Operation, shapes: &mut Shapes, paused: bool) -> Operation {
    let switched = schema_of::<queues::Switched<'static>>(&mut shapes.generator);
    operation.queue_path().takes_nothing().query("by", reference("By"), "Who asks.").codes(&ORDER).gives(
        StatusCode::OK,
        "The order is durable.",
        switched,
        json!({ "queue": "demo", "paused": paused }),
        &[],
    )
}

pub(in crate::http::api) fn pause(shapes: &mut Shapes) -> Operation {
    let operation = Operation::new("pauseQueue", "Queues", "Pause a queue").text(
        "Workers take no more jobs from it, wherever they are and whatever is restarted. Submitting goes on.",
    );
    switching(operation, shapes, true)
}

pub(in crate::http::api) fn resume(shapes: &mut Shapes) -> Operation {
    switching(Operation::new("resumeQueue", "Queues", "Resume a queue"), shapes, false)
}

pub(in crate::http::api) fn dead(shapes: &mut Shapes) -> Operation {
    let operation =
        list(shapes).renamed("listDead", "Dead jobs", "List the dead jobs of a queue that can be replayed");
    operation.without(&["status", "queue"]).queue_path().codes(&ORDER)
}

pub(in crate::http::api) fn purge_dead(shapes: &mut Shapes) -> Operation {
    Operation::new("purgeDead", "Acts", "Remove dead jobs' messages for good")
        .queue_path()
        .query("kind", reference("Kind"), "Of this kind.")
        .query("fingerprint", reference("Fingerprint"), "Of this group.")
        .query(
            "id",
            json!({ "type": "string", "pattern": format!("^{UUID}(, ?{UUID})*$"), "examples": [JOB] }),
            "One job, or several joined by commas.",
        )
        .query("dry_run", json!({ "type": "boolean" }), "Only count the jobs.")
        .signed()
        .takes_query()
        .codes(&[Code::UnknownGroup])
        .acts(shapes, true)
}

pub(in crate::http::api) fn dead_groups(shapes: &mut Shapes) -> Operation {
    let group = schema_of::<dead::Shown<'static>>(&mut shapes.generator);
    let example = json!({
        "fingerprint": "9c2f6a01d4e8b735", "kind": "demo.fail", "code": "error", "reason": "exhausted",
        "message": "no answer from 10.0.0.7", "count": 120, "first_at": "2030-01-31T12:00:00.000Z",
        "last_at": "2030-01-31T13:00:00.000Z", "latest": JOB,
    });
    Operation::new("groupDead", "Dead jobs", "Group the dead jobs of a queue by their errors")
        .queue_path()
        .takes_query()
        .codes(&RECORD)
        .codes(&ORDER)
        .gives(
            StatusCode::OK,
            "At most 1,000 groups, the largest first.",
            items(&group),
            json!({ "items": [example] }),
            &[],
        )
}

pub(in crate::http::api) fn replay_dead(shapes: &mut Shapes) -> Operation {
    let members = &["kind", "fingerprint", "ids", "all", "rate", "dry_run", "set", "by", "reason"];
    let some = json!([{ "required": ["kind"] }, { "required": ["fingerprint"] }, { "required": ["ids"] }]);
    let is_all = json!({ "properties": { "all": { "const": true } }, "required": ["all"] });
    let which = json!({ "oneOf": [is_all, { "anyOf": some }] });
    Operation::new("replayDead", "Acts", "Replay dead jobs of a queue")
        .queue_path()
        .takes(true, json_media(act(members, which), json!({ "all": true, "rate": 50, "dry_run": true })))
        .codes(&[Code::UnknownGroup])
        .acts(shapes, true)
}

pub(in crate::http::api) fn purge_jobs(shapes: &mut Shapes) -> Operation {
    Operation::new("purgeQueue", "Acts", "End all jobs that wait in a queue")
        .queue_path()
        .takes_query()
        .signed()
        .acts(shapes, false)
}
