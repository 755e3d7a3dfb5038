//! Reading the fields of an object one by one, noting every fault with its path instead of stopping at the first.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::problem::{Faults, WHOLE, nearest_name};

/// An object at a path, whose fields are asked for by name.
#[derive(Debug)]
pub(crate) struct Fields<'v> {
    path: String,
    map: &'v Map<String, Value>,
}

impl<'v> Fields<'v> {
    /// Opens `value`, found at `path`; notes a fault where it is not an object, and one for each field that is not
    /// `known`.
    pub(crate) fn open(value: &'v Value, path: &str, known: &[&str], faults: &mut Faults<'_>) -> Option<Self> {
        let fields = Self::open_any(value, path, faults)?;
        for key in fields.map.keys().filter(|key| !known.contains(&key.as_str())) {
            let hint = match nearest_name(key, known) {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            faults.hint(&fields.at(key), "unknown field", hint);
        }
        Some(fields)
    }

    /// As [`Fields::open`], with any field names.
    pub(crate) fn open_any(value: &'v Value, path: &str, faults: &mut Faults<'_>) -> Option<Self> {
        let Value::Object(map) = value else {
            let path = if path.is_empty() { WHOLE } else { path };
            faults.add(path, format_args!("expected an object, found {}", describe(value)));
            return None;
        };
        Some(Self { path: path.to_owned(), map })
    }

    /// The path of the field `name`.
    pub(crate) fn at(&self, name: &str) -> String {
        join(&self.path, name)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'v Value> {
        self.map.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'v String, &'v Value)> {
        self.map.iter()
    }

    /// The field `name`, with a fault where it is missing.
    pub(crate) fn require(&self, name: &str, hint: &str, faults: &mut Faults<'_>) -> Option<&'v Value> {
        let value = self.get(name);
        if value.is_none() {
            faults.hint(&self.at(name), "is missing", hint);
        }
        value
    }

    /// The text in `name`; `None` where it is absent or, with a fault, something else.
    pub(crate) fn text(&self, name: &str, faults: &mut Faults<'_>) -> Option<&'v str> {
        text(self.get(name)?, &self.at(name), faults)
    }

    /// The finite number in `name`.
    pub(crate) fn number(&self, name: &str, faults: &mut Faults<'_>) -> Option<f64> {
        let value = self.get(name)?;
        let number = value.as_f64();
        if number.is_none() {
            faults.add(&self.at(name), format_args!("expected a number, found {}", describe(value)));
        }
        number
    }

    /// The whole number from `least` to `most` in `name`.
    pub(crate) fn whole(&self, name: &str, least: u32, most: u32, faults: &mut Faults<'_>) -> Option<u32> {
        let value = self.get(name)?;
        let path = self.at(name);
        let Value::Number(number) = value else {
            faults.add(&path, format_args!("expected a whole number, found {}", describe(value)));
            return None;
        };
        let within = number.as_u64().and_then(|number| u32::try_from(number).ok());
        let within = within.filter(|number| (least..=most).contains(number));
        if within.is_none() {
            faults.hint(&path, format_args!("{number} is outside {least}..={most}"), "write a whole number within");
        }
        within
    }

    /// The items in `name`, at most `most`.
    pub(crate) fn list(&self, name: &str, most: usize, faults: &mut Faults<'_>) -> Option<&'v [Value]> {
        let value = self.get(name)?;
        let path = self.at(name);
        let Value::Array(items) = value else {
            let message = format_args!("expected a list, found {}", describe(value));
            faults.hint(&path, message, "a single item is a list of one");
            return None;
        };
        if items.len() > most {
            faults.hint(&path, format_args!("has {} items, more than {most}", items.len()), "split the document");
        }
        Some(items.get(..most).unwrap_or(items))
    }

    /// The items of a list that may not be empty, at most [`LIST_MOST`].
    pub(crate) fn at_least_one(&self, name: &str, hint: &str, faults: &mut Faults<'_>) -> &'v [Value] {
        let items = self.list(name, LIST_MOST, faults);
        if items.is_some_and(<[Value]>::is_empty) {
            faults.hint(&self.at(name), "is empty", hint);
        }
        items.unwrap_or_default()
    }

    /// The word in `name`, one of a closed set; see [`word`].
    pub(crate) fn word<T: Copy>(
        &self,
        name: &str,
        known: &[(&str, T)],
        later: &[&str],
        faults: &mut Faults<'_>,
    ) -> Option<T> {
        word(self.get(name)?, &self.at(name), known, later, faults)
    }

    /// The duration in `name`, written as `300ms` or `2s`: above zero and at most `most`.
    pub(crate) fn duration(&self, name: &str, most: Duration, faults: &mut Faults<'_>) -> Option<Duration> {
        let value = self.get(name)?;
        let path = self.at(name);
        if let Value::Number(number) = value {
            faults.hint(&path, "a duration needs a unit", format!("write `{number}ms` or `{number}s`"));
            return None;
        }
        let text = text(value, &path, faults)?;
        let Ok(duration) = humantime::parse_duration(text) else {
            faults.hint(&path, format_args!("`{}` is not a duration", shown(text)), "write it as `300ms` or `2s`");
            return None;
        };
        if duration.is_zero() || duration > most {
            let limit = humantime::format_duration(most);
            faults.add(&path, format_args!("`{}` is not above zero and at most {limit}", shown(text)));
            return None;
        }
        Some(duration)
    }
}

/// `value` as text, with a fault where it is something else.
pub(crate) fn text<'v>(value: &'v Value, path: &str, faults: &mut Faults<'_>) -> Option<&'v str> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(_) | Value::Bool(_) => {
            faults.hint(path, format_args!("expected text, found {}", describe(value)), "put it in quotes");
            None
        }
        Value::Null | Value::Array(_) | Value::Object(_) => {
            faults.add(path, format_args!("expected text, found {}", describe(value)));
            None
        }
    }
}

/// One of a closed set of words; `later` are words that people will find in our documents before this version knows
/// what to do with them.
pub(crate) fn word<T: Copy>(
    value: &Value,
    path: &str,
    known: &[(&str, T)],
    later: &[&str],
    faults: &mut Faults<'_>,
) -> Option<T> {
    let text = text(value, path, faults)?;
    if let Some((_, value)) = known.iter().find(|(word, _)| *word == text) {
        return Some(*value);
    }
    let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
    let carried = format!("this version carries {}", words.join(", "));
    if later.contains(&text) {
        faults.hint(path, format_args!("`{text}` is not carried by this version"), carried);
        return None;
    }
    let hint = match nearest_name(text, &words) {
        Some(word) => format!("did you mean `{word}`?"),
        None => carried,
    };
    faults.hint(path, format_args!("`{}` is not a known word", shown(text)), hint);
    None
}

/// The path of the field `name` of the object at `path`; names that are not plain words stand in brackets and quotes.
pub(crate) fn join(path: &str, name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.is_empty() || !name.bytes().all(plain) {
        return format!("{path}[\"{}\"]", shown(name));
    }
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The path of item `index` of the list at `path`.
pub(crate) fn item(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

/// A text of the author's, safe to repeat to them: without control characters, and cut where it is long.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars().take(SHOWN_MAX) {
        if letter.is_control() { shown.extend(letter.escape_default()) } else { shown.push(letter) }
    }
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// Most items of a list that the author writes by hand.
pub(crate) const LIST_MOST: usize = 64;

/// Letters of an author's text that a message repeats.
const SHOWN_MAX: usize = 80;

pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(fact) => format!("`{fact}`"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text `{}`", shown(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
