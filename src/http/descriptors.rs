//! File descriptors: each connection takes one, and so do the broker's connections and the record's files.
//!
//! Systems start programs with a soft limit of 1,024 and let them raise it up to the hard one. Without that, the connections
//! that are allowed would use up the descriptors, and the record and the way to the broker would fail for want of one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are kept for everything but HTTP connections: the record and its readers, keys, spool, the broker's
/// connections, connections that are told that there are too many.
const KEPT: usize = 256;

/// Raises the soft limit of file descriptors to the hard one, and says how many of `wanted` connections fit under it; at
/// least one.
pub(super) fn connections(wanted: usize) -> usize {
    let limit = raise();
    let fit = fitting(wanted, limit);
    if fit < wanted {
        tracing::warn!(
            http.connections = fit,
            limit,
            "file descriptors allow fewer connections than http.max_connections ({wanted}): raise the limit (ulimit -Hn, \
             LimitNOFILE=)"
        );
    }
    fit
}

/// The limit after raising it; none: there is no limit.
fn raise() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::debug!(%error, "cannot raise the limit of file descriptors");
            limit.current
        }
    }
}

fn fitting(wanted: usize, limit: Option<u64>) -> usize {
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    wanted.min(limit.saturating_sub(KEPT)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_rest() {
        for (wanted, limit, expected) in [
            (20_000, None, 20_000),
            (20_000, Some(1_048_576), 20_000),
            (20_000, Some(20_256), 20_000),
            (20_000, Some(20_255), 19_999),
            (20_000, Some(1024), 768),
            (20_000, Some(100), 1),
            (10, Some(1024), 10),
        ] {
            assert_eq!(fitting(wanted, limit), expected, "{wanted} of {limit:?}");
        }
    }
}
