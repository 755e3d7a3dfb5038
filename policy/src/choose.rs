//! From weighed candidates to one: a single draw, or the better of two.

use std::cmp::Ordering;

use crate::{
    backend::Draw,
    draw::{draw, draw_excluding},
    weigh::{Capacity, DISTANCE_MS_MAX, LOAD_MAX, Weighed, bounded},
};

/// Latencies below this count as this: what differs by less is not felt, and on a machine at work it is chance.
const LEAST_MS: f64 = 2.0;
/// How many times another's cost is no difference while there is room at both.
const ALIKE: f64 = 2.0;
/// How full a place may be that counts as having room.
const ROOM: f64 = 0.5;

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The index of the candidate that gets the request.
    pub chosen: usize,
    /// The index of the one that was drawn beside it and would have cost more; `None` where only one was drawn.
    pub passed_over: Option<usize>,
}

/// What is known of a candidate that was drawn, for the comparison with another one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contender {
    /// C: concurrent requests it can work on.
    pub capacity: Capacity,
    /// Estimated requests in flight there, of everybody; see [`crate::inflight_estimate`].
    pub inflight: f64,
    /// This node's own among them.
    pub own_inflight: u32,
    /// d: round trip in milliseconds, below which no answer can come.
    pub distance_ms: f64,
    /// How long an answer takes, by [`crate::PeakEwma`]; `None` where none has come yet.
    pub latency_ms: Option<f64>,
}

impl Contender {
    /// Whether this one costs less than, as much as, or more than `other`.
    ///
    /// The cost is latency * max(1, (inflight + 1) / C): how long an answer takes, by how often the new request finds the
    /// place full. The latency is never below the round trip, to which an estimate decays that nothing renews, nor below
    /// two milliseconds, which nobody feels.
    ///
    /// Where both would be at most half full with the new request, and neither costs more than twice the other, they cost
    /// the same: places with nothing to do share what comes by P, and one slower answer does not leave one of them out.
    ///
    /// A candidate without a known latency is taken to be as quick as the other one, so that its queue decides: it is not
    /// left out for want of an answer that only a request can bring. Until the first answer its cost is multiplied by 1 +
    /// this node's own requests there, and where both cost the same it goes first while there are none: it is asked one
    /// request at a time, unless the other is that much fuller. Where neither latency is known the queues alone decide.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Ordering {
        match (self.latency_ms, other.latency_ms) {
            (Some(mine), Some(theirs)) => self.compare_known(mine, other, theirs),
            (None, None) => self.queue().total_cmp(&other.queue()),
            (None, Some(theirs)) => self.compare_unknown(other, theirs),
            (Some(mine), None) => other.compare_unknown(self, mine).reverse(),
        }
    }

    fn compare_known(&self, latency_ms: f64, other: &Self, other_ms: f64) -> Ordering {
        let (mine, theirs) = (self.cost(latency_ms), other.cost(other_ms));
        let are_alike = mine <= theirs * ALIKE && theirs <= mine * ALIKE;
        if are_alike && self.fill() <= ROOM && other.fill() <= ROOM { Ordering::Equal } else { mine.total_cmp(&theirs) }
    }

    fn compare_unknown(&self, known: &Self, latency_ms: f64) -> Ordering {
        let latency_ms = bounded(latency_ms, DISTANCE_MS_MAX).max(known.round_trip());
        let trial = 1.0 + f64::from(self.own_inflight);
        let order = (self.cost(latency_ms) * trial).total_cmp(&known.cost(latency_ms));
        if order == Ordering::Equal && self.own_inflight == 0 { Ordering::Less } else { order }
    }

    fn cost(&self, latency_ms: f64) -> f64 {
        bounded(latency_ms, DISTANCE_MS_MAX).max(self.round_trip()).max(LEAST_MS) * self.queue()
    }

    /// How many rounds of full capacity the new request makes it, 1 while there is room.
    fn queue(&self) -> f64 {
        self.fill().clamp(1.0, LOAD_MAX)
    }

    /// How full the new request makes it, 1 for as many requests as its capacity.
    fn fill(&self) -> f64 {
        (bounded(self.inflight, LOAD_MAX) + 1.0) / self.capacity.requests()
    }

    fn round_trip(&self) -> f64 {
        bounded(self.distance_ms, DISTANCE_MS_MAX)
    }
}

/// Takes one candidate as `draw` says, by chances uniform in [0, 1); [`Draw::Single`] uses the first of them alone.
/// `None` where there is no candidate.
///
/// [`Draw::BestOfTwo`] draws a second one by P among the others and takes the cheaper by [`Contender::compare`], the
/// first where both cost the same. A candidate whose probability is zero is not drawn beside another. `contender` tells
/// what is known of a candidate by its index; it is asked for the two that were drawn only. Nothing is allocated.
#[must_use]
pub fn choose(
    draw_by: Draw,
    weighed: &[Weighed],
    chances: [f64; 2],
    contender: impl Fn(usize) -> Option<Contender>,
) -> Option<Choice> {
    let [first_chance, second_chance] = chances;
    let first = draw(weighed, first_chance)?;
    let alone = Choice { chosen: first, passed_over: None };
    if draw_by == Draw::Single {
        return Some(alone);
    }
    let can_be_drawn = |index: &usize| weighed.get(*index).is_some_and(|weighed| weighed.probability > 0.0);
    let Some(second) = draw_excluding(weighed, &[first], second_chance).filter(can_be_drawn) else {
        return Some(alone);
    };
    let (Some(one), Some(other)) = (contender(first), contender(second)) else { return Some(alone) };
    Some(match other.compare(&one) {
        Ordering::Less => Choice { chosen: second, passed_over: Some(first) },
        Ordering::Equal | Ordering::Greater => Choice { chosen: first, passed_over: Some(second) },
    })
}

#[cfg(test)]
mod tests;
