//! Orders to cancel jobs, as far as they concern jobs that this process has.
//!
//! What is known of orders comes from the control log (`amqp::control`); an attempt is asked to stop here. Not here:
//! what becomes of a job that is cancelled (`disposition`, `settle`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{broadcast, watch};

use super::executor::{Cancellation, Strings};
use crate::{
    amqp::control::{CancelOrder, Control},
    job::JobId,
};

/// Which runs are to be cancelled, by what is known.
type Ordered = Arc<dyn Fn(JobId, u32) -> Option<Cancellation> + Send + Sync>;
/// The attempts of each run, told apart by a number. More than one only where a run has forked.
type Attempts = HashMap<(JobId, u32), Vec<(u64, Strings)>>;

/// What can be cancelled here.
pub(super) struct Cancels {
    ordered: Ordered,
    attempts: Mutex<Attempts>,
    /// Counts what came, so that whoever holds waiting jobs looks through them.
    news: watch::Sender<u64>,
}

impl Cancels {
    /// What the control log says.
    pub(super) fn new(control: &Control) -> Self {
        let control = control.clone();
        Self::by(Arc::new(move |id, run| {
            control.cancelled(id, run).map(|order| Cancellation { by: order.by, reason: order.reason })
        }))
    }

    fn by(ordered: Ordered) -> Self {
        Self { ordered, attempts: Mutex::default(), news: watch::Sender::new(0) }
    }

    /// Passes on what comes, until there is nothing more to come.
    pub(super) async fn follow(&self, mut orders: broadcast::Receiver<CancelOrder>) {
        loop {
            match orders.recv().await {
                Ok(CancelOrder { id, run, by, reason, .. }) => {
                    self.tell(id, run, &Cancellation { by, reason });
                }
                Err(broadcast::error::RecvError::Lagged(_)) => self.look(),
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// The order to cancel this run, if there is one.
    pub(super) fn order(&self, id: JobId, run: u32) -> Option<Cancellation> {
        (self.ordered)(id, run)
    }

    /// Changes when there are new orders.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// From now on, until the guard is dropped, an order for this run pulls these strings; one that is known does so
    /// at once.
    pub(super) fn watch(&self, id: JobId, run: u32, strings: &Strings) -> Watched<'_> {
        let mut attempts = self.attempts();
        let of_run = attempts.entry((id, run)).or_default();
        let number = of_run.last().map_or(0, |(number, _)| number + 1);
        of_run.push((number, strings.clone()));
        drop(attempts);
        // Only now: an order that comes in between is seen by one of the two.
        if let Some(order) = self.order(id, run) {
            strings.order(order);
        }
        Watched { cancels: self, key: (id, run), number }
    }

    /// An order has come.
    fn tell(&self, id: JobId, run: u32, order: &Cancellation) {
        for (_, strings) in self.attempts().get(&(id, run)).into_iter().flatten() {
            strings.order(order.clone());
        }
        self.news.send_modify(|count| *count += 1);
    }

    /// Orders may have been missed: all attempts are looked at.
    fn look(&self) {
        for (&(id, run), attempts) in &*self.attempts() {
            if let Some(order) = self.order(id, run) {
                attempts.iter().for_each(|(_, strings)| strings.order(order.clone()));
            }
        }
        self.news.send_modify(|count| *count += 1);
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        // The map is whole after every statement.
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt that can be cancelled, as long as this lives.
pub(super) struct Watched<'a> {
    cancels: &'a Cancels,
    key: (JobId, u32),
    number: u64,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        let mut attempts = self.cancels.attempts();
        if let Some(of_run) = attempts.get_mut(&self.key) {
            of_run.retain(|(number, _)| *number != self.number);
            if of_run.is_empty() {
                attempts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(who: &str) -> Cancellation {
        Cancellation { by: Some(who.to_owned()), reason: None }
    }

    #[test]
    fn an_order_reaches_the_attempts_of_its_run() {
        let cancels = Cancels::by(Arc::new(|_, _| None));
        let (id, other) = (JobId::new(), JobId::new());
        let [first, second, next_run, another] = std::array::from_fn(|_| Strings::default());
        let watched = [
            cancels.watch(id, 1, &first),
            cancels.watch(id, 1, &second),
            cancels.watch(id, 2, &next_run),
            cancels.watch(other, 1, &another),
        ];
        let news = cancels.news();
        cancels.tell(id, 1, &by("a"));
        cancels.tell(id, 1, &by("b"));
        for strings in [&first, &second] {
            assert!(strings.cancel.is_cancelled());
            assert_eq!(strings.order.get(), Some(&by("a")), "the first order counts");
        }
        assert!(!next_run.cancel.is_cancelled() && !another.cancel.is_cancelled());
        assert!(news.has_changed().unwrap());
        drop(watched);
        assert!(cancels.attempts().is_empty());
    }

    #[test]
    fn what_is_known_already_holds_at_once_and_what_was_missed_later() {
        let id = JobId::new();
        let known = Arc::new(Mutex::new(None));
        let asked = Arc::clone(&known);
        let cancels = Cancels::by(Arc::new(move |_, _| asked.lock().unwrap().clone()));
        let early = Strings::default();
        let _early = cancels.watch(id, 1, &early);
        *known.lock().unwrap() = Some(by("a"));
        let late = Strings::default();
        let _late = cancels.watch(id, 1, &late);
        assert!(late.cancel.is_cancelled() && !early.cancel.is_cancelled());
        cancels.look();
        assert!(early.cancel.is_cancelled());
    }
}
