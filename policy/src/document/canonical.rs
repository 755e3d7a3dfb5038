//! One spelling for every JSON value, so that equal values are equal bytes on every node.

use serde_json::{Map, Number, Value};

/// The canonical bytes of `value`: no blanks, keys in order of their bytes, numbers as [`settled`] leaves them.
/// Written by hand rather than by `serde_json::to_vec`, whose order of keys depends on a feature that any other crate of
/// the program may switch on.
pub(crate) fn to_bytes(value: &Value) -> Vec<u8> {
    let mut out = String::new();
    write(value, &mut out);
    out.into_bytes()
}

/// `value` with every number in its one form: a float that is a whole number within 2^53 becomes an integer, so that
/// `1`, `1.0` and `1e0` are one value, and `-0.0` is `0`.
pub(crate) fn settled(value: Value) -> Value {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => value,
        Value::Number(number) => Value::Number(settle(&number)),
        Value::Array(items) => Value::Array(items.into_iter().map(settled).collect()),
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(key, value)| (key, settled(value))).collect::<Map<_, _>>())
        }
    }
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => out.push_str(&value.to_string()),
        Value::Number(number) => out.push_str(&settle(number).to_string()),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                comma(index, out);
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            out.push('{');
            for (index, (key, value)) in entries.into_iter().enumerate() {
                comma(index, out);
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write(value, out);
            }
            out.push('}');
        }
    }
}

fn comma(index: usize, out: &mut String) {
    if index > 0 {
        out.push(',');
    }
}

fn settle(number: &Number) -> Number {
    match number.as_f64() {
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() <= WHOLE_MAX => {
            #[expect(clippy::cast_possible_truncation, reason = "a whole number within 2^53 fits i64 exactly")]
            let whole = float as i64;
            Number::from(whole)
        }
        _ => number.clone(),
    }
}

/// 2^53: up to here every whole number is exactly one float.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{settled, to_bytes};
    use crate::document::sections::tests::any_json;

    fn text(value: &Value) -> String {
        String::from_utf8(to_bytes(value)).unwrap()
    }

    #[test]
    fn equal_values_have_equal_bytes() {
        assert_eq!(
            text(&json!({"b": 1.0, "a": [1e0, -0.0, 0.1, "x\n"], "é": null})),
            r#"{"a":[1,0,0.1,"x\n"],"b":1,"é":null}"#
        );
        assert_eq!(text(&json!(1e300)), "1e+300");
        assert_eq!(text(&json!(u64::MAX)), "18446744073709551615");
        assert_eq!(text(&json!(-5)), "-5");
        assert_eq!(text(&json!(9_007_199_254_740_992.0)), "9007199254740992");
    }

    proptest! {
        #[test]
        fn canonical_bytes_do_not_change_when_read_and_written_again(value in any_json()) {
            let bytes = to_bytes(&value);
            let read: Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(&to_bytes(&read), &bytes);
            prop_assert_eq!(read, settled(value));
        }
    }
}
