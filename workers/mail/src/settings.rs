//! The operator's settings: the server, who may be the sender, which headers, how much.
//!
//! The worker does not start without them. They are read once, at the start; all that is wrong is said at once.

use std::{
    env, fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use lettre::message::Mailbox;
use serde::Deserialize;
use thiserror::Error;

/// Names the file of settings.
pub const VARIABLE: &str = "MAIL_CONFIG";
/// Holds the password, instead of the file.
pub const PASSWORD: &str = "MAIL_SMTP_PASSWORD";
/// How much longer than its conversation an attempt may take.
const MARGIN: Duration = Duration::from_secs(10);
/// Headers that a job says otherwise, or that are the worker's to say.
const NOT_A_JOBS: [&str; 12] = [
    "bcc",
    "cc",
    "content-disposition",
    "content-transfer-encoding",
    "content-type",
    "date",
    "from",
    "message-id",
    "mime-version",
    "reply-to",
    "subject",
    "to",
];

/// A worker that cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// There is no file of settings.
    #[error(
        "no mail server: this worker is off until {VARIABLE} names a file that says it (workers/mail/README.md)"
    )]
    Off,
    /// A file cannot be read.
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
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The server.
    pub smtp: Smtp,
    /// Who may be the sender: domains (`example.org`) and addresses (`noreply@example.org`). At least one.
    pub senders: Vec<String>,
    /// The sender where a job names none. Default: none, jobs must name one.
    #[serde(default)]
    pub from: Option<String>,
    /// Headers that jobs may set. Default none.
    #[serde(default)]
    pub headers: Vec<String>,
    /// What stands behind the `@` of a `Message-ID`. Default: the sender's domain.
    #[serde(default)]
    pub message_id_domain: Option<String>,
    /// Most recipients of one mail. 1 to 1000. Default 50.
    #[serde(default = "fifty")]
    pub max_recipients: usize,
    /// Most bytes of all attachments of one mail. Up to 12 MiB, what a job can hold. Default 10 MiB.
    #[serde(default = "ten_mebibytes")]
    pub max_attachments: usize,
    /// Most mails at the same time in this process. 1 to 100. Default 4.
    #[serde(default = "four")]
    pub concurrency: usize,
    /// Keeps args and outputs out of the record: mails hold addresses, and links that let somebody in. Default true.
    #[serde(default = "yes")]
    pub private: bool,
}

/// The server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Smtp {
    /// Its name, or address.
    pub host: String,
    /// Its port. Default: 587 with `starttls`, 465 with `tls`, 25 with `none`.
    #[serde(default)]
    pub port: Option<u16>,
    /// How the connection is encrypted. Default `starttls`.
    #[serde(default)]
    pub tls: Tls,
    /// A file of certificates (PEM) of authorities to trust besides the system's. Default none.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Who logs in. Default: nobody.
    #[serde(default)]
    pub user: Option<String>,
    /// The password; or in `password_file`, or in the variable `MAIL_SMTP_PASSWORD`, which wins.
    #[serde(default)]
    pub password: Option<Password>,
    /// The file of the password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// How the worker calls itself to the server. Default: the address `127.0.0.1`, as software behind one name does.
    #[serde(default)]
    pub hello: Option<String>,
    /// Longest time to connect. 1 s to 1 min. Default 10 s.
    #[serde(default = "ten_seconds", with = "hopline::config::duration")]
    pub connect_timeout: Duration,
    /// Longest time of a conversation, connecting included. 1 s to 15 min. Default 1 min.
    #[serde(default = "a_minute", with = "hopline::config::duration")]
    pub timeout: Duration,
    /// Most connections that are kept open for the next mail. 0 to 100. Default 4.
    #[serde(default = "four")]
    pub pool: usize,
}

/// How a connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// Begun without, then by STARTTLS; nothing is sent where the server does not offer it.
    #[default]
    StartTls,
    /// From the start.
    Tls,
    /// Not at all.
    None,
}

/// A password, which is not shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn four() -> usize {
    4
}

fn fifty() -> usize {
    50
}

fn ten_mebibytes() -> usize {
    10 << 20
}

fn yes() -> bool {
    true
}

fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}

fn a_minute() -> Duration {
    Duration::from_secs(60)
}

impl Smtp {
    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        let usual = match self.tls {
            Tls::StartTls => 587,
            Tls::Tls => 465,
            Tls::None => 25,
        };
        self.port.unwrap_or(usual)
    }

    /// Whether its name tells that it is on this machine.
    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    fn problems(&self) -> Vec<String> {
        let seconds = Duration::from_secs;
        let demands = [
            (!self.host.is_empty(), "smtp.host is empty"),
            (
                (seconds(1)..=seconds(60)).contains(&self.connect_timeout),
                "smtp.connect_timeout must be 1 s to 1 min",
            ),
            ((seconds(1)..=seconds(900)).contains(&self.timeout), "smtp.timeout must be 1 s to 15 min"),
            (self.pool <= 100, "smtp.pool must be at most 100"),
            (
                self.user.is_some() == self.password.is_some(),
                "smtp.user and a password (smtp.password, smtp.password_file or MAIL_SMTP_PASSWORD) need each other",
            ),
            (
                self.tls != Tls::None || self.user.is_none() || self.is_loopback(),
                "smtp.tls is none: a password is sent without TLS to this machine only",
            ),
            (self.tls != Tls::None || self.ca.is_none(), "smtp.ca needs smtp.tls"),
        ];
        demands.into_iter().filter(|(holds, _)| !holds).map(|(_, problem)| problem.to_owned()).collect()
    }
}

impl Settings {
    /// Reads the file that `MAIL_CONFIG` names.
    ///
    /// # Errors
    /// [`SettingsError`]: it is not named, cannot be read, or something in it cannot be.
    pub fn from_env() -> Result<Self, SettingsError> {
        let path = env::var_os(VARIABLE).filter(|path| !path.is_empty()).ok_or(SettingsError::Off)?;
        Self::read(Path::new(&path), env::var(PASSWORD).ok())
    }

    /// Reads a file of settings; `password` wins over what it says.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn read(path: &Path, password: Option<String>) -> Result<Self, SettingsError> {
        let mut settings: Self = toml::from_str(&text_of(path)?)
            .map_err(|source| SettingsError::Malformed { path: path.to_owned(), source: Box::new(source) })?;
        let smtp = &mut settings.smtp;
        if let Some(password) = password.filter(|password| !password.is_empty()) {
            smtp.password = Some(Password(password));
        } else if let Some(file) = &smtp.password_file {
            smtp.password = Some(Password(text_of(file)?.trim_end_matches(['\r', '\n']).to_owned()));
        }
        match settings.problems() {
            problems if problems.is_empty() => Ok(settings),
            problems => Err(SettingsError::Invalid(problems)),
        }
    }

    /// Longest time that a job may take.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.smtp.timeout + MARGIN
    }

    /// Whether mail may be sent by this address.
    #[must_use]
    pub fn may_send(&self, from: &Mailbox) -> bool {
        let (address, domain) = (from.email.to_string(), from.email.domain());
        self.senders
            .iter()
            .any(|sender| sender.eq_ignore_ascii_case(&address) || sender.eq_ignore_ascii_case(domain))
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = self.smtp.problems();
        let mut demand = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        demand(
            !self.senders.is_empty(),
            "senders is empty: say which domains or addresses may send".to_owned(),
        );
        demand((1..=1000).contains(&self.max_recipients), "max_recipients must be 1 to 1000".to_owned());
        demand(
            self.max_attachments <= 12 << 20,
            "max_attachments must be at most 12582912 (12 MiB)".to_owned(),
        );
        demand((1..=100).contains(&self.concurrency), "concurrency must be 1 to 100".to_owned());
        if let Some(from) = &self.from {
            let known = from.parse::<Mailbox>();
            demand(known.is_ok(), format!("from {from:?} is no address"));
            demand(
                known.is_err() || known.is_ok_and(|from| self.may_send(&from)),
                "from is not one of senders".to_owned(),
            );
        }
        for name in &self.headers {
            let fits = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
            demand(fits && name.len() <= 70, format!("headers: {name:?} is no name of a header"));
            let theirs = !NOT_A_JOBS.contains(&name.to_ascii_lowercase().as_str());
            demand(theirs, format!("headers: {name:?} is not a job's to set"));
        }
        if let Some(domain) = &self.message_id_domain {
            let fits =
                !domain.is_empty() && domain.bytes().all(|c| c.is_ascii_alphanumeric() || b"-.".contains(&c));
            demand(fits, "message_id_domain must be letters, digits, - and .".to_owned());
        }
        problems
    }
}

pub(crate) fn text_of(path: &Path) -> Result<String, SettingsError> {
    fs::read_to_string(path).map_err(|source| SettingsError::Unreadable { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, password: Option<&str>) -> Result<Settings, SettingsError> {
        let path = env::temp_dir().join(format!("hopline-mail-{}.toml", hopline::JobId::new()));
        fs::write(&path, text).unwrap();
        let settings = Settings::read(&path, password.map(str::to_owned));
        fs::remove_file(&path).unwrap();
        settings
    }

    #[test]
    fn all_that_is_wrong_is_said() {
        for (rest, smtp, expected) in [
            ("", "", ""),
            ("from = \"App <noreply@example.org>\"", "tls = \"tls\"\nuser = \"u\"\npassword = \"p\"", ""),
            ("headers = [\"List-Unsubscribe\"]", "tls = \"none\"", ""),
            ("from = \"nobody\"", "", "from \"nobody\" is no address"),
            ("from = \"a@example.com\"", "", "from is not one of senders"),
            ("headers = [\"Bcc\"]", "", "\"Bcc\" is not a job's"),
            ("headers = [\"x y\"]", "", "no name of a header"),
            ("max_recipients = 0", "", "max_recipients must be"),
            ("max_attachments = 99999999", "", "max_attachments must be"),
            ("concurrency = 0", "", "concurrency must be"),
            ("message_id_domain = \"a>b\"", "", "message_id_domain must be"),
            ("", "user = \"u\"", "need each other"),
            ("", "password = \"p\"", "need each other"),
            ("", "tls = \"none\"\nuser = \"u\"\npassword = \"p\"", "to this machine only"),
            ("", "tls = \"none\"\nca = \"x\"", "smtp.ca needs"),
            ("", "timeout = 0", "smtp.timeout must be"),
        ] {
            let text =
                format!("senders = [\"example.org\"]\n{rest}\n[smtp]\nhost = \"mail.example.org\"\n{smtp}");
            let found = read(&text, None).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{text}: {found}");
        }
        for bad in [
            "",
            "senders = []\n[smtp]\nhost = \"x\"",
            "senders = [\"x\"]\n[smtp]\nhost = \"x\"\ntls = \"maybe\"",
        ] {
            assert!(read(bad, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_in_one_of_three_places_and_not_shown() {
        let file = env::temp_dir().join(format!("hopline-mail-password-{}", hopline::JobId::new()));
        fs::write(&file, "of the file\n").unwrap();
        let text =
            |rest: &str| format!("senders = [\"example.org\"]\n[smtp]\nhost = \"x\"\nuser = \"u\"\n{rest}");
        let password = |rest: &str, variable| read(&text(rest), variable).unwrap().smtp.password.unwrap().0;
        assert_eq!(password("password = \"here\"", None), "here");
        assert_eq!(password(&format!("password_file = {file:?}"), None), "of the file");
        assert_eq!(password("password = \"here\"", Some("of the variable")), "of the variable");
        fs::remove_file(&file).unwrap();
        let shown = format!("{:?}", read(&text("password = \"here\""), None).unwrap());
        assert!(!shown.contains("here") && shown.contains("***"), "{shown}");
    }

    #[test]
    fn senders_are_domains_and_addresses() {
        let settings =
            read("senders = [\"Example.org\", \"a@b.example\"]\n[smtp]\nhost = \"x\"", None).unwrap();
        for (from, may) in [
            ("x@example.org", true),
            ("X <x@EXAMPLE.ORG>", true),
            ("x@sub.example.org", false),
            ("x@notexample.org", false),
            ("a@b.example", true),
            ("c@b.example", false),
        ] {
            assert_eq!(settings.may_send(&from.parse().unwrap()), may, "{from}");
        }
    }

    #[test]
    fn the_example_is_one() {
        let settings = read(include_str!("../mail.example.toml"), Some("x")).unwrap();
        assert_eq!(
            (settings.smtp.port(), settings.private, settings.longest()),
            (587, true, Duration::from_secs(70))
        );
    }
}
