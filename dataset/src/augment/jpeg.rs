//! `random_jpeg_quality`: through JPEG and back.

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::{Failure, Operation, Sample};
use crate::decode::recompress;
use crate::pixels::Pixels;
use crate::random::Stream;

/// `random_jpeg_quality`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RandomJpegQuality {
    random_coef: f32,
    qualities: (i32, i32),
}

impl RandomJpegQuality {
    pub(super) fn from_config(quality: &config::RandomJpegQuality, at: &At) -> Result<Self, Error> {
        let (least, most) = (quality.min_jpeg_quality(), quality.max_jpeg_quality());
        at.check("min_jpeg_quality", least, (0..=100).contains(&least), "from 0 to 100")?;
        at.check(
            "max_jpeg_quality",
            most,
            (least..=100).contains(&most),
            "from min_jpeg_quality to 100",
        )?;
        Ok(Self {
            random_coef: at.share("random_coef", quality.random_coef())?,
            qualities: (least, most),
        })
    }
}

impl Operation for RandomJpegQuality {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        if random.unit() < self.random_coef {
            return Ok(());
        }
        let quality = random.integer(i64::from(self.qualities.0), i64::from(self.qualities.1));
        let pixels = sample.picture.pixels()?;
        let colors = Pixels::from(&recompress(&pixels.to_image(), quality as i32)?);
        // Channels beyond three stay, and a grey image stays grey.
        let taken = pixels.channels.min(3);
        for (pixel, color) in pixels
            .values
            .chunks_exact_mut(pixels.channels)
            .zip(colors.values.chunks_exact(3))
        {
            pixel[..taken].copy_from_slice(&color[..taken]);
        }
        Ok(())
    }
}
