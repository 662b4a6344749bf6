//! What is wrong, one check at a time, and how to mend it (`docs/doctor.md`).
//!
//! Looks only: nothing is changed, no message is published or taken.
//!
//! | module | owns |
//! |---|---|
//! | [`local`] | the configuration, and this machine: folders, descriptors |
//! | [`broker`] | reaching the broker, its version, the login's rights |
//! | [`queues`] | topology, policies, retention, members: what the management API tells of our objects |
//! | [`nodes`] | clock, alarms, memory, disk, descriptors, feature flags: what it tells of the broker |

mod broker;
mod local;
mod nodes;
mod queues;

use serde::Serialize;

use crate::{
    amqp::probe::Probe,
    config::{Config, ConfigError},
    management::Management,
    setup::{self, Setup, rights::Role},
};

/// All checks, in the order in which they are made.
#[cfg(test)]
const CHECKS: [&str; 21] = [
    "configuration",
    "routes",
    "record",
    "spool",
    "descriptors",
    "callbacks",
    "broker",
    "version",
    "permissions",
    "management",
    "topology",
    "policies",
    "retention",
    "consumer_timeout",
    "queues",
    "feature_flags",
    "alarms",
    "memory",
    "disk",
    "broker_descriptors",
    "clock",
];
/// Those that the management API is needed for. The topology is looked at without it, too.
const MANAGED: [&str; 9] = [
    "policies",
    "retention",
    "queues",
    "feature_flags",
    "alarms",
    "memory",
    "disk",
    "broker_descriptors",
    "clock",
];

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// It could not be looked at.
    Skip,
    /// It works, and may not for long.
    Warn,
    /// It does not work, or jobs are in danger.
    Fail,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) check: &'static str,
    pub(crate) level: Level,
    pub(crate) found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mend: Option<String>,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), mend: None }
    }

    pub(crate) fn skip(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Skip, found: found.into(), mend: None }
    }

    pub(crate) fn warn(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, level: Level::Warn, found: found.into(), mend: Some(mend.into()) }
    }

    pub(crate) fn fail(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, level: Level::Fail, found: found.into(), mend: Some(mend.into()) }
    }
}

/// Makes all checks. `url` is the management API's.
pub(crate) async fn examine(
    config: Result<Config, ConfigError>,
    url: Option<String>,
    role: Role,
) -> Vec<Finding> {
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            let mend = "mend the configuration first; config/hopline.toml shows every key. Nothing else was looked at";
            return vec![Finding::fail("configuration", error.to_string(), mend)];
        }
    };
    let mut findings = local::examine(&config, role);
    let probe = broker::reach(&config, &mut findings).await;
    let setup = Setup::new(&config, &[], None);
    if let Some(probe) = &probe {
        findings.push(broker::permissions(&config, &setup.names, role, probe).await);
    } else {
        findings.push(Finding::skip("permissions", "there is no connection"));
    }
    match url.map(|url| Management::new(&url, &config.amqp.url)) {
        None => {
            let why = "its address is not given (--management, HOPLINE_MANAGEMENT_URL)";
            findings.push(Finding::skip("management", why));
            without_management(&config, &setup, probe.as_ref(), &mut findings).await;
        }
        Some(Err(error)) => {
            findings.push(Finding::fail("management", error.to_string(), "mend the address"));
            without_management(&config, &setup, probe.as_ref(), &mut findings).await;
        }
        Some(Ok(management)) => with_management(&config, &management, probe.as_ref(), &mut findings).await,
    }
    if let Some(probe) = probe {
        probe.close().await;
    }
    findings
}

async fn without_management(
    config: &Config,
    setup: &Setup,
    probe: Option<&Probe>,
    findings: &mut Vec<Finding>,
) {
    match probe {
        Some(probe) => {
            let items = setup.look(probe).await;
            findings.push(queues::topology(&items, config.amqp.declare, false));
            findings.extend(queues::routes(config, setup, &items));
        }
        None => findings.push(Finding::skip("topology", "there is no connection")),
    }
    findings.extend(queues::consumer_timeout(config, None));
    findings.extend(MANAGED.map(|check| Finding::skip(check, "only the management API tells")));
}

async fn with_management(
    config: &Config,
    management: &Management,
    probe: Option<&Probe>,
    findings: &mut Vec<Finding>,
) {
    let Some(clock) = nodes::reach(management, findings).await else {
        let setup = Setup::new(config, &[], None);
        return without_management(config, &setup, probe, findings).await;
    };
    match settled(config, management).await {
        Ok(found) => {
            let setup = Setup::new(config, &[], Some(&found));
            let items = setup.compare(&found);
            findings.push(queues::topology(&items, config.amqp.declare, true));
            findings.extend(queues::foreign(&items, &setup));
            findings.extend(queues::routes(config, &setup, &items));
            findings.push(queues::policies(&found, &setup.names));
            findings.push(queues::retention(config, &found, &setup.names));
            findings.extend(queues::consumer_timeout(config, Some((&found, &setup.names))));
            findings.push(queues::members(&found, &setup.names));
        }
        Err(error) => {
            let mend =
                "the login of the management API needs the tag monitoring, and access to the virtual host";
            findings.push(Finding::fail("topology", error.to_string(), mend));
        }
    }
    nodes::examine(management, findings).await;
    findings.push(clock);
}

/// What the broker has. Who leads a queue is told some seconds after it is declared.
async fn settled(
    config: &Config,
    management: &Management,
) -> Result<setup::found::Found, crate::management::ManagementError> {
    let mut found = setup::survey(config, management).await?;
    if found.queues.values().any(queues::lacks_leader) {
        // RabbitMQ's own interval is 5 s; there is nothing to wait for but its next word.
        tokio::time::sleep(nodes::STATISTICS).await;
        found = setup::survey(config, management).await?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_is_documented() {
        let page = include_str!("../docs/doctor.md");
        for check in CHECKS {
            assert!(page.contains(&format!("\n| `{check}` | ")), "docs/doctor.md has no row `{check}`");
        }
        assert!(MANAGED.iter().all(|check| CHECKS.contains(check)));
    }

    #[test]
    fn the_gravest_is_the_greatest() {
        assert!(Level::Fail > Level::Warn && Level::Warn > Level::Skip && Level::Skip > Level::Ok);
    }
}
