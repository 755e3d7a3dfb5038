//! What policy says of places, settled once for each snapshot: who may answer at all, and which locality an endpoint is of.
//!
//! A request of a service without such policy pays nothing for it; one with it counts who is left in each locality.

use std::collections::BTreeMap;
use std::sync::Arc;

use policy::explain::{Excluded, ExplainedLocality, ExplainedRequirements};
use policy::{Health, Localities, OnUnmatched, Part, Place, RouteTable};

use crate::gossip::Facts;
use crate::pick::{OutReason, SUSPECT_FACTOR, unmet};
use crate::snapshot::{Endpoint, Here, Missing, ServiceView};

/// The localities of one service, as this node tells them apart.
#[derive(Debug, Clone)]
pub struct Placed {
    /// What they are.
    pub localities: Localities,
    /// Instances that should be in each.
    known: Vec<f64>,
    /// What each gets while all of them are sound.
    rights: Vec<f64>,
}

/// How one decision spreads over localities.
#[derive(Debug, Clone, Default)]
pub struct Spread {
    /// For each locality its candidates, which stand together, and its share.
    pub parts: Vec<Part>,
    /// Whose instances are left.
    pub health: Vec<Health>,
    /// Whether a locality gets something that another one would get if all were well.
    pub is_spilling: bool,
}

/// Applies what `table` says of places to `services`: what `Residency` forbids is out before anything is weighed, and the
/// endpoints of a service with `locality` stand in the order of the localities.
pub fn settle(services: &mut BTreeMap<String, Arc<ServiceView>>, table: &RouteTable, here: &Here) {
    let place = Place { node_name: here.name.clone(), region: here.region.clone(), zone: here.zone.clone() };
    for (name, view) in services {
        if table.residency(name).is_some() {
            keep_in(Arc::make_mut(view), |region| table.may_answer_in(name, region));
        }
        let locality = table.backend(name).locality.as_ref();
        if let Some(localities) = locality.and_then(|locality| locality.localities(&place)) {
            put(Arc::make_mut(view), localities);
        }
    }
}

/// Takes out what is outside of the regions in which requests may be answered.
fn keep_in(view: &mut ServiceView, may_answer_in: impl Fn(&str) -> bool) {
    for out in view.excluded.iter_mut().filter(|out| !may_answer_in(&out.facts.region)) {
        out.missing = Missing::No;
    }
    let forbidden = view.endpoints.extract_if(.., |endpoint| !may_answer_in(&endpoint.facts.region));
    view.excluded.extend(forbidden.map(|endpoint| {
        let reason = match endpoint.facts.region.as_str() {
            "" => "its node is in no region, and a Residency says which may answer".to_owned(),
            region => format!("its region `{region}` is not one that Residency lets answer"),
        };
        endpoint.excluded(reason, Missing::Forbidden)
    }));
}

fn put(view: &mut ServiceView, localities: Localities) {
    let mut known = vec![0.0; localities.count()];
    let mut count = |at: usize| {
        if let Some(known) = known.get_mut(at) {
            *known += 1.0;
        }
    };
    for endpoint in &mut view.endpoints {
        let at = localities.of(&endpoint.facts.region, &endpoint.facts.zone);
        Arc::make_mut(endpoint).locality = at;
        count(at);
    }
    for out in view.excluded.iter().filter(|out| out.missing == Missing::Yes) {
        count(localities.of(&out.facts.region, &out.facts.zone));
    }
    view.endpoints.sort_by_key(|endpoint| endpoint.locality);
    let rights = rights(&localities, &known);
    view.placed = Some(Placed { localities, known, rights });
}

/// What each locality gets while all of its instances are sound.
fn rights(localities: &Localities, known: &[f64]) -> Vec<f64> {
    let sound: Vec<Health> = known.iter().map(|known| Health { sound: *known, known: *known }).collect();
    let mut shares = Vec::with_capacity(sound.len());
    localities.shares(&sound, &mut shares);
    shares
}

impl Placed {
    /// How many of the instances that should be in each locality are not `is_fit`.
    pub fn count_unfit(&self, view: &ServiceView, is_fit: impl Fn(&Facts) -> bool) -> Vec<f64> {
        let mut unfit = vec![0.0; self.known.len()];
        let up = view.endpoints.iter().map(|endpoint| &endpoint.facts);
        let down = view.excluded.iter().filter(|out| out.missing == Missing::Yes).map(|out| &out.facts);
        for facts in up.chain(down).filter(|facts| !is_fit(facts)) {
            if let Some(unfit) = unfit.get_mut(self.localities.of(&facts.region, &facts.zone)) {
                *unfit += 1.0;
            }
        }
        unfit
    }

    /// Leaves those of `candidates` whose locality gets something, and of each locality the `nearest`; the others go to
    /// `leave_out`. `unfit` says of each locality how many of its instances do not count for this request, if any.
    ///
    /// The candidates stand in the order of their localities, before and after.
    pub fn spread(
        &self,
        candidates: &mut Vec<Arc<Endpoint>>,
        unfit: &[f64],
        nearest: Option<usize>,
        mut leave_out: impl FnMut(Arc<Endpoint>, OutReason),
    ) -> Spread {
        let missing = |at: usize| unfit.get(at).copied().unwrap_or(0.0);
        let known = self.known.iter().enumerate().map(|(at, known)| (known - missing(at)).max(0.0));
        let mut health: Vec<Health> = known.map(|known| Health { sound: 0.0, known }).collect();
        let mut parts = vec![Part { len: 0, share: 0.0 }; health.len()];
        for endpoint in candidates.iter() {
            if let (Some(health), Some(part)) = (health.get_mut(endpoint.locality), parts.get_mut(endpoint.locality)) {
                health.sound += if endpoint.suspect { SUSPECT_FACTOR } else { 1.0 };
                part.len += 1;
            }
        }
        let mut shares = Vec::with_capacity(parts.len());
        self.localities.shares(&health, &mut shares);
        for (part, share) in parts.iter_mut().zip(&shares) {
            part.share = *share;
        }
        let gets_none = |endpoint: &Endpoint| parts.get(endpoint.locality).is_none_or(|part| part.share <= 0.0);
        for endpoint in candidates.extract_if(.., |endpoint| gets_none(endpoint)) {
            leave_out(endpoint, OutReason::Locality);
        }
        for part in parts.iter_mut().filter(|part| part.share <= 0.0) {
            part.len = 0;
        }
        if let Some(count) = nearest {
            keep_nearest(candidates, &mut parts, count, leave_out);
        }
        let without = if unfit.is_empty() { Vec::new() } else { self.rights_without(unfit) };
        let rights = if unfit.is_empty() { &self.rights } else { &without };
        let is_spilling = shares.iter().zip(rights).any(|(share, right)| share - right > 1e-9);
        Spread { parts, health, is_spilling }
    }

    fn rights_without(&self, unfit: &[f64]) -> Vec<f64> {
        let known: Vec<f64> = self.known.iter().zip(unfit).map(|(known, unfit)| (known - unfit).max(0.0)).collect();
        rights(&self.localities, &known)
    }
}

/// What each locality gets, for people; nothing where policy tells none apart.
#[must_use]
pub fn explained(view: &ServiceView, spread: Option<&Spread>) -> Vec<ExplainedLocality> {
    let (Some(placed), Some(spread)) = (&view.placed, spread) else { return Vec::new() };
    let parts = spread.parts.iter().zip(&spread.health).enumerate();
    parts
        .map(|(at, (part, health))| ExplainedLocality {
            name: placed.localities.name(at),
            percent: placed.localities.percent(at),
            sound: health.sound,
            known: health.known,
            share: part.share,
            candidates: part.len,
        })
        .collect()
}

/// What rules that lead to the service require, and who does not meet it.
#[must_use]
pub fn requirements(view: &ServiceView, table: &RouteTable) -> Vec<ExplainedRequirements> {
    let told = table.requirements(&view.name).into_iter();
    told.map(|(route, requirements)| ExplainedRequirements {
        route: route.to_string(),
        requires: requirements.all.iter().map(ToString::to_string).collect(),
        passes_through: requirements.on_unmatched == OnUnmatched::PassThrough,
        skipped: (view.endpoints.iter())
            .filter_map(|endpoint| {
                let reason = unmet(&requirements, &endpoint.facts)?;
                Some(Excluded { instance: endpoint.instance.to_string(), node: endpoint.node_name.clone(), reason })
            })
            .collect(),
    })
    .collect()
}

/// Of each part the `count` nearest.
fn keep_nearest(
    candidates: &mut Vec<Arc<Endpoint>>,
    parts: &mut [Part],
    count: usize,
    mut leave_out: impl FnMut(Arc<Endpoint>, OutReason),
) {
    let mut all = std::mem::take(candidates).into_iter();
    for part in parts {
        let mut those: Vec<Arc<Endpoint>> = all.by_ref().take(part.len).collect();
        if those.len() > count {
            those.sort_by(|a, b| a.distance_ms.total_cmp(&b.distance_ms));
            those.split_off(count).into_iter().for_each(|far| leave_out(far, OutReason::NotNearest(count)));
        }
        part.len = those.len();
        candidates.extend(those);
    }
}

#[cfg(test)]
mod tests;
