use super::*;
use std::collections::BTreeMap;
use tokio::sync::watch;
use serde::Serialize;

#[derive(Debug, Clone)]
pub struct CancelOrder { pub id: JobId, pub run: u32, pub by: Option<String>, pub reason: Option<String>, pub at: Timestamp }
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause { pub by: Option<String>, pub at: Timestamp }
#[derive(Debug, Clone, Copy)]
pub struct Depth { pub ready: u64, pub consumers: u64 }
#[derive(Debug, Clone)]
pub struct KindInfo { pub kind: Kind, pub queue: QueueName, pub private: bool, pub workers: Vec<String> }
#[derive(Debug, Clone, Serialize)]
pub struct WorkerInfo { pub worker: String, pub queues: Vec<WorkerQueue> }
#[derive(Debug, Clone, Serialize)]
pub struct WorkerQueue { pub queue: QueueName, pub concurrency: u32, pub prefetch: u32, pub running: u32, pub waiting: u32, pub paused: bool }

#[allow(unused_variables)]
impl Client {
    pub async fn request_cancel(&self, orders: Vec<CancelOrder>) -> Result<(), SubmitError> { todo!() }
    pub async fn pause(&self, queue: &QueueName, paused: bool, by: Option<String>) -> Result<(), SubmitError> { todo!() }
    pub fn paused(&self) -> watch::Receiver<Arc<BTreeMap<QueueName, Pause>>> { todo!() }
    pub fn kinds(&self) -> Vec<KindInfo> { todo!() }
    pub fn workers(&self) -> Vec<WorkerInfo> { todo!() }
    pub async fn depth(&self, queue: &QueueName) -> Result<Option<Depth>, SubmitError> { todo!() }
}
