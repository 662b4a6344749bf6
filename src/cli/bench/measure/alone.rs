//! What bare lapin has no counterpart of: idling, starting, reading while there is load, the record's rebuilding, and
//! several workers.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::time::{Instant, sleep};

use super::{LOOK, Run, STALLED, item, until_recorded};
use crate::Job;
use crate::cli::bench::{
    clock,
    load::{self, Asking},
    plan::SCALE,
    stats::Times,
    worker::Noop,
};

/// How long processes are left alone before their idleness is measured, and how long that is.
const SETTLING: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(10);
/// Jobs that are looked at while there is load, and how many of them come to one list.
const LOOKED_AT: usize = 50;
const JOBS_TO_A_LIST: usize = 10;

impl Run<'_> {
    /// Measures what processes use that have nothing to do. Before all else: what has worked keeps memory.
    pub(in crate::cli::bench) async fn idle(&mut self) -> anyhow::Result<()> {
        self.with_worker(None).await?;
        let worker = self.worker.as_ref().context("there is no worker")?.child.pid;
        let processes = [("idle.http", self.front.child.pid), ("idle.worker", worker)];
        sleep(SETTLING).await;
        let before = processes.map(|(_, pid)| clock::processor_time(pid));
        sleep(IDLE).await;
        for ((name, pid), before) in processes.into_iter().zip(before) {
            // Where the system does not say, there is no number.
            if let (Some(before), Some(now)) = (before, clock::processor_time(pid)) {
                let used = now.saturating_sub(before).as_secs_f64() / IDLE.as_secs_f64();
                self.samples.add(format!("{name}.cpu"), 100.0 * used);
            }
            if let Some(bytes) = clock::resident(pid) {
                #[expect(clippy::cast_precision_loss, reason = "bytes of memory, below 2^53")]
                self.samples.add(format!("{name}.memory"), bytes as f64 / f64::from(1 << 20));
            }
        }
        Ok(())
    }

    /// Ends front and worker and starts them again, with the record as it is.
    pub(super) async fn start_again(&mut self) -> anyhow::Result<()> {
        self.without_worker().await?;
        self.front.child.stop().await?;
        self.front = self.stage.front().await?;
        self.with_worker(None).await?;
        let worker = self.worker.as_ref().context("there is no worker")?;
        let ready = [("start.http", self.front.ready_after), ("start.worker", worker.ready_after)];
        for (name, after) in ready {
            self.samples.add(name, after.as_secs_f64() * 1e3);
        }
        Ok(())
    }

    /// Deletes the record, and waits until the front has read all of the log again.
    pub(super) async fn rebuild(&mut self) -> anyhow::Result<()> {
        let missing = usize::try_from((self.sizes.backlog as u64).saturating_sub(self.submitted))?;
        if missing > 0 {
            self.with_worker(None).await?;
            load::batches(self.front.address, vec![item()], missing).await?;
            self.submitted += missing as u64;
            until_recorded(self.front.address, self.submitted).await?;
        }
        self.without_worker().await?;
        self.front.child.stop().await?;
        std::fs::remove_dir_all(self.stage.record()).context("cannot delete the record")?;
        let began = Instant::now();
        self.front = self.stage.front().await?;
        until_rebuilt(self.front.address, self.submitted).await?;
        // Submitted, and succeeded.
        let events = usize::try_from(2 * self.submitted)?;
        self.samples.add_rate("rebuild", events, began.elapsed());
        Ok(())
    }

    /// Looks at jobs and at lists of them, one after the other, while batches come in and are run.
    pub(super) async fn read(&mut self) -> anyhow::Result<()> {
        let (each, lists) = self.read_times().await?;
        self.add_times("read.job", &each);
        self.add_times("read.list", &lists);
        Ok(())
    }

    /// How long it took to look at each job, and at each list.
    pub(super) async fn read_times(&mut self) -> anyhow::Result<(Times, Times)> {
        self.with_worker(None).await?;
        let (address, jobs) = (self.front.address, self.sizes.jobs);
        let expected = self.submitted + jobs as u64;
        let load = async {
            load::batches(address, vec![item()], jobs).await?;
            until_recorded(address, expected).await
        };
        let (mut each, mut lists) = (Times::new(), Times::new());
        tokio::select! {
            done = load => { done?; }
            failed = look(address, &mut each, &mut lists) => { failed?; }
        }
        self.submitted = expected;
        Ok((each, lists))
    }

    /// The same load with ever more worker processes.
    pub(super) async fn scale(&mut self) -> anyhow::Result<()> {
        self.without_worker().await?;
        let jobs = self.sizes.jobs;
        let mut workers = Vec::new();
        for (count, name) in SCALE {
            while workers.len() < count {
                workers.push(self.stage.worker().await?);
            }
            let sent = load::batches(self.front.address, vec![item()], jobs).await?;
            self.submitted += jobs as u64;
            let recorded = until_recorded(self.front.address, self.submitted).await?;
            self.samples.add_rate(name, jobs, clock::between(sent.began, recorded));
        }
        for mut worker in workers {
            worker.child.stop().await?;
        }
        Ok(())
    }
}

/// Looks until it is dropped.
async fn look(address: SocketAddr, each: &mut Times, lists: &mut Times) -> anyhow::Result<()> {
    let mut asking = Asking::new(address);
    let list = format!("/v1/jobs?queue={}&limit={LOOKED_AT}", Noop::QUEUE);
    loop {
        let began = Instant::now();
        let page = asking.get(&list).await?;
        lists.add(began.elapsed());
        let ids: Vec<String> = page["items"]
            .as_array()
            .context("a list of jobs")?
            .iter()
            .filter_map(|job| job["id"].as_str().map(str::to_owned))
            .collect();
        for id in ids.iter().take(JOBS_TO_A_LIST) {
            let began = Instant::now();
            asking.get(&format!("/v1/jobs/{id}")).await?;
            each.add(began.elapsed());
        }
        if ids.is_empty() {
            sleep(LOOK).await;
        }
    }
}

/// Waits until so many jobs are recorded as succeeded, by a front that may have none of them yet.
async fn until_rebuilt(address: SocketAddr, count: u64) -> anyhow::Result<()> {
    let path = format!("/v1/jobs/counts?queue={}", Noop::QUEUE);
    let (mut asking, mut before, mut since) = (Asking::new(address), 0, Instant::now());
    loop {
        // While it is far behind it says so instead.
        let now = asking.get(&path).await.ok().and_then(|counts| counts["counts"]["succeeded"].as_u64());
        let now = now.unwrap_or(before);
        if now >= count {
            return Ok(());
        }
        if now != before {
            (before, since) = (now, Instant::now());
        }
        ensure!(since.elapsed() <= STALLED, "{now} of {count} jobs are recorded again, and no more");
        sleep(LOOK).await;
    }
}
