//! Several documents about one thing laid over each other, field by field.
//!
//! The narrowest scope that sets a field wins, within a scope the first name; unless a document locks it: then the lock
//! of the widest scope wins, and narrower documents do not count for that field.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{in_force::Layer, lock::locks, reading::Reading};

/// One field as it comes out.
#[derive(Debug)]
pub(crate) struct Field<'d> {
    /// Below the spec, as the document that settles it spells it.
    pub(crate) path: String,
    /// `None` where a lock on a whole subtree leaves the field at its default.
    pub(crate) value: Option<&'d Value>,
    /// The document it comes from; for a field without a value the one that locks it.
    pub(crate) reading: &'d Reading,
    pub(crate) locked_by: Option<&'d Reading>,
    /// What others say, in order of precedence.
    pub(crate) overridden: Vec<(&'d Reading, &'d Value, Why<'d>)>,
}

/// Why a value does not count.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Why<'d> {
    /// A narrower document sets the field too.
    Narrower,
    /// A document of the same scope with an earlier name does.
    EarlierName,
    /// This document locks it.
    Locked(&'d Reading),
}

impl std::fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Narrower => f.write_str("narrower scope wins"),
            Self::EarlierName => f.write_str("within a scope the first name wins"),
            Self::Locked(reading) => write!(f, "locked by {}", reading.id),
        }
    }
}

/// What one document says about a field: its layer, the path as it spells it, and the value.
type Said<'d> = (Layer<'d>, String, &'d Value);

/// Lays `layers`, narrowest first and within a scope by name, over each other; fields in order of their paths.
pub(crate) fn overlay<'d>(layers: &[Layer<'d>]) -> Vec<Field<'d>> {
    let mut slots: BTreeMap<String, Vec<Said<'d>>> = BTreeMap::new();
    for layer in layers {
        for (path, value) in leaves(&layer.reading.spec) {
            slots.entry(slot(&path).to_owned()).or_default().push((*layer, path, value));
        }
    }
    slots.into_iter().filter_map(|(slot, said)| field(slot, &said, layers)).collect()
}

fn field<'d>(slot: String, said: &[Said<'d>], layers: &[Layer<'d>]) -> Option<Field<'d>> {
    // Of equal scopes the first: `max_by_key` gives the last of equals.
    let lock = layers.iter().rev().filter(|layer| locks(layer.reading, &slot)).max_by_key(|layer| layer.breadth);
    let winner = match lock {
        None => said.first(),
        Some(lock) => {
            let own = said.iter().find(|(layer, ..)| layer.is(lock));
            own.or_else(|| said.iter().find(|(layer, ..)| layer.breadth >= lock.breadth))
        }
    };
    let locked_by = lock.map(|lock| lock.reading);
    let mut overridden = Vec::new();
    for (layer, _, value) in said {
        if winner.is_some_and(|(won, ..)| won.is(layer)) {
            continue;
        }
        let why = match (lock, winner) {
            (Some(lock), _) if layer.breadth < lock.breadth => Why::Locked(lock.reading),
            (Some(lock), Some((won, ..))) if won.is(lock) && layer.breadth == lock.breadth => Why::Locked(lock.reading),
            (_, Some((won, ..))) if layer.breadth == won.breadth => Why::EarlierName,
            _ => Why::Narrower,
        };
        overridden.push((layer.reading, *value, why));
    }
    match (winner, lock) {
        (Some((layer, path, value)), _) => {
            Some(Field { path: path.clone(), value: Some(value), reading: layer.reading, locked_by, overridden })
        }
        (None, Some(lock)) => Some(Field { path: slot, value: None, reading: lock.reading, locked_by, overridden }),
        (None, None) => None,
    }
}

/// The spec that `fields` make up.
pub(crate) fn merged(fields: &[Field<'_>]) -> Value {
    let mut spec = Map::new();
    for field in fields {
        let Some(value) = field.value else { continue };
        insert(&mut spec, &field.path, value);
    }
    Value::Object(spec)
}

fn insert(map: &mut Map<String, Value>, path: &str, value: &Value) {
    match path.split_once('.') {
        None => {
            map.insert(path.to_owned(), value.clone());
        }
        Some((name, rest)) => {
            let below = map.entry(name.to_owned()).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(below) = below {
                insert(below, rest, value);
            }
        }
    }
}

/// The fields of a spec that hold something: everything but objects, lists as a whole, with their paths below the spec.
pub(crate) fn leaves(spec: &Value) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    if let Value::Object(fields) = spec {
        for (name, value) in fields {
            gather(name.clone(), value, &mut found);
        }
    }
    found
}

fn gather<'v>(path: String, value: &'v Value, found: &mut Vec<(String, &'v Value)>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                gather(format!("{path}.{name}"), value, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            found.push((path, value));
        }
    }
}

/// The one name of a field that has two spellings.
pub(crate) fn slot(path: &str) -> &str {
    match path {
        "loadBalancer.halfDistance" => "loadBalancer.lambda",
        "rateLimit.local.unit" => "rateLimit.local.interval",
        "rateLimit.global.unit" => "rateLimit.global.interval",
        path => path,
    }
}
