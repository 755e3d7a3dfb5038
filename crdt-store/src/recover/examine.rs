//! Looking at a store without changing it: everything that is stored, checked one by one and as a whole.

use std::{collections::BTreeMap, fs::File, path::Path, sync::Arc};

use crate::{
    backend::{SledStorage, Storage as _, frozen::FrozenStorage},
    bundle::BundleReader,
    error::{StorageError, StoreError},
    id::StoreId,
    op::dot_of,
    recover::{damage, snapshot_path},
    replica::{Replica, Stored, stored},
    sign::Authority,
};

/// What a store holds and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Documents that exist; like the other numbers 0 where the store does not open.
    pub documents: usize,
    /// Documents with a conflict, or deleted by someone who had not seen their latest edit.
    pub conflicts: usize,
    /// Documents of which only a tombstone is left.
    pub tombstones: usize,
    /// Live ops.
    pub ops: usize,
    /// The visible root; `None` where the store does not open.
    pub root: Option<[u8; 16]>,
    /// Bytes of the database on disk.
    pub disk_bytes: u64,
    /// Ops in the snapshot; `None` where there is none or it is damaged.
    pub snapshot_ops: Option<u64>,
    /// Everything that is wrong, a sentence each; empty where all is well.
    pub faults: Vec<String>,
}

/// Checks every record by itself, every signature, the store as a whole and its snapshot. Nothing is changed but what
/// the database does to its own files when it is opened.
///
/// # Errors
/// What keeps it from looking: a folder in use, a failing disk, another mesh's store, a newer format. Damage is part of
/// the report.
pub fn examine(
    folder: &Path,
    authority: Arc<dyn Authority>,
    mesh: &str,
    random: [u8; 16],
    now_ms: u64,
) -> Result<Report, StoreError> {
    let mut report = Report::default();
    look_at_snapshot(folder, &mut report);
    let storage = match SledStorage::open(folder) {
        Ok(storage) => storage,
        Err(StorageError::Damaged { reason, .. }) => {
            report.faults.push(format!("the database does not open: {reason}"));
            return Ok(report);
        }
        Err(error) => return Err(error.into()),
    };
    report.disk_bytes = storage.stats().disk_bytes;
    look_at_records(&storage, &StoreId::global(mesh), authority.as_ref(), &mut report.faults);
    let frozen = Box::new(FrozenStorage(storage));
    match Replica::open(frozen, authority, mesh, random, now_ms) {
        Ok(replica) => {
            let summary = replica.summary();
            report.documents = summary.documents;
            report.conflicts = summary.conflicts;
            report.tombstones = summary.tombstones;
            report.ops = summary.ops;
            report.root = Some(summary.root);
        }
        Err(error) => match damage(&error) {
            Some(reason) => report.faults.push(format!("the store does not open: {reason}")),
            None => return Err(error),
        },
    }
    Ok(report)
}

/// Opens a store for reading alone: what is written to the replica is in memory only and goes with it.
///
/// # Errors
/// As [`Replica::open`].
pub fn open_frozen(
    folder: &Path,
    authority: Arc<dyn Authority>,
    mesh: &str,
    random: [u8; 16],
    now_ms: u64,
) -> Result<Replica, StoreError> {
    let frozen = Box::new(FrozenStorage(SledStorage::open(folder)?));
    Replica::open(frozen, authority, mesh, random, now_ms)
}

fn look_at_snapshot(folder: &Path, report: &mut Report) {
    let Ok(file) = File::open(snapshot_path(folder)) else { return };
    let read = BundleReader::open(file).and_then(|mut bundle| {
        while bundle.next_ops()?.is_some() {}
        Ok(bundle.head().ops)
    });
    match read {
        Ok(ops) => report.snapshot_ops = Some(ops),
        Err(error) => report.faults.push(format!("the snapshot does not read: {error}")),
    }
}

fn look_at_records(storage: &SledStorage, id: &StoreId, authority: &dyn Authority, faults: &mut Vec<String>) {
    let mut keys = BTreeMap::new();
    let mut ops = Vec::new();
    for (key, bytes) in storage.readable(&[]) {
        match stored(id, &key, &bytes) {
            Ok(Stored::Origin(record)) => match record.admit(id, authority) {
                Ok(_) => drop(keys.insert(record.incarnation, record.public_key)),
                Err(reason) => faults.push(format!("{}: is not admitted: {reason}", named(&key))),
            },
            Ok(Stored::Op(signed)) => ops.push((key, signed)),
            Ok(Stored::Meta | Stored::Record(_) | Stored::Other) => {}
            Err(reason) => faults.push(format!("{}: {reason}", named(&key))),
        }
    }
    for (key, signed) in ops {
        let fault = match dot_of(&signed.bytes).and_then(|dot| keys.get(&dot.origin)) {
            None => Some("nobody stands behind its origin"),
            Some(key) if !authority.verify(key, &signed.bytes, &signed.signature) => Some("its signature is wrong"),
            Some(_) => None,
        };
        faults.extend(fault.map(|fault| format!("{}: {fault}", named(&key))));
    }
}

/// A key of the database in words.
fn named(key: &[u8]) -> String {
    let (kind, rest) = key.split_at_checked(1).unwrap_or((key, &[]));
    match (kind, rest.split_first_chunk::<16>()) {
        (b"o", Some((origin, counter))) => {
            let counter = counter.try_into().map_or(0, u64::from_be_bytes);
            format!("op {}:{counter}", crate::id::Incarnation::from_bytes(*origin))
        }
        (b"k", Some((origin, _))) => format!("origin {}", crate::id::Incarnation::from_bytes(*origin)),
        (b"m", _) => "the meta record".to_owned(),
        _ => format!("record `{}`", key.escape_ascii()),
    }
}
