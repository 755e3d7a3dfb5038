//! Which part of a rate that many nodes share one of them may take: max-min fair by what each of them asks for.
//!
//! Every node computes its own share from the same figures, and all shares together are the rate. Where the figures
//! differ, because news of them is on its way, who thinks too little of another takes too much: so a rise is told before it
//! is taken (see the node's `demand`).

use std::iter::repeat_n;

/// The part of a rate that is kept, evenly, for nodes that ask for little or nothing, so that each may begin something at
/// any moment.
const FLOOR_PART: f64 = 0.05;

/// What each of `nodes` may take of `limit` even where the others ask for all of it, in the unit of `limit`.
#[must_use]
pub fn floor_share(limit: f64, nodes: usize) -> f64 {
    limit * FLOOR_PART / count(nodes.max(1))
}

/// What a node that asks for `own` may take of `limit`, beside nodes that ask for `others` and `silent` ones that ask for
/// nothing. All in one unit and at least 0; what is not, counts as nothing asked.
///
/// Each is taken to ask for its [`floor_share`] at least. Where all that is asked is within the
/// limit, each may have that and an even part of what is left. Else each may have what it asks up to a level, the same for
/// all, at which the sum is the limit: max-min fairness, found by filling up (Bertsekas and Gallager, *Data Networks*, 6.5.2).
/// So whoever claims too much gets no more than the others that are not satisfied.
#[must_use]
pub fn fair_share(limit: f64, own: f64, others: &[f64], silent: usize) -> f64 {
    let nodes = others.len() + silent + 1;
    let floor = floor_share(limit, nodes);
    // The larger of something that is no number and the floor is the floor.
    let asks = |demand: f64| demand.max(floor);
    let own = asks(own);
    let all: Vec<f64> = others.iter().map(|demand| asks(*demand)).chain(repeat_n(floor, silent)).chain([own]).collect();
    let left = limit - all.iter().sum::<f64>();
    if left >= 0.0 { own + left / count(nodes) } else { own.min(level(limit, all)) }
}

/// The level up to which each of `asks` is met so that all together take `limit`, which is less than they ask for.
fn level(limit: f64, mut asks: Vec<f64>) -> f64 {
    asks.sort_by(f64::total_cmp);
    let (mut left, mut unmet) = (limit, asks.len());
    for ask in asks {
        let even = left / count(unmet);
        if ask >= even {
            return even;
        }
        left -= ask;
        unmet -= 1;
    }
    limit
}

#[expect(clippy::cast_precision_loss, reason = "a number of nodes")]
const fn count(nodes: usize) -> f64 {
    nodes as f64
}

#[cfg(test)]
mod tests;
