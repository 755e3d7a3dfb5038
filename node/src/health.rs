//! Health of this node's own instances: a pure verdict per check, and one supervised task per instance that asks.
//!
//! An instance is up while every check passes. Between checks a refused connect counts as a failed check of its own,
//! so that a crash takes the instance out before the next request fails too; a TCP connect that succeeds brings it back.
//! A connection that ends before its answer makes the supervisor look whether anybody listens: the requests that would
//! find out may be kept away for a while.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use transport::Clock;

use crate::config::CheckConfig;
use crate::snapshot::LocalInstance;
use crate::view::CheckView;

/// How often an instance without checks is looked at after a refused connect.
const RETURN_INTERVAL: Duration = Duration::from_secs(1);
/// How often the supervisor looks whether a check is due or a connect was refused.
const TICK: Duration = Duration::from_millis(100);

/// One check's verdict over time: `fall` failures in a row take it down, `rise` successes bring it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckState {
    fall: u32,
    rise: u32,
    passing: bool,
    streak: u32,
}

impl CheckState {
    /// A check that has not run yet: not passing, and the first success is enough when `rise` is 1.
    #[must_use]
    pub fn new(fall: u32, rise: u32) -> Self {
        Self { fall: fall.max(1), rise: rise.max(1), passing: false, streak: 0 }
    }

    /// Takes one result and returns whether the check passes now.
    pub fn observe(&mut self, success: bool) -> bool {
        if success == self.passing {
            self.streak = 0;
            return self.passing;
        }
        self.streak += 1;
        let wanted = if success { self.rise } else { self.fall };
        if self.streak >= wanted {
            self.passing = success;
            self.streak = 0;
        }
        self.passing
    }

    /// Whether the check passes.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.passing
    }
}

/// What the supervisor tells the control loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthChanged {
    /// The service's name.
    pub service: String,
    /// Instance id.
    pub instance: String,
    /// True when every check passes.
    pub healthy: bool,
    /// The newest verdicts, one per check.
    pub checks: Vec<CheckView>,
}

/// The last `heartbeat` of an instance with a ttl check, as monotonic time.
#[derive(Debug, Default)]
pub struct Heartbeat {
    last_ms: std::sync::atomic::AtomicU64,
}

impl Heartbeat {
    /// Records a heartbeat at `now`.
    pub fn beat(&self, now: Duration) {
        // 0 means never, so the first millisecond of the process counts as the second.
        self.last_ms.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    }

    fn silent_for(&self, now: Duration) -> Option<Duration> {
        let last = self.last_ms.load(Ordering::Relaxed);
        (last > 0).then(|| now.saturating_sub(Duration::from_millis(last)))
    }
}

/// Runs the checks of one instance until the task is dropped.
///
/// Every change of a verdict is sent to `changes`; the task ends when nobody listens there any more.
pub async fn supervise(
    local: Arc<LocalInstance>,
    checks: Vec<CheckConfig>,
    heartbeat: Arc<Heartbeat>,
    clock: Arc<dyn Clock>,
    changes: mpsc::Sender<HealthChanged>,
) {
    let mut runners: Vec<Runner> = checks.into_iter().map(Runner::new).collect();
    let mut passive = Passive::new(&local);
    let mut told: Option<(bool, Vec<bool>)> = None;
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = clock.now();
        let refused = passive.saw_refusal(&local);
        for runner in &mut runners {
            runner.run_if_due(&local, &heartbeat, now, refused).await;
        }
        passive.run_if_due(&local, clock.now(), refused).await;
        let healthy = passive.up && runners.iter().all(|runner| runner.state.is_passing());
        local.healthy.store(healthy, Ordering::Relaxed);
        let verdicts: Vec<bool> = runners.iter().map(|runner| runner.state.is_passing()).collect();
        if told.as_ref() == Some(&(healthy, verdicts.clone())) {
            continue;
        }
        let mut views: Vec<CheckView> = runners.iter().map(Runner::view).collect();
        if !passive.up {
            views.push(CheckView { kind: "connect".to_owned(), passing: false, detail: passive.detail.clone() });
        }
        let change =
            HealthChanged { service: local.service.clone(), instance: local.instance.clone(), healthy, checks: views };
        if changes.send(change).await.is_err() {
            return;
        }
        told = Some((healthy, verdicts));
    }
}

/// What requests saw: a refused connect takes the instance out at once, a connect that works brings it back.
#[derive(Debug)]
struct Passive {
    up: bool,
    seen: u32,
    seen_broken: u32,
    due: Duration,
    detail: String,
}

impl Passive {
    fn new(local: &LocalInstance) -> Self {
        let seen = local.connect_failures.load(Ordering::Relaxed);
        let seen_broken = local.broken_connections.load(Ordering::Relaxed);
        Self { up: true, seen, seen_broken, due: Duration::ZERO, detail: String::new() }
    }

    fn saw_refusal(&mut self, local: &LocalInstance) -> bool {
        let count = local.connect_failures.load(Ordering::Relaxed);
        // The proxy sets the counter back to zero after a success: only a rise is news.
        let refused = count > self.seen;
        self.seen = count;
        refused
    }

    /// Whether a connection ended before its answer since this was asked last.
    fn saw_break(&mut self, local: &LocalInstance) -> bool {
        let count = local.broken_connections.load(Ordering::Relaxed);
        std::mem::replace(&mut self.seen_broken, count) != count
    }

    async fn run_if_due(&mut self, local: &LocalInstance, now: Duration, refused: bool) {
        let is_doubted = self.saw_break(local) && self.up && !refused;
        if is_doubted && let Err(detail) = connect(local, RETURN_INTERVAL).await {
            (self.up, self.due, self.detail) = (false, now + RETURN_INTERVAL, detail);
            return;
        }
        if refused && self.up {
            self.up = false;
            self.due = now;
            "a request found nobody listening".clone_into(&mut self.detail);
        }
        if self.up || now < self.due {
            return;
        }
        self.due = now + RETURN_INTERVAL;
        match connect(local, RETURN_INTERVAL).await {
            Ok(_) => {
                self.up = true;
                local.connect_failures.store(0, Ordering::Relaxed);
                self.seen = 0;
            }
            Err(detail) => self.detail = detail,
        }
    }
}

#[derive(Debug)]
struct Runner {
    check: CheckConfig,
    state: CheckState,
    due: Duration,
    detail: String,
}

impl Runner {
    fn new(check: CheckConfig) -> Self {
        let state = match check {
            CheckConfig::Http { fall, rise, .. } | CheckConfig::Tcp { fall, rise, .. } => CheckState::new(fall, rise),
            CheckConfig::Ttl { .. } => CheckState::new(1, 1),
        };
        Self { check, state, due: Duration::ZERO, detail: "not run yet".to_owned() }
    }

    fn view(&self) -> CheckView {
        let kind = match self.check {
            CheckConfig::Http { .. } => "http",
            CheckConfig::Tcp { .. } => "tcp",
            CheckConfig::Ttl { .. } => "ttl",
        };
        CheckView { kind: kind.to_owned(), passing: self.state.is_passing(), detail: self.detail.clone() }
    }

    async fn run_if_due(&mut self, local: &LocalInstance, heartbeat: &Heartbeat, now: Duration, hurry: bool) {
        if now < self.due && !hurry {
            return;
        }
        let (interval, result) = match &self.check {
            CheckConfig::Http { path, interval, timeout, .. } => (*interval, http(local, path, *timeout).await),
            CheckConfig::Tcp { interval, timeout, .. } => {
                (*interval, connect(local, *timeout).await.map(|_| "connected".to_owned()))
            }
            CheckConfig::Ttl { ttl } => (TICK, ttl_verdict(heartbeat.silent_for(now), *ttl)),
        };
        self.due = now.saturating_add(interval);
        self.state.observe(result.is_ok());
        self.detail = match result {
            Ok(text) if !self.state.is_passing() => format!("passes again, not yet often enough: {text}"),
            Ok(text) | Err(text) => text,
        };
    }
}

fn ttl_verdict(silent_for: Option<Duration>, ttl: Duration) -> Result<String, String> {
    match silent_for {
        None => Err("no heartbeat yet".to_owned()),
        Some(silence) if silence > ttl => {
            Err(format!("no heartbeat for longer than {}", humantime::format_duration(ttl)))
        }
        Some(_) => Ok("heartbeat in time".to_owned()),
    }
}

async fn connect(local: &LocalInstance, timeout: Duration) -> Result<TcpStream, String> {
    match tokio::time::timeout(timeout, TcpStream::connect(local.address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("connect to {}: {error}", local.address)),
        Err(_) => Err(format!("connect to {}: no answer in {}", local.address, humantime::format_duration(timeout))),
    }
}

async fn http(local: &LocalInstance, path: &str, timeout: Duration) -> Result<String, String> {
    let asked = tokio::time::timeout(timeout, async {
        let stream = connect(local, timeout).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("http handshake: {error}"))?;
        let driver = tokio::spawn(connection);
        let request = Request::get(path)
            .header(hyper::header::HOST, local.address.to_string())
            .header(hyper::header::USER_AGENT, "marram-health")
            .header(hyper::header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| format!("path {path}: {error}"))?;
        let answer = sender.send_request(request).await.map_err(|error| format!("GET {path}: {error}"));
        driver.abort();
        answer.map(|response| response.status())
    })
    .await
    .map_err(|_elapsed| format!("GET {path}: no answer in {}", humantime::format_duration(timeout)))?;
    let status = asked?;
    if status.is_success() || status.is_redirection() {
        Ok(format!("GET {path}: {status}"))
    } else {
        Err(format!("GET {path}: {status}"))
    }
}

#[cfg(test)]
mod tests;
