//! The file of commands: what may be run, by whom, within which limits.
//!
//! Nothing is run that does not stand in it, and the worker does not start without it. It is read once, at the start;
//! all that is wrong with it is said at once.

use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use regex::Regex;
use rustix::process::{geteuid, getuid};
use serde::{Deserialize, Deserializer, Serialize, de};
use thiserror::Error;

use crate::command::placeholders;

/// Names the file of commands.
pub const VARIABLE: &str = "EXEC_CONFIG";
/// `PATH` of a command that is given no other.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// How much longer than its command a job may take: to end what is left of it.
const MARGIN: Duration = Duration::from_secs(20);
/// The launcher, a process of this program, must fit into it.
const MEMORY_MIN: u64 = 64 << 20;
/// `EX_TEMPFAIL` of sysexits.h: try again. Always retried.
pub const TEMPFAIL: i32 = 75;

/// A worker that cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExecError {
    /// There is no file of commands.
    #[error(
        "no commands: this worker is off until {VARIABLE} names a file that lists what may be run (workers/exec/README.md)"
    )]
    Off,
    /// It cannot be read.
    #[error("cannot read {path:?}, which {VARIABLE} names: {source}")]
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
    #[error("commands:{}", .0.iter().map(|problem| format!("\n  {problem}")).collect::<String>())]
    Invalid(Vec<String>),
}

/// What may be run.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commands {
    /// Most commands at the same time in this process. Default 4.
    #[serde(default = "four")]
    pub concurrency: usize,
    /// Who runs them; none: the worker's own user, who must not be root.
    #[serde(default)]
    pub user: Option<User>,
    /// Each command by its name.
    pub commands: BTreeMap<String, Command>,
}

/// A user by numbers: names differ between machines and images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Its number; not 0.
    pub uid: u32,
    /// Its group's; it is in no other.
    pub gid: u32,
}

/// One command.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// The program, an absolute path. No shell is involved.
    pub program: PathBuf,
    /// Its arguments; `{name}` in one stands for a param.
    #[serde(default)]
    pub args: Vec<String>,
    /// What a job may say, by name.
    #[serde(default)]
    pub params: BTreeMap<String, Param>,
    /// The working folder, an absolute path. Default `/`.
    #[serde(default = "root")]
    pub dir: PathBuf,
    /// Variables that it gets.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Variables of the worker that it gets too, where they are set. No others.
    #[serde(default)]
    pub pass_env: Vec<String>,
    /// What its standard output is. Default `json`.
    #[serde(default)]
    pub output: Output,
    /// Exit codes after which it is not tried again. Default: those of sysexits.h that blame the input or the setup.
    #[serde(default = "blaming")]
    pub fatal: Vec<i32>,
    /// Exit codes after which it is tried again, besides 75.
    #[serde(default)]
    pub retry: Vec<i32>,
    /// What becomes of a job after any other exit code. Default `retry`.
    #[serde(default)]
    pub otherwise: Otherwise,
    /// What it may use.
    #[serde(default)]
    pub limits: Limits,
}

/// What a job may say in one place: one of the two must be there, and the whole value has to fit.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Param {
    /// A regular expression for the whole value. A value must not begin with `-` where it begins an argument.
    #[serde(deserialize_with = "whole")]
    pub pattern: Option<Regex>,
    /// The values there are.
    pub choices: Option<Vec<String>>,
    /// What stands for it where a job says nothing.
    pub default: Option<String>,
    /// Whether a job may leave it out; the argument that names it is then left out too.
    pub optional: bool,
}

/// What standard output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Output {
    /// One JSON value, the job's output as it is.
    #[default]
    Json,
    /// UTF-8 text, which becomes a JSON string; one line break at its end is taken away.
    Text,
}

/// What becomes of a job after an exit code that nothing is said about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Otherwise {
    /// It is tried again, while attempts are left.
    #[default]
    Retry,
    /// It is dead.
    Fatal,
}

/// What a command may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Longest time from start to end, 1 s to 1 d. Default 60 s. Holds for the whole tree.
    #[serde(with = "hopline::config::duration")]
    pub time: Duration,
    /// CPU time of each of its processes, whole seconds, 1 s to 1 d. Default 60 s.
    #[serde(with = "hopline::config::duration")]
    pub cpu: Duration,
    /// Address space of each of its processes in bytes, from 64 MiB. Default 512 MiB.
    pub memory: u64,
    /// Processes and threads that it may add to those of its user, 1 to 10,000. Default 32.
    pub processes: u64,
    /// Open files of each of its processes, 8 to 100,000. Default 64.
    pub open_files: u64,
    /// Largest file that it may write, in bytes. Default 64 MiB.
    pub file_size: u64,
    /// Most bytes of its standard output, up to 16 MiB. Default 1 MiB.
    pub output: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(60),
            cpu: Duration::from_secs(60),
            memory: 512 << 20,
            processes: 32,
            open_files: 64,
            file_size: 64 << 20,
            output: 1 << 20,
        }
    }
}

fn four() -> usize {
    4
}

fn root() -> PathBuf {
    PathBuf::from("/")
}

/// `EX_USAGE`, `EX_DATAERR`, `EX_NOINPUT`, `EX_NOPERM`, `EX_CONFIG`.
fn blaming() -> Vec<i32> {
    vec![64, 65, 66, 77, 78]
}

/// A pattern is for the whole value: nobody forgets the anchors.
fn whole<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Regex>, D::Error> {
    let text = String::deserialize(from)?;
    // By itself first: one with a bracket too many would reach beyond ours.
    Regex::new(&text)
        .and_then(|_| Regex::new(&format!(r"\A(?:{text})\z")))
        .map(Some)
        .map_err(de::Error::custom)
}

impl Commands {
    /// Reads the file that `EXEC_CONFIG` names.
    ///
    /// # Errors
    /// [`ExecError`]: it is not named, cannot be read, or something in it cannot be.
    pub fn from_env() -> Result<Self, ExecError> {
        let path = env::var_os(VARIABLE).filter(|path| !path.is_empty()).ok_or(ExecError::Off)?;
        Self::read(Path::new(&path))
    }

    /// Reads a file of commands.
    ///
    /// # Errors
    /// As [`Commands::from_env`].
    pub fn read(path: &Path) -> Result<Self, ExecError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ExecError::Unreadable { path: path.to_owned(), source })?;
        let commands: Self = toml::from_str(&text)
            .map_err(|source| ExecError::Malformed { path: path.to_owned(), source: Box::new(source) })?;
        match commands.problems() {
            problems if problems.is_empty() => Ok(commands),
            problems => Err(ExecError::Invalid(problems)),
        }
    }

    /// Longest time that a job may take, what is needed to end it included.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.commands.values().map(|command| command.limits.time).max().unwrap_or_default() + MARGIN
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.commands.is_empty() {
            problems.push("there is none: [commands.<name>]".to_owned());
        }
        if !(1..=1000).contains(&self.concurrency) {
            problems.push("concurrency must be 1 to 1000".to_owned());
        }
        problems.extend(self.user_problem(geteuid().as_raw()));
        for (name, command) in &self.commands {
            let own = command.problems().into_iter().chain(name_problem(name));
            problems.extend(own.map(|problem| format!("commands.{name}: {problem}")));
        }
        problems
    }

    /// The limit of processes does not bind root, and root could undo the others.
    fn user_problem(&self, own: u32) -> Option<String> {
        match self.user {
            Some(User { uid: 0, .. } | User { gid: 0, .. }) => Some("user: commands never run as root".into()),
            None if own == 0 => Some(
                "user: this worker runs as root, so [user] must say as whom commands run (uid, gid), or start it as \
                 another user"
                    .to_owned(),
            ),
            Some(User { uid, .. }) if own != 0 && uid != own => {
                Some(format!("user: only root can run commands as user {uid}, and this worker is user {own}"))
            }
            _ => None,
        }
    }
}

fn name_problem(name: &str) -> Option<String> {
    let fits = (1..=100).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
    (!fits).then(|| "a name is 1 to 100 of a-z, A-Z, 0-9, - _ and .".to_owned())
}

impl Command {
    /// Its environment: what the file says, then what is passed on, and nothing else of the worker's.
    #[must_use]
    pub fn environment(&self, of_worker: impl Fn(&str) -> Option<String>) -> BTreeMap<String, String> {
        let mut environment = BTreeMap::from([("PATH".to_owned(), PATH.to_owned())]);
        let passed =
            self.pass_env.iter().filter_map(|name| of_worker(name).map(|value| (name.clone(), value)));
        environment.extend(passed);
        environment.extend(self.env.clone());
        environment
    }

    fn problems(&self) -> Vec<String> {
        let mut problems =
            self.program_problem().into_iter().chain(self.limits.problems()).collect::<Vec<_>>();
        if !self.dir.is_absolute() {
            problems.push(format!("dir {:?} must be an absolute path", self.dir));
        }
        let codes = self.fatal.iter().chain(&self.retry);
        if codes.clone().any(|code| !(1..=255).contains(code)) {
            problems.push("exit codes are 1 to 255".to_owned());
        }
        if self.fatal.iter().any(|code| self.retry.contains(code) || *code == TEMPFAIL) {
            problems.push("an exit code stands in fatal and in retry (where 75 always is)".to_owned());
        }
        for name in self.env.keys().chain(&self.pass_env) {
            if name.is_empty() || name.contains(['=', '\0']) || name.starts_with("HOPLINE_") {
                problems.push(format!("{name:?} cannot be passed as a variable"));
            }
        }
        problems.extend(self.params_problems());
        problems
    }

    fn program_problem(&self) -> Option<String> {
        let program = &self.program;
        if !program.is_absolute() {
            return Some(format!("program {program:?} must be an absolute path"));
        }
        match fs::metadata(program) {
            Ok(about) if about.is_file() && about.permissions().mode() & 0o111 != 0 => None,
            Ok(_) => Some(format!("program {program:?} is no executable file")),
            Err(error) => Some(format!("program {program:?}: {error}")),
        }
    }

    fn params_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut used = Vec::new();
        for arg in &self.args {
            match placeholders(arg) {
                Ok(names) => used.extend(names),
                Err(problem) => problems.push(format!("args: {arg:?} {problem}")),
            }
        }
        let unknown = used.iter().filter(|name| !self.params.contains_key(**name));
        problems.extend(unknown.map(|name| format!("args name {{{name}}}, which is not in params")));
        for (name, param) in &self.params {
            if !used.contains(&name.as_str()) {
                problems.push(format!("params.{name} is in no argument"));
            }
            problems.extend(param.problem().map(|problem| format!("params.{name}: {problem}")));
        }
        problems
    }
}

impl Param {
    /// Whether a job may say `value`.
    #[must_use]
    pub fn allows(&self, value: &str) -> bool {
        let chosen = self.choices.as_ref().is_none_or(|choices| choices.iter().any(|choice| choice == value));
        chosen && self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(value))
    }

    fn problem(&self) -> Option<String> {
        if self.pattern.is_some() == self.choices.is_some() {
            return Some("needs either a pattern or choices".to_owned());
        }
        match &self.default {
            Some(_) if self.optional => Some("has a default, so it cannot be optional".to_owned()),
            Some(value) if !self.allows(value) => Some("its default is not allowed".to_owned()),
            _ => None,
        }
    }
}

impl Limits {
    fn problems(&self) -> Vec<String> {
        let day = Duration::from_secs(86_400);
        let mut problems = Vec::new();
        let mut demand = |holds: bool, problem: &str| {
            if !holds {
                problems.push(format!("limits.{problem}"));
            }
        };
        demand((Duration::from_secs(1)..=day).contains(&self.time), "time must be 1 s to 1 d");
        let whole = self.cpu.subsec_nanos() == 0;
        demand(
            whole && (Duration::from_secs(1)..=day).contains(&self.cpu),
            "cpu must be whole seconds, 1 s to 1 d",
        );
        demand(self.memory >= MEMORY_MIN, "memory must be at least 67108864 (64 MiB)");
        demand((1..=10_000).contains(&self.processes), "processes must be 1 to 10,000");
        demand((8..=100_000).contains(&self.open_files), "open_files must be 8 to 100,000");
        demand((1..=16 << 20).contains(&self.output), "output must be 1 to 16777216 (16 MiB)");
        problems
    }
}

/// Whether this process may run commands as somebody else.
#[must_use]
pub(crate) fn is_root() -> bool {
    getuid().is_root() || geteuid().is_root()
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
