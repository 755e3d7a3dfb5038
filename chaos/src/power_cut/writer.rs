//! The process that writes while the power goes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::digest::{Context, SHA256};
use clap::{Args, ValueEnum};
use crdt_store::{
    BundleError, DocKey, Edit, Replica, SledStorage, StorageError, StoreError, WriteMeta, open_or_recover, save_bundle,
    snapshot_path,
};

use crate::chance::Chance;
use crate::clock;
use crate::power_cut::authority::LoneNode;
use crate::power_cut::line::{Change, Line, Version};

/// What a writer is told when it starts.
#[derive(Debug, Clone, Args)]
pub struct WriterOptions {
    /// Folder of the store; its parent exists
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// Decides what is written
    #[arg(long)]
    pub seed: u64,
    /// Writes at most
    #[arg(long)]
    pub writes: u64,
    /// Make the storage wrong on purpose
    #[arg(long)]
    pub sabotage: Option<Sabotage>,
}

/// A storage that is wrong on purpose, to prove that it is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sabotage {
    /// Batches are acknowledged without any sync
    NoFdatasync,
}

impl std::fmt::Display for Sabotage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoFdatasync => f.write_str("no-fdatasync"),
        }
    }
}

/// Opens the store, tells what is in it, and writes; every step is told on standard output before and after.
///
/// # Errors
/// When nobody listens any more. What the store says is told, and is no error here.
pub fn write(options: &WriterOptions) -> Result<()> {
    let mut chance = Chance::new(options.seed);
    let authority = Arc::new(LoneNode::new()?);
    let began = clock::now();
    let (mut replica, recovered) = match open(options, authority, &mut chance) {
        Ok(opened) => opened,
        Err(error) => return tell(&line_of("opening", &error)),
    };
    if recovered.is_some()
        && let Err(error) = snapshot(options, &mut replica)
    {
        return tell(&line_of("keeping what was recovered", &error));
    }
    let millis = clock::millis(clock::now().duration_since(began));
    tell(&Line::Opened { millis, recovered, documents: content(&mut replica) })?;
    let mut desk = Desk { names: replica.documents().map(|view| view.key.name).collect(), chance, count: 0 };
    while desk.count < options.writes {
        if let Err(error) = mend(options, &mut replica) {
            return tell(&line_of("writing the database anew", &error));
        }
        if let Err(error) = desk.write(&mut replica)? {
            return tell(&line_of("writing", &error));
        }
        // A node does it once a minute.
        if desk.chance.one_in(SNAPSHOT_ONE_IN)
            && let Err(error) = snapshot(options, &mut replica)
        {
            return tell(&line_of("keeping a snapshot", &error));
        }
    }
    match replica.close() {
        Ok(()) => Ok(()),
        Err(error) => tell(&line_of("closing", &error)),
    }
}

/// The store as a node opens it, and what was wrong with it.
fn open(
    options: &WriterOptions,
    authority: Arc<LoneNode>,
    chance: &mut Chance,
) -> Result<(Replica, Option<String>), StoreError> {
    let random = (u128::from(chance.draw()) << 64 | u128::from(chance.draw())).to_be_bytes();
    match options.sabotage {
        Some(Sabotage::NoFdatasync) => {
            let storage = Box::new(without_fdatasync(&options.store)?);
            Ok((Replica::open(storage, authority, MESH, random, clock::unix_ms())?, None))
        }
        None => {
            let opened = open_or_recover(&options.store, authority, MESH, random, clock::unix_ms())?;
            Ok((opened.replica, opened.recovered.map(|recovered| recovered.reason)))
        }
    }
}

#[cfg(feature = "mutations")]
fn without_fdatasync(store: &Path) -> Result<SledStorage, StorageError> {
    SledStorage::without_fdatasync(store)
}

#[cfg(not(feature = "mutations"))]
fn without_fdatasync(_: &Path) -> Result<SledStorage, StorageError> {
    let source = io::Error::new(io::ErrorKind::Unsupported, "this build lacks the feature `mutations`");
    Err(StorageError::Io { doing: "leaving out fdatasync", source })
}

fn snapshot(options: &WriterOptions, replica: &mut Replica) -> Result<(), StoreError> {
    let failed = |error: BundleError| match error {
        BundleError::Store(error) => error,
        other => StoreError::Storage(StorageError::Io { doing: "writing a snapshot", source: io::Error::other(other) }),
    };
    save_bundle(replica, &snapshot_path(&options.store)).map_err(failed)?;
    match replica.compact() {
        // Damage that nothing has read before: the database is written anew before the next write.
        Err(_) if replica.needs_rebuild() => Ok(()),
        other => other,
    }
}

/// Writes the database anew where it takes no writes, as a node does.
fn mend(options: &WriterOptions, replica: &mut Replica) -> Result<(), StoreError> {
    if !replica.needs_rebuild() {
        return Ok(());
    }
    replica.rebuild()?;
    snapshot(options, replica)
}

/// What is written next.
struct Desk {
    /// Documents that exist.
    names: BTreeSet<String>,
    chance: Chance,
    /// Writes so far.
    count: u64,
}

impl Desk {
    /// One write, or a burst of small ones.
    fn write(&mut self, replica: &mut Replica) -> Result<Result<(), StoreError>> {
        match self.chance.below(100) {
            0..50 => self.put(replica, 1),
            50..65 => self.delete(replica),
            65..80 => {
                let documents = 2 + self.chance.below(8);
                self.put(replica, documents)
            }
            80..90 => self.keep_record(replica),
            _ => {
                for _ in 0..16 {
                    if let Err(error) = self.put(replica, 1)? {
                        return Ok(Err(error));
                    }
                }
                Ok(Ok(()))
            }
        }
    }

    /// Writes some documents as one op; among several, some may be deleted.
    fn put(&mut self, replica: &mut Replica, documents: u64) -> Result<Result<(), StoreError>> {
        let mut edits = BTreeMap::new();
        for _ in 0..documents {
            let name = format!("route-{}", self.chance.below(NAMES));
            let is_deleted = documents > 1 && self.names.contains(&name) && self.chance.one_in(4);
            let edit = if is_deleted { Edit::delete(key(&name)) } else { Edit::put(key(&name), self.body(&name)) };
            edits.insert(name, edit);
        }
        self.carry_out(replica, edits)
    }

    fn delete(&mut self, replica: &mut Replica) -> Result<Result<(), StoreError>> {
        let at = self.chance.below(self.names.len() as u64);
        let Some(name) = self.names.iter().nth(usize::try_from(at).unwrap_or(0)).cloned() else {
            return self.put(replica, 1);
        };
        let edit = Edit::delete(key(&name));
        self.carry_out(replica, BTreeMap::from([(name, edit)]))
    }

    fn carry_out(&mut self, replica: &mut Replica, edits: BTreeMap<String, Edit>) -> Result<Result<(), StoreError>> {
        self.count += 1;
        let changes =
            edits.values().map(|edit| Change { key: edit.key.to_string(), hash: edit.body.as_ref().map(hash) });
        tell(&Line::Trying { changes: changes.collect() })?;
        let kept: Vec<(String, bool)> = edits.iter().map(|(name, edit)| (name.clone(), edit.body.is_some())).collect();
        let edits: Vec<Edit> = edits.into_values().collect();
        let keys: Vec<DocKey> = edits.iter().map(|edit| edit.key.clone()).collect();
        let written = match replica.write(edits, WriteMeta::default(), clock::unix_ms()) {
            Ok(written) => written,
            Err(error) => return Ok(Err(error)),
        };
        let dot = written.dot.context("a write that changes something has a dot")?.to_string();
        let etag = |key: &DocKey| written.etags.get(key).copied().flatten().map(|etag| etag.to_string());
        tell(&Line::Done { dot, etags: keys.iter().map(etag).collect() })?;
        for (name, is_kept) in kept {
            if is_kept {
                self.names.insert(name);
            } else {
                self.names.remove(&name);
            }
        }
        Ok(Ok(()))
    }

    /// A record of the node's own, as its address book has them.
    fn keep_record(&mut self, replica: &mut Replica) -> Result<Result<(), StoreError>> {
        self.count += 1;
        let name = format!("peer-{}", self.chance.below(20));
        let value = format!("{:016x}", self.chance.draw()).repeat(4);
        let key = format!("{TABLE}/{name}");
        tell(&Line::Trying { changes: vec![Change { key, hash: Some(hash_of(&[value.as_bytes()])) }] })?;
        if let Err(error) = replica.records().put_record(TABLE, name.as_bytes(), value.as_bytes()) {
            return Ok(Err(error));
        }
        tell(&Line::Done { dot: String::new(), etags: vec![None] })?;
        Ok(Ok(()))
    }

    /// Content that was never written before: 100 bytes to 2 KB, for a few documents up to 40 KB.
    fn body(&mut self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let most = if name.len() == SHORT_NAME && self.chance.one_in(3) { 2_500 } else { 120 };
        let mut line = || format!("{:016x}", self.chance.draw());
        let first = line();
        let repeats = usize::try_from(1 + self.chance.below(most)).unwrap_or(1);
        BTreeMap::from([
            ("note".to_owned(), format!("write {}", self.count).into_bytes()),
            ("rules".to_owned(), first.repeat(repeats).into_bytes()),
        ])
    }
}

/// All documents and records, by their names.
fn content(replica: &mut Replica) -> BTreeMap<String, Version> {
    let sections = |sections: crdt_store::Sections| sections.into_iter().map(|(name, value)| (name, value.to_vec()));
    let mut all: BTreeMap<String, Version> = replica
        .documents()
        .map(|view| {
            let hash = hash(&sections(view.sections).collect());
            (view.key.to_string(), Version { hash, etag: Some(view.etag.to_string()) })
        })
        .collect();
    for (name, value) in replica.records().scan(TABLE) {
        let key = format!("{TABLE}/{}", String::from_utf8_lossy(name));
        all.insert(key, Version { hash: hash_of(&[value]), etag: None });
    }
    all
}

fn key(name: &str) -> DocKey {
    DocKey::new("HTTPRoute", "global", name)
}

fn hash(sections: &BTreeMap<String, Vec<u8>>) -> String {
    let parts: Vec<&[u8]> = sections.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_slice()]).collect();
    hash_of(&parts)
}

/// The first half of the SHA-256 of the parts, each with its length.
fn hash_of(parts: &[&[u8]]) -> String {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context.finish().as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn line_of(doing: &str, error: &StoreError) -> Line {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    let reason = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    match error {
        StoreError::Damaged(_) | StoreError::Storage(StorageError::Damaged { .. }) => Line::Damaged { reason },
        _ => Line::Failed { doing: doing.to_owned(), reason },
    }
}

/// One line at once, so that it is heard whole or not at all.
fn tell(line: &Line) -> Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    if output.flush().is_err() {
        bail!("nobody listens");
    }
    Ok(())
}

const TABLE: &str = "peers";
const MESH: &str = "power-cuts";
/// Of so many writes or bursts, one is followed by a snapshot.
const SNAPSHOT_ONE_IN: u64 = 60;
/// Names that documents have; the first ten may be large.
const NAMES: u64 = 150;
const SHORT_NAME: usize = "route-1".len();
