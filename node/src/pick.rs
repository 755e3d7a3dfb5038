//! From a service's name to one endpoint: the only place that turns a [`Snapshot`] into a decision.

use std::sync::Arc;
use std::time::Duration;

use policy::{BackendPolicy, Candidate, Capacity, Weighed};

use crate::snapshot::{Endpoint, ServiceView, Snapshot};

/// A suspected owner's endpoints count a quarter.
const SUSPECT_FACTOR: f64 = 0.25;

/// What the draw decided.
#[derive(Debug, Clone)]
pub struct Pick {
    /// The endpoint to send to.
    pub endpoint: Arc<Endpoint>,
    /// The probability it had.
    pub probability: f64,
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

/// Picks an endpoint of `service` by its probability P, leaving out those in `tried`.
///
/// `u` is uniform in `[0, 1)`; `now` is monotonic. Every weighed candidate's statistics record the probability it had,
/// unless this is a second try.
///
/// # Errors
/// [`NoPick`] says why there is nothing to pick, with a reason for each known instance.
pub fn pick(
    snapshot: &Snapshot,
    service: &str,
    tried: &[Arc<Endpoint>],
    u: f64,
    now: Duration,
) -> Result<Pick, NoPick> {
    let view = snapshot.services.get(service).ok_or(NoPick::UnknownService)?;
    let backend = snapshot.table.backend(service);
    let (candidates, out) = eligible(view, tried, now, backend);
    let (inputs, weighed) = weigh(view, &candidates, backend);
    let Some(index) = policy::draw(&weighed, u) else {
        return Err(NoPick::NoneHealthy(reasons(view, tried, &out)));
    };
    let Some(endpoint) = candidates.get(index) else {
        return Err(NoPick::NoneHealthy(reasons(view, tried, &out)));
    };
    if tried.is_empty() {
        for (i, (candidate, share)) in candidates.iter().zip(&weighed).enumerate() {
            candidate.stats.record_decision(share.probability, i == index);
        }
    }
    Ok(Pick {
        endpoint: Arc::clone(endpoint),
        probability: weighed.get(index).map_or(0.0, |share| share.probability),
        weighed: weighed.into(),
        candidates: candidates.into(),
        inputs: inputs.into(),
    })
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
            let failures = endpoint.stats.failures_in_a_row();
            out.push((Arc::clone(endpoint), format!("ejected here after {failures} failures in a row")));
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
fn weigh(view: &ServiceView, candidates: &[Arc<Endpoint>], backend: &BackendPolicy) -> (Vec<Candidate>, Vec<Weighed>) {
    let mut weighed = Vec::with_capacity(candidates.len());
    let inputs: Vec<Candidate> = candidates.iter().map(|endpoint| candidate(view, endpoint)).collect();
    policy::weigh(backend, &inputs, &mut weighed);
    (inputs, weighed)
}

/// The endpoint's estimated requests in flight: half told by the owner, half seen from here.
#[must_use]
pub fn inflight(view: &ServiceView, endpoint: &Endpoint) -> f64 {
    let own = endpoint.stats.own_inflight();
    let (reported, own_then) = endpoint.stats.reported();
    policy::inflight_estimate(f64::from(reported), f64::from(own_then), f64::from(own), view.active_clients)
}

/// The capacity that is weighed: the endpoint's, or a quarter of it while its owner is suspected.
#[must_use]
pub fn capacity(endpoint: &Endpoint) -> Capacity {
    if !endpoint.suspect {
        return endpoint.capacity;
    }
    Capacity::new(endpoint.capacity.requests() * SUSPECT_FACTOR).unwrap_or(endpoint.capacity)
}

fn candidate(view: &ServiceView, endpoint: &Endpoint) -> Candidate {
    Candidate::with_inflight(capacity(endpoint), inflight(view, endpoint), endpoint.distance_ms)
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
