//! The figures as a Markdown table.

use std::fmt::Write as _;

use super::memory::Added;

/// Megabytes that a store of a few thousand documents, or of many, may add.
const MEMORY_GOAL_MB: [f64; 2] = [6.0, 15.0];

/// Rows in the order in which they were measured.
#[derive(Debug, Default)]
pub(super) struct Table(Vec<[String; 5]>);

impl Table {
    /// One figure; without a verdict where nothing was promised.
    pub(super) fn row(
        &mut self,
        what: impl Into<String>,
        store: String,
        sqlite: String,
        goal: &str,
        is_held: Option<bool>,
    ) {
        let verdict = match is_held {
            Some(true) => "HELD",
            Some(false) => "MISSED",
            None => "-",
        };
        self.0.push([what.into(), store, sqlite, goal.to_owned(), verdict.to_owned()]);
    }

    /// Memory that both added at so many documents.
    pub(super) fn memory(&mut self, count: usize, [store, sqlite]: &[Added; 2], is_small: bool) {
        let text = |added: &Added| {
            let all = added.anonymous_mb + added.file_mb;
            let (anonymous, file, peak) = (added.anonymous_mb, added.file_mb, added.peak_mb);
            format!("{all:.1} MB ({anonymous:.1} anonymous, {file:.1} files); {peak:.1} MB at worst")
        };
        let [small, large] = MEMORY_GOAL_MB;
        let goal = if is_small { small } else { large };
        self.row(
            format!("resident memory added by {count} documents, after 250 writes in 13 s"),
            text(store),
            text(sqlite),
            &format!("{goal:.0} MB"),
            Some(store.anonymous_mb + store.file_mb <= goal),
        );
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = "| what | store | SQLite | goal | |\n|---|---|---|---|---|\n".to_owned();
        for row in &self.0 {
            let _infallible = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }
}
