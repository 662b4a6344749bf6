//! The broker behind a test: the shared one or a node of the test's own, what lies in its queues, and a way to it that
//! can be cut.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hopline::up::{Node, NodeOptions};
use lapin::{
    Channel, Connection, ConnectionProperties,
    message::BasicGetMessage,
    options::{
        BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions,
        ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::FieldTable,
    uri::AMQPUri,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Where a broker is.
#[derive(Debug, Clone)]
pub(crate) struct Broker {
    pub(crate) amqp: String,
    /// With login.
    pub(crate) management: String,
}

/// Exchanges of a prefix; the ladder's are shared.
const EXCHANGES: [&str; 7] = ["jobs", "dead", "control", "events", "record", "replies", "strays"];
/// Its queues, but for those of jobs.
const QUEUES: [&str; 4] = ["strays", "control.log", "log", "lookup"];

/// Gives the process its cryptography: an HTTP client cannot be made without, since it may have to speak TLS.
pub(crate) fn crypto() {
    // The first one stays.
    drop(rustls::crypto::ring::default_provider().install_default());
}

impl Broker {
    /// The one that all tests share.
    pub(crate) fn shared() -> Self {
        let named = |name: &str| {
            std::env::var(name)
                .unwrap_or_else(|_| panic!("{name} names no broker: run the tests with `make test`"))
        };
        Self { amqp: named("HOPLINE_TEST_AMQP_URL"), management: named("HOPLINE_TEST_MANAGEMENT_URL") }
    }

    /// One of the test's own, in `dir`.
    pub(crate) async fn private(dir: &Path) -> (Node, Self) {
        Self::private_with(dir, |_| {}).await
    }

    /// As [`Broker::private`], with options of one's own.
    pub(crate) async fn private_with(dir: &Path, set: impl FnOnce(&mut NodeOptions)) -> (Node, Self) {
        let mut options = NodeOptions::new(dir.join("node"));
        set(&mut options);
        options.start_timeout = Duration::from_secs(180);
        let node = Node::start(options).await.unwrap_or_else(|error| panic!("no private node: {error}"));
        let (user, password) = node.login();
        let management = node.management_url().replacen("://", &format!("://{user}:{password}@"), 1);
        let broker = Self { amqp: node.amqp_url(), management };
        (node, broker)
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::connect(&self.amqp, ConnectionProperties::default())
            .await
            .expect("the broker takes a connection")
    }

    async fn channel(&self) -> (Connection, Channel) {
        let connection = self.connect().await;
        let channel = connection.create_channel().await.expect("a channel");
        (connection, channel)
    }

    /// Messages of a queue that no consumer holds; none where there is no queue.
    pub(crate) async fn waiting(&self, queue: &str) -> u32 {
        let (_connection, channel) = self.channel().await;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        declared.map_or(0, |queue| queue.message_count())
    }

    /// Messages of a queue, those that a consumer holds included, as the management API counts them: seconds late.
    pub(crate) async fn unsettled(&self, queue: &str) -> u64 {
        let url = format!("{}/api/queues/%2f/{queue}", self.management);
        let Ok(answer) = reqwest::get(url).await else { return u64::MAX };
        let queue: Value = answer.json().await.unwrap_or_default();
        queue["messages"].as_u64().unwrap_or(u64::MAX)
    }

    /// Looks at all that waits in a queue, and leaves it there: each message is delivered once more.
    pub(crate) async fn look(&self, queue: &str) -> Vec<BasicGetMessage> {
        let (_connection, channel) = self.channel().await;
        let mut seen = Vec::new();
        while let Some(message) =
            channel.basic_get(queue.into(), BasicGetOptions::default()).await.expect("the queue can be read")
        {
            seen.push(message);
        }
        if let Some(last) = seen.last() {
            let back = BasicNackOptions { multiple: true, requeue: true };
            channel.basic_nack(last.delivery.delivery_tag, back).await.expect("nack");
        }
        seen
    }

    /// Moves the message of this id from `queue` to `exchange`, with its own routing key: what the broker does with a
    /// message on the delay ladder when its time has come.
    pub(crate) async fn release(&self, queue: &str, id: &str, exchange: &str) {
        let (_connection, channel) = self.channel().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let mut others = None;
        loop {
            let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await.expect("readable");
            let BasicGetMessage { delivery, .. } = got.unwrap_or_else(|| panic!("{id} is not in {queue}"));
            if delivery.properties.message_id().as_ref().is_none_or(|found| found.as_str() != id) {
                others = Some(delivery.delivery_tag);
                continue;
            }
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let key = delivery.routing_key.clone();
            let sent =
                channel.basic_publish(exchange.into(), key, options, &delivery.data, delivery.properties);
            let confirm = sent.await.expect("written").await.expect("confirmed");
            assert!(confirm.is_ack() && confirm.take_message().is_none(), "no queue took {id}");
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await.expect("acknowledged");
            break;
        }
        if let Some(last) = others {
            let back = BasicNackOptions { multiple: true, requeue: true };
            channel.basic_nack(last, back).await.expect("nack");
        }
        // The channel's end may not overtake what was sent on it.
        channel.close(200, "done".into()).await.expect("closed");
    }

    /// Removes what a prefix has: exchanges, and the queues of `queue`.
    pub(crate) async fn remove(&self, prefix: &str, queue: &str) {
        let Ok(connection) = Connection::connect(&self.amqp, ConnectionProperties::default()).await else {
            return;
        };
        let Ok(channel) = connection.create_channel().await else { return };
        // `hopline-…` is that where the prefix has a ladder of its own.
        let own = ["acts", "callbacks"].map(|word| [format!("{word}-{prefix}"), format!("hopline-{word}")]);
        let of_jobs: Vec<String> = [queue.to_owned()].into_iter().chain(own.into_iter().flatten()).collect();
        let of_jobs = of_jobs.iter().flat_map(|queue| [format!("q.{queue}"), format!("q.{queue}.dead")]);
        for name in of_jobs.chain(QUEUES.map(str::to_owned)) {
            // Deleting what is not there is no error.
            let _ =
                channel.queue_delete(format!("{prefix}.{name}").into(), QueueDeleteOptions::default()).await;
        }
        for name in EXCHANGES {
            let name = format!("{prefix}.{name}");
            let _ = channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await;
        }
    }
}

/// A way to a broker that can be cut: all connections on it at once, as a network does it. Which of those that are made
/// anew get through may be chosen.
pub(crate) struct Way {
    pub(crate) broker: Broker,
    connections: Arc<Mutex<JoinSet<()>>>,
    held: watch::Sender<Option<&'static str>>,
}

impl Way {
    pub(crate) async fn to(broker: &Broker) -> Self {
        let uri: AMQPUri = broker.amqp.parse().expect("an AMQP address");
        let (host, port) = (uri.authority.host, uri.authority.port);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let broker = Broker {
            amqp: broker.amqp.replacen(&format!("{host}:{port}"), &address, 1),
            management: broker.management.clone(),
        };
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let passing = Arc::clone(&connections);
        let (held, holding) = watch::channel(None);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (target, holding) = ((host.clone(), port), holding.clone());
                passing.lock().unwrap_or_else(PoisonError::into_inner).spawn(async move {
                    if let Ok(far) = TcpStream::connect(target).await {
                        let _ = pass(near, far, holding).await;
                    }
                });
            }
        });
        Self { broker, connections, held }
    }

    /// From now on whoever says `word` on the way there gets no further: a connection says its name at its beginning.
    /// An empty word stops all, `None` nobody.
    pub(crate) fn hold(&self, word: Option<&'static str>) {
        self.held.send_replace(word);
    }

    /// Cuts all connections; how many there were.
    pub(crate) fn cut(&self) -> usize {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        while connections.try_join_next().is_some() {}
        let count = connections.len();
        connections.abort_all();
        count
    }
}

async fn pass(
    near: TcpStream,
    far: TcpStream,
    mut holding: watch::Receiver<Option<&'static str>>,
) -> std::io::Result<()> {
    let ((mut from_near, mut to_near), (mut from_far, mut to_far)) = (near.into_split(), far.into_split());
    let there = async {
        let mut bytes = vec![0; 64 << 10];
        loop {
            let count = from_near.read(&mut bytes).await?;
            if count == 0 {
                return Ok(());
            }
            let said = String::from_utf8_lossy(&bytes[..count]);
            let free = holding.wait_for(|word| word.is_none_or(|word| !said.contains(word))).await;
            drop(free.map_err(std::io::Error::other)?);
            to_far.write_all(&bytes[..count]).await?;
        }
    };
    let back = tokio::io::copy(&mut from_far, &mut to_near);
    tokio::select! {
        there = there => there,
        back = back => back.map(drop),
    }
}

/// A header of a message as text.
pub(crate) fn header(message: &BasicGetMessage, name: &str) -> Option<String> {
    use lapin::types::AMQPValue;
    let headers = message.delivery.properties.headers().as_ref()?;
    match headers.inner().get(name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::LongLongInt(number) => Some(number.to_string()),
        AMQPValue::LongInt(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}
