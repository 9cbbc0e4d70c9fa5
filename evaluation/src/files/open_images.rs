//! Open Images' challenge: boxes, labels of whole images, masks and predictions as CSV (the reference's `oid_challenge_evaluation`).

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;

use super::table::{Row, Table};
use super::{Error, Place};
use crate::mask::Mask;
use crate::sample::{Category, Detections, Groundtruth, Sample};

/// The files, under the reference's flags.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// `input_annotations_boxes`: `ImageID`, `LabelName`, `XMin`, `XMax`, `YMin`, `YMax`, `IsGroupOf`.
    pub boxes: &'a Path,
    /// `input_annotations_labels`: `ImageID`, `LabelName`, Confidence.
    pub labels: &'a Path,
    /// `input_predictions`: `ImageID`, `LabelName`, Score, and a box or `ImageWidth`, `ImageHeight`, Mask.
    pub predictions: &'a Path,
    /// `input_annotations_segm`: `ImageID`, `LabelName`, `ImageWidth`, `ImageHeight`, a box, `IsGroupOf`, Mask.
    pub masks: Option<&'a Path>,
}

/// What the files hold, by image id.
#[derive(Clone, Debug, Default)]
pub struct Read {
    /// Images with groundtruth of any kind; boxes are fractions.
    pub samples: Vec<Sample>,
    /// Predictions that were left out, as the reference does, in words.
    pub notes: Vec<String>,
}

/// An object whose mask may be unknown.
struct Object {
    corners: [f64; 4],
    class: u32,
    group_of: bool,
    mask: Option<Mask>,
}

#[derive(Default)]
struct Image {
    objects: Vec<Object>,
    verified: Vec<u32>,
    found: Vec<(Object, f64)>,
}

const BOX: [&str; 7] = ["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf"];

/// Reads them all. Names are those of the label map.
pub fn read(files: &Files, categories: &[Category]) -> Result<Read, Error> {
    let labels: HashMap<String, u32> = categories.iter().map(|one| (one.name.clone(), one.id)).collect();
    let mut images: BTreeMap<String, Image> = BTreeMap::new();
    groundtruth(files, &labels, &mut images)?;
    verified(files.labels, &labels, &mut images)?;
    if images.is_empty() {
        return Err(Error::new(files.boxes, Place::Whole, "no row\nhint: is the set empty?"));
    }
    let notes = predictions(files, &labels, &mut images)?;
    let with_masks = files.masks.is_some();
    Ok(Read {
        samples: images
            .into_iter()
            .map(|(id, image)| sample(id, image, with_masks))
            .collect(),
        notes,
    })
}

fn groundtruth(
    files: &Files,
    labels: &HashMap<String, u32>,
    images: &mut BTreeMap<String, Image>,
) -> Result<(), Error> {
    let boxes = Table::read(files.boxes, &BOX)?;
    let masks = files
        .masks
        .map(|path| {
            let needed = [BOX.as_slice(), &["ImageWidth", "ImageHeight", "Mask"]].concat();
            Table::read(path, &needed)
        })
        .transpose()?;
    // A mask belongs to the box with the same image, class, corners and flag (`merge_boxes_and_masks`).
    type Key = (String, u32, [u64; 4], bool);
    let key = |table: &Table, row: &Row| -> Result<(Key, Object), Error> {
        let image = table.filled(row, "ImageID")?.to_owned();
        let class = table.label(row, "LabelName", labels, "label map")?;
        let corners = table.corners(row, "")?;
        let group_of = flag(table, row, "IsGroupOf")?;
        let object = Object {
            corners,
            class,
            group_of,
            mask: None,
        };
        Ok(((image, class, corners.map(f64::to_bits), group_of), object))
    };
    let mut by_key: HashMap<Key, Vec<usize>> = HashMap::new();
    let mut segmented: Vec<Option<(String, Object)>> = Vec::new();
    if let Some(table) = &masks {
        for row in table.rows() {
            let (key, object) = key(table, row)?;
            let object = Object {
                mask: mask(table, row)?,
                ..object
            };
            by_key.entry(key.clone()).or_default().push(segmented.len());
            segmented.push(Some((key.0, object)));
        }
    }
    for row in boxes.rows() {
        let (key, object) = key(&boxes, row)?;
        let objects = &mut images.entry(key.0.clone()).or_default().objects;
        let own = by_key
            .get(&key)
            .and_then(|indices| indices.iter().find_map(|&index| segmented[index].take()));
        objects.push(own.map_or(object, |(_, object)| object));
    }
    for (image, object) in segmented.into_iter().flatten() {
        images.entry(image).or_default().objects.push(object);
    }
    Ok(())
}

fn verified(path: &Path, labels: &HashMap<String, u32>, images: &mut BTreeMap<String, Image>) -> Result<(), Error> {
    let table = Table::read(path, &["ImageID", "LabelName"])?;
    let confidence = ["Confidence", "ConfidenceImageLabel"]
        .into_iter()
        .find(|column| table.has(column));
    let Some(confidence) = confidence else {
        return Err(Error::new(
            path,
            Place::Line(1),
            "column Confidence is missing\nhint: needed are ImageID,LabelName,Confidence",
        ));
    };
    for row in table.rows() {
        if table.text(row, confidence).is_empty() {
            continue;
        }
        let class = table.label(row, "LabelName", labels, "label map")?;
        images
            .entry(table.filled(row, "ImageID")?.to_owned())
            .or_default()
            .verified
            .push(class);
    }
    Ok(())
}

fn predictions(
    files: &Files,
    labels: &HashMap<String, u32>,
    images: &mut BTreeMap<String, Image>,
) -> Result<Vec<String>, Error> {
    let needed: &[&str] = if files.masks.is_some() {
        &["ImageID", "LabelName", "Score", "ImageWidth", "ImageHeight", "Mask"]
    } else {
        &["ImageID", "LabelName", "Score", "XMin", "XMax", "YMin", "YMax"]
    };
    let table = Table::read(files.predictions, needed)?;
    let mut unknown: Option<(String, u64)> = None;
    let mut count = 0_usize;
    for row in table.rows() {
        let id = table.filled(row, "ImageID")?;
        let class = table.label(row, "LabelName", labels, "label map")?;
        let score = table.number(row, "Score")?;
        let (corners, mask) = if files.masks.is_some() {
            let mask = mask(&table, row)?;
            (mask.as_ref().map_or([0.0; 4], Mask::normalized_box), mask)
        } else {
            (table.corners(row, "")?, None)
        };
        let object = Object {
            corners,
            class,
            group_of: false,
            mask,
        };
        if let Some(image) = images.get_mut(id) {
            image.found.push((object, score));
        } else {
            count += 1;
            unknown.get_or_insert((id.to_owned(), row.line));
        }
    }
    Ok(unknown
        .map(|(id, line)| {
            format!(
                "{}:{line}: {count} predictions are left out, since their images have no groundtruth; the first is for image `{id}`",
                files.predictions.display()
            )
        })
        .into_iter()
        .collect())
}

fn sample(id: String, image: Image, with_masks: bool) -> Sample {
    let known = image
        .objects
        .iter()
        .chain(image.found.iter().map(|(object, _)| object))
        .find_map(|object| object.mask.as_ref());
    let [height, width] = known.map_or([1, 1], Mask::size);
    let filled = |mask: &Option<Mask>| mask.clone().unwrap_or_else(|| Mask::empty(height, width));
    let masks = |objects: &mut dyn Iterator<Item = &Object>| -> Vec<Mask> {
        if with_masks {
            objects.map(|object| filled(&object.mask)).collect()
        } else {
            Vec::new()
        }
    };
    Sample {
        image: id,
        size: None,
        groundtruth: Groundtruth {
            boxes: image.objects.iter().map(|object| object.corners).collect(),
            classes: image.objects.iter().map(|object| object.class).collect(),
            group_of: image.objects.iter().map(|object| object.group_of).collect(),
            masks: masks(&mut image.objects.iter()),
            image_classes: Some(image.verified),
            ..Groundtruth::default()
        },
        detections: Detections {
            boxes: image.found.iter().map(|(object, _)| object.corners).collect(),
            scores: image.found.iter().map(|(_, score)| *score).collect(),
            classes: image.found.iter().map(|(object, _)| object.class).collect(),
            masks: masks(&mut image.found.iter().map(|(object, _)| object)),
            ..Detections::default()
        },
    }
}

fn flag(table: &Table, row: &Row, column: &str) -> Result<bool, Error> {
    match table.filled(row, column)? {
        "0" | "0.0" | "False" | "false" => Ok(false),
        "1" | "1.0" | "True" | "true" => Ok(true),
        other => Err(table.error(row, format!("{column} is `{other}`; 0 or 1 is due"))),
    }
}

/// COCO's run-length string, packed by zlib, in base64; none where the field is empty.
fn mask(table: &Table, row: &Row) -> Result<Option<Mask>, Error> {
    let text = table.text(row, "Mask");
    if text.is_empty() {
        return Ok(None);
    }
    let bad = |what: String| {
        table.error(
            row,
            format!("Mask: {what}\nhint: COCO's run-length string, packed by zlib, in base64 is due"),
        )
    };
    let packed = base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|error| bad(error.to_string()))?;
    let mut counts = String::new();
    flate2::read::ZlibDecoder::new(packed.as_slice())
        .take(1 << 28)
        .read_to_string(&mut counts)
        .map_err(|error| bad(error.to_string()))?;
    let (height, width) = (table.pixels(row, "ImageHeight")?, table.pixels(row, "ImageWidth")?);
    Mask::from_coco_string(&counts, height, width)
        .map(Some)
        .map_err(|error| bad(error.to_string()))
}
