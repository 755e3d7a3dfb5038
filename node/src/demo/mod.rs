//! `marram demo`: a whole mesh on one machine, made of real agents.
//!
//! Every node is a child process of this same binary with its own folder, keys, store and ports; they join by real
//! tokens. The demo adds a small `hello` service beside each node, a bounded load through every node's proxy, one policy
//! write, and a table of what the nodes themselves report. Nothing in it is simulated.

mod fleet;
mod http;
mod load;
mod report;
mod service;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use transport::Clock;

use crate::clock::SystemClock;
use fleet::Fleet;
use load::{Load, Tally};
use report::{Screen, Summary};

/// Requests per second over all nodes: enough to see shares, little enough for a laptop.
const REQUESTS_PER_SECOND: u32 = 120;
/// The demo ends by itself after this when nobody said how long.
const LONGEST: Duration = Duration::from_secs(30 * 60);
/// How long the fleet may take to see itself whole.
const START_MAX: Duration = Duration::from_secs(30);
/// How long the last policy write may take to reach all nodes before the summary counts it as missing.
const AGREE_MAX: Duration = Duration::from_secs(10);

/// What `marram demo` was asked for.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// How many nodes, 1..=9.
    pub nodes: usize,
    /// How long requests flow; `None` means until Ctrl-C, at most 30 minutes.
    pub duration: Option<Duration>,
    /// Print the summary as JSON on stdout and nothing else there.
    pub json: bool,
}

/// Runs the demo to its end: exit code 0 when no request failed and all policy roots are equal.
///
/// # Errors
/// When the fleet cannot be started; the message names the node and shows the end of its log.
pub fn run(options: DemoOptions) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(play(options))
}

async fn play(options: DemoOptions) -> anyhow::Result<ExitCode> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let mut screen = Screen::new(options.json, std::io::stdout().is_terminal());
    // First of all: from here on Ctrl-C ends the agents and removes their folders.
    let mut stop = Stop::listen()?;
    let mut fleet = Fleet::prepare(options.nodes)?;
    for node in &mut fleet.nodes {
        node.service_port = service::start(&node.name).await?;
    }
    screen.line(&format!("Starting {} nodes: {}", fleet.nodes.len(), fleet.names().join(", ")));
    let began = clock.now();
    fleet.start()?;
    tokio::select! {
        whole = fleet.wait_until_whole(START_MAX, &*clock) => whole?,
        () = stop.asked() => {
            fleet.stop().await;
            return Ok(ExitCode::FAILURE);
        }
    }
    let whole_after = clock.now().saturating_sub(began);
    screen.line(&format!("  up and seeing each other after {:.1} s", whole_after.as_secs_f64()));
    for line in fleet.links().await? {
        screen.line(&line);
    }
    let in_force = fleet.write_policy(AGREE_MAX, &*clock).await?;
    screen.line(&format!(
        "  policy written on {} is in force on all after {} ms",
        fleet.nodes.first().map_or("", |node| node.name.as_str()),
        in_force.as_millis()
    ));
    screen.block(&fleet.invitation());

    let tally = Arc::new(Tally::default());
    let load = Load::start(&fleet.proxies(), REQUESTS_PER_SECOND, &tally, &clock);
    let ends = clock.now() + options.duration.unwrap_or(LONGEST);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = stop.asked() => break,
            _ = second.tick() => {}
        }
        fleet.check_alive()?;
        if clock.now() >= ends {
            break;
        }
        let explained = fleet.explain("hello").await?;
        screen.table(&explained, &tally, ends.saturating_sub(clock.now()));
    }
    load.stop().await;
    let summary = Summary::gather(&fleet, &tally, whole_after, in_force, AGREE_MAX, &*clock).await?;
    screen.summary(&summary);
    let good = summary.is_good();
    fleet.stop().await;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// SIGINT and SIGTERM, from the moment on which it is made.
#[derive(Debug)]
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        let interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        Ok(Self { interrupt, terminate })
    }

    /// Ends when one of them has come, also if that was a while ago.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
