use super::*;

/// One line of a history: text (`None` deletes), the writes seen, whether it was acknowledged, in doubt or refused.
type Line = (Option<&'static str>, &'static [WriteId], char);

fn ledger(lines: &[Line]) -> Ledger {
    let mut ledger = Ledger::default();
    for (text, seen, outcome) in lines {
        let ids = ledger.begin(vec![Write::new("doc", 0, text.map(str::to_owned), seen.to_vec())]);
        let outcome = match outcome {
            'a' => Outcome::Acknowledged { dot: format!("x:{}", ids[0]), etag: String::new() },
            'd' => Outcome::InDoubt,
            _ => Outcome::Refused,
        };
        ledger.superseded(ids[0], seen.to_vec());
        ledger.settle(ids[0], outcome, 1.0);
    }
    ledger
}

fn view(ids: &[(WriteId, &str)]) -> View {
    let sides: BTreeSet<Shown> = ids.iter().map(|(id, text)| Shown { id: *id, text: (*text).to_owned() }).collect();
    if sides.is_empty() { View::new() } else { View::from([("doc".to_owned(), sides)]) }
}

fn check(lines: &[Line], shown: &[(WriteId, &str)], expected: &[Fault]) {
    let found: Vec<Fault> = ledger(lines).check(&[view(shown)]).iter().cloned().collect();
    assert_eq!(found, expected, "{lines:?} shown as {shown:?}");
}

#[test]
fn an_acknowledged_write_is_visible_or_superseded_by_one_that_saw_it() {
    check(&[(Some("a"), &[], 'a')], &[(0, "a")], &[]);
    check(&[(Some("a"), &[], 'a')], &[], &[Fault::Lost(0)]);
    check(&[(Some("a"), &[], 'a'), (Some("b"), &[0], 'a')], &[(1, "b")], &[]);
    check(&[(Some("a"), &[], 'a'), (None, &[0], 'a')], &[], &[]);
    // The second did not see the first: both must show.
    check(&[(Some("a"), &[], 'a'), (Some("b"), &[], 'a')], &[(0, "a"), (1, "b")], &[]);
    check(&[(Some("a"), &[], 'a'), (Some("b"), &[], 'a')], &[(1, "b")], &[Fault::Lost(0)]);
    check(&[(Some("a"), &[], 'a'), (None, &[], 'a')], &[], &[Fault::Lost(0)]);
}

#[test]
fn a_write_in_doubt_explains_a_loss_only_when_something_shows_that_it_took_effect() {
    check(&[(Some("a"), &[], 'a'), (Some("b"), &[0], 'd')], &[(0, "a")], &[]);
    check(&[(Some("a"), &[], 'a'), (Some("b"), &[0], 'd')], &[(1, "b")], &[]);
    check(&[(Some("a"), &[], 'a'), (Some("b"), &[0], 'd')], &[], &[Fault::Lost(0)]);
    check(&[(Some("a"), &[], 'a'), (Some("b"), &[0], 'd'), (Some("c"), &[1], 'a')], &[(2, "c")], &[]);
    check(&[(Some("a"), &[], 'a'), (None, &[0], 'd')], &[], &[]);
    check(&[(Some("a"), &[], 'a'), (None, &[0], 'd')], &[(0, "a")], &[]);
    check(&[(Some("a"), &[], 'a'), (None, &[0], 'r')], &[], &[Fault::Lost(0)]);
}

#[test]
fn what_an_acknowledged_write_superseded_does_not_return() {
    check(&[(Some("a"), &[], 'a'), (None, &[0], 'a')], &[(0, "a")], &[Fault::Returned(0)]);
    let chain: &[Line] = &[(Some("a"), &[], 'a'), (Some("b"), &[0], 'd'), (Some("c"), &[1], 'a')];
    check(chain, &[(0, "a"), (2, "c")], &[Fault::Returned(0)]);
}

#[test]
fn what_nobody_wrote_is_a_fault_and_so_is_a_refused_write() {
    let shown = |id, text: &str| Shown { id, text: text.to_owned() };
    let invented = |id, text| Fault::Invented("doc".to_owned(), shown(id, text));
    check(&[(Some("a"), &[], 'a')], &[(0, "b")], &[Fault::Lost(0), invented(0, "b")]);
    check(&[(Some("a"), &[], 'r')], &[(0, "a")], &[invented(0, "a")]);
    check(&[], &[(7, "a")], &[invented(7, "a")]);
}

#[test]
fn two_requests_never_share_a_dot_but_documents_of_one_request_do() {
    let outcome = || Outcome::Acknowledged { dot: "x:1".to_owned(), etag: String::new() };
    let write = |name: &str| Write::new(name, 0, Some("a".to_owned()), Vec::new());
    let mut ledger = Ledger::default();
    for id in ledger.begin(vec![write("one"), write("two")]) {
        ledger.settle(id, outcome(), 1.0);
    }
    assert_eq!(ledger.faults, BTreeSet::new());
    let third = ledger.begin(vec![write("three")])[0];
    ledger.settle(third, outcome(), 2.0);
    assert_eq!(ledger.faults, BTreeSet::from([Fault::DotTwice(0, 2)]));
    assert_eq!(ledger.counts(), Counts { acknowledged: 3, ..Counts::default() });
}

#[test]
fn nodes_that_show_different_content_are_told() {
    let mut ledger = ledger(&[(Some("a"), &[], 'a'), (Some("b"), &[0], 'a')]);
    let faults = ledger.check(&[view(&[(1, "b")]), view(&[(0, "a")])]).clone();
    assert!(faults.contains(&Fault::Differs("doc".to_owned())), "{faults:?}");
    assert!(faults.contains(&Fault::Returned(0)) && faults.contains(&Fault::Lost(1)), "{faults:?}");
}
