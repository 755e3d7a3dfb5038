use super::{AuthzRequest, lenient};
use crate::{
    compile::compile,
    document::{Document, Limits, accept_documents, parse_documents},
    scope::Place,
    table::RouteTable,
};

fn here() -> Place {
    Place { node_name: "n1".into(), region: "eu".into(), zone: "z1".into() }
}

/// A policy for the service `plc`; not validated.
fn policy(scope: &str, name: &str, action: &str, rules: &str) -> Document {
    let text = format!(
        "apiVersion: marram.dev/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name}, scope: '{scope}' }}\n\
         targetRef: {{ kind: Service, name: plc }}\nspec: {{ action: {action}, rules: {rules} }}\n"
    );
    parse_documents(&text, &Limits::default()).unwrap().remove(0)
}

fn table(documents: &[Document]) -> RouteTable {
    compile(documents, &here(), 0).table
}

fn ask<'r>(principal: &'r str, method: &'r str, path: &'r str) -> AuthzRequest<'r> {
    AuthzRequest { principal: Some(principal), method: Some(method), path: Some(path), port: 80 }
}

const SCADA: &str = "spiffe://factory7/svc/scada";
const WEB: &str = "spiffe://factory7/svc/web";

fn allow(who: &str) -> String {
    format!("[ {{ from: [ {{ principals: ['{who}'] }} ] }} ]")
}

#[track_caller]
fn check(documents: &[Document], expected: &[(AuthzRequest<'_>, bool, &str)]) {
    for order in [documents.to_vec(), documents.iter().rev().cloned().collect()] {
        let table = table(&order);
        for (request, allowed, rule) in expected {
            let decision = table.authorization("plc").decide(request);
            assert_eq!((decision.allowed, decision.rule), (*allowed, *rule), "{request:?}");
        }
    }
}

#[test]
fn without_documents_everything_is_allowed_and_other_services_are_not_touched() {
    check(&[], &[(ask(WEB, "GET", "/"), true, "default")]);
    let table = table(&[policy("global", "a", "DENY", "[{}]")]);
    assert!(!table.authorization("plc").decide(&ask(WEB, "GET", "/")).allowed);
    assert!(table.authorization("other").decide(&ask(WEB, "GET", "/")).allowed);
}

#[test]
fn a_rule_matches_who_and_what_together() {
    let rules = "[ { name: read, from: [ { principals: ['spiffe://factory7/svc/scada', '*/ops'] } ], \
                 to: [ { methods: [GET, HEAD], paths: ['/v1/*', /health] }, { ports: [502] } ] } ]";
    let name = "global/AuthorizationPolicy/a#read";
    let none = "global/AuthorizationPolicy/a";
    check(
        &[policy("global", "a", "ALLOW", rules)],
        &[
            (ask(SCADA, "GET", "/v1/x?y=/z"), true, name),
            (ask("spiffe://other/ops", "HEAD", "/health"), true, name),
            (ask(SCADA, "POST", "/v1/x"), false, none),
            (ask(SCADA, "get", "/v1/x"), false, none),
            (ask(SCADA, "GET", "/v2"), false, none),
            (ask(WEB, "GET", "/v1/x"), false, none),
            (AuthzRequest { port: 502, ..ask(SCADA, "POST", "/v2") }, true, name),
            (AuthzRequest { principal: None, ..ask(SCADA, "GET", "/v1/x") }, false, none),
            (AuthzRequest { method: None, path: None, ..ask(SCADA, "", "") }, false, none),
            (AuthzRequest { method: None, path: None, port: 502, ..ask(SCADA, "", "") }, true, name),
        ],
    );
}

#[test]
fn what_is_not_known_of_a_request_matches_a_deny() {
    let rules = "[ { from: [ { principals: ['spiffe://factory7/svc/web'] } ], to: [ { methods: [DELETE], paths: ['/admin*'] } ] } ]";
    let name = "global/AuthorizationPolicy/a#0";
    check(
        &[policy("global", "a", "DENY", rules)],
        &[
            (ask(WEB, "DELETE", "/admin"), false, name),
            (ask(WEB, "delete", "/admin"), false, name),
            (ask(WEB, "GET", "/admin"), true, "default"),
            (ask(SCADA, "DELETE", "/admin"), true, "default"),
            (AuthzRequest { principal: None, ..ask(WEB, "DELETE", "/admin") }, false, name),
            (AuthzRequest { method: None, path: None, ..ask(WEB, "", "") }, false, name),
        ],
    );
}

#[test]
fn a_path_in_disguise_escapes_no_deny_and_sneaks_into_no_allow() {
    let deny = [policy("global", "a", "DENY", "[ { to: [ { paths: ['/admin*'] } ] } ]")];
    let allow = [policy("global", "a", "ALLOW", "[ { to: [ { paths: ['/public/*'] } ] } ]")];
    for path in ["/x/../admin", "//admin", "/%61dmin", "/./admin/x", "/x/%2e%2e/admin", "\\admin", "/;x/admin;y=1"] {
        check(&deny, &[(ask(WEB, "GET", path), false, "global/AuthorizationPolicy/a#0")]);
    }
    for path in ["/public/../admin", "/public/%2e%2e/admin", "/public/..;/admin", "/x/../public/a"] {
        check(&allow, &[(ask(WEB, "GET", path), false, "global/AuthorizationPolicy/a")]);
    }
    check(&allow, &[(ask(WEB, "GET", "/public/a.b"), true, "global/AuthorizationPolicy/a#0")]);
    for (path, read) in [
        ("", ""),
        ("/", "/"),
        ("/a/", "/a/"),
        ("//", "/"),
        ("/../..", "/"),
        ("/a/./b/../c/", "/a/c/"),
        ("/%zz%4", "/%zz%4"),
        ("/%ff", "/\u{fffd}"),
        ("*", "*"),
    ] {
        assert_eq!(lenient(path), read, "{path}");
    }
}

#[test]
fn deny_wins_and_every_scope_that_allows_must_allow() {
    let wide = policy("global", "wide", "ALLOW", &allow("spiffe://factory7/*"));
    let zone = policy("zone:eu.z1", "zone", "ALLOW", &allow(SCADA));
    let beside = policy("zone:eu.z1", "beside", "ALLOW", &allow("*/ops"));
    let deny = policy("region:eu", "deny", "DENY", "[ { to: [ { paths: [/stop] } ] } ]");
    let elsewhere = policy("zone:eu.z2", "other", "DENY", "[{}]");
    check(
        &[wide, zone, beside, deny, elsewhere],
        &[
            (ask(SCADA, "GET", "/"), true, "zone:eu.z1/AuthorizationPolicy/zone#0"),
            // Within a scope one document is enough.
            (ask("spiffe://factory7/ops", "GET", "/"), true, "zone:eu.z1/AuthorizationPolicy/beside#0"),
            // The zone does not widen what the world permits, nor the world what the zone does.
            (ask("spiffe://other/ops", "GET", "/"), false, "global/AuthorizationPolicy/wide"),
            (ask(WEB, "GET", "/"), false, "zone:eu.z1/AuthorizationPolicy/beside, zone:eu.z1/AuthorizationPolicy/zone"),
            (ask(SCADA, "GET", "/stop"), false, "region:eu/AuthorizationPolicy/deny#0"),
        ],
    );
}

#[test]
fn an_allow_without_rules_allows_nobody() {
    check(&[policy("global", "a", "ALLOW", "[]")], &[(ask(SCADA, "GET", "/"), false, "global/AuthorizationPolicy/a")]);
}

#[test]
fn concurrent_edits_of_a_document_all_have_to_allow() {
    let edit = |action: &str, rules: &str| policy("global", "a", action, rules);
    let (to_scada, to_all) = (edit("ALLOW", &allow(SCADA)), edit("ALLOW", &allow("*")));
    let beside = policy("global", "b", "ALLOW", &allow(WEB));
    let refused = "global/AuthorizationPolicy/a";
    check(
        &[to_scada.clone(), to_all.clone()],
        &[(ask(SCADA, "GET", "/"), true, "global/AuthorizationPolicy/a#0"), (ask(WEB, "GET", "/"), false, refused)],
    );
    // Whichever edit is settled on, the other document allows the web.
    check(
        &[to_scada.clone(), to_all.clone(), beside.clone()],
        &[(ask(WEB, "GET", "/"), true, "global/AuthorizationPolicy/b#0")],
    );
    // One edit made it a DENY: were that settled on, the document would allow nobody any more.
    let denies = edit("DENY", "[ { to: [ { paths: [/stop] } ] } ]");
    check(
        &[to_all.clone(), denies.clone(), beside],
        &[
            (ask(SCADA, "GET", "/"), false, "global/AuthorizationPolicy/a, global/AuthorizationPolicy/b"),
            (ask(WEB, "GET", "/"), true, "global/AuthorizationPolicy/b#0"),
            (ask(WEB, "GET", "/stop"), false, "global/AuthorizationPolicy/a#0"),
        ],
    );
    // Alone it is allowed by the one edit, and by the other as nothing but the DENY speaks.
    check(&[to_all, denies], &[(ask(SCADA, "GET", "/"), true, "global/AuthorizationPolicy/a#0")]);
}

#[test]
fn a_document_that_cannot_be_read_closes_the_service_it_names() {
    let mut newer = policy("region:eu", "newer", "ALLOW", "[{}]");
    newer.spec["when"] = serde_json::json!([{"key": "hour"}]);
    let compiled = compile(&[newer.clone()], &here(), 0);
    assert_eq!(compiled.problems.len(), 1);
    check(&[newer], &[(ask(SCADA, "GET", "/"), false, "region:eu/AuthorizationPolicy/newer cannot be read here")]);
}

#[test]
fn faults_of_a_policy_come_all_at_once_with_a_way_out() {
    let text = r"
apiVersion: marram.dev/v1
kind: AuthorizationPolicy
metadata: { name: a, locked: [action] }
targetRef: { kind: Mesh, name: plc }
spec:
  action: AUDIT
  when: []
  rules:
  - { name: Read, from: [], to: [ {} ] }
  - from: [ { principals: [ cluster.local/ns/x, 'spiffe://a//b', 'spiffe://a/*/b', 7, '' ] }, {} ]
    to:
    - { methods: [ get, 'G T', '*' ], paths: [ api, '/a?b', '*ok', '/../*' ], ports: [ 0, '80', 70000, 443 ] }
    - { method: GET }
";
    let problems = accept_documents(text, &Limits::default()).unwrap_err();
    let told: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
    let expected = "\
field `targetRef.kind`: line 5: `Mesh` is not what this kind is about
  hint: write `targetRef: { kind: Service, name: SERVICE }`
field `spec.when`: line 8: unknown field
  hint: known here: action, rules
field `spec.action`: line 7: `AUDIT` is not carried by this version
  hint: this version carries ALLOW, DENY
field `spec.rules[0].name`: line 10: `Read` is not a DNS label
  hint: write `read`
field `spec.rules[0].from`: line 10: is empty
  hint: leave `from` out for everybody
field `spec.rules[0].to[0]`: line 10: names neither methods nor paths nor ports
  hint: leave `to` out for every operation
field `spec.rules[1].from[0].principals[0]`: line 11: `cluster.local/ns/x` does not begin with `spiffe://`
  hint: write `spiffe://cluster.local/ns/x`
field `spec.rules[1].from[0].principals[1]`: line 11: `spiffe://a//b` has an empty element
  hint: write `spiffe://MESH/svc/NAME`
field `spec.rules[1].from[0].principals[2]`: line 11: `spiffe://a/*/b` has a `*` in between
  hint: a `*` may be the first or the last letter
field `spec.rules[1].from[0].principals[3]`: line 11: expected text, found the number 7
  hint: put it in quotes
field `spec.rules[1].from[0].principals[4]`: line 11: `` does not begin with `spiffe://`
  hint: write `spiffe://MESH/svc/NAME`
field `spec.rules[1].from[1].principals`: line 11: is missing
  hint: list who, as `spiffe://MESH/svc/NAME` or `spiffe://MESH/svc/*`
field `spec.rules[1].to[0].paths[0]`: line 13: `api` does not begin with `/`
  hint: a path begins with `/`
field `spec.rules[1].to[0].paths[1]`: line 13: `/a?b` is more than a path
  hint: leave out the query and the fragment; they do not take part
field `spec.rules[1].to[0].paths[3]`: line 13: `/../*` has a relative element
  hint: write the path without `.` and `..`
field `spec.rules[1].to[0].methods[0]`: line 13: `get` has lower-case letters
  hint: write `GET`
field `spec.rules[1].to[0].methods[1]`: line 13: `G T` is not a method
  hint: write it as `GET`; leave `methods` out for every method
field `spec.rules[1].to[0].methods[2]`: line 13: `*` is not a method
  hint: write it as `GET`; leave `methods` out for every method
field `spec.rules[1].to[0].ports[0]`: line 13: 0 is not a port
  hint: 1 to 65535, a number
field `spec.rules[1].to[0].ports[1]`: line 13: \"80\" is not a port
  hint: 1 to 65535, a number
field `spec.rules[1].to[0].ports[2]`: line 13: 70000 is not a port
  hint: 1 to 65535, a number
field `spec.rules[1].to[1].method`: line 14: unknown field
  hint: did you mean `methods`?
field `spec.rules[1].to[1]`: line 14: names neither methods nor paths nor ports
  hint: leave `to` out for every operation
";
    assert_eq!(told, expected);
    let empty = accept_documents(
        &text
            .split("  action")
            .next()
            .unwrap()
            .replace("Mesh", "Service")
            .replace(", locked: [action]", "")
            .replace("spec:", "spec: { action: DENY, rules: [] }"),
        &Limits::default(),
    );
    assert_eq!(empty.unwrap_err()[0].message, "line 6: is empty, so that nothing is denied");
}
