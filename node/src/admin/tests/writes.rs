use super::fake::{ETAG, Running};

const YAML: [&str; 1] = ["Content-Type: application/yaml"];

fn document(name: &str) -> String {
    format!(
        "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: {name} }}\n\
         targetRef: {{ kind: Service, name: hello }}\nspec: {{ loadBalancer: {{ epsilon: 2 }} }}\n"
    )
}

fn path(name: &str) -> String {
    format!("PUT /v1/policies/global/BackendTrafficPolicy/{name}")
}

#[tokio::test]
async fn an_instance_is_registered_fed_and_removed() {
    let server = Running::start().await;
    let line = "PUT /v1/services/hello/instances/one";
    let body = r#"{"port": 8081, "capacity": 10, "checks": [{"type": "ttl", "ttl": "30s"}]}"#;
    let put = server.authorised(line, &["Content-Type: application/json"], body).await;
    assert_eq!(put.status, 204, "{put:?}");
    assert_eq!(server.socket(&format!("{line}/heartbeat"), &[], "").await.status, 204);
    let gone = server.socket("DELETE /v1/services/hello/instances/two", &[], "").await.assert_refused(404, "not_found");
    assert_eq!(gone["detail"], "no instance `two` of `hello` here");
    assert_eq!(server.calls(), ["put hello/one port 8081", "heartbeat hello/one", "delete hello/two"]);
}

#[tokio::test]
async fn every_fault_of_a_registration_is_named() {
    let server = Running::start().await;
    let body = r#"{"port": 0, "capacity": -1, "checks": [{"type": "http", "path": "x"}]}"#;
    let answer = server.socket("PUT /v1/services/Hello/instances/one", &[], body).await;
    let problems = answer.assert_refused(422, "registration_invalid")["problems"].clone();
    let fields: Vec<&str> = problems.as_array().unwrap().iter().map(|p| p["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["name", "port", "capacity", "checks[0].path"]);
    assert_eq!(server.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn a_registration_of_a_wrong_shape_names_the_field() {
    let server = Running::start().await;
    for (body, field, message) in [
        (r#"{"port": "x"}"#, "port", "invalid type"),
        (r#"{"port": 1, "prot": 2}"#, "prot", "unknown field `prot`"),
        (r#"{"port": 1, "protocol": "sctp"}"#, "protocol", "unknown variant `sctp`"),
    ] {
        let answer = server.socket("PUT /v1/services/a/instances/1", &[], body).await;
        let problem = answer.assert_refused(422, "registration_invalid")["problems"][0].clone();
        assert_eq!(problem["field"], field, "{problem}");
        assert!(problem["message"].as_str().unwrap().contains(message), "{problem}");
    }
    server.socket("PUT /v1/services/a/instances/1", &[], "{port").await.assert_refused(400, "malformed");
}

#[tokio::test]
async fn a_new_document_is_created_and_an_old_one_changed() {
    let server = Running::start().await;
    let created = server.authorised(&path("new"), &YAML, &document("new")).await;
    assert_eq!((created.status, created.headers["etag"].as_str()), (201, "\"new\""), "{created:?}");
    let changed = server.authorised(&path("shop"), &YAML, &document("shop")).await;
    assert_eq!((changed.status, changed.json()["documents"][0]["change"].as_str()), (200, Some("changed")));
}

#[tokio::test]
async fn a_lost_race_is_answered_with_both_versions() {
    let server = Running::start().await;
    let head = [YAML[0], "If-Match: \"old\""];
    let body = server.socket(&path("shop"), &head, &document("shop")).await.assert_refused(412, "stale_context");
    assert_eq!(body["current"]["etag"], ETAG);
    assert_eq!(body["current"]["document"]["metadata"]["name"], "shop");
    assert_eq!(body["yours"]["etag"], "old");
    assert_eq!(body["yours"]["document"]["spec"]["loadBalancer"]["epsilon"], 2);
    let won = format!("If-Match: \"{ETAG}\"");
    assert_eq!(server.socket(&path("shop"), &[YAML[0], &won], &document("shop")).await.status, 200);
}

#[tokio::test]
async fn create_only_and_exists_conditions_hold() {
    let server = Running::start().await;
    let create = [YAML[0], "If-None-Match: *"];
    server.socket(&path("shop"), &create, &document("shop")).await.assert_refused(412, "stale_context");
    assert_eq!(server.socket(&path("new"), &create, &document("new")).await.status, 201);
    let exists = [YAML[0], "If-Match: *"];
    server.socket(&path("new"), &exists, &document("new")).await.assert_refused(412, "stale_context");
    assert_eq!(server.socket(&path("shop"), &exists, &document("shop")).await.status, 200);
    for wrong in ["If-Match: old", "If-Match: W/\"old\"", "If-None-Match: \"old\""] {
        server.socket(&path("shop"), &[YAML[0], wrong], &document("shop")).await.assert_refused(400, "malformed");
    }
}

#[tokio::test]
async fn the_document_must_be_the_one_its_path_names() {
    let server = Running::start().await;
    let answer = server.socket("PUT /v1/policies/node:x/HTTPRoute/other", &YAML, &document("shop")).await;
    let problems = answer.assert_refused(422, "policy_invalid")["problems"].clone();
    let fields: Vec<&str> = problems.as_array().unwrap().iter().map(|p| p["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["metadata.scope", "kind", "metadata.name"]);
    let two = format!("{}---\n{}", document("shop"), document("new"));
    server.socket(&path("shop"), &YAML, &two).await.assert_refused(422, "policy_invalid");
    assert_eq!(server.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn several_documents_are_applied_as_one() {
    let server = Running::start().await;
    let two = format!("{}---\n{}", document("one"), document("two"));
    let answer = server.authorised("POST /v1/apply", &YAML, &two).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(server.calls(), ["apply 2 Any"]);
}

#[tokio::test]
async fn every_fault_of_every_document_is_named_and_nothing_is_stored() {
    let server = Running::start().await;
    let bad = document("two").replace("epsilon: 2", "epsilon: -2, lamda: 1");
    let body = format!("{}---\n{bad}", document("one"));
    let problems =
        server.socket("POST /v1/apply", &YAML, &body).await.assert_refused(422, "policy_invalid")["problems"].clone();
    let fields: Vec<&str> = problems.as_array().unwrap().iter().map(|p| p["field"].as_str().unwrap()).collect();
    assert!(fields.contains(&"documents[1].spec.loadBalancer.epsilon"), "{fields:?}");
    assert!(fields.contains(&"documents[1].spec.loadBalancer.lamda"), "{fields:?}");
    assert!(problems.as_array().unwrap().iter().any(|problem| problem["hint"].is_string()), "{problems}");
    assert_eq!(server.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn a_full_disk_and_a_relaying_node_refuse_each_in_its_way() {
    let server = Running::start().await;
    server.socket("POST /v1/apply", &YAML, &document("full")).await.assert_refused(507, "storage_full");
    server.socket("POST /v1/apply", &YAML, &document("relay")).await.assert_refused(403, "denied");
}

#[tokio::test]
async fn a_document_is_deleted_under_a_condition() {
    let server = Running::start().await;
    let line = "DELETE /v1/policies/global/BackendTrafficPolicy/shop";
    let body = server.socket(line, &["If-Match: \"old\""], "").await.assert_refused(412, "stale_context");
    assert_eq!(body["yours"]["document"], serde_json::Value::Null);
    let deleted = server.authorised(line, &[], "").await;
    assert_eq!(deleted.json()["documents"][0]["change"], "deleted");
}

/// A write as the history names it.
const DOT: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaa:17";

#[tokio::test]
async fn key_and_reason_travel_with_every_write() {
    let server = Running::start().await;
    let head = [YAML[0], "Idempotency-Key: k-1", "Marram-Reason: zu früh ☂"];
    assert_eq!(server.socket("POST /v1/apply", &head, &document("shop")).await.status, 200);
    assert_eq!(server.socket(&path("shop"), &head, &document("shop")).await.status, 200);
    let json = ["Content-Type: application/json", "Idempotency-Key: k-2", "Marram-Reason: why"];
    let at = "/v1/policies/global/BackendTrafficPolicy/shop";
    let back = format!(r#"{{"to": "{DOT}"}}"#);
    assert_eq!(server.socket(&format!("POST {at}/rollback"), &json, &back).await.status, 200);
    assert_eq!(
        server.calls(),
        ["apply 1 Any", "k-1", "zu früh ☂", "apply 1 Any", "k-1", "zu früh ☂", "rollback shop to 17 Any", "k-2", "why"]
    );
    for wrong in [format!("Idempotency-Key: {}", "k".repeat(129)), format!("Marram-Reason: {}", "r".repeat(257))] {
        server.socket(&path("shop"), &[YAML[0], &wrong], &document("shop")).await.assert_refused(400, "malformed");
    }
    server.socket(&path("again"), &YAML, &document("again")).await.assert_refused(409, "idempotency_reuse");
}

#[tokio::test]
async fn a_write_that_waits_says_who_has_it_and_202_when_too_few_do() {
    let server = Running::start().await;
    let reached = server.socket("POST /v1/apply?wait=1&timeout=2s", &YAML, &document("shop")).await;
    assert_eq!((reached.status, &reached.json()["replicated_to"]["nodes"][0]), (200, &"b".into()), "{reached:?}");
    let line = path("new").replace("/new", "/new?wait=3");
    let missed = server.socket(&line, &YAML, &document("new")).await;
    assert_eq!((missed.status, &missed.json()["replicated_to"]["wanted"]), (202, &3.into()), "{missed:?}");
    assert_eq!(server.socket(&path("new"), &YAML, &document("new")).await.status, 201);
    for wrong in ["wait=most", "wait=-1", "wait=1&timeout=1h", "wait=1&timeout=soon", "weight=1"] {
        let line = format!("POST /v1/apply?{wrong}");
        server.socket(&line, &YAML, &document("shop")).await.assert_refused(400, "malformed");
    }
}

#[tokio::test]
async fn one_document_is_applied_under_a_condition_and_several_are_not() {
    let server = Running::start().await;
    let stale = [YAML[0], "If-Match: \"old\""];
    let body = server.socket("POST /v1/apply", &stale, &document("shop")).await.assert_refused(412, "stale_context");
    let changes = body["changes"].as_array().unwrap();
    let change = changes.iter().find(|change| change["path"].as_str().unwrap().starts_with("spec.loadBalancer"));
    assert!(change.is_some(), "{body:#}");
    let two = format!("{}---\n{}", document("one"), document("two"));
    server.socket("POST /v1/apply", &stale, &two).await.assert_refused(400, "malformed");
}

#[tokio::test]
async fn a_patch_is_taken_as_json_and_refused_as_anything_else() {
    let server = Running::start().await;
    let line = "PATCH /v1/policies/global/BackendTrafficPolicy/shop";
    let patch = r#"{"spec":{"loadBalancer":{"epsilon":null}}}"#;
    for kind in ["application/merge-patch+json", "application/json"] {
        assert_eq!(server.socket(line, &[&format!("Content-Type: {kind}")], patch).await.status, 200, "{kind}");
    }
    server.socket(line, &YAML, patch).await.assert_refused(415, "unsupported_media_type");
    server.socket(line, &[], "{").await.assert_refused(400, "malformed");
    let stale = server.socket(line, &["If-Match: \"old\""], r#"{"spec":{"x":1}}"#).await;
    let body = stale.assert_refused(412, "stale_context");
    assert_eq!((&body["changes"][0]["path"], &body["changes"][0]["after"]), (&"spec.x".into(), &1.into()), "{body:#}");
    assert_eq!(server.calls()[0], format!("patch shop {patch} Any"));
}

#[tokio::test]
async fn a_conflict_is_settled_with_one_side_or_a_whole_document() {
    let server = Running::start().await;
    let line = |name: &str| format!("POST /v1/policies/global/BackendTrafficPolicy/{name}/resolve");
    assert_eq!(server.socket(&line("shop"), &[], &format!(r#"{{"take": "{DOT}"}}"#)).await.status, 200);
    let whole = serde_json::json!({ "document": {
        "apiVersion": "marram.dev/v1", "kind": "BackendTrafficPolicy", "metadata": { "name": "shop" },
        "targetRef": { "kind": "Service", "name": "hello" }, "spec": { "loadBalancer": { "epsilon": 2 } },
    }});
    assert_eq!(server.socket(&line("shop"), &[], &whole.to_string()).await.status, 200);
    assert_eq!(server.calls(), ["resolve shop take 17 Any", "resolve shop with Any"]);
    server.socket(&line("calm"), &[], &format!(r#"{{"take": "{DOT}"}}"#)).await.assert_refused(409, "no_conflict");
    server.socket(&line("shop"), &[], "{}").await.assert_refused(422, "policy_invalid");
    server.socket(&line("shop"), &[], r#"{"take": "17"}"#).await.assert_refused(400, "malformed");
    server.socket(&line("other"), &[], &whole.to_string()).await.assert_refused(422, "policy_invalid");
}

#[tokio::test]
async fn a_dry_run_answers_a_plan_and_writes_nothing() {
    let server = Running::start().await;
    let plan = server.socket("POST /v1/apply?dryRun=all", &YAML, &document("shop")).await;
    assert_eq!((plan.status, &plan.json()["valid"]), (200, &true.into()), "{plan:?}");
    server.socket("POST /v1/apply?dryRun=some", &YAML, &document("shop")).await.assert_refused(400, "malformed");
    let bad = document("shop").replace("epsilon: 2", "epsilon: -2");
    server.socket("POST /v1/apply?dryRun=all", &YAML, &bad).await.assert_refused(422, "policy_invalid");
    assert_eq!(server.socket("POST /v1/diff", &YAML, &document("shop")).await.status, 200);
    assert_eq!(server.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn earlier_versions_and_places_are_looked_up() {
    let server = Running::start().await;
    let at = "/v1/policies/global/HTTPRoute/shop";
    let earlier = server.socket(&format!("GET {at}?at={DOT}"), &[], "").await;
    assert_eq!((earlier.status, &earlier.json()["dot"]), (200, &DOT.into()), "{earlier:?}");
    assert!(!earlier.headers.contains_key("etag"), "an earlier version has none: {earlier:?}");
    server.socket(&format!("GET {at}?at=17"), &[], "").await.assert_refused(400, "malformed");
    assert_eq!(server.socket(&format!("GET {at}/history"), &[], "").await.status, 200);
    server.socket("GET /v1/policies/global/HTTPRoute/x/history", &[], "").await.assert_refused(404, "not_found");
    assert_eq!(server.socket("GET /v1/effective/hello", &[], "").await.status, 200);
    server.socket("GET /v1/effective/hello?node=x", &[], "").await.assert_refused(404, "not_found");
    assert_eq!(server.socket("GET /v1/sync/status", &[], "").await.status, 200);
}
