//! Open Images into TFRecords, with the fields of the reference's `create_oid_tf_record`.
//!
//! Every image of the folder becomes a record, with boxes or without. Rows whose label is not in the map are left out, as there;
//! rows of images that are not in the folder, too, since people download parts. Beyond the reference's fields, records say the
//! image's size and format, and `image/class/confidence`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use coati_common::label_map::LabelMap;

use super::engine::{self, Labels, Notes, Outcome, Output, Progress, Ready};
use super::files::{ends_in, entries};
use super::objects::{NO_AREA, OUTSIDE, Objects};
use super::table::{Column, Table};
use super::{Error, Report, picture};

/// What to import.
#[derive(Clone, Debug)]
pub struct Options {
    /// Table of boxes: `ImageID,LabelName,XMin,XMax,YMin,YMax` and, where they are there, `IsOccluded`, `IsTruncated`,
    /// `IsGroupOf`, `IsDepiction`. Rows without a box are image-level labels.
    pub box_annotations_csv: PathBuf,
    /// Table of image-level labels that people verified: `ImageID,LabelName,Confidence`.
    pub image_label_annotations_csv: Option<PathBuf>,
    /// Folder of the images, called `<ImageID>.jpg`.
    pub images_directory: PathBuf,
    /// Where records go.
    pub output: Output,
}

/// Flags of a box: the table's column and the record's field.
const FLAGS: [(&str, &str); 4] = [
    ("IsGroupOf", "group_of"),
    ("IsOccluded", "occluded"),
    ("IsTruncated", "truncated"),
    ("IsDepiction", "depiction"),
];

const HINT: &str = "Open Images' tables begin with ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,…";

struct Object {
    line: u32,
    class: u32,
    /// `[ymin, xmin, ymax, xmax]`, normalised.
    bounds: [f64; 4],
    /// -1 is unknown.
    flags: [i64; 4],
}

#[derive(Default)]
struct Found {
    objects: Vec<Object>,
    /// Classes and confidences.
    labels: Vec<(u32, f32)>,
    /// Rows whose label is not in the map.
    unknown: usize,
}

struct Tables {
    images: HashMap<String, Found>,
    /// Names of the classes, as in the tables.
    names: HashMap<u32, String>,
    has: [bool; 4],
    has_labels: bool,
}

/// Imports; on an error nothing is left under the output's names.
pub fn import(options: &Options, labels: &LabelMap, progress: Progress) -> Result<Report, Error> {
    let mut files = Vec::new();
    let mut tables = Tables {
        images: HashMap::new(),
        names: labels.items.iter().map(|item| (item.id, item.name.clone())).collect(),
        has: [false; 4],
        has_labels: false,
    };
    for path in entries(&options.images_directory)? {
        if ends_in(&path, "jpg") {
            let id = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            tables.images.insert(id.clone(), Found::default());
            files.push((id, path));
        }
    }
    if files.is_empty() {
        return Err(Error::Empty {
            folder: options.images_directory.clone(),
            hint: "images called <ImageID>.jpg are expected".to_owned(),
        });
    }
    files.sort();
    let labels = Labels::new(labels);
    let mut elsewhere = tables.read(&options.box_annotations_csv, &labels, false)?;
    if let Some(path) = &options.image_label_annotations_csv {
        elsewhere += tables.read(path, &labels, true)?;
    }
    let mut report = engine::run(
        files,
        &options.images_directory,
        &options.output,
        &labels,
        progress,
        |(id, path)| Ok(tables.record(id, path, options)),
    )?;
    if elsewhere > 0 {
        report.warnings.push(format!(
            "{}: {elsewhere} rows are of images that are not in {}",
            options.box_annotations_csv.display(),
            options.images_directory.display()
        ));
    }
    Ok(report)
}

impl Tables {
    /// Reads a table; returns how many rows are of images that are not there.
    fn read(&mut self, path: &Path, labels: &Labels, image_level: bool) -> Result<usize, Error> {
        let mut table = Table::open(path)?;
        let image = table.need(&["ImageID"], HINT)?;
        let label = table.need(&["LabelName"], HINT)?;
        let confidence = table.find(&["Confidence", "ConfidenceImageLabel"]);
        let sides = if image_level {
            None
        } else {
            let mut sides = [image; 4];
            for (side, name) in sides.iter_mut().zip(["YMin", "XMin", "YMax", "XMax"]) {
                *side = table.need(&[name], HINT)?;
            }
            Some(sides)
        };
        let flags: [Option<Column>; 4] = FLAGS.map(|(name, _)| table.find(&[name]));
        if image_level {
            self.has_labels = true;
        } else {
            self.has = flags.map(|flag| flag.is_some());
        }
        let mut elsewhere = 0;
        while let Some(row) = table.next()? {
            let Some(found) = self.images.get_mut(row.text(image)) else {
                elsewhere += 1;
                continue;
            };
            let Some(class) = labels.id(row.text(label)) else {
                found.unknown += 1;
                continue;
            };
            if let Some(sides) = sides.filter(|sides| !row.text(sides[0]).is_empty()) {
                let mut bounds = [0.0; 4];
                for (bound, side) in bounds.iter_mut().zip(sides) {
                    *bound = row.number(side)?;
                }
                let mut values = [0; 4];
                for (value, column) in values.iter_mut().zip(flags) {
                    if let Some(column) = column {
                        *value = row.number(column)? as i64;
                    }
                }
                found.objects.push(Object {
                    line: row.line,
                    class,
                    bounds,
                    flags: values,
                });
            } else {
                self.has_labels = true;
                let value = confidence
                    .filter(|column| !row.text(*column).is_empty())
                    .map_or(Ok(1.0), |column| row.number(column))?;
                found.labels.push((class, value as f32));
            }
        }
        Ok(elsewhere)
    }

    fn record(&self, id: &str, path: &Path, options: &Options) -> Outcome {
        let picture = match picture::read(path, options.output.images) {
            Ok(picture) => picture,
            Err(reason) => return Outcome::Skipped(reason),
        };
        let size = (picture.width, picture.height);
        let none = Found::default();
        let found = self.images.get(id).unwrap_or(&none);
        let mut notes = Notes::default();
        notes
            .left_out
            .extend(std::iter::repeat_n("label not in the map", found.unknown));
        let name_of = |class: &u32| self.names.get(class).map_or("", String::as_str);
        let mut objects = Objects::default();
        let mut flags: [Vec<i64>; 4] = Default::default();
        for object in &found.objects {
            let name = name_of(&object.class);
            let [ymin, xmin, ymax, xmax] = object.bounds;
            let mut leave_out = |kind, reason: &str| {
                let place = format!("{}:{}", options.box_annotations_csv.display(), object.line);
                notes.leave_out(
                    kind,
                    format!("{place}: `{name}` left out: its box {reason} (x {xmin} to {xmax}, y {ymin} to {ymax})"),
                );
            };
            if !(ymax > ymin && xmax > xmin) {
                leave_out(NO_AREA, "has no area");
            } else if object.bounds.iter().any(|side| !(0.0..=1.0).contains(side)) {
                leave_out(OUTSIDE, "is not within 0 to 1");
            } else {
                objects.push(name, object.class, object.bounds.map(|side| side as f32));
                for (column, value) in flags.iter_mut().zip(object.flags) {
                    column.push(value);
                }
            }
        }
        let filename = format!("{id}.jpg");
        let mut record = engine::head(picture, &filename, id);
        let classes = objects.classes();
        objects.into_record(&mut record);
        for (index, (values, (_, field))) in flags.into_iter().zip(FLAGS).enumerate() {
            if self.has[index] {
                record.ints(&format!("image/object/{field}"), values);
            }
        }
        if self.has_labels {
            let names = found.labels.iter().map(|(class, _)| name_of(class).as_bytes().to_vec());
            record.bytes("image/class/text", names.collect());
            let ids = found.labels.iter().map(|(class, _)| i64::from(*class));
            record.ints("image/class/label", ids.collect());
            record.floats(
                "image/class/confidence",
                found.labels.iter().map(|(_, value)| *value).collect(),
            );
        }
        Outcome::Ready(Ready {
            record: record.serialise(),
            classes,
            size,
            notes,
        })
    }
}

#[cfg(test)]
mod tests;
