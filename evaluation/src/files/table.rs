//! CSV files with a header, as Open Images gives them out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{Error, Place};

/// A file's rows, and which column is where.
pub(super) struct Table {
    path: PathBuf,
    columns: HashMap<String, usize>,
    rows: Vec<Row>,
}

/// One row.
pub(super) struct Row {
    /// From 1, the header's line counted.
    pub(super) line: u64,
    fields: csv::StringRecord,
}

impl Table {
    /// Reads a file that has these columns and may have more.
    pub(super) fn read(path: &Path, needed: &[&str]) -> Result<Self, Error> {
        let bytes = super::read(path)?;
        let failed = |error: &csv::Error| {
            let line = error
                .position()
                .map_or(Place::Whole, |position| Place::Line(position.line()));
            Error::new(
                path,
                line,
                format!("not a row of CSV: {error}\nhint: fields are separated by commas, text is UTF-8"),
            )
        };
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .from_reader(bytes.as_slice());
        let header = reader.headers().map_err(|error| failed(&error))?.clone();
        let name = |name: &str| name.trim_start_matches('\u{feff}').to_owned();
        let columns: HashMap<String, usize> = header
            .iter()
            .enumerate()
            .map(|(index, column)| (name(column), index))
            .collect();
        if let Some(missing) = needed.iter().find(|&&column| !columns.contains_key(column)) {
            let there = header.iter().collect::<Vec<_>>().join(",");
            return Err(Error::new(
                path,
                Place::Line(1),
                format!(
                    "column {missing} is missing; there are {there}\nhint: needed are {}",
                    needed.join(",")
                ),
            ));
        }
        let mut rows = Vec::new();
        for record in reader.records() {
            let fields = record.map_err(|error| failed(&error))?;
            let line = fields.position().map_or(0, csv::Position::line);
            rows.push(Row { line, fields });
        }
        Ok(Self {
            path: path.to_owned(),
            columns,
            rows,
        })
    }

    pub(super) fn has(&self, column: &str) -> bool {
        self.columns.contains_key(column)
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// A field; empty where the file has no such column.
    pub(super) fn text<'a>(&self, row: &'a Row, column: &str) -> &'a str {
        self.columns
            .get(column)
            .and_then(|&index| row.fields.get(index))
            .unwrap_or("")
    }

    /// A field that must say something.
    pub(super) fn filled<'a>(&self, row: &'a Row, column: &str) -> Result<&'a str, Error> {
        match self.text(row, column) {
            "" => Err(self.error(row, format!("{column} is empty"))),
            text => Ok(text),
        }
    }

    /// A finite number.
    pub(super) fn number(&self, row: &Row, column: &str) -> Result<f64, Error> {
        let text = self.filled(row, column)?;
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err(self.error(row, format!("{column} is `{text}`; a finite number is due"))),
        }
    }

    /// A pixel count above 0.
    pub(super) fn pixels(&self, row: &Row, column: &str) -> Result<u32, Error> {
        let text = self.filled(row, column)?;
        // Tools that know missing values write whole numbers as 640.0.
        match text.trim_end_matches(".0").parse::<u32>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(self.error(row, format!("{column} is `{text}`; a number of pixels is due"))),
        }
    }

    /// `[ymin, xmin, ymax, xmax]` as fractions of the image, from the columns `XMin`, … with this ending.
    pub(super) fn corners(&self, row: &Row, ending: &str) -> Result<[f64; 4], Error> {
        let mut corners = [0.0; 4];
        for (corner, column) in corners.iter_mut().zip(["YMin", "XMin", "YMax", "XMax"]) {
            let column = format!("{column}{ending}");
            *corner = self.number(row, &column)?;
            // Boxes may leave their image a little.
            if !(-1.0..=2.0).contains(corner) {
                return Err(self.error(
                    row,
                    format!("{column} is {corner}; fractions of the image's width and height are due\nhint: these look like pixels; divide x by the width and y by the height"),
                ));
            }
        }
        if corners[0] > corners[2] || corners[1] > corners[3] {
            return Err(self.error(
                row,
                format!(
                    "the box [ymin, xmin, ymax, xmax] = {corners:?} ends before it begins\nhint: are columns mixed up?"
                ),
            ));
        }
        Ok(corners)
    }

    /// The number of a name in a label map.
    pub(super) fn label(
        &self,
        row: &Row,
        column: &str,
        labels: &HashMap<String, u32>,
        map: &str,
    ) -> Result<u32, Error> {
        let name = self.filled(row, column)?;
        labels.get(name).copied().ok_or_else(|| {
            self.error(
                row,
                format!(
                    "{column} `{name}` is not in the {map}\nhint: it has {} names; is it the one of this challenge?",
                    labels.len()
                ),
            )
        })
    }

    pub(super) fn error(&self, row: &Row, message: impl Into<String>) -> Error {
        Error::new(&self.path, Place::Line(row.line), message)
    }
}
