//! Linear changes of all pixel values (`normalize_image`, `subtract_channel_mean`).

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::{Failure, Operation, Sample};
use crate::random::Stream;

/// `normalize_image`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct NormalizeImage {
    original: (f32, f32),
    target: (f32, f32),
}

impl NormalizeImage {
    pub(super) fn from_config(normalize: &config::NormalizeImage, at: &At) -> Result<Self, Error> {
        let original = (
            at.finite("original_minval", normalize.original_minval())?,
            at.finite("original_maxval", normalize.original_maxval())?,
        );
        let (low, high) = original;
        at.check(
            "original_maxval",
            high,
            high != low,
            "another value than original_minval",
        )?;
        let target = (
            at.finite("target_minval", normalize.target_minval())?,
            at.finite("target_maxval", normalize.target_maxval())?,
        );
        Ok(Self { original, target })
    }
}

impl Operation for NormalizeImage {
    fn apply(&self, sample: &mut Sample<'_>, _: &mut Stream) -> Result<(), Failure> {
        // The reference divides in double precision.
        let width = |(low, high): (f32, f32)| f64::from(high) - f64::from(low);
        let scale = (width(self.target) / width(self.original)) as f32;
        for value in &mut sample.picture.pixels()?.values {
            *value = (*value - self.original.0) * scale + self.target.0;
        }
        Ok(())
    }
}

/// `subtract_channel_mean`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SubtractChannelMean {
    means: Vec<f32>,
}

impl SubtractChannelMean {
    pub(super) fn from_config(subtract: &config::SubtractChannelMean, at: &At) -> Result<Self, Error> {
        let means = &subtract.means;
        at.check(
            "means",
            format!("{means:?} for images of {} channels", at.channels()),
            means.len() == at.channels() && means.iter().all(|mean| mean.is_finite()),
            "a value a channel",
        )?;
        Ok(Self { means: means.clone() })
    }
}

impl Operation for SubtractChannelMean {
    fn apply(&self, sample: &mut Sample<'_>, _: &mut Stream) -> Result<(), Failure> {
        let pixels = sample.picture.pixels()?;
        for pixel in pixels.values.chunks_exact_mut(pixels.channels) {
            for (value, mean) in pixel.iter_mut().zip(&self.means) {
                *value -= mean;
            }
        }
        Ok(())
    }
}
