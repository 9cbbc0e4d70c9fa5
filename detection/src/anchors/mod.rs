//! Prior boxes at every location of every feature map.
//!
//! Order: feature map, row, column, then the location's anchors in the order that the configuration makes them. Anchors are not
//! clipped to the image.

mod flexible;
mod grid;
mod multiscale;
mod ssd;

pub use flexible::{Flexible, Level};
pub use grid::Grid;
pub use multiscale::Multiscale;
pub use ssd::Ssd;

use crate::Corners;

/// A way to place anchors: the message `AnchorGenerator`.
#[derive(Clone, Debug, PartialEq)]
pub enum Generator {
    /// `ssd_anchor_generator`: normalised.
    Ssd(Ssd),
    /// `multiscale_anchor_generator`: normalised unless told otherwise.
    Multiscale(Multiscale),
    /// `grid_anchor_generator`: pixels.
    Grid(Grid),
    /// `flexible_grid_anchor_generator`: normalised unless told otherwise.
    Flexible(Flexible),
}

impl Generator {
    /// Anchors at each location of each feature map.
    pub fn anchors_per_location(&self) -> Result<Vec<usize>, Error> {
        match self {
            Self::Ssd(ssd) => ssd.anchors_per_location(),
            Self::Multiscale(multiscale) => multiscale.anchors_per_location(),
            Self::Grid(grid) => Ok(vec![grid.anchors_per_location()]),
            Self::Flexible(flexible) => flexible.anchors_per_location(),
        }
    }

    /// Anchors for feature maps of the given (height, width) and an image of the given (height, width) in pixels.
    pub fn generate(&self, feature_maps: &[(usize, usize)], image: (usize, usize)) -> Result<Vec<Corners>, Error> {
        match self {
            Self::Ssd(ssd) => ssd.generate(feature_maps, image),
            Self::Multiscale(multiscale) => multiscale.generate(feature_maps, image),
            Self::Grid(grid) => grid.generate(feature_maps),
            Self::Flexible(flexible) => flexible.generate(feature_maps, image),
        }
    }
}

/// Why anchors cannot be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// As many feature maps as the generator has layers are needed.
    #[error(
        "{found} feature maps for an anchor generator of {expected} layers\nhint: num_layers (max_level - min_level + 1) must be the feature extractor's num_layers"
    )]
    FeatureMaps {
        /// Layers of the generator.
        expected: usize,
        /// Feature maps.
        found: usize,
    },
    /// A list that must have one value a layer.
    #[error("anchor generator: {found} values of {setting} for {layers} layers")]
    Count {
        /// The setting.
        setting: &'static str,
        /// Its values.
        found: usize,
        /// Layers.
        layers: usize,
    },
    /// A setting outside what makes sense.
    #[error("anchor generator: {setting} is {value}: {expected}")]
    Setting {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// More anchors than a computer could hold.
    #[error("anchors on a feature map of {height} x {width} are too many")]
    TooMany {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
}

/// The regular part of a layer of anchors.
#[derive(Clone, Copy, Debug)]
struct Layer<'a> {
    /// (height, width) of the feature map.
    size: (usize, usize),
    /// (scale, aspect ratio) of each anchor of a location.
    specs: &'a [(f32, f32)],
    /// (height, width) of scale 1, aspect ratio 1.
    base: (f32, f32),
    /// Distance of neighbouring locations (y, x).
    stride: (f32, f32),
    /// Centre of the first location (y, x).
    offset: (f32, f32),
}

/// Appends a layer's anchors, in the arithmetic of the reference's `tile_anchors`.
fn tile(layer: Layer, anchors: &mut Vec<Corners>) -> Result<(), Error> {
    const MOST: usize = 1 << 28;
    let (height, width) = layer.size;
    let count = height.checked_mul(width).and_then(|n| n.checked_mul(layer.specs.len()));
    let count = count.filter(|&n| n <= MOST).ok_or(Error::TooMany { height, width })?;
    anchors.reserve(count);
    let sizes: Vec<(f32, f32)> = layer
        .specs
        .iter()
        .map(|&(scale, ratio)| (scale / ratio.sqrt() * layer.base.0, scale * ratio.sqrt() * layer.base.1))
        .collect();
    for row in 0..height {
        let y = row as f32 * layer.stride.0 + layer.offset.0;
        for column in 0..width {
            let x = column as f32 * layer.stride.1 + layer.offset.1;
            anchors.extend(
                sizes
                    .iter()
                    .map(|&(h, w)| [y - 0.5 * h, x - 0.5 * w, y + 0.5 * h, x + 0.5 * w]),
            );
        }
    }
    Ok(())
}

/// Divides anchors in pixels by the image's (height, width).
fn normalise(anchors: &mut [Corners], image: (usize, usize)) {
    let (height, width) = (image.0.max(1) as f32, image.1.max(1) as f32);
    for [ymin, xmin, ymax, xmax] in anchors {
        *ymin /= height;
        *xmin /= width;
        *ymax /= height;
        *xmax /= width;
    }
}

/// Refuses aspect ratios without a square root.
fn check_ratios(ratios: &[f32]) -> Result<(), Error> {
    check_positive("aspect_ratios", ratios)
}

fn check_positive(setting: &'static str, values: &[f32]) -> Result<(), Error> {
    match values.iter().find(|&&value| !(value > 0.0 && value.is_finite())) {
        Some(value) => Err(Error::Setting {
            setting,
            value: value.to_string(),
            expected: "a number above 0",
        }),
        None => Ok(()),
    }
}
