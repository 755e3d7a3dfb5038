//! An open-loop load generator: requests start on schedule whether or not earlier ones have been answered, none is
//! sent twice, and every failure is kept with its time and cause.
//!
//! A request counts from the moment it was due, so a stall shows in the latencies of everything that waited behind it
//! (what Gil Tene calls coordinated omission is not hidden). The load is bounded: a fixed number of connections, and a
//! queue of [`LoadConfig::waiting_max`] requests for them; one that finds the queue full fails as `unsent`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use hyper::Uri;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::clock;

mod client;

use client::Client;

/// What to ask for, how often and for how long.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// Where to connect and the path to ask for; `http` only.
    pub url: Uri,
    /// The Host header, when it differs from the authority of `url`.
    pub host: Option<String>,
    /// Requests a second over all connections, more than 0 and at most 100,000.
    pub rate: f64,
    /// Connections, kept alive and reopened after a failure; at least 1.
    pub connections: usize,
    /// How long to start requests; `None` means until told to stop.
    pub duration: Option<Duration>,
    /// Longest time for one request from sending to the end of the answer.
    pub timeout: Duration,
    /// How long to wait for a first successful answer before the load begins; zero means no waiting.
    pub ready_wait: Duration,
    /// Requests that may wait for a free connection.
    pub waiting_max: usize,
}

impl LoadConfig {
    /// 50 requests a second over 4 connections for 30 s, timeout 5 s, no waiting for readiness.
    #[must_use]
    pub fn new(url: Uri) -> Self {
        Self {
            url,
            host: None,
            rate: 50.0,
            connections: 4,
            duration: Some(Duration::from_secs(30)),
            timeout: Duration::from_secs(5),
            ready_wait: Duration::ZERO,
            waiting_max: 256,
        }
    }
}

/// What ended within one second, or within the whole run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Wall clock, milliseconds since 1970, at the begin.
    pub from_ms: u64,
    /// Wall clock, milliseconds since 1970, at the end.
    pub until_ms: u64,
    /// Answers with a 2xx status.
    pub ok: u64,
    /// Everything else: other statuses, broken connections, timeouts, `unsent`.
    pub failed: u64,
    /// Count for each status code, and for each cause where there was no answer.
    pub outcomes: BTreeMap<String, u64>,
    /// Successful answers for each answering instance; past 64 names the rest is `other`.
    pub answered_by: BTreeMap<String, u64>,
    /// Median of the latency of answers in milliseconds, counted from when the request was due.
    pub p50_ms: f64,
    /// 99th percentile, likewise.
    pub p99_ms: f64,
    /// Longest, likewise.
    pub max_ms: f64,
    /// The first failures, at most 50 a second and 1,000 a run; [`Tally::failed`] counts them all.
    pub failures: Vec<Failure>,
}

/// One request that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Wall clock, milliseconds since 1970, when it had failed.
    pub at_ms: u64,
    /// Milliseconds from when it was due until it had failed.
    pub after_ms: f64,
    /// The key it has in [`Tally::outcomes`].
    pub cause: String,
    /// The error or the begin of the answer's body.
    pub detail: String,
}

/// Runs the load until `config.duration` is over and everything due has ended, or until `stop` resolves; what is in
/// flight then is given up and counts nowhere. `each_second` sees every second as it ends; the result covers the run.
///
/// # Errors
/// When the configuration makes no sense, or no first answer came within `ready_wait`. Failing requests are results.
pub async fn run(
    config: LoadConfig,
    stop: impl Future<Output = ()>,
    mut each_second: impl FnMut(&Tally),
) -> Result<Tally> {
    check(&config)?;
    let config = Arc::new(config);
    wait_until_ready(&config).await?;

    let (due, waiting) = mpsc::channel(config.waiting_max.max(1));
    let (outcomes_in, mut outcomes) = mpsc::channel(OUTCOMES_WAITING_MAX);
    let waiting = Arc::new(Mutex::new(waiting));
    let mut workers = JoinSet::new();
    for _ in 0..config.connections {
        workers.spawn(work(Client::new(&config)?, Arc::clone(&waiting), outcomes_in.clone()));
    }
    workers.spawn(schedule(config.rate, config.duration, due, outcomes_in));

    let mut second = Collector::new(FAILURES_PER_SECOND);
    let mut whole = Collector::new(FAILURES_PER_RUN);
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    tokio::pin!(stop);
    loop {
        tokio::select! {
            outcome = outcomes.recv() => match outcome {
                Some(outcome) => {
                    whole.add(&outcome);
                    second.add(&outcome);
                }
                None => break,
            },
            _ = ticks.tick() => each_second(&std::mem::replace(&mut second, Collector::new(FAILURES_PER_SECOND)).finish()),
            () = &mut stop => break,
        }
    }
    if second.tally.ok + second.tally.failed > 0 {
        each_second(&second.finish());
    }
    Ok(whole.finish())
}

fn check(config: &LoadConfig) -> Result<()> {
    ensure!(config.url.scheme_str() == Some("http"), "{}: only http:// is spoken", config.url);
    ensure!(config.url.host().is_some(), "{}: a host is missing", config.url);
    ensure!(config.rate > 0.0 && config.rate <= RATE_MAX, "rate {} is outside 0..={RATE_MAX}", config.rate);
    ensure!(
        (1..=CONNECTIONS_MAX).contains(&config.connections),
        "{} connections are outside 1..={CONNECTIONS_MAX}",
        config.connections
    );
    Ok(())
}

/// Asks until an answer is good, as slowly as a person would.
async fn wait_until_ready(config: &LoadConfig) -> Result<()> {
    if config.ready_wait.is_zero() {
        return Ok(());
    }
    let mut client = Client::new(config)?;
    let mut last = String::from("no answer yet");
    let asking = async {
        loop {
            match client.ask().await {
                Ok(_) => return,
                Err(failed) => last = format!("{}: {}", failed.cause, failed.detail),
            }
            sleep(READY_INTERVAL).await;
        }
    };
    let waited = timeout(config.ready_wait, asking).await;
    if waited.is_err() {
        bail!("no good answer from {} within {:?}; last: {last}", config.url, config.ready_wait);
    }
    Ok(())
}

/// Puts a due time into the queue at each tick; a tick that was missed is made up for at once.
async fn schedule(rate: f64, duration: Option<Duration>, due: mpsc::Sender<Instant>, outcomes: mpsc::Sender<Outcome>) {
    let mut ticks = interval(Duration::from_secs_f64(1.0 / rate));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let first = ticks.tick().await;
    let mut tick = first;
    while duration.is_none_or(|duration| tick - first < duration) {
        match due.try_send(tick) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                let detail = "every connection is busy and the queue is full".to_owned();
                let failed = client::Failed { cause: "unsent".to_owned(), detail };
                if outcomes.send(Outcome::new(tick, Err(failed))).await.is_err() {
                    return;
                }
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
        tick = ticks.tick().await;
    }
}

/// One connection: takes the next due request, asks, tells.
async fn work(mut client: Client, waiting: Arc<Mutex<mpsc::Receiver<Instant>>>, outcomes: mpsc::Sender<Outcome>) {
    loop {
        // The guard lives for this statement only: the others take their turn while this one asks.
        let due = waiting.lock().await.recv().await;
        let Some(due) = due else { return };
        let result = client.ask().await;
        if outcomes.send(Outcome::new(due, result)).await.is_err() {
            return;
        }
    }
}

#[derive(Debug)]
struct Outcome {
    at_ms: u64,
    latency: Duration,
    result: Result<client::Answer, client::Failed>,
}

impl Outcome {
    fn new(due: Instant, result: Result<client::Answer, client::Failed>) -> Self {
        Self { at_ms: clock::unix_ms(), latency: due.elapsed(), result }
    }
}

/// Adds outcomes up; memory is bounded by the histogram's range and the limits on names and failures.
struct Collector {
    tally: Tally,
    latencies: Histogram<u64>,
    failures_max: usize,
}

impl Collector {
    fn new(failures_max: usize) -> Self {
        let latencies = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("the bounds are constants in range");
        Self { tally: Tally { from_ms: clock::unix_ms(), ..Tally::default() }, latencies, failures_max }
    }

    fn add(&mut self, outcome: &Outcome) {
        let micros = u64::try_from(outcome.latency.as_micros()).unwrap_or(LATENCY_MAX_US);
        match &outcome.result {
            Ok(answer) => {
                self.latencies.saturating_record(micros);
                self.tally.ok += 1;
                count(&mut self.tally.outcomes, answer.status.as_str());
                count(&mut self.tally.answered_by, answer.answered_by.as_deref().unwrap_or("unnamed"));
            }
            Err(failed) => {
                self.tally.failed += 1;
                count(&mut self.tally.outcomes, &failed.cause);
                if self.tally.failures.len() < self.failures_max {
                    self.tally.failures.push(Failure {
                        at_ms: outcome.at_ms,
                        after_ms: clock::millis(outcome.latency),
                        cause: failed.cause.clone(),
                        detail: failed.detail.clone(),
                    });
                }
            }
        }
    }

    fn finish(mut self) -> Tally {
        let millis = |micros: u64| clock::millis(Duration::from_micros(micros));
        self.tally.until_ms = clock::unix_ms();
        self.tally.p50_ms = millis(self.latencies.value_at_quantile(0.5));
        self.tally.p99_ms = millis(self.latencies.value_at_quantile(0.99));
        self.tally.max_ms = millis(self.latencies.max());
        self.tally
    }
}

/// Counts under `key`, or under `other` when there are too many keys already.
fn count(counts: &mut BTreeMap<String, u64>, key: &str) {
    let key = if counts.len() < NAMES_MAX || counts.contains_key(key) { key } else { "other" };
    *counts.entry(key.to_owned()).or_default() += 1;
}

impl Tally {
    /// One line for a person.
    #[must_use]
    pub fn line(&self) -> String {
        let by = self.answered_by.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ");
        let mut line = format!(
            "{} ok, {} failed, p50 {:.1} ms, p99 {:.1} ms, answered by: {}",
            self.ok,
            self.failed,
            self.p50_ms,
            self.p99_ms,
            if by.is_empty() { "nobody" } else { &by }
        );
        if let Some(failure) = self.failures.first() {
            line.push_str(&format!("; first failure {}: {}", failure.cause, failure.detail));
        }
        line
    }

    /// `line` as one line of JSON.
    ///
    /// # Errors
    /// Never in practice: the type has only string keys.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string(self).context("a tally as JSON")
    }
}

const RATE_MAX: f64 = 100_000.0;
const CONNECTIONS_MAX: usize = 10_000;
const OUTCOMES_WAITING_MAX: usize = 1024;
const FAILURES_PER_SECOND: usize = 50;
const FAILURES_PER_RUN: usize = 1000;
const NAMES_MAX: usize = 64;
const LATENCY_MAX_US: u64 = 600_000_000;
const READY_INTERVAL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
