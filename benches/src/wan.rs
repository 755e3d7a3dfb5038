//! Two hops with a slow, lossy line between A and B: QUIC beside h2 over one TCP connection, on the same line.
//!
//! The line is that of [`chaos::wan`]. TCP is measured with the congestion controls that the kernel has: BBR, and CUBIC, which
//! is what a system uses that was told nothing.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use chaos::wan::{LineSettings, NetNs, Wan};
use node::config::Config;
use tests::{Fleet, Node, eventually, run as run_verb};

use crate::load::{self, Asking, Outcome};
use crate::peers::HOST;
use crate::peers::ground::Ground;
use crate::peers::setups::{self, Side};
use crate::process::load_average;
use crate::two_hops::median;

const DELAY: Duration = Duration::from_millis(20);
const BITS_PER_SECOND: u64 = 200_000_000;
const QUEUE: usize = 1000;
const CONNECTIONS: usize = 32;
const WARM_UP: Duration = Duration::from_secs(3);
/// Pairs of others: one connection for all requests, as a mesh has between two nodes.
const OTHERS: [&str; 2] = ["haproxy h2", "envoy CONNECT over h2"];
const CONGESTION_CONTROLS: [&str; 2] = ["bbr", "cubic"];
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
const ENTRY_PORT: u16 = 8080;
const BETWEEN_PORT: u16 = 8443;
const SERVICE: &str = "bench";

/// Measures each loss on a line of its own and prints a table.
pub(crate) fn run(each: Duration, rounds: usize, losses_percent: &[f64]) -> anyhow::Result<()> {
    let _any_control = AnyControl::allow()?;
    println!(
        "Requests of 1 KiB over {CONNECTIONS} connections, {rounds} rounds of {} s taking turns, medians; {} ms there and back, \
         {} Mbit/s, a queue of {QUEUE} packets.\n",
        each.as_secs(),
        2 * DELAY.as_millis(),
        BITS_PER_SECOND / 1_000_000
    );
    println!("| loss | pair | req/s | p50/p90/p99 ms | failed |");
    println!("|---|---|---|---|---|");
    for percent in losses_percent {
        anyhow::ensure!((0.0..=100.0).contains(percent), "--loss {percent}: is a percentage");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 and 10,000")]
        let lost_of_10000 = (percent * 100.0).round() as u64;
        one_line(lost_of_10000, each, rounds)?;
    }
    println!("\nLoad average at the end {}.", load_average());
    Ok(())
}

/// Who is measured, and where requests enter.
struct Way {
    name: String,
    entry: SocketAddr,
    outcomes: Vec<Outcome>,
}

fn one_line(lost_of_10000: u64, each: Duration, rounds: usize) -> anyhow::Result<()> {
    let settings =
        LineSettings { delay: DELAY, lost_of_10000, bits_per_second: BITS_PER_SECOND, queue: QUEUE, seed: 1 };
    let wan = Wan::start(settings)?;
    let backend = wan.right.run(load::backend)?;
    let fleet = agents(&wan, backend)?;
    let near = fleet.nodes.first().context("an agent")?;
    let mut ways = vec![Way { name: "marram, QUIC".to_owned(), entry: near.proxy, outcomes: Vec::new() }];
    let ground = Ground::prepare()?;
    let mut pairs = Vec::new();
    for (number, control) in (0_u16..).zip(CONGESTION_CONTROLS) {
        for setup in setups::all(&ground, backend)?.iter().filter(|setup| OTHERS.contains(&setup.name)) {
            let place = u16::try_from(pairs.len())? + 100 * number;
            let entry = SocketAddr::from(([127, 0, 0, 1], ENTRY_PORT + place));
            let between = SocketAddr::from((wan.right.address(), BETWEEN_PORT + place));
            let end = |side| if side == Side::A { &wan.left } else { &wan.right };
            control_congestion(&wan, control)?;
            let started = setup.start_at(
                entry,
                between,
                |side, command| end(side).command(&command),
                |side, wait| end(side).run(wait),
            );
            match started {
                Ok(pair) => {
                    ways.push(Way { name: format!("{}, {control}", pair.name), entry, outcomes: Vec::new() });
                    pairs.push((pair, control));
                }
                Err(error) => println!("{}: left out: {error:#}", setup.name),
            }
        }
    }
    for _ in 0..rounds {
        for way in &mut ways {
            let control = pairs.iter().find(|(pair, _)| pair.entry == way.entry).map(|(_, control)| *control);
            way.outcomes.push(measure(&wan, way.entry, control, each)?);
        }
    }
    for way in &ways {
        let quantile = |q| median(way.outcomes.iter().map(|outcome| outcome.quantile_ms(q)).collect());
        println!(
            "| {:.1} % | {} | {:.0} | {:.0}/{:.0}/{:.0} | {} |",
            f64::from(u32::try_from(lost_of_10000)?) / 100.0,
            way.name,
            median(way.outcomes.iter().map(Outcome::per_second).collect()),
            quantile(0.5),
            quantile(0.9),
            quantile(0.99),
            way.outcomes.iter().map(|outcome| outcome.failures).sum::<u64>(),
        );
    }
    Ok(())
}

fn measure(wan: &Wan, entry: SocketAddr, control: Option<&str>, each: Duration) -> anyhow::Result<Outcome> {
    if let Some(control) = control {
        // Connections between A and B that are made during the measurement take it too.
        control_congestion(wan, control)?;
    }
    wan.left.run(|| {
        load::run(entry, Asking::small(HOST), CONNECTIONS, WARM_UP)?;
        load::run(entry, Asking::small(HOST), CONNECTIONS, each)
    })
}

/// What connections use that are made from now on at both ends.
fn control_congestion(wan: &Wan, control: &str) -> anyhow::Result<()> {
    for end in [&wan.left, &wan.right] {
        end.run(|| Ok(fs::write("/proc/sys/net/ipv4/tcp_congestion_control", control)?))?;
    }
    Ok(())
}

/// Lets namespaces choose any of the congestion controls that the machine has, until it is dropped.
#[derive(Debug)]
struct AnyControl {
    before: String,
}

impl AnyControl {
    fn allow() -> anyhow::Result<Self> {
        let before = fs::read_to_string(ALLOWED)?;
        fs::write(ALLOWED, fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control")?)?;
        Ok(Self { before })
    }
}

impl Drop for AnyControl {
    fn drop(&mut self) {
        fs::write(ALLOWED, &self.before).ok();
    }
}

/// Two agents, one at each end of the line; the second has the backend.
fn agents(wan: &Wan, backend: SocketAddr) -> anyhow::Result<Fleet> {
    let mut fleet = Fleet::launch(0, &|_, _| {});
    let near = agent(&fleet, &wan.left, &["init", "--mesh", "wan"], &|_| {})?;
    let token = wan.left.run(|| {
        near.wait_ready();
        Ok(near.token(&[]))
    })?;
    fleet.nodes.push(near);
    let serve = |config: &mut Config| Node::serve(config, SERVICE, backend, Some(1000.0));
    let far = agent(&fleet, &wan.right, &["join", &token], &serve)?;
    fleet.nodes.push(far);
    wan.left.run(|| {
        let near = fleet.nodes.first().context("an agent")?;
        eventually("the far agent's service is known", Duration::from_secs(60), || {
            match near.explain(SERVICE)?.candidates.len() {
                1 => Ok(()),
                found => Err(format!("{found} candidates\n{}", near.log_tail(25))),
            }
        });
        Ok(())
    })?;
    Ok(fleet)
}

/// Prepares an agent by the verb `head` at one end of a line, and starts it.
pub(crate) fn agent(
    fleet: &Fleet,
    end: &NetNs,
    head: &[&str],
    setup: &(dyn Fn(&mut Config) + Sync),
) -> anyhow::Result<Node> {
    let mut node = fleet.newcomer();
    node.mesh = SocketAddr::from((end.address(), node.mesh.port()));
    end.run(|| {
        let said = run_verb(&node.options(head));
        anyhow::ensure!(said.code == 0, "marram {}: {}", head.join(" "), said.err);
        node.configure(|config| {
            config.mesh.bind = node.mesh;
            setup(config);
        });
        node.start();
        Ok(())
    })?;
    Ok(node)
}
