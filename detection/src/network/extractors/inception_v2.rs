//! Inception v2 (arXiv:1502.03167): `ssd_inception_v2`.

use super::super::builder::{Builder, Normaliser, Padding, square};
use super::super::config::{Hyperparams, Initializer};
use super::super::error::Error;
use super::super::plan::Source;
use super::extra_maps::{self, Extra};
use super::inception_v3::{Op, block};
use super::{Extractor, USUAL};

/// The reference's `SSDInceptionV2FeatureExtractor`.
pub(super) const SSD: Extractor = Extractor {
    name: "ssd_inception_v2",
    maps: 2..=6,
    build: ssd,
    ..USUAL
};

const SCOPE: &str = "FeatureExtractor/InceptionV2/";
const EXTRAS: [Extra; 4] = [(512, 3), (256, 3), (256, 3), (128, 3)];

/// A block of four branches: channels of each branch's convolutions, and the pool of the last branch.
type Mixed = (&'static str, usize, [usize; 2], [usize; 2], (Op, usize));
const EARLY: [Mixed; 2] = [
    ("Mixed_3b", 64, [64, 64], [64, 96], (Op::Average, 32)),
    ("Mixed_3c", 64, [64, 96], [64, 96], (Op::Average, 64)),
];
const MIDDLE: [Mixed; 4] = [
    ("Mixed_4b", 224, [64, 96], [96, 128], (Op::Average, 128)),
    ("Mixed_4c", 192, [96, 128], [96, 128], (Op::Average, 128)),
    ("Mixed_4d", 160, [128, 160], [128, 160], (Op::Average, 96)),
    ("Mixed_4e", 96, [128, 192], [160, 192], (Op::Average, 96)),
];
const LATE: [Mixed; 2] = [
    ("Mixed_5b", 352, [192, 320], [160, 224], (Op::Average, 128)),
    ("Mixed_5c", 352, [192, 320], [192, 224], (Op::Max(1, false), 128)),
];

/// slim's own first values of some layers, whatever the settings say.
fn drawn(hyper: &Hyperparams, stddev: f32) -> Hyperparams {
    Hyperparams {
        initializer: Initializer::TruncatedNormal { mean: 0.0, stddev },
        ..hyper.clone()
    }
}

fn mixed(builder: &mut Builder, from: Source, blocks: &[Mixed]) -> Result<Vec<Source>, Error> {
    let mut outputs = Vec::new();
    let mut last = from;
    for &(name, first, second, third, (pool, projected)) in blocks {
        let branches: [&[Op]; 4] = [
            &[Op::Conv("Conv2d_0a_1x1", (1, 1), first, 0.0)],
            &[
                Op::Conv("Conv2d_0a_1x1", (1, 1), second[0], 0.09),
                Op::Conv("Conv2d_0b_3x3", (3, 3), second[1], 0.0),
            ],
            &[
                Op::Conv("Conv2d_0a_1x1", (1, 1), third[0], 0.09),
                Op::Conv("Conv2d_0b_3x3", (3, 3), third[1], 0.0),
                Op::Conv("Conv2d_0c_3x3", (3, 3), third[1], 0.0),
            ],
            &[pool, Op::Conv("Conv2d_0b_1x1", (1, 1), projected, 0.1)],
        ];
        last = block(builder, &format!("{SCOPE}{name}"), last, &branches)?;
        outputs.push(last);
    }
    Ok(outputs)
}

/// A block that halves the map.
fn halving(
    builder: &mut Builder,
    name: &str,
    from: Source,
    first: [usize; 2],
    second: [usize; 2],
) -> Result<Source, Error> {
    let branches: [&[Op]; 3] = [
        &[
            Op::Conv("Conv2d_0a_1x1", (1, 1), first[0], 0.09),
            Op::Halve("Conv2d_1a_3x3", first[1], false),
        ],
        &[
            Op::Conv("Conv2d_0a_1x1", (1, 1), second[0], 0.09),
            Op::Conv("Conv2d_0b_3x3", (3, 3), second[1], 0.0),
            Op::Halve("Conv2d_1a_3x3", second[1], false),
        ],
        &[Op::Max(2, false)],
    ];
    block(builder, &format!("{SCOPE}{name}"), from, &branches)
}

fn ssd(builder: &mut Builder) -> Result<Vec<Source>, Error> {
    let hyper = &builder.config.base;
    let explicit = std::mem::replace(&mut builder.padding, Padding::Same);
    let depth = builder.depth(64);
    let name = format!("{SCOPE}Conv2d_1a_7x7");
    let multiplier = (depth / 3).clamp(1, 8);
    let stem = (square(7, 2), multiplier);
    let after = (Normaliser::Own, hyper.activation);
    let stem = builder.separable(&name, Source::Image, stem, depth, &drawn(hyper, 1.0), after)?;
    let pool = builder.max_pool(&format!("{SCOPE}MaxPool_2a_3x3"), stem, 3, 2)?;
    let (narrow, wide) = (drawn(hyper, 0.1), builder.depth(192));
    let net = builder.conv(&format!("{SCOPE}Conv2d_2b_1x1"), pool, square(1, 1), depth, &narrow)?;
    let net = builder.conv(&format!("{SCOPE}Conv2d_2c_3x3"), net, square(3, 1), wide, hyper)?;
    let pool = builder.max_pool(&format!("{SCOPE}MaxPool_3a_3x3"), net, 3, 2)?;
    let early = mixed(builder, pool, &EARLY)?;
    let half = halving(builder, "Mixed_4a", early[1], [128, 160], [64, 96])?;
    let middle = mixed(builder, half, &MIDDLE)?;
    let half = halving(builder, "Mixed_5a", middle[3], [128, 192], [192, 256])?;
    let late = mixed(builder, half, &LATE)?;
    builder.padding = explicit;
    extra_maps::add(builder, (SCOPE, "Mixed_5c"), vec![middle[1], late[1]], &EXTRAS)
}
