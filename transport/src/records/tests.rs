use tempfile::TempDir;

use super::*;
use crate::trust::init_mesh;

const NOW: u64 = 1_800_000_000;
const CONTEXT: &str = "cell/m/id";

fn identity(mesh: &str) -> (TempDir, Identity) {
    let dir = TempDir::new().unwrap();
    init_mesh(dir.path(), mesh, "one", None, NOW).unwrap();
    let identity = Identity::load(dir.path()).unwrap();
    (dir, identity)
}

#[test]
fn a_record_survives_its_text_form_and_verifies() {
    let (_dir, identity) = identity("shop");
    let record = SignedRecord::sign(&identity, CONTEXT, 7, 3, b"hello");
    let read = SignedRecord::from_text(&record.to_text(), 1000).unwrap();
    assert_eq!(read, record);
    assert_eq!(read.verify("shop", CONTEXT, identity.node(), &identity.public_key()), Ok(()));
    let admitted = read.verify_chained(identity.roots(), identity.chain(), CONTEXT, identity.node(), NOW).unwrap();
    assert_eq!(admitted.node, identity.node());
}

#[test]
fn a_forged_value_of_another_nodes_record_is_refused() {
    let (_dir, victim) = identity("shop");
    let (_other_dir, forger) = identity("shop");
    let (node, key) = (victim.node(), victim.public_key());
    let record = SignedRecord::sign(&victim, CONTEXT, 7, 3, b"hello");
    let bad_signature = Err(RecordError::BadSignature { node });

    let changed = SignedRecord { payload: b"hullo".to_vec(), ..record.clone() };
    assert_eq!(changed.verify("shop", CONTEXT, node, &key), bad_signature);
    let newer = SignedRecord { seq: 4, ..record.clone() };
    assert_eq!(newer.verify("shop", CONTEXT, node, &key), bad_signature);
    let later_life = SignedRecord { generation: 8, ..record.clone() };
    assert_eq!(later_life.verify("shop", CONTEXT, node, &key), bad_signature);
    let signed_by_forger = SignedRecord { node, ..SignedRecord::sign(&forger, CONTEXT, 7, 4, b"hullo") };
    assert_eq!(signed_by_forger.verify("shop", CONTEXT, node, &key), bad_signature);
    assert_eq!(
        signed_by_forger.verify("shop", CONTEXT, node, &forger.public_key()),
        Err(RecordError::OtherKey { node })
    );
}

#[test]
fn a_record_does_not_verify_in_another_place() {
    let (_dir, identity) = identity("shop");
    let (node, key) = (identity.node(), identity.public_key());
    let record = SignedRecord::sign(&identity, CONTEXT, 7, 3, b"hello");
    let bad_signature = Err(RecordError::BadSignature { node });
    assert_eq!(record.verify("shop", "cell/l/hello", node, &key), bad_signature);
    assert_eq!(record.verify("other", CONTEXT, node, &key), bad_signature);
    let stranger = NodeId::from_bytes([9; 16]);
    assert_eq!(
        record.verify("shop", CONTEXT, stranger, &key),
        Err(RecordError::OtherNode { found: node, expected: stranger })
    );
}

#[test]
fn certificates_of_another_root_or_time_do_not_vouch() {
    let (_dir, identity) = identity("shop");
    let (_other_dir, other) = self::identity("shop");
    let record = SignedRecord::sign(&identity, CONTEXT, 7, 3, b"hello");
    let check = |roots, chain: &[Vec<u8>], now| record.verify_chained(roots, chain, CONTEXT, identity.node(), now);
    assert!(matches!(check(other.roots(), identity.chain(), NOW), Err(RecordError::NotAdmitted { .. })));
    assert!(matches!(check(identity.roots(), other.chain(), NOW), Err(RecordError::NotAdmitted { .. })));
    assert!(matches!(check(identity.roots(), &[], NOW), Err(RecordError::NotAdmitted { .. })));
    let in_eleven_years = NOW + 11 * 365 * 86_400;
    assert!(matches!(check(identity.roots(), identity.chain(), in_eleven_years), Err(RecordError::NotAdmitted { .. })));
}

#[test]
fn text_that_is_no_record_is_refused() {
    let (_dir, identity) = identity("shop");
    let text = SignedRecord::sign(&identity, CONTEXT, 7, 3, b"hello").to_text();
    let len = text.len();
    assert_eq!(SignedRecord::from_text(&text, len - 1), Err(RecordError::TooLong { len, max: len - 1 }));
    let mut other_version = BASE64URL_NOPAD.decode(text.as_bytes()).unwrap();
    other_version[0] = 2;
    for junk in ["", "!", "AQ", &text[..100], &BASE64URL_NOPAD.encode(&other_version), &format!("{text}=")] {
        assert_eq!(SignedRecord::from_text(junk, 1000), Err(RecordError::Malformed), "{junk}");
    }
}

#[test]
fn the_later_of_two_records_is_known_by_life_and_number() {
    let record = |generation, seq| SignedRecord {
        node: NodeId::from_bytes([1; 16]),
        generation,
        seq,
        payload: Vec::new(),
        signature: [0; 64],
    };
    assert!(record(2, 0).supersedes(&record(1, 9)));
    assert!(record(1, 9).supersedes(&record(1, 8)));
    assert!(!record(1, 8).supersedes(&record(1, 8)));
}

#[test]
fn certificates_survive_their_text_form_within_limits() {
    let chain = vec![vec![1; 400], vec![2; 300]];
    let text = chain_to_text(&chain);
    assert_eq!(chain_from_text(&text, 2000), Ok(chain));
    assert!(matches!(chain_from_text(&text, 100), Err(RecordError::TooLong { .. })));
    for junk in ["", ".", "AQ.", "AQ.AQ.AQ.AQ.AQ", "A~"] {
        assert_eq!(chain_from_text(junk, 100), Err(RecordError::Malformed), "{junk}");
    }
}
