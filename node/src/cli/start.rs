//! `demo`, `init`, `token create`, `join`, `agent`: from nothing to a running node.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use transport::Clock as _;
use transport::trust::{self, Role};

use super::{CliError, Exit, print};
use crate::admin::AdminToken;
use crate::clock::SystemClock;
use crate::config::{Config, FILE_NAME};
use crate::demo::DemoOptions;
use crate::telemetry::{self, LogFormat, logs};

/// Runs nodes, services and a little load on this machine, with real sockets, certificates and disks.
///
/// Exits 0 when no request failed and every node holds the same policy.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  marram demo\n  marram demo --nodes 5 --for 30s -o json")]
pub(super) struct Demo {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// How long; without it until Ctrl-C, at most 30 minutes
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// How the summary is printed
    #[arg(short, long, value_enum, default_value = "table")]
    output: Summary,
}

/// How the demo's summary is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Summary {
    Table,
    Json,
}

impl Demo {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let options =
            DemoOptions { nodes: self.nodes.into(), duration: self.duration, json: self.output == Summary::Json };
        let code = crate::demo::run(options).map_err(CliError::Agent)?;
        Ok(if code == std::process::ExitCode::SUCCESS { Exit::Ok } else { Exit::Failed })
    }
}

/// Options that `init` and `join` share; all but `--dir` and `--name` end up in node.toml.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct NodeOptions {
    /// Folder of the node; made where there is none, readable by this user only
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Name of the node, a DNS label, unique in the mesh
    #[arg(long, value_name = "NODE")]
    name: String,
    /// Large place, for instance eu-west
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// Small place within the region, for instance hall-3
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// How peers reach this node; else the address of its route to them
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Port for the other nodes, UDP and TCP
    #[arg(long, value_name = "PORT", default_value_t = 7440)]
    mesh_port: u16,
    /// Admin API: a port on 127.0.0.1, or a loopback address with one
    #[arg(long, value_name = "ADDR", default_value = "7070", value_parser = local_address)]
    admin: SocketAddr,
    /// HTTP proxy for local applications: a port on 127.0.0.1, or an address with one
    #[arg(long, value_name = "ADDR", default_value = "7080", value_parser = local_address)]
    proxy: SocketAddr,
}

impl NodeOptions {
    /// The configuration these options ask for; every fault of it at once.
    fn config(&self) -> Result<Config, CliError> {
        let mut config = Config {
            region: self.region.clone().unwrap_or_default(),
            zone: self.zone.clone().unwrap_or_default(),
            ..Config::default()
        };
        config.mesh.bind.set_port(self.mesh_port);
        config.mesh.advertise.clone_from(&self.advertise);
        config.admin.bind = self.admin;
        config.proxy.bind = self.proxy;
        let problems = config.check();
        if problems.is_empty() { Ok(config) } else { Err(CliError::Options(problems)) }
    }

    /// A folder with a node.toml is a node already; nothing of it is written over.
    fn refuse_occupied(&self) -> Result<(), CliError> {
        if self.dir.join(FILE_NAME).exists() { Err(CliError::Occupied(self.dir.clone())) } else { Ok(()) }
    }

    /// Writes node.toml and admin.token, the last steps of making a node.
    fn settle(&self, config: &Config, mesh: &str) -> Result<(), CliError> {
        let path = self.dir.join(FILE_NAME);
        let text = format!(
            "# Node `{}` of mesh `{mesh}`. Only what differs from the defaults stands here:\n\
             # `marram config print --dir DIR` shows the rest, docs/config.md explains it.\n\n{}",
            self.name,
            config.to_toml_brief()
        );
        write_new(&path, &text).map_err(|source| CliError::File { path, source })?;
        AdminToken::load_or_create(&self.dir)?;
        Ok(())
    }
}

/// Makes a new mesh with its first node, which may admit others.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram init --dir a --mesh shop --name a --region eu-west")]
pub(super) struct Init {
    /// Name of the mesh, the trust domain of its certificates
    #[arg(long, value_name = "NAME")]
    mesh: String,
    #[command(flatten)]
    node: NodeOptions,
    /// Seal the root key with the passphrase in this file, instead of a recovery code printed once
    #[arg(long, value_name = "FILE")]
    root_passphrase_file: Option<PathBuf>,
}

impl Init {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        self.node.refuse_occupied()?;
        let config = self.node.config()?;
        let passphrase = self.root_passphrase_file.as_deref().map(read_secret).transpose()?;
        let now = SystemClock::start().unix().as_secs();
        let made = trust::init_mesh(&self.node.dir, &self.mesh, &self.node.name, passphrase.as_deref(), now)?;
        self.node.settle(&config, &self.mesh)?;
        let dir = self.node.dir.display();
        let mut told = format!(
            "mesh `{}` made, node `{}` ({}), root {}\n",
            self.mesh, self.node.name, made.node, made.root_fingerprint
        );
        if let Some(code) = made.recovery_code {
            told.push_str(&format!(
                "\nThe root key is sealed in {dir}/root.key.sealed. Its recovery code is shown only now; keep it somewhere else:\n\n  {code}\n"
            ));
        }
        told.push_str(&format!(
            "\nNext:\n  marram agent --dir {dir}\n  marram token create --dir {dir}        # then, elsewhere: marram join TOKEN --dir DIR --name NODE\n"
        ));
        tell(&told);
        Ok(Exit::Ok)
    }
}

/// Tokens that let nodes join.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Token {
    Create(TokenCreate),
}

impl Token {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        match self {
            Self::Create(verb) => verb.run(),
        }
    }
}

/// Prints a token that lets a node join; works beside the running agent, which redeems it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  TOKEN=$(marram token create --dir a --ttl 10m)")]
pub(super) struct TokenCreate {
    /// Folder of a node that may admit
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// How long the token lives
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// How many nodes may join with it
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// What the newcomers may do: member, gateway (relays only) or admit (may admit others)
    #[arg(long, default_value = "member", value_parser = parse_role)]
    role: Role,
}

impl TokenCreate {
    fn run(self) -> Result<Exit, CliError> {
        let config = Config::load_dir(&self.dir)?;
        let seed = seed(&config);
        let now = SystemClock::start().unix().as_secs();
        let token = trust::create_token(&self.dir, self.ttl, self.uses, self.role, std::slice::from_ref(&seed), now)?;
        tell(&format!(
            "good for {} node(s) of role {} within {}; newcomers ask {seed} (set `mesh.advertise` for another address)\n",
            self.uses,
            self.role,
            humantime::format_duration(self.ttl)
        ));
        print(&format!("{token}\n"))?;
        Ok(Exit::Ok)
    }
}

/// Makes a new node of an existing mesh, with a token from one of its nodes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  marram join \"$TOKEN\" --dir b --name b --region eu-west")]
pub(super) struct Join {
    /// The token, as `marram token create` printed it
    token: String,
    #[command(flatten)]
    node: NodeOptions,
}

impl Join {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        self.node.refuse_occupied()?;
        let mut config = self.node.config()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
        let clock = SystemClock::start();
        let joined = runtime.block_on(trust::join(self.token.trim(), &self.node.dir, &self.node.name, &clock))?;
        config.mesh.seeds = seeds_of(joined.seeds, joined.peers.into_iter().map(|(_, address)| address));
        self.node.settle(&config, &joined.mesh)?;
        tell(&format!(
            "node `{}` ({}) joined mesh `{}` as {}\n\nNext:\n  marram agent --dir {}\n",
            self.node.name,
            joined.node,
            joined.mesh,
            joined.role,
            self.node.dir.display()
        ));
        Ok(Exit::Ok)
    }
}

/// Runs the node of a folder in the foreground, with its log on stderr; SIGTERM drains and ends it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  MARRAM_LOG=info,access=off marram agent --dir a")]
pub(super) struct Agent {
    /// Folder of the node
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[arg(
        long,
        help = "How log lines look; MARRAM_LOG filters them",
        value_enum,
        default_value = "text",
        env = "MARRAM_LOG_FORMAT"
    )]
    log_format: LogFormat,
}

impl Agent {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let config = Config::load_dir(&self.dir)?;
        let filter = std::env::var(logs::FILTER_VARIABLE).ok();
        let _until_the_end = telemetry::init(self.log_format, filter.as_deref())?;
        crate::agent::run(&self.dir, config).map_err(CliError::Agent)?;
        Ok(Exit::Ok)
    }
}

/// A port alone means 127.0.0.1.
pub(super) fn local_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_unread| "write a port, or IP:PORT, for instance 127.0.0.1:7070".to_owned())
}

fn parse_role(text: &str) -> Result<Role, String> {
    text.parse().map_err(|error: trust::UnknownRole| error.to_string())
}

/// Seeds of the token first, then peers, each once, as many as a configuration takes.
pub(super) fn seeds_of(seeds: Vec<String>, peers: impl Iterator<Item = String>) -> Vec<String> {
    const SEEDS_WRITTEN: usize = 16;
    let mut all: Vec<String> = Vec::new();
    for seed in seeds.into_iter().chain(peers) {
        if !all.contains(&seed) && all.len() < SEEDS_WRITTEN {
            all.push(seed);
        }
    }
    all
}

/// Where newcomers find this node: as advertised, else as bound, else the address of its default route.
fn seed(config: &Config) -> String {
    if let Some(advertise) = &config.mesh.advertise {
        return advertise.clone();
    }
    let bind = config.mesh.bind;
    let ip =
        if bind.ip().is_unspecified() { route_address().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)) } else { bind.ip() };
    SocketAddr::new(ip, bind.port()).to_string()
}

/// The address this machine would send from. Connecting a UDP socket sends nothing; 192.0.2.1 is for documentation.
fn route_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

fn read_secret(path: &Path) -> Result<String, CliError> {
    let text = fs::read_to_string(path).map_err(|source| CliError::File { path: path.to_owned(), source })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Words for the person; results alone go to stdout.
fn tell(text: &str) {
    // Nobody is left to tell when stderr is closed.
    drop(io::stderr().write_all(text.as_bytes()));
}
