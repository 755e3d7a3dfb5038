use policy::{Limits, accept_documents};

use super::*;
use crate::clock::SystemClock;

const NOW: u64 = 1_800_000_000;

/// A store on a real disk with a real identity, and what the control loop would hear of it.
struct Bench {
    store: StoreHandle,
    events: mpsc::Receiver<StoreEvent>,
    dir: tempfile::TempDir,
}

fn open(dir: tempfile::TempDir) -> Bench {
    let identity = Arc::new(Identity::load(dir.path()).unwrap());
    let (sender, events) = mpsc::channel(64);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let opened = StoreHandle::open(dir.path(), identity, clock, &["things"], sender).unwrap();
    Bench { store: opened.store, events, dir }
}

fn bench() -> Bench {
    let dir = tempfile::Builder::new().prefix("marram-store-").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    transport::trust::init_mesh(dir.path(), "shop", "a", None, NOW).unwrap();
    open(dir)
}

fn document(half_distance: &str) -> Vec<Document> {
    let text = format!(
        "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: hello, scope: global }}\n\
         targetRef: {{ kind: Service, name: hello }}\nspec: {{ loadBalancer: {{ halfDistance: {half_distance} }} }}\n"
    );
    accept_documents(&text, &Limits::default()).unwrap()
}

async fn next_change(events: &mut mpsc::Receiver<StoreEvent>) -> StoreChange {
    let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("an event within 10 s");
    match event {
        Some(StoreEvent::Changed(change)) => *change,
        other => panic!("expected a change, not {other:?}"),
    }
}

#[tokio::test]
async fn a_write_is_answered_told_and_there_after_a_restart() {
    let mut bench = bench();
    let applied = bench.store.apply(document("10ms"), Condition::Any).await.unwrap();
    assert_eq!(applied.documents[0].change, "created");
    let change = next_change(&mut bench.events).await;
    assert_eq!(change.changed, ["global/BackendTrafficPolicy/hello"]);
    assert_eq!(change.documents, document("10ms"));
    assert!(!change.push.is_empty());
    bench.store.close().await;
    let again = open(bench.dir);
    let kept = again.store.list().await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].etag, applied.documents[0].etag);
    again.store.close().await;
}

#[tokio::test]
async fn the_same_document_again_changes_nothing_and_tells_nobody() {
    let mut bench = bench();
    bench.store.apply(document("10ms"), Condition::Any).await.unwrap();
    next_change(&mut bench.events).await;
    let again = bench.store.apply(document("10ms"), Condition::Any).await.unwrap();
    assert_eq!((again.documents[0].change.as_str(), again.dot.as_str()), ("unchanged", ""));
    bench.store.apply(document("20ms"), Condition::Any).await.unwrap();
    let told = next_change(&mut bench.events).await;
    assert_eq!(told.documents, document("20ms"), "the unchanged write in between was told");
}

#[tokio::test]
async fn a_stale_etag_is_refused_with_the_one_in_force() {
    let bench = bench();
    let first = bench.store.apply(document("10ms"), Condition::Absent).await.unwrap().documents[0].etag.clone();
    let second = bench.store.apply(document("20ms"), Condition::Match(first.clone())).await.unwrap();
    let stale = bench.store.apply(document("30ms"), Condition::Match(first)).await.unwrap_err();
    let ApiError::Stale { current } = stale else { panic!("{stale:?}") };
    assert_eq!(current, second.documents[0].etag);
    let exists = bench.store.apply(document("30ms"), Condition::Absent).await.unwrap_err();
    assert!(matches!(exists, ApiError::Stale { .. }), "{exists:?}");
}

#[tokio::test]
async fn deleting_what_is_not_there_says_so_and_what_is_there_is_gone() {
    let bench = bench();
    let delete = || {
        let [scope, kind, name] = ["global", "BackendTrafficPolicy", "hello"].map(str::to_owned);
        bench.store.delete(scope, kind, name, Condition::Any)
    };
    assert!(matches!(delete().await, Err(ApiError::NotFound(_))));
    bench.store.apply(document("10ms"), Condition::Any).await.unwrap();
    assert_eq!(delete().await.unwrap().documents[0].change, "deleted");
    assert!(bench.store.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn own_records_survive_a_restart() {
    let bench = bench();
    bench.store.put_record("things", b"k".to_vec(), b"v".to_vec()).await.unwrap();
    bench.store.close().await;
    let identity = Arc::new(Identity::load(bench.dir.path()).unwrap());
    let (sender, _events) = mpsc::channel(64);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::start());
    let opened = StoreHandle::open(bench.dir.path(), identity, clock, &["things"], sender).unwrap();
    assert_eq!(opened.records["things"], [(b"k".to_vec(), b"v".to_vec())]);
    opened.store.close().await;
}

#[tokio::test]
async fn two_stores_converse_until_their_roots_are_equal_and_garbage_ends_only_the_conversation() {
    // Both halves of one mesh: the second store is a copy of the first node's folder, taken before any write, so that
    // each mints its own incarnation under the same admission.
    let left = bench();
    let dir = tempfile::Builder::new().prefix("marram-store-").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    copy(&left.dir.path().join("identity"), &dir.path().join("identity"));
    let right = open(dir);
    left.store.apply(document("10ms"), Condition::Any).await.unwrap();
    right.store.apply(document("20ms"), Condition::Any).await.unwrap();

    let peer = NodeId::from_bytes([1; 16]);
    let (broken, _) = left.store.sync_start(false, peer).await.unwrap();
    let step = left.store.sync_message(broken, Bytes::from_static(b"rubbish")).await;
    assert!(step.done && step.fault.is_some(), "{step:?}");

    let (a, mut to_right) = left.store.sync_start(true, peer).await.unwrap();
    let (b, mut to_left) = right.store.sync_start(false, peer).await.unwrap();
    for _ in 0..20 {
        let (mut next_left, mut next_right) = (Vec::new(), Vec::new());
        for message in to_right.drain(..) {
            next_left.extend(right.store.sync_message(b, message).await.send);
        }
        for message in to_left.drain(..) {
            next_right.extend(left.store.sync_message(a, message).await.send);
        }
        (to_left, to_right) = (next_left, next_right);
    }
    let (ours, theirs) = (left.store.list().await.unwrap(), right.store.list().await.unwrap());
    assert_eq!(ours, theirs);
    let conflicts = left.store.conflicts().await.unwrap();
    assert_eq!(conflicts.len(), 1);
    assert_eq!(conflicts, right.store.conflicts().await.unwrap());
    assert_eq!(conflicts[0].section, "spec.loadBalancer");
    assert_eq!(conflicts[0].sides.iter().filter(|side| side.in_force).count(), 1);

    // Writing the document again on one side settles it.
    left.store.apply(document("30ms"), Condition::Any).await.unwrap();
    assert!(left.store.conflicts().await.unwrap().is_empty());
}

fn copy(from: &Path, to: &Path) {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().mode(0o700).create(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
