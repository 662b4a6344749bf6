//! The broker behind a test: the shared one or a node of the test's own, what lies in its queues, and its connections.

use std::{path::Path, time::Duration};

use hopline::up::{Node, NodeOptions};
use lapin::{
    Channel, Connection, ConnectionProperties,
    message::BasicGetMessage,
    options::{
        BasicGetOptions, BasicNackOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::FieldTable,
};
use serde_json::Value;

/// Where a broker is.
#[derive(Debug, Clone)]
pub(crate) struct Broker {
    pub(crate) amqp: String,
    /// With login.
    pub(crate) management: String,
}

/// Exchanges of a prefix; the ladder's are shared.
const EXCHANGES: [&str; 5] = ["jobs", "dead", "control", "replies", "strays"];

impl Broker {
    /// The one that all tests share.
    pub(crate) fn shared() -> Self {
        let named = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| panic!("{name} names no broker: run the tests with `make test`"))
        };
        Self { amqp: named("HOPLINE_TEST_AMQP_URL"), management: named("HOPLINE_TEST_MANAGEMENT_URL") }
    }

    /// One of the test's own, in `dir`.
    pub(crate) async fn private(dir: &Path) -> (Node, Self) {
        let mut options = NodeOptions::new(dir.join("node"));
        options.start_timeout = Duration::from_secs(180);
        let node = Node::start(options).await.unwrap_or_else(|error| panic!("no private node: {error}"));
        let (user, password) = node.login();
        let management = node.management_url().replacen("://", &format!("://{user}:{password}@"), 1);
        let broker = Self { amqp: node.amqp_url(), management };
        (node, broker)
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::connect(&self.amqp, ConnectionProperties::default()).await.expect("the broker takes a connection")
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

    /// Closes every connection of Hopline under `prefix`; how many.
    pub(crate) async fn cut(&self, prefix: &str) -> usize {
        let http = reqwest::Client::new();
        let url = format!("{}/api/connections", self.management);
        let Ok(answer) = http.get(&url).send().await else { return 0 };
        let all: Vec<Value> = answer.json().await.unwrap_or_default();
        let mut cut = 0;
        for connection in all {
            let ours = connection["user_provided_name"].as_str().is_some_and(|name| {
                // "<prefix> <role> <instance> <purpose>"
                name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(' '))
            });
            if let (true, Some(name)) = (ours, connection["name"].as_str()) {
                let name = name.replace(' ', "%20").replace('>', "%3E");
                let closed = http.delete(format!("{url}/{name}")).header("x-reason", "cut by a test").send().await;
                cut += usize::from(closed.is_ok_and(|answer| answer.status().is_success()));
            }
        }
        cut
    }

    /// Removes what a prefix has: exchanges, and the queues of `queue`.
    pub(crate) async fn remove(&self, prefix: &str, queue: &str) {
        let Ok(connection) = Connection::connect(&self.amqp, ConnectionProperties::default()).await else { return };
        let Ok(channel) = connection.create_channel().await else { return };
        let queues = [format!("q.{queue}"), format!("q.{queue}.dead"), "strays".into(), "control.log".into()];
        for name in queues {
            // Deleting what is not there is no error.
            let _ = channel.queue_delete(format!("{prefix}.{name}").into(), QueueDeleteOptions::default()).await;
        }
        for name in EXCHANGES {
            let name = format!("{prefix}.{name}");
            let _ = channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await;
        }
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
