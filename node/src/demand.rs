//! How many requests ask to begin at this node for services whose rate all nodes share: measured, told, and taken into
//! account. Pure.
//!
//! Each tick: [`Demands::observe`], then [`Demands::tell`], whose record goes out by gossip. [`Demands::share`] is the
//! own part of the rate ([`policy::fair_share`]).
//!
//! **A rise is told before it is taken.** For more than it has, a node counts of itself the least of what it told within
//! [`HOLD_ROUNDS`] rounds of gossip: all others know of a rise, and have made room, before this node takes it. What it has
//! it keeps as far as its newest word entitles it to, so that nobody makes room for others and waits with empty hands.
//! While news arrives within half of that time, all shares together never come to more than the rate.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use policy::{RateLimit, fair_share};

use crate::gossip::{ASKS_MAX, Asks, per_second};
use crate::limits::FleetShare;

/// Twice what news takes to reach a hundred nodes, see [`transport::cell::CellConfig::lan`].
pub const HOLD_ROUNDS: u32 = 3;
/// A record goes out at most this often.
pub const TELL_EVERY: Duration = Duration::from_secs(1);
/// The demand is averaged over the time of so many requests at the rate,
const AVERAGED_REQUESTS: u32 = 10;
/// but over this at least: less would be noise,
const AVERAGED_LEAST: Duration = Duration::from_millis(1500);
/// and this at most.
const AVERAGED_MOST: Duration = Duration::from_secs(60);
/// Told is so much more than is asked, so that small changes need no word.
const HEADROOM: f64 = 1.1;
/// What was told stands as long as what is asked is within it and above this part of it.
const STANDS_ABOVE: f64 = 0.75;

/// The demand for every service whose rate all nodes share.
#[derive(Debug)]
pub struct Demands {
    hold: Duration,
    services: BTreeMap<String, Demand>,
    told: Asks,
    told_at: Option<Duration>,
}

/// What is seen of one service.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Its name.
    pub service: &'a str,
    /// Requests that asked to begin since the start.
    pub asked: u64,
    /// The rate of all nodes together.
    pub limit: &'a RateLimit,
    /// What this node may always take, per second: less is not worth a word.
    pub floor: f64,
}

/// The demand for one service. What is told is in millionths of a request per second.
#[derive(Debug)]
struct Demand {
    /// The limit at most, so that a flood is forgotten as soon as anything else.
    average: f64,
    asked: u64,
    seen_at: Duration,
    /// The rate, per second; more need not be told.
    limit: f64,
    /// What others should be told: 0 for next to nothing.
    wanted: u64,
    /// What was told and when, oldest first; never empty. All of it others may still go by.
    told: VecDeque<(Duration, u64)>,
    /// What this node takes.
    share: f64,
}

impl Demands {
    /// Nothing asked yet. `gossip_every` is the time of a round of gossip.
    #[must_use]
    pub const fn new(gossip_every: Duration) -> Self {
        let hold = gossip_every.saturating_mul(HOLD_ROUNDS);
        Self { hold, services: BTreeMap::new(), told: Asks { services: Vec::new() }, told_at: None }
    }

    /// Takes what is seen at `now` of every service whose rate is shared; the others are forgotten.
    pub fn observe<'a>(&mut self, now: Duration, seen: impl Iterator<Item = Seen<'a>>) {
        let mut before = std::mem::take(&mut self.services);
        for one in seen {
            let known = before.remove_entry(one.service);
            let (name, mut demand) = known.unwrap_or_else(|| (one.service.to_owned(), Demand::new(&one, now)));
            demand.forget_replaced(self.hold, now);
            demand.observe(&one, now);
            self.services.insert(name, demand);
        }
    }

    /// What is to be told to the other nodes now; `None` where there is no news, or too soon after the last.
    ///
    /// Of more than [`ASKS_MAX`] services those are told that ask for the largest part of their rate. Of the others this
    /// node takes as little as one that asks for nothing.
    pub fn tell(&mut self, now: Duration) -> Option<Asks> {
        if self.told_at.is_some_and(|at| now.saturating_sub(at) < TELL_EVERY) {
            return None;
        }
        let mut asking: Vec<(&String, &Demand)> = self.services.iter().filter(|(_, one)| one.wanted > 0).collect();
        asking.sort_by(|(_, left), (_, right)| right.part().total_cmp(&left.part()));
        asking.truncate(ASKS_MAX);
        let mut services: Vec<(String, u64)> =
            asking.into_iter().map(|(name, one)| (name.clone(), one.wanted)).collect();
        services.sort_unstable();
        let next = Asks { services };
        for (name, demand) in &mut self.services {
            let told = next.services.iter().find(|(told, _)| told == name);
            demand.tell(told.map_or(0, |(_, millionths)| *millionths), now);
        }
        if next == self.told {
            return None;
        }
        self.told_at = Some(now);
        self.told.clone_from(&next);
        Some(next)
    }

    /// What this node may take of `limit` from now on, beside nodes that are asked for `others`, per second, and `silent`
    /// ones that told nothing.
    pub fn share(&mut self, service: &str, limit: &RateLimit, others: &[f64], silent: usize) -> FleetShare {
        let entitled = |own: f64| fair_share(limit.per_second(), own, others, silent);
        let demand = self.services.get_mut(service);
        let (average, newest) = demand.as_ref().map_or((0.0, 0.0), |demand| (demand.average, demand.newest()));
        let share = match demand {
            Some(demand) => demand.take(entitled),
            None => entitled(0.0),
        };
        let asking = others.iter().chain([&newest]).filter(|asked| **asked > 0.0).count();
        FleetShare::new(limit, share, average, others.len() + silent + 1, asking)
    }
}

impl Demand {
    fn new(seen: &Seen<'_>, now: Duration) -> Self {
        let (limit, told) = (seen.limit.per_second(), VecDeque::from([(now, 0)]));
        Self { average: 0.0, asked: seen.asked, seen_at: now, limit, wanted: 0, told, share: 0.0 }
    }

    fn observe(&mut self, seen: &Seen<'_>, now: Duration) {
        let asked = seen.asked.saturating_sub(self.asked);
        let passed = now.saturating_sub(self.seen_at);
        self.limit = seen.limit.per_second();
        self.average = averaged(self.average, asked, passed, averaged_over(seen.limit)).min(self.limit);
        (self.asked, self.seen_at) = (seen.asked, now);
        self.wanted = self.wanted(seen.floor);
    }

    /// What was told as long as it is about right, else what is asked with some room, to the rate at most.
    fn wanted(&self, floor: f64) -> u64 {
        let told = self.told.back().map_or(0, |(_, told)| *told);
        let most = millionths(self.limit);
        let stands = per_second(told) * STANDS_ABOVE..=per_second(told);
        if told > 0 && told <= most && stands.contains(&self.average) {
            return told;
        }
        let wanted = self.average * HEADROOM;
        if wanted > floor { millionths(wanted).min(most) } else { 0 }
    }

    /// The part of the rate that is asked for.
    fn part(&self) -> f64 {
        per_second(self.wanted) / self.limit
    }

    fn tell(&mut self, told: u64, now: Duration) {
        if self.told.back().is_none_or(|(_, before)| *before != told) {
            self.told.push_back((now, told));
        }
    }

    /// The least that any other node may go by.
    fn held(&self) -> f64 {
        per_second(self.told.iter().map(|(_, told)| *told).min().unwrap_or(0))
    }

    fn newest(&self) -> f64 {
        per_second(self.told.back().map_or(0, |(_, told)| *told))
    }

    /// Takes what a node is entitled to by what it asks for.
    fn take(&mut self, entitled: impl Fn(f64) -> f64) -> f64 {
        self.share = entitled(self.held()).max(self.share.min(entitled(self.newest())));
        self.share
    }

    /// Forgets what was replaced so long ago that nobody goes by it.
    fn forget_replaced(&mut self, hold: Duration, now: Duration) {
        while self.told.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= hold) {
            self.told.pop_front();
        }
    }
}

/// The average after `asked` more requests in the time `passed`: exponentially weighted, with the time constant `over`.
fn averaged(average: f64, asked: u64, passed: Duration, over: Duration) -> f64 {
    if passed.is_zero() {
        return average;
    }
    #[expect(clippy::cast_precision_loss, reason = "requests of one tick")]
    let rate = asked as f64 / passed.as_secs_f64();
    let weight = -(-passed.as_secs_f64() / over.as_secs_f64()).exp_m1();
    average + (rate - average) * weight
}

/// The time constant of the average: that of some requests at the rate.
fn averaged_over(limit: &RateLimit) -> Duration {
    let each = limit.interval / limit.requests.max(1);
    each.saturating_mul(AVERAGED_REQUESTS).clamp(AVERAGED_LEAST, AVERAGED_MOST)
}

/// Rounded up.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float becomes the nearest whole number")]
fn millionths(per_second: f64) -> u64 {
    (per_second * 1e6).ceil() as u64
}

#[cfg(test)]
mod tests;
