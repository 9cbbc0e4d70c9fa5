//! MobileNet v2 (arXiv:1801.04381): `ssd_mobilenet_v2` (ssdlite with `use_depthwise`) and `_fpn`.

use super::super::builder::{Builder, Normaliser, square};
use super::super::config::{Activation, BatchNorm, Hyperparams};
use super::super::error::Error;
use super::super::plan::Source;
use super::extra_maps::{self, Extra};
use super::fpn::{self, Pyramid};
use super::{Extractor, USUAL};

/// The reference's `SSDMobileNetV2FeatureExtractor`.
pub(super) const SSD: Extractor = Extractor {
    name: "ssd_mobilenet_v2",
    base: Some(own),
    maps: 2..=6,
    build: ssd,
    ..USUAL
};

/// The reference's `SSDMobileNetV2FpnFeatureExtractor`.
pub(super) const FPN: Extractor = Extractor {
    name: "ssd_mobilenet_v2_fpn",
    pyramid: true,
    maps: 1..=9,
    build: pyramid,
    ..SSD
};

/// slim's `training_scope` as the reference calls it; depthwise weights have no penalty.
pub(super) fn own() -> Hyperparams {
    Hyperparams {
        regularize_depthwise: false,
        ..Hyperparams::mobilenet_v1()
    }
}

const SCOPE: &str = "FeatureExtractor/MobilenetV2/";
/// Stride and channels of the blocks with inverted residuals: `expanded_conv` to `expanded_conv_16`.
const BLOCKS: [(usize, usize); 17] = [
    (1, 16),
    (2, 24),
    (1, 24),
    (2, 32),
    (1, 32),
    (1, 32),
    (2, 64),
    (1, 64),
    (1, 64),
    (1, 64),
    (1, 96),
    (1, 96),
    (1, 96),
    (2, 160),
    (1, 160),
    (1, 160),
    (1, 320),
];
const EXTRAS: [Extra; 4] = [(512, 3), (256, 3), (256, 3), (128, 3)];

/// slim's `_make_divisible`: to the nearest multiple, but not more than a tenth below.
pub(super) fn divisible(value: f64, divisor: usize, least: usize) -> usize {
    let nearest = (value + divisor as f64 / 2.0) as usize / divisor * divisor;
    let found = nearest.max(least);
    if (found as f64) < 0.9 * value {
        found + divisor
    } else {
        found
    }
}

/// The base network: outputs of the layers that the reference calls `layer_1` to `layer_19`, and the expansions within them where there are
/// any. `last` are the channels of the last convolution.
struct Base {
    layers: Vec<Source>,
    expansions: Vec<Option<Source>>,
}

/// The settings that slim's `V2_DEF` and `V3` have the last word on, whatever else is overridden.
pub(super) fn settled(hyper: &Hyperparams) -> Hyperparams {
    let norm = hyper.batch_norm.unwrap_or(BatchNorm {
        decay: 0.9997,
        epsilon: 0.001,
        center: true,
        scale: true,
        train: true,
        sync: false,
    });
    let norm = BatchNorm {
        center: true,
        scale: true,
        ..norm
    };
    Hyperparams {
        activation: Activation::Relu6,
        batch_norm: Some(norm),
        group_norm: false,
        ..hyper.clone()
    }
}

fn base(builder: &mut Builder, last: usize) -> Result<Base, Error> {
    let config = builder.config;
    let hyper = settled(&config.base);
    let depth = |channels: usize| divisible(channels as f64 * config.depth_multiplier, 8, config.min_depth);
    let name = format!("{SCOPE}Conv");
    let mut layers = vec![builder.conv(&name, Source::Image, square(3, 2), depth(32), &hyper)?];
    let mut expansions = vec![None];
    for (i, (stride, channels)) in BLOCKS.into_iter().enumerate() {
        let scope = if i == 0 {
            format!("{SCOPE}expanded_conv")
        } else {
            format!("{SCOPE}expanded_conv_{i}")
        };
        let from = layers[i];
        let inputs = builder.channels(from);
        let inner = if i == 0 {
            inputs
        } else {
            divisible((inputs * 6) as f64, 8, 8)
        };
        let mut wide = from;
        if inner > inputs {
            wide = builder.conv(&format!("{scope}/expand"), from, square(1, 1), inner, &hyper)?;
        }
        expansions.push((wide != from).then_some(wide));
        let own = builder.depthwise(&format!("{scope}/depthwise"), wide, square(3, stride), &hyper)?;
        let project = format!("{scope}/project");
        let linear = (Normaliser::Own, Activation::None);
        let project = builder.conv_with(
            (&project, "weights"),
            own,
            square(1, 1),
            depth(channels),
            &hyper,
            linear,
        )?;
        let residual = stride == 1 && builder.channels(project) == inputs;
        layers.push(if residual {
            builder.add(&format!("{scope}/add"), project, from, Activation::None)?
        } else {
            project
        });
    }
    let name = format!("{SCOPE}Conv_1");
    layers.push(builder.conv(&name, layers[17], square(1, 1), depth(last), &hyper)?);
    expansions.push(None);
    Ok(Base { layers, expansions })
}

fn ssd(builder: &mut Builder) -> Result<Vec<Source>, Error> {
    let base = base(builder, 1280)?;
    let maps = vec![base.expansions[14].unwrap_or(base.layers[13]), base.layers[18]];
    extra_maps::add(builder, (SCOPE, "layer_19"), maps, &EXTRAS)
}

fn pyramid(builder: &mut Builder) -> Result<Vec<Source>, Error> {
    let separable = builder.config.use_depthwise;
    // With separable convolutions the reference thins the last layer of the base network out.
    let base = base(builder, if separable { 256 } else { 1280 })?;
    let layers = &base.layers;
    let pyramid = Pyramid {
        scope: "FeatureExtractor/MobilenetV2/fpn/",
        blocks: [layers[3], layers[6], layers[13], layers[18]],
        coarse: ("bottom_up_Conv2d_", 20),
        separable,
    };
    fpn::add(builder, &pyramid)
}
