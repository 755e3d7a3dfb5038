//! Canonical bytes read in place, as often as needed: what is held is the bytes, and not a second form of them.

use bytes::Bytes;
use crdts::CmRDT;

use crate::{
    context::Clock,
    id::{DocKey, Dot},
    op::{
        OpFault, OpKind,
        layout::{DOT_BYTES, Reader},
    },
};

/// What its author meant to do with an op, and said about it. For bytes that [`super::decode`] has accepted.
pub(crate) fn intent(bytes: &Bytes) -> (OpKind, &str) {
    Reader::at_changes(bytes).map(|(_, _, kind, message)| (kind, message)).unwrap_or_default()
}

/// The changes of an op, in order. For bytes that [`super::decode`] has accepted.
pub(crate) fn slices(bytes: &Bytes) -> impl Iterator<Item = Slice<'_>> {
    let mut start = Reader::at_changes(bytes).map(|(reader, count, _, _)| (reader, count)).ok();
    std::iter::from_fn(move || {
        let (reader, left) = start.as_mut()?;
        *left = left.checked_sub(1)?;
        Slice::read(reader).ok()
    })
}

/// One change, where it lies in the bytes of its op. Nothing is copied, nor checked again, before it is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slice<'a> {
    kind: &'a str,
    scope: &'a str,
    name: &'a str,
    /// Readers that stand before the number of items.
    mask: Reader<'a>,
    past: Reader<'a>,
    beside: Reader<'a>,
    body: Option<Reader<'a>>,
}

impl<'a> Slice<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, OpFault> {
        let (kind, scope, name) = (reader.text16()?, reader.text16()?, reader.text16()?);
        let mask = *reader;
        for _ in 0..reader.u16()? {
            skip_text(reader)?;
        }
        let past = *reader;
        let count = usize::from(reader.u16()?);
        reader.take(count * DOT_BYTES)?;
        let beside = *reader;
        let count = usize::from(reader.u16()?);
        reader.take(count * DOT_BYTES)?;
        let body = (reader.u8()? == 1).then_some(*reader);
        if body.is_some() {
            for _ in 0..reader.u16()? {
                skip_text(reader)?;
                let length = reader.length()?;
                reader.take(length)?;
            }
        }
        Ok(Self { kind, scope, name, mask, past, beside, body })
    }

    /// True where it is a change of this document.
    pub(crate) fn is_of(&self, key: &DocKey) -> bool {
        self.name == key.name && self.kind == key.kind && self.scope == key.scope
    }

    /// Which document.
    pub(crate) fn key(&self) -> DocKey {
        DocKey::new(self.kind, self.scope, self.name)
    }

    /// False for a tombstone.
    pub(crate) const fn is_edit(&self) -> bool {
        self.body.is_some()
    }

    /// The sections it speaks about; none for a tombstone.
    pub(crate) fn mask(&self) -> impl Iterator<Item = &'a str> {
        list(self.mask, Reader::text16)
    }

    /// What of the document the author had seen.
    pub(crate) fn past(&self) -> Clock {
        let mut past = Clock::new();
        for dot in list(self.past, Reader::dot) {
            past.dots.insert(dot.origin, dot.counter);
        }
        past
    }

    /// As [`crate::Change::clock`].
    pub(crate) fn clock(&self, dot: Dot) -> Clock {
        let mut clock = self.past();
        clock.apply(crdts::Dot::new(dot.origin, dot.counter));
        clock
    }

    /// Dots within the past that stayed live beside it.
    pub(crate) fn beside(&self) -> impl Iterator<Item = Dot> {
        list(self.beside, Reader::dot)
    }

    /// The sections of the full document by ascending name; `None` for a tombstone.
    pub(crate) fn body(&self) -> Option<Vec<(&'a str, Bytes)>> {
        let section = |reader: &mut Reader<'a>| {
            let name = reader.text16()?;
            let length = reader.length()?;
            Ok((name, reader.shared(length)?))
        };
        Some(list(self.body?, section).collect())
    }
}

fn skip_text(reader: &mut Reader<'_>) -> Result<(), OpFault> {
    let length = usize::from(reader.u16()?);
    reader.take(length).map(drop)
}

/// The items of a list, from before their number.
fn list<'a, T>(
    mut reader: Reader<'a>,
    mut item: impl FnMut(&mut Reader<'a>) -> Result<T, OpFault>,
) -> impl Iterator<Item = T> {
    let count = reader.u16().unwrap_or(0);
    (0..count).map_while(move |_| item(&mut reader).ok())
}
