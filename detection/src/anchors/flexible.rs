//! Anchors of which every size and ratio is written out, level by level: the reference's `FlexibleGridAnchorGenerator`.

use super::{Error, Layer, check_positive, check_ratios, normalise, tile};
use crate::Corners;

/// The message `FlexibleGridAnchorGenerator`.
#[derive(Clone, Debug, PartialEq)]
pub struct Flexible {
    /// One a feature map.
    pub levels: Vec<Level>,
    /// Divide by the image's size; otherwise pixels.
    pub normalize_coordinates: bool,
}

/// The message `AnchorGrid`. All lengths in pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// The root of the area of each anchor of a location.
    pub base_sizes: Vec<f32>,
    /// Width over height of each.
    pub aspect_ratios: Vec<f32>,
    /// (y, x)
    pub stride: (f32, f32),
    /// Centre of the first anchors (y, x).
    pub offset: (f32, f32),
}

impl Flexible {
    /// Anchors at each location of each feature map.
    pub fn anchors_per_location(&self) -> Result<Vec<usize>, Error> {
        self.levels
            .iter()
            .map(|level| level.check().map(|()| level.base_sizes.len()))
            .collect()
    }

    /// Anchors for feature maps and an image of the given (height, width) in pixels.
    pub fn generate(&self, feature_maps: &[(usize, usize)], image: (usize, usize)) -> Result<Vec<Corners>, Error> {
        let (expected, found) = (self.levels.len(), feature_maps.len());
        if expected != found {
            return Err(Error::FeatureMaps { expected, found });
        }
        let mut anchors = Vec::new();
        for (level, &size) in self.levels.iter().zip(feature_maps) {
            level.check()?;
            let pairs = level.base_sizes.iter().zip(&level.aspect_ratios);
            let specs: Vec<(f32, f32)> = pairs.map(|(&size, &ratio)| (size, ratio)).collect();
            let layer = Layer {
                size,
                specs: &specs,
                base: (1.0, 1.0),
                stride: level.stride,
                offset: level.offset,
            };
            tile(layer, &mut anchors)?;
        }
        if self.normalize_coordinates {
            normalise(&mut anchors, image);
        }
        Ok(anchors)
    }
}

impl Level {
    fn check(&self) -> Result<(), Error> {
        let (sizes, ratios) = (self.base_sizes.len(), self.aspect_ratios.len());
        if sizes != ratios || sizes == 0 {
            return Err(Error::Setting {
                setting: "anchor_grid",
                value: format!("{sizes} base_sizes and {ratios} aspect_ratios"),
                expected: "one ratio for each size, at least one of them",
            });
        }
        check_ratios(&self.aspect_ratios)?;
        check_positive("base_sizes", &self.base_sizes)?;
        check_positive("height_stride and width_stride", &[self.stride.0, self.stride.1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(base_sizes: &[f32], aspect_ratios: &[f32], stride: f32, offset: f32) -> Level {
        Level {
            base_sizes: base_sizes.to_vec(),
            aspect_ratios: aspect_ratios.to_vec(),
            stride: (stride, stride),
            offset: (offset, offset),
        }
    }

    fn near(found: &[Corners], expected: &[Corners]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() < 1e-3, "{found} {expected}");
        }
    }

    /// Expectations of the reference's own tests of its generator.
    #[test]
    fn anchors_are_those_of_the_reference_s_tests() {
        let two = Flexible {
            levels: vec![level(&[128.0], &[1.0], 32.0, 16.0), level(&[256.0], &[1.0], 64.0, 32.0)],
            normalize_coordinates: false,
        };
        let expected = [
            [-48.0, -48.0, 80.0, 80.0],
            [-48.0, -16.0, 80.0, 112.0],
            [-16.0, -48.0, 112.0, 80.0],
            [-16.0, -16.0, 112.0, 112.0],
            [-96.0, -96.0, 160.0, 160.0],
        ];
        near(&two.generate(&[(2, 2), (1, 1)], (64, 64)).unwrap(), &expected);
        let ratios = level(
            &[256.0, 362.038_67, 256.0, 362.038_67],
            &[1.0, 1.0, 2.0, 2.0],
            64.0,
            32.0,
        );
        let one = Flexible {
            levels: vec![ratios],
            normalize_coordinates: false,
        };
        let expected = [
            [-96.0, -96.0, 160.0, 160.0],
            [-149.0193, -149.0193, 213.0193, 213.0193],
            [-58.509_67, -149.0193, 122.509_67, 213.0193],
            [-96.0, -224.0, 160.0, 288.0],
        ];
        near(&one.generate(&[(1, 1)], (64, 64)).unwrap(), &expected);
        let normalised = Flexible {
            levels: vec![level(&[128.0], &[1.0], 32.0, 16.0)],
            normalize_coordinates: true,
        };
        let found = normalised.generate(&[(2, 2)], (64, 128)).unwrap();
        near(
            &found[1..2],
            &[[-48.0 / 64.0, -16.0 / 128.0, 80.0 / 64.0, 112.0 / 128.0]],
        );
    }

    #[test]
    fn lists_of_different_lengths_and_missing_strides_are_refused() {
        let refused = |level: Level| {
            let generator = Flexible {
                levels: vec![level],
                normalize_coordinates: true,
            };
            generator.anchors_per_location().unwrap_err().to_string()
        };
        assert!(refused(level(&[1.0, 2.0], &[1.0], 8.0, 0.0)).contains("2 base_sizes and 1 aspect_ratios"));
        assert!(refused(level(&[], &[], 8.0, 0.0)).contains("0 base_sizes"));
        assert!(refused(level(&[1.0], &[1.0], 0.0, 0.0)).contains("height_stride"));
    }
}
