//! What each instance really gets, against the formula.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use policy::Draw;
use policy::explain::Explanation;
use serde_json::{Value, json};
use statrs::distribution::{ChiSquared, ContinuousCDF as _};
use tests::{App, Fleet, Node, Request, Shared, eventually, get, send};

use crate::policy::apply;

static UNEQUAL: Shared<Unequal> = Shared::new();

/// Both tests look at loads and counts that requests of the other would move.
static TURN: Mutex<()> = Mutex::new(());

/// Requests of the test of shares, over this many threads.
const REQUESTS: usize = 3_000;
const THREADS: usize = 6;

/// One draw by P for `hello`.
pub(crate) const SINGLE: &str = "\
apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata: { name: hello, scope: global }
targetRef: { kind: Service, name: hello }
spec: { loadBalancer: { draw: Single } }
";

/// `hello` with capacities 100 and 50 on the first node and 200 on the second; the third has none. One draw by P, so that
/// the shares are the probabilities; `twin` runs beside the first under the default, the best of two.
struct Unequal {
    fleet: Fleet,
    apps: [App; 3],
}

fn unequal() -> Unequal {
    let apps = [App::start("a"), App::start("b"), App::start("c")];
    let fleet = Fleet::start(3, &|n, config| match n {
        0 => {
            Node::serve(config, "hello", apps[0].address(), Some(100.0));
            Node::serve(config, "hello", apps[1].address(), Some(50.0));
            Node::serve(config, "twin", apps[0].address(), Some(100.0));
        }
        1 => {
            Node::serve(config, "hello", apps[2].address(), Some(200.0));
            Node::serve(config, "twin", apps[2].address(), Some(100.0));
        }
        _ => {}
    });
    fleet.wait_service("hello", 3);
    fleet.wait_service("twin", 2);
    apply(&fleet.nodes[0], SINGLE);
    eventually("a single draw is in force", Duration::from_secs(5), || {
        let draw = fleet.nodes[2].explain("hello")?.draw;
        if draw == Draw::Single { Ok(()) } else { Err(draw.to_string()) }
    });
    Unequal { fleet, apps }
}

/// Picks and expected picks of each instance.
fn picks(explanation: &Explanation) -> BTreeMap<String, (f64, f64)> {
    let counted = explanation.candidates.iter().map(|candidate| {
        let picks = f64::from(u32::try_from(candidate.picks).unwrap());
        let expected = candidate.expected_picks.expect("a single draw tells what the picks should come to");
        (candidate.instance.clone(), (picks, expected))
    });
    counted.collect()
}

#[test]
fn the_counts_fit_the_probabilities_of_each_decision() {
    let world = UNEQUAL.get(unequal);
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let client = &world.fleet.nodes[2];
    let requests_before: Vec<u64> = world.apps.iter().map(App::requests).collect();
    let before = picks(&client.explain("hello").unwrap());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..REQUESTS / THREADS {
                    let answer = client.get("hello", "/").unwrap();
                    assert_eq!(answer.status, 200, "{answer:?}");
                }
            });
        }
    });
    let explanation = client.explain("hello").unwrap();
    let after = picks(&explanation);

    let mut statistic = 0.0;
    for (app, earlier) in world.apps.iter().zip(requests_before) {
        let instance = app.address().port().to_string();
        let (picked, expected) = (after[&instance].0 - before[&instance].0, after[&instance].1 - before[&instance].1);
        let served = f64::from(u32::try_from(app.requests() - earlier).unwrap());
        assert!((picked - served).abs() < 1e-9, "{instance}: picked {picked}, served {served}");
        assert!(expected > 100.0, "{instance}: {explanation:?}");
        statistic += (picked - expected).powi(2) / expected;
    }
    let all: f64 = after.values().zip(before.values()).map(|(after, before)| after.0 - before.0).sum();
    assert!((all - f64::from(u32::try_from(REQUESTS).unwrap())).abs() < 1e-9, "one pick for each request: {all}");
    let chance = ChiSquared::new(2.0).unwrap().sf(statistic);
    // Draws that follow the shares fall below this once in a thousand million runs; shares off by ten points always do.
    assert!(chance > 1e-9, "chi-square {statistic}, p = {chance}: {explanation:#?}");
    println!("chi-square {statistic:.2}, p = {chance:.3} over {all} requests");

    // The first two stand on the same node, so nothing but capacity tells them apart: 100 against 50.
    let counted = |app: &App| after[&app.address().port().to_string()].1 - before[&app.address().port().to_string()].1;
    let ratio = counted(&world.apps[0]) / counted(&world.apps[1]);
    assert!((1.7..2.3).contains(&ratio), "{ratio}: {explanation:#?}");
}

#[test]
fn the_decision_header_carries_the_numbers_of_that_request() {
    let world = UNEQUAL.get(unequal);
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let client = &world.fleet.nodes[2];
    for _ in 0..20 {
        let headers = [("host", "hello.mesh"), ("marram-explain", "1")];
        let answer = get(client.proxy, "/", &headers).unwrap();
        let header = answer.header("marram-decision").unwrap_or_else(|| panic!("{answer:?}"));
        let decision: Value = serde_json::from_str(header).unwrap();
        assert_eq!((&decision["service"], &decision["draw"]), (&json!("hello"), &json!("Single")));
        let candidates = decision["candidates"].as_array().unwrap();
        assert_eq!(candidates.len(), 3, "{decision:#}");

        let chosen: Vec<&Value> = candidates.iter().filter(|candidate| candidate["chosen"] == true).collect();
        assert_eq!(chosen.len(), 1, "{decision:#}");
        let port: u16 = chosen[0]["instance"].as_str().unwrap().parse().unwrap();
        let name = ["a", "b", "c"][world.apps.iter().position(|app| app.address().port() == port).unwrap()];
        assert_eq!(answer.body, format!("hello from {name}"));
        let via = format!("n2->{}", chosen[0]["node"].as_str().unwrap());
        assert_eq!(answer.header("marram-via"), Some(via.as_str()));

        let number = |of: &Value, key: &str| of[key].as_f64().unwrap_or_else(|| panic!("{key}: {decision:#}"));
        let (lambda, epsilon) = (number(&decision, "lambda_per_ms"), number(&decision, "epsilon"));
        let weight = |of: &Value| {
            let load = number(of, "inflight") / number(of, "C");
            number(of, "C") / (load + epsilon) * (-lambda * number(of, "d")).exp()
        };
        let all: f64 = candidates.iter().map(weight).sum();
        for candidate in candidates {
            let (by_hand, told) = (weight(candidate) / all, number(candidate, "P"));
            assert!((by_hand - told).abs() < 1e-3, "P is {by_hand} by hand: {decision:#}");
        }
    }
    let plain = client.get("hello", "/").unwrap();
    assert_eq!(plain.header("marram-decision"), None, "nobody asked");
    let not_for_posts_alone = [("host", "hello.mesh"), ("marram-explain", "1")];
    let post = Request { method: "POST", path: "/", headers: &not_for_posts_alone, body: Some("x") };
    assert!(send(client.proxy, &post).unwrap().header("marram-decision").is_some());
}

#[test]
fn by_default_two_are_drawn_and_the_decision_says_which_was_passed_over() {
    let world = UNEQUAL.get(unequal);
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let client = &world.fleet.nodes[2];
    for _ in 0..20 {
        let answer = get(client.proxy, "/", &[("host", "twin.mesh"), ("marram-explain", "1")]).unwrap();
        let header = answer.header("marram-decision").unwrap_or_else(|| panic!("{answer:?}"));
        let decision: Value = serde_json::from_str(header).unwrap();
        let candidates = decision["candidates"].as_array().unwrap();
        let count = |key: &str| candidates.iter().filter(|candidate| candidate[key] == true).count();
        let drawn = (&decision["draw"], candidates.len(), count("chosen"), count("passed_over"));
        assert_eq!(drawn, (&json!("BestOfTwo"), 2, 1, 1), "{decision:#}");
    }
    let explanation = client.explain("twin").unwrap();
    assert_eq!(explanation.draw, Draw::BestOfTwo);
    assert!(explanation.candidates.iter().any(|candidate| candidate.latency_ms.is_some()), "{explanation:#?}");
    assert!(explanation.candidates.iter().all(|candidate| candidate.expected_picks.is_none()), "{explanation:#?}");
    let said = client.run(&["route", "explain", "twin"]);
    assert!(said.out.contains("draw BestOfTwo") && said.out.contains("OBSERVED may differ from P"), "{}", said.out);
}
