//! Holds an outline against the schema: names, kinds of values, repetitions.

use std::collections::HashMap;
use std::ops::Range;

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind as Type, MessageDescriptor};

use super::hint;
use super::lex::{Bad, Kind};
use super::outline::{Field, Scalar, Value};

/// Where each field of a file stands, by path (`model.ssd.num_classes`, `eval_input_reader[1].shuffle`).
pub(super) type Places = HashMap<String, usize>;

/// Every mistake in `fields`, and the place of every field.
pub(super) fn check(source: &str, fields: &[Field], message: &MessageDescriptor) -> (Vec<Bad>, Places) {
    let mut checker = Checker {
        source,
        problems: Vec::new(),
        places: Places::new(),
    };
    checker.message(fields, message, "");
    (checker.problems, checker.places)
}

struct Checker<'a> {
    source: &'a str,
    problems: Vec<Bad>,
    places: Places,
}

impl Checker<'_> {
    fn bad(&mut self, span: &Range<usize>, message: String, hint: Option<String>) {
        self.problems.push(Bad {
            span: span.clone(),
            message,
            hint,
        });
    }

    fn text(&self, span: &Range<usize>) -> &str {
        self.source.get(span.clone()).unwrap_or_default()
    }

    fn message(&mut self, fields: &[Field], message: &MessageDescriptor, path: &str) {
        let mut seen: HashMap<&str, &Field> = HashMap::new();
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for field in fields {
            let Some(descriptor) = self.known(field, message) else {
                continue;
            };
            let here = if path.is_empty() {
                field.name.clone()
            } else {
                format!("{path}.{}", field.name)
            };
            if descriptor.is_list() || descriptor.is_map() {
                let count = counts.entry(&field.name).or_default();
                let items = match &field.value {
                    Value::List { items, .. } => items.as_slice(),
                    single => std::slice::from_ref(single),
                };
                for item in items {
                    let here = format!("{here}[{count}]");
                    self.places.insert(here.clone(), field.name_span.start);
                    self.value(item, field, &descriptor, &here);
                    *count += 1;
                }
                self.places.entry(here).or_insert(field.name_span.start);
            } else {
                self.once(field, &descriptor, &seen, message);
                seen.insert(&field.name, field);
                self.places.entry(here.clone()).or_insert(field.name_span.start);
                self.value(&field.value, field, &descriptor, &here);
            }
        }
    }

    fn known(&mut self, field: &Field, message: &MessageDescriptor) -> Option<FieldDescriptor> {
        if field.bracketed {
            let text = format!("unknown extension `{}` of `{}`", field.name, message.name());
            self.bad(
                &field.name_span,
                text,
                Some("extensions of the schema are not read; remove it".to_owned()),
            );
            return None;
        }
        let found = message.get_field_by_name(&field.name);
        if found.is_none() {
            let text = if message.full_name().ends_with(".TrainEvalPipelineConfig") {
                format!("unknown field `{}` at the top level", field.name)
            } else {
                format!("unknown field `{}` in `{}`", field.name, message.name())
            };
            self.bad(&field.name_span, text, hint::unknown_field(&field.name, message));
        }
        found
    }

    /// A field that is not repeated stands once, and of a oneof only one field.
    fn once(
        &mut self,
        field: &Field,
        descriptor: &FieldDescriptor,
        seen: &HashMap<&str, &Field>,
        message: &MessageDescriptor,
    ) {
        let line = |at: usize| super::problem::place(self.source, at).0;
        if let Some(first) = seen.get(field.name.as_str()) {
            let text = format!(
                "`{}` is set twice, first on line {}",
                field.name,
                line(first.name_span.start)
            );
            self.bad(&field.name_span, text, Some("keep one of them".to_owned()));
            return;
        }
        let Some(oneof) = descriptor.containing_oneof() else {
            return;
        };
        let other = oneof.fields().find_map(|sibling| seen.get(sibling.name()).copied());
        if let Some(other) = other {
            let text = format!(
                "`{}` and `{}` (line {}) exclude each other in `{}`",
                field.name,
                other.name,
                line(other.name_span.start),
                message.name()
            );
            self.bad(&field.name_span, text, Some("keep one of them".to_owned()));
        }
    }

    fn value(&mut self, value: &Value, field: &Field, descriptor: &FieldDescriptor, path: &str) {
        let name = &field.name;
        match (descriptor.kind(), value) {
            (Type::Message(message), Value::Message { fields, .. }) => self.message(fields, &message, path),
            (Type::Message(message), other) => {
                let text = format!("`{name}` is a message (`{}`), not a value", message.name());
                self.bad(&other.span(), text, Some(format!("write `{name} {{ … }}`")));
            }
            (_, Value::Message { span, .. }) if *span == field.name_span => {} // has no value; told already
            (expected, Value::Message { .. }) => {
                let text = format!("`{name}` is {}, not a message", describe(&expected));
                self.bad(&field.name_span, text, Some(format!("write `{name}: VALUE`")));
            }
            (_, Value::List { span, .. }) => {
                let text = format!("`{name}` takes one value, not a list");
                self.bad(span, text, None);
            }
            (expected, Value::Scalar(scalar)) => self.scalar(scalar, name, &expected),
        }
    }

    fn scalar(&mut self, scalar: &Scalar, name: &str, expected: &Type) {
        let text = self.text(&scalar.span).to_owned();
        let wrong = |hint: Option<String>| (format!("`{name}` is {}, not {text}", describe(expected)), hint);
        let refusal = match expected {
            Type::String | Type::Bytes => {
                (scalar.kind != Kind::Text).then(|| wrong(Some(format!("put it in quotes: `{name}: \"{text}\"`"))))
            }
            Type::Bool => {
                let fine = matches!(
                    text.as_str(),
                    "true" | "false" | "True" | "False" | "t" | "f" | "0" | "1"
                );
                let near = hint::nearest(text.trim_matches(['"', '\'']), ["true", "false"]);
                (!fine).then(|| {
                    wrong(Some(
                        near.map_or("write true or false".to_owned(), |near| format!("write {near}")),
                    ))
                })
            }
            Type::Float | Type::Double => (!is_float(scalar, &text)).then(|| wrong(unquoted(scalar, &text))),
            Type::Enum(values) => enum_value(scalar, &text, name, values),
            Type::Message(_) => None,
            integer => whole(scalar, &text, integer).err().map(|why| match why {
                NotWhole::Form => wrong(unquoted(scalar, &text)),
                NotWhole::Range(range) => (
                    format!("`{name}` is {}, and {text} is out of its range", describe(integer)),
                    Some(range),
                ),
            }),
        };
        if let Some((message, hint)) = refusal {
            self.bad(&scalar.span, message, hint);
        }
    }
}

fn enum_value(scalar: &Scalar, text: &str, name: &str, values: &EnumDescriptor) -> Option<(String, Option<String>)> {
    let known: Vec<_> = values.values().map(|value| value.name().to_owned()).collect();
    let fine = match scalar.kind {
        Kind::Word => !scalar.negative && known.iter().any(|known| known == text),
        Kind::Number => text
            .parse::<i32>()
            .is_ok_and(|number| values.get_value(number).is_some()),
        _ => false,
    };
    if fine {
        return None;
    }
    let bare = text.trim_matches(['"', '\'']);
    let hint = match hint::nearest(bare, known.iter().map(String::as_str)) {
        Some(near) if scalar.kind == Kind::Text && near == bare => format!("write {near} without quotes"),
        Some(near) => format!("did you mean `{near}`? (one of {})", known.join(", ")),
        None => format!("one of {}", known.join(", ")),
    };
    Some((format!("`{text}` is not a value of `{name}`"), Some(hint)))
}

fn describe(kind: &Type) -> &'static str {
    match kind {
        Type::String | Type::Bytes => "a text",
        Type::Bool => "a boolean",
        Type::Float | Type::Double => "a number",
        Type::Enum(_) => "a name from a list",
        Type::Message(_) => "a message",
        Type::Uint32 | Type::Uint64 | Type::Fixed32 | Type::Fixed64 => "a whole number from 0",
        _ => "a whole number",
    }
}

fn unquoted(scalar: &Scalar, text: &str) -> Option<String> {
    let bare = text.trim_matches(['"', '\'']);
    (scalar.kind == Kind::Text && bare.parse::<f64>().is_ok()).then(|| format!("write {bare} without quotes"))
}

fn is_float(scalar: &Scalar, text: &str) -> bool {
    let unsigned = text.trim_start_matches('-').trim_start();
    match scalar.kind {
        Kind::Word => ["inf", "infinity", "nan"]
            .iter()
            .any(|word| unsigned.eq_ignore_ascii_case(word)),
        Kind::Number => {
            let digits = unsigned.strip_suffix(['f', 'F']).unwrap_or(unsigned);
            let octal = digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse::<f64>().is_ok() && !octal
        }
        _ => false,
    }
}

enum NotWhole {
    Form,
    Range(String),
}

fn whole(scalar: &Scalar, text: &str, kind: &Type) -> Result<(), NotWhole> {
    let unsigned = text.trim_start_matches('-').trim_start();
    if scalar.kind != Kind::Number {
        return Err(NotWhole::Form);
    }
    let (digits, radix) = match unsigned.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&unsigned[2..], 16),
        [b'0', _, ..] => (&unsigned[1..], 8),
        _ => (unsigned, 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(NotWhole::Form);
    }
    let (low, high): (i128, i128) = match kind {
        Type::Uint32 | Type::Fixed32 => (0, u32::MAX.into()),
        Type::Uint64 | Type::Fixed64 => (0, u64::MAX.into()),
        Type::Int64 | Type::Sint64 | Type::Sfixed64 => (i64::MIN.into(), i64::MAX.into()),
        _ => (i32::MIN.into(), i32::MAX.into()),
    };
    let magnitude = i128::from_str_radix(digits, radix).ok();
    let value = magnitude.map(|value| if scalar.negative { -value } else { value });
    if value.is_some_and(|value| (low..=high).contains(&value)) {
        Ok(())
    } else {
        Err(NotWhole::Range(format!("it runs from {low} to {high}")))
    }
}
