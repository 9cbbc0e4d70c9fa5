//! Random changes of training images and their objects (`core/preprocessor.py`).
//!
//! The distributions are the reference's; the random numbers are ours, a function of (seed, epoch, record), so that
//! a record looks the same whichever replica prepares it and whenever. Crops and mirrors only change the [`View`] of the
//! stored image: pixels that nobody needs are not even decoded. A step that must see pixels makes floats of them once.
//!
//! A new step: a type with [`Operation`] in a file of its own, and a line in `config.rs`.

mod autoaugment;
mod black_patches;
mod color;
mod concat;
mod config;
mod crop;
mod crop_pad;
mod flip;
mod gray;
mod hsv;
mod jitter;
mod jpeg;
mod labels;
mod normalize;
mod pad;
mod patch_gaussian;
mod picture;
mod pixel_scale;
mod sample;
mod scale;
mod square;
mod window;

use std::fmt;
use std::sync::Arc;

pub use config::{Error, from_config};
pub use crop::{CropOperation, SsdRandomCrop, ssd_operations};
pub use flip::{RandomHorizontalFlip, RandomVerticalFlip};
pub use picture::{Finished, Picture, Stored};
pub use sample::{Constraints, Window, sample_window};

use crate::decode;
use crate::groundtruth::Groundtruth;
use crate::random::Stream;
#[cfg(doc)]
use crate::resize::View;

const PURPOSE: [u8; 8] = *b"augment1";

/// What a step changes.
#[derive(Debug)]
pub struct Sample<'a> {
    /// The image.
    pub picture: Picture<'a>,
    /// Its objects; masks are as large as the image.
    pub objects: Groundtruth,
}

impl<'a> Sample<'a> {
    /// A stored image of `height` x `width` pixels and its objects.
    pub fn new(height: usize, width: usize, stored: &'a mut dyn Stored, objects: Groundtruth) -> Self {
        Self {
            picture: Picture::new(height, width, stored),
            objects,
        }
    }
}

/// Why a step cannot change a sample.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The image cannot be decoded.
    #[error(transparent)]
    Decode(#[from] decode::Error),
    /// Keypoints change places when an image is mirrored, and the step does not say how.
    #[error(
        "{step}: the record has {keypoints} keypoints an object and {field} names {found}\nhint: list for each keypoint the one that takes its place, for example {field}: 0"
    )]
    Permutation {
        /// The step.
        step: &'static str,
        /// Its field.
        field: &'static str,
        /// In the record.
        keypoints: usize,
        /// In the step.
        found: usize,
    },
    /// The image would grow beyond reason.
    #[error("{step} makes an image of {height} x {width} pixels, more than the limit of {MAX_PIXELS}")]
    TooLarge {
        /// The step.
        step: &'static str,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
}

/// The most pixels that a step may make of an image.
pub const MAX_PIXELS: usize = 1 << 26;

/// Refuses sizes that would take the machine's memory.
fn check_size(step: &'static str, height: usize, width: usize) -> Result<(), Failure> {
    match height.checked_mul(width) {
        Some(pixels) if pixels <= MAX_PIXELS => Ok(()),
        _ => Err(Failure::TooLarge { step, height, width }),
    }
}

/// One way to change a sample.
pub trait Operation: fmt::Debug + Send + Sync {
    /// Changes the sample. All randomness comes from `random`.
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure>;

    /// How many channels are left of `before`.
    fn channels(&self, before: usize) -> usize {
        before
    }
}

/// One step of `train_config.data_augmentation_options`.
#[derive(Debug, Clone)]
pub struct Augmentation(Arc<dyn Operation>);

impl<T: Operation + 'static> From<T> for Augmentation {
    fn from(operation: T) -> Self {
        Self(Arc::new(operation))
    }
}

/// The random numbers of one record in one epoch.
pub fn stream(seed: u64, epoch: u64, record: u64) -> Stream {
    Stream::new(PURPOSE, seed, epoch, record)
}

/// Applies the steps in order.
pub fn apply(steps: &[Augmentation], sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
    steps.iter().try_for_each(|step| step.0.apply(sample, random))
}

/// How many channels the steps leave of an image of `before`.
pub fn channels(steps: &[Augmentation], before: usize) -> usize {
    steps.iter().fold(before, |channels, step| step.0.channels(channels))
}

#[cfg(test)]
mod distributions;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod invariants;
#[cfg(test)]
mod tests;
