//! The question of a worker whether a run has ended already, and its answer (`docs/wire.md`, "Lookups").
//!
//! Only the words: a worker asks with them, and `answers` answers.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    event::{EventError, time_option},
    job::{JobId, reply::Status},
};

/// Message type of a question.
pub(crate) const QUESTION: &str = "hopline.lookup";
/// Message type of an answer.
#[cfg(feature = "server")]
pub(crate) const ANSWER: &str = "hopline.lookup.answer";
/// Most jobs in one question.
pub(crate) const JOBS_MAX: usize = 500;

/// Which runs have ended?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LookupRequest {
    /// At most [`JOBS_MAX`].
    pub(crate) jobs: Vec<Asked>,
}

/// One run that is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) id: JobId,
    pub(crate) run: u32,
    pub(crate) step: u32,
}

/// What is known of the jobs that were asked about, in their order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LookupAnswer {
    /// The answer knows the event log up to this offset, and perhaps more of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) offset: Option<u64>,
    pub(crate) jobs: Vec<Known>,
}

/// What is known of one run. Of an unknown job: steps and runs 0.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) id: JobId,
    /// The run that was asked about.
    pub(crate) run: u32,
    /// How that run ended.
    #[serde(rename = "final", default, skip_serializing_if = "Option::is_none")]
    pub(crate) end: Option<End>,
    /// The highest step of that run that is known to exist.
    pub(crate) step: u32,
    /// The newest run that is known.
    pub(crate) latest_run: u32,
    /// That run's cancellation was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cancel: Option<Cancel>,
}

/// How a run ended: enough to send its reply again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) status: Status,
    pub(crate) attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) worker: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<EventError>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) output: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) output_omitted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time_option")]
    pub(crate) started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time_option")]
    pub(crate) finished_at: Option<Timestamp>,
}

/// A cancellation that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cancel {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// When, if known.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time_option")]
    pub(crate) at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_wire_contract() {
        let id: JobId = "0199c3a1-7c00-7000-8000-000000000001".parse().unwrap();
        let asked = LookupRequest { jobs: vec![Asked { id, run: 1, step: 2 }] };
        let text = serde_json::to_string(&asked).unwrap();
        assert_eq!(text, format!(r#"{{"jobs":[{{"id":"{id}","run":1,"step":2}}]}}"#));
        assert_eq!(serde_json::from_str::<LookupRequest>(&text).unwrap(), asked);

        let answer = format!(
            r#"{{"offset":77,"jobs":[{{"id":"{id}","run":1,"final":{{"status":"dead","attempt":3,"reason":"fatal","error":{{"code":"x","message":"y"}},"finished_at":"2026-01-02T03:04:05.678Z"}},"step":2,"latest_run":1,"cancel":{{"by":"a","at":"2026-01-02T03:04:05.678Z"}}}},{{"id":"{id}","run":2,"step":0,"latest_run":0}}]}}"#
        );
        let read: LookupAnswer = serde_json::from_str(&answer).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), answer);
        assert_eq!(read.jobs[0].end.as_ref().unwrap().status, Status::Dead);
        assert!(read.jobs[1].end.is_none() && read.jobs[1].cancel.is_none());
    }
}
