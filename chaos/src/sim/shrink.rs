//! From a schedule that fails to the smallest one found that still does.

use super::{
    Mutation, Run,
    model::Broken,
    schedule::{Schedule, Step},
};

/// Runs that shrinking may take.
const RUNS_MAX: usize = 3_000;

/// Leaves out steps, nodes and documents while the schedule still breaks the same rule.
pub(super) fn shrink(schedule: &Schedule, broken: &Broken, mutation: Option<Mutation>) -> (Schedule, Broken) {
    let mut shrinker = Shrinker { best: schedule.clone(), broken: broken.clone(), mutation, runs: 0 };
    shrinker.cut_tail();
    shrinker.drop_steps();
    shrinker.drop_counts();
    shrinker.drop_steps();
    (shrinker.best, shrinker.broken)
}

struct Shrinker {
    best: Schedule,
    broken: Broken,
    mutation: Option<Mutation>,
    runs: usize,
}

impl Shrinker {
    /// Steps after the one that failed play no part.
    fn cut_tail(&mut self) {
        if let Some(step) = self.broken.step {
            let steps = self.best.steps[..=step].to_vec();
            self.attempt(Schedule { steps, ..self.best.clone() });
        }
    }

    /// Leaves out runs of steps, long ones first, until no single one can be left out.
    fn drop_steps(&mut self) {
        let mut length = self.best.steps.len() / 2;
        while length > 0 && self.runs < RUNS_MAX {
            let mut at = 0;
            let mut has_shrunk = false;
            while at < self.best.steps.len() {
                let end = (at + length).min(self.best.steps.len());
                let kept: Vec<Step> = [&self.best.steps[..at], &self.best.steps[end..]].concat();
                if self.attempt(Schedule { steps: kept, ..self.best.clone() }) {
                    has_shrunk = true;
                } else {
                    at = end;
                }
            }
            if length > 1 || !has_shrunk {
                length /= 2;
            }
        }
    }

    fn drop_counts(&mut self) {
        while self.best.shape.nodes > 2 {
            let mut fewer = self.best.clone();
            fewer.shape.nodes -= 1;
            fewer.shape.claims_needed = fewer.shape.claims_needed.min(fewer.shape.nodes - 1);
            if !self.attempt(fewer) {
                break;
            }
        }
        while self.best.shape.documents > 1 {
            let mut fewer = self.best.clone();
            fewer.shape.documents -= 1;
            if !self.attempt(fewer) {
                break;
            }
        }
    }

    /// Keeps a schedule if it fails as the first one did.
    fn attempt(&mut self, schedule: Schedule) -> bool {
        self.runs += 1;
        if self.runs > RUNS_MAX {
            return false;
        }
        let broken = Run::of(&schedule, self.mutation, false).broken;
        let Some(broken) = broken.filter(|broken| broken.rule == self.broken.rule) else { return false };
        self.best = schedule;
        self.broken = broken;
        true
    }
}
