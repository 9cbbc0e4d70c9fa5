//! MobileNet v1 (arXiv:1704.04861): `ssd_mobilenet_v1`, `_fpn` and `_ppn`.

use super::super::builder::{Builder, square};
use super::super::config::Hyperparams;
use super::super::error::Error;
use super::super::plan::Source;
use super::extra_maps::{self, Extra};
use super::fpn::{self, Pyramid};
use super::{Extractor, USUAL, ppn};

/// The reference's `SSDMobileNetV1FeatureExtractor`.
pub(super) const SSD: Extractor = Extractor {
    name: "ssd_mobilenet_v1",
    base: Some(Hyperparams::mobilenet_v1),
    maps: 2..=6,
    build: ssd,
    ..USUAL
};

/// The reference's `SSDMobileNetV1FpnFeatureExtractor`.
pub(super) const FPN: Extractor = Extractor {
    name: "ssd_mobilenet_v1_fpn",
    pyramid: true,
    maps: 1..=9,
    build: pyramid,
    ..SSD
};

/// The reference's `SSDMobileNetV1PpnFeatureExtractor`.
pub(super) const PPN: Extractor = Extractor {
    name: "ssd_mobilenet_v1_ppn",
    maps: ppn::MAPS..=ppn::MAPS,
    depthwise: false,
    build: pooled,
    ..SSD
};

pub(super) const SCOPE: &str = "FeatureExtractor/MobilenetV1/";
/// Channels and stride of the thirteen separable convolutions.
const SEPARABLE: [(usize, usize); 13] = [
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
];
const EXTRAS: [Extra; 4] = [(512, 3), (256, 3), (256, 3), (128, 3)];

/// The base network: the outputs of `Conv2d_0` and the thirteen pointwise convolutions. `last` are the channels of the last two.
pub(super) fn base(builder: &mut Builder, last: (usize, usize)) -> Result<Vec<Source>, Error> {
    let hyper = &builder.config.base;
    let mut layers = SEPARABLE;
    (layers[11].0, layers[12].0) = last;
    let name = format!("{SCOPE}Conv2d_0");
    let mut outputs = vec![builder.conv(&name, Source::Image, square(3, 2), builder.depth(32), hyper)?];
    for (i, (channels, stride)) in layers.into_iter().enumerate() {
        let i = i + 1;
        let name = format!("{SCOPE}Conv2d_{i}_depthwise");
        let own = builder.depthwise(&name, outputs[i - 1], square(3, stride), hyper)?;
        let name = format!("{SCOPE}Conv2d_{i}_pointwise");
        outputs.push(builder.conv(&name, own, square(1, 1), builder.depth(channels), hyper)?);
    }
    Ok(outputs)
}

fn ssd(builder: &mut Builder) -> Result<Vec<Source>, Error> {
    let outputs = base(builder, (1024, 1024))?;
    let maps = vec![outputs[11], outputs[13]];
    extra_maps::add(builder, (SCOPE, "Conv2d_13_pointwise"), maps, &EXTRAS)
}

fn pyramid(builder: &mut Builder) -> Result<Vec<Source>, Error> {
    let separable = builder.config.use_depthwise;
    // With separable convolutions the reference thins the last two layers of the base network out.
    let last = if separable { (512, 256) } else { (1024, 1024) };
    let outputs = base(builder, last)?;
    let pyramid = Pyramid {
        scope: "FeatureExtractor/MobilenetV1/fpn/",
        blocks: [outputs[3], outputs[5], outputs[11], outputs[13]],
        coarse: ("bottom_up_Conv2d_", 14),
        separable,
    };
    fpn::add(builder, &pyramid)
}

fn pooled(builder: &mut Builder) -> Result<Vec<Source>, Error> {
    let outputs = base(builder, (1024, 1024))?;
    ppn::add(builder, "FeatureExtractor/", outputs[11], 0)
}
