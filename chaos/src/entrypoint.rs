//! The first process of the demo container: on the first start the node founds the mesh or joins it, then the agent
//! runs as a child; the demo service and the load run inside this process.
//!
//! Newcomers find their tokens in a folder shared by all containers: the founder writes `NAME.token` for each name it
//! was told, single use, and again at each of its starts for those that have not joined yet; a newcomer leaves
//! `NAME.joined`. This is a convenience for one machine. Between machines a person or a tool carries the token.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::admin::Admin;
use crate::echo::{self, EchoConfig, EchoServer};
use crate::load::{self, LoadConfig};

/// What this container is.
#[derive(Debug, Clone, Args)]
pub struct EntrypointOptions {
    /// The node's name.
    #[arg(long, value_name = "NODE")]
    pub name: String,
    /// The mesh's name.
    #[arg(long, default_value = "demo")]
    pub mesh: String,
    /// How other containers reach this one.
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: String,
    /// Large place.
    #[arg(long, default_value = "here")]
    pub region: String,
    /// Small place.
    #[arg(long, default_value = "one")]
    pub zone: String,
    /// Where the HTTP proxy listens. Reachable from the other containers and, where published, from the host.
    #[arg(long, default_value = "0.0.0.0:7080")]
    pub proxy: SocketAddr,
    /// The node's folder.
    #[arg(long, default_value = "/data/node")]
    pub dir: PathBuf,
    /// The folder shared by all containers.
    #[arg(long, default_value = "/join")]
    pub shared: PathBuf,
    /// Found the mesh, and write a token for each of these names.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub found_for: Option<Vec<String>>,
    /// Serve the demo service under this name, as an instance of this node.
    #[arg(long, value_name = "SERVICE")]
    pub serve: Option<String>,
    /// Time each answer of the demo service takes.
    #[arg(long, default_value = "5ms", value_parser = humantime::parse_duration)]
    pub serve_delay: Duration,
    /// Send load to this service through the node's proxy, for ever.
    #[arg(long, value_name = "SERVICE")]
    pub load: Option<String>,
    /// Requests a second of the load.
    #[arg(long, default_value_t = 50.0)]
    pub rate: f64,
    /// Connections of the load.
    #[arg(long, default_value_t = 4)]
    pub connections: usize,
    /// How the load tells each second: `text` or `json`.
    #[arg(long, default_value = "text", env = "MARRAM_LOAD_FORMAT")]
    pub load_format: LoadFormat,
    /// The `marram` binary.
    #[arg(long, default_value = "/marram")]
    pub marram: PathBuf,
}

/// How the load tells each second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LoadFormat {
    /// For a person.
    Text,
    /// A [`load::Tally`] a line.
    Json,
}

/// Runs until the agent ends, or forwards SIGTERM and SIGINT to it and waits. Gives the agent's exit code.
///
/// # Errors
/// When the node cannot be founded or joined within 2 minutes, or a program does not start.
pub async fn run(options: EntrypointOptions) -> Result<u8> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let serving = tokio::select! {
        prepared = prepare(&options) => prepared?,
        _ = terminate.recv() => return Ok(0),
        _ = interrupt.recv() => return Ok(0),
    };

    let mut agent = start_agent(&options)?;
    let mut tasks = JoinSet::new();
    let admin = Admin::new(options.dir.join("admin.sock"));
    if let (Some(service), Some(server)) = (options.serve.clone(), &serving) {
        tasks.spawn(register(admin, service, server.http().port()));
    }
    if let Some(service) = options.load.clone() {
        tasks.spawn(send_load(service, options.clone()));
    }

    let stopped = loop {
        tokio::select! {
            ended = agent.wait() => break ended?,
            _ = terminate.recv() => break stop(agent).await?,
            _ = interrupt.recv() => break stop(agent).await?,
            Some(ended) = tasks.join_next() => ended.context("a task of the entry point panicked")??,
        }
    };
    Ok(exit_code(stopped))
}

/// Everything before the agent: identity, tokens for the others, the demo service.
async fn prepare(options: &EntrypointOptions) -> Result<Option<EchoServer>> {
    match &options.found_for {
        Some(names) => {
            if !is_node(options) {
                found(options).await?;
            }
            write_tokens(options, names).await?;
        }
        None if !is_node(options) => join(options).await?,
        None => {}
    }
    if options.serve.is_none() {
        return Ok(None);
    }
    let config = EchoConfig {
        bind: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), SERVICE_PORT),
        name: options.name.clone(),
        tcp: None,
        delay: options.serve_delay,
    };
    Ok(Some(echo::serve(config).await?))
}

/// `init` and `join` write node.toml last, so a node with one is whole.
fn is_node(options: &EntrypointOptions) -> bool {
    options.dir.join("node.toml").is_file()
}

/// `marram init`.
async fn found(options: &EntrypointOptions) -> Result<()> {
    let mut command = Command::new(&options.marram);
    command.args(["init", "--mesh", &options.mesh]).args(common_options(options));
    let status = command.kill_on_drop(true).status().await.context("marram init does not start")?;
    if !status.success() {
        bail!("marram init: {status}");
    }
    Ok(())
}

/// A single-use token for each name that has not joined yet.
async fn write_tokens(options: &EntrypointOptions, names: &[String]) -> Result<()> {
    for name in names {
        if options.shared.join(format!("{name}.joined")).exists() {
            continue;
        }
        let mut command = Command::new(&options.marram);
        command.args(["token", "create", "--ttl", "24h", "--uses", "1", "--dir"]).arg(&options.dir);
        let output = command.kill_on_drop(true).output().await.context("marram token create does not start")?;
        if !output.status.success() {
            bail!("marram token create: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        write_whole(&options.shared.join(format!("{name}.token")), &output.stdout)?;
    }
    Ok(())
}

/// Readers see the whole file or none, and only this user may read it.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    fs::remove_file(&partial)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)
}

/// `marram join`, again and again while the founder is not up yet.
async fn join(options: &EntrypointOptions) -> Result<()> {
    let path = options.shared.join(format!("{}.token", options.name));
    let mut last = format!("{}: no token there", path.display());
    let joining = async {
        loop {
            match fs::read_to_string(&path) {
                Ok(token) => {
                    let mut command = Command::new(&options.marram);
                    command.arg("join").arg(token.trim()).args(common_options(options));
                    let output = command.kill_on_drop(true).output().await.context("marram join does not start")?;
                    if output.status.success() {
                        return anyhow::Ok(());
                    }
                    last = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                }
                Err(error) => last = format!("{}: {error}", path.display()),
            }
            sleep(JOIN_INTERVAL).await;
        }
    };
    match timeout(JOIN_WAIT, joining).await {
        Ok(joined) => joined?,
        Err(_) => bail!("not joined within {JOIN_WAIT:?}; last: {last}"),
    }
    fs::write(options.shared.join(format!("{}.joined", options.name)), b"")?;
    // Used up: of no worth to anybody, and one file less to explain.
    fs::remove_file(&path)?;
    Ok(())
}

fn common_options(options: &EntrypointOptions) -> Vec<String> {
    let words = [
        ["--dir", &options.dir.to_string_lossy()],
        ["--name", &options.name],
        ["--region", &options.region],
        ["--zone", &options.zone],
        ["--advertise", &options.advertise],
        ["--proxy", &options.proxy.to_string()],
    ];
    words.into_iter().flatten().map(str::to_owned).collect()
}

fn start_agent(options: &EntrypointOptions) -> Result<Child> {
    let mut command = Command::new(&options.marram);
    command.args(["agent", "--dir"]).arg(&options.dir).kill_on_drop(true);
    command.spawn().context("marram agent does not start")
}

/// Tells the node about its instance, as soon as it listens. The node keeps it, so this matters on the first start.
async fn register(admin: Admin, service: String, port: u16) -> Result<()> {
    let registration = serde_json::json!({
        "port": port,
        "protocol": "http",
        "checks": [{ "type": "http", "path": "/healthz", "interval": "1s" }],
    });
    let mut last = None;
    for _ in 0..REGISTER_TRIES {
        match admin.register(&service, &port.to_string(), &registration).await {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
        sleep(REGISTER_INTERVAL).await;
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("not tried"))).context("the demo service could not be registered")
}

async fn send_load(service: String, options: EntrypointOptions) -> Result<()> {
    let url = format!("http://127.0.0.1:{}/", options.proxy.port());
    let mut config = LoadConfig::new(url.parse()?);
    config.host = Some(format!("{service}.mesh"));
    config.rate = options.rate;
    config.connections = options.connections;
    config.duration = None;
    config.ready_wait = LOAD_READY_WAIT;
    load::run(config, std::future::pending(), |second| match options.load_format {
        LoadFormat::Text => println!("load from {}: {}", options.name, second.line()),
        LoadFormat::Json => second.json().map_or_else(|error| eprintln!("{error:#}"), |line| println!("{line}")),
    })
    .await
    .map(drop)
}

/// SIGTERM to the agent, then wait; after [`DRAIN_WAIT`] SIGKILL.
async fn stop(mut agent: Child) -> Result<ExitStatus> {
    if let Some(pid) = agent.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw) {
        // Fails only when the agent has ended, which the wait below sees.
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
    }
    match timeout(DRAIN_WAIT, agent.wait()).await {
        Ok(ended) => Ok(ended?),
        Err(_) => {
            agent.kill().await?;
            Ok(agent.wait().await?)
        }
    }
}

/// As shells do: 128 plus the signal's number for a process that a signal ended.
fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

const SERVICE_PORT: u16 = 8080;
const JOIN_INTERVAL: Duration = Duration::from_millis(300);
const JOIN_WAIT: Duration = Duration::from_secs(120);
const REGISTER_INTERVAL: Duration = Duration::from_millis(200);
const REGISTER_TRIES: usize = 150;
const LOAD_READY_WAIT: Duration = Duration::from_secs(600);
const DRAIN_WAIT: Duration = Duration::from_secs(20);
