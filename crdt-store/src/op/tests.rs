use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{
    id::{Incarnation, StoreId, head},
    sign::Authority,
    testing::{Ed25519Authority, MESH, NOW, golden},
};

fn origin() -> impl Strategy<Value = Incarnation> {
    (0..5_u8).prop_map(|n| Incarnation::from_bytes([n; 16]))
}

fn name() -> impl Strategy<Value = String> {
    "[a-zé.]{1,12}"
}

fn clock() -> impl Strategy<Value = Clock> {
    proptest::collection::btree_map(origin(), 1..1_000_u64, 0..4).prop_map(|dots| Clock { dots })
}

fn change() -> impl Strategy<Value = Change> {
    let key = (name(), name(), name()).prop_map(|(kind, scope, name)| DocKey { kind, scope, name });
    let value = proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
    let body = proptest::option::of(proptest::collection::btree_map(name(), value, 1..4));
    let mask = proptest::collection::btree_set(name(), 1..4);
    let steps = proptest::collection::vec(0..3_u64, 0..3);
    (key, body, mask, clock(), steps).prop_map(|(key, body, mask, past, steps)| {
        let beside = past.dots.iter().zip(steps).map(|((o, c), step)| Dot::new(*o, c.saturating_sub(step).max(1)));
        let beside = beside.collect();
        let mask = if body.is_some() { mask } else { BTreeSet::new() };
        Change { key, mask, past, beside, body }
    })
}

fn any_op() -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        Just(OpKind::Put),
        Just(OpKind::Patch),
        Just(OpKind::Delete),
        Just(OpKind::Resolve),
        (origin(), 1..9_u64).prop_map(|(origin, counter)| OpKind::Rollback(Dot { origin, counter })),
    ];
    let changes = proptest::collection::vec(change(), 1..4);
    (changes, kind, 0..=crate::hlc::MILLIS_MAX, any::<u16>(), "[a-z ]{0,30}").prop_map(
        |(mut changes, kind, millis, counter, message)| {
            changes.sort_by(|a, b| a.key.cmp(&b.key));
            changes.dedup_by(|a, b| a.key == b.key);
            Op {
                dot: Dot::new(Incarnation::from_bytes([0xaa; 16]), 77),
                hlc: Hlc { millis, counter },
                author_key: [3; 16],
                kind,
                schema: 1,
                idempotency_key: "key-1".to_owned(),
                message,
                changes,
            }
        },
    )
}

fn store() -> StoreId {
    StoreId::global(MESH)
}

fn read(bytes: &[u8]) -> Result<Op, OpFault> {
    decode(&store(), &Bytes::copy_from_slice(bytes), &Limits::default())
}

proptest! {
    #[test]
    fn an_op_reads_back_from_its_bytes(op in any_op()) {
        prop_assert_eq!(read(&encode(&store(), &op)), Ok(op));
    }

    #[test]
    fn bytes_say_the_same_in_place_as_decoded(op in any_op()) {
        let bytes = Bytes::from(encode(&store(), &op));
        let change = |slice: Slice<'_>| {
            prop_assert!(op.changes.iter().filter(|change| slice.is_of(&change.key)).count() == 1);
            let owned = |body: Vec<(&str, Bytes)>| body.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            let body: Option<Sections> = slice.body().map(owned);
            prop_assert_eq!(slice.is_edit(), body.is_some());
            prop_assert_eq!(slice.clock(op.dot), op.change(&slice.key()).expect("one of them").clock(op.dot));
            let mask = slice.mask().map(str::to_owned).collect();
            Ok(Change { key: slice.key(), mask, past: slice.past(), beside: slice.beside().collect(), body })
        };
        let changes = slices(&bytes).map(change).collect::<Result<Vec<_>, _>>()?;
        prop_assert_eq!(changes, op.changes);
        prop_assert_eq!(intent(&bytes), (op.kind, op.message.as_str()));
    }

    #[test]
    fn an_op_has_one_encoding(op in any_op(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut bytes = encode(&store(), &op);
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Ok(other) = read(&bytes) {
            prop_assert_eq!(encode(&store(), &other), bytes);
        }
    }

    #[test]
    fn every_truncation_and_every_trailing_byte_is_refused(op in any_op()) {
        let mut bytes = encode(&store(), &op);
        for length in 0..bytes.len() {
            prop_assert!(read(&bytes[..length]).is_err(), "cut at {}", length);
        }
        bytes.push(0);
        prop_assert_eq!(read(&bytes), Err(OpFault::Trailing));
    }

    #[test]
    fn junk_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(read(&bytes).is_err());
        let behind_head = [&encode(&store(), &small())[..70], &bytes[..]].concat();
        let _either = read(&behind_head);
    }
}

/// The op whose bytes are kept in `testdata`; it uses every field of the layout.
fn small() -> Op {
    let origin = Incarnation::from_bytes([0x11; 16]);
    let other = Incarnation::from_bytes([0x22; 16]);
    let route = Change {
        key: DocKey::new("HTTPRoute", "region:eu", "checkout"),
        mask: ["spec.rules".to_owned(), "spec.timeouts".to_owned()].into(),
        past: Clock { dots: [(origin, 6), (other, 3)].into() },
        beside: [Dot::new(other, 2), Dot::new(other, 3)].into(),
        body: Some(
            [
                ("metadata".to_owned(), Bytes::from_static(b"{}")),
                ("spec.rules".to_owned(), Bytes::from_static(b"[1,2]")),
            ]
            .into(),
        ),
    };
    let gone = Change {
        key: DocKey::new("HTTPRoute", "region:eu", "old"),
        mask: BTreeSet::new(),
        past: Clock { dots: [(other, 1)].into() },
        beside: BTreeSet::new(),
        body: None,
    };
    Op {
        dot: Dot::new(origin, 7),
        hlc: Hlc { millis: NOW, counter: 9 },
        author_key: head(&sha256(&[&Ed25519Authority::new(7).public_key()])),
        kind: OpKind::Rollback(Dot::new(other, 3)),
        schema: 1,
        idempotency_key: "retry-42".to_owned(),
        message: "back to the state before the sale".to_owned(),
        changes: vec![route, gone],
    }
}

#[test]
fn the_signed_bytes_of_version_1_stay_as_they_are() {
    let authority = Ed25519Authority::new(7);
    let made = encode(&store(), &small());
    let kept = golden("op-v1.bin", &made);
    assert_eq!(read(&kept), Ok(small()), "the kept bytes no longer read");
    let signature = golden("op-v1.sig", &authority.sign(&made));
    let signature = signature.try_into().expect("64 bytes");
    assert!(authority.verify(&authority.public_key(), &kept, &signature), "the kept signature no longer verifies");
}

fn spoil(change: impl FnOnce(&mut Op)) -> Result<Op, OpFault> {
    let mut op = small();
    change(&mut op);
    read(&encode(&store(), &op))
}

#[test]
fn each_rule_of_the_layout_is_checked() {
    let far = |n: u8| Dot::new(Incarnation::from_bytes([n; 16]), 1);
    assert_eq!(spoil(|op| op.changes.reverse()), Err(OpFault::Field("changes")));
    assert_eq!(spoil(|op| op.changes.clear()), Err(OpFault::Field("changes")));
    assert_eq!(spoil(|op| op.dot.counter = 0), Err(OpFault::Field("counter")));
    assert_eq!(spoil(|op| op.dot.counter = 1 << 63), Err(OpFault::Field("counter")));
    assert_eq!(spoil(|op| op.dot.counter = 6), Err(OpFault::Field("past")), "an op that has seen its successor");
    assert_eq!(spoil(|op| _ = op.changes[0].beside.insert(far(9))), Err(OpFault::Field("beside")));
    assert_eq!(spoil(|op| op.changes[0].mask.clear()), Err(OpFault::Field("mask")));
    assert_eq!(spoil(|op| op.changes[0].body = Some(Sections::new())), Err(OpFault::Field("sections")));
    assert_eq!(spoil(|op| op.changes[0].key.name.clear()), Err(OpFault::Field("name")));
    assert_eq!(spoil(|op| op.changes[0].key.kind.push('\n')), Err(OpFault::Field("kind")));
    assert_eq!(spoil(|op| op.changes[0].key.scope = "x".repeat(254)), Err(OpFault::Field("scope")));
    assert_eq!(spoil(|op| op.message = "x".repeat(257)), Err(OpFault::Limit("message")));
    let fat = || Bytes::from(vec![0; 40 << 10]);
    let two = || Some([("a".to_owned(), fat()), ("b".to_owned(), fat())].into());
    assert_eq!(spoil(|op| op.changes[0].body = two()), Err(OpFault::Limit("body bytes")));
    let many = || Some((0..33).map(|n| (format!("s{n:02}"), Bytes::new())).collect());
    assert_eq!(spoil(|op| op.changes[0].body = many()), Err(OpFault::Limit("sections")));
    let past = |n: u16| {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        (Incarnation::from_bytes(bytes), 1)
    };
    let long = Clock { dots: (0..257).map(past).collect() };
    assert_eq!(spoil(|op| op.changes[0].past = long), Err(OpFault::Limit("past")));
    let crowd = |op: &mut Op| {
        let change = op.changes[1].clone();
        let named = |n| Change { key: DocKey::new("k", "s", format!("n{n:03}")), ..change.clone() };
        op.changes = (0..65).map(named).collect();
    };
    assert_eq!(spoil(crowd), Err(OpFault::Limit("changes")));
}

#[test]
fn an_op_of_another_mesh_store_or_version_is_refused() {
    let other = StoreId::global("other-mesh");
    assert_eq!(read(&encode(&other, &small())), Err(OpFault::OtherStore));
    let other = StoreId { store: "eu".to_owned(), ..store() };
    assert_eq!(read(&encode(&other, &small())), Err(OpFault::OtherStore));
    let mut newer = encode(&store(), &small());
    newer[9] = 2;
    assert_eq!(read(&newer), Err(OpFault::Version));
}

#[test]
fn an_op_over_the_limit_is_refused_before_it_is_read() {
    assert_eq!(read(&vec![0; (256 << 10) + 1]), Err(OpFault::Limit("op bytes")));
}
