//! What one side said of itself when the conversation began. All that it says of itself later is what came on top.

use std::collections::BTreeSet;

use crate::{
    context::{Clock, Context, ContextImage},
    id::Incarnation,
    replica::Replica,
    sync::{
        SyncError,
        below::{empty_root, floor_from, floor_growth},
    },
    wire::Hello,
};

/// A `Hello`, said or heard.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) incarnation: Incarnation,
    pub(super) context: Context,
    pub(super) floor: Clock,
    /// Nothing was visible.
    pub(super) is_empty: bool,
    /// Origins in the context whose records it held. Coverage is credited without them, so the context does not tell.
    pub(super) records: BTreeSet<Incarnation>,
}

impl Opening {
    /// What a replica has to say of itself now.
    pub(super) fn of(replica: &Replica) -> Self {
        let context = replica.context().clone();
        let records = context.origins().filter(|origin| replica.origin_record(origin).is_some()).copied().collect();
        let (incarnation, floor, is_empty) =
            (replica.incarnation(), replica.floor().clone(), replica.root() == empty_root());
        Self { incarnation, context, floor, is_empty, records }
    }

    /// What a peer said of itself.
    pub(super) fn heard(hello: &Hello) -> Result<Self, SyncError> {
        let context = Context::from_image(&hello.context).map_err(|_bad| SyncError::Implausible { what: "context" })?;
        let floor = floor_from(&Clock::new(), &hello.floor, context.clock())?;
        let records = records_from(&hello.records, &context)?;
        let (incarnation, is_empty) = (hello.incarnation, hello.root == empty_root());
        Ok(Self { incarnation, context, floor, is_empty, records })
    }

    /// The message that says it.
    pub(super) fn hello(&self, replica: &Replica) -> Hello {
        Hello {
            store: replica.store_id().clone(),
            incarnation: self.incarnation,
            context: self.context.image(usize::MAX),
            floor: floor_growth(&self.floor, &Clock::new()).unwrap_or_default(),
            records: records_image(&self.records, &self.context),
            root: replica.root(),
        }
    }

    /// What the replica that said this has seen since; `None` where it went back in time.
    pub(super) fn seen_since(&self, replica: &Replica) -> Option<ContextImage> {
        replica.context().growth(&self.context)
    }

    /// How far it has collected since; `None` where it went back in time.
    pub(super) fn collected_since(&self, replica: &Replica) -> Option<Vec<(Incarnation, u64)>> {
        floor_growth(replica.floor(), &self.floor)
    }

    /// All that the peer that said this has seen by now.
    pub(super) fn context_after(&self, growth: &ContextImage) -> Result<Context, SyncError> {
        Context::grown(&self.context, growth).map_err(|_bad| SyncError::Implausible { what: "growth of a context" })
    }
}

/// One bit for each origin of the context in ascending order, the first one highest in its byte: set where its record
/// is held.
fn records_image(records: &BTreeSet<Incarnation>, context: &Context) -> Vec<u8> {
    let origins: BTreeSet<_> = context.origins().collect();
    let mut bits = vec![0; origins.len().div_ceil(8)];
    for (at, _) in origins.into_iter().enumerate().filter(|(_, origin)| records.contains(*origin)) {
        bits.iter_mut().skip(at / 8).take(1).for_each(|byte| *byte |= 0x80 >> (at % 8));
    }
    bits
}

/// The origins whose bits are set; there are as many bytes as it takes, and the spare bits are not set.
fn records_from(bits: &[u8], context: &Context) -> Result<BTreeSet<Incarnation>, SyncError> {
    let origins: BTreeSet<_> = context.origins().collect();
    let is_set = |at: usize| bits.get(at / 8).is_some_and(|byte| byte & (0x80 >> (at % 8)) != 0);
    let records = origins.into_iter().enumerate().filter(|(at, _)| is_set(*at)).map(|(_, origin)| *origin).collect();
    if records_image(&records, context) != *bits {
        return Err(SyncError::Implausible { what: "list of records" });
    }
    Ok(records)
}
