//! From the text of `node.toml` to a [`Config`], or to the list of everything that is wrong with it.
//!
//! The deserialiser stops at the first fault. To list them all, the entry at fault is taken out of the parsed table
//! and the rest is tried again, at most [`FAULTS_MAX`] times.

use std::fs;
use std::ops::Range;
use std::path::Path;

use policy::Problem;
use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::{Config, ConfigError, FILE_NAME, Fault};

/// Faults listed for one file; the rest can wait for the next try.
const FAULTS_MAX: usize = 32;

impl Config {
    /// Reads and checks `dir/node.toml`.
    ///
    /// # Errors
    /// [`ConfigError`] when the file cannot be read or anything in it is wrong.
    pub fn load_dir(dir: &Path) -> Result<Self, ConfigError> {
        Self::load(&dir.join(FILE_NAME))
    }

    /// Reads and checks one file.
    ///
    /// # Errors
    /// [`ConfigError`] when the file cannot be read or anything in it is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let name = path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into());
        Self::parse(&name, &text)
    }

    /// Parses and checks `text`; `file` is the name that faults are reported under.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every fault.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        match read(text) {
            Ok(config) => Ok(config),
            Err(mut faults) => {
                faults.sort_by_key(|fault| fault.line.unwrap_or(usize::MAX));
                Err(ConfigError::Invalid { file: file.to_owned(), faults })
            }
        }
    }
}

fn read(text: &str) -> Result<Config, Vec<Fault>> {
    let (parsed, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors.iter().take(FAULTS_MAX).map(|error| syntax_fault(text, error)).collect());
    }
    let mut rest = parsed.clone();
    let mut faults = Vec::new();
    let mut indexes_hold = true;
    while faults.len() < FAULTS_MAX {
        match Config::deserialize(toml::de::Deserializer::from(rest.clone())) {
            Ok(config) => {
                if indexes_hold {
                    faults.extend(config.check().into_iter().map(|problem| located(text, &parsed, problem)));
                }
                return if faults.is_empty() { Ok(config) } else { Err(faults) };
            }
            Err(error) => {
                let path = in_element(&rest, path_of(&rest, error.span()), error.message());
                let (fault, culprit) = field_fault(text, &error, path);
                faults.push(fault);
                indexes_hold &= !culprit.iter().any(|step| matches!(step, Step::Index(_)));
                if !remove(rest.get_mut(), &culprit) {
                    break;
                }
            }
        }
    }
    Err(faults)
}

/// One step of the way from the top of the file to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

fn syntax_fault(text: &str, error: &toml::de::Error) -> Fault {
    let hint = "strings stand in \"quotes\", tables in [brackets], lists of tables in [[double brackets]]";
    Fault {
        line: error.span().map(|span| line_at(text, span.start)),
        problem: Problem {
            field: String::new(),
            message: error.message().replace('\n', ", "),
            hint: Some(hint.to_owned()),
        },
    }
}

/// Turns the deserialiser's message into a fault, and names the entry to take out before the next try.
fn field_fault(text: &str, error: &toml::de::Error, mut path: Vec<Step>) -> (Fault, Vec<Step>) {
    let line = error.span().map(|span| line_at(text, span.start));
    let names = backticked(error.message());
    let message = error.message();
    let (message, hint) = match names.split_first() {
        Some((unknown, known)) if message.starts_with("unknown field") => {
            if path.last() != Some(&Step::Key(unknown.clone())) {
                path.push(Step::Key(unknown.clone()));
            }
            let field = written(&path);
            let fault = Problem {
                field: String::new(),
                message: format!("unknown field `{field}`"),
                hint: Some(nearest(unknown, known)),
            };
            return (Fault { line, problem: fault }, path);
        }
        Some((unknown, known)) if message.starts_with("unknown variant") => {
            (format!("`{unknown}` is not known here"), Some(nearest(unknown, known)))
        }
        Some((missing, _)) if message.starts_with("missing field") => {
            let fault = Problem {
                field: written(&path),
                message: format!("`{missing}` is missing"),
                hint: Some(format!("add `{missing} = …`")),
            };
            return (Fault { line, problem: fault }, path);
        }
        _ => (message.replace('\n', ", "), kind_hint(message)),
    };
    let problem = Problem { field: written(&path), message, hint };
    (Fault { line, problem }, whole_element(path))
}

/// The deserialiser knows only the list where an element of a tagged type holds an unknown field: finds the element.
fn in_element(table: &Spanned<DeTable<'_>>, mut path: Vec<Step>, message: &str) -> Vec<Step> {
    let named = backticked(message);
    let Some(unknown) = named.first().filter(|_| message.starts_with("unknown field")) else { return path };
    let mut element = None;
    walk(table.get_ref(), &mut Vec::new(), &mut |at, _| {
        if let [list @ .., index @ Step::Index(_), Step::Key(key)] = at
            && list == path
            && key == unknown
            && element.is_none()
        {
            element = Some(index.clone());
        }
    });
    path.extend(element);
    path
}

/// A list element without one of its values would only be reported once more, as incomplete.
fn whole_element(path: Vec<Step>) -> Vec<Step> {
    match path.iter().position(|step| matches!(step, Step::Index(_))) {
        Some(index) => path.into_iter().take(index + 1).collect(),
        None => path,
    }
}

fn kind_hint(message: &str) -> Option<String> {
    let hint =
        if message.contains("a duration") || message.contains("time unit") || message.contains("expected number at") {
            "a duration is text with a unit: \"300ms\", \"10s\", \"24h\""
        } else if message.contains("socket address") {
            "write IP:PORT, for instance \"127.0.0.1:7070\"; a name is not taken here"
        } else if message.contains("IP address") {
            "write an IP address, for instance \"127.0.0.1\""
        } else if message.contains("expected a string") || message.contains("expected string") {
            "put it in \"quotes\""
        } else {
            return None;
        };
    Some(hint.to_owned())
}

/// The nearest of `known` when one is near, else all of them.
pub(super) fn nearest(unknown: &str, known: &[String]) -> String {
    let best = known.iter().map(|name| (strsim::damerau_levenshtein(unknown, name), name)).min();
    match best {
        Some((distance, name)) if distance <= 1 + name.len() / 4 => format!("did you mean `{name}`?"),
        _ => format!("known here: {}", known.join(", ")),
    }
}

fn backticked(message: &str) -> Vec<String> {
    message.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

fn located(text: &str, table: &Spanned<DeTable<'_>>, problem: Problem) -> Fault {
    let mut line = None;
    let mut longest = 0;
    walk(table.get_ref(), &mut Vec::new(), &mut |path, span| {
        let name = written(path);
        let is_prefix =
            problem.field.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        if is_prefix && name.len() > longest {
            longest = name.len();
            line = Some(line_at(text, span.start));
        }
    });
    Fault { line, problem }
}

/// The entry whose key or value is the smallest one around `span`.
fn path_of(table: &Spanned<DeTable<'_>>, span: Option<Range<usize>>) -> Vec<Step> {
    let Some(span) = span else { return Vec::new() };
    let mut best: Option<(usize, Vec<Step>)> = None;
    walk(table.get_ref(), &mut Vec::new(), &mut |path, around| {
        let inside = around.start <= span.start && span.end <= around.end;
        if inside && best.as_ref().is_none_or(|(length, _)| around.len() <= *length) {
            best = Some((around.len(), path.to_vec()));
        }
    });
    best.map(|(_, path)| path).unwrap_or_default()
}

type Visit<'a> = dyn FnMut(&[Step], Range<usize>) + 'a;

fn walk(table: &DeTable<'_>, path: &mut Vec<Step>, visit: &mut Visit<'_>) {
    for (key, value) in table {
        path.push(Step::Key(key.get_ref().to_string()));
        visit(path, key.span());
        walk_value(value, path, visit);
        path.pop();
    }
}

fn walk_value(value: &Spanned<DeValue<'_>>, path: &mut Vec<Step>, visit: &mut Visit<'_>) {
    visit(path, value.span());
    if let Some(table) = value.get_ref().as_table() {
        walk(table, path, visit);
    }
    for (index, element) in value.get_ref().as_array().into_iter().flat_map(|array| array.iter().enumerate()) {
        path.push(Step::Index(index));
        walk_value(element, path, visit);
        path.pop();
    }
}

/// Takes the entry at `path` out; false when there is none.
fn remove(table: &mut DeTable<'_>, path: &[Step]) -> bool {
    match path {
        [Step::Key(key)] => table.remove(key.as_str()).is_some(),
        [Step::Key(key), rest @ ..] => {
            table.get_mut(key.as_str()).is_some_and(|value| remove_within(value.get_mut(), rest))
        }
        _ => false,
    }
}

fn remove_within(value: &mut DeValue<'_>, path: &[Step]) -> bool {
    match (value, path) {
        (DeValue::Table(table), path) => remove(table, path),
        (DeValue::Array(array), [Step::Index(index)]) => {
            let found = *index < array.len();
            let before = std::mem::replace(array, DeArray::new());
            *array = before.into_iter().enumerate().filter(|(at, _)| at != index).map(|(_, element)| element).collect();
            found
        }
        (DeValue::Array(array), [Step::Index(index), rest @ ..]) => {
            array.get_mut(*index).is_some_and(|value| remove_within(value.get_mut(), rest))
        }
        _ => false,
    }
}

fn written(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => {
                text.push('.');
                text.push_str(key);
            }
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}
