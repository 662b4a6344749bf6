//! How cost grows: with queues, with streams of events, with jobs that wait or are delayed, and with the record. Once in
//! a run, up to a size that takes minutes.

use anyhow::Context as _;
use serde::Serialize;

use super::{Run, item, item_of, until_counted, until_known, until_recorded};
use crate::{
    Job,
    cli::bench::{
        clock,
        load::{self, Asking, Streams},
        plan::Unit,
        stats::{Times, rate},
        worker::{Noop, SPREAD},
    },
};

/// Queues that jobs are spread over.
const QUEUES: [usize; 3] = [1, 2, 4];
/// Streams of events that are open.
const STREAMS: [usize; 3] = [0, 100, 1000];
/// Of so many jobs one is told to all streams, but no more than the second number: each is told a thousand times.
const STREAMED: (usize, usize) = (20, 1000);
/// Events of a job: submitted, succeeded.
const EVENTS: usize = 2;
/// Reads of a job, and of a list, of each size.
const READS: usize = 200;
/// A delay that no benchmark outlasts.
const DELAY: &str = "55m";

/// What something cost at a size.
#[derive(Debug, Clone, Serialize)]
pub(in crate::cli::bench) struct Grown {
    /// What grew.
    pub(in crate::cli::bench) what: &'static str,
    pub(in crate::cli::bench) size: usize,
    pub(in crate::cli::bench) number: &'static str,
    pub(in crate::cli::bench) value: f64,
    #[serde(serialize_with = "unit")]
    pub(in crate::cli::bench) unit: Unit,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde hands over")]
fn unit<S: serde::Serializer>(unit: &Unit, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(unit.as_str())
}

impl Run<'_> {
    /// Measures it, up to `large` jobs.
    pub(in crate::cli::bench) async fn growth(&mut self, large: usize) -> anyhow::Result<()> {
        crate::cli::say::error("growing: queues, streams");
        self.spread().await.context("queues")?;
        self.streams().await.context("streams")?;
        crate::cli::say::error(format_args!("growing: {large} waiting, {large} delayed"));
        self.backlog(large).await.context("backlog")?;
        self.delayed(large).await.context("delayed")
    }

    fn grew(&mut self, what: &'static str, size: usize, numbers: &[(&'static str, f64, Unit)]) {
        let all = numbers.iter().map(|(number, value, unit)| Grown {
            what,
            size,
            number,
            value: *value,
            unit: *unit,
        });
        self.grown.extend(all);
    }

    /// The same jobs over ever more queues, run by one worker.
    async fn spread(&mut self) -> anyhow::Result<()> {
        self.without_worker().await?;
        let mut worker = self.stage.spread_worker().await?;
        let (jobs, mut expected) = (self.sizes.jobs, vec![0; SPREAD.len()]);
        for count in QUEUES {
            let items = SPREAD.iter().take(count).map(|(kind, queue)| item_of(kind, queue, "")).collect();
            let sent = load::batches(self.front.address, items, jobs).await?;
            let mut recorded = 0;
            for (index, (_, queue)) in SPREAD.iter().enumerate().take(count) {
                expected[index] += part(jobs, count, index) as u64;
                recorded = until_counted(self.front.address, queue, expected[index], succeeded).await?;
            }
            let took = clock::between(sent.began, recorded);
            self.grew("queues", count, &[("submitted, run, recorded", rate(jobs, took), Unit::PerSecond)]);
        }
        worker.child.stop().await
    }

    /// The same jobs, told to ever more clients.
    async fn streams(&mut self) -> anyhow::Result<()> {
        self.with_worker(None).await?;
        let (address, front) = (self.front.address, self.front.child.pid);
        let path = format!("/v1/events?queue={}", Noop::QUEUE);
        let jobs = (self.sizes.jobs / STREAMED.0).clamp(1, STREAMED.1);
        for count in STREAMS {
            let mut streams = Streams::open(address, &path, count).await?;
            let before = clock::processor_time(front);
            // Read all the while: whoever does not read is hung up on.
            let sent = load::batches(address, vec![item()], jobs);
            let (sent, told) = tokio::try_join!(sent, streams.until(jobs * EVENTS))?;
            self.submitted += jobs as u64;
            let recorded = until_recorded(address, self.submitted).await?;
            let took = clock::between(sent.began, told.max(recorded));
            let mut numbers = vec![("from the first submit to the last event", ms(took), Unit::Milliseconds)];
            if count > 0 {
                numbers.push(("events told", rate(count * jobs * EVENTS, took), Unit::PerSecond));
            }
            if let Some((before, now)) = before.zip(clock::processor_time(front)) {
                let used = ms(now.saturating_sub(before));
                numbers.push(("processor time of the front", used, Unit::Milliseconds));
            }
            numbers.extend(memory("memory of the front", Some(front)));
            self.grew("streams of events", count, &numbers);
        }
        Ok(())
    }

    /// Ever more jobs that wait, and in the end all of them run.
    async fn backlog(&mut self, large: usize) -> anyhow::Result<()> {
        self.without_worker().await?;
        let (address, mut waiting) = (self.front.address, 0);
        for size in steps(large) {
            let more = size - waiting;
            let sent = load::batches(address, vec![item()], more).await?;
            self.submitted += more as u64;
            waiting = size;
            let known = until_known(address, self.submitted).await?;
            let mut numbers = vec![
                ("submitted in batches", rate(more, sent.took()), Unit::PerSecond),
                ("then recorded after", ms(clock::between(sent.ended, known)), Unit::Milliseconds),
            ];
            numbers.extend(reads(address).await?);
            numbers.extend(memory("memory of the front", Some(self.front.child.pid)));
            numbers.extend(memory("memory of the broker", self.stage.broker));
            self.grew("jobs waiting", size, &numbers);
        }
        self.worker = Some(self.stage.worker_that_expects(large).await?);
        let recorded = until_recorded(address, self.submitted).await?;
        let (first, _) = self.worker_done().await?;
        let drained = rate(large, clock::between(first, recorded));
        self.grew("jobs waiting", large, &[("run by one worker, recorded", drained, Unit::PerSecond)]);
        let recorded = usize::try_from(self.submitted).unwrap_or(usize::MAX);
        let (each, lists) = self.read_times().await?;
        let numbers = [
            ("GET by id under load, p99", each.at(0.99), Unit::Milliseconds),
            ("list of 50 under load, p99", lists.at(0.99), Unit::Milliseconds),
        ];
        self.grew("jobs in the record", recorded, &numbers);
        Ok(())
    }

    /// Ever more delayed jobs, and what others cost beside them.
    async fn delayed(&mut self, large: usize) -> anyhow::Result<()> {
        let (address, jobs, mut waiting) = (self.front.address, self.sizes.jobs, 0);
        for size in steps(large) {
            let delayed = item_of(Noop::KIND, Noop::QUEUE, &format!(r#""delay":"{DELAY}","#));
            let sent = load::batches(address, vec![delayed], size - waiting).await?;
            let submitted = rate(size - waiting, sent.took());
            waiting = size;
            self.with_worker(None).await?;
            let sent = load::batches(address, vec![item()], jobs).await?;
            self.submitted += jobs as u64;
            let recorded = until_recorded(address, self.submitted).await?;
            let beside = rate(jobs, clock::between(sent.began, recorded));
            let mut numbers = vec![
                ("submitted in batches", submitted, Unit::PerSecond),
                ("others beside them: submitted, run, recorded", beside, Unit::PerSecond),
            ];
            numbers.extend(memory("memory of the broker", self.stage.broker));
            self.grew("jobs delayed", size, &numbers);
        }
        Ok(())
    }
}

/// Sizes up to `large`.
fn steps(large: usize) -> impl Iterator<Item = usize> {
    let mut all = vec![large.div_ceil(100), large.div_ceil(10), large];
    all.dedup();
    all.into_iter()
}

/// How many of `jobs` come to the queue at `index`, where they take turns in `count` of them: batches begin with the first.
fn part(jobs: usize, count: usize, index: usize) -> usize {
    let in_batch = |size: usize| size / count + usize::from(index < size % count);
    jobs / load::BATCH * in_batch(load::BATCH) + in_batch(jobs % load::BATCH)
}

fn succeeded(counts: &serde_json::Value) -> Option<u64> {
    counts["counts"]["succeeded"].as_u64()
}

/// How long it takes to look at a job and at a list, where nothing else goes on.
async fn reads(address: std::net::SocketAddr) -> anyhow::Result<[(&'static str, f64, Unit); 2]> {
    let (mut asking, mut each, mut lists) = (Asking::new(address), Times::new(), Times::new());
    let list = format!("/v1/jobs?queue={}&limit=50", Noop::QUEUE);
    for turn in 0..READS {
        let began = tokio::time::Instant::now();
        let page = asking.get(&list).await?;
        lists.add(began.elapsed());
        let items = page["items"].as_array().context("a list of jobs")?;
        let id = items[turn % items.len().max(1)]["id"].as_str().context("a job")?.to_owned();
        let began = tokio::time::Instant::now();
        asking.get(&format!("/v1/jobs/{id}")).await?;
        each.add(began.elapsed());
    }
    Ok([
        ("GET by id, p99", each.at(0.99), Unit::Milliseconds),
        ("list of 50, p99", lists.at(0.99), Unit::Milliseconds),
    ])
}

fn memory(name: &'static str, pid: Option<u32>) -> Option<(&'static str, f64, Unit)> {
    #[expect(clippy::cast_precision_loss, reason = "bytes of memory, below 2^53")]
    let mebibytes = clock::resident(pid?)? as f64 / f64::from(1 << 20);
    Some((name, mebibytes, Unit::Mebibytes))
}

fn ms(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_grow_up_to_the_largest() {
        for (large, expected) in
            [(1_000_000, vec![10_000, 100_000, 1_000_000]), (20, vec![1, 2, 20]), (1, vec![1])]
        {
            assert_eq!(steps(large).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn queues_share_all_jobs() {
        for jobs in [1, 3, 499, 500, 501, 1234] {
            for count in QUEUES {
                assert_eq!((0..count).map(|index| part(jobs, count, index)).sum::<usize>(), jobs);
            }
        }
        assert_eq!([part(501, 2, 0), part(501, 2, 1)], [251, 250]);
    }
}
