//! Merge laws over real histories: ops of several replicas that write, delete and talk at random.

use proptest::prelude::*;

use crate::{
    Disk, Edit, OpKind, OriginRecord, Replica, SignedOp, WriteMeta,
    document::CROWD,
    testing::{Chance, NOW, body, key, on, ops_of, put, replica, replica_on, sync},
};

type Ops = Vec<(Option<OriginRecord>, SignedOp)>;

/// Every op of a random history, superseded ones included, and the replicas that made it.
fn history(seed: u64, steps: usize) -> (Ops, Vec<Replica>) {
    let mut chance = Chance(seed);
    let mut replicas: Vec<Replica> = ["a", "b", "c"].map(replica).into();
    let mut ops = Ops::new();
    for step in 0..steps {
        let at = chance.below(3);
        let name = ["x", "y"][chance.below(2)];
        if chance.one_in(4) {
            let mut other = replicas.swap_remove(at);
            sync(&mut other, &mut replicas[0]).expect("replicas understand each other");
            replicas.push(other);
            continue;
        }
        let replica = &mut replicas[at];
        let mut sections = body(&[("s1", "same"), ("s2", "same"), ("s3", "same")]);
        if let Some(view) = replica.document(&key(name)) {
            sections = view.sections.iter().map(|(name, value)| (name.clone(), value.to_vec())).collect();
        }
        let section = ["s1", "s2", "s3"][chance.below(3)];
        if chance.one_in(6) {
            sections.remove(section);
        } else {
            sections.insert(section.to_owned(), format!("{seed} {step}").into_bytes());
        }
        let edit = if chance.one_in(5) || sections.is_empty() {
            Edit::delete(key(name))
        } else {
            Edit::put(key(name), sections)
        };
        let now = NOW + chance.next() % 1_000;
        let Ok(written) = replica.write(vec![edit], WriteMeta::default(), now) else { continue };
        if let Some(dot) = written.dot {
            let record = replica.origin_record(&dot.origin).cloned();
            ops.push((record, replica.signed_op(dot).expect("a fresh op is live").clone()));
        }
    }
    (ops, replicas)
}

fn merged(parts: &[&[(Option<OriginRecord>, SignedOp)]]) -> Replica {
    let mut into = replica("reader");
    for part in parts {
        let merged = into.merge(part.to_vec(), NOW).expect("memory does not fail");
        assert!(merged.refused.is_empty(), "{:?}", merged.refused);
    }
    into
}

fn assert_same(a: &Replica, b: &Replica) {
    assert_eq!(a.context(), b.context());
    assert_eq!(a.root(), b.root());
    assert!(a.documents().eq(b.documents()));
    let sorted = |replica: &Replica| {
        let mut dots = replica.live_dots();
        dots.sort();
        dots
    };
    assert_eq!(sorted(a), sorted(b));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn ops_merge_to_the_same_state_in_any_order_number_and_grouping(seed in any::<u64>(), shuffle in any::<u64>()) {
        let (ops, _) = history(seed, 30);
        let mut chance = Chance(shuffle);
        let mut other = ops.clone();
        other.extend((0..ops.len() / 2).map(|_| ops[chance.below(ops.len())].clone()));
        for at in (1..other.len()).rev() {
            other.swap(at, chance.below(at + 1));
        }
        let cut = chance.below(other.len() + 1);
        let (one, two) = other.split_at(cut);
        let each: Vec<&[_]> = ops.chunks(1).collect();
        assert_same(&merged(&each), &merged(&[one, two]));
    }

    #[test]
    fn merging_is_commutative_associative_and_idempotent(seed in any::<u64>()) {
        let (_, replicas) = history(seed, 30);
        let [a, b, c]: [Ops; 3] = [0, 1, 2].map(|at| ops_of(&replicas[at]));
        assert_same(&merged(&[&a, &b]), &merged(&[&b, &a]));
        let bc = ops_of(&merged(&[&b, &c]));
        let ab = ops_of(&merged(&[&a, &b]));
        // Live ops alone do not carry the dots of what they superseded; the visible state is what must agree.
        let (left, right) = (merged(&[&ab, &c]), merged(&[&a, &bc]));
        prop_assert_eq!(left.root(), right.root());
        assert!(left.documents().eq(right.documents()));
        assert_same(&merged(&[&a, &b, &c, &a, &b, &c]), &merged(&[&a, &b, &c]));
    }

    #[test]
    fn collecting_at_any_moment_changes_nothing_that_merging_gives(seed in any::<u64>(), shuffle in any::<u64>()) {
        let (ops, _) = history(seed, 30);
        let mut chance = Chance(shuffle);
        let mut other = ops.clone();
        other.extend((0..ops.len()).map(|_| ops[chance.below(ops.len())].clone()));
        for at in (1..other.len()).rev() {
            other.swap(at, chance.below(at + 1));
        }
        let mut collecting = replica("reader");
        for op in other {
            collecting.merge(vec![op], NOW).expect("memory does not fail");
            if chance.one_in(2) {
                collecting.collect(u64::MAX, 0).expect("memory does not fail");
            }
        }
        let plain = merged(&[&ops]);
        prop_assert_eq!(collecting.context(), plain.context());
        prop_assert_eq!(collecting.root(), plain.root());
        let contents = |replica: &Replica| -> Vec<_> {
            replica.documents().map(|view| (view.key, view.sections, view.conflicts)).collect()
        };
        prop_assert_eq!(contents(&collecting), contents(&plain));
    }

    #[test]
    fn conversations_with_replicas_that_collect_end_alike_whoever_talks_first(seed in any::<u64>(), order in any::<u64>()) {
        let mut chance = Chance(order);
        let mut ends = Vec::new();
        for _ in 0..2 {
            let (_, mut replicas) = history(seed, 30);
            for _ in 0..12 {
                let (from, to) = [(0, 1), (1, 2), (0, 2)][chance.below(3)];
                replicas[chance.below(3)].collect(u64::MAX, 0).expect("memory does not fail");
                let (left, right) = replicas.split_at_mut(to);
                sync(&mut left[from], &mut right[0]).expect("replicas understand each other");
            }
            for (from, to) in [(0, 1), (1, 2), (0, 2), (0, 1)] {
                let (left, right) = replicas.split_at_mut(to);
                sync(&mut left[from], &mut right[0]).expect("replicas understand each other");
            }
            for replica in &replicas {
                prop_assert_eq!(replica.root(), replicas[0].root());
                prop_assert_eq!(replica.context(), replicas[0].context());
            }
            ends.push((replicas[0].root(), replicas[0].context().clone()));
        }
        prop_assert_eq!(&ends[0], &ends[1]);
    }

    #[test]
    fn a_conversation_ends_where_merging_every_op_ends(seed in any::<u64>()) {
        let (ops, mut replicas) = history(seed, 30);
        for _ in 0..2 {
            for (from, to) in [(0, 1), (1, 2), (0, 2)] {
                let (left, right) = replicas.split_at_mut(to);
                sync(&mut left[from], &mut right[0]).expect("replicas understand each other");
            }
        }
        let all = merged(&[&ops]);
        for replica in &replicas {
            assert_same(replica, &all);
        }
    }
}

/// Of a document with many concurrent edits the registers are kept, of any other they are made when they are needed.
#[test]
fn a_crowded_document_is_what_it_would_be_without_its_registers() {
    let mut ops = Ops::new();
    for at in 0..2 * CROWD {
        let mut writer = replica(&format!("writer {at}"));
        put(&mut writer, "x", &[("s1", &format!("{at}")), ("s2", "same")]);
        if at % 3 == 0 {
            put(&mut writer, "x", &[("s1", &format!("{at}")), ("s2", &format!("{at}"))]);
        }
        ops.extend(ops_of(&writer));
    }
    let disk = Disk::default();
    let mut reader = replica_on("reader", on(&disk), 0);
    let mut behind = replica("behind");
    for (count, op) in ops.iter().enumerate() {
        reader.merge(vec![op.clone()], NOW).expect("memory does not fail");
        assert_eq!(reader.live_dots().len(), count + 1);
        let again = replica_on("again", on(&disk.copy()), 0);
        assert_same(&reader, &again);
        for section in ["s1", "s2", ""] {
            assert_eq!(reader.section_ops(&key("x"), section), again.section_ops(&key("x"), section), "{section}");
        }
    }
    for op in ops.iter().rev() {
        behind.merge(vec![op.clone()], NOW).expect("memory does not fail");
    }
    assert_same(&reader, &behind);
    let settle = vec![Edit::put(key("x"), body(&[("s1", "settled"), ("s2", "settled")]))];
    let meta = WriteMeta { op_kind: OpKind::Resolve, ..WriteMeta::default() };
    reader.write(settle, meta, NOW).expect("a resolving write works");
    assert_eq!(reader.live_dots().len(), 1);
    behind.merge(ops_of(&reader), NOW).expect("memory does not fail");
    assert_same(&reader, &behind);
}
