//! What becomes of a submit that goes on by itself. Who waits for something else, as for a reply that says more, is woken
//! by a refusal alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::spooling::{Refusal, Taken};
use crate::client::SubmitError;

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    told: Notify,
}

#[derive(Debug, Default)]
struct State {
    result: Option<Result<Taken, Refusal>>,
    /// Somebody waits for whatever it is.
    awaited: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The submitter's half.
#[derive(Debug, Default)]
pub(super) struct Fate(Arc<Shared>);

/// The half of who knows; dropped untold, nobody does.
#[derive(Debug)]
pub(super) struct Teller(Arc<Shared>);

impl Fate {
    /// The two halves.
    pub(super) fn new() -> (Self, Teller) {
        let shared = Arc::<Shared>::default();
        (Self(Arc::clone(&shared)), Teller(shared))
    }

    /// Waits until it is known.
    pub(super) async fn known(&self) -> Result<Taken, Refusal> {
        self.0.state().awaited = true;
        loop {
            if let Some(result) = self.0.state().result.clone() {
                return result;
            }
            self.0.told.notified().await;
        }
    }

    /// Waits until it is refused, which may be never.
    pub(super) async fn refused(&self) -> Refusal {
        loop {
            if let Some(Err(refusal)) = self.0.state().result.clone() {
                return refusal;
            }
            self.0.told.notified().await;
        }
    }
}

impl Teller {
    pub(super) fn tell(self, result: Result<Taken, Refusal>) {
        self.set(result);
    }

    /// The first one counts.
    fn set(&self, result: Result<Taken, Refusal>) {
        let is_refusal = result.is_err();
        let mut state = self.0.state();
        if state.result.is_some() {
            return;
        }
        state.result = Some(result);
        if is_refusal || state.awaited {
            self.0.told.notify_one();
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.set(Err(SubmitError::Lost("it broke off here".to_owned()).into()));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn only_a_refusal_wakes_who_waits_for_something_else() {
        let (fate, teller) = Fate::new();
        let mut refused = Box::pin(fate.refused());
        assert!(refused.as_mut().now_or_never().is_none());
        teller.tell(Ok(Taken::Broker));
        assert!(fate.0.told.notified().now_or_never().is_none(), "not woken");
        assert!(refused.now_or_never().is_none());
        assert_eq!(fate.known().now_or_never(), Some(Ok(Taken::Broker)));

        let (fate, teller) = Fate::new();
        let mut refused = Box::pin(fate.refused());
        assert!(refused.as_mut().now_or_never().is_none());
        teller.tell(Err(SubmitError::Blocked.into()));
        assert_eq!(refused.now_or_never(), Some(SubmitError::Blocked.into()));
        assert_eq!(fate.known().now_or_never(), Some(Err(SubmitError::Blocked.into())));
    }

    #[tokio::test]
    async fn who_wants_to_know_is_told_and_what_is_dropped_is_lost() {
        let (fate, teller) = Fate::new();
        let waiting = tokio::spawn(async move { fate.known().await });
        tokio::task::yield_now().await;
        teller.tell(Ok(Taken::Broker));
        assert_eq!(waiting.await.unwrap(), Ok(Taken::Broker));

        let (fate, teller) = Fate::new();
        drop(teller);
        assert!(matches!(fate.refused().await, Refusal::Submit(SubmitError::Lost(_))));
    }
}
