use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::trust::error::{FileFault, TrustError};
use crate::trust::init::{init_mesh, renew_admission};
use crate::trust::seal::open_root;
use crate::trust::token::create_token;

#[test]
fn init_makes_a_node_that_admits_and_a_root_that_only_its_code_opens() {
    let dir = tempfile::tempdir().unwrap();
    let made = init_mesh(dir.path(), "garden", "first", None, NOW).unwrap();
    let identity = Identity::load(dir.path()).unwrap();
    assert_eq!(identity.node(), made.node);
    assert_eq!((identity.mesh(), identity.name(), identity.role()), ("garden", "first", Role::Admit));
    assert_eq!(identity.roots().fingerprint(), made.root_fingerprint);
    assert_eq!(made.root_fingerprint.len(), 52);
    assert!(identity.can_admit());
    assert_eq!(identity.not_after_unix(), NOW + NODE_LIFE_S);

    let code = made.recovery_code.clone().unwrap();
    assert_eq!(open_root(dir.path(), &code).unwrap().fingerprint(), made.root_fingerprint);
    let wrong = format!("{}{}", if code.starts_with('7') { '6' } else { '7' }, &code[1..]);
    assert!(matches!(open_root(dir.path(), &wrong), Err(TrustError::RootStaysSealed)));
    assert!(!format!("{made:?}").contains(&code), "debug output hides the code");

    for key in ["identity/node.key", "identity/admission.key", "root.key.sealed"] {
        let mode = fs::metadata(dir.path().join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "nothing half-made is left: {left:?}");

    let again = init_mesh(dir.path(), "garden", "first", None, NOW);
    assert!(matches!(again, Err(TrustError::RootExists(_))), "{again:?}");
    fs::remove_file(dir.path().join("root.key.sealed")).unwrap();
    let again = init_mesh(dir.path(), "garden", "first", None, NOW);
    assert!(matches!(again, Err(TrustError::IdentityExists(_))), "{again:?}");
}

#[test]
fn init_refuses_unfit_names_and_weak_passphrases_and_can_be_run_again() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(init_mesh(dir.path(), "My Mesh", "a", None, NOW), Err(TrustError::MeshName { .. })));
    assert!(matches!(init_mesh(dir.path(), "garden", "", None, NOW), Err(TrustError::NodeName { .. })));
    assert!(matches!(init_mesh(dir.path(), "garden", "a", Some("x"), NOW), Err(TrustError::PassphraseTooShort(_))));
    let made = init_mesh(dir.path(), "garden", "a", Some("correct horse battery"), NOW).unwrap();
    assert_eq!(made.recovery_code, None);
    assert!(open_root(dir.path(), "correct horse battery").is_ok());
}

#[test]
fn the_admission_certificate_is_renewed_with_the_root_opened_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let made = init_mesh(dir.path(), "garden", "first", Some("correct horse battery"), NOW).unwrap();
    let later = NOW + ADMISSION_LIFE_S - 10;
    assert!(matches!(renew_admission(dir.path(), "wrong horse battery", later), Err(TrustError::RootStaysSealed)));
    let not_after_unix = renew_admission(dir.path(), "correct horse battery", later).unwrap();
    let identity = Identity::load(dir.path()).unwrap();
    assert_eq!(identity.node(), made.node);
    assert_eq!(identity.not_after_unix(), not_after_unix);
    assert_eq!(not_after_unix, later + NODE_LIFE_S);
    assert!(crate::trust::verify_chain(identity.roots(), identity.chain(), later).is_ok());
}

#[test]
fn keys_and_folders_that_others_can_open_are_refused_with_the_remedy() {
    let mesh = Mesh::new("garden");
    for (path, open, remedy) in [
        ("identity/node.key", 0o640, "chmod 600"),
        ("identity/admission.key", 0o604, "chmod 600"),
        ("identity", 0o750, "chmod 700"),
        ("", 0o701, "chmod 700"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        mesh.member_in(dir.path(), "a", Role::Admit);
        let path = dir.path().join(path);
        fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
        let message = Identity::load(dir.path()).unwrap_err().to_string();
        let wanted = format!("{remedy} {}", path.display());
        assert!(message.contains(wanted.trim_end_matches('/')), "{message}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn files_that_do_not_belong_together_are_refused_by_name() {
    let (mesh, stranger) = (Mesh::new("garden"), Mesh::new("garden"));
    let other = tempfile::tempdir().unwrap();
    stranger.member_in(other.path(), "b", Role::Admit);
    for file in ["node.key", "admission.key", "node.pem", "admission.pem", "root.pem"] {
        let dir = tempfile::tempdir().unwrap();
        mesh.member_in(dir.path(), "a", Role::Admit);
        let folder = dir.path().join("identity");
        fs::copy(other.path().join("identity").join(file), folder.join(file)).unwrap();
        let error = Identity::load(dir.path()).unwrap_err();
        assert!(
            matches!(error, TrustError::File { fault: FileFault::OtherKey | FileFault::Chain(_), .. }),
            "{file}: {error}"
        );
        fs::write(folder.join(file), b"junk").unwrap();
        let error = Identity::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains(file), "{error}");
        fs::remove_file(folder.join(file)).unwrap();
        if file == "admission.key" {
            assert!(!Identity::load(dir.path()).unwrap().can_admit());
        } else {
            let error = Identity::load(dir.path()).unwrap_err();
            assert!(error.to_string().contains(file), "{error}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Identity::load(dir.path()), Err(TrustError::NoIdentity(_))));
}

#[test]
fn an_identity_hides_its_keys_and_derives_the_same_ones_after_a_restart() {
    let mesh = Mesh::new("garden");
    let dir = tempfile::tempdir().unwrap();
    let identity = mesh.member_in(dir.path(), "a", Role::Admit);
    let again = Identity::load(dir.path()).unwrap();
    assert_eq!(identity.reset_key(), again.reset_key());
    assert_eq!(identity.token_key(), again.token_key());
    assert_ne!(identity.reset_key(), identity.token_key());
    let shown = format!("{identity:?}");
    assert!(!shown.contains(&format!("{:?}", identity.reset_key())), "{shown}");
    assert!(!shown.contains("pkcs8"), "{shown}");
}

#[test]
fn a_token_is_made_only_within_limits_and_by_a_node_that_admits() {
    let mesh = Mesh::new("garden");
    let dir = tempfile::tempdir().unwrap();
    mesh.member_in(dir.path(), "a", Role::Admit);
    let hour = Duration::from_secs(3_600);
    let seeds = vec!["10.0.0.1:7440".to_owned()];
    let make = |ttl, uses, seeds: &[String]| create_token(dir.path(), ttl, uses, Role::Member, seeds, NOW);
    assert!(make(hour, 1, &seeds).unwrap().starts_with("marram1."));
    assert!(matches!(make(Duration::ZERO, 1, &seeds), Err(TrustError::TokenLife(0))));
    assert!(matches!(make(hour * 24 * 31, 1, &seeds), Err(TrustError::TokenLife(_))));
    assert!(matches!(make(hour, 0, &seeds), Err(TrustError::TokenUses(0))));
    assert!(matches!(make(hour, 1_001, &seeds), Err(TrustError::TokenUses(_))));
    assert!(matches!(make(hour, 1, &[]), Err(TrustError::TokenSeeds(_))));
    assert!(matches!(make(hour, 1, &["no port".to_owned()]), Err(TrustError::TokenSeeds(_))));

    let member = tempfile::tempdir().unwrap();
    mesh.member_in(member.path(), "b", Role::Member);
    let refused = create_token(member.path(), hour, 1, Role::Member, &seeds, NOW);
    assert!(matches!(refused, Err(TrustError::NotAdmitting)));
}
