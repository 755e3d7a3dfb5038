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

fn enter(registers: &mut Registers, entry: &Entry, entries: &[Entry]) {
    let clock_of = |dot| entries.iter().find(|entry| entry.dot == dot).map(|entry| entry.clock.clone());
    registers.apply(entry.dot, &entry.clock, entry.mask.iter().map(String::as_str), &clock_of);
}

fn build<'e>(entries: impl IntoIterator<Item = &'e Entry>, all: &[Entry]) -> Registers {
    let mut registers = Registers::default();
    entries.into_iter().for_each(|entry| enter(&mut registers, entry, all));
    registers
}

fn contents(registers: &Registers) -> BTreeMap<&str, BTreeSet<Dot>> {
    NAMES.into_iter().chain([""]).map(|name| (name, registers.live_in(name))).collect()
}

/// The sections that have a register of their own, and what each register says it holds beside what it holds.
fn insides(registers: &Registers) -> BTreeMap<&str, (Vec<Dot>, BTreeSet<Dot>)> {
    let inside = |register: &Register| (register.dots.clone(), register.values.read().val.into_iter().collect());
    let named = registers.sections.iter().map(|(name, register)| (&**name, inside(register)));
    named.chain([("", inside(&registers.rest))]).collect()
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
        let document = build(&entries, &entries);
        let other = build(&shuffled, &entries);
        prop_assert_eq!(contents(&document), oracle(&entries));
        prop_assert_eq!(contents(&other), oracle(&entries));
    }

    /// What is kept of a document is what is live in it; all that came must never be needed again.
    #[test]
    fn what_is_live_gives_the_registers_that_all_changes_gave(entries in entries(), seed in any::<u64>()) {
        let mut chance = Chance(seed);
        let mut grown = Registers::default();
        let mut came: Vec<Entry> = Vec::new();
        for entry in &entries {
            let before = grown.live();
            enter(&mut grown, entry, &entries);
            came.push(entry.clone());
            let live = grown.live();
            let from_live = build(came.iter().rev().filter(|entry| live.contains(&entry.dot)), &entries);
            prop_assert_eq!(insides(&from_live), insides(&grown));
            for (dots, held) in insides(&grown).into_values() {
                prop_assert!(dots.is_sorted() && held.into_iter().eq(dots));
            }
            // The step from what was live before is the same as the step from what had grown.
            let mut step = build(came.iter().filter(|entry| before.contains(&entry.dot)), &entries);
            enter(&mut step, entry, &entries);
            prop_assert_eq!(insides(&step), insides(&grown));
            if chance.one_in(4) {
                // Some leave for good: what stays is built anew, and all that only they had superseded is gone as well.
                came.retain(|entry| live.contains(&entry.dot) && !chance.one_in(3));
                grown = build(&came, &entries);
            }
        }
    }

    #[test]
    fn registers_read_the_same_however_a_document_is_kept(entries in entries()) {
        let registers = build(&entries, &entries);
        let Some(document) = Document::new(registers.clone()) else { return Ok(()) };
        prop_assert_eq!(document.live(), registers.live());
        let crowd = Document::Crowd(Box::new(registers.clone()));
        prop_assert_eq!(crowd.live(), registers.live());
        let kept = crowd.registers(&|_| None);
        prop_assert_eq!(insides(&kept), insides(&registers));
    }
}

#[test]
fn two_ops_that_claim_to_have_seen_each_other_end_alike_in_both_orders() {
    let (a, b) = (Dot::new(Incarnation::from_bytes([1; 16]), 1), Dot::new(Incarnation::from_bytes([2; 16]), 1));
    let clock = Clock { dots: [(a.origin, 1), (b.origin, 1)].into() };
    let entry = |dot| Entry { dot, clock: clock.clone(), mask: ["a".to_owned()].into() };
    let both = [entry(a), entry(b)];
    let there = build(&both, &both);
    let back = build(both.iter().rev(), &both);
    assert_eq!(contents(&there), contents(&back));
    assert_eq!(contents(&there)["a"], [b].into());
}
