//! `ResNet` v1 (arXiv:1512.03385) with the stride in the last unit of a block: `ssd_resnet50_v1_fpn`, `101`, `152` and their `_ppn` twins.

use super::super::builder::{Builder, Normaliser, Padding, square};
use super::super::config::{Activation, BatchNorm, FanMode, Hyperparams, Initializer, Regularizer};
use super::super::error::Error;
use super::super::plan::Source;
use super::fpn::{self, Pyramid};
use super::{CENTRED, Extractor, USUAL, ppn};

const FPN: Extractor = Extractor {
    base: Some(own),
    input: CENTRED,
    least_size: 129,
    maps: 1..=9,
    pyramid: true,
    depthwise: false,
    explicit_padding: false,
    ..USUAL
};

/// The reference's `_SSDResnetPpnFeatureExtractor` hands the override to its parent in the place of `num_layers`, so that it is lost.
const PPN: Extractor = Extractor {
    overridable: false,
    maps: ppn::MAPS..=ppn::MAPS,
    pyramid: false,
    ..FPN
};

/// The reference's `SSDResnet50V1FpnFeatureExtractor`.
pub(super) const FPN_50: Extractor = Extractor {
    name: "ssd_resnet50_v1_fpn",
    build: |builder| pyramid(builder, "resnet_v1_50", [3, 4, 6, 3]),
    ..FPN
};

/// The reference's `SSDResnet101V1FpnFeatureExtractor`.
pub(super) const FPN_101: Extractor = Extractor {
    name: "ssd_resnet101_v1_fpn",
    build: |builder| pyramid(builder, "resnet_v1_101", [3, 4, 23, 3]),
    ..FPN
};

/// The reference's `SSDResnet152V1FpnFeatureExtractor`.
pub(super) const FPN_152: Extractor = Extractor {
    name: "ssd_resnet152_v1_fpn",
    build: |builder| pyramid(builder, "resnet_v1_152", [3, 8, 36, 3]),
    ..FPN
};

/// The reference's `SSDResnet50V1PpnFeatureExtractor`.
pub(super) const PPN_50: Extractor = Extractor {
    name: "ssd_resnet50_v1_ppn",
    build: |builder| pooled(builder, "resnet_v1_50", [3, 4, 6, 3]),
    ..PPN
};

/// The reference's `SSDResnet101V1PpnFeatureExtractor`.
pub(super) const PPN_101: Extractor = Extractor {
    name: "ssd_resnet101_v1_ppn",
    build: |builder| pooled(builder, "resnet_v1_101", [3, 4, 23, 3]),
    ..PPN
};

/// The reference's `SSDResnet152V1PpnFeatureExtractor`.
pub(super) const PPN_152: Extractor = Extractor {
    name: "ssd_resnet152_v1_ppn",
    build: |builder| pooled(builder, "resnet_v1_152", [3, 8, 36, 3]),
    ..PPN
};

/// slim's `resnet_arg_scope`.
fn own() -> Hyperparams {
    Hyperparams {
        regularizer: Regularizer::L2 { weight: 0.0001 },
        initializer: Initializer::VarianceScaling {
            factor: 2.0,
            uniform: false,
            mode: FanMode::FanIn,
        },
        activation: Activation::Relu,
        batch_norm: Some(BatchNorm {
            decay: 0.997,
            epsilon: 0.000_01,
            center: true,
            scale: true,
            train: true,
            sync: false,
        }),
        regularize_depthwise: true,
        group_norm: false,
    }
}

/// The settings that slim's `resnet_arg_scope` has the last word on, also where the configuration overrides the others: it hands batch norm's
/// decay, epsilon and scale to each convolution.
fn settled(hyper: &Hyperparams) -> Hyperparams {
    let batch_norm = hyper.batch_norm.and_then(|norm| {
        own().batch_norm.map(|own| BatchNorm {
            train: norm.train,
            sync: norm.sync,
            ..own
        })
    });
    Hyperparams {
        batch_norm,
        ..hyper.clone()
    }
}

/// Outputs of the four blocks, before they are subsampled.
fn base(builder: &mut Builder, scope: &str, units: [usize; 4]) -> Result<[Source; 4], Error> {
    let hyper = &settled(&builder.config.base);
    // slim's `conv2d_same`.
    builder.padding = Padding::Explicit;
    let name = format!("{scope}conv1");
    let conv1 = builder.conv(&name, Source::Image, square(7, 2), 64, hyper)?;
    let mut last = builder.max_pool(&format!("{scope}pool1"), conv1, 3, 2)?;
    let mut outputs = [last; 4];
    for (i, (units, channels)) in units.into_iter().zip([64, 128, 256, 512]).enumerate() {
        let channels = builder.depth(channels);
        for unit in 1..=units {
            let scope = format!("{scope}block{}/unit_{unit}/bottleneck_v1/", i + 1);
            last = bottleneck(builder, &scope, last, channels, hyper)?;
        }
        outputs[i] = last;
        if i < 3 {
            last = builder.max_pool(&format!("{scope}block{}/subsample", i + 1), last, 1, 2)?;
        }
    }
    builder.padding = Padding::Same;
    Ok(outputs)
}

fn bottleneck(
    builder: &mut Builder,
    scope: &str,
    from: Source,
    channels: usize,
    hyper: &Hyperparams,
) -> Result<Source, Error> {
    let linear = (Normaliser::Own, Activation::None);
    let wide = 4 * channels;
    let shortcut = if builder.channels(from) == wide {
        from
    } else {
        let name = format!("{scope}shortcut");
        builder.conv_with((&name, "weights"), from, square(1, 1), wide, hyper, linear)?
    };
    let narrow = builder.conv(&format!("{scope}conv1"), from, square(1, 1), channels, hyper)?;
    let narrow = builder.conv(&format!("{scope}conv2"), narrow, square(3, 1), channels, hyper)?;
    let name = format!("{scope}conv3");
    let residual = builder.conv_with((&name, "weights"), narrow, square(1, 1), wide, hyper, linear)?;
    builder.add(&format!("{scope}add"), residual, shortcut, Activation::Relu)
}

fn pyramid(builder: &mut Builder, name: &str, units: [usize; 4]) -> Result<Vec<Source>, Error> {
    let scope = format!("FeatureExtractor/{name}/");
    let blocks = base(builder, &scope, units)?;
    let scope = format!("{scope}fpn/");
    let pyramid = Pyramid {
        scope: &scope,
        blocks,
        coarse: ("bottom_up_block", 5),
        separable: false,
    };
    fpn::add(builder, &pyramid)
}

fn pooled(builder: &mut Builder, name: &str, units: [usize; 4]) -> Result<Vec<Source>, Error> {
    let depth = builder.config.depth_multiplier;
    if depth != 1.0 {
        return Err(Error::Setting {
            setting: "depth_multiplier",
            value: depth.to_string(),
            expected: "1 for ResNet with a pooling pyramid",
        });
    }
    let scope = format!("FeatureExtractor/{name}/");
    let blocks = base(builder, &scope, units)?;
    ppn::add(builder, &scope, blocks[2], 1024)
}
