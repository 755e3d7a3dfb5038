//! Writing here: from what a caller wants to one signed op, durable before it leaves.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use crdts::CvRDT;

use crate::{
    backend::Batch,
    context::Clock,
    error::{StorageError, StoreError},
    id::{DocKey, Dot, ETag, head, sha256},
    op::{self, Change, Op, OpFault, OpKind, Sections, SignedOp},
    replica::{Life, Replica},
    store::Held,
};

/// What is to become of one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Which document.
    pub key: DocKey,
    /// The full resulting document, section by section; `None` deletes it.
    pub body: Option<BTreeMap<String, Vec<u8>>>,
    /// Sections to write although they do not change, which settles them; those that change are written in any case.
    pub mask: Option<BTreeSet<String>>,
    /// The version that the caller has read (If-Match); `None` supersedes whatever this node has seen.
    pub context: Option<ETag>,
    /// The document must not exist yet (If-None-Match: *).
    pub create_only: bool,
}

impl Edit {
    /// Writes a document, whatever this node has of it.
    #[must_use]
    pub const fn put(key: DocKey, body: BTreeMap<String, Vec<u8>>) -> Self {
        Self { key, body: Some(body), mask: None, context: None, create_only: false }
    }

    /// Deletes a document.
    #[must_use]
    pub const fn delete(key: DocKey) -> Self {
        Self { key, body: None, mask: None, context: None, create_only: false }
    }
}

/// What goes with a write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WriteMeta {
    /// What the author means to do. [`OpKind::Resolve`] settles every conflict of the documents written.
    pub op_kind: OpKind,
    /// Why, at most 256 bytes; may be empty.
    pub message: String,
    /// The same key and the same edits within 24 hours are one write; empty for none, at most 128 bytes.
    pub idempotency_key: String,
    /// Version of the documents' schema; carried, not interpreted.
    pub schema: u16,
}

/// One write of a group: a whole op of its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WriteRequest {
    /// What is to become of which documents.
    pub edits: Vec<Edit>,
    /// What goes with it.
    pub meta: WriteMeta,
}

/// Of more origins than this, a new document does not name all that was seen before it: each costs 24 bytes.
const SEEN_IN_PAST_MAX: usize = 16;

/// Writes in one group at most; those beyond it are refused.
pub const GROUP_MAX: usize = 1_024;

/// How far a group of writes has come.
#[derive(Debug)]
struct Group {
    life: Life,
    written: u64,
    /// There is something to make durable.
    is_changed: bool,
}

/// A write that is durable here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its op; `None` where every document was already as asked, so that nothing was written.
    pub dot: Option<Dot>,
    /// The version of each document named in the edits; `None` where it does not exist any more.
    pub etags: BTreeMap<DocKey, Option<ETag>>,
    /// The message that carries the op to peers, for [`Replica::merge_push`]; empty where nothing was written.
    pub push: Bytes,
    /// True where an earlier write under the same idempotency key is what is reported.
    pub is_replay: bool,
}

impl Replica {
    /// Writes documents as one op: all of them or none, at once on each replica.
    ///
    /// Compare-and-set is against what this node has seen: a concurrent write elsewhere shows up as a conflict later.
    /// `now_ms` are milliseconds since 1970.
    ///
    /// # Errors
    /// [`StoreError::Stale`], [`StoreError::NotFound`], [`StoreError::TooLarge`], [`StoreError::Invalid`],
    /// [`StoreError::TooManySiblings`], [`StoreError::IdempotencyReuse`], [`StoreError::NotAuthor`],
    /// [`StoreError::NotAdmitted`], [`StoreError::Full`], [`StoreError::ReadOnly`], [`StoreError::Storage`].
    /// In each case nothing was written, in memory or on disk, and the next write starts afresh.
    pub fn write(&mut self, edits: Vec<Edit>, meta: WriteMeta, now_ms: u64) -> Result<Written, StoreError> {
        let mut results = self.write_group(vec![WriteRequest { edits, meta }], now_ms);
        results.pop().unwrap_or(Err(StoreError::Invalid { what: "a write of no documents" }))
    }

    /// Writes several requests, each as an op of its own that succeeds or fails by itself, as [`Replica::write`] says;
    /// later ones see earlier ones.
    ///
    /// All that succeed become durable in one batch, which costs one wait for the disk. Where the storage refuses it,
    /// none of them was written and all that would have succeeded fail. Results come in the order of the requests;
    /// those beyond [`GROUP_MAX`] are refused.
    pub fn write_group(&mut self, requests: Vec<WriteRequest>, now_ms: u64) -> Vec<Result<Written, StoreError>> {
        self.outcomes.expire(now_ms);
        let mut group = Group { life: self.life, written: 0, is_changed: false };
        self.store.begin();
        let enter = |(at, request)| match at {
            0..GROUP_MAX => self.enter_write(request, &mut group, now_ms),
            _ => Err(StoreError::TooLarge { what: "writes of one group", max: GROUP_MAX }),
        };
        let results: Vec<_> = requests.into_iter().enumerate().map(enter).collect();
        if !group.is_changed {
            self.store.roll_back();
            return results;
        }
        let mut extra = Batch::new();
        let kept = match self.outcomes.store(&mut extra) {
            Ok(()) => self.keep(group.life, extra),
            Err(error) => {
                self.store.roll_back();
                Err(error)
            }
        };
        match kept {
            Ok(_) => {
                self.outcomes.commit();
                self.counters.written += group.written;
                results
            }
            Err(error) => {
                self.outcomes.discard();
                let mut error = Some(error);
                let fail = |result: Result<Written, StoreError>| result.and_then(|_| Err(alike(&mut error)));
                results.into_iter().map(fail).collect()
            }
        }
    }

    /// Enters one write into the open transaction; where it fails, nothing of it is there.
    fn enter_write(&mut self, request: WriteRequest, group: &mut Group, now_ms: u64) -> Result<Written, StoreError> {
        let WriteRequest { mut edits, meta } = request;
        edits.sort_by(|a, b| a.key.cmp(&b.key));
        self.check_write(&edits, &meta)?;
        let keys: Vec<DocKey> = edits.iter().map(|edit| edit.key.clone()).collect();
        let digest = digest(&edits, &meta);
        if let Some(outcome) = self.outcomes.get(&meta.idempotency_key) {
            if outcome.digest != digest {
                return Err(StoreError::IdempotencyReuse);
            }
            return Ok(self.written(outcome.dot, keys, true));
        }
        let life = Life { counter: group.life.counter + 1, ..group.life };
        let dot = Dot::new(life.incarnation, life.counter);
        let mut changes = Vec::with_capacity(edits.len());
        for edit in edits {
            changes.extend(self.change(edit, meta.op_kind, dot)?);
        }
        let dot = (!changes.is_empty()).then_some(dot);
        if let Some(dot) = dot {
            self.enter_op(life, dot, changes, &meta, now_ms)?;
            group.life = life;
            group.written += 1;
            group.is_changed = true;
        }
        if !meta.idempotency_key.is_empty() {
            self.outcomes.stage(meta.idempotency_key, dot, digest, now_ms);
            group.is_changed = true;
        }
        Ok(self.written(dot, keys, false))
    }

    fn enter_op(
        &mut self,
        life: Life,
        dot: Dot,
        changes: Vec<Change>,
        meta: &WriteMeta,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let own = self.own_origin(life)?;
        let mut clock = self.store.clock;
        let op = Op {
            dot,
            hlc: clock.tick(now_ms),
            author_key: head(&sha256(&[&self.authority.public_key()])),
            kind: meta.op_kind,
            schema: meta.schema,
            idempotency_key: meta.idempotency_key.clone(),
            message: meta.message.clone(),
            changes,
        };
        // They are kept for long: without room to grow.
        let bytes = Bytes::from(op::encode(&self.store.id, &op).into_boxed_slice());
        // Read back by the rules that every peer applies, so that nothing leaves that others would refuse.
        let op = op::decode(&self.store.id, &bytes, &self.store.limits).map_err(|fault| self.refuse(fault))?;
        let signature = self.authority.sign(&bytes);
        let held = Held::new(&op, SignedOp { bytes, signature }, false);
        self.check_room(&op, &held)?;
        self.store.clock = clock;
        if let Some((record, author)) = own {
            self.store.add_origin(record, author);
        }
        self.store.enter(op, held);
        Ok(())
    }

    fn check_write(&self, edits: &[Edit], meta: &WriteMeta) -> Result<(), StoreError> {
        let limits = &self.store.limits;
        let at_most = |what, count: usize, max: usize| {
            if count > max { Err(StoreError::TooLarge { what, max }) } else { Ok(()) }
        };
        if edits.is_empty() {
            return Err(StoreError::Invalid { what: "a write of no documents" });
        }
        if edits.windows(2).any(|pair| matches!(pair, [a, b] if a.key == b.key)) {
            return Err(StoreError::Invalid { what: "a write that names a document twice" });
        }
        at_most("documents of one write", edits.len(), limits.changes)?;
        at_most("bytes of the message", meta.message.len(), limits.message_bytes)?;
        at_most("bytes of the idempotency key", meta.idempotency_key.len(), op::IDEMPOTENCY_BYTES_MAX)?;
        for edit in edits {
            let key = &edit.key;
            if ![&key.kind, &key.scope, &key.name].into_iter().all(|text| op::is_name(text, limits.name_bytes)) {
                return Err(StoreError::Invalid { what: "kind, scope or name of a document" });
            }
            let Some(body) = &edit.body else { continue };
            if body.is_empty() {
                return Err(StoreError::Invalid { what: "a document without sections" });
            }
            if !body.keys().all(|name| op::is_name(name, limits.name_bytes)) {
                return Err(StoreError::Invalid { what: "name of a section" });
            }
            at_most("sections of a document", body.len(), limits.sections)?;
            at_most("bytes of a document", body.values().map(Vec::len).sum(), limits.body_bytes)?;
        }
        Ok(())
    }

    /// The change that brings a document from what this node has seen to what is asked; `None` where it is that.
    fn change(&self, edit: Edit, kind: OpKind, dot: Dot) -> Result<Option<Change>, StoreError> {
        let key = edit.key;
        let mut registers = self.store.registers(&key).into_owned();
        let reading = self.store.read_from(&key, &registers);
        let current = reading.as_ref().map(crate::document::Reading::etag);
        let is_other = edit.context.is_some_and(|context| Some(context) != current);
        if is_other || (edit.create_only && current.is_some()) {
            return Err(StoreError::Stale { key, current });
        }
        let is_resolving = kind == OpKind::Resolve;
        let body: Option<Sections> =
            edit.body.map(|body| body.into_iter().map(|(name, value)| (name, value.into())).collect());
        let mask = match (&body, &reading) {
            (None, None) => return Err(StoreError::NotFound { key }),
            (None, Some(_)) => BTreeSet::new(),
            (Some(body), None) => body.keys().cloned().collect(),
            (Some(body), Some(reading)) => {
                let mut mask = changed(&reading.sections, body);
                // A document that someone deleted is written whole: it exists again from here on. That includes sections
                // that an edit beside the deletion removed, or the deletion would stay beside that edit for ever.
                if reading.is_deleted_concurrently {
                    mask.extend(reading.edited().map(str::to_owned));
                    mask.extend(body.keys().cloned());
                    mask.extend(reading.sections.keys().map(|name| (**name).to_owned()));
                }
                if is_resolving {
                    mask.extend(reading.conflicts.iter().map(|(name, _)| (**name).to_owned()));
                }
                let known = |name: &String| body.contains_key(name) || reading.sections.contains_key(name.as_str());
                mask.extend(edit.mask.into_iter().flatten().filter(known));
                if mask.is_empty() {
                    return Ok(None);
                }
                // What is read of an edit that did not change it is ours from here on: that edit may be superseded now,
                // and an older one would be read in its place.
                mask.extend(reading.borrowed().filter(|name| body.contains_key(*name)).map(str::to_owned));
                mask
            }
        };
        let past = self.past(&key, is_resolving);
        let mut change = Change { key, mask, past, beside: BTreeSet::new(), body };
        let clock_of = |other| self.store.change_of(&change.key, other).map(|part| part.clock(other));
        registers.apply(dot, &change.clock(dot), change.mask.iter().map(String::as_str), &clock_of);
        let max = self.store.limits.siblings;
        if let Some((section, _)) = registers.widest(&change.mask).filter(|(_, width)| *width > max) {
            return Err(StoreError::TooManySiblings { section: section.to_owned(), key: change.key });
        }
        let stays = |other: &Dot| *other != dot && change.past.get(&other.origin) >= other.counter;
        change.beside = registers.live().into_iter().filter(stays).collect();
        Ok(Some(change))
    }

    /// What of a document this node has seen: the clocks of its live ops, but for those beside which something is
    /// missing here. Claiming their past would supersede edits that nobody here has read; so such an op stays, and
    /// shows as a conflict, unless a person settles the document.
    ///
    /// Where nothing is live here, all that was ever seen of the document is gone, perhaps with a tombstone that was
    /// collected and that others still hold. Naming all that was seen keeps the new document from looking deleted
    /// concurrently to them.
    fn past(&self, key: &DocKey, is_resolving: bool) -> Clock {
        let mut past = Clock::new();
        let live = self.store.document(key).map(crate::document::Document::live).unwrap_or_default();
        let seen = self.store.context.clock();
        let is_short = seen.dots.len() <= SEEN_IN_PAST_MAX.min(self.store.limits.past);
        if live.is_empty() && !self.store.floor.is_empty() && is_short {
            return seen.clone();
        }
        for dot in live {
            if !is_resolving && !self.store.is_complete(key, dot) {
                continue;
            }
            if let Some(change) = self.store.change_of(key, dot) {
                past.merge(change.clock(dot));
            }
        }
        past
    }

    /// Refuses growth beyond the limits of local writes; deleting is always possible.
    fn check_room(&self, op: &Op, held: &Held) -> Result<(), StoreError> {
        let limits = &self.store.limits;
        if op.changes.iter().all(|change| change.body.is_none()) {
            return Ok(());
        }
        let is_new = |change: &&Change| self.store.document(&change.key).is_none();
        let documents = self.store.document_count() + op.changes.iter().filter(is_new).count();
        if documents > limits.documents {
            return Err(StoreError::TooLarge { what: "documents and tombstones", max: limits.documents });
        }
        if self.store.live_bytes + held.signed.weight() > limits.live_bytes {
            return Err(StoreError::TooLarge { what: "bytes of all documents", max: limits.live_bytes });
        }
        Ok(())
    }

    fn refuse(&self, fault: OpFault) -> StoreError {
        match fault {
            OpFault::Field(what) => StoreError::Invalid { what },
            OpFault::Limit(what) => StoreError::TooLarge { what, max: self.store.limits.of(what) },
            OpFault::Truncated | OpFault::Trailing | OpFault::Version | OpFault::OtherStore => {
                StoreError::Invalid { what: "op" }
            }
        }
    }

    fn written(&self, dot: Option<Dot>, keys: Vec<DocKey>, is_replay: bool) -> Written {
        let etag = |key: &DocKey| self.store.read(key).map(|reading| reading.etag());
        Written {
            dot,
            etags: keys.into_iter().map(|key| (key.clone(), etag(&key))).collect(),
            push: dot.map(|dot| self.encode_push(&[dot])).unwrap_or_default(),
            is_replay,
        }
    }
}

/// The error of a batch for one more of its writes.
fn alike(error: &mut Option<StoreError>) -> StoreError {
    let Some(first) = error.take() else { return StoreError::ReadOnly };
    let other = match &first {
        StoreError::Full => StoreError::Full,
        StoreError::ReadOnly => StoreError::ReadOnly,
        StoreError::TooLarge { what, max } => StoreError::TooLarge { what, max: *max },
        StoreError::Storage(StorageError::Io { doing, source }) => {
            StoreError::Storage(StorageError::Io { doing, source: source.kind().into() })
        }
        other => StoreError::Storage(StorageError::Io {
            doing: "writing a group",
            source: std::io::Error::other(other.to_string()),
        }),
    };
    *error = Some(other);
    first
}

/// Sections whose content differs, either way.
fn changed(from: &BTreeMap<Arc<str>, Bytes>, to: &Sections) -> BTreeSet<String> {
    let added = to.iter().filter(|(name, value)| from.get(name.as_str()) != Some(*value)).map(|(name, _)| name.clone());
    let removed = from.keys().map(|name| &**name).filter(|name| !to.contains_key(*name)).map(str::to_owned);
    added.chain(removed).collect()
}

/// Which write this is, for recognising it when it comes again.
fn digest(edits: &[Edit], meta: &WriteMeta) -> [u8; 16] {
    let mut bytes = b"marram-write".to_vec();
    let mut part = |part: &[u8]| {
        bytes.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        bytes.extend_from_slice(part);
    };
    part(format!("{:?}", meta.op_kind).as_bytes());
    part(meta.message.as_bytes());
    for edit in edits {
        part(edit.key.kind.as_bytes());
        part(edit.key.scope.as_bytes());
        part(edit.key.name.as_bytes());
        part(edit.context.map(|tag| tag.to_string()).unwrap_or_default().as_bytes());
        part(&[u8::from(edit.create_only), u8::from(edit.body.is_some())]);
        for name in edit.mask.iter().flatten() {
            part(name.as_bytes());
        }
        for (name, value) in edit.body.iter().flatten() {
            part(name.as_bytes());
            part(value);
        }
    }
    head(&sha256(&[&bytes]))
}
