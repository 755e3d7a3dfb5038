use super::{Impact, ServiceTraffic, impact};
use crate::{
    document::{Document, Limits, accept_documents},
    scope::Place,
};

fn documents(text: &str) -> Vec<Document> {
    accept_documents(text, &Limits::default()).unwrap()
}

fn document(kind: &str, metadata: &str, target: &str, spec: &str) -> Document {
    let target =
        if target.is_empty() { String::new() } else { format!("targetRef: {{ kind: Service, name: {target} }}\n") };
    documents(&format!("apiVersion: marram.dev/v1\nkind: {kind}\nmetadata: {{ {metadata} }}\n{target}spec: {spec}\n"))
        .remove(0)
}

fn backend(scope: &str, balancer: &str) -> Document {
    let spec = format!("{{ loadBalancer: {balancer} }}");
    document("BackendTrafficPolicy", &format!("name: b, scope: '{scope}'"), "hello", &spec)
}

fn route(name: &str, host: &str, path: &str, backends: &str) -> Document {
    let spec = format!(
        "{{ hostnames: [ '{host}' ], rules: [ {{ matches: [ {{ path: {{ value: {path} }} }} ], backendRefs: {backends} }} ] }}"
    );
    document("HTTPRoute", &format!("name: {name}"), "", &spec)
}

fn places() -> Vec<(String, Place)> {
    [("n1", "eu", "z1"), ("n2", "eu", "z2"), ("n3", "us", "z1")]
        .map(|(node, region, zone)| {
            (node.to_owned(), Place { node_name: node.into(), region: region.into(), zone: zone.into() })
        })
        .to_vec()
}

fn traffic() -> Vec<ServiceTraffic> {
    let share = |service: &str, node: &str, share| ServiceTraffic { service: service.into(), node: node.into(), share };
    vec![
        share("hello", "n1", 0.25),
        share("hello", "n3", 0.125),
        share("cart", "n1", 0.125),
        share("cart", "n2", 0.25),
        share("idle", "n1", 0.25),
    ]
}

fn touched(before: &[Document], after: &[Document]) -> Impact {
    impact(before, after, &places(), &traffic(), 0)
}

/// `service at nodes: what`.
fn told(before: &[Document], after: &[Document]) -> Vec<String> {
    let services = touched(before, after).services.into_iter();
    services.map(|one| format!("{} at {}: {}", one.service, one.nodes.join(","), one.what.join(","))).collect()
}

#[test]
fn a_policy_touches_its_service_where_it_is_in_force_with_the_traffic_there() {
    let before = [backend("global", "{ halfDistance: 25ms }")];
    // The default written out changes nothing.
    assert_eq!(told(&[], &before), [""; 0]);
    let narrower = [before[0].clone(), backend("region:eu", "{ halfDistance: 50ms, epsilon: 2 }")];
    let found = touched(&before, &narrower);
    assert_eq!(told(&before, &narrower), ["hello at n1,n2: halfDistance,epsilon"]);
    assert!((found.traffic_share_total - 0.25).abs() < 1e-12 && (found.services[0].traffic_share - 0.25).abs() < 1e-12);
    assert_eq!(touched(&narrower, &narrower), Impact::default());
    // A narrower document that says what holds already.
    assert_eq!(told(&before, &[before[0].clone(), backend("zone:eu.z2", "{ halfDistance: 25ms }")]), [""; 0]);
}

#[test]
fn a_route_touches_the_services_it_leads_to_and_those_it_takes_from() {
    let both = "[ { name: hello, weight: 9 }, { name: cart, weight: 1 } ]";
    let all = "at n1,n2,n3: routes";
    let before = [route("a", "shop.mesh", "/", "[ { name: hello } ]")];
    for (after, expected) in [
        (vec![route("a", "shop.mesh", "/", both)], vec!["cart", "hello"]),
        // The same again under another name, with other numbers for the same parts.
        (vec![route("z", "shop.mesh", "/", "[ { name: hello, weight: 7 } ]")], vec![]),
        // A longer path takes requests from the shorter one.
        (vec![before[0].clone(), route("b", "shop.mesh", "/api", "[ { name: cart } ]")], vec!["cart", "hello"]),
        (vec![before[0].clone(), route("b", "other.mesh", "/", "[ { name: cart } ]")], vec!["cart"]),
        // The host that a service has by itself, and a wildcard over all of them.
        (vec![before[0].clone(), route("b", "idle.mesh", "/", "[ { name: cart } ]")], vec!["cart", "idle"]),
        (vec![before[0].clone(), route("b", "*.mesh", "/none", "[ { name: cart } ]")], vec!["cart", "hello", "idle"]),
        (vec![], vec!["hello"]),
    ] {
        let expected: Vec<String> = expected.into_iter().map(|service| format!("{service} {all}")).collect();
        assert_eq!(told(&before, &after), expected, "{after:?}");
    }
    let mut locked = before.to_vec();
    locked[0].metadata.locked = vec!["rules".into()];
    assert_eq!(told(&before, &locked), [format!("hello {all}")]);
}

#[test]
fn what_is_permitted_counts_and_so_does_the_mesh_for_every_known_service() {
    let deny = document("AuthorizationPolicy", "name: a, scope: 'node:n1'", "hello", "{ action: DENY, rules: [ {} ] }");
    let stay = document("Residency", "name: r", "hello", "{ allowRegions: [ eu ] }");
    assert_eq!(told(&[], &[deny, stay]), ["hello at n1,n2,n3: authorization,residency"]);
    let mut mesh = document("PeerAuthentication", "name: m, scope: 'region:us'", "any", "{ mtls: { mode: STRICT } }");
    mesh.target_ref.as_mut().unwrap().kind = "Mesh".into();
    assert_eq!(told(&[], &[mesh]), ["cart at n3: mtls", "hello at n3: mtls", "idle at n3: mtls"]);
}

#[test]
fn new_documents_that_expire_are_told_with_their_time() {
    let mut soon = backend("global", "{ epsilon: 2 }");
    soon.metadata.expires_at = Some("1970-01-01T00:00:05Z".into());
    let found = touched(&[], std::slice::from_ref(&soon));
    assert_eq!(found.expires.len(), 1);
    assert_eq!((found.expires[0].document.clone(), found.expires[0].at_ms), (soon.id(), 5000));
    assert_eq!(touched(std::slice::from_ref(&soon), std::slice::from_ref(&soon)).expires, []);
    // Over already: it changes nothing.
    assert_eq!(impact(&[], &[soon], &places(), &traffic(), 5000).services, []);
}
