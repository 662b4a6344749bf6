//! Forwarding what waits in the spool: in each queue in the order in which it came.
//!
//! A queue that refuses holds up none but its own jobs. It is asked again with one job after a pause that grows, and
//! gets more at a time once it takes some ([`Pauses`]).
//!
//! The broker may take a message so ill that it closes the channel (one over `max_message_size`, a key that the login may
//! not use), which leaves the fate of all that are on their way there unknown. Then each goes alone until the one is
//! found; from then on those of its queue go alone, after the others. One that the broker never takes is set aside.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use tokio::{
    task::coop::unconstrained,
    time::{Instant, sleep},
};
use tracing::{debug, error, info, warn};

use super::{Entry, Spool, index::Lane, keeper::Pick};
use crate::{
    client::{Client, SubmitError},
    job::{JobId, QueueName},
    retry::RetryPolicy,
};

/// Jobs that are on their way to the broker at the same time.
const WINDOW: usize = 500;
/// Longest wait for the fate of a publish, see `http::keyed`: it is not repeated before.
const FATE: Duration = Duration::from_secs(600);
/// Pause after a pass that left something: the broker is away or blocked, a queue refuses, or the disk does.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the broker is waited for at a time.
const LOOK: Duration = Duration::from_secs(10);
/// Pause after a panic.
const AFTER_PANIC: Duration = Duration::from_secs(5);
/// Most reasons that are remembered as said.
const SAID_MAX: usize = 16;
/// How long a queue that refuses is left alone.
const REFUSED: RetryPolicy = RetryPolicy {
    max_attempts: 1,
    initial: Duration::from_millis(500),
    factor: 2.0,
    max: Duration::from_secs(30),
    jitter: 0.2,
};

/// How a pass over the spool ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drained {
    /// Jobs that the broker has now.
    pub forwarded: u64,
    /// Why others are left; none: the spool was empty, but for what cannot be read ([`super::Fill::unreadable`]).
    pub left: Option<String>,
}

/// Forwards all that waits, again and again, for as long as it is polled. `forwarded` is told of each job that the
/// broker has, before it leaves the spool.
pub(crate) async fn keep_empty(spool: &Spool, client: &Client, forwarded: impl Fn(JobId)) {
    restarted(|| keep_empty_once(spool, client, &forwarded)).await;
}

/// Runs what does not end, and runs it again if it panics: without it accepted jobs would wait for ever.
async fn restarted<F: Future<Output = ()>>(mut run: impl FnMut() -> F) {
    // What a panic leaves half done is in the file.
    while AssertUnwindSafe(run()).catch_unwind().await.is_err() {
        error!("forwarding from the spool panicked, and is begun again");
        sleep(AFTER_PANIC).await;
    }
}

async fn keep_empty_once(spool: &Spool, client: &Client, forwarded: impl Fn(JobId)) {
    loop {
        spool.filled().await;
        let fill = spool.fill();
        info!(spool.jobs = fill.jobs, spool.bytes = fill.bytes, "the spool holds jobs, to be forwarded");
        let (mut count, mut drainer, mut said) = (0, Drainer::default(), HashSet::new());
        while spool.is_holding() {
            let pass = drainer.pass(spool, client, Instant::now() + LOOK, &forwarded).await;
            count += pass.forwarded;
            if pass.left.is_none() && pass.forwarded > 0 {
                continue;
            }
            let why = pass.left.unwrap_or_else(|| "nothing could be read".to_owned());
            if said.len() < SAID_MAX && said.insert(why.clone()) {
                warn!(reason = why, spool.jobs = spool.fill().jobs, "jobs are left in the spool for now");
            } else {
                debug!(reason = why, "the spool is not empty yet");
            }
            sleep(AGAIN).await;
        }
        info!(spool.forwarded = count, spool.unreadable = spool.fill().unreadable, "the spool is empty");
    }
}

/// Forwards what waits, pass by pass.
#[derive(Debug, Default)]
pub struct Drainer {
    pauses: Pauses,
    /// The broker closed the channel over one of many: each goes alone until it is known which.
    careful: bool,
}

impl Drainer {
    /// Forwards what waits, once: jobs that the broker refuses stay, and so does everything once the broker is away. A
    /// broker that is away is waited for until `patience`.
    pub async fn pass(
        &mut self,
        spool: &Spool,
        client: &Client,
        patience: Instant,
        forwarded: impl Fn(JobId),
    ) -> Drained {
        let mut drained = Drained::default();
        if let Err(why) = client.wait_ready(patience).await {
            drained.left = Some(why);
            return drained;
        }
        let mut place = 0;
        let mut allowed = self.pauses.allowed(Instant::now());
        loop {
            let taken = match spool.take(place, WINDOW, pick(&allowed, spool, client)).await {
                Ok(taken) => taken,
                Err(error) => {
                    drained.left = Some(error.to_string());
                    return drained;
                }
            };
            let Some(last) = taken.last else { break };
            place = last;
            let (careful, suspects) = (self.careful, self.pauses.suspects());
            let window = forward(client, taken.entries, |queue| careful || suspects.contains(queue)).await;
            self.careful = window.broke || careful && window.away.is_some();
            window.aside.iter().for_each(|(entry, why)| spool.set_aside(entry, why));
            for (queue, fate) in window.queues {
                // The rest of its jobs must not pass those that were left.
                if fate.refused || allowed.contains_key(&queue) {
                    allowed.insert(queue.clone(), 0);
                }
                self.pauses.note(queue, fate, Instant::now());
            }
            drained.forwarded += u64::try_from(window.gone.len()).unwrap_or(u64::MAX);
            window.gone.iter().for_each(|entry| forwarded(entry.job.envelope.id));
            if !window.gone.is_empty()
                && let Err(error) = spool.remove(window.gone).await
            {
                warn!(%error, "forwarded jobs cannot be taken out of the spool yet");
                drained.left = Some(error.to_string());
                return drained;
            }
            if let Some(error) = window.away {
                drained.left = Some(error.to_string());
                return drained;
            }
        }
        if spool.is_holding() {
            drained.left = self.pauses.reason();
        }
        drained
    }
}

/// Which jobs are taken: all, but of queues that refuse no more than is allowed.
fn pick(allowed: &HashMap<QueueName, usize>, spool: &Spool, client: &Client) -> Pick {
    if allowed.is_empty() {
        return Box::new(|_| true);
    }
    let lanes = spool.lanes().into_iter();
    let queues = lanes.map(|lane| (Arc::clone(&lane), lane.queue(|kind| client.queue_of(kind)))).collect();
    picking(queues, allowed.clone())
}

fn picking(queues: HashMap<Arc<Lane>, QueueName>, mut allowed: HashMap<QueueName, usize>) -> Pick {
    Box::new(move |lane| {
        // One that has just come waits for the next pass.
        let Some(queue) = queues.get(lane) else { return false };
        let Some(left) = allowed.get_mut(queue) else { return true };
        let may = *left > 0;
        *left = left.saturating_sub(1);
        may
    })
}

/// What became of a queue's jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Fate {
    stored: bool,
    refused: bool,
    /// The broker closed the channel over one of them.
    closes: bool,
}

/// What became of a window of jobs.
#[derive(Debug, Default)]
struct Window {
    /// Those that the broker has.
    gone: Vec<Entry>,
    /// Those that the broker never takes, and its words.
    aside: Vec<(Entry, String)>,
    queues: HashMap<QueueName, Fate>,
    /// Why it is of no use to go on.
    away: Option<SubmitError>,
    /// The broker closed the channel over one of several, which may be stored.
    broke: bool,
}

/// Forwards jobs together; afterwards those of queues that are `alone`, each by itself.
async fn forward(client: &Client, entries: Vec<Entry>, alone: impl Fn(&QueueName) -> bool) -> Window {
    let entries = entries.into_iter().map(|entry| {
        let queue = Lane::of(&entry.job).queue(|kind| client.queue_of(kind));
        (queue, entry)
    });
    let (single, together): (Vec<_>, Vec<_>) = entries.partition(|(queue, _)| alone(queue));
    let mut window = Window::default();
    // Polled in this order, so handed to the publisher in it. Not with the runtime's budget: it would put off all but the
    // first hundred, and then wake them in reverse.
    let (epoch, give_up) = (client.epoch(), Instant::now() + FATE);
    let each = together.iter().map(|(_, entry)| client.forward(&entry.job, give_up));
    let results = unconstrained(join_all(each)).await;
    let lost = results.iter().any(|result| matches!(result, Err(SubmitError::Lost(_))));
    window.broke = lost && epoch.is_some() && client.epoch() == epoch;
    for ((queue, entry), result) in together.into_iter().zip(results) {
        window.weigh(queue, entry, result, false);
    }
    for (queue, entry) in single {
        if window.away.is_some() {
            break;
        }
        // The rest of its jobs must not pass one that was left.
        if window.queues.get(&queue).is_some_and(|fate| fate.refused) {
            continue;
        }
        let epoch = client.epoch();
        let result = client.forward(&entry.job, Instant::now() + FATE).await;
        let connected = epoch.is_some() && client.epoch() == epoch;
        window.weigh(queue, entry, result, connected);
    }
    window
}

impl Window {
    /// Takes note of what became of a job. `alone`: no other was on its way, and the connection lives, so a channel that
    /// was lost was closed over this one.
    fn weigh(&mut self, queue: QueueName, entry: Entry, result: Result<(), SubmitError>, alone: bool) {
        let fate = |stored, closes| Fate { stored, refused: !stored, closes };
        let fate = match result {
            Ok(()) => {
                self.gone.push(entry);
                fate(true, false)
            }
            Err(SubmitError::Refused) => fate(false, false),
            Err(SubmitError::NotTaken(_)) => fate(false, true),
            // Each costs a channel: more of its queue may be so.
            Err(SubmitError::Unfit(why)) => {
                self.aside.push((entry, why));
                fate(false, true)
            }
            Err(SubmitError::Lost(_)) if alone => fate(false, true),
            Err(error) => {
                self.away = Some(error);
                return;
            }
        };
        let all = self.queues.entry(queue).or_default();
        all.stored |= fate.stored;
        all.refused |= fate.refused;
        all.closes |= fate.closes;
    }
}

/// Queues that refuse, and when they are asked again.
#[derive(Debug, Default)]
struct Pauses(HashMap<QueueName, Pause>);

#[derive(Debug)]
struct Pause {
    /// How often it has refused since it took one.
    refusals: u32,
    until: Instant,
    /// How many of its jobs are offered at a time.
    width: usize,
    /// The broker closed a channel over one of them.
    closes: bool,
}

impl Pauses {
    /// How many jobs of which queues may be taken; any number of all others.
    fn allowed(&self, now: Instant) -> HashMap<QueueName, usize> {
        let width = |pause: &Pause| if pause.until > now { 0 } else { pause.width };
        self.0.iter().map(|(queue, pause)| (queue.clone(), width(pause))).collect()
    }

    /// Queues whose jobs go alone.
    fn suspects(&self) -> HashSet<QueueName> {
        self.0.iter().filter(|(_, pause)| pause.closes).map(|(queue, _)| queue.clone()).collect()
    }

    fn note(&mut self, queue: QueueName, fate: Fate, now: Instant) {
        if fate.refused {
            let pause =
                self.0.entry(queue).or_insert(Pause { refusals: 0, until: now, width: 1, closes: false });
            pause.closes |= fate.closes;
            pause.refusals = if fate.stored { 1 } else { pause.refusals.saturating_add(1) };
            // Any number will do: fronts that began together are to ask at different times.
            pause.until = now + REFUSED.delay(pause.refusals, JobId::new().seed(pause.refusals));
            pause.width = 1;
        } else if let Some(pause) = self.0.get_mut(&queue) {
            pause.refusals = 0;
            pause.width *= 2;
            if pause.width >= WINDOW {
                self.0.remove(&queue);
            }
        }
    }

    fn reason(&self) -> Option<String> {
        let mut queues: Vec<&str> = self.0.keys().map(QueueName::as_str).take(5).collect();
        queues.sort_unstable();
        (!queues.is_empty()).then(|| format!("the broker refused jobs for queue {}", queues.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use bytes::Bytes;

    use super::*;
    use crate::{
        client::Submission,
        job::{Envelope, Kind},
    };

    fn queue(name: &str) -> QueueName {
        QueueName::parse(name).unwrap()
    }

    const TAKEN: Fate = Fate { stored: true, refused: false, closes: false };
    const REFUSING: Fate = Fate { stored: false, refused: true, closes: false };

    fn entry() -> Entry {
        Entry {
            place: 1,
            job: Submission::new(
                Envelope::new(Kind::parse("a.b").unwrap(), queue("q"), Bytes::new()),
                Duration::ZERO,
            ),
        }
    }

    #[test]
    fn only_of_one_that_was_alone_a_lost_channel_says_something() {
        let why = || "closed".to_owned();
        let away = |result: Result<(), SubmitError>, alone| {
            let mut window = Window::default();
            window.weigh(queue("q"), entry(), result, alone);
            let fate = window.queues.get(&queue("q")).copied();
            (window.away.is_some(), fate, window.aside.len(), window.gone.len())
        };
        let closing = Fate { closes: true, ..REFUSING };
        assert_eq!(away(Ok(()), false), (false, Some(TAKEN), 0, 1));
        assert_eq!(away(Err(SubmitError::Refused), false), (false, Some(REFUSING), 0, 0));
        // Its binding is gone, or the login may not.
        assert_eq!(away(Err(SubmitError::NotTaken(why())), false), (false, Some(closing), 0, 0));
        assert_eq!(away(Err(SubmitError::Unfit(why())), false), (false, Some(closing), 1, 0));
        assert_eq!(away(Err(SubmitError::Lost(why())), true), (false, Some(closing), 0, 0));
        assert_eq!(away(Err(SubmitError::Lost(why())), false), (true, None, 0, 0));
        assert_eq!(away(Err(SubmitError::Timeout), true), (true, None, 0, 0));
        assert_eq!(away(Err(SubmitError::Unavailable(why())), true), (true, None, 0, 0));
    }

    #[test]
    fn jobs_of_a_queue_over_which_the_channel_was_closed_go_alone_until_many_were_taken() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        pauses.note(queue("full"), REFUSING, now);
        assert!(pauses.suspects().is_empty());
        pauses.note(queue("big"), Fate { closes: true, ..REFUSING }, now);
        pauses.note(queue("big"), REFUSING, now);
        for _ in 0..8 {
            assert_eq!(pauses.suspects(), HashSet::from([queue("big")]));
            pauses.note(queue("big"), TAKEN, now);
        }
        pauses.note(queue("big"), TAKEN, now);
        assert!(pauses.suspects().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_refuses_is_asked_more_and_more_seldom_with_one_job() {
        let (mut pauses, start) = (Pauses::default(), Instant::now());
        pauses.note(queue("good"), TAKEN, start);
        assert!(pauses.allowed(start).is_empty() && pauses.reason().is_none());
        let mut now = start;
        for seconds in [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
            pauses.note(queue("bad"), REFUSING, now);
            let at = |factor: f64| now + Duration::from_secs_f64(seconds * factor);
            assert_eq!(pauses.allowed(at(0.79)), HashMap::from([(queue("bad"), 0)]), "{seconds}");
            assert_eq!(pauses.allowed(at(1.21)), HashMap::from([(queue("bad"), 1)]), "{seconds}");
            now = at(1.21);
        }
        assert_eq!(pauses.reason().as_deref(), Some("the broker refused jobs for queue bad"));
        for width in [2, 4, 8, 16, 32, 64, 128, 256] {
            pauses.note(queue("bad"), TAKEN, now);
            assert_eq!(pauses.allowed(now), HashMap::from([(queue("bad"), width)]));
        }
        pauses.note(queue("bad"), TAKEN, now);
        assert!(pauses.allowed(now).is_empty());
    }

    #[test]
    fn of_a_queue_that_refuses_no_more_is_taken_than_is_allowed() {
        let lanes =
            [Lane::Queue(queue("a")), Lane::Queue(queue("b")), Lane::Kind(Kind::parse("k.k").unwrap())];
        let [a, b, k] = &lanes;
        // The kind belongs to the refusing queue, too.
        let queues = [(a, "a"), (b, "b"), (k, "a")].map(|(lane, to)| (Arc::new(lane.clone()), queue(to)));
        let pick = picking(HashMap::from(queues), HashMap::from([(queue("a"), 2)]));
        let picked: Vec<bool> = [a, b, k, a, k, b, &Lane::Queue(queue("new"))].map(pick).into();
        assert_eq!(picked, [true, true, true, false, false, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn forwarding_goes_on_after_a_panic() {
        let runs = Cell::new(0);
        restarted(|| {
            runs.set(runs.get() + 1);
            let panics = runs.get() < 3;
            async move { assert!(!panics, "on purpose") }
        })
        .await;
        assert_eq!(runs.get(), 3);
    }
}
