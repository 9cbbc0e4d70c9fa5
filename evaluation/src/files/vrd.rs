//! Open Images' visual relationships as CSV (the reference's `oid_vrd_challenge_evaluation`).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::table::{Row, Table};
use super::{Error, Place};
use crate::sample::Category;
use crate::vrd::{Sample, Triple};

/// The files, under the reference's flags.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// `input_annotations_vrd`: `ImageID`, `LabelName1`, `LabelName2`, `RelationshipLabel`, `XMin1` … `YMax2`.
    pub triples: &'a Path,
    /// `input_annotations_labels`: `ImageID`, `LabelName`.
    pub labels: &'a Path,
    /// `input_predictions`: as the first, and Score.
    pub predictions: &'a Path,
}

const TRIPLE: [&str; 12] = [
    "ImageID",
    "LabelName1",
    "LabelName2",
    "RelationshipLabel",
    "XMin1",
    "XMax1",
    "YMin1",
    "YMax1",
    "XMin2",
    "XMax2",
    "YMin2",
    "YMax2",
];

/// Reads them all; also returns what was left out, in words. Names are those of the two label maps.
pub fn read(files: &Files, classes: &[Category], relations: &[Category]) -> Result<(Vec<Sample>, Vec<String>), Error> {
    let by_name =
        |map: &[Category]| -> HashMap<String, u32> { map.iter().map(|one| (one.name.clone(), one.id)).collect() };
    let (classes, relations) = (by_name(classes), by_name(relations));
    let triple = |table: &Table, row: &Row| -> Result<Triple, Error> {
        Ok(Triple {
            subject: table.corners(row, "1")?.map(|v| v as f32),
            object: table.corners(row, "2")?.map(|v| v as f32),
            classes: [
                table.label(row, "LabelName1", &classes, "class label map")?,
                table.label(row, "LabelName2", &classes, "class label map")?,
                table.label(row, "RelationshipLabel", &relations, "relationship label map")?,
            ],
        })
    };
    let mut images: BTreeMap<String, Sample> = BTreeMap::new();
    let table = Table::read(files.triples, &TRIPLE)?;
    for row in table.rows() {
        let found = triple(&table, row)?;
        images
            .entry(table.filled(row, "ImageID")?.to_owned())
            .or_default()
            .groundtruth
            .push(found);
    }
    let table = Table::read(files.labels, &["ImageID", "LabelName"])?;
    for row in table.rows() {
        let class = table.label(row, "LabelName", &classes, "class label map")?;
        images
            .entry(table.filled(row, "ImageID")?.to_owned())
            .or_default()
            .image_classes
            .push(class);
    }
    if images.is_empty() {
        return Err(Error::new(
            files.triples,
            Place::Whole,
            "no row\nhint: is the set empty?",
        ));
    }
    let needed = [TRIPLE.as_slice(), &["Score"]].concat();
    let table = Table::read(files.predictions, &needed)?;
    let mut unknown: Option<(String, u64)> = None;
    let mut count = 0_usize;
    for row in table.rows() {
        let id = table.filled(row, "ImageID")?;
        let found = (triple(&table, row)?, table.number(row, "Score")?);
        if let Some(sample) = images.get_mut(id) {
            sample.detections.push(found);
        } else {
            count += 1;
            unknown.get_or_insert((id.to_owned(), row.line));
        }
    }
    let notes = unknown.map(|(id, line)| {
        format!(
            "{}:{line}: {count} predictions are left out, since their images have no groundtruth; the first is for image `{id}`",
            files.predictions.display()
        )
    });
    let samples = images.into_iter().map(|(image, sample)| Sample { image, ..sample });
    Ok((samples.collect(), notes.into_iter().collect()))
}
