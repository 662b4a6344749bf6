//! What the operator allows: addresses, times, secrets. All of it has defaults.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use hopline::{config::WebhookSecrets, egress::Guard, sign::Secrets};
use serde::Deserialize;
use thiserror::Error;

/// Names the file of settings; there need be none.
pub const VARIABLE: &str = "WEBHOOK_CONFIG";
/// The setting that lets requests go to addresses that are not public.
pub const ALLOW: &str = "allow in the file of WEBHOOK_CONFIG";

/// A worker that cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The file, or that of a secret, cannot be read.
    #[error("cannot read {path:?}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML, or has other keys.
    #[error("{path:?}: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What, and where.
        source: Box<toml::de::Error>,
    },
    /// Values that cannot be, all of them.
    #[error("settings:{}", .0.iter().map(|problem| format!("\n  {problem}")).collect::<String>())]
    Invalid(Vec<String>),
}

/// What is set.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What may be asked although it is not public, or not over HTTPS: networks, addresses, names of hosts. Default none.
    pub allow: Vec<String>,
    /// Longest time to connect. 1 s to 1 min. Default 5 s.
    #[serde(with = "hopline::config::duration")]
    pub connect_timeout: Duration,
    /// Longest time of a request, its answer included, where a job says nothing. 1 s to `max_timeout`. Default 30 s.
    #[serde(with = "hopline::config::duration")]
    pub timeout: Duration,
    /// The longest that a job may say. 1 s to 15 min. Default 5 min.
    #[serde(with = "hopline::config::duration")]
    pub max_timeout: Duration,
    /// Most bytes of an answer's body that become output; the rest is left out. Up to 8 MiB. Default 256 KiB.
    pub body: usize,
    /// Headers of answers that become output, besides those that a job names. Default: `content-type`, `etag`,
    /// `last-modified`, `location`, `retry-after`, `x-request-id`.
    pub response_headers: Vec<String>,
    /// Most requests at the same time in this process. 1 to 1000. Default 20.
    pub concurrency: usize,
    /// Keeps args and outputs out of the record: for URLs and headers that hold secrets. Default false.
    pub private: bool,
    /// Secrets that jobs may have requests signed with, by name.
    pub secrets: BTreeMap<String, Secret>,
}

/// A secret of the Standard Webhooks specification, or several of them with white space between them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Secret {
    /// Itself: `whsec_…`.
    Here(WebhookSecrets),
    /// In a file.
    #[serde(rename_all = "snake_case")]
    In {
        /// The file.
        file: PathBuf,
    },
}

impl Default for Settings {
    fn default() -> Self {
        let names = ["content-type", "etag", "last-modified", "location", "retry-after", "x-request-id"];
        Self {
            allow: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(30),
            max_timeout: Duration::from_secs(300),
            body: 256 << 10,
            response_headers: names.map(str::to_owned).to_vec(),
            concurrency: 20,
            private: false,
            secrets: BTreeMap::new(),
        }
    }
}

impl Settings {
    /// Reads the file that `WEBHOOK_CONFIG` names; the defaults where it names none.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn from_env() -> Result<Self, SettingsError> {
        match env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
            Some(path) => Self::read(Path::new(&path)),
            None => Ok(Self::default()),
        }
    }

    /// Reads a file of settings.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let settings: Self = toml::from_str(&text_of(path)?)
            .map_err(|source| SettingsError::Malformed { path: path.to_owned(), source: Box::new(source) })?;
        match settings.problems() {
            problems if problems.is_empty() => Ok(settings),
            problems => Err(SettingsError::Invalid(problems)),
        }
    }

    fn problems(&self) -> Vec<String> {
        let seconds = Duration::from_secs;
        let demands = [
            ((1..=1000).contains(&self.concurrency), "concurrency must be 1 to 1000"),
            (self.body <= 8 << 20, "body must be at most 8388608 (8 MiB)"),
            (
                (seconds(1)..=seconds(60)).contains(&self.connect_timeout),
                "connect_timeout must be 1 s to 1 min",
            ),
            ((seconds(1)..=seconds(900)).contains(&self.max_timeout), "max_timeout must be 1 s to 15 min"),
            ((seconds(1)..=self.max_timeout).contains(&self.timeout), "timeout must be 1 s to max_timeout"),
        ];
        let mut problems: Vec<String> =
            demands.into_iter().filter(|(holds, _)| !holds).map(|(_, problem)| problem.to_owned()).collect();
        problems.extend(Guard::new(&self.allow).err().map(|problem| format!("allow: {problem}")));
        problems
    }

    /// The keys of each secret.
    ///
    /// # Errors
    /// A file cannot be read, or what is there is no secret.
    pub(crate) fn keys(&self) -> Result<BTreeMap<String, Secrets>, SettingsError> {
        let mut keys = BTreeMap::new();
        for (name, secret) in &self.secrets {
            let secrets = match secret {
                Secret::Here(secrets) => secrets.clone(),
                Secret::In { file } => WebhookSecrets::new(text_of(file)?),
            };
            let invalid =
                |problem: String| SettingsError::Invalid(vec![format!("secrets.{name}: {problem}")]);
            if secrets.is_empty() {
                return Err(invalid("is empty".to_owned()));
            }
            keys.insert(name.clone(), Secrets::read(&secrets).map_err(invalid)?);
        }
        Ok(keys)
    }
}

fn text_of(path: &Path) -> Result<String, SettingsError> {
    fs::read_to_string(path).map_err(|source| SettingsError::Unreadable { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> String {
        toml::from_str::<Settings>(text).unwrap().problems().join("|")
    }

    #[test]
    fn all_that_is_wrong_is_said() {
        for (text, expected) in [
            ("", ""),
            ("allow = [\"10.0.0.0/8\", \"hooks.internal\"]", ""),
            ("allow = [\"http://x\"]", "allow: "),
            ("timeout = \"6m\"", "timeout must be 1 s to max_timeout"),
            ("max_timeout = \"1h\"", "max_timeout must be"),
            ("connect_timeout = 0", "connect_timeout must be"),
            ("concurrency = 0", "concurrency must be"),
            ("body = 9000000", "body must be"),
        ] {
            let found = problems(text);
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{text}: {found}");
        }
        for bad in ["alow = []", "secrets.a = 5", "timeout = \"soon\""] {
            assert!(toml::from_str::<Settings>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_here_or_in_a_file_and_not_shown() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let file = env::temp_dir().join(format!("hopline-webhook-secret-{}", hopline::JobId::new()));
        fs::write(&file, format!("{secret}\n")).unwrap();
        let text = format!("secrets.a = \"{secret}\"\nsecrets.b.file = {file:?}");
        let settings: Settings = toml::from_str(&text).unwrap();
        assert!(!format!("{settings:?}").contains("MfKQ"), "{settings:?}");
        let keys = settings.keys().unwrap();
        assert_eq!(keys["a"].sign("id", "1", b"x"), keys["b"].sign("id", "1", b"x"));
        fs::remove_file(&file).unwrap();
        assert!(matches!(settings.keys(), Err(SettingsError::Unreadable { .. })));
        for bad in ["secrets.a = \"\"", "secrets.a = \"whsec_x\"", "secrets.a = \"secret\""] {
            let error = toml::from_str::<Settings>(bad).unwrap().keys().unwrap_err().to_string();
            assert!(error.contains("secrets.a: "), "{error}");
        }
    }

    #[test]
    fn the_example_is_one_and_says_the_defaults() {
        let text = include_str!("../webhook.example.toml");
        assert_eq!(problems(text), "");
        let all: String = text
            .lines()
            .filter(|line| !line.starts_with("# "))
            .map(|line| line.trim_start_matches('#').to_owned() + "\n")
            .collect();
        let mut settings: Settings = toml::from_str(&all).unwrap();
        settings.secrets.clear();
        assert_eq!(format!("{settings:?}"), format!("{:?}", Settings::default()));
    }
}
