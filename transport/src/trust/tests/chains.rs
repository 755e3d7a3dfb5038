use super::*;
use crate::trust::chain::verify_chain;
use crate::trust::key::verify_signature;
use crate::trust::refusal::Refusal;
use crate::trust::roots::TrustRoots;

#[test]
fn a_chain_tells_who_signed_a_record() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let a = mesh.member("a", &clock);
    let admitted = verify_chain(a.identity.roots(), a.identity.chain(), NOW).unwrap();
    assert_eq!(admitted.node, a.identity.node());
    assert_eq!((admitted.name.as_str(), admitted.role), ("a", Role::Member));
    assert_eq!(admitted.not_after_unix, NOW + NODE_LIFE_S);
    let signature = a.identity.sign("record", b"payload");
    assert!(verify_signature("garden", &admitted.public_key, "record", b"payload", &signature));
}

#[test]
fn a_chain_holds_from_its_first_to_its_last_second() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let a = mesh.member("a", &clock);
    let refusal = |now| verify_chain(a.identity.roots(), a.identity.chain(), now).err().and_then(|e| e.refusal());
    assert_eq!(refusal(NOW - 3_601), Some(Refusal::NotYetValid));
    assert_eq!(refusal(NOW - 3_600), None);
    assert_eq!(refusal(NOW + NODE_LIFE_S), None);
    assert_eq!(refusal(NOW + NODE_LIFE_S + 1), Some(Refusal::Expired));
}

#[test]
fn an_expired_root_ends_every_chain() {
    let root_key = SecretKey::generate().unwrap();
    let life = Life { not_before_unix: NOW - 100, not_after_unix: NOW + 100 };
    let root = issue::root("garden", &root_key, life).unwrap();
    let mesh = Mesh { root_key, root, ..Mesh::new("garden") };
    let life = Life::new(NOW, ADMISSION_LIFE_S, u64::MAX);
    let admission = issue::admission("garden", mesh.admission_key.public(), mesh.root_signer(), life).unwrap();
    let mesh = Mesh { admission, ..mesh };
    let dir = tempfile::tempdir().unwrap();
    let a = mesh.member_in(dir.path(), "a", Role::Member);
    assert_eq!(verify_chain(a.roots(), a.chain(), NOW).unwrap().not_after_unix, NOW + 100);
    assert_eq!(verify_chain(a.roots(), a.chain(), NOW + 101).unwrap_err().refusal(), Some(Refusal::Expired));
    assert_eq!(verify_chain(a.roots(), a.chain(), NOW - 101).unwrap_err().refusal(), Some(Refusal::NotYetValid));
}

#[test]
fn no_altered_byte_of_a_chain_passes() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let a = mesh.member("a", &clock);
    let chain = a.identity.chain();
    for certificate in 0..chain.len() {
        for at in 0..chain[certificate].len() {
            let mut altered = chain.to_vec();
            altered[certificate][at] ^= 0x01;
            assert!(verify_chain(a.identity.roots(), &altered, NOW).is_err(), "certificate {certificate}, byte {at}");
        }
        for len in 0..chain[certificate].len() {
            let mut cut = chain.to_vec();
            cut[certificate].truncate(len);
            assert!(verify_chain(a.identity.roots(), &cut, NOW).is_err(), "certificate {certificate}, length {len}");
        }
        let mut longer = chain.to_vec();
        longer[certificate].push(0);
        assert!(verify_chain(a.identity.roots(), &longer, NOW).is_err(), "certificate {certificate}, a byte more");
    }
}

#[test]
fn chains_of_other_lengths_and_meshes_are_refused() {
    let (mesh, clock) = (Mesh::new("garden"), TestClock::new());
    let (a, stranger) = (mesh.member("a", &clock), Mesh::new("garden").member("b", &clock));
    let roots = a.identity.roots();
    let [node, admission] = a.identity.chain() else { panic!("two issuers") };
    let refusal = |chain: &[Vec<u8>]| verify_chain(roots, chain, NOW).unwrap_err().refusal().unwrap();
    assert_eq!(refusal(&[]), Refusal::ChainShape);
    assert_eq!(refusal(std::slice::from_ref(node)), Refusal::ChainShape);
    assert_eq!(refusal(&[node.clone(), admission.clone(), mesh.root.clone()]), Refusal::ChainShape);
    assert_eq!(refusal(&[admission.clone(), node.clone()]), Refusal::Untrusted);
    assert_eq!(refusal(stranger.identity.chain()), Refusal::Untrusted);
    assert_eq!(refusal(&[node.clone(), stranger.identity.chain()[1].clone()]), Refusal::Untrusted);
}

#[test]
fn two_roots_are_trusted_while_one_replaces_the_other() {
    let clock = TestClock::new();
    let (old, new) = (Mesh::new("garden"), Mesh::new("garden"));
    let both = TrustRoots::new("garden", &[old.root.clone(), new.root.clone()]).unwrap();
    for mesh in [&old, &new] {
        assert!(verify_chain(&both, mesh.member("a", &clock).identity.chain(), NOW).is_ok());
    }
    assert_eq!(both.certificates().count(), 2);
    let third = Mesh::new("garden");
    assert!(TrustRoots::new("garden", &[old.root.clone(), new.root.clone(), third.root]).is_err());
    assert!(TrustRoots::new("orchard", &[old.root]).is_err(), "a root names its mesh");
    assert!(TrustRoots::new("garden", &[new.admission]).is_err(), "a root signs itself");
    assert!(TrustRoots::new("garden", &[]).is_err());
}

#[test]
fn the_shortest_and_the_longest_names_make_good_certificates() {
    let clock = TestClock::new();
    let long: &str = "a23456789012345678901234567890123456789012345678";
    let longer = "b".repeat(63);
    for (mesh, name) in [("a", "b"), (long, longer.as_str())] {
        let mesh = Mesh::new(mesh);
        let (a, b) = (mesh.member(name, &clock), mesh.member(name, &clock));
        assert!(verify_chain(a.identity.roots(), a.identity.chain(), NOW).is_ok());
        assert!(handshake(a.client(), b.server(), None).server.is_ok());
    }
}
