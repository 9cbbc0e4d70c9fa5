//! Protobuf text as people write it: `pipeline.config` and label maps.
//!
//! Two passes over the same text. The first ([`outline`], [`check`]) only looks for mistakes and tells all of them at
//! their places; prost-reflect then reads the values. What passes the first and not the second is reported with
//! prost-reflect's own words.

mod check;
pub(crate) mod hint;
mod lex;
mod outline;
mod problem;

use std::collections::HashMap;

use miette::Diagnostic as _;
use prost_reflect::{DynamicMessage, MessageDescriptor};

pub use problem::{Problem, Problems};

/// A text in quotes, as protobuf text writes it.
pub(crate) fn quoted(text: &str) -> String {
    super::effective::quoted(text.as_bytes())
}

/// A message read from text, and the line (from 1) of each field that the text sets, by path.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) message: DynamicMessage,
    pub(crate) lines: HashMap<String, usize>,
}

/// Reads `source`, a byte-order mark apart. `name` is the file for the errors.
pub(crate) fn parse(source: &str, name: &str, message: &MessageDescriptor) -> Result<Parsed, Problems> {
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    let (fields, mut bad) = outline::outline(source);
    let (more, places) = check::check(source, &fields, message);
    bad.extend(more);
    bad.sort_by_key(|bad| bad.span.start);
    if bad.is_empty() {
        match DynamicMessage::parse_text_format(message.clone(), source) {
            Ok(message) => {
                let lines = places
                    .into_iter()
                    .map(|(path, at)| (path, problem::place(source, at).0))
                    .collect();
                return Ok(Parsed { message, lines });
            }
            Err(error) => {
                let label = error.labels().and_then(|mut labels| labels.next());
                let span = label.map_or(source.len()..source.len(), |label| {
                    label.offset()..label.offset().saturating_add(label.len())
                });
                bad.push(lex::Bad {
                    span,
                    message: error.to_string(),
                    hint: error.help().map(|help| help.to_string()),
                });
            }
        }
    }
    let problems = bad
        .into_iter()
        .map(|bad| Problem::new(source, &bad.span, bad.message, bad.hint))
        .collect();
    Err(Problems {
        name: name.to_owned(),
        problems,
    })
}

/// Text of a file's bytes, or the reason why it is none.
pub(crate) fn decode(bytes: Vec<u8>, name: &str) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].split(|&byte| byte == b'\n').count();
        let hint = match error.as_bytes() {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "the file is UTF-16; save it as UTF-8",
            _ => "save the file as UTF-8",
        };
        format!("{name}:{line}: byte {at} is not UTF-8 text\nhint: {hint}")
    })
}
#[cfg(test)]
mod tests;
