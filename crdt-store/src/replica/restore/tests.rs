use crate::{
    Edit, Fault, FaultyStorage, MemoryStorage, Replica, SledStorage, StoreError, WriteMeta,
    backend::{Disk, folder},
    testing::{HashAuthority, MESH, NOW, body, delete, key, on, ops_of, put, replica, replica_on, text},
};

fn refused(replica: &mut Replica, name: &str) -> StoreError {
    let edit = Edit::put(key(name), body(&[("spec", "refused")]));
    replica.write(vec![edit], WriteMeta::default(), NOW).expect_err("the disk refuses")
}

fn once(replica: &mut Replica, name: &str) -> Option<crate::Dot> {
    let meta = WriteMeta { idempotency_key: "once".to_owned(), ..WriteMeta::default() };
    let edit = Edit::put(key(name), body(&[("spec", "1")]));
    replica.write(vec![edit], meta, NOW).expect("writes").dot
}

#[test]
fn after_a_failed_sync_the_whole_state_is_written_anew_and_writes_go_on() {
    let disk = Disk::new();
    let (storage, plan) = FaultyStorage::new(MemoryStorage::on(&disk));
    let mut own = replica_on("own", Box::new(storage), 0);
    own.merge(
        ops_of(&{
            let mut peer = replica("peer");
            put(&mut peer, "theirs", &[("spec", "1")]);
            peer
        }),
        NOW,
    )
    .expect("merges");
    put(&mut own, "a", &[("spec", "1")]);
    delete(&mut own, "a");
    put(&mut own, "b", &[("spec", "1")]);
    let dot = once(&mut own, "c");
    own.records().put_record("book", b"k", b"v").expect("keeps");
    assert!(!own.needs_rebuild());

    plan.push(Fault::Sync);
    assert!(matches!(refused(&mut own, "lost"), StoreError::Storage(_)));
    assert!(own.needs_rebuild());
    assert!(matches!(refused(&mut own, "lost"), StoreError::ReadOnly), "nothing is taken on trust");
    let (root, life, context) = (own.root(), own.incarnation(), own.context().clone());
    plan.push(Fault::Full);
    assert!(matches!(own.rebuild(), Err(StoreError::Full)));
    assert!(own.needs_rebuild(), "it may be tried again");
    own.rebuild().expect("rebuilds");
    assert!(!own.needs_rebuild());
    assert_eq!((own.root(), own.incarnation(), own.context()), (root, life, &context));
    put(&mut own, "after", &[("spec", "1")]);
    let root = own.root();
    drop(own);

    let mut again = replica_on("own", on(&disk), 1);
    assert_eq!((again.root(), again.incarnation()), (root, life), "the same life goes on");
    assert!(text(&again, "lost").is_none() && text(&again, "theirs").is_some());
    assert_eq!(again.records().get("book", b"k"), Some(&b"v"[..]));
    assert_eq!(once(&mut again, "c"), dot, "the outcome of a repeated write is remembered");
}

#[test]
fn a_rebuilt_database_holds_what_the_old_one_held_pair_by_pair() {
    let disk = Disk::new();
    let mut own = replica_on("own", on(&disk), 0);
    put(&mut own, "a", &[("spec", "1"), ("more", "2")]);
    put(&mut own, "a", &[("spec", "2"), ("more", "2")]);
    put(&mut own, "b", &[("spec", "1")]);
    delete(&mut own, "b");
    once(&mut own, "c");
    own.records().put_record("book", b"k", b"v").expect("keeps");
    let before = disk.pairs();
    own.rebuild().expect("rebuilds");
    assert_eq!(disk.pairs(), before);
}

#[test]
fn power_that_goes_while_rebuilding_leaves_everything_that_was_acknowledged() {
    for fault in [Fault::CrashBefore, Fault::CrashAfter] {
        let disk = Disk::new();
        let (storage, plan) = FaultyStorage::new(MemoryStorage::on(&disk));
        let mut own = replica_on("own", Box::new(storage), 0);
        put(&mut own, "a", &[("spec", "1")]);
        plan.push(Fault::Sync);
        refused(&mut own, "lost");
        plan.push(fault);
        own.rebuild().expect_err("the power went");
        let root = own.root();
        drop(own);
        assert_eq!(replica_on("own", on(&disk), 1).root(), root, "{fault:?}");
    }
}

#[test]
fn a_database_found_damaged_while_in_use_is_written_anew_on_a_real_disk() {
    let dir = tempfile::tempdir().expect("temp dir");
    let path = dir.path().join("store");
    let open = |boot: u8| {
        let storage = Box::new(SledStorage::open(&path).expect("opens"));
        Replica::open(storage, HashAuthority::member("own"), MESH, [boot; 16], NOW).expect("opens")
    };
    let mut own = open(1);
    for n in 0..300 {
        put(&mut own, &format!("d{n}"), &[("spec", &"x".repeat(900))]);
    }
    own.rebuild().expect("rebuilds");
    put(&mut own, "after", &[("spec", "1")]);
    let (root, life) = (own.root(), own.incarnation());
    own.close().expect("closes");
    folder::wait_unlocked(&path.join("db"));
    assert!(dir.path().join("store.old").join("db").exists());
    let again = open(2);
    assert_eq!((again.root(), again.incarnation()), (root, life));
}
