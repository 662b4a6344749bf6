//! The acts as jobs: their kinds, args and outputs (`docs/http.md`, "Acts").

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    job::{Job, JobId, QueueName},
    record::model::Filter,
};

/// Header of a replayed job: the act that started its run. It stays with the job.
pub(super) const REPLAYED_BY: &str = "hopline-replayed-by";
/// Most jobs that one act names.
pub const IDS_MAX: usize = 10_000;
/// The queue of acts.
pub(super) const QUEUE: &str = "hopline-acts";

/// Starts the next run of dead jobs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// Which; all of those that `ids` names too, where it is given. Without a queue: in all queues.
    #[serde(default)]
    pub filter: Filter,
    /// These jobs, at most [`IDS_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<JobId>>,
    /// Most jobs per second, above 0; absent: as fast as it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// What the jobs get instead of what they had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<Set>,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many jobs it was about when it was asked for; for the progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
}

/// What a replayed job gets instead of what it had.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    /// Its args, any JSON.
    pub args: Box<RawValue>,
}

impl Job for Replay {
    const KIND: &'static str = crate::event::REPLAY;
    const QUEUE: &'static str = QUEUE;
    type Output = Done;
}

/// What is purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Dead messages: their jobs stay dead, and cannot be replayed any more.
    #[default]
    Dead,
    /// Jobs that wait in a work queue: they end cancelled, reason `purged`. Those on the delay ladder stay.
    Jobs,
}

/// Removes what waits in a queue.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Purge {
    /// The queue.
    pub queue: QueueName,
    /// What of it.
    #[serde(default)]
    pub target: Target,
    /// Which dead messages. Its queue is [`Purge::queue`]; for jobs it says nothing.
    #[serde(default)]
    pub filter: Filter,
    /// These jobs' dead messages, at most [`IDS_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<JobId>>,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many messages it was about when it was asked for; for the progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
}

impl Job for Purge {
    const KIND: &'static str = "hopline.purge";
    const QUEUE: &'static str = QUEUE;
    type Output = Done;
}

/// Asks for the cancellation of jobs that have not ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// Which.
    #[serde(default)]
    pub filter: Filter,
    /// These jobs, at most [`IDS_MAX`]; the filter is not looked at then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<JobId>>,
    /// Who asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many jobs it was about when it was asked for; for the progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
}

impl Job for Cancel {
    const KIND: &'static str = "hopline.cancel";
    const QUEUE: &'static str = QUEUE;
    type Output = Done;
}

/// What an act did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {
    /// Jobs and messages it was about and met.
    pub matched: u64,
    /// Of these: replayed, purged, or asked to be cancelled.
    pub done: u64,
    /// Of these: there was nothing to do any more. A stale dead message was removed.
    pub skipped: u64,
    /// Of these: it did not work, and the message stays where it is.
    pub failed: u64,
    /// Of the jobs named by id: met nowhere.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing: u64,
    /// The first failures, at most 20, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
