//! From other people's annotation formats into sharded TFRecords of `tf.Example`, with the fields of the reference's
//! `create_*_tf_record` scripts.
//!
//! A format's module lists its images and makes a record of each; [`engine`] does the rest for all of them.

pub mod coco;
pub mod csv;
pub mod discover;
pub mod engine;
pub mod feature;
mod files;
pub mod folder;
pub mod hierarchy;
pub mod kitti;
pub mod masks;
mod objects;
pub mod oid;
pub mod pets;
pub mod picture;
pub mod sharded;
mod table;
pub(crate) mod text;
pub mod voc;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

pub use engine::{Output, Progress};

/// What an import did, and what it left out and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Records written.
    pub images: usize,
    /// Of these, records without a box.
    pub images_without_boxes: usize,
    /// `(class, boxes)` in the label map's order.
    #[serde(serialize_with = "as_map")]
    pub boxes: Vec<(String, usize)>,
    /// Sizes of the images, the most frequent first.
    pub image_sizes: Vec<Size>,
    /// Files written.
    pub files: Vec<PathBuf>,
    /// How many boxes were left out, by reason.
    pub boxes_left_out: BTreeMap<String, usize>,
    /// Images that were left out: file and reason.
    pub skipped_images: Vec<String>,
    /// Boxes that were left out or cut: file, object and reason.
    pub warnings: Vec<String>,
}

/// How many images have a size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Images of that size.
    pub images: usize,
}

fn as_map<S: Serializer>(boxes: &[(String, usize)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(boxes.iter().map(|(class, count)| (class, count)))
}

/// What stops an import.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be written.
    #[error(
        "{path}: {source}{}",
        coati_storage::hint_or(source, "\nhint: is the folder writable, and is there room on the disk?")
    )]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder does not look like any layout that is known.
    #[error("{folder}: {what}\nhint: {hint}")]
    Layout {
        /// Which folder.
        folder: PathBuf,
        /// What is missing.
        what: String,
        /// What would be right.
        hint: String,
    },
    /// An annotation that cannot be used.
    #[error("{path}:{line}: {what}\nhint: {hint}")]
    Annotation {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: u32,
        /// What is wrong.
        what: String,
        /// What would be right.
        hint: String,
    },
    /// An entry of a file whose lines say nothing to people.
    #[error("{path}: {what}\nhint: {hint}")]
    Record {
        /// Which file.
        path: PathBuf,
        /// Which entry, and what is wrong with it.
        what: String,
        /// What would be right.
        hint: String,
    },
    /// More images were unusable than is plausible.
    #[error(
        "{skipped} of {images} images could not be used; the first: {first}\nhint: nothing was written; --max_skipped raises the limit"
    )]
    TooManySkipped {
        /// How many.
        skipped: usize,
        /// Of how many.
        images: usize,
        /// The first reason.
        first: String,
    },
    /// All of them were unusable.
    #[error(
        "none of the {images} images can be used; the first: {first}\nhint: nothing was written; are these the images that the annotations are about, and where the flags say?"
    )]
    NoneUsable {
        /// How many.
        images: usize,
        /// The first reason.
        first: String,
    },
    /// Nothing to write.
    #[error("{folder}: no annotated images\nhint: {hint}")]
    Empty {
        /// Which folder.
        folder: PathBuf,
        /// What would be right.
        hint: String,
    },
}
