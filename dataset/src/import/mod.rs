//! From other people's annotation formats into sharded TFRecords of `tf.Example`.

pub mod feature;
pub mod sharded;
pub mod voc;
mod voc_layout;
mod voc_xml;

use std::io;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

/// What an import did, and what it left out and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Records written.
    pub images: usize,
    /// `(class, boxes)` in the label map's order.
    #[serde(serialize_with = "as_map")]
    pub boxes: Vec<(String, usize)>,
    /// Files written.
    pub files: Vec<PathBuf>,
    /// Images that were left out: file and reason.
    pub skipped_images: Vec<String>,
    /// Boxes that were left out or cut: file, object and reason.
    pub warnings: Vec<String>,
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
    #[error("{path}: {source}\nhint: is the folder writable, and is there room on the disk?")]
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
    /// Nothing to write.
    #[error("{folder}: no annotated images\nhint: {hint}")]
    Empty {
        /// Which folder.
        folder: PathBuf,
        /// What would be right.
        hint: String,
    },
}
