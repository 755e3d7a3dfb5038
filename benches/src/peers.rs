//! Two hops with mutual TLS between them, of Marram and of what else people would use, taking turns on this machine.
//!
//! Every pair stands between the same client and the same backend: client, A in clear, TLS both ways, B in clear, backend.
//! All get two threads each for proxying and `TLS_AES_128_GCM_SHA256` where they can be told so. The others write no access log:
//! "marram, no access log" is set as they are, "marram" writes one as it does unless told otherwise (to a file). Pairs that parse
//! requests and those that only carry bytes are told apart.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use node::config::{ListenerConfig, ListenerProtocol, MeshTransport, Protocol};
use node::telemetry::logs::{FILTER_DEFAULT, FILTER_VARIABLE};
use tests::{Fleet, Node, free_port};

use crate::load::two::{self, Call};
use crate::load::{self, Asking, Outcome};
use crate::process::{family_cpu_seconds, family_resident_kib, load_average};
use crate::two_hops::median;

use self::ground::{Ground, Program};
use self::table::{Held, Row};

pub(crate) mod ground;
mod plot;
pub(crate) mod setups;
mod table;

pub(crate) const HOST: &str = "bench.mesh";
/// The same for calls of gRPC, whose backend speaks HTTP/2.
const GRPC_HOST: &str = "bench-grpc.mesh";
/// Requests at a time on each connection of HTTP/2.
const STREAMS: usize = 8;
/// Connections that are kept open, each after one request, while memory is read.
const CONNECTIONS_HELD: usize = 1000;
/// Before a point is measured, so that connections are made and pools filled.
const WARM_UP: Duration = Duration::from_millis(300);

/// Requests of one kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) connections: usize,
    pub(crate) body_bytes: usize,
    pub(crate) is_kept: bool,
    /// Over HTTP/2, [`STREAMS`] at a time on each connection; else over HTTP/1.1.
    pub(crate) call: Option<Call>,
}

impl Workload {
    const fn one(name: &'static str, connections: usize, body_bytes: usize) -> Self {
        Self { name, connections, body_bytes, is_kept: true, call: None }
    }

    const fn two(name: &'static str, call: Call) -> Self {
        Self { name, connections: 4, body_bytes: 1 << 10, is_kept: true, call: Some(call) }
    }
}

const WORKLOADS: [Workload; 8] = [
    Workload::one("1 KiB, 1 connection", 1, 1 << 10),
    Workload::one("1 KiB, 32 connections", 32, 1 << 10),
    Workload::one("1 KiB, 128 connections", 128, 1 << 10),
    Workload { is_kept: false, ..Workload::one("1 KiB, a new connection for each request, 32 at once", 32, 1 << 10) },
    Workload::one("64 KiB, 32 connections", 32, 64 << 10),
    Workload::one("1 MiB, 8 connections", 8, 1 << 20),
    Workload::two("HTTP/2, 1 KiB, 4 connections with 8 requests each", Call::Get),
    Workload::two("gRPC, calls of 100 bytes answered with 1 KiB, 4 connections with 8 each", Call::Grpc),
];

/// What a pair makes of what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    /// There is no pair.
    None,
    /// It reads requests.
    Requests,
    /// It carries bytes.
    Bytes,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "",
            Self::Requests => "requests",
            Self::Bytes => "bytes",
        })
    }
}

/// A pair that runs and can be asked.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) name: String,
    pub(crate) layer: Layer,
    pub(crate) entry: SocketAddr,
    /// Where it takes HTTP/2 in clear, and calls of gRPC over that.
    two: Option<[SocketAddr; 2]>,
    /// The processes of A and of B, with all their children.
    pids: Vec<u32>,
    /// Kept so that they live; dropping ends them.
    _programs: Vec<Program>,
}

impl Pair {
    /// Asks it for what the workload says.
    fn ask(&self, workload: &Workload, duration: Duration) -> anyhow::Result<Outcome> {
        let Some(call) = workload.call else {
            let asking = Asking { host: HOST, body_bytes: workload.body_bytes, is_kept: workload.is_kept };
            return load::run(self.entry, asking, workload.connections, duration);
        };
        let [plain, grpc] = self.two.context("no way in for HTTP/2")?;
        let (entry, host) = if call == Call::Grpc { (grpc, GRPC_HOST) } else { (plain, HOST) };
        two::run(entry, (call, host), (workload.connections, STREAMS), duration)
    }

    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.pids.iter().map(|pid| family_cpu_seconds(*pid)).sum()
    }

    /// Resident memory of A and of B in MB.
    fn resident_mb(&self) -> anyhow::Result<Vec<f64>> {
        self.pids.iter().map(|pid| Ok(family_resident_kib(*pid)? / 1024.0)).collect()
    }
}

/// Measures every pair that can be started here, `each` long for each point of each of `rounds` rounds; prints tables, and
/// draws `plot` where one is wanted. Only pairs whose name contains one of `only` take part, and points whose name contains
/// one of `points`, unless these are empty.
pub(crate) fn run(
    each: Duration,
    rounds: usize,
    only: &[String],
    points: &[String],
    plot: Option<&Path>,
) -> anyhow::Result<()> {
    let is_wanted = |name: &str, parts: &[String]| parts.is_empty() || parts.iter().any(|part| name.contains(part));
    let workloads: Vec<Workload> = WORKLOADS.into_iter().filter(|workload| is_wanted(workload.name, points)).collect();
    anyhow::ensure!(!workloads.is_empty(), "no point has a title with {points:?} in it");
    let backends = [load::backend()?, two::backend()?];
    let ground = Ground::prepare()?;
    let mut pairs = vec![Pair {
        name: "direct".to_owned(),
        layer: Layer::None,
        entry: backends[0],
        two: Some([backends[1]; 2]),
        pids: Vec::new(),
        _programs: Vec::new(),
    }];
    let mut idle = Vec::new();
    let mut fleets = Vec::new();
    for (name, transport, has_access_log) in [
        ("marram", MeshTransport::Auto, true),
        ("marram, no access log", MeshTransport::Auto, false),
        ("marram over TCP", MeshTransport::Tcp, true),
    ] {
        let (mut fleet, listener) = marram(backends, transport);
        if !has_access_log {
            silence(&mut fleet)?;
        }
        let [near, far] = fleet.nodes.as_slice() else { anyhow::bail!("two agents") };
        let pids = vec![near.pid().context("a running agent")?, far.pid().context("a running agent")?];
        let own = |name: String, layer, entry, two| {
            let pids = pids.clone();
            Pair { name, layer, entry, two, pids, _programs: Vec::new() }
        };
        let requests = own(name.to_owned(), Layer::Requests, near.proxy, Some([near.proxy; 2]));
        idle.extend(requests.resident_mb()?);
        pairs.push(requests);
        pairs.push(own(format!("{name}, TCP listener"), Layer::Bytes, listener, None));
        fleets.push(fleet);
    }
    for setup in setups::all(&ground, backends[0])? {
        match setup.start(backends[1]) {
            Ok(pair) => pairs.push(pair),
            Err(error) => println!("{}: left out: {error:#}\n", setup.name),
        }
    }
    pairs.retain(|pair| pair.layer == Layer::None || is_wanted(&pair.name, only));
    let taking = |workload: &Workload| {
        let call = workload.call;
        pairs.iter().filter(move |pair| call.is_none() || pair.two.is_some())
    };
    let mut rows: Vec<Vec<Row>> = workloads.iter().map(|workload| taking(workload).map(Row::of).collect()).collect();
    for _ in 0..rounds {
        for (workload, rows) in workloads.iter().zip(&mut rows) {
            for (pair, row) in taking(workload).zip(rows) {
                row.add(&measure(pair, workload, each)?);
            }
        }
    }
    println!(
        "{rounds} rounds of {} s for each point, taking turns; medians. Load average at the end {}.\n",
        each.as_secs(),
        load_average()
    );
    for (workload, rows) in workloads.iter().zip(&rows) {
        table::print(workload, rows);
    }
    println!("### Memory\n\nIdle agents before any request: {}.\n", table::figures(&idle));
    table::print_memory(&held(&pairs)?);
    if let Some(path) = plot {
        plot::draw(path, &workloads, &rows)?;
        println!("\nPlot: {}", path.display());
    }
    Ok(())
}

/// One point: what came of it, and processor microseconds of A and B together for each request.
fn measure(pair: &Pair, workload: &Workload, each: Duration) -> anyhow::Result<(Outcome, f64)> {
    pair.ask(workload, WARM_UP).with_context(|| format!("{}: {}", pair.name, workload.name))?;
    let before = pair.cpu_seconds()?;
    let outcome = pair.ask(workload, each)?;
    #[expect(clippy::cast_precision_loss, reason = "counts of one run")]
    let cpu_us = (pair.cpu_seconds()? - before) * 1e6 / outcome.requests.max(1) as f64;
    Ok((outcome, cpu_us))
}

/// Resident memory of each pair after the load, and with many connections open.
fn held(pairs: &[Pair]) -> anyhow::Result<Vec<Held>> {
    let mut all = Vec::new();
    for pair in pairs.iter().filter(|pair| pair.layer != Layer::None) {
        let after = pair.resident_mb()?;
        match load::hold(pair.entry, Asking::small(HOST), CONNECTIONS_HELD, || pair.resident_mb()) {
            Ok(with) => all.push(Held { name: pair.name.clone(), after, with }),
            Err(error) => println!("{}: {CONNECTIONS_HELD} connections: {error:#}", pair.name),
        }
    }
    Ok(all)
}

/// Two agents; the second has the backend twice, as a service of requests and as one of bytes for which the first listens,
/// and the one that speaks HTTP/2.
fn marram([backend, grpc]: [SocketAddr; 2], transport: MeshTransport) -> (Fleet, SocketAddr) {
    let listener = free_port();
    let fleet = Fleet::start(2, &|n, config| {
        config.mesh.transport = transport;
        if n == 1 {
            Node::serve(config, "bench", backend, Some(1000.0));
            Node::serve(config, "bench-tcp", backend, Some(1000.0));
            if let Some(last) = config.services.last_mut() {
                last.protocol = Protocol::Tcp;
            }
            Node::serve(config, "bench-grpc", grpc, Some(1000.0));
            if let Some(last) = config.services.last_mut() {
                last.protocol = Protocol::Http2;
            }
        } else {
            config.listeners.push(ListenerConfig {
                service: "bench-tcp".to_owned(),
                address: listener,
                protocol: ListenerProtocol::Tcp,
            });
        }
    });
    fleet.wait_service("bench", 1);
    fleet.wait_service("bench-tcp", 1);
    fleet.wait_service("bench-grpc", 1);
    (fleet, listener)
}

/// Starts two agents anew without their access log.
fn silence(fleet: &mut Fleet) -> anyhow::Result<()> {
    for node in &mut fleet.nodes {
        let code = node.terminate();
        anyhow::ensure!(code == Some(0), "{} ended with {code:?}", node.name);
        let mut agent = Command::new(tests::binary());
        agent.env(FILTER_VARIABLE, format!("{FILTER_DEFAULT},access=off"));
        node.start_by(agent);
    }
    fleet.wait_whole();
    for service in ["bench", "bench-tcp", "bench-grpc"] {
        fleet.wait_service(service, 1);
    }
    Ok(())
}

fn pair(name: &str, layer: Layer, entry: SocketAddr, two: Option<[SocketAddr; 2]>, programs: Vec<Program>) -> Pair {
    let pids = programs.iter().map(Program::pid).collect();
    Pair { name: name.to_owned(), layer, entry, two, pids, _programs: programs }
}
