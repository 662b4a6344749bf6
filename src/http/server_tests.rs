use std::net::SocketAddr;

use axum::routing::{get, post};
use tokio::{
    sync::{Notify, oneshot},
    task::JoinHandle,
};

use super::*;

/// A server of some routes, and what ends it.
struct Running {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    stopping: Stopping,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(router: Router, settings: Settings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopping = Stopping::default();
        let tokens = stopping.clone();
        let shutdown = async { drop(stopped.await) };
        let task =
            tokio::spawn(async move { run(listener, router, (settings, None), &tokens, shutdown).await });
        Self { address, stop: Some(stop), stopping, task }
    }

    async fn send(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    fn stop(&mut self) {
        drop(self.stop.take());
    }
}

/// All that comes until the server closes the connection.
async fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

const SETTINGS: Settings =
    Settings { read_timeout: Duration::from_secs(60), max_connections: 10, grace: Duration::from_secs(60) };
const IMPATIENT: Settings = Settings { read_timeout: Duration::from_millis(100), ..SETTINGS };

/// A route that says when it was reached, and answers when it is let go.
fn gate() -> (Router, Arc<Notify>, Arc<Notify>) {
    let (reached, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, wait) = (Arc::clone(&reached), Arc::clone(&go));
    let route = get(move || async move {
        tell.notify_one();
        wait.notified().await;
        "done"
    });
    (Router::new().route("/", route), reached, go)
}

#[tokio::test]
async fn a_head_that_comes_too_slowly_is_told() {
    let server = Running::start(Router::new(), IMPATIENT).await;
    let answer = rest(server.send("GET / HTTP/1.1\r\nHost: loc").await).await;
    assert!(
        answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"code\":\"request_timeout\""),
        "{answer}"
    );
    assert!(answer.contains("\r\nx-request-id: "), "{answer}");
    assert_eq!(rest(server.send("").await).await, "", "an idle connection is closed without a word");
}

#[tokio::test]
async fn connections_over_the_limit_are_told() {
    let (router, reached, go) = gate();
    let server = Running::start(router, Settings { max_connections: 1, ..SETTINGS }).await;
    let first = server.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    reached.notified().await;
    let mut second = server.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    second.shutdown().await.unwrap();
    let answer = rest(second).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    go.notify_one();
    assert!(rest(first).await.ends_with("done"));
}

#[tokio::test]
async fn a_request_under_way_ends_before_the_server_does() {
    let (router, reached, go) = gate();
    let mut server = Running::start(router, SETTINGS).await;
    let request = server.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    reached.notified().await;
    let idle = server.send("").await;
    server.stop();
    server.stopping.begun.cancelled().await;
    assert_eq!(rest(idle).await, "");
    assert!(TcpStream::connect(server.address).await.is_err(), "no new connections");
    go.notify_one();
    let answer = rest(request).await;
    assert!(answer.ends_with("done") && answer.contains("connection: close"), "{answer}");
    server.task.await.unwrap();
}

#[tokio::test]
async fn the_end_comes_with_the_grace_time_at_the_latest() {
    let (router, reached, _go) = gate();
    let mut server = Running::start(router, Settings { grace: Duration::from_millis(50), ..SETTINGS }).await;
    let request = server.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    reached.notified().await;
    server.stop();
    server.task.await.unwrap();
    assert!(server.stopping.hurry.is_cancelled() && server.stopping.cut.is_cancelled());
    assert_eq!(rest(request).await, "");
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_its_request() {
    struct Gone(Option<oneshot::Sender<()>>);
    impl Drop for Gone {
        fn drop(&mut self) {
            drop(self.0.take());
        }
    }
    let reached = Arc::new(Notify::new());
    let (gone, dropped) = oneshot::channel();
    let (tell, gone) = (Arc::clone(&reached), Arc::new(std::sync::Mutex::new(Some(Gone(Some(gone))))));
    let route = post(move || async move {
        let _gone = gone.lock().unwrap().take();
        tell.notify_one();
        std::future::pending::<()>().await;
    });
    let server = Running::start(Router::new().route("/", route), SETTINGS).await;
    let request = server.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
    reached.notified().await;
    drop(request);
    assert!(dropped.await.is_err(), "the handler's future is dropped");
}
