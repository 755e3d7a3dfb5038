//! An instance beside its peers over one interval: whose success rate is low, who fails too often, who is slow.
//!
//! Pure: what was seen comes in, verdicts come out. A rule that has too few instances with enough requests says nothing.

use std::fmt;

use policy::{FailurePercentage, Outlier, Slowness, SuccessRate};

/// What one instance did in an interval, as this node saw it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Seen {
    /// Answers that were no errors.
    pub good: u64,
    /// Errors, and answers that did not come in time.
    pub bad: u64,
    /// Good answers of which it is known how long they took.
    pub timed: u64,
    /// How long all of those took together, in microseconds.
    pub timed_us: u64,
    /// The round trip to its node, in milliseconds.
    pub distance_ms: f64,
    /// Intervals before this one in which it was slow, without one between in which it was not.
    pub slow_intervals: u32,
    /// Whether it was left out by such a comparison, and has not passed an interval well since.
    pub has_relapsed: bool,
}

/// What came of comparing one instance.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Verdict {
    /// Why it is to be left out, if it is.
    pub finding: Option<Finding>,
    /// Whether it was compared, and in order.
    pub is_sound: bool,
    /// Intervals in a row in which it was slow, this one included; those in which it had too little to do do not count.
    pub slow_intervals: u32,
}

/// How an instance differs from its peers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Finding {
    /// Its success rate is too far below theirs.
    SuccessRate {
        /// Its own, in percent.
        percent: f64,
        /// Of so many answers.
        requests: u64,
        /// The mean of those compared, its own among them.
        mean_percent: f64,
        /// How many were compared.
        hosts: usize,
    },
    /// It fails too often.
    FailurePercentage {
        /// So many percent.
        percent: f64,
        /// Of so many answers.
        requests: u64,
        /// What the others fail, all their answers together.
        others_percent: f64,
    },
    /// It is slow.
    Latency {
        /// The mean of its answers without the round trip to its node, in milliseconds.
        own_ms: f64,
        /// The median of the others.
        median_ms: f64,
        /// In so many intervals in a row.
        intervals: u32,
    },
}

impl Finding {
    /// How far it is from its peers: where not all may be left out the greatest is first. Errors come before slowness.
    #[must_use]
    pub fn excess(&self) -> (bool, f64) {
        match self {
            Self::SuccessRate { percent, mean_percent, .. } => (true, mean_percent - percent),
            Self::FailurePercentage { percent, others_percent, .. } => (true, percent - others_percent),
            Self::Latency { own_ms, median_ms, .. } => (false, own_ms - median_ms),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SuccessRate { percent, requests, mean_percent, hosts } => write!(
                f,
                "its success rate is {percent:.1} % of {requests} answers, that of the {hosts} instances compared \
                 {mean_percent:.1} % on average"
            ),
            Self::FailurePercentage { percent, requests, others_percent } => {
                write!(f, "it fails {percent:.1} % of {requests} answers, the others {others_percent:.1} % of theirs")
            }
            Self::Latency { own_ms, median_ms, intervals } => {
                write!(
                    f,
                    "its answers take {own_ms:.1} ms on average without the way there, the others' {median_ms:.1} ms"
                )?;
                if *intervals > 1 { write!(f, ", {intervals} intervals in a row") } else { Ok(()) }
            }
        }
    }
}

/// Compares the instances of one service that are not out: a verdict for each, in their order.
#[must_use]
pub fn judge(seen: &[Seen], rule: &Outlier) -> Vec<Verdict> {
    let rates = compare(seen, rule.success_rate.as_ref(), low_success);
    let failures = compare(seen, rule.failure_percentage.as_ref(), often_failing);
    let latencies = compare(seen, rule.latency.as_ref(), slow);
    let each = seen.iter().zip(rates).zip(failures).zip(latencies);
    each.map(|(((one, rate), failure), latency)| verdict(one, [rate, failure], latency, rule)).collect()
}

fn verdict(one: &Seen, errors: [Compared; 2], latency: Compared, rule: &Outlier) -> Verdict {
    let all = [errors[0], errors[1], latency];
    let slow_intervals = match latency {
        Compared::Not => one.slow_intervals,
        Compared::Alike => 0,
        Compared::Outlier(_) => one.slow_intervals.saturating_add(1),
    };
    // As with errors: of one that came back the first that is seen decides.
    let enough = rule.latency.map_or(u32::MAX, |rule| if one.has_relapsed { 1 } else { rule.intervals });
    let slow = latency.finding().filter(|_| slow_intervals >= enough);
    Verdict {
        finding: errors[0].finding().or_else(|| errors[1].finding()).or(slow),
        is_sound: all.contains(&Compared::Alike) && all.iter().all(|compared| compared.finding().is_none()),
        slow_intervals,
    }
}

/// What one rule says of one instance.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Compared {
    /// It had too few requests, or too few others had enough.
    Not,
    /// It is as the others are.
    Alike,
    /// It is not.
    Outlier(Finding),
}

impl Compared {
    const fn finding(self) -> Option<Finding> {
        match self {
            Self::Outlier(finding) => Some(finding),
            Self::Not | Self::Alike => None,
        }
    }
}

impl From<Option<Finding>> for Compared {
    fn from(finding: Option<Finding>) -> Self {
        finding.map_or(Self::Alike, Self::Outlier)
    }
}

fn compare<R>(seen: &[Seen], rule: Option<&R>, by: fn(&[Seen], &R) -> Vec<Compared>) -> Vec<Compared> {
    rule.map_or_else(|| vec![Compared::Not; seen.len()], |rule| by(seen, rule))
}

/// Those below mean - factor * standard deviation (Envoy, `success_rate_stdev_factor`), and worse than chance explains.
///
/// The standard deviation alone would take a single error for a fault: of five instances of which four are perfect the
/// fifth is two of them below the mean, however little it differs.
fn low_success(seen: &[Seen], rule: &SuccessRate) -> Vec<Compared> {
    let volume = u64::from(rule.request_volume);
    let rates: Vec<f64> = seen.iter().filter(|one| one.requests() >= volume).map(Seen::success_rate).collect();
    if rates.len() < whole(rule.minimum_hosts) {
        return vec![Compared::Not; seen.len()];
    }
    let mean = mean(&rates);
    let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / float(rates.len() as u64);
    let line = mean - rule.stdev_factor * variance.sqrt();
    let all = Sums::of(seen, volume);
    each(seen, volume, Seen::requests, |one| {
        let is_low = one.success_rate() < line && all.is_worse(one, LEAST_GAP);
        is_low.then(|| Finding::SuccessRate {
            percent: one.success_rate() * 100.0,
            requests: one.requests(),
            mean_percent: mean * 100.0,
            hosts: rates.len(),
        })
    })
}

/// Those that fail the threshold's part (Envoy, `failure_percentage_threshold`), and at least twice as often as the others
/// together: where all fail alike the fault is not the instance's.
fn often_failing(seen: &[Seen], rule: &FailurePercentage) -> Vec<Compared> {
    let volume = u64::from(rule.request_volume);
    if seen.iter().filter(|one| one.requests() >= volume).count() < whole(rule.minimum_hosts) {
        return vec![Compared::Not; seen.len()];
    }
    let all = Sums::of(seen, volume);
    each(seen, volume, Seen::requests, |one| {
        let is_over = one.bad.saturating_mul(100) >= one.requests().saturating_mul(u64::from(rule.threshold));
        let others = all.without(one).failed();
        let is_often = is_over && one.failed() >= 2.0 * others && all.is_worse(one, 0.0);
        is_often.then(|| Finding::FailurePercentage {
            percent: one.failed() * 100.0,
            requests: one.requests(),
            others_percent: others * 100.0,
        })
    })
}

/// Those whose mean, without the round trip to their node, is above so many times the median of the others', and longer by
/// the least difference, and by two more round trips: a large request needs some to get there.
fn slow(seen: &[Seen], rule: &Slowness) -> Vec<Compared> {
    let volume = u64::from(rule.request_volume);
    let mut owns: Vec<f64> = seen.iter().filter(|one| one.timed >= volume).map(Seen::own_ms).collect();
    if owns.len() < whole(rule.minimum_hosts).max(2) {
        return vec![Compared::Not; seen.len()];
    }
    owns.sort_by(f64::total_cmp);
    let least_ms = rule.minimum_difference.as_secs_f64() * 1e3;
    each(
        seen,
        volume,
        |one| one.timed,
        |one| {
            let (own_ms, median_ms) = (one.own_ms(), median_without(&owns, one.own_ms()));
            let longer_ms = least_ms.max(WAY_TRIPS * one.distance_ms);
            let is_slow = own_ms > rule.factor * median_ms && own_ms > median_ms + longer_ms;
            is_slow.then(|| Finding::Latency { own_ms, median_ms, intervals: one.slow_intervals.saturating_add(1) })
        },
    )
}

fn each(seen: &[Seen], volume: u64, of: fn(&Seen) -> u64, judge: impl Fn(&Seen) -> Option<Finding>) -> Vec<Compared> {
    seen.iter().map(|one| if of(one) < volume { Compared::Not } else { judge(one).into() }).collect()
}

impl Seen {
    fn requests(&self) -> u64 {
        self.good.saturating_add(self.bad)
    }

    /// Within 0 and 1; nothing but good where there was nothing.
    fn success_rate(&self) -> f64 {
        1.0 - self.failed()
    }

    fn failed(&self) -> f64 {
        part(self.bad, self.requests())
    }

    /// The mean of its answers less the round trip.
    fn own_ms(&self) -> f64 {
        (part(self.timed_us, self.timed) / 1e3 - self.distance_ms).max(0.0)
    }
}

/// The requests of several instances together.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    requests: u64,
    bad: u64,
}

impl Sums {
    fn of(seen: &[Seen], volume: u64) -> Self {
        let compared = seen.iter().filter(|one| one.requests() >= volume);
        compared.fold(Self::default(), |sums, one| Self {
            requests: sums.requests.saturating_add(one.requests()),
            bad: sums.bad.saturating_add(one.bad),
        })
    }

    const fn without(self, one: &Seen) -> Self {
        let requests = one.good.saturating_add(one.bad);
        Self { requests: self.requests.saturating_sub(requests), bad: self.bad.saturating_sub(one.bad) }
    }

    fn failed(self) -> f64 {
        part(self.bad, self.requests)
    }

    /// Whether `one` of them fails more often than the others together, by `least` and by more than chance explains: three
    /// standard errors of the difference of two parts.
    fn is_worse(self, one: &Seen, least: f64) -> bool {
        let others = self.without(one);
        if others.requests == 0 || one.requests() == 0 {
            return false;
        }
        let gap = one.failed() - others.failed();
        let (all, sizes) = (self.failed(), 1.0 / float(one.requests()) + 1.0 / float(others.requests));
        gap >= least && gap > CHANCE_ERRORS * (all * (1.0 - all) * sizes).sqrt()
    }
}

/// The median of `sorted` without one `value` of it; of an even number the mean of the middle two.
fn median_without(sorted: &[f64], value: f64) -> f64 {
    let left_out = sorted.partition_point(|other| other.total_cmp(&value).is_lt());
    let count = sorted.len().saturating_sub(1);
    let nth = |at: usize| sorted.get(if at < left_out { at } else { at + 1 }).copied().unwrap_or(value);
    if count == 0 {
        return value;
    }
    f64::midpoint(nth((count - 1) / 2), nth(count / 2))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / float(values.len() as u64)
}

fn part(some: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { float(some) / float(all) }
}

#[expect(clippy::cast_precision_loss, reason = "counts of one interval are far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

fn whole(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// A success rate that is less than five in a hundred below the others' is nothing that a client would notice; to do
/// without the instance would cost more.
const LEAST_GAP: f64 = 0.05;
/// Standard errors: by chance alone an instance has more in 1 of 700 intervals, as far as errors are normally distributed.
const CHANCE_ERRORS: f64 = 3.0;
/// Round trips beyond the first that a request may take on its way.
const WAY_TRIPS: f64 = 2.0;

#[cfg(test)]
mod tests;
