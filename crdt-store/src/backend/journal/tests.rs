use std::fs;

use super::*;
use crate::backend::tests::batch;

fn changes(pairs: &[(&str, Option<&[u8]>)]) -> Changes {
    pairs.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.map(<[u8]>::to_vec))).collect()
}

fn open(folder: &Path) -> Journal {
    Journal::resume(folder, &read(folder).expect("reads")).expect("resumes")
}

fn append(journal: &mut Journal, pairs: &[(&str, Option<&[u8]>)]) {
    assert!(journal.append(&batch(pairs), true).is_ok());
}

#[test]
fn the_last_value_of_each_key_comes_back_with_removals() {
    let folder = tempfile::tempdir().expect("temp dir");
    let mut journal = open(folder.path());
    append(&mut journal, &[("a", Some(b"1")), ("b", Some(b""))]);
    append(&mut journal, &[("a", None), ("c", Some(&[7; 100_000]))]);
    append(&mut journal, &[("b", Some(b"2"))]);
    let expected = changes(&[("a", None), ("b", Some(b"2")), ("c", Some(&[7; 100_000]))]);
    assert_eq!(read(folder.path()).expect("reads").changes, expected);
    // Also once it was written anew, and gone on with.
    let mut journal = open(folder.path());
    append(&mut journal, &[("d", Some(b"4"))]);
    let mut expected = expected;
    expected.extend(changes(&[("d", Some(b"4"))]));
    assert_eq!(read(folder.path()).expect("reads").changes, expected);
    assert!(!journal.is_new());
    journal.restart(&batch(&[("kept", Some(b"5"))])).expect("restarts");
    assert!(journal.is_new());
    assert_eq!(read(folder.path()).expect("reads").changes, changes(&[("kept", Some(b"5"))]));
}

/// Bytes of a journal of three batches, and where each ends.
fn three_batches() -> (Vec<u8>, Vec<usize>) {
    let folder = tempfile::tempdir().expect("temp dir");
    let mut journal = open(folder.path());
    let mut ends = vec![usize::try_from(journal.bytes()).expect("small")];
    for n in ["1", "2", "3"] {
        append(&mut journal, &[("last", Some(n.as_bytes())), (n, Some(&[0; 40]))]);
        ends.push(usize::try_from(journal.bytes()).expect("small"));
    }
    (fs::read(folder.path().join(JOURNAL_FILE)).expect("reads"), ends)
}

#[test]
fn a_journal_cut_anywhere_has_every_batch_before_the_cut() {
    let (bytes, ends) = three_batches();
    for cut in ends[0]..=bytes.len() {
        for tail in [&[][..], &[0; 64], &[0xa5; 64]] {
            let (content, fault) = parse(&[&bytes[..cut], tail].concat());
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!((content.records, fault), (u64::try_from(whole).expect("small"), None), "cut at {cut}");
            assert_eq!(content.end, ends[whole]);
        }
    }
}

#[test]
fn damage_before_the_last_batch_is_told_and_never_passed_over() {
    let (bytes, ends) = three_batches();
    for place in 0..ends[2] {
        let mut bytes = bytes.clone();
        bytes[place] ^= 1;
        let (content, fault) = parse(&bytes);
        let before = ends.iter().filter(|end| **end <= place).count().saturating_sub(1);
        assert!(content.records <= u64::try_from(before).expect("small"), "bit in byte {place}");
        // Whoever changes the salt makes all records foreign, which looks like a journal of one unfinished record: the
        // store then finds that its own counter and documents do not fit.
        let is_salt = (16..24).contains(&place);
        assert_eq!(fault.is_some(), !is_salt, "bit in byte {place}");
    }
}

#[test]
fn a_document_that_looks_like_a_record_is_none() {
    let (bytes, ends) = three_batches();
    let (mut other, _) = three_batches();
    other.truncate(ends[1]);
    // The unfinished record holds, as a value, what would be a whole one in the other file.
    let content = parse(&[&other, &bytes[ends[1]..ends[2]]].concat());
    assert_eq!((content.0.records, content.1), (1, None));
}

#[test]
fn what_a_failed_write_left_is_overwritten() {
    let folder = tempfile::tempdir().expect("temp dir");
    let mut journal = open(folder.path());
    append(&mut journal, &[("a", Some(b"1"))]);
    // As if a longer record had been written in part and could not be cut off.
    let file = OpenOptions::new().write(true).open(folder.path().join(JOURNAL_FILE)).expect("opens");
    file.write_all_at(&[9; 500], journal.bytes()).expect("writes");
    journal.is_doubtful = true;
    append(&mut journal, &[("b", Some(b"2"))]);
    assert_eq!(read(folder.path()).expect("reads").changes, changes(&[("a", Some(b"1")), ("b", Some(b"2"))]));
    assert_eq!(fs::metadata(folder.path().join(JOURNAL_FILE)).expect("exists").len(), journal.bytes());
}

#[test]
fn one_process_uses_a_folder() {
    let folder = tempfile::tempdir().expect("temp dir");
    let first = lock(folder.path()).expect("locks");
    assert!(matches!(lock(folder.path()), Err(StorageError::InUse { .. })));
    drop(first);
    lock(folder.path()).expect("locks");
}

/// Written by a program of its own after the description of the layout.
#[test]
fn a_journal_of_version_1_reads() {
    let (content, fault) = parse(include_bytes!("../../../testdata/journal-v1.bin"));
    assert_eq!((content.records, content.salt, fault), (2, [7; 8], None));
    assert_eq!(content.changes, changes(&[("a", None), ("b", Some(b"")), ("c", Some(&[b'x'; 300]))]));
}
