//! SSD's anchors (arXiv:1512.02325, section 2.2): one scale a layer, and one between it and the next.

use super::{Error, Layer, check_positive, check_ratios, tile};
use crate::Corners;

/// The message `SsdAnchorGenerator`; the reference's `create_ssd_anchors`.
#[derive(Clone, Debug, PartialEq)]
pub struct Ssd {
    /// Feature maps; no more than there are `scales`.
    pub num_layers: usize,
    /// Scale of the first layer; 1 is the image's shorter side.
    pub min_scale: f32,
    /// Scale of the last layer.
    pub max_scale: f32,
    /// One a layer, in place of `min_scale` and `max_scale`; empty: evenly spaced between those.
    pub scales: Vec<f32>,
    /// Width over height.
    pub aspect_ratios: Vec<f32>,
    /// Ratio of the anchor between a layer's scale and the next; 0: no such anchor.
    pub interpolated_scale_aspect_ratio: f32,
    /// Three fixed anchors in the first layer.
    pub reduce_boxes_in_lowest_layer: bool,
    /// (height, width) factors.
    pub base_anchor: (f32, f32),
    /// (height, width) in pixels, one a layer; empty: the image divided by the feature map.
    pub strides: Vec<(i32, i32)>,
    /// Centre of the first anchor (y, x) in pixels, one a layer; empty: half a stride.
    pub offsets: Vec<(i32, i32)>,
}

impl Default for Ssd {
    fn default() -> Self {
        Self {
            num_layers: 6,
            min_scale: 0.2,
            max_scale: 0.95,
            scales: Vec::new(),
            aspect_ratios: vec![1.0, 2.0, 0.5, 3.0, 0.3333],
            interpolated_scale_aspect_ratio: 1.0,
            reduce_boxes_in_lowest_layer: true,
            base_anchor: (1.0, 1.0),
            strides: Vec::new(),
            offsets: Vec::new(),
        }
    }
}

impl Ssd {
    /// Anchors at each location of each feature map.
    pub fn anchors_per_location(&self) -> Result<Vec<usize>, Error> {
        Ok(self.specs()?.iter().map(Vec::len).collect())
    }

    /// Normalised anchors for feature maps and an image of the given (height, width).
    pub fn generate(&self, feature_maps: &[(usize, usize)], image: (usize, usize)) -> Result<Vec<Corners>, Error> {
        let layers = self.specs()?;
        if feature_maps.len() != layers.len() {
            return Err(Error::FeatureMaps {
                expected: layers.len(),
                found: feature_maps.len(),
            });
        }
        let (height, width) = (image.0.max(1) as f32, image.1.max(1) as f32);
        let shorter = height.min(width);
        let base = (
            shorter / height * self.base_anchor.0,
            shorter / width * self.base_anchor.1,
        );
        let in_image = |(y, x): (i32, i32)| (y as f32 / height, x as f32 / width);
        let mut anchors = Vec::new();
        for (i, (&size, specs)) in feature_maps.iter().zip(&layers).enumerate() {
            let stride = match self.strides.get(i) {
                Some(&stride) => in_image(stride),
                None => (1.0 / size.0 as f32, 1.0 / size.1 as f32),
            };
            let offset = match self.offsets.get(i) {
                Some(&offset) => in_image(offset),
                None => (0.5 * stride.0, 0.5 * stride.1),
            };
            tile(
                Layer {
                    size,
                    specs,
                    base,
                    stride,
                    offset,
                },
                &mut anchors,
            )?;
        }
        Ok(anchors)
    }

    /// (scale, aspect ratio) of each anchor of each layer.
    fn specs(&self) -> Result<Vec<Vec<(f32, f32)>>, Error> {
        self.check()?;
        let scales = self.layer_scales();
        let mut layers = Vec::with_capacity(self.num_layers);
        for (i, pair) in scales.windows(2).take(self.num_layers).enumerate() {
            let scale = pair[0] as f32;
            if i == 0 && self.reduce_boxes_in_lowest_layer {
                layers.push(vec![(0.1, 1.0), (scale, 2.0), (scale, 0.5)]);
                continue;
            }
            let mut specs: Vec<_> = self.aspect_ratios.iter().map(|&ratio| (scale, ratio)).collect();
            if self.interpolated_scale_aspect_ratio > 0.0 {
                specs.push(((pair[0] * pair[1]).sqrt() as f32, self.interpolated_scale_aspect_ratio));
            }
            layers.push(specs);
        }
        Ok(layers)
    }

    /// Each layer's scale, then 1 for the layer after the last. In double precision, as the reference computes them.
    fn layer_scales(&self) -> Vec<f64> {
        let mut scales: Vec<f64> = if self.scales.is_empty() {
            let (least, most) = (f64::from(self.min_scale), f64::from(self.max_scale));
            let steps = self.num_layers.saturating_sub(1) as f64;
            (0..self.num_layers)
                .map(|i| least + (most - least) * i as f64 / steps)
                .collect()
        } else {
            self.scales.iter().map(|&scale| f64::from(scale)).collect()
        };
        scales.push(1.0);
        scales
    }

    fn layers(&self) -> usize {
        if self.scales.is_empty() {
            self.num_layers
        } else {
            self.num_layers.min(self.scales.len())
        }
    }

    fn check(&self) -> Result<(), Error> {
        let layers = self.layers();
        let value = layers.to_string();
        if layers == 0 || layers > 64 {
            return Err(Error::Setting {
                setting: "num_layers",
                value,
                expected: "1 to 64",
            });
        }
        if layers == 1 && self.scales.is_empty() {
            let expected = "a single layer needs its scale in `scales`";
            return Err(Error::Setting {
                setting: "num_layers",
                value,
                expected,
            });
        }
        let lists = [
            ("height_stride and width_stride", self.strides.len()),
            ("height_offset and width_offset", self.offsets.len()),
        ];
        if let Some((setting, found)) = lists.into_iter().find(|&(_, found)| found != 0 && found != layers) {
            return Err(Error::Count { setting, found, layers });
        }
        check_ratios(&self.aspect_ratios)?;
        check_positive("scales", &self.scales)?;
        check_positive(
            "base_anchor_height and base_anchor_width",
            &[self.base_anchor.0, self.base_anchor.1],
        )?;
        if self.scales.is_empty() {
            check_positive("min_scale and max_scale", &[self.min_scale, self.max_scale])?;
        }
        let ratio = self.interpolated_scale_aspect_ratio;
        if ratio.is_finite() {
            Ok(())
        } else {
            let expected = "a number; 0 for none";
            Err(Error::Setting {
                setting: "interpolated_scale_aspect_ratio",
                value: ratio.to_string(),
                expected,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_too_few_or_a_list_of_the_wrong_length_is_refused() {
        let stock = Ssd::default();
        let error = stock.generate(&[(19, 19)], (300, 300)).unwrap_err();
        assert_eq!(error, Error::FeatureMaps { expected: 6, found: 1 });
        let error = Ssd {
            strides: vec![(16, 16)],
            ..stock.clone()
        }
        .anchors_per_location()
        .unwrap_err();
        assert_eq!(
            error,
            Error::Count {
                setting: "height_stride and width_stride",
                found: 1,
                layers: 6
            }
        );
        assert!(
            Ssd {
                num_layers: 1,
                ..stock.clone()
            }
            .anchors_per_location()
            .is_err()
        );
        assert!(
            Ssd {
                aspect_ratios: vec![-1.0],
                ..stock
            }
            .anchors_per_location()
            .is_err()
        );
    }

    #[test]
    fn an_empty_feature_map_has_no_anchors() {
        let generator = Ssd {
            num_layers: 1,
            scales: vec![0.5],
            ..Ssd::default()
        };
        assert_eq!(generator.generate(&[(0, 0)], (300, 300)), Ok(Vec::new()));
    }
}
