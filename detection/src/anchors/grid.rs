//! Faster R-CNN's anchors (arXiv:1506.01497): one grid, all scales and ratios.

use super::{Error, Layer, check_positive, check_ratios, tile};
use crate::Corners;

/// The message `GridAnchorGenerator`. All lengths in pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Factors on `base`; vary fastest.
    pub scales: Vec<f32>,
    /// Width over height.
    pub aspect_ratios: Vec<f32>,
    /// (height, width) of scale 1.
    pub base: (f32, f32),
    /// (y, x)
    pub stride: (f32, f32),
    /// Centre of the first anchor (y, x).
    pub offset: (f32, f32),
}

impl Grid {
    /// Anchors at each location.
    pub fn anchors_per_location(&self) -> usize {
        self.scales.len() * self.aspect_ratios.len()
    }

    /// Anchors in pixels for the one feature map.
    pub fn generate(&self, feature_maps: &[(usize, usize)]) -> Result<Vec<Corners>, Error> {
        check_ratios(&self.aspect_ratios)?;
        check_positive("scales", &self.scales)?;
        let &[size] = feature_maps else {
            return Err(Error::FeatureMaps {
                expected: 1,
                found: feature_maps.len(),
            });
        };
        let specs: Vec<_> = self
            .aspect_ratios
            .iter()
            .flat_map(|&ratio| self.scales.iter().map(move |&scale| (scale, ratio)))
            .collect();
        let mut anchors = Vec::new();
        let (base, stride, offset) = (self.base, self.stride, self.offset);
        tile(
            Layer {
                size,
                specs: &specs,
                base,
                stride,
                offset,
            },
            &mut anchors,
        )?;
        Ok(anchors)
    }
}
