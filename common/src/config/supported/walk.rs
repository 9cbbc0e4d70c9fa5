//! The walk over a configuration.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _, Value};

use super::super::text::hint;
use super::super::{PipelineConfig, effective, schema};
use super::rules::{self, listed};
use super::{Mode, Refusal, Support};

pub(super) fn walk(config: &PipelineConfig, message: &DynamicMessage, mode: Mode) -> Support {
    let mut walk = Walk {
        config,
        mode,
        support: Support::default(),
    };
    walk.message(message, "");
    walk.readers(message);
    walk.support
}

struct Walk<'a> {
    config: &'a PipelineConfig,
    mode: Mode,
    support: Support,
}

impl Walk<'_> {
    fn refuse(&mut self, path: &str, message: String, hint: String) {
        // Left to its default, a field has no line; its message has.
        let mut at = path;
        let mut line = self.config.line(at);
        while let (None, Some(dot)) = (line, at.rfind('.')) {
            at = &at[..dot];
            line = self.config.line(at);
        }
        let file = self.config.name().to_owned();
        self.support.refused.push(Refusal {
            file,
            line,
            path: path.to_owned(),
            message,
            hint,
        });
    }

    /// Parts of the top level that the mode does not use are not looked at.
    fn concerns(&self, path: &str) -> bool {
        match path {
            "train_config" | "train_input_reader" => self.mode != Mode::Eval,
            "eval_config" | "eval_input_reader" => self.mode != Mode::Train,
            _ => true,
        }
    }

    fn message(&mut self, message: &DynamicMessage, path: &str) {
        let descriptor = message.descriptor();
        self.required(message, &descriptor, path);
        for field in descriptor.fields() {
            let here = if path.is_empty() {
                field.name().to_owned()
            } else {
                format!("{path}.{}", field.name())
            };
            if self.concerns(&here) {
                self.field(message, &descriptor, &field, &here);
            }
        }
    }

    fn field(&mut self, message: &DynamicMessage, owner: &MessageDescriptor, field: &FieldDescriptor, path: &str) {
        let key = format!("{}.{}", owner.name(), field.name());
        let set = message.has_field(field);
        let value = message.get_field(field);
        let only = |wanted: &str| {
            rules::ONLY
                .iter()
                .find(|(only, _)| *only == wanted)
                .map(|(_, allowed)| *allowed)
        };
        if let Some(allowed) = only(path).or_else(|| only(&key)) {
            if set || schema::has_default(field) {
                self.only(&key, path, &effective::scalar(&value, &field.kind()), set, allowed);
            }
            return;
        }
        if !set {
            return;
        }
        let (owner, name) = (owner.name(), field.name());
        if listed(rules::HONOURED, owner, name) {
            for (item, at) in items(&value, path) {
                if let Value::Message(message) = item {
                    self.message(message, &at);
                } else {
                    self.range(&key, &at, item, &field.kind());
                    self.local(&key, &at, item);
                    self.metric(&key, &at, item);
                }
            }
            return;
        }
        if field.kind().as_message().is_none() && *value == field.default_value() {
            return;
        }
        if listed(rules::IGNORED, owner, name) {
            self.ignored(path);
        } else if listed(rules::WARNED, owner, name) {
            self.support
                .warnings
                .push(format!("{path} is not supported yet and has no effect"));
        } else {
            self.unsupported(&key, path, field, &value);
        }
    }

    fn only(&mut self, key: &str, path: &str, value: &str, set: bool, allowed: &[&str]) {
        let bare = value.trim_matches('"');
        if allowed.contains(&bare) {
            return;
        }
        let default = if set { "" } else { " (the default)" };
        let quote = if value.starts_with('"') { "\"" } else { "" };
        let supported: Vec<_> = allowed.iter().map(|value| format!("{quote}{value}{quote}")).collect();
        let hint = note(key).unwrap_or_else(|| format!("supported: {}", supported.join(", ")));
        self.refuse(path, format!("{value}{default} is not supported yet"), hint);
    }

    fn unsupported(&mut self, key: &str, path: &str, field: &FieldDescriptor, value: &Value) {
        let siblings: Vec<_> = field
            .containing_oneof()
            .map(|oneof| oneof.fields().collect::<Vec<_>>())
            .unwrap_or_default()
            .into_iter()
            .filter(|sibling| listed(rules::HONOURED, sibling.parent_message().name(), sibling.name()))
            .map(|sibling| sibling.name().to_owned())
            .collect();
        let hint = note(key).unwrap_or_else(|| {
            if !siblings.is_empty() {
                format!("supported: {}", siblings.join(", "))
            } else if schema::has_default(field) {
                let default = effective::scalar(&field.default_value(), &field.kind());
                format!("supported: {default}, the default; remove the line")
            } else {
                "remove it".to_owned()
            }
        });
        let message = match value {
            Value::Message(_) | Value::List(_) | Value::Map(_) => "not supported yet".to_owned(),
            scalar => format!("{} is not supported yet", effective::scalar(scalar, &field.kind())),
        };
        self.refuse(path, message, hint);
    }

    fn ignored(&mut self, path: &str) {
        let mut bare = String::new();
        let mut inside = false;
        for c in path.chars() {
            inside = (inside || c == '[') && c != ']';
            if !inside && c != ']' {
                bare.push(c);
            }
        }
        if !self.support.ignored.contains(&bare) {
            self.support.ignored.push(bare);
        }
    }

    fn required(&mut self, message: &DynamicMessage, descriptor: &MessageDescriptor, path: &str) {
        let Some((_, names)) = rules::REQUIRED.iter().find(|(owner, _)| *owner == descriptor.name()) else {
            return;
        };
        for name in names.split_whitespace() {
            let oneof = descriptor.oneofs().find(|oneof| oneof.name() == name);
            let present = match &oneof {
                Some(oneof) => oneof.fields().any(|field| message.has_field(&field)),
                None => message
                    .get_field_by_name(name)
                    .is_some_and(|value| given(message, name, &value)),
            };
            if present {
                continue;
            }
            let here = match (&oneof, path) {
                (None, "") => name.to_owned(),
                (None, path) => format!("{path}.{name}"),
                (Some(_), path) => path.to_owned(),
            };
            let what = match &oneof {
                Some(_) => "nothing is chosen",
                None => "missing",
            };
            let hint = match oneof {
                Some(oneof) => {
                    let built = oneof
                        .fields()
                        .filter(|field| listed(rules::HONOURED, descriptor.name(), field.name()));
                    let names: Vec<_> = built.map(|field| field.name().to_owned()).collect();
                    format!("supported: {}", names.join(", "))
                }
                None => format!("`{}` needs `{name}`", descriptor.name()),
            };
            self.refuse(&here, what.to_owned(), hint);
        }
    }

    /// The parts of the top level that a mode cannot do without.
    fn readers(&mut self, message: &DynamicMessage) {
        for (name, mode) in [
            ("train_config", Mode::Train),
            ("train_input_reader", Mode::Train),
            ("eval_input_reader", Mode::Eval),
        ] {
            let wanted = self.mode == mode || self.mode == Mode::TrainAndEval;
            if wanted && !message.has_field_by_name(name) {
                let what = if mode == Mode::Train { "training" } else { "evaluation" };
                self.refuse(name, "missing".to_owned(), format!("{what} needs `{name} {{ … }}`"));
            }
        }
        let readers = self.config.eval_input_readers().len();
        if self.mode != Mode::Train && readers > 1 {
            let text =
                format!("of {readers} eval_input_readers the first is evaluated; more than one is not supported yet");
            self.support.warnings.push(text);
        }
    }

    fn range(&mut self, key: &str, path: &str, value: &Value, kind: &Kind) {
        let Some((_, low, high)) = rules::RANGES.iter().find(|(ranged, ..)| *ranged == key) else {
            return;
        };
        let number = match value {
            Value::I32(number) => f64::from(*number),
            Value::U32(number) => f64::from(*number),
            Value::F32(number) => f64::from(*number),
            _ => return,
        };
        if (*low..=*high).contains(&number) && number.is_finite() {
            return;
        }
        let right = match (*low == f64::MIN_POSITIVE, high.is_finite()) {
            (true, _) => "a number above 0".to_owned(),
            (false, true) => format!("{low} to {high}"),
            (false, false) => format!("{low} or more"),
        };
        self.refuse(
            path,
            format!("{} is out of range", effective::scalar(value, kind)),
            format!("allowed: {right}"),
        );
    }

    fn local(&mut self, key: &str, path: &str, value: &Value) {
        let Value::String(file) = value else { return };
        let is_known = file.starts_with("file://") || coati_storage::is_remote(std::path::Path::new(file));
        if rules::LOCAL.contains(&key) && file.contains("://") && !is_known {
            self.refuse(
                path,
                format!("{file:?} is not supported yet"),
                "a local path, gs://BUCKET/KEY or s3://BUCKET/KEY".to_owned(),
            );
        }
    }

    fn metric(&mut self, key: &str, path: &str, value: &Value) {
        let Value::String(name) = value else { return };
        if key != "EvalConfig.metrics_set" || rules::METRICS.contains(&name.as_str()) {
            return;
        }
        let supported = rules::METRICS.join(", ");
        if rules::OTHER_METRICS.contains(&name.as_str()) {
            self.support.warnings.push(format!(
                "{path}: {name} is not supported yet and left out; supported: {supported}"
            ));
            return;
        }
        let near = hint::nearest(name, rules::METRICS.iter().chain(rules::OTHER_METRICS).copied());
        let hint = near.map_or(format!("supported: {supported}"), |near| {
            format!("did you mean `{near}`?")
        });
        self.refuse(path, format!("there is no metric {name:?}"), hint);
    }
}

/// Set, and not to an empty text or list.
fn given(message: &DynamicMessage, name: &str, value: &Value) -> bool {
    message.has_field_by_name(name)
        && match value {
            Value::String(text) => !text.is_empty(),
            Value::List(items) => items.iter().all(|item| item.as_str() != Some("")),
            _ => true,
        }
}

fn note(key: &str) -> Option<String> {
    rules::NOTES
        .iter()
        .find(|(noted, _)| *noted == key)
        .map(|(_, note)| (*note).to_owned())
}

/// A value, or the values of a list, with their paths.
fn items<'a>(value: &'a Value, path: &str) -> Vec<(&'a Value, String)> {
    match value {
        Value::List(items) => items
            .iter()
            .enumerate()
            .map(|(index, item)| (item, format!("{path}[{index}]")))
            .collect(),
        single => vec![(single, path.to_owned())],
    }
}
