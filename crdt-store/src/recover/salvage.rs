//! Taking out of a damaged database, and out of the last snapshot, what proves itself.

use std::{collections::BTreeMap, fs::File, path::Path};

use crate::{
    backend::SledStorage,
    bundle::{BundleReader, merge_bundle},
    context::Context,
    op::{SignedOp, dot_of},
    recover::snapshot_path,
    replica::{Replica, Stored, stored},
    sign::OriginRecord,
};

/// Ops merged in one durable batch.
const CHUNK: usize = 256;

/// What came out of a damaged database.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) ops: usize,
    pub(super) records: usize,
}

/// All that the replica which wrote the snapshot had seen; `None` without a snapshot that reads.
pub(super) fn seen_by_snapshot(folder: &Path) -> Option<Context> {
    let file = File::open(snapshot_path(folder)).ok()?;
    match BundleReader::open(file) {
        Ok(bundle) => bundle.head().seen(),
        Err(error) => {
            tracing::warn!(%error, "snapshot of the store does not read; it will be replaced");
            None
        }
    }
}

/// Merges the snapshot beside a folder; returns how many ops were not there.
pub(super) fn snapshot(replica: &mut Replica, folder: &Path, now_ms: u64) -> usize {
    let Ok(mut file) = File::open(snapshot_path(folder)) else { return 0 };
    match merge_bundle(replica, &mut file, now_ms) {
        Ok(imported) => {
            if !imported.refused.is_empty() {
                tracing::warn!(refused = imported.refused.len(), "snapshot has ops that are not acceptable");
            }
            imported.new
        }
        Err(error) => {
            tracing::warn!(%error, "snapshot of the store is not used");
            0
        }
    }
}

/// Merges what still reads in a database that was set aside, and puts back the node's records. Without `may_open` the
/// journal alone is read: opening the database has ended the process before.
pub(super) fn database(replica: &mut Replica, folder: &Path, may_open: bool, now_ms: u64) -> Found {
    let mut found = Found::default();
    let pairs = match SledStorage::salvage(folder, &[], may_open) {
        Ok(pairs) => pairs,
        Err(error) => {
            tracing::warn!(%error, "nothing can be read in the damaged database");
            return found;
        }
    };
    let mut origins: BTreeMap<_, OriginRecord> = BTreeMap::new();
    let mut ops: Vec<SignedOp> = Vec::new();
    let mut records = Vec::new();
    let mut bad = 0_usize;
    for (key, bytes) in pairs {
        match stored(replica.store_id(), &key, &bytes) {
            Ok(Stored::Origin(record)) => drop(origins.insert(record.incarnation, record)),
            Ok(Stored::Op(signed)) => ops.push(signed),
            Ok(Stored::Record(value)) => records.push((key, value)),
            Ok(Stored::Meta | Stored::Other) => {}
            Err(_) => bad += 1,
        }
    }
    for chunk in ops.chunks(CHUNK) {
        let paired = chunk.iter().map(|signed| {
            let origin = dot_of(&signed.bytes).and_then(|dot| origins.get(&dot.origin));
            (origin.cloned(), signed.clone())
        });
        match replica.merge(paired.collect(), now_ms) {
            Ok(merged) => {
                found.ops += merged.new_ops.len();
                bad += merged.refused.len();
            }
            Err(error) => tracing::warn!(%error, "salvaged ops are not kept; peers bring them"),
        }
    }
    match replica.restore_records(records) {
        Ok(count) => found.records = count,
        Err(error) => tracing::warn!(%error, "salvaged records of this node are not kept"),
    }
    tracing::info!(ops = found.ops, records = found.records, bad, "salvaged from the damaged database");
    found
}
