//! The formula: w = C / (L + epsilon) * exp(-lambda * d), and P = w / sum of w.

use serde::Serialize;

use crate::backend::{Algorithm, BackendPolicy, EPSILON_DEFAULT, HALF_DISTANCE_DEFAULT_MS, lambda_of};

/// Loads above this count as this; so do loads that are not a number, because a load nobody knows must not attract.
pub const LOAD_MAX: f64 = 1e12;
/// Distances in milliseconds above this count as this; so do distances that are not a number, because a place nobody
/// has measured must not look near.
pub const DISTANCE_MS_MAX: f64 = 1e9;

/// How many requests an instance can work on at once: finite and above zero, by type.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Capacity(f64);

impl Capacity {
    /// A capacity in concurrent requests.
    ///
    /// # Errors
    /// [`CapacityError`] where the value is zero, negative, infinite or not a number.
    pub fn new(requests: f64) -> Result<Self, CapacityError> {
        if requests.is_finite() && requests > 0.0 { Ok(Self(requests)) } else { Err(CapacityError { requests }) }
    }

    /// The capacity in concurrent requests.
    #[inline]
    #[must_use]
    pub fn requests(self) -> f64 {
        self.0
    }
}

/// A capacity that cannot be divided by. Whoever declared it is to correct it; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("capacity {requests} is not a finite number above zero")]
pub struct CapacityError {
    /// What was given.
    pub requests: f64,
}

/// One instance that may be asked, as far as the formula is concerned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// C: concurrent requests it can work on.
    pub capacity: Capacity,
    /// L: requests in flight per unit of capacity. Below zero counts as 0; see [`LOAD_MAX`] for the other end.
    pub load: f64,
    /// d: round trip in milliseconds. Below zero counts as 0; see [`DISTANCE_MS_MAX`] for the other end.
    pub distance_ms: f64,
}

impl Candidate {
    /// A candidate with `inflight` requests in work, so that L = inflight / C, `distance_ms` away.
    #[inline]
    #[must_use]
    pub fn with_inflight(capacity: Capacity, inflight: f64, distance_ms: f64) -> Self {
        let load = bounded(inflight / capacity.0, LOAD_MAX);
        Self { capacity, load, distance_ms: bounded(distance_ms, DISTANCE_MS_MAX) }
    }

    /// The load the formula uses: within 0 and [`LOAD_MAX`].
    #[inline]
    #[must_use]
    pub fn load_used(&self) -> f64 {
        bounded(self.load, LOAD_MAX)
    }

    /// The distance in milliseconds the formula uses: within 0 and [`DISTANCE_MS_MAX`].
    #[inline]
    #[must_use]
    pub fn distance_used_ms(&self) -> f64 {
        bounded(self.distance_ms, DISTANCE_MS_MAX)
    }
}

/// What the formula says of one candidate.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Weighed {
    /// w, for people: zero where the candidate is so far that it underflows, never infinite.
    pub weight: f64,
    /// P: within 0 and 1; the sum over all candidates is 1 within 1e-9.
    pub probability: f64,
}

/// Weighs `candidates` under `policy` into `out`, which is cleared first and then holds one entry for each, in order.
///
/// For the probabilities distances enter relative to the nearest candidate: that cancels out of P and keeps `exp`
/// above zero when all are far (it underflows at lambda * d > 745). Where capacities or loads are so extreme that the
/// plain quotient could overflow or vanish, the same shares are taken from logarithms. Every finite capacity above
/// zero, every load and every distance, even one that is not a number, therefore gives finite probabilities that sum
/// to 1. No candidates give an empty `out`. A lambda or epsilon that no valid policy holds counts as the default.
pub fn weigh(policy: &BackendPolicy, candidates: &[Candidate], out: &mut Vec<Weighed>) {
    out.clear();
    match policy.algorithm {
        Algorithm::EdgeDecay => Decay::of(policy).weigh(candidates, out),
    }
}

/// Writes the indices of the `count` nearest of `candidates` to `out`, which is cleared first, in ascending order.
/// Among equals the one that stands first is kept, so callers list candidates in a stable order.
pub fn nearest(candidates: &[Candidate], count: usize, out: &mut Vec<usize>) {
    out.clear();
    out.extend(0..candidates.len());
    if count >= candidates.len() {
        return;
    }
    let distance = |index: &usize| candidates.get(*index).map_or(DISTANCE_MS_MAX, Candidate::distance_used_ms);
    out.sort_by(|left, right| distance(left).total_cmp(&distance(right)));
    out.truncate(count);
    out.sort_unstable();
}

/// The two parameters of the formula, known to be usable.
#[derive(Clone, Copy)]
struct Decay {
    lambda: f64,
    epsilon: f64,
}

impl Decay {
    fn of(policy: &BackendPolicy) -> Self {
        let lambda = policy.lambda_per_ms;
        let epsilon = policy.epsilon;
        Self {
            lambda: if lambda.is_finite() && lambda >= 0.0 { lambda } else { lambda_of(HALF_DISTANCE_DEFAULT_MS) },
            epsilon: if epsilon.is_finite() && epsilon > 0.0 { epsilon } else { EPSILON_DEFAULT },
        }
    }

    fn weigh(self, candidates: &[Candidate], out: &mut Vec<Weighed>) {
        let nearest = candidates.iter().map(Candidate::distance_used_ms).fold(DISTANCE_MS_MAX, f64::min);
        let mut are_plain = true;
        out.extend(candidates.iter().map(|candidate| {
            let quotient = self.quotient(candidate);
            are_plain &= PLAIN.contains(&quotient);
            Weighed { weight: quotient, probability: 0.0 }
        }));
        if are_plain {
            self.weigh_plain(candidates, nearest, out);
        } else {
            out.clear();
            self.weigh_by_logarithm(candidates, nearest, out);
        }
    }

    /// From the quotients in `out`, with one `exp` for each candidate: the shown weight is the relative one times the decay
    /// to the nearest.
    fn weigh_plain(self, candidates: &[Candidate], nearest: f64, out: &mut [Weighed]) {
        let decay_to_nearest = self.decay(nearest);
        let mut sum = 0.0;
        for (candidate, weighed) in candidates.iter().zip(out.iter_mut()) {
            let relative = weighed.weight * self.decay(candidate.distance_used_ms() - nearest);
            sum += relative;
            *weighed = Weighed { weight: relative * decay_to_nearest, probability: relative };
        }
        divide(out, sum);
    }

    fn weigh_by_logarithm(self, candidates: &[Candidate], nearest: f64, out: &mut Vec<Weighed>) {
        let logarithm = |candidate: &Candidate| {
            candidate.capacity.0.ln()
                - (candidate.load_used() + self.epsilon).ln()
                - self.lambda * (candidate.distance_used_ms() - nearest)
        };
        // The nearest candidate's logarithm is finite, so the greatest is.
        let greatest = candidates.iter().map(logarithm).fold(f64::NEG_INFINITY, f64::max);
        let mut sum = 0.0;
        for candidate in candidates {
            let probability = (logarithm(candidate) - greatest).exp();
            sum += probability;
            let weight = self.quotient(candidate).min(f64::MAX) * self.decay(candidate.distance_used_ms());
            out.push(Weighed { weight, probability });
        }
        divide(out, sum);
    }

    /// C / (L + epsilon); infinite or zero where it does not fit.
    fn quotient(self, candidate: &Candidate) -> f64 {
        candidate.capacity.0 / (candidate.load_used() + self.epsilon)
    }

    fn decay(self, distance_ms: f64) -> f64 {
        (-self.lambda * distance_ms).exp()
    }
}

/// Quotients in here keep every sum of up to 1e200 of them finite, and what underflows beside them is below 1e-200 of P.
const PLAIN: std::ops::RangeInclusive<f64> = 1e-100..=1e100;

fn divide(out: &mut [Weighed], sum: f64) {
    let whole = 1.0 / sum;
    for weighed in out {
        weighed.probability *= whole;
    }
}

/// Below zero is zero; above `max` and what is not a number is `max`.
#[inline]
pub(crate) fn bounded(value: f64, max: f64) -> f64 {
    if value.is_nan() { max } else { value.clamp(0.0, max) }
}

#[cfg(test)]
mod tests;
