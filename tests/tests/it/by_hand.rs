//! The walk of somebody who read the README: init, token, join, three agents, a service, and the verbs that look.

use std::process::Command;
use std::time::Duration;

use node::view::{NodeView, ServiceSummary, Status};
use policy::explain::Explanation;
use tests::{App, Fleet, Node, Said, Shared, eventually, free_port, has_program, run, run_command, skip};

static WALK: Shared<Walk> = Shared::new();

/// Three nodes; `hello` runs on the first two.
struct Walk {
    fleet: Fleet,
    apps: [App; 2],
}

fn walk() -> Walk {
    let apps = [App::start("a"), App::start("b")];
    let fleet = Fleet::start(3, &|n, config| {
        if let Some(app) = apps.get(n) {
            Node::serve(config, "hello", app.address(), Some(100.0));
        }
    });
    fleet.wait_service("hello", 2);
    Walk { fleet, apps }
}

/// A verb by the node's folder and by its admin address.
fn both_ways(node: &Node, words: &[&str]) -> [Said; 2] {
    let by_address = run(&[words, &["--admin", &format!("http://{}", node.admin)]].concat());
    [node.run(words), by_address]
}

#[test]
fn a_request_at_the_third_node_reaches_both_that_serve() {
    let walk = WALK.get(walk);
    let third = &walk.fleet.nodes[2];
    let before = walk.apps.each_ref().map(App::requests);
    // With equal weights the chance of 60 requests all going one way is 2^-59; a node that was too busy to accept its first
    // one is asked again after 5 s.
    eventually("both are reached", Duration::from_secs(20), || {
        for _ in 0..60 {
            let answer = third.get("hello", "/").unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
            let (app, node) = match answer.body.as_str() {
                "hello from a" => ("a", "n0"),
                "hello from b" => ("b", "n1"),
                other => panic!("{other}"),
            };
            assert_eq!(answer.header("marram-via"), Some(format!("n2->{node}").as_str()), "{app}: {answer:?}");
        }
        let after = walk.apps.each_ref().map(App::requests);
        let are_reached = before.iter().zip(after).all(|(before, after)| after > *before);
        are_reached.then_some(()).ok_or_else(|| format!("{before:?} {after:?}"))
    });
}

#[test]
fn curl_reaches_a_service_in_every_way_that_the_readme_shows() {
    if !has_program("curl") {
        skip("curl_reaches_a_service_in_every_way_that_the_readme_shows", "curl is not installed");
        return;
    }
    let walk = WALK.get(walk);
    let proxy = walk.fleet.nodes[2].proxy;
    let (url, port) = (format!("http://{proxy}/"), proxy.port());
    let named = format!("http://hello.mesh.localhost:{port}/");
    let resolve = format!("hello.mesh.localhost:{port}:127.0.0.1");
    for words in [
        vec!["-H", "Host: hello.mesh", &url],
        vec!["--resolve", &resolve, &named],
        vec!["--proxy", &url, "http://hello.mesh/"],
        vec!["--proxytunnel", "--proxy", &url, "http://hello.mesh/"],
        vec!["-H", "Host: hello.mesh", "--data-binary", "@/proc/self/status", &url],
    ] {
        let said =
            run_command(Command::new("curl").args(["--silent", "--show-error", "--max-time", "10"]).args(&words));
        assert!(said.code == 0 && said.out.starts_with("hello from "), "{words:?}: {said:?}");
    }
}

#[test]
fn nodes_lists_every_member_alive_as_table_and_as_json() {
    let walk = WALK.get(walk);
    for node in &walk.fleet.nodes {
        for said in both_ways(node, &["nodes"]) {
            assert_eq!(said.code, 0, "{said:?}");
            for name in ["n0", "n1", "n2"] {
                let row = said.out.lines().find(|line| line.starts_with(name)).unwrap_or_default();
                assert!(row.contains("alive"), "{name}: {}", said.out);
            }
            assert!(said.out.contains(&format!("as known by {}", node.name)), "{}", said.out);
        }
        for said in both_ways(node, &["nodes", "-o", "json"]) {
            let nodes: Vec<NodeView> = serde_json::from_str(&said.out).unwrap();
            assert_eq!(nodes.len(), 3, "{nodes:?}");
            assert!(nodes.iter().all(|known| known.state == "alive"), "{nodes:?}");
            let mine: Vec<&str> =
                nodes.iter().filter(|known| known.this_node).map(|known| known.name.as_str()).collect();
            assert_eq!(mine, [node.name.as_str()]);
        }
        let wide = node.run(&["nodes", "-o", "wide"]);
        assert!(wide.code == 0 && wide.out.contains("VERSION"), "{wide:?}");
    }
}

#[test]
fn services_lists_both_instances_with_capacity_and_state() {
    let walk = WALK.get(walk);
    let third = &walk.fleet.nodes[2];
    for said in both_ways(third, &["services"]) {
        assert_eq!(said.code, 0, "{said:?}");
        for (app, node) in walk.apps.iter().zip(["n0", "n1"]) {
            let instance = format!("{}@{node}", app.address().port());
            let row = said.out.lines().find(|line| line.contains(&instance)).unwrap_or_default();
            assert!(row.contains("hello") && row.contains("up") && row.contains("100"), "{instance}: {}", said.out);
        }
    }
    let services: Vec<ServiceSummary> = serde_json::from_str(&third.run(&["services", "-o", "json"]).out).unwrap();
    let hello = services.iter().find(|service| service.name == "hello").unwrap();
    let mut owners: Vec<&str> = hello.instances.iter().map(|instance| instance.node.as_str()).collect();
    owners.sort_unstable();
    assert_eq!(owners, ["n0", "n1"]);
}

#[test]
fn status_tells_members_links_policy_and_certificates() {
    let walk = WALK.get(walk);
    for node in &walk.fleet.nodes {
        // A link that both sides dialled is closed on one of them shortly after the start.
        eventually("every link is up and its key exchange known", Duration::from_secs(10), || {
            let said = node.run(&["status", "-o", "json"]);
            assert_eq!(said.code, 0, "{said:?}");
            let status: Status = serde_json::from_str(&said.out).unwrap();
            assert_eq!((status.mesh.as_str(), status.node.as_str()), ("it", node.name.as_str()));
            assert_eq!((status.state.as_str(), status.policy.writable), ("ready", true));
            assert_eq!((status.members.alive, status.members.dead), (3, 0), "{status:?}");
            let control: Vec<_> = status.links.iter().filter(|link| link.purpose == "control").collect();
            let hybrid = control.iter().all(|link| link.key_exchange.to_uppercase().contains("MLKEM768"));
            if control.len() == 2 && hybrid { Ok(()) } else { Err(format!("{control:?}")) }
        });
        for said in both_ways(node, &["status"]) {
            assert_eq!(said.code, 0, "{said:?}");
            for word in ["it  node", "3 alive", "policy   root", "certs    leaf ends", "KEY EXCHANGE"] {
                assert!(said.out.contains(word), "{word}: {}", said.out);
            }
        }
    }
}

#[test]
fn explain_shows_every_number_of_the_formula() {
    let walk = WALK.get(walk);
    let third = &walk.fleet.nodes[2];
    assert_eq!(third.get("hello", "/").unwrap().status, 200);
    for said in both_ways(third, &["route", "explain", "hello"]) {
        assert_eq!(said.code, 0, "{said:?}");
        for word in
            ["SERVICE hello", "from n2", "EdgeDecay", "half-distance 25ms", "policy: default", "@n0", "@n1", "OBSERVED"]
        {
            assert!(said.out.contains(word), "{word}: {}", said.out);
        }
    }
    // On a busy machine round trips are long for a while, and one of the two may be left out for some seconds.
    eventually("both are near", Duration::from_secs(10), || {
        for said in both_ways(third, &["route", "explain", "hello", "-o", "json"]) {
            assert_eq!(said.code, 0, "{said:?}");
            let explanation: Explanation = serde_json::from_str(&said.out).unwrap();
            let total: f64 = explanation.candidates.iter().map(|candidate| candidate.probability).sum();
            assert!((total - 1.0).abs() < 1e-9, "{explanation:?}");
            let are_near = explanation.candidates.iter().all(|candidate| candidate.distance_ms < 20.0);
            if explanation.candidates.len() != 2 || !are_near {
                return Err(format!("{explanation:?}"));
            }
        }
        Ok(())
    });
    let nobody = third.run(&["route", "explain", "helo"]);
    assert_eq!(nobody.code, 1, "{nobody:?}");
    assert!(nobody.err.contains("did you mean `hello`?"), "{nobody:?}");
}

#[test]
fn the_exit_code_tells_wrong_usage_from_nobody_there() {
    let nowhere = free_port();
    for (words, code, hint) in [
        (vec!["nodes", "--admin", &format!("http://{nowhere}")], 5, "is the agent running?"),
        (vec!["nodes", "--admin", "ftp://x"], 2, "http://HOST:PORT"),
        (vec!["nodes", "--colour"], 2, "--colour"),
        (vec!["policy", "get", "hello"], 2, "SCOPE/KIND/NAME"),
        (vec!["nodes", "--dir", "/nonexistent/marram"], 1, "/nonexistent/marram"),
    ] {
        let said = run(&words);
        assert_eq!(said.code, code, "{words:?}: {said:?}");
        assert!(said.err.contains(hint), "{words:?}: {said:?}");
        assert_eq!(said.out, "", "{words:?}");
    }
}

#[test]
fn init_leaves_a_folder_that_holds_a_node_as_it_is() {
    let fleet = Fleet::launch(0, &|_, _| {});
    let node = fleet.newcomer();
    let first = run(&node.options(&["init", "--mesh", "it"]));
    assert_eq!(first.code, 0, "{first:?}");
    assert!(first.err.contains("recovery code"), "{first:?}");
    let before = std::fs::read(node.dir.join("identity/node.pem")).unwrap();
    let second = run(&node.options(&["init", "--mesh", "other"]));
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.err.contains("holds a node already"), "{second:?}");
    assert_eq!(std::fs::read(node.dir.join("identity/node.pem")).unwrap(), before);
}
