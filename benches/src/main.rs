//! Measures fleets of the real binary on this machine and prints Markdown.
//!
//! `cargo run -p benches -- idle|two-hops --binary target/x86_64-unknown-linux-musl/release/marram`. Every figure
//! comes from a run of its own; ratios are within one run, because absolute rates differ between machines and moments.

mod idle;
mod load;
mod process;
mod two_hops;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

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
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if let Some(binary) = options.binary {
        tests::use_binary(&binary);
    }
    match options.what {
        What::Idle { seconds } => idle::run(Duration::from_secs(seconds)),
        What::TwoHops { seconds, rounds } => two_hops::run(Duration::from_secs(seconds), rounds),
    }
}
