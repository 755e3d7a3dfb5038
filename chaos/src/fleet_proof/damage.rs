//! A damaged database: the agent comes back with what was written, whether it can still read it or asks its peers, and
//! never shows anything else on the way.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use tests::{Fleet, Node, pause};

use self::file::Kind;
use super::desk::{Desk, at, roots_equal};
use super::ledger::Fault;
use super::library::{Known, Library};
use super::{CommonOptions, POLL, count, spread, until};
use crate::clock;
use crate::report::Report;

mod file;

/// How to run the proof.
#[derive(Debug, Clone, Args)]
pub struct DamageOptions {
    /// Damaged files of each kind; every other one after kill -9, the rest after a clean stop
    #[arg(long, default_value_t = 30)]
    pub runs: usize,
    /// Documents, 600 bytes of text each
    #[arg(long, default_value_t = 1000)]
    pub documents: usize,
    /// What all proofs take.
    #[command(flatten)]
    pub common: CommonOptions,
}

const AGENTS: usize = 3;
const TEXT_BYTES: usize = 600;
/// The agent whose database is damaged; the others are its peers.
const VICTIM: usize = 2;
/// Longest wait for a damaged agent to be as its peers again, and the goal.
const EQUAL_MAX: Duration = Duration::from_secs(60);
const GOAL: Duration = Duration::from_secs(10);
/// The last good snapshot beside the database; in every third run it is gone as well, so that only peers can help.
const SNAPSHOT: &str = "store.snapshot";
const WITHOUT_SNAPSHOT_EVERY: usize = 3;
/// Rounds of all kinds between two lines of progress.
const TELL_EVERY: usize = 5;
/// Folders of damaged databases that an agent may keep.
const SET_ASIDE_MAX: usize = 2;

/// How an agent came out of a damaged database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// It opened what was there.
    Opened,
    /// It set the database aside and says so.
    Rebuilt,
    /// It did not start, or did not become as its peers.
    Failed,
}

/// What is done to an agent.
#[derive(Debug, Clone, Copy)]
struct How {
    kind: Kind,
    is_killed: bool,
    has_snapshot: bool,
}

/// One damaged file.
#[derive(Debug)]
struct Run {
    how: How,
    outcome: Outcome,
    /// From the start until its root equals that of its peers.
    equal: Option<Duration>,
    /// Looks at its API meanwhile.
    looks: usize,
}

/// Damages one file after the other and enters what came of it.
pub(super) fn steps(options: &DamageOptions, report: &mut Report) -> Result<()> {
    let mut random = StdRng::seed_from_u64(options.common.seed);
    let mut stage = Stage::set(options.documents, &mut random)?;
    report.event(format!("{AGENTS} agents have {} documents of {TEXT_BYTES} bytes", options.documents));
    let mut runs = Vec::new();
    for number in 0..options.runs {
        for kind in Kind::ALL {
            let how =
                How { kind, is_killed: number % 2 == 1, has_snapshot: (number + 1) % WITHOUT_SNAPSHOT_EVERY != 0 };
            runs.push(stage.run(how, &mut random, report)?);
        }
        if (number + 1) % TELL_EVERY == 0 {
            let rebuilt = runs.iter().filter(|run| run.outcome == Outcome::Rebuilt).count();
            report.event(format!("{} files damaged, {rebuilt} times rebuilt", runs.len()));
        }
    }
    stage.tell(&runs, report);
    Ok(())
}

/// The agents and what was written into them.
#[derive(Debug)]
struct Stage {
    fleet: Fleet,
    desks: Vec<Desk>,
    library: Library,
    known: Known,
    /// What the damaged agent showed and nobody wrote, at any moment.
    invented: Vec<Fault>,
    /// Faults of the whole so far.
    faults: usize,
    set_aside_most: usize,
}

impl Stage {
    fn set(documents: usize, random: &mut StdRng) -> Result<Self> {
        let fleet = Fleet::start(AGENTS, &|_, _| {});
        let desks: Vec<Desk> =
            fleet.nodes.iter().enumerate().map(|(number, node)| Desk::of(number, node)).collect::<Result<_>>()?;
        let mut stage = Self {
            fleet,
            desks,
            library: Library::new(TEXT_BYTES),
            known: Known::new(),
            invented: Vec::new(),
            faults: 0,
            set_aside_most: 0,
        };
        let names: Vec<String> = (0..documents).map(|number| format!("d-{number}")).collect();
        stage.write(0, &names, random)?;
        // Versions that are no longer in force leave their traces in the database as well.
        let again: Vec<String> = names.iter().take(documents / 5).cloned().collect();
        stage.write(1, &again, random)?;
        let gone: Vec<String> = names.iter().rev().take(documents / 50).cloned().collect();
        let desk = stage.desks.first().context("no agent")?;
        stage.library.delete(desk, &mut stage.known, &gone)?;
        stage.equal()?;
        Ok(stage)
    }

    /// Writes at a node that has seen everything.
    fn write(&mut self, node: usize, names: &[String], random: &mut StdRng) -> Result<()> {
        self.equal()?;
        let desk = self.desks.get(node).context("no such node")?;
        self.library.write(desk, &mut self.known, names, random)
    }

    fn equal(&mut self) -> Result<()> {
        let running: Vec<Desk> = self
            .fleet
            .nodes
            .iter_mut()
            .zip(&self.desks)
            .filter_map(|(node, desk)| node.is_running().then(|| desk.clone()))
            .collect();
        until(EQUAL_MAX, || roots_equal(&running)).context("roots do not become equal")?;
        Ok(())
    }

    fn victim(&mut self) -> Result<&mut Node> {
        self.fleet.nodes.get_mut(VICTIM).context("no such node")
    }

    /// Stops the agent, damages a file of its database, starts it, and watches it until it is as its peers.
    fn run(&mut self, how: How, random: &mut StdRng, report: &mut Report) -> Result<Run> {
        let How { kind, is_killed, has_snapshot } = how;
        let some: Vec<String> = self.known.keys().cloned().sample(random, 5);
        self.write(VICTIM, &some, random)?;
        // What only the damaged disk has cannot be had back from anywhere (a write that waits for another node cannot get
        // into that). A clean stop hands its newest writes over by itself; before a kill its peers must have heard of them.
        if is_killed {
            self.equal()?;
        }
        let victim = self.victim()?;
        if is_killed {
            victim.kill();
        } else {
            victim.terminate();
        }
        let (store, sound) = (victim.dir.join("store"), victim.dir.join("sound"));
        file::copy(&store, &sound)?;
        let what = file::damage(&store, kind, random)?;
        if !has_snapshot {
            fs::remove_file(store.with_file_name(SNAPSHOT)).ok();
        }
        // Its peers go on meanwhile, so equal roots prove that it has heard from them.
        let some: Vec<String> = self.known.keys().cloned().sample(random, 1);
        self.write(0, &some, random)?;

        let victim = self.victim()?;
        victim.start();
        let since = clock::now();
        let mut looks = 0;
        let equal = loop {
            looks += usize::from(self.look());
            if roots_equal(&self.desks) {
                break Some(since.elapsed());
            }
            if !self.victim()?.is_running() || since.elapsed() > EQUAL_MAX {
                break None;
            }
            pause(POLL);
        };
        let outcome = match equal {
            None => Outcome::Failed,
            Some(_) if self.is_rebuilt() => Outcome::Rebuilt,
            Some(_) => Outcome::Opened,
        };
        if outcome == Outcome::Failed {
            let log = self.victim()?.log_tail(1);
            let stop = stop_of(is_killed);
            report.event(format!("{} after {stop}, {what}: it did not come back: {}", kind.name(), log.trim()));
            self.restore(&store, &sound)?;
        }
        fs::remove_dir_all(&sound)?;
        let faults = self.compare()?;
        if faults > self.faults {
            let stop = stop_of(is_killed);
            let snapshot = if has_snapshot { "with" } else { "without" };
            let new = faults - self.faults;
            report.event(format!("{} after {stop}, {what}, {snapshot} its snapshot: {new} faults", kind.name()));
            self.faults = faults;
        }
        self.set_aside_most = self.set_aside_most.max(set_aside(&store)?);
        Ok(Run { how, outcome, equal, looks })
    }

    /// Looks at everything that the agent shows just now; false when it does not answer.
    fn look(&mut self) -> bool {
        let Some(Ok(view)) = self.desks.get(VICTIM).map(Desk::view) else { return false };
        self.invented.extend(self.library.ledger.invented(&view));
        true
    }

    fn is_rebuilt(&self) -> bool {
        let problems = self.desks.get(VICTIM).and_then(|desk| desk.ask("/v1/problems").ok()).unwrap_or_default();
        problems.as_array().into_iter().flatten().any(|problem| at(problem, "/code") == "store_recovered")
    }

    /// Puts the sound database back after a failure, so that the next run means something.
    fn restore(&mut self, store: &Path, sound: &Path) -> Result<()> {
        self.victim()?.kill();
        fs::remove_dir_all(store).ok();
        file::copy(sound, store)?;
        self.victim()?.start();
        if until(EQUAL_MAX, || roots_equal(&self.desks)).is_none() {
            bail!("with its sound database the agent does not come back either\n{}", self.fleet.logs());
        }
        Ok(())
    }

    /// Every agent shows exactly what was written; how many faults there are so far.
    fn compare(&mut self) -> Result<usize> {
        let views = self.desks.iter().map(Desk::view).collect::<Result<Vec<_>, _>>().map_err(anyhow::Error::msg)?;
        Ok(self.library.ledger.check(&views).len())
    }

    fn tell(&mut self, runs: &[Run], report: &mut Report) {
        let mut cells: BTreeMap<(Kind, bool), Vec<&Run>> = BTreeMap::new();
        for run in runs {
            cells.entry((run.how.kind, run.how.is_killed)).or_default().push(run);
        }
        for ((kind, is_killed), runs) in &cells {
            let of = |outcome| runs.iter().filter(|run| run.outcome == outcome).count();
            let slowest = runs.iter().filter_map(|run| run.equal).max().unwrap_or_default();
            let stop = stop_of(*is_killed);
            let detail = format!(
                "{} after {stop}: {} opened as it was, {} rebuilt, {} failed; slowest {:.2} s",
                kind.name(),
                of(Outcome::Opened),
                of(Outcome::Rebuilt),
                of(Outcome::Failed),
                slowest.as_secs_f64()
            );
            let name = format!("{}-{}", kind.name(), if *is_killed { "killed" } else { "stopped" });
            report.figure(&name, count(runs.len()), "files", &detail);
        }
        let of = |outcome| runs.iter().filter(|run| run.outcome == outcome).count();
        report.figure("files", count(runs.len()), "files", "damaged files in all");
        report.figure(
            "rebuilt",
            count(of(Outcome::Rebuilt)),
            "files",
            "of these the database was set aside and rebuilt",
        );
        let alone = runs.iter().filter(|run| run.outcome == Outcome::Rebuilt && !run.how.has_snapshot).count();
        report.figure("rebuilt-without-snapshot", count(alone), "files", "of these without the last good snapshot");
        let looks = runs.iter().map(|run| run.looks).sum();
        report.figure("looks", count(looks), "times", "everything the agent shows was read on its way back");
        let equal: Vec<Duration> = runs.iter().filter_map(|run| run.equal).collect();
        spread(report, "equal", &equal, "from the start on a damaged database until all roots are equal");
        let failed = of(Outcome::Failed);
        report.invariant("always-comes-back", failed == 0, format!("{failed} of {} did not", runs.len()));
        let slowest = (failed == 0).then(|| equal.iter().max().copied().unwrap_or_default());
        report.time("comes-back-in-time", slowest, Some(GOAL), "the slowest from its start until all roots are equal");
        self.invented.sort();
        self.invented.dedup();
        report.invariant(
            "never-shows-what-nobody-wrote",
            self.invented.is_empty() && looks > 0,
            format!("{looks} looks; {}", list(self.invented.iter())),
        );
        let faults = self.library.ledger.check(&[]);
        report.invariant("shows-exactly-what-was-written", faults.is_empty(), list(faults.iter()));
        report.invariant(
            "set-aside-folders-are-few",
            self.set_aside_most <= SET_ASIDE_MAX,
            format!("at most {} at once", self.set_aside_most),
        );
    }
}

/// How an agent was stopped, in words.
const fn stop_of(is_killed: bool) -> &'static str {
    if is_killed { "kill -9" } else { "a clean stop" }
}

/// How many damaged databases stand beside the one in use.
fn set_aside(store: &Path) -> Result<usize> {
    let folder = store.parent().context("the database is in a folder")?;
    let mut number = 0;
    for entry in fs::read_dir(folder)? {
        number += usize::from(entry?.file_name().to_string_lossy().starts_with("store.bad-"));
    }
    Ok(number)
}

fn list<'a>(faults: impl ExactSizeIterator<Item = &'a Fault>) -> String {
    let all = faults.len();
    let told: Vec<String> = faults.take(5).map(ToString::to_string).collect();
    [format!("{all} faults")].into_iter().chain(told).collect::<Vec<_>>().join("; ")
}
