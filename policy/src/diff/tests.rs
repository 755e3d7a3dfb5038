use proptest::prelude::*;
use serde_json::{Value, json};

use super::{SideChange, diff, three_way};
use crate::document::any_json;

/// `path: before -> after`, nothing as `-`.
fn told(before: &Value, after: &Value) -> Vec<String> {
    let shown = |value: Option<Value>| value.map_or("-".to_owned(), |value| value.to_string());
    let changes = diff(before, after).into_iter();
    changes.map(|change| format!("{}: {} -> {}", change.path, shown(change.before), shown(change.after))).collect()
}

fn refs(refs: &[(&str, u32)]) -> Value {
    let refs: Vec<Value> = refs.iter().map(|(name, weight)| json!({ "name": name, "weight": weight })).collect();
    json!({ "spec": { "rules": [ { "backendRefs": refs } ] } })
}

#[test]
fn a_changed_field_is_told_by_its_path() {
    assert_eq!(
        told(&refs(&[("a", 90), ("b", 10)]), &refs(&[("a", 80), ("b", 20)])),
        ["spec.rules[0].backendRefs[0].weight: 90 -> 80", "spec.rules[0].backendRefs[1].weight: 10 -> 20"]
    );
    assert_eq!(
        told(&json!({"a": {"b": 1}, "c": [1, 2], "x y": 1}), &json!({"a": {"d": {"e": 1}}, "c": [1, 3, 4], "x y": {}})),
        ["a.b: 1 -> -", "a.d: - -> {\"e\":1}", "c[1]: 2 -> 3", "c[2]: - -> 4", "[\"x y\"]: 1 -> {}",]
    );
    assert_eq!(told(&json!(1), &json!([1])), [": 1 -> [1]"]);
    assert_eq!(told(&json!({"a": null}), &json!({})), ["a: null -> -"]);
    assert_eq!(told(&json!({"a": []}), &json!({"a": {}})), ["a: [] -> {}"]);
}

#[test]
fn named_items_are_compared_by_name_and_called_by_it_where_places_differ() {
    let list = |names: &[(&str, u32)]| refs(names)["spec"]["rules"][0]["backendRefs"].clone();
    for (before, after, expected) in [
        (
            &[("a", 1), ("b", 2)][..],
            &[("b", 3)][..],
            vec!["[\"b\"].weight: 2 -> 3", "[\"a\"]: {\"name\":\"a\",\"weight\":1} -> -"],
        ),
        (&[("a", 1)], &[("a", 1), ("b", 2)], vec!["[1]: - -> {\"name\":\"b\",\"weight\":2}"]),
        (
            &[("a", 1), ("b", 2)],
            &[("a", 1), ("c", 2)],
            vec!["[\"c\"]: - -> {\"name\":\"c\",\"weight\":2}", "[\"b\"]: {\"name\":\"b\",\"weight\":2} -> -"],
        ),
        (&[("a", 1), ("b", 2)], &[("b", 2), ("a", 1)], vec![": [\"a\",\"b\"] -> [\"b\",\"a\"]"]),
        // Two of one name, so by place.
        (&[("a", 1), ("a", 2)], &[("a", 1), ("a", 3)], vec!["[1].weight: 2 -> 3"]),
    ] {
        assert_eq!(told(&list(before), &list(after)), expected, "{before:?} {after:?}");
    }
}

fn sides(base: Option<&Value>, sides: &[&Value]) -> Vec<(String, bool)> {
    three_way(base, sides).into_iter().map(|change| (change.path, change.agrees)).collect()
}

#[test]
fn three_ways_show_each_path_that_a_side_changed_and_whether_they_agree() {
    let base = refs(&[("a", 90), ("b", 10)]);
    let left = refs(&[("a", 80), ("b", 20)]);
    let right = refs(&[("a", 50), ("b", 20)]);
    let changes = three_way(Some(&base), &[&left, &right]);
    assert_eq!(
        changes,
        [
            SideChange {
                path: "spec.rules[0].backendRefs[0].weight".into(),
                base: Some(json!(90)),
                sides: vec![Some(json!(80)), Some(json!(50))],
                agrees: false
            },
            SideChange {
                path: "spec.rules[0].backendRefs[1].weight".into(),
                base: Some(json!(10)),
                sides: vec![Some(json!(20)), Some(json!(20))],
                agrees: true
            },
        ]
    );
    assert_eq!(three_way(Some(&base), &[&base, &base]), []);
    // One side adds an object, the other as well, with another field in it.
    let (none, one, two) = (json!({}), json!({"a": {"x": 1, "y": 1}}), json!({"a": {"x": 1, "y": 2}}));
    assert_eq!(sides(Some(&none), &[&one, &two]), [("a.x".into(), true), ("a.y".into(), false)]);
    // One side removes what the other changes.
    assert_eq!(sides(Some(&one), &[&none, &two]), [("a".into(), false)]);
    // Where they parted is not known.
    assert_eq!(sides(None, &[&one, &two]), [("a.x".into(), true), ("a.y".into(), false)]);
    assert_eq!(sides(None, &[&one]), [(String::new(), true)]);
    assert_eq!(sides(None, &[&none, &none]), [(String::new(), true)]);
}

/// Values that often have the same fields and names.
fn alike() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(json!(null)), (0..3_u8).prop_map(Value::from), Just(json!({})), Just(json!([]))];
    leaf.prop_recursive(3, 24, 3, |inner| {
        let object = prop::collection::btree_map("[a-c]", inner.clone(), 0..3);
        let named = prop::collection::vec(("[a-c]", inner.clone()), 0..4);
        prop_oneof![
            object.prop_map(|map| Value::Object(map.into_iter().collect())),
            prop::collection::vec(inner, 0..3).prop_map(Value::from),
            named.prop_map(|items| items.into_iter().map(|(name, of)| json!({ "name": name, "of": of })).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn a_difference_is_told_exactly_where_there_is_one(before in alike(), after in alike()) {
        let changes = diff(&before, &after);
        prop_assert_eq!(changes.is_empty(), before == after, "{:?}", changes);
        for change in &changes {
            prop_assert_ne!(&change.before, &change.after, "{}", change.path);
        }
        let paths: std::collections::BTreeSet<_> = changes.iter().map(|change| &change.path).collect();
        prop_assert_eq!(paths.len(), changes.len(), "{:?}", changes);
    }

    #[test]
    fn three_ways_with_one_side_are_a_diff(before in alike(), after in alike()) {
        let sides = three_way(Some(&before), &[&after]);
        let changes = diff(&before, &after);
        prop_assert_eq!(sides.len(), changes.len());
        for (side, change) in sides.into_iter().zip(changes) {
            prop_assert_eq!((side.path, side.base, side.sides), (change.path, change.before, vec![change.after]));
        }
    }

    #[test]
    fn no_values_make_it_panic(base in any_json(), left in any_json(), right in any_json()) {
        drop(three_way(Some(&base), &[&left, &right]));
        prop_assert_eq!(diff(&base, &base), vec![]);
    }
}
