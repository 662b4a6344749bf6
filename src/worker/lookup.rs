//! Asking whether a job has ended already, before it is run again (`docs/wire.md`, "Lookups").
//!
//! Self-clocking: one question is on its way at a time, and what gathers meanwhile is the next one. A question that is
//! not answered soon is asked again; also a late answer counts. Nobody is asked where no HTTP process has ever been
//! there. Where they have all gone silent for `worker.lookup_patience`, jobs are run unasked until one answers again: a
//! worker does not stand still because nobody can tell it of repeats. Time in which nobody can be asked, without a
//! connection or during an alarm of the broker, says nothing about them, and does not count.
//!
//! Not here: which deliveries are suspicious and where they wait (`dispatch`), and what the record knows.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    executor::Cancellation,
    silence::{LOOK, SharedSilence},
};
use crate::{
    amqp::{
        Names, PublishError,
        control::Control,
        publisher::{Publisher, Target},
    },
    client::{Client, Live},
    job::{JobId, json, wire::Message},
    record::lookup::{Asked, End, JOBS_MAX, Known, LookupAnswer, LookupRequest, QUESTION},
};

/// How long an answer is waited for before the next question goes out, or the same one again.
const AGAIN: Duration = Duration::from_secs(3);
/// How long an answer is waited for about a job that only its age speaks against: it is hardly ever a repeat.
const CASUAL: Duration = Duration::from_secs(3);
/// How long a late answer still counts.
const LATE: Duration = Duration::from_secs(30);
/// How often it is asked whether somebody is there again.
const PROBE: Duration = Duration::from_secs(5);

/// What is to be done with a delivery, after what the record knows of its job.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    /// Nothing speaks against it.
    Run,
    /// That run has ended: settle the delivery without a run.
    Ended(End),
    /// A later run or a later step is known: this message is left over.
    Stale,
    /// The run is to be cancelled.
    Cancel(Cancellation),
}

/// Decides.
pub(super) fn judge(asked: &Asked, known: Known) -> Verdict {
    if known.latest_run > asked.run {
        // Also where the run asked about is dead: its message was replayed, so none belongs in the dead-letter queue.
        return Verdict::Stale;
    }
    match (known.end, known.cancel) {
        (Some(end), _) if !is_disproved(&end) => Verdict::Ended(end),
        _ if known.step > asked.step => Verdict::Stale,
        (_, Some(cancel)) => Verdict::Cancel(Cancellation { by: cancel.by, reason: cancel.reason }),
        _ => Verdict::Run,
    }
}

/// A message that was taken for lost, and is here.
fn is_disproved(end: &End) -> bool {
    end.reason.as_deref() == Some(crate::job::dead::Reason::Lost.as_str())
}

/// One job that somebody wants to know about.
struct Question {
    asked: Asked,
    /// How long an answer is waited for.
    patience: Duration,
    answer: oneshot::Sender<Known>,
    /// Told when there is an answer, or when there will be none.
    wake: Arc<Notify>,
    /// By the silence's clock.
    since: Duration,
}

/// A handle on the task that asks; cheap to clone.
#[derive(Clone)]
pub(super) struct Lookups {
    /// Unbounded, but holds at most one question for each delivery that is held: bounded by the prefetch.
    questions: mpsc::UnboundedSender<Question>,
    control: Control,
    publisher: Publisher,
    silence: SharedSilence,
    patience: Duration,
}

impl Lookups {
    /// Starts the task, which ends with `stop`. A `patience` of zero: nobody is ever asked.
    pub(super) fn start(
        client: &Client,
        live: &Live,
        control: &Control,
        patience: Duration,
        stop: CancellationToken,
    ) -> Self {
        let (questions, incoming) = mpsc::unbounded_channel();
        let silence = SharedSilence::default();
        let desk = Desk {
            client: client.clone(),
            publisher: live.publisher.clone(),
            names: live.names.clone(),
            silence: silence.clone(),
            patience,
            open: BTreeMap::new(),
            next_number: 0,
            unasked: VecDeque::new(),
            later: VecDeque::new(),
            current: None,
            under_way: FuturesUnordered::new(),
        };
        live.runtime().spawn(desk.run(incoming, stop));
        let (control, publisher) = (control.clone(), live.publisher.clone());
        Self { questions, control, publisher, silence, patience }
    }

    /// Asks about a job; `None` where there is nobody to ask. `wake` is told when the answer is there. A receiver that
    /// closes without one: nobody answered in time, which is short for what is not `suspicious`.
    pub(super) fn ask(
        &self,
        asked: Asked,
        suspicious: bool,
        wake: &Arc<Notify>,
    ) -> Option<oneshot::Receiver<Known>> {
        let patience = if suspicious { self.patience } else { self.patience.min(CASUAL) };
        if patience.is_zero() || !self.control.has_front() {
            return None;
        }
        let link = self.publisher.link();
        let epoch = link.up().map_or(0, |up| up.epoch);
        let silence = self.silence.now(link);
        if silence.lasts(epoch, patience) {
            return None;
        }
        let since = silence.time();
        drop(silence);
        let (answer, receiver) = oneshot::channel();
        let question = Question { asked, patience, answer, wake: Arc::clone(wake), since };
        self.questions.send(question).ok()?;
        Some(receiver)
    }
}

/// A question on its way; `None`: no answer came.
type UnderWay = BoxFuture<'static, (Vec<u64>, Option<LookupAnswer>)>;

/// The task's own.
struct Desk {
    client: Client,
    publisher: Publisher,
    names: Names,
    silence: SharedSilence,
    patience: Duration,
    /// What is not answered yet, by age.
    open: BTreeMap<u64, Question>,
    next_number: u64,
    /// What is to be asked, or asked again, in this order.
    unasked: VecDeque<u64>,
    /// What an answer said nothing about: asked again when its time comes, the earliest first.
    later: VecDeque<(Instant, u64)>,
    /// What was asked last, and is neither answered nor overdue.
    current: Option<(Instant, Vec<u64>)>,
    /// At most as many as fit in [`LATE`], one each [`AGAIN`], and those that were answered at once.
    under_way: FuturesUnordered<UnderWay>,
}

impl Desk {
    async fn run(mut self, mut incoming: mpsc::UnboundedReceiver<Question>, stop: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            self.give_up_on_the_old();
            self.ask_if_due();
            let wake_at = self.wake_at();
            tokio::select! {
                () = stop.cancelled() => return,
                count = incoming.recv_many(&mut batch, 1024) => {
                    if count == 0 {
                        return;
                    }
                    batch.drain(..).for_each(|question| self.take(question));
                }
                Some((numbers, answer)) = self.under_way.next() => self.hear(&numbers, answer),
                () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {}
            }
        }
    }

    fn take(&mut self, question: Question) {
        self.open.insert(self.next_number, question);
        self.unasked.push_back(self.next_number);
        self.next_number += 1;
    }

    /// Who has waited too long gets no answer; and nobody does while all are silent.
    fn give_up_on_the_old(&mut self) {
        let epoch = self.epoch();
        let silence = self.silence.now(self.publisher.link());
        let silent = epoch.is_some_and(|epoch| silence.lasts(epoch, self.patience));
        let now = silence.time();
        drop(silence);
        if silent && !self.open.is_empty() {
            warn!(
                jobs = self.open.len(),
                "no HTTP process says which jobs have ended: they are run, until one answers"
            );
        }
        let is_over = |question: &Question| {
            let waited = now.saturating_sub(question.since);
            silent || waited >= question.patience || question.answer.is_closed()
        };
        let over: Vec<u64> =
            self.open.iter().filter(|(_, question)| is_over(question)).map(|(number, _)| *number).collect();
        for number in over {
            let Some(Question { answer, wake, .. }) = self.open.remove(&number) else { continue };
            // Dropped, it tells that there is no answer.
            drop(answer);
            wake.notify_one();
        }
    }

    /// Sends the next question, unless one is on its way.
    fn ask_if_due(&mut self) {
        let due = self.later.partition_point(|(at, _)| *at <= Instant::now());
        self.unasked.extend(self.later.drain(..due).map(|(_, number)| number));
        if self.current.as_ref().is_some_and(|(sent, _)| sent.elapsed() < self.pause()) {
            return;
        }
        if let Some((_, numbers)) = self.current.take() {
            // Once more, behind what was not asked at all.
            self.unasked.extend(numbers.into_iter().filter(|number| self.open.contains_key(number)));
        }
        let Some(epoch) = self.epoch() else { return };
        let mut numbers = Vec::new();
        while numbers.len() < JOBS_MAX
            && let Some(number) = self.unasked.pop_front()
        {
            match self.open.get(&number) {
                Some(question) if question.answer.is_closed() => drop(self.open.remove(&number)),
                Some(_) => numbers.push(number),
                None => {}
            }
        }
        let mut silence = self.silence.now(self.publisher.link());
        if numbers.is_empty() && !silence.lasts(epoch, self.patience.min(CASUAL)) {
            if self.open.is_empty() {
                // Nobody waits for an answer: there is no silence.
                silence.forget();
            }
            return;
        }
        silence.begin(epoch);
        drop(silence);
        let jobs = numbers.iter().filter_map(|number| self.open.get(number)).map(|question| question.asked);
        let request = LookupRequest { jobs: jobs.collect() };
        self.under_way.push(self.send(&request, numbers.clone()));
        self.current = Some((Instant::now(), numbers));
    }

    fn send(&self, request: &LookupRequest, numbers: Vec<u64>) -> UnderWay {
        // Names and numbers: nothing here can fail.
        let body = Bytes::from(serde_json::to_vec(request).unwrap_or_default());
        let (client, publisher, names) = (self.client.clone(), self.publisher.clone(), self.names.clone());
        async move {
            let answer = exchange(&client, &publisher, &names, body).await;
            (numbers, answer)
        }
        .boxed()
    }

    /// Passes an answer on.
    fn hear(&mut self, numbers: &[u64], answer: Option<LookupAnswer>) {
        let Some(LookupAnswer { offset, jobs }) = answer else { return };
        if self.silence.now(self.publisher.link()).end(self.patience) {
            info!("HTTP processes answer again");
        }
        if self.current.as_ref().is_some_and(|(_, current)| current == numbers) {
            self.current = None;
        }
        let of_whom: BTreeMap<(JobId, u32), Known> =
            jobs.into_iter().map(|known| ((known.id, known.run), known)).collect();
        for number in numbers {
            let Some(question) = self.open.get(number) else { continue };
            match of_whom.get(&(question.asked.id, question.asked.run)) {
                Some(known) => {
                    if let Some(Question { asked, answer, wake, .. }) = self.open.remove(number) {
                        // Tells who studies a repeat later whether it could have been known.
                        debug!(job.id = %asked.id, run = asked.run, step = asked.step, log.offset = offset, "looked up");
                        // Whoever asked may be gone.
                        let _ = answer.send(known.clone());
                        wake.notify_one();
                    }
                }
                // Whoever answered does not know. Another process may, and is as likely to be asked the next time.
                None => self.later.push_back((Instant::now() + AGAIN, *number)),
            }
        }
    }

    fn pause(&self) -> Duration {
        if self.open.is_empty() { PROBE } else { AGAIN }
    }

    fn wake_at(&self) -> Option<Instant> {
        let next = self.current.as_ref().map(|(sent, _)| *sent + self.pause());
        // Without a connection, or during an alarm, it is looked again soon.
        let waiting = (!self.open.is_empty()).then(|| Instant::now() + LOOK);
        let later = self.later.front().map(|(at, _)| *at);
        [next, waiting, later].into_iter().flatten().min()
    }

    fn epoch(&self) -> Option<u64> {
        self.publisher.link().up().ok().map(|up| up.epoch)
    }
}

/// Asks once, and waits for the answer.
async fn exchange(
    client: &Client,
    publisher: &Publisher,
    names: &Names,
    body: Bytes,
) -> Option<LookupAnswer> {
    let deadline = Instant::now() + LATE;
    let correlation_id = JobId::new().to_string();
    let answer = client.expect_answer(&correlation_id, deadline).await?;
    let question = Message {
        message_id: Some(correlation_id.clone()),
        kind: Some(QUESTION.to_owned()),
        content_type: Some("application/json".to_owned()),
        correlation_id: Some(correlation_id),
        reply_to: Some(answer.reply_to().to_owned()),
        body,
        ..Message::default()
    };
    let target = Target { exchange: names.replies(), key: names.lookup(), mandatory: true };
    match publisher.publish(target, question, deadline).await {
        Ok(()) => {}
        Err(error) => {
            debug!(%error, "a question was not asked");
            if error == PublishError::Unroutable {
                // Someone deleted the queue of questions.
                let _ = publisher.link().repair().await;
            }
            return None;
        }
    }
    let message = answer.message(deadline).await?;
    json::read(&message.body).inspect_err(|error| warn!(error, "an answer cannot be read")).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn verdicts() {
        let asked = Asked { id: JobId::new(), run: 2, step: 3 };
        let dead = json!({"status": "dead", "attempt": 1, "reason": "fatal"});
        let lost = json!({"status": "dead", "attempt": 1, "reason": "lost"});
        let won = json!({"status": "succeeded", "attempt": 4});
        let by = json!({"by": "ops"});
        let nothing = json!(null);
        // step, latest run, end, cancel → verdict
        let cases = [
            (0, 0, &nothing, &nothing, "run"),
            (2, 2, &nothing, &nothing, "run"),
            (3, 2, &nothing, &nothing, "run"),
            (3, 1, &nothing, &nothing, "run"),
            (4, 2, &nothing, &nothing, "stale"),
            (0, 3, &nothing, &nothing, "stale"),
            (3, 2, &won, &nothing, "ended"),
            (3, 2, &dead, &nothing, "ended"),
            (9, 2, &dead, &nothing, "ended"),
            (3, 3, &dead, &nothing, "stale"),
            (3, 2, &lost, &nothing, "run"),
            (4, 2, &lost, &nothing, "stale"),
            (3, 2, &lost, &by, "cancel"),
            (3, 2, &nothing, &by, "cancel"),
            (4, 2, &nothing, &by, "stale"),
            (3, 2, &won, &by, "ended"),
        ];
        for (step, latest_run, end, cancel, expected) in cases {
            let known = json!({"id": asked.id, "run": 2, "step": step, "latest_run": latest_run,
                "final": end, "cancel": cancel});
            let verdict = match judge(&asked, serde_json::from_value(known.clone()).unwrap()) {
                Verdict::Run => "run",
                Verdict::Ended(_) => "ended",
                Verdict::Stale => "stale",
                Verdict::Cancel(cancel) => {
                    assert_eq!(cancel.by.as_deref(), Some("ops"));
                    "cancel"
                }
            };
            assert_eq!(verdict, expected, "{known}");
        }
    }
}
