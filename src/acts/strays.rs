//! The reconciler of strays: what the broker moved by itself gets an end, and a place where it can be replayed from.
//!
//! In the order of all deaths: event, copy in the dead-letter queue, callback, reply, ack. A job that fell off the delay ladder is
//! first offered to its queue a few times: the queue may be back. One process at a time gets the strays (the queue has
//! a single active consumer), and only while its record is caught up: a stray may be a copy of a job that has ended.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{
    Acts, Failure,
    attempt::summaries,
    event_error,
    letter::Facts,
    stray::{Known, Stray, known},
};
use crate::{
    amqp::consumer::{Consuming, DeclaredQueue, Delivery, consume},
    event::{Event, EventType},
    job::{
        Envelope, QueueName, Reply, Status,
        dead::{self, Death, Reason},
        envelope::{HEADERS_MAX, carried_all, header, id_of},
        reply::Failure as ReplyFailure,
        wire::{HeaderValue, Incoming, Message, headers_size},
    },
};

/// Strays at the same time.
const PREFETCH: u16 = 50;
/// Pauses between the offers of a job to its queue.
const OFFERS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];
/// How long it is believed that a queue is gone: its other jobs are offered once.
const GONE: Duration = Duration::from_secs(60);
/// Most queues remembered as gone.
const GONE_MAX: usize = 1000;
/// Pause before a stray is tried again that could not be dealt with.
const AGAIN: Duration = Duration::from_secs(1);
/// How long those under way are waited for at the end.
const LAST: Duration = Duration::from_secs(2);

/// Empties the queue of strays while the record is caught up, until told to stop.
pub(super) async fn reconcile(acts: Acts) {
    let gone = Arc::new(Gone::default());
    while acts.stop.run_until_cancelled(caught_up(&acts)).await.is_some() {
        let open = acts.stop.child_token();
        let watching = async {
            tokio::select! {
                () = open.cancelled() => {}
                // What is left is handed back, to a process that knows more.
                () = fallen_behind(&acts) => open.cancel(),
            }
        };
        tokio::join!(empty(&acts, &open, &gone), watching);
    }
}

async fn fallen_behind(acts: &Acts) {
    while acts.record.is_caught_up() {
        sleep(AGAIN).await;
    }
}

async fn empty(acts: &Acts, open: &CancellationToken, gone: &Arc<Gone>) {
    let (deliveries, mut incoming) = mpsc::channel::<Delivery>(PREFETCH.into());
    let consuming = Consuming {
        link: acts.link.clone(),
        prefetch: PREFETCH,
        long: None,
        deliveries,
        stop: open.clone(),
        consuming: Arc::new(AtomicBool::new(false)),
        acknowledging: TaskTracker::new(),
    };
    let consumer = acts.link.runtime().spawn(consume(consuming, DeclaredQueue(acts.names.strays())));
    // As many as the broker hands out before they are settled.
    let tasks = TaskTracker::new();
    while let Some(delivery) = incoming.recv().await {
        tasks.spawn(settle(acts.clone(), open.clone(), delivery, Arc::clone(gone)));
    }
    tasks.close();
    drop(timeout(LAST, tasks.wait()).await);
    drop(timeout(LAST, consumer).await);
}

async fn caught_up(acts: &Acts) {
    while acts.catch_up().await.is_err() {
        sleep(AGAIN).await;
    }
}

/// Deals with a stray until that has worked, or the broker has taken it back.
async fn settle(acts: Acts, open: CancellationToken, delivery: Delivery, gone: Arc<Gone>) {
    let Delivery { mut incoming, receipt } = delivery;
    let stray = Stray::of(&incoming, &acts.names);
    // One that has no id gets one here, which it keeps however often it is tried.
    incoming.message.message_id = Some(id_of(&incoming.message, &stray.queue).to_string());
    let end = End::of(&acts, &incoming, &stray);
    let (mut told, mut written) = (false, false);
    loop {
        let dealing = deal(&acts, &incoming, &stray, &end, &gone, &mut written);
        match open.run_until_cancelled(dealing).await {
            Some(Ok(())) => return receipt.ack(),
            Some(Err(why)) if receipt.is_live() => {
                if !told {
                    info!(queue = %stray.queue, reason = why, "a stray waits");
                    told = true;
                }
            }
            // Not acknowledged: it is handed over again, to this process or another one.
            Some(Err(_)) | None => return,
        }
        if open.run_until_cancelled(sleep(AGAIN)).await.is_none() {
            return;
        }
    }
}

/// `written`: the log has its end.
async fn deal(
    acts: &Acts,
    incoming: &Incoming,
    stray: &Stray,
    end: &End,
    gone: &Gone,
    written: &mut bool,
) -> Result<(), String> {
    // A job whose end is written is not begun again by the way.
    if !*written && stray.may_be_offered() && offer(acts, &incoming.message, &stray.queue, gone).await? {
        info!(queue = %stray.queue, "a job whose queue was gone is in its queue");
        return Ok(());
    }
    acts.catch_up().await.map_err(|error| error.to_string())?;
    let job = summaries(&acts.record, vec![end.event.job]).await.map_err(|error| error.to_string())?;
    let job = job.into_iter().next().flatten();
    let failed = |failure| match failure {
        Failure::Refused(why) | Failure::Broker(why) => why,
    };
    let (run, headers) = (end.event.data.run, &incoming.message.headers);
    if known(run, end.event.data.step, job.as_ref()) == Known::Over {
        info!(job.id = %end.event.job, queue = %stray.queue, "a stray of a run that is over");
        let again = acts.callback_again(run, job.as_ref(), headers);
        return acts.call_back(again.as_ref()).await.map_err(failed);
    }
    let callback = acts.callbacks.of(&end.event, headers);
    // However often the copy is tried.
    if !*written {
        warn!(job.id = %end.event.job, queue = %stray.queue, reason = stray.reason.as_str(), "dead: moved by the broker");
        acts.write(acts.with_callback(end.event.clone(), callback.as_ref())).await.map_err(failed)?;
        *written = true;
    }
    acts.publish_dead(&stray.queue, &end.copy).await.map_err(failed)?;
    // Tried again as a whole: it may have been published before.
    let callback = callback.map(|callback| Envelope { unsure: true, ..callback });
    acts.call_back(callback.as_ref()).await.map_err(failed)?;
    acts.record.touch(end.event.job);
    end.reply(acts, &incoming.message);
    Ok(())
}

/// Offers a job to its queue: whether the queue took it.
async fn offer(acts: &Acts, message: &Message, queue: &QueueName, gone: &Gone) -> Result<bool, String> {
    let mut copy = Message { headers: carried_all(&message.headers), ..message.clone() };
    // The stray lives until this is confirmed, and may be offered a second time.
    copy.headers.insert(header::UNSURE.to_owned(), true.into());
    let pauses: &[Duration] = if gone.knows(queue) { &[] } else { &OFFERS };
    for pause in std::iter::once(None).chain(pauses.iter().map(Some)) {
        if let Some(pause) = pause {
            sleep(*pause).await;
        }
        match acts.publish_job(queue, &copy).await {
            Ok(()) => return Ok(true),
            Err(Failure::Refused(_)) => {}
            Err(Failure::Broker(why)) => return Err(why),
        }
    }
    gone.note(queue);
    Ok(false)
}

/// Queues that were found missing.
#[derive(Default)]
struct Gone(Mutex<HashMap<QueueName, Instant>>);

impl Gone {
    fn knows(&self, queue: &QueueName) -> bool {
        let gone = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gone.get(queue).is_some_and(|at| at.elapsed() < GONE)
    }

    fn note(&self, queue: &QueueName) {
        let mut gone = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gone.retain(|_, at| at.elapsed() < GONE);
        if gone.len() < GONE_MAX {
            gone.insert(queue.clone(), Instant::now());
        }
    }
}

/// How a stray ends.
struct End {
    event: Event,
    copy: Message,
    failure: ReplyFailure,
}

impl End {
    fn of(acts: &Acts, incoming: &Incoming, stray: &Stray) -> Self {
        let now = Timestamp::now();
        let queue = &stray.queue;
        let (mut event, copy) = match Envelope::decode(incoming, queue, acts.config.limits.args) {
            Ok(decoded) => {
                let envelope = decoded.envelope;
                let mut event = Event::of(EventType::Dead, &envelope, &acts.instance, now);
                if !envelope.app_id.as_deref().is_some_and(|app| app.starts_with("hopline-")) {
                    // Nobody has told the log what it was.
                    acts.inline_args(&mut event, &envelope.args);
                }
                (event, envelope.encode())
            }
            Err(_) => {
                let facts = Facts::of(&incoming.message, queue);
                (facts.event(EventType::Dead, &acts.instance, now), raw_copy(&incoming.message, &facts))
            }
        };
        let code = stray.reason.as_str();
        event.data.error = Some(event_error(code, &stray.detail));
        event.data.reason = Some(code.to_owned());
        event.data.finished_at = Some(now);
        let death = Death {
            reason: stray.reason,
            code,
            error: &stray.detail,
            attempts: attempts(stray.reason, event.data.attempt),
            worker: &acts.instance,
            at: now,
        };
        let copy = dead::mark(copy, &death);
        let failure = ReplyFailure { code: code.to_owned(), message: stray.detail.clone() };
        Self { event, copy, failure }
    }

    fn reply(&self, acts: &Acts, message: &Message) {
        let Some(reply_to) = message.reply_to.as_deref().filter(|to| !to.is_empty()) else { return };
        let data = &self.event.data;
        let reply = Reply {
            job_id: self.event.job,
            run: data.run,
            attempt: data.attempt,
            status: Status::Dead,
            reason: data.reason.clone(),
            worker: None,
            started_at: None,
            finished_at: data.finished_at,
            output_omitted: false,
            // Two texts cannot fail to be JSON.
            body: serde_json::to_vec(&self.failure).unwrap_or_default().into(),
        };
        acts.replier.send(reply_to, message.correlation_id.clone(), &reply);
    }
}

/// Attempts made, where the message asks for attempt `asked`.
fn attempts(reason: Reason, asked: u32) -> u32 {
    match reason {
        // It was handed out again and again.
        Reason::DeliveryLimit => asked,
        _ => asked.saturating_sub(1),
    }
}

/// A message that is no job we can read, for the dead-letter queue: its bytes as they are.
fn raw_copy(message: &Message, facts: &Facts) -> Message {
    let mut copy = Message { message_id: Some(facts.id.to_string()), ..message.clone() };
    copy.headers = carried_all(&message.headers);
    if headers_size(&copy.headers) > HEADERS_MAX {
        copy.headers = [(dead::mark::HEADERS_DROPPED.to_owned(), HeaderValue::Bool(true))].into();
    }
    copy
}
