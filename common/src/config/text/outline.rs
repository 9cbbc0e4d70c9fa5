//! The shape of a text-format file: which names stand where, before any schema is asked.
//!
//! The values are read by prost-reflect later; this pass exists so that every mistake of a file can be told at once,
//! each at its place, and so that later complaints about a field know its line.

use std::ops::Range;

use super::lex::{self, Bad, Kind, Token};

/// Deeper nesting than any schema has.
const MAX_DEPTH: usize = 64;

/// `name: value`
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: String,
    /// `[package.name]`
    pub(super) bracketed: bool,
    pub(super) name_span: Range<usize>,
    pub(super) value: Value,
}

#[derive(Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    Message { fields: Vec<Field>, span: Range<usize> },
    List { items: Vec<Value>, span: Range<usize> },
}

impl Value {
    pub(super) fn span(&self) -> Range<usize> {
        match self {
            Self::Scalar(scalar) => scalar.span.clone(),
            Self::Message { span, .. } | Self::List { span, .. } => span.clone(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Scalar {
    pub(super) kind: Kind,
    pub(super) negative: bool,
    /// Sign included.
    pub(super) span: Range<usize>,
}

/// What a file looks like, and what is wrong with its form. After a mistake in form the outline is not to be trusted.
pub(super) fn outline(source: &str) -> (Vec<Field>, Vec<Bad>) {
    let tokens = match lex::tokens(source) {
        Ok(tokens) => tokens,
        Err(bad) => return (Vec::new(), vec![bad]),
    };
    let mut reader = Reader {
        source,
        tokens,
        next: 0,
        problems: Vec::new(),
        early_close: None,
    };
    match reader.fields(None, 0) {
        Ok(fields) => (fields, reader.problems),
        Err(bad) => {
            reader.problems.push(bad);
            (Vec::new(), reader.problems)
        }
    }
}

struct Reader<'a> {
    source: &'a str,
    tokens: Vec<Token>,
    next: usize,
    problems: Vec<Bad>,
    /// The first block whose closing brace stands left of the line that opened it: where a brace is likely missing.
    early_close: Option<Range<usize>>,
}

impl Reader<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.next)
    }

    fn peek_mark(&self) -> Option<char> {
        match self.peek()?.kind {
            Kind::Mark(mark) => Some(mark),
            _ => None,
        }
    }

    fn take(&mut self) -> Option<Token> {
        let token = self.peek().cloned();
        self.next += usize::from(token.is_some());
        token
    }

    fn text(&self, span: &Range<usize>) -> &str {
        self.source.get(span.clone()).unwrap_or_default()
    }

    /// Fields up to the mark that closes the block opened at `open`, which is left in place.
    fn fields(&mut self, open: Option<(&Token, char)>, depth: usize) -> Result<Vec<Field>, Bad> {
        let mut fields = Vec::new();
        loop {
            let Some(token) = self.peek().cloned() else {
                return match open {
                    None => Ok(fields),
                    Some((open, close)) => Err(self.never_closed(open, close)),
                };
            };
            match (token.kind, open) {
                (Kind::Mark(mark), Some((_, close))) if mark == close => return Ok(fields),
                (Kind::Word | Kind::Mark('['), _) => fields.push(self.field(depth)?),
                (Kind::Mark(mark @ ('}' | '>')), None) => {
                    return Err(Bad {
                        span: token.span,
                        message: format!("`{mark}` closes nothing"),
                        hint: Some("remove it, or open the message that it was to close".to_owned()),
                    });
                }
                (_, _) => {
                    let found = self.text(&token.span).to_owned();
                    return Err(Bad {
                        span: token.span,
                        message: format!("expected a field name, found `{found}`"),
                        hint: None,
                    });
                }
            }
        }
    }

    fn field(&mut self, depth: usize) -> Result<Field, Bad> {
        let (name, bracketed, name_span) = self.name()?;
        let missing_colon = match self.peek_mark() {
            Some(':') => {
                self.take();
                false
            }
            Some('{' | '<') => false,
            _ => true,
        };
        if missing_colon {
            self.problems.push(Bad {
                span: name_span.clone(),
                message: format!("`{name}` has no value"),
                hint: Some(format!("write `{name}: VALUE` or `{name} {{ … }}`")),
            });
        }
        let value = if self.value_follows() {
            self.value(&name, &name_span, depth)?
        } else {
            if !missing_colon {
                self.problems.push(Bad {
                    span: name_span.clone(),
                    message: format!("`{name}` has no value"),
                    hint: Some(format!("write `{name}: VALUE`, or remove the field")),
                });
            }
            Value::Message {
                fields: Vec::new(),
                span: name_span.clone(),
            }
        };
        if matches!(self.peek_mark(), Some(',' | ';')) {
            self.take();
        }
        Ok(Field {
            name,
            bracketed,
            name_span,
            value,
        })
    }

    fn name(&mut self) -> Result<(String, bool, Range<usize>), Bad> {
        let Some(first) = self.take() else {
            return Err(Bad {
                span: self.end(),
                message: "expected a field name".to_owned(),
                hint: None,
            });
        };
        if first.kind == Kind::Word {
            return Ok((self.text(&first.span).to_owned(), false, first.span));
        }
        let mut span = first.span.clone();
        while let Some(token) = self.take() {
            span.end = token.span.end;
            match token.kind {
                Kind::Word | Kind::Mark('.' | '/') => {}
                Kind::Mark(']') => return Ok((self.text(&span).to_owned(), true, span)),
                _ => break,
            }
        }
        Err(Bad {
            span,
            message: "expected a name in brackets, `[package.name]`".to_owned(),
            hint: None,
        })
    }

    /// Whether the next token can start a value; a word followed by `:` or `{` is the next field instead.
    fn value_follows(&self) -> bool {
        let Some(token) = self.peek() else { return false };
        match token.kind {
            Kind::Number | Kind::Text | Kind::Mark('-' | '{' | '<' | '[') => true,
            Kind::Word => !self
                .tokens
                .get(self.next + 1)
                .is_some_and(|after| matches!(after.kind, Kind::Mark(':' | '{' | '<'))),
            Kind::Mark(_) => false,
        }
    }

    fn value(&mut self, name: &str, name_span: &Range<usize>, depth: usize) -> Result<Value, Bad> {
        let Some(token) = self.take() else {
            return Err(Bad {
                span: self.end(),
                message: "expected a value".to_owned(),
                hint: None,
            });
        };
        if depth >= MAX_DEPTH {
            return Err(Bad {
                span: token.span,
                message: format!("messages are nested more than {MAX_DEPTH} deep"),
                hint: None,
            });
        }
        match token.kind {
            Kind::Mark(mark @ ('{' | '<')) => {
                let close = if mark == '{' { '}' } else { '>' };
                let fields = self.fields(Some((&token, close)), depth + 1)?;
                let end = self.take().map_or(token.span.end, |closing| {
                    self.note_indentation(name_span, &closing.span);
                    closing.span.end
                });
                Ok(Value::Message {
                    fields,
                    span: token.span.start..end,
                })
            }
            Kind::Mark('[') => self.list(name, &token, depth),
            Kind::Mark('-') => match self.take() {
                Some(value) if matches!(value.kind, Kind::Number | Kind::Word) => Ok(Value::Scalar(Scalar {
                    kind: value.kind,
                    negative: true,
                    span: token.span.start..value.span.end,
                })),
                _ => Err(Bad {
                    span: token.span,
                    message: "expected a number after `-`".to_owned(),
                    hint: None,
                }),
            },
            kind => {
                let mut span = token.span;
                // Texts side by side are one text.
                while kind == Kind::Text && self.peek().is_some_and(|next| next.kind == Kind::Text) {
                    span.end = self.take().map_or(span.end, |next| next.span.end);
                }
                Ok(Value::Scalar(Scalar {
                    kind,
                    negative: false,
                    span,
                }))
            }
        }
    }

    fn list(&mut self, name: &str, open: &Token, depth: usize) -> Result<Value, Bad> {
        let mut items = Vec::new();
        let mut span = open.span.clone();
        if self.peek_mark() != Some(']') {
            loop {
                if !self.value_follows() {
                    break;
                }
                items.push(self.value(name, &open.span, depth + 1)?);
                if self.peek_mark() != Some(',') {
                    break;
                }
                self.take();
            }
        }
        match self.take() {
            Some(token) if token.kind == Kind::Mark(']') => {
                span.end = token.span.end;
                Ok(Value::List { items, span })
            }
            found => Err(Bad {
                span: found.map_or(self.end(), |token| token.span),
                message: format!("expected `,` or `]` in the list of `{name}`"),
                hint: None,
            }),
        }
    }

    fn end(&self) -> Range<usize> {
        let end = self.source.trim_end().len();
        end..end
    }

    fn note_indentation(&mut self, opened: &Range<usize>, closed: &Range<usize>) {
        let (open_column, _) = indentation(self.source, opened.start);
        let (close_column, alone) = indentation(self.source, closed.start);
        if alone && close_column < open_column && self.early_close.is_none() {
            self.early_close = Some(opened.clone());
        }
    }

    fn never_closed(&self, open: &Token, close: char) -> Bad {
        let span = self.early_close.clone().unwrap_or_else(|| open.span.clone());
        let message = match &self.early_close {
            Some(span) => format!(
                "a `{close}` is missing; going by the indentation, `{}` is not closed",
                self.text(span)
            ),
            None => format!("this `{}` is never closed", self.text(&open.span)),
        };
        Bad {
            span,
            message,
            hint: Some(format!("add the missing `{close}`")),
        }
    }
}

/// Width of the blanks at the start of the line of `at`, and whether nothing else stands before `at`.
fn indentation(source: &str, at: usize) -> (usize, bool) {
    let before = source.get(..at).unwrap_or_default();
    let line = before.rfind('\n').map_or(0, |newline| newline + 1);
    let blanks = source[line..].find(|c| c != ' ' && c != '\t').unwrap_or(0);
    (blanks, line + blanks == at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_nested_fields() {
        let source = "a { b: 1 c < d: 'x' 'y'; > } e: [1, -2] [p.q] { }";
        let (fields, problems) = outline(source);
        assert!(problems.is_empty(), "{problems:?}");
        let names: Vec<_> = fields.iter().map(|field| field.name.as_str()).collect();
        assert_eq!(names, ["a", "e", "[p.q]"]);
        assert_eq!(&source[fields[1].value.span()], "[1, -2]");
    }

    #[test]
    fn finds_the_missing_brace_by_indentation() {
        let source = "a {\n  b {\n    c: 1\n}\nd: 2\n";
        let (_, problems) = outline(source);
        assert_eq!(&source[problems[0].span.clone()], "b");
    }

    #[test]
    fn goes_on_after_a_field_without_value() {
        let (fields, problems) = outline("a:\nb: 1 c 2");
        assert_eq!(fields.len(), 3);
        assert_eq!(problems.len(), 2);
    }

    #[test]
    fn bounds_the_depth() {
        let (_, problems) = outline(&"a{".repeat(100_000));
        assert!(problems[0].message.contains("nested"), "{problems:?}");
        let (_, problems) = outline(&format!("a:{}", "[".repeat(100_000)));
        assert!(problems[0].message.contains("nested"), "{problems:?}");
    }
}
