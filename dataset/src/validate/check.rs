//! One record: what is wrong with it, and how it should be.

use coati_common::tfrecord;
use coati_proto::tensorflow::Example;
use prost::Message as _;

use super::edit::Edit;
use super::finding::{Finding, Flaw, Repair};
use crate::decode::{self, Decoder};
use crate::example::Classes;
use crate::example::wire::{Error, Features};

/// A record's findings and its repaired form.
#[derive(Debug, Default)]
pub struct Checked {
    /// Without their place.
    pub findings: Vec<Finding>,
    /// The record with everything repaired that can be; `None` where nothing changes.
    pub repaired: Option<Vec<u8>>,
    /// The record cannot be used at all.
    pub drop: bool,
}

const SIDES: [&str; 4] = [
    "image/object/bbox/ymin",
    "image/object/bbox/xmin",
    "image/object/bbox/ymax",
    "image/object/bbox/xmax",
];
const TEXT: &str = "image/object/class/text";
const LABEL: &str = "image/object/class/label";
/// What else an object may have, as whole numbers and as fractions.
const FLAGS: [&str; 3] = [
    "image/object/is_crowd",
    "image/object/difficult",
    "image/object/group_of",
];
const NUMBERS: [&str; 2] = ["image/object/area", "image/object/weight"];
/// Beyond the image by no more than this is rounding.
const SLACK: f32 = 1e-3;

/// The image's bytes, if the record has any.
pub(super) fn image(record: &[u8]) -> Option<&[u8]> {
    Features::parse(record)
        .ok()?
        .first_bytes("image/encoded")
        .ok()?
        .filter(|bytes| !bytes.is_empty())
}

/// A record that could not be read. `is_first`: nothing of the file could.
pub(super) fn unreadable(error: &tfrecord::Error, is_first: bool) -> Checked {
    let (flaw, repair) = if error.is_local() {
        (Flaw::Unreadable, Some(Repair::DropRecord))
    } else if is_first {
        // Of a file that is something else nothing would be left.
        (Flaw::NoRecords, None)
    } else {
        (Flaw::Unreadable, Some(Repair::DropRest))
    };
    unusable(flaw, "", &error.to_string(), repair)
}

fn dropped(flaw: Flaw, field: &str, what: String) -> Checked {
    unusable(flaw, field, &what, Some(Repair::DropRecord))
}

fn unusable(flaw: Flaw, field: &str, what: &str, repair: Option<Repair>) -> Checked {
    let what = what.lines().next().unwrap_or_default().to_owned();
    Checked {
        findings: vec![Finding::of(flaw, field, what, repair)],
        repaired: None,
        drop: true,
    }
}

/// Looks at one record. Without `classes` labels only have to be positive.
pub fn check(record: &[u8], classes: Option<&Classes>) -> Checked {
    let (features, example) = match (Features::parse(record), Example::decode(record)) {
        (Ok(features), Ok(example)) => (features, example),
        (Err(error), _) => return dropped(Flaw::NoExample, "", error.to_string()),
        (_, Err(error)) => return dropped(Flaw::NoExample, "", format!("not a tf.Example: {error}")),
    };
    let mut look = Look {
        features: &features,
        findings: Vec::new(),
        edit: Edit::new(example),
    };
    let size = match look.picture() {
        Ok(size) => size,
        Err(checked) => return checked,
    };
    // Lists that do not fit each other say nothing about which object is which.
    if let Err(found) = look.objects(size, classes) {
        look.findings.push(found);
    }
    Checked {
        findings: look.findings,
        repaired: look.edit.changed.then(|| look.edit.serialise()),
        drop: false,
    }
}

struct Look<'a> {
    features: &'a Features<'a>,
    findings: Vec<Finding>,
    edit: Edit,
}

impl Look<'_> {
    fn find(&mut self, flaw: Flaw, field: &str, what: String, repair: Option<Repair>) {
        self.findings.push(Finding::of(flaw, field, what, repair));
    }

    /// Height and width of the image, decoded whole.
    fn picture(&mut self) -> Result<(u32, u32), Checked> {
        const FIELD: &str = "image/encoded";
        let features = self.features;
        let bytes = match features.first_bytes(FIELD) {
            Ok(Some(bytes)) if !bytes.is_empty() => bytes,
            Ok(_) => return Err(dropped(Flaw::NoImage, FIELD, "there is no image".to_owned())),
            Err(error) => return Err(dropped(Flaw::NoImage, FIELD, error.to_string())),
        };
        let decoded = Decoder::new(decode::Options::default()).decode(bytes);
        let image = decoded.map_err(|error| dropped(Flaw::BadImage, FIELD, error.to_string()))?;
        let (height, width) = (image.height as u32, image.width as u32);
        for (field, found) in [("image/height", height), ("image/width", width)] {
            match features.ints(field).as_deref() {
                Ok([value]) if *value == i64::from(found) => {}
                // Open Images' records of the reference do not say.
                Ok([]) => {}
                Ok(values) => {
                    self.find(
                        Flaw::WrongSize,
                        field,
                        format!("is {values:?}, the image has {found}"),
                        Some(Repair::Correct),
                    );
                    self.edit.set_ints(field, vec![i64::from(found)]);
                }
                Err(error) => {
                    self.find(Flaw::WrongKind, field, error.to_string(), Some(Repair::Correct));
                    self.edit.set_ints(field, vec![i64::from(found)]);
                }
            }
        }
        let format = if bytes.starts_with(&[0xff, 0xd8]) {
            "jpeg"
        } else {
            "png"
        };
        if let Ok(Some(said)) = features.text("image/format") {
            let lower = said.to_ascii_lowercase();
            if !said.is_empty() && lower != format && !(lower == "jpg" && format == "jpeg") {
                let what = format!("is `{said}`, the image is a {format}");
                self.find(Flaw::WrongFormat, "image/format", what, Some(Repair::Correct));
                self.edit.set_bytes("image/format", vec![format.as_bytes().to_vec()]);
            }
        }
        Ok((height, width))
    }

    fn objects(&mut self, (height, width): (u32, u32), classes: Option<&Classes>) -> Result<(), Finding> {
        let features = self.features;
        let kind =
            |field: &'static str| move |error: Error| Finding::of(Flaw::WrongKind, field, error.to_string(), None);
        let mut bounds: [Vec<f32>; 4] = Default::default();
        for (list, field) in bounds.iter_mut().zip(SIDES) {
            *list = features.floats(field).map_err(kind(field))?;
        }
        let texts = features.bytes(TEXT).map_err(kind(TEXT))?;
        let labels = features.ints(LABEL).map_err(kind(LABEL))?;
        let count = bounds[0].len();
        let lengths = SIDES
            .iter()
            .zip(&bounds)
            .map(|(&field, list)| (field, list.len(), false));
        let mut others = vec![(TEXT, texts.len(), true), (LABEL, labels.len(), true)];
        for field in FLAGS {
            others.push((field, features.ints(field).map_err(kind(field))?.len(), true));
        }
        for field in NUMBERS {
            others.push((field, features.floats(field).map_err(kind(field))?.len(), true));
        }
        for (field, found, optional) in lengths.chain(others) {
            if found != count && !(optional && found == 0) {
                let what = format!("holds {found} values where {} holds {count}", SIDES[0]);
                return Err(Finding::of(Flaw::UnequalLengths, field, what, None));
            }
        }
        let mut drop = vec![false; count];
        self.boxes(&mut bounds, [height, width], &mut drop);
        self.classes(&texts, &labels, classes, count);
        self.edit.drop_objects(&drop);
        Ok(())
    }

    fn boxes(&mut self, bounds: &mut [Vec<f32>; 4], size: [u32; 2], drop: &mut [bool]) {
        let before = bounds.clone();
        if in_pixels(bounds, size) {
            let largest = bounds.iter().flatten().copied().fold(0.0, f32::max);
            self.find(
                Flaw::Pixels,
                SIDES[0],
                format!(
                    "the boxes are in pixels (up to {largest} in a {}x{} image); coordinates go from 0 to 1",
                    size[1], size[0]
                ),
                Some(Repair::Correct),
            );
            for (side, list) in bounds.iter_mut().enumerate() {
                for value in list {
                    *value /= size[side % 2] as f32;
                }
            }
        }
        for index in 0..drop.len() {
            let mut object: [f32; 4] = std::array::from_fn(|side| bounds[side][index]);
            if let Some(side) = object.iter().position(|value| !value.is_finite()) {
                let what = format!("object {index}: {} is not a number", object[side]);
                self.find(Flaw::NotANumber, SIDES[side], what, Some(Repair::DropObject));
                drop[index] = true;
                continue;
            }
            for axis in 0..2 {
                let (low, high) = (object[axis], object[axis + 2]);
                if low > high {
                    let what = format!("object {index}: {low} is more than the far side's {high}");
                    self.find(Flaw::Inverted, SIDES[axis], what, Some(Repair::Correct));
                    object.swap(axis, axis + 2);
                }
            }
            let cut = object.map(|value| value.clamp(0.0, 1.0));
            let beyond = |side: &usize| {
                let slack = SLACK.max(1.001 / size[side % 2].max(1) as f32);
                (object[*side] - cut[*side]).abs() > slack
            };
            if object[0] == object[2] || object[1] == object[3] {
                let [ymin, xmin, ymax, xmax] = object;
                let what = format!("object {index}: no area (y {ymin} to {ymax}, x {xmin} to {xmax})");
                self.find(Flaw::Empty, SIDES[0], what, Some(Repair::DropObject));
                drop[index] = true;
            } else if cut[0] >= cut[2] || cut[1] >= cut[3] {
                let [ymin, xmin, ymax, xmax] = object;
                let what = format!("object {index}: wholly outside the image (y {ymin} to {ymax}, x {xmin} to {xmax})");
                self.find(Flaw::OutsideImage, SIDES[0], what, Some(Repair::DropObject));
                drop[index] = true;
            } else if let Some(side) = (0..4).find(beyond) {
                let what = format!(
                    "object {index}: {} lies outside the image, which goes from 0 to 1",
                    object[side]
                );
                self.find(Flaw::OutsideImage, SIDES[side], what, Some(Repair::Correct));
                object = cut;
            }
            for (list, value) in bounds.iter_mut().zip(object) {
                list[index] = value;
            }
        }
        for (side, list) in bounds.iter().enumerate() {
            let same = list.iter().zip(&before[side]).all(|(a, b)| a.to_bits() == b.to_bits());
            if !same {
                self.edit.set_floats(SIDES[side], list.clone());
            }
        }
    }

    fn classes(&mut self, texts: &[&[u8]], labels: &[i64], classes: Option<&Classes>, count: usize) {
        let mut corrected = labels.to_vec();
        for index in 0..count {
            let text = texts
                .get(index)
                .map(|text| String::from_utf8_lossy(text))
                .filter(|text| !text.is_empty());
            let label = labels.get(index).copied();
            let by_text = classes
                .zip(text.as_deref())
                .map(|(classes, text)| classes.by_name(text));
            // What the text says, where the map knows it.
            let meant = by_text.as_ref().and_then(|found| found.as_ref().ok()).copied();
            let known = label.is_some_and(|id| id >= 1 && classes.is_none_or(|classes| classes.by_id(id).is_ok()));
            let at = |what: String| format!("object {index}: {what}");
            match (label, &text) {
                (None, None) => self.find(Flaw::NoClass, LABEL, at("neither a label nor a text".to_owned()), None),
                (Some(id), _) if id < 1 => {
                    let what = at(format!("label {id}; labels start at 1 (0 is the background)"));
                    self.find(Flaw::LabelNotPositive, LABEL, what, meant.map(|_| Repair::Correct));
                }
                (Some(_), _) if !known => {
                    let why = classes.zip(label).and_then(|(classes, id)| classes.by_id(id).err());
                    let what = at(why.map(|why| why.to_string()).unwrap_or_default());
                    self.find(Flaw::UnknownLabel, LABEL, what, meant.map(|_| Repair::Correct));
                }
                (Some(id), Some(text)) if meant.is_some_and(|meant| meant != id) => {
                    let what = at(format!(
                        "label {id} is `{}`, the text says `{text}`",
                        classes.map(|classes| classes.title(id)).unwrap_or_default()
                    ));
                    self.find(Flaw::LabelAndText, LABEL, what, None);
                }
                _ => {}
            }
            if let Some(Err(unknown)) = &by_text {
                // With a good label the text follows from it; but which of the two is meant is a guess.
                self.find(Flaw::UnknownText, TEXT, at(unknown.to_string()), None);
            }
            if let Some(meant) = meant
                && !known
                && let Some(slot) = corrected.get_mut(index)
            {
                *slot = meant;
            }
        }
        if corrected != labels {
            self.edit.set_ints(LABEL, corrected);
        }
    }
}

/// Whether the coordinates are pixels: some lie far beyond 1, every one is 0 or at least 1, and all of them fit into the image.
fn in_pixels(bounds: &[Vec<f32>; 4], size: [u32; 2]) -> bool {
    let all = || {
        bounds
            .iter()
            .enumerate()
            .flat_map(|(side, list)| list.iter().map(move |&value| (side, value)))
    };
    let fits = |(side, value): (usize, f32)| {
        let most = size[side % 2] as f32 + 1.0;
        (value == 0.0 || value >= 1.0) && value <= most
    };
    all().any(|(_, value)| value > 2.0) && all().all(fits)
}
