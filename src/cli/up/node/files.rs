//! The node's own folder: its configuration, its login, and the record of its processes.

use std::{
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{NodeError, Ports};
use crate::cli::up::{
    files::{self, FileError, failed},
    process::Process,
};

/// The settings that the deployment files ship, too.
const ADVANCED: &str = include_str!("../../../../config/advanced.config");

const PLUGINS: &str =
    "[rabbitmq_management,rabbitmq_prometheus,rabbitmq_shovel,rabbitmq_shovel_management].\n";
/// Enough to see a small disk fill up, little enough to start on one.
const DISK_FREE_LIMIT: &str = "50MB";

/// The processes of a node, so that another process can end them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) broker: Option<Process>,
    pub(super) epmd: Option<Process>,
}

/// Names in the node's folder.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) dir: PathBuf,
}

impl Files {
    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("rabbitmq.conf")
    }

    pub(super) fn advanced(&self) -> PathBuf {
        self.dir.join("advanced.config")
    }

    pub(super) fn plugins(&self) -> PathBuf {
        self.dir.join("enabled_plugins")
    }

    pub(super) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.logs().join("rabbitmq.log")
    }

    /// What the broker writes before it has a log, or when it cannot write one.
    pub(super) fn output(&self) -> PathBuf {
        self.logs().join("output.log")
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.dir.join("node.lock")
    }

    fn record(&self) -> PathBuf {
        self.dir.join("node.json")
    }

    fn password(&self) -> PathBuf {
        self.dir.join("password")
    }

    pub(super) fn make_dirs(&self) -> Result<(), FileError> {
        [self.dir.clone(), self.data(), self.logs()].iter().try_for_each(|dir| files::make_dir(dir))
    }

    /// The password of this node: made at its first start, then kept, because its data knows it.
    pub(super) fn password_or_new(&self) -> Result<String, NodeError> {
        if let Some(password) = files::read(&self.password())? {
            return Ok(password.trim().to_owned());
        }
        let data = self.data();
        let blank = data.read_dir().map_err(failed("read", &data))?.next().is_none();
        if !blank {
            return Err(NodeError::PasswordGone(self.dir.clone()));
        }
        let password = random().map_err(failed("read", "/dev/urandom".as_ref()))?;
        files::write(&self.password(), password.as_bytes())?;
        Ok(password)
    }

    /// Writes what the broker reads at its start.
    pub(super) fn write_config(
        &self,
        ports: &Ports,
        password: &str,
        consumer_timeout: Duration,
        extra: &str,
    ) -> Result<(), FileError> {
        let Ports { amqp, management, prometheus, .. } = ports;
        let user = super::USER;
        let timeout = consumer_timeout.as_millis();
        let config = format!(
            "# Written at each start.\n\
             listeners.tcp.1 = 127.0.0.1:{amqp}\n\
             management.tcp.ip = 127.0.0.1\n\
             management.tcp.port = {management}\n\
             prometheus.tcp.ip = 127.0.0.1\n\
             prometheus.tcp.port = {prometheus}\n\
             default_user = {user}\n\
             default_pass = {password}\n\
             disk_free_limit.absolute = {DISK_FREE_LIMIT}\n\
             consumer_timeout = {timeout}\n\
             log.console = false\n\
             log.file = rabbitmq.log\n\
             log.file.level = info\n\
             log.file.rotation.size = 16777216\n\
             log.file.rotation.count = 2\n\
             {extra}\n"
        );
        files::write(&self.config(), config.as_bytes())?;
        files::write(&self.advanced(), ADVANCED.as_bytes())?;
        files::write(&self.plugins(), PLUGINS.as_bytes())
    }

    pub(super) fn read_record(&self) -> Result<Record, FileError> {
        // What is half written or of another version names no process that we could end.
        Ok(files::read(&self.record())?.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    pub(super) fn write_record(&self, record: &Record) -> Result<(), FileError> {
        let text =
            serde_json::to_vec(record).map_err(|error| failed("write", &self.record())(error.into()))?;
        files::write(&self.record(), &text)
    }

    pub(super) fn remove_record(&self) {
        // A record that stays names processes that have ended, which the next start sees.
        let _ = std::fs::remove_file(self.record());
    }
}

/// Refuses a folder that a RabbitMQ node cannot run in.
///
/// # Errors
/// [`NodeError::QuoteInPath`].
pub(super) fn check_quotes(dir: &Path) -> Result<(), NodeError> {
    let quoted = dir.as_os_str().as_encoded_bytes().iter().any(|byte| matches!(byte, b'\'' | b'"'));
    if quoted { Err(NodeError::QuoteInPath(dir.to_owned())) } else { Ok(()) }
}

/// 144 random bits as text that needs no escaping anywhere.
fn random() -> std::io::Result<String> {
    let mut bytes = [0; 18];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_in_the_path_is_refused() {
        for good in ["/tmp/var", "/tmp/a b", "/tmp/é", "/tmp/a\\b", "/tmp/$HOME"] {
            assert!(check_quotes(good.as_ref()).is_ok(), "{good}");
        }
        for bad in ["/tmp/o'q", "/tmp/o\"q/var"] {
            assert!(matches!(check_quotes(bad.as_ref()), Err(NodeError::QuoteInPath(_))), "{bad}");
        }
    }
}
