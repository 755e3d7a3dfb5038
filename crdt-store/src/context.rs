//! The causal context: which writes a replica has seen, also with gaps between them.

mod growth;

use std::collections::BTreeMap;

use crdts::{CmRDT, VClock};
use serde::{Deserialize, Serialize};

use crate::{
    codec::bounded,
    id::{Dot, Incarnation, head, sha256},
};

/// A version vector over store lives; `crdts`' own.
pub type Clock = VClock<Incarnation>;

/// Counters stay below this, so that sums and steps never overflow.
pub(crate) const COUNTER_END: u64 = 1 << 63;
/// Origins a context may name.
pub const ORIGINS_MAX: usize = 4_096;
/// Ranges of dots beyond the contiguous part.
/// At 34 bytes each they leave a context well within one frame.
pub const CLOUD_RANGES_MAX: usize = 16_384;

/// Every dot ever seen: per origin a contiguous part from 1, and a cloud of ranges beyond it.
///
/// Invariant: ranges neither touch each other nor the contiguous part, so equal sets have equal contents.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Context {
    clock: Clock,
    cloud: BTreeMap<Incarnation, BTreeMap<u64, u64>>,
}

impl Context {
    /// A context that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// True where this dot was seen.
    #[must_use]
    pub fn contains(&self, dot: Dot) -> bool {
        if dot.counter == 0 {
            return false;
        }
        if dot.counter <= self.clock.get(&dot.origin) {
            return true;
        }
        let Some(ranges) = self.cloud.get(&dot.origin) else { return false };
        ranges.range(..=dot.counter).next_back().is_some_and(|(_, end)| *end >= dot.counter)
    }

    /// True where everything that `other` has seen was seen here as well.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        // The invariant leaves two ways for a range to be covered: by the contiguous part, or by one range.
        let clocks = other.clock.dots.iter().all(|(origin, counter)| self.clock.get(origin) >= *counter);
        let holds = |origin: &Incarnation, start: u64, end: u64| {
            self.clock.get(origin) >= end
                || self.cloud.get(origin).is_some_and(|ranges| {
                    ranges.range(..=start).next_back().is_some_and(|(_, mine_end)| *mine_end >= end)
                })
        };
        clocks && other.ranges().all(|(origin, start, end)| holds(origin, start, end))
    }

    /// Adds one dot; a counter of 0 or from 2^63 on is ignored.
    pub fn insert(&mut self, dot: Dot) {
        self.insert_range(dot.origin, dot.counter, dot.counter);
    }

    /// Adds everything that `other` has seen.
    pub fn merge(&mut self, other: &Self) {
        for (origin, counter) in &other.clock.dots {
            self.insert_range(*origin, 1, *counter);
        }
        for (origin, start, end) in other.ranges() {
            self.insert_range(*origin, start, end);
        }
    }

    /// The contiguous part: of each origin all dots from 1 up to the counter were seen.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The highest counter seen of an origin, gaps or not; 0 for none.
    #[must_use]
    pub fn highest(&self, origin: &Incarnation) -> u64 {
        let cloud = self.cloud.get(origin).and_then(|ranges| ranges.values().next_back()).copied();
        cloud.unwrap_or_else(|| self.clock.get(origin))
    }

    /// All origins seen, each once, in order.
    pub fn origins(&self) -> impl Iterator<Item = &Incarnation> {
        self.clock.dots.keys().chain(self.cloud.keys().filter(|origin| !self.clock.dots.contains_key(origin)))
    }

    /// How many origins were seen.
    #[must_use]
    pub fn origin_count(&self) -> usize {
        self.origins().count()
    }

    /// How many ranges lie beyond the contiguous parts; 0 means no gap.
    #[must_use]
    pub fn range_count(&self) -> usize {
        self.cloud.values().map(BTreeMap::len).sum()
    }

    /// Equal contexts have equal hashes; gossiped to find out whether a conversation is worth while.
    #[must_use]
    pub fn hash(&self) -> [u8; 8] {
        let mut bytes = b"marram-context".to_vec();
        for (origin, counter) in &self.clock.dots {
            bytes.extend_from_slice(origin.as_bytes());
            bytes.extend_from_slice(&counter.to_be_bytes());
        }
        bytes.push(0xff);
        for (origin, start, end) in self.ranges() {
            bytes.extend_from_slice(origin.as_bytes());
            bytes.extend_from_slice(&start.to_be_bytes());
            bytes.extend_from_slice(&end.to_be_bytes());
        }
        head(&sha256(&[&bytes]))
    }

    fn ranges(&self) -> impl Iterator<Item = (&Incarnation, u64, u64)> {
        self.cloud.iter().flat_map(|(origin, ranges)| ranges.iter().map(move |(start, end)| (origin, *start, *end)))
    }

    /// Adds the dots `start..=end` of one origin and restores the invariant.
    fn insert_range(&mut self, origin: Incarnation, start: u64, end: u64) {
        if start == 0 || end < start || end >= COUNTER_END {
            return;
        }
        let seen = self.clock.get(&origin);
        if start > seen + 1 {
            insert_between(self.cloud.entry(origin).or_default(), start, end);
            return;
        }
        self.clock.apply(crdts::Dot::new(origin, end));
        let Some(ranges) = self.cloud.get_mut(&origin) else { return };
        let mut seen = seen.max(end);
        while let Some(first) = ranges.first_entry().filter(|first| *first.key() <= seen + 1) {
            seen = seen.max(first.remove());
        }
        self.clock.apply(crdts::Dot::new(origin, seen));
        if ranges.is_empty() {
            self.cloud.remove(&origin);
        }
    }
}

/// Adds `start..=end` to disjoint, non-touching ranges.
fn insert_between(ranges: &mut BTreeMap<u64, u64>, start: u64, end: u64) {
    let (mut start, mut end) = (start, end);
    while let Some((other_start, other_end)) =
        ranges.range(..=end + 1).next_back().map(|(s, e)| (*s, *e)).filter(|(_, e)| *e + 1 >= start)
    {
        ranges.remove(&other_start);
        start = start.min(other_start);
        end = end.max(other_end);
    }
    ranges.insert(start, end);
}

/// What of a context travels and is stored: sorted, bounded, checked when read back.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ContextImage {
    #[serde(deserialize_with = "bounded::<_, _, ORIGINS_MAX>")]
    clock: Vec<(Incarnation, u64)>,
    #[serde(deserialize_with = "bounded::<_, _, CLOUD_RANGES_MAX>")]
    cloud: Vec<(Incarnation, u64, u64)>,
}

/// The image is not one that an honest replica produces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("causal context is not in its canonical form")]
pub struct BadContext;

impl Context {
    /// The whole context; `ranges_max` caps the cloud, which only understates what was seen and so is always safe.
    pub(crate) fn image(&self, ranges_max: usize) -> ContextImage {
        ContextImage {
            clock: self.clock.dots.iter().map(|(origin, counter)| (*origin, *counter)).collect(),
            cloud: self.ranges().take(ranges_max).map(|(origin, start, end)| (*origin, start, end)).collect(),
        }
    }

    /// Reads an image back; refuses anything that [`Context::image`] cannot have produced.
    pub(crate) fn from_image(image: &ContextImage) -> Result<Self, BadContext> {
        let mut context = Self::new();
        for (origin, counter) in &image.clock {
            if *counter == 0 || *counter >= COUNTER_END {
                return Err(BadContext);
            }
            context.clock.dots.insert(*origin, *counter);
        }
        for (origin, start, end) in &image.cloud {
            context.insert_range(*origin, *start, *end);
        }
        // Whatever was unsorted, doubled, touching or out of range comes out differently.
        if context.image(usize::MAX) != *image || context.origin_count() > ORIGINS_MAX {
            return Err(BadContext);
        }
        Ok(context)
    }
}

#[cfg(test)]
mod tests;
