use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    compile,
    document::{Document, Limits, TargetRef, parse_documents},
    validate::validate,
    weigh::Capacity,
};

fn here(region: &str, zone: &str) -> Place {
    Place { node_name: "gw".to_owned(), region: region.to_owned(), zone: zone.to_owned() }
}

fn policy(locality: &str, here: &Place) -> Option<Localities> {
    let text = format!(
        "
apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata: {{ name: hello }}
targetRef: {{ kind: Service, name: hello }}
spec: {{ locality: {locality} }}
"
    );
    let documents = parse_documents(&text, &Limits::default()).expect("the text reads");
    documents.iter().for_each(|document| assert_eq!(validate(document), Ok(()), "{locality}"));
    compile(&documents, here, 0).table.backend("hello").locality.as_ref()?.localities(here)
}

const SPLIT: &str = "{ distribute: [ { from: eu/z1, to: { eu/z1: 80, eu/z2: 20 } } ] }";
const TIERS: &str = "{ tiers: [ zone, region, any ] }";

/// Shares in tenths of a percent, by sound and known instances of each locality.
fn shares(localities: &Localities, health: &[(f64, f64)]) -> Vec<f64> {
    let health: Vec<Health> = health.iter().map(|&(sound, known)| Health { sound, known }).collect();
    let mut shares = Vec::new();
    localities.shares(&health, &mut shares);
    shares.into_iter().map(|share| (share * 1000.0).round() / 10.0).collect()
}

#[test]
fn a_split_gives_each_locality_its_percentage_and_spills_what_is_missing_in_proportion() {
    let split = policy(SPLIT, &here("eu", "z1")).unwrap();
    let names: Vec<String> = (0..split.count()).map(|at| split.name(at)).collect();
    assert_eq!(names, ["eu/z1", "eu/z2", "own zone", "own region", "anywhere"]);
    let none = (0.0, 0.0);
    for (what, first, second, elsewhere, expected) in [
        ("all is well", (4.0, 4.0), (4.0, 4.0), none, [80.0, 20.0, 0.0]),
        ("three of four are enough: 0.75 * 1.4 > 1", (3.0, 4.0), (4.0, 4.0), none, [80.0, 20.0, 0.0]),
        ("half of it: 80 * 0.7 = 56 beside 20", (2.0, 4.0), (4.0, 4.0), none, [73.7, 26.3, 0.0]),
        ("both lost half", (2.0, 4.0), (1.0, 2.0), none, [80.0, 20.0, 0.0]),
        ("the first is gone", (0.0, 4.0), (4.0, 4.0), (2.0, 2.0), [0.0, 100.0, 0.0]),
        ("the second never was", (4.0, 4.0), none, none, [100.0, 0.0, 0.0]),
        ("one of many is better than elsewhere", (1.0, 9.0), (0.0, 4.0), (2.0, 2.0), [100.0, 0.0, 0.0]),
        ("nobody is left but elsewhere", (0.0, 4.0), (0.0, 4.0), (2.0, 2.0), [0.0, 0.0, 100.0]),
        ("nobody is left at all", (0.0, 4.0), (0.0, 4.0), (0.0, 2.0), [0.0, 0.0, 0.0]),
    ] {
        let shares = shares(&split, &[first, second, none, none, elsewhere]);
        assert_eq!(vec![shares[0], shares[1], shares[4]], expected.to_vec(), "{what}");
    }
}

#[test]
fn tiers_fill_up_from_the_nearest_and_spill_below_the_threshold() {
    let tiers = policy(TIERS, &here("eu", "z1")).unwrap();
    for (what, health, expected) in [
        ("all is well", [(3.0, 3.0), (2.0, 2.0), (5.0, 5.0)], [100.0, 0.0, 0.0]),
        (
            "half of the zone: 0.7 of it there, the rest in the region",
            [(2.0, 4.0), (2.0, 2.0), (5.0, 5.0)],
            [70.0, 30.0, 0.0],
        ),
        ("half and half: the rest of the rest anywhere", [(1.0, 4.0), (1.0, 4.0), (5.0, 5.0)], [35.0, 35.0, 30.0]),
        ("not enough anywhere: in proportion", [(1.0, 7.0), (1.0, 7.0), (1.0, 7.0)], [33.3, 33.3, 33.3]),
        ("the zone is gone", [(0.0, 4.0), (2.0, 2.0), (5.0, 5.0)], [0.0, 100.0, 0.0]),
        ("no zone of its own", [(0.0, 0.0), (0.0, 0.0), (5.0, 5.0)], [0.0, 0.0, 100.0]),
        ("nobody is left", [(0.0, 4.0), (0.0, 2.0), (0.0, 5.0)], [0.0, 0.0, 0.0]),
    ] {
        assert_eq!(shares(&tiers, &health), expected, "{what}");
    }
    let strict = policy("{ tiers: [ region ], failoverThreshold: 100% }", &here("eu", "z1")).unwrap();
    assert_eq!(shares(&strict, &[(3.0, 4.0), (1.0, 1.0)]), [75.0, 25.0], "`any` comes last without being written");
}

#[test]
fn the_most_specific_locality_counts_for_the_node_and_for_the_instance() {
    let text = "{ distribute: [
        { from: '*', to: { '*': 100 } },
        { from: eu, to: { eu/*: 90, '*': 10 } },
        { from: eu/z1/*, to: { eu/z1/*: 70, eu/*: 20, '*': 10 } } ] }";
    let at = |region: &str, zone: &str| {
        let localities = policy(text, &here(region, zone)).unwrap();
        let of = |region, zone| localities.percent(localities.of(region, zone));
        [of("eu", "z1"), of("eu", "z2"), of("us", "z1"), of("", "")]
    };
    assert_eq!(at("eu", "z1"), [Some(70), Some(20), Some(10), Some(10)]);
    assert_eq!(at("eu", "z9"), [Some(90), Some(90), Some(10), Some(10)]);
    assert_eq!(at("us", "z1"), [Some(100); 4]);

    let tiers = policy(TIERS, &here("eu", "z1")).unwrap();
    let of = |region, zone| tiers.name(tiers.of(region, zone));
    assert_eq!(
        [of("eu", "z1"), of("eu", "z2"), of("us", "z1"), of("", "z1")],
        ["own zone", "own region", "anywhere", "anywhere"]
    );
    let nowhere = policy(TIERS, &here("", "")).unwrap();
    assert_eq!(nowhere.name(nowhere.of("", "")), "anywhere", "who has no zone shares none");
}

#[test]
fn a_node_that_no_distribution_is_from_is_as_without_unless_there_are_tiers() {
    assert_eq!(policy(SPLIT, &here("eu", "z2")), None);
    let both = "{ distribute: [ { from: eu/z1, to: { eu/z2: 100 } } ], tiers: [ zone ] }";
    let localities = policy(both, &here("eu", "z2")).unwrap();
    assert_eq!((localities.count(), localities.percent(0)), (2, None));
    assert_eq!(policy("{ failoverThreshold: 70 }", &here("eu", "z1")), None, "a threshold of nothing");
}

#[test]
fn each_fault_of_a_locality_is_named() {
    for (locality, expected) in [
        ("{}", ": says nothing"),
        ("{ tier: [ zone ] }", ".tier: unknown field"),
        ("{ tiers: [] }", ".tiers: is empty"),
        ("{ tiers: [ zone, zone ] }", ".tiers[1]: is not farther than the one before it"),
        ("{ tiers: [ any, zone ] }", ".tiers[1]: is not farther than the one before it"),
        ("{ tiers: [ subzone ] }", ".tiers[0]: `subzone` is not carried by this version"),
        ("{ tiers: [ zone ], failoverThreshold: 0 }", ".failoverThreshold: 0 is outside 1..=100"),
        (
            "{ tiers: [ zone ], failoverThreshold: 101% }",
            ".failoverThreshold: `101%` is not a percentage from 1% to 100%",
        ),
        (
            "{ tiers: [ zone ], failoverThreshold: '70' }",
            ".failoverThreshold: `70` is not a percentage from 1% to 100%",
        ),
        ("{ distribute: [] }", ".distribute: is empty"),
        ("{ distribute: [ { to: { eu: 100 } } ] }", ".distribute[0].from: is missing"),
        ("{ distribute: [ { from: eu } ] }", ".distribute[0].to: is missing"),
        ("{ distribute: [ { from: eu, to: {} } ] }", ".distribute[0].to: the parts must add up to 100, they come to 0"),
        (
            "{ distribute: [ { from: eu, to: { eu: 80, us: 30 } } ] }",
            ".distribute[0].to: the parts must add up to 100, they come to 110",
        ),
        ("{ distribute: [ { from: eu, to: { eu: 100, us: 0 } } ] }", ".distribute[0].to.us: 0 is outside 1..=100"),
        ("{ distribute: [ { from: eu/Z_1, to: { eu: 100 } } ] }", ".distribute[0].from: `Z_1` is not a DNS label"),
        (
            "{ distribute: [ { from: eu/z1/rack, to: { eu: 100 } } ] }",
            ".distribute[0].from: `eu/z1/rack` names a place within a zone, which nodes do not tell",
        ),
        ("{ distribute: [ { from: a/b/c/d, to: { eu: 100 } } ] }", ".distribute[0].from: `a/b/c/d` is not a locality"),
        (
            "{ distribute: [ { from: eu, to: { eu: 50, eu/*: 50 } } ] }",
            ".distribute[0].to[\"eu/*\"]: `eu/*` stands here twice",
        ),
        (
            "{ distribute: [ { from: eu, to: { eu: 100 } }, { from: eu/*, to: { eu: 100 } } ] }",
            ".distribute[1].from: `eu/*` stands here twice",
        ),
    ] {
        let mut document = Document::new("BackendTrafficPolicy", "global", "hello");
        document.target_ref = Some(TargetRef { kind: "Service".into(), name: "hello".into() });
        let yaml = format!(
            "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: hello }}\nspec: {{ locality: {locality} }}\n"
        );
        document.spec = parse_documents(&yaml, &Limits::default()).expect("it reads")[0].spec.clone();
        let problems = validate(&document).expect_err(locality);
        let found: Vec<String> =
            problems.iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect();
        assert_eq!(found, [format!("spec.locality{expected}")], "{locality}");
    }
}

fn candidates(count: u32) -> Vec<Candidate> {
    let capacity = |n: u32| Capacity::new(f64::from(n % 3 + 1)).unwrap();
    (0..count).map(|n| Candidate::with_inflight(capacity(n), f64::from(n % 4), f64::from(n % 5) * 10.0)).collect()
}

/// How often each candidate is drawn of `count` times.
fn drawn(draw: Draw, parts: &[Part], candidates: &[Candidate], count: u32) -> Vec<u32> {
    let policy = BackendPolicy { draw, ..BackendPolicy::default() };
    let mut weighed = Vec::new();
    weigh_parts(&policy, candidates, parts, &mut weighed);
    let all: f64 = weighed.iter().map(|one| one.probability).sum();
    assert!((all - 1.0).abs() < 1e-9, "the probabilities come to {all}");
    let contender = |at: usize| {
        let candidate = candidates.get(at)?;
        let inflight = candidate.load_used() * candidate.capacity.requests();
        let latency_ms = Some(5.0 + f64::from(u32::try_from(at).ok()?));
        Some(Contender {
            capacity: candidate.capacity,
            inflight,
            own_inflight: 0,
            distance_ms: candidate.distance_ms,
            latency_ms,
        })
    };
    let mut random = StdRng::seed_from_u64(7);
    let mut counts = vec![0; candidates.len()];
    for _ in 0..count {
        let choice = choose_within(draw, &weighed, parts, [random.random(), random.random()], contender).unwrap();
        let part_of = |at: usize| {
            let mut end = 0;
            parts.iter().position(|part| {
                end += part.len;
                at < end
            })
        };
        assert!(choice.passed_over.is_none_or(|other| part_of(other) == part_of(choice.chosen)), "{choice:?}");
        counts[choice.chosen] += 1;
    }
    counts
}

#[test]
fn each_part_gets_its_share_of_ten_thousand_whatever_the_draw_and_whoever_is_in_it() {
    let parts = [Part { len: 2, share: 0.8 }, Part { len: 0, share: 0.0 }, Part { len: 5, share: 0.2 }];
    for draw in [Draw::Single, Draw::BestOfTwo] {
        let counts = drawn(draw, &parts, &candidates(7), 10_000);
        let first: u32 = counts.iter().take(2).sum();
        assert!((7850..=8150).contains(&first), "{draw}: {first} of 10,000");
    }
}

#[test]
fn within_a_part_a_single_draw_is_by_p() {
    let candidates = candidates(7);
    let parts = [Part { len: 3, share: 0.3 }, Part { len: 4, share: 0.7 }];
    let counts = drawn(Draw::Single, &parts, &candidates, 100_000);
    let mut weighed = Vec::new();
    weigh_parts(&BackendPolicy::default(), &candidates, &parts, &mut weighed);
    let statistic: f64 = (counts.iter().zip(&weighed))
        .map(|(count, one)| {
            let expected = one.probability * 100_000.0;
            (f64::from(*count) - expected).powi(2) / expected
        })
        .sum();
    // Six degrees of freedom: 22.5 is passed once in a thousand.
    assert!(statistic < 22.5, "{statistic}: {counts:?}");
}

#[test]
fn the_ends_of_the_chance_draw_the_first_and_the_last_and_nobody_is_drawn_of_nothing() {
    let parts = [Part { len: 1, share: 0.5 }, Part { len: 1, share: 0.5 }, Part { len: 1, share: 0.0 }];
    let mut weighed = Vec::new();
    weigh_parts(&BackendPolicy::default(), &candidates(3), &parts, &mut weighed);
    let chosen =
        |chance| choose_within(Draw::Single, &weighed, &parts, [chance, 0.0], |_| None).map(|choice| choice.chosen);
    assert_eq!([chosen(0.0), chosen(0.499), chosen(0.5), chosen(0.999_999), chosen(1.0)], [0, 0, 1, 1, 1].map(Some));
    assert_eq!(choose_within(Draw::Single, &[], &[], [0.5, 0.5], |_| None), None);
    let nothing = [Part { len: 3, share: 0.0 }];
    assert_eq!(choose_within(Draw::Single, &weighed, &nothing, [0.5, 0.5], |_| None), None);
}
