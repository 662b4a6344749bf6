//! What a broker has under a prefix: exchanges, queues, bindings and policies, as its management API tells it.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    amqp::Names,
    job::QueueName,
    management::{Management, ManagementError, part, read},
};

/// Questions at a time.
const TOGETHER: usize = 4;
/// What is read of a queue. Its numbers are not.
const COLUMNS: &str = "name,type,durable,auto_delete,exclusive,arguments,policy,operator_policy,\
                       effective_policy_definition,leader,members,online,state,node";

/// An exchange.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct Exchange {
    pub(crate) name: String,
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) durable: bool,
    #[serde(default)]
    pub(crate) auto_delete: bool,
    #[serde(default)]
    pub(crate) internal: bool,
    #[serde(default)]
    pub(crate) arguments: Arguments,
}

/// A queue.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct Queue {
    pub(crate) name: String,
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) durable: bool,
    #[serde(default)]
    pub(crate) auto_delete: bool,
    #[serde(default)]
    pub(crate) exclusive: bool,
    #[serde(default)]
    pub(crate) arguments: Arguments,
    pub(crate) policy: Option<String>,
    pub(crate) operator_policy: Option<String>,
    /// What both come to.
    #[serde(default)]
    pub(crate) effective_policy_definition: Arguments,
    pub(crate) leader: Option<String>,
    #[serde(default)]
    pub(crate) members: Vec<String>,
    #[serde(default)]
    pub(crate) online: Vec<String>,
    pub(crate) state: Option<String>,
}

/// A binding.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Binding {
    pub(crate) source: String,
    pub(crate) destination: String,
    /// `queue` or `exchange`.
    pub(crate) destination_type: String,
    pub(crate) routing_key: String,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) pattern: String,
    #[serde(rename = "apply-to", default)]
    pub(crate) apply_to: String,
    #[serde(default)]
    pub(crate) priority: i64,
    pub(crate) definition: Map<String, Value>,
}

/// A JSON object. RabbitMQ writes an empty one as an empty list in places, or leaves it out.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct Arguments(pub(crate) Map<String, Value>);

impl From<Value> for Arguments {
    fn from(value: Value) -> Self {
        match value {
            Value::Object(map) => Self(map),
            _ => Self::default(),
        }
    }
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    pub(crate) exchanges: BTreeMap<String, Exchange>,
    pub(crate) queues: BTreeMap<String, Queue>,
    pub(crate) bindings: Vec<Binding>,
    /// `None`: the login may not see them.
    pub(crate) policies: Option<Vec<Policy>>,
}

impl Found {
    pub(super) async fn read(management: &Management, names: &Names) -> Result<Self, ManagementError> {
        let vhost = management.vhost();
        let mut found = Self::default();
        for prefix in names.prefixes() {
            let name = format!("{prefix}.");
            let ours = |other: &str| other.starts_with(&name);
            let exchanges: Vec<Exchange> = management.list(&format!("exchanges/{vhost}"), &name).await?;
            found
                .exchanges
                .extend(exchanges.into_iter().filter(|e| ours(&e.name)).map(|e| (e.name.clone(), e)));
            let queues: Vec<Queue> = management.list_of(&format!("queues/{vhost}"), &name, COLUMNS).await?;
            found.queues.extend(queues.into_iter().filter(|q| ours(&q.name)).map(|q| (q.name.clone(), q)));
        }
        // Those of one exchange each: all of a virtual host may be very many.
        let sources: Vec<String> = found.exchanges.keys().cloned().collect();
        let asked = stream::iter(sources.into_iter().map(|name| async move {
            let path = format!("exchanges/{vhost}/{}/bindings/source", part(&name));
            read::<Vec<Binding>>(
                &path,
                management.find(&path).await?.unwrap_or_else(|| Value::Array(Vec::new())),
            )
        }));
        let bindings: Vec<Vec<Binding>> = asked.buffer_unordered(TOGETHER).try_collect().await?;
        found.bindings = bindings.into_iter().flatten().collect();
        let path = format!("policies/{vhost}");
        found.policies = match management.get(&path).await {
            Ok(list) => Some(read(&path, list)?),
            Err(ManagementError::Forbidden { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(found)
    }

    /// The work queues of this prefix.
    pub(super) fn work_queues(&self, names: &Names) -> Vec<QueueName> {
        self.queues.keys().filter_map(|name| names.work_queue_of(name)).collect()
    }
}
