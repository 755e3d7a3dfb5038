//! Two hops with mutual TLS between them, of Marram and of what else people would use, taking turns on this machine.
//!
//! Every pair stands between the same client and the same backend: client, A in clear, TLS both ways, B in clear, backend.
//! All get two threads each for proxying and `TLS_AES_128_GCM_SHA256` where they can be told so; Marram writes its access log
//! (to a file), the others write none. Pairs that parse requests and those that only carry bytes are told apart.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use node::config::{ListenerConfig, ListenerProtocol, MeshTransport, Protocol};
use tests::{Fleet, Node, free_port};

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
}

const WORKLOADS: [Workload; 6] = [
    Workload { name: "1 KiB, 1 connection", connections: 1, body_bytes: 1 << 10, is_kept: true },
    Workload { name: "1 KiB, 32 connections", connections: 32, body_bytes: 1 << 10, is_kept: true },
    Workload { name: "1 KiB, 128 connections", connections: 128, body_bytes: 1 << 10, is_kept: true },
    Workload {
        name: "1 KiB, a new connection for each request, 32 at once",
        connections: 32,
        body_bytes: 1 << 10,
        is_kept: false,
    },
    Workload { name: "64 KiB, 32 connections", connections: 32, body_bytes: 64 << 10, is_kept: true },
    Workload { name: "1 MiB, 8 connections", connections: 8, body_bytes: 1 << 20, is_kept: true },
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
    /// The processes of A and of B, with all their children.
    pids: Vec<u32>,
    /// Kept so that they live; dropping ends them.
    _programs: Vec<Program>,
}

impl Pair {
    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.pids.iter().map(|pid| family_cpu_seconds(*pid)).sum()
    }

    /// Resident memory of A and of B in MB.
    fn resident_mb(&self) -> anyhow::Result<Vec<f64>> {
        self.pids.iter().map(|pid| Ok(family_resident_kib(*pid)? / 1024.0)).collect()
    }
}

/// Measures every pair that can be started here, `each` long for each point of each of `rounds` rounds; prints tables, and
/// draws `plot` where one is wanted. Only pairs whose name contains one of `only` take part, unless it is empty.
pub(crate) fn run(each: Duration, rounds: usize, only: &[String], plot: Option<&Path>) -> anyhow::Result<()> {
    let backend = load::backend()?;
    let ground = Ground::prepare()?;
    let mut pairs = vec![Pair {
        name: "direct".to_owned(),
        layer: Layer::None,
        entry: backend,
        pids: Vec::new(),
        _programs: Vec::new(),
    }];
    let mut idle = Vec::new();
    let mut fleets = Vec::new();
    for (name, transport) in [("marram", MeshTransport::Auto), ("marram over TCP", MeshTransport::Tcp)] {
        let (fleet, listener) = marram(backend, transport);
        let [near, far] = fleet.nodes.as_slice() else { anyhow::bail!("two agents") };
        let pids = vec![near.pid().context("a running agent")?, far.pid().context("a running agent")?];
        let own = |name: String, layer, entry| Pair { name, layer, entry, pids: pids.clone(), _programs: Vec::new() };
        let requests = own(name.to_owned(), Layer::Requests, near.proxy);
        idle.extend(requests.resident_mb()?);
        pairs.push(requests);
        pairs.push(own(format!("{name}, TCP listener"), Layer::Bytes, listener));
        fleets.push(fleet);
    }
    for setup in setups::all(&ground, backend)? {
        match setup.start() {
            Ok(pair) => pairs.push(pair),
            Err(error) => println!("{}: left out: {error:#}\n", setup.name),
        }
    }
    pairs.retain(|pair| {
        let is_wanted = only.iter().any(|part| pair.name.contains(part.as_str()));
        only.is_empty() || pair.layer == Layer::None || is_wanted
    });
    let mut rows: Vec<Vec<Row>> = WORKLOADS.iter().map(|_| pairs.iter().map(Row::of).collect()).collect();
    for _ in 0..rounds {
        for (workload, rows) in WORKLOADS.iter().zip(&mut rows) {
            for (pair, row) in pairs.iter().zip(rows) {
                row.add(&measure(pair, workload, each)?);
            }
        }
    }
    println!(
        "{rounds} rounds of {} s for each point, taking turns; medians. Load average at the end {}.\n",
        each.as_secs(),
        load_average()
    );
    for (workload, rows) in WORKLOADS.iter().zip(&rows) {
        table::print(workload, rows);
    }
    println!("### Memory\n\nIdle agents before any request: {}.\n", table::figures(&idle));
    table::print_memory(&held(&pairs)?);
    if let Some(path) = plot {
        plot::draw(path, &WORKLOADS, &rows)?;
        println!("\nPlot: {}", path.display());
    }
    Ok(())
}

/// One point: what came of it, and processor microseconds of A and B together for each request.
fn measure(pair: &Pair, workload: &Workload, each: Duration) -> anyhow::Result<(Outcome, f64)> {
    let asking = Asking { host: HOST, body_bytes: workload.body_bytes, is_kept: workload.is_kept };
    load::run(pair.entry, asking, workload.connections, WARM_UP)?;
    let before = pair.cpu_seconds()?;
    let outcome = load::run(pair.entry, asking, workload.connections, each)?;
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

/// Two agents; the second has the backend twice, as a service of requests and as one of bytes for which the first listens.
fn marram(backend: SocketAddr, transport: MeshTransport) -> (Fleet, SocketAddr) {
    let listener = free_port();
    let fleet = Fleet::start(2, &|n, config| {
        config.mesh.transport = transport;
        if n == 1 {
            Node::serve(config, "bench", backend, Some(1000.0));
            Node::serve(config, "bench-tcp", backend, Some(1000.0));
            if let Some(last) = config.services.last_mut() {
                last.protocol = Protocol::Tcp;
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
    (fleet, listener)
}

fn pair(name: &str, layer: Layer, entry: SocketAddr, programs: Vec<Program>) -> Pair {
    let pids = programs.iter().map(Program::pid).collect();
    Pair { name: name.to_owned(), layer, entry, pids, _programs: programs }
}
