//! The demo's load: a bounded, steady number of requests through every node's proxy.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::Request;
use tokio::task::JoinSet;
use transport::Clock;

use super::http::Client;

/// Requests at once per node.
const WORKERS_PER_NODE: u32 = 4;
/// Faults kept for the summary; later ones are only counted.
const FAULTS_KEPT: usize = 5;

/// What came of the requests.
#[derive(Debug, Default)]
pub(super) struct Tally {
    requests: AtomicU64,
    failures: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    answers: BTreeMap<String, u64>,
    faults: Vec<String>,
    slowest: Duration,
}

impl Tally {
    /// Requests sent and how many of them failed.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.requests.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed))
    }

    /// Answers by what they said, the first faults, and the slowest answer.
    pub(super) fn seen(&self) -> (BTreeMap<String, u64>, Vec<String>, Duration) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        (seen.answers.clone(), seen.faults.clone(), seen.slowest)
    }

    fn record(&self, result: anyhow::Result<String>, took: Duration) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.slowest = seen.slowest.max(took);
        match result {
            Ok(said) => *seen.answers.entry(said).or_default() += 1,
            Err(fault) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                if seen.faults.len() < FAULTS_KEPT {
                    seen.faults.push(format!("{fault:#}"));
                }
            }
        }
    }
}

/// The running workers.
#[derive(Debug)]
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    workers: JoinSet<()>,
}

impl Load {
    /// Starts workers that together send `rate` requests a second, spread evenly over `proxies`.
    pub(super) fn start(proxies: &[SocketAddr], rate: u32, tally: &Arc<Tally>, clock: &Arc<dyn Clock>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = JoinSet::new();
        let all = u32::try_from(proxies.len()).unwrap_or(1).max(1) * WORKERS_PER_NODE;
        let pause = Duration::from_secs(1) * all / rate.max(1);
        for (index, proxy) in proxies.iter().flat_map(|proxy| [*proxy; WORKERS_PER_NODE as usize]).enumerate() {
            let (stop, tally, clock) = (Arc::clone(&stop), Arc::clone(tally), Arc::clone(clock));
            // Workers start spread over one pause, so that requests do not come in volleys.
            let offset = pause * u32::try_from(index).unwrap_or(0) / all;
            workers.spawn(async move {
                tokio::time::sleep(offset).await;
                work(proxy, pause, &stop, &tally, &*clock).await;
            });
        }
        Self { stop, workers }
    }

    /// Lets every request in flight end.
    pub(super) async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while self.workers.join_next().await.is_some() {}
    }
}

async fn work(proxy: SocketAddr, pause: Duration, stop: &AtomicBool, tally: &Tally, clock: &dyn Clock) {
    let mut client = Client::new(proxy);
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let began = clock.now();
        let result = ask(&mut client).await;
        tally.record(result, clock.now().saturating_sub(began));
    }
}

async fn ask(client: &mut Client) -> anyhow::Result<String> {
    let request = Request::get("/").header("host", "hello.mesh").body(Full::default())?;
    let answer = client.send(request).await?;
    let said = String::from_utf8_lossy(answer.body()).trim().to_owned();
    anyhow::ensure!(answer.status().is_success(), "{}: {said}", answer.status());
    Ok(said)
}
