//! `random_black_patches`: black squares.

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::{Failure, Operation, Sample};
use crate::random::Stream;

/// `random_black_patches`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RandomBlackPatches {
    most: usize,
    probability: f32,
    ratio: f32,
}

impl RandomBlackPatches {
    pub(super) fn from_config(patches: &config::RandomBlackPatches, at: &At) -> Result<Self, Error> {
        Ok(Self {
            most: at.count("max_black_patches", patches.max_black_patches(), 0)?,
            probability: at.share("probability", patches.probability())?,
            ratio: at.share("size_to_image_ratio", patches.size_to_image_ratio())?,
        })
    }
}

impl Operation for RandomBlackPatches {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        let (height, width) = sample.picture.size();
        let size = (height.min(width) as f32 * self.ratio) as usize;
        for _ in 0..self.most {
            if random.unit() >= self.probability {
                continue;
            }
            let mut place = |side: usize| (random.between((0.0, 1.0 - self.ratio)) * side as f32) as usize;
            let (top, left) = (place(height), place(width));
            let pixels = sample.picture.pixels()?;
            let channels = pixels.channels;
            for row in pixels.rows_mut().skip(top).take(size) {
                let end = (left + size).min(width);
                row[left * channels..end * channels].fill(0.0);
            }
        }
        Ok(())
    }
}
