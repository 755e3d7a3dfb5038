use super::fake::Running;
use crate::admin::{AdminError, AdminServer, BODY_BYTES_MAX};
use crate::telemetry::MetricsHandle;

#[tokio::test]
async fn a_host_that_is_not_this_machine_is_refused() {
    let server = Running::start().await;
    for head in
        [&["Host: mesh.example.org"][..], &["Host: localhost", "Host: example.org"], &["Host: 10.0.0.5:7070"], &[]]
    {
        let answer = server.tcp("GET /v1/status", head, "").await;
        answer.assert_refused(421, "host_refused");
    }
    let answer = server.tcp("GET http://example.org/v1/status", &["Host: localhost"], "").await;
    answer.assert_refused(421, "host_refused");
}

#[tokio::test]
async fn the_socket_needs_neither_host_nor_token() {
    let server = Running::start().await;
    let answer = server.socket("PUT /v1/services/hello/instances/1/heartbeat", &[], "").await;
    assert_eq!(answer.status, 204, "{answer:?}");
}

#[tokio::test]
async fn writes_over_tcp_need_the_token() {
    let server = Running::start().await;
    let line = "PUT /v1/services/hello/instances/1/heartbeat";
    let without = server.tcp(line, &["Host: localhost"], "").await;
    without.assert_refused(401, "token_required");
    assert!(without.headers["www-authenticate"].starts_with("Bearer"), "{without:?}");
    for wrong in ["Bearer", "Bearer ", "Basic eDp5", "Bearer wrong"] {
        let head = format!("Authorization: {wrong}");
        let answer = server.tcp(line, &["Host: localhost", &head], "").await;
        assert_eq!(answer.status, 401, "{wrong}: {answer:?}");
    }
    let wrong = server.tcp(line, &["Host: localhost", "Authorization: Bearer wrong"], "").await;
    wrong.assert_refused(401, "token_wrong");
    assert_eq!(server.calls(), Vec::<String>::new());
    assert_eq!(server.authorised(line, &[], "").await.status, 204);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_apart() {
    let server = Running::start().await;
    server.socket("GET /v2/status", &[], "").await.assert_refused(404, "not_found");
    let answer = server.socket("DELETE /v1/status", &[], "").await;
    answer.assert_refused(405, "method_not_allowed");
    assert_eq!(answer.headers.get("allow").map(String::as_str), Some("GET,HEAD"), "{answer:?}");
}

#[tokio::test]
async fn an_unknown_service_is_answered_with_what_is_known() {
    let server = Running::start().await;
    let near = server.socket("GET /v1/explain/helo", &[], "").await.assert_refused(404, "not_found");
    assert_eq!(near["detail"], "no service `helo` is known here; did you mean `hello`?");
    let far = server.socket("GET /v1/services/cart", &[], "").await.assert_refused(404, "not_found");
    assert_eq!(far["detail"], "no service `cart` is known here; known: hello");
}

#[tokio::test]
async fn a_panic_in_a_handler_is_a_problem_and_no_end() {
    let server = Running::start().await;
    server.socket("GET /v1/explain/panic", &[], "").await.assert_refused(500, "internal");
    assert_eq!(server.socket("GET /v1/explain/hello", &[], "").await.status, 200);
}

#[tokio::test]
async fn paths_and_queries_that_do_not_parse_are_problems_too() {
    let server = Running::start().await;
    server.socket("GET /v1/explain/%ff", &[], "").await.assert_refused(400, "malformed");
    server.socket("GET /v1/policies?kin=HTTPRoute", &[], "").await.assert_refused(400, "malformed");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let server = Running::start().await;
    let body = "#".repeat(BODY_BYTES_MAX + 1);
    let answer = server.socket("POST /v1/apply", &["Content-Type: application/yaml"], &body).await;
    answer.assert_refused(413, "body_too_large");
    assert_eq!(server.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn a_body_of_another_type_is_refused_with_the_right_one() {
    let server = Running::start().await;
    let head = ["Content-Type: application/x-www-form-urlencoded"];
    let body =
        server.socket("POST /v1/apply", &head, "kind: HTTPRoute").await.assert_refused(415, "unsupported_media_type");
    assert!(body["detail"].as_str().unwrap().contains("content-type: application/yaml"), "{body}");
    let put = server.socket("PUT /v1/services/a/instances/1", &["Content-Type: text/plain"], "{}").await;
    put.assert_refused(415, "unsupported_media_type");
}

#[tokio::test]
async fn a_head_over_the_limit_ends_the_connection() {
    let server = Running::start().await;
    let long = format!("X-Long: {}", "x".repeat(20_000));
    let answer = server.tcp("GET /v1/status", &["Host: localhost", &long], "").await;
    assert_eq!(answer.status, 431, "{answer:?}");
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_option() {
    let server = Running::start().await;
    let dir = tempfile::tempdir().unwrap();
    let api = std::sync::Arc::clone(&server.node) as std::sync::Arc<dyn crate::api::NodeApi>;
    let error = AdminServer::bind(dir.path(), server.tcp, api, MetricsHandle::detached()).await.unwrap_err();
    assert!(matches!(error, AdminError::PortInUse { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&server.tcp.to_string()) && text.contains("`admin.bind`"), "{text}");
}

#[tokio::test]
async fn a_second_agent_on_the_same_folder_is_refused_and_a_stale_socket_is_not() {
    let server = Running::start().await;
    let folder = server.socket.parent().unwrap().to_owned();
    let bind = "127.0.0.1:0".parse().unwrap();
    let api = || std::sync::Arc::clone(&server.node) as std::sync::Arc<dyn crate::api::NodeApi>;
    let second = AdminServer::bind(&folder, bind, api(), MetricsHandle::detached()).await.unwrap_err();
    assert!(matches!(second, AdminError::Running { .. }), "{second}");

    let dir = tempfile::tempdir().unwrap();
    let stale = dir.path().canonicalize().unwrap().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let bound = AdminServer::bind(dir.path(), bind, api(), MetricsHandle::detached()).await.unwrap();
    assert_eq!(bound.socket_path(), stale);
}
