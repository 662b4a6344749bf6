//! The rows: each a fault, and what it needs. A new one is a function in `rows/` and a line here.

mod broker;
mod crash;
mod network;
mod objects;
mod processes;
mod record;
mod spool;

use std::path::PathBuf;

use futures_util::future::LocalBoxFuture;

use crate::scene::{Played, Scale, Site};

/// What a row needs besides a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A broker of our own, because it is ended, or its alarms are raised. No other row is under way then.
    Node,
    /// No other row under way: it touches what they share.
    Alone,
    /// To mount a small file system.
    Root,
    /// libfaketime, of Debian's package `faketime`.
    Faketime,
}

impl Need {
    /// Why it is not there.
    pub(crate) fn missing(self, site: &Site) -> Option<&'static str> {
        match self {
            Self::Node => site.node.is_none().then_some("the broker is not ours to control"),
            Self::Alone => None,
            Self::Root => {
                (!rustix::process::geteuid().is_root()).then_some("needs root, to mount a small file system")
            }
            Self::Faketime => {
                faketime().is_none().then_some("libfaketime is not installed (Debian: faketime)")
            }
        }
    }
}

pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// As the table in `docs/faults.md` names it.
    pub(crate) fault: &'static str,
    pub(crate) needs: &'static [Need],
    pub(crate) play: fn(Site, Scale) -> LocalBoxFuture<'static, Played>,
}

impl Row {
    pub(crate) fn is_alone(&self) -> bool {
        self.needs.iter().any(|need| matches!(need, Need::Node | Need::Alone))
    }
}

macro_rules! row {
    ($name:literal, $fault:literal, $play:path, [$($need:ident),*]) => {
        Row { name: $name, fault: $fault, needs: &[$(Need::$need),*], play: |site, scale| Box::pin($play(site, scale)) }
    };
}

pub(crate) const ROWS: &[Row] = &[
    row!("broker-killed", "broker: kill -9", broker::killed, [Node]),
    row!("broker-away", "broker stopped", broker::away, [Node]),
    row!("away-200", "the same, 200 submits a second, in order", spool::away_without, [Node]),
    row!("spool-200", "the same, fronts with a spool", spool::away, [Node]),
    row!("spool-killed", "HTTP fronts with a spool: kill -9 while the broker is away", spool::killed, [Node]),
    row!(
        "spool-disk-full",
        "disk full for a front's spool while the broker is away, and when it is back",
        spool::disk_full,
        [Node, Root]
    ),
    row!("rolling-restart", "rolling restart of everything, broker included", broker::rolling, [Node]),
    row!("memory-alarm", "broker: memory alarm", broker::memory, [Node]),
    row!("disk-alarm", "broker: disk alarm", broker::disk, [Node]),
    row!("cut", "all connections cut, every second", network::cut, []),
    row!("reset", "all connections reset (RST), every second", network::reset, []),
    row!("half-open", "half-open: packets vanish both ways, the sockets stay open", network::half_open, []),
    row!("delay", "each packet late", network::delay, []),
    row!("throttle", "connections throttled", network::throttle, []),
    row!(
        "partition",
        "one of two HTTP replicas partitioned away: refused, then half-open",
        network::partition,
        []
    ),
    row!(
        "channels",
        "channels closed by soft errors: each exchange deleted under load",
        objects::channels,
        []
    ),
    row!("connections", "each connection closed by the broker", objects::connections, []),
    row!("consumer-cancelled", "consumers cancelled: drained queues deleted", objects::queues, [Alone]),
    row!("bindings", "queue bindings deleted under load", objects::bindings, [Alone]),
    row!("purge", "drained queue purged", objects::purge, []),
    row!(
        "subscriber-full",
        "a subscriber's full, length-limited queue on the public events",
        objects::subscriber,
        []
    ),
    row!("worker-killed", "worker: kill -9", processes::worker_killed, []),
    row!("worker-stopped", "worker: SIGTERM", processes::worker_stopped, []),
    row!(
        "worker-frozen",
        "worker frozen (SIGSTOP) beyond the heartbeat, then SIGCONT",
        processes::worker_frozen,
        []
    ),
    row!("http-killed", "HTTP front: kill -9", processes::http_killed, []),
    row!("record-corrupted", "projector's database corrupted while its front is down", record::corrupted, []),
    row!("disk-full", "disk full for a front's SQLite files", record::disk_full, [Root]),
    row!("clock-ahead", "clock 1 h ahead in one worker and one front", record::clock_ahead, [Faketime]),
    row!("clock-behind", "clock 1 h behind in one worker and one front", record::clock_behind, [Faketime]),
    row!(
        "log-truncated",
        "event log truncated by retention while a projector is down",
        record::truncated,
        []
    ),
    row!(
        "poison",
        "crash loop: one poison job among good ones, prefetch 100, three workers",
        crash::poison,
        []
    ),
    row!("poison-cut", "the same, with connections cut every second", crash::poison_and_cuts, []),
    row!(
        "poison-broker",
        "the same, with the broker killed again and again",
        crash::poison_and_broker,
        [Node]
    ),
];

/// Where libfaketime is.
pub(crate) fn faketime() -> Option<PathBuf> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib", "/usr/local/lib"];
    let files = folders.map(|folder| PathBuf::from(folder).join("faketime/libfaketimeMT.so.1"));
    files.into_iter().find(|file| file.exists())
}
