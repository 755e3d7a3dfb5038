//! Network coordinates: the round trip to a peer that was never probed.
//!
//! Vivaldi (Dabek, Cox, Kaashoek, Morris, SIGCOMM 2004) with a height for the access link, and with what practice
//! added: a median filter per peer (Ledlie, Gardner, Seltzer, NSDI 2007), an adjustment term that takes up what no
//! Euclidean space can hold, and a faint gravity towards the origin so that the cloud does not drift. The constants are
//! those that Serf runs with.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::rtt::{RTT_MAX, median};

/// Where a node is in the space of round trips. All figures are seconds, but for `error`, which is relative.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Coord {
    /// Position.
    pub vec: [f32; 8],
    /// What every path to this node pays, whatever the direction: its access link.
    pub height: f32,
    /// Mean of what the space could not explain; may be negative.
    pub adjustment: f32,
    /// How far off estimates with this coordinate are, as a share; 1.5 when nothing is known.
    pub error: f32,
}

impl Coord {
    /// Bytes of the wire form.
    pub const LEN: usize = 44;

    /// The coordinate of a node that knows nothing yet.
    pub const fn origin() -> Self {
        Self { vec: [0.0; 8], height: HEIGHT_MIN, adjustment: 0.0, error: ERROR_MAX }
    }

    /// Whether every part is finite and within ten seconds of the origin, and height and error are not negative.
    pub fn is_valid(&self) -> bool {
        let parts = self.vec.iter().chain([&self.height, &self.adjustment]);
        parts.into_iter().all(|part| part.is_finite() && part.abs() <= COORD_MAX)
            && self.height >= 0.0
            && self.error.is_finite()
            && (0.0..=ERROR_MAX).contains(&self.error)
    }

    /// The estimated round trip between two nodes; never zero or negative.
    pub fn distance(&self, other: &Self) -> Duration {
        let raw = self.raw_distance(other);
        let adjusted = raw + f64::from(self.adjustment) + f64::from(other.adjustment);
        let seconds = if adjusted > 0.0 { adjusted } else { raw };
        Duration::try_from_secs_f64(seconds).unwrap_or(RTT_MAX).min(RTT_MAX * 4)
    }

    /// Whether `self` is worth publishing when peers know `published`: it moved by over 5 % of its own scale, or its
    /// error fell by a tenth (application-level coordinates, Ledlie and Seltzer).
    pub fn differs_from(&self, published: &Self) -> bool {
        let scale = norm(&self.wide()).max(f64::from(self.height)).max(f64::from(HEIGHT_MIN));
        let moved = norm(&difference(self, published)) + f64::from((self.height - published.height).abs());
        moved > 0.05 * scale || self.error < published.error * 0.9
    }

    /// The wire form: eight positions, height, adjustment, error, each a big-endian `f32`.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let parts = self.vec.iter().chain([&self.height, &self.adjustment, &self.error]);
        for (to, part) in bytes.chunks_exact_mut(4).zip(parts) {
            to.copy_from_slice(&part.to_be_bytes());
        }
        bytes
    }

    /// Reads the wire form; `None` when a part is not finite or out of range.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let mut parts = bytes.as_chunks::<4>().0.iter().map(|part| f32::from_be_bytes(*part));
        let mut vec = [0.0; 8];
        for to in &mut vec {
            *to = parts.next()?;
        }
        let coord = Self { vec, height: parts.next()?, adjustment: parts.next()?, error: parts.next()? };
        coord.is_valid().then_some(coord)
    }

    fn wide(&self) -> [f64; 8] {
        self.vec.map(f64::from)
    }

    /// Distance without the adjustment terms, in seconds.
    fn raw_distance(&self, other: &Self) -> f64 {
        norm(&difference(self, other)) + f64::from(self.height) + f64::from(other.height)
    }

    /// Pushes `self` away from `other` by `force` seconds, or pulls it when negative.
    #[expect(clippy::cast_possible_truncation, reason = "coordinates travel as f32; microseconds survive that")]
    fn push(&mut self, force: f64, other: &Self, chance: &mut impl Rng) {
        let towards = difference(self, other);
        let length = norm(&towards);
        let unit = if length > ZERO { towards.map(|part| part / length) } else { random_unit(chance) };
        for (to, part) in self.vec.iter_mut().zip(unit) {
            *to = (f64::from(*to) + part * force) as f32;
        }
        if length > ZERO {
            let heights = f64::from(self.height) + f64::from(other.height);
            self.height = (f64::from(self.height) + heights * force / length).max(f64::from(HEIGHT_MIN)) as f32;
        }
    }
}

impl Default for Coord {
    fn default() -> Self {
        Self::origin()
    }
}

/// Why an observation changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rejected {
    /// The peer's coordinate has a part that is not finite or lies over ten seconds out.
    #[error("the peer's coordinate is not finite or too far out")]
    BadCoordinate,
    /// Round trips over ten seconds are stopped machines.
    #[error("a round trip of over 10 s")]
    TooLong,
}

/// Keeps one node's own coordinate.
#[derive(Debug, Clone)]
pub struct Vivaldi {
    coord: Coord,
    /// What the space failed to explain in the last observations, seconds; a ring.
    adjustments: [f64; ADJUSTMENT_WINDOW],
    adjustment_at: usize,
    /// The last three round trips of each peer. At most [`PEERS_MAX`]; past that the peer seen longest ago is forgotten.
    filters: BTreeMap<NodeId, Filter>,
    observations: u64,
    resets: u64,
}

impl Vivaldi {
    /// Starts at the origin, or at the coordinate saved in an earlier life.
    pub fn new(saved: Option<Coord>) -> Self {
        Self {
            coord: saved.filter(Coord::is_valid).unwrap_or_default(),
            adjustments: [0.0; ADJUSTMENT_WINDOW],
            adjustment_at: 0,
            filters: BTreeMap::new(),
            observations: 0,
            resets: 0,
        }
    }

    /// A round trip to `peer`, who says it is at `other`.
    ///
    /// # Errors
    /// [`Rejected`] when the peer's coordinate or the round trip cannot be true; nothing changes.
    pub fn observe(
        &mut self,
        peer: NodeId,
        rtt: Duration,
        other: &Coord,
        chance: &mut impl Rng,
    ) -> Result<(), Rejected> {
        if !other.is_valid() {
            return Err(Rejected::BadCoordinate);
        }
        if rtt > RTT_MAX {
            return Err(Rejected::TooLong);
        }
        let seconds = self.filtered(peer, rtt).as_secs_f64().max(ZERO);
        self.move_by(other, seconds, chance);
        self.adjust(other, seconds);
        self.pull_to_origin(chance);
        if !self.coord.is_valid() {
            self.coord = Coord::origin();
            self.resets += 1;
        }
        Ok(())
    }

    /// Where this node is.
    pub const fn coord(&self) -> Coord {
        self.coord
    }

    /// The estimated round trip from here to `other`.
    pub fn distance(&self, other: &Coord) -> Duration {
        self.coord.distance(other)
    }

    /// Drops what is remembered of a peer's samples.
    pub fn forget(&mut self, peer: &NodeId) {
        self.filters.remove(peer);
    }

    /// How often the coordinate left the valid range and began again.
    pub const fn resets(&self) -> u64 {
        self.resets
    }

    fn filtered(&mut self, peer: NodeId, rtt: Duration) -> Duration {
        self.observations += 1;
        if self.filters.len() >= PEERS_MAX && !self.filters.contains_key(&peer) {
            let stalest = self.filters.iter().min_by_key(|(_, filter)| filter.last_at).map(|(peer, _)| *peer);
            stalest.and_then(|peer| self.filters.remove(&peer));
        }
        let filter = self.filters.entry(peer).or_insert(Filter { recent: [rtt; 3], last_at: 0 });
        let [_, older, newer] = filter.recent;
        *filter = Filter { recent: [older, newer, rtt], last_at: self.observations };
        median(filter.recent)
    }

    #[expect(clippy::cast_possible_truncation, reason = "a share between 0 and 1.5 needs no more than f32 holds")]
    fn move_by(&mut self, other: &Coord, seconds: f64, chance: &mut impl Rng) {
        let distance = self.coord.distance(other).as_secs_f64();
        let wrongness = (distance - seconds).abs() / seconds;
        let error = f64::from(self.coord.error);
        let weight = error / (error + f64::from(other.error)).max(ZERO);
        let error = CE * weight * wrongness + error * (1.0 - CE * weight);
        self.coord.error = error.min(f64::from(ERROR_MAX)) as f32;
        self.coord.push(CC * weight * (seconds - distance), other, chance);
    }

    #[expect(clippy::cast_possible_truncation, reason = "coordinates travel as f32; microseconds survive that")]
    #[expect(clippy::cast_precision_loss, reason = "the window has 20 places")]
    fn adjust(&mut self, other: &Coord, seconds: f64) {
        if let Some(slot) = self.adjustments.get_mut(self.adjustment_at) {
            *slot = seconds - self.coord.raw_distance(other);
        }
        self.adjustment_at = (self.adjustment_at + 1) % ADJUSTMENT_WINDOW;
        self.coord.adjustment = (self.adjustments.iter().sum::<f64>() / (2.0 * ADJUSTMENT_WINDOW as f64)) as f32;
    }

    fn pull_to_origin(&mut self, chance: &mut impl Rng) {
        let origin = Coord::origin();
        let distance = origin.distance(&self.coord).as_secs_f64();
        self.coord.push(-(distance / GRAVITY_RHO).powi(2), &origin, chance);
    }
}

impl Default for Vivaldi {
    fn default() -> Self {
        Self::new(None)
    }
}

#[derive(Debug, Clone)]
struct Filter {
    recent: [Duration; 3],
    last_at: u64,
}

fn difference(a: &Coord, b: &Coord) -> [f64; 8] {
    let mut result = a.wide();
    for (to, part) in result.iter_mut().zip(b.wide()) {
        *to -= part;
    }
    result
}

fn norm(vec: &[f64; 8]) -> f64 {
    vec.iter().map(|part| part * part).sum::<f64>().sqrt()
}

/// Two nodes in one place part in a direction left to chance, or they would stay together for ever.
fn random_unit(chance: &mut impl Rng) -> [f64; 8] {
    let vec: [f64; 8] = std::array::from_fn(|_| chance.random::<f64>() - 0.5);
    let length = norm(&vec);
    if length > ZERO {
        return vec.map(|part| part / length);
    }
    let mut east = [0.0; 8];
    if let Some(first) = east.first_mut() {
        *first = 1.0;
    }
    east
}

/// Error of a coordinate that knows nothing.
const ERROR_MAX: f32 = 1.5;
/// How much one observation changes the error, and how much it moves the coordinate.
const CE: f64 = 0.25;
const CC: f64 = 0.25;
/// Observations in the adjustment term.
const ADJUSTMENT_WINDOW: usize = 20;
/// Least height, seconds.
const HEIGHT_MIN: f32 = 10e-6;
/// Strength of the pull towards the origin: seconds at which it equals one second.
const GRAVITY_RHO: f64 = 150.0;
/// Furthest that a coordinate may lie out, seconds.
const COORD_MAX: f32 = 10.0;
/// Lengths below this have no direction, and round trips are at least this.
const ZERO: f64 = 1e-6;
/// Peers whose samples are remembered.
const PEERS_MAX: usize = 1024;

#[cfg(test)]
mod tests;
