//! Working with policy: looking back and undoing, settling conflicts, waiting for others, trying without storing.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use node::view::{Applied, ConflictView, EffectiveView, PolicyView, RevisionView, SyncStatus};
use serde_json::{Value, json};
use tests::{App, Fleet, Node, Shared, eventually};

use crate::policy::{apply, code, in_force, path, traffic};

static TWO: Shared<Two> = Shared::new();

/// Two nodes; `hello` and `brief` run on the first.
struct Two {
    fleet: Fleet,
    _app: App,
}

fn two() -> Two {
    let app = App::start("a");
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            Node::serve(config, "hello", app.address(), None);
            Node::serve(config, "brief", app.address(), None);
        }
    });
    fleet.wait_service("hello", 1);
    fleet.wait_service("brief", 1);
    Two { fleet, _app: app }
}

fn read<T: serde::de::DeserializeOwned>(node: &Node, at: &str) -> T {
    serde_json::from_value(node.ask(at).unwrap()).unwrap()
}

/// Lets each of two nodes do its part while the other is down, and waits until they have met.
fn apart(fleet: &mut Fleet, first: impl FnOnce(&Node), second: impl FnOnce(&Node)) {
    let _same = fleet.wait_roots_equal(Duration::from_secs(5));
    fleet.nodes[1].kill();
    first(&fleet.nodes[0]);
    fleet.nodes[0].kill();
    fleet.nodes[1].start();
    fleet.nodes[1].wait_ready();
    second(&fleet.nodes[1]);
    fleet.nodes[0].start();
    fleet.nodes[0].wait_ready();
    let _met = fleet.wait_roots_equal(Duration::from_secs(10));
}

#[test]
fn history_tells_who_wrote_what_and_why_and_rollback_restores_it_everywhere() {
    let two = TWO.get(two);
    let (first, second) = (&two.fleet.nodes[0], &two.fleet.nodes[1]);
    let file = two.fleet.root().join("history.yaml");
    fs::write(&file, traffic("undo", "hello", 0.1)).unwrap();
    let said = first.run(&["policy", "apply", "-f", file.to_str().unwrap(), "-m", "first try"]);
    assert_eq!(said.code, 0, "{said:?}");
    eventually("it is at the other", Duration::from_secs(2), || second.ask(&path("undo")).map(drop));
    let changed = second.write("PUT", &path("undo"), &traffic("undo", "hello", 0.2));
    assert_eq!(changed.status, 200, "{changed:?}");
    assert_eq!(second.write("DELETE", &path("undo"), "").status, 200);

    let at = format!("{}/history", path("undo"));
    let (revisions, _) = eventually("the first node knows all of it", Duration::from_secs(2), || {
        let all: Vec<RevisionView> = serde_json::from_value(first.ask(&at)?).map_err(|fault| fault.to_string())?;
        if all.len() == 3 { Ok(all) } else { Err(format!("{all:#?}")) }
    });
    let told: Vec<(&str, &str, bool)> =
        revisions.iter().map(|r| (r.op.as_str(), r.author.as_str(), r.deleted)).collect();
    assert_eq!(told, [("delete", "n1", true), ("put", "n1", false), ("put", "n0", false)], "{revisions:#?}");
    assert_eq!(revisions[2].message, "first try");
    assert_eq!(revisions[1].document["spec"]["loadBalancer"]["lambda"], json!(0.2));
    let listed = first.run(&["policy", "history", "global/BackendTrafficPolicy/undo"]);
    assert!(listed.code == 0 && listed.out.contains("first try") && listed.out.contains("delete"), "{listed:?}");
    let earlier = first.run(&["policy", "get", "global/BackendTrafficPolicy/undo", "--at", &revisions[2].dot]);
    assert!(earlier.code == 0 && earlier.out.contains("lambda: 0.1"), "{earlier:?}");

    let back = ["policy", "rollback", "global/BackendTrafficPolicy/undo", "--to", &revisions[2].dot, "-m", "sorry"];
    let said = first.run(&back);
    assert_eq!(said.code, 0, "{said:?}");
    for node in &two.fleet.nodes {
        eventually("the first version is in force again", Duration::from_secs(2), || in_force(node, "hello", 0.1));
    }
    let newest: Vec<RevisionView> = read(first, &at);
    assert_eq!((newest[0].op.as_str(), newest[0].message.as_str()), ("rollback", "sorry"));
    assert_eq!(newest[0].rollback_to.as_deref(), Some(revisions[2].dot.as_str()));
    let unknown = first.write(
        "POST",
        &format!("{}/rollback", path("undo")),
        &json!({ "to": "aaaaaaaaaaaaaaaaaaaaaaaaaa:9" }).to_string(),
    );
    assert_eq!((unknown.status, code(&unknown).as_str()), (404, "not_found"), "{unknown:?}");
    assert_eq!(second.write("DELETE", &path("undo"), "").status, 200);
}

#[test]
fn a_settled_conflict_is_settled_everywhere_and_both_events_are_told() {
    let mut fleet = Fleet::start(2, &|_, _| {});
    apply(&fleet.nodes[0], &traffic("hello", "hello", 0.5));
    apart(
        &mut fleet,
        |node| drop(apply(node, &traffic("hello", "hello", 0.1))),
        |node| drop(apply(node, &traffic("hello", "hello", 0.2))),
    );
    let conflicts: Vec<ConflictView> = read(&fleet.nodes[0], "/v1/conflicts");
    let [conflict] = conflicts.as_slice() else { panic!("{conflicts:#?}") };
    assert_eq!(conflict.base, json!({ "lambda": 0.5 }), "what both started from");
    let [change] = conflict.changes.as_slice() else { panic!("{conflict:#?}") };
    assert_eq!(
        (change.path.as_str(), &change.base, change.agrees),
        ("spec.loadBalancer.lambda", &Some(json!(0.5)), false)
    );
    let shown = fleet.nodes[1].run(&["policy", "conflicts"]);
    assert!(shown.out.contains("spec.loadBalancer.lambda  0.5"), "{shown:?}");

    let loser = conflict.sides.iter().find(|side| !side.in_force).unwrap();
    let value = loser.value["lambda"].clone();
    let mut watcher = Watcher::open(&fleet.nodes[1], "/v1/watch?kinds=conflict", "");
    watcher.until("event: resync");
    let at = "global/BackendTrafficPolicy/hello";
    let said =
        fleet.nodes[0].run(&["policy", "resolve", at, "--take", &loser.dot, "--wait", "all", "--timeout", "10s"]);
    assert_eq!(said.code, 0, "{said:?}");
    watcher.until("event: conflict");
    assert!(watcher.until("data:").contains(r#""sections":[]"#), "settled");
    for node in &fleet.nodes {
        eventually("the side that was taken stands", Duration::from_secs(2), || {
            let view: PolicyView =
                serde_json::from_value(node.ask(&path("hello"))?).map_err(|fault| fault.to_string())?;
            let conflicts = node.ask("/v1/conflicts")?;
            if view.document["spec"]["loadBalancer"]["lambda"] == value && conflicts == json!([]) {
                Ok(())
            } else {
                Err(format!("{view:?} {conflicts}"))
            }
        });
        let metric = node.metric("marram_policy_conflicts", "").unwrap();
        assert!(metric.abs() < 1e-9, "{metric}");
    }
    let body = json!({ "take": loser.dot }).to_string();
    let calm = fleet.nodes[1].write("POST", &format!("{}/resolve", path("hello")), &body);
    assert_eq!((calm.status, code(&calm).as_str()), (409, "no_conflict"), "{calm:?}");
}

#[test]
fn an_edit_beside_a_deletion_stays_is_shown_and_is_settled_by_taking_the_deletion() {
    let mut fleet = Fleet::start(2, &|_, _| {});
    apply(&fleet.nodes[0], &traffic("hello", "hello", 0.5));
    apart(
        &mut fleet,
        |node| assert_eq!(node.write("DELETE", &path("hello"), "").status, 200),
        |node| drop(apply(node, &traffic("hello", "hello", 0.2))),
    );
    for node in &fleet.nodes {
        let view: PolicyView = read(node, &path("hello"));
        assert!(view.deleted_concurrently, "{view:?}");
        assert_eq!(view.document["spec"]["loadBalancer"]["lambda"], json!(0.2), "the edit stays");
    }
    let conflicts: Vec<ConflictView> = read(&fleet.nodes[0], "/v1/conflicts");
    let [conflict] = conflicts.as_slice() else { panic!("{conflicts:#?}") };
    assert_eq!(conflict.section, "");
    let sides: Vec<(bool, bool, &str)> =
        conflict.sides.iter().map(|side| (side.in_force, side.deleted, side.author.as_str())).collect();
    assert_eq!(sides, [(true, false, "n1"), (false, true, "n0")], "{conflict:#?}");
    let said = fleet.nodes[1].run(&["policy", "conflicts"]);
    assert!(said.code == 3 && said.out.contains("deleted it"), "{said:?}");

    let grave = &conflict.sides[1].dot;
    let said = fleet.nodes[1].run(&["policy", "resolve", "global/BackendTrafficPolicy/hello", "--take", grave]);
    assert_eq!(said.code, 0, "{said:?}");
    for node in &fleet.nodes {
        eventually("it is gone", Duration::from_secs(2), || {
            let left = node.ask("/v1/policies")?;
            if left == json!([]) && node.ask("/v1/conflicts")? == json!([]) { Ok(()) } else { Err(left.to_string()) }
        });
    }
}

#[test]
fn wait_all_is_answered_when_every_node_has_it_and_says_so_when_one_is_away() {
    let mut fleet = Fleet::start(3, &|_, _| {});
    let answer = fleet.nodes[0].write("POST", "/v1/apply?wait=all&timeout=10s", &traffic("hello", "hello", 0.3));
    assert_eq!(answer.status, 200, "{answer:?}");
    let applied: Applied = serde_json::from_str(&answer.body).unwrap();
    let replicated = applied.replicated_to.unwrap();
    assert_eq!((replicated.nodes, replicated.wanted), (vec!["n1".to_owned(), "n2".to_owned()], 2));
    for node in &fleet.nodes[1..] {
        node.ask(&path("hello")).unwrap();
    }
    let status: SyncStatus = read(&fleet.nodes[0], "/v1/sync/status");
    assert_eq!(status.documents, 1);
    assert!(status.peers.iter().all(|peer| peer.last_sync_s.is_some() && peer.lag == Some(0)), "{status:#?}");

    fleet.nodes[2].kill();
    let answer = fleet.nodes[0].write("POST", "/v1/apply?wait=all&timeout=1s", &traffic("hello", "hello", 0.4));
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.json()["replicated_to"], json!({ "nodes": ["n1"], "wanted": 2 }), "{answer:?}");
    let file = fleet.root().join("majority.yaml");
    fs::write(&file, traffic("hello", "hello", 0.5)).unwrap();
    let file = file.to_str().unwrap();
    let said = fleet.nodes[0].run(&["policy", "apply", "-f", file, "--wait", "majority", "--timeout", "10s"]);
    assert!(said.code == 0 && said.out.contains("on disk at n1: 1 of 1 wanted"), "{said:?}");
    let said = fleet.nodes[0].run(&["policy", "apply", "-f", file, "--wait", "2", "--timeout", "300ms"]);
    assert!(said.code == 3 && said.out.contains("1 of 2 wanted; not in time"), "{said:?}");
    let said = fleet.nodes[0].run(&["policy", "sync"]);
    assert!(said.code == 0 && said.out.contains("n2"), "{said:?}");
}

#[test]
fn a_dry_run_tells_what_would_change_and_for_whom_and_stores_nothing() {
    let two = TWO.get(two);
    let node = &two.fleet.nodes[0];
    // Other tests write here, too: what tells is this document alone.
    let etag = apply(node, &traffic("dry", "quiet", 0.1)).documents[0].etag.clone();
    let is_untouched = || read::<PolicyView>(node, &path("dry")).etag == etag && node.ask(&path("dry-new")).is_err();
    let both = format!("{}---\n{}", traffic("dry", "quiet", 0.2), traffic("dry-new", "other", 0.2));
    let answer = node.write("POST", "/v1/apply?dryRun=all", &both);
    assert_eq!(answer.status, 200, "{answer:?}");
    let plan = answer.json();
    assert_eq!(plan["documents"][0]["change"], "changed", "{plan:#}");
    assert_eq!(
        plan["documents"][0]["changes"],
        json!([{ "path": "spec.loadBalancer.lambda", "before": 0.1, "after": 0.2 }]),
        "{plan:#}"
    );
    assert_eq!(plan["documents"][1]["change"], "created", "{plan:#}");
    let touched: Vec<&str> =
        plan["impact"]["services"].as_array().unwrap().iter().filter_map(|one| one["service"].as_str()).collect();
    assert_eq!(touched, ["other", "quiet"], "{plan:#}");
    assert_eq!(plan["impact"]["services"][1]["nodes"], json!(["n0", "n1"]), "{plan:#}");
    assert!(is_untouched(), "nothing was stored");

    let file = two.fleet.root().join("dry.yaml");
    fs::write(&file, &both).unwrap();
    let said = node.run(&["policy", "apply", "-f", file.to_str().unwrap(), "--dry-run"]);
    assert!(
        said.code == 0 && said.out.contains("nothing was stored") && said.out.contains("touches quiet"),
        "{said:?}"
    );
    let said = node.run(&["policy", "diff", "-f", file.to_str().unwrap()]);
    assert!(said.code == 0 && said.out.contains("spec.loadBalancer.lambda: 0.1 → 0.2"), "{said:?}");
    assert!(is_untouched(), "nothing was stored");
}

#[test]
fn effective_policy_names_the_document_of_each_field_and_what_is_locked() {
    let two = TWO.get(two);
    let node = &two.fleet.nodes[0];
    let document = |name: &str, scope: &str, more: &str, spec: &str| {
        format!(
            "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: {name}, scope: '{scope}'{more} }}\n\
             targetRef: {{ kind: Service, name: layered }}\nspec: {{ loadBalancer: {{ {spec} }} }}\n"
        )
    };
    apply(node, &document("narrow", "node:n1", "", "lambda: 0.2, epsilon: 2"));
    apply(node, &document("wide", "global", "", "lambda: 0.1, epsilon: 1"));
    let effective: EffectiveView = read(node, "/v1/effective/layered?node=n1");
    let source = |effective: &EffectiveView, path: &str| {
        let field = effective.kinds[0].fields.iter().find(|field| field.path == path);
        let field = field.unwrap_or_else(|| panic!("{path}: {effective:#?}"));
        (field.value.clone(), field.document.clone(), field.locked_by.clone())
    };
    let (narrow, wide) =
        ("node:n1/BackendTrafficPolicy/narrow".to_owned(), "global/BackendTrafficPolicy/wide".to_owned());
    assert_eq!(source(&effective, "spec.loadBalancer.lambda"), (json!(0.2), narrow.clone(), None));
    assert_eq!(effective.node, "n1");
    let here: EffectiveView = read(node, "/v1/effective/layered");
    assert_eq!(source(&here, "spec.loadBalancer.lambda"), (json!(0.1), wide.clone(), None), "it is not for this node");

    apply(node, &document("wide", "global", ", locked: [loadBalancer.lambda]", "lambda: 0.1, epsilon: 1"));
    let effective: EffectiveView = read(node, "/v1/effective/layered?node=n1");
    assert_eq!(source(&effective, "spec.loadBalancer.lambda"), (json!(0.1), wide.clone(), Some(wide.clone())));
    assert_eq!(source(&effective, "spec.loadBalancer.epsilon"), (json!(2), narrow, None), "the other field is free");
    let refused = node.write("POST", "/v1/apply", &document("narrow", "node:n1", "", "lambda: 0.3"));
    assert_eq!((refused.status, code(&refused).as_str()), (422, "policy_invalid"), "{refused:?}");
    assert!(refused.body.contains("spec.loadBalancer.lambda"), "{refused:?}");
    eventually("the node that it is for lists it", Duration::from_secs(2), || {
        let problems = two.fleet.nodes[1].ask("/v1/problems")?;
        if problems.to_string().contains("policy_locked") { Ok(()) } else { Err(problems.to_string()) }
    });

    let said = node.run(&["policy", "effective", "layered", "--node", "n1", "-o", "wide"]);
    assert!(said.code == 0 && said.out.contains(&wide) && said.out.contains("locked"), "{said:?}");
    let nowhere = node.run(&["policy", "effective", "layered", "--node", "n9"]);
    assert!(nowhere.code == 1 && nowhere.err.contains("n0, n1"), "{nowhere:?}");
    for at in ["/v1/policies/node:n1/BackendTrafficPolicy/narrow", &path("wide")] {
        assert_eq!(node.write("DELETE", at, "").status, 200);
    }
}

#[test]
fn a_patch_changes_what_it_names_and_leaves_the_rest() {
    let two = TWO.get(two);
    let node = &two.fleet.nodes[0];
    apply(node, &traffic("patched", "x", 0.1));
    let patch = json!({ "spec": { "loadBalancer": { "epsilon": 3 } } }).to_string();
    let answer = node.write("PATCH", &path("patched"), &patch);
    assert_eq!(answer.status, 200, "{answer:?}");
    let view: PolicyView = read(node, &path("patched"));
    assert_eq!(view.document["spec"]["loadBalancer"], json!({ "lambda": 0.1, "epsilon": 3 }));
    let etag = format!("\"{}\"", view.etag);
    let at = "global/BackendTrafficPolicy/patched";
    let said = node.run(&["policy", "patch", at, "-p", r#"{"spec":{"loadBalancer":{"epsilon":null}}}"#, "-m", "back"]);
    assert_eq!(said.code, 0, "{said:?}");
    let view: PolicyView = read(node, &path("patched"));
    assert_eq!(
        (view.document["spec"]["loadBalancer"].clone(), view.message.as_str()),
        (json!({ "lambda": 0.1 }), "back")
    );
    let stale = node.write_with("PATCH", &path("patched"), &patch, &[("if-match", &etag)]);
    assert_eq!((stale.status, code(&stale).as_str()), (412, "stale_context"), "{stale:?}");
    assert_eq!(stale.json()["changes"][0]["path"], "spec.loadBalancer.epsilon", "{stale:?}");
    let nothing = node.write("PATCH", &path("nothing"), &patch);
    assert_eq!((nothing.status, code(&nothing).as_str()), (404, "not_found"), "{nothing:?}");
    let wrong = node.write("PATCH", &path("patched"), r#"{"spec":{"loadBalancer":{"lambda":-1}}}"#);
    assert_eq!((wrong.status, code(&wrong).as_str()), (422, "policy_invalid"), "{wrong:?}");
}

#[test]
fn a_retry_under_its_key_makes_no_second_write() {
    // A node of its own: its counter says how often it wrote, whoever asked.
    let fleet = Fleet::start(1, &|_, _| {});
    let node = &fleet.nodes[0];
    let counter = || read::<SyncStatus>(node, "/v1/sync/status").counter;
    apply(node, &traffic("retried", "x", 0.1));
    let before = counter();
    let key = [("idempotency-key", "retry-1")];
    let write = |lambda| node.write_with("PUT", &path("retried"), &traffic("retried", "x", lambda), &key);
    let answers: Vec<Value> = (0..3).map(|_| write(0.2).json()).collect();
    assert_eq!(counter(), before + 1, "one write");
    assert!(answers.iter().all(|answer| answer["dot"] == answers[0]["dot"]), "{answers:#?}");
    assert_eq!((&answers[0]["replayed"], &answers[1]["replayed"]), (&json!(false), &json!(true)), "{answers:#?}");
    let other = write(0.3);
    assert_eq!((other.status, code(&other).as_str()), (409, "idempotency_reuse"), "{other:?}");
    assert_eq!(counter(), before + 1, "and no other");
}

#[test]
fn a_watcher_that_comes_back_misses_nothing_and_starts_anew_after_a_restart() {
    let mut fleet = Fleet::start(1, &|_, _| {});
    let node = &fleet.nodes[0];
    let mut watcher = Watcher::open(node, "/v1/watch?kinds=policy", "");
    watcher.until("event: resync");
    apply(node, &traffic("one", "x", 0.1));
    watcher.until("/one");
    let seen = watcher.last_id.clone();
    drop(watcher);
    apply(node, &traffic("two", "x", 0.1));
    apply(node, &traffic("three", "x", 0.1));
    let mut again = Watcher::open(node, "/v1/watch?kinds=policy", &seen);
    let missed = again.until("/three");
    assert!(missed.contains("/two") && !missed.contains("/one") && !missed.contains("resync"), "{missed}");
    let seen = again.last_id.clone();
    fleet.nodes[0].kill();
    fleet.nodes[0].start();
    fleet.nodes[0].wait_ready();
    let root = fleet.nodes[0].root().unwrap();
    let mut anew = Watcher::open(&fleet.nodes[0], "/v1/watch", &seen);
    anew.until("event: resync");
    assert!(anew.until("data:").contains(&root), "the root to compare with");
}

#[test]
fn a_document_whose_time_is_over_is_out_of_force_and_said_to_be() {
    let two = TWO.get(two);
    let node = &two.fleet.nodes[0];
    apply(node, &traffic("brief", "brief", 0.77));
    in_force(node, "brief", 0.77).unwrap();
    let written: PolicyView = read(node, &path("brief"));
    let soon = i64::try_from(written.written_ms + 3_000).unwrap();
    let soon = jiff::Timestamp::from_millisecond(soon).unwrap();
    let brief =
        traffic("brief", "brief", 0.77).replace("scope: global", &format!("scope: global, expiresAt: '{soon}'"));
    apply(node, &brief);
    in_force(node, "brief", 0.77).unwrap();
    for node in &two.fleet.nodes {
        eventually("it is out of force by itself", Duration::from_secs(10), || {
            let lambda = node.explain("brief")?.lambda_per_ms;
            if (lambda - 0.77).abs() > 1e-9 { Ok(()) } else { Err(format!("{}: still in force", node.name)) }
        });
        let view: PolicyView = read(node, &path("brief"));
        assert!(view.expired, "{view:?}");
        let problems = node.ask("/v1/problems").unwrap().to_string();
        assert!(problems.contains("policy_expired"), "{problems}");
    }
    let listed = node.run(&["policy", "list", "-o", "wide"]);
    let line = listed.out.lines().find(|line| line.contains("brief")).unwrap_or_default();
    assert!(line.contains("expired"), "{listed:?}");
    assert_eq!(node.write("DELETE", &path("brief"), "").status, 200);
}

/// A reader of `/v1/watch` that remembers the last id.
struct Watcher {
    lines: std::io::Lines<BufReader<TcpStream>>,
    last_id: String,
}

impl Watcher {
    fn open(node: &Node, at: &str, last_id: &str) -> Self {
        let mut stream = TcpStream::connect(node.admin).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let resume = if last_id.is_empty() { String::new() } else { format!("last-event-id: {last_id}\r\n") };
        stream.write_all(format!("GET {at} HTTP/1.1\r\nhost: localhost\r\n{resume}\r\n").as_bytes()).unwrap();
        let mut watcher = Self { lines: BufReader::new(stream).lines(), last_id: String::new() };
        assert!(watcher.until("HTTP/1.1").contains("200"));
        watcher
    }

    /// All lines up to the first that holds `word`. The id of an event comes before its data.
    fn until(&mut self, word: &str) -> String {
        let mut all = String::new();
        loop {
            let line = self.lines.next().expect("the stream goes on");
            let line = line.unwrap_or_else(|fault| panic!("waiting for {word}: {fault} after {all}"));
            if let Some(id) = line.strip_prefix("id: ") {
                id.clone_into(&mut self.last_id);
            }
            all.push_str(&line);
            all.push('\n');
            if line.contains(word) {
                return all;
            }
        }
    }
}
