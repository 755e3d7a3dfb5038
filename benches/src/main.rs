//! Measures fleets of the real binary, and the policy store beside `SQLite`, on this machine; prints Markdown.
//!
//! `cargo run -p benches -- idle|two-hops|draws --binary target/x86_64-unknown-linux-musl/release/marram`,
//! `cargo run --release -p benches --features jemalloc -- store`. Every figure comes from a run of its own; ratios are
//! within one run, because absolute rates differ between machines and moments.

mod agent_policy;
mod draws;
mod idle;
mod load;
mod peers;
mod process;
mod store;
mod two_hops;
mod wan;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// The allocator of the static release.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Debug, Parser)]
#[command(about = "What Marram costs, measured on this machine")]
struct Options {
    /// The `marram` binary to measure; the static release for figures to publish.
    #[arg(long, global = true, env = "MARRAM_BINARY")]
    binary: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Memory and processor of an idle agent among three.
    Idle {
        /// Seconds to watch after the fleet has settled.
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// Requests through two proxies beside the same requests without any.
    TwoHops {
        /// Seconds for each point of each round.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Rounds; direct and two hops take turns, medians are printed.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// The same requests through two agents, and through pairs of haproxy, nginx, envoy and caddy where they are in PATH;
    /// `benches/peers.sh` installs them and runs this.
    Peers {
        /// Seconds for each point of each round.
        #[arg(long, default_value_t = 3)]
        seconds: u64,
        /// Rounds; pairs take turns, medians are printed.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Only pairs whose name contains this; may be given several times.
        #[arg(long)]
        only: Vec<String>,
        /// Only points whose title contains this; may be given several times.
        #[arg(long)]
        point: Vec<String>,
        /// Draw requests per second into this SVG file.
        #[arg(long)]
        plot: Option<PathBuf>,
    },
    /// Two agents with a slow, lossy line between them, beside h2 over TCP on the same line; takes root.
    Wan {
        /// Seconds for each point of each round.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Rounds; pairs take turns, medians are printed.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Percent of packets lost in each direction; a line of its own for each.
        #[arg(long, value_delimiter = ',', default_values_t = [0.0, 1.0, 3.0])]
        loss: Vec<f64>,
    },
    /// Five agents under load: how long requests take by each draw, beside balancers outside of the mesh.
    Draws {
        /// Seconds for each balancer in each scenario of each round.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Rounds; balancers take turns, all rounds of one are counted together.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// An agent that holds many policy documents: its memory, and what a write costs.
    AgentPolicy {
        /// How many documents; an agent of its own for each figure.
        #[arg(long, value_delimiter = ',', default_values_t = [0, 2_000, 10_000])]
        documents: Vec<usize>,
        /// Their kind; one that no version knows is stored and not compiled.
        #[arg(long, default_value = "HTTPRoute")]
        kind: String,
    },
    /// The policy store beside `SQLite`: writes, memory, disk, opening, synchronising.
    Store {
        /// Seconds of writing for each of the two and each kind of write, over all rounds.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Documents in a small store and in a large one.
        #[arg(long, value_delimiter = ',', default_values_t = [2_000, 10_000])]
        documents: Vec<usize>,
        /// Folder on the disk to measure; the system's folder for temporary files unless given.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Opens a database and tells what memory that took; `store` starts this as a process of its own.
    #[command(hide = true)]
    StoreMemory {
        /// Which of the two.
        engine: store::Engine,
        /// Folder of the database.
        database: PathBuf,
        /// Folder of the node's identity.
        identity: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if let Some(binary) = options.binary {
        tests::use_binary(&binary);
    }
    match options.what {
        What::Idle { seconds } => idle::run(Duration::from_secs(seconds)),
        What::TwoHops { seconds, rounds } => two_hops::run(Duration::from_secs(seconds), rounds),
        What::Peers { seconds, rounds, only, point, plot } => {
            peers::run(Duration::from_secs(seconds), rounds, &only, &point, plot.as_deref())
        }
        What::Wan { seconds, rounds, loss } => wan::run(Duration::from_secs(seconds), rounds, &loss),
        What::Draws { seconds, rounds } => draws::run(Duration::from_secs(seconds), rounds),
        What::AgentPolicy { documents, kind } => agent_policy::run(&documents, &kind),
        What::Store { seconds, documents, dir } => {
            store::run(Duration::from_secs(seconds), &documents, &dir.unwrap_or_else(std::env::temp_dir))
        }
        What::StoreMemory { engine, database, identity } => store::tell_memory(engine, &database, &identity),
    }
}
