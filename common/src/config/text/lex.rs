//! Tokens of protobuf's text format, with their places.

use std::ops::Range;

/// What a token is; its text is the source at its span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    /// Digits and what sticks to them; not validated here.
    Number,
    /// Quoted, quotes included.
    Text,
    Mark(char),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) span: Range<usize>,
}

/// A place that no token covers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) span: Range<usize>,
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// All tokens of `source`; comments run from `#` to the end of the line.
pub(super) fn tokens(source: &str) -> Result<Vec<Token>, Bad> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let start = source.len() - rest.len();
        let length = match first {
            ' ' | '\t' | '\r' | '\n' | '\x0b' | '\x0c' => {
                rest = &rest[first.len_utf8()..];
                continue;
            }
            '#' => {
                rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
                continue;
            }
            'A'..='Z' | 'a'..='z' | '_' => {
                let length = prefix(rest, |c| c.is_ascii_alphanumeric() || c == '_');
                tokens.push(Token {
                    kind: Kind::Word,
                    span: start..start + length,
                });
                length
            }
            '0'..='9' => push_number(&mut tokens, rest, start),
            '.' if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => push_number(&mut tokens, rest, start),
            '"' | '\'' => {
                let length = quoted(rest, first).ok_or_else(|| Bad {
                    span: start..start + rest.find(['\n', '\r']).unwrap_or(rest.len()),
                    message: "this text has no closing quote on its line".to_owned(),
                    hint: Some(format!("close it with {first}")),
                })?;
                tokens.push(Token {
                    kind: Kind::Text,
                    span: start..start + length,
                });
                length
            }
            '{' | '}' | '[' | ']' | '<' | '>' | ':' | ',' | ';' | '-' | '/' | '.' => {
                tokens.push(Token {
                    kind: Kind::Mark(first),
                    span: start..start + 1,
                });
                1
            }
            other => {
                return Err(Bad {
                    span: start..start + other.len_utf8(),
                    message: format!("unexpected character {other:?}"),
                    hint: stray_hint(other),
                });
            }
        };
        rest = &rest[length..];
    }
    Ok(tokens)
}

fn prefix(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

fn push_number(tokens: &mut Vec<Token>, rest: &str, start: usize) -> usize {
    let bytes = rest.as_bytes();
    let hexadecimal = rest.len() > 1 && bytes[0] == b'0' && matches!(bytes[1], b'x' | b'X');
    let mut length = 0;
    while let Some(&byte) = bytes.get(length) {
        let signed_exponent =
            matches!(byte, b'+' | b'-') && !hexadecimal && length > 0 && matches!(bytes[length - 1], b'e' | b'E');
        if !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_') || signed_exponent) {
            break;
        }
        length += 1;
    }
    tokens.push(Token {
        kind: Kind::Number,
        span: start..start + length,
    });
    length
}

/// Length of the quoted text at the start of `rest`, quotes included.
fn quoted(rest: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            '\n' => return None,
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(at + c.len_utf8()),
            _ => {}
        }
    }
    None
}

fn stray_hint(c: char) -> Option<String> {
    match c {
        '\u{201c}' | '\u{201d}' | '\u{2018}' | '\u{2019}' => Some("use straight quotes, \"…\"".to_owned()),
        '=' => Some("a field and its value are separated by `:`".to_owned()),
        '(' | ')' => Some("messages stand in braces, {…}".to_owned()),
        '\u{a0}' => Some("this is a no-break space; use an ordinary one".to_owned()),
        '\0' => Some("this does not look like text; is it a binary file?".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<&str> {
        tokens(source)
            .unwrap()
            .into_iter()
            .map(|token| &source[token.span])
            .collect()
    }

    #[test]
    fn splits_a_line() {
        assert_eq!(
            texts("a: -1e-8, b { c:'x}\\'' } # d"),
            ["a", ":", "-", "1e-8", ",", "b", "{", "c", ":", "'x}\\''", "}"]
        );
        assert_eq!(
            texts("x: .5 y: 0x1F z: 5.f"),
            ["x", ":", ".5", "y", ":", "0x1F", "z", ":", "5.f"]
        );
    }

    #[test]
    fn refuses_open_text_and_strays() {
        assert_eq!(tokens("a: 'b\nc: 1").unwrap_err().span, 3..5);
        assert_eq!(
            tokens("a = 1").unwrap_err().hint.unwrap(),
            "a field and its value are separated by `:`"
        );
        assert_eq!(tokens("ä").unwrap_err().span, 0..2);
    }
}
