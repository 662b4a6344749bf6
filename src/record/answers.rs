//! The answers to workers' questions (`lookup`): has this run ended, and how?
//!
//! A question is answered from all that was confirmed before it was asked: behind a barrier, which questions that come
//! together share. A process that has not caught up with the log, or rebuilds its record, takes no questions: others
//! may know, and an answer that misses something would let a job run again.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    lookup::{ANSWER, Asked, Cancel, End, JOBS_MAX, Known, LookupAnswer, LookupRequest, QUESTION},
    model::JobStatus,
    reader::Shared,
    store::{Ended, Found, Store, StoreError},
};
use crate::{
    amqp::{
        Names,
        connection::Link,
        consumer::{Consuming, DeclaredQueue, Delivery, Receipt, consume},
        publisher::{Publisher, Target},
    },
    job::{JobId, json, reply::Status, wire::Message},
};

/// Questions taken ahead.
const PREFETCH: u16 = 64;
/// Longest time to catch up for questions, and again to send their answers. Workers ask again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause after questions were handed back.
const AGAIN: Duration = Duration::from_millis(250);
/// Most bytes of outputs in one answer: RabbitMQ 4 takes no message over 16 MiB.
const OUTPUTS_MAX: usize = 8 << 20;
/// Answers made at the same time: each may be that large.
const TOGETHER: usize = 4;

/// Answers questions.
pub(super) struct Desk {
    pub(super) shared: Arc<Shared>,
    /// Where questions are taken from.
    pub(super) link: Link,
    pub(super) publisher: Publisher,
    pub(super) names: Names,
}

/// A question that can be answered.
struct Question {
    asked: Vec<Asked>,
    reply_to: String,
    correlation_id: Option<String>,
    receipt: Receipt,
}

impl Desk {
    /// Takes questions while the record is caught up, until told to stop.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut caught_up = self.shared.barriers.caught_up();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                known = caught_up.wait_for(|caught_up| *caught_up) => if known.is_err() { return },
            }
            let open = stop.child_token();
            let mut deliveries = self.open(open.clone());
            tokio::select! {
                // In this order: an answer that was made while the record was begun anew does not go out.
                biased;
                () = stop.cancelled() => return,
                _ = caught_up.wait_for(|caught_up| !caught_up) => {}
                () = self.serve(&mut deliveries) => {}
            }
            // What is left is handed back, to a process that knows more.
            open.cancel();
        }
    }

    fn open(&self, open: CancellationToken) -> mpsc::Receiver<Delivery> {
        let (sender, deliveries) = mpsc::channel(PREFETCH.into());
        let consuming = Consuming {
            link: self.link.clone(),
            prefetch: PREFETCH,
            long: None,
            deliveries: sender,
            stop: open,
            consuming: Arc::new(AtomicBool::new(false)),
            acknowledging: TaskTracker::new(),
        };
        self.link.runtime().spawn(consume(consuming, DeclaredQueue(self.names.lookup())));
        deliveries
    }

    async fn serve(&self, deliveries: &mut mpsc::Receiver<Delivery>) {
        while let Some(first) = deliveries.recv().await {
            let more = std::iter::from_fn(|| deliveries.try_recv().ok()).take(PREFETCH.into());
            let questions: Vec<Question> = std::iter::once(first).chain(more).filter_map(question).collect();
            if questions.is_empty() {
                continue;
            }
            if !self.shared.barriers.catch_up(Instant::now() + PATIENCE).await {
                debug!(questions = questions.len(), "cannot catch up, questions are handed back");
                drop(questions);
                sleep(AGAIN).await;
                continue;
            }
            let answers = questions.into_iter().map(|question| self.answer(question));
            stream::iter(answers).buffer_unordered(TOGETHER).collect::<()>().await;
        }
    }

    async fn answer(&self, question: Question) {
        let Question { asked, reply_to, correlation_id, receipt } = question;
        let looked_up = self.shared.ask(move |store| {
            // Read first: what is looked up then knows this much at least.
            let offset = store.resume()?.map(|last| last.offset);
            Ok(LookupAnswer { offset, jobs: look_up(store, &asked)? })
        });
        let Ok(answer) = looked_up.await else {
            // The projector finds out what is wrong with the file. Dropped, the question is handed back.
            return;
        };
        if !*self.shared.barriers.caught_up().borrow() {
            // Begun anew meanwhile: it may have known nothing.
            return;
        }
        let message = Message {
            message_id: Some(JobId::new().to_string()),
            kind: Some(ANSWER.to_owned()),
            content_type: Some("application/json".to_owned()),
            correlation_id,
            // Names, numbers and JSON that was checked: nothing here can fail.
            body: Bytes::from(serde_json::to_vec(&answer).unwrap_or_default()),
            ..Message::default()
        };
        // A worker that is gone needs no answer.
        let target = Target { exchange: self.names.replies(), key: reply_to, mandatory: false };
        let sent = self.publisher.publish_patiently(target, message, Instant::now() + PATIENCE).await;
        match sent {
            Ok(()) => receipt.ack(),
            Err(error) => debug!(%error, "an answer was not sent"),
        }
    }
}

/// What is asked, if it is a question; what is none is acknowledged.
fn question(delivery: Delivery) -> Option<Question> {
    let Delivery { incoming, receipt } = delivery;
    let Message { kind, reply_to, correlation_id, body, .. } = incoming.message;
    let read = json::read::<LookupRequest>(&body);
    let asked = match (kind.as_deref(), read) {
        (Some(QUESTION), Ok(request)) if request.jobs.len() <= JOBS_MAX => Ok(request.jobs),
        (Some(QUESTION), Ok(request)) => {
            Err(format!("{} jobs in one question, at most {JOBS_MAX}", request.jobs.len()))
        }
        (Some(QUESTION), Err(why)) => Err(why),
        (other, _) => Err(format!("a message of type {other:?}")),
    };
    match (asked, reply_to) {
        (Ok(asked), Some(reply_to)) => Some(Question { asked, reply_to, correlation_id, receipt }),
        (asked, _) => {
            let why = asked.err().unwrap_or_else(|| "it names no reply_to".to_owned());
            warn!(why, "not a question that can be answered");
            receipt.ack();
            None
        }
    }
}

/// What is known of these runs, in the order asked. Those that may have ended without this record's knowledge are left
/// out: another process may know more.
fn look_up(store: &Store, asked: &[Asked]) -> Result<Vec<Known>, StoreError> {
    let runs: Vec<(JobId, u32)> = asked.iter().map(|asked| (asked.id, asked.run)).collect();
    let found = store.lookup(&runs)?;
    let mut room = OUTPUTS_MAX;
    // That a later step exists is certain, too.
    let sure = asked.iter().zip(found).filter(|(asked, found)| found.sure || found.step > asked.step);
    Ok(sure.map(|(asked, found)| known(asked, found, &mut room)).collect())
}

fn known(asked: &Asked, found: Found, room: &mut usize) -> Known {
    Known {
        id: asked.id,
        run: asked.run,
        end: found.end.and_then(|ended| end(ended, room)),
        step: found.step,
        latest_run: found.latest_run,
        cancel: found.cancel.map(|cancel| Cancel {
            by: cancel.by,
            reason: cancel.reason,
            at: Some(cancel.at),
        }),
    }
}

fn end(ended: Ended, room: &mut usize) -> Option<End> {
    let Ended { status, attempt, worker, reason, error, output, .. } = ended;
    let status = match status {
        JobStatus::Succeeded => Status::Succeeded,
        JobStatus::Dead => Status::Dead,
        JobStatus::Cancelled => Status::Cancelled,
        JobStatus::Expired => Status::Expired,
        _ => return None,
    };
    let size = output.as_ref().map_or(0, |output| output.get().len());
    let fits = size <= *room;
    if fits {
        *room -= size;
    }
    Some(End {
        status,
        attempt,
        worker,
        reason,
        error,
        output: output.filter(|_| fits),
        output_omitted: ended.output_omitted || !fits,
        started_at: ended.started_at,
        finished_at: ended.finished_at,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn an_answer_stays_within_a_message() {
        let mut room = OUTPUTS_MAX;
        let asked = Asked { id: JobId::new(), run: 1, step: 0 };
        let long = format!("\"{}\"", "x".repeat(OUTPUTS_MAX / 2 - 2));
        let answer = |room: &mut usize| {
            let end = Ended {
                status: JobStatus::Succeeded,
                attempt: 1,
                worker: None,
                reason: None,
                error: None,
                output: Some(RawValue::from_string(long.clone()).unwrap()),
                output_omitted: false,
                started_at: None,
                finished_at: None,
            };
            known(&asked, Found { end: Some(end), ..Found::default() }, room).end.unwrap()
        };
        let omitted: Vec<bool> = (0..3).map(|_| answer(&mut room).output_omitted).collect();
        assert_eq!(omitted, [false, false, true]);
    }
}
