//! What the demo shows: a live table on a terminal, a line now and then elsewhere, and the summary at the end.

use std::io::Write;
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use policy::explain::Explanation;
use serde::Serialize;
use transport::Clock;

use super::fleet::Fleet;
use super::load::Tally;

/// Where the demo's words go.
#[derive(Debug)]
pub(super) struct Screen {
    json: bool,
    live: bool,
    drawn: usize,
    turns: u32,
}

impl Screen {
    pub(super) fn new(json: bool, terminal: bool) -> Self {
        Self { json, live: terminal && !json, drawn: 0, turns: 0 }
    }

    /// One line of progress: stdout for people, stderr when stdout is for a program.
    pub(super) fn line(&self, text: &str) {
        if self.json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }

    pub(super) fn block(&self, text: &str) {
        for line in text.lines() {
            self.line(line);
        }
    }

    /// Shows the candidates as they are now; on a terminal in place, elsewhere every tenth call.
    pub(super) fn table(&mut self, explained: &Explanation, tally: &Tally, left: Duration) {
        self.turns += 1;
        if !self.live && self.turns % 10 != 1 {
            return;
        }
        let (requests, failures) = tally.counts();
        let mut text = format!(
            "\nhello from {}: {requests} requests, {failures} failed, {} s left\n",
            explained.as_known_by,
            left.as_secs()
        );
        text += &candidates(explained);
        if self.live {
            let up = if self.drawn > 0 { format!("\x1b[{}A\x1b[J", self.drawn) } else { String::new() };
            self.drawn = text.lines().count();
            print!("{up}{text}");
            std::io::stdout().flush().ok();
        } else {
            self.block(&text);
        }
    }

    pub(super) fn summary(&self, summary: &Summary) {
        if self.json {
            match serde_json::to_string_pretty(summary) {
                Ok(text) => println!("{text}"),
                Err(fault) => eprintln!("summary: {fault}"),
            }
        } else {
            println!("{}", summary.text());
        }
    }
}

/// The result of the demo.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    requests: u64,
    failed: u64,
    faults: Vec<String>,
    slowest_ms: u128,
    start_ms: u128,
    policy_in_force_ms: u128,
    candidates: Vec<CandidateShare>,
    roots: Vec<NodeRoot>,
    roots_equal: bool,
}

/// One candidate over the whole run, all nodes' decisions together.
#[derive(Debug, Serialize)]
struct CandidateShare {
    instance: String,
    node: String,
    capacity: f64,
    picks: u64,
    /// Nothing where the best of two is in force.
    expected_picks: Option<f64>,
    share: f64,
    expected_share: Option<f64>,
}

#[derive(Debug, Serialize)]
struct NodeRoot {
    node: String,
    root: String,
}

impl Summary {
    /// Asks every node; waits up to `agree_max` for equal roots.
    pub(super) async fn gather(
        fleet: &Fleet,
        tally: &Tally,
        started: Duration,
        in_force: Duration,
        agree_max: Duration,
        clock: &dyn Clock,
    ) -> anyhow::Result<Self> {
        let until = clock.now() + agree_max;
        let roots = loop {
            let roots = fleet.roots().await?;
            if equal(&roots) || clock.now() >= until {
                break roots;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let (requests, failed) = tally.counts();
        let (_, faults, slowest) = tally.seen();
        Ok(Self {
            requests,
            failed,
            faults,
            slowest_ms: slowest.as_millis(),
            start_ms: started.as_millis(),
            policy_in_force_ms: in_force.as_millis(),
            candidates: shares(&fleet.explain_all("hello").await?),
            roots_equal: equal(&roots),
            roots: fleet
                .names()
                .into_iter()
                .zip(roots)
                .map(|(node, root)| NodeRoot { node: node.to_owned(), root })
                .collect(),
        })
    }

    /// No request failed and every node holds the same policy.
    pub(super) fn is_good(&self) -> bool {
        self.failed == 0 && self.requests > 0 && self.roots_equal
    }

    fn text(&self) -> String {
        let mut text = format!(
            "\nSummary\n  {} requests, {} failed, slowest {} ms\n  started in {} ms, policy in force everywhere after {} ms\n",
            self.requests, self.failed, self.slowest_ms, self.start_ms, self.policy_in_force_ms
        );
        for fault in &self.faults {
            text += &format!("  failure: {fault}\n");
        }
        let mut table = table(&["INSTANCE", "NODE", "C", "DRAWN", "SUM OF P", "SHARE", "BY P"]);
        for row in &self.candidates {
            table.add_row([
                row.instance.clone(),
                row.node.clone(),
                format!("{:.0}", row.capacity),
                row.picks.to_string(),
                row.expected_picks.map_or_else(unknown, |picks| format!("{picks:.1}")),
                percent(row.share),
                row.expected_share.map_or_else(unknown, percent),
            ]);
        }
        text += &format!("{table}\n");
        for node in &self.roots {
            text += &format!("  policy root of {:<6} {}\n", node.node, node.root);
        }
        text + if self.roots_equal { "  all equal" } else { "  NOT EQUAL" }
    }
}

fn candidates(explained: &Explanation) -> String {
    let mut table = table(&["INSTANCE", "NODE", "C", "IN FLIGHT", "L", "d ms", "w", "P", "OBSERVED", "STATE"]);
    for row in &explained.candidates {
        table.add_row([
            row.instance.clone(),
            row.node.clone(),
            format!("{:.0}", row.capacity),
            format!("{:.1}", row.inflight),
            format!("{:.3}", row.load),
            format!("{:.2}", row.distance_ms),
            format!("{:.2}", row.weight),
            percent(row.probability),
            row.observed_share.map_or_else(unknown, percent),
            row.state.clone(),
        ]);
    }
    let mut text = format!("{table}\n");
    for row in &explained.excluded {
        text += &format!("  out: {}@{}: {}\n", row.instance, row.node, row.reason);
    }
    text
}

fn shares(all: &[(String, Explanation)]) -> Vec<CandidateShare> {
    let mut rows: Vec<CandidateShare> = Vec::new();
    for row in all.iter().flat_map(|(_, explained)| &explained.candidates) {
        match rows.iter_mut().find(|known| known.instance == row.instance && known.node == row.node) {
            Some(known) => {
                known.picks += row.picks;
                known.expected_picks = known.expected_picks.zip(row.expected_picks).map(|(known, more)| known + more);
            }
            None => rows.push(CandidateShare {
                instance: row.instance.clone(),
                node: row.node.clone(),
                capacity: row.capacity,
                picks: row.picks,
                expected_picks: row.expected_picks,
                share: 0.0,
                expected_share: None,
            }),
        }
    }
    let picks: u64 = rows.iter().map(|row| row.picks).sum();
    let expected: Option<f64> = rows.iter().map(|row| row.expected_picks).sum();
    #[expect(clippy::cast_precision_loss, reason = "counts of one demo")]
    for row in &mut rows {
        row.share = if picks == 0 { 0.0 } else { row.picks as f64 / picks as f64 };
        let of_all = row.expected_picks.zip(expected.filter(|expected| *expected > 0.0));
        row.expected_share = of_all.map(|(picks, expected)| picks / expected);
    }
    rows
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(head);
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn unknown() -> String {
    "-".to_owned()
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

fn equal(roots: &[String]) -> bool {
    roots.windows(2).all(|pair| pair.first() == pair.last())
}
