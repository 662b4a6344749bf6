//! The network between a process and the broker, as bad as it is told to be.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lapin::uri::AMQPUri;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Longest wait for the broker to take a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// What becomes of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// New connections end at once; those that are there go on.
    Refuse,
    /// Half-open: what is sent vanishes, both ways, and so does the news that a side has closed. A connection that was
    /// there in this time stays so when it is over, as where a router has forgotten it.
    Hang,
    /// Each packet is late by so much.
    Delay(Duration),
    /// So many bytes a second, each way and connection.
    Throttle(u32),
}

#[derive(Debug, Clone, Copy)]
struct Weather {
    mode: Mode,
    /// How often all connections were ended.
    cuts: u64,
    /// Whether the last time by a reset.
    reset: bool,
}

/// Local ports of the connections to the broker.
type Peers = Arc<Mutex<HashMap<u64, u16>>>;

/// A proxy before the broker. Dropped, it ends its connections.
pub(crate) struct Proxy {
    /// The broker's address through it.
    pub(crate) amqp: String,
    weather: watch::Sender<Weather>,
    peers: Peers,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Before the broker at `amqp`.
    pub(crate) async fn to(amqp: &str) -> Self {
        let uri: AMQPUri = amqp.parse().expect("an AMQP address");
        let target = (uri.authority.host, uri.authority.port);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let amqp = amqp.replacen(&format!("{}:{}", target.0, target.1), &address, 1);
        let (weather, seen) = watch::channel(Weather { mode: Mode::Pass, cuts: 0, reset: false });
        let peers = Peers::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, target, seen, Arc::clone(&peers)));
        Self { amqp, weather, peers, _tasks: tasks }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.weather.send_modify(|weather| weather.mode = mode);
    }

    /// Ends all connections; how many there were.
    pub(crate) fn cut(&self) -> usize {
        self.end_all(false)
    }

    /// The same by a reset (RST) on both sides.
    pub(crate) fn reset(&self) -> usize {
        self.end_all(true)
    }

    fn end_all(&self, reset: bool) -> usize {
        let count = hold(&self.peers).len();
        self.weather.send_modify(|weather| {
            weather.cuts += 1;
            weather.reset = reset;
        });
        count
    }

    /// The ports by which the broker knows its connections.
    pub(crate) fn peers(&self) -> Vec<u16> {
        hold(&self.peers).values().copied().collect()
    }
}

fn hold(peers: &Peers) -> MutexGuard<'_, HashMap<u64, u16>> {
    peers.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(
    listener: TcpListener,
    target: (String, u16),
    weather: watch::Receiver<Weather>,
    peers: Peers,
) {
    let mut connections = JoinSet::new();
    for number in 0.. {
        while connections.try_join_next().is_some() {}
        let Ok((near, _)) = listener.accept().await else { continue };
        let (target, weather, peers) = (target.clone(), weather.clone(), Arc::clone(&peers));
        connections.spawn(async move {
            connection(near, target, weather, &peers, number).await;
            hold(&peers).remove(&number);
        });
    }
}

/// How the carrying of a connection's bytes ended.
enum Ended {
    Closed,
    Reset,
    Vanished,
}

async fn connection(
    mut near: TcpStream,
    target: (String, u16),
    mut weather: watch::Receiver<Weather>,
    peers: &Peers,
    number: u64,
) {
    let Weather { mode, cuts, .. } = *weather.borrow();
    match mode {
        Mode::Refuse => return,
        Mode::Hang => return swallow(&mut near.split().0).await,
        _ => {}
    }
    let Ok(Ok(mut far)) = timeout(CONNECT, TcpStream::connect(target)).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    if let Ok(local) = far.local_addr() {
        hold(peers).insert(number, local.port());
    }
    let (seen_up, seen_down, mut seen) = (weather.clone(), weather.clone(), weather.clone());
    let ended = {
        let (mut near_in, mut near_out) = near.split();
        let (mut far_in, mut far_out) = far.split();
        tokio::select! {
            () = pump(&mut near_in, &mut far_out, seen_up) => Ended::Closed,
            () = pump(&mut far_in, &mut near_out, seen_down) => Ended::Closed,
            changed = weather.wait_for(|now| now.cuts != cuts) => {
                if changed.is_ok_and(|now| now.reset) { Ended::Reset } else { Ended::Closed }
            }
            _ = seen.wait_for(|now| now.mode == Mode::Hang) => Ended::Vanished,
        }
    };
    match ended {
        Ended::Closed => {}
        Ended::Reset => drop((near.set_zero_linger(), far.set_zero_linger())),
        // Each side goes on talking to nobody, until it gives up by itself.
        Ended::Vanished => {
            let (mut near_in, _near_out) = near.split();
            let (mut far_in, _far_out) = far.split();
            tokio::join!(swallow(&mut near_in), swallow(&mut far_in));
        }
    }
}

async fn swallow(from: &mut ReadHalf<'_>) {
    let mut bytes = [0; 4096];
    while !matches!(from.read(&mut bytes).await, Ok(0) | Err(_)) {}
}

/// Carries bytes one way until a side ends.
async fn pump(from: &mut ReadHalf<'_>, to: &mut WriteHalf<'_>, weather: watch::Receiver<Weather>) {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let mode = weather.borrow().mode;
        let room = if matches!(mode, Mode::Throttle(_)) { 1024 } else { bytes.len() };
        let Ok(count @ 1..) = from.read(&mut bytes[..room]).await else { return };
        let mode = weather.borrow().mode;
        match mode {
            // Whoever watches the weather takes over.
            Mode::Hang => std::future::pending().await,
            // The fault itself, here and below.
            Mode::Delay(late) => sleep(late).await,
            Mode::Throttle(rate) => {
                let millis = count as u64 * 1000 / u64::from(rate.max(1));
                // The fault itself: so long takes what goes through.
                sleep(Duration::from_millis(millis)).await;
            }
            Mode::Pass | Mode::Refuse => {}
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
