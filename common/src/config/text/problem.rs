//! Mistakes in a file that people write, shown at their place.

use std::fmt;
use std::ops::Range;

/// More than this many are counted, not shown.
const SHOWN: usize = 20;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
    /// The line itself.
    pub source_line: String,
    /// Characters that the mistake covers on its line.
    pub width: usize,
}

impl Problem {
    pub(crate) fn new(source: &str, span: &Range<usize>, message: String, hint: Option<String>) -> Self {
        let (line, column, text) = place(source, span.start);
        let rest = text.chars().count().saturating_sub(column - 1);
        let covered = source
            .get(span.clone())
            .unwrap_or_default()
            .chars()
            .take_while(|&c| c != '\n')
            .count();
        let width = covered.min(rest).max(1);
        Self {
            line,
            column,
            message,
            hint,
            source_line: text.to_owned(),
            width,
        }
    }

    /// A mistake of a whole line.
    pub(crate) fn at_line(source: &str, line: usize, message: String, hint: Option<String>) -> Self {
        let source = source.strip_prefix('\u{feff}').unwrap_or(source);
        let text = source.lines().nth(line.saturating_sub(1)).unwrap_or_default();
        let column = text.chars().take_while(|c| c.is_whitespace()).count() + 1;
        let width = text.trim().chars().count().max(1);
        Self {
            line,
            column,
            message,
            hint,
            source_line: text.to_owned(),
            width,
        }
    }
}

/// Line and column (both from 1) of a byte, and the text of that line.
pub(crate) fn place(source: &str, at: usize) -> (usize, usize, &str) {
    let mut at = at.min(source.len());
    while !source.is_char_boundary(at) {
        at -= 1;
    }
    let start = source[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let line = source[..start].bytes().filter(|&byte| byte == b'\n').count() + 1;
    let end = source[start..].find('\n').map_or(source.len(), |length| start + length);
    (
        line,
        source[start..at].chars().count() + 1,
        source[start..end].trim_end_matches('\r'),
    )
}

/// All mistakes of one file, in its order; shown as text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file as the user named it.
    pub name: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().take(SHOWN).enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            let Problem {
                line,
                column,
                message,
                hint,
                source_line,
                width,
            } = problem;
            let margin = " ".repeat(line.to_string().len());
            // Tabs are kept, so that the mark stands below what it marks whatever their width.
            let indent: String = source_line
                .chars()
                .take(column - 1)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            write!(
                f,
                "{}:{line}:{column}: {message}\n  {line} | {source_line}\n",
                self.name
            )?;
            write!(f, "  {margin} | {indent}{}", "^".repeat(*width))?;
            if let Some(hint) = hint {
                write!(f, "\nhint: {hint}")?;
            }
        }
        match self.problems.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n\n… and {more} more mistakes in {}", self.name),
        }
    }
}
