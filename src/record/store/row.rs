//! A job's row: the columns that are made from its fold, for the indexes.

use super::StoreError;
use crate::record::{fold::Row, model::JobStatus};

/// The state of a job that is not shown: nothing that was heard of it says where it stands.
pub(super) const HIDDEN: u8 = 8;
/// States from this one on have ended (or are hidden).
pub(super) const FIRST_FINAL: u8 = JobStatus::Succeeded as u8;

/// The indexed columns of `jobs`, see `schema.sql`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Index {
    pub(super) class: i64,
    pub(super) state: u8,
    pub(super) at: i64,
    pub(super) ended: Option<i64>,
    pub(super) failed: Option<i64>,
    pub(super) fingerprint: Option<i64>,
    pub(super) died: Option<i64>,
    pub(super) created: i64,
}

impl Index {
    /// `heard`: the log's clock where the job was heard of last.
    pub(super) fn of(row: &Row, class: i64, heard: i64) -> Self {
        let Some((status, at)) = row.state() else {
            // It may go when what is known of it is old: nothing is counted by it.
            let (at, created) = (row.last_heard(), row.created());
            let none = None;
            return Self {
                class,
                state: HIDDEN,
                at,
                ended: Some(at),
                failed: none,
                fingerprint: none,
                died: none,
                created,
            };
        };
        let replayable = status == JobStatus::Dead && !row.is_purged();
        Self {
            class,
            state: status as u8,
            at,
            // A dead one that is purged stays as long as one that has just ended: its end is news to whoever reads.
            ended: (status.is_final() && !replayable).then_some(at.max(heard)),
            failed: row.error().map(|_| 1),
            fingerprint: row.fingerprint().as_deref().and_then(pack_fingerprint),
            died: replayable.then_some(at),
            created: row.created(),
        }
    }
}

/// A fingerprint's 16 digits as a number.
pub(super) fn pack_fingerprint(digits: &str) -> Option<i64> {
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok().map(u64::cast_signed)).flatten()
}

/// The digits of [`pack_fingerprint`].
pub(super) fn unpack_fingerprint(packed: i64) -> String {
    format!("{:016x}", packed.cast_unsigned())
}

/// The status that a state means; `None`: hidden.
pub(super) fn status_of(state: u8) -> Option<JobStatus> {
    JobStatus::ALL.get(usize::from(state)).copied()
}

/// The row in `jobs.body`.
pub(super) fn read_row(body: &str) -> Result<Row, StoreError> {
    serde_json::from_str(body).map_err(|error| StoreError::Corrupt(format!("a row cannot be read: {error}")))
}
