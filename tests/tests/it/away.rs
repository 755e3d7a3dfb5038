//! Away until the others have forgotten what they deleted.

use std::time::Duration;

use serde_json::json;
use tests::{Fleet, Node, eventually};

fn path(name: &str) -> String {
    format!("/v1/policies/global/Note/{name}")
}

/// Writes a document that no node enforces.
fn put(node: &Node, name: &str, text: &str) {
    let metadata = json!({ "name": name, "scope": "global" });
    let document =
        json!({ "apiVersion": "marram.dev/v1", "kind": "Note", "metadata": metadata, "spec": { "text": text } });
    let answer = node.write("PUT", &path(name), &document.to_string());
    assert!([200, 201].contains(&answer.status), "{}: {answer:?}", node.name);
}

fn delete(node: &Node, name: &str) {
    let answer = node.write("DELETE", &path(name), "");
    assert_eq!(answer.status, 200, "{}: {answer:?}", node.name);
}

/// Every document of a node with its text, in the order of names.
fn texts(node: &Node) -> Vec<(String, String)> {
    let all = node.ask("/v1/policies?kind=Note").unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut found: Vec<(String, String)> = (all.as_array().unwrap().iter())
        .map(|policy| (text(&policy["name"]), text(&policy["document"]["spec"]["text"])))
        .collect();
    found.sort();
    found
}

fn start(node: &mut Node) {
    node.start();
    node.wait_ready();
}

#[test]
fn a_node_that_missed_deletions_until_they_were_forgotten_brings_its_own_edits_and_nothing_deleted() {
    let mut fleet = Fleet::start(3, &|_, config| config.store.tombstone_age = Duration::from_secs(1));
    for name in ["edited", "gone-and-edited", "gone-1", "gone-2", "gone-alone", "kept"] {
        put(&fleet.nodes[0], name, "first");
    }
    let _same = fleet.wait_roots_equal(Duration::from_secs(10));

    // Alone, without a peer that answers.
    for node in &mut fleet.nodes {
        node.kill();
    }
    start(&mut fleet.nodes[2]);
    for name in ["edited", "gone-and-edited", "added"] {
        put(&fleet.nodes[2], name, "alone");
    }
    delete(&fleet.nodes[2], "gone-alone");
    fleet.nodes[2].kill();

    start(&mut fleet.nodes[0]);
    start(&mut fleet.nodes[1]);
    for name in ["gone-and-edited", "gone-1", "gone-2"] {
        delete(&fleet.nodes[0], name);
    }
    eventually("the others forget the deletions", Duration::from_secs(30), || {
        let pair = &fleet.nodes[..2];
        let sum = |name: &str| pair.iter().map(|node| node.metric(name, "")).sum::<Result<f64, _>>();
        let (collected, left) = (sum("marram_store_collected_total")?, sum("marram_store_tombstones")?);
        if collected > 2.5 && left < 0.5 { Ok(()) } else { Err(format!("{collected} collected, {left} left")) }
    });

    start(&mut fleet.nodes[2]);
    let (_, took) = fleet.wait_roots_equal(Duration::from_secs(20));
    println!("equal {took:?} after it was ready again");
    let expected = [("added", "alone"), ("edited", "alone"), ("gone-and-edited", "alone"), ("kept", "first")];
    let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
    for node in &fleet.nodes {
        assert_eq!(texts(node), expected, "{}\n{}", node.name, fleet.logs());
    }
}
