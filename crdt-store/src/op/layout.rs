//! The canonical bytes of an op: what is signed, stored and sent, laid out by hand.
//!
//! All numbers are big-endian; `text8`, `text16` are a length of that many bits and UTF-8; lists are a count and their
//! items in strictly ascending order, so that one op has one encoding and every accepted encoding is the one that
//! [`encode`] gives.
//!
//! ```text
//! "marram-op" · version u8 = 1 · mesh text8 · store text8
//! origin 16 B · counter u64 · hlc millis u48 · hlc counter u16 · author key 16 B
//! kind u8 (1 put, 2 patch, 3 delete, 4 rollback + dot 24 B, 5 resolve) · schema u16
//! idempotency key text8 · message text16
//! changes u16 × { kind text16 · scope text16 · name text16
//!                 mask u16 × text16 · past u16 × (origin 16 B · counter u64) · beside u16 × dot 24 B
//!                 0 u8 = tombstone | 1 u8 · sections u16 × (name text16 · bytes u32 length) }
//! ```

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    context::{COUNTER_END, Clock},
    hlc::{Hlc, MILLIS_MAX},
    id::{DocKey, Dot, Incarnation, StoreId},
    op::{Change, Limits, Op, OpFault, OpKind, Sections, is_name},
};

const MAGIC: &[u8] = b"marram-op";
const VERSION: u8 = 1;
/// Bytes of an idempotency key.
pub(crate) const IDEMPOTENCY_BYTES_MAX: usize = 128;
/// Bytes of a dot.
pub(super) const DOT_BYTES: usize = 16 + 8;
/// Dots in `beside`: every sibling of every section at the default limits.
pub(super) const BESIDE_MAX: usize = 512;

/// The canonical bytes of an op that keeps the limits; longer texts than their length field holds cannot occur then.
pub(crate) fn encode(store: &StoreId, op: &Op) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(512));
    out.raw(MAGIC);
    out.raw(&[VERSION]);
    out.text8(&store.mesh);
    out.text8(&store.store);
    out.dot(op.dot);
    out.raw(op.hlc.millis.to_be_bytes().split_at(2).1);
    out.raw(&op.hlc.counter.to_be_bytes());
    out.raw(&op.author_key);
    match op.kind {
        OpKind::Put => out.raw(&[1]),
        OpKind::Patch => out.raw(&[2]),
        OpKind::Delete => out.raw(&[3]),
        OpKind::Rollback(of) => {
            out.raw(&[4]);
            out.dot(of);
        }
        OpKind::Resolve => out.raw(&[5]),
    }
    out.raw(&op.schema.to_be_bytes());
    out.text8(&op.idempotency_key);
    out.text16(&op.message);
    out.count(op.changes.len());
    for change in &op.changes {
        out.change(change);
    }
    out.0
}

/// Reads canonical bytes back; sections share the bytes' memory.
pub(crate) fn decode(store: &StoreId, bytes: &Bytes, limits: &Limits) -> Result<Op, OpFault> {
    if bytes.len() > limits.op_bytes {
        return Err(OpFault::Limit("op bytes"));
    }
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(MAGIC.len())? != MAGIC || reader.u8()? != VERSION {
        return Err(OpFault::Version);
    }
    if reader.text8()? != store.mesh || reader.text8()? != store.store {
        return Err(OpFault::OtherStore);
    }
    let dot = reader.dot()?;
    let millis = reader.u48()?;
    let hlc = Hlc { millis, counter: reader.u16()? };
    let author_key = reader.array()?;
    let kind = reader.kind()?;
    let schema = reader.u16()?;
    let idempotency_key = reader.plain8(IDEMPOTENCY_BYTES_MAX, "idempotency key")?;
    let message = reader.text16()?;
    if message.len() > limits.message_bytes {
        return Err(OpFault::Limit("message"));
    }
    let message = message.to_owned();
    let count = reader.count(limits.changes, "changes")?;
    let mut changes: Vec<Change> = Vec::with_capacity(count);
    for _ in 0..count {
        let change = reader.change(dot, limits)?;
        if changes.last().is_some_and(|last| last.key >= change.key) {
            return Err(OpFault::Field("changes"));
        }
        changes.push(change);
    }
    if changes.is_empty() {
        return Err(OpFault::Field("changes"));
    }
    if reader.at != bytes.len() {
        return Err(OpFault::Trailing);
    }
    Ok(Op { dot, hlc, author_key, kind, schema, idempotency_key, message, changes })
}

struct Writer(Vec<u8>);

impl Writer {
    fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn text8(&mut self, text: &str) {
        let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
        self.raw(&[length]);
        self.raw(text.as_bytes().split_at(usize::from(length)).0);
    }

    fn text16(&mut self, text: &str) {
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.raw(&length.to_be_bytes());
        self.raw(text.as_bytes().split_at(usize::from(length)).0);
    }

    fn count(&mut self, count: usize) {
        self.raw(&u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
    }

    fn dot(&mut self, dot: Dot) {
        self.raw(dot.origin.as_bytes());
        self.raw(&dot.counter.to_be_bytes());
    }

    fn change(&mut self, change: &Change) {
        self.text16(&change.key.kind);
        self.text16(&change.key.scope);
        self.text16(&change.key.name);
        self.count(change.mask.len());
        for section in &change.mask {
            self.text16(section);
        }
        self.count(change.past.dots.len());
        for (origin, counter) in &change.past.dots {
            self.dot(Dot::new(*origin, *counter));
        }
        self.count(change.beside.len());
        for dot in &change.beside {
            self.dot(*dot);
        }
        let Some(sections) = &change.body else { return self.raw(&[0]) };
        self.raw(&[1]);
        self.count(sections.len());
        for (name, value) in sections {
            self.text16(name);
            self.raw(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
            self.raw(value);
        }
    }
}

/// Reads one thing after the other; each says what is wrong with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader of canonical bytes that stands at the first change, after their number; with what the author meant and
    /// said. For bytes that [`decode`] has accepted.
    pub(super) fn at_changes(bytes: &'a Bytes) -> Result<(Self, usize, OpKind, &'a str), OpFault> {
        let mut reader = Self { bytes, at: MAGIC.len() + 1 };
        reader.text8()?;
        reader.text8()?;
        reader.take(DOT_BYTES + 6 + 2 + 16)?;
        let kind = reader.kind()?;
        reader.u16()?;
        reader.text8()?;
        let message = reader.text16()?;
        let count = usize::from(reader.u16()?);
        Ok((reader, count, kind, message))
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], OpFault> {
        let end = self.at.checked_add(length).ok_or(OpFault::Truncated)?;
        let taken = self.bytes.get(self.at..end).ok_or(OpFault::Truncated)?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], OpFault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, OpFault> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, OpFault> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u48(&mut self) -> Result<u64, OpFault> {
        let mut wide = [0; 8];
        wide.split_at_mut(2).1.copy_from_slice(self.take(6)?);
        let value = u64::from_be_bytes(wide);
        debug_assert!(value <= MILLIS_MAX, "six bytes hold 48 bits");
        Ok(value)
    }

    /// The length of a section.
    pub(super) fn length(&mut self) -> Result<usize, OpFault> {
        Ok(usize::try_from(u32::from_be_bytes(self.array()?)).unwrap_or(usize::MAX))
    }

    /// So many bytes, in the memory where they are.
    pub(super) fn shared(&mut self, length: usize) -> Result<Bytes, OpFault> {
        Ok(self.bytes.slice_ref(self.take(length)?))
    }

    fn text8(&mut self) -> Result<&'a str, OpFault> {
        let length = usize::from(self.u8()?);
        std::str::from_utf8(self.take(length)?).ok().ok_or(OpFault::Field("text"))
    }

    pub(super) fn text16(&mut self) -> Result<&'a str, OpFault> {
        let length = usize::from(self.u16()?);
        std::str::from_utf8(self.take(length)?).ok().ok_or(OpFault::Field("text"))
    }

    fn plain8(&mut self, bytes_max: usize, what: &'static str) -> Result<String, OpFault> {
        let text = self.text8()?;
        if !text.is_empty() && !is_name(text, bytes_max) {
            return Err(OpFault::Field(what));
        }
        Ok(text.to_owned())
    }

    fn name(&mut self, bytes_max: usize, what: &'static str) -> Result<String, OpFault> {
        let text = self.text16()?;
        if !is_name(text, bytes_max) {
            return Err(OpFault::Field(what));
        }
        Ok(text.to_owned())
    }

    /// A count within its limit and within what the remaining bytes could hold at one byte an item.
    fn count(&mut self, max: usize, what: &'static str) -> Result<usize, OpFault> {
        let count = usize::from(self.u16()?);
        if count > max {
            return Err(OpFault::Limit(what));
        }
        if count > self.bytes.len().saturating_sub(self.at) {
            return Err(OpFault::Truncated);
        }
        Ok(count)
    }

    pub(super) fn dot(&mut self) -> Result<Dot, OpFault> {
        let origin = Incarnation::from_bytes(self.array()?);
        let counter = u64::from_be_bytes(self.array()?);
        if counter == 0 || counter >= COUNTER_END {
            return Err(OpFault::Field("counter"));
        }
        Ok(Dot::new(origin, counter))
    }

    fn kind(&mut self) -> Result<OpKind, OpFault> {
        Ok(match self.u8()? {
            1 => OpKind::Put,
            2 => OpKind::Patch,
            3 => OpKind::Delete,
            4 => OpKind::Rollback(self.dot()?),
            5 => OpKind::Resolve,
            _ => return Err(OpFault::Field("kind")),
        })
    }

    fn change(&mut self, dot: Dot, limits: &Limits) -> Result<Change, OpFault> {
        let key = DocKey {
            kind: self.name(limits.name_bytes, "kind")?,
            scope: self.name(limits.name_bytes, "scope")?,
            name: self.name(limits.name_bytes, "name")?,
        };
        // A mask names sections that are there and sections that were removed.
        let mask = self.mask(limits)?;
        let past = self.past(dot, limits)?;
        let beside = self.beside(&past)?;
        let body = match self.u8()? {
            0 => None,
            1 => Some(self.sections(limits)?),
            _ => return Err(OpFault::Field("body")),
        };
        if body.is_none() != mask.is_empty() {
            return Err(OpFault::Field("mask"));
        }
        Ok(Change { key, mask, past, beside, body })
    }

    fn mask(&mut self, limits: &Limits) -> Result<BTreeSet<String>, OpFault> {
        let mut mask = BTreeSet::new();
        for _ in 0..self.count(limits.sections.saturating_mul(2), "mask")? {
            let section = self.name(limits.name_bytes, "mask")?;
            if mask.last().is_some_and(|last| *last >= section) {
                return Err(OpFault::Field("mask"));
            }
            mask.insert(section);
        }
        Ok(mask)
    }

    fn past(&mut self, own: Dot, limits: &Limits) -> Result<Clock, OpFault> {
        let mut past = Clock::new();
        for _ in 0..self.count(limits.past, "past")? {
            let dot = self.dot()?;
            // An author cannot have seen its own later ops; two ops that claim to have seen each other have no order.
            if past.dots.last_key_value().is_some_and(|(last, _)| *last >= dot.origin)
                || (dot.origin == own.origin && dot.counter >= own.counter)
            {
                return Err(OpFault::Field("past"));
            }
            past.dots.insert(dot.origin, dot.counter);
        }
        Ok(past)
    }

    fn beside(&mut self, past: &Clock) -> Result<BTreeSet<Dot>, OpFault> {
        let mut beside = BTreeSet::new();
        for _ in 0..self.count(BESIDE_MAX, "beside")? {
            let dot = self.dot()?;
            if beside.last().is_some_and(|last| *last >= dot) || past.get(&dot.origin) < dot.counter {
                return Err(OpFault::Field("beside"));
            }
            beside.insert(dot);
        }
        Ok(beside)
    }

    fn sections(&mut self, limits: &Limits) -> Result<Sections, OpFault> {
        let count = self.count(limits.sections, "sections")?;
        if count == 0 {
            return Err(OpFault::Field("sections"));
        }
        let mut sections: Sections = BTreeMap::new();
        let mut body_bytes = 0_usize;
        for _ in 0..count {
            let name = self.name(limits.name_bytes, "section")?;
            let length = self.length()?;
            body_bytes = body_bytes.saturating_add(length);
            if body_bytes > limits.body_bytes {
                return Err(OpFault::Limit("body bytes"));
            }
            let value = self.shared(length)?;
            if sections.last_key_value().is_some_and(|(last, _)| *last >= name) {
                return Err(OpFault::Field("sections"));
            }
            sections.insert(name, value);
        }
        Ok(sections)
    }
}

/// The dot that canonical bytes name, without checking anything else.
pub(crate) fn dot_of(bytes: &Bytes) -> Option<Dot> {
    let mut reader = Reader { bytes, at: 0 };
    reader.take(MAGIC.len() + 1).ok()?;
    reader.text8().ok()?;
    reader.text8().ok()?;
    reader.dot().ok()
}
