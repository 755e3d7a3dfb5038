//! What a scenario saw: events on a time line, measurements with their bounds, invariants that held or did not.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::clock;

/// Grows while a scenario runs; prints each line as it comes.
#[derive(Debug, Serialize)]
pub struct Report {
    scenario: String,
    /// Wall clock at the begin, RFC 3339.
    began: String,
    machine: String,
    #[serde(skip)]
    since: Instant,
    events: Vec<Event>,
    measurements: Vec<Measurement>,
    invariants: Vec<Invariant>,
}

#[derive(Debug, Serialize)]
struct Event {
    at_s: f64,
    what: String,
}

#[derive(Debug, Serialize)]
struct Measurement {
    name: String,
    value: f64,
    unit: &'static str,
    /// The most that is allowed, where something is.
    bound: Option<f64>,
    /// What exactly was measured.
    detail: String,
}

#[derive(Debug, Serialize)]
struct Invariant {
    name: String,
    held: bool,
    detail: String,
}

impl Report {
    /// An empty report that begins now.
    #[must_use]
    pub fn new(scenario: &str) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            scenario: scenario.to_owned(),
            began: jiff::Timestamp::try_from(std::time::UNIX_EPOCH + clock::unix())
                .map_or_else(|_| "unknown".to_owned(), |now| format!("{now:.0}")),
            machine: format!("{cores} cores, Linux {}", kernel.trim()),
            since: clock::now(),
            events: Vec::new(),
            measurements: Vec::new(),
            invariants: Vec::new(),
        }
    }

    /// Something was done or seen.
    pub fn event(&mut self, what: impl Into<String>) {
        let event = Event { at_s: self.since.elapsed().as_secs_f64(), what: what.into() };
        println!("[{:7.2} s] {}", event.at_s, event.what);
        self.events.push(event);
    }

    /// A duration, and the invariant that it stays within `bound` where there is one. `None` stands for one that had
    /// not ended when the scenario gave up waiting, and breaks the invariant.
    pub fn time(&mut self, name: &str, took: Option<Duration>, bound: Option<Duration>, detail: &str) {
        let Some(took) = took else {
            self.invariant(name, false, format!("{detail}: not reached"));
            return;
        };
        let (value, most) = (took.as_secs_f64(), bound.map(|bound| bound.as_secs_f64()));
        self.measurements.push(Measurement {
            name: name.to_owned(),
            value,
            unit: "s",
            bound: most,
            detail: detail.to_owned(),
        });
        match most {
            Some(most) => {
                self.invariant(name, value <= most, format!("{detail}: {value:.2} s, at most {most} s allowed"));
            }
            None => self.event(format!("{detail}: {value:.2} s")),
        }
    }

    /// A count or another figure without a bound.
    pub fn figure(&mut self, name: &str, value: f64, unit: &'static str, detail: &str) {
        self.event(format!("{detail}: {value} {unit}"));
        self.measurements.push(Measurement {
            name: name.to_owned(),
            value,
            unit,
            bound: None,
            detail: detail.to_owned(),
        });
    }

    /// Something that must hold.
    pub fn invariant(&mut self, name: &str, held: bool, detail: impl Into<String>) {
        let detail = detail.into();
        self.event(format!("{} {name}: {detail}", if held { "held  " } else { "BROKEN" }));
        self.invariants.push(Invariant { name: name.to_owned(), held, detail });
    }

    /// The names of the invariants that did not hold.
    #[must_use]
    pub fn broken(&self) -> Vec<&str> {
        self.invariants.iter().filter(|invariant| !invariant.held).map(|invariant| invariant.name.as_str()).collect()
    }

    /// The report as Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = format!("# Scenario {}\n\n{} on {}.\n\n", self.scenario, self.began, self.machine);
        let held = self.invariants.len() - self.broken().len();
        // Writing to a String does not fail.
        writeln!(text, "{held} of {} invariants held.\n", self.invariants.len()).ok();
        text.push_str("| invariant | held | seen |\n|---|---|---|\n");
        for Invariant { name, held, detail } in &self.invariants {
            writeln!(text, "| {name} | {} | {} |", if *held { "yes" } else { "**no**" }, cell(detail)).ok();
        }
        text.push_str("\n| measured | value | bound | what |\n|---|---|---|---|\n");
        for Measurement { name, value, unit, bound, detail } in &self.measurements {
            let bound = bound.map_or_else(|| "-".to_owned(), |bound| format!("{bound} {unit}"));
            writeln!(text, "| {name} | {} {unit} | {bound} | {} |", rounded(*value), cell(detail)).ok();
        }
        text.push_str("\n| at | event |\n|---|---|\n");
        for Event { at_s, what } in &self.events {
            writeln!(text, "| {at_s:.2} s | {} |", cell(what)).ok();
        }
        text
    }

    /// Writes `SCENARIO.md` and `SCENARIO.json` below `folder`, which is made; gives the first path.
    ///
    /// # Errors
    /// When the folder or the files cannot be written.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let markdown = folder.join(format!("{}.md", self.scenario));
        fs::write(&markdown, self.markdown()).with_context(|| markdown.display().to_string())?;
        let json = folder.join(format!("{}.json", self.scenario));
        fs::write(&json, serde_json::to_vec_pretty(self)?).with_context(|| json.display().to_string())?;
        Ok(markdown)
    }
}

/// A figure as a person reads it: whole, or with three decimals at most.
fn rounded(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text that stays within one cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Report, rounded};

    #[test]
    fn a_time_past_its_bound_breaks_the_invariant_of_its_name() {
        let mut report = Report::new("test");
        report.time("fast", Some(Duration::from_secs(1)), Some(Duration::from_secs(2)), "a");
        report.time("slow", Some(Duration::from_secs(3)), Some(Duration::from_secs(2)), "b");
        report.time("never", None, None, "c");
        report.time("free", Some(Duration::from_secs(9)), None, "d");
        assert_eq!(report.broken(), ["slow", "never"]);
    }

    #[test]
    fn markdown_keeps_cells_whole_and_json_has_every_part() {
        let mut report = Report::new("test");
        report.invariant("a", false, "one|two\nthree");
        report.figure("b", 2.5, "requests", "c");
        let markdown = report.markdown();
        assert!(markdown.contains("| a | **no** | one\\|two three |"), "{markdown}");
        assert!(markdown.contains("| b | 2.5 requests | - | c |"), "{markdown}");

        let folder = tempfile::tempdir().expect("a folder");
        let path = report.write(folder.path()).expect("written");
        assert!(path.ends_with("test.md"));
        let json = std::fs::read(folder.path().join("test.json")).expect("written");
        let json: serde_json::Value = serde_json::from_slice(&json).expect("json");
        assert_eq!(json["invariants"][0]["held"], false);
        assert_eq!(json["measurements"][0]["value"], 2.5);
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([rounded(0.0), rounded(12.0), rounded(1.23456), rounded(0.5)], ["0", "12", "1.235", "0.5"]);
    }
}
