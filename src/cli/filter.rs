//! Which jobs a command is about.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::api::Request;
use crate::{config::parse_duration, near, record::model::JobStatus};

/// Some of the jobs, by what is known of them.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Filter {
    /// In one of these states, joined by commas: scheduled, queued, running, retrying, succeeded, dead, cancelled,
    /// expired.
    #[arg(long, value_delimiter = ',', value_parser = status)]
    status: Vec<JobStatus>,
    /// In this queue.
    #[arg(long)]
    queue: Option<String>,
    #[command(flatten)]
    rest: Narrow,
}

/// The parts of a filter that make sense within one queue and state.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Narrow {
    /// Of this kind.
    #[arg(long)]
    kind: Option<String>,
    /// With this tag.
    #[arg(long)]
    tag: Option<String>,
    /// Whose error holds this text.
    #[arg(long, value_name = "TEXT")]
    q: Option<String>,
    /// Submitted at this time (RFC 3339) or later, or at most so long ago, as in 2h.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<Timestamp>,
    /// Submitted before this time (RFC 3339), or longer ago than this.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Option<Timestamp>,
    /// Dead of this group (see `dead groups`).
    #[arg(long)]
    fingerprint: Option<String>,
}

fn status(name: &str) -> Result<JobStatus, String> {
    JobStatus::parse(name.trim()).ok_or_else(|| {
        let known = JobStatus::ALL.map(JobStatus::as_str);
        let hint = near::did_you_mean(name.trim(), known).map(|hint| format!(". {hint}")).unwrap_or_default();
        format!("must be one of {}{hint}", known.join(", "))
    })
}

fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let ago = parse_duration(text).map_err(|_| "must be a time as 2030-01-31T12:00:00Z, or an age as 2h")?;
    Timestamp::now().checked_sub(ago).map_err(|_| "is too long ago".to_owned())
}

impl Filter {
    /// Whether it leaves none out.
    pub(super) fn is_empty(&self) -> bool {
        self.parts().next().is_none()
    }

    fn parts(&self) -> impl Iterator<Item = (&'static str, String)> {
        let status = self.status.iter().map(|status| status.as_str()).collect::<Vec<_>>().join(",");
        let status = Some(status).filter(|status| !status.is_empty());
        [("status", status), ("queue", self.queue.clone())]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .chain(self.rest.parts())
    }

    /// The same as parameters of a query.
    pub(super) fn query(&self, request: Request) -> Request {
        self.parts().fold(request, |request, (name, value)| request.query(name, Some(value)))
    }

    /// The same as a member of a body.
    pub(super) fn members(&self) -> Map<String, Value> {
        let mut members: Map<_, _> =
            self.parts().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
        if !self.status.is_empty() {
            members.insert("status".to_owned(), json!(self.status));
        }
        members
    }
}

impl Narrow {
    fn parts(&self) -> impl Iterator<Item = (&'static str, String)> + use<> {
        let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
        [
            ("kind", self.kind.clone()),
            ("tag", self.tag.clone()),
            ("q", self.q.clone()),
            ("from", text(self.from)),
            ("to", text(self.to)),
            ("fingerprint", self.fingerprint.clone()),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }

    /// The same as parameters of a query.
    pub(super) fn query(&self, request: Request) -> Request {
        self.parts().fold(request, |request, (name, value)| request.query(name, Some(value)))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        filter: Filter,
    }

    fn read(words: &[&str]) -> Result<Filter, String> {
        let words = ["x"].iter().chain(words);
        Line::try_parse_from(words).map(|line| line.filter).map_err(|error| error.to_string())
    }

    #[test]
    fn a_filter_is_written_as_the_server_reads_it() {
        let words = [
            "--status",
            "dead,expired",
            "--status",
            "queued",
            "--queue",
            "q",
            "--kind",
            "a.b",
            "--tag",
            "x y",
            "--q",
            "no",
            "--from",
            "2030-01-01T01:00:00+01:00",
            "--fingerprint",
            "0f",
        ];
        let filter = read(&words).unwrap();
        assert_eq!(
            Value::from(filter.members()),
            json!({"status": ["dead", "expired", "queued"], "queue": "q", "kind": "a.b", "tag": "x y", "q": "no",
                   "from": "2030-01-01T00:00:00Z", "fingerprint": "0f"})
        );
        let parts: Vec<_> = filter.parts().collect();
        assert_eq!((parts.len(), &parts[0]), (7, &("status", "dead,expired,queued".to_owned())));
        assert!(!filter.is_empty() && read(&[]).unwrap().is_empty());
        let known = serde_json::from_value::<crate::record::model::Filter>(filter.members().into());
        assert!(known.is_ok(), "{known:?}");
    }

    #[test]
    fn times_may_be_ages() {
        let from = read(&["--from", "2h"]).unwrap().rest.from.unwrap();
        let ago = Timestamp::now().duration_since(from).as_secs();
        assert!((7200..7260).contains(&ago), "{ago}");
        let error = read(&["--status", "quued"]).unwrap_err();
        assert!(error.contains("Did you mean queued?"), "{error}");
        for bad in [["--from", "yesterday"], ["--to", "-2h"], ["--status", "done"]] {
            assert!(read(&bad).is_err(), "{bad:?}");
        }
    }
}
