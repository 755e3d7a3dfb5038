//! Five agents under load, each with an instance that can do so many requests at once: how long requests take by each
//! draw, beside balancers that stand outside of the mesh and one that knows every queue.
//!
//! The same work arrives at the same times for all of them. An instance has slots and a queue first come first served, as
//! in `chaos load-sim`; working is sleeping, so the machine has nothing to do with it. A request counts from when it was
//! due. Who balances outside of the mesh asks the instances directly, so its answers also lack what two proxies take.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use chaos::wan::{LineSettings, Wan};
use hdrhistogram::Histogram;
use policy::Draw;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::task::JoinSet;

use crate::load::{histogram, now};
use crate::process::load_average;

use self::balancer::Balancer;
use self::instance::{Instance, Pool};
use self::site::Site;

mod balancer;
mod instance;
mod site;

/// Requests that the instance of each agent can do at once.
const SLOTS: [u16; 5] = [2, 4, 8, 2, 4];
/// What a request takes in a slot, on average; exponential.
const WORK: Duration = Duration::from_millis(40);
/// How much slower the first instance is, in the scenario where it is.
const SLOWER: u32 = 10;
const SERVICE: &str = "work";
/// Before this nothing is counted: queues fill and latencies become known.
const WARM_UP: Duration = Duration::from_secs(3);

/// A load.
#[derive(Debug, Clone, Copy)]
struct Scenario {
    what: &'static str,
    /// Of all slots.
    utilisation: f64,
    /// How many times as much every other agent sends.
    skew: f64,
    is_first_slow: bool,
}

const SCENARIOS: [Scenario; 5] = [
    Scenario { what: "0.6", utilisation: 0.6, skew: 1.0, is_first_slow: false },
    Scenario { what: "0.8", utilisation: 0.8, skew: 1.0, is_first_slow: false },
    Scenario { what: "0.9", utilisation: 0.9, skew: 1.0, is_first_slow: false },
    Scenario { what: "0.9, rates 1:10", utilisation: 0.9, skew: 10.0, is_first_slow: false },
    Scenario { what: "0.6, one instance ten times slower", utilisation: 0.6, skew: 1.0, is_first_slow: true },
];

/// The last two agents are in another zone than the first three.
const TWO_ZONES: Scenario =
    Scenario { what: "0.8, two zones 20 ms apart", utilisation: 0.8, skew: 1.0, is_first_slow: false };
/// How many of the agents are in the first zone.
const FIRST_ZONE: usize = 3;
/// The line between the zones.
const ZONES: LineSettings = LineSettings {
    delay: Duration::from_millis(10),
    lost_of_10000: 0,
    bits_per_second: 1_000_000_000,
    queue: 1000,
    seed: 1,
};

/// Who chooses the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chooser {
    /// The agents.
    Mesh(Draw),
    /// Chance, by the slots of each, outside of the mesh.
    Capacity,
    /// Of two drawn by their slots whoever has less from this client for its slots, as Envoy does it.
    LeastRequest,
    /// Of two drawn alike whoever costs less by peak EWMA and this client's own requests, as Linkerd does it.
    PeakEwma,
    /// Whoever will be done first on average, by the true queues, outside of the mesh.
    Oracle,
}

const CHOOSERS: [Chooser; 6] = [
    Chooser::Capacity,
    Chooser::LeastRequest,
    Chooser::PeakEwma,
    Chooser::Mesh(Draw::Single),
    Chooser::Mesh(Draw::BestOfTwo),
    Chooser::Oracle,
];

impl fmt::Display for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh(draw) => write!(f, "mesh, {draw}"),
            Self::Capacity => f.write_str("random by capacity, no mesh"),
            Self::LeastRequest => f.write_str("least request of two, no mesh"),
            Self::PeakEwma => f.write_str("peak EWMA of two, no mesh"),
            Self::Oracle => f.write_str("oracle, no mesh"),
        }
    }
}

/// One request to be made.
#[derive(Debug, Clone, Copy)]
struct Due {
    after: Duration,
    client: usize,
    work: Duration,
    chances: [f64; 2],
}

/// What came of one chooser in one scenario, all rounds together.
struct Taken {
    latency: Histogram<u64>,
    failed: u64,
}

/// Runs every scenario with every chooser, taking turns, and prints a table.
pub(crate) fn run(each: Duration, rounds: usize) -> anyhow::Result<()> {
    println!(
        "{} agents, instances of {SLOTS:?} slots, work {} ms on average; {rounds} rounds of {} s taking turns, all together.\n",
        SLOTS.len(),
        WORK.as_millis(),
        each.as_secs()
    );
    println!("| load | balancer | requests | failed | p50 ms | p99 ms | p99.9 ms | p99 / oracle |");
    println!("|---|---|---|---|---|---|---|---|");
    let runtime = site::runtime()?;
    let mut late = Duration::ZERO;
    {
        let site = Site::of_one_zone(&runtime)?;
        for scenario in SCENARIOS {
            measure(&site, &scenario, each, rounds)?;
        }
        late = late.max(site.mean_overrun());
    }
    if rustix::process::geteuid().is_root() {
        let wan = Wan::start(ZONES)?;
        let site = Site::of_two_zones(&wan)?;
        measure(&site, &TWO_ZONES, each, rounds)?;
        late = late.max(site.mean_overrun());
    } else {
        println!("\n{}: left out, for network namespaces take root.", TWO_ZONES.what);
    }
    println!(
        "\nWork took up to {:.2} ms longer than asked for on average (sleeping is exact to a millisecond). Load average at the end {}.",
        late.as_secs_f64() * 1e3,
        load_average()
    );
    Ok(())
}

/// Measures every chooser in one scenario and prints their rows.
fn measure(site: &Site<'_>, scenario: &Scenario, each: Duration, rounds: usize) -> anyhow::Result<()> {
    let runtime = site::runtime()?;
    let mut taken: Vec<Taken> =
        CHOOSERS.iter().map(|_| Ok(Taken { latency: histogram()?, failed: 0 })).collect::<anyhow::Result<_>>()?;
    if let Some(first) = site.instances.first() {
        first.slow_down(if scenario.is_first_slow { SLOWER } else { 1 });
    }
    for round in 0..rounds {
        let due = arrivals(scenario, each, u64::try_from(round)?);
        for (chooser, taken) in CHOOSERS.iter().zip(&mut taken) {
            if let Chooser::Mesh(draw) = chooser {
                site.set_draw(*draw)?;
            }
            runtime.block_on(send_all(*chooser, site, &due, taken))?;
        }
    }
    let best = taken.last().map_or(0, |oracle| oracle.latency.value_at_quantile(0.99));
    for (chooser, taken) in CHOOSERS.iter().zip(&taken) {
        println!("{}", row(scenario, *chooser, taken, best));
    }
    Ok(())
}

/// The requests of one round, by their times; the same for every chooser.
fn arrivals(scenario: &Scenario, each: Duration, seed: u64) -> Vec<Due> {
    let mut random = StdRng::seed_from_u64(seed);
    let slots: f64 = SLOTS.iter().map(|slots| f64::from(*slots)).sum();
    let all_per_second = scenario.utilisation * slots / WORK.as_secs_f64();
    let part = |client: usize| if client % 2 == 1 { scenario.skew } else { 1.0 };
    let parts: f64 = (0..SLOTS.len()).map(part).sum();
    let mut due = Vec::new();
    for client in 0..SLOTS.len() {
        let mean = Duration::from_secs_f64(parts / (all_per_second * part(client)));
        let mut after = Duration::ZERO;
        loop {
            after += mean.mul_f64(exponential(&mut random));
            if after >= WARM_UP + each {
                break;
            }
            due.push(Due { after, client, work: WORK.mul_f64(exponential(&mut random)), chances: random.random() });
        }
    }
    due.sort_by_key(|due| due.after);
    due
}

fn exponential(random: &mut StdRng) -> f64 {
    -(1.0 - random.random::<f64>()).ln()
}

/// Makes the requests at their times and waits for all answers.
async fn send_all(chooser: Chooser, site: &Site<'_>, due: &[Due], taken: &mut Taken) -> anyhow::Result<()> {
    // The connections to an instance are those of one client, as they begin at its place.
    let to_instances: Vec<Vec<(SocketAddr, Pool)>> = site
        .places
        .iter()
        .map(|_| site.instances.iter().map(|instance| (instance.address, Pool::default())).collect())
        .collect();
    let to_proxies: Vec<(SocketAddr, Pool)> = site.proxies().map(|proxy| (proxy, Pool::default())).collect();
    let mut balancers: Vec<Balancer> = site.places.iter().map(|_| Balancer::new(&SLOTS)).collect();
    let began = now();
    let mut asked = JoinSet::new();
    for &Due { after, client, work, chances } in due {
        tokio::time::sleep_until((began + after).into()).await;
        let (Some(balancer), Some(place)) = (balancers.get_mut(client), site.places.get(client)) else { continue };
        let at = began.elapsed();
        let chosen = match chooser {
            Chooser::Mesh(_) => None,
            Chooser::Capacity => balancer.by_capacity(chances),
            Chooser::LeastRequest => balancer.least_request(chances),
            Chooser::PeakEwma => balancer.peak_ewma(chances, at),
            Chooser::Oracle => Some(site.soonest(client, WORK)),
        };
        let assigned = chosen.and_then(|at| site.instances.get(at)).map(Instance::assign);
        let asking = chosen.and_then(|at| balancer.asks(at));
        let (address, pool) = match chosen {
            Some(at) => to_instances.get(client).and_then(|all| all.get(at)),
            None => to_proxies.get(client),
        }
        .cloned()
        .context("somewhere to ask")?;
        let due_at = began + after;
        let task = async move {
            let sent_at = now();
            let answered = pool.ask(address, work).await;
            drop(assigned);
            if let (Some(asking), true) = (asking, answered.is_ok()) {
                asking.answered(sent_at.elapsed(), began.elapsed());
            }
            (after >= WARM_UP).then(|| answered.map(|()| due_at.elapsed()))
        };
        asked.spawn_on(task, &place.runtime);
    }
    while let Some(answered) = asked.join_next().await {
        match answered? {
            None => {}
            Some(Ok(latency)) => taken.latency.saturating_record(u64::try_from(latency.as_micros())?),
            Some(Err(_)) => taken.failed += 1,
        }
    }
    Ok(())
}

fn row(scenario: &Scenario, chooser: Chooser, taken: &Taken, best_us: u64) -> String {
    let ms = |quantile| exact(taken.latency.value_at_quantile(quantile)) / 1e3;
    format!(
        "| {} | {chooser} | {} | {} | {:.1} | {:.1} | {:.1} | {:.2} |",
        scenario.what,
        taken.latency.len(),
        taken.failed,
        ms(0.5),
        ms(0.99),
        ms(0.999),
        ms(0.99) * 1e3 / exact(best_us.max(1))
    )
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of one request")]
fn exact(us: u64) -> f64 {
    us as f64
}
