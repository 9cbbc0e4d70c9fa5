//! MobileNet v3 (arXiv:1905.02244): `ssd_mobilenet_v3_large` and `_small`, and `ssd_mobilenet_edgetpu`, whose early blocks are convolutions in one.

use super::super::builder::{Builder, Normaliser, square};
use super::super::config::{Activation, Hyperparams};
use super::super::error::Error;
use super::super::plan::Source;
use super::extra_maps::{self, Extra};
use super::mobilenet_v2::{divisible, own, settled};
use super::{Extractor, USUAL};

/// The reference's `SSDMobileNetV3LargeFeatureExtractor`.
pub(super) const LARGE: Extractor = Extractor {
    name: "ssd_mobilenet_v3_large",
    base: Some(own),
    maps: 2..=6,
    // There it pads blocks of this network twice, so that maps grow from block to block.
    explicit_padding: false,
    build: |builder| ssd(builder, &V3_LARGE),
    ..USUAL
};

/// The reference's `SSDMobileNetV3SmallFeatureExtractor`.
pub(super) const SMALL: Extractor = Extractor {
    name: "ssd_mobilenet_v3_small",
    build: |builder| ssd(builder, &V3_SMALL),
    ..LARGE
};

/// The reference's `SSDMobileNetEdgeTPUFeatureExtractor`.
pub(super) const EDGE_TPU: Extractor = Extractor {
    name: "ssd_mobilenet_edgetpu",
    build: |builder| ssd(builder, &V3_EDGE_TPU),
    ..LARGE
};

/// An inverted residual.
#[derive(Clone, Copy)]
struct Block {
    /// Channels inside, over those that come in.
    expansion: f64,
    /// Channels that go out.
    outputs: usize,
    /// Side and stride of its window.
    sliding: (usize, usize),
    kind: Kind,
    activation: Activation,
    residual: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// 1 x 1 to more channels, depthwise, 1 x 1 to fewer.
    Depthwise,
    /// The same with a gate on the channels before the last of them.
    Gated,
    /// The first two as one convolution.
    Fused,
}

const RELU: Activation = Activation::Relu;
const SWISH: Activation = Activation::HardSwish;

const fn block(expansion: f64, outputs: usize, side: usize, stride: usize, activation: Activation) -> Block {
    Block {
        expansion,
        outputs,
        sliding: (side, stride),
        kind: Kind::Depthwise,
        activation,
        residual: true,
    }
}

const fn gated(expansion: f64, outputs: usize, side: usize, stride: usize, activation: Activation) -> Block {
    Block {
        kind: Kind::Gated,
        ..block(expansion, outputs, side, stride, activation)
    }
}

const fn fused(expansion: f64, outputs: usize, stride: usize) -> Block {
    Block {
        kind: Kind::Fused,
        ..block(expansion, outputs, 3, stride, RELU)
    }
}

/// A base network.
struct Base {
    scope: &'static str,
    /// Channels and activation of the first convolution.
    first: (usize, Activation),
    blocks: &'static [Block],
    /// Channels of the last convolution, if there is one.
    last: Option<usize>,
    /// The block whose expansion is the first map.
    map: usize,
    /// What the reference calls the last layer, for the names of the extra maps.
    name: &'static str,
}

/// `V3_LARGE_DETECTION`: the last four layers are half as wide as a classifier's.
const V3_LARGE: Base = Base {
    scope: "FeatureExtractor/MobilenetV3/",
    first: (16, SWISH),
    blocks: &[
        block(1.0, 16, 3, 1, RELU),
        block(4.0, 24, 3, 2, RELU),
        block(3.0, 24, 3, 1, RELU),
        gated(3.0, 40, 5, 2, RELU),
        gated(3.0, 40, 5, 1, RELU),
        gated(3.0, 40, 5, 1, RELU),
        block(6.0, 80, 3, 2, SWISH),
        block(2.5, 80, 3, 1, SWISH),
        block(184.0 / 80.0, 80, 3, 1, SWISH),
        block(184.0 / 80.0, 80, 3, 1, SWISH),
        gated(6.0, 112, 3, 1, SWISH),
        gated(6.0, 112, 3, 1, SWISH),
        gated(6.0, 80, 5, 2, SWISH),
        gated(6.0, 80, 5, 1, SWISH),
        gated(6.0, 80, 5, 1, SWISH),
    ],
    last: Some(480),
    map: 12,
    name: "layer_17",
};

/// `V3_SMALL_DETECTION`, halved alike.
const V3_SMALL: Base = Base {
    scope: "FeatureExtractor/MobilenetV3/",
    first: (16, SWISH),
    blocks: &[
        gated(1.0, 16, 3, 2, RELU),
        block(72.0 / 16.0, 24, 3, 2, RELU),
        block(88.0 / 24.0, 24, 3, 1, RELU),
        gated(4.0, 40, 5, 2, SWISH),
        gated(6.0, 40, 5, 1, SWISH),
        gated(6.0, 40, 5, 1, SWISH),
        gated(3.0, 48, 5, 1, SWISH),
        gated(3.0, 48, 5, 1, SWISH),
        gated(6.0, 48, 5, 2, SWISH),
        gated(6.0, 48, 5, 1, SWISH),
        gated(6.0, 48, 5, 1, SWISH),
    ],
    last: Some(288),
    map: 8,
    name: "layer_13",
};

/// `V3_EDGETPU`
const V3_EDGE_TPU: Base = Base {
    scope: "FeatureExtractor/MobilenetEdgeTPU/",
    first: (32, RELU),
    blocks: &[
        fused(1.0, 16, 1),
        fused(8.0, 32, 2),
        fused(4.0, 32, 1),
        fused(4.0, 32, 1),
        fused(4.0, 32, 1),
        fused(8.0, 48, 2),
        fused(4.0, 48, 1),
        fused(4.0, 48, 1),
        fused(4.0, 48, 1),
        block(8.0, 96, 3, 2, RELU),
        block(4.0, 96, 3, 1, RELU),
        block(4.0, 96, 3, 1, RELU),
        block(4.0, 96, 3, 1, RELU),
        Block {
            residual: false,
            ..block(8.0, 96, 3, 1, RELU)
        },
        block(4.0, 96, 3, 1, RELU),
        block(4.0, 96, 3, 1, RELU),
        block(4.0, 96, 3, 1, RELU),
        block(8.0, 160, 5, 2, RELU),
        block(4.0, 160, 5, 1, RELU),
        block(4.0, 160, 5, 1, RELU),
        block(4.0, 160, 5, 1, RELU),
        block(8.0, 192, 3, 1, RELU),
    ],
    last: None,
    map: 16,
    name: "layer_23",
};
const EXTRAS: [Extra; 4] = [(512, 3), (256, 3), (256, 3), (128, 3)];

fn ssd(builder: &mut Builder, base: &Base) -> Result<Vec<Source>, Error> {
    let config = builder.config;
    let hyper = settled(&config.base);
    let depth = |channels: usize| divisible(channels as f64 * config.depth_multiplier, 8, config.min_depth);
    let scope = base.scope;
    let (channels, activation) = base.first;
    let stem = (Normaliser::Own, activation);
    let name = format!("{scope}Conv");
    let size = (square(3, 2), depth(channels));
    let mut last = builder.conv_with((&name, "weights"), Source::Image, size.0, size.1, &hyper, stem)?;
    let mut maps = Vec::new();
    for (i, block) in base.blocks.iter().enumerate() {
        let name = if i == 0 {
            format!("{scope}expanded_conv/")
        } else {
            format!("{scope}expanded_conv_{i}/")
        };
        let (outputs, expanded) = inverted(builder, &name, last, block, depth(block.outputs), &hyper)?;
        if i == base.map {
            maps.push(expanded);
        }
        last = outputs;
    }
    if let Some(channels) = base.last {
        let name = format!("{scope}Conv_1");
        let after = (Normaliser::Own, SWISH);
        last = builder.conv_with((&name, "weights"), last, square(1, 1), depth(channels), &hyper, after)?;
    }
    maps.push(last);
    extra_maps::add(builder, (scope, base.name), maps, &EXTRAS)
}

/// A block's output and its expansion.
fn inverted(
    builder: &mut Builder,
    scope: &str,
    from: Source,
    block: &Block,
    outputs: usize,
    hyper: &Hyperparams,
) -> Result<(Source, Source), Error> {
    let inputs = builder.channels(from);
    let inner = divisible(inputs as f64 * block.expansion, 8, 8);
    let (side, stride) = block.sliding;
    let active = (Normaliser::Own, block.activation);
    let mut wide = from;
    if inner > inputs {
        let sliding = if block.kind == Kind::Fused {
            square(side, stride)
        } else {
            square(1, 1)
        };
        let name = format!("{scope}expand");
        wide = builder.conv_with((&name, "weights"), from, sliding, inner, hyper, active)?;
    }
    let mut own = wide;
    if block.kind != Kind::Fused {
        let hyper = Hyperparams {
            activation: block.activation,
            ..hyper.clone()
        };
        own = builder.depthwise(&format!("{scope}depthwise"), wide, square(side, stride), &hyper)?;
    }
    if block.kind == Kind::Gated {
        own = squeeze_and_excite(builder, scope, own, hyper)?;
    }
    let name = format!("{scope}project");
    let linear = (Normaliser::Own, Activation::None);
    let narrow = builder.conv_with((&name, "weights"), own, square(1, 1), outputs, hyper, linear)?;
    let residual = block.residual && stride == 1 && outputs == inputs;
    Ok((
        if residual {
            builder.add(&format!("{scope}add"), narrow, from, Activation::None)?
        } else {
            narrow
        },
        wide,
    ))
}

/// Each channel weighed by what the means of all of them say (arXiv:1709.01507); the weights are 0 to 1.00002.
fn squeeze_and_excite(builder: &mut Builder, scope: &str, from: Source, hyper: &Hyperparams) -> Result<Source, Error> {
    let channels = builder.channels(from);
    let squeezed = divisible(channels as f64 / 4.0, 8, 8);
    let scope = format!("{scope}squeeze_excite/");
    let mean = builder.global_average(&format!("{scope}mean"), from)?;
    let name = format!("{scope}Conv");
    let inner = (Normaliser::Biases, RELU);
    let few = builder.conv_with((&name, "weights"), mean, square(1, 1), squeezed, hyper, inner)?;
    let name = format!("{scope}Conv_1");
    let outer = (Normaliser::Biases, Activation::HardSigmoid);
    let gate = builder.conv_with((&name, "weights"), few, square(1, 1), channels, hyper, outer)?;
    builder.gate(&format!("{scope}gate"), from, gate)
}
