use proptest::prelude::*;

use super::*;
use crate::testing::Chance;

const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone)]
struct Entry {
    dot: Dot,
    clock: Clock,
    mask: BTreeSet<String>,
}

/// Any change, also ones that no honest author makes: only their dots are distinct and in their own clocks.
fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = (0..3_u8, proptest::collection::vec(0..8_u64, 3), 0..8_u8);
    proptest::collection::vec(entry, 1..14).prop_map(|raw| {
        let mut next = [1_u64; 3];
        let origin = |n: u8| Incarnation::from_bytes([n; 16]);
        let entry = |(n, past, bits): (u8, Vec<u64>, u8)| {
            let counter = next[usize::from(n)];
            next[usize::from(n)] += 1;
            let mut clock = Clock::new();
            for (other, seen) in (0..3_u8).zip(past) {
                clock.apply(crdts::Dot::new(origin(other), if other == n { counter } else { seen }));
            }
            let named = NAMES.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0);
            let mask = named.map(|(_, name)| (*name).to_owned()).collect();
            Entry { dot: Dot::new(origin(n), counter), clock, mask }
        };
        raw.into_iter().map(entry).collect()
    })
}

fn build(entries: &[Entry]) -> Document {
    let mut document = Document::default();
    for entry in entries {
        let clock_of = |dot| entries.iter().find(|entry| entry.dot == dot).map(|entry| entry.clock.clone());
        document.apply(entry.dot, &entry.clock, &entry.mask, &clock_of);
    }
    document
}

fn contents(document: &Document) -> BTreeMap<&str, BTreeSet<Dot>> {
    let of = |name: &'static str| dots(document.sections.get(name).unwrap_or(&document.rest));
    NAMES.into_iter().map(|name| (name, of(name))).chain([("", dots(&document.rest))]).collect()
}

/// By definition: what no other entry of the section has a greater clock than; of equal clocks the highest dot.
fn oracle<'a>(entries: &[Entry]) -> BTreeMap<&'a str, BTreeSet<Dot>> {
    let of = |name: &'a str| {
        let here: Vec<&Entry> = entries.iter().filter(|e| e.mask.is_empty() || e.mask.contains(name)).collect();
        let beaten = |e: &Entry| here.iter().any(|o| o.clock > e.clock || (o.clock == e.clock && o.dot > e.dot));
        let live = here.iter().filter(|e| !beaten(e)).map(|e| e.dot).collect();
        (name, live)
    };
    NAMES.into_iter().chain([""]).map(of).collect()
}

proptest! {
    #[test]
    fn registers_hold_the_maximal_changes_in_any_order_and_number(entries in entries(), seed in any::<u64>()) {
        let mut chance = Chance(seed);
        let mut shuffled = entries.clone();
        for _ in 0..entries.len() {
            let doubled = shuffled[chance.below(shuffled.len())].clone();
            shuffled.push(doubled);
        }
        for at in (1..shuffled.len()).rev() {
            shuffled.swap(at, chance.below(at + 1));
        }
        let document = build(&entries);
        let other = build(&shuffled);
        prop_assert_eq!(contents(&document), oracle(&entries));
        prop_assert_eq!(contents(&other), oracle(&entries));
    }
}

#[test]
fn two_ops_that_claim_to_have_seen_each_other_end_alike_in_both_orders() {
    let (a, b) = (Dot::new(Incarnation::from_bytes([1; 16]), 1), Dot::new(Incarnation::from_bytes([2; 16]), 1));
    let clock = Clock { dots: [(a.origin, 1), (b.origin, 1)].into() };
    let entry = |dot| Entry { dot, clock: clock.clone(), mask: ["a".to_owned()].into() };
    let there = build(&[entry(a), entry(b)]);
    let back = build(&[entry(b), entry(a)]);
    assert_eq!(contents(&there), contents(&back));
    assert_eq!(contents(&there)["a"], [b].into());
}
