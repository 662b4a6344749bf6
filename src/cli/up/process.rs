//! Other processes: is it still the one we started, signal it, wait for its end, end it with us.
//!
//! Owns the guard against reused process ids. Starting processes is the business of who needs them.

use std::{
    io::{self, Write},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How often the end of a process that is not our child is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// A process that was started at some time, by its id and its start: ids are used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pid: i32,
    /// What the system says about its start; the same for as long as it lives, and for no other.
    started: String,
}

impl Process {
    /// The process that has this id now; `None`: there is none, or it has ended and only waits to be reaped.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        Some(Self { pid, started: started(pid)? })
    }

    /// This process itself.
    pub(crate) fn own() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Its id.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&self) -> bool {
        started(self.pid).is_some_and(|started| started == self.started)
    }

    /// Sends a signal, if it still runs.
    pub(crate) fn signal(&self, signal: Signal) {
        if let (true, Some(pid)) = (self.is_alive(), Pid::from_raw(self.pid)) {
            // It ended a moment ago, or belongs to somebody else: both show in `is_alive` or by waiting.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits for its end, for at most `patience`; whether it ended.
    pub(crate) async fn ended_within(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }

    /// SIGTERM, and SIGKILL after `grace`. Whether it has ended.
    pub(crate) async fn end(&self, grace: Duration) -> bool {
        self.signal(Signal::TERM);
        if self.ended_within(grace).await {
            return true;
        }
        self.signal(Signal::KILL);
        self.ended_within(Duration::from_secs(5)).await
    }
}

#[cfg(target_os = "linux")]
fn started(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets and may hold anything, brackets too.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    let ticks = fields.nth(18)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    (!matches!(state, "Z" | "X")).then(|| format!("{}/{ticks}", boot.trim()))
}

#[cfg(not(target_os = "linux"))]
fn started(pid: i32) -> Option<String> {
    let output = Command::new("ps").args(["-o", "stat=,lstart=", "-p", &pid.to_string()]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (state, start) = text.trim().split_once(char::is_whitespace)?;
    (!state.starts_with('Z')).then(|| start.trim().to_owned())
}

/// Ends the processes it watches when this process ends without having ended them itself, however it ends: a
/// small shell waits for the end of a pipe that only this process holds.
///
/// Dropping it ends the shell, not the watched processes.
#[derive(Debug)]
pub(crate) struct Lifeline {
    shell: Child,
}

/// Reads `+ pid` and `- pid`; at the end of input: SIGTERM to all, SIGKILL to who is left after 30 s.
const SHELL: &str = r#"
pids=' '
while read -r sign pid; do
  case $sign$pids in
    +*) pids="$pids$pid " ;;
    -*" $pid "*) pids="${pids%% $pid *} ${pids#* $pid }" ;;
  esac
done
exec 2>/dev/null
kill -TERM $pids
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
  left=
  for pid in $pids; do kill -0 "$pid" && left=1; done
  [ "$left" ] || exit 0
  sleep 1
done
kill -KILL $pids
"#;

impl Lifeline {
    /// Starts the shell.
    pub(crate) fn new() -> io::Result<Self> {
        use std::os::unix::process::CommandExt;
        let shell = Command::new("/bin/sh")
            .args(["-c", SHELL, "hopline-lifeline"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of reach of the terminal's Ctrl-C, which this process survives long enough to tidy up.
            .process_group(0)
            .spawn()?;
        Ok(Self { shell })
    }

    /// From now on this process ends with us.
    pub(crate) fn watch(&mut self, pid: u32) {
        self.tell(format_args!("+ {pid}\n"));
    }

    /// This process has ended: its id may soon be another's.
    pub(crate) fn release(&mut self, pid: u32) {
        self.tell(format_args!("- {pid}\n"));
    }

    fn tell(&mut self, text: std::fmt::Arguments<'_>) {
        // Without the shell (somebody ended it) only the second line of defence is gone.
        if let Some(pipe) = &mut self.shell.stdin {
            let _ = pipe.write_all(text.to_string().as_bytes());
        }
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        // Before its input closes, or it would take that for our death.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").spawn().unwrap()
    }

    #[test]
    fn a_process_is_known_by_more_than_its_id() {
        let mut child = sleeper();
        let process = Process::of(child.id()).unwrap();
        assert!(process.is_alive());
        assert!(!Process { started: "another".to_owned(), ..process }.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive());
    }

    #[tokio::test]
    async fn the_lifeline_ends_whom_it_watches_and_no_other() {
        let (mut watched, mut released) = (sleeper(), sleeper());
        let mut lifeline = Lifeline::new().unwrap();
        lifeline.watch(released.id());
        lifeline.watch(watched.id());
        lifeline.release(released.id());
        drop(lifeline.shell.stdin.take());
        // Reaped here: its end is what the test waits for.
        watched.wait().unwrap();
        lifeline.shell.wait().unwrap();
        assert!(released.try_wait().unwrap().is_none());
        released.kill().unwrap();
        released.wait().unwrap();
    }
}
