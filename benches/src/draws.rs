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
use hdrhistogram::Histogram;
use policy::Draw;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tests::{Fleet, Node, eventually};
use tokio::task::JoinSet;

use crate::load::{histogram, now};
use crate::process::load_average;

use self::instance::{Instance, Pool};

mod instance;

/// Requests that the instance of each agent can do at once.
const SLOTS: [u16; 5] = [2, 4, 8, 2, 4];
/// What a request takes in a slot, on average; exponential.
const WORK: Duration = Duration::from_millis(40);
/// How much slower the first instance is, in the scenario where it is.
const SLOWER: u32 = 10;
const SERVICE: &str = "work";
/// Before this nothing is counted: queues fill and latencies become known.
const WARM_UP: Duration = Duration::from_secs(3);
/// Longest wait for a policy to be in force everywhere.
const IN_FORCE_MAX: Duration = Duration::from_secs(10);

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

/// Who chooses the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chooser {
    /// The agents.
    Mesh(Draw),
    /// Chance, by the slots of each, outside of the mesh.
    Capacity,
    /// Whoever will be done first on average, by the true queues, outside of the mesh.
    Oracle,
}

const CHOOSERS: [Chooser; 4] =
    [Chooser::Capacity, Chooser::Mesh(Draw::Single), Chooser::Mesh(Draw::BestOfTwo), Chooser::Oracle];

impl fmt::Display for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh(draw) => write!(f, "mesh, {draw}"),
            Self::Capacity => f.write_str("random by capacity, no mesh"),
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
    chance: f64,
}

/// What came of one chooser in one scenario, all rounds together.
struct Taken {
    latency: Histogram<u64>,
    failed: u64,
}

/// Runs every scenario with every chooser, taking turns, and prints a table.
pub(crate) fn run(each: Duration, rounds: usize) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let instances: Vec<Instance> =
        SLOTS.iter().map(|slots| runtime.block_on(Instance::start(*slots))).collect::<anyhow::Result<_>>()?;
    let fleet = Fleet::start(SLOTS.len(), &|n, config| {
        if let Some(instance) = instances.get(n) {
            Node::serve(config, SERVICE, instance.address, Some(f64::from(instance.slots)));
        }
    });
    fleet.wait_service(SERVICE, SLOTS.len());
    let proxies: Vec<SocketAddr> = fleet.nodes.iter().map(|node| node.proxy).collect();

    println!(
        "{} agents, instances of {SLOTS:?} slots, work {} ms on average; {rounds} rounds of {} s taking turns, all together.\n",
        SLOTS.len(),
        WORK.as_millis(),
        each.as_secs()
    );
    println!("| load | balancer | requests | failed | p50 ms | p99 ms | p99.9 ms | p99 / oracle |");
    println!("|---|---|---|---|---|---|---|---|");
    for scenario in SCENARIOS {
        let mut taken: Vec<Taken> =
            CHOOSERS.iter().map(|_| Ok(Taken { latency: histogram()?, failed: 0 })).collect::<anyhow::Result<_>>()?;
        if let Some(first) = instances.first() {
            first.slow_down(if scenario.is_first_slow { SLOWER } else { 1 });
        }
        for round in 0..rounds {
            let due = arrivals(&scenario, each, u64::try_from(round)?);
            for (chooser, taken) in CHOOSERS.iter().zip(&mut taken) {
                if let Chooser::Mesh(draw) = chooser {
                    set_draw(&fleet, *draw)?;
                }
                runtime.block_on(send_all(*chooser, &instances, &proxies, &due, taken))?;
            }
        }
        let best = taken.last().map_or(0, |oracle| oracle.latency.value_at_quantile(0.99));
        for (chooser, taken) in CHOOSERS.iter().zip(&taken) {
            println!("{}", row(&scenario, *chooser, taken, best));
        }
    }
    let late = instances.iter().map(Instance::mean_overrun).max().unwrap_or_default();
    println!(
        "\nWork took up to {:.2} ms longer than asked for on average (sleeping is exact to a millisecond). Load average at the end {}.",
        late.as_secs_f64() * 1e3,
        load_average()
    );
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
            due.push(Due { after, client, work: WORK.mul_f64(exponential(&mut random)), chance: random.random() });
        }
    }
    due.sort_by_key(|due| due.after);
    due
}

fn exponential(random: &mut StdRng) -> f64 {
    -(1.0 - random.random::<f64>()).ln()
}

/// Makes the requests at their times and waits for all answers.
async fn send_all(
    chooser: Chooser,
    instances: &[Instance],
    proxies: &[SocketAddr],
    due: &[Due],
    taken: &mut Taken,
) -> anyhow::Result<()> {
    let to_instances: Vec<(SocketAddr, Pool)> =
        instances.iter().map(|instance| (instance.address, Pool::default())).collect();
    let to_proxies: Vec<(SocketAddr, Pool)> = proxies.iter().map(|proxy| (*proxy, Pool::default())).collect();
    let began = now();
    let mut asked = JoinSet::new();
    for &Due { after, client, work, chance } in due {
        tokio::time::sleep_until((began + after).into()).await;
        let chosen = match chooser {
            Chooser::Mesh(_) => None,
            Chooser::Capacity => Some(by_capacity(chance)),
            Chooser::Oracle => Some(soonest(instances)),
        };
        let assigned = chosen.and_then(|at| instances.get(at)).map(Instance::assign);
        let (address, pool) = match chosen {
            Some(at) => to_instances.get(at),
            None => to_proxies.get(client),
        }
        .cloned()
        .context("somewhere to ask")?;
        let due_at = began + after;
        asked.spawn(async move {
            let answered = pool.ask(address, work).await;
            drop(assigned);
            (after >= WARM_UP).then(|| answered.map(|()| due_at.elapsed()))
        });
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

/// The place of an instance, each as likely as it has slots.
fn by_capacity(chance: f64) -> usize {
    let all: f64 = SLOTS.iter().map(|slots| f64::from(*slots)).sum();
    let mut left = chance * all;
    for (at, slots) in SLOTS.iter().enumerate() {
        left -= f64::from(*slots);
        if left < 0.0 {
            return at;
        }
    }
    SLOTS.len() - 1
}

/// The place of the instance that will be done with one more request soonest on average.
fn soonest(instances: &[Instance]) -> usize {
    let costs = instances.iter().map(Instance::cost).enumerate();
    costs.min_by(|(_, one), (_, other)| one.total_cmp(other)).map_or(0, |(at, _)| at)
}

/// Puts a draw in force at every agent.
fn set_draw(fleet: &Fleet, draw: Draw) -> anyhow::Result<()> {
    let body = format!(
        "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: {SERVICE}, scope: global }}\n\
         targetRef: {{ kind: Service, name: {SERVICE} }}\nspec: {{ loadBalancer: {{ draw: {draw} }} }}\n"
    );
    let first = fleet.nodes.first().context("an agent")?;
    let answer = first.write("PUT", &format!("/v1/policies/global/BackendTrafficPolicy/{SERVICE}"), &body);
    anyhow::ensure!((200..300).contains(&answer.status), "{answer:?}");
    for node in &fleet.nodes {
        eventually("the draw is in force", IN_FORCE_MAX, || {
            let in_force = node.explain(SERVICE)?.draw;
            if in_force == draw { Ok(()) } else { Err(format!("{}: {in_force}", node.name)) }
        });
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
