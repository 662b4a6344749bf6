//! `exec.run`: runs one of the operator's commands.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};

use hopline::{Context, Job, JobError, JobId, JobResult, Schemas, schemars::JsonSchema};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tracing::info;

use crate::{
    attempt::{self, Bounds},
    command::{self, Value},
    config::{Command, Commands},
    launch::Launch,
    verdict,
};

/// The arguments. An unknown member is an error, so that a misspelt one is not silently ignored.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The name of the command, as the worker's operator has listed it.
    pub command: String,
    /// What fills the places of its arguments: text or whole numbers, as far as the operator allows them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, Value>,
    /// What the command finds on its standard input, as it is: any JSON. Default `null`.
    #[serde(default)]
    #[schemars(with = "serde_json::Value")]
    pub input: Box<RawValue>,
}

/// The output: what the command wrote.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(crate = "hopline::schemars")]
#[serde(transparent)]
pub struct Output(#[schemars(with = "serde_json::Value")] pub Box<RawValue>);

impl Job for Run {
    const KIND: &'static str = "exec.run";
    const QUEUE: &'static str = "exec";
    type Output = Output;

    fn schemas() -> Schemas {
        Schemas::of::<Self>()
    }
}

/// What may be run, and the program of keepers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Exec(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    commands: Commands,
    program: PathBuf,
}

impl Exec {
    /// Runs `commands` under keepers, which are processes of `program`: this worker's own.
    ///
    /// # Errors
    /// There is no such program.
    pub fn new(commands: Commands, program: PathBuf) -> io::Result<Self> {
        program.symlink_metadata()?;
        Ok(Self(Arc::new(Inner { commands, program })))
    }
}

/// Runs one command.
///
/// # Errors
/// Fatal for what the job got wrong; the rest as [`verdict`] says.
pub async fn run(job: Run, cx: Context<Exec>) -> JobResult<Output> {
    let Inner { commands, program } = &*cx.state().0;
    let command = commands.commands.get(&job.command).ok_or_else(|| unknown(commands, &job.command))?;
    let launch = launch(&job, command, commands, &cx)?;
    let bounds = Bounds { time: command.limits.time, output: command.limits.output, stop: cx.cancelled() };
    let ended =
        attempt::run(program, launch, job.input, bounds).await.map_err(|error| verdict::lost(&error))?;
    if ended.left > 0 {
        info!(command = job.command, left = ended.left, "processes that the command left behind were ended");
    }
    verdict::judge(command, &ended).map(Output)
}

fn unknown(commands: &Commands, name: &str) -> JobError {
    let names = commands.commands.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    JobError::fatal("no_such_command", format!("there is no command {name:?}; there is {names}"))
}

fn launch(job: &Run, command: &Command, commands: &Commands, cx: &Context<Exec>) -> JobResult<Launch> {
    let args =
        command::arguments(command, &job.params).map_err(|error| JobError::fatal("bad_args", error))?;
    let mut env = command.environment(|name| std::env::var(name).ok());
    // What an idempotent command needs to know itself again.
    env.extend([
        ("HOPLINE_JOB_ID".to_owned(), cx.job_id().to_string()),
        ("HOPLINE_RUN".to_owned(), cx.run().to_string()),
        ("HOPLINE_ATTEMPT".to_owned(), cx.attempt().to_string()),
        ("HOPLINE_MAX_ATTEMPTS".to_owned(), cx.max_attempts().to_string()),
    ]);
    Ok(Launch {
        program: command.program.clone(),
        args,
        env,
        dir: command.dir.clone(),
        user: commands.user,
        limits: command.limits,
        nonce: JobId::new().to_string(),
    })
}
