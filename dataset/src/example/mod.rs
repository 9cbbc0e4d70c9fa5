//! `tf.Example` records in the Object Detection API's schema (`TfExampleDecoder`).

mod classes;
mod extra;
pub mod rewrite;
pub mod wire;

use crate::groundtruth::Groundtruth;
pub use classes::{Classes, Prefer, Unknown};
pub use extra::MaskType;
use wire::Features;

/// Why a whole record cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// Not a `tf.Example`, or a feature of another kind.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// There is no image in it.
    #[error("feature image/encoded: absent or empty; it must hold the bytes of a JPEG or PNG file")]
    NoImage,
    /// A list that does not fit the others.
    #[error(
        "feature {name}: holds {found} values where {like} holds {expected}; all lists of image/object must be equally long"
    )]
    UnequalLengths {
        /// The feature.
        name: &'static str,
        /// Its values.
        found: usize,
        /// The feature that it is compared with.
        like: &'static str,
        /// The values of that one.
        expected: usize,
    },
    /// A bad box, where bad boxes are not tolerated.
    #[error("{0}")]
    BadObject(BadObject),
    /// A feature that the configuration asks for is not what it should be.
    #[error("feature {name}: {problem}")]
    Feature {
        /// The feature.
        name: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// One object that cannot be used, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct BadObject {
    /// Which of the record's objects, from 0.
    pub index: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with an object.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Problem {
    /// NaN or infinite.
    #[error("feature image/object/bbox/{field}: {value} is not a number")]
    NotFinite {
        /// `ymin`, `xmin`, `ymax` or `xmax`.
        field: &'static str,
        /// As in the record.
        value: f32,
    },
    /// Outside the image by more than rounding.
    #[error(
        "feature image/object/bbox/{field}: {value} lies outside the image, must be from 0 to 1 (pixels divided by the image's size)"
    )]
    Outside {
        /// `ymin`, `xmin`, `ymax` or `xmax`.
        field: &'static str,
        /// As in the record.
        value: f32,
    },
    /// The far side is not beyond the near one.
    #[error(
        "features image/object/bbox/{low} and {high}: {low} {low_value} must be less than {high} {high_value} (the box is inverted or has no area)"
    )]
    Inverted {
        /// `ymin` or `xmin`.
        low: &'static str,
        /// `ymax` or `xmax`.
        high: &'static str,
        /// As in the record.
        low_value: f32,
        /// As in the record.
        high_value: f32,
    },
    /// A class that does not exist.
    #[error("feature image/object/class/{field}: {unknown}")]
    Class {
        /// `text` or `label`.
        field: &'static str,
        /// The label and what would be right.
        unknown: Unknown,
    },
}

impl std::fmt::Display for BadObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "object {}: {}", self.index, self.problem)
    }
}

/// How records are read.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The label map.
    pub classes: Classes,
    /// Bad boxes and labels make the whole record bad instead of being dropped one by one.
    pub strict: bool,
}

/// What is read of a record beyond boxes and classes, because the configuration asks for it.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// `load_instance_masks`, and how they are stored.
    pub masks: Option<MaskType>,
    /// `load_multiclass_scores`.
    pub multiclass_scores: bool,
    /// `num_keypoints`: how many points each object has.
    pub num_keypoints: usize,
    /// `num_additional_channels`: further images of one channel in each record.
    pub additional_channels: usize,
}

/// One record: an image, still encoded, and its objects.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotated<'a> {
    /// The image file's bytes.
    pub image: &'a [u8],
    /// The bytes of the images that give further channels (`image/additional_channels/encoded`).
    pub additional_channels: Vec<&'a [u8]>,
    /// `image/format`, for information: the bytes themselves tell the format.
    pub format: String,
    /// `image/height`; 0 when the record does not say.
    pub height: u32,
    /// `image/width`; 0 when the record does not say.
    pub width: u32,
    /// `image/source_id`.
    pub source_id: String,
    /// `image/filename`.
    pub filename: String,
    /// The good objects; boxes within `[0, 1]`.
    pub objects: Groundtruth,
    /// Ids in the label map of classes whose presence or absence in the image was verified (`image/class/label`).
    pub image_classes: Vec<i64>,
    /// The objects that were left out.
    pub bad_objects: Vec<BadObject>,
}

const NAMES: [&str; 4] = ["ymin", "xmin", "ymax", "xmax"];
const COORDINATES: [&str; 4] = [
    "image/object/bbox/ymin",
    "image/object/bbox/xmin",
    "image/object/bbox/ymax",
    "image/object/bbox/xmax",
];
/// Coordinates beyond the image by no more than this (or one pixel) come from rounding and are clipped.
const SLACK: f32 = 1e-3;

/// Reads one record. Image bytes stay where they are.
///
/// As in the reference, class texts that the label map translates go before numeric labels. Otherwise than
/// there, objects with NaN coordinates, without area, clearly outside the image or of unknown class are left
/// out *and listed* (the reference drops unknown classes in silence and stops at inverted boxes).
pub fn decode<'a>(record: &'a [u8], options: &Options) -> Result<Annotated<'a>, Error> {
    decode_with(record, options, &Extras::default())
}

/// As [`decode`], with what else is asked for.
pub fn decode_with<'a>(record: &'a [u8], options: &Options, extras: &Extras) -> Result<Annotated<'a>, Error> {
    let features = Features::parse(record)?;
    let image = image(&features)?;
    let text = |name| {
        Ok::<_, Error>(
            features
                .text(name)?
                .map(std::borrow::Cow::into_owned)
                .unwrap_or_default(),
        )
    };
    let size = |name| {
        let first = features.ints(name)?.first().copied();
        Ok::<_, Error>(first.and_then(|value| u32::try_from(value).ok()).unwrap_or(0))
    };
    let (height, width) = (size("image/height")?, size("image/width")?);

    let mut objects = Groundtruth::default();
    let mut bad_objects = Vec::new();
    let lists = Lists::read(&features)?;
    let mut good = Vec::with_capacity(lists.count());
    for index in 0..lists.count() {
        match lists.object(index, height, width, &options.classes) {
            Ok((bounds, class)) => {
                good.push(index);
                objects.boxes.push(bounds);
                objects.classes.push(class);
                let [ymin, xmin, ymax, xmax] = bounds;
                let area = (ymax - ymin) * (xmax - xmin) * (height as f32) * (width as f32);
                objects.area.push(lists.area.get(index).copied().unwrap_or(area));
                objects.weights.push(lists.weights.get(index).copied().unwrap_or(1.0));
                let flag = |list: &[i64]| list.get(index).is_some_and(|&value| value != 0);
                objects.is_crowd.push(flag(&lists.is_crowd));
                objects.difficult.push(flag(&lists.difficult));
                objects.group_of.push(flag(&lists.group_of));
            }
            Err(problem) => {
                let bad = BadObject { index, problem };
                if options.strict {
                    return Err(Error::BadObject(bad));
                }
                bad_objects.push(bad);
            }
        }
    }
    extra::read(&features, extras, lists.count(), &good, &mut objects)?;
    Ok(Annotated {
        image,
        additional_channels: extra::additional_channels(&features, extras.additional_channels)?,
        format: text("image/format")?,
        height,
        width,
        source_id: text("image/source_id")?,
        filename: text("image/filename")?,
        image_classes: features.ints("image/class/label")?,
        objects,
        bad_objects,
    })
}

/// The files of a record's image: its own, and those of its additional channels where `extras` ask for them.
pub fn images<'a>(record: &'a [u8], extras: &Extras) -> Result<(&'a [u8], Vec<&'a [u8]>), Error> {
    let features = Features::parse(record)?;
    let channels = extra::additional_channels(&features, extras.additional_channels)?;
    Ok((image(&features)?, channels))
}

fn image<'a>(features: &Features<'a>) -> Result<&'a [u8], Error> {
    features
        .first_bytes("image/encoded")?
        .filter(|bytes| !bytes.is_empty())
        .ok_or(Error::NoImage)
}

/// The lists of `image/object`, checked to be equally long (optional ones may be empty).
struct Lists<'a> {
    bounds: [Vec<f32>; 4],
    texts: Vec<&'a [u8]>,
    labels: Vec<i64>,
    area: Vec<f32>,
    weights: Vec<f32>,
    is_crowd: Vec<i64>,
    difficult: Vec<i64>,
    group_of: Vec<i64>,
}

impl<'a> Lists<'a> {
    fn read(features: &Features<'a>) -> Result<Self, Error> {
        let [ymin, xmin, ymax, xmax] = COORDINATES;
        let lists = Self {
            bounds: [
                features.floats(ymin)?,
                features.floats(xmin)?,
                features.floats(ymax)?,
                features.floats(xmax)?,
            ],
            texts: features.bytes("image/object/class/text")?,
            labels: features.ints("image/object/class/label")?,
            area: features.floats("image/object/area")?,
            weights: features.floats("image/object/weight")?,
            is_crowd: features.ints("image/object/is_crowd")?,
            difficult: features.ints("image/object/difficult")?,
            group_of: features.ints("image/object/group_of")?,
        };
        let expected = lists.count();
        let check = |name, found: usize, optional: bool| {
            if found == expected || (optional && found == 0) {
                Ok(())
            } else {
                Err(Error::UnequalLengths {
                    name,
                    found,
                    like: ymin,
                    expected,
                })
            }
        };
        for (name, list) in COORDINATES.iter().zip(&lists.bounds) {
            check(name, list.len(), false)?;
        }
        check("image/object/class/text", lists.texts.len(), true)?;
        check("image/object/class/label", lists.labels.len(), !lists.texts.is_empty())?;
        check("image/object/area", lists.area.len(), true)?;
        check("image/object/weight", lists.weights.len(), true)?;
        check("image/object/is_crowd", lists.is_crowd.len(), true)?;
        check("image/object/difficult", lists.difficult.len(), true)?;
        check("image/object/group_of", lists.group_of.len(), true)?;
        Ok(lists)
    }

    fn count(&self) -> usize {
        self.bounds[0].len()
    }

    /// Box and 0-based class of one object.
    fn object(&self, index: usize, height: u32, width: u32, classes: &Classes) -> Result<([f32; 4], i64), Problem> {
        let value = |side: usize| self.bounds[side].get(index).copied().unwrap_or(f32::NAN);
        let bounds = check_box([value(0), value(1), value(2), value(3)], height, width)?;
        Ok((bounds, self.class(index, classes)? - 1))
    }

    fn class(&self, index: usize, classes: &Classes) -> Result<i64, Problem> {
        if classes.has_names()
            && let Some(text) = self.texts.get(index)
        {
            let by_text = classes.by_name(&String::from_utf8_lossy(text));
            // An empty text is no text; the numeric label, if there, decides.
            match (by_text, self.labels.get(index)) {
                (Ok(id), _) => return Ok(id),
                (Err(_), Some(_)) if text.is_empty() => {}
                (Err(unknown), _) => return Err(Problem::Class { field: "text", unknown }),
            }
        }
        let label = self.labels.get(index).copied().unwrap_or(0);
        classes.by_id(label).map_err(|unknown| Problem::Class {
            field: "label",
            unknown,
        })
    }
}

/// A box within the image, or what is wrong with it.
fn check_box(bounds: [f32; 4], height: u32, width: u32) -> Result<[f32; 4], Problem> {
    let slack = |size: u32| if size == 0 { SLACK } else { SLACK.max(1.0 / size as f32) };
    for (side, &value) in bounds.iter().enumerate() {
        let field = NAMES[side];
        if !value.is_finite() {
            return Err(Problem::NotFinite { field, value });
        }
        // A box may touch the border; rounding up to a pixel puts it a little beyond.
        let slack = slack(if side % 2 == 0 { height } else { width }) * 1.001;
        if value < -slack || value > 1.0 + slack {
            return Err(Problem::Outside { field, value });
        }
    }
    let clipped = bounds.map(|value| value.clamp(0.0, 1.0));
    for axis in 0..2 {
        if clipped[axis] >= clipped[axis + 2] {
            let (low, high) = (NAMES[axis], NAMES[axis + 2]);
            return Err(Problem::Inverted {
                low,
                high,
                low_value: bounds[axis],
                high_value: bounds[axis + 2],
            });
        }
    }
    Ok(clipped)
}

#[cfg(test)]
mod tests;
