//! Kill -9 while all nodes take writes: what was acknowledged is there, whoever died when.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tests::{Fleet, Node, pause};

use super::desk::{Desk, roots_equal};
use super::ledger::{Fault, Ledger};
use super::writers::Writers;
use super::{CommonOptions, count, spread, until};
use crate::clock;
use crate::report::Report;

/// How to run the proof.
#[derive(Debug, Clone, Args)]
pub struct KillsOptions {
    /// Rounds; in each at least one agent is killed and started again
    #[arg(long, default_value_t = 200)]
    pub rounds: usize,
    /// Agents
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(2..=20))]
    pub nodes: u8,
    /// What all proofs take.
    #[command(flatten)]
    pub common: CommonOptions,
}

/// Rounds from one comparison of everything to the next.
const COMPARE_EVERY: usize = 20;
/// Longest wait for a restarted agent to be ready, and for roots to be equal once nobody writes.
const READY_MAX: Duration = Duration::from_secs(30);
const EQUAL_MAX: Duration = Duration::from_secs(30);

/// What the rounds showed.
#[derive(Debug, Default)]
struct Seen {
    rounds: usize,
    kills: usize,
    kills_while_starting: usize,
    pairs: usize,
    comparisons: usize,
    /// Times at rest when roots did not become equal.
    unequal: Vec<String>,
    ready: Vec<Duration>,
    equal: Vec<Duration>,
}

/// Runs the rounds and enters what they showed.
pub(super) fn steps(options: &KillsOptions, report: &mut Report) -> Result<()> {
    let mut fleet = Fleet::start(usize::from(options.nodes), &|_, _| {});
    let desks: Vec<Desk> =
        fleet.nodes.iter().enumerate().map(|(number, node)| Desk::of(number, node)).collect::<Result<_>>()?;
    report.event(format!("{} agents see each other; two writers at each", desks.len()));
    let writers = Writers::start(&desks, options.common.seed);
    let mut random = StdRng::seed_from_u64(options.common.seed);
    let mut seen = Seen::default();
    let begin = clock::now();
    for round in 1..=options.rounds {
        kill_round(&mut fleet, &desks, &writers, &mut random, &mut seen)?;
        seen.rounds = round;
        if round % COMPARE_EVERY == 0 || round == options.rounds {
            let faults = compare(&desks, &writers, &mut seen);
            let counts = writers.ledger().counts();
            report.event(format!(
                "round {round}: {} kills, {} writes acknowledged, {faults} faults",
                seen.kills, counts.acknowledged
            ));
        }
    }
    let took = begin.elapsed();
    tell(&writers, &seen, took, report);
    if !report.broken().is_empty() {
        let path = options.common.report.join("kills-writes.json");
        std::fs::create_dir_all(&options.common.report)?;
        std::fs::write(&path, serde_json::to_vec_pretty(writers.ledger().writes())?)
            .with_context(|| path.display().to_string())?;
        report.event(format!("every write stands in {}\n{}", path.display(), fleet.logs()));
    }
    Ok(())
}

/// Kills one agent, sometimes two, sometimes once more while it starts; in half of the rounds waits for equal roots.
fn kill_round(
    fleet: &mut Fleet,
    desks: &[Desk],
    writers: &Writers,
    random: &mut StdRng,
    seen: &mut Seen,
) -> Result<()> {
    let victims = victims(desks.len(), random);
    seen.pairs += usize::from(victims.len() > 1);
    for victim in &victims {
        writers.rush(*victim, true);
    }
    pause(Duration::from_millis(random.random_range(30..400)));
    for victim in &victims {
        node(fleet, *victim)?.kill();
        writers.rush(*victim, false);
        seen.kills += 1;
        pause(Duration::from_millis(random.random_range(0..100)));
    }
    pause(Duration::from_millis(random.random_range(0..300)));
    let mut started = Vec::new();
    for victim in &victims {
        let agent = node(fleet, *victim)?;
        agent.start();
        if random.random_bool(0.2) {
            pause(Duration::from_millis(random.random_range(5..600)));
            agent.kill();
            seen.kills += 1;
            seen.kills_while_starting += 1;
            agent.start();
        }
        started.push((*victim, clock::now()));
    }
    for (victim, since) in &started {
        seen.ready.push(wait_ready(fleet, desks, *victim, *since)?);
    }
    if random.random_bool(0.5) {
        writers.pause();
        let last = started.iter().map(|(_, since)| *since).max();
        match until(EQUAL_MAX, || roots_equal(desks)) {
            Some(_) => seen.equal.extend(last.map(|since| since.elapsed())),
            None => seen.unequal.push(roots(desks)),
        }
        writers.resume();
    }
    Ok(())
}

/// One node, or two of them in one round of seven.
fn victims(nodes: usize, random: &mut StdRng) -> Vec<usize> {
    let first = random.random_range(0..nodes);
    let second = (first + random.random_range(1..nodes)) % nodes;
    if random.random_bool(1.0 / 7.0) { vec![first, second] } else { vec![first] }
}

fn node(fleet: &mut Fleet, number: usize) -> Result<&mut Node> {
    fleet.nodes.get_mut(number).with_context(|| format!("no node {number}"))
}

fn wait_ready(fleet: &Fleet, desks: &[Desk], number: usize, since: Instant) -> Result<Duration> {
    let desk = desks.get(number).with_context(|| format!("no node {number}"))?;
    if until(READY_MAX, || desk.is_ready()).is_none() {
        bail!("{} is not ready {READY_MAX:?} after its start\n{}", desk.name, fleet.logs());
    }
    Ok(since.elapsed())
}

/// Lets writes end, waits for equal roots, and compares every node's content with the ledger: the faults so far.
fn compare(desks: &[Desk], writers: &Writers, seen: &mut Seen) -> usize {
    seen.comparisons += 1;
    writers.pause();
    if until(EQUAL_MAX, || roots_equal(desks)).is_none() {
        seen.unequal.push(roots(desks));
    }
    let views: Result<Vec<_>, String> = desks.iter().map(Desk::view).collect();
    let faults = match views {
        Ok(views) => writers.ledger().check(&views).len(),
        Err(reason) => {
            seen.unequal.push(reason);
            0
        }
    };
    writers.resume();
    faults
}

fn roots(desks: &[Desk]) -> String {
    format!("{:?}", desks.iter().map(Desk::root).collect::<Vec<_>>())
}

fn tell(writers: &Writers, seen: &Seen, took: Duration, report: &mut Report) {
    let (late, not_sent) = writers.unanswered();
    let mut ledger = writers.ledger();
    let faults: Vec<Fault> = ledger.check(&[]).iter().cloned().collect();
    let counts = ledger.counts();
    let (divergences, losses): (Vec<_>, Vec<_>) = faults.into_iter().partition(Fault::is_divergence);
    let mut figure = |name: &str, number: usize, unit: &'static str, detail: &str| {
        report.figure(name, count(number), unit, detail);
    };
    figure("rounds", seen.rounds, "rounds", "rounds");
    figure("kills", seen.kills, "kills", "agents killed with SIGKILL");
    figure("kills-while-starting", seen.kills_while_starting, "kills", "of these while the agent was starting");
    figure("pairs", seen.pairs, "rounds", "rounds in which two agents were dead at once");
    figure("acknowledged", counts.acknowledged, "writes", "writes answered with success, deletions included");
    figure("deletions", counts.deletions, "writes", "of these deletions");
    figure("lost", losses.len(), "writes", "acknowledged and missing, returned, or never written");
    figure("divergences", divergences.len() + seen.unequal.len(), "times", "nodes at rest that did not agree");
    figure("in-doubt", counts.in_doubt, "writes", "writes whose agent died before it answered: may be there or not");
    figure("refused", counts.refused.saturating_sub(not_sent), "writes", "writes refused, most on a stale ETag");
    figure("not-sent", not_sent, "writes", "writes that found nobody listening");
    figure("timed-out", late, "writes", "writes without an answer in 10 s");
    figure("comparisons", seen.comparisons, "times", "every node's whole content compared with what was written");
    let rate = count(counts.acknowledged) / took.as_secs_f64().max(1.0);
    report.figure("rate", rate, "writes/s", "acknowledged writes a second over all rounds");
    report.figure("took", took.as_secs_f64(), "s", "all rounds");
    spread(report, "ready", &seen.ready, "from the start of a killed agent until it is ready");
    spread(report, "equal", &seen.equal, "from that start until all roots are equal; writes go on until it is ready");
    let told = |ledger: &Ledger, faults: &[Fault]| -> Vec<String> {
        faults.iter().take(TOLD).map(|fault| explain(ledger, fault)).collect()
    };
    let sum = format!("{} of {} acknowledged writes", losses.len(), counts.acknowledged);
    let lost: Vec<String> = [sum].into_iter().chain(told(&ledger, &losses)).collect();
    let sum = format!("{} comparisons, {} waits for equal roots", seen.comparisons, seen.equal.len());
    let unequal = [sum].into_iter().chain(told(&ledger, &divergences)).chain(seen.unequal.iter().cloned());
    report.invariant("nothing-acknowledged-is-lost", losses.is_empty(), lost.join("; "));
    let is_one = divergences.is_empty() && seen.unequal.is_empty();
    report.invariant("nodes-agree-at-rest", is_one, unequal.collect::<Vec<_>>().join("; "));
    report.invariant(
        "there-was-something-to-lose",
        counts.acknowledged > seen.rounds && seen.comparisons > 0,
        format!("{} writes over {} rounds", counts.acknowledged, seen.rounds),
    );
}

/// Faults spelled out in the report.
const TOLD: usize = 10;

fn explain(ledger: &Ledger, fault: &Fault) -> String {
    let write = match fault {
        Fault::Lost(id) | Fault::Returned(id) | Fault::Forgotten(id, _) | Fault::DotTwice(id, _) => {
            ledger.writes().get(*id)
        }
        Fault::Invented(..) | Fault::Differs(_) => None,
    };
    write.map_or_else(|| fault.to_string(), |write| format!("{fault} ({write:?})"))
}
