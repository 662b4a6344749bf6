//! `amqps` with a certificate of the client's: a server that speaks TLS stands before the broker, and lets in only whom
//! its authority has signed.

use std::sync::Arc;

use hopline::Config;
use lapin::uri::{AMQPScheme, AMQPUri};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use crate::support::{
    eventually,
    stage::{Stage, stage},
    tls::Authority,
};

/// Stands before the broker; how many were let in, and how many were not.
async fn before_broker(stage: &Stage, authority: &Authority) -> (Config, watch::Receiver<(usize, usize)>) {
    let mut uri: AMQPUri = stage.config.amqp.url.expose().parse().expect("an address");
    let broker = (uri.authority.host.clone(), uri.authority.port);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let acceptor = TlsAcceptor::from(Arc::new(authority.strict_server()));
    let mut config = stage.config.clone();
    uri.scheme = AMQPScheme::AMQPS;
    uri.authority.host = "localhost".to_owned();
    uri.authority.port = listener.local_addr().expect("its port").port();
    let userinfo = &uri.authority.userinfo;
    let vhost = uri.vhost.replace('%', "%25").replace('/', "%2f");
    let url = format!(
        "amqps://{}:{}@localhost:{}/{vhost}",
        userinfo.username, userinfo.password, uri.authority.port
    );
    config.amqp.url = hopline::config::AmqpUrl::new(url);
    config.amqp.ca = Some(authority.ca());
    let (counts, seen) = watch::channel((0, 0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, broker, counts) = (acceptor.clone(), broker.clone(), counts.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    counts.send_modify(|(_, refused)| *refused += 1);
                    return;
                };
                counts.send_modify(|(let_in, _)| *let_in += 1);
                if let Ok(mut broker) = TcpStream::connect(broker).await {
                    // Whichever side ends it.
                    let _ = copy_bidirectional(&mut stream, &mut broker).await;
                }
            });
        }
    });
    (config, seen)
}

#[tokio::test]
async fn a_front_shows_its_certificate_to_the_broker() {
    stage(async |stage| {
        let authority = Authority::new();
        let (mut config, mut seen) = before_broker(stage, &authority).await;
        let client = authority.client();
        (config.amqp.client_cert, config.amqp.client_key) = (Some(client.cert), Some(client.key));
        let front = stage.front_with(&config).await;
        front.submit(r#"{"kind":"test.probe"}"#).await;
        // Asked on the connection that is there instead of the pool.
        let path = format!("/v1/queues/{}", stage.queue);
        eventually("the job waits there", async || {
            (front.get(&path).await.json()["ready"] == 1).then_some(())
        })
        .await;
        assert_eq!(seen.borrow_and_update().1, 0, "nobody was refused");
    })
    .await;
}

#[tokio::test]
async fn without_a_certificate_there_is_no_connection() {
    stage(async |stage| {
        let authority = Authority::new();
        let (config, mut seen) = before_broker(stage, &authority).await;
        let front = stage.front_unready(&config).await;
        seen.wait_for(|(_, refused)| *refused > 0).await.expect("the server lives");
        let ready = front.get("/readyz").await;
        assert_eq!(ready.status, 503, "{ready:?}");
        assert_eq!(seen.borrow().0, 0, "nobody was let in");
        front.post("/v1/jobs", r#"{"kind":"test.probe"}"#).await.problem(503, "broker_unavailable");
    })
    .await;
}
