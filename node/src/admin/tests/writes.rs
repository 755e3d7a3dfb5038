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
        (r#"{"port": 1, "protocol": "udp"}"#, "protocol", "unknown variant `udp`"),
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
