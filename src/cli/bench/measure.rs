//! The measurements: each does the same work by bare lapin and by Hopline, one after the other.
//!
//! What has no counterpart there is in [`alone`], how cost grows in [`growth`], other libraries in [`super::peers`].

mod alone;
mod growth;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, bail};
use tokio::time::{Instant, sleep};

pub(super) use self::growth::Grown;
use super::{
    clock,
    load::{self, Asking},
    meter::Meter,
    orders::{Answer, Order},
    peers::Peers,
    plan::Measure,
    stage::{Front, Stage, Told},
    stats::{Samples, Times},
    worker::{Echo, Noop, args},
};
use crate::{Job, amqp::baseline::Events};

/// How often the record is asked how far it is.
const LOOK: Duration = Duration::from_millis(10);
/// Longest time without a job that is recorded.
const STALLED: Duration = Duration::from_secs(60);

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) jobs: usize,
    pub(super) backlog: usize,
    pub(super) calls: usize,
}

impl Sizes {
    /// As much as gets connections, caches and the broker's files going.
    pub(super) fn of_warm_up(self) -> Self {
        let part = |whole: usize| (whole / 10).clamp(1, 2000);
        Self { jobs: part(self.jobs), backlog: part(self.backlog), calls: part(self.calls) }
    }
}

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) samples: Samples,
    /// All times of each measurement that has some, of all rounds.
    pub(super) times: BTreeMap<&'static str, Times>,
    pub(super) grown: Vec<Grown>,
    /// Under which guarantees other libraries worked.
    pub(super) peers: BTreeMap<String, String>,
}

/// The processes, and what was measured of them.
pub(super) struct Run<'a> {
    stage: &'a Stage,
    sizes: Sizes,
    peers: Option<Peers>,
    samples: Samples,
    times: BTreeMap<&'static str, Times>,
    grown: Vec<Grown>,
    front: Front,
    /// Where there is one.
    worker: Option<Told>,
    /// Bare lapin: who publishes and calls, and who consumes and serves.
    producer: Told,
    consumer: Told,
    /// Jobs that were submitted in all.
    submitted: u64,
}

impl<'a> Run<'a> {
    pub(super) async fn start(stage: &'a Stage, sizes: Sizes, peers: Option<Peers>) -> anyhow::Result<Self> {
        Ok(Self {
            stage,
            sizes,
            peers,
            samples: Samples::default(),
            times: BTreeMap::new(),
            grown: Vec::new(),
            front: stage.front().await?,
            worker: None,
            producer: stage.raw("raw-producer").await?,
            consumer: stage.raw("raw-consumer").await?,
            submitted: 0,
        })
    }

    /// Measures all of these once, with a tenth of the work, and forgets it.
    pub(super) async fn warm_up(&mut self, measures: &[Measure]) -> anyhow::Result<()> {
        let sizes = self.sizes;
        self.sizes = sizes.of_warm_up();
        let idle = std::mem::take(&mut self.samples);
        self.round(measures).await?;
        (self.sizes, self.samples) = (sizes, idle);
        self.times.clear();
        Ok(())
    }

    /// Measures all of these once.
    pub(super) async fn round(&mut self, measures: &[Measure]) -> anyhow::Result<()> {
        for measure in measures {
            let measured = match measure {
                Measure::Raw => self.raw().await,
                Measure::EndToEnd => self.end_to_end().await,
                Measure::Submit64 => self.submit("submit-64", 64).await,
                Measure::Submit256 => self.submit("submit-256", 256).await,
                Measure::Drain => self.drain().await,
                Measure::Call => self.call().await,
                Measure::Call64 => self.many_calls("call-64", 64).await,
                Measure::Call1000 => self.many_calls("call-1000", 1000).await,
                Measure::Read => self.read().await,
                Measure::Scale => self.scale().await,
                Measure::Start => self.start_again().await,
                Measure::Rebuild => self.rebuild().await,
                Measure::Peers => self.peers().await,
                // By itself: once is enough, and it takes minutes.
                Measure::Growth => Ok(()),
            };
            measured.with_context(|| format!("{measure:?}"))?;
        }
        Ok(())
    }

    /// Ends the processes in good order.
    pub(super) async fn end(mut self) -> anyhow::Result<Measured> {
        self.without_worker().await?;
        self.front.child.stop().await?;
        self.producer.end().await?;
        self.consumer.end().await?;
        let Self { samples, times, grown, peers, .. } = self;
        Ok(Measured { samples, times, grown, peers: peers.map(|peers| peers.said()).unwrap_or_default() })
    }

    async fn peers(&mut self) -> anyhow::Result<()> {
        match &self.peers {
            Some(peers) => peers.round(self.sizes.jobs, self.sizes.calls, &mut self.samples).await,
            None => Ok(()),
        }
    }

    async fn raw(&mut self) -> anyhow::Result<()> {
        let jobs = self.sizes.jobs;
        let meter = self.meter("raw.publish");
        let took = self.raw_submit(jobs, Events::None).await?;
        meter.stop(jobs, &mut self.samples);
        self.samples.add_rate("raw.publish", jobs, took);
        let took = self.raw_work(jobs, Events::None).await?;
        self.samples.add_rate("raw.consume", jobs, took);
        let took = self.raw_both(jobs, Events::None).await?;
        self.samples.add_rate("raw.both", jobs, took);
        Ok(())
    }

    async fn end_to_end(&mut self) -> anyhow::Result<()> {
        let jobs = self.sizes.jobs;
        let took = self.raw_both(jobs, Events::Each).await?;
        self.samples.add_rate("raw.naive", jobs, took);
        let meter = self.meter("raw.batched");
        let took = self.raw_both(jobs, Events::Batched).await?;
        meter.stop(jobs, &mut self.samples);
        self.samples.add_rate("raw.batched", jobs, took);

        self.with_worker(Some(jobs)).await?;
        let meter = self.meter("end-to-end");
        let address = self.front.address;
        let (sent, recorded) = tokio::try_join!(
            load::batches(address, vec![item()], jobs),
            until_recorded(address, self.submitted + jobs as u64)
        )?;
        meter.stop(jobs, &mut self.samples);
        self.submitted += jobs as u64;
        let (_, run) = self.worker_done().await?;
        self.samples.add_rate("end-to-end", jobs, clock::between(sent.began, recorded));
        self.samples.add("end-to-end.lag", clock::between(run, recorded).as_secs_f64() * 1e3);
        Ok(())
    }

    async fn submit(&mut self, name: &'static str, connections: usize) -> anyhow::Result<()> {
        let jobs = self.sizes.jobs;
        let took = self.raw_submit(jobs, Events::None).await?;
        self.samples.add_rate("raw.publish", jobs, took);
        let took = self.raw_work(jobs, Events::None).await?;
        self.samples.add_rate("raw.consume", jobs, took);

        self.with_worker(None).await?;
        let meter = self.meter(name);
        let request = load::request("POST", "/v1/jobs", &item());
        let (sent, times) = load::each(self.front.address, request, jobs, connections).await?;
        self.samples.add_rate(name, jobs, sent.took());
        self.add_times(name, &times);
        self.submitted += jobs as u64;
        // What is left of the load belongs to it.
        until_recorded(self.front.address, self.submitted).await?;
        meter.stop(jobs, &mut self.samples);
        Ok(())
    }

    async fn drain(&mut self) -> anyhow::Result<()> {
        let backlog = self.sizes.backlog;
        self.raw_submit(backlog, Events::None).await?;
        let meter = self.meter("raw.drain");
        let took = self.raw_work(backlog, Events::Batched).await?;
        meter.stop(backlog, &mut self.samples);
        self.samples.add_rate("raw.drain", backlog, took);

        self.without_worker().await?;
        let sent = load::batches(self.front.address, vec![item()], backlog).await?;
        self.samples.add_rate("submit-batch", backlog, sent.took());
        self.submitted += backlog as u64;
        until_known(self.front.address, self.submitted).await?;
        let worker = self.stage.worker_that_expects(backlog).await?;
        self.worker = Some(worker);
        let meter = self.meter("drain");
        let recorded = until_recorded(self.front.address, self.submitted).await?;
        meter.stop(backlog, &mut self.samples);
        let (first, last) = self.worker_done().await?;
        self.samples.add_rate("drain", backlog, clock::between(first, recorded));
        self.samples.add_rate("drain.run", backlog, clock::between(first, last));
        Ok(())
    }

    async fn call(&mut self) -> anyhow::Result<()> {
        let calls = self.sizes.calls;
        for (name, events) in [("raw.call", Events::None), ("raw.call-events", Events::Each)] {
            let meter = self.meter(name);
            let times = self.raw_call(calls, events).await?;
            meter.stop(calls, &mut self.samples);
            self.add_times(name, &times);
        }
        self.calls("call", calls, 1).await.map(drop)
    }

    async fn many_calls(&mut self, name: &'static str, callers: usize) -> anyhow::Result<()> {
        let calls = self.sizes.calls * 10;
        let took = self.calls(name, calls, callers).await?;
        self.samples.add_rate(name, calls, took);
        Ok(())
    }

    async fn calls(&mut self, name: &'static str, calls: usize, callers: usize) -> anyhow::Result<Duration> {
        self.with_worker(None).await?;
        let path = format!("/v1/rpc/{}?queue={}", Echo::KIND, Echo::QUEUE);
        let request = load::request("POST", &path, &args());
        let meter = self.meter(name);
        let (sent, times) = load::each(self.front.address, request, calls, callers).await?;
        meter.stop(calls, &mut self.samples);
        self.add_times(name, &times);
        self.submitted += calls as u64;
        // The next measurement counts from here.
        until_recorded(self.front.address, self.submitted).await?;
        Ok(sent.took())
    }

    fn add_times(&mut self, name: &'static str, times: &Times) {
        self.times.entry(name).or_insert_with(Times::new).join(times);
        self.samples.add(format!("{name}.p50"), times.at(0.5));
        self.samples.add(format!("{name}.p99"), times.at(0.99));
    }

    async fn raw_submit(&mut self, count: usize, events: Events) -> anyhow::Result<Duration> {
        self.producer.tell(&Order::Submit { count, events }).await?;
        let (began, ended) = self.producer.done().await?;
        Ok(clock::between(began, ended))
    }

    async fn raw_work(&mut self, count: usize, events: Events) -> anyhow::Result<Duration> {
        self.consumer.tell(&Order::Work { count, events }).await?;
        self.consumer.ready().await?;
        let (began, ended) = self.consumer.done().await?;
        Ok(clock::between(began, ended))
    }

    /// From the first publish to the last acknowledgement.
    async fn raw_both(&mut self, count: usize, events: Events) -> anyhow::Result<Duration> {
        self.consumer.tell(&Order::Work { count, events }).await?;
        self.consumer.ready().await?;
        self.producer.tell(&Order::Submit { count, events }).await?;
        let (began, _) = self.producer.done().await?;
        let (_, ended) = self.consumer.done().await?;
        Ok(clock::between(began, ended))
    }

    async fn raw_call(&mut self, count: usize, events: Events) -> anyhow::Result<Times> {
        self.consumer.tell(&Order::Serve { events }).await?;
        self.consumer.ready().await?;
        self.producer.tell(&Order::Call { count, events }).await?;
        let answer = self.producer.hear().await?;
        self.consumer.tell(&Order::Stop).await?;
        self.consumer.ready().await?;
        match answer {
            Answer::Times { each } => Ok(each.into_iter().map(Duration::from_nanos).collect()),
            other => bail!("expected times, not {other:?}"),
        }
    }

    /// Sees to it that a worker runs; it counts from now on, if told what to expect.
    async fn with_worker(&mut self, expected: Option<usize>) -> anyhow::Result<()> {
        if self.worker.is_none() {
            self.worker = Some(self.stage.worker().await?);
        }
        if let (Some(worker), Some(count)) = (&mut self.worker, expected) {
            worker.tell(&Order::Expect { count }).await?;
            worker.ready().await?;
        }
        Ok(())
    }

    async fn without_worker(&mut self) -> anyhow::Result<()> {
        match self.worker.take() {
            Some(mut worker) => worker.child.stop().await,
            None => Ok(()),
        }
    }

    async fn worker_done(&mut self) -> anyhow::Result<(u64, u64)> {
        self.worker.as_mut().context("there is no worker")?.done().await
    }

    /// Looks from now on what the processes use of the processors.
    fn meter(&self, name: &'static str) -> Meter {
        let worker = self.worker.as_ref().map(|worker| worker.child.pid);
        let processes = [
            ("http", Some(self.front.child.pid)),
            ("worker", worker),
            ("raw producer", Some(self.producer.child.pid)),
            ("raw consumer", Some(self.consumer.child.pid)),
            ("broker", self.stage.broker),
            ("load", Some(std::process::id())),
        ];
        Meter::start(name, processes.into_iter().filter_map(|(role, pid)| Some((role, pid?))))
    }
}

/// A job of a batch, and the body of a single submit.
fn item() -> Vec<u8> {
    item_of(Noop::KIND, Noop::QUEUE, "")
}

/// A job of that kind in that queue; `more` are members with a comma behind each.
fn item_of(kind: &str, queue: &str, more: &str) -> Vec<u8> {
    let head = format!(r#"{{"kind":"{kind}","queue":"{queue}",{more}"args":"#);
    [head.as_bytes(), &args(), b"}"].concat()
}

/// Waits until so many jobs are recorded as succeeded; when that was.
async fn until_recorded(address: std::net::SocketAddr, count: u64) -> anyhow::Result<u64> {
    until_counted(address, Noop::QUEUE, count, |counts| counts["counts"]["succeeded"].as_u64()).await
}

/// Waits until so many jobs are recorded at all.
async fn until_known(address: std::net::SocketAddr, count: u64) -> anyhow::Result<u64> {
    until_counted(address, Noop::QUEUE, count, |counts| counts["total"].as_u64()).await
}

async fn until_counted(
    address: std::net::SocketAddr,
    queue: &str,
    count: u64,
    read: impl Fn(&serde_json::Value) -> Option<u64>,
) -> anyhow::Result<u64> {
    let mut asking = Asking::new(address);
    let path = format!("/v1/jobs/counts?queue={queue}");
    let (mut before, mut since) = (0, Instant::now());
    loop {
        let now = read(&asking.get(&path).await?).context("the front does not count")?;
        if now >= count {
            return Ok(clock::now());
        }
        if now != before {
            (before, since) = (now, Instant::now());
        }
        if since.elapsed() > STALLED {
            bail!("{now} of {count} jobs are recorded, and no more since {} s", STALLED.as_secs());
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_up_is_a_tenth_and_never_nothing() {
        for ((jobs, backlog, calls), expected) in
            [((20_000, 100_000, 500), (2000, 2000, 50)), ((5, 1, 1), (1, 1, 1))]
        {
            let small = Sizes { jobs, backlog, calls }.of_warm_up();
            assert_eq!((small.jobs, small.backlog, small.calls), expected);
        }
    }

    #[test]
    fn an_item_is_a_submit() {
        let item: serde_json::Value = serde_json::from_slice(&item()).unwrap();
        assert_eq!((&item["kind"], &item["queue"]), (&Noop::KIND.into(), &Noop::QUEUE.into()));
        assert!(item["args"]["filler"].is_string());
    }
}
