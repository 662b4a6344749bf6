//! `amqps` with a certificate of the client's: a server that speaks TLS stands before the broker, and lets in only whom
//! its authority has signed.

use std::sync::Arc;

use hopline::Config;
use lapin::uri::AMQPUri;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use crate::support::{
    eventually,
    operator::place,
    stage::{Stage, stage},
    tls::Authority,
};

/// Stands before the broker; how many were let in, and how many were not.
async fn before_broker(stage: &Stage, authority: &Authority) -> (Config, watch::Receiver<(usize, usize)>) {
    let (url, seen) = before(stage.config.amqp.url.expose(), authority).await;
    let mut config = stage.config.clone();
    config.amqp.url = hopline::config::AmqpUrl::new(url);
    config.amqp.ca = Some(authority.ca());
    (config, seen)
}

/// Stands before the broker at `url`; the address, and how many were let in, and how many were not.
async fn before(url: &str, authority: &Authority) -> (String, watch::Receiver<(usize, usize)>) {
    let uri: AMQPUri = url.parse().expect("an address");
    let broker = (uri.authority.host.clone(), uri.authority.port);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let acceptor = TlsAcceptor::from(Arc::new(authority.strict_server()));
    let port = listener.local_addr().expect("its port").port();
    let userinfo = &uri.authority.userinfo;
    let vhost = uri.vhost.replace('%', "%25").replace('/', "%2f");
    let url = format!("amqps://{}:{}@localhost:{port}/{vhost}", userinfo.username, userinfo.password);
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
    (url, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_commands_show_the_certificate_too() {
    place(async |place| {
        let authority = Authority::new();
        let (url, seen) = before(&place.broker.amqp, &authority).await;
        let (ca, client) = (authority.ca(), authority.client());
        let text = |path: &std::path::Path| path.display().to_string();
        let (ca, cert, key) = (text(&ca), text(&client.cert), text(&client.key));
        let trusting = [("HOPLINE_AMQP_URL", url.as_str()), ("HOPLINE_AMQP_CA", ca.as_str())];
        let known = [
            &trusting[..],
            &[("HOPLINE_AMQP_CLIENT_CERT", cert.as_str()), ("HOPLINE_AMQP_CLIENT_KEY", key.as_str())],
        ]
        .concat();
        let refused = place.run_by_login(&["doctor", "--json"], &trusting).await.exits(8);
        refused.shows("amqp.client_cert");
        assert_eq!(seen.borrow().0, 0, "nobody was let in");
        place.run_by_login(&["topology", "apply"], &known).await.exits(7);
        let told = place.run_by_login(&["doctor"], &known).await;
        told.shows("ok    broker").shows("ok    permissions").shows("ok    topology");
        assert_eq!(seen.borrow().0, 2);
    })
    .await;
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
