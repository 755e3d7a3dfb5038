//! The spec of `Residency`: the regions a service's requests may be answered in.

use std::collections::BTreeSet;

use serde_json::Value;

use super::fields::{Fields, item, shown, text, word};
use crate::{
    name::{bend, is_label},
    problem::Faults,
};

/// Reads the spec at `spec`; the regions are complete where it leaves no faults.
pub(crate) fn read(spec: &Value, faults: &mut Faults<'_>) -> BTreeSet<String> {
    let mut regions = BTreeSet::new();
    let Some(fields) = Fields::open(spec, "spec", &["allowRegions", "appliesTo"], faults) else { return regions };
    let hint = "list the regions that may answer, as `allowRegions: [ eu ]`";
    fields.require("allowRegions", hint, faults);
    for (index, value) in fields.at_least_one("allowRegions", hint, faults).iter().enumerate() {
        let path = item(&fields.at("allowRegions"), index);
        let Some(region) = text(value, &path, faults) else { continue };
        if is_label(region) {
            regions.insert(region.to_owned());
        } else {
            let hint = bend(region, false).map(|name| format!("write `{name}`"));
            faults.push(&path, format_args!("`{}` is not a DNS label", shown(region)), hint);
        }
    }
    let hint = "leave it out, or write `appliesTo: [ traffic ]`";
    for (index, value) in fields.at_least_one("appliesTo", hint, faults).iter().enumerate() {
        word(value, &item(&fields.at("appliesTo"), index), &[("traffic", ())], &["queue", "telemetry"], faults);
    }
    regions
}
