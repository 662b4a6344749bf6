//! A clock that all processes of a machine share, and what the system says that a process has used (Linux; elsewhere
//! nothing is said, and the report has no such figures).

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of the machine's monotonic clock: comparable between processes.
pub(super) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let part = |part: i64| u64::try_from(part).unwrap_or_default();
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// A moment of this process on that clock.
pub(super) fn of(moment: Instant) -> u64 {
    now().saturating_sub(u64::try_from(moment.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// From one moment of that clock to another.
pub(super) fn between(began: u64, ended: u64) -> Duration {
    Duration::from_nanos(ended.saturating_sub(began))
}

/// Time on a processor that a process has used since its start, in user and system mode; its threads included.
pub(super) fn processor_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks = ticks(&stat)?;
    #[expect(clippy::cast_precision_loss, reason = "ticks of 10 ms")]
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// `utime` and `stime` of `/proc/PID/stat`.
fn ticks(stat: &str) -> Option<u64> {
    // The second field is the program's name in brackets and may hold anything, brackets too.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Bytes of a process that are in memory.
pub(super) fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The process that listens on a port of this machine, if this process may see that.
pub(super) fn listener(port: u16) -> Option<u32> {
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let inode = tables.iter().find_map(|table| listening(table, port))?;
    let socket = format!("socket:[{inode}]");
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mut files = std::fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        files
            .any(|file| file.path().read_link().is_ok_and(|link| link.as_os_str() == socket.as_str()))
            .then_some(pid)
    })
}

/// The inode of the socket that listens on `port`, in a table as `/proc/net/tcp` is.
fn listening(table: &str, port: u16) -> Option<&str> {
    let wanted = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] else { return None };
        // 0A: it listens.
        (local.ends_with(&wanted) && state == "0A").then_some(inode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_the_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 12345 0 0";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("nothing"), None);
    }

    #[test]
    fn who_listens_is_found_by_port_and_state() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:15E3 0100007F:9999 01 00000000:00000000 00:00000000 00000000 0 0 77 1 0\n\
            1: 0100007F:15E3 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 78 1 0\n";
        assert_eq!(listening(table, 5603), Some("78"));
        assert_eq!(listening(table, 5604), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_found_and_has_used_something() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = std::process::id();
        assert_eq!(super::listener(listener.local_addr().unwrap().port()), Some(own));
        assert!(processor_time(own).is_some() && resident(own).is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn moments_of_this_process_are_on_the_shared_clock() {
        let before = now();
        let moment = Instant::now();
        let after = now();
        std::thread::yield_now();
        // What passes between the two readings of `of` makes it a little early.
        assert!(of(moment) <= after && before.saturating_sub(of(moment)) < 1_000_000_000);
    }
}
