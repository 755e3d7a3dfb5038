//! Two stores that talk: filling one, one missing op, a join, and what one op costs to take in.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use crdt_store::{DocKey, Replica, SyncSession, WriteMeta};

use super::documents::{edit, key};
use super::node::{NOW_MS, Node, sync_config};
use super::table::Table;
use super::{WRITERS, mb, ratio};
use crate::load::now;
use crate::process::thread_cpu;
use crate::two_hops::median;

/// Conversations after which stores that still differ never agree.
const CONVERSATIONS_MAX: usize = 64;
/// Ops in one message of those that are applied, about 64 KiB as in a conversation.
const APPLIED: usize = 80;
/// A version that no other write of this program has.
const VERSION: usize = 800_000_000;
/// Names of the kinds of messages, by the second byte of their frame.
const KINDS: [(u8, &str); 4] = [(1, "hello"), (2, "ops"), (3, "fin"), (4, "ack")];

/// What a conversation put on the wire.
#[derive(Debug, Default)]
struct Talk {
    bytes: usize,
    by_kind: BTreeMap<u8, usize>,
    /// Times that the direction changed, the first message included: two are one round trip.
    flights: usize,
    /// Flights until the caller's ops were durable at the other side.
    flights_until_durable: usize,
}

impl Talk {
    fn count(&mut self, message: &Bytes) {
        self.bytes += message.len();
        *self.by_kind.entry(message.get(1).copied().unwrap_or_default()).or_default() += message.len();
    }
}

/// One conversation, each side speaking until it waits for the other.
fn talk(caller: &mut Replica, called: &mut Replica) -> anyhow::Result<Talk> {
    let mut from = SyncSession::initiate(sync_config(), [2; 16]);
    let mut to = SyncSession::accept(sync_config(), [1; 16]);
    let mut talk = Talk::default();
    while !(from.is_done() && to.is_done()) {
        let mut is_idle = true;
        for is_calling in [true, false] {
            let said: Vec<Bytes> = if is_calling {
                std::iter::from_fn(|| from.poll_send(caller)).collect()
            } else {
                std::iter::from_fn(|| to.poll_send(called)).collect()
            };
            if said.is_empty() {
                continue;
            }
            is_idle = false;
            talk.flights += 1;
            for message in said {
                talk.count(&message);
                if is_calling {
                    to.handle_message(called, &message, NOW_MS)?;
                } else {
                    from.handle_message(caller, &message, NOW_MS)?;
                }
            }
            if talk.flights_until_durable == 0 && to.outcome().received_ops > 0 {
                talk.flights_until_durable = talk.flights;
            }
        }
        anyhow::ensure!(!is_idle, "the conversation stands still");
    }
    Ok(talk)
}

/// Conversations until both hold the same; returns how many, and their bytes.
fn talk_until_equal(caller: &mut Replica, called: &mut Replica) -> anyhow::Result<(usize, usize)> {
    let (mut conversations, mut bytes) = (0, 0);
    while caller.root() != called.root() || caller.context() != called.context() {
        bytes += talk(caller, called)?.bytes;
        conversations += 1;
        anyhow::ensure!(conversations < CONVERSATIONS_MAX, "the stores do not agree");
    }
    Ok((conversations, bytes))
}

/// A store on disk with so many documents, written by several others and brought by conversations.
pub(super) fn fill(node: &Node, folder: &Path, count: usize) -> anyhow::Result<()> {
    let mut replica = node.open(folder)?;
    for writer in written(node, count)? {
        let mut writer = writer;
        talk_until_equal_one_way(&mut writer, &mut replica)?;
    }
    anyhow::ensure!(replica.documents().count() == count, "every document arrived");
    // As a node does it when it stops.
    replica.compact()?;
    replica.close()?;
    Ok(())
}

/// Stores in memory that have written the documents between them.
fn written(node: &Node, count: usize) -> anyhow::Result<Vec<Replica>> {
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let mut replica = node.open_in_memory(false)?;
        for number in (writer..count).step_by(WRITERS) {
            replica.write(vec![edit(number, 0)], WriteMeta::default(), NOW_MS)?;
        }
        writers.push(replica);
    }
    Ok(writers)
}

/// Conversations until `to` has seen all of `from`, which is told nothing it would have to keep.
fn talk_until_equal_one_way(from: &mut Replica, to: &mut Replica) -> anyhow::Result<()> {
    for _ in 0..CONVERSATIONS_MAX {
        if to.context().covers(from.context()) {
            return Ok(());
        }
        talk(from, to)?;
    }
    anyhow::bail!("the stores do not agree")
}

/// One op that the other side lacks, in a store of `count` documents; both on disk and otherwise equal.
pub(super) fn one_missing_op(node: &Node, store: &Path, count: usize, table: &mut Table) -> anyhow::Result<()> {
    let folder = store.with_extension("peer");
    let (mut caller, mut called) = (node.open(store)?, node.open(&folder)?);
    talk_until_equal(&mut caller, &mut called)?;
    let written = caller.write(vec![edit(7, VERSION)], WriteMeta::default(), NOW_MS)?;
    let op_bytes = written.dot.and_then(|dot| caller.signed_op(dot)).map_or(0, crdt_store::SignedOp::weight);
    let origins = caller.context().origin_count();
    let said = talk(&mut caller, &mut called)?;
    anyhow::ensure!(caller.root() == called.root(), "one conversation brings one op");
    let parts: Vec<String> = KINDS
        .iter()
        .filter_map(|(kind, name)| said.by_kind.get(kind).map(|bytes| format!("{name} {bytes}")))
        .chain(said.by_kind.iter().filter(|(kind, _)| **kind > 4).map(|(kind, bytes)| format!("kind {kind} {bytes}")))
        .collect();
    let round_trips = ratio(said.flights_until_durable, 2);
    table.row(
        format!("one missing op among {count} documents, both ways, {origins} origins"),
        format!(
            "{} B ({}; the op itself {op_bytes}); durable there after {round_trips:.1} round trips, over after {:.1}",
            said.bytes,
            parts.join(", "),
            ratio(said.flights, 2)
        ),
        "-".to_owned(),
        "2048 B, 1.5 round trips",
        Some(said.bytes <= 2_048 && round_trips <= 1.5),
    );
    let push = caller.encode_push(&written.dot.into_iter().collect::<Vec<_>>());
    table.row("the same op pushed to a peer, unasked", format!("{} B", push.len()), "-".to_owned(), "-", None);
    caller.close()?;
    called.close()?;
    Ok(())
}

/// A new store takes everything from a full one: real signatures, both on disk, one process.
pub(super) fn join(node: &Node, store: &Path, folder: &Path, count: usize, table: &mut Table) -> anyhow::Result<()> {
    let (mut full, mut new) = (node.open(store)?, node.open(folder)?);
    let (began, used) = (now(), thread_cpu());
    let (conversations, bytes) = talk_until_equal(&mut new, &mut full)?;
    let (took, cpu) = (began.elapsed().as_secs_f64(), (thread_cpu() - used).as_secs_f64());
    anyhow::ensure!(new.documents().count() >= count, "every document arrived");
    table.row(
        format!("join: {count} documents from nothing, signatures verified, both sides on this disk"),
        format!(
            "{took:.1} s (of it {cpu:.1} s on the processor), {:.1} MB in {conversations} conversations",
            mb(bytes)
        ),
        "-".to_owned(),
        "5 s, 9 MB",
        Some(took <= 5.0 && bytes <= 9_000_000),
    );
    full.close()?;
    new.close()?;
    Ok(())
}

/// Processor time to take one op in: decode, hash, registers, root, a batch in memory; and the signature on top.
pub(super) fn apply(node: &Node, count: usize, table: &mut Table) -> anyhow::Result<()> {
    let mut pushes = Vec::new();
    for (writer, replica) in written(node, count)?.into_iter().enumerate() {
        let keys: Vec<DocKey> = (writer..count).step_by(WRITERS).map(key).collect();
        let dots: Vec<_> = keys.iter().filter_map(|key| replica.document(key)).map(|view| view.dot).collect();
        pushes.extend(dots.chunks(APPLIED).map(|dots| replica.encode_push(dots)));
    }
    let once = |is_verifying: bool| -> anyhow::Result<f64> {
        let mut replica = node.open_in_memory(is_verifying)?;
        let used = thread_cpu();
        for push in &pushes {
            replica.merge_push(push, NOW_MS)?;
        }
        let us = (thread_cpu() - used).as_secs_f64() * 1e6;
        let ops = replica.summary().ops;
        anyhow::ensure!(ops == count, "{ops} of {count} ops were taken");
        Ok(us / ratio(ops, 1))
    };
    let (mut plain, mut verified) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        plain.push(once(false)?);
        verified.push(once(true)?);
    }
    let plain = median(plain);
    table.row(
        format!("taking in one op, up to {count}, signature apart"),
        format!("{plain:.1} us of processor; {:.1} us with the signature", median(verified)),
        "-".to_owned(),
        "5 us",
        Some(plain <= 5.0),
    );
    Ok(())
}
