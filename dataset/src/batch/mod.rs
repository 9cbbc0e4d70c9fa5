//! Batches of training images, prepared ahead of their use.

mod loader;
mod prepare;
mod records;
mod slots;

pub use loader::{Lease, Loader};
pub use prepare::{Item, Preparer};
pub use records::Records;

use crate::augment::Augmentation;
use crate::bad::TooMany;
use crate::groundtruth::Groundtruth;
use crate::order::Selection;
use crate::resize::{ImageResizer, Limits};
use crate::{augment, decode, example};

/// What training needs of a batch of records.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// `[n, height, width, channels]`, values from 0 to 255: resized, not yet normalised.
    pub images: Vec<f32>,
    /// Rows of each image.
    pub height: usize,
    /// Columns of each image.
    pub width: usize,
    /// The objects of each image; boxes normalised to the image as augmented.
    pub groundtruth: Vec<Groundtruth>,
    /// `image/source_id` of each record.
    pub source_ids: Vec<String>,
    /// `image/filename` of each record.
    pub filenames: Vec<String>,
    /// Number of each record in the data set; the replacement's where a record was replaced.
    pub records: Vec<u64>,
    /// Height and width of each stored image, before any crop.
    pub original_sizes: Vec<[usize; 2]>,
    /// The part of each image that holds picture and not padding: `[height, width, channels]`.
    pub true_image_shapes: Vec<[usize; 3]>,
    /// What was wrong with records met on the way, by file and record number.
    pub bad_records: Vec<String>,
    /// How many objects were cut off by `max_number_of_boxes`.
    pub objects_cut: usize,
}

impl Batch {
    /// The number of images.
    pub fn len(&self) -> usize {
        self.groundtruth.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.groundtruth.is_empty()
    }
}

/// How batches are made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Rows of the model's input (`fixed_shape_resizer.height`); nothing where the resizer leaves many sizes.
    pub height: usize,
    /// Columns of the model's input; likewise.
    pub width: usize,
    /// `image_resizer`; `None` for `fixed_shape_resizer` with `height`, `width` and its defaults. Where it gives all images one size, that must
    /// be `height` and `width`; where it leaves many, images of different sizes cannot be one batch.
    pub resizer: Option<ImageResizer>,
    /// Which sizes it may leave; an image beyond them is a bad record.
    pub limits: Limits,
    /// Steps of `data_augmentation_options`, in order.
    pub augmentations: Vec<Augmentation>,
    /// The label map, and whether bad objects make the record bad.
    pub example: example::Options,
    /// What else is read of each record.
    pub extras: example::Extras,
    /// Limits of image decoding.
    pub decode: decode::Options,
    /// Of the order of records and of all augmentation.
    pub seed: u64,
    /// `input_reader.shuffle`.
    pub shuffle: bool,
    /// `sample_1_of_n_examples`, `sample_from_datasets_weights`.
    pub selection: Selection,
    /// `input_reader.max_number_of_boxes`: later objects are cut off, as in the reference.
    pub max_number_of_boxes: usize,
    /// Threads that read, decode and resize.
    pub threads: usize,
    /// Batches in the making or ready at any time; each takes `n * height * width * 12` bytes.
    pub prefetch: usize,
    /// How many different records may be bad before loading fails; `None` for [`crate::bad::default_limit`].
    /// 0, together with `example.strict`, makes any flaw an error.
    pub max_bad_records: Option<u64>,
}

impl Options {
    /// Channels of the images of a batch.
    pub fn channels(&self) -> usize {
        let stored = 3 + self.extras.additional_channels;
        let augmented = augment::channels(&self.augmentations, stored);
        self.resizer
            .as_ref()
            .map_or(augmented, |resizer| resizer.channels(augmented))
    }

    /// Whether images come in many sizes.
    pub fn many_sizes(&self) -> bool {
        self.resizer.as_ref().is_some_and(|resizer| resizer.size().is_none())
    }

    /// Floats of an image; 0 where that is not known before.
    pub fn image_len(&self) -> usize {
        if self.many_sizes() {
            0
        } else {
            self.height * self.width * self.channels()
        }
    }

    /// Refuses what cannot be.
    fn check(&self) -> Result<(), Error> {
        let wrong = |name, value: String, right| Err(Error::Options { name, value, right });
        if self.many_sizes() {
            return Ok(());
        }
        for (name, value) in [("height", self.height), ("width", self.width)] {
            if !(1..=1 << 14).contains(&value) {
                return wrong(name, value.to_string(), "from 1 to 16384 pixels");
            }
        }
        match self.resizer.as_ref().map(ImageResizer::size) {
            None | Some(None) => Ok(()),
            Some(Some(size)) if size == (self.height, self.width) => Ok(()),
            Some(Some((height, width))) => wrong(
                "image_resizer",
                format!("{height} x {width}"),
                "of the size that batches have",
            ),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            height: 300,
            width: 300,
            resizer: None,
            limits: Limits::default(),
            augmentations: Vec::new(),
            example: example::Options::default(),
            extras: example::Extras::default(),
            decode: decode::Options::default(),
            seed: 0,
            shuffle: true,
            selection: Selection::default(),
            max_number_of_boxes: 100,
            threads: 2,
            prefetch: 3,
            max_bad_records: None,
        }
    }
}

/// Why there is no batch.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Too many records are bad.
    #[error(transparent)]
    TooManyBad(#[from] TooMany),
    /// Not one record can be used.
    #[error("none of the {count} records can be used; the first: {first}")]
    NoneGood {
        /// How many there are.
        count: u64,
        /// What is wrong with the first one tried.
        first: String,
    },
    /// The batch is not ready in time.
    #[error(
        "lease {lease}: only {done} of {count} images were ready after {waited:.1} s of waiting for this process's input threads\nhint: give the input more threads, or look whether the disk is slow"
    )]
    Deadline {
        /// The lease that is waited for.
        lease: u64,
        /// Images that are ready.
        done: usize,
        /// Images of the batch.
        count: usize,
        /// Seconds.
        waited: f64,
    },
    /// The images of a batch differ.
    #[error(
        "lease {lease}: {first} is {} x {} pixels and {other} is {} x {}, so they cannot be one batch\nhint: train_config {{ batch_size: 1 }}, or an \
         image_resizer that gives all images one size: fixed_shape_resizer, or keep_aspect_ratio_resizer with pad_to_max_dimension: true",
        sizes[0][0], sizes[0][1], sizes[1][0], sizes[1][1]
    )]
    Sizes {
        /// The lease.
        lease: u64,
        /// `image/filename`.
        first: String,
        /// Of another image.
        other: String,
        /// Height and width of both.
        sizes: [[usize; 2]; 2],
    },
    /// Nothing was asked for.
    #[error("no batch was requested")]
    NothingRequested,
    /// A setting that makes no sense.
    #[error("{name}: {value} must be {right}")]
    Options {
        /// The setting.
        name: &'static str,
        /// As given.
        value: String,
        /// What would be right.
        right: &'static str,
    },
    /// A defect of this program.
    #[error("{record}: preparing this record failed in an unforeseen way: {message}")]
    Internal {
        /// File and record number.
        record: String,
        /// What was said.
        message: String,
    },
}

#[cfg(test)]
mod tests;
