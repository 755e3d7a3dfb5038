//! The decision behind one request, as the `marram-decision` response header says it.

use hyper::header::HeaderValue;
use policy::Draw;
use serde::Serialize;

use crate::pick::Pick;
use crate::snapshot::Snapshot;

/// Candidates in one header; the most probable ones are named.
const CANDIDATES_MAX: usize = 32;

#[derive(Serialize)]
struct Decision<'a> {
    service: &'a str,
    lambda_per_ms: f64,
    epsilon: f64,
    draw: Draw,
    retries: u32,
    candidates: Vec<Candidate<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    more_candidates: Option<usize>,
}

#[derive(Serialize)]
struct Candidate<'a> {
    instance: &'a str,
    node: &'a str,
    #[serde(rename = "C")]
    capacity: f64,
    inflight: f64,
    #[serde(rename = "L")]
    load: f64,
    #[serde(rename = "d")]
    distance_ms: f64,
    #[serde(rename = "w")]
    weight: f64,
    #[serde(rename = "P")]
    probability: f64,
    /// What an answer takes as seen from here; absent where none has come yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<f64>,
    /// Drawn beside the chosen one, and dearer.
    #[serde(skip_serializing_if = "is_false")]
    passed_over: bool,
    #[serde(skip_serializing_if = "is_false")]
    chosen: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// The decision as one line of JSON, with the very numbers that were weighed.
pub(super) fn decision(snapshot: &Snapshot, service: &str, pick: &Pick, retries: u32) -> Option<HeaderValue> {
    let policy = snapshot.table.backend(service);
    let mut candidates: Vec<Candidate<'_>> = pick
        .candidates
        .iter()
        .zip(pick.inputs.iter().zip(pick.weighed.iter()).zip(pick.latencies_ms.iter()))
        .enumerate()
        .map(|(at, (endpoint, ((input, weighed), latency_ms)))| Candidate {
            instance: &endpoint.instance,
            node: &endpoint.node_name,
            capacity: short(input.capacity.requests()),
            inflight: short(input.load_used() * input.capacity.requests()),
            load: short(input.load_used()),
            distance_ms: short(input.distance_used_ms()),
            weight: short(weighed.weight),
            probability: short(weighed.probability),
            latency_ms: latency_ms.map(short),
            passed_over: pick.passed_over == Some(at),
            chosen: std::sync::Arc::ptr_eq(endpoint, &pick.endpoint),
        })
        .collect();
    candidates.sort_by(|a, b| b.chosen.cmp(&a.chosen).then(b.probability.total_cmp(&a.probability)));
    let more = candidates.len().saturating_sub(CANDIDATES_MAX);
    candidates.truncate(CANDIDATES_MAX);
    let decision = Decision {
        service,
        lambda_per_ms: short(policy.lambda_per_ms),
        epsilon: short(policy.epsilon),
        draw: pick.draw,
        retries,
        candidates,
        more_candidates: (more > 0).then_some(more),
    };
    HeaderValue::from_str(&serde_json::to_string(&decision).ok()?).ok()
}

/// Six significant digits: enough to check the formula by hand, short enough for a header.
fn short(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}
