//! Policy: written at one node, in force at all, kept over a death, merged without losing a side.

use std::fs;
use std::time::Duration;

use node::view::{Applied, ConflictView, PolicyView};
use serde_json::{Value, json};
use tests::{Answer, App, Fleet, Node, Shared, Stopwatch, eventually, run};

static THREE: Shared<Three> = Shared::new();

/// Three nodes; `hello` runs on the first.
struct Three {
    fleet: Fleet,
    _app: App,
}

fn three() -> Three {
    let app = App::start("a");
    let fleet = Fleet::start(3, &|n, config| {
        if n == 0 {
            Node::serve(config, "hello", app.address(), None);
        }
    });
    fleet.wait_service("hello", 1);
    Three { fleet, _app: app }
}

/// A document that sets the distance decay of a service.
pub(crate) fn traffic(name: &str, service: &str, lambda: f64) -> String {
    format!(
        "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: {name}, scope: global }}\n\
         targetRef: {{ kind: Service, name: {service} }}\nspec:\n  loadBalancer: {{ lambda: {lambda} }}\n"
    )
}

pub(crate) fn path(name: &str) -> String {
    format!("/v1/policies/global/BackendTrafficPolicy/{name}")
}

pub(crate) fn apply(node: &Node, text: &str) -> Applied {
    let answer = node.write("POST", "/v1/apply", text);
    assert_eq!(answer.status, 200, "{}: {answer:?}", node.name);
    serde_json::from_str(&answer.body).unwrap()
}

/// Whether requests for `service` are decided with `lambda` at `node`.
pub(crate) fn in_force(node: &Node, service: &str, lambda: f64) -> Result<(), String> {
    let explanation = node.explain(service)?;
    if (explanation.lambda_per_ms - lambda).abs() < 1e-9 {
        Ok(())
    } else {
        Err(format!("{}: lambda {} by {}", node.name, explanation.lambda_per_ms, explanation.policy))
    }
}

pub(crate) fn code(answer: &Answer) -> String {
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer:?}");
    answer.json()["code"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_write_at_one_node_is_in_force_at_the_others_within_a_second() {
    let three = THREE.get(three);
    let mut slowest = Duration::ZERO;
    for (round, lambda) in [0.5, 0.25, 0.125, 0.0625, 0.03].into_iter().enumerate() {
        let writer = &three.fleet.nodes[round % 3];
        let applied = apply(writer, &traffic("hello", "hello", lambda));
        let (_, took) = eventually("the write is in force everywhere", Duration::from_secs(1), || {
            for node in &three.fleet.nodes {
                in_force(node, "hello", lambda)?;
                let source = node.explain("hello")?.policy;
                assert!(source.contains("BackendTrafficPolicy/hello"), "{source}");
            }
            Ok(())
        });
        slowest = slowest.max(took);
        for node in &three.fleet.nodes {
            let view: PolicyView = serde_json::from_value(node.ask(&path("hello")).unwrap()).unwrap();
            assert_eq!(view.etag, applied.documents[0].etag, "{}", node.name);
            assert_eq!(view.author, writer.name, "{}", node.name);
        }
    }
    println!("slowest of five: {slowest:?}");
}

#[test]
fn an_answered_write_is_in_force_at_its_author() {
    let app = App::start("mine");
    let fleet = Fleet::start(1, &|_, config| Node::serve(config, "mine", app.address(), None));
    fleet.wait_service("mine", 1);
    for lambda in [0.11, 0.22, 0.33, 0.44, 0.55, 0.66] {
        let applied = apply(&fleet.nodes[0], &traffic("mine", "mine", lambda));
        // The API says "on disk and in force here", so the very next question is answered by it.
        in_force(&fleet.nodes[0], "mine", lambda).unwrap();
        assert_eq!(fleet.nodes[0].root().unwrap(), applied.root);
    }
}

#[test]
fn a_document_is_out_of_force_once_its_time_is_over_and_still_there() {
    let app = App::start("brief");
    let fleet = Fleet::start(1, &|_, config| Node::serve(config, "brief", app.address(), None));
    fleet.wait_service("brief", 1);
    let node = &fleet.nodes[0];
    apply(node, &traffic("always", "brief", 0.25));
    let view: PolicyView = serde_json::from_value(node.ask(&path("always")).unwrap()).unwrap();
    // By the node's own clock.
    let at = std::time::UNIX_EPOCH + Duration::from_millis(view.written_ms) + Duration::from_secs(3);
    let expires_at = humantime::format_rfc3339_millis(at);
    let brief = traffic("a-while", "brief", 0.5).replace("scope: global", &format!("expiresAt: '{expires_at}'"));
    apply(node, &brief);
    in_force(node, "brief", 0.5).unwrap();
    let (_, took) = eventually("its time is over", Duration::from_secs(6), || in_force(node, "brief", 0.25));
    println!("over after {took:?}");
    assert!(node.ask(&path("a-while")).is_ok());
}

#[test]
fn a_deleted_document_is_gone_everywhere_and_its_effect_with_it() {
    let three = THREE.get(three);
    apply(&three.fleet.nodes[0], &traffic("gone", "leaving", 0.7));
    for node in &three.fleet.nodes {
        eventually("it is at the others", Duration::from_secs(1), || node.ask(&path("gone")).map(drop));
    }
    let answer = three.fleet.nodes[1].write("DELETE", &path("gone"), "");
    assert_eq!(answer.status, 200, "{answer:?}");
    eventually("it is gone everywhere", Duration::from_secs(1), || {
        for node in &three.fleet.nodes {
            if node.ask(&path("gone")).is_ok() {
                return Err(format!("{} still has it", node.name));
            }
        }
        Ok(())
    });
    assert_eq!(three.fleet.nodes[0].write("DELETE", &path("gone"), "").status, 404);
}

#[test]
fn what_was_acknowledged_outlives_kill_9_of_its_only_holder() {
    let mut fleet = Fleet::start(1, &|_, _| {});
    let node = &mut fleet.nodes[0];
    for round in 0..5 {
        let name = format!("kept-{round}");
        let applied = apply(node, &traffic(&name, "hello", 0.4));
        node.kill();
        node.start();
        node.wait_ready();
        let view: PolicyView = serde_json::from_value(node.ask(&path(&name)).unwrap()).unwrap();
        assert_eq!(view.etag, applied.documents[0].etag);
        assert_eq!(node.root().unwrap(), applied.root);
    }
    let all = node.run(&["policy", "list", "-o", "json"]);
    assert_eq!(all.json().as_array().map(Vec::len), Some(5), "{all:?}");
}

#[test]
fn a_write_reaches_the_others_although_its_author_dies_right_after_the_answer() {
    let app = App::start("a");
    let mut fleet = Fleet::start(3, &|n, config| {
        if n == 1 {
            Node::serve(config, "hello", app.address(), None);
        }
    });
    fleet.wait_service("hello", 1);
    let applied = apply(&fleet.nodes[0], &traffic("hello", "hello", 0.9));
    fleet.nodes[0].kill();
    fleet.nodes[0].start();
    fleet.nodes[0].wait_ready();
    assert_eq!(fleet.nodes[0].root().unwrap(), applied.root, "the author has it from its own disk");
    let (root, _) = fleet.wait_roots_equal(Duration::from_secs(10));
    assert_eq!(root, applied.root);
    for node in &fleet.nodes {
        eventually("it is in force", Duration::from_secs(5), || in_force(node, "hello", 0.9));
    }
}

#[test]
fn two_sides_that_wrote_apart_agree_when_they_meet_and_show_both_sides() {
    let app = App::start("a");
    let mut fleet = Fleet::start(2, &|_, config| Node::serve(config, "hello", app.address(), None));
    fleet.wait_service("hello", 2);
    apply(&fleet.nodes[0], &traffic("hello", "hello", 0.5));
    let _same = fleet.wait_roots_equal(Duration::from_secs(2));

    fleet.nodes[1].kill();
    apply(&fleet.nodes[0], &traffic("hello", "hello", 0.1));
    fleet.nodes[0].kill();
    fleet.nodes[1].start();
    fleet.nodes[1].wait_ready();
    in_force(&fleet.nodes[1], "hello", 0.5).unwrap();
    apply(&fleet.nodes[1], &traffic("hello", "hello", 0.2));
    apply(&fleet.nodes[1], &traffic("only-here", "other", 0.3));
    fleet.nodes[0].start();
    fleet.nodes[0].wait_ready();
    let (_, took) = fleet.wait_roots_equal(Duration::from_secs(5));
    println!("equal {took:?} after both were ready");

    let sides: Vec<Vec<ConflictView>> =
        (fleet.nodes.iter()).map(|node| serde_json::from_value(node.ask("/v1/conflicts").unwrap()).unwrap()).collect();
    assert_eq!(sides[0], sides[1], "both list the same sides in the same order");
    let [conflict] = sides[0].as_slice() else { panic!("{sides:#?}") };
    assert_eq!((conflict.name.as_str(), conflict.section.as_str()), ("hello", "spec.loadBalancer"));
    let mut written: Vec<(String, f64)> =
        (conflict.sides.iter()).map(|side| (side.author.clone(), side.value["lambda"].as_f64().unwrap())).collect();
    let winner = written[0].1;
    assert_eq!(conflict.sides.iter().map(|side| side.in_force).collect::<Vec<_>>(), [true, false]);
    written.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(written, [("n0".to_owned(), 0.1), ("n1".to_owned(), 0.2)]);
    for node in &fleet.nodes {
        eventually("one side is in force on both", Duration::from_secs(1), || in_force(node, "hello", winner));
        node.ask(&path("only-here")).unwrap();
        let told = node.run(&["policy", "conflicts"]);
        assert_eq!(told.code, 3, "{told:?}");
        assert!(told.out.contains("spec.loadBalancer") && told.out.contains("in force"), "{told:?}");
        let metric = node.metric("marram_policy_conflicts", "").unwrap();
        assert!((metric - 1.0).abs() < 1e-9, "{metric}");
    }

    apply(&fleet.nodes[1], &traffic("hello", "hello", 0.15));
    for node in &fleet.nodes {
        eventually("writing it again settled it", Duration::from_secs(2), || {
            in_force(node, "hello", 0.15)?;
            let told = node.run(&["policy", "conflicts"]);
            if told.code == 0 { Ok(()) } else { Err(format!("{told:?}")) }
        });
    }
}

#[test]
fn writes_at_all_nodes_at_once_all_arrive_everywhere() {
    let three = THREE.get(three);
    let before = three.fleet.nodes[0].ask("/v1/policies?kind=Crowd").unwrap();
    assert_eq!(before, json!([]));
    std::thread::scope(|scope| {
        for node in &three.fleet.nodes {
            scope.spawn(move || {
                for n in 0..10 {
                    apply(node, &crowd(&format!("{}-{n}", node.name), "x"));
                }
            });
        }
    });
    for node in &three.fleet.nodes {
        eventually("all thirty are here", Duration::from_secs(3), || {
            let known = node.ask("/v1/policies?kind=Crowd")?.as_array().map_or(0, Vec::len);
            if known == 30 { Ok(()) } else { Err(format!("{}: {known}", node.name)) }
        });
        assert!(!node.ask("/v1/conflicts").unwrap().to_string().contains("Crowd"), "nobody wrote what another wrote");
    }
}

/// A document that no node enforces, with some text in it.
fn crowd(name: &str, text: &str) -> String {
    let metadata = json!({ "name": name, "scope": "global" });
    json!({ "apiVersion": "marram.dev/v1", "kind": "Crowd", "metadata": metadata, "spec": { "text": text } })
        .to_string()
}

#[test]
fn a_node_that_was_away_catches_up_with_a_megabyte_of_policy() {
    let mut fleet = Fleet::start(2, &|_, _| {});
    fleet.nodes[1].kill();
    let text = "0123456789".repeat(1_200);
    let written = Stopwatch::start();
    for n in 0..100 {
        apply(&fleet.nodes[0], &crowd(&format!("big-{n}"), &format!("{n}{text}")));
    }
    println!("100 durable writes of 12 KB: {:?}", written.elapsed());
    fleet.nodes[1].start();
    fleet.nodes[1].wait_ready();
    let (_, took) = fleet.wait_roots_equal(Duration::from_secs(5));
    println!("caught up {took:?} after it was ready");
    let last: PolicyView =
        serde_json::from_value(fleet.nodes[1].ask("/v1/policies/global/Crowd/big-99").unwrap()).unwrap();
    assert_eq!(last.document["spec"]["text"], format!("99{text}"));
    assert_eq!(last.author, "n0");
}

#[test]
fn a_write_on_a_stale_etag_is_refused_with_both_versions() {
    let three = THREE.get(three);
    let node = &three.fleet.nodes[1];
    let created = node.write_with("PUT", &path("etagged"), &traffic("etagged", "x", 0.1), &[("if-none-match", "*")]);
    assert_eq!(created.status, 201, "{created:?}");
    let first = created.header("etag").unwrap().to_owned();
    let again = node.write_with("PUT", &path("etagged"), &traffic("etagged", "x", 0.2), &[("if-none-match", "*")]);
    assert_eq!((again.status, code(&again).as_str()), (412, "stale_context"), "{again:?}");
    let changed = node.write_with("PUT", &path("etagged"), &traffic("etagged", "x", 0.2), &[("if-match", &first)]);
    assert_eq!(changed.status, 200, "{changed:?}");
    let second = changed.header("etag").unwrap();
    assert_ne!(second, first);

    let stale = node.write_with("PUT", &path("etagged"), &traffic("etagged", "x", 0.3), &[("if-match", &first)]);
    assert_eq!((stale.status, code(&stale).as_str()), (412, "stale_context"), "{stale:?}");
    let body = stale.json();
    assert_eq!(body["current"]["etag"].as_str(), Some(second.trim_matches('"')), "{body:#}");
    assert_eq!(body["current"]["document"]["spec"]["loadBalancer"]["lambda"], json!(0.2), "{body:#}");
    assert_eq!(body["yours"]["document"]["spec"]["loadBalancer"]["lambda"], json!(0.3), "{body:#}");
    let now: PolicyView = serde_json::from_value(node.ask(&path("etagged")).unwrap()).unwrap();
    assert_eq!(now.document["spec"]["loadBalancer"]["lambda"], json!(0.2), "nothing was stored");

    let file = three.fleet.root().join("stale.yaml");
    fs::write(&file, traffic("etagged", "x", 0.3)).unwrap();
    let first = first.trim_matches('"');
    let said = node.run(&["policy", "apply", "-f", file.to_str().unwrap(), "--if-match", first]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.err.contains(second.trim_matches('"')), "{said:?}");
    let deleted = node.write_with("DELETE", &path("etagged"), "", &[("if-match", &format!("\"{first}\""))]);
    assert_eq!(deleted.status, 412, "{deleted:?}");
}

#[test]
fn an_invalid_policy_is_refused_with_every_fault_and_nothing_is_stored() {
    let three = THREE.get(three);
    let node = &three.fleet.nodes[2];
    let good = traffic("would-be-fine", "x", 0.1);
    let bad = "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: { name: bad, scope: regin:eu }\n\
               targetRef: { kind: Service, name: x }\nspec:\n  loadBalancer: { lamda: 3, epsilon: -1 }\n";
    let both = format!("{good}---\n{bad}");
    let answer = node.write("POST", "/v1/apply", &both);
    assert_eq!((answer.status, code(&answer).as_str()), (422, "policy_invalid"), "{answer:?}");
    let body = answer.json();
    let problems = body["problems"].as_array().unwrap();
    for (field, hint) in
        [("metadata.scope", "region"), ("spec.loadBalancer.lamda", "lambda"), ("spec.loadBalancer.epsilon", "")]
    {
        let problem = problems.iter().find(|problem| problem["field"].as_str().is_some_and(|at| at.ends_with(field)));
        let problem = problem.unwrap_or_else(|| panic!("{field}: {body:#}"));
        assert!(!problem["message"].as_str().unwrap().is_empty());
        assert!(problem["hint"].as_str().unwrap_or_default().contains(hint), "{problem:#}");
    }
    assert!(node.ask(&path("would-be-fine")).is_err(), "all or nothing");
    assert!(node.ask(&path("bad")).is_err());

    let file = three.fleet.root().join("bad.yaml");
    fs::write(&file, &both).unwrap();
    let said = node.run(&["policy", "apply", "-f", file.to_str().unwrap()]);
    assert_eq!(said.code, 7, "{said:?}");
    for word in ["metadata.scope", "lamda", "did you mean", "epsilon"] {
        assert!(said.err.contains(word), "{word}: {said:?}");
    }
    let torn = node.write("POST", "/v1/apply", "kind: [");
    assert_eq!(torn.status, 422, "{torn:?}");
    assert!(torn.json()["problems"][0]["message"].as_str().unwrap().contains("line"), "{torn:?}");
}

#[test]
fn a_kind_nobody_knows_is_kept_and_passed_on_to_the_last_byte() {
    let three = THREE.get(three);
    let document = json!({
        "apiVersion": "marram.dev/v1",
        "kind": "OrbitPolicy",
        "metadata": { "name": "apollo", "scope": "region:eu", "labels": { "team": "sky" }, "description": "später: ☂ \u{1f680}" },
        "targetRef": { "kind": "Planet", "name": "mars" },
        "spec": {
            "zero": 0, "negative": -7, "big": u64::MAX, "half": 0.5, "one": 1.0, "tiny": 1e-7,
            "text": "line\nbreak \"quoted\" \u{7f}", "empty": {}, "none": null, "yes": true,
            "nested": { "list": [1, [2, [3, { "deep": [] }]]], "b": 1, "a": 2 },
        },
    });
    let at = "/v1/policies/region:eu/OrbitPolicy/apollo";
    let answer = three.fleet.nodes[0].write("PUT", at, &document.to_string());
    assert_eq!(answer.status, 201, "{answer:?}");
    let told: Vec<Value> = (three.fleet.nodes.iter())
        .map(|node| eventually("it is there", Duration::from_secs(1), || node.ask(at)).0)
        .collect();
    // A number has one form on every node: 1.0 is 1.
    let mut document = document;
    document["spec"]["one"] = json!(1);
    for (node, told) in three.fleet.nodes.iter().zip(&told) {
        assert_eq!(told["document"], document, "{}", node.name);
    }
    let bytes: Vec<String> = told.iter().map(Value::to_string).collect();
    assert!(bytes.iter().all(|other| *other == bytes[0]), "byte by byte: {told:#?}");
    let said = three.fleet.nodes[1].run(&["policy", "get", "region:eu/OrbitPolicy/apollo", "-o", "json"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(said.json()["document"], document);
}

#[test]
fn a_gateway_may_not_write_policy_but_passes_it_on() {
    let app = App::start("a");
    let mut fleet = Fleet::start(1, &|_, config| Node::serve(config, "hello", app.address(), None));
    fleet.add(&["--role", "gateway"], &|_, _| {});
    fleet.add(&[], &|_, _| {});
    fleet.wait_whole();
    fleet.wait_service("hello", 1);
    let gateway = &fleet.nodes[1];
    let role = fleet.nodes[2].nodes().unwrap().into_iter().find(|known| known.name == "n1").unwrap().role;
    assert_eq!(role, "gateway");
    let answer = gateway.write("POST", "/v1/apply", &traffic("hello", "hello", 0.6));
    assert_eq!((answer.status, code(&answer).as_str()), (403, "denied"), "{answer:?}");
    let file = fleet.root().join("denied.yaml");
    fs::write(&file, traffic("hello", "hello", 0.6)).unwrap();
    let said = gateway.run(&["policy", "apply", "-f", file.to_str().unwrap()]);
    assert_eq!(said.code, 6, "{said:?}");
    assert_eq!(gateway.ask("/v1/policies").unwrap(), json!([]), "nothing was stored");
    assert_eq!(gateway.get("hello", "/").unwrap().status, 200, "requests pass through it");

    // The third node can have it from the gateway alone.
    fleet.nodes[2].kill();
    let applied = apply(&fleet.nodes[0], &traffic("hello", "hello", 0.8));
    eventually("the gateway has it", Duration::from_secs(2), || same_root(&fleet.nodes[1], &applied.root));
    fleet.nodes[0].kill();
    fleet.nodes[2].start();
    eventually("the gateway passed it on", Duration::from_secs(10), || {
        same_root(&fleet.nodes[2], &applied.root).map_err(|reason| format!("{reason}\n{}", fleet.nodes[1].log_tail(30)))
    });
}

fn same_root(node: &Node, root: &str) -> Result<(), String> {
    let own = node.root()?;
    if own == root { Ok(()) } else { Err(format!("{}: {own}\n{}", node.name, node.log_tail(30))) }
}

#[test]
fn policy_verbs_write_list_read_and_delete() {
    let three = THREE.get(three);
    let (first, second) = (&three.fleet.nodes[0], &three.fleet.nodes[1]);
    let file = three.fleet.root().join("verbs.yaml");
    fs::write(&file, format!("{}---\n{}", traffic("verb-a", "x", 0.1), traffic("verb-b", "x", 0.2))).unwrap();
    let file = file.to_str().unwrap();
    let said = first.run(&["policy", "apply", "-f", file]);
    assert_eq!(said.code, 0, "{said:?}");
    for line in
        ["created global/BackendTrafficPolicy/verb-a", "created global/BackendTrafficPolicy/verb-b", "policy root"]
    {
        assert!(said.out.contains(line), "{line}: {said:?}");
    }
    let again = first.run(&["policy", "apply", "-f", file]);
    assert!(again.out.contains("unchanged global/BackendTrafficPolicy/verb-a"), "{again:?}");
    eventually("the other node lists them", Duration::from_secs(1), || {
        let listed = second.run(&["policy", "list", "--kind", "BackendTrafficPolicy"]).out;
        if listed.contains("verb-a") && listed.contains("verb-b") { Ok(()) } else { Err(listed) }
    });
    let got = second.run(&["policy", "get", "global/BackendTrafficPolicy/verb-b"]);
    assert!(got.code == 0 && got.out.contains("lambda: 0.2") && got.err.contains("written by n0"), "{got:?}");
    // What `get` prints can be applied as it is.
    let copy = three.fleet.root().join("copy.yaml");
    fs::write(&copy, &got.out).unwrap();
    let copied = second.run(&["policy", "apply", "-f", copy.to_str().unwrap()]);
    assert!(copied.code == 0 && copied.out.contains("unchanged"), "{copied:?}");
    let deleted =
        run(&["policy", "delete", "global/BackendTrafficPolicy/verb-b", "--dir", first.dir.to_str().unwrap()]);
    assert!(deleted.code == 0 && deleted.out.contains("deleted"), "{deleted:?}");
    let gone = first.run(&["policy", "get", "global/BackendTrafficPolicy/verb-b"]);
    assert!(gone.code == 1 && gone.err.contains("not_found"), "{gone:?}");
}

#[test]
fn a_route_by_path_and_weight_sends_requests_where_it_says() {
    let (shop, cart) = (App::start("shop"), App::start("cart"));
    let fleet = Fleet::start(2, &|n, config| {
        if n == 0 {
            Node::serve(config, "shop", shop.address(), None);
            Node::serve(config, "cart", cart.address(), None);
        }
    });
    fleet.wait_service("cart", 1);
    let route = "apiVersion: marram.dev/v1\nkind: HTTPRoute\nmetadata: { name: shop, scope: global }\nspec:\n  \
                 hostnames: [shop.mesh]\n  rules:\n  - matches: [{ path: { type: PathPrefix, value: /cart } }]\n    \
                 backendRefs: [{ name: cart }]\n  - matches: [{ path: { value: /slow } }]\n    \
                 backendRefs: [{ name: shop }]\n    timeouts: { request: 300ms }\n  - matches: [{ path: { value: /split } }]\n    \
                 backendRefs: [{ name: shop, weight: 1 }, { name: cart, weight: 1 }]\n";
    apply(&fleet.nodes[0], route);
    let client = &fleet.nodes[1];
    eventually("the route is in force", Duration::from_secs(1), || {
        let body = client.get("shop", "/cart/7")?.body;
        if body == "hello from cart" { Ok(()) } else { Err(body) }
    });
    let slow = client.get("shop", "/slow?ms=3000").unwrap();
    assert_eq!((slow.status, slow.json()["code"].as_str()), (504, Some("timeout")), "{slow:?}");
    let nowhere = client.get("shop", "/elsewhere").unwrap();
    assert_eq!((nowhere.status, nowhere.json()["code"].as_str()), (404, Some("no_route")), "{nowhere:?}");
    let answers: Vec<String> = (0..60).map(|_| client.get("shop", "/split").unwrap().body).collect();
    for name in ["shop", "cart"] {
        assert!(answers.iter().any(|body| body == &format!("hello from {name}")), "{answers:?}");
    }
}
