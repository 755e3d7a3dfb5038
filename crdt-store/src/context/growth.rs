//! What a context has gained since an earlier one. A replica that has told a peer its context says no more than this
//! afterwards.

use crate::{
    context::{BadContext, CLOUD_RANGES_MAX, Context, ContextImage, ORIGINS_MAX},
    id::Incarnation,
};

impl Context {
    /// What was seen since `base`: of each origin of which more was seen, all that was seen of it. `None` where `base`
    /// is not an earlier state of this context.
    pub(crate) fn growth(&self, base: &Self) -> Option<ContextImage> {
        if !self.covers(base) {
            return None;
        }
        let has_grown = |origin: &Incarnation| {
            self.clock.get(origin) != base.clock.get(origin) || self.cloud.get(origin) != base.cloud.get(origin)
        };
        let mut growth = self.image(usize::MAX);
        growth.clock.retain(|(origin, _)| has_grown(origin));
        growth.cloud.retain(|(origin, _, _)| has_grown(origin));
        Some(growth)
    }

    /// The context that has grown so since `base`; refuses anything that [`Context::growth`] cannot have produced.
    pub(crate) fn grown(base: &Self, growth: &ContextImage) -> Result<Self, BadContext> {
        let mut context = base.clone();
        context.merge(&Self::from_image(growth)?);
        // An origin that is named with less than the base has, or with the same, comes out differently.
        if context.growth(base).as_ref() != Some(growth)
            || context.origin_count() > ORIGINS_MAX
            || context.range_count() > CLOUD_RANGES_MAX
        {
            return Err(BadContext);
        }
        Ok(context)
    }
}
