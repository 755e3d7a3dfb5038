use super::*;
use crate::trust::error::TrustError;

#[test]
fn a_renewed_leaf_is_shown_without_new_configuration() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (a, b) = (mesh.member("a", &clock), mesh.member("b", &clock));
    let (client, server) = (a.client(), b.server());
    let shown = || {
        let outcome = handshake(client.clone(), server.clone(), None);
        let seen_by_client = outcome.client.unwrap().peer_certificates().unwrap()[0].to_vec();
        let seen_by_server = outcome.server.unwrap().peer_certificates().unwrap()[0].to_vec();
        (seen_by_client, seen_by_server)
    };
    let first = shown();
    assert_eq!(shown(), first, "the same leaf until it is renewed");
    clock.advance(Duration::from_secs(43_200));
    a.leaf.renew(NOW + 43_200).unwrap();
    b.leaf.renew(NOW + 43_200).unwrap();
    let second = shown();
    assert_ne!(second.0, first.0);
    assert_ne!(second.1, first.1);
    assert_eq!(a.leaf.not_after_unix(), NOW + 43_200 + 86_400);
    // The old leaf's day is over; the renewed one carries on.
    clock.advance(Duration::from_secs(43_201));
    assert_eq!(shown(), second);
}

#[tokio::test(start_paused = true)]
async fn leaves_of_ten_seconds_are_renewed_for_two_minutes_without_a_gap() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let a = mesh.member("a", &clock);
    let life = LeafLife { ttl: Duration::from_secs(10), backdate: Duration::from_secs(1) };
    let leaf = LeafSource::new(&a.identity, life, NOW).unwrap();
    let renewing = tokio::spawn(Arc::clone(&leaf).keep_renewed(Arc::clone(&clock) as _));
    let mut ends = std::collections::BTreeSet::new();
    for _ in 0..1_200 {
        let step = Duration::from_millis(100);
        tokio::time::sleep(step).await;
        clock.advance(step);
        ends.insert(leaf.not_after_unix());
        let peer = a.verifier.peer(&leaf.certified().cert).expect("valid at every moment");
        assert_eq!(peer.node, a.identity.node());
    }
    renewing.abort();
    assert!((18..=32).contains(&ends.len()), "renewed every four to six seconds: {} leaves in 120 s", ends.len());
}

#[test]
fn a_clock_set_back_makes_renewal_due() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let a = mesh.member("a", &clock);
    assert!(!a.leaf.is_due(NOW));
    assert!(a.leaf.is_due(NOW - 1));
    assert!(a.leaf.is_due(a.leaf.renew_at_unix()));
}

#[test]
fn leaves_end_with_the_node_certificate_and_are_not_issued_after_it() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let a = mesh.member("a", &clock);
    let end = a.identity.not_after_unix();
    a.leaf.renew(end - 10).unwrap();
    assert_eq!(a.leaf.not_after_unix(), end);
    assert!(a.leaf.renew_at_unix() <= end);
    assert!(matches!(a.leaf.renew(end), Err(TrustError::NodeExpired { .. })));
    assert_eq!(a.leaf.not_after_unix(), end, "the present leaf stays");
}

#[test]
fn a_leaf_of_another_node_makes_no_configuration() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (a, b) = (mesh.member("a", &clock), mesh.member("b", &clock));
    let server = server_config(&a.identity, Arc::clone(&b.leaf), Arc::clone(&a.verifier));
    assert!(matches!(server, Err(TrustError::ForeignLeaf)));
    let client = client_config(&a.identity, Arc::clone(&b.leaf), Arc::clone(&a.verifier));
    assert!(matches!(client, Err(TrustError::ForeignLeaf)));
}

#[test]
fn a_node_certificate_that_was_renewed_is_adopted_while_running() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let dir = tempfile::tempdir().unwrap();
    let identity = mesh.member_in(dir.path(), "a", Role::Member);
    let leaf = LeafSource::new(&identity, LeafLife::default(), NOW).unwrap();
    let other = mesh.member("b", &clock);
    let later = NOW + NODE_LIFE_S - 10;
    let life = Life::new(later, NODE_LIFE_S, u64::MAX);
    let node = issue::node("a", Role::Member, identity.key().public(), mesh.admission_signer(), life).unwrap();
    identity::replace_certificates(dir.path(), &mesh.admission, &node).unwrap();
    let renewed = Identity::load(dir.path()).unwrap();
    leaf.adopt(&renewed, later).unwrap();
    assert_eq!(leaf.not_after_unix(), later + 86_400, "no longer bounded by the old certificate");
    clock.advance(Duration::from_secs(NODE_LIFE_S));
    let b = PeerVerifier::new(identity.roots(), Arc::clone(&clock) as _);
    assert_eq!(b.peer(&leaf.certified().cert).unwrap().node, identity.node());

    assert!(matches!(leaf.adopt(&other.identity, later), Err(TrustError::ForeignLeaf)));
}
