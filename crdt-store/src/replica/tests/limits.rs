//! Limits of what is known: each refuses what is beyond it, is counted, and lets go.

use super::*;

fn open(limits: Limits) -> Replica {
    let (id, storage) = (StoreId::global(MESH), Box::new(MemoryStorage::new()));
    Replica::open_with(storage, HashAuthority::member("limited"), id, limits, [7; 16], NOW).expect("opens")
}

#[test]
fn one_origin_more_than_allowed_is_refused_and_those_known_go_on() {
    let mut reader = open(Limits { origins: 2, ..Limits::default() });
    let mut writers = ["a", "b", "c"].map(replica);
    for (at, writer) in writers.iter_mut().enumerate() {
        let push = put(writer, &format!("n{at}"), &[("x", "1")]).push;
        let merged = reader.merge_push(&push, NOW).expect("merges");
        let refused: Vec<&Refusal> = merged.refused.iter().map(|(_, refusal)| refusal).collect();
        assert_eq!(refused, if at < 2 { vec![] } else { vec![&Refusal::TooManyOrigins] });
    }
    assert_eq!((reader.summary().origins, reader.counters().refused["too_many_origins"]), (2, 1));
    assert!(!Refusal::TooManyOrigins.is_hostile());
    let again = put(&mut writers[0], "n0", &[("x", "2")]).push;
    assert_eq!(reader.merge_push(&again, NOW).expect("merges").new_ops.len(), 1);
    // What a peer claims to have seen is not credited beyond the limit either, and its ops come all the same.
    let (one, rest) = writers.split_at_mut(1);
    sync(&mut one[0], &mut rest[0]).expect("syncs");
    sync(&mut one[0], &mut rest[1]).expect("syncs");
    sync(&mut one[0], &mut reader).expect("syncs");
    assert_eq!(reader.summary().origins, 2);
    assert!(!reader.context().covers(one[0].context()));
}

#[test]
fn one_gap_more_than_allowed_is_refused_and_what_closes_a_gap_is_taken() {
    let mut reader = open(Limits { cloud_ranges: 1, ..Limits::default() });
    let mut a = replica("a");
    let pushes: Vec<_> = (0..5).map(|n| put(&mut a, &format!("n{n}"), &[("x", "1")]).push).collect();
    let mut merge = |at: usize| {
        let merged = reader.merge_push(&pushes[at], NOW).expect("merges");
        merged.refused.first().map(|(_, refusal)| refusal.label())
    };
    // Ops 2 and 4 leave two gaps; op 3 joins what is there, op 1 closes the gap.
    let outcomes = [1, 3, 2, 0, 3].map(&mut merge);
    assert_eq!(outcomes, [None, Some("too_many_gaps"), None, None, None]);
    assert_eq!((reader.summary().gaps, reader.counters().refused["too_many_gaps"]), (0, 1));
}

#[test]
fn a_write_that_would_name_too_many_origins_is_refused_with_the_limit() {
    let mut small = open(Limits { past: 1, ..Limits::default() });
    let (mut a, mut b) = (replica("a"), replica("b"));
    for writer in [&mut a, &mut b] {
        let push = put(writer, "r", &[("x", "1")]).push;
        small.merge_push(&push, NOW).expect("merges");
    }
    let before = seen(&small);
    let refused = small.write(vec![Edit::put(key("r"), body(&[("x", "2")]))], WriteMeta::default(), NOW);
    assert!(matches!(refused, Err(StoreError::TooLarge { what: "past", max: 1 })), "{refused:?}");
    assert_eq!(seen(&small), before);
}
