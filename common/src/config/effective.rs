//! A message with the schema's defaults filled in, as protobuf text and as JSON.
//!
//! Fields stand in the schema's order and maps in the order of their keys, so equal configurations give equal text
//! whatever was spelled out and whatever left to the defaults. Absent messages stay absent: their presence means
//! something (a hard example miner, an augmentation). So do scalars without a default in the schema.

use std::fmt::Write as _;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage as _, Value};
use serde_json::{Map, Value as Json};

use super::schema;

/// Protobuf text, two blanks a level; reads back as the same configuration.
pub(crate) fn text(message: &DynamicMessage) -> String {
    let mut out = String::new();
    write_message(&mut out, message, 0);
    out
}

/// JSON under the schema's names; enums by name, maps as objects.
pub(crate) fn json(message: &DynamicMessage) -> Json {
    let mut object = Map::new();
    for (field, value) in fields(message) {
        let kind = field.kind();
        let json = match &value {
            Value::List(items) => Json::Array(items.iter().map(|item| json_value(item, &kind)).collect()),
            Value::Map(map) => {
                let kind = map_value_kind(&kind);
                let mut entries: Vec<_> = map
                    .iter()
                    .map(|(key, value)| (key_text(key), json_value(value, &kind)))
                    .collect();
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                Json::Object(entries.into_iter().collect())
            }
            single => json_value(single, &kind),
        };
        object.insert(field.name().to_owned(), json);
    }
    Json::Object(object)
}

/// Fields that are set or have a default, with their values.
fn fields(message: &DynamicMessage) -> impl Iterator<Item = (FieldDescriptor, Value)> + '_ {
    let descriptor = message.descriptor();
    let fields: Vec<_> = descriptor.fields().collect();
    fields.into_iter().filter_map(|field| {
        let shown = message.has_field(&field) || (field.containing_oneof().is_none() && schema::has_default(&field));
        shown.then(|| {
            let value = message.get_field(&field).into_owned();
            (field, value)
        })
    })
}

fn write_message(out: &mut String, message: &DynamicMessage, depth: usize) {
    for (field, value) in fields(message) {
        let kind = field.kind();
        match &value {
            Value::List(items) => {
                for item in items {
                    write_field(out, field.name(), item, &kind, depth);
                }
            }
            Value::Map(map) => {
                let kind = map_value_kind(&kind);
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| key_text(key));
                for (key, value) in entries {
                    let pad = "  ".repeat(depth);
                    let key = match key {
                        MapKey::String(text) => quoted(text.as_bytes()),
                        other => key_text(other),
                    };
                    let _ = writeln!(out, "{pad}{} {{\n{pad}  key: {key}", field.name());
                    write_field(out, "value", value, &kind, depth + 1);
                    let _ = writeln!(out, "{pad}}}");
                }
            }
            single => write_field(out, field.name(), single, &kind, depth),
        }
    }
}

fn write_field(out: &mut String, name: &str, value: &Value, kind: &Kind, depth: usize) {
    let pad = "  ".repeat(depth);
    let Value::Message(message) = value else {
        let _ = writeln!(out, "{pad}{name}: {}", scalar(value, kind));
        return;
    };
    let mut body = String::new();
    write_message(&mut body, message, depth + 1);
    let _ = if body.is_empty() {
        writeln!(out, "{pad}{name} {{}}")
    } else {
        writeln!(out, "{pad}{name} {{\n{body}{pad}}}")
    };
}

/// A value that is no message, list or map, as protobuf text.
pub(crate) fn scalar(value: &Value, kind: &Kind) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::I32(value) => value.to_string(),
        Value::I64(value) => value.to_string(),
        Value::U32(value) => value.to_string(),
        Value::U64(value) => value.to_string(),
        Value::F32(value) => float(f64::from(*value), format!("{value:?}")),
        Value::F64(value) => float(*value, format!("{value:?}")),
        Value::String(text) => quoted(text.as_bytes()),
        Value::Bytes(bytes) => quoted(bytes),
        Value::EnumNumber(number) => enum_name(*number, kind),
        Value::Message(_) | Value::List(_) | Value::Map(_) => "{ … }".to_owned(),
    }
}

fn float(value: f64, shortest: String) -> String {
    match value {
        value if value.is_nan() => "nan".to_owned(),
        value if value.is_infinite() => if value > 0.0 { "inf" } else { "-inf" }.to_owned(),
        _ => shortest,
    }
}

fn enum_name(number: i32, kind: &Kind) -> String {
    let Kind::Enum(values) = kind else {
        return number.to_string();
    };
    values
        .get_value(number)
        .map_or_else(|| number.to_string(), |value| value.name().to_owned())
}

pub(super) fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if c.is_ascii_control() => {
                    let _ = write!(out, "\\{:03o}", c as u32);
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\{byte:03o}");
        }
    }
    out.push('"');
    out
}

fn map_value_kind(kind: &Kind) -> Kind {
    match kind {
        Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
        other => other.clone(),
    }
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

fn json_value(value: &Value, kind: &Kind) -> Json {
    match value {
        Value::Bool(value) => Json::Bool(*value),
        Value::I32(value) => (*value).into(),
        Value::I64(value) => (*value).into(),
        Value::U32(value) => (*value).into(),
        Value::U64(value) => (*value).into(),
        // By way of the shortest decimal, so that 0.6 stays 0.6.
        Value::F32(number) => number
            .to_string()
            .parse::<f64>()
            .map_or(Json::Null, |number| json_float(number, value, kind)),
        Value::F64(number) => json_float(*number, value, kind),
        Value::String(text) => text.clone().into(),
        Value::Message(message) => json(message),
        other => scalar(other, kind).into(),
    }
}

/// JSON has no infinities; they are written as texts.
fn json_float(number: f64, value: &Value, kind: &Kind) -> Json {
    serde_json::Number::from_f64(number).map_or_else(|| scalar(value, kind).into(), Json::Number)
}
