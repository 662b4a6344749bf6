//! Files that only their owner may read, replaced as a whole.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use thiserror::Error;

/// A file or folder that cannot be used.
#[derive(Debug, Error)]
#[error("cannot {what} {path}")]
#[non_exhaustive]
pub struct FileError {
    /// What was tried: `write`, `read`, …
    pub what: &'static str,
    /// On which file or folder.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

pub(crate) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { what, path, source }
}

/// Makes a folder and those above it, for its owner alone.
pub(crate) fn make_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make the folder", path))
}

/// Writes a file for its owner alone. A reader sees the old or the new content, never half of one.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let result = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        fs::rename(&new, path)
    })();
    result.map_err(|source| {
        // On a full disk the half-written one would only be in the way.
        let _ = fs::remove_file(&new);
        failed("write", path)(source)
    })
}

/// Reads a file; `None`: there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Opens a log to append to, for its owner alone.
pub(crate) fn append(path: &Path) -> Result<fs::File, FileError> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(failed("write", path))
}

/// Takes the lock that a file stands for; it is held for as long as the answer lives, and released by the
/// system however its holder ends. `None`: somebody else holds it.
pub(crate) fn lock(path: &Path) -> Result<Option<fs::File>, FileError> {
    let file = append(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(failed("lock", path)(error)),
    }
}

/// What has been written to a log since a moment.
#[derive(Debug, Clone)]
pub(crate) struct Since {
    path: PathBuf,
    length: u64,
}

impl Since {
    /// From now on.
    pub(crate) fn now(path: PathBuf) -> Self {
        let length = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        Self { path, length }
    }

    /// The log.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its end, at most 64 KiB; empty if there is none.
    pub(crate) fn read(&self) -> String {
        const MOST: u64 = 64 << 10;
        let mut bytes = Vec::new();
        let read = fs::File::open(&self.path).and_then(|mut file| {
            let length = file.metadata()?.len();
            // Shorter than before: it was begun anew.
            let start = if length < self.length { 0 } else { self.length };
            file.seek(SeekFrom::Start(start.max(length.saturating_sub(MOST))))?;
            file.take(MOST).read_to_end(&mut bytes)
        });
        if read.is_ok() { String::from_utf8_lossy(&bytes).into_owned() } else { String::new() }
    }

    /// Its last lines, from the error on that ended a program if there is one; none of them longer than 300 characters.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let text = self.read();
        let last = last_words(&text, lines).into_iter();
        last.map(|line| line.chars().take(300).collect::<String>()).collect::<Vec<_>>().join("\n")
    }
}

/// The last lines that say something, without backtraces: these are long, and come after what they are about.
fn last_words(text: &str, most: usize) -> Vec<&str> {
    let mut in_backtrace = false;
    let mut lines = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        in_backtrace = line.eq_ignore_ascii_case("stack backtrace:") || in_backtrace && is_frame(line);
        if !in_backtrace {
            lines.push(line);
        }
    }
    // As `main` writes it.
    let start = match lines.iter().rposition(|line| line.starts_with("Error: ")) {
        Some(error) => error,
        None => lines.len().saturating_sub(most),
    };
    lines.into_iter().skip(start).take(most).collect()
}

/// `   3: main` or `             at src/main.rs:7:5`.
fn is_frame(line: &str) -> bool {
    let line = line.trim_start();
    let number = line.trim_start_matches(|c: char| c.is_ascii_digit());
    line.starts_with("at ") || number.len() < line.len() && number.starts_with(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: &str =
        "   0: anyhow::error::new\n   1: main\n             at ./src/main.rs:7:5\n  10: _start\n";

    #[test]
    fn the_cause_is_told_and_not_its_backtrace() {
        let died = format!("Error: no folder\n\nCaused by:\n    0: gone\n\nStack backtrace:\n{FRAMES}");
        let panicked =
            format!("thread 'main' panicked at a.rs:1:2:\nno way\nstack backtrace:\n{FRAMES}note: more\n");
        let cause = ["Error: no folder", "Caused by:", "    0: gone"];
        for (text, lines) in [
            (format!("began\n{died}"), cause.to_vec()),
            (format!("{died}began\n{died}"), cause.to_vec()),
            (format!("{died}began\n"), [&cause[..], &["began"]].concat()),
            ("Error: x\nb\nc\nd\ne".to_owned(), vec!["Error: x", "b", "c", "d"]),
            (panicked, vec!["thread 'main' panicked at a.rs:1:2:", "no way", "note: more"]),
            ("a\n\nb\nc\nd\n 1: e\n".to_owned(), vec!["b", "c", "d", " 1: e"]),
            (String::new(), vec![]),
        ] {
            assert_eq!(last_words(&text, 4), lines, "{text}");
        }
    }
}
