//! The feature extractors: one file for each backbone, which adds its layers to a [`Builder`] and returns the feature maps, and one line below.

mod embedded_mobilenet_v1;
mod extra_maps;
mod fpn;
mod inception_v2;
mod inception_v3;
mod mobilenet_v1;
mod mobilenet_v2;
mod mobilenet_v3;
mod ppn;
mod resnet_v1;

use std::ops::RangeInclusive;

use super::builder::Builder;
use super::config::Hyperparams;
use super::error::Error;
use super::plan::Source;

/// A feature extractor.
pub struct Extractor {
    /// `feature_extractor.type`
    pub name: &'static str,
    /// Settings of the base network unless `override_base_feature_extractor_hyperparams` is set; `None`: it must be set.
    pub base: Option<fn() -> Hyperparams>,
    /// Whether `override_base_feature_extractor_hyperparams` has an effect.
    pub overridable: bool,
    /// Images of 0 to 255 are read as `multiplier * x + offset`.
    pub(crate) input: (f32, [f32; 3]),
    /// Images narrower or lower than this are refused.
    pub least_size: usize,
    /// How many feature maps there may be.
    pub maps: RangeInclusive<usize>,
    /// Whether the number of feature maps follows from `fpn.min_level` and `fpn.max_level` instead of `num_layers`.
    pub pyramid: bool,
    /// Whether `use_depthwise` and `use_explicit_padding` have a meaning.
    pub depthwise: bool,
    /// As above.
    pub explicit_padding: bool,
    /// Adds the layers; returns the feature maps, the largest first.
    pub(crate) build: fn(&mut Builder) -> Result<Vec<Source>, Error>,
}

/// All that are built.
pub static ALL: &[Extractor] = &[
    mobilenet_v1::SSD,
    mobilenet_v1::FPN,
    mobilenet_v1::PPN,
    embedded_mobilenet_v1::SSD,
    mobilenet_v2::SSD,
    mobilenet_v2::FPN,
    mobilenet_v3::LARGE,
    mobilenet_v3::SMALL,
    mobilenet_v3::EDGE_TPU,
    inception_v2::SSD,
    inception_v3::SSD,
    resnet_v1::FPN_50,
    resnet_v1::FPN_101,
    resnet_v1::FPN_152,
    resnet_v1::PPN_50,
    resnet_v1::PPN_101,
    resnet_v1::PPN_152,
];

/// -1 to 1.
const UNIT: (f32, [f32; 3]) = (2.0 / 255.0, [-1.0; 3]);
/// Without the mean of each channel.
const CENTRED: (f32, [f32; 3]) = (1.0, [-123.68, -116.779, -103.939]);

/// What most have in common.
const USUAL: Extractor = Extractor {
    name: "",
    base: None,
    overridable: true,
    input: UNIT,
    least_size: 33,
    maps: 1..=6,
    pyramid: false,
    depthwise: true,
    explicit_padding: true,
    build: |_| Ok(Vec::new()),
};

/// The feature extractor of a name.
pub fn find(name: &str) -> Result<&'static Extractor, Error> {
    ALL.iter()
        .find(|extractor| extractor.name == name)
        .ok_or_else(|| Error::Extractor {
            name: name.to_owned(),
            known: ALL
                .iter()
                .map(|extractor| extractor.name)
                .collect::<Vec<_>>()
                .join(", "),
        })
}
