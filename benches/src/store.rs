//! The policy store beside `SQLite`, on the same disk in the same run, taking turns.
//!
//! Both hold the same documents of about 600 B; the store adds to each what it needs to replicate it: a signature, the
//! stamps of what its author had seen, a checksum.

mod documents;
mod memory;
mod node;
mod sqlite;
mod sync;
mod table;
mod writes;

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

pub(crate) use self::memory::{Engine, tell_memory};
use self::node::Node;
use self::sqlite::Sqlite;
use self::table::Table;
use crate::load::now;
use crate::process::load_average;
use crate::two_hops::median;

/// Stores that have written the documents, as in a mesh where several nodes are written at.
const WRITERS: usize = 10;
/// Openings of one database, of which the median counts.
const OPENINGS: usize = 5;

/// Measures everything and prints a table.
pub(crate) fn run(each: Duration, documents: &[usize], dir: &Path) -> anyhow::Result<()> {
    let (small, large) = (
        *documents.iter().min().context("a number of documents")?,
        *documents.iter().max().context("a number of documents")?,
    );
    let work = tempfile::Builder::new().prefix("marram-bench-").tempdir_in(dir)?;
    let node = Node::new(&work.path().join("identity"), large)?;
    let mut table = Table::default();
    println!("Load average at the start {}, disk {}.", load_average(), dir.display());

    let mut memory = Vec::new();
    for count in [small, large] {
        let (store, sqlite) = (work.path().join(format!("store-{count}")), work.path().join(format!("sqlite-{count}")));
        sync::fill(&node, &store, count)?;
        Sqlite::filled(&sqlite, count)?;
        memory.push((count, memory::measure(&node, &store, &sqlite)?));
    }
    let (store, sqlite) = (work.path().join(format!("store-{small}")), work.path().join(format!("sqlite-{small}")));
    writes::measure(&node, &store, &sqlite, small, each, &mut table)?;
    for (count, measured) in memory {
        table.memory(count, &measured, count == small);
    }

    let (store, sqlite) = (work.path().join(format!("store-{large}")), work.path().join(format!("sqlite-{large}")));
    reopen(&node, &store, &sqlite, large, &mut table)?;
    disk(&node, &store, &sqlite, large, &mut table)?;
    sync::one_missing_op(&node, &store, large, &mut table)?;
    sync::join(&node, &store, &work.path().join("joined"), large, &mut table)?;
    sync::apply(&node, large, &mut table)?;
    println!("Load average at the end {}.\n\n{}", load_average(), table.markdown());
    Ok(())
}

/// Opening the large database, and reading every document once.
fn reopen(node: &Node, store: &Path, sqlite: &Path, count: usize, table: &mut Table) -> anyhow::Result<()> {
    let (mut ours, mut theirs, mut theirs_read) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..OPENINGS {
        let began = now();
        let replica = node.open(store)?;
        ours.push(began.elapsed().as_secs_f64() * 1e3);
        anyhow::ensure!(replica.documents().count() >= count, "every document is there");
        replica.close()?;
        let began = now();
        let database = Sqlite::open(sqlite)?;
        theirs.push(began.elapsed().as_secs_f64() * 1e3);
        anyhow::ensure!(database.read_all()? >= count, "every document is there");
        theirs_read.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let ours = median(ours);
    table.row(
        format!("opening {count} documents, checked and in memory"),
        format!("{ours:.0} ms"),
        format!("{:.0} ms; {:.0} ms with reading all", median(theirs), median(theirs_read)),
        "500 ms",
        Some(ours <= 500.0),
    );
    Ok(())
}

/// Bytes on disk for each byte of documents, after the load and after every document was written once more.
fn disk(node: &Node, store: &Path, sqlite: &Path, count: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut replica = node.open(store)?;
    let mut database = Sqlite::open(sqlite)?;
    for first in (0..count).step_by(writes::GROUP) {
        let numbers: Vec<usize> = (first..count.min(first + writes::GROUP)).collect();
        writes::store_group(&mut replica, &numbers, 1)?;
        database.write(numbers.iter().copied(), 1)?;
    }
    let live_bytes = replica.summary().live_bytes;
    replica.compact()?;
    replica.close()?;
    drop(database);
    let ours = ratio(folder_bytes(store)?, live_bytes);
    table.row(
        format!("bytes on disk for a live byte, {count} documents each written twice"),
        format!("{ours:.1} ({:.1} MB for {:.1} MB of ops)", mb(folder_bytes(store)?), mb(live_bytes)),
        format!("{:.1} MB", mb(folder_bytes(sqlite)?)),
        "8",
        Some(ours <= 8.0),
    );
    Ok(())
}

fn folder_bytes(folder: &Path) -> anyhow::Result<usize> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += usize::try_from(entry?.metadata()?.len())?;
    }
    Ok(bytes)
}

#[expect(clippy::cast_precision_loss, reason = "sizes of one run")]
fn mb(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "sizes of one run")]
fn ratio(of: usize, to: usize) -> f64 {
    of as f64 / to.max(1) as f64
}
