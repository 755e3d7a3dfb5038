//! Away until nobody remembers the deletions: nothing deleted returns, and what was edited alone meanwhile arrives.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tests::Fleet;

use super::desk::{Desk, roots_equal};
use super::ledger::View;
use super::library::{Known, Library};
use super::{CommonOptions, count, until};
use crate::report::Report;

/// How to run the proof.
#[derive(Debug, Clone, Args)]
pub struct AwayOptions {
    /// Documents; half of them are deleted while one agent is away
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(20..=2000))]
    pub documents: u16,
    /// Age at which a deletion is forgotten
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    pub tombstone_age: Duration,
    /// What all proofs take.
    #[command(flatten)]
    pub common: CommonOptions,
}

const AGENTS: usize = 3;
const TEXT_BYTES: usize = 100;
/// The agent that goes away.
const AWAY: usize = 2;
/// Documents that it edits, deletes and adds while it is alone; a part of those edited is deleted by the others.
const EDITED: usize = 6;
const EDITED_AND_DELETED: usize = 3;
const ADDED: usize = 3;
const DELETED_ALONE: usize = 2;
/// The metrics that tell how many deletions were let go of, and how many are remembered.
const COLLECTED: &str = "marram_store_collected_total";
const LEFT: &str = "marram_store_tombstones";
const READY_MAX: Duration = Duration::from_secs(30);
/// Longest wait until deletions are forgotten: agents look for them now and then.
const COLLECTED_MAX: Duration = Duration::from_secs(180);
const EQUAL_MAX: Duration = Duration::from_secs(60);

/// Sends one agent away, lets the others forget, and brings it back.
pub(super) fn steps(options: &AwayOptions, report: &mut Report) -> Result<()> {
    let mut random = StdRng::seed_from_u64(options.common.seed);
    let age = options.tombstone_age;
    let mut fleet = Fleet::start(AGENTS, &|_, config| config.store.tombstone_age = age);
    let desks: Vec<Desk> =
        fleet.nodes.iter().enumerate().map(|(number, node)| Desk::of(number, node)).collect::<Result<_>>()?;
    let [first, second, away] = desks.as_slice() else { anyhow::bail!("{} agents", desks.len()) };
    let mut library = Library::new(TEXT_BYTES);
    let mut known = Known::new();
    let names: Vec<String> = (0..options.documents).map(|number| format!("d-{number}")).collect();
    library.write(first, &mut known, &names, &mut random)?;
    until(EQUAL_MAX, || roots_equal(&desks)).context("roots do not become equal")?;
    report.event(format!("{AGENTS} agents have {} documents", names.len()));

    // Those that the others delete come first, those that it deletes itself last.
    let half = names.len() / 2;
    let (deleted, kept) = names.split_at(half);
    let edited: Vec<String> =
        deleted.iter().take(EDITED_AND_DELETED).chain(kept.iter().take(EDITED - EDITED_AND_DELETED)).cloned().collect();
    let added: Vec<String> = (0..ADDED).map(|number| format!("added-{number}")).collect();
    let deleted_alone: Vec<String> = kept.iter().rev().take(DELETED_ALONE).cloned().collect();
    for node in &mut fleet.nodes {
        node.kill();
    }
    start(&mut fleet, &desks, &[AWAY])?;
    let mut known_alone = known.clone();
    library.write(away, &mut known_alone, &edited, &mut random)?;
    library.write(away, &mut known_alone, &added, &mut random)?;
    library.delete(away, &mut known_alone, &deleted_alone)?;
    kill(&mut fleet, AWAY)?;
    report.event(format!("{} alone: {EDITED} edited, {ADDED} added, {DELETED_ALONE} deleted", away.name));

    start(&mut fleet, &desks, &[0, 1])?;
    library.delete(first, &mut known, deleted)?;
    let rewritten: Vec<String> = kept.iter().skip(EDITED).take(EDITED).cloned().collect();
    let pair = [first.clone(), second.clone()];
    until(EQUAL_MAX, || roots_equal(&pair)).context("roots of the others do not become equal")?;
    library.write(second, &mut known, &rewritten, &mut random)?;
    report.event(format!("the others: {} deleted, {} rewritten", deleted.len(), rewritten.len()));
    let all = deleted.len();
    // One of them may hear from the other that nothing is left to remember.
    let is_forgotten = || {
        let left: Vec<(usize, usize)> = pair.iter().map(|desk| (desk.metric(COLLECTED), desk.metric(LEFT))).collect();
        left.iter().any(|(collected, _)| *collected >= all) && left.iter().all(|(_, left)| *left == 0)
    };
    let collected = until(COLLECTED_MAX, is_forgotten);
    report.time("forgotten", collected, Some(COLLECTED_MAX), "until both others have let go of every deletion");
    ensure!(collected.is_some(), "deletions are not let go of\n{}", fleet.logs());

    start(&mut fleet, &desks, &[AWAY])?;
    let equal = until(EQUAL_MAX, || roots_equal(&desks));
    report.time("equal", equal, None, "from its being ready again until all roots are equal");
    let views = desks.iter().map(Desk::view).collect::<Result<Vec<_>, _>>().map_err(anyhow::Error::msg)?;
    let shown: Vec<usize> = views.iter().map(View::len).collect();
    let expected = names.len() - deleted.len() + EDITED_AND_DELETED + ADDED - DELETED_ALONE;
    report.figure("documents", count(expected), "documents", "documents that must be left");
    let faults: Vec<String> = library.ledger.check(&views).iter().map(ToString::to_string).collect();
    report.invariant(
        "nothing-deleted-returns-and-offline-edits-arrive",
        faults.is_empty() && shown.iter().all(|documents| *documents == expected),
        format!("documents at each agent {shown:?}, expected {expected}; faults {faults:?}"),
    );
    let alone = edited.iter().chain(&added).filter(|name| {
        let id = known_alone.get(*name);
        views.iter().all(|view| view.get(*name).is_some_and(|sides| sides.iter().any(|shown| Some(&shown.id) == id)))
    });
    let arrived = alone.count();
    report.invariant(
        "its-own-writes-are-everywhere",
        arrived == EDITED + ADDED,
        format!("{arrived} of {} documents that it wrote alone are shown by all, as it wrote them", EDITED + ADDED),
    );
    Ok(())
}

fn start(fleet: &mut Fleet, desks: &[Desk], numbers: &[usize]) -> Result<()> {
    for number in numbers {
        fleet.nodes.get_mut(*number).context("no such node")?.start();
    }
    for desk in numbers.iter().filter_map(|number| desks.get(*number)) {
        until(READY_MAX, || desk.is_ready())
            .with_context(|| format!("{} is not ready\n{}", desk.name, fleet.logs()))?;
    }
    Ok(())
}

fn kill(fleet: &mut Fleet, number: usize) -> Result<()> {
    fleet.nodes.get_mut(number).context("no such node")?.kill();
    Ok(())
}
