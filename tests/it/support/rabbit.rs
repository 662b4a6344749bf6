//! The broker under test: its addresses, its management API, and a raw AMQP connection.

use std::{env, time::Duration};

use async_rs::Runtime;
use base64::{Engine, prelude::BASE64_STANDARD};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{
        BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
    },
    types::FieldTable,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{runtime::Handle, sync::OnceCell};

use super::eventually;

/// Where the broker is; a test without one fails.
fn address(variable: &str) -> String {
    match env::var(variable) {
        Ok(url) if !url.is_empty() => url.trim_end_matches('/').to_owned(),
        _ => panic!("{variable} is not set: these tests need a RabbitMQ of their own. Run `make test`"),
    }
}

/// The broker; one connection for each value.
pub(crate) struct Rabbit {
    pub(crate) url: String,
    management: String,
    http: reqwest::Client,
    connection: OnceCell<Connection>,
}

/// A message as the management API shows it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) body: Vec<u8>,
    pub(crate) properties: Value,
    pub(crate) headers: Value,
    pub(crate) exchange: String,
}

impl Seen {
    fn read(value: &Value) -> Self {
        let body = BASE64_STANDARD.decode(value["payload"].as_str().unwrap_or_default());
        let mut properties = value["properties"].clone();
        // An empty list stands for no properties at all.
        let headers = properties.get_mut("headers").map(Value::take).unwrap_or_default();
        let exchange = value["exchange"].as_str().unwrap_or_default().to_owned();
        Self { body: body.expect("asked for as base64"), properties, headers, exchange }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body that is text")
    }

    pub(crate) fn id(&self) -> String {
        self.properties["message_id"].as_str().unwrap_or_default().to_owned()
    }
}

/// What the management API calls the virtual host.
fn vhost(url: &str) -> String {
    let path =
        url.split_once("://").map_or(url, |(_, rest)| rest).split_once('/').map_or("", |(_, path)| path);
    let name = path.split('?').next().unwrap_or_default();
    if name.is_empty() { "%2F".to_owned() } else { name.to_owned() }
}

impl Rabbit {
    pub(crate) fn new() -> Self {
        super::broker::crypto();
        let http =
            reqwest::Client::builder().timeout(Duration::from_secs(30)).build().expect("an HTTP client");
        Self {
            url: address("HOPLINE_TEST_AMQP_URL"),
            management: address("HOPLINE_TEST_MANAGEMENT_URL"),
            http,
            connection: OnceCell::new(),
        }
    }

    /// The address of the management API, with its login.
    pub(crate) fn management(&self) -> &str {
        &self.management
    }

    /// The user of both addresses.
    pub(crate) fn user(&self) -> &str {
        let rest = self.url.split_once("://").map_or("", |(_, rest)| rest);
        rest.split([':', '@']).next().unwrap_or_default()
    }

    /// Asks the management API; `path` follows `/api/`, and `{vhost}` in it is filled in.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let url = format!("{}/api/{}", self.management, path.replace("{vhost}", &vhost(&self.url)));
        let mut request = self.http.request(method.clone(), &url);
        if let Some(body) = &body {
            request = request.json(body);
        }
        let answer = request.send().await.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let (status, text) = (answer.status(), answer.text().await.unwrap_or_default());
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// As [`Rabbit::ask`], where anything but success is a failure of the test.
    pub(crate) async fn done(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.ask(method.clone(), path, body).await;
        assert!(status.is_success(), "{method} {path}: {status} {answer}");
        answer
    }

    /// Publishes as a person does on an exchange's page, or with an empty name on a queue's. Says whether a queue
    /// took it.
    pub(crate) async fn publish(&self, exchange: &str, key: &str, properties: Value, body: &str) -> bool {
        let exchange = if exchange.is_empty() { "amq.default" } else { exchange };
        let message = json!({
            "properties": properties, "routing_key": key, "payload": body, "payload_encoding": "string",
        });
        let path = format!("exchanges/{{vhost}}/{exchange}/publish");
        self.done(Method::POST, &path, Some(message)).await["routed"] == true
    }

    async fn get(&self, queue: &str, count: usize, mode: &str) -> Vec<Seen> {
        let asked = json!({ "count": count, "ackmode": mode, "encoding": "base64" });
        let (_, answer) = self.ask(Method::POST, &format!("queues/{{vhost}}/{queue}/get"), Some(asked)).await;
        let list = answer.as_array().cloned().unwrap_or_default();
        // "auto" would be text where it can; the API has no encoding that is always base64.
        list.iter().map(|message| Seen::read(&as_base64(message))).collect()
    }

    /// Looks at messages as a person does: they stay.
    pub(crate) async fn look(&self, queue: &str, count: usize) -> Vec<Seen> {
        self.get(queue, count, "ack_requeue_true").await
    }

    /// Waits for a message in `queue` and takes it out.
    pub(crate) async fn take(&self, queue: &str) -> Seen {
        self.get_one(queue, "ack_requeue_false").await
    }

    /// Waits for a message in `queue` and rejects it.
    pub(crate) async fn reject(&self, queue: &str) -> Seen {
        self.get_one(queue, "reject_requeue_false").await
    }

    async fn get_one(&self, queue: &str, mode: &str) -> Seen {
        eventually(&format!("a message in {queue}"), async || self.get(queue, 1, mode).await.pop()).await
    }

    /// A channel of its own.
    pub(crate) async fn channel(&self) -> Channel {
        let connect = async || {
            let runtime = Runtime::tokio_with_handle(Handle::current());
            let properties = ConnectionProperties::default().with_connection_name("test".into());
            Connection::connect_with_runtime(&self.url, properties, runtime).await
        };
        let connection = self.connection.get_or_try_init(connect).await.expect("a connection to the broker");
        connection.create_channel().await.expect("a channel")
    }

    /// Messages that wait in a queue, not counting those taken; `None` if there is no such queue.
    pub(crate) async fn count(&self, queue: &str) -> Option<u32> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let channel = self.channel().await;
        let found = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        let count = found.ok().map(|queue| queue.message_count());
        drop(channel.close(200, "done".into()).await);
        count
    }

    /// Waits until so many messages wait in a queue.
    pub(crate) async fn wait_count(&self, queue: &str, count: u32) {
        eventually(&format!("{count} messages in {queue}"), async || {
            (self.count(queue).await == Some(count)).then_some(())
        })
        .await;
    }

    /// Publishes a message with any properties and bytes, and waits for the confirm.
    pub(crate) async fn publish_raw(
        &self,
        exchange: &str,
        key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) {
        let channel = self.channel().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let sent = channel.basic_publish(exchange.into(), key.into(), options, body, properties).await;
        let confirm = sent.expect("written").await.expect("confirmed");
        assert!(confirm.is_ack() && confirm.take_message().is_none(), "no queue took a message for {key}");
        drop(channel.close(200, "done".into()).await);
    }

    pub(crate) async fn delete_queue(&self, queue: &str) {
        let channel = self.channel().await;
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("deleted");
        drop(channel.close(200, "done".into()).await);
    }

    pub(crate) async fn purge(&self, queue: &str) {
        let channel = self.channel().await;
        channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await.expect("purged");
        drop(channel.close(200, "done".into()).await);
    }

    /// Limits a queue's length by the policy `name`.
    pub(crate) async fn limit(&self, name: &str, queue: &str, length: u32) {
        let pattern = format!("^{}$", queue.replace('.', "\\."));
        let rule = json!({"pattern": pattern, "apply-to": "queues", "definition": {"max-length": length}});
        self.done(Method::PUT, &format!("policies/{{vhost}}/{name}"), Some(rule)).await;
        eventually("the policy applies", async || {
            let queue = self.done(Method::GET, &format!("queues/{{vhost}}/{queue}"), None).await;
            (queue["policy"] == name).then_some(())
        })
        .await;
    }

    /// Takes the policy `name` away, if it is there.
    pub(crate) async fn unlimit(&self, name: &str) {
        self.ask(Method::DELETE, &format!("policies/{{vhost}}/{name}"), None).await;
    }

    /// Closes, from the broker's side, the connections whose name contains all of `words`; waits until there are `count`
    /// of them: the list is some seconds old.
    pub(crate) async fn cut_connections(&self, words: &[&str], count: usize) {
        let names = eventually(&format!("{count} connections named {words:?}"), async || {
            let all = self.done(Method::GET, "connections", None).await;
            let ours = all.as_array().into_iter().flatten().filter(|connection| {
                let name = connection["client_properties"]["connection_name"].as_str().unwrap_or_default();
                words.iter().all(|word| name.contains(word))
            });
            let names: Vec<String> =
                ours.filter_map(|connection| connection["name"].as_str().map(str::to_owned)).collect();
            (names.len() >= count).then_some(names)
        })
        .await;
        for name in &names {
            let path = format!("connections/{}", name.replace(' ', "%20").replace('>', "%3E"));
            self.ask(Method::DELETE, &path, None).await;
            eventually("the connection is closed", async || {
                (self.ask(Method::GET, &path, None).await.0 == StatusCode::NOT_FOUND).then_some(())
            })
            .await;
        }
    }

    /// Deletes every queue and exchange whose name starts with `prefix` and a dot. Never fails: it cleans up.
    pub(crate) async fn sweep(&self, prefix: &str) {
        for kind in ["queues", "exchanges"] {
            let path =
                format!("{kind}/{{vhost}}?page=1&page_size=500&use_regex=false&name={prefix}.&columns=name");
            let (_, list) = self.ask(Method::GET, &path, None).await;
            for item in list["items"].as_array().into_iter().flatten() {
                let name = item["name"].as_str().unwrap_or_default();
                if name.starts_with(&format!("{prefix}.")) {
                    self.ask(Method::DELETE, &format!("{kind}/{{vhost}}/{name}"), None).await;
                }
            }
        }
    }
}

fn as_base64(message: &Value) -> Value {
    let mut message = message.clone();
    if message["payload_encoding"] == "string" {
        message["payload"] = BASE64_STANDARD.encode(message["payload"].as_str().unwrap_or_default()).into();
    }
    message
}
