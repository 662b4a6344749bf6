//! `hopline new`: begins something of one's own.
//!
//! Owns the crate of a worker. Its files are those of `examples/outside-worker`, where they can be read and built as they
//! are; here they get another name, and the place of the library. What comes after (building, running) is cargo's
//! affair, and that of `hopline up --worker`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use thiserror::Error;

use super::say;
use crate::job::{NameError, QueueName};

/// What the files of the example call themselves, and where they find the library.
const EXAMPLE: &str = "outside-worker";
const LIBRARY: &str = "../..";
/// The files, by their names in the crate.
const FILES: [(&str, &str); 7] = [
    ("Cargo.toml", include_str!("../../examples/outside-worker/Cargo.toml")),
    ("src/main.rs", include_str!("../../examples/outside-worker/src/main.rs")),
    ("hopline.toml", include_str!("../../examples/outside-worker/hopline.toml")),
    ("Dockerfile", include_str!("../../examples/outside-worker/Dockerfile")),
    (".dockerignore", include_str!("../../examples/outside-worker/.dockerignore")),
    (".gitignore", include_str!("../../examples/outside-worker/.gitignore")),
    ("README.md", include_str!("../../examples/outside-worker/README.md")),
];
/// The sources that this program was built from: on a developer's machine they are still there.
const SOURCES: &str = env!("CARGO_MANIFEST_DIR");

/// Names that a package cannot have, or that its own dependencies have: keywords of Rust, what cargo and the standard library
/// call something else, and the crates in the generated `Cargo.toml`.
const TAKEN: &str = "\
    abstract alloc anyhow as async await become box break build const continue core crate deps do dyn \
    else enum examples extern false final fn for gen hopline if impl in incremental let loop macro match \
    mod move mut override priv proc-macro proc_macro pub ref return self serde static std struct super \
    test tokio trait true try type typeof unsafe unsized use virtual where while yield";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make the crate of a worker of your own, which builds and runs as it is.
    Worker(Worker),
}

#[derive(Debug, clap::Args)]
pub(super) struct Worker {
    /// Its name, which is also that of its queue and the first word of its kinds: of a-z, 0-9, _ and -.
    name: String,
    /// The folder that is made. Default: one of this name, here.
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// The folder of Hopline's own sources, which the crate depends on. Default: where this program was built.
    #[arg(long, value_name = "DIR")]
    library: Option<PathBuf>,
}

/// Why no crate was made. Nothing that was there is changed.
#[derive(Debug, Error)]
enum NewError {
    #[error("a worker cannot be called {0:?}: its name begins with a letter; it is of a-z, 0-9, _ and -")]
    Name(String),
    #[error("a worker cannot be called {0:?}: Rust, cargo or a crate that it uses has that name")]
    Taken(String),
    #[error("the name is that of the worker's queue, too")]
    Queue(#[from] NameError),
    #[error("{0} is there already: choose another name, or another folder with --path")]
    Exists(PathBuf),
    #[error(
        "Hopline's sources are not in {0}: name the folder that has them (a clone of the repository) with --library"
    )]
    NoLibrary(PathBuf),
    #[error("{0:?} cannot be written into Cargo.toml: it is not UTF-8")]
    NoText(PathBuf),
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

pub(super) fn run(command: Command) -> anyhow::Result<ExitCode> {
    let Command::Worker(worker) = command;
    let folder = worker.path.clone().unwrap_or_else(|| PathBuf::from(&worker.name));
    worker.make(&folder)?;
    say::line(told(&worker.name, &folder));
    Ok(ExitCode::SUCCESS)
}

impl Worker {
    fn make(&self, folder: &Path) -> Result<(), NewError> {
        check(&self.name)?;
        let library = library(self.library.as_deref())?;
        if folder.symlink_metadata().is_ok() {
            return Err(NewError::Exists(folder.to_owned()));
        }
        for (name, text) in FILES {
            let path = folder.join(name);
            let parent = path.parent().unwrap_or(folder);
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&path, filled(name, text, &self.name, &library)))
                .map_err(|source| NewError::Write { path, source })?;
        }
        Ok(())
    }
}

/// What to do next.
fn told(name: &str, folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "{folder} has a worker with one kind of job, {name}.save. Its README.md says how to go on:

  hopline up --worker {folder}
  hopline jobs submit {name}.save '{{\"text\": \"buy milk\"}}' --wait 10s"
    )
}

/// Whether cargo, and the broker, take this name.
fn check(name: &str) -> Result<(), NewError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if !name.starts_with(|first: char| first.is_ascii_lowercase()) || !name.bytes().all(plain) {
        return Err(NewError::Name(name.to_owned()));
    }
    if TAKEN.split(' ').any(|taken| taken == name) {
        return Err(NewError::Taken(name.to_owned()));
    }
    QueueName::parse(name)?;
    Ok(())
}

/// The folder of the library's sources, as an absolute path: the one that is named, or else ours.
fn library(named: Option<&Path>) -> Result<String, NewError> {
    let folder = named.unwrap_or_else(|| Path::new(SOURCES));
    let absent = || NewError::NoLibrary(folder.to_owned());
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).map_err(|_| absent())?;
    if !manifest.contains("name = \"hopline\"") {
        return Err(absent());
    }
    let folder = folder.canonicalize().map_err(|_| absent())?;
    folder.into_os_string().into_string().map_err(|folder| NewError::NoText(folder.into()))
}

/// A file of the example under another name, with the library where it is.
fn filled(file: &str, text: &str, name: &str, library: &str) -> String {
    let library = if file.ends_with(".toml") {
        library.replace('\\', "\\\\").replace('"', "\\\"")
    } else {
        library.to_owned()
    };
    text.replace(LIBRARY, &library).replace(EXAMPLE, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_cargo_and_broker_take() {
        for good in ["greet", "pdf-tools", "mail2", "a_b"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "Greet", "2mail", "-a", "a b", "a/b", "..", "ä", "a.b"] {
            assert!(matches!(check(bad), Err(NewError::Name(_))), "{bad}");
        }
        for bad in ["serde", "test", "fn", "while", "hopline"] {
            assert!(matches!(check(bad), Err(NewError::Taken(_))), "{bad}");
        }
        for bad in ["dead", "jobs", &"a".repeat(61)] {
            assert!(matches!(check(bad), Err(NewError::Queue(_))), "{bad}");
        }
    }

    #[test]
    fn a_crate_has_its_own_name_and_the_librarys_place() {
        let dir = std::env::temp_dir().join(format!("hopline-new-{}", crate::JobId::new()));
        let worker = Worker { name: "greet".to_owned(), path: None, library: None };
        worker.make(&dir).unwrap();
        for (name, _) in FILES {
            let text = fs::read_to_string(dir.join(name)).unwrap();
            assert!(!text.contains(EXAMPLE) && !text.contains(LIBRARY), "{name}: {text}");
        }
        let manifest = fs::read_to_string(dir.join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("hopline = {{ path = {SOURCES:?} }}")), "{manifest}");
        assert!(fs::read_to_string(dir.join("src/main.rs")).unwrap().contains("\"greet.save\""));
        // Of a `hopline up` in it: data, logs and secrets.
        for (file, var) in [(".gitignore", "/var"), (".dockerignore", "var")] {
            let ignored = fs::read_to_string(dir.join(file)).unwrap();
            assert!(ignored.lines().any(|line| line == var), "{file}");
        }
        // A sample that stops the worker at its start would be no sample.
        crate::Config::load_from(Some(&dir.join("hopline.toml")), []).unwrap();

        fs::remove_file(dir.join("README.md")).unwrap();
        assert!(matches!(worker.make(&dir), Err(NewError::Exists(_))));
        assert!(!dir.join("README.md").exists(), "nothing is written into a folder that is there");
        fs::remove_dir_all(&dir).unwrap();

        let lost = Worker { library: Some("/nonexistent".into()), ..worker };
        assert!(matches!(lost.make(&dir), Err(NewError::NoLibrary(_))));
        assert!(!dir.exists());
    }

    #[test]
    fn a_strange_place_is_written_as_toml() {
        let text = filled("Cargo.toml", "path = \"../..\" # outside-worker", "a", r#"/a "b" \c"#);
        assert_eq!(text, r#"path = "/a \"b\" \\c" # a"#);
    }
}
