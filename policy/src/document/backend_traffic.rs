//! The spec of `BackendTrafficPolicy`: how requests spread over the instances of one service.

use std::time::Duration;

use serde_json::Value;

use super::{fields::Fields, health_check, health_check::HealthCheck, limits, locality};
use crate::{
    backend::{Algorithm, Draw, lambda_of},
    limits::ServiceLimits,
    locality::LocalityPolicy,
    problem::Faults,
};

/// What one document settles; what it leaves out a wider scope or the default does.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct BackendTrafficSpec {
    pub(crate) algorithm: Option<Algorithm>,
    pub(crate) lambda_per_ms: Option<f64>,
    pub(crate) epsilon: Option<f64>,
    pub(crate) draw: Option<Draw>,
    pub(crate) nearest: Option<usize>,
    pub(crate) health_check: HealthCheck,
    pub(crate) limits: ServiceLimits,
    pub(crate) slow_start: Option<Duration>,
    pub(crate) locality: Option<LocalityPolicy>,
}

/// Reads the spec at `spec`; complete where it leaves no faults.
pub(crate) fn read(spec: &Value, faults: &mut Faults<'_>) -> BackendTrafficSpec {
    let mut read = BackendTrafficSpec::default();
    let known = [&["loadBalancer", "healthCheck", "locality"], &limits::SECTIONS[..]].concat();
    let Some(fields) = Fields::open(spec, "spec", &known, faults) else { return read };
    read.limits = limits::read(&fields, faults);
    if let Some(check) = fields.get("healthCheck") {
        read.health_check = health_check::read(check, &fields.at("healthCheck"), faults);
    }
    if let Some(section) = fields.get("locality") {
        read.locality = locality::read(section, &fields.at("locality"), faults);
    }
    if known.iter().all(|section| fields.get(section).is_none()) {
        fields.require("loadBalancer", "add `loadBalancer: { halfDistance: 25ms }`", faults);
    }
    let Some(balancer) = fields.get("loadBalancer") else { return read };
    let Some(balancer) = Fields::open(balancer, &fields.at("loadBalancer"), &BALANCER, faults) else { return read };

    read.algorithm = balancer.word("algorithm", &[("EdgeDecay", Algorithm::EdgeDecay)], &LATER_ALGORITHMS, faults);
    read.lambda_per_ms = decay(&balancer, faults);
    read.epsilon = within(&balancer, "epsilon", EPSILON_LEAST, EPSILON_MOST, faults);
    read.draw = balancer.word("draw", &DRAWS, &[], faults);
    if let Some(subset) = balancer.get("subset")
        && let Some(subset) = Fields::open(subset, &balancer.at("subset"), &["nearest"], faults)
    {
        let nearest = subset.whole("nearest", 1, NEAREST_MOST, faults);
        read.nearest = nearest.and_then(|count| usize::try_from(count).ok());
    }
    if let Some(slow) = balancer.get("slowStart")
        && let Some(slow) = Fields::open(slow, &balancer.at("slowStart"), &["window"], faults)
    {
        slow.require("window", "add `window: 30s`", faults);
        read.slow_start = slow.duration("window", WINDOW_MOST, faults);
    }
    read
}

/// Lambda, from `lambda` or `halfDistance`, which say the same thing and so exclude each other.
fn decay(balancer: &Fields<'_>, faults: &mut Faults<'_>) -> Option<f64> {
    let lambda = within(balancer, "lambda", 0.0, LAMBDA_MOST, faults);
    let half = balancer.duration("halfDistance", HALF_DISTANCE_MOST, faults);
    if balancer.get("lambda").is_some() && balancer.get("halfDistance").is_some() {
        let hint = "keep one of them: lambda = ln 2 / halfDistance in ms";
        faults.hint(&balancer.at("halfDistance"), "stands beside `lambda`, which says the same", hint);
    }
    lambda.or_else(|| half.map(|half| lambda_of(half.as_secs_f64() * 1e3)))
}

fn within(fields: &Fields<'_>, name: &str, least: f64, most: f64, faults: &mut Faults<'_>) -> Option<f64> {
    let number = fields.number(name, faults)?;
    if (least..=most).contains(&number) {
        return Some(number);
    }
    faults.add(&fields.at(name), format_args!("{number} is outside {least}..={most}"));
    None
}

const BALANCER: [&str; 7] = ["algorithm", "halfDistance", "lambda", "epsilon", "draw", "subset", "slowStart"];
const WINDOW_MOST: Duration = Duration::from_secs(3600);
const LATER_ALGORITHMS: [&str; 2] = ["EdgeAdditive", "PredictedLatency"];
const DRAWS: [(&str, Draw); 2] = [("Single", Draw::Single), ("BestOfTwo", Draw::BestOfTwo)];
/// Below this an idle instance would take everything, whatever its capacity.
const EPSILON_LEAST: f64 = 1e-9;
const EPSILON_MOST: f64 = 1e9;
/// Halves within a microsecond: nothing but the nearest is ever drawn.
const LAMBDA_MOST: f64 = 1e3;
const HALF_DISTANCE_MOST: Duration = Duration::from_secs(3600);
const NEAREST_MOST: u32 = 10_000;
