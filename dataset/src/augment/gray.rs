//! Colours away (`rgb_to_gray`, `random_rgb_to_gray`).

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::{Failure, Operation, Sample};
use crate::pixels::gray;
use crate::random::Stream;

/// `rgb_to_gray`: one channel is left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RgbToGray;

impl Operation for RgbToGray {
    fn apply(&self, sample: &mut Sample<'_>, _: &mut Stream) -> Result<(), Failure> {
        let pixels = sample.picture.pixels()?;
        *pixels = std::mem::take(pixels).to_gray();
        Ok(())
    }

    fn channels(&self, before: usize) -> usize {
        if before >= 3 { 1 } else { before }
    }
}

/// `random_rgb_to_gray`: three equal channels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RandomRgbToGray {
    probability: f32,
}

impl RandomRgbToGray {
    pub(super) fn from_config(gray: &config::RandomRgBtoGray, at: &At) -> Result<Self, Error> {
        Ok(Self {
            probability: at.share("probability", gray.probability())?,
        })
    }
}

impl Operation for RandomRgbToGray {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        if random.unit() < self.probability {
            sample.picture.pixels()?.for_each_rgb(|rgb| *rgb = [gray(*rgb); 3]);
        }
        Ok(())
    }
}
