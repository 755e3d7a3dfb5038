use std::io::Cursor;

use super::*;
use crate::{
    Replica,
    testing::{NOW, body, delete, golden, key, put, replica, sync, text},
};

/// Documents, a conflict, a delete beside an edit, a tombstone, from two writers.
fn well_used() -> Replica {
    let (mut a, mut b) = (replica("a"), replica("b"));
    for n in 0..20 {
        put(&mut a, &format!("doc-{n:02}"), &[("spec", "one"), ("meta", &"m".repeat(n * 40))]);
    }
    sync(&mut a, &mut b).expect("syncs");
    put(&mut a, "doc-00", &[("spec", "by a"), ("meta", "")]);
    put(&mut b, "doc-00", &[("spec", "by b"), ("meta", "")]);
    delete(&mut a, "doc-01");
    put(&mut b, "doc-01", &[("spec", "kept"), ("meta", "x")]);
    delete(&mut b, "doc-02");
    sync(&mut a, &mut b).expect("syncs");
    a
}

fn bundle(replica: &Replica) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_bundle(replica, &mut bytes).expect("writes");
    bytes
}

fn merge(replica: &mut Replica, bytes: &[u8]) -> Result<Imported, BundleError> {
    merge_bundle(replica, &mut Cursor::new(bytes), NOW)
}

#[test]
fn a_bundle_brings_everything_live_and_credits_nothing_else() {
    let source = well_used();
    let bytes = bundle(&source);
    let mut fresh = replica("c");
    let imported = merge(&mut fresh, &bytes).expect("merges");
    let ops = source.live_dots().len();
    assert_eq!((imported.ops, imported.new, imported.refused.len()), (ops, ops, 0));
    assert_eq!(fresh.root(), source.root());
    let views: Vec<_> = source.documents().collect();
    assert_eq!(fresh.documents().collect::<Vec<_>>(), views);
    for (_, dot) in source.live_dots() {
        assert!(fresh.context().contains(dot));
    }
    assert!(!fresh.context().covers(source.context()), "superseded ops are credited without having come");
    let again = merge(&mut fresh, &bytes).expect("merges");
    assert_eq!((again.ops, again.new), (ops, 0));
    // Nothing in it is younger than what is there already.
    let mut ahead = replica("d");
    merge(&mut ahead, &bytes).expect("merges");
    put(&mut ahead, "doc-05", &[("spec", "newer"), ("meta", "")]);
    merge(&mut ahead, &bytes).expect("merges");
    assert_eq!(text(&ahead, "doc-05").expect("exists")["spec"], "newer");
}

#[test]
fn the_head_says_what_it_is_without_reading_the_rest() {
    let source = well_used();
    let bytes = bundle(&source);
    let reader = BundleReader::open(Cursor::new(&bytes[..bytes.len() / 2])).expect("the head is whole");
    assert_eq!(reader.head().store, *source.store_id());
    assert_eq!(reader.head().ops, source.live_dots().len() as u64);
    assert_eq!(reader.head().root, source.root());
    assert_eq!(reader.head().seen(), Some(source.context().clone()));
}

#[test]
fn a_bundle_cut_at_any_length_is_refused_and_nothing_is_merged() {
    let bytes = bundle(&well_used());
    let mut fresh = replica("c");
    for length in 0..bytes.len() {
        let refused = merge(&mut fresh, &bytes[..length]);
        let Err(BundleError::Damaged { offset, fault }) = refused else { panic!("{length}: {refused:?}") };
        assert!(offset <= length as u64, "{offset} of {length}: {fault}");
    }
    assert_eq!(fresh.summary().ops, 0);
}

#[test]
fn a_bundle_with_one_bit_flipped_anywhere_is_refused_and_nothing_is_merged() {
    let bytes = bundle(&well_used());
    let mut fresh = replica("c");
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        match merge(&mut fresh, &bad) {
            Err(BundleError::Damaged { offset, fault }) => {
                let hash_or_before = matches!(fault, BundleFault::Hash) || offset <= at as u64;
                assert!(hash_or_before || matches!(fault, BundleFault::Cut), "{at}: {offset} {fault}");
            }
            Err(BundleError::Newer { .. }) => assert_eq!(at, MAGIC.len(), "only the version byte may claim that"),
            other => panic!("{at}: {other:?}"),
        }
    }
    assert_eq!(fresh.summary().ops, 0);
}

#[test]
fn bytes_after_the_end_are_refused() {
    let mut bytes = bundle(&well_used());
    let length = bytes.len() as u64;
    bytes.push(0);
    let refused = merge(&mut replica("c"), &bytes);
    let Err(BundleError::Damaged { offset, fault: BundleFault::Trailing }) = refused else { panic!("{refused:?}") };
    assert_eq!(offset, length);
}

#[test]
fn a_frame_that_claims_to_be_huge_is_refused_before_it_is_read() {
    let mut bytes = bundle(&replica("a"));
    bytes[MAGIC.len() + 3] = 0xff;
    let refused = merge(&mut replica("c"), &bytes);
    let Err(BundleError::Damaged { offset, fault: BundleFault::Frame(CodecError::TooLong { .. }) }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(offset, MAGIC.len() as u64 + 1);
}

#[test]
fn a_bundle_of_another_mesh_is_refused_by_name() {
    let bytes = bundle(&well_used());
    let authority = crate::testing::HashAuthority::member("z");
    let storage = Box::new(crate::MemoryStorage::new());
    let mut other = Replica::open(storage, authority, "elsewhere", [5; 16], NOW).expect("opens");
    let refused = merge(&mut other, &bytes);
    let Err(BundleError::OtherStore { found }) = refused else { panic!("{refused:?}") };
    assert_eq!(found, "test-mesh/global");
}

#[test]
fn an_op_with_a_wrong_signature_stays_out_and_the_others_come_in() {
    let source = well_used();
    let mut out = Vec::new();
    let mut sink = Hashing { out: &mut out, hash: digest::Context::new(&digest::SHA256) };
    sink.raw(MAGIC).expect("writes");
    sink.raw(&[VERSION]).expect("writes");
    let mut ops = crate::testing::ops_of(&source);
    ops[3].1.signature[0] ^= 1;
    let count = ops.len();
    let head = BundleHead {
        store: source.store_id().clone(),
        ops: count as u64,
        root: source.root(),
        seen: source.context().image(usize::MAX),
    };
    let mut push = Push::default();
    for (record, signed) in ops {
        push.origins.extend(record);
        push.ops.push(signed);
    }
    sink.frame(Kind::BundleHead, &head).expect("writes");
    sink.frame(Kind::BundleOps, &push).expect("writes");
    sink.frame(Kind::BundleEnd, &BundleEnd { ops: count as u64 }).expect("writes");
    let hash = sink.hash.finish();
    out.extend_from_slice(hash.as_ref());
    let imported = merge(&mut replica("c"), &out).expect("merges");
    assert_eq!((imported.ops, imported.new), (count, count - 1));
    assert!(matches!(imported.refused.as_slice(), [(Some(_), Refusal::BadSignature)]), "{:?}", imported.refused);
}

#[test]
fn a_large_store_travels_in_many_small_frames() {
    let mut source = replica("a");
    for n in 0..40 {
        put(&mut source, &format!("large-{n:02}"), &[("spec", &"x".repeat(40_000))]);
    }
    let bytes = bundle(&source);
    let mut reader = BundleReader::open(Cursor::new(&bytes)).expect("opens");
    let mut frames = 0;
    while let Some(ops) = reader.next_ops().expect("reads") {
        assert!(ops.iter().map(|(_, signed)| signed.weight()).sum::<usize>() < 256 << 10);
        frames += 1;
    }
    assert!(frames >= 10, "{frames}");
    let mut fresh = replica("c");
    merge(&mut fresh, &bytes).expect("merges");
    assert_eq!(fresh.root(), source.root());
}

#[test]
fn a_file_is_replaced_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("temp dir");
    let path = folder.path().join("x.bundle");
    let mut source = well_used();
    let first = save_bundle(&source, &path).expect("saves");
    put(&mut source, "more", &[("spec", "x")]);
    assert_eq!(save_bundle(&source, &path).expect("saves"), first + 1);
    assert_eq!(std::fs::read(&path).expect("reads"), bundle(&source));
    assert_eq!(std::fs::read_dir(folder.path()).expect("reads").count(), 1, "nothing else is left");
    let nowhere = save_bundle(&source, &folder.path().join("none/x.bundle"));
    assert!(matches!(nowhere, Err(BundleError::Io { .. })), "{nowhere:?}");
}

#[test]
fn the_first_version_still_reads() {
    let mut source = replica("a");
    put(&mut source, "one", &[("spec", "1")]);
    delete(&mut source, "one");
    source
        .write(vec![crate::Edit::put(key("two"), body(&[("spec", "2")]))], crate::WriteMeta::default(), NOW)
        .expect("ok");
    let kept = golden("bundle-v1.bin", &bundle(&source));
    let mut fresh = replica("c");
    merge(&mut fresh, &kept).expect("merges");
    assert_eq!(fresh.root(), source.root());
}
