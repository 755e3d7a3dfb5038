//! Instances come and go: checks, registrations and applications that crash.

use std::time::Duration;

use node::config::{CheckConfig, Config};
use serde_json::json;
use tests::{App, Fleet, Load, Node, Sent, eventually};

use crate::policy::apply;
use crate::shares::SINGLE;

/// Long enough for a check, its rumour and a snapshot.
const SOON: Duration = Duration::from_secs(5);

/// Waits until `node` would draw exactly from the instances of these nodes, and returns the reasons of the others.
fn wait_drawn(node: &Node, service: &str, owners: &[&str]) -> Vec<String> {
    let what = format!("{} draws {service} from {owners:?}", node.name);
    let (reasons, _) = eventually(&what, SOON, || {
        let explanation = node.explain(service)?;
        let mut drawn: Vec<&str> = explanation.candidates.iter().map(|candidate| candidate.node.as_str()).collect();
        drawn.sort_unstable();
        if drawn == owners {
            Ok(explanation.excluded.into_iter().map(|out| format!("{}: {}", out.node, out.reason)).collect())
        } else {
            Err(format!("{explanation:?}"))
        }
    });
    reasons
}

#[test]
fn an_instance_whose_check_fails_is_out_until_it_passes_again() {
    let apps = [App::start("a"), App::start("b")];
    let fleet = Fleet::start(2, &|n, config: &mut Config| {
        Node::serve(config, "hello", apps[n].address(), None);
        if n == 0 {
            config.services[0].checks.push(CheckConfig::Http {
                path: "/health".to_owned(),
                interval: Duration::from_millis(200),
                timeout: Duration::from_secs(1),
                fall: 2,
                rise: 2,
            });
        }
    });
    let client = &fleet.nodes[1];
    wait_drawn(client, "hello", &["n0", "n1"]);
    apps[0].set_healthy(false);
    let reasons = wait_drawn(client, "hello", &["n1"]);
    assert_eq!(reasons, ["n0: its http check fails: GET /health: 503 Service Unavailable"]);
    let before = apps[0].requests();
    for _ in 0..20 {
        assert_eq!(client.get("hello", "/").unwrap().body, "hello from b");
    }
    assert_eq!(apps[0].requests(), before);
    let listed = fleet.nodes[0].run(&["services", "-o", "wide"]);
    assert!(listed.out.contains("http check fails"), "{listed:?}");

    apps[0].set_healthy(true);
    wait_drawn(client, "hello", &["n0", "n1"]);
    eventually("it serves again", SOON, || {
        let body = client.get("hello", "/")?.body;
        if body == "hello from a" { Ok(()) } else { Err(body) }
    });
}

#[test]
fn a_ttl_instance_is_up_as_long_as_it_is_heard_and_gone_when_removed() {
    let app = App::start("a");
    let fleet = Fleet::start(2, &|_, _| {});
    let [owner, client] = fleet.nodes.as_slice() else { unreachable!() };
    let at = "/v1/services/worker/instances/w-1";
    let registration =
        json!({ "port": app.address().port(), "capacity": 7, "checks": [{ "type": "ttl", "ttl": "1500ms" }] });
    let put = owner.write("PUT", at, &registration.to_string());
    assert_eq!(put.status, 204, "{put:?}");
    let reasons = wait_drawn(client, "worker", &[]);
    assert!(reasons.iter().any(|reason| reason.contains("ttl") || reason.contains("not passed")), "{reasons:?}");

    assert_eq!(owner.write("PUT", &format!("{at}/heartbeat"), "").status, 204);
    // It is heard until it was drawn at the other node, however long the rumour takes.
    eventually("it is up at the other node", SOON, || {
        owner.write("PUT", &format!("{at}/heartbeat"), "").status.eq(&204).then_some(()).ok_or("no heartbeat")?;
        let answer = client.get("worker", "/")?;
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    });
    let candidate = client.explain("worker").unwrap().candidates.remove(0);
    assert!((candidate.capacity - 7.0).abs() < 1e-9 && candidate.instance == "w-1", "{candidate:?}");

    let reasons = wait_drawn(client, "worker", &[]);
    assert_eq!(reasons, ["n0: its ttl check fails: no heartbeat for longer than 1s 500ms"]);
    let body = client.get("worker", "/").unwrap();
    assert!(body.status == 503 && body.body.contains("no heartbeat"), "{body:?}");

    let elsewhere = client.write("DELETE", at, "");
    assert_eq!(elsewhere.status, 404, "only its owner can remove it: {elsewhere:?}");
    assert_eq!(owner.write("DELETE", at, "").status, 204);
    for node in &fleet.nodes {
        eventually("it is not listed any more", SOON, || match node.ask("/v1/services/worker") {
            Ok(known) => Err(known.to_string()),
            Err(_) => Ok(()),
        });
    }
    assert_eq!(owner.write("PUT", &format!("{at}/heartbeat"), "").status, 404);
}

#[test]
fn a_registration_outlives_the_agent_until_it_is_removed() {
    let app = App::start("a");
    let mut fleet = Fleet::start(2, &|_, _| {});
    let at = "/v1/services/kept/instances/k";
    let registration = json!({ "port": app.address().port(), "labels": { "version": "2" } }).to_string();
    assert_eq!(fleet.nodes[0].write("PUT", at, &registration).status, 204);
    // Right after the answer: it was durable by then.
    fleet.nodes[0].kill();
    fleet.nodes[0].start();
    fleet.nodes[0].wait_ready();
    assert_eq!(fleet.nodes[0].get("kept", "/").unwrap().body, "hello from a");
    wait_drawn(&fleet.nodes[1], "kept", &["n0"]);
    let known = fleet.nodes[1].ask("/v1/services/kept").unwrap();
    assert_eq!(known["instances"][0]["labels"]["version"], "2", "{known:#}");

    assert_eq!(fleet.nodes[0].write("DELETE", at, "").status, 204);
    fleet.nodes[0].kill();
    fleet.nodes[0].start();
    fleet.nodes[0].wait_ready();
    assert!(fleet.nodes[0].ask("/v1/services/kept").is_err(), "removed is removed");
}

#[test]
fn a_crashed_application_fails_no_request_and_is_drawn_again_when_it_is_back() {
    let steady = App::start("steady");
    let mut shaky = Some(App::start("shaky"));
    let address = shaky.as_ref().map(App::address).unwrap();
    let fleet = Fleet::start(3, &|n, config| match n {
        0 => Node::serve(config, "hello", steady.address(), None),
        1 => Node::serve(config, "hello", address, None),
        _ => {}
    });
    fleet.wait_service("hello", 2);
    let client = &fleet.nodes[2];
    // Each is to get its part: the better of two draws may leave the slower one of two alone for a while.
    apply(client, SINGLE);
    let load = Load::start(client.proxy, "hello", "GET", 3, Duration::from_millis(5));
    eventually("it serves", SOON, || {
        let served = shaky.as_ref().map_or(0, App::requests);
        if served > 20 { Ok(()) } else { Err(format!("{served} requests")) }
    });

    drop(shaky.take());
    let reasons = wait_drawn(client, "hello", &["n0"]);
    assert!(reasons.iter().any(|reason| reason.starts_with("n1: ")), "{reasons:?}");
    eventually("its own node says why", SOON, || {
        let listed = fleet.nodes[1].run(&["services", "-o", "wide"]).out;
        if listed.contains("connect") { Ok(()) } else { Err(listed) }
    });
    let during = load.count();
    eventually("requests go on", SOON, || if load.count() > during + 50 { Ok(()) } else { Err("too few".to_owned()) });

    let back = App::start_at("shaky", address);
    wait_drawn(client, "hello", &["n0", "n1"]);
    eventually("it serves again", SOON, || if back.requests() > 5 { Ok(()) } else { Err("too few".to_owned()) });
    let sent = load.stop();
    let failed: Vec<&Sent> = sent.iter().filter(|sent| !sent.is_good()).collect();
    assert!(failed.is_empty(), "{} of {}: {failed:#?}\n{}", failed.len(), sent.len(), fleet.logs());
}
