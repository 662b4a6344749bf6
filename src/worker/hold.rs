//! The deliveries of one job and step in this process.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::sleep;

use crate::amqp::consumer::Receipt;

/// How often it is asked whether the broker has taken a delivery back.
const LOOK: Duration = Duration::from_millis(250);

/// Usually one delivery; a second one when the broker took the first back and handed the job to this very process
/// again, or when a twin of the message exists.
#[derive(Debug)]
pub(super) struct Hold(Mutex<Vec<Receipt>>);

impl Hold {
    pub(super) fn new(receipt: Receipt) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![receipt])))
    }

    /// No delivery at all.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self(Mutex::default())
    }

    /// Takes another delivery of the same job and step: it is settled with the first.
    pub(super) fn attach(&self, receipt: Receipt) {
        let mut receipts = self.receipts();
        receipts.retain(Receipt::is_live);
        receipts.push(receipt);
    }

    /// Completes when the broker no longer counts on this process.
    pub(super) async fn lost(&self) {
        while self.is_live() {
            sleep(LOOK).await;
        }
    }

    /// Whether the broker still counts on this process.
    pub(super) fn is_live(&self) -> bool {
        self.receipts().iter().any(Receipt::is_live)
    }

    pub(super) fn ack(&self) {
        self.receipts().drain(..).for_each(Receipt::ack);
    }

    pub(super) fn hand_back(&self) {
        self.receipts().drain(..).for_each(Receipt::hand_back);
    }

    fn receipts(&self) -> MutexGuard<'_, Vec<Receipt>> {
        // The list is whole after every statement.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
