//! COCO's annotation and result files.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Error, Place};
use crate::mask::Mask;
use crate::sample::{Category, Sample};

/// What both files hold.
#[derive(Clone, Debug, Default)]
pub struct Read {
    /// As the annotation file lists them, by ascending id.
    pub categories: Vec<Category>,
    /// By ascending image id, boxes in pixels.
    pub samples: Vec<Sample>,
}

#[derive(Deserialize)]
struct Truth {
    images: Vec<Image>,
    #[serde(default)]
    annotations: Vec<Annotation>,
    categories: Vec<Class>,
}

#[derive(Deserialize)]
struct Image {
    id: u64,
    height: Option<f64>,
    width: Option<f64>,
}

#[derive(Deserialize)]
struct Class {
    id: u32,
    name: String,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: u64,
    category_id: u32,
    bbox: Option<[f64; 4]>,
    area: Option<f64>,
    #[serde(default)]
    iscrowd: Flag,
    segmentation: Option<Outline>,
}

#[derive(Deserialize)]
struct Found {
    image_id: u64,
    category_id: u32,
    bbox: Option<[f64; 4]>,
    score: f64,
    segmentation: Option<Outline>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "iscrowd is neither 0 nor 1")]
enum Flag {
    Bool(bool),
    Number(f64),
}

impl Default for Flag {
    fn default() -> Self {
        Self::Bool(false)
    }
}

impl Flag {
    fn set(self) -> bool {
        match self {
            Self::Bool(set) => set,
            Self::Number(number) => number != 0.0,
        }
    }
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "segmentation is neither a list of polygons [[x, y, …], …] nor {\"size\": [height, width], \"counts\"}"
)]
enum Outline {
    Polygons(Vec<Vec<f64>>),
    Text { size: [u32; 2], counts: String },
    Runs { size: [u32; 2], counts: Vec<u32> },
}

impl Outline {
    fn mask(&self, size: Option<[f64; 2]>) -> Result<Mask, String> {
        let mask = match (self, size) {
            (Self::Text { size: [h, w], counts }, _) => Mask::from_coco_string(counts, *h, *w),
            (Self::Runs { size: [h, w], counts }, _) => Mask::from_counts(counts.clone(), *h, *w),
            (Self::Polygons(polygons), Some([height, width])) => {
                Mask::from_polygons(polygons, height as u32, width as u32)
            }
            (Self::Polygons(_), None) => {
                return Err("a polygon, but its image has no height and width\nhint: give them in `images`".to_owned());
            }
        };
        mask.map_err(|error| error.to_string())
    }
}

/// Reads an annotation file and a result file that belong together; `masks`: segmentations are compared, else boxes.
pub fn read(groundtruth: &Path, detections: &Path, masks: bool) -> Result<Read, Error> {
    let truth: Truth = parse(groundtruth, &["annotations", "images", "categories"])?;
    let found: Vec<Found> = parse(detections, &[])?;
    let (categories, mut samples, by_id) = outline(groundtruth, &truth)?;

    let at = |path: &Path, list: &'static str, index: usize, message: String| {
        Error::new(path, Place::Record(list, index), message)
    };
    let class = |id: u32| {
        categories
            .iter()
            .any(|category| category.id == id)
            .then_some(id)
            .ok_or_else(|| {
                format!(
                    "category_id {id} is not among the categories of {}\nhint: do both use the same numbering?",
                    groundtruth.display()
                )
            })
    };
    for (index, one) in truth.annotations.iter().enumerate() {
        let fail = |message| at(groundtruth, "annotations", index, message);
        let sample = by_id
            .get(&one.image_id)
            .and_then(|&place| samples.get_mut(place))
            .ok_or_else(|| fail(format!("image_id {} is not among the images", one.image_id)))?;
        let size = sample.size;
        let objects = &mut sample.groundtruth;
        let (xywh, mask) = shape(one.bbox, one.segmentation.as_ref(), masks, size).map_err(fail)?;
        objects.boxes.push(corners(xywh));
        objects.xywh.push(xywh);
        objects.classes.push(class(one.category_id).map_err(fail)?);
        objects.is_crowd.push(one.iscrowd.set());
        // COCO takes an area of 0 as it is; the smallest number is that, and not the absence of one.
        objects
            .area
            .push(one.area.map_or(xywh[2] * xywh[3], |area| area.max(f64::MIN_POSITIVE)));
        objects.masks.extend(mask);
    }
    for (index, one) in found.iter().enumerate() {
        let fail = |message| at(detections, "detections", index, message);
        let sample = by_id
            .get(&one.image_id)
            .and_then(|&place| samples.get_mut(place))
            .ok_or_else(|| {
                fail(format!(
                    "image_id {} is not among the {} images of {}\nhint: do both belong to the same set?",
                    one.image_id,
                    truth.images.len(),
                    groundtruth.display()
                ))
            })?;
        if one.score.is_nan() {
            return Err(fail("the score is NaN".to_owned()));
        }
        let size = sample.size;
        let objects = &mut sample.detections;
        let (xywh, mask) = shape(one.bbox, one.segmentation.as_ref(), masks, size).map_err(fail)?;
        objects.boxes.push(corners(xywh));
        objects.xywh.push(xywh);
        objects.classes.push(class(one.category_id).map_err(fail)?);
        objects.scores.push(one.score);
        objects.masks.extend(mask);
    }
    Ok(Read { categories, samples })
}

type Outlined = (Vec<Category>, Vec<Sample>, HashMap<u64, usize>);

/// Categories and empty samples, both by ascending id.
fn outline(path: &Path, truth: &Truth) -> Result<Outlined, Error> {
    let mut categories: Vec<Category> = Vec::new();
    for (index, class) in truth.categories.iter().enumerate() {
        if categories.iter().any(|known| known.id == class.id) {
            let message = format!(
                "id {} is there twice\nhint: each category has an id of its own",
                class.id
            );
            return Err(Error::new(path, Place::Record("categories", index), message));
        }
        categories.push(Category {
            id: class.id,
            name: class.name.clone(),
        });
    }
    categories.sort_by_key(|category| category.id);
    let mut order: Vec<usize> = (0..truth.images.len()).collect();
    order.sort_by_key(|&index| (truth.images[index].id, index));
    let (mut samples, mut by_id) = (Vec::new(), HashMap::new());
    for index in order {
        let image = &truth.images[index];
        if by_id.insert(image.id, samples.len()).is_some() {
            let first = truth.images.iter().position(|other| other.id == image.id).unwrap_or(0);
            let message = format!(
                "id {} is that of images[{first}], too\nhint: each image has an id of its own; were two sets put together?",
                image.id
            );
            return Err(Error::new(path, Place::Record("images", index), message));
        }
        samples.push(Sample {
            image: image.id.to_string(),
            size: image.height.zip(image.width).map(|(height, width)| [height, width]),
            ..Sample::default()
        });
    }
    Ok((categories, samples, by_id))
}

/// `[x, y, width, height]`, and the mask where masks are compared.
fn shape(
    bbox: Option<[f64; 4]>,
    outline: Option<&Outline>,
    masks: bool,
    size: Option<[f64; 2]>,
) -> Result<([f64; 4], Option<Mask>), String> {
    let mask = match (masks, outline) {
        (false, _) => None,
        (true, Some(outline)) => Some(outline.mask(size)?),
        (true, None) => {
            return Err(
                "no segmentation\nhint: masks are compared, since --iou_type segm or a metric of masks asks for them"
                    .to_owned(),
            );
        }
    };
    let xywh = match (bbox, &mask) {
        (Some(xywh), _) => xywh,
        (None, Some(mask)) => {
            let ([height, width], [y0, x0, y1, x1]) = (mask.size().map(f64::from), mask.normalized_box());
            [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]
        }
        (None, None) => return Err("no bbox\nhint: [x, y, width, height] in pixels is due".to_owned()),
    };
    if xywh.iter().any(|v| !v.is_finite()) {
        return Err(format!("bbox is {xywh:?}; four finite numbers are due"));
    }
    if xywh[2] < 0.0 || xywh[3] < 0.0 {
        return Err(format!(
            "bbox is {xywh:?}, of negative size\nhint: COCO's order is [x, y, width, height], not two corners"
        ));
    }
    Ok((xywh, mask))
}

fn corners([x, y, width, height]: [f64; 4]) -> [f64; 4] {
    [y, x, y + height, x + width]
}

/// Parses a file; what does not fit is looked for entry by entry in `lists`, or in the file's own list where there are none.
fn parse<T: DeserializeOwned>(path: &Path, lists: &[&'static str]) -> Result<T, Error> {
    let bytes = super::read(path)?;
    let error = match serde_json::from_slice(&bytes) {
        Ok(parsed) => return Ok(parsed),
        Err(error) => error,
    };
    let hint = if lists.is_empty() {
        "COCO's result file is due: [{\"image_id\", \"category_id\", \"bbox\": [x, y, width, height], \"score\"}, …]"
    } else {
        "COCO's annotation file is due: {\"images\": […], \"annotations\": […], \"categories\": […]}"
    };
    // Python writes NaN, which JSON does not have; as text it can at least be found.
    let text = String::from_utf8_lossy(&bytes);
    let value: Option<Value> = serde_json::from_str(&text)
        .or_else(|_| serde_json::from_str(&quoted_nan(&text)))
        .ok();
    let found = value.as_ref().and_then(|value| {
        if lists.is_empty() {
            return first_bad::<Found>(value, "detections");
        }
        first_bad::<Annotation>(value.get("annotations")?, "annotations")
            .or_else(|| first_bad::<Image>(value.get("images")?, "images"))
            .or_else(|| first_bad::<Class>(value.get("categories")?, "categories"))
    });
    Err(match found {
        Some((place, entry, why)) => Error::new(path, place, format!("{why}: {entry}\nhint: {hint}")),
        None => Error::new(path, Place::Line(error.line() as u64), format!("{error}\nhint: {hint}")),
    })
}

fn first_bad<T: DeserializeOwned>(list: &Value, name: &'static str) -> Option<(Place, String, String)> {
    list.as_array()?.iter().enumerate().find_map(|(index, entry)| {
        let why = match T::deserialize(entry).err()? {
            _ if lacks_number(entry) => "NaN or null where a number is due".to_owned(),
            error => error.to_string(),
        };
        let mut shown = entry.to_string();
        if shown.chars().count() > 200 {
            shown = shown.chars().take(200).chain(['…']).collect();
        }
        Some((Place::Record(name, index), shown, why))
    })
}

/// What Python writes for numbers that JSON does not have.
const NOT_JSON: [&str; 3] = ["NaN", "-Infinity", "Infinity"];

fn lacks_number(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => NOT_JSON.contains(&text.as_str()),
        Value::Array(list) => list.iter().any(lacks_number),
        // All but the score may be null as a whole.
        Value::Object(map) => ["bbox", "score", "area", "segmentation", "height", "width"]
            .into_iter()
            .filter_map(|key| map.get(key).filter(|value| key == "score" || !value.is_null()))
            .any(lacks_number),
        _ => false,
    }
}

/// `NaN` and `Infinity` outside of strings become strings; as null an area would be taken for one that is not given.
fn quoted_nan(text: &str) -> String {
    let (mut out, mut rest, mut inside) = (String::with_capacity(text.len()), text, false);
    while let Some(first) = rest.chars().next() {
        if !inside && let Some(word) = NOT_JSON.into_iter().find(|word| rest.starts_with(*word)) {
            out.extend(["\"", word, "\""]);
            rest = &rest[word.len()..];
            continue;
        }
        let mut length = first.len_utf8();
        if first == '"' {
            inside = !inside;
        } else if inside && first == '\\' {
            length += rest[length..].chars().next().map_or(0, char::len_utf8);
        }
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    out
}
