//! A node that starts again while nobody can be reached.

use std::time::Duration;

use serde_json::json;
use tests::{App, Fleet, Node, Stopwatch, eventually, pause};

#[test]
fn a_node_restarted_with_every_link_cut_serves_its_own_instances_by_the_policy_it_had() {
    let apps = [App::start("a"), App::start("b")];
    let mut fleet = Fleet::start(2, &|n, config| Node::serve(config, ["near", "far"][n], apps[n].address(), None));
    fleet.wait_service("near", 1);
    fleet.wait_service("far", 1);
    let route = json!({
        "apiVersion": "marram.dev/v1",
        "kind": "HTTPRoute",
        "metadata": { "name": "front", "scope": "global" },
        "spec": { "hostnames": ["front.mesh"], "rules": [{ "backendRefs": [{ "name": "near" }] }] },
    });
    let answer = fleet.nodes[1].write("PUT", "/v1/policies/global/HTTPRoute/front", &route.to_string());
    assert_eq!(answer.status, 201, "{answer:?}");
    let _same = fleet.wait_roots_equal(Duration::from_secs(5));

    // What the other one offers stands on the disk within a few seconds.
    let until = Stopwatch::start();
    while until.elapsed() < Duration::from_secs(3) {
        pause(Duration::from_millis(100));
    }
    // Nobody is left to ask: the only peer is gone, and its port refuses.
    fleet.nodes[1].kill();
    assert_eq!(fleet.nodes[0].terminate(), Some(0));
    fleet.nodes[0].start();
    let node = &fleet.nodes[0];
    node.wait_ready();
    for service in ["near", "front"] {
        eventually("its own instance serves", Duration::from_secs(5), || {
            let answer = node.get(service, "/")?;
            if answer.status == 200 { Ok(()) } else { Err(answer.body) }
        });
    }

    // What the other one offered is known, with its age, and is not taken for unknown.
    let answer = node.get("far", "/").unwrap();
    assert_eq!((answer.status, answer.json()["code"].as_str()), (503, Some("no_healthy_instance")), "{answer:?}");
    let reason = answer.json()["candidates"][0]["reason"].to_string();
    assert!(reason.contains("s before that") || reason.contains("dead"), "{reason}");

    // And as soon as the way is there again it is asked.
    fleet.nodes[1].start();
    eventually("the other one is asked again", Duration::from_secs(20), || {
        let answer = fleet.nodes[0].get("far", "/")?;
        if answer.status == 200 { Ok(()) } else { Err(answer.body) }
    });
}
