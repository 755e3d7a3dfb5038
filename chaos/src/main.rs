//! The `chaos` binary: demo service, load generator, container entry point, power cuts, scenarios.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use hyper::Uri;

use chaos::echo::{self, EchoConfig};
use chaos::entrypoint::{self, EntrypointOptions};
use chaos::fleet_proof::{self, Proof};
use chaos::load::{self, LoadConfig};
use chaos::load_sim::{self, LoadSimArguments};
use chaos::power_cut::{self, PowerCutOptions, Sabotage, WriterOptions};
use chaos::scenario::{self, Outcome, ScenarioOptions};
use chaos::sim::{self, SimArguments};

/// Exit code of a scenario or a run of power cuts that cannot run here, as test harnesses know it.
const SKIPPED: u8 = 77;

#[derive(Debug, Parser)]
#[command(name = "chaos", version, about = "Puts a Marram cluster under load and breaks it on purpose")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The demo service: says who answered; echoes POST bodies; /healthz; /slow?ms=N; a TCP echo when asked for
    Echo(EchoArguments),
    /// Open-loop load without retries: one line each second, a summary at the end; exit 1 when a request failed
    Load(LoadArguments),
    /// The first process of the demo container: init or join on first start, then the agent
    Entrypoint(Box<EntrypointOptions>),
    /// Cuts the power of a store while it is written, again and again; exit 1 when an acknowledged write was lost
    PowerCuts(PowerCutArguments),
    /// The process that writes while the power goes
    #[command(hide = true)]
    PowerCutsWriter(WriterOptions),
    /// Brings a cluster up, breaks it, and tells what held; exit 0 all held, 1 something broke, 77 cannot run here
    Scenario(ScenarioArguments),
    /// Ways to choose a server, simulated: what requests take under each, beside an oracle, as a Markdown table
    LoadSim(LoadSimArguments),
    /// Replicas of the policy store under faults drawn from seeds, against an exact oracle; exit 1 when a seed fails
    Sim(SimArguments),
    #[command(flatten)]
    Proof(Proof),
}

#[derive(Debug, Args)]
struct EchoArguments {
    /// Address of the HTTP service
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    bind: SocketAddr,
    /// Who answers
    #[arg(long)]
    name: String,
    /// Address of the TCP echo
    #[arg(long, value_name = "ADDR")]
    tcp: Option<SocketAddr>,
    /// Time each answer takes at least
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    delay: Duration,
}

#[derive(Debug, Args)]
struct LoadArguments {
    /// Where to connect, and the path
    #[arg(long, default_value = "http://127.0.0.1:7080/")]
    url: Uri,
    /// The Host header
    #[arg(long)]
    host: Option<String>,
    /// Requests a second over all connections
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// Connections
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// How long
    #[arg(long = "for", default_value = "30s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Longest time for one request
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Wait so long for a first good answer before the load begins
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Each second, and the summary, as a line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct PowerCutArguments {
    /// How many cuts
    #[arg(long, default_value_t = 100)]
    runs: u32,
    /// Decides about the writes, the moments, and what survives
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Leave a copy of each disk that broke something, as it was found after the cut, in this folder
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "power-cuts")]
    keep: Option<PathBuf>,
    /// Make the storage wrong on purpose, to see that it is noticed
    #[arg(long)]
    sabotage: Option<Sabotage>,
    /// Cuts that lose what was not synced and tear no page
    #[arg(long)]
    clean: bool,
    /// The result as a line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ScenarioArguments {
    /// Which one
    #[arg(value_enum)]
    name: Scenario,
    /// Leave the cluster running at the end
    #[arg(long)]
    keep: bool,
    /// Folder for the report, and for the containers' logs when something broke
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/report"))]
    report: PathBuf,
    /// Folder of the compose file
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/compose"))]
    compose: PathBuf,
    /// How long the network stays cut
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    split_for: Duration,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Scenario {
    /// Split 2 | 3, a policy on each side, heal; then kill -9 and return
    SplitHeal,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Echo(arguments) => serve_echo(arguments).await,
        Command::Load(arguments) => send_load(arguments).await,
        Command::Entrypoint(options) => entrypoint::run(*options).await.map(ExitCode::from),
        Command::PowerCuts(arguments) => cut_power(arguments).await,
        Command::PowerCutsWriter(options) => power_cut::write(&options).map(|()| ExitCode::SUCCESS),
        Command::Scenario(arguments) => run_scenario(arguments).await,
        Command::LoadSim(arguments) => load_sim::command(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Sim(arguments) => run_sim(&arguments),
        Command::Proof(proof) => fleet_proof::run(proof).await,
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

async fn serve_echo(arguments: EchoArguments) -> Result<ExitCode> {
    let EchoArguments { bind, name, tcp, delay } = arguments;
    let mut server = echo::serve(EchoConfig { bind, name, tcp, delay }).await?;
    eprintln!("http on {}", server.http());
    if let Some(tcp) = server.tcp() {
        eprintln!("tcp on {tcp}");
    }
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        () = server.wait() => {}
        _ = terminate.recv() => {}
        stopped = tokio::signal::ctrl_c() => stopped?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn send_load(arguments: LoadArguments) -> Result<ExitCode> {
    let mut config = LoadConfig::new(arguments.url);
    config.host = arguments.host;
    config.rate = arguments.rate;
    config.connections = arguments.connections;
    config.duration = Some(arguments.duration);
    config.timeout = arguments.timeout;
    config.ready_wait = arguments.wait;
    let tell = |tally: &load::Tally| {
        if arguments.json {
            tally.json().map_or_else(|error| eprintln!("{error:#}"), |line| println!("{line}"));
        } else {
            println!("{}", tally.line());
        }
    };
    let stop = async {
        // Where the signal cannot be listened to, the run ends by its time.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let whole = load::run(config, stop, tell).await?;
    if !arguments.json {
        println!("in all:");
    }
    tell(&whole);
    Ok(if whole.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn cut_power(arguments: PowerCutArguments) -> Result<ExitCode> {
    let PowerCutArguments { runs, seed, keep, sabotage, clean, json } = arguments;
    let options = PowerCutOptions { runs, seed, keep, sabotage, torn: !clean, program: std::env::current_exe()? };
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let mut cuts = tokio::task::spawn_blocking(move || power_cut::run(&options, &stopped, &|line| eprintln!("{line}")));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    // Told to stop, it takes the mount back first.
    let done = tokio::select! {
        done = &mut cuts => done,
        _ = tokio::signal::ctrl_c() => {
            stop.store(true, Ordering::Relaxed);
            cuts.await
        }
        _ = terminate.recv() => {
            stop.store(true, Ordering::Relaxed);
            cuts.await
        }
    };
    let tally = match done?? {
        Ok(tally) => tally,
        Err(reason) => {
            println!("power-cuts: skipped: {reason}");
            return Ok(ExitCode::from(SKIPPED));
        }
    };
    if json {
        println!("{}", serde_json::to_string(&tally)?);
    } else {
        tally.findings.iter().for_each(|finding| println!("{finding}"));
        println!("{tally}");
    }
    Ok(if tally.held() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run_scenario(arguments: ScenarioArguments) -> Result<ExitCode> {
    let ScenarioArguments { name: Scenario::SplitHeal, keep, report, compose, split_for } = arguments;
    match scenario::split_heal(&ScenarioOptions { compose, report, keep, split_for }).await? {
        Outcome::Held => {
            println!("split-heal: every invariant held");
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Broken(names) => {
            eprintln!("split-heal: broken: {}", names.join(", "));
            Ok(ExitCode::FAILURE)
        }
        Outcome::Skipped(reason) => {
            println!("split-heal: skipped: {reason}");
            Ok(ExitCode::from(SKIPPED))
        }
    }
}

fn run_sim(arguments: &SimArguments) -> Result<ExitCode> {
    Ok(if sim::command(arguments)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
