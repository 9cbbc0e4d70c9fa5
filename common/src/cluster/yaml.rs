//! A YAML file as a tree that knows where everything stands, so that each complaint can point at its line.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde_saphyr::{Location, Spanned};

use super::suggest;

/// A complaint about a place in a file that a person wrote.
///
/// Displayed as `path:line:column: message`, the line with a marker below it, and a `hint:` line where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub path: PathBuf,
    /// Line, from 1; 0 when the complaint is about the whole file.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Characters to underline.
    pub width: usize,
    /// The line itself.
    pub text: String,
    /// What is wrong, with the value.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}: {}", self.path.display(), self.message)?;
        } else {
            writeln!(
                f,
                "{}:{}:{}: {}",
                self.path.display(),
                self.line,
                self.column,
                self.message
            )?;
            let number = self.line.to_string();
            // Tabs are kept in the marker's indent, so that it stands below its text on any terminal.
            let indent: String = self
                .text
                .chars()
                .take(self.column - 1)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            writeln!(f, "  {number} | {}", self.text)?;
            write!(
                f,
                "  {:width$} | {indent}{}",
                "",
                "^".repeat(self.width.max(1)),
                width = number.len()
            )?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Where a node begins and how many characters of its line it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    line: usize,
    column: usize,
    width: usize,
}

/// A value and where it stands.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) value: Value,
    /// A plain scalar as it was typed: `1.10` stays `1.10`.
    raw: String,
}

#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Position, Node)>),
}

impl Value {
    fn describe(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "a number",
            Self::Float => "a decimal number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// A parsed file.
pub(crate) struct Document {
    path: PathBuf,
    lines: Vec<String>,
    pub(crate) root: Node,
}

impl Document {
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, Fault> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let mut document = Self {
            path: path.to_owned(),
            lines,
            root: Node {
                at: Position {
                    line: 0,
                    column: 0,
                    width: 0,
                },
                value: Value::Null,
                raw: String::new(),
            },
        };
        match serde_saphyr::from_str::<Spanned<Raw>>(text) {
            Ok(raw) => {
                document.root = node(raw, text);
                Ok(document)
            }
            Err(error) => {
                let at = error
                    .location()
                    .map_or(document.root.at, |location| position(&location));
                let mut message = error.without_snippet().to_string();
                if let Some(end) = message.rfind(" at line ") {
                    message.truncate(end);
                }
                if let Some(end) = message.find(", set DuplicateKeyPolicy") {
                    message.truncate(end);
                }
                if let Some(end) = message.find("; use from_str_multiple") {
                    message.truncate(end);
                }
                Err(document.fault(at, message, None))
            }
        }
    }

    pub(crate) fn fault(&self, at: Position, message: impl Into<String>, hint: Option<String>) -> Fault {
        let text = at
            .line
            .checked_sub(1)
            .and_then(|index| self.lines.get(index))
            .cloned()
            .unwrap_or_default();
        let column = at.column.max(1);
        let room = text.chars().count().saturating_sub(column - 1).max(1);
        Fault {
            path: self.path.clone(),
            line: at.line,
            column,
            width: at.width.clamp(1, room),
            text,
            message: message.into(),
            hint,
        }
    }

    fn expected(&self, node: &Node, key: &str, what: &str) -> Fault {
        let found = match &node.value {
            Value::Text(text) => format!("`{text}`"),
            Value::Int(_) | Value::Float | Value::Bool(_) => format!("`{}`", node.raw),
            other => other.describe().to_owned(),
        };
        self.fault(node.at, format!("`{key}` must be {what}, found {found}"), None)
    }

    /// Text. What YAML takes for a number or a boolean counts as it was typed, so `runtimeVersion: 1.10` and `network: n`
    /// need no quotes.
    pub(crate) fn text(&self, node: &Node, key: &str) -> Result<String, Fault> {
        match &node.value {
            Value::Text(text) => Ok(text.clone()),
            Value::Int(_) | Value::Float | Value::Bool(_) if !node.raw.is_empty() => Ok(node.raw.clone()),
            _ => Err(self.expected(node, key, "text")),
        }
    }

    pub(crate) fn text_list(&self, node: &Node, key: &str) -> Result<Vec<String>, Fault> {
        match &node.value {
            Value::List(items) => items.iter().map(|item| self.text(item, &format!("{key}[]"))).collect(),
            _ => Err(self.expected(node, key, "a list of texts")),
        }
    }

    pub(crate) fn boolean(&self, node: &Node, key: &str) -> Result<bool, Fault> {
        match node.value {
            Value::Bool(value) => Ok(value),
            _ => Err(self.expected(node, key, "true or false")),
        }
    }

    /// A whole number in `low..=high`. Text is read too: Google's JSON writes 64-bit numbers as `"3"`.
    pub(crate) fn integer(&self, node: &Node, key: &str, low: i128, high: i128) -> Result<i128, Fault> {
        let what = format!("a whole number from {low} to {high}");
        let value = match &node.value {
            Value::Int(value) => Some(*value),
            Value::Text(text) => text.parse().ok(),
            _ => None,
        };
        value
            .filter(|value| (low..=high).contains(value))
            .ok_or_else(|| self.expected(node, key, &what))
    }

    /// A number above 0, whole or not.
    pub(crate) fn positive_number(&self, node: &Node, key: &str) -> Result<f32, Fault> {
        let value = match &node.value {
            Value::Int(_) | Value::Float | Value::Text(_) => node.raw.trim_matches(['"', '\'']).parse().ok(),
            _ => None,
        };
        value
            .filter(|value: &f32| value.is_finite() && *value > 0.0)
            .ok_or_else(|| self.expected(node, key, "a number above 0"))
    }

    pub(crate) fn list<'a>(&self, node: &'a Node, key: &str) -> Result<&'a [Node], Fault> {
        match &node.value {
            Value::List(items) => Ok(items),
            _ => Err(self.expected(node, key, "a list")),
        }
    }

    /// Reads a mapping whose keys are all in `known` (either spelling). `elsewhere` names keys that belong to another
    /// section, for the hint.
    pub(crate) fn fields<'a>(
        &'a self,
        node: &'a Node,
        section: &'a str,
        known: &[&'static str],
        elsewhere: &[(&str, &[&str])],
    ) -> Result<Fields<'a>, Fault> {
        let Value::Map(map) = &node.value else {
            return Err(self.expected(node, section, "a mapping"));
        };
        let mut entries: Vec<(&'static str, Position, &Node)> = Vec::with_capacity(map.len());
        for (key, at, value) in map {
            let snake = suggest::snake_case(key);
            let Some(name) = known.iter().find(|name| suggest::snake_case(name) == snake) else {
                return Err(self.unknown_key(key, *at, section, known, elsewhere));
            };
            if entries.iter().any(|(other, _, _)| other == name) {
                return Err(self.fault(*at, format!("`{name}` is given twice, in two spellings"), None));
            }
            // `key:` without a value is the same as no key.
            if !matches!(value.value, Value::Null) {
                entries.push((name, *at, value));
            }
        }
        Ok(Fields {
            section,
            at: node.at,
            entries,
        })
    }

    fn unknown_key(
        &self,
        key: &str,
        at: Position,
        section: &str,
        known: &[&'static str],
        elsewhere: &[(&str, &[&str])],
    ) -> Fault {
        let message = if section.is_empty() {
            format!("unknown key `{key}`")
        } else {
            format!("unknown key `{key}` in `{section}`")
        };
        let snake = suggest::snake_case(key);
        let home = elsewhere
            .iter()
            .find(|(_, names)| names.iter().any(|name| suggest::snake_case(name) == snake));
        let hint = if let Some((home, _)) = home {
            format!("`{key}` belongs under `{home}:`")
        } else if let Some(near) = suggest::nearest(key, known.iter().copied()) {
            format!(
                "did you mean `{}`?",
                if key.contains('_') {
                    suggest::snake_case(near)
                } else {
                    near.to_owned()
                }
            )
        } else {
            format!("known are {}", known.join(", "))
        };
        self.fault(at, message, Some(hint))
    }
}

/// The entries of a mapping under their canonical names, in the file's order, without those that have no value.
pub(crate) struct Fields<'a> {
    pub(crate) section: &'a str,
    pub(crate) at: Position,
    entries: Vec<(&'static str, Position, &'a Node)>,
}

impl<'a> Fields<'a> {
    pub(crate) fn get(&self, name: &str) -> Option<&'a Node> {
        self.entries
            .iter()
            .find(|(key, _, _)| *key == name)
            .map(|(_, _, node)| *node)
    }

    pub(crate) fn key_position(&self, name: &str) -> Position {
        self.entries
            .iter()
            .find(|(key, _, _)| *key == name)
            .map_or(self.at, |(_, at, _)| *at)
    }

    /// The names that have a value, in the file's order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.entries.iter().map(|(key, _, _)| *key)
    }
}

fn node(raw: Spanned<Raw>, text: &str) -> Node {
    let mut at = position(&raw.referenced);
    let span = raw.referenced.span();
    let typed = span
        .byte_offset()
        .zip(span.byte_len())
        .and_then(|(start, len)| {
            let start = usize::try_from(start).ok()?;
            text.get(start..start.checked_add(usize::try_from(len).ok()?)?)
        })
        .unwrap_or_default();
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Bool(value) => Value::Bool(value),
        Raw::Int(value) => Value::Int(value),
        Raw::Float => Value::Float,
        Raw::Text(value) => Value::Text(value),
        Raw::List(items) => Value::List(items.into_iter().map(|item| node(item, text)).collect()),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let mut at = position(&key.referenced);
                    at.width = key.value.chars().count();
                    (key.value, at, node(value, text))
                })
                .collect(),
        ),
    };
    at.width = typed.lines().next().map_or(1, |line| line.trim_end().chars().count());
    Node {
        at,
        value,
        raw: typed.trim().to_owned(),
    }
}

fn position(location: &Location) -> Position {
    let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    Position {
        line: size(location.line()),
        column: size(location.column()),
        width: 1,
    }
}

/// What serde hands over, before positions are worked out.
enum Raw {
    Null,
    Bool(bool),
    Int(i128),
    Float,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Int(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(i128::try_from(value).map_or(Raw::Float, Raw::Int))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Float)
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key()? {
            entries.push((key, access.next_value()?));
        }
        Ok(Raw::Map(entries))
    }
}
