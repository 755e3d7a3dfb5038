//! From a service's name to one endpoint: the only place that turns a [`Snapshot`] into a decision.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use policy::{
    BackendPolicy, Candidate, Capacity, Choice, Contender, Draw, OnUnmatched, Requirements, Trait, Weighed, choose,
    choose_within, slow_start_factor,
};

use crate::gossip::Facts;
use crate::snapshot::{Endpoint, Missing, ServiceView, Snapshot};
use crate::spread::Spread;

/// A suspected owner's endpoints count a quarter.
pub(crate) const SUSPECT_FACTOR: f64 = 0.25;

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
    pub latencies_ms: Vec<Option<f64>>,
    /// Every candidate of this decision with its weight, in the order of `candidates`.
    pub weighed: Vec<Weighed>,
    /// The endpoints that were weighed; empty where nobody wants to know.
    pub candidates: Vec<Arc<Endpoint>>,
    /// The capacity, load and distance that gave each its weight, in the order of `candidates`; loads move with every
    /// request, these are the ones of this decision.
    pub inputs: Vec<Candidate>,
    /// Whether a locality got more than its part because another one has too few sound instances.
    pub is_spilling: bool,
    /// Whether so many endpoints are ejected that the ejections did not count.
    pub is_panic: bool,
}

/// What one request asks for beside its service.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// The endpoints that failed it.
    pub tried: &'a [Arc<Endpoint>],
    /// What the node of an instance must be.
    pub requirements: Option<&'a Arc<Requirements>>,
    /// Whether the candidates are wanted beside the one that is picked.
    pub with_candidates: bool,
}

/// Who takes part in a draw.
#[derive(Debug, Default)]
pub struct Eligible {
    /// Those.
    pub candidates: Vec<Arc<Endpoint>>,
    /// Those that do not, with the reason.
    pub out: Vec<LeftOut>,
    /// How the candidates spread over localities; `None` where policy tells none apart, or for a second try.
    pub spread: Option<Spread>,
    /// Whether so many are ejected that ejections do not count.
    pub is_panic: bool,
}

/// An endpoint that takes no part in a draw, with the reason.
pub type LeftOut = (Arc<Endpoint>, OutReason);

/// Why an endpoint takes no part in a draw.
#[derive(Debug, Clone)]
pub enum OutReason {
    /// This node ejected it.
    Ejected {
        /// For what it answered, or how slowly.
        is_outlier: bool,
    },
    /// It has all that it may have from here.
    AtLimit {
        /// The field of the policy.
        field: &'static str,
        /// Its value.
        limit: u32,
    },
    /// It came back from being an outlier, has a request, and has yet to show that it is well.
    OnProbation,
    /// So many others are nearer, and policy asks for no more.
    NotNearest(usize),
    /// It failed last or is suspected, and this is a second try.
    NotSound,
    /// Its locality gets nothing.
    Locality,
    /// Its node is not what the request requires.
    Unfit(Arc<Requirements>),
}

impl OutReason {
    /// The reason that `endpoint` of `view` is out, for people.
    #[must_use]
    pub fn sentence(&self, view: &ServiceView, endpoint: &Endpoint) -> String {
        match self {
            Self::Ejected { is_outlier: true } => match endpoint.stats.finding() {
                Some(finding) => format!("ejected here: {finding}"),
                None => "ejected here for answering with errors".to_owned(),
            },
            Self::Ejected { is_outlier: false } => {
                format!("ejected here after {} failures in a row", endpoint.stats.failures_in_a_row())
            }
            Self::AtLimit { field, limit } => format!("at its limit from here: `{field}` is {limit}"),
            Self::OnProbation => {
                "back from being left out, and asked one request at a time until it answers well".to_owned()
            }
            Self::NotNearest(count) => format!("not among the nearest {count} that policy asks for"),
            Self::NotSound => "failed last or is suspected, and a sound one is left for this second try".to_owned(),
            Self::Locality => {
                let name =
                    view.placed.as_ref().map_or_else(String::new, |placed| placed.localities.name(endpoint.locality));
                format!("its locality ({name}) gets nothing while others have enough sound instances")
            }
            Self::Unfit(requirements) => unmet(requirements, &endpoint.facts).unwrap_or_default(),
        }
    }
}

/// Why no endpoint could be picked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoPick {
    /// Nobody is known to offer the service.
    UnknownService,
    /// Everyone who offers it is out; `(instance@node, reason)` for each.
    NoneHealthy(Vec<(String, String)>),
    /// Somebody could answer, but in no region that a `Residency` allows.
    Forbidden(Vec<(String, String)>),
    /// Nobody is what the request's route requires.
    Unfit(Vec<(String, String)>),
}

/// Picks an endpoint of `service` by the probabilities P and the draw in force, among those that are what is `asked`.
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
    asked: Asked<'_>,
    chances: [f64; 2],
    now: Duration,
) -> Result<Pick, NoPick> {
    let view = snapshot.services.get(service).ok_or(NoPick::UnknownService)?;
    let backend = snapshot.table.backend(service);
    let (candidates, out, spread, is_panic) = if takes_all(view, asked, now, backend) {
        (Cow::Borrowed(&*view.endpoints), Vec::new(), None, false)
    } else {
        let Eligible { candidates, out, spread, is_panic } = eligible(view, asked, now, backend);
        (Cow::Owned(candidates), out, spread, is_panic)
    };
    let latencies_ms: Vec<Option<f64>> = candidates.iter().map(|endpoint| endpoint.stats.latency_ms(now)).collect();
    let (inputs, weighed) = weigh(view, &candidates, &latencies_ms, backend, spread.as_ref(), now);
    let contender = |at: usize| Some(contender(candidates.get(at)?, inputs.get(at)?, *latencies_ms.get(at)?));
    let choice = match &spread {
        Some(spread) => choose_within(backend.draw, &weighed, &spread.parts, chances, contender),
        None => choose(backend.draw, &weighed, chances, contender),
    };
    let Some(Choice { chosen, passed_over }) = choice else { return Err(none(view, asked, &out)) };
    let Some(endpoint) = candidates.get(chosen) else { return Err(none(view, asked, &out)) };
    if asked.tried.is_empty() {
        record(&candidates, &weighed, chosen, backend.draw);
    }
    Ok(Pick {
        endpoint: Arc::clone(endpoint),
        probability: weighed.get(chosen).map_or(0.0, |share| share.probability),
        draw: backend.draw,
        passed_over,
        latencies_ms,
        weighed,
        candidates: if asked.with_candidates { candidates.into_owned() } else { Vec::new() },
        inputs,
        is_spilling: spread.is_some_and(|spread| spread.is_spilling),
        is_panic,
    })
}

/// The candidates of `service` at `now` with the P each has, as far as nothing is drawn yet. Empty where there are none.
#[must_use]
pub fn shares(snapshot: &Snapshot, service: &str, now: Duration) -> Vec<(Arc<Endpoint>, f64)> {
    let Some(view) = snapshot.services.get(service) else { return Vec::new() };
    let backend = snapshot.table.backend(service);
    let Eligible { candidates, spread, .. } = eligible(view, Asked::default(), now, backend);
    let latencies_ms: Vec<Option<f64>> = candidates.iter().map(|endpoint| endpoint.stats.latency_ms(now)).collect();
    let (_, weighed) = weigh(view, &candidates, &latencies_ms, backend, spread.as_ref(), now);
    candidates.into_iter().zip(weighed).map(|(endpoint, share)| (endpoint, share.probability)).collect()
}

/// Candidates of `view` at `now`: not tried, what is required, neither ejected nor held back, of a locality that gets
/// something, the nearest n where policy asks for it.
///
/// The ejections of this node are ignored where every endpoint is ejected, or so many that policy takes it for a fault of
/// the judgement: a wrong guess beats a certain refusal. A second try goes to any locality.
#[must_use]
pub fn eligible(view: &ServiceView, asked: Asked<'_>, now: Duration, backend: &BackendPolicy) -> Eligible {
    let Asked { tried, requirements, .. } = asked;
    let untried = view.endpoints.iter().filter(|e| !tried.iter().any(|t| Arc::ptr_eq(&t.stats, &e.stats)));
    let mut inside: Vec<Arc<Endpoint>> = Vec::with_capacity(view.endpoints.len());
    inside.extend(untried.cloned());
    let mut out = Vec::new();
    let unfit =
        requirements.map_or_else(Vec::new, |requirements| leave_unfit(view, requirements, &mut inside, &mut out));
    let is_panic = is_panic(view, now, backend.panic_threshold_percent);
    if !is_panic && inside.iter().any(|endpoint| !endpoint.stats.is_ejected(now)) {
        let ejected = inside.extract_if(.., |endpoint| endpoint.stats.is_ejected(now));
        out.extend(ejected.map(|endpoint| {
            let is_outlier = endpoint.stats.is_outlier(now);
            (endpoint, OutReason::Ejected { is_outlier })
        }));
    }
    if inside.iter().any(|endpoint| held_back(endpoint, backend).is_none()) {
        let held = inside.extract_if(.., |endpoint| held_back(endpoint, backend).is_some());
        out.extend(held.filter_map(|endpoint| held_back(&endpoint, backend).map(|why| (endpoint, why))));
    }
    if !tried.is_empty() {
        prefer_sound(&mut inside, &mut out);
    } else if let Some(placed) = &view.placed {
        let leave_out = |endpoint, reason| out.push((endpoint, reason));
        let spread = placed.spread(&mut inside, &unfit, backend.nearest, leave_out);
        return Eligible { candidates: inside, out, spread: Some(spread), is_panic };
    }
    if let Some(count) = backend.nearest
        && inside.len() > count
    {
        inside.sort_by(|a, b| a.distance_ms.total_cmp(&b.distance_ms));
        out.extend(inside.split_off(count).into_iter().map(|far| (far, OutReason::NotNearest(count))));
    }
    Eligible { candidates: inside, out, spread: None, is_panic }
}

/// Whether a request may go to every endpoint of `view`, as nearly all may: what [`eligible`] would find is known then.
fn takes_all(view: &ServiceView, asked: Asked<'_>, now: Duration, backend: &BackendPolicy) -> bool {
    let nobody_is_unfit = asked.tried.is_empty() && asked.requirements.is_none() && view.placed.is_none();
    let all_are_near = backend.nearest.is_none_or(|count| view.endpoints.len() <= count);
    let is_in = |endpoint: &Arc<Endpoint>| !endpoint.stats.is_ejected(now) && held_back(endpoint, backend).is_none();
    nobody_is_unfit && all_are_near && view.endpoints.iter().all(is_in)
}

/// Whether fewer than so many percent of the endpoints are left by the verdicts of this node. The verdicts of an
/// endpoint's owner are not among them: what it calls down is not in `view.endpoints` at all.
fn is_panic(view: &ServiceView, now: Duration, threshold_percent: u32) -> bool {
    if threshold_percent == 0 {
        return false;
    }
    let left = view.endpoints.iter().filter(|endpoint| !endpoint.stats.is_ejected(now)).count();
    let threshold = usize::try_from(threshold_percent).unwrap_or(100);
    left * 100 < view.endpoints.len() * threshold
}

/// Leaves those whose node is what is required; where nobody is and the rule says so, all. Returns for each locality how
/// many of the instances that should be there do not count for this request.
fn leave_unfit(
    view: &ServiceView,
    requirements: &Arc<Requirements>,
    inside: &mut Vec<Arc<Endpoint>>,
    out: &mut Vec<LeftOut>,
) -> Vec<f64> {
    let is_fit = |facts: &Facts| requirements.are_met(|name| tell(facts, name));
    let passes = requirements.on_unmatched == OnUnmatched::PassThrough;
    if passes && !inside.iter().any(|endpoint| is_fit(&endpoint.facts)) {
        return Vec::new();
    }
    let unfit = inside.extract_if(.., |endpoint| !is_fit(&endpoint.facts));
    out.extend(unfit.map(|endpoint| (endpoint, OutReason::Unfit(Arc::clone(requirements)))));
    view.placed.as_ref().map_or_else(Vec::new, |placed| placed.count_unfit(view, is_fit))
}

/// The first of `requirements` that a node with these facts does not meet, for people.
#[must_use]
pub fn unmet(requirements: &Requirements, facts: &Facts) -> Option<String> {
    requirements.unmet(|name| tell(facts, name))
}

/// What a node tells of itself under `name`.
fn tell<'a>(facts: &'a Facts, name: &str) -> Option<Trait<'a>> {
    let machine = &facts.capabilities;
    #[expect(clippy::cast_precision_loss, reason = "bytes of memory are far below 2^52")]
    let memory = || machine.memory_bytes as f64;
    match name {
        "arch" => Some(Trait::Text(&machine.arch)),
        "os" => Some(Trait::Text(&machine.os)),
        "cores" => Some(Trait::Number(machine.cores)),
        "memory" => Some(Trait::Number(memory())),
        "gpu" => Some(Trait::Number(f64::from(machine.gpu))),
        label => machine.labels.get(label).map(|value| Trait::Text(value)),
    }
}

/// Why an endpoint that is not ejected gets no request at the moment: it has all that it may have from here, or came back
/// from errors and has yet to show that it is well.
fn held_back(endpoint: &Endpoint, backend: &BackendPolicy) -> Option<OutReason> {
    let limit = backend.limits.breaker.endpoint_limit(endpoint.holds_connection());
    match limit {
        Some((limit, field)) if endpoint.stats.own_inflight() >= limit => Some(OutReason::AtLimit { field, limit }),
        _ if endpoint.stats.is_on_probation() => Some(OutReason::OnProbation),
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
    let unsound = inside.extract_if(.., |endpoint| !is_sound(endpoint));
    out.extend(unsound.map(|endpoint| (endpoint, OutReason::NotSound)));
}

/// Weighs `candidates` by the policy in force, with the load as estimated here and now; the inputs come back too.
fn weigh(
    view: &ServiceView,
    candidates: &[Arc<Endpoint>],
    latencies_ms: &[Option<f64>],
    backend: &BackendPolicy,
    spread: Option<&Spread>,
    now: Duration,
) -> (Vec<Candidate>, Vec<Weighed>) {
    let mut weighed = Vec::with_capacity(candidates.len());
    let inputs: Vec<Candidate> = (candidates.iter().zip(latencies_ms))
        .map(|(endpoint, latency_ms)| {
            let inflight = estimate(view, endpoint, *latency_ms, now);
            Candidate::with_inflight(capacity(endpoint, backend, now), inflight, endpoint.distance_ms)
        })
        .collect();
    match spread {
        Some(spread) => policy::weigh_parts(backend, &inputs, &spread.parts, &mut weighed),
        None => policy::weigh(backend, &inputs, &mut weighed),
    }
    (inputs, weighed)
}

fn record(candidates: &[Arc<Endpoint>], weighed: &[Weighed], chosen: usize, draw: Draw) {
    if draw != Draw::Single {
        if let Some(candidate) = candidates.get(chosen) {
            candidate.stats.record_decision(1.0, true);
        }
        return;
    }
    for (at, (candidate, share)) in candidates.iter().zip(weighed).enumerate() {
        candidate.stats.record_decision(share.probability, at == chosen);
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
    let own = endpoint.stats.own_inflight();
    policy::inflight_estimate(endpoint.stats.reported(now), own, view.active_clients, latency_ms)
}

/// The capacity that is weighed: the endpoint's, or a quarter of it while its owner is suspected, and less of it while it
/// is new and policy has newcomers start slowly.
#[must_use]
pub fn capacity(endpoint: &Endpoint, backend: &BackendPolicy, now: Duration) -> Capacity {
    let suspect = if endpoint.suspect { SUSPECT_FACTOR } else { 1.0 };
    let factor = suspect * slow_start(endpoint, backend, now).unwrap_or(1.0);
    if factor < 1.0 {
        return Capacity::new(endpoint.capacity.requests() * factor).unwrap_or(endpoint.capacity);
    }
    endpoint.capacity
}

/// The part of its weight that a newcomer has; `None` for one that has all of it.
#[must_use]
pub fn slow_start(endpoint: &Endpoint, backend: &BackendPolicy, now: Duration) -> Option<f64> {
    let window = backend.slow_start?;
    let factor = slow_start_factor(endpoint.stats.age(now)?, window);
    (factor < 1.0).then_some(factor)
}

/// Why nobody takes a request.
fn none(view: &ServiceView, asked: Asked<'_>, out: &[LeftOut]) -> NoPick {
    let reasons = reasons(view, asked.tried, out);
    if !asked.tried.is_empty() {
        return NoPick::NoneHealthy(reasons);
    }
    if out.iter().any(|(_, reason)| matches!(reason, OutReason::Unfit(_))) {
        return NoPick::Unfit(reasons);
    }
    if view.excluded.iter().any(|out| out.missing == Missing::Forbidden) {
        return NoPick::Forbidden(reasons);
    }
    NoPick::NoneHealthy(reasons)
}

fn reasons(view: &ServiceView, tried: &[Arc<Endpoint>], out: &[LeftOut]) -> Vec<(String, String)> {
    let label = |instance: &str, node: &str| format!("{instance}@{node}");
    let mut all: Vec<(String, String)> =
        view.excluded.iter().map(|e| (label(&e.instance, &e.node), e.reason.clone())).collect();
    all.extend(out.iter().map(|(e, reason)| (label(&e.instance, &e.node_name), reason.sentence(view, e))));
    all.extend(
        tried.iter().map(|e| (label(&e.instance, &e.node_name), "tried for this request and failed".to_owned())),
    );
    all
}

#[cfg(test)]
mod tests;
