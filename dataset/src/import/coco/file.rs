//! COCO's annotation files (JSON): images, categories, objects, captions.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use hotcoco::mask;
use hotcoco::types::Rle;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::{Error, text};

/// Files larger than this are refused: COCO's own largest has 0.5 GB.
const MOST: u64 = 8 << 30;

/// An image's or object's number. Tools of one's own write strings, too.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(untagged)]
pub(in crate::import) enum Id {
    Number(i64),
    Text(String),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(in crate::import) struct Image {
    pub id: Id,
    pub file_name: String,
}

#[derive(Debug, Deserialize)]
pub(in crate::import) struct Category {
    pub id: i64,
    pub name: String,
}

/// An object or a caption: which of them is told by what it has.
#[derive(Debug, Deserialize)]
pub(in crate::import) struct Annotation<'a> {
    #[serde(default)]
    pub id: Option<Id>,
    pub image_id: Id,
    #[serde(default)]
    pub category_id: Option<i64>,
    /// `[x, y, width, height]` in pixels.
    #[serde(default)]
    pub bbox: Option<Vec<f64>>,
    #[serde(default)]
    pub area: Option<f64>,
    #[serde(default)]
    pub iscrowd: Flag,
    /// Read when masks are wanted.
    #[serde(default, borrow)]
    pub segmentation: Option<&'a RawValue>,
    #[serde(default)]
    pub caption: Option<String>,
}

/// 0 or 1, or false or true as some tools have it.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::import) struct Flag(pub bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Bool(bool),
            Number(i64),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::Bool(set) => set,
            Either::Number(number) => number != 0,
        }))
    }
}

#[derive(Debug, Default, Deserialize)]
pub(in crate::import) struct Content<'a> {
    #[serde(default)]
    pub images: Vec<Image>,
    #[serde(default, borrow)]
    pub annotations: Vec<Annotation<'a>>,
    #[serde(default)]
    pub categories: Vec<Category>,
}

impl<'a> Content<'a> {
    pub(in crate::import) fn parse(path: &Path, text: &'a str) -> Result<Self, Error> {
        serde_json::from_str(text).map_err(|error| Error::Annotation {
            path: path.to_owned(),
            line: error.line() as u32,
            what: format!("column {}: {error}", error.column()),
            hint: "a COCO file is one JSON object with `images`, `annotations` and `categories`".to_owned(),
        })
    }
}

/// A file's text.
pub(in crate::import) fn read(path: &Path) -> Result<String, Error> {
    text::read(path, MOST)
}

/// Numbers of annotations by image.
pub(in crate::import) fn by_image<'a>(annotations: &'a [Annotation]) -> HashMap<&'a Id, Vec<usize>> {
    let mut found: HashMap<&Id, Vec<usize>> = HashMap::new();
    for (index, annotation) in annotations.iter().enumerate() {
        found.entry(&annotation.image_id).or_default().push(index);
    }
    found
}

/// The run lengths of a `segmentation`: polygons, run lengths as numbers, or COCO's compressed string.
pub(in crate::import) fn segmentation(raw: &RawValue, height: u32, width: u32) -> Result<Rle, String> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Segmentation {
        Polygons(Vec<Vec<f64>>),
        Runs { counts: Vec<u32>, size: [u32; 2] },
        Packed { counts: String, size: [u32; 2] },
    }
    let parsed: Segmentation = serde_json::from_str(raw.get())
        .map_err(|_| "is neither a list of polygons nor run lengths (`counts` and `size`)".to_owned())?;
    let fits = |size: [u32; 2]| {
        (size == [height, width])
            .then_some(())
            .ok_or_else(|| format!("is {}x{}, the image {width}x{height}", size[1], size[0]))
    };
    let failed = |error: hotcoco::error::Error| error.to_string();
    match parsed {
        Segmentation::Polygons(polygons) => {
            if polygons.is_empty() || polygons.iter().any(|points| points.len() < 6 || points.len() % 2 != 0) {
                return Err("has a polygon of less than three points (x, y, x, y, …)".to_owned());
            }
            mask::fr_polys(&polygons, height, width).map_err(failed)
        }
        Segmentation::Runs { counts, size } => {
            fits(size)?;
            mask::check_counts(&counts, height, width).map_err(failed)?;
            Ok(Rle {
                h: height,
                w: width,
                counts,
            })
        }
        Segmentation::Packed { counts, size } => {
            fits(size)?;
            mask::rle_from_string(&counts, height, width).map_err(failed)
        }
    }
}

/// Where an image lies: `file_name` below the folder.
pub(in crate::import) fn image_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(name)
}
