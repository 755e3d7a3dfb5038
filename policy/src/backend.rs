//! How requests spread over the instances of one service: what `BackendTrafficPolicy` settles.

use std::{f64::consts::LN_2, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::limits::ServiceLimits;
use crate::locality::LocalityPolicy;
use crate::outlier::Outlier;

/// The distance, in milliseconds of round trip, at which a candidate counts half, unless a policy says otherwise.
pub const HALF_DISTANCE_DEFAULT_MS: f64 = 25.0;
/// What is added to every load, unless a policy says otherwise.
pub const EPSILON_DEFAULT: f64 = 1.0;

/// How candidates are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Algorithm {
    /// w = C / (L + epsilon) * exp(-lambda * d), and P = w / sum of w.
    #[default]
    EdgeDecay,
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EdgeDecay => f.write_str("EdgeDecay"),
        }
    }
}

/// How a candidate is drawn from the probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Draw {
    /// One draw by P: the shares are the probabilities.
    Single,
    /// Two different ones drawn by P, and of them the one where an answer costs less: latency * max(1, (in flight + 1) /
    /// C); see [`crate::Contender`].
    #[default]
    BestOfTwo,
}

impl fmt::Display for Draw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Single => f.write_str("Single"),
            Self::BestOfTwo => f.write_str("BestOfTwo"),
        }
    }
}

/// How to balance over the instances of one service, on this node.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendPolicy {
    /// How candidates are weighed.
    pub algorithm: Algorithm,
    /// Distance decay, per millisecond of round trip; finite, at least 0.
    pub lambda_per_ms: f64,
    /// What is added to every load, in units of load; finite, above 0.
    pub epsilon: f64,
    /// How one candidate is drawn.
    pub draw: Draw,
    /// Only this many of the nearest candidates take part; `None` is all of them.
    pub nearest: Option<usize>,
    /// Who is left out for what it answers.
    pub outlier: Outlier,
    /// What happens on failures and on too much.
    pub limits: ServiceLimits,
    /// Which part of the requests each locality gets; `None` tells none apart.
    pub locality: Option<LocalityPolicy>,
    /// Where fewer than so many percent of the instances are left by the verdicts of this node, these do not count.
    pub panic_threshold_percent: u32,
    /// Over how long the weight of an instance grows that is new or newly healthy; `None` gives it all at once.
    pub slow_start: Option<Duration>,
    /// The documents that set at least one of the fields, narrowest scope first, joined by a comma and a blank, each as
    /// `scope/kind/name`; or `default`.
    pub source: String,
}

impl BackendPolicy {
    /// The round trip in milliseconds at which a candidate counts half; `None` where distance does not count.
    #[must_use]
    pub fn half_distance_ms(&self) -> Option<f64> {
        (self.lambda_per_ms > 0.0).then(|| LN_2 / self.lambda_per_ms)
    }
}

impl Default for BackendPolicy {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::EdgeDecay,
            lambda_per_ms: lambda_of(HALF_DISTANCE_DEFAULT_MS),
            epsilon: EPSILON_DEFAULT,
            draw: Draw::default(),
            nearest: None,
            outlier: Outlier::default(),
            limits: ServiceLimits::default(),
            locality: None,
            panic_threshold_percent: 0,
            slow_start: None,
            source: "default".to_owned(),
        }
    }
}

/// The decay per millisecond that halves a weight every `half_distance_ms`.
pub(crate) fn lambda_of(half_distance_ms: f64) -> f64 {
    LN_2 / half_distance_ms
}
