//! Why a request went where it went: every number of the formula for every candidate, and who is missing and why.

use serde::{Deserialize, Serialize};

use crate::{
    backend::{Algorithm, BackendPolicy, Draw},
    locality::{Part, weigh_parts},
    weigh::{Candidate, Capacity, Weighed, weigh},
};

/// How the requests for one service spread, as one node sees it. Serialises to the answer of `GET /v1/explain/SERVICE`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The service asked about.
    pub service: String,
    /// How candidates are weighed.
    pub algorithm: Algorithm,
    /// Distance decay per millisecond.
    pub lambda_per_ms: f64,
    /// What is added to every load.
    pub epsilon: f64,
    /// How one candidate is drawn by P. With [`Draw::BestOfTwo`] P is the probability of the first of two draws, of which
    /// the cheaper is taken: the observed share may differ from it.
    pub draw: Draw,
    /// The documents that settle this, as [`BackendPolicy::source`] lists them, or `default`.
    pub policy: String,
    /// The node whose view this is.
    pub as_known_by: String,
    /// Whether so many instances are out by the verdicts of this node that these do not count, see
    /// [`BackendPolicy::panic_threshold_percent`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub panic: bool,
    /// What this node may take of a rate that all nodes share; absent where policy sets none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet_rate: Option<ExplainedFleetRate>,
    /// What each locality gets; absent where policy tells none apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub localities: Vec<ExplainedLocality>,
    /// What rules that lead to the service require of a node, and who does not meet it; absent where none does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requirements: Vec<ExplainedRequirements>,
    /// Who takes part in the draw, in the order given.
    pub candidates: Vec<ExplainedCandidate>,
    /// Who does not.
    pub excluded: Vec<Excluded>,
}

/// One node's part of a rate that all nodes share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExplainedFleetRate {
    /// Requests per second that may begin at all nodes together.
    pub limit_per_s: f64,
    /// Requests per second that may begin here.
    pub share_per_s: f64,
    /// Requests per second that ask to begin here, averaged; the limit at most.
    pub demand_per_s: f64,
    /// The nodes that share, as seen here, this one among them.
    pub nodes: usize,
    /// Those of them that ask for more than the little that each may always take.
    pub asking: usize,
}

/// One locality with its part of the requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExplainedLocality {
    /// `REGION/ZONE`, `REGION/*` or `*` of a split; `own zone`, `own region` or `anywhere` for a tier.
    pub name: String,
    /// What a split gives it while all is well, in percent; `null` for a tier.
    pub percent: Option<u32>,
    /// Instances that can be drawn; one whose owner is suspected counts a quarter.
    pub sound: f64,
    /// Instances that should be there.
    pub known: f64,
    /// What it gets now, within 0 and 1.
    pub share: f64,
    /// How many candidates are its, one locality's after the other's.
    pub candidates: usize,
}

/// What one rule requires of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedRequirements {
    /// The rule's name.
    pub route: String,
    /// Each as `gpu >= 1`.
    pub requires: Vec<String>,
    /// Whether a request that nobody meets goes to anybody; else it is refused.
    pub passes_through: bool,
    /// Those that its requests skip, each with what is missing.
    pub skipped: Vec<Excluded>,
}

/// One candidate with every number of its decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExplainedCandidate {
    /// The instance's id.
    pub instance: String,
    /// The name of the node it belongs to.
    pub node: String,
    /// The zone of that node.
    pub zone: String,
    /// The locality it is of; absent where policy tells none apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<String>,
    /// C, in concurrent requests.
    pub capacity: f64,
    /// Requests in flight, estimated.
    pub inflight: f64,
    /// L = inflight / C.
    pub load: f64,
    /// d, round trip in milliseconds.
    pub distance_ms: f64,
    /// How d is known.
    pub distance_source: DistanceSource,
    /// w = C / (L + epsilon) * exp(-lambda * d).
    pub weight: f64,
    /// P = w / sum of w: of the draw, or of the first of two. With localities P within its own times the share of that.
    pub probability: f64,
    /// The part of its weight that a newcomer has, contained in C; absent where it has all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<f64>,
    /// How long it takes to answer, as this node has seen it: what decides between two draws, together with the requests
    /// in flight. `null` where no answer has come yet.
    pub latency_ms: Option<f64>,
    /// Its part of the picks of late, within 0 and 1; `null` where there were none.
    pub observed_share: Option<f64>,
    /// How often it was picked of late.
    pub picks: u64,
    /// What `picks` should come to: over the decisions of late by a single draw the sum of its P, and over those by the best
    /// of two, of which nothing of the kind is known, its picks themselves. `null` while the best of two is in force.
    pub expected_picks: Option<f64>,
    /// `ok`, or a word for what holds it back without excluding it.
    pub state: String,
    /// How C is known.
    pub capacity_source: CapacitySource,
}

/// One instance that does not take part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// The instance's id.
    pub instance: String,
    /// The name of the node it belongs to.
    pub node: String,
    /// What removed it, for people.
    pub reason: String,
}

/// How a distance is known, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DistanceSource {
    /// The instance is on this node.
    Local,
    /// Measured round trips, filtered.
    Rtt,
    /// The distance of network coordinates.
    Vivaldi,
    /// The great circle between the two places.
    GreatCircle,
    /// Not at all; the instance counts as far away.
    Unknown,
}

/// How a capacity is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CapacitySource {
    /// Its registration says so.
    Declared,
    /// Learned from how it answered.
    Learned,
    /// From the cores of its node, shared among the instances there.
    Cores,
}

/// What a node knows of a candidate before the formula is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Subject {
    /// The instance's id.
    pub instance: String,
    /// The name of the node it belongs to.
    pub node: String,
    /// The zone of that node.
    pub zone: String,
    /// C.
    pub capacity: Capacity,
    /// How C is known.
    pub capacity_source: CapacitySource,
    /// Requests in flight, estimated.
    pub inflight: f64,
    /// d in milliseconds; not a number where it is unknown.
    pub distance_ms: f64,
    /// How d is known.
    pub distance_source: DistanceSource,
    /// How often it was picked of late.
    pub picks: u64,
    /// How long it takes to answer, in milliseconds; `None` where no answer has come yet.
    pub latency_ms: Option<f64>,
    /// The sum of its P over the decisions of late by a single draw, and its picks by the best of two.
    pub expected_picks: f64,
    /// `ok`, or a word for what holds it back without excluding it.
    pub state: String,
    /// The part of its weight that a newcomer has; `None` where it has all of it.
    pub slow_start: Option<f64>,
}

/// Explains the decision over `subjects`, with the same [`weigh`] that takes it. The filters that the subjects passed
/// ([`crate::nearest`] among them) are the caller's, and so are the reasons in `excluded`.
#[must_use]
pub fn explain(
    service: &str,
    policy: &BackendPolicy,
    as_known_by: &str,
    subjects: Vec<Subject>,
    excluded: Vec<Excluded>,
) -> Explanation {
    explain_parts(service, policy, as_known_by, subjects, Vec::new(), excluded)
}

/// As [`explain`], over `subjects` that stand in the order of their `localities`. None of them tells none apart.
#[must_use]
pub fn explain_parts(
    service: &str,
    policy: &BackendPolicy,
    as_known_by: &str,
    subjects: Vec<Subject>,
    localities: Vec<ExplainedLocality>,
    excluded: Vec<Excluded>,
) -> Explanation {
    let candidate =
        |subject: &Subject| Candidate::with_inflight(subject.capacity, subject.inflight, subject.distance_ms);
    let candidates: Vec<Candidate> = subjects.iter().map(candidate).collect();
    let mut weighed = Vec::with_capacity(candidates.len());
    if localities.is_empty() {
        weigh(policy, &candidates, &mut weighed);
    } else {
        let part = |one: &ExplainedLocality| Part { len: one.candidates, share: one.share };
        weigh_parts(policy, &candidates, &localities.iter().map(part).collect::<Vec<_>>(), &mut weighed);
    }
    let names = localities.iter().flat_map(|one| std::iter::repeat_n(Some(one.name.clone()), one.candidates));
    let names = names.chain(std::iter::repeat(None));
    let picks: u64 = subjects.iter().fold(0, |sum, subject| sum.saturating_add(subject.picks));
    let candidates = subjects
        .into_iter()
        .zip(candidates.iter().zip(weighed))
        .zip(names)
        .map(|((subject, (candidate, weighed)), locality)| ExplainedCandidate {
            locality,
            ..explained(subject, candidate, weighed, picks, policy.draw)
        })
        .collect();
    Explanation {
        service: service.to_owned(),
        algorithm: policy.algorithm,
        lambda_per_ms: policy.lambda_per_ms,
        epsilon: policy.epsilon,
        draw: policy.draw,
        policy: policy.source.clone(),
        as_known_by: as_known_by.to_owned(),
        panic: false,
        fleet_rate: None,
        localities,
        requirements: Vec::new(),
        candidates,
        excluded,
    }
}

fn explained(subject: Subject, candidate: &Candidate, weighed: Weighed, picks: u64, draw: Draw) -> ExplainedCandidate {
    let finite = |value: f64| if value.is_finite() { value } else { 0.0 };
    ExplainedCandidate {
        instance: subject.instance,
        node: subject.node,
        zone: subject.zone,
        locality: None,
        capacity: subject.capacity.requests(),
        inflight: finite(subject.inflight),
        load: candidate.load_used(),
        distance_ms: candidate.distance_used_ms(),
        distance_source: subject.distance_source,
        weight: weighed.weight,
        probability: weighed.probability,
        slow_start: subject.slow_start,
        latency_ms: subject.latency_ms.map(finite),
        observed_share: share(subject.picks, picks),
        picks: subject.picks,
        expected_picks: match draw {
            Draw::Single => Some(finite(subject.expected_picks)),
            Draw::BestOfTwo => None,
        },
        state: subject.state,
        capacity_source: subject.capacity_source,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share for people; picks beyond 2^53 lose what nobody reads")]
fn share(picks: u64, of: u64) -> Option<f64> {
    (of > 0).then(|| picks as f64 / of as f64)
}

#[cfg(test)]
mod tests;
