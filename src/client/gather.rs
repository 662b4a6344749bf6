//! Submits of many callers at the same time, each a job of its own: one task hands them over, hears of their confirms and
//! has their events written, those that come together in one request. A task, a future with timers, and a request to the
//! event writer for each of them would cost more than the rest of a submit.
//!
//! It lives on the runtime of the connections, so that a submit changes threads twice and not four times. No job waits
//! for another one: each is answered when it and its event are confirmed (a call: when it is), or its own time is up.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::Instrument;

use super::{Client, Submission, SubmitError, live::Live, untold::Untold};
use crate::{
    amqp::{
        PublishError,
        publisher::{Done, Publisher, Target},
        together::{Mark, Told},
    },
    event::Event,
    job::{JobId, wire::Message},
    record::writer::{EventWriter, Item},
};

/// Submits that wait to be handed over; more are refused.
const WAITING: usize = 10_000;
/// Most of them that are taken at a time.
const AT_ONCE: usize = 500;

/// Told what became of a submit.
type Finish<E> = Box<dyn FnOnce(Result<Event, E>) + Send>;

impl Client {
    /// Whether a submit may go with others: it needs no wait beforehand.
    pub(crate) fn gathers(&self, job: &Submission) -> bool {
        let is_plain = self.inner.recording.is_none() && job.delay.is_zero();
        is_plain && self.live().is_ok_and(|live| !live.gatherer().has_ended())
    }

    /// Submits a job that [`Client::gathers`], as [`Client::submit_watched`] does without waiting for room. It goes on
    /// whatever becomes of the caller; `finish` is told in the end.
    pub(crate) fn submit_gathered(
        &self,
        job: Submission,
        give_up: Instant,
        finish: impl FnOnce(Result<Event, SubmitError>) + Send + 'static,
    ) {
        let finish: Finish<SubmitError> = Box::new(finish);
        match self.ready(job) {
            Ok((live, job)) => {
                let asked = self.asked(live, job, give_up, finish);
                live.gatherer().take(asked);
            }
            Err(error) => finish(Err(error)),
        }
    }

    fn ready(&self, mut job: Submission) -> Result<(&Live, Submission), SubmitError> {
        self.check(&mut job)?;
        let live = self.live().map_err(SubmitError::Unavailable)?;
        live.publisher.link().up().map_err(|down| SubmitError::Unavailable(down.0))?;
        Ok((live, job))
    }

    fn asked(&self, live: &Live, job: Submission, give_up: Instant, finish: Finish<SubmitError>) -> Asked {
        let event = self.event_of(live, &job);
        let (span, message) = live.message(&job.envelope);
        let (id, target, item) = (job.envelope.id, live.target(&job.envelope, 0), Item::new(&event));
        let is_call = job.envelope.reply_to.is_some();
        let (client, here) = (self.clone(), tracing::Span::current());
        let finish = move |result: Result<Event, PublishError>| {
            if let Err(error) = &result {
                span.fail(SubmitError::from(error.clone()).word());
            }
            match result {
                // By itself: its queue, or a binding, may have to be made anew first.
                Err(PublishError::Unroutable) => {
                    let again = async move {
                        finish(client.submit_watched(job, false, give_up, || {}).await);
                    };
                    drop(tokio::spawn(again.instrument(here)));
                }
                result => finish(result.map_err(SubmitError::from)),
            }
        };
        Asked { target, message, job: Job { id, give_up, event, item, is_call, finish: Box::new(finish) } }
    }
}

/// A submit that was asked for.
struct Asked {
    target: Target,
    message: Message,
    job: Job,
}

/// What is kept of a submit that is under way.
struct Job {
    id: JobId,
    /// Until when its caller waits.
    give_up: Instant,
    event: Event,
    item: Item,
    /// Its caller waits for the reply, and not for the record.
    is_call: bool,
    finish: Finish<PublishError>,
}

impl Job {
    fn refuse(self, error: PublishError) {
        (self.finish)(Err(error));
    }
}

/// Hands submits over.
pub(super) struct Gatherer(mpsc::Sender<Asked>);

impl Gatherer {
    pub(super) fn start(runtime: &Handle, publisher: Publisher, events: EventWriter, untold: Untold) -> Self {
        let (sender, asked) = mpsc::channel(WAITING);
        let (told, hears) = mpsc::unbounded_channel();
        let task = Task {
            publisher,
            events,
            untold,
            told,
            hears,
            under_way: HashMap::new(),
            next: 0,
            ends: VecDeque::new(),
            writing: FuturesUnordered::new(),
        };
        runtime.spawn(task.run(asked));
        Self(sender)
    }

    /// Whether the task is gone, which only a panic ends before its client.
    fn has_ended(&self) -> bool {
        self.0.is_closed()
    }

    fn take(&self, asked: Asked) {
        match self.0.try_send(asked) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(asked)) => asked.job.refuse(PublishError::Full),
            Err(mpsc::error::TrySendError::Closed(asked)) => {
                asked.job.refuse(PublishError::Unavailable("closed".to_owned()));
            }
        }
    }
}

/// Jobs whose events have been written, or will be later: all are accepted.
type Accepted = Vec<(Event, Finish<PublishError>)>;

fn accept(accepted: Accepted) {
    for (event, finish) in accepted {
        finish(Ok(event));
    }
}

/// Longest time that events wait for room of which the first caller's time is up: they are of others, too.
const ROOM: Duration = Duration::from_secs(1);

/// Jobs that the broker has, and their events.
#[derive(Default)]
struct Confirmed {
    ids: Vec<JobId>,
    items: Vec<Item>,
    accepted: Accepted,
    /// Until when the first of their callers waits; none: there are none.
    until: Option<Instant>,
}

impl Confirmed {
    fn add(&mut self, job: Job) {
        let Job { id, give_up, event, item, finish, .. } = job;
        self.until = Some(self.until.map_or(give_up, |first| first.min(give_up)));
        self.ids.push(id);
        self.items.push(item);
        self.accepted.push((event, finish));
    }
}

struct Task {
    publisher: Publisher,
    events: EventWriter,
    untold: Untold,
    told: mpsc::UnboundedSender<Told>,
    /// Unbounded, but has at most one word for each job that is under way, of which whoever submits keeps the number small.
    hears: mpsc::UnboundedReceiver<Told>,
    /// Jobs that await their confirm, by their numbers.
    under_way: HashMap<u64, Job>,
    next: u64,
    /// Until when each of them waits, in the order in which they came.
    ends: VecDeque<(Instant, u64)>,
    writing: FuturesUnordered<BoxFuture<'static, Accepted>>,
}

impl Task {
    /// Works until nobody can ask any more, and all are answered.
    async fn run(mut self, mut asked: mpsc::Receiver<Asked>) {
        let (mut open, mut new, mut told) = (true, Vec::new(), Vec::new());
        while open || !self.under_way.is_empty() || !self.writing.is_empty() {
            let end = self.next_end();
            tokio::select! {
                count = asked.recv_many(&mut new, AT_ONCE), if open => {
                    open = count > 0;
                    new.drain(..).for_each(|asked| self.begin(asked));
                }
                // This task has a sender.
                _ = self.hears.recv_many(&mut told, AT_ONCE) => self.hear(told.drain(..)),
                Some(accepted) = self.writing.next() => accept(accepted),
                () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => self.end_overdue(),
            }
        }
    }

    fn begin(&mut self, asked: Asked) {
        let Asked { target, message, job } = asked;
        let number = self.next;
        self.next += 1;
        let done = Done::Mark(Mark::new(number, self.told.clone()));
        match self.publisher.hand_over(target, message, job.give_up, done) {
            Ok(()) => {
                self.ends.push_back((job.give_up, number));
                self.under_way.insert(number, job);
            }
            Err(error) => job.refuse(error),
        }
    }

    /// Of those that are confirmed the events are written, in common. A caller that waits for a reply waits for no event.
    fn hear(&mut self, told: impl Iterator<Item = Told>) {
        let (mut jobs, mut calls) = (Confirmed::default(), Confirmed::default());
        for (number, result) in told {
            // One whose time was up has had its answer.
            let Some(job) = self.under_way.remove(&number) else { continue };
            match result {
                Ok(()) if job.is_call => calls.add(job),
                Ok(()) => jobs.add(job),
                Err(error) => job.refuse(error),
            }
        }
        self.tell_soon(calls);
        self.tell(jobs);
    }

    fn tell(&mut self, jobs: Confirmed) {
        let Confirmed { ids, items, accepted, until: Some(deadline) } = jobs else { return };
        let (telling, events) = (self.untold.begin(ids, &self.events), self.events.clone());
        let deadline = deadline.max(Instant::now() + ROOM);
        self.writing.push(Box::pin(async move {
            // They are accepted whatever becomes of that.
            if events.write_items(items, deadline).await.is_ok() {
                telling.done();
            }
            accepted
        }));
    }

    fn tell_soon(&mut self, calls: Confirmed) {
        let Confirmed { ids, items, accepted, until: Some(until) } = calls else { return };
        match self.events.write_soon(items) {
            Ok(written) => {
                let telling = self.untold.begin(ids, &self.events);
                self.writing.push(Box::pin(async move {
                    if written.await.is_ok() {
                        telling.done();
                    }
                    Accepted::new()
                }));
                accept(accepted);
            }
            // Too many wait: as for any other job.
            Err(items) => self.tell(Confirmed { ids, items, accepted, until: Some(until) }),
        }
    }

    /// When the time of the oldest is up.
    fn next_end(&mut self) -> Option<Instant> {
        while self.ends.front().is_some_and(|(_, number)| !self.under_way.contains_key(number)) {
            self.ends.pop_front();
        }
        self.ends.front().map(|(end, _)| *end)
    }

    fn end_overdue(&mut self) {
        let now = Instant::now();
        while self.next_end().is_some_and(|end| end <= now) {
            if let Some(job) = self.ends.pop_front().and_then(|(_, number)| self.under_way.remove(&number)) {
                job.refuse(PublishError::Timeout);
            }
        }
    }
}
