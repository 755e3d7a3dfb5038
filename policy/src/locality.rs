//! Which part of a service's requests each locality gets, before anything is weighed within one.
//!
//! Localities are what a policy tells apart: those of `distribute`, each with its percentage, or tiers, of which the
//! nearest comes first. How much of its part one gets depends on how many of its instances are sound:
//!
//! available = min(1, sound / known / threshold)
//!
//! With the default threshold of 1 / 1.4 this is Envoy's overprovisioning factor of 1.4: a locality spills when less than
//! 71.4 % of its instances are sound. Percentages are multiplied by it and divided by their sum, as in Envoy's locality
//! weighted load balancing; tiers fill up one after the other, as Envoy's priorities do.

use crate::{
    backend::{BackendPolicy, Draw},
    choose::{Choice, Contender, choose},
    scope::Place,
    weigh::{Candidate, Weighed, weigh},
};

/// A locality keeps all of its part while this share of its instances is sound, unless a policy says otherwise: one by
/// Envoy's overprovisioning factor.
pub const FAILOVER_THRESHOLD_DEFAULT: f64 = 1.0 / 1.4;

/// A place as policy names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Locality {
    /// `*`: every place.
    Any,
    /// `REGION/*`: every place of a region.
    Region(String),
    /// `REGION/ZONE`.
    Zone(String, String),
}

impl Locality {
    /// Whether a node in `zone` of `region` is in it.
    #[must_use]
    pub fn covers(&self, region: &str, zone: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Region(mine) => mine == region,
            Self::Zone(mine, its) => mine == region && its == zone,
        }
    }

    /// The greater, the fewer places it covers.
    const fn specificity(&self) -> u8 {
        match self {
            Self::Any => 0,
            Self::Region(_) => 1,
            Self::Zone(..) => 2,
        }
    }
}

impl std::fmt::Display for Locality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Region(region) => write!(f, "{region}/*"),
            Self::Zone(region, zone) => write!(f, "{region}/{zone}"),
        }
    }
}

/// How the requests of some nodes spread over localities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// The nodes that send them.
    pub from: Locality,
    /// Where they go, in percent: each from 1, 100 together.
    pub to: Vec<(Locality, u32)>,
}

/// How near an instance is, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// In the zone of the node that decides.
    Zone,
    /// In its region.
    Region,
    /// Anywhere.
    Any,
}

impl Tier {
    const fn name(self) -> &'static str {
        match self {
            Self::Zone => "own zone",
            Self::Region => "own region",
            Self::Any => "anywhere",
        }
    }

    /// A node without a zone has no own zone, one without a region no own region.
    fn covers(self, here: &Place, region: &str, zone: &str) -> bool {
        match self {
            Self::Zone => !here.zone.is_empty() && here.zone == zone && here.region == region,
            Self::Region => !here.region.is_empty() && here.region == region,
            Self::Any => true,
        }
    }
}

/// What policy says of localities.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalityPolicy {
    /// In the order of the document. Of those that are `from` the deciding node the most specific counts.
    pub distribute: Vec<Distribution>,
    /// Nearest first; `None` where no document says. [`Tier::Any`] is the last in any case.
    pub tiers: Option<Vec<Tier>>,
    /// A locality keeps all of its part while this share of its instances is sound; above 0, at most 1.
    pub failover_threshold: f64,
}

impl LocalityPolicy {
    /// The localities that a node `here` tells apart; `None` where policy says nothing to it.
    #[must_use]
    pub fn localities(&self, here: &Place) -> Option<Localities> {
        let from_here = |one: &&Distribution| one.from.covers(&here.region, &here.zone);
        // Of equals the first: `max_by_key` gives the last.
        let split = self.distribute.iter().rev().filter(from_here).max_by_key(|one| one.from.specificity());
        if split.is_none() && self.tiers.is_none() {
            return None;
        }
        let split = split.map_or_else(Vec::new, |split| split.to.clone());
        let mut tiers = self.tiers.clone().unwrap_or_else(|| vec![Tier::Zone, Tier::Region]);
        tiers.retain(|tier| *tier != Tier::Any);
        tiers.push(Tier::Any);
        Some(Localities { split, tiers, here: here.clone(), threshold: self.failover_threshold })
    }
}

/// The localities that one node tells apart for one service: those of a split first, then the tiers, for the instances
/// that are in none of those.
#[derive(Debug, Clone, PartialEq)]
pub struct Localities {
    split: Vec<(Locality, u32)>,
    /// Ends with [`Tier::Any`].
    tiers: Vec<Tier>,
    here: Place,
    threshold: f64,
}

/// The instances of one locality.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Health {
    /// Those that can be drawn; one whose owner is suspected counts for a part.
    pub sound: f64,
    /// All that should be there.
    pub known: f64,
}

impl Localities {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.split.len() + self.tiers.len()
    }

    /// The one that an instance in `zone` of `region` belongs to: the most specific of the split, else the nearest tier.
    #[must_use]
    pub fn of(&self, region: &str, zone: &str) -> usize {
        let covering = self.split.iter().enumerate().filter(|(_, (locality, _))| locality.covers(region, zone));
        if let Some((at, _)) = covering.max_by_key(|(_, (locality, _))| locality.specificity()) {
            return at;
        }
        let tier = self.tiers.iter().position(|tier| tier.covers(&self.here, region, zone));
        self.split.len() + tier.unwrap_or(self.tiers.len().saturating_sub(1))
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self, at: usize) -> String {
        match self.split.get(at) {
            Some((locality, _)) => locality.to_string(),
            None => self.tiers.get(at.saturating_sub(self.split.len())).map_or("", |tier| tier.name()).to_owned(),
        }
    }

    /// What it gets of the requests while all is well, in percent; `None` for a tier.
    #[must_use]
    pub fn percent(&self, at: usize) -> Option<u32> {
        self.split.get(at).map(|(_, percent)| *percent)
    }

    /// The share of the requests that each gets, 1 together, by the `health` of each; all zero where nobody is sound.
    ///
    /// A split spills among its own localities; the tiers get something only once none of those has a sound instance.
    pub fn shares(&self, health: &[Health], out: &mut Vec<f64>) {
        out.clear();
        out.extend(health.iter().map(|health| self.available(*health)));
        let (split, tiers) = out.split_at_mut(self.split.len().min(health.len()));
        for (share, (_, percent)) in split.iter_mut().zip(&self.split) {
            *share *= f64::from(*percent);
        }
        let mass: f64 = split.iter().sum();
        if mass > 0.0 {
            split.iter_mut().for_each(|share| *share /= mass);
            tiers.fill(0.0);
            return;
        }
        let whole = tiers.iter().sum::<f64>().min(1.0);
        let mut rest = 1.0_f64;
        for share in tiers.iter_mut().filter(|share| **share > 0.0) {
            *share = (*share / whole).min(rest);
            rest -= *share;
        }
    }

    fn available(&self, health: Health) -> f64 {
        if health.known > 0.0 { (health.sound / health.known / self.threshold).min(1.0) } else { 0.0 }
    }
}

/// A locality's part in one decision: so many candidates, which stand together, and the share of requests they get.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// How many candidates.
    pub len: usize,
    /// What they get together, within 0 and 1.
    pub share: f64,
}

/// As [`weigh`], with P within each part times the part's share. The parts cover `candidates` in their order.
pub fn weigh_parts(policy: &BackendPolicy, candidates: &[Candidate], parts: &[Part], out: &mut Vec<Weighed>) {
    out.clear();
    let mut within = Vec::new();
    let mut rest = candidates;
    for part in parts {
        let (these, others) = rest.split_at(part.len.min(rest.len()));
        rest = others;
        weigh(policy, these, &mut within);
        out.extend(within.iter().map(|one| Weighed { weight: one.weight, probability: one.probability * part.share }));
    }
}

/// As [`choose`], within one part, which the first chance draws by the shares: a second candidate is of the same part, so
/// that the shares hold whatever the draw.
#[must_use]
pub fn choose_within(
    draw_by: Draw,
    weighed: &[Weighed],
    parts: &[Part],
    chances: [f64; 2],
    contender: impl Fn(usize) -> Option<Contender>,
) -> Option<Choice> {
    let [first_chance, second_chance] = chances;
    let mut start = 0;
    let mut before = 0.0;
    let mut drawn = None;
    for part in parts.iter().filter(|part| part.len > 0) {
        if part.share > 0.0 {
            // What is left of the chance once it has drawn a part is as good as a fresh one.
            drawn = Some((start, part.len, (first_chance - before) / part.share));
            before += part.share;
            if first_chance < before {
                break;
            }
        }
        start += part.len;
    }
    let (start, len, chance) = drawn?;
    let those = weighed.get(start..start.checked_add(len)?)?;
    let choice = choose(draw_by, those, [chance, second_chance], |at| contender(start + at))?;
    Some(Choice { chosen: start + choice.chosen, passed_over: choice.passed_over.map(|at| start + at) })
}

#[cfg(test)]
mod tests;
