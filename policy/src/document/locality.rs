//! `locality` of `BackendTrafficPolicy`: parts of the requests for regions and zones, and where they go when one fails.

use serde_json::Value;

use super::fields::{Fields, LIST_MOST, item, shown, word};
use crate::{
    locality::{Distribution, FAILOVER_THRESHOLD_DEFAULT, Locality, LocalityPolicy, Tier},
    name::{bend, is_label},
    problem::Faults,
};

/// Reads the section at `path`; `None` where it says neither how to distribute nor which tiers there are.
pub(crate) fn read(value: &Value, path: &str, faults: &mut Faults<'_>) -> Option<LocalityPolicy> {
    let known = ["distribute", "tiers", "failoverThreshold"];
    let fields = Fields::open(value, path, &known, faults)?;
    if fields.iter().next().is_none() {
        faults.hint(path, "says nothing", "write `locality: { tiers: [ zone, region, any ] }`");
    }
    let distribute = distribute(&fields, faults);
    let tiers = fields.get("tiers").map(|_| tiers(&fields, faults));
    let threshold = percent(&fields, "failoverThreshold", faults);
    (!distribute.is_empty() || tiers.is_some()).then(|| LocalityPolicy {
        distribute,
        tiers,
        failover_threshold: threshold.map_or(FAILOVER_THRESHOLD_DEFAULT, |percent| f64::from(percent) / 100.0),
    })
}

fn distribute(fields: &Fields<'_>, faults: &mut Faults<'_>) -> Vec<Distribution> {
    let hint = "write `distribute: [ { from: eu/z1, to: { eu/z1: 80, eu/z2: 20 } } ]`";
    let mut read: Vec<Distribution> = Vec::new();
    let path = fields.at("distribute");
    for (index, value) in fields.at_least_one("distribute", hint, faults).iter().enumerate() {
        let Some(one) = Fields::open(value, &item(&path, index), &["from", "to"], faults) else { continue };
        one.require("from", "name the nodes it is for, as `from: eu/z1` or `from: '*'`", faults);
        let from = one.text("from", faults).and_then(|from| locality(from, &one.at("from"), faults));
        let to = to(&one, faults);
        let Some(from) = from else { continue };
        if read.iter().any(|earlier| earlier.from == from) {
            faults.hint(&one.at("from"), format_args!("`{from}` stands here twice"), "keep one of them");
        }
        read.push(Distribution { from, to });
    }
    read
}

fn to(one: &Fields<'_>, faults: &mut Faults<'_>) -> Vec<(Locality, u32)> {
    let mut read: Vec<(Locality, u32)> = Vec::new();
    let Some(value) = one.require("to", "write `to: { eu/z1: 80, eu/z2: 20 }`", faults) else { return read };
    let path = one.at("to");
    let Some(fields) = Fields::open_any(value, &path, faults) else { return read };
    let found = faults.len();
    if fields.iter().count() > LIST_MOST {
        faults.hint(&path, format_args!("has more than {LIST_MOST} localities"), "name regions, as `eu/*`");
    }
    for (name, _) in fields.iter().take(LIST_MOST) {
        let place = locality(name, &fields.at(name), faults);
        let percent = fields.whole(name, 1, 100, faults);
        let (Some(place), Some(percent)) = (place, percent) else { continue };
        if read.iter().any(|(earlier, _)| *earlier == place) {
            faults.hint(&fields.at(name), format_args!("`{place}` stands here twice"), "keep one of them");
        }
        read.push((place, percent));
    }
    let sum: u32 = read.iter().map(|(_, percent)| percent).sum();
    if faults.len() == found && sum != 100 {
        faults.hint(&path, format_args!("the parts must add up to 100, they come to {sum}"), "they are percentages");
    }
    read
}

fn tiers(fields: &Fields<'_>, faults: &mut Faults<'_>) -> Vec<Tier> {
    let hint = "write `tiers: [ zone, region, any ]`";
    let mut read: Vec<Tier> = Vec::new();
    for (index, value) in fields.at_least_one("tiers", hint, faults).iter().enumerate() {
        let path = item(&fields.at("tiers"), index);
        let Some(tier) = word(value, &path, &TIERS, &["subzone"], faults) else { continue };
        if read.last().is_some_and(|last| *last >= tier) {
            faults.hint(&path, "is not farther than the one before it", "the order is zone, region, any");
        }
        read.push(tier);
    }
    read
}

/// A whole percentage from 1 to 100, as `70%` or `70`.
fn percent(fields: &Fields<'_>, name: &str, faults: &mut Faults<'_>) -> Option<u32> {
    let Some(Value::String(written)) = fields.get(name) else { return fields.whole(name, 1, 100, faults) };
    let number = written.strip_suffix('%').and_then(|number| number.parse().ok());
    let within = number.filter(|number| (1..=100).contains(number));
    if within.is_none() {
        let message = format_args!("`{}` is not a percentage from 1% to 100%", shown(written));
        faults.hint(&fields.at(name), message, "write it as `70%`");
    }
    within
}

/// `*`, `REGION`, `REGION/*`, `REGION/ZONE` or `REGION/ZONE/*`.
fn locality(written: &str, path: &str, faults: &mut Faults<'_>) -> Option<Locality> {
    let parts: Vec<&str> = written.split('/').collect();
    let (region, zone) = match *parts.as_slice() {
        ["*"] | ["*", "*"] | ["*", "*", "*"] => return Some(Locality::Any),
        [region] | [region, "*"] | [region, "*", "*"] => (region, None),
        [region, zone] | [region, zone, "*"] => (region, Some(zone)),
        [_, _, _] => {
            let message = format_args!("`{}` names a place within a zone, which nodes do not tell", shown(written));
            faults.hint(path, message, "write `REGION/ZONE`");
            return None;
        }
        _ => {
            faults.hint(path, format_args!("`{}` is not a locality", shown(written)), LOCALITY_HINT);
            return None;
        }
    };
    for part in [Some(region), zone].into_iter().flatten() {
        if !is_label(part) {
            let hint = bend(part, false).map_or_else(|| LOCALITY_HINT.to_owned(), |name| format!("write `{name}`"));
            faults.hint(path, format_args!("`{}` is not a DNS label", shown(part)), hint);
            return None;
        }
    }
    Some(match zone {
        None => Locality::Region(region.to_owned()),
        Some(zone) => Locality::Zone(region.to_owned(), zone.to_owned()),
    })
}

const TIERS: [(&str, Tier); 3] = [("zone", Tier::Zone), ("region", Tier::Region), ("any", Tier::Any)];
const LOCALITY_HINT: &str = "write `REGION/ZONE`, `REGION/*` or `*`";
