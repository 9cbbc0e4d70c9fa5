//! Inception v3 (arXiv:1512.00567): `ssd_inception_v3`; and how blocks of branches are built.

use super::super::builder::{Builder, Padding, Sliding, square};
use super::super::config::{Hyperparams, Initializer};
use super::super::error::Error;
use super::super::plan::Source;
use super::extra_maps::{self, Extra};
use super::{Extractor, USUAL};

/// The reference's `SSDInceptionV3FeatureExtractor`.
pub(super) const SSD: Extractor = Extractor {
    name: "ssd_inception_v3",
    // Below this the unpadded windows do not fit.
    least_size: 75,
    maps: 3..=6,
    build: ssd,
    ..USUAL
};

const SCOPE: &str = "FeatureExtractor/InceptionV3/";
const EXTRAS: [Extra; 3] = [(512, 3), (256, 3), (128, 3)];

/// A step of a branch.
#[derive(Clone, Copy)]
pub(super) enum Op {
    /// Name, window, channels; the standard deviation of its first values if it has one of its own, else 0.
    Conv(&'static str, (usize, usize), usize, f32),
    /// Name and channels of a 3x3 convolution with stride 2; whether it has no padding.
    Halve(&'static str, usize, bool),
    /// Stride of a 3x3 maximum; whether it has no padding.
    Max(usize, bool),
    /// A 3x3 mean.
    Average,
    /// Two convolutions of so many channels on the same input, side by side.
    Both([(&'static str, (usize, usize)); 2], usize),
}

/// Branches on `from`, side by side.
pub(super) fn block(builder: &mut Builder, scope: &str, from: Source, branches: &[&[Op]]) -> Result<Source, Error> {
    let mut ends = Vec::new();
    for (i, ops) in branches.iter().enumerate() {
        let mut last = from;
        for &op in *ops {
            last = step(builder, &format!("{scope}/Branch_{i}"), last, op)?;
        }
        ends.push(last);
    }
    builder.concat(&format!("{scope}/concat"), &ends)
}

fn step(builder: &mut Builder, scope: &str, from: Source, op: Op) -> Result<Source, Error> {
    let hyper = &builder.config.base;
    let one: Sliding = square(1, 1);
    match op {
        Op::Conv(name, kernel, channels, stddev) => {
            let own;
            let hyper = if stddev > 0.0 {
                let initializer = Initializer::TruncatedNormal { mean: 0.0, stddev };
                own = Hyperparams {
                    initializer,
                    ..hyper.clone()
                };
                &own
            } else {
                hyper
            };
            let channels = builder.depth(channels);
            builder.conv(&format!("{scope}/{name}"), from, (kernel, one.1), channels, hyper)
        }
        Op::Halve(name, channels, valid) => {
            let channels = builder.depth(channels);
            without_padding(builder, valid, |builder| {
                builder.conv(&format!("{scope}/{name}"), from, square(3, 2), channels, hyper)
            })
        }
        Op::Max(stride, valid) => without_padding(builder, valid, |builder| {
            builder.max_pool(&format!("{scope}/MaxPool"), from, 3, stride)
        }),
        Op::Average => builder.average_pool(&format!("{scope}/AvgPool_0a_3x3"), from, 3, 1),
        Op::Both(convolutions, channels) => {
            let channels = builder.depth(channels);
            let mut ends = Vec::new();
            for (name, kernel) in convolutions {
                ends.push(builder.conv(&format!("{scope}/{name}"), from, (kernel, 1), channels, hyper)?);
            }
            builder.concat(&format!("{scope}/concat"), &ends)
        }
    }
}

fn without_padding(
    builder: &mut Builder,
    valid: bool,
    add: impl FnOnce(&mut Builder) -> Result<Source, Error>,
) -> Result<Source, Error> {
    let before = builder.padding;
    if valid {
        builder.padding = Padding::Valid;
    }
    let found = add(builder);
    builder.padding = before;
    found
}

const fn conv(name: &'static str, kernel: (usize, usize), channels: usize) -> Op {
    Op::Conv(name, kernel, channels, 0.0)
}

/// 35 x 35; the second one's names are the reference's own slips.
fn large(
    builder: &mut Builder,
    name: &str,
    from: Source,
    names: [&'static str; 2],
    pooled: usize,
) -> Result<Source, Error> {
    let branches: [&[Op]; 4] = [
        &[conv("Conv2d_0a_1x1", (1, 1), 64)],
        &[conv(names[0], (1, 1), 48), conv(names[1], (5, 5), 64)],
        &[
            conv("Conv2d_0a_1x1", (1, 1), 64),
            conv("Conv2d_0b_3x3", (3, 3), 96),
            conv("Conv2d_0c_3x3", (3, 3), 96),
        ],
        &[Op::Average, conv("Conv2d_0b_1x1", (1, 1), pooled)],
    ];
    block(builder, &format!("{SCOPE}{name}"), from, &branches)
}

/// 17 x 17.
fn medium(builder: &mut Builder, name: &str, from: Source, inner: usize) -> Result<Source, Error> {
    let branches: [&[Op]; 4] = [
        &[conv("Conv2d_0a_1x1", (1, 1), 192)],
        &[
            conv("Conv2d_0a_1x1", (1, 1), inner),
            conv("Conv2d_0b_1x7", (1, 7), inner),
            conv("Conv2d_0c_7x1", (7, 1), 192),
        ],
        &[
            conv("Conv2d_0a_1x1", (1, 1), inner),
            conv("Conv2d_0b_7x1", (7, 1), inner),
            conv("Conv2d_0c_1x7", (1, 7), inner),
            conv("Conv2d_0d_7x1", (7, 1), inner),
            conv("Conv2d_0e_1x7", (1, 7), 192),
        ],
        &[Op::Average, conv("Conv2d_0b_1x1", (1, 1), 192)],
    ];
    block(builder, &format!("{SCOPE}{name}"), from, &branches)
}

/// 8 x 8.
fn small(builder: &mut Builder, name: &str, from: Source, second: &'static str) -> Result<Source, Error> {
    let branches: [&[Op]; 4] = [
        &[conv("Conv2d_0a_1x1", (1, 1), 320)],
        &[
            conv("Conv2d_0a_1x1", (1, 1), 384),
            Op::Both([("Conv2d_0b_1x3", (1, 3)), (second, (3, 1))], 384),
        ],
        &[
            conv("Conv2d_0a_1x1", (1, 1), 448),
            conv("Conv2d_0b_3x3", (3, 3), 384),
            Op::Both([("Conv2d_0c_1x3", (1, 3)), ("Conv2d_0d_3x1", (3, 1))], 384),
        ],
        &[Op::Average, conv("Conv2d_0b_1x1", (1, 1), 192)],
    ];
    block(builder, &format!("{SCOPE}{name}"), from, &branches)
}

fn stem(builder: &mut Builder) -> Result<Source, Error> {
    let hyper = &builder.config.base;
    let mut last = Source::Image;
    let layers = [
        ("Conv2d_1a_3x3", square(3, 2), 32, Padding::Valid),
        ("Conv2d_2a_3x3", square(3, 1), 32, Padding::Valid),
        ("Conv2d_2b_3x3", square(3, 1), 64, Padding::Same),
        ("MaxPool_3a_3x3", square(3, 2), 0, Padding::Valid),
        ("Conv2d_3b_1x1", square(1, 1), 80, Padding::Valid),
        ("Conv2d_4a_3x3", square(3, 1), 192, Padding::Valid),
        ("MaxPool_5a_3x3", square(3, 2), 0, Padding::Valid),
    ];
    for (name, sliding, channels, padding) in layers {
        let name = format!("{SCOPE}{name}");
        builder.padding = padding;
        last = if channels == 0 {
            builder.max_pool(&name, last, 3, 2)?
        } else {
            builder.conv(&name, last, sliding, builder.depth(channels), hyper)?
        };
    }
    builder.padding = Padding::Same;
    Ok(last)
}

fn ssd(builder: &mut Builder) -> Result<Vec<Source>, Error> {
    let explicit = builder.padding;
    let net = stem(builder)?;
    let net = large(builder, "Mixed_5b", net, ["Conv2d_0a_1x1", "Conv2d_0b_5x5"], 32)?;
    let net = large(builder, "Mixed_5c", net, ["Conv2d_0b_1x1", "Conv_1_0c_5x5"], 64)?;
    let first = large(builder, "Mixed_5d", net, ["Conv2d_0a_1x1", "Conv2d_0b_5x5"], 64)?;
    let halving: [&[Op]; 3] = [
        &[Op::Halve("Conv2d_1a_1x1", 384, true)],
        &[
            conv("Conv2d_0a_1x1", (1, 1), 64),
            conv("Conv2d_0b_3x3", (3, 3), 96),
            Op::Halve("Conv2d_1a_1x1", 96, true),
        ],
        &[Op::Max(2, true)],
    ];
    let net = block(builder, &format!("{SCOPE}Mixed_6a"), first, &halving)?;
    let net = medium(builder, "Mixed_6b", net, 128)?;
    let net = medium(builder, "Mixed_6c", net, 160)?;
    let net = medium(builder, "Mixed_6d", net, 160)?;
    let second = medium(builder, "Mixed_6e", net, 192)?;
    let halving: [&[Op]; 3] = [
        &[
            conv("Conv2d_0a_1x1", (1, 1), 192),
            Op::Halve("Conv2d_1a_3x3", 320, true),
        ],
        &[
            conv("Conv2d_0a_1x1", (1, 1), 192),
            conv("Conv2d_0b_1x7", (1, 7), 192),
            conv("Conv2d_0c_7x1", (7, 1), 192),
            Op::Halve("Conv2d_1a_3x3", 192, true),
        ],
        &[Op::Max(2, true)],
    ];
    let net = block(builder, &format!("{SCOPE}Mixed_7a"), second, &halving)?;
    let net = small(builder, "Mixed_7b", net, "Conv2d_0b_3x1")?;
    let third = small(builder, "Mixed_7c", net, "Conv2d_0c_3x1")?;
    builder.padding = explicit;
    extra_maps::add(builder, (SCOPE, "Mixed_7c"), vec![first, second, third], &EXTRAS)
}
