//! The ballast: a file that takes up room so that there is some when the disk is full.
//!
//! Forwarding needs room, too: what may have been published is written before it is, and what was forwarded is taken out
//! through the write-ahead log. Without it a disk that accepted jobs have filled could never be emptied again. The
//! ballast is given up then, and nothing new is taken until it is back.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tracing::{info, warn};

/// Its size: what the write-ahead log and its checkpoint may need beyond what is there, with a margin (`keeper::BATCH`).
const SIZE: usize = 16 << 20;
/// How long after an attempt that failed the next one is made.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    is_there: bool,
    not_before: Option<Instant>,
}

impl Ballast {
    pub(super) fn open(path: PathBuf) -> Self {
        let is_there = fs::metadata(&path).is_ok_and(|file| usize::try_from(file.len()) == Ok(SIZE));
        Self { path, is_there, not_before: None }
    }

    pub(super) fn is_there(&self) -> bool {
        self.is_there
    }

    /// Whether it is worth an attempt to make it now.
    pub(super) fn is_due(&self) -> bool {
        self.not_before.is_none_or(|time| time <= Instant::now())
    }

    /// Makes it, if there is room; whether it is there now.
    pub(super) fn make(&mut self) -> bool {
        match write(&self.path) {
            Ok(()) => {
                if self.not_before.take().is_some() {
                    info!("the spool's disk has room again");
                }
                self.is_there = true;
            }
            Err(error) => {
                // A part of it would take what is left.
                let _ = fs::remove_file(&self.path);
                if self.not_before.is_none() {
                    warn!(%error, "the spool's disk has no room, and takes no jobs");
                }
                self.not_before = Some(Instant::now() + AGAIN);
            }
        }
        self.is_there
    }

    /// Gives it up; whether there was one.
    pub(super) fn release(&mut self) -> bool {
        if !self.is_there {
            return false;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            warn!(%error, "the spool's ballast cannot be removed");
            return false;
        }
        warn!("the spool's disk is full: it takes no jobs until there is room for its ballast again");
        self.is_there = false;
        self.not_before = Some(Instant::now());
        true
    }
}

/// No zeros, and no pattern: a file system that compresses must not save them.
fn write(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = Vec::with_capacity(64 << 10);
    for _ in 0..SIZE / block.capacity() {
        block.clear();
        while block.len() < block.capacity() {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            block.extend_from_slice(&seed.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_given_up_once_and_made_again() {
        let path = std::env::temp_dir().join(format!("hopline-ballast-{}", crate::job::JobId::new()));
        let mut ballast = Ballast::open(path.clone());
        assert!(!ballast.is_there() && ballast.is_due() && !ballast.release());
        assert!(ballast.make());
        assert!(Ballast::open(path.clone()).is_there());
        assert!(ballast.release() && !ballast.release() && !path.exists());
        // Half of one is none.
        fs::write(&path, vec![1; SIZE / 2]).unwrap();
        assert!(!Ballast::open(path.clone()).is_there());
        assert!(ballast.is_due() && ballast.make());
        assert_eq!(fs::metadata(&path).unwrap().len(), SIZE as u64);
        fs::remove_file(&path).unwrap();

        let mut nowhere = Ballast::open(path.join("none"));
        assert!(!nowhere.make() && !nowhere.is_due(), "not tried again at once");
    }
}
