//! A policy store that was damaged while its agent was stopped, and the verbs for a stopped agent's store.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Answer, Fleet, Node, eventually, run};

fn document(name: &str) -> String {
    json!({ "apiVersion": "marram.dev/v1", "kind": "Crowd", "metadata": { "name": name }, "spec": { "text": name } })
        .to_string()
}

fn apply(node: &Node, name: &str) {
    let answer = node.write("POST", "/v1/apply", &document(name));
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Overwrites the database of a stopped node with rubbish.
fn spoil(node: &Node) {
    let log = node.dir.join("store").join("db");
    let length = fs::metadata(&log).unwrap().len();
    fs::write(&log, vec![0xa5; usize::try_from(length).unwrap()]).unwrap();
}

fn wait_equal(fleet: &Fleet, seconds: u64) {
    let (root, took) = fleet.wait_roots_equal(Duration::from_secs(seconds));
    println!("root {root} everywhere after {took:?}");
}

fn codes(node: &Node) -> Vec<String> {
    let problems = node.ask("/v1/problems").unwrap();
    let all = problems.as_array().unwrap().iter();
    all.map(|problem| problem["code"].as_str().unwrap().to_owned()).collect()
}

fn documents(node: &Node) -> usize {
    node.ask("/v1/policies").unwrap().as_array().map_or(0, Vec::len)
}

/// Names in the node's folder that begin so.
fn beside(node: &Node, start: &str) -> Vec<String> {
    let names = fs::read_dir(&node.dir).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(start)).collect()
}

#[test]
fn a_damaged_store_starts_with_its_snapshot_tells_it_and_is_whole_again_with_its_peers() {
    let mut fleet = Fleet::start(2, &|_, _| {});
    for n in 0..5 {
        apply(&fleet.nodes[0], &format!("d{n}"));
    }
    wait_equal(&fleet, 5);
    assert_eq!(fleet.nodes[1].terminate(), Some(0));
    assert!(fleet.nodes[1].dir.join("store.snapshot").exists(), "a clean stop leaves a snapshot");
    apply(&fleet.nodes[0], "meanwhile");
    spoil(&fleet.nodes[1]);
    fleet.nodes[1].start();
    fleet.nodes[1].wait_ready();
    let node = &fleet.nodes[1];
    assert!(documents(node) >= 5, "policy is in force from the start");
    let problems = node.ask("/v1/problems").unwrap();
    let told = problems.as_array().unwrap().iter().find(|problem| problem["code"] == "store_recovered");
    let detail = told.unwrap_or_else(|| panic!("{problems:#}"))["detail"].as_str().unwrap();
    let aside = beside(node, "store.bad-");
    assert_eq!(aside.len(), 1);
    assert!(detail.contains(&aside[0]) && detail.contains("5 documents came back"), "{detail}");
    assert!((node.metric("marram_store_recoveries_total", "").unwrap() - 1.0).abs() < 1e-9);
    assert_eq!(node.run(&["status"]).code, 3);
    wait_equal(&fleet, 10);
    eventually("writes are taken once the peer was heard", Duration::from_secs(10), || {
        let answer = fleet.nodes[1].write("POST", "/v1/apply", &document("afterwards"));
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    wait_equal(&fleet, 5);
    assert_eq!(documents(&fleet.nodes[0]), 7);

    assert_eq!(fleet.nodes[1].terminate(), Some(0));
    fleet.nodes[1].start();
    fleet.nodes[1].wait_ready();
    assert_eq!(codes(&fleet.nodes[1]), Vec::<String>::new(), "the next start ends the notice");
    assert_eq!(documents(&fleet.nodes[1]), 7);
}

fn is_refilling(answer: &Answer) -> bool {
    answer.status == 503 && answer.json()["detail"].as_str().is_some_and(|detail| detail.contains("being refilled"))
}

#[test]
fn a_recovered_node_takes_no_policy_before_its_peer_was_heard_and_routes_meanwhile() {
    let mut fleet = Fleet::start(2, &|_, _| {});
    for n in 0..3 {
        apply(&fleet.nodes[0], &format!("d{n}"));
    }
    wait_equal(&fleet, 5);
    fleet.nodes[1].kill();
    fleet.nodes[0].kill();
    fs::remove_file(fleet.nodes[1].dir.join("store.snapshot")).ok();
    spoil(&fleet.nodes[1]);
    // After a kill the journal alone has everything.
    fs::write(fleet.nodes[1].dir.join("store").join("journal"), b"rubbish").unwrap();
    fleet.nodes[1].start();
    fleet.nodes[1].wait_ready();
    let node = &fleet.nodes[1];
    let refused = node.write("POST", "/v1/apply", &document("too-early"));
    assert!(is_refilling(&refused), "{refused:?}");
    let deleted = node.write("DELETE", "/v1/policies/global/Crowd/d0", "");
    assert!(is_refilling(&deleted), "{deleted:?}");
    let file = fleet.root().join("early.json");
    fs::write(&file, document("too-early")).unwrap();
    assert_eq!(node.run(&["policy", "apply", "-f", file.to_str().unwrap()]).code, 3);
    let registered = node.write("PUT", "/v1/services/s/instances/x", r#"{ "port": 1 }"#);
    assert_eq!(registered.status, 204, "what is this node's own is written: {registered:?}");
    fleet.nodes[0].start();
    wait_equal(&fleet, 20);
    eventually("writes are taken", Duration::from_secs(10), || {
        let answer = fleet.nodes[1].write("POST", "/v1/apply", &document("in-time"));
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    wait_equal(&fleet, 5);
    assert_eq!(documents(&fleet.nodes[0]), 4);
    assert_eq!(fleet.nodes[1].ask("/v1/conflicts").unwrap(), Value::Array(Vec::new()));
}

#[test]
fn the_store_of_a_stopped_node_is_verified_exported_and_imported() {
    let mut fleet = Fleet::start(2, &|_, _| {});
    for n in 0..4 {
        apply(&fleet.nodes[0], &format!("d{n}"));
    }
    wait_equal(&fleet, 5);
    let root = fleet.nodes[0].root().unwrap();
    let bundle = fleet.root().join("shop.bundle");
    let bundle = bundle.to_str().unwrap().to_owned();
    for words in [vec!["store", "verify"], vec!["store", "export", &bundle], vec!["store", "import", &bundle]] {
        let said = fleet.nodes[0].run(&words);
        assert!(said.code == 1 && said.err.contains("another agent runs in"), "{words:?}: {said:?}");
    }
    fleet.nodes[1].kill();
    assert_eq!(fleet.nodes[0].terminate(), Some(0));
    let [first, second] = fleet.nodes.as_slice() else { unreachable!() };
    let said = first.run(&["store", "verify"]);
    assert_eq!(said.code, 0, "{said:?}");
    for line in ["documents  4\n", "ops        4\n", &format!("root       {root}\n"), "snapshot   4 ops\n", "\nok\n"] {
        assert!(said.out.contains(line), "{line}: {said:?}");
    }
    let said = first.run(&["store", "export", &bundle]);
    assert!(said.code == 0 && said.out.contains("4 ops written to"), "{said:?}");

    // The second node has lost everything.
    for name in beside(second, "store") {
        let path = second.dir.join(name);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    let missing = second.run(&["store", "verify"]);
    assert!(missing.code == 2 && missing.err.contains("there is no store"), "{missing:?}");
    assert!(beside(second, "store").is_empty(), "looking makes nothing");
    let said = second.run(&["store", "import", &bundle]);
    assert!(said.code == 0 && said.out == "4 ops: 4 new, 0 known or superseded, 0 refused\n", "{said:?}");
    let said = second.run(&["store", "import", &bundle]);
    assert!(said.code == 0 && said.out == "4 ops: 0 new, 4 known or superseded, 0 refused\n", "{said:?}");
    let said = second.run(&["store", "verify"]);
    assert!(said.code == 0 && said.out.contains(&root), "{said:?}");

    let cut = fleet.root().join("cut.bundle");
    let bytes = fs::read(&bundle).unwrap();
    fs::write(&cut, &bytes[..bytes.len() - 7]).unwrap();
    let said = second.run(&["store", "import", cut.to_str().unwrap()]);
    assert!(said.code == 7 && said.err.contains("damaged at byte") && said.err.contains("hint: "), "{said:?}");
    let stranger = fleet.root().join("stranger");
    let made = run(&["init", "--mesh", "elsewhere", "--name", "x", "--dir", stranger.to_str().unwrap()]);
    assert_eq!(made.code, 0, "{made:?}");
    let said = run(&["store", "import", &bundle, "--dir", stranger.to_str().unwrap()]);
    assert!(said.code == 7 && said.err.contains("belongs to store `it/global`"), "{said:?}");

    spoil(first);
    let said = first.run(&["store", "verify"]);
    assert!(said.code == 1 && said.out.contains("fault      the database does not open"), "{said:?}");
    let said = first.run(&["store", "export", &bundle]);
    assert!(said.code == 1 && said.err.contains("store verify"), "{said:?}");
    assert_eq!(fs::read(&bundle).unwrap(), bytes, "a failed export leaves the old file");
    assert!(beside(first, "store.bad").is_empty(), "only the agent sets a store aside");
}
