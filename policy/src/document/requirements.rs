//! `requirements` of a rule of `HTTPRoute`: what the node of an instance must be.

use serde_json::Value;

use super::fields::{Fields, describe, item, shown};
use crate::{
    problem::Faults,
    requirements::{OnUnmatched, Requirement, Requirements, Test},
};

/// Reads what `rule` requires; `None` where it requires nothing.
pub(crate) fn read(rule: &Fields<'_>, faults: &mut Faults<'_>) -> Option<Requirements> {
    let on_unmatched = rule.word("onUnmatched", &ACTIONS, &[], faults);
    if rule.get("requirements").is_none() {
        if rule.get("onUnmatched").is_some() {
            faults.hint(&rule.at("onUnmatched"), "nothing is required here", "add `requirements`, or leave it out");
        }
        return None;
    }
    let hint = "write `requirements: [ { name: gpu, atLeast: 1 } ]`";
    let path = rule.at("requirements");
    let values = rule.at_least_one("requirements", hint, faults).iter().enumerate();
    let all = values.filter_map(|(index, value)| requirement(value, &item(&path, index), faults)).collect();
    Some(Requirements { all, on_unmatched: on_unmatched.unwrap_or_default() })
}

fn requirement(value: &Value, path: &str, faults: &mut Faults<'_>) -> Option<Requirement> {
    let fields = Fields::open(value, path, &["name", "atLeast", "equals", "contains"], faults)?;
    fields.require("name", "write `arch`, `os`, `cores`, `memory`, `gpu` or the name of a label", faults);
    let name = fields.text("name", faults)?;
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        faults.hint(&fields.at("name"), format_args!("`{}` is not the name of a trait", shown(name)), "1 to 63 bytes");
        return None;
    }
    let text = |test: &str, faults: &mut Faults<'_>| fields.text(test, faults).map(str::to_owned);
    let tests = [
        fields.get("atLeast").map(|value| at_least(value, &fields.at("atLeast"), faults).map(Test::AtLeast)),
        fields.get("equals").map(|_| text("equals", faults).map(Test::Equals)),
        fields.get("contains").map(|_| text("contains", faults).map(Test::Contains)),
    ];
    let mut given = tests.into_iter().flatten();
    let (first, second) = (given.next(), given.next());
    if first.is_none() || second.is_some() {
        faults.hint(
            path,
            "says not just one of `atLeast`, `equals` and `contains`",
            "one item for each thing required",
        );
        return None;
    }
    let test = first??;
    let is_number = matches!(test, Test::AtLeast(_));
    if NUMBERS.contains(&name) != is_number && (NUMBERS.contains(&name) || TEXTS.contains(&name)) {
        let hint = if is_number { "write `equals` or `contains`" } else { "write `atLeast`" };
        faults.hint(path, format_args!("`{name}` is {}", if is_number { "a text" } else { "a number" }), hint);
        return None;
    }
    Some(Requirement { name: name.to_owned(), test })
}

/// A number, or bytes as `4GiB`.
fn at_least(value: &Value, path: &str, faults: &mut Faults<'_>) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(written) => bytes(written),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let number = number.filter(|number| number.is_finite());
    if number.is_none() {
        faults.hint(
            path,
            format_args!("expected a number, found {}", describe(value)),
            "write `1`, or bytes as `4GiB`",
        );
    }
    number
}

fn bytes(written: &str) -> Option<f64> {
    let (suffix, factor) = UNITS.iter().find(|(suffix, _)| written.ends_with(suffix))?;
    let number: f64 = written.strip_suffix(suffix)?.trim().parse().ok()?;
    Some(number * factor)
}

const ACTIONS: [(&str, OnUnmatched); 2] = [("deny", OnUnmatched::Deny), ("pass-through", OnUnmatched::PassThrough)];
const NUMBERS: [&str; 3] = ["cores", "memory", "gpu"];
const TEXTS: [&str; 2] = ["arch", "os"];
const UNITS: [(&str, f64); 3] = [("KiB", 1024.0), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0)];
const NAME_BYTES_MAX: usize = 63;
