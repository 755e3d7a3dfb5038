//! Power cuts while policy is written: what was acknowledged must be there, and nothing that nobody wrote.
//!
//! The store lies in a [`crate::lossfs`]. A writer, a process of its own, opens it, tells what it found, and writes,
//! telling each write before it begins and after it was acknowledged. At a random step the power goes; the writer is
//! killed, the power comes back, and the next writer opens what is left. A store goes through up to 24 cuts before a new
//! one begins, so that damage adds up and the creation of a store is cut as well. Every second cut is torn. The disk
//! changes by steps alone, so a cut at a step stands for one at any moment up to the next.
//!
//! The ledger knows every state that the store went through. What the next writer finds must be the state after the
//! last acknowledged write, or after the one that was under way.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::chance::Chance;
use crate::clock;
use crate::lossfs::{self, Cut, LossFs};

mod authority;
mod ledger;
mod line;
mod writer;

pub use authority::LoneNode;
pub use ledger::{Ledger, Verdict};
pub use line::{Change, Line, Version};
pub use writer::{Sabotage, WriterOptions, write};

/// What to do.
#[derive(Debug, Clone)]
pub struct PowerCutOptions {
    /// How many cuts.
    pub runs: u32,
    /// Decides about the writes, the moments, and what survives.
    pub seed: u64,
    /// Where to leave a copy of each disk that broke something, as it was right after the cut; `None` for no copies.
    pub keep: Option<PathBuf>,
    /// Makes the storage wrong on purpose.
    pub sabotage: Option<Sabotage>,
    /// Whether every second cut tears pages.
    pub torn: bool,
    /// The binary that has the writer as a subcommand.
    pub program: PathBuf,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Tally {
    /// Cuts carried out.
    pub runs: u32,
    /// Cuts that tore pages.
    pub torn: u32,
    /// Cuts that came before a store was open.
    pub cut_while_opening: u32,
    /// Stores begun.
    pub stores: u32,
    /// Changes and syncs that the file system carried out.
    pub steps: u64,
    /// Writes acknowledged.
    pub acknowledged: u64,
    /// Acknowledged writes that were not there after a cut, those in damaged stores included.
    pub lost: u64,
    /// Writes under way at the cut that were there afterwards, which is right as well.
    pub kept_unacknowledged: u64,
    /// Openings that found a state that never was: neither the last one nor any before.
    pub unexplained: u32,
    /// Openings that found a whole store.
    pub opened: u32,
    /// Of these, openings of a damaged database, which was recovered from snapshot and journal.
    pub recovered: u32,
    /// Openings that reported damage and found nothing.
    pub damaged: u32,
    /// Openings and writes that failed in another way, or took longer than half a minute, with the power on.
    pub failed: u32,
    /// Median and maximum time of an opening that succeeded.
    pub open_ms: (f64, f64),
    /// Time in all.
    pub seconds: f64,
    /// What broke, one line each.
    pub findings: Vec<String>,
}

impl Tally {
    /// True where every acknowledged write was there, nothing was invented and every store opened or was known as
    /// damaged before anything in it had been acknowledged.
    #[must_use]
    pub const fn held(&self) -> bool {
        self.lost == 0 && self.unexplained == 0 && self.failed == 0
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (median, most) = self.open_ms;
        writeln!(
            f,
            "power cuts            {} ({} torn, {} while opening)",
            self.runs, self.torn, self.cut_while_opening
        )?;
        writeln!(f, "stores begun          {}", self.stores)?;
        writeln!(f, "steps of the disk     {}", self.steps)?;
        writeln!(f, "writes acknowledged   {}", self.acknowledged)?;
        writeln!(f, "  of these lost       {}", self.lost)?;
        writeln!(f, "kept without ack      {}", self.kept_unacknowledged)?;
        writeln!(f, "states that never were {}", self.unexplained)?;
        writeln!(f, "opened whole          {} (median {median:.1} ms, longest {most:.1} ms)", self.opened)?;
        writeln!(f, "  of these recovered  {}", self.recovered)?;
        writeln!(f, "opened as damaged     {}", self.damaged)?;
        writeln!(f, "failed otherwise      {}", self.failed)?;
        write!(f, "seconds               {:.1}", self.seconds)
    }
}

/// Carries the cuts out, telling what happens through `tell`; ends early once `stop` is set. `Err` within is the reason
/// why nothing can be mounted here.
///
/// # Errors
/// When a writer does not start, or the folder for the mount cannot be made.
pub fn run(options: &PowerCutOptions, stop: &AtomicBool, tell: &dyn Fn(&str)) -> Result<Result<Tally, String>> {
    if let Some(obstacle) = lossfs::obstacle() {
        return Ok(Err(obstacle));
    }
    let folder = MountPoint::new(options.seed)?;
    let disk = match LossFs::mount(&folder.0, CAPACITY_BYTES) {
        Ok(disk) => Arc::new(disk),
        Err(error) => return Ok(Err(format!("a FUSE file system does not mount here: {error}"))),
    };
    let began = clock::now();
    let mut bench = Bench::new(options, disk)?;
    for run in 1..=options.runs {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        bench.run(run)?;
        if run % TELL_EVERY == 0 {
            let Tally { acknowledged, lost, .. } = bench.tally;
            tell(&format!("{run} cuts: {acknowledged} writes acknowledged, {lost} lost"));
        }
    }
    bench.look()?;
    let mut tally = bench.finish();
    tally.seconds = clock::now().duration_since(began).as_secs_f64();
    Ok(Ok(tally))
}

/// The store under test and what is known of it.
struct Bench<'a> {
    options: &'a PowerCutOptions,
    disk: Arc<LossFs>,
    chance: Chance,
    tally: Tally,
    ledger: Ledger,
    open_ms: Histogram<u64>,
    /// Runs that the store has gone through; 0 for one to be begun.
    age: u32,
    /// Runs that it is to go through.
    life: u32,
}

impl<'a> Bench<'a> {
    fn new(options: &'a PowerCutOptions, disk: Arc<LossFs>) -> Result<Self> {
        Ok(Self {
            options,
            disk,
            chance: Chance::new(options.seed),
            tally: Tally::default(),
            ledger: Ledger::default(),
            open_ms: Histogram::new_with_bounds(1, 60_000_000, 3)?,
            age: 0,
            life: 0,
        })
    }

    /// One writer, one cut.
    fn run(&mut self, run: u32) -> Result<()> {
        if self.age >= self.life {
            self.look()?;
            self.leave_store();
        }
        self.clear()?;
        if self.age == 0 {
            self.tally.stores += 1;
            self.life = 1 + u32::try_from(self.chance.below(RUNS_PER_STORE)).unwrap_or(0);
        }
        let most = match self.chance.below(8) {
            0 | 1 => STEPS_EARLY,
            _ if self.age == 0 => STEPS_EARLY,
            7 => STEPS_LATE,
            _ => STEPS,
        };
        let steps = self.chance.below(most);
        let cut = if self.options.torn && run.is_multiple_of(2) { Cut::Torn(self.chance.draw()) } else { Cut::Clean };
        let copy = self.copy(&format!("before-run-{run}"))?;
        let shown = self.show(Some(steps), cut, u64::MAX)?;
        self.tally.runs += 1;
        self.tally.torn += u32::from(matches!(cut, Cut::Torn(_)));
        self.age += 1;
        let findings = self.tally.findings.len();
        let was_opened = self.judge(&format!("run {run}, store {} (opening {})", self.tally.stores, self.age), shown);
        self.tally.cut_while_opening += u32::from(!was_opened);
        self.drop_copy(copy, findings);
        Ok(())
    }

    /// Opens the store once more without a cut, to see what the last one left.
    fn look(&mut self) -> Result<()> {
        if self.age == 0 {
            return Ok(());
        }
        let copy = self.copy(&format!("after-run-{}", self.tally.runs))?;
        let shown = self.show(None, Cut::Clean, 0)?;
        let findings = self.tally.findings.len();
        self.judge(&format!("the end of store {}", self.tally.stores), shown);
        self.drop_copy(copy, findings);
        Ok(())
    }

    /// Before a new store, removes the one that was left.
    fn clear(&self) -> Result<()> {
        if self.age > 0 {
            return Ok(());
        }
        self.disk.power_on();
        // With what lies beside it: snapshot, databases that were set aside.
        for entry in fs::read_dir(self.disk.folder())? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.context("the last store")?;
        }
        Ok(fs::File::open(self.disk.folder())?.sync_all()?)
    }

    fn leave_store(&mut self) {
        self.ledger = Ledger::default();
        self.age = 0;
    }

    fn store(&self) -> PathBuf {
        self.disk.folder().join(format!("store-{}", self.tally.stores))
    }

    /// Starts a writer and lets it run until the power goes, after `steps`; a writer that ends takes the power with it.
    fn show(&mut self, steps: Option<u64>, cut: Cut, writes: u64) -> Result<Shown> {
        self.disk.power_on();
        if let Some(steps) = steps {
            self.disk.cut_after(steps, cut);
        }
        let mut command = Command::new(&self.options.program);
        command.arg(WRITER).arg("--store").arg(self.store());
        command.arg("--seed").arg(self.chance.draw().to_string()).arg("--writes").arg(writes.to_string());
        if let Some(sabotage) = self.options.sabotage {
            command.arg("--sabotage").arg(sabotage.to_string());
        }
        // sled panics over a disk that is gone, as it should; nobody needs to read it.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = Writer(command.spawn().context("the writer does not start")?);
        let output = child.0.stdout.take().context("the writer has no output")?;
        let disk = Arc::clone(&self.disk);
        let reader = thread::spawn(move || {
            let lines = read_lines(output);
            (lines, disk.cut(cut))
        });
        let is_hung = !self.disk.wait_outage(WRITER_LIMIT);
        child.end();
        let (lines, ended_by_itself) = reader.join().ok().context("the reader of a writer's lines died")?;
        Ok(Shown { lines, ended_by_itself: ended_by_itself && !is_hung, is_hung })
    }

    /// Enters what a writer told; true where it had opened the store.
    fn judge(&mut self, run: &str, shown: Shown) -> bool {
        let mut was_opened = false;
        for line in shown.lines {
            match line {
                Line::Opened { millis, recovered, documents } => {
                    was_opened = true;
                    self.tally.opened += 1;
                    self.tally.recovered += u32::from(recovered.is_some());
                    self.open_ms.saturating_record(micros(millis));
                    let run = recovered.map_or_else(|| run.to_owned(), |why| format!("{run}, recovered ({why})"));
                    self.enter(&run, &documents);
                }
                Line::Trying { changes } => self.ledger.begin(changes),
                Line::Done { etags, .. } => {
                    self.tally.acknowledged += 1;
                    self.ledger.acknowledge(&etags);
                }
                // Without power all of this is no wonder.
                Line::Damaged { reason } if shown.ended_by_itself => {
                    self.tally.damaged += 1;
                    self.give_up(&format!("{run}: damaged"), &reason);
                }
                Line::Failed { doing, reason } if shown.ended_by_itself => {
                    self.tally.failed += 1;
                    self.give_up(&format!("{run}: {doing} failed"), &reason);
                }
                Line::Damaged { .. } | Line::Failed { .. } => {}
            }
        }
        if shown.is_hung {
            self.tally.failed += 1;
            self.tally.findings.push(format!("{run}: the writer did not get on for {} s", WRITER_LIMIT.as_secs()));
        }
        was_opened
    }

    /// A store that is of no use any more, with everything in it.
    fn give_up(&mut self, what: &str, reason: &str) {
        let writes = self.ledger.acknowledged();
        self.tally.lost += writes;
        self.tally.findings.push(format!("{what}, with {writes} acknowledged writes in it: {reason}"));
        self.leave_store();
    }

    /// What an opening found.
    fn enter(&mut self, run: &str, documents: &BTreeMap<String, Version>) {
        match self.ledger.judge(documents) {
            Verdict::Whole { kept_unacknowledged } => self.tally.kept_unacknowledged += kept_unacknowledged,
            Verdict::Lost { writes } => {
                self.tally.lost += writes;
                self.tally.findings.push(format!("{run}: the last {writes} acknowledged writes are gone"));
            }
            Verdict::Unexplained { writes, key } => {
                self.tally.lost += writes;
                self.tally.unexplained += 1;
                self.tally.findings.push(format!(
                    "{run}: a state that never was, after {writes} acknowledged writes; the first difference is {key}"
                ));
            }
        }
    }

    fn copy(&self, name: &str) -> Result<Option<PathBuf>> {
        let Some(keep) = &self.options.keep else { return Ok(None) };
        self.disk.power_on();
        let target = keep.join(name);
        copy_folder(self.disk.folder(), &target).context("a copy of the disk")?;
        Ok(Some(target))
    }

    fn drop_copy(&mut self, copy: Option<PathBuf>, findings: usize) {
        let Some(copy) = copy else { return };
        if self.tally.findings.len() > findings {
            self.tally.findings.push(format!("  the disk as it was found: {}", copy.display()));
        } else {
            fs::remove_dir_all(copy).ok();
        }
    }

    fn finish(mut self) -> Tally {
        let ms = |micros: u64| clock::millis(Duration::from_micros(micros));
        self.tally.open_ms = (ms(self.open_ms.value_at_quantile(0.5)), ms(self.open_ms.max()));
        self.tally.steps = self.disk.steps();
        self.tally
    }
}

/// What was heard of a writer.
struct Shown {
    lines: Vec<Line>,
    /// It ended with the power on.
    ended_by_itself: bool,
    is_hung: bool,
}

/// A writer that does not outlive the run.
struct Writer(Child);

impl Writer {
    fn end(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

/// A folder to mount on, removed afterwards.
struct MountPoint(PathBuf);

impl MountPoint {
    fn new(seed: u64) -> Result<Self> {
        for number in 0..MOUNT_POINTS_MAX {
            let name = format!("marram-power-cuts-{}-{seed}-{number}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            match fs::create_dir(&folder) {
                Ok(()) => return Ok(Self(folder)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("{} cannot be made", folder.display())),
            }
        }
        bail!("{MOUNT_POINTS_MAX} mount points of earlier runs are left in {}", std::env::temp_dir().display())
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok();
    }
}

/// All whole lines until the writer is gone; a line that was cut off was not said.
fn read_lines(output: ChildStdout) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut output = BufReader::new(output);
    let mut text = String::new();
    while output.read_line(&mut text).is_ok_and(|length| length > 0) {
        if text.ends_with('\n')
            && let Ok(line) = serde_json::from_str(&text)
        {
            lines.push(line);
        }
        text.clear();
    }
    lines
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    if !from.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time of some milliseconds")]
fn micros(millis: f64) -> u64 {
    (millis * 1e3) as u64
}

/// The hidden subcommand of [`write()`].
pub const WRITER: &str = "power-cuts-writer";
/// Room of the disk: a store takes some ten megabytes.
const CAPACITY_BYTES: u64 = 256 << 20;
const MOUNT_POINTS_MAX: u32 = 1_000;
const RUNS_PER_STORE: u64 = 24;
/// An opening takes some twenty steps, a write two or three.
const STEPS_EARLY: u64 = 40;
const STEPS: u64 = 1_200;
const STEPS_LATE: u64 = 8_000;
const WRITER_LIMIT: Duration = Duration::from_secs(30);
const TELL_EVERY: u32 = 25;
