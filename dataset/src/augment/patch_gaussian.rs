//! `random_patch_gaussian`: noise within a square (Lopes et al., arXiv:1906.02611).

use coati_proto::object_detection::protos as config;

use super::config::{At, Error};
use super::{Failure, Operation, Sample};
use crate::random::Stream;

/// `random_patch_gaussian`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RandomPatchGaussian {
    random_coef: f32,
    sizes: (usize, usize),
    deviations: (f32, f32),
}

impl RandomPatchGaussian {
    pub(super) fn from_config(patch: &config::RandomPatchGaussian, at: &At) -> Result<Self, Error> {
        let least = at.count("min_patch_size", patch.min_patch_size(), 1)?;
        let most = at.count("max_patch_size", patch.max_patch_size(), 1)?;
        at.check("max_patch_size", most, most >= least, "at least min_patch_size")?;
        let deviations = (patch.min_gaussian_stddev(), patch.max_gaussian_stddev());
        Ok(Self {
            random_coef: at.share("random_coef", patch.random_coef())?,
            sizes: (least, most),
            deviations: at.range(["min_gaussian_stddev", "max_gaussian_stddev"], deviations, 0.0)?,
        })
    }
}

impl Operation for RandomPatchGaussian {
    fn apply(&self, sample: &mut Sample<'_>, random: &mut Stream) -> Result<(), Failure> {
        if random.unit() < self.random_coef {
            return Ok(());
        }
        let size = random.integer(self.sizes.0 as i64, self.sizes.1 as i64) as usize;
        let deviation = random.between(self.deviations);
        let (height, width) = sample.picture.size();
        let y = random.below(height as u64) as usize;
        let x = random.below(width as u64) as usize;
        // `get_patch_mask`: the centre of an even patch is the lower right one of its four.
        let part =
            |center: usize, side: usize| (center.saturating_sub(size / 2), (center + size.div_ceil(2)).min(side));
        let ((top, bottom), (left, right)) = (part(y, height), part(x, width));
        let pixels = sample.picture.pixels()?;
        let channels = pixels.channels;
        for row in pixels.rows_mut().skip(top).take(bottom - top) {
            for pair in row[left * channels..right * channels].chunks_mut(2) {
                for (value, noise) in pair.iter_mut().zip(random.normals()) {
                    *value = (*value / 255.0 + noise * deviation).clamp(0.0, 1.0) * 255.0;
                }
            }
        }
        Ok(())
    }
}
