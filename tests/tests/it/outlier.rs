//! An instance that answers, but with errors: it is left out, comes back by itself, and the last one is never left out. One
//! that fails now and then shows beside the others.

use std::time::Duration;

use policy::Draw;
use tests::{App, Fleet, Node, eventually, get};

use crate::policy::apply;

const REQUESTS: u64 = 1000;

/// One draw by P: the better of two has a rule of its own for whoever errs, and asks it hardly ever.
const RULE: &str = "
apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata: { name: pair }
targetRef: { kind: Service, name: pair }
spec: { loadBalancer: { draw: Single }, healthCheck: { passive: { baseEjectionTime: 3s } } }
";

/// For two instances: there a standard deviation says nothing.
const OFTEN: &str = "
apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata: { name: pair }
targetRef: { kind: Service, name: pair }
spec:
  loadBalancer: { draw: Single }
  healthCheck:
    passive:
      interval: 3s
      baseEjectionTime: 60s
      consecutive5XxErrors: 0
      failurePercentage: { threshold: 25, requestVolume: 20 }
";

#[test]
fn an_instance_that_answers_with_errors_gets_under_one_in_a_hundred_and_comes_back_once_it_is_well() {
    let apps = [App::start("a"), App::start("b")];
    let fleet = Fleet::start(2, &|n, config| {
        Node::serve(config, "pair", apps[n].address(), None);
        if n == 0 {
            Node::serve(config, "lonely", apps[0].address(), None);
        }
    });
    fleet.wait_service("pair", 2);
    let proxy = fleet.nodes[1].proxy;
    let ask = |service: &str| get(proxy, "/", &[("host", &format!("{service}.mesh"))]).unwrap();

    apply(&fleet.nodes[0], RULE);
    eventually("the rule is in force", Duration::from_secs(5), || {
        let draw = fleet.nodes[1].explain("pair")?.draw;
        if draw == Draw::Single { Ok(()) } else { Err(draw.to_string()) }
    });
    apps[0].set_failing(true);
    let failed = (0..REQUESTS).filter(|_| ask("pair").status != 200).count();
    assert!((5..10).contains(&failed), "{failed} of {REQUESTS} were answered by the one that fails");
    let explanation = fleet.nodes[1].explain("pair").unwrap();
    let told = format!("{explanation:?}");
    assert!(told.contains("ejected here for answering with errors"), "{told}");
    assert!(fleet.nodes[1].metric("marram_ejections_total", "reason=\"erring\"").unwrap() >= 1.0);
    let lonely = ask("lonely");
    assert_eq!(lonely.status, 500, "the only one is asked all the same, and its word is passed on: {lonely:?}");

    // Once it is well its first answer lets it in again.
    apps[0].set_failing(false);
    let before = apps[0].requests();
    eventually("it is asked again", Duration::from_secs(30), || {
        let answer = ask("pair");
        assert_eq!(answer.status, 200, "{answer:?}");
        if apps[0].requests() > before { Ok(()) } else { Err("not yet".to_owned()) }
    });
    assert_eq!((0..50).filter(|_| ask("pair").status != 200).count(), 0);
}

#[test]
fn an_instance_that_fails_now_and_then_is_left_out_for_it_and_whoever_looks_reads_why() {
    let apps = [App::start("a"), App::start("b")];
    let fleet = Fleet::start(2, &|n, config| Node::serve(config, "pair", apps[n].address(), None));
    fleet.wait_service("pair", 2);
    let node = &fleet.nodes[1];
    let ask = || get(node.proxy, "/", &[("host", "pair.mesh")]).unwrap();
    apply(&fleet.nodes[0], OFTEN);
    let explained = |text: &str| {
        let told = format!("{:?}", node.explain("pair")?);
        if told.contains(text) { Ok(()) } else { Err(told) }
    };
    eventually("it is left out", Duration::from_secs(20), || {
        for nth in 0..20 {
            apps[0].set_failing(nth % 2 == 0);
            ask();
        }
        explained("ejected here: it fails ")
    });
    let before = apps[0].requests();
    apps[0].set_failing(true);
    assert_eq!((0..200).filter(|_| ask().status != 200).count(), 0);
    assert_eq!(apps[0].requests(), before);
    assert!(node.metric("marram_ejections_total", "reason=\"failure_percentage\"").unwrap() >= 1.0);
    assert!(node.metric("marram_ejections_total", "reason=\"erring\"").unwrap() < 1.0);
    let cli = node.run(&["route", "explain", "pair"]);
    assert!(cli.out.contains("ejected here: it fails "), "{cli:?}");
}
