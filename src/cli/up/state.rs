//! The folder of a `hopline up`, and what its supervisor tells other commands through it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    files::{self, FileError},
    process::Process,
    workers::Programs,
};

/// How many processes of each worker.
pub(super) type Scale = BTreeMap<String, u32>;

/// Names in the folder.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) dir: PathBuf,
}

impl Layout {
    /// Held by the supervisor for as long as it lives.
    pub(super) fn lock(&self) -> PathBuf {
        self.dir.join("up.lock")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(super) fn log(&self, process: &str) -> PathBuf {
        self.logs().join(format!("{process}.log"))
    }

    pub(super) fn node(&self) -> PathBuf {
        self.dir.join("rabbitmq")
    }

    /// The record of the HTTP front, unless the configuration has a place for it.
    pub(super) fn record(&self) -> PathBuf {
        self.dir.join("record")
    }

    /// The secret that the front signs callbacks with, unless the configuration has one.
    pub(super) fn callback_secret(&self) -> PathBuf {
        self.dir.join("callback-secret")
    }

    fn state(&self) -> PathBuf {
        self.dir.join("up.json")
    }

    fn wish(&self) -> PathBuf {
        self.dir.join("scale.json")
    }

    pub(super) fn make_dirs(&self) -> Result<(), FileError> {
        files::make_dir(&self.logs())
    }

    /// What the last supervisor wrote; it may have been killed since. `None`: nothing, or nothing that can be read.
    pub(super) fn read_state(&self) -> Option<State> {
        serde_json::from_str(&files::read(&self.state()).ok()??).ok()
    }

    pub(super) fn read_wish(&self) -> Option<Wish> {
        serde_json::from_str(&files::read(&self.wish()).ok()??).ok()
    }

    pub(super) fn write_wish(&self, wish: &Wish) -> Result<(), FileError> {
        write_json(&self.wish(), wish)
    }

    pub(super) fn remove_state(&self) {
        for file in [self.state(), self.wish()] {
            // One that stays names processes that have ended, which its readers see.
            let _ = std::fs::remove_file(file);
        }
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|error| files::failed("write", path)(error.into()))?;
    files::write(path, &text)
}

/// What a user asks for: workers of their own, and numbers of processes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Asked {
    pub(super) scale: Scale,
    /// Absent in what an older `hopline` wrote.
    #[serde(default)]
    pub(super) own: Programs,
}

/// Other workers, or other numbers of them, asked of a running supervisor by SIGUSR1.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Wish {
    pub(super) id: String,
    #[serde(flatten)]
    pub(super) asked: Asked,
}

/// How far a supervisor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    Starting,
    Ready,
    Stopping,
}

/// What a supervisor runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) supervisor: Process,
    pub(super) phase: Phase,
    pub(super) scale: Scale,
    /// The last wish that was carried out, or why it could not be.
    pub(super) answered: Option<(String, Option<String>)>,
    pub(super) broker: Option<Broker>,
    /// What it was configured with, without secrets; absent in what an older `hopline` wrote.
    #[serde(default)]
    pub(super) settings: Value,
    pub(super) processes: BTreeMap<String, Running>,
}

/// The broker in use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Broker {
    /// With the login if the node is our own.
    pub(super) amqp: String,
    pub(super) management: Option<Management>,
}

/// Where to look into our own node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Management {
    pub(super) url: String,
    pub(super) user: String,
    pub(super) password: String,
}

/// A process of the HTTP front or a worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) process: Process,
    /// `http://host:port` of the front or of the worker's health.
    pub(super) address: String,
}

/// The name of the HTTP front among the processes.
pub(super) const HTTP: &str = "http";

impl State {
    /// The address of the HTTP front.
    pub(super) fn http(&self) -> Option<&str> {
        self.processes.get(HTTP).map(|running| running.address.as_str())
    }

    /// The processes in the order in which they are to end: workers, then the front.
    pub(super) fn ending_order(&self) -> [Vec<(&str, &Process)>; 2] {
        let (http, workers) = self
            .processes
            .iter()
            .map(|(name, running)| (name.as_str(), &running.process))
            .partition(|(name, _)| *name == HTTP);
        [workers, http]
    }
}

/// The supervisor's state, written to the folder at each change.
#[derive(Debug, Clone)]
pub(super) struct Board {
    layout: Layout,
    state: Arc<Mutex<State>>,
}

impl Board {
    pub(super) fn new(layout: Layout, state: State) -> Result<Self, FileError> {
        write_json(&layout.state(), &state)?;
        Ok(Self { layout, state: Arc::new(Mutex::new(state)) })
    }

    pub(super) fn state(&self) -> State {
        self.lock().clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        // Written under the lock, so that the last change is the last written.
        if let Err(error) = write_json(&self.layout.state(), &*state) {
            tracing::warn!(error = %error.source, "the state cannot be written; `hopline down` may miss a process");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
