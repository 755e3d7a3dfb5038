//! What the fuzz targets do, kept here so that ordinary tests replay their corpora. Not part of the API.
//!
//! Each target takes bytes from whoever wishes us ill and must come back; what must hold afterwards is asserted. The
//! bytes steer: they are read as short programs, so that mutations reach deep states, and what a hostile peer could put
//! right itself (lengths, signatures of its own) or a hostile disk (checksums) is put right for it.

mod codec;
mod stored;
mod sync_handlers;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

pub use codec::codec;
pub(crate) use codec::record;
pub use stored::stored;
pub use sync_handlers::sync_handlers;

use crate::{
    Author, Authority, DocKey, Edit, OriginRecord, Replica, StoreError, SyncConfig, SyncError, SyncSession, WriteMeta,
    Written,
    backend::{Disk, MemoryStorage},
    id::sha256,
};

const MESH: &str = "fuzz";
/// A wall clock: 2026-11-22.
const NOW: u64 = 1_795_305_600_000;
/// Who the other side of every session is.
const PEER: [u8; 16] = [7; 16];
/// First byte of the only signatures that do not hold.
const FORGED: u8 = 0xbb;

/// A mesh in which a hostile member signs whatever it likes: any signature holds that does not begin with [`FORGED`].
/// So a mutated op is one that its author meant, and everything behind the check of signatures is reached.
#[derive(Debug)]
struct AnySigner {
    name: &'static str,
}

impl Authority for AnySigner {
    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [1; 64]
    }

    fn public_key(&self) -> [u8; 32] {
        sha256(&[b"fuzz-key", self.name.as_bytes()])
    }

    fn chain(&self) -> Vec<Vec<u8>> {
        vec![b"member".to_vec(), self.name.as_bytes().to_vec()]
    }

    fn verify(&self, _: &[u8; 32], _: &[u8], signature: &[u8; 64]) -> bool {
        signature.first() != Some(&FORGED)
    }

    fn admit(&self, record: &OriginRecord) -> Result<Author, String> {
        let [role, name] = record.chain.as_slice() else { return Err("chain has another length".to_owned()) };
        let name = String::from_utf8_lossy(name).into_owned();
        Ok(Author { node: format!("node-{name}"), name, may_author: role == b"member" })
    }
}

/// Reads a fuzzer's bytes as numbers and runs of bytes; behind their end all is zero and empty.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// A length of 16 bits and so many bytes, or as many as are left.
    fn run(&mut self) -> &'a [u8] {
        let length = usize::from(self.u16()).min(self.0.len());
        let (run, rest) = self.0.split_at(length);
        self.0 = rest;
        run
    }
}

/// A replica on a disk; `boot` and the name decide which life it draws.
fn open(name: &'static str, disk: &Disk, boot: u8) -> Result<Replica, StoreError> {
    let mut random = [boot; 16];
    random.iter_mut().zip(name.bytes()).for_each(|(byte, of_name)| *byte ^= of_name);
    Replica::open(Box::new(MemoryStorage::on(disk)), Arc::new(AnySigner { name }), MESH, random, NOW)
}

fn initiate() -> SyncSession {
    SyncSession::initiate(SyncConfig::default(), PEER)
}

fn accept() -> SyncSession {
    SyncSession::accept(SyncConfig::default(), PEER)
}

fn key(number: u8) -> DocKey {
    DocKey::new("HTTPRoute", "global", format!("n{}", number % 8))
}

/// Two sections.
fn body(number: u8, value: u8) -> BTreeMap<String, Vec<u8>> {
    let section = |value: u8| format!("{value:02x}").into_bytes();
    let second = if value.is_multiple_of(3) { "spec" } else { "status" };
    BTreeMap::from([("metadata".to_owned(), section(number)), (second.to_owned(), section(value))])
}

/// Writes one of eight documents.
fn put(replica: &mut Replica, number: u8, value: u8) -> Result<Written, StoreError> {
    replica.write(vec![Edit::put(key(number), body(number, value))], WriteMeta::default(), NOW)
}

fn delete(replica: &mut Replica, number: u8) -> Result<Written, StoreError> {
    replica.write(vec![Edit::delete(key(number))], WriteMeta::default(), NOW)
}

/// A conversation of two honest programs, whatever state they are in; each message goes through `hear` first.
fn talk(a: &mut Replica, b: &mut Replica, hear: &mut dyn FnMut(bool, &[u8])) -> Result<(), SyncError> {
    let (mut from, mut to) = (initiate(), accept());
    loop {
        let mut is_idle = true;
        while let Some(message) = from.poll_send(a) {
            is_idle = false;
            hear(true, &message);
            to.handle_message(b, &message, NOW)?;
        }
        while let Some(message) = to.poll_send(b) {
            is_idle = false;
            hear(false, &message);
            from.handle_message(a, &message, NOW)?;
        }
        if from.is_done() && to.is_done() {
            return Ok(());
        }
        // A side that took a new life meanwhile stops talking; nothing else may stand still.
        if is_idle {
            assert!(from.is_done() || to.is_done(), "a conversation stands still: {from:?} {to:?}");
            return Ok(());
        }
    }
}

/// What must hold of any replica, however it got there: all of it can be read, and its disk opens to the same state.
fn check(replica: &Replica, disk: &Disk, name: &'static str) -> Replica {
    let read: Vec<_> = replica.documents().collect();
    let summary = replica.summary();
    assert_eq!(read.len(), summary.documents, "documents and their number");
    let again = match open(name, disk, 0) {
        Ok(again) => again,
        Err(error) => unopened(&error),
    };
    assert_eq!(again.root(), replica.root(), "root after opening again");
    assert_eq!(again.context(), replica.context(), "context after opening again");
    assert_eq!(again.documents().collect::<Vec<_>>(), read, "documents after opening again");
    again
}

#[expect(clippy::panic, reason = "a finding of the fuzzer")]
fn unopened(error: &StoreError) -> ! {
    panic!("what a replica wrote does not open: {error}")
}
