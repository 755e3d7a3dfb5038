//! From a service's name to one endpoint: the only place that turns a [`Snapshot`] into a decision.

use std::sync::Arc;
use std::time::Duration;

use policy::{BackendPolicy, Candidate, Capacity, Choice, Contender, Draw, Weighed, choose};

use crate::snapshot::{Endpoint, ServiceView, Snapshot};

/// A suspected owner's endpoints count a quarter.
const SUSPECT_FACTOR: f64 = 0.25;

/// What the draw decided.
#[derive(Debug, Clone)]
pub struct Pick {
    /// The endpoint to send to.
    pub endpoint: Arc<Endpoint>,
    /// Its P: the probability of the draw, or of the first of two.
    pub probability: f64,
    /// How it was drawn.
    pub draw: Draw,
    /// The place in `candidates` of the one that was drawn beside it and would have cost more.
    pub passed_over: Option<usize>,
    /// How long each takes to answer, in milliseconds, in the order of `candidates`; `None` where that is not known.
    pub latencies_ms: Arc<[Option<f64>]>,
    /// Every candidate of this decision with its weight, in the order of `candidates`.
    pub weighed: Arc<[Weighed]>,
    /// The endpoints that were weighed.
    pub candidates: Arc<[Arc<Endpoint>]>,
    /// The capacity, load and distance that gave each its weight, in the order of `candidates`; loads move with every
    /// request, these are the ones of this decision.
    pub inputs: Arc<[Candidate]>,
}

/// An endpoint that takes no part in a draw, with the reason.
pub type LeftOut = (Arc<Endpoint>, String);

/// Why no endpoint could be picked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoPick {
    /// Nobody is known to offer the service.
    UnknownService,
    /// Everyone who offers it is out; `(instance@node, reason)` for each.
    NoneHealthy(Vec<(String, String)>),
}

/// Picks an endpoint of `service` by the probabilities P and the draw in force, leaving out those in `tried`.
///
/// `chances` are uniform in `[0, 1)`; `now` is monotonic. Unless this is a second try, the statistics of every weighed
/// candidate record the probability it had: P with a single draw. With the best of two that would take every pair of
/// candidates, so it is not told: the one that was chosen records 1, and picks and expectation move as one.
///
/// # Errors
/// [`NoPick`] says why there is nothing to pick, with a reason for each known instance.
pub fn pick(
    snapshot: &Snapshot,
    service: &str,
    tried: &[Arc<Endpoint>],
    chances: [f64; 2],
    now: Duration,
) -> Result<Pick, NoPick> {
    let view = snapshot.services.get(service).ok_or(NoPick::UnknownService)?;
    let backend = snapshot.table.backend(service);
    let (candidates, out) = eligible(view, tried, now, backend);
    let latencies_ms: Arc<[Option<f64>]> = candidates.iter().map(|endpoint| endpoint.stats.latency_ms(now)).collect();
    let (inputs, weighed) = weigh(view, &candidates, &latencies_ms, backend, now);
    let contender = |at: usize| Some(contender(candidates.get(at)?, inputs.get(at)?, *latencies_ms.get(at)?));
    let Some(Choice { chosen, passed_over }) = choose(backend.draw, &weighed, chances, contender) else {
        return Err(NoPick::NoneHealthy(reasons(view, tried, &out)));
    };
    let Some(endpoint) = candidates.get(chosen) else {
        return Err(NoPick::NoneHealthy(reasons(view, tried, &out)));
    };
    if tried.is_empty() {
        record(&candidates, &weighed, chosen, backend.draw);
    }
    Ok(Pick {
        endpoint: Arc::clone(endpoint),
        probability: weighed.get(chosen).map_or(0.0, |share| share.probability),
        draw: backend.draw,
        passed_over,
        latencies_ms,
        weighed: weighed.into(),
        candidates: candidates.into(),
        inputs: inputs.into(),
    })
}

/// The candidates of `service` at `now` with the P each has, as far as nothing is drawn yet. Empty where there are none.
#[must_use]
pub fn shares(snapshot: &Snapshot, service: &str, now: Duration) -> Vec<(Arc<Endpoint>, f64)> {
    let Some(view) = snapshot.services.get(service) else { return Vec::new() };
    let backend = snapshot.table.backend(service);
    let (candidates, _) = eligible(view, &[], now, backend);
    let latencies_ms: Vec<Option<f64>> = candidates.iter().map(|endpoint| endpoint.stats.latency_ms(now)).collect();
    let (_, weighed) = weigh(view, &candidates, &latencies_ms, backend, now);
    candidates.into_iter().zip(weighed).map(|(endpoint, share)| (endpoint, share.probability)).collect()
}

/// Candidates of `view` at `now`: not tried, not ejected unless all are, the nearest n where policy asks for it.
///
/// The second list holds those left out with the reason. When every endpoint is ejected the ejections are ignored:
/// a wrong guess beats a certain refusal.
#[must_use]
pub fn eligible(
    view: &ServiceView,
    tried: &[Arc<Endpoint>],
    now: Duration,
    backend: &BackendPolicy,
) -> (Vec<Arc<Endpoint>>, Vec<LeftOut>) {
    let untried = view.endpoints.iter().filter(|e| !tried.iter().any(|t| Arc::ptr_eq(&t.stats, &e.stats)));
    let (mut inside, mut out) = (Vec::with_capacity(view.endpoints.len()), Vec::new());
    for endpoint in untried {
        if endpoint.stats.is_ejected(now) {
            let reason = if endpoint.stats.is_outlier(now) {
                "ejected here for answering with errors".to_owned()
            } else {
                format!("ejected here after {} failures in a row", endpoint.stats.failures_in_a_row())
            };
            out.push((Arc::clone(endpoint), reason));
        } else if let Some(reason) = held_back(endpoint, backend) {
            out.push((Arc::clone(endpoint), reason));
        } else {
            inside.push(Arc::clone(endpoint));
        }
    }
    if inside.is_empty() {
        inside = out.drain(..).map(|(endpoint, _)| endpoint).collect();
    }
    if !tried.is_empty() {
        prefer_sound(&mut inside, &mut out);
    }
    if let Some(count) = backend.nearest
        && inside.len() > count
    {
        inside.sort_by(|a, b| a.distance_ms.total_cmp(&b.distance_ms));
        for far in inside.split_off(count) {
            out.push((far, format!("not among the nearest {count} that policy asks for")));
        }
    }
    (inside, out)
}

/// Why an endpoint that is not ejected gets no request at the moment: it has all that it may have from here, or came back
/// from errors and has yet to show that it is well.
fn held_back(endpoint: &Endpoint, backend: &BackendPolicy) -> Option<String> {
    let limit = backend.limits.breaker.endpoint_limit(endpoint.holds_connection());
    match limit {
        Some((limit, field)) if endpoint.stats.own_inflight() >= limit => {
            Some(format!("at its limit from here: `{field}` is {limit}"))
        }
        _ if endpoint.stats.is_on_probation() => {
            Some("back after errors, and asked one request at a time until it answers well".to_owned())
        }
        _ => None,
    }
}

/// For a second try: where anybody is left who neither failed last nor is suspected, the others sit out. Endpoints that
/// were ejected together come back together, and a request must not spend both its tries on them.
fn prefer_sound(inside: &mut Vec<Arc<Endpoint>>, out: &mut Vec<LeftOut>) {
    let is_sound = |endpoint: &Endpoint| endpoint.stats.failures_in_a_row() == 0 && !endpoint.suspect;
    if !inside.iter().any(|endpoint| is_sound(endpoint)) {
        return;
    }
    for endpoint in inside.extract_if(.., |endpoint| !is_sound(endpoint)) {
        out.push((endpoint, "failed last or is suspected, and a sound one is left for this second try".to_owned()));
    }
}

/// Weighs `candidates` by the policy in force, with the load as estimated here and now; the inputs come back too.
fn weigh(
    view: &ServiceView,
    candidates: &[Arc<Endpoint>],
    latencies_ms: &[Option<f64>],
    backend: &BackendPolicy,
    now: Duration,
) -> (Vec<Candidate>, Vec<Weighed>) {
    let mut weighed = Vec::with_capacity(candidates.len());
    let inputs: Vec<Candidate> = (candidates.iter().zip(latencies_ms))
        .map(|(endpoint, latency_ms)| candidate(endpoint, estimate(view, endpoint, *latency_ms, now)))
        .collect();
    policy::weigh(backend, &inputs, &mut weighed);
    (inputs, weighed)
}

fn record(candidates: &[Arc<Endpoint>], weighed: &[Weighed], chosen: usize, draw: Draw) {
    let told = |at: usize, share: &Weighed| match draw {
        Draw::Single => share.probability,
        _ => f64::from(u8::from(at == chosen)),
    };
    for (at, (candidate, share)) in candidates.iter().zip(weighed).enumerate() {
        candidate.stats.record_decision(told(at, share), at == chosen);
    }
}

/// What is known of a candidate that was drawn. The estimated requests in flight are those that were weighed.
fn contender(endpoint: &Endpoint, input: &Candidate, latency_ms: Option<f64>) -> Contender {
    Contender {
        capacity: input.capacity,
        inflight: input.load_used() * input.capacity.requests(),
        own_inflight: endpoint.stats.own_inflight(),
        distance_ms: input.distance_used_ms(),
        latency_ms,
    }
}

/// The endpoint's estimated requests in flight at `now`: from what the owner told, as far as that is still to be believed,
/// and what is seen from here.
#[must_use]
pub fn inflight(view: &ServiceView, endpoint: &Endpoint, now: Duration) -> f64 {
    estimate(view, endpoint, endpoint.stats.latency_ms(now), now)
}

fn estimate(view: &ServiceView, endpoint: &Endpoint, latency_ms: Option<f64>, now: Duration) -> f64 {
    let own = f64::from(endpoint.stats.own_inflight());
    policy::inflight_estimate(endpoint.stats.reported(now), own, view.active_clients, latency_ms)
}

/// The capacity that is weighed: the endpoint's, or a quarter of it while its owner is suspected.
#[must_use]
pub fn capacity(endpoint: &Endpoint) -> Capacity {
    if !endpoint.suspect {
        return endpoint.capacity;
    }
    Capacity::new(endpoint.capacity.requests() * SUSPECT_FACTOR).unwrap_or(endpoint.capacity)
}

fn candidate(endpoint: &Endpoint, inflight: f64) -> Candidate {
    Candidate::with_inflight(capacity(endpoint), inflight, endpoint.distance_ms)
}

fn reasons(view: &ServiceView, tried: &[Arc<Endpoint>], out: &[LeftOut]) -> Vec<(String, String)> {
    let label = |instance: &str, node: &str| format!("{instance}@{node}");
    let mut all: Vec<(String, String)> =
        view.excluded.iter().map(|e| (label(&e.instance, &e.node), e.reason.clone())).collect();
    all.extend(out.iter().map(|(e, reason)| (label(&e.instance, &e.node_name), reason.clone())));
    all.extend(
        tried.iter().map(|e| (label(&e.instance, &e.node_name), "tried for this request and failed".to_owned())),
    );
    all
}

#[cfg(test)]
mod tests;
