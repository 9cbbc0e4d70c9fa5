//! `random_pixel_value_scale`: each value of each pixel by its own factor.

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::{Failure, Operation, Sample};
use crate::random::Stream;

/// `random_pixel_value_scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RandomPixelValueScale {
    range: (f32, f32),
}

impl RandomPixelValueScale {
    pub(super) fn from_config(scale: &config::RandomPixelValueScale, at: &At) -> Result<Self, Error> {
        let range = at.range(["minval", "maxval"], (scale.minval(), scale.maxval()), 0.0)?;
        Ok(Self { range })
    }
}

impl Operation for RandomPixelValueScale {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        for value in &mut sample.picture.pixels()?.values {
            *value = (*value * random.between(self.range)).clamp(0.0, 255.0);
        }
        Ok(())
    }
}
