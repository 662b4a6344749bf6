//! What the commands that ask the broker itself have in common: where its management API is, and exit codes.

use std::{path::Path, process::ExitCode};

use anyhow::Context;

use super::up;
use crate::config::{Amqp, Config, ConfigError};

/// The variable, where the argument is absent.
const VARIABLE: &str = "HOPLINE_MANAGEMENT_URL";
const FILE_VARIABLE: &str = "HOPLINE_MANAGEMENT_URL_FILE";

/// Something would change, or a warning is the gravest.
pub(super) const CHANGES: u8 = 7;
/// Something has to be done by hand, or something is wrong.
pub(super) const BY_HAND: u8 = 8;

pub(super) fn code(by_hand: bool, changes: bool) -> ExitCode {
    match (by_hand, changes) {
        (true, _) => ExitCode::from(BY_HAND),
        (false, true) => ExitCode::from(CHANGES),
        (false, false) => ExitCode::SUCCESS,
    }
}

/// The configuration, and where the management API is: where nobody says where the broker is, that of the `hopline up` of
/// this folder, as its HTTP front has it.
///
/// # Errors
/// The management API's address cannot be read.
pub(super) fn found(api: &Api) -> anyhow::Result<(Result<Config, ConfigError>, Option<String>)> {
    let (config, named) = (Config::load(), api.url()?);
    let of_up = config.as_ref().ok().filter(|config| config.amqp.url == Amqp::default().url);
    match of_up.and_then(|config| up::running_broker(Path::new("var"), config)) {
        Some((environment, management)) => {
            let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value));
            Ok((Config::load_with(environment), named.or(Some(management))))
        }
        None => Ok((config, named)),
    }
}

/// Where the management API is.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Api {
    /// Address of the broker's management API, http://USER:PASSWORD@HOST:15672. Without a login in it, that of amqp.url.
    /// Default: HOPLINE_MANAGEMENT_URL, or what the file holds that HOPLINE_MANAGEMENT_URL_FILE names; else that of the
    /// broker of `hopline up`, where amqp.url names no other; else it is not asked.
    // Not clap's `env`: its help would show the password.
    #[arg(long, value_name = "URL")]
    management: Option<String>,
}

impl Api {
    /// The address, if there is one.
    fn url(&self) -> anyhow::Result<Option<String>> {
        if let Some(url) = &self.management {
            return Ok(Some(url.clone()));
        }
        if let Ok(url) = std::env::var(VARIABLE) {
            return Ok(Some(url).filter(|url| !url.is_empty()));
        }
        let Some(path) = std::env::var_os(FILE_VARIABLE) else { return Ok(None) };
        let read = std::fs::read_to_string(&path);
        let url = read.with_context(|| format!("cannot read what {FILE_VARIABLE} names"))?;
        Ok(Some(url.trim().to_owned()))
    }
}
