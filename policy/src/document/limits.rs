//! The sections of a `BackendTrafficPolicy` about failures and too much: `retryConstraint`, `circuitBreaker`, `rateLimit`,
//! `faultInjection` and `hedging`.
//!
//! `retryConstraint` is Gateway API's (GEP-3388), the others are named as Envoy Gateway names them; `hedging` has the
//! shape of gRPC's hedging policy.

use std::time::Duration;

use serde_json::Value;

use super::fields::{Fields, shown};
use crate::{
    limits::{
        CircuitBreaker, FaultAbort, FaultDelay, FaultInjection, Hedging, RateLimit, RetryConstraint, ServiceLimits,
    },
    problem::Faults,
};

/// The names of the sections.
pub(crate) const SECTIONS: [&str; 5] = ["retryConstraint", "circuitBreaker", "rateLimit", "faultInjection", "hedging"];

/// Reads the sections that stand in `spec`; what they leave out is at its default.
pub(crate) fn read(spec: &Fields<'_>, faults: &mut Faults<'_>) -> ServiceLimits {
    let rates = rates(spec, faults);
    ServiceLimits {
        retries: retries(spec, faults),
        breaker: breaker(spec, faults),
        rate: rate(rates.as_ref(), "local", faults),
        fleet_rate: rate(rates.as_ref(), "global", faults),
        faults: injected(spec, faults),
        hedging: hedging(spec, faults),
    }
}

/// The object in the field `name` of `fields`, where there is one.
fn section<'v>(fields: &Fields<'v>, name: &str, known: &[&str], faults: &mut Faults<'_>) -> Option<Fields<'v>> {
    Fields::open(fields.get(name)?, &fields.at(name), known, faults)
}

fn retries(spec: &Fields<'_>, faults: &mut Faults<'_>) -> RetryConstraint {
    let mut read = RetryConstraint::default();
    let Some(fields) = section(spec, "retryConstraint", &["budget", "minRetryRate"], faults) else { return read };
    if let Some(budget) = section(&fields, "budget", &["percent", "interval"], faults) {
        read.percent = budget.whole("percent", 0, 100, faults).unwrap_or(read.percent);
        read.interval = budget.duration("interval", TIME_MOST, faults).unwrap_or(read.interval);
    }
    if let Some(least) = section(&fields, "minRetryRate", &["count", "interval"], faults) {
        read.min_count = least.whole("count", 0, COUNT_MOST, faults).unwrap_or(read.min_count);
        read.min_interval = least.duration("interval", TIME_MOST, faults).unwrap_or(read.min_interval);
    }
    read
}

fn breaker(spec: &Fields<'_>, faults: &mut Faults<'_>) -> CircuitBreaker {
    let mut read = CircuitBreaker::default();
    let Some(fields) = section(spec, "circuitBreaker", &BREAKER, faults) else { return read };
    read.max_connections = fields.whole("maxConnections", 0, COUNT_MOST, faults);
    read.max_pending_requests = fields.whole("maxPendingRequests", 0, COUNT_MOST, faults);
    read.max_parallel_requests = fields.whole("maxParallelRequests", 0, COUNT_MOST, faults);
    read.max_parallel_retries = fields.whole("maxParallelRetries", 0, COUNT_MOST, faults);
    if let Some(each) = section(&fields, "perEndpoint", &["maxConnections", "maxParallelRequests"], faults) {
        read.endpoint_connections = each.whole("maxConnections", 1, COUNT_MOST, faults);
        read.endpoint_requests = each.whole("maxParallelRequests", 1, COUNT_MOST, faults);
    }
    read
}

/// The section of both rates.
fn rates<'v>(spec: &Fields<'v>, faults: &mut Faults<'_>) -> Option<Fields<'v>> {
    let limit = section(spec, "rateLimit", &["local", "global"], faults)?;
    if limit.get("local").is_none() && limit.get("global").is_none() {
        let hint = "add `local: { requests: 100, unit: Second }`, or `global` for all nodes together";
        faults.hint(&limit.at("local"), "is missing, and so is `global`", hint);
    }
    Some(limit)
}

/// A limit on all nodes together that holds at some of them would not be one.
pub(crate) fn all_nodes(spec: &Value, scope: &str, faults: &mut Faults<'_>) {
    let is_set = spec.get("rateLimit").is_some_and(|limit| limit.get("global").is_some());
    if is_set && scope != "global" {
        let hint = "set it in a document of scope `global`, or limit each node by `local`";
        faults.hint(
            "spec.rateLimit.global",
            format_args!("is for all nodes, and the scope is `{}`", shown(scope)),
            hint,
        );
    }
}

fn rate(limit: Option<&Fields<'_>>, name: &str, faults: &mut Faults<'_>) -> Option<RateLimit> {
    let rate = section(limit?, name, &["requests", "unit", "interval", "burst"], faults)?;
    rate.require("requests", "say how many may begin in a unit or interval", faults);
    let requests = rate.whole("requests", 1, COUNT_MOST, faults);
    let unit = rate.word("unit", &UNITS, &[], faults);
    let interval = rate.duration("interval", TIME_MOST, faults);
    if rate.get("unit").is_some() && rate.get("interval").is_some() {
        faults.hint(&rate.at("unit"), "stands beside `interval`, which says the same", "keep one of them");
    }
    let burst = rate.whole("burst", 1, COUNT_MOST, faults);
    let requests = requests?;
    let interval = interval.or(unit).unwrap_or(Duration::from_secs(1));
    Some(RateLimit { requests, interval, burst: burst.unwrap_or(requests) })
}

fn injected(spec: &Fields<'_>, faults: &mut Faults<'_>) -> FaultInjection {
    let none = FaultInjection::default();
    let Some(fields) = section(spec, "faultInjection", &["delay", "abort"], faults) else { return none };
    if fields.get("delay").is_none() && fields.get("abort").is_none() {
        let hint = "add `delay: { fixedDelay: 100ms }` or `abort: { httpStatus: 503 }`";
        faults.hint(&fields.at("abort"), "is missing, and so is `delay`", hint);
    }
    FaultInjection { delay: delay(&fields, faults), abort: abort(&fields, faults) }
}

fn delay(fields: &Fields<'_>, faults: &mut Faults<'_>) -> Option<FaultDelay> {
    let delay = section(fields, "delay", &["fixedDelay", "percentage"], faults)?;
    delay.require("fixedDelay", "say how long, as `100ms`", faults);
    let share = share(&delay, faults);
    Some(FaultDelay { fixed: delay.duration("fixedDelay", TIME_MOST, faults)?, share })
}

fn abort(fields: &Fields<'_>, faults: &mut Faults<'_>) -> Option<FaultAbort> {
    let abort = section(fields, "abort", &["httpStatus", "grpcStatus", "percentage"], faults)?;
    if abort.get("httpStatus").is_none() && abort.get("grpcStatus").is_none() {
        faults.hint(&abort.at("httpStatus"), "is missing, and so is `grpcStatus`", "add one of them");
    }
    let status = |name: &str, least: u32, most: u32, faults: &mut Faults<'_>| {
        abort.whole(name, least, most, faults).and_then(|status| u16::try_from(status).ok())
    };
    let http_status = status("httpStatus", 200, 599, faults);
    let grpc_status = status("grpcStatus", 0, 16, faults);
    Some(FaultAbort { http_status, grpc_status, share: share(&abort, faults) })
}

/// The part of all requests, all of them where nothing is said.
fn share(fields: &Fields<'_>, faults: &mut Faults<'_>) -> f64 {
    let Some(percentage) = fields.number("percentage", faults) else { return 1.0 };
    if !(0.0..=100.0).contains(&percentage) {
        faults.add(&fields.at("percentage"), format_args!("{percentage} is outside 0..=100"));
    }
    percentage.clamp(0.0, 100.0) / 100.0
}

fn hedging(spec: &Fields<'_>, faults: &mut Faults<'_>) -> Option<Hedging> {
    let fields = section(spec, "hedging", &["delay", "maxAttempts"], faults)?;
    let attempts = fields.whole("maxAttempts", 1, ATTEMPTS_MOST, faults);
    let is_off = attempts == Some(1);
    if !is_off {
        fields.require("delay", "say how long the first may wait, as `50ms`", faults);
    }
    let delay = fields.duration("delay", TIME_MOST, faults)?;
    (!is_off).then_some(Hedging { delay })
}

const BREAKER: [&str; 5] =
    ["maxConnections", "maxPendingRequests", "maxParallelRequests", "maxParallelRetries", "perEndpoint"];
const UNITS: [(&str, Duration); 3] =
    [("Second", Duration::from_secs(1)), ("Minute", Duration::from_secs(60)), ("Hour", Duration::from_secs(3600))];
const COUNT_MOST: u32 = 1_000_000;
const TIME_MOST: Duration = Duration::from_secs(3600);
/// A third copy helps little and costs as much as the second.
const ATTEMPTS_MOST: u32 = 2;

#[cfg(test)]
mod tests;
