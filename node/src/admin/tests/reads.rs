use std::os::unix::fs::PermissionsExt as _;

use super::fake::{ETAG, Running};

#[tokio::test]
async fn reads_are_free_over_tcp_and_socket() {
    let server = Running::start().await;
    for path in [
        "/v1/status",
        "/v1/nodes",
        "/v1/services",
        "/v1/services/hello",
        "/v1/explain/hello",
        "/v1/policies",
        "/v1/conflicts",
        "/v1/problems",
        "/openapi.json",
    ] {
        let line = format!("GET {path}");
        let over_tcp = server.tcp(&line, &["Host: 127.0.0.1"], "").await;
        let over_socket = server.socket(&line, &[], "").await;
        assert_eq!((over_tcp.status, over_socket.status), (200, 200), "{path}: {over_tcp:?}");
        assert_eq!(over_tcp.headers["content-type"], "application/json", "{path}");
        assert_eq!(over_tcp.json(), over_socket.json(), "{path}");
    }
}

#[tokio::test]
async fn the_explanation_has_the_names_that_scripts_rely_on() {
    let server = Running::start().await;
    let body = server.socket("GET /v1/explain/hello", &[], "").await.json();
    assert_eq!(body["service"], "hello");
    assert_eq!(body["algorithm"], "EdgeDecay");
    assert!(body["lambda_per_ms"].is_number() && body["epsilon"].is_number(), "{body}");
    let candidate = &body["candidates"][0];
    for field in ["capacity", "load", "distance_ms", "weight", "probability", "observed_share"] {
        assert!(candidate[field].is_number(), "{field} in {candidate}");
    }
    for field in ["instance", "node", "zone", "state"] {
        assert!(candidate[field].is_string(), "{field} in {candidate}");
    }
    assert_eq!(body["excluded"][0]["reason"], "owner is dead");
}

#[tokio::test]
async fn a_document_comes_with_its_etag() {
    let server = Running::start().await;
    let answer = server.socket("GET /v1/policies/region:eu/HTTPRoute/shop", &[], "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["etag"], format!("\"{ETAG}\""));
    assert_eq!(answer.json()["scope"], "region:eu");
}

#[tokio::test]
async fn documents_are_listed_by_kind_and_scope() {
    let server = Running::start().await;
    for (query, count) in
        [("", 1), ("?kind=HTTPRoute", 1), ("?kind=Other", 0), ("?scope=global", 1), ("?scope=node:x", 0)]
    {
        let answer = server.socket(&format!("GET /v1/policies{query}"), &[], "").await;
        assert_eq!(answer.json().as_array().map(Vec::len), Some(count), "{query}");
    }
}

#[tokio::test]
async fn probes_say_live_and_ready() {
    let server = Running::start().await;
    let live = server.tcp("GET /healthz", &["Host: localhost"], "").await;
    assert_eq!((live.status, live.body.as_str()), (200, "ok\n"));
    let ready = server.tcp("GET /readyz", &["Host: localhost"], "").await;
    assert_eq!((ready.status, ready.body.as_str()), (200, "ready\n"));
    *server.node.not_ready.lock().unwrap() = Some("draining".to_owned());
    let answer = server.tcp("GET /readyz", &["Host: localhost"], "").await;
    assert_eq!(answer.assert_refused(503, "unavailable")["detail"], "draining");
    assert_eq!(server.tcp("GET /healthz", &["Host: localhost"], "").await.status, 200);
}

#[tokio::test]
async fn metrics_are_text_with_the_process_in_it() {
    let server = Running::start().await;
    let answer = server.tcp("GET /metrics", &["Host: localhost"], "").await;
    assert_eq!(answer.status, 200);
    assert!(answer.headers["content-type"].starts_with("text/plain; version=0.0.4"), "{answer:?}");
    assert!(answer.body.contains("# TYPE marram_process_cpu_seconds_total counter"), "{}", answer.body);
}

#[tokio::test]
async fn the_socket_is_for_the_nodes_user_only() {
    let server = Running::start().await;
    let mode = std::fs::metadata(&server.socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "{mode:o}");
}

#[tokio::test]
async fn a_stopped_server_takes_its_socket_away() {
    let server = Running::start().await;
    server.stop.cancel();
    server.task.await.unwrap();
    assert!(!server.socket.exists());
}
