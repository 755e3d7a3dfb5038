//! Text to JSON values, each field with the line it stood on, within limits.

use std::{collections::HashSet, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy, Options, Spanned, UserMessageFormatter};

use super::{
    canonical::settled,
    fields::{item, join, shown},
    lines::SourceLines,
    parse::Limits,
};
use crate::problem::{Problem, WHOLE};

/// One document as read: its value with settled numbers, and the lines of its fields.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) value: Value,
    pub(super) lines: SourceLines,
}

/// Reads every document in `text`: YAML of one or several documents, JSON, JSON values one after the other, and in
/// either a list of documents. Empty documents are left out.
pub(super) fn read(text: &str, limits: &Limits) -> Result<Vec<Read>, Problem> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > limits.text_bytes {
        let message = format!("the text has {} bytes, more than {}", text.len(), limits.text_bytes);
        return Err(Problem::new(WHOLE, message, Some("send the documents in several parts".to_owned())));
    }
    let trees = match yaml(text, limits) {
        Ok(trees) => trees,
        Err(problem) => json(text, limits).unwrap_or(Err(problem))?,
    };
    let trees = trees.into_iter().flat_map(|tree| match tree.shape {
        Shape::List(items) => items,
        shape => vec![Tree { shape, line: tree.line }],
    });
    let one_line = !text.trim_end().contains('\n');
    let reads: Vec<Read> = trees.map(|tree| tree.into_read(one_line)).collect();
    if reads.len() > limits.documents {
        let message = format!("the text has {} documents, more than {}", reads.len(), limits.documents);
        return Err(Problem::new(WHOLE, message, Some("send them in several parts".to_owned())));
    }
    Ok(reads)
}

fn yaml(text: &str, limits: &Limits) -> Result<Vec<Tree>, Problem> {
    let read = serde_saphyr::from_multiple_with_options::<Marked<true>>(text, options(limits));
    let error = match read {
        Ok(trees) => return Ok(trees.into_iter().map(|Marked(tree)| tree).collect()),
        Err(error) => error,
    };
    let fault = error.render_with_formatter(&UserMessageFormatter);
    // The place is told in front of the fault, once.
    let fault = fault.split(" at line ").next().unwrap_or_default();
    let fault = fault.strip_suffix(" (defined").unwrap_or(fault);
    let Some(location) = error.location().filter(|location| location.line() > 0) else {
        return Err(Problem::new(WHOLE, fault, None));
    };
    let (line, column) = (location.line(), location.column());
    let source = usize::try_from(line - 1).ok().and_then(|line| text.lines().nth(line)).unwrap_or_default();
    Err(Problem::new(WHOLE, format!("line {line}, column {column}: {fault}: `{}`", shown(source.trim())), None))
}

/// JSON that is not also YAML: values without a separator between them, escapes that only JSON has. `None` where the
/// text is better called bad YAML.
fn json(text: &str, limits: &Limits) -> Option<Result<Vec<Tree>, Problem>> {
    if !text.trim_start().starts_with(['{', '[']) {
        return None;
    }
    let trees = serde_json::Deserializer::from_str(text).into_iter::<Marked<false>>();
    let trees: Result<Vec<Tree>, _> = trees.map(|tree| tree.map(|Marked(tree)| tree)).collect();
    match trees {
        Ok(trees) => {
            let nodes: usize = trees.iter().map(Tree::nodes).sum();
            let within = nodes <= limits.nodes && trees.iter().all(|tree| tree.depth() <= limits.depth);
            within.then_some(Ok(trees))
        }
        Err(error) if error.is_data() => Some(Err(Problem::new(WHOLE, error.to_string(), None))),
        Err(_) => None,
    }
}

/// Limits for the YAML reader. Values and bytes count once for every place an alias puts them, so that what aliases
/// unfold to is within the limits of a text without any.
fn options(limits: &Limits) -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: limits.depth,
            flow_nesting_limit: limits.depth,
            max_documents: limits.documents.saturating_add(1),
            max_nodes: limits.nodes,
            max_events: limits.nodes.saturating_mul(3),
            max_anchors: limits.aliases,
            max_aliases: limits.aliases,
            max_merge_keys: limits.aliases,
            max_total_scalar_bytes: limits.text_bytes,
            max_total_comment_bytes: limits.text_bytes,
            max_recorded_anchor_events: limits.nodes,
            max_recorded_anchor_bytes: limits.text_bytes,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: limits.nodes,
            max_replay_stack_depth: 4,
            max_alias_expansions_per_anchor: limits.aliases,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Merge,
        non_finite_float_policy: NonFiniteFloatPolicy::Reject,
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

/// A value with the line it begins on, counted from 1; 0 where that is not known.
#[derive(Debug)]
struct Tree {
    shape: Shape,
    line: u32,
}

#[derive(Debug)]
enum Shape {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Tree>),
    /// Keys in the order written, each with its line.
    Object(Vec<(String, u32, Tree)>),
}

impl Tree {
    fn depth(&self) -> usize {
        self.children().map(Self::depth).max().map_or(0, |depth| depth + 1)
    }

    fn nodes(&self) -> usize {
        1 + self.children().map(Self::nodes).sum::<usize>()
    }

    fn children(&self) -> Box<dyn Iterator<Item = &Self> + '_> {
        match &self.shape {
            Shape::Null | Shape::Bool(_) | Shape::Number(_) | Shape::Text(_) => Box::new(std::iter::empty()),
            Shape::List(items) => Box::new(items.iter()),
            Shape::Object(entries) => Box::new(entries.iter().map(|(_, _, tree)| tree)),
        }
    }

    fn into_read(self, one_line: bool) -> Read {
        let mut lines = SourceLines::default();
        lines.note("", self.line);
        let value = settled(self.into_value("", &mut lines));
        Read { value, lines: if one_line { SourceLines::default() } else { lines } }
    }

    fn into_value(self, path: &str, lines: &mut SourceLines) -> Value {
        match self.shape {
            Shape::Null => Value::Null,
            Shape::Bool(fact) => Value::Bool(fact),
            Shape::Number(number) => Value::Number(number),
            Shape::Text(text) => Value::String(text),
            Shape::List(items) => {
                let mut values = Vec::with_capacity(items.len());
                for (index, tree) in items.into_iter().enumerate() {
                    let path = item(path, index);
                    lines.note(&path, tree.line);
                    values.push(tree.into_value(&path, lines));
                }
                Value::Array(values)
            }
            Shape::Object(entries) => {
                let mut map = Map::new();
                for (key, line, tree) in entries {
                    let path = join(path, &key);
                    lines.note(&path, line);
                    map.insert(key, tree.into_value(&path, lines));
                }
                Value::Object(map)
            }
        }
    }
}

/// A tree being read. With `LINES` its values and keys carry the lines that only `serde_saphyr` knows.
struct Marked<const LINES: bool>(Tree);

/// As [`Marked`], without its own line.
struct MarkedShape<const LINES: bool>(Shape);

impl<'de, const LINES: bool> Deserialize<'de> for Marked<LINES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if LINES {
            let spanned = Spanned::<MarkedShape<LINES>>::deserialize(deserializer)?;
            return Ok(Self(Tree { line: line_of(&spanned), shape: spanned.value.0 }));
        }
        let MarkedShape(shape) = MarkedShape::<LINES>::deserialize(deserializer)?;
        Ok(Self(Tree { line: 0, shape }))
    }
}

impl<'de, const LINES: bool> Deserialize<'de> for MarkedShape<LINES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShapeVisitor::<LINES>).map(Self)
    }
}

struct ShapeVisitor<const LINES: bool>;

impl<const LINES: bool> ShapeVisitor<LINES> {
    fn next_key<'de, A: MapAccess<'de>>(access: &mut A) -> Result<Option<(String, u32)>, A::Error> {
        if LINES {
            let key = access.next_key::<Spanned<String>>()?;
            return Ok(key.map(|key| (line_of(&key), key)).map(|(line, key)| (key.value, line)));
        }
        Ok(access.next_key::<String>()?.map(|key| (key, 0)))
    }
}

impl<'de, const LINES: bool> Visitor<'de> for ShapeVisitor<LINES> {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Shape, E> {
        Ok(Shape::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Shape, E> {
        Ok(Shape::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, fact: bool) -> Result<Shape, E> {
        Ok(Shape::Bool(fact))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Shape, E> {
        Ok(Shape::Number(number.into()))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Shape, E> {
        Ok(Shape::Number(number.into()))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Shape, E> {
        Number::from_f64(number).map(Shape::Number).ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Shape, E> {
        Ok(Shape::Text(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Shape, E> {
        Ok(Shape::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Shape, A::Error> {
        let mut items = Vec::new();
        while let Some(Marked(tree)) = access.next_element::<Marked<LINES>>()? {
            items.push(tree);
        }
        Ok(Shape::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Shape, A::Error> {
        let mut entries: Vec<(String, u32, Tree)> = Vec::new();
        let mut seen = HashSet::new();
        while let Some((key, line)) = Self::next_key(&mut access)? {
            if !seen.insert(key.clone()) {
                return Err(de::Error::custom(format_args!("duplicate mapping key: {}", shown(&key))));
            }
            let Marked(tree) = access.next_value::<Marked<LINES>>()?;
            entries.push((key, line, tree));
        }
        Ok(Shape::Object(entries))
    }
}

fn line_of<T>(spanned: &Spanned<T>) -> u32 {
    u32::try_from(spanned.referenced.line()).unwrap_or(0)
}
