//! Which documents count, and in what order: those that validate, are not expired, and cover a place.

use crate::{
    document::DocId,
    problem::Problem,
    reading::Reading,
    scope::{Place, Scope},
};

/// Every document with its standing, narrowest scope first, within a scope by name.
#[derive(Debug)]
pub(crate) struct Sorted<'d> {
    layers: Vec<(&'d Scope, Layer<'d>)>,
    /// Those that do not validate, each with its faults, by id.
    pub(crate) problems: Vec<(DocId, Vec<Problem>)>,
    /// Those whose time is over, by id.
    pub(crate) expired: Vec<DocId>,
    /// When the next one expires, in milliseconds since 1970.
    pub(crate) next_expiry_ms: Option<u64>,
}

/// One document in its place of the order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer<'d> {
    /// [`Scope::breadth`] of its scope.
    pub(crate) breadth: u8,
    pub(crate) standing: Standing,
    pub(crate) reading: &'d Reading,
}

/// Whether a document counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It does.
    InForce,
    /// Its time is over.
    Expired,
    /// It does not validate.
    Faulty,
}

impl Layer<'_> {
    /// Whether both are the same document, by place and not by what they say.
    pub(crate) fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self.reading, other.reading)
    }
}

impl<'d> Sorted<'d> {
    /// Sorts documents as they stand at `now_ms`, milliseconds since 1970. Their order does not matter.
    pub(crate) fn new(readings: impl IntoIterator<Item = &'d Reading>, now_ms: u64) -> Self {
        let mut sorted = Self { layers: Vec::new(), problems: Vec::new(), expired: Vec::new(), next_expiry_ms: None };
        for reading in readings {
            let standing = if reading.is_expired(now_ms) {
                sorted.expired.push(reading.id.clone());
                Standing::Expired
            } else if reading.problems.is_some() {
                Standing::Faulty
            } else {
                Standing::InForce
            };
            if standing != Standing::Expired
                && let Some(at) = reading.expires_at_ms
            {
                sorted.next_expiry_ms = Some(sorted.next_expiry_ms.map_or(at, |next| next.min(at)));
            }
            if let Some(faults) = &reading.problems {
                sorted.problems.push((reading.id.clone(), faults.clone()));
            }
            if let Some(scope) = &reading.scope {
                let layer = Layer { breadth: scope.breadth(), standing, reading };
                sorted.layers.push((scope, layer));
            }
        }
        sorted.layers.sort_by(|(_, left), (_, right)| {
            let key = |layer: &Layer<'d>| (layer.breadth, &layer.reading.id.name, &layer.reading.id);
            // Documents of one id are concurrent edits: their content decides, as it is the same on every node.
            key(left).cmp(&key(right)).then_with(|| left.reading.by_content(right.reading))
        });
        sorted.problems.sort_by(|(left, _), (right, _)| left.cmp(right));
        sorted.expired.sort();
        sorted
    }

    /// Those in force at `here`.
    pub(crate) fn at(&self, here: &Place) -> Vec<Layer<'d>> {
        self.all_at(here).filter(|layer| layer.standing == Standing::InForce).collect()
    }

    /// Those that cover `here`, whatever their standing.
    pub(crate) fn all_at(&self, here: &Place) -> impl Iterator<Item = Layer<'d>> {
        self.layers.iter().filter(|(scope, _)| scope.covers(here)).map(|(_, layer)| *layer)
    }

    /// The scopes that documents have, each once.
    pub(crate) fn scopes(&self) -> impl Iterator<Item = &Scope> {
        let mut last = None;
        self.layers.iter().map(|(scope, _)| *scope).filter(move |scope| last.replace(*scope) != Some(*scope))
    }
}
