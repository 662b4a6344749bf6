//! The launcher: limits itself, gives up every right it can, and becomes the command.
//!
//! A process of its own, so that nothing has to happen between `fork` and `exec` and the keeper itself stays without
//! limits. It gets its order in a variable, and its standard input, output and error are already those of the command,
//! which gets no other file.

use std::{
    collections::BTreeMap,
    env, io,
    io::Write,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use rustix::{
    process::{Resource, Rlimit, setrlimit},
    thread::set_no_new_privs,
};
use serde::{Deserialize, Serialize};

use crate::{
    config::{Limits, User},
    tree::tasks_of,
};

/// What makes this program a launcher.
pub const ARGUMENT: &str = "launch";
/// Holds the order.
pub(crate) const VARIABLE: &str = "HOPLINE_EXEC_LAUNCH";
/// How it ends where there is no command to become: as a shell does. Its word of honour is [`Launch::nonce`].
pub const CANNOT: i32 = 126;

/// What to become.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// All of its environment.
    pub env: BTreeMap<String, String>,
    /// Its working folder.
    pub dir: PathBuf,
    /// As whom, where it is somebody else.
    pub user: Option<User>,
    /// Within which limits.
    pub limits: Limits,
    /// Stands before what the launcher says on standard error: no command knows it, so none can speak for a launcher.
    pub nonce: String,
}

/// Becomes the command; returns where that cannot be.
#[must_use]
pub fn main() -> ExitCode {
    let Some(launch) = env::var(VARIABLE).ok().and_then(|text| serde_json::from_str::<Launch>(&text).ok())
    else {
        return ExitCode::from(2);
    };
    let why = launch.become_it();
    // Nobody may be listening any more.
    let _ = writeln!(io::stderr(), "{} {why}", launch.nonce);
    ExitCode::from(126)
}

impl Launch {
    /// Why it is still this program.
    fn become_it(&self) -> String {
        // What the worker was started with is not for its commands. Before the limits, under which it may not be found.
        close_fds::set_fds_cloexec(3, &[]);
        if let Err(error) = self.limit() {
            return format!("cannot limit the command: {error}");
        }
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(&self.env).current_dir(&self.dir);
        if let Some(User { uid, gid }) = self.user.filter(|_| crate::config::is_root()) {
            // Supplementary groups are given up with it by the standard library.
            command.uid(uid).gid(gid);
        }
        let error = command.exec();
        format!("cannot start {:?} in {:?}: {error}", self.program, self.dir)
    }

    fn limit(&self) -> io::Result<()> {
        let Limits { cpu, memory, processes, open_files, file_size, .. } = self.limits;
        // No program with the set-user-id bit makes it somebody else again.
        set_no_new_privs(true)?;
        let uid = match self.user {
            Some(user) => user.uid,
            None => rustix::process::getuid().as_raw(),
        };
        // The limit is for all of a user's processes: what is there already does not count against the command.
        let processes = tasks_of(uid) + processes;
        for (resource, most) in [
            (Resource::Core, 0),
            (Resource::Fsize, file_size),
            (Resource::Nofile, open_files),
            (Resource::Nproc, processes),
            (Resource::As, memory),
        ] {
            set(resource, most, most)?;
        }
        // SIGXCPU first, which says why; who does not heed it is killed a second later.
        set(Resource::Cpu, cpu.as_secs(), cpu.as_secs() + 1)
    }
}

/// Never above what the process may have anyway.
fn set(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let ours = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let limit = Rlimit { current: Some(soft.min(ours)), maximum: Some(hard.min(ours)) };
    Ok(setrlimit(resource, limit)?)
}
