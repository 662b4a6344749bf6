//! The configuration as a whole, and this machine.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Resource, getrlimit};

use super::Finding;
use crate::{config::Config, courier::Courier, job::JobId, setup::rights::Role};

/// Least free space where a record lies.
const RECORD_SPACE: u64 = 1 << 30;
/// Descriptors besides those of HTTP connections, as the front keeps them.
const KEPT: u64 = 256;
/// What a kind without a timeout of its own has, and how long a job may wait for its turn.
const TIMEOUT: Duration = Duration::from_secs(600);
const WAITING: Duration = Duration::from_secs(300);

pub(super) fn examine(config: &Config, role: Role) -> Vec<Finding> {
    let mut findings = vec![configuration(config)];
    if role == Role::Http {
        findings.push(folder("record", &config.record.path, RECORD_SPACE));
        findings.push(match &config.spool.path {
            Some(path) => folder("spool", path, config.spool.max_bytes as u64),
            None => Finding::ok("spool", "none is configured: submits are refused while the broker is away"),
        });
        findings.push(descriptors(getrlimit(Resource::Nofile).maximum, config.http.max_connections as u64));
        findings.push(callbacks(config));
    }
    findings
}

/// Whether this front sends callbacks, and how far they reach.
fn callbacks(config: &Config) -> Finding {
    let asked = &config.callbacks;
    match Courier::new(asked) {
        Ok(None) => {
            Finding::ok("callbacks", "callbacks.secret is not set: jobs with a callback_url are refused")
        }
        Err(why) => {
            Finding::fail("callbacks", why, "mend the key that it names; a front does not start with it")
        }
        Ok(Some(_)) if asked.allow.iter().any(|network| network.ends_with("/0")) => Finding::warn(
            "callbacks",
            "callbacks.allow has all addresses: whoever may submit jobs can have this network's inside asked",
            "allow the networks and hosts that are wanted",
        ),
        Ok(Some(_)) => {
            let secrets = asked.secret.expose().count();
            let beside = match asked.allow.len() {
                0 => String::new(),
                count => format!(", and to {count} networks and hosts that are allowed besides"),
            };
            Finding::ok("callbacks", format!("sent to public addresses{beside}, signed by {secrets} secrets"))
        }
    }
}

/// Its values hold together, as it was read; here is what is allowed and seldom meant.
fn configuration(config: &Config) -> Finding {
    let mut odd = Vec::new();
    let worker = &config.worker;
    let longest = WAITING.min(worker.consumer_timeout / 4) + TIMEOUT + config.shutdown.grace;
    if longest >= worker.consumer_timeout {
        odd.push(format!(
            "worker.consumer_timeout ({:?}) leaves no room for a kind with the default timeout of 10 min: such a worker \
             does not start",
            worker.consumer_timeout
        ));
    }
    if !config.amqp.url.is_tls() && !is_local(config) {
        odd.push(
            "amqp.url has no TLS and is not this machine: passwords and jobs are readable on the way"
                .to_owned(),
        );
    }
    if config.record.retention < Duration::from_secs(3600) {
        odd.push(format!(
            "record.retention ({:?}) forgets ended jobs before anybody has looked at them",
            config.record.retention
        ));
    }
    if odd.is_empty() {
        return Finding::ok("configuration", format!("holds together; broker {}", config.amqp.url));
    }
    Finding::warn("configuration", odd.join("; "), "set these keys; config/hopline.toml says what each does")
}

fn is_local(config: &Config) -> bool {
    let host = crate::amqp::probe::Target::of(&config.amqp.url).map(|target| target.host).unwrap_or_default();
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a folder can be written to, or made, and has room.
fn folder(check: &'static str, path: &Path, wanted: u64) -> Finding {
    let shown = path.display();
    let Some(there) = nearest(path) else {
        return Finding::fail(check, format!("{shown}: none of its parents is there"), "name another folder");
    };
    if !there.is_dir() {
        let found = format!("{shown} cannot be a folder: {} is none", there.display());
        return Finding::fail(check, found, format!("name another folder ({check}.path)"));
    }
    let trial = there.join(format!(".hopline-doctor-{}", JobId::new()));
    let written = fs::write(&trial, b"x");
    let _ = fs::remove_file(&trial);
    if let Err(error) = written {
        let found = format!("{shown} cannot be written to: {error}");
        return Finding::fail(check, found, "give it to the user that runs hopline, or name another folder");
    }
    match rustix::fs::statvfs(&there) {
        Ok(space) => room(check, path, space.f_bavail.saturating_mul(space.f_frsize), wanted),
        Err(error) => Finding::skip(check, format!("{shown}: its free space is not told: {error}")),
    }
}

fn room(check: &'static str, path: &Path, free: u64, wanted: u64) -> Finding {
    let shown = path.display();
    let free_mib = free >> 20;
    if free < wanted {
        let found = format!("{shown} has {free_mib} MiB free, less than {} MiB", wanted >> 20);
        let mend = if check == "spool" {
            "make room, or lower spool.max_bytes: a spool that cannot be written refuses jobs"
        } else {
            "make room: a record that cannot be written stands still"
        };
        return Finding::warn(check, found, mend);
    }
    Finding::ok(check, format!("{shown} can be written to, {free_mib} MiB free"))
}

/// The path itself, or the nearest of its parents that is there.
fn nearest(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find(|path| path.symlink_metadata().is_ok()).map(Path::to_path_buf)
}

/// `limit` none: there is none.
fn descriptors(limit: Option<u64>, connections: u64) -> Finding {
    let Some(limit) = limit else { return Finding::ok("descriptors", "there is no limit") };
    if limit < connections + KEPT {
        return Finding::warn(
            "descriptors",
            format!(
                "this process may have {limit}, http.max_connections ({connections}) and {KEPT} more want others"
            ),
            "raise the hard limit (ulimit -Hn, LimitNOFILE=), or lower http.max_connections: it is lowered to fit",
        );
    }
    Finding::ok("descriptors", format!("this process may have {limit}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::AmqpUrl, doctor::Level};

    #[test]
    fn odd_configurations_are_told() {
        let level = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            configuration(&config).level
        };
        assert_eq!(level(|_| {}), Level::Ok);
        assert_eq!(level(|config| config.amqp.url = AmqpUrl::new("amqp://u:p@broker")), Level::Warn);
        assert_eq!(level(|config| config.amqp.url = AmqpUrl::new("amqps://u:p@broker")), Level::Ok);
        assert_eq!(level(|config| config.record.retention = Duration::from_secs(60)), Level::Warn);
        assert_eq!(level(|config| config.worker.consumer_timeout = Duration::from_secs(600)), Level::Warn);
        let mut config = Config::default();
        config.amqp.url = AmqpUrl::new("amqp://u:secret@broker");
        assert!(!format!("{:?}", configuration(&config)).contains("secret"));
    }

    #[test]
    fn folders_are_tried() {
        let dir = std::env::temp_dir().join(format!("hopline-doctor-{}", JobId::new()));
        fs::create_dir_all(&dir).unwrap();
        let file = dir.join("file");
        fs::write(&file, "").unwrap();
        let level = |path: &Path, wanted| folder("record", path, wanted).level;
        assert_eq!(level(&dir, 1), Level::Ok);
        assert_eq!(level(&dir.join("not/yet"), 1), Level::Ok);
        assert_eq!(level(&dir, u64::MAX), Level::Warn, "no room");
        assert_eq!(level(&file, 1), Level::Fail);
        assert_eq!(level(&file.join("below"), 1), Level::Fail);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing is left behind");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn descriptors_are_counted() {
        assert_eq!(descriptors(None, 20_000).level, Level::Ok);
        assert_eq!(descriptors(Some(1024), 20_000).level, Level::Warn);
        assert_eq!(descriptors(Some(20_256), 20_000).level, Level::Ok);
    }
}
