//! The section `healthCheck` of a `BackendTrafficPolicy`: what answers tell of an instance, the passive check, and when
//! that is not believed.
//!
//! Names are Envoy Gateway's, and within `successRate` and `failurePercentage` those of Envoy and gRPC (gRFC A50). `latency`
//! has no model there.

use std::time::Duration;

use serde_json::Value;

use super::fields::Fields;
use crate::{
    outlier::{FailurePercentage, Outlier, Slowness, SuccessRate},
    problem::Faults,
};

/// What the section says; what it leaves out is at its default.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct HealthCheck {
    pub(crate) outlier: Outlier,
    pub(crate) panic_threshold_percent: Option<u32>,
}

/// Reads the section at `path`.
pub(super) fn read(check: &Value, path: &str, faults: &mut Faults<'_>) -> HealthCheck {
    let mut read = HealthCheck::default();
    let Some(check) = Fields::open(check, path, &["passive", "panicThreshold"], faults) else { return read };
    read.panic_threshold_percent = check.whole("panicThreshold", 0, 100, faults);
    if check.get("panicThreshold").is_none() {
        check.require("passive", "add `passive: { consecutive5XxErrors: 5 }`", faults);
    }
    let Some(passive) = check.get("passive") else { return read };
    let Some(passive) = Fields::open(passive, &check.at("passive"), &PASSIVE, faults) else { return read };
    read.outlier = outlier(&passive, faults);
    read
}

fn outlier(passive: &Fields<'_>, faults: &mut Faults<'_>) -> Outlier {
    let default = Outlier::default();
    let errors = passive.whole("consecutive5XxErrors", 0, ERRORS_MOST, faults);
    let percent = passive.whole("maxEjectionPercent", 0, 100, faults);
    Outlier {
        consecutive_errors: errors.unwrap_or(default.consecutive_errors),
        interval: passive.duration("interval", TIME_MOST, faults).unwrap_or(default.interval),
        base_ejection: passive.duration("baseEjectionTime", TIME_MOST, faults).unwrap_or(default.base_ejection),
        max_ejection_percent: percent.unwrap_or(default.max_ejection_percent),
        success_rate: success_rate(passive, faults),
        failure_percentage: failure_percentage(passive, faults),
        latency: latency(passive, faults),
    }
}

/// On where nothing is said of it.
fn success_rate(passive: &Fields<'_>, faults: &mut Faults<'_>) -> Option<SuccessRate> {
    let default = SuccessRate::default();
    let known = ["stdevFactor", "minimumHosts", "requestVolume"];
    let Some(fields) = section(passive, "successRate", &known, faults) else { return Some(default) };
    let factor = stdev_factor(&fields, faults).unwrap_or(default.stdev_factor);
    let (hosts, volume) = least(&fields, faults);
    (factor > 0.0).then_some(SuccessRate {
        stdev_factor: factor,
        minimum_hosts: hosts.unwrap_or(default.minimum_hosts),
        request_volume: volume.unwrap_or(default.request_volume),
    })
}

/// 0 is for never.
fn stdev_factor(fields: &Fields<'_>, faults: &mut Faults<'_>) -> Option<f64> {
    let factor = fields.number("stdevFactor", faults)?;
    if (0.0..=STDEV_FACTOR_MOST).contains(&factor) {
        return Some(factor);
    }
    let message = format_args!("{factor} is outside 0..={STDEV_FACTOR_MOST}");
    faults.hint(
        &fields.at("stdevFactor"),
        message,
        "Envoy counts in thousandths: its 1900 is 1.9 here; 0 is for never",
    );
    None
}

fn failure_percentage(passive: &Fields<'_>, faults: &mut Faults<'_>) -> Option<FailurePercentage> {
    let known = ["threshold", "minimumHosts", "requestVolume"];
    let fields = section(passive, "failurePercentage", &known, faults)?;
    fields.require("threshold", "say from how many percent on, as `threshold: 50`; 0 is for never", faults);
    let threshold = fields.whole("threshold", 0, 100, faults);
    let (hosts, volume) = least(&fields, faults);
    let rule = FailurePercentage::of(threshold.filter(|percent| *percent > 0)?);
    Some(FailurePercentage {
        minimum_hosts: hosts.unwrap_or(rule.minimum_hosts),
        request_volume: volume.unwrap_or(rule.request_volume),
        ..rule
    })
}

fn latency(passive: &Fields<'_>, faults: &mut Faults<'_>) -> Option<Slowness> {
    let known = ["factor", "minimumDifference", "intervals", "minimumHosts", "requestVolume"];
    let fields = section(passive, "latency", &known, faults)?;
    fields.require("factor", "say how many times the median of the others, as `factor: 3`; 0 is for never", faults);
    let factor = latency_factor(&fields, faults);
    let difference = fields.duration("minimumDifference", TIME_MOST, faults);
    let intervals = fields.whole("intervals", 1, INTERVALS_MOST, faults);
    let (hosts, volume) = least(&fields, faults);
    let rule = Slowness::of(factor.filter(|factor| *factor > 0.0)?);
    Some(Slowness {
        minimum_difference: difference.unwrap_or(rule.minimum_difference),
        intervals: intervals.unwrap_or(rule.intervals),
        minimum_hosts: hosts.unwrap_or(rule.minimum_hosts),
        request_volume: volume.unwrap_or(rule.request_volume),
        ..rule
    })
}

/// Below 1 the quickest would be out; 0 is for never.
fn latency_factor(fields: &Fields<'_>, faults: &mut Faults<'_>) -> Option<f64> {
    let factor = fields.number("factor", faults)?;
    let is_never = factor.abs() < f64::EPSILON;
    if is_never || (1.0..=LATENCY_FACTOR_MOST).contains(&factor) {
        return Some(if is_never { 0.0 } else { factor });
    }
    let message = format_args!("{factor} is outside 1..={LATENCY_FACTOR_MOST}");
    faults.hint(&fields.at("factor"), message, "3 is three times the median of the others; 0 is for never");
    None
}

/// How many instances and requests it takes. One instance has nobody to be compared with.
fn least(fields: &Fields<'_>, faults: &mut Faults<'_>) -> (Option<u32>, Option<u32>) {
    let hosts = fields.whole("minimumHosts", 2, HOSTS_MOST, faults);
    (hosts, fields.whole("requestVolume", 1, VOLUME_MOST, faults))
}

/// The object in the field `name`, where there is one.
fn section<'v>(fields: &Fields<'v>, name: &str, known: &[&str], faults: &mut Faults<'_>) -> Option<Fields<'v>> {
    Fields::open(fields.get(name)?, &fields.at(name), known, faults)
}

const PASSIVE: [&str; 7] = [
    "consecutive5XxErrors",
    "interval",
    "baseEjectionTime",
    "maxEjectionPercent",
    "successRate",
    "failurePercentage",
    "latency",
];
const ERRORS_MOST: u32 = 1000;
const TIME_MOST: Duration = Duration::from_secs(3600);
const STDEV_FACTOR_MOST: f64 = 10.0;
const LATENCY_FACTOR_MOST: f64 = 100.0;
const INTERVALS_MOST: u32 = 100;
const HOSTS_MOST: u32 = 10_000;
const VOLUME_MOST: u32 = 1_000_000;

#[cfg(test)]
mod tests;
