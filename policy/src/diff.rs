//! What differs between versions of a document, path by path.
//!
//! Objects are compared field by field. Lists whose items all have a `name`, no two the same, are compared by it, other
//! lists item by item in order. An item that stands at one place in every version that has it, where no version has
//! another, is called by that place (`rules[0]`), another one by its name (`rules["api"]`).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::document::fields::{item, join, shown};

/// One difference between two versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FieldChange {
    /// As `spec.rules[0].backendRefs[1].weight`; empty for the version as a whole.
    pub path: String,
    /// What stood there; `None` for nothing.
    pub before: Option<Value>,
    /// What stands there now.
    pub after: Option<Value>,
}

/// One path that at least one of several versions changed, or that they differ in where their origin is not known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SideChange {
    /// As [`FieldChange::path`].
    pub path: String,
    /// What stood there before they parted; `None` for nothing.
    pub base: Option<Value>,
    /// What each has there, in the order given.
    pub sides: Vec<Option<Value>>,
    /// All of them have the same.
    pub agrees: bool,
}

/// What differs between `before` and `after`, objects in order of their field names and lists in order of their items.
/// Empty for equal values and for no others; where named items only changed places, the list's names are the change.
#[must_use]
pub fn diff(before: &Value, after: &Value) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    let versions = [Some(before), Some(after)];
    compare(String::new(), &versions, &mut |path, values| {
        let [before, after] = values else { return };
        if before != after {
            changes.push(FieldChange { path, before: before.clone(), after: after.clone() });
        }
    });
    changes
}

/// What each of `sides` did to `base`, in the order of [`diff`]: the paths that at least one of them changed. Without a
/// base every path counts as changed.
#[must_use]
pub fn three_way(base: Option<&Value>, sides: &[&Value]) -> Vec<SideChange> {
    let mut changes = Vec::new();
    let versions: Vec<Option<&Value>> = std::iter::once(base).chain(sides.iter().map(|side| Some(*side))).collect();
    compare(String::new(), &versions, &mut |path, values| {
        let Some((base, sides)) = values.split_first() else { return };
        if sides.iter().any(|side| side != base) {
            let agrees = sides.windows(2).all(|pair| matches!(pair, [left, right] if left == right));
            changes.push(SideChange { path, base: base.clone(), sides: sides.to_vec(), agrees });
        }
    });
    changes
}

/// Walks `versions`, the first of which may be missing as a whole, as far down as they have the same shape, and gives
/// `found` each path with what each version has there.
fn compare(path: String, versions: &[Option<&Value>], found: &mut impl FnMut(String, &[Option<Value>])) {
    let sides = versions.get(1..).unwrap_or_default();
    if let Some(maps) = shaped(versions, sides, Value::as_object) {
        let names: BTreeSet<&String> = maps.iter().flatten().flat_map(|map| map.keys()).collect();
        for name in names {
            let fields: Vec<Option<&Value>> = maps.iter().map(|map| map.and_then(|map| map.get(name))).collect();
            compare(join(&path, name), &fields, found);
        }
        // Objects without fields have none to tell them from a missing one.
        if maps.iter().flatten().all(|map| map.is_empty()) {
            found(path, &owned(versions));
        }
        return;
    }
    let Some(lists) = shaped(versions, sides, Value::as_array) else {
        found(path, &owned(versions));
        return;
    };
    if lists.iter().flatten().all(|list| list.is_empty()) {
        found(path, &owned(versions));
        return;
    }
    match lists.iter().map(|list| list.map_or(Some(Vec::new()), |list| names(list))).collect::<Option<Vec<_>>>() {
        Some(names) => compare_named(&path, &lists, &names, found),
        None => {
            let longest = lists.iter().flatten().map(|list| list.len()).max().unwrap_or_default();
            for index in 0..longest {
                let items: Vec<Option<&Value>> =
                    lists.iter().map(|list| list.and_then(|list| list.get(index))).collect();
                compare(item(&path, index), &items, found);
            }
        }
    }
}

/// Each version as what `read` makes of it: all sides must be such, and the first version such or missing.
fn shaped<'v, T: ?Sized>(
    versions: &[Option<&'v Value>],
    sides: &[Option<&'v Value>],
    read: impl Fn(&'v Value) -> Option<&'v T>,
) -> Option<Vec<Option<&'v T>>> {
    if sides.is_empty() || sides.iter().any(Option::is_none) {
        return None;
    }
    // With two versions the first is a side as well: something new is one change, whatever is in it.
    if versions.len() == 2 && versions.iter().any(Option::is_none) {
        return None;
    }
    versions.iter().map(|version| version.map_or(Some(None), |value| read(value).map(Some))).collect()
}

fn compare_named(
    path: &str,
    lists: &[Option<&Vec<Value>>],
    names: &[Vec<&str>],
    found: &mut impl FnMut(String, &[Option<Value>]),
) {
    let mut order: Vec<&str> = Vec::new();
    for name in names.iter().rev().flatten() {
        if !order.contains(name) {
            order.push(name);
        }
    }
    for name in &order {
        let places: Vec<Option<usize>> =
            names.iter().map(|names| names.iter().position(|other| other == name)).collect();
        let place = places.iter().flatten().next().copied().unwrap_or_default();
        let is_fixed = places.iter().flatten().all(|other| *other == place)
            && places.iter().zip(names).all(|(found, names)| found.is_some() || names.len() <= place);
        let path = if is_fixed { item(path, place) } else { format!("{path}[\"{}\"]", shown(name)) };
        let items = places.iter().zip(lists);
        let items: Vec<Option<&Value>> = items.map(|(place, list)| list.as_ref()?.get((*place)?)).collect();
        compare(path, &items, found);
    }
    if is_reordered(names) {
        let values = names.iter().zip(lists).map(|(names, list)| list.map(|_| Value::from(names.clone())));
        found(path.to_owned(), &values.collect::<Vec<_>>());
    }
}

/// Whether two of the lists have the names they share in different orders.
fn is_reordered(lists: &[Vec<&str>]) -> bool {
    let shared = |names: &[&str], with: &[&str]| -> Vec<String> {
        names.iter().filter(|name| with.contains(name)).map(|name| (*name).to_owned()).collect()
    };
    lists.iter().any(|left| lists.iter().any(|right| shared(left, right) != shared(right, left)))
}

/// The names of a list's items, where all have one and no two the same.
fn names(list: &[Value]) -> Option<Vec<&str>> {
    let names: Option<Vec<&str>> = list.iter().map(|item| item.get("name").and_then(Value::as_str)).collect();
    let names = names?;
    let distinct: BTreeSet<&str> = names.iter().copied().collect();
    (distinct.len() == names.len()).then_some(names)
}

fn owned(versions: &[Option<&Value>]) -> Vec<Option<Value>> {
    versions.iter().map(|version| version.cloned()).collect()
}

#[cfg(test)]
mod tests;
