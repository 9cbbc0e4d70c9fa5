//! Tables as people's tools write them: with commas, semicolons, tabs or bars, with or without a byte-order mark.

use std::path::{Path, PathBuf};

use super::{Error, text};

/// Tables larger than this are refused; Open Images' largest has 1.5 GB.
const MOST: u64 = 16 << 30;

/// A table with a heading.
pub(super) struct Table {
    path: PathBuf,
    reader: csv::Reader<std::io::Cursor<String>>,
    heading: Vec<String>,
    record: csv::StringRecord,
}

/// A column's place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column(usize);

/// One line of a table.
pub(super) struct Row<'a> {
    path: &'a Path,
    heading: &'a [String],
    record: &'a csv::StringRecord,
    /// From 1, the heading counted.
    pub(super) line: u32,
}

impl Table {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        Self::new(path, text::read(path, MOST)?)
    }

    pub(super) fn new(path: &Path, content: String) -> Result<Self, Error> {
        let first = content.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let mut reader = csv::ReaderBuilder::new()
            .delimiter(separator(first))
            .flexible(true)
            .trim(csv::Trim::All)
            .from_reader(std::io::Cursor::new(content));
        let heading = reader.headers().map_err(|error| damaged(path, &error))?;
        let heading = heading.iter().map(str::to_owned).collect();
        Ok(Self {
            path: path.to_owned(),
            reader,
            heading,
            record: csv::StringRecord::new(),
        })
    }

    /// The column with one of these names, whatever their case.
    pub(super) fn find(&self, names: &[&str]) -> Option<Column> {
        names
            .iter()
            .find_map(|name| self.heading.iter().position(|found| found.eq_ignore_ascii_case(name)))
            .map(Column)
    }

    /// As [`Table::find`], or an error that says what columns there are.
    pub(super) fn need(&self, names: &[&str], hint: &str) -> Result<Column, Error> {
        self.find(names).ok_or_else(|| Error::Annotation {
            path: self.path.clone(),
            line: 1,
            what: format!(
                "there is no column `{}`; the first line has {}",
                names.first().copied().unwrap_or_default(),
                if self.heading.iter().all(String::is_empty) {
                    "no columns".to_owned()
                } else {
                    listed(&self.heading)
                }
            ),
            hint: hint.to_owned(),
        })
    }

    /// The names of all columns.
    pub(super) fn heading(&self) -> &[String] {
        &self.heading
    }

    /// The next line; lines that are empty are passed over.
    pub(super) fn next(&mut self) -> Result<Option<Row<'_>>, Error> {
        let more = self
            .reader
            .read_record(&mut self.record)
            .map_err(|error| damaged(&self.path, &error))?;
        if !more {
            return Ok(None);
        }
        let line = self.record.position().map_or(0, |position| position.line() as u32);
        Ok(Some(Row {
            path: &self.path,
            heading: &self.heading,
            record: &self.record,
            line,
        }))
    }
}

impl Row<'_> {
    /// A field's text; empty where the line is too short.
    pub(super) fn text(&self, column: Column) -> &str {
        self.record.get(column.0).unwrap_or_default()
    }

    /// Whether it has fewer fields than the heading.
    pub(super) fn is_short(&self) -> bool {
        self.record.len() < self.heading.len()
    }

    /// All fields.
    pub(super) fn fields(&self) -> impl Iterator<Item = &str> {
        self.record.iter()
    }

    /// All fields, with another text in one column.
    pub(super) fn fields_with<'b>(&'b self, column: Column, text: &'b str) -> impl Iterator<Item = &'b str> {
        let swapped = move |(index, field)| if index == column.0 { text } else { field };
        self.record.iter().enumerate().map(swapped)
    }

    /// A number, or an error at this place.
    pub(super) fn number(&self, column: Column) -> Result<f64, Error> {
        let text = self.text(column);
        // Tables with semicolons come from places where numbers have a comma.
        let number = text.parse().or_else(|error| {
            if text.matches(',').count() == 1 {
                text.replace(',', ".").parse()
            } else {
                Err(error)
            }
        });
        number.ok().filter(|number: &f64| number.is_finite()).ok_or_else(|| {
            self.wrong(
                format!("column `{}` is `{text}`", self.heading[column.0]),
                "a number is expected",
            )
        })
    }

    /// An error at this line.
    pub(super) fn wrong(&self, what: String, hint: &str) -> Error {
        Error::Annotation {
            path: self.path.to_owned(),
            line: self.line,
            what,
            hint: hint.to_owned(),
        }
    }
}

/// The separator that the heading has most of; a comma where it has none.
fn separator(heading: &str) -> u8 {
    let count = |separator: u8| heading.bytes().filter(|&byte| byte == separator).count();
    let mut best = b',';
    for separator in [b';', b'\t', b'|'] {
        if count(separator) > count(best) {
            best = separator;
        }
    }
    best
}

fn damaged(path: &Path, error: &csv::Error) -> Error {
    Error::Annotation {
        path: path.to_owned(),
        line: error.position().map_or(1, |position| position.line() as u32),
        what: format!("not a table: {error}"),
        hint: "a table has one line an object, its fields separated by commas".to_owned(),
    }
}

/// The first names, as far as people read them: a file that is no table has a heading of any length.
fn listed(heading: &[String]) -> String {
    const NAMES: usize = 16;
    const LETTERS: usize = 40;
    let cut = |name: &String| match name.char_indices().nth(LETTERS) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.clone(),
    };
    let more = (heading.len() > NAMES).then(|| format!("and {} more", heading.len() - NAMES));
    let names: Vec<String> = heading.iter().take(NAMES).map(cut).chain(more).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(content: &str) -> Result<Vec<f64>, Error> {
        let mut table = Table::new(Path::new("t.csv"), content.to_owned())?;
        let (a, b) = (table.need(&["a"], "h")?, table.need(&["b", "beta"], "h")?);
        let mut sums = Vec::new();
        while let Some(row) = table.next()? {
            sums.push(row.number(a)? + row.number(b)?);
        }
        Ok(sums)
    }

    #[test]
    fn separators_case_order_and_empty_lines_do_not_matter() {
        for content in [
            "a,b\n1,2\n",
            "b;x;A\r\n2;?;1\r\n",
            "\n\nBeta\ta\n2\t1\n\n",
            "a|b\n1.0|2e0",
            "a;b\n\"0,5\";2,5\n",
        ] {
            assert_eq!(sums(content).unwrap(), [3.0], "{content:?}");
        }
    }

    #[test]
    fn errors_name_line_and_column() {
        let error = |content| sums(content).unwrap_err().to_string();
        assert!(error("a,c\n1,2\n").starts_with("t.csv:1: there is no column `b`; the first line has a, c"));
        assert!(error("a,b\n1,2\n1,two\n").starts_with("t.csv:3: column `b` is `two`"));
        assert!(error("a,b\n1\n").starts_with("t.csv:2: column `b` is ``"));
        assert!(error("a,b\n1,nan\n").contains("is `nan`"));
        assert!(error("").contains("no columns"));
        let error = |content: String| sums(&content).unwrap_err().to_string();
        let long = error(format!("{}\n", "ä".repeat(10_000)));
        assert!(long.chars().count() < 200 && long.contains("ää…"), "{long}");
        let many = error(format!("{}\n", "c,".repeat(300)));
        assert!(many.contains("c, c, and 285 more"), "{many}");
    }
}
