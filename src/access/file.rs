//! The file of keys: a key a line, as JSON. Readable by its owner alone, and replaced as a whole.
//!
//! Whoever replaces it may be somebody else than the server that reads it: it stays its owner's, and its group's if that
//! could read it.

use std::{
    collections::HashSet,
    fs::{self, File, Metadata, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
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
        let file = self.behind_links()?;
        let _lock = file.lock()?;
        let mut entries = match file.read() {
            Err(AccessError::Missing(_)) => Vec::new(),
            read => read?,
        };
        let done = change(&mut entries)?;
        let mut text = String::new();
        for entry in &entries {
            text += &serde_json::to_string(entry).map_err(|error| file.failed("write")(error.into()))?;
            text.push('\n');
        }
        // What nobody could read again would keep everybody out.
        file.parse(&text)?;
        file.replace(text.as_bytes()).map_err(file.failed("write"))?;
        Ok(done)
    }

    /// The file itself, where the path is a link: to replace the link would leave the old keys to who reads the file.
    fn behind_links(&self) -> Result<Self, AccessError> {
        if !self.path.is_symlink() {
            return Ok(self.clone());
        }
        fs::canonicalize(&self.path).map(Self::new).map_err(self.failed("write"))
    }

    /// As the file is that is there now.
    fn metadata(&self) -> io::Result<Option<Metadata>> {
        match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            metadata => metadata.map(Some),
        }
    }

    /// The right to write, held until it is dropped or its process ends. A file of its own: the other one is replaced.
    fn lock(&self) -> Result<File, AccessError> {
        let lock = || {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(self.beside(".lock"))?;
            if let Some(keys) = self.metadata()? {
                // Or the keys' owner could not lock them any more. Who may not do that has made no lock for others either.
                let _ = give(&file, &keys);
            }
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
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let written = || {
            if let Some(old) = self.metadata()? {
                give(&file, &old)?;
            }
            (&file).write_all(content)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        written().inspect_err(|_| drop(fs::remove_file(&new)))?;
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

/// Gives a file to the owner and the group of `old`; the group may read it if it could read that one.
fn give(file: &File, old: &Metadata) -> io::Result<()> {
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
        fchown(file, Some(old.uid()), Some(old.gid())).map_err(|error| {
            let (user, group) = (old.uid(), old.gid());
            let why =
                format!("it belongs to user {user} and group {group}, to whom it cannot be given: {error}");
            io::Error::new(error.kind(), why)
        })?;
    }
    file.set_permissions(Permissions::from_mode(0o600 | old.mode() & 0o040))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::{chown, symlink};

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

    fn add(file: &KeyFile, name: &str) -> Result<(), AccessError> {
        let (entry, _) = made(name, &[Scope::Read], None);
        file.update(|known| {
            known.push(entry);
            Ok(())
        })
    }

    #[test]
    fn whoever_replaces_it_it_stays_its_owners() {
        let place = Place::new();
        let (file, lock) = (place.file(), place.0.join("keys.lock"));
        add(&file, "a").unwrap();
        fs::set_permissions(file.path(), Permissions::from_mode(0o644)).unwrap();
        // Only root may give files away.
        let given = chown(file.path(), Some(10_001), Some(10_002)).is_ok();
        add(&file, "b").unwrap();
        let metadata = fs::metadata(file.path()).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o640, "its group reads it, and others do not");
        if given {
            assert_eq!((metadata.uid(), metadata.gid()), (10_001, 10_002));
            let lock = fs::metadata(&lock).unwrap();
            assert_eq!((lock.uid(), lock.gid()), (10_001, 10_002));
        }
        assert_eq!(file.read().unwrap().len(), 2);
    }

    #[test]
    fn a_link_stays_one() {
        let (place, elsewhere) = (Place::new(), Place::new());
        let (link, file) = (place.file(), elsewhere.file());
        symlink(file.path(), link.path()).unwrap();
        assert!(matches!(add(&link, "a"), Err(AccessError::File { .. })), "a link to nothing");
        add(&file, "a").unwrap();
        add(&link, "b").unwrap();
        assert!(link.path().is_symlink());
        assert_eq!(file.read().unwrap().len(), 2);
    }

    #[test]
    fn what_nobody_could_read_again_is_not_written() {
        let place = Place::new();
        let file = place.file();
        add(&file, "a").unwrap();
        let before = file.stamp();
        let twice = file.update(|known| {
            known.push(known[0].clone());
            Ok(())
        });
        assert!(matches!(twice, Err(AccessError::Line { line: 2, .. })));
        let many = file.update(|known| {
            let (entry, _) = made("b", &[Scope::Read], None);
            let others =
                (0..KEYS_MAX).map(|n| Entry { id: format!("{n:012x}").parse().unwrap(), ..entry.clone() });
            known.extend(others);
            Ok(())
        });
        assert!(many.unwrap_err().to_string().contains("more than"));
        assert!(file.stamp() == before && file.read().unwrap().len() == 1);
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
