//! What cannot be evaluated, in words for whoever made the files.

use std::path::PathBuf;

/// What cannot be evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The same image was added before.
    #[error(
        "image `{0}` was added twice\nhint: each image needs an id of its own (`image/source_id`); is a record in two shards?"
    )]
    DuplicateImage(String),
    /// Detections for an image without groundtruth entry.
    #[error(
        "detections for image `{0}`, whose groundtruth was not added\nhint: do detections and groundtruth come from the same set?"
    )]
    UnknownImage(String),
    /// Parallel lists of different lengths.
    #[error("image `{image}`: {boxes} boxes but {other} {what}\nhint: each box needs one of each")]
    Lengths {
        /// Which image.
        image: String,
        /// Number of boxes.
        boxes: usize,
        /// Which list.
        what: &'static str,
        /// Its length.
        other: usize,
    },
    /// A box that is not one.
    #[error(
        "image `{image}`: box {index} is {value:?}; four finite pixel coordinates [ymin, xmin, ymax, xmax] are needed\nhint: NaN comes from a model that diverged or from a division by an image size of 0"
    )]
    BadBox {
        /// Which image.
        image: String,
        /// Index of the box in its list.
        index: usize,
        /// Its coordinates.
        value: [f64; 4],
    },
    /// A groundtruth box whose end lies before its beginning.
    #[error(
        "image `{image}`: groundtruth box {index} is {value:?}, which ends before it begins\nhint: the order is [ymin, xmin, ymax, xmax]; are corners mixed up, or width and height given for the second corner?"
    )]
    Inverted {
        /// Which image.
        image: String,
        /// Index of the box in its list.
        index: usize,
        /// Its coordinates.
        value: [f64; 4],
    },
    /// All boxes of a kind lie in the unit square although images are larger.
    #[error(
        "all {boxes} {what} boxes lie within {largest} of the corner, the first in image `{image}`: these are fractions, and pixels are due\nhint: multiply y by the image's height and x by its width"
    )]
    Fractions {
        /// `groundtruth` or `detection`.
        what: &'static str,
        /// How many boxes there are.
        boxes: usize,
        /// The largest coordinate.
        largest: f64,
        /// The first image that has one.
        image: String,
    },
    /// A score that is not a number.
    #[error("image `{image}`: score {index} is not a number\nhint: a model that diverged gives NaN; look at the loss")]
    BadScore {
        /// Which image.
        image: String,
        /// Index in the list.
        index: usize,
    },
    /// A class that the label map does not have.
    #[error(
        "image `{image}`: class {class} is not in the label map\nhint: classes start at 1 here; is this the label map that the records were made with?"
    )]
    UnknownClass {
        /// Which image.
        image: String,
        /// The class id.
        class: u32,
    },
    /// Masks of one image that differ in size.
    #[error(
        "image `{image}`: a mask of {found:?} pixels (height, width) beside one of {wanted:?}\nhint: all masks of an image have the image's size"
    )]
    MaskSize {
        /// Which image.
        image: String,
        /// Height and width of the other masks.
        wanted: [u32; 2],
        /// Height and width of this one.
        found: [u32; 2],
    },
    /// Mask metrics without masks.
    #[error(
        "image `{image}`: {boxes} {what} boxes and no masks\nhint: {metric} compares masks; give them, or use the metric for boxes"
    )]
    NoMasks {
        /// Which image.
        image: String,
        /// `groundtruth` or `detection`.
        what: &'static str,
        /// How many boxes there are.
        boxes: usize,
        /// The metric that was asked for.
        metric: &'static str,
    },
    /// A mask that is none.
    #[error("{0}")]
    BadMask(String),
    /// A name that `metrics_set` does not know.
    #[error("metrics_set: `{name}` is not a metric{near}\nhint: known are {known}")]
    UnknownMetric {
        /// As written.
        name: String,
        /// `; did you mean …?` or nothing.
        near: String,
        /// All names.
        known: String,
    },
    /// Nothing was added.
    #[error("no image was evaluated\nhint: is the evaluation set empty?")]
    Empty,
    /// A file could not be written.
    #[error("cannot write {path}: {message}")]
    File {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// From the metrics library.
    #[error("COCO metrics: {0}")]
    Library(#[from] hotcoco::Error),
}
