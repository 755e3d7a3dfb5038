use super::*;

fn change(key: &str, hash: Option<&str>) -> Change {
    Change { key: key.to_owned(), hash: hash.map(str::to_owned) }
}

fn state(documents: &[(&str, &str)]) -> State {
    let version = |hash: &str| Version { hash: hash.to_owned(), etag: Some(format!("tag-{hash}")) };
    documents.iter().map(|(key, hash)| ((*key).to_owned(), version(hash))).collect()
}

/// Three acknowledged writes, the last one of two documents, and one that was under way, of two documents as well.
fn ledger() -> Ledger {
    let mut ledger = Ledger::default();
    for (changes, is_acknowledged) in [
        (vec![change("a", Some("1"))], true),
        (vec![change("b", Some("2"))], true),
        (vec![change("a", None), change("b", Some("3"))], true),
        (vec![change("a", Some("4")), change("c", Some("5"))], false),
    ] {
        let etags: Vec<_> =
            changes.iter().map(|change| change.hash.as_ref().map(|hash| format!("tag-{hash}"))).collect();
        ledger.begin(changes);
        if is_acknowledged {
            ledger.acknowledge(&etags);
        }
    }
    ledger
}

#[test]
fn each_state_that_may_be_found_gets_its_verdict() {
    let unexplained = |key: &str| Verdict::Unexplained { writes: 3, key: key.to_owned() };
    let mut of_another_write = state(&[("b", "3")]);
    of_another_write.get_mut("b").unwrap().etag = Some("tag-2".to_owned());
    for (found, expected) in [
        (state(&[("b", "3")]), Verdict::Whole { kept_unacknowledged: 0 }),
        (state(&[("a", "4"), ("b", "3"), ("c", "5")]), Verdict::Whole { kept_unacknowledged: 1 }),
        (state(&[("a", "1"), ("b", "2")]), Verdict::Lost { writes: 1 }),
        (state(&[("a", "1")]), Verdict::Lost { writes: 2 }),
        (state(&[]), Verdict::Lost { writes: 3 }),
        // Half of a write.
        (state(&[("a", "4"), ("b", "3")]), unexplained("c")),
        (state(&[("a", "1"), ("b", "3")]), unexplained("a")),
        // The first write without the second.
        (state(&[("b", "2")]), unexplained("a")),
        // What nobody wrote.
        (state(&[("b", "3"), ("z", "9")]), unexplained("a")),
        (of_another_write, unexplained("a")),
    ] {
        assert_eq!(ledger().judge(&found), expected, "{found:?}");
    }
}

#[test]
fn a_store_is_judged_from_what_was_found_last() {
    let mut ledger = ledger();
    ledger.judge(&state(&[("a", "1"), ("b", "2")]));
    assert_eq!(ledger.judge(&state(&[("a", "1"), ("b", "2")])), Verdict::Whole { kept_unacknowledged: 0 });
    assert_eq!(ledger.acknowledged(), 2, "what is lost is counted once");
    ledger.begin(vec![change("a", None)]);
    ledger.acknowledge(&[None]);
    assert_eq!(ledger.judge(&state(&[("a", "1"), ("b", "2")])), Verdict::Lost { writes: 1 });
}
