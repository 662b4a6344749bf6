//! The processes below one, and signals to them.
//!
//! A process can leave its group and its session, but not its descent: one whose parent has ended becomes a child of the
//! nearest subreaper above it, which is the keeper. So whoever is below the keeper belongs to its command.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Rounds in which more processes are looked for, before what was found is killed: each finds what those have started
/// that the round before did not find.
const FREEZES: usize = 100;

/// A process, by its id and its start: ids are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    pid: i32,
    /// Clock ticks since boot.
    started: u64,
}

/// What `/proc/<pid>/stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    process: Process,
    parent: i32,
    /// Ended, and not waited for yet.
    ended: bool,
}

fn stat(pid: i32) -> Option<Stat> {
    parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(pid: i32, text: &str) -> Option<Stat> {
    // The second field is the program's name in brackets and may hold anything, brackets too.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let started = fields.nth(17)?.parse().ok()?;
    Some(Stat { process: Process { pid, started }, parent, ended })
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Those below `root` that have not ended.
fn below(root: i32, all: &[Stat]) -> BTreeSet<Process> {
    let mut children: BTreeMap<i32, Vec<&Stat>> = BTreeMap::new();
    for stat in all {
        children.entry(stat.parent).or_default().push(stat);
    }
    let (mut found, mut seen, mut next) = (BTreeSet::new(), BTreeSet::from([root]), vec![root]);
    while let Some(parent) = next.pop() {
        for child in children.get(&parent).into_iter().flatten() {
            // Read one after the other, entries of different moments could make a circle.
            if seen.insert(child.process.pid) {
                next.push(child.process.pid);
                if !child.ended {
                    found.insert(child.process);
                }
            }
        }
    }
    found
}

fn tree(root: i32) -> BTreeSet<Process> {
    below(root, &pids().filter_map(stat).collect::<Vec<_>>())
}

/// How many processes below `root` have not ended.
#[must_use]
pub fn count_below(root: i32) -> usize {
    tree(root).len()
}

/// Kills what is below `root`, as far as it is there now: it is all stopped first, so that nothing goes on starting more
/// while the rest is killed. To be repeated until `root` has no children.
pub fn kill_below(root: i32) {
    let mut stopped = BTreeSet::new();
    for _ in 0..FREEZES {
        let more: Vec<Process> = tree(root).difference(&stopped).copied().collect();
        if more.is_empty() {
            break;
        }
        for process in more {
            signal(process, Signal::STOP);
            stopped.insert(process);
        }
    }
    for process in stopped {
        signal(process, Signal::KILL);
    }
}

/// Sends a signal to this process and never to another one that has got its id.
fn signal(process: Process, signal: Signal) {
    let Some(pid) = Pid::from_raw(process.pid) else { return };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if stat(process.pid).is_some_and(|stat| stat.process == process) {
        // Refused, or ended meanwhile: either shows in the next look.
        let _ = pidfd_send_signal(handle, signal);
    }
}

/// How many processes and threads a user has: what `RLIMIT_NPROC` counts, as far as this process can see.
#[must_use]
pub fn tasks_of(uid: u32) -> u64 {
    let threads = |pid| threads(uid, &fs::read_to_string(format!("/proc/{pid}/status")).ok()?);
    pids().filter_map(threads).sum()
}

fn threads(uid: u32, status: &str) -> Option<u64> {
    let field =
        |name| status.lines().find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next());
    (field("Uid:")?.parse() == Ok(uid)).then(|| field("Threads:")?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_program_is_called() {
        let text = "7 (a) Z 1 (b) S 5 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2\n";
        let read = parse(7, text).unwrap();
        assert_eq!(read, Stat { process: Process { pid: 7, started: 4711 }, parent: 5, ended: false });
        assert!(parse(7, "7 (a) Z 5 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711").unwrap().ended);
        for bad in ["", "7 (a", "7 (a) S", "7 (a) S x 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711"] {
            assert_eq!(parse(7, bad), None, "{bad}");
        }
    }

    #[test]
    fn the_tree_is_all_that_descends_and_lives() {
        let stat = |pid, parent, ended| Stat { process: Process { pid, started: 1 }, parent, ended };
        let all = [
            stat(10, 1, false),
            stat(11, 10, false),
            stat(12, 11, true),
            stat(13, 12, false),
            stat(20, 1, false),
            stat(31, 30, false),
            stat(30, 31, false),
        ];
        let pids = |root| below(root, &all).into_iter().map(|process| process.pid).collect::<Vec<_>>();
        assert_eq!(pids(10), [11, 13]);
        assert_eq!(pids(20), [] as [i32; 0]);
        assert_eq!(pids(30), [31]);
    }

    #[test]
    fn tasks_are_counted_by_user() {
        let status = "Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t7\t7\t7\t7\nThreads:\t12\n";
        assert_eq!((threads(1000, status), threads(0, status), threads(7, "")), (Some(12), None, None));
        assert!(tasks_of(rustix::process::getuid().as_raw()) >= 1);
    }
}
