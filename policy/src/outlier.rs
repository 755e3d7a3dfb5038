//! When an instance is left out for what it answers, or for how long that takes.

use std::time::Duration;

/// Who is left out for a while, and for how long.
///
/// Errors in a row are counted as they come. The other rules compare the instances of a service once in each interval, by
/// what this node alone has seen of them; `None` is for never.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outlier {
    /// Errors in a row; 0 for never.
    pub consecutive_errors: u32,
    /// The first and the last of them are no further apart; and over how long instances are compared.
    pub interval: Duration,
    /// How long an instance is left out the first time; twice as long each time that it comes back and is no better.
    pub base_ejection: Duration,
    /// Part of a service's instances that may be left out, in percent.
    pub max_ejection_percent: u32,
    /// Whose success rate is below the others'.
    pub success_rate: Option<SuccessRate>,
    /// Who fails more often than this, and than the others.
    pub failure_percentage: Option<FailurePercentage>,
    /// Who is slower than the others.
    pub latency: Option<Slowness>,
}

/// A success rate so many standard deviations below the mean, as Envoy's `success_rate_*`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SuccessRate {
    /// How many standard deviations; finite, above 0.
    pub stdev_factor: f64,
    /// So many instances at least have the volume, or none is judged.
    pub minimum_hosts: u32,
    /// So many requests an instance has at least in the interval, or it is not compared.
    pub request_volume: u32,
}

/// A part of failed requests, as Envoy's `failure_percentage_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailurePercentage {
    /// So many percent fail at least; 1 to 100.
    pub threshold: u32,
    /// So many instances at least have the volume, or none is judged; 2 at least.
    pub minimum_hosts: u32,
    /// So many requests an instance has at least in the interval, or it is not compared.
    pub request_volume: u32,
}

/// Answers that take much longer than the others'.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slowness {
    /// So many times the median of the others; finite, 1 at least.
    pub factor: f64,
    /// And longer than it by so much.
    pub minimum_difference: Duration,
    /// In so many intervals in a row.
    pub intervals: u32,
    /// So many instances at least have the volume, or none is judged; 2 at least.
    pub minimum_hosts: u32,
    /// So many answers an instance has at least in the interval, or it is not compared.
    pub request_volume: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_errors: 5,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(10),
            max_ejection_percent: 50,
            success_rate: Some(SuccessRate::default()),
            failure_percentage: None,
            latency: None,
        }
    }
}

impl Default for SuccessRate {
    /// Envoy's.
    fn default() -> Self {
        Self { stdev_factor: 1.9, minimum_hosts: 5, request_volume: 100 }
    }
}

impl FailurePercentage {
    /// With this threshold, and the rest at its default.
    #[must_use]
    pub const fn of(threshold: u32) -> Self {
        Self { threshold, minimum_hosts: 2, request_volume: 50 }
    }
}

impl Slowness {
    /// With this factor, and the rest at its default.
    #[must_use]
    pub const fn of(factor: f64) -> Self {
        Self {
            factor,
            minimum_difference: Duration::from_millis(50),
            intervals: 3,
            minimum_hosts: 3,
            request_volume: 50,
        }
    }
}
