//! Groundtruth and detections from the files that the reference's offline tools read.

pub mod coco_json;
pub mod open_images;
mod table;
pub mod vrd;

use std::path::{Path, PathBuf};

/// What is wrong with a file, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}{place}: {message}", path.display())]
pub struct Error {
    /// Which file.
    pub path: PathBuf,
    /// Where in it.
    pub place: Place,
    /// What is wrong, and a hint.
    pub message: String,
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    Whole,
    /// From 1.
    Line(u64),
    /// An entry of a list, from 0.
    Record(&'static str, usize),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole => Ok(()),
            Self::Line(line) => write!(f, ":{line}"),
            Self::Record(list, index) => write!(f, ": {list}[{index}]"),
        }
    }
}

impl Error {
    pub(crate) fn new(path: &Path, place: Place, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            place,
            message: message.into(),
        }
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    coati_storage::read(path).map_err(|error| {
        Error::new(
            path,
            Place::Whole,
            format!("cannot be read: {error}\nhint: is the path right?"),
        )
    })
}
