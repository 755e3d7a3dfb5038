//! Every agent restarted in turn while applications ask through all of them: no request may fail.
//!
//! The applications of a node use that node's proxy, also while it restarts. Its listening sockets are held by this process,
//! as a systemd socket unit holds them, so that what connects meanwhile waits in their queue. Nothing is asked twice.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tests::{App, Fleet, HeldSockets, Node};
use tokio::task::JoinSet;

use super::{CommonOptions, count, spread, until};
use crate::clock;
use crate::load::{self, LoadConfig, Tally};
use crate::report::Report;

/// How to run the proof.
#[derive(Debug, Clone, Args)]
pub struct RollingOptions {
    /// Agents, each with an instance of the service; every one is restarted once
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=20))]
    pub agents: u16,
    /// Requests a second at all agents together
    #[arg(long, default_value_t = 1000.0)]
    pub rate: f64,
    /// How long to ask
    #[arg(long = "for", default_value = "60s", value_parser = humantime::parse_duration)]
    pub time: Duration,
    /// What all proofs take.
    #[command(flatten)]
    pub common: CommonOptions,
}

const SERVICE: &str = "hello";
/// Connections of the applications of one node.
const CONNECTIONS: usize = 16;
/// Requests of one node's applications that may wait for a connection while it restarts.
const WAITING: usize = 20_000;
/// Longest time for one request: longer than a restart.
const REQUEST_MAX: Duration = Duration::from_secs(20);
const READY_MAX: Duration = Duration::from_secs(30);
const WHOLE_MAX: Duration = Duration::from_secs(60);

/// Restarts every agent in turn under load.
pub(super) fn steps(options: &RollingOptions, report: &mut Report) -> Result<()> {
    let agents = usize::from(options.agents);
    let apps: Vec<App> = (0..agents).map(|n| App::start(&format!("app-{n}"))).collect();
    let mut fleet = Fleet::start(agents, &|n, config| {
        if let Some(app) = apps.get(n) {
            Node::serve(config, SERVICE, app.address(), None);
        }
    });
    fleet.wait_service(SERVICE, agents);
    let mut held = Vec::new();
    for node in &mut fleet.nodes {
        ensure!(node.terminate() == Some(0), "{} did not stop\n{}", node.name, node.log_tail(20));
        let sockets = HeldSockets::of(node);
        node.start_on(&sockets);
        held.push(sockets);
    }
    fleet.wait_whole();
    fleet.wait_service(SERVICE, agents);
    report.event(format!("{agents} agents see each other, each on sockets that are held"));

    let loads = Loads::start(options, &fleet)?;
    // Restarts are spread over the time, with as long before the first as after the last.
    let between = options.time / u32::from(options.agents + 1);
    let (mut downs, mut codes) = (Vec::new(), Vec::new());
    let begin = clock::now();
    for (number, sockets) in (1_u32..).zip(&held) {
        until(options.time, || begin.elapsed() >= between * number);
        let node = fleet.nodes.get_mut(downs.len()).context("a socket for each agent")?;
        let stopped = clock::now();
        codes.push(node.terminate());
        node.start_on(sockets);
        let is_ready = || tests::get(node.admin, "/readyz", &[]).is_ok_and(|answer| answer.status == 200);
        until(READY_MAX, is_ready)
            .with_context(|| format!("{} is not ready again\n{}", node.name, node.log_tail(20)))?;
        downs.push(stopped.elapsed());
        report.event(format!("{} restarted in {:?}", node.name, stopped.elapsed()));
        let is_whole = || fleet.nodes.iter().all(|node| node.members("alive").is_ok_and(|alive| alive.len() == agents));
        until(WHOLE_MAX, is_whole).context("the fleet does not see itself whole again")?;
    }
    let tally = loads.end()?;
    tell(report, options, &tally, &downs);
    report.invariant(
        "every-stop-is-clean",
        codes.iter().all(|code| *code == Some(0)),
        format!("exit codes {codes:?} after SIGTERM"),
    );
    Ok(())
}

/// The applications of all nodes.
struct Loads {
    running: std::thread::JoinHandle<Result<Vec<Tally>>>,
}

impl Loads {
    fn start(options: &RollingOptions, fleet: &Fleet) -> Result<Self> {
        let rate = options.rate / count(fleet.nodes.len());
        let configs: Vec<LoadConfig> = (fleet.nodes.iter())
            .map(|node| {
                let url = format!("http://{}/", node.proxy).parse().context("the proxy's address is a url")?;
                Ok(LoadConfig {
                    host: Some(format!("{SERVICE}.mesh")),
                    rate,
                    connections: CONNECTIONS,
                    duration: Some(options.time),
                    timeout: REQUEST_MAX,
                    waiting_max: WAITING,
                    ..LoadConfig::new(url)
                })
            })
            .collect::<Result<_>>()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
        let all = async {
            let mut loads: JoinSet<Result<Tally>> =
                configs.into_iter().map(|config| load::run(config, std::future::pending(), |_second| ())).collect();
            let mut tallies = Vec::new();
            while let Some(ended) = loads.join_next().await {
                tallies.push(ended.context("a load broke off")??);
            }
            Ok(tallies)
        };
        Ok(Self { running: std::thread::spawn(move || runtime.block_on(all)) })
    }

    fn end(self) -> Result<Vec<Tally>> {
        self.running.join().map_err(|_panic| anyhow::anyhow!("the load panicked"))?
    }
}

fn tell(report: &mut Report, options: &RollingOptions, tallies: &[Tally], downs: &[Duration]) {
    let (ok, failed): (Vec<u64>, Vec<u64>) = tallies.iter().map(|tally| (tally.ok, tally.failed)).unzip();
    let (ok, failed): (u64, u64) = (ok.iter().sum(), failed.iter().sum());
    let shown = |number: u64| u32::try_from(number).map_or(f64::MAX, f64::from);
    report.figure("requests", shown(ok + failed), "requests", "at all agents together");
    report.figure("failed", shown(failed), "requests", "of them");
    let p99 = tallies.iter().map(|tally| tally.p99_ms).fold(0.0, f64::max);
    let max = tallies.iter().map(|tally| tally.max_ms).fold(0.0, f64::max);
    report.figure("latency-p99", p99, "ms", "at the agent where it was longest, from when a request was due");
    report.figure("latency-max", max, "ms", "likewise; what waited for a restart is in it");
    spread(report, "restart", downs, "from SIGTERM until ready again");
    let first: Vec<_> = tallies.iter().flat_map(|tally| &tally.failures).take(5).collect();
    let expected = options.rate * options.time.as_secs_f64();
    report.invariant(
        "no-request-fails",
        failed == 0 && shown(ok) >= expected * 0.99,
        format!("{failed} of {} failed, about {expected:.0} were due; the first: {first:?}", ok + failed),
    );
}
