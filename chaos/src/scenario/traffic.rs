//! The load generators of the cluster, read while they run: what failed, when, and who answered.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::task::JoinSet;

use super::cluster::Member;
use crate::clock;
use crate::docker::Project;
use crate::load::{Failure, Tally};

/// Follows one load generator's output.
#[derive(Debug)]
pub(super) struct Watch {
    /// The node whose proxy it uses.
    pub(super) node: &'static str,
    seconds: Arc<Mutex<Vec<Tally>>>,
    _reader: JoinSet<()>,
    _child: Child,
}

/// A stretch of time as one load generator saw it.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    /// Good answers in the seconds that lie wholly within.
    pub(super) ok: u64,
    /// Failures within, by their own times.
    pub(super) failed: u64,
    /// The last of them, wall clock in milliseconds.
    pub(super) last_failure_ms: Option<u64>,
    /// One of them, for a person.
    pub(super) example: Option<Failure>,
    /// Who answered in the seconds that lie wholly within.
    pub(super) answered_by: Vec<String>,
}

impl Watch {
    /// Starts to follow `member`'s output, from its begin.
    pub(super) fn start(project: &Project, member: &Member) -> Result<Self> {
        let mut child = project.follow(&member.container)?;
        let output = child.stdout.take().context("docker logs without an output")?;
        let seconds = Arc::new(Mutex::new(Vec::new()));
        let mut reader = JoinSet::new();
        reader.spawn(read(output, Arc::clone(&seconds)));
        Ok(Self { node: member.name, seconds, _reader: reader, _child: child })
    }

    /// Whether the load has told of everything up to `until_ms`.
    pub(super) fn covers(&self, until_ms: u64) -> bool {
        self.with(|seconds| seconds.last().is_some_and(|last| last.until_ms >= until_ms))
    }

    /// The stretch between two wall-clock times in milliseconds.
    pub(super) fn between(&self, from_ms: u64, until_ms: u64) -> Stretch {
        self.with(|seconds| stretch(seconds, from_ms, until_ms))
    }

    /// Wall clock at the end of the first second after `from_ms` in which `node` answered.
    pub(super) fn first_answer_by(&self, node: &str, from_ms: u64) -> Option<u64> {
        self.with(|seconds| {
            let mut later = seconds.iter().filter(|second| second.from_ms >= from_ms);
            later.find(|second| second.answered_by.contains_key(node)).map(|second| second.until_ms)
        })
    }

    fn with<T>(&self, look: impl FnOnce(&[Tally]) -> T) -> T {
        // A panic in the reader leaves whole entries behind, never half of one.
        look(&self.seconds.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Waits until every watch covers the time now; false after 10 s.
pub(super) async fn caught_up(watches: &[Watch]) -> bool {
    let now_ms = clock::unix_ms();
    let all = || async { watches.iter().all(|watch| watch.covers(now_ms)) };
    super::cluster::until(clock::now(), Duration::from_secs(10), all).await.is_some()
}

async fn read(output: impl tokio::io::AsyncRead + Unpin, seconds: Arc<Mutex<Vec<Tally>>>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // The container writes other lines as well.
        if let Ok(second) = serde_json::from_str(&line) {
            seconds.lock().unwrap_or_else(PoisonError::into_inner).push(second);
        }
    }
}

fn stretch(seconds: &[Tally], from_ms: u64, until_ms: u64) -> Stretch {
    let mut whole = Stretch::default();
    for second in seconds.iter().filter(|second| second.until_ms >= from_ms && second.from_ms <= until_ms) {
        if second.from_ms >= from_ms && second.until_ms <= until_ms {
            whole.ok += second.ok;
            whole.answered_by.extend(second.answered_by.keys().cloned());
        }
        for failure in second.failures.iter().filter(|failure| (from_ms..=until_ms).contains(&failure.at_ms)) {
            whole.failed += 1;
            whole.last_failure_ms = whole.last_failure_ms.max(Some(failure.at_ms));
            whole.example.get_or_insert_with(|| failure.clone());
        }
        // A second tells the times of its first failures only; the rest counts as if at its end.
        let untold = second.failed.saturating_sub(u64::try_from(second.failures.len()).unwrap_or(u64::MAX));
        if untold > 0 {
            whole.failed += untold;
            whole.last_failure_ms = whole.last_failure_ms.max(Some(second.until_ms.min(until_ms)));
        }
    }
    whole.answered_by.sort();
    whole.answered_by.dedup();
    whole
}

#[cfg(test)]
mod tests {
    use super::stretch;
    use crate::load::{Failure, Tally};

    fn second(from_ms: u64, ok: u64, failed_at: &[u64]) -> Tally {
        let failure = |&at_ms: &u64| Failure { at_ms, after_ms: 1.0, cause: "502".to_owned(), detail: String::new() };
        Tally {
            from_ms,
            until_ms: from_ms + 1000,
            ok,
            failed: u64::try_from(failed_at.len()).expect("few"),
            answered_by: [("n1".to_owned(), ok)].into(),
            failures: failed_at.iter().map(failure).collect(),
            ..Tally::default()
        }
    }

    #[test]
    fn failures_count_by_their_own_times_and_answers_by_whole_seconds() {
        let seconds = [second(1000, 50, &[1200, 1900]), second(2000, 40, &[2500]), second(3000, 30, &[])];
        let seen = stretch(&seconds, 1500, 4000);
        assert_eq!((seen.ok, seen.failed, seen.last_failure_ms), (70, 2, Some(2500)));
        assert_eq!(seen.answered_by, ["n1"]);
        assert_eq!(stretch(&seconds, 2600, 4000).failed, 0);
    }

    #[test]
    fn failures_without_a_time_count_at_the_end_of_their_second() {
        let mut crowded = second(1000, 0, &[1100]);
        crowded.failed = 500;
        let seen = stretch(&[crowded], 1000, 5000);
        assert_eq!((seen.failed, seen.last_failure_ms), (500, Some(2000)));
    }
}
