//! `RetinaNet`'s anchors (arXiv:1708.02002): sizes follow the level's stride.

use super::{Error, Grid, normalise};
use crate::Corners;

/// The message `MultiscaleAnchorGenerator`.
#[derive(Clone, Debug, PartialEq)]
pub struct Multiscale {
    /// First level; its stride is `2 ^ level` pixels.
    pub min_level: u32,
    /// Last level.
    pub max_level: u32,
    /// Side of an anchor in strides.
    pub anchor_scale: f32,
    /// Width over height.
    pub aspect_ratios: Vec<f32>,
    /// Sizes between one level and the next.
    pub scales_per_octave: u32,
    /// Divide by the image's size; otherwise pixels.
    pub normalize_coordinates: bool,
}

impl Multiscale {
    /// Anchors at each location of each feature map.
    pub fn anchors_per_location(&self) -> Result<Vec<usize>, Error> {
        let levels = self.levels()?.count();
        Ok(vec![self.aspect_ratios.len() * self.scales_per_octave as usize; levels])
    }

    /// Anchors for feature maps and an image of the given (height, width) in pixels.
    pub fn generate(&self, feature_maps: &[(usize, usize)], image: (usize, usize)) -> Result<Vec<Corners>, Error> {
        let expected = self.levels()?.count();
        if feature_maps.len() != expected {
            return Err(Error::FeatureMaps {
                expected,
                found: feature_maps.len(),
            });
        }
        let octave = f64::from(self.scales_per_octave);
        let scales: Vec<f32> = (0..self.scales_per_octave)
            .map(|i| (f64::from(i) / octave).exp2() as f32)
            .collect();
        let mut anchors = Vec::new();
        for (level, &size) in self.levels()?.zip(feature_maps) {
            let stride = 1_usize << level;
            // A map whose last location would hang over the image's edge starts at the corner.
            let offset = |length: usize| {
                if length.is_multiple_of(stride) || length == 1 {
                    stride as f32 / 2.0
                } else {
                    0.0
                }
            };
            let side = stride as f32 * self.anchor_scale;
            let grid = Grid {
                scales: scales.clone(),
                aspect_ratios: self.aspect_ratios.clone(),
                base: (side, side),
                stride: (stride as f32, stride as f32),
                offset: (offset(image.0), offset(image.1)),
            };
            anchors.extend(grid.generate(&[size])?);
        }
        if self.normalize_coordinates {
            normalise(&mut anchors, image);
        }
        Ok(anchors)
    }

    fn levels(&self) -> Result<std::ops::RangeInclusive<u32>, Error> {
        if self.max_level > 30 || self.min_level > self.max_level {
            let value = format!("{} to {}", self.min_level, self.max_level);
            let expected = "min_level at most max_level, max_level at most 30";
            return Err(Error::Setting {
                setting: "min_level to max_level",
                value,
                expected,
            });
        }
        if self.scales_per_octave > 64 {
            let value = self.scales_per_octave.to_string();
            return Err(Error::Setting {
                setting: "scales_per_octave",
                value,
                expected: "at most 64",
            });
        }
        Ok(self.min_level..=self.max_level)
    }
}
