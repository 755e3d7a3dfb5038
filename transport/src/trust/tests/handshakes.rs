use rcgen::{DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::UnixTime;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::{DigitallySignedStruct, HandshakeKind, ProtocolVersion, SignatureScheme};

use super::*;
use crate::trust::issue::{issuer_params, leaf_params};
use crate::trust::key::PublicKey;
use crate::trust::refusal::Refusal;
use crate::trust::tls::{ALPN, key_exchange_name, provider};

/// Shows always the same chain, whatever it is.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A side that does not care whom it talks to.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// TLS of a client that shows what it likes and believes everybody.
fn rogue_client(shows: Arc<Shows>) -> ClientConfig {
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_client_cert_resolver(shows);
    client.alpn_protocols = vec![ALPN.to_vec()];
    client
}

/// TLS of a server that shows what it likes and asks nobody.
fn rogue_server(shows: Arc<Shows>) -> ServerConfig {
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(shows);
    server.alpn_protocols = vec![ALPN.to_vec()];
    server
}

/// A chain somebody shows, with the key it signs the handshake with, and why it must be refused.
struct Forgery {
    what: &'static str,
    chain: Vec<Vec<u8>>,
    key: SecretKey,
    refusal: Refusal,
}

/// Shows the chain to an honest server and to an honest client; both refuse it for the reason given, and count it.
fn check_refused(honest: &Member, forgery: &Forgery) {
    let Forgery { what, chain, key, refusal } = forgery;
    let before = honest.verifier.counters().refused(*refusal);
    let shows = Arc::new(Shows(certified(chain, key)));

    let outcome = handshake(rogue_client(Arc::clone(&shows)), honest.server(), None);
    assert!(outcome.server.is_err(), "a server accepted: {what}");
    assert_eq!(honest.verifier.counters().refused(*refusal), before + 1, "server, {what}: {:?}", counted(honest));

    let outcome = handshake(honest.client(), rogue_server(shows), None);
    assert!(outcome.client.is_err(), "a client accepted: {what}");
    assert_eq!(honest.verifier.counters().refused(*refusal), before + 2, "client, {what}: {:?}", counted(honest));

    let peer = honest.verifier.peer(&ders(chain));
    assert_eq!(peer.unwrap_err().refusal(), Some(*refusal), "{what}");
}

fn counted(member: &Member) -> Vec<(Refusal, u64)> {
    member.verifier.counters().snapshot().filter(|(_, count)| *count > 0).collect()
}

#[test]
fn members_accept_each_other_with_post_quantum_key_exchange_and_know_who_is_there() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (a, b) = (mesh.member("a", &clock), mesh.member("b", &clock));
    let outcome = handshake(a.client(), b.server(), Some(b.identity.node()));
    let (client, server) = (outcome.client.unwrap(), outcome.server.unwrap());

    let group = client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(key_exchange_name(group), "X25519MLKEM768");
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.alpn_protocol(), Some(ALPN));
    let seen_by_a = a.verifier.peer(client.peer_certificates().unwrap()).unwrap();
    assert_eq!(seen_by_a.node, b.identity.node());
    assert_eq!((seen_by_a.name.as_str(), seen_by_a.role), ("b", Role::Member));
    assert_eq!(seen_by_a.public_key, b.identity.public_key());
    assert_eq!(seen_by_a.chain, b.identity.chain());
    assert_eq!(seen_by_a.not_after_unix, NOW + 86_400, "the leaf ends first");
    let seen_by_b = b.verifier.peer(server.peer_certificates().unwrap()).unwrap();
    assert_eq!(seen_by_b.node, a.identity.node());
    assert_eq!(counted(&a), []);
    assert_eq!(counted(&b), []);
}

#[test]
fn peers_without_the_post_quantum_exchange_still_connect() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (a, b) = (mesh.member("a", &clock), mesh.member("b", &clock));
    let mut classical = (*provider()).clone();
    classical.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let client = ClientConfig::builder_with_provider(Arc::new(classical))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&a.verifier) as _)
        .with_client_cert_resolver(Arc::clone(&a.leaf) as _);
    let server = handshake(client, b.server(), None).server.unwrap();
    assert_eq!(key_exchange_name(server.negotiated_key_exchange_group().unwrap().name()), "X25519");
}

#[test]
fn a_self_made_leaf_in_the_name_of_another_node_is_refused_and_counted() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (honest, forger, victim) = (mesh.member("a", &clock), mesh.member("b", &clock), mesh.member("c", &clock));
    let key = SecretKey::generate().unwrap();
    let leaf = issue::leaf(mesh.name, &victim.subject(), &key, forger.signer(), leaf_life()).unwrap();
    let forgery = Forgery {
        what: "a leaf for c signed by b",
        chain: forger.chain_with(leaf),
        key,
        refusal: Refusal::Impersonation,
    };
    check_refused(&honest, &forgery);

    // The same leaf behind the certificate of the victim does not verify either.
    let forgery = Forgery {
        what: "a leaf for c signed by b, shown with the node certificate of c",
        chain: victim.chain_with(forgery.chain[0].clone()),
        refusal: Refusal::Untrusted,
        ..forgery
    };
    check_refused(&honest, &forgery);
}

#[test]
fn a_stranger_with_a_root_of_its_own_is_refused_and_counted() {
    let clock = TestClock::new();
    let honest = Mesh::new("garden").member("a", &clock);
    for name in ["garden", "orchard"] {
        let strangers = Mesh::new(name);
        let stranger = strangers.member("b", &clock);
        let key = SecretKey::generate().unwrap();
        let leaf = issue::leaf(name, &stranger.subject(), &key, stranger.signer(), leaf_life()).unwrap();
        let forgery = Forgery {
            what: "a member of another mesh",
            chain: stranger.chain_with(leaf),
            key,
            refusal: Refusal::Untrusted,
        };
        check_refused(&honest, &forgery);
    }
}

#[test]
fn leaves_that_are_not_exactly_right_are_refused() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (honest, forger) = (mesh.member("a", &clock), mesh.member("b", &clock));
    let own = forger.subject().uri(mesh.name);
    let service = Subject::Service { namespace: "default".to_owned(), name: "web".to_owned() }.uri(mesh.name);
    type Change = fn(&mut rcgen::CertificateParams);
    let cases: Vec<(&'static str, Vec<&str>, Change, Refusal)> = vec![
        ("two URIs", vec![&own, &own], |_| {}, Refusal::Name),
        ("two URIs, one of a service", vec![&own, &service], |_| {}, Refusal::Name),
        ("no URI", vec![], |_| {}, Refusal::Name),
        ("a service's name on a link", vec![&service], |_| {}, Refusal::Name),
        ("the name of another mesh", vec!["spiffe://orchard/node/aaaaaaaaaaaaaaaaaaaaaaaaaa"], |_| {}, Refusal::Name),
        ("another scheme", vec!["https://garden/node/x"], |_| {}, Refusal::Name),
        (
            "a host name besides",
            vec![&own],
            |leaf| leaf.subject_alt_names.push(SanType::DnsName("a.example".try_into().unwrap())),
            Refusal::Name,
        ),
        (
            "made for clients and servers and code",
            vec![&own],
            |leaf| leaf.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning),
            Refusal::Usage,
        ),
        ("made for any use", vec![&own], |leaf| leaf.extended_key_usages.clear(), Refusal::Usage),
        (
            "may sign certificates",
            vec![&own],
            |leaf| leaf.key_usages.push(KeyUsagePurpose::KeyCertSign),
            Refusal::Usage,
        ),
        ("no key usage", vec![&own], |leaf| leaf.key_usages.clear(), Refusal::Usage),
        (
            "an extension this mesh does not use",
            vec![&own],
            |leaf| {
                let extension = rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                leaf.custom_extensions.push(extension);
            },
            Refusal::Malformed,
        ),
        (
            "an issuer",
            vec![&own],
            |leaf| leaf.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0)),
            Refusal::NotALeaf,
        ),
    ];
    for (what, uris, change, refusal) in cases {
        let mut params = leaf_params(&uris, leaf_life()).unwrap();
        change(&mut params);
        let key = SecretKey::generate().unwrap();
        let leaf = issue::sign(&params, &key, forger.signer()).unwrap();
        check_refused(&honest, &Forgery { what, chain: forger.chain_with(leaf), key, refusal });
    }
}

#[test]
fn a_leaf_for_one_direction_only_is_refused_in_both() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (honest, forger) = (mesh.member("a", &clock), mesh.member("b", &clock));
    for usage in [ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth] {
        let mut params = leaf_params(&[&forger.subject().uri(mesh.name)], leaf_life()).unwrap();
        params.extended_key_usages = vec![usage];
        let key = SecretKey::generate().unwrap();
        let chain = forger.chain_with(issue::sign(&params, &key, forger.signer()).unwrap());
        check_refused(&honest, &Forgery { what: "one usage", chain, key, refusal: Refusal::Usage });
    }
}

#[test]
fn certificates_out_of_their_place_are_refused() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (honest, forger) = (mesh.member("a", &clock), mesh.member("b", &clock));
    let node_key = || SecretKey::from_pkcs8(forger.identity.key().pkcs8()).unwrap();
    let own = forger.subject();
    let [node, admission] = forger.identity.chain() else { panic!("two issuers") };

    let first_key = SecretKey::generate().unwrap();
    let first = issue::leaf(mesh.name, &own, &first_key, forger.signer(), leaf_life()).unwrap();
    let by_leaf_key = SecretKey::generate().unwrap();
    let signer = Signer { certificate: &first, key: &first_key };
    let by_leaf = issue::leaf(mesh.name, &own, &by_leaf_key, signer, leaf_life()).unwrap();
    check_refused(
        &honest,
        &Forgery {
            what: "a leaf signed by a leaf, with all above it",
            chain: [vec![by_leaf.clone()], forger.chain_with(first.clone())].concat(),
            key: SecretKey::from_pkcs8(by_leaf_key.pkcs8()).unwrap(),
            refusal: Refusal::ChainShape,
        },
    );
    check_refused(
        &honest,
        &Forgery {
            what: "a leaf signed by a leaf in the place of a node",
            chain: vec![by_leaf, first.clone(), node.clone()],
            key: by_leaf_key,
            refusal: Refusal::NotAnIssuer,
        },
    );
    check_refused(
        &honest,
        &Forgery {
            what: "a node certificate as a leaf",
            chain: vec![node.clone(), admission.clone(), mesh.root.clone()],
            key: node_key(),
            refusal: Refusal::NotALeaf,
        },
    );

    // A node that issues a certificate for issuing breaks its path length of zero.
    let below_key = SecretKey::generate().unwrap();
    let id = NodeId::from_public_key(below_key.public()).to_string();
    let subject =
        [(DnType::CommonName, id.as_str()), (DnType::OrganizationName, "c"), (DnType::OrganizationalUnitName, "admit")];
    let below = issue::sign(&issuer_params(&subject, 0, leaf_life()), &below_key, forger.signer()).unwrap();
    let key = SecretKey::generate().unwrap();
    let signer = Signer { certificate: &below, key: &below_key };
    let named = Subject::Node(NodeId::from_public_key(below_key.public()));
    let leaf = issue::leaf(mesh.name, &named, &key, signer, leaf_life()).unwrap();
    let pkcs8 = key.pkcs8().to_vec();
    check_refused(
        &honest,
        &Forgery {
            what: "a node admitted by a node, with all above it",
            chain: vec![leaf.clone(), below.clone(), node.clone(), admission.clone()],
            key,
            refusal: Refusal::ChainShape,
        },
    );
    let chain = vec![leaf, below, node.clone()];
    let key = SecretKey::from_pkcs8(&pkcs8).unwrap();
    check_refused(&honest, &Forgery { what: "a node admitted by a node", chain, key, refusal: Refusal::NotAnIssuer });

    for (what, chain) in [
        ("issuers in the wrong order", vec![first.clone(), admission.clone(), node.clone()]),
        ("the node certificate twice", vec![first.clone(), node.clone(), node.clone()]),
    ] {
        let key = SecretKey::from_pkcs8(first_key.pkcs8()).unwrap();
        let refused = honest.verifier.peer(&ders(&chain)).unwrap_err();
        assert_eq!(refused.refusal(), Some(Refusal::Untrusted), "{what}");
        check_refused(&honest, &Forgery { what, chain, key, refusal: Refusal::Untrusted });
    }
    for (what, chain) in [
        ("the leaf alone", vec![first.clone()]),
        ("no admission certificate", vec![first.clone(), node.clone()]),
        ("the root besides", vec![first.clone(), node.clone(), admission.clone(), mesh.root.clone()]),
        ("a certificate as large as a novel", vec![first, node.clone(), vec![0x30; 60_000]]),
    ] {
        let key = SecretKey::from_pkcs8(first_key.pkcs8()).unwrap();
        check_refused(&honest, &Forgery { what, chain, key, refusal: Refusal::ChainShape });
    }
}

#[test]
fn expired_and_not_yet_valid_chains_are_refused_by_the_clock_given() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (honest, forger) = (mesh.member("a", &clock), mesh.member("b", &clock));
    let cases = [
        ("ended a second ago", NOW - 3_600, NOW - 1, Refusal::Expired),
        ("begins in a second", NOW + 1, NOW + 3_600, Refusal::NotYetValid),
    ];
    for (what, not_before_unix, not_after_unix, refusal) in cases {
        let life = Life { not_before_unix, not_after_unix };
        let key = SecretKey::generate().unwrap();
        let leaf = issue::leaf(mesh.name, &forger.subject(), &key, forger.signer(), life).unwrap();
        check_refused(&honest, &Forgery { what, chain: forger.chain_with(leaf), key, refusal });

        let node_key = SecretKey::generate().unwrap();
        let node = issue::node("b", Role::Member, node_key.public(), mesh.admission_signer(), life).unwrap();
        let signer = Signer { certificate: &node, key: &node_key };
        let key = SecretKey::generate().unwrap();
        let subject = Subject::Node(NodeId::from_public_key(node_key.public()));
        let leaf = issue::leaf(mesh.name, &subject, &key, signer, leaf_life()).unwrap();
        let chain = vec![leaf, node, mesh.admission.clone()];
        check_refused(&honest, &Forgery { what, chain, key, refusal });
    }
    // An honest peer whose leaf was not renewed in time.
    clock.advance(Duration::from_secs(86_401));
    let late = rogue_client(Arc::new(Shows(forger.leaf.certified())));
    assert!(handshake(late, honest.server(), None).server.is_err());
    assert_eq!(honest.verifier.counters().refused(Refusal::Expired), 5);
}

#[test]
fn a_peer_other_than_the_one_dialled_is_refused() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (a, b, c) = (mesh.member("a", &clock), mesh.member("b", &clock), mesh.member("c", &clock));
    assert!(handshake(a.client(), b.server(), Some(c.identity.node())).client.is_err());
    assert_eq!(counted(&a), [(Refusal::WrongPeer, 1)]);
}

#[test]
fn a_stolen_chain_without_its_key_is_refused() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (honest, victim) = (mesh.member("a", &clock), mesh.member("c", &clock));
    let stolen: Vec<Vec<u8>> = victim.leaf.certified().cert.iter().map(|der| der.to_vec()).collect();
    let shows = Shows(certified(&stolen, &SecretKey::generate().unwrap()));
    let client = rogue_client(Arc::new(shows));
    assert!(handshake(client, honest.server(), None).server.is_err());
    assert_eq!(counted(&honest), [(Refusal::Signature, 1)]);
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (a, b) = (mesh.member("a", &clock), mesh.member("b", &clock));
    let client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&a.verifier) as _)
        .with_no_client_auth();
    assert!(handshake(client, b.server(), None).server.is_err());
}

#[test]
fn tls_before_version_1_3_is_refused() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (a, b) = (mesh.member("a", &clock), mesh.member("b", &clock));
    let old = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(old)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&a.verifier) as _)
        .with_client_cert_resolver(Arc::clone(&a.leaf) as _);
    assert!(handshake(client, b.server(), None).server.is_err());
}

#[test]
fn another_application_protocol_is_refused() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (a, b) = (mesh.member("a", &clock), mesh.member("b", &clock));
    let mut client = a.client();
    client.alpn_protocols = vec![b"h2".to_vec()];
    assert!(handshake(client, b.server(), None).server.is_err());
}

#[test]
fn every_connection_proves_itself_anew() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (a, b) = (mesh.member("a", &clock), mesh.member("b", &clock));
    let (client, server) = (a.client(), b.server());
    for _ in 0..3 {
        let outcome = handshake(client.clone(), server.clone(), None);
        assert_eq!(outcome.client.unwrap().handshake_kind(), Some(HandshakeKind::Full));
        assert!(outcome.server.is_ok());
    }
}

#[test]
fn a_node_certificate_that_was_issued_wrongly_is_refused() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (honest, forger) = (mesh.member("a", &clock), mesh.member("b", &clock));
    let node_key = SecretKey::generate().unwrap();
    let id = NodeId::from_public_key(node_key.public());
    let (id_text, other) = (id.to_string(), forger.identity.node().to_string());
    let (cn, o, ou) = (DnType::CommonName, DnType::OrganizationName, DnType::OrganizationalUnitName);
    type Wrong<'a> = (&'static str, Vec<(DnType, &'a str)>, u8, Refusal);
    let cases: Vec<Wrong<'_>> = vec![
        (
            "one issuer too many allowed",
            vec![(cn.clone(), &id_text), (o.clone(), "c"), (ou.clone(), "member")],
            1,
            Refusal::NotAnIssuer,
        ),
        (
            "the id of another key",
            vec![(cn.clone(), &other), (o.clone(), "c"), (ou.clone(), "member")],
            0,
            Refusal::Name,
        ),
        ("no name", vec![(cn.clone(), &id_text), (ou.clone(), "member")], 0, Refusal::Name),
        ("an unfit name", vec![(cn.clone(), &id_text), (o.clone(), "C D"), (ou.clone(), "member")], 0, Refusal::Name),
        ("an unknown role", vec![(cn, &id_text), (o, "c"), (ou, "king")], 0, Refusal::Name),
    ];
    for (what, subject, path_len, refusal) in cases {
        let params = issuer_params(&subject, path_len, leaf_life());
        let node = issue::sign(&params, &PublicKey(node_key.public()), mesh.admission_signer()).unwrap();
        let key = SecretKey::generate().unwrap();
        let signer = Signer { certificate: &node, key: &node_key };
        let leaf = issue::leaf(mesh.name, &Subject::Node(id), &key, signer, leaf_life()).unwrap();
        let chain = vec![leaf, node, mesh.admission.clone()];
        check_refused(&honest, &Forgery { what, chain, key, refusal });
    }
}

#[test]
fn an_admission_certificate_with_another_path_length_or_name_is_refused() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let honest = mesh.member("a", &clock);
    for (what, name, path_len, refusal) in [
        ("no issuer allowed below", "garden admission", 0, Refusal::NotAnIssuer),
        ("two issuers allowed below", "garden admission", 2, Refusal::NotAnIssuer),
        ("another name", "garden", 1, Refusal::Name),
    ] {
        let admission_key = SecretKey::generate().unwrap();
        let params = issuer_params(&[(DnType::CommonName, name)], path_len, leaf_life());
        let admission = issue::sign(&params, &PublicKey(admission_key.public()), mesh.root_signer()).unwrap();
        let signer = Signer { certificate: &admission, key: &admission_key };
        let node_key = SecretKey::generate().unwrap();
        let node = issue::node("c", Role::Member, node_key.public(), signer, leaf_life()).unwrap();
        let signer = Signer { certificate: &node, key: &node_key };
        let subject = Subject::Node(NodeId::from_public_key(node_key.public()));
        let key = SecretKey::generate().unwrap();
        let leaf = issue::leaf(mesh.name, &subject, &key, signer, leaf_life()).unwrap();
        check_refused(&honest, &Forgery { what, chain: vec![leaf, node, admission], key, refusal });
    }
}

#[test]
fn a_service_leaf_names_its_service_and_the_node_that_vouches_for_it() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (a, b) = (mesh.member("a", &clock), mesh.member("b", &clock));
    let source = LeafSource::for_service(&b.identity, "default", "web", LeafLife::default(), NOW).unwrap();
    let shown = &source.certified().cert;
    let (subject, node) = a.verifier.subject(shown).unwrap();
    assert_eq!(subject, Subject::Service { namespace: "default".to_owned(), name: "web".to_owned() });
    assert_eq!(node.node, b.identity.node());
    assert_eq!(a.verifier.peer(shown).unwrap_err().refusal(), Some(Refusal::Name));
    assert!(LeafSource::for_service(&b.identity, "default", "We/b", LeafLife::default(), NOW).is_err());
}
