//! A worker with one kind of job, `outside-worker.save`: it saves a note as a file. Put jobs of your own in its place.

use std::{env, path::PathBuf};

use hopline::{
    Config, Context, Job, JobError, JobResult, Options, Schemas, Worker,
    schemars::{self, JsonSchema},
};
use serde::{Deserialize, Serialize};

/// The args of a job: the JSON that is submitted.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Save {
    /// The note.
    text: String,
}

/// Its output: the JSON that whoever waits for the job gets.
#[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Saved {
    bytes: usize,
    path: PathBuf,
}

impl Job for Save {
    // The names on the wire. A kind never changes: jobs that wait are found by it.
    const KIND: &'static str = "outside-worker.save";
    const QUEUE: &'static str = "outside-worker";
    type Output = Saved;

    // What is announced: args that do not fit are refused before they become jobs.
    fn schemas() -> Schemas {
        Schemas::of::<Self>()
    }
}

/// What the handler is given besides the job: connections, clients, settings.
#[derive(Clone)]
struct Notes {
    folder: PathBuf,
}

/// One attempt. It may run more than once (a crash, a lost connection), so it is written to do no harm then: the
/// file is named after the job, and is the same one each time.
async fn save(job: Save, cx: Context<Notes>) -> JobResult<Saved> {
    if job.text.trim().is_empty() {
        // Fatal: no attempt can end better. The job is dead at once, and can be replayed with other args.
        return Err(JobError::fatal("empty_note", "there is nothing to save"));
    }
    let path = cx.state().folder.join(format!("{}.txt", cx.job_id()));
    // Retryable: a full disk or a missing folder may be mended meanwhile. `?` alone retries, too; this names the error.
    tokio::fs::write(&path, &job.text)
        .await
        .map_err(|error| JobError::retry("not_written", error))?;
    Ok(Saved {
        bytes: job.text.len(),
        path,
    })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = env::var_os("NOTES").map_or_else(env::temp_dir, PathBuf::from);
    Worker::new(Config::load()?)
        .state(Notes { folder })
        .register_with(save, Options::new().max_attempts(5))
        .run() // until SIGTERM or SIGINT
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use hopline::testing;

    use super::*;

    fn note(text: &str) -> Save {
        Save {
            text: text.to_owned(),
        }
    }

    /// One attempt, as a worker would run it; no broker is needed.
    async fn attempt(job: Save, folder: PathBuf) -> testing::Tested {
        testing::run(save, job).state(Notes { folder }).await
    }

    #[tokio::test]
    async fn a_note_becomes_a_file() {
        let saved: Saved = attempt(note("buy milk"), env::temp_dir())
            .await
            .output()
            .unwrap();
        assert_eq!(saved.bytes, 8);
        assert_eq!(std::fs::read_to_string(&saved.path).unwrap(), "buy milk");
        std::fs::remove_file(saved.path).unwrap();
    }

    #[tokio::test]
    async fn an_empty_note_is_dead_at_once() {
        assert!(attempt(note(" "), env::temp_dir()).await.is_dead());
    }

    #[tokio::test]
    async fn what_may_be_mended_is_tried_again() {
        let missing = env::temp_dir().join("no").join("such").join("folder");
        assert!(
            attempt(note("buy milk"), missing)
                .await
                .retried_in()
                .is_some()
        );
    }
}
