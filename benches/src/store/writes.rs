//! Durable writes: one by one, and in groups.

use std::path::Path;
use std::time::Duration;

use crdt_store::{Replica, WriteMeta, WriteRequest};
use hdrhistogram::Histogram;

use super::documents::edit;
use super::node::{NOW_MS, Node};
use super::sqlite::Sqlite;
use super::table::Table;
use crate::load::now;
use crate::process::thread_cpu;
use crate::two_hops::median;

/// Writes in one group, and rows in one transaction.
pub(super) const GROUP: usize = 128;
/// Turns that the two take.
const ROUNDS: u32 = 5;

/// What a turn of writing came to.
struct Turn {
    p50_ms: f64,
    p99_ms: f64,
    per_second: f64,
    /// Processor time of the writing thread for one document, in microseconds.
    cpu_us: f64,
}

/// Writes for `each` to both, one document at a time and in groups, in rounds; both hold `count` documents.
pub(super) fn measure(
    node: &Node,
    store: &Path,
    sqlite: &Path,
    count: usize,
    each: Duration,
    table: &mut Table,
) -> anyhow::Result<()> {
    let mut replica = node.open(store)?;
    let mut database = Sqlite::open(sqlite)?;
    let mut version = 1;
    let (mut ours, mut theirs, mut our_groups, mut their_groups) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let turn = each / ROUNDS;
        ours.push(repeat(turn, 1, &mut |n| {
            replica.write(vec![edit(n % count, version + n)], WriteMeta::default(), NOW_MS).map(drop)?;
            Ok(())
        })?);
        theirs.push(repeat(turn, 1, &mut |n| database.write([n % count].into_iter(), version + n))?);
        our_groups.push(repeat(turn, GROUP, &mut |n| {
            let numbers: Vec<usize> = (0..GROUP).map(|at| (n * GROUP + at) % count).collect();
            store_group(&mut replica, &numbers, version + n)
        })?);
        their_groups.push(repeat(turn, GROUP, &mut |n| {
            database.write((0..GROUP).map(|at| (n * GROUP + at) % count), version + n)
        })?);
        // No turn writes what an earlier one wrote.
        version += 1_000_000;
    }
    replica.close()?;
    let of = |turns: &[Turn], figure: fn(&Turn) -> f64| median(turns.iter().map(figure).collect());
    let single = |turns: &[Turn]| {
        format!(
            "p50 {:.2} ms, p99 {:.2} ms, {:.0}/s; {:.0} us of processor",
            of(turns, |turn| turn.p50_ms),
            of(turns, |turn| turn.p99_ms),
            of(turns, |turn| turn.per_second),
            of(turns, |turn| turn.cpu_us)
        )
    };
    let (p50, p99) = (of(&ours, |turn| turn.p50_ms), of(&ours, |turn| turn.p99_ms));
    table.row(
        format!("durable write of one 600 B document, {count} in the store"),
        single(&ours),
        single(&theirs),
        "p50 1 ms, p99 15 ms",
        Some(p50 <= 1.0 && p99 <= 15.0),
    );
    let grouped = |turns: &[Turn]| {
        format!(
            "{:.0}/s, a group p50 {:.1} ms; {:.0} us of processor for a document",
            of(turns, |turn| turn.per_second),
            of(turns, |turn| turn.p50_ms),
            of(turns, |turn| turn.cpu_us)
        )
    };
    table.row(
        format!("writes in groups of {GROUP}, each group durable"),
        grouped(&our_groups),
        grouped(&their_groups),
        "10000/s",
        Some(of(&our_groups, |turn| turn.per_second) >= 1e4),
    );
    Ok(())
}

/// One group of writes to the store, each an op of its own.
pub(super) fn store_group(replica: &mut Replica, numbers: &[usize], version: usize) -> anyhow::Result<()> {
    let requests = numbers
        .iter()
        .map(|number| WriteRequest { edits: vec![edit(*number, version)], meta: WriteMeta::default() })
        .collect();
    for written in replica.write_group(requests, NOW_MS) {
        written?;
    }
    Ok(())
}

/// Calls `write` with 0, 1, 2 and so on for `turn`; each call is `documents` writes.
#[expect(clippy::cast_precision_loss, reason = "counts of one run")]
fn repeat(
    turn: Duration,
    documents: usize,
    write: &mut dyn FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Turn> {
    let mut latency: Histogram<u64> = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    let (began, used, mut calls) = (now(), thread_cpu(), 0);
    while began.elapsed() < turn {
        let started = now();
        write(calls)?;
        latency.saturating_record(u64::try_from(started.elapsed().as_micros())?);
        calls += 1;
    }
    let ms = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
    let written = (calls * documents) as f64;
    let per_second = written / began.elapsed().as_secs_f64();
    let cpu_us = (thread_cpu() - used).as_secs_f64() * 1e6 / written;
    Ok(Turn { p50_ms: ms(0.5), p99_ms: ms(0.99), per_second, cpu_us })
}
