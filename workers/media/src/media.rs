//! The picture folder: reading sources and saving results under one root, and nowhere else.
//!
//! Containment is `cap-std`'s: every path is resolved beneath an open handle of the root, so `..`, absolute paths
//! and links that lead out fail, also when somebody swaps a folder for a link meanwhile. A link that stays inside
//! works when it is relative.

use std::{
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

use cap_fs_ext::{MetadataExt, OpenOptionsSyncExt};
use cap_std::{
    ambient_authority,
    fs::{Dir, OpenOptions},
};
use cap_tempfile::TempFile;

use crate::error::MediaError;

/// Most bytes of a source picture: 32 MiB.
pub const SOURCE_MAX: u64 = 32 << 20;

/// Where pictures are when `MEDIA_ROOT` does not say: beside the process, or in a clone of the repository.
const USUAL_ROOTS: [&str; 2] = ["pictures", "workers/media/pictures"];

/// An open picture folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Media {
    root: Arc<Dir>,
}

/// A source picture, and which file it came from.
#[derive(Debug)]
pub struct Source {
    /// The file's bytes, at most [`SOURCE_MAX`].
    pub bytes: Vec<u8>,
    file: FileId,
}

/// Device and inode: the same file under whatever name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId(u64, u64);

impl Media {
    /// Opens the picture folder `root`, which must exist.
    ///
    /// # Errors
    /// The folder cannot be opened.
    pub fn open(root: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self { root: Arc::new(Dir::open_ambient_dir(root, ambient_authority())?) })
    }

    /// Opens the folder that `MEDIA_ROOT` names, else `pictures` or `workers/media/pictures` in the working
    /// directory, whichever is first found.
    ///
    /// # Errors
    /// The folder cannot be opened; the text names it.
    pub fn from_env() -> io::Result<Self> {
        let root = std::env::var_os("MEDIA_ROOT")
            .filter(|root| !root.is_empty())
            .or_else(|| USUAL_ROOTS.iter().find(|root| Path::new(root).is_dir()).map(Into::into));
        let Some(root) = root else {
            let text = format!("no picture folder: set MEDIA_ROOT, or make one of {USUAL_ROOTS:?}");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        };
        Self::open(&root)
            .map_err(|error| io::Error::new(error.kind(), format!("picture folder {root:?}: {error}")))
    }

    /// Reads the picture `path`, relative to the root.
    ///
    /// # Errors
    /// `Missing`, `OutsideRoot`, `BadPicture` (not a file), `TooLarge` (over [`SOURCE_MAX`]), `BadArgs` (no path
    /// at all), or `Io`.
    pub fn read(&self, path: &str) -> Result<Source, MediaError> {
        self.try_read(path).map_err(|error| classify("read", path, error))?
    }

    fn try_read(&self, path: &str) -> io::Result<Result<Source, MediaError>> {
        // Not blocking: opening a named pipe would wait for its writer.
        let file = self.root.open_with(path, OpenOptions::new().read(true).nonblock(true))?;
        let about = file.metadata()?;
        if !about.is_file() {
            return Ok(Err(MediaError::BadPicture(format!("{path:?} is not a file"))));
        }
        let mut bytes = Vec::new();
        // The file may grow while it is read, so its length alone is no limit.
        file.take(SOURCE_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > SOURCE_MAX {
            let text = format!("{path:?} has more than {SOURCE_MAX} bytes");
            return Ok(Err(MediaError::TooLarge(text)));
        }
        Ok(Ok(Source { bytes, file: FileId(about.dev(), about.ino()) }))
    }

    /// Saves `bytes` as `path`, relative to the root, making the folders it needs. An earlier file of that name
    /// is replaced at once and as a whole, so a repeated attempt ends the same; `source` itself is never replaced.
    ///
    /// # Errors
    /// `OutsideRoot`, `BadArgs` (no file name, a folder of that name, the source itself), or `Io`.
    pub fn save(&self, path: &str, bytes: &[u8], source: Option<&Source>) -> Result<(), MediaError> {
        let refuse = |why: &str| Err(MediaError::BadArgs(format!("save_as {path:?} {why}")));
        let Some(name) = Path::new(path).file_name() else { return refuse("names no file") };
        let parent = Path::new(path).parent().filter(|parent| !parent.as_os_str().is_empty());
        let failed = |error| classify("write", path, error);

        let folder = self.folder(parent.unwrap_or(Path::new("."))).map_err(failed)?;
        match folder.symlink_metadata(name) {
            Ok(there) if there.is_dir() => return refuse("is a folder"),
            Ok(there) if source.is_some_and(|source| source.file == FileId(there.dev(), there.ino())) => {
                return refuse("is the source itself");
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        replace(&folder, name, bytes).map_err(failed)
    }

    fn folder(&self, path: &Path) -> io::Result<Dir> {
        match self.root.open_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.root.create_dir_all(path)?;
                self.root.open_dir(path)
            }
            other => other,
        }
    }
}

/// Writes a nameless file, makes it durable, then gives it its name: nobody ever sees half a picture.
fn replace(folder: &Dir, name: impl AsRef<std::ffi::OsStr>, bytes: &[u8]) -> io::Result<()> {
    let mut file = TempFile::new(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.replace(name)
}

/// Tells what a job got wrong from what may pass.
fn classify(act: &'static str, path: &str, error: io::Error) -> MediaError {
    use io::ErrorKind as Kind;
    match error.kind() {
        // cap-std's own refusal carries no number of the system's; a file without permission does, and is retried.
        Kind::PermissionDenied if error.raw_os_error().is_none() => MediaError::OutsideRoot(path.to_owned()),
        Kind::NotFound | Kind::NotADirectory if act == "read" => MediaError::Missing(path.to_owned()),
        Kind::NotADirectory | Kind::IsADirectory | Kind::AlreadyExists if act == "write" => {
            MediaError::BadArgs(format!("save_as {path:?} goes through something that is no folder"))
        }
        Kind::InvalidInput | Kind::InvalidFilename => {
            MediaError::BadArgs(format!("{path:?} cannot be a file name"))
        }
        _ => MediaError::Io { act, path: path.to_owned(), source: error },
    }
}

#[cfg(test)]
#[path = "media_tests.rs"]
mod tests;
