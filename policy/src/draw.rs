//! One candidate out of many, by its probability.

use crate::weigh::Weighed;

/// Draws the index of one candidate by P, with `u` uniform in [0, 1): a scan over the cumulated probabilities.
/// `None` where there is no candidate. A `u` outside of the interval counts as its nearer end, one that is not a number
/// as 0. A candidate whose probability is zero is drawn only where all are.
#[must_use]
pub fn draw(weighed: &[Weighed], u: f64) -> Option<usize> {
    quick(weighed, usize::MAX, unit(u)).or_else(|| scan(weighed, &[], u))
}

/// As [`draw`], leaving out the indices in `tried`: for a retry, after those have failed. The others keep their
/// proportions; where all that remain have probability zero they are equally likely. `None` where all were tried.
#[must_use]
pub fn draw_excluding(weighed: &[Weighed], tried: &[usize], u: f64) -> Option<usize> {
    let quickly = if let [tried] = tried { quick(weighed, *tried, unit(u)) } else { None };
    quickly.or_else(|| scan(weighed, tried, u))
}

/// The scan with at most one to leave out. Groups are added up before the one that holds the target is looked through,
/// because additions that wait for each other are what a scan takes its time with. `None` where the target is not found in
/// this way: by rounding, or because no probability is above zero.
fn quick(weighed: &[Weighed], left_out: usize, u: f64) -> Option<usize> {
    let (its_group, its_place) = (left_out / GROUP, left_out % GROUP);
    let share = |number: usize, group: &[Weighed]| {
        let all = || group.iter().map(|weighed| weighed.probability);
        if number == its_group {
            all().enumerate().filter(|(place, _)| *place != its_place).map(|(_, probability)| probability).sum::<f64>()
        } else {
            all().sum()
        }
    };
    let groups = || weighed.chunks(GROUP).enumerate();
    let target = u * groups().map(|(number, group)| share(number, group)).sum::<f64>();
    let mut cumulated = 0.0;
    for (number, group) in groups() {
        let after = cumulated + share(number, group);
        if target < after {
            for (index, weighed) in (number * GROUP..).zip(group) {
                if index != left_out {
                    cumulated += weighed.probability;
                    if target < cumulated {
                        return Some(index);
                    }
                }
            }
            return None;
        }
        cumulated = after;
    }
    None
}

fn scan(weighed: &[Weighed], tried: &[usize], u: f64) -> Option<usize> {
    let remaining = || weighed.iter().enumerate().filter(|(index, _)| !tried.contains(index));
    let mass: f64 = remaining().map(|(_, weighed)| weighed.probability).sum();
    let even = !(mass.is_finite() && mass > 0.0);
    let share = |weighed: &Weighed| if even { 1.0 } else { weighed.probability };
    let total: f64 = if even { remaining().map(|_| 1.0).sum() } else { mass };
    let target = unit(u) * total;
    let mut cumulated = 0.0;
    let mut last = None;
    for (index, weighed) in remaining() {
        let share = share(weighed);
        if share > 0.0 {
            cumulated += share;
            last = Some(index);
            if target < cumulated {
                return last;
            }
        }
    }
    // Rounding can leave the target at the very end; it belongs to the last candidate that can be drawn.
    last
}

/// `u` moved into [0, 1).
fn unit(u: f64) -> f64 {
    if u.is_nan() { 0.0 } else { u.clamp(0.0, BELOW_ONE) }
}

const GROUP: usize = 8;
/// The greatest number below 1.
const BELOW_ONE: f64 = 1.0 - f64::EPSILON / 2.0;

#[cfg(test)]
mod tests;
