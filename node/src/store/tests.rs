use policy::{Limits, accept_documents};
use serde_json::json;

use super::*;
use crate::api::{Condition, Settle};
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

fn id() -> DocId {
    let [scope, kind, name] = ["global", "BackendTrafficPolicy", "hello"].map(str::to_owned);
    DocId { scope, kind, name }
}

impl StoreHandle {
    /// Writes documents under a condition.
    async fn apply(&self, documents: Vec<Document>, condition: Condition) -> Result<Applied, ApiError> {
        self.write(Write::Apply(documents), WriteOptions { condition, ..WriteOptions::default() }).await
    }
}

/// What a control loop has filed after these changes.
fn library(changes: impl IntoIterator<Item = StoreChange>) -> ::policy::Library {
    let mut library = ::policy::Library::default();
    for change in changes {
        if change.is_whole {
            library.clear();
        }
        for (id, filed) in change.filed {
            library.file(id, filed);
        }
    }
    library
}

/// The half distance that is in force for `hello`, in milliseconds.
fn half_distance(library: &::policy::Library) -> Option<f64> {
    let table = library.compile(&::policy::Place::default(), 0).table;
    table.backend("hello").half_distance_ms().map(f64::round)
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
    assert!(!change.push.is_empty());
    assert_eq!(half_distance(&library([change])), Some(10.0));
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
    assert_eq!(half_distance(&library([told])), Some(20.0), "the unchanged write in between was told");
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
    let delete = || bench.store.write(Write::Delete(id()), WriteOptions::default());
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
    let (left, right) = two();
    left.store.apply(document("10ms"), Condition::Any).await.unwrap();
    right.store.apply(document("20ms"), Condition::Any).await.unwrap();

    let peer = NodeId::from_bytes([1; 16]);
    let (broken, _) = left.store.sync_start(false, peer).await.unwrap();
    let step = left.store.sync_message(broken, Bytes::from_static(b"rubbish")).await;
    assert!(step.done && step.fault.is_some(), "{step:?}");

    converse(&left, &right).await;
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

/// Both halves of one mesh: the second store is a copy of the first node's folder, taken before any write, so that each
/// mints its own incarnation under the same admission.
fn two() -> (Bench, Bench) {
    let left = bench();
    let dir = tempfile::Builder::new().prefix("marram-store-").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    copy(&left.dir.path().join("identity"), &dir.path().join("identity"));
    let right = open(dir);
    (left, right)
}

/// One sync conversation, to its end.
async fn converse(left: &Bench, right: &Bench) {
    let peer = NodeId::from_bytes([1; 16]);
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
}

fn copy(from: &Path, to: &Path) {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().mode(0o700).create(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn patch(lambda: f64) -> Write {
    Write::Patch { id: id(), patch: json!({ "spec": { "loadBalancer": { "halfDistance": null, "lambda": lambda } } }) }
}

fn under_key(key: &str) -> WriteOptions {
    WriteOptions { idempotency_key: key.to_owned(), ..WriteOptions::default() }
}

#[tokio::test]
async fn a_request_told_twice_is_one_write_also_when_others_wrote_between() {
    let bench = bench();
    bench.store.apply(document("10ms"), Condition::Any).await.unwrap();
    let first = bench.store.write(patch(0.5), under_key("k")).await.unwrap();
    assert!(!first.replayed && !first.dot.is_empty(), "{first:?}");
    bench.store.apply(document("30ms"), Condition::Any).await.unwrap();
    let again = bench.store.write(patch(0.5), under_key("k")).await.unwrap();
    assert_eq!((again.replayed, &again.dot), (true, &first.dot));
    let now = bench.store.get(id(), None).await.unwrap();
    assert_eq!(now.document["spec"]["loadBalancer"], json!({ "halfDistance": "30ms" }), "the patch was not done twice");
    let other = bench.store.write(patch(0.6), under_key("k")).await;
    assert!(matches!(other, Err(ApiError::IdempotencyReuse)), "{other:?}");
}

#[tokio::test]
async fn a_document_told_twice_over_a_restart_is_one_write() {
    let bench = bench();
    let write = || Write::Apply(document("10ms"));
    let first = bench.store.write(write(), under_key("k")).await.unwrap();
    bench.store.close().await;
    let bench = open(bench.dir);
    let again = bench.store.write(write(), under_key("k")).await.unwrap();
    assert_eq!((again.replayed, again.dot), (true, first.dot));
    let other = bench.store.write(Write::Apply(document("20ms")), under_key("k")).await;
    assert!(matches!(other, Err(ApiError::IdempotencyReuse)), "{other:?}");
}

#[tokio::test]
async fn writes_that_wait_together_keep_their_order_and_each_its_own_answer() {
    let bench = bench();
    let store = &bench.store;
    let write = |text: &'static str| store.apply(document(text), Condition::Any);
    // None of these waits for the one before it: they are in the queue together.
    let (a, b, c, d, e) = tokio::join!(
        write("10ms"),
        store.apply(document("20ms"), Condition::Absent),
        store.write(patch(0.5), WriteOptions::default()),
        store.get(id(), None),
        write("40ms"),
    );
    assert_eq!(a.unwrap().documents[0].change, "created");
    assert!(matches!(b, Err(ApiError::Stale { .. })), "{b:?}");
    assert_eq!(c.unwrap().documents[0].change, "changed");
    assert_eq!(d.unwrap().document["spec"]["loadBalancer"], json!({ "lambda": 0.5 }), "read between the writes");
    assert_eq!(e.unwrap().documents[0].change, "changed");
}

#[tokio::test]
async fn a_patch_of_nothing_and_one_that_breaks_the_document_are_refused() {
    let bench = bench();
    let missing = bench.store.write(patch(0.5), WriteOptions::default()).await;
    assert!(matches!(missing, Err(ApiError::NotFound(_))), "{missing:?}");
    bench.store.apply(document("10ms"), Condition::Any).await.unwrap();
    let wrong = bench.store.write(patch(-1.0), WriteOptions::default()).await.unwrap_err();
    let ApiError::Invalid { problems } = wrong else { panic!("{wrong:?}") };
    assert!(problems.iter().any(|problem| problem.field.contains("spec.loadBalancer.lambda")), "{problems:?}");
    let renamed = Write::Patch { id: id(), patch: json!({ "metadata": { "name": "other" } }) };
    let renamed = bench.store.write(renamed, WriteOptions::default()).await;
    assert!(matches!(renamed, Err(ApiError::Invalid { .. })), "{renamed:?}");
    let calm = Write::Resolve { id: id(), settle: Settle::With(Box::new(document("20ms").remove(0))) };
    let calm = bench.store.write(calm, WriteOptions::default()).await;
    assert!(matches!(calm, Err(ApiError::NoConflict(_))), "{calm:?}");
}

fn documents(text: &str) -> Vec<Document> {
    accept_documents(text, &Limits::default()).unwrap()
}

#[tokio::test]
async fn a_write_that_sets_what_a_wider_document_locks_is_refused_and_nothing_is_stored() {
    let bench = bench();
    let envelope = |scope: &str, locked: &str, balancer: &str| {
        format!(
            "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: hello, scope: '{scope}', locked: [{locked}] }}\n\
             targetRef: {{ kind: Service, name: hello }}\nspec: {{ loadBalancer: {balancer} }}\n"
        )
    };
    let wide = envelope("global", "loadBalancer.lambda", "{ lambda: 0.1 }");
    bench.store.apply(documents(&wide), Condition::Any).await.unwrap();
    let narrow = envelope("region:eu", "", "{ halfDistance: 10ms, epsilon: 2 }");
    match bench.store.apply(documents(&narrow), Condition::Any).await {
        Err(ApiError::Invalid { problems }) => {
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(problems[0].field, "spec.loadBalancer.halfDistance");
        }
        other => panic!("expected a refusal, not {other:?}"),
    }
    assert_eq!(bench.store.list().await.unwrap().len(), 1);
    let narrow = envelope("region:eu", "", "{ epsilon: 2 }");
    bench.store.apply(documents(&narrow), Condition::Any).await.unwrap();
    // The lock goes and the field is set in one write: what counts is how things stand afterwards.
    let both = format!(
        "{}---\n{}",
        envelope("global", "", "{ lambda: 0.1 }"),
        envelope("region:eu", "", "{ halfDistance: 10ms }")
    );
    bench.store.apply(documents(&both), Condition::Any).await.unwrap();
    bench.store.close().await;
}

#[tokio::test]
async fn documents_are_told_again_when_asked_although_nothing_changed() {
    let mut bench = bench();
    bench.store.apply(document("10ms"), Condition::Any).await.unwrap();
    next_change(&mut bench.events).await;
    bench.store.reread().await;
    let again = next_change(&mut bench.events).await;
    assert_eq!((again.is_whole, again.changed.len(), again.push.len()), (true, 0, 0));
    assert_eq!(half_distance(&library([again])), Some(10.0));
}

#[tokio::test]
async fn every_concurrent_edit_of_what_is_permitted_is_told_for_compilation() {
    let policy = |action: &str, name: &str| {
        documents(&format!(
            "apiVersion: marram.dev/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name} }}\n\
             targetRef: {{ kind: Service, name: hello }}\nspec: {{ action: {action}, rules: [ {{}} ] }}\n"
        ))
    };
    let (mut left, right) = two();
    left.store.apply(policy("ALLOW", "both"), Condition::Any).await.unwrap();
    right.store.apply(policy("DENY", "both"), Condition::Any).await.unwrap();
    left.store.apply(policy("ALLOW", "one"), Condition::Any).await.unwrap();
    converse(&left, &right).await;
    let told = library(told(&mut left.events));
    let compiled = left.store.documents().await.unwrap();
    let mut actions: Vec<_> = compiled.iter().map(|d| format!("{} {}", d.metadata.name, d.spec["action"])).collect();
    actions.sort();
    assert_eq!(actions, ["both \"ALLOW\"", "both \"DENY\"", "one \"ALLOW\""]);
    let table = told.compile(&::policy::Place::default(), 0).table;
    assert!(!table.authorization("hello").decide(&::policy::AuthzRequest::default()).allowed);
    left.store.close().await;
}

/// The changes that were told so far.
fn told(events: &mut mpsc::Receiver<StoreEvent>) -> Vec<StoreChange> {
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let StoreEvent::Changed(change) = event {
            told.push(*change);
        }
    }
    told
}

#[tokio::test]
async fn what_is_filed_change_by_change_is_what_there_is_in_the_end() {
    let decay = |name: &str, half: u32, locked: &str| {
        documents(&format!(
            "apiVersion: marram.dev/v1\nkind: BackendTrafficPolicy\nmetadata: {{ name: {name}, locked: [{locked}] }}\n\
             targetRef: {{ kind: Service, name: {name} }}\nspec: {{ loadBalancer: {{ halfDistance: {half}ms }} }}\n"
        ))
    };
    let named = |name: &str| DocId { name: name.to_owned(), ..id() };
    let (mut left, mut right) = two();
    let mut libraries = [::policy::Library::default(), ::policy::Library::default()];
    for round in 0..4_u32 {
        for name in ["a", "b", "c"] {
            left.store.apply(decay(name, 10 + round, ""), Condition::Any).await.unwrap();
        }
        // One conflict, one deletion against an edit, one document that comes and goes, one that locks and does not.
        right.store.apply(decay("a", 20 + round, ""), Condition::Any).await.unwrap();
        right.store.write(Write::Delete(named("b")), WriteOptions::default()).await.ok();
        right.store.apply(decay(&format!("r{round}"), 5, "loadBalancer.halfDistance"), Condition::Any).await.unwrap();
        converse(&left, &right).await;
        left.store.write(Write::Delete(named(&format!("r{round}"))), WriteOptions::default()).await.unwrap();
        right.store.apply(decay("c", 30 + round, "loadBalancer"), Condition::Any).await.unwrap();
        converse(&left, &right).await;
        for (bench, library) in [&mut left, &mut right].into_iter().zip(&mut libraries) {
            for change in told(&mut bench.events) {
                assert!(!change.is_whole, "a change told everything");
                change.filed.into_iter().for_each(|(id, filed)| library.file(id, filed));
            }
            let there = bench.store.documents().await.unwrap();
            assert_eq!(library.len(), there.iter().map(Document::id).collect::<std::collections::BTreeSet<_>>().len());
            let expected = ::policy::compile(&there, &::policy::Place::default(), 0);
            let compiled = library.compile(&::policy::Place::default(), 0);
            for name in ["a", "b", "c", "r0", "r1", "r2", "r3"] {
                assert_eq!(compiled.table.backend(name), expected.table.backend(name), "{name} in round {round}");
            }
            assert_eq!(compiled.problems, expected.problems);
        }
    }
    assert!(!left.store.conflicts().await.unwrap().is_empty(), "nothing was in conflict");
}
