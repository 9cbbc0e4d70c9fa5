//! Random changes of training images and their boxes (`core/preprocessor.py`).
//!
//! The distributions are the reference's; the random numbers are ours, a function of (seed, epoch, record), so that
//! a record looks the same whichever replica prepares it and whenever. Only the [`View`] of the stored image is
//! decided here; pixels are touched once, when the view is resized.

mod config;
mod crop;
mod sample;

pub use config::{Error, from_config};
pub use crop::{CropOperation, ssd_operations};
pub use sample::{Constraints, Window, sample_window};

use crate::groundtruth::Groundtruth;
use crate::random::Stream;
use crate::resize::View;

const PURPOSE: [u8; 8] = *b"augment1";

/// One step of `train_config.data_augmentation_options`.
#[derive(Debug, Clone, PartialEq)]
pub enum Augmentation {
    /// `random_horizontal_flip`.
    HorizontalFlip {
        /// How often the image is mirrored; the reference's default is 0.5.
        probability: f32,
    },
    /// `random_crop_image`.
    Crop(CropOperation),
    /// `ssd_random_crop`: one of the operations, each as likely.
    SsdCrop(Vec<CropOperation>),
}

/// The random numbers of one record in one epoch.
pub fn stream(seed: u64, epoch: u64, record: u64) -> Stream {
    Stream::new(PURPOSE, seed, epoch, record)
}

/// Applies the steps in order to an image of `height` x `width` pixels: changes the boxes (and drops those that a
/// crop leaves out), returns which part of the image is to be used.
pub fn apply(
    steps: &[Augmentation],
    height: usize,
    width: usize,
    objects: &mut Groundtruth,
    random: &mut Stream,
) -> View {
    let mut view = View::whole(height, width);
    for step in steps {
        match step {
            Augmentation::HorizontalFlip { probability } => {
                if random.unit() < *probability {
                    view = view.flip();
                    flip_boxes(&mut objects.boxes);
                }
            }
            Augmentation::Crop(operation) => view = operation.apply(view, objects, random),
            Augmentation::SsdCrop(operations) => {
                let chosen = random.below(operations.len() as u64) as usize;
                if let Some(operation) = operations.get(chosen) {
                    view = operation.apply(view, objects, random);
                }
            }
        }
    }
    view
}

/// Mirrors normalised boxes (`_flip_boxes_left_right`).
fn flip_boxes(boxes: &mut [[f32; 4]]) {
    for [_, xmin, _, xmax] in boxes {
        (*xmin, *xmax) = (1.0 - *xmax, 1.0 - *xmin);
    }
}

#[cfg(test)]
mod tests;
