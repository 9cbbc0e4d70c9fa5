//! The tables of the well-known tutorials, `filename,width,height,class,xmin,ymin,xmax,ymax`, into TFRecords and back.

mod write;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use coati_common::label_map::LabelMap;

use super::engine::{self, Labels, Notes, Outcome, Output, Progress, Ready};
use super::objects::Objects;
use super::table::{Column, Table};
use super::{Error, Report, picture};
pub use write::{Source, write};

/// What to import.
#[derive(Clone, Debug)]
pub struct Options {
    /// The table: a line a box. Columns may have any order, separators may be commas, semicolons, tabs or bars.
    pub csv_input: PathBuf,
    /// Folder of the images.
    pub image_dir: PathBuf,
    /// Where records go.
    pub output: Output,
}

const HINT: &str =
    "the first line is: filename,width,height,class,xmin,ymin,xmax,ymax (in any order; width and height may lack)";

/// A box of a table.
pub(in crate::import) struct Row {
    pub(in crate::import) line: u32,
    /// Columns and rows of the image, as the table says.
    size: Option<(f64, f64)>,
    pub(in crate::import) class: String,
    /// `[ymin, xmin, ymax, xmax]` in pixels.
    pub(in crate::import) bounds: [f64; 4],
}

/// An image of a table with its boxes; a line without class and box is an image without any.
pub(in crate::import) struct Item {
    pub(in crate::import) filename: String,
    pub(in crate::import) rows: Vec<Row>,
}

/// A table's images, in the order in which they come.
pub(in crate::import) fn read(path: &Path) -> Result<Vec<Item>, Error> {
    let mut table = Table::open(path)?;
    let filename = table.need(&["filename", "file_name", "image", "image_path", "path"], HINT)?;
    let class = table.need(&["class", "label", "class_name", "category"], HINT)?;
    let mut sides = Vec::with_capacity(4);
    for names in [
        ["ymin", "y_min", "y1"],
        ["xmin", "x_min", "x1"],
        ["ymax", "y_max", "y2"],
        ["xmax", "x_max", "x2"],
    ] {
        sides.push(table.need(&names, HINT)?);
    }
    let size = table.find(&["width"]).zip(table.find(&["height"]));
    let mut items: Vec<Item> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    while let Some(row) = table.next()? {
        let name = row.text(filename);
        if name.is_empty() {
            return Err(row.wrong("no filename".to_owned(), HINT));
        }
        let index = *known.entry(name.to_owned()).or_insert_with(|| {
            items.push(Item {
                filename: name.to_owned(),
                rows: Vec::new(),
            });
            items.len() - 1
        });
        let empty = |column: &Column| row.text(*column).is_empty();
        if empty(&class) && sides.iter().all(empty) {
            // Fields that are there and empty say that there is no box; fields that are not there say nothing.
            if row.is_short() {
                return Err(row.wrong(
                    "the line ends before its class and box".to_owned(),
                    "is the table cut off? A line of an image without boxes has all separators, with nothing between them",
                ));
            }
            continue;
        }
        if empty(&class) {
            return Err(row.wrong(
                "no class".to_owned(),
                "a box has a class; an image without boxes has neither",
            ));
        }
        let mut bounds = [0.0; 4];
        for (bound, column) in bounds.iter_mut().zip(&sides) {
            *bound = row.number(*column)?;
        }
        let size = match size {
            Some((width, height)) if !(empty(&width) || empty(&height)) => {
                Some((row.number(width)?, row.number(height)?))
            }
            _ => None,
        };
        if let Some(item) = items.get_mut(index) {
            item.rows.push(Row {
                line: row.line,
                size,
                class: row.text(class).to_owned(),
                bounds,
            });
        }
    }
    Ok(items)
}

/// Imports; on an error nothing is left under the output's names.
pub fn import(options: &Options, labels: &LabelMap, progress: Progress) -> Result<Report, Error> {
    let items = read(&options.csv_input)?;
    if items.is_empty() {
        return Err(Error::Empty {
            folder: options.csv_input.clone(),
            hint: "the table has a heading and no line below it".to_owned(),
        });
    }
    let labels = Labels::new(labels);
    engine::run(items, &options.image_dir, &options.output, &labels, progress, |item| {
        record(options, &labels, item)
    })
}

fn record(options: &Options, labels: &Labels, item: &Item) -> Result<Outcome, Error> {
    let table = &options.csv_input;
    // Paths of another machine: the name alone may be in the folder.
    let whole = options.image_dir.join(&item.filename);
    let name = item.filename.rsplit(['/', '\\']).next().unwrap_or(&item.filename);
    let path = if coati_storage::is_file(&whole) {
        whole
    } else {
        options.image_dir.join(name)
    };
    let picture = match picture::read(&path, options.output.images) {
        Ok(picture) => picture,
        Err(reason) => {
            let line = item
                .rows
                .first()
                .map_or(String::new(), |row| format!(" ({}:{})", table.display(), row.line));
            return Ok(Outcome::Skipped(format!("{reason}{line}")));
        }
    };
    let (width, height) = (picture.width, picture.height);
    let mut notes = Notes::default();
    let mut objects = Objects::default();
    let mut told = false;
    for row in &item.rows {
        if let Some((w, h)) = row.size
            && (w, h) != (f64::from(width), f64::from(height))
            && !told
        {
            told = true;
            notes.warnings.push(format!(
                "{}:{}: says {w}x{h}, the image has {width}x{height}; the image's own size is used",
                table.display(),
                row.line
            ));
        }
        let id = labels.need(&row.class, table, row.line)?;
        let at = || format!("{}:{}: `{}`", table.display(), row.line, row.class);
        if let Some(bounds) = notes.usable(row.bounds, (width, height), at) {
            objects.push_px(&row.class, id, bounds, width, height);
        }
    }
    let mut record = engine::head(picture, &item.filename, &item.filename);
    let classes = objects.classes();
    objects.into_record(&mut record);
    Ok(Outcome::Ready(Ready {
        record: record.serialise(),
        classes,
        size: (width, height),
        notes,
    }))
}

#[cfg(test)]
mod tests;
