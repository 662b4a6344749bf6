//! The file of keys: a key a line, as JSON. Readable by its owner alone, and replaced as a whole.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{AccessError, entry::Entry};

/// Most keys in a file: every process holds them all.
const KEYS_MAX: usize = 100_000;
/// Longest file that is read, in bytes.
const FILE_MAX: u64 = 256 << 20;

/// Where keys are kept.
#[derive(Debug, Clone)]
pub struct KeyFile {
    path: PathBuf,
}

/// What changes when a file does, also if it was replaced by one of the same length within the same tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp([i64; 5]);

impl KeyFile {
    /// The file at `path`, which need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys in it, those that are revoked too, oldest first.
    ///
    /// # Errors
    /// [`AccessError`]: there is no such file, or it cannot be understood in every line.
    pub fn read(&self) -> Result<Vec<Entry>, AccessError> {
        let text = match fs::metadata(&self.path) {
            Ok(metadata) if metadata.len() > FILE_MAX => Err(io::Error::other("it is too long")),
            Ok(_) => fs::read_to_string(&self.path),
            Err(error) => Err(error),
        };
        match text {
            Ok(text) => self.parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(AccessError::Missing(self.path.clone()))
            }
            Err(error) => Err(self.failed("read")(error)),
        }
    }

    fn parse(&self, text: &str) -> Result<Vec<Entry>, AccessError> {
        let (mut entries, mut ids) = (Vec::new(), HashSet::new());
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        for (index, line) in lines {
            let wrong =
                |detail: String| AccessError::Line { path: self.path.clone(), line: index + 1, detail };
            let entry: Entry = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
            entry.check().map_err(wrong)?;
            if !ids.insert(entry.id) {
                return Err(wrong(format!("there is another key of the id {}", entry.id)));
            }
            if entries.len() >= KEYS_MAX {
                return Err(wrong(format!("there are more than {KEYS_MAX} keys")));
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Reads the keys, lets `change` change them, and writes them: nobody else writes meanwhile. A file that is not there
    /// is made.
    ///
    /// # Errors
    /// [`AccessError`]; nothing was written then.
    pub fn update<T>(
        &self,
        change: impl FnOnce(&mut Vec<Entry>) -> Result<T, AccessError>,
    ) -> Result<T, AccessError> {
        let _lock = self.lock()?;
        let mut entries = match self.read() {
            Err(AccessError::Missing(_)) => Vec::new(),
            read => read?,
        };
        let done = change(&mut entries)?;
        let mut text = String::new();
        for entry in &entries {
            text += &serde_json::to_string(entry).map_err(|error| self.failed("write")(error.into()))?;
            text.push('\n');
        }
        self.replace(text.as_bytes()).map_err(self.failed("write"))?;
        Ok(done)
    }

    /// The right to write, held until it is dropped or its process ends. A file of its own: the other one is replaced.
    fn lock(&self) -> Result<File, AccessError> {
        let lock = || {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(self.beside(".lock"))?;
            file.lock()?;
            Ok(file)
        };
        lock().map_err(self.failed("lock"))
    }

    /// A reader sees the old keys or the new ones, and after a crash too.
    fn replace(&self, content: &[u8]) -> io::Result<()> {
        let new = self.beside(".new");
        // One that was left half written may have other rights.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    /// As it is now; none: there is no such file, or it cannot be looked at.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        let metadata = fs::metadata(&self.path).ok()?;
        let whole = |number: u64| i64::from_ne_bytes(number.to_ne_bytes());
        Some(Stamp([
            whole(metadata.dev()),
            whole(metadata.ino()),
            whole(metadata.size()),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ]))
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(ending);
        self.path.with_file_name(name)
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> AccessError {
        let path = self.path.clone();
        move |source| AccessError::File { what, path, source }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::access::{Scope, entry::tests::made};

    /// A file in a folder of its own, which goes with it.
    pub(crate) struct Place(pub(crate) PathBuf);

    impl Place {
        pub(crate) fn new() -> Self {
            let folder = std::env::temp_dir().join(format!("hopline-access-{}", crate::JobId::new()));
            fs::create_dir(&folder).unwrap();
            Self(folder)
        }

        pub(crate) fn file(&self) -> KeyFile {
            KeyFile::new(self.0.join("keys"))
        }

        /// Writes a file of these keys.
        pub(crate) fn write(&self, entries: &[&Entry]) {
            let write = |known: &mut Vec<Entry>| {
                *known = entries.iter().map(|entry| (*entry).clone()).collect();
                Ok(())
            };
            self.file().update(write).unwrap();
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn keys_are_read_as_they_were_written_by_their_owner_alone() {
        let place = Place::new();
        let file = place.file();
        assert!(matches!(file.read(), Err(AccessError::Missing(_))));
        let entries: Vec<Entry> = ["a", "b"].map(|name| made(name, &[Scope::Read], None).0).into();
        for entry in &entries {
            file.update(|known| {
                known.push(entry.clone());
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(file.read().unwrap(), entries);
        let mode = fs::metadata(file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let before = file.stamp();
        let refused = file.update(|_| Err::<(), _>(AccessError::Random));
        assert!(refused.is_err() && file.stamp() == before, "nothing was written");
    }

    #[test]
    fn a_file_is_understood_in_every_line_or_not_at_all() {
        let place = Place::new();
        let (entry, _) = made("a", &[Scope::Read], None);
        let good = serde_json::to_string(&entry).unwrap();
        let read = |text: &str| {
            fs::write(place.0.join("keys"), text).unwrap();
            place.file().read().map(|entries| entries.len()).map_err(|error| error.to_string())
        };
        assert_eq!(read(""), Ok(0));
        assert_eq!(read(&format!("{good}\n\n")), Ok(1));
        for bad in [
            format!("{good}\n{good}"),
            format!("{good}\n{{"),
            good[..40].to_owned(),
            good.replace("\"a\"", "\"a b\""),
        ] {
            assert!(read(&bad).unwrap_err().contains("line "), "{bad}");
        }
    }

    #[test]
    fn writers_take_turns() {
        let place = Place::new();
        let names: Vec<String> = (0..8).map(|n| format!("k{n}")).collect();
        std::thread::scope(|scope| {
            for name in &names {
                let file = place.file();
                let (entry, _) = made(name, &[Scope::Read], None);
                let add = |known: &mut Vec<Entry>| {
                    known.push(entry);
                    Ok(())
                };
                scope.spawn(move || file.update(add).unwrap());
            }
        });
        assert_eq!(place.file().read().unwrap().len(), names.len());
    }
}
