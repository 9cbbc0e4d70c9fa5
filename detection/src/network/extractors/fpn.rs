//! Feature pyramids (arXiv:1612.03144): the reference's `fpn_top_down_feature_maps` and the coarse maps behind it.

use super::super::builder::{Builder, Normaliser, square};
use super::super::config::Activation;
use super::super::error::Error;
use super::super::plan::Source;

/// What a backbone says of its pyramid.
pub(super) struct Pyramid<'a> {
    /// Scope, with a slash at its end.
    pub(super) scope: &'a str,
    /// Maps of levels 2 to 5.
    pub(super) blocks: [Source; 4],
    /// Names of the coarse maps, with `{}` for their number, and the number of the first.
    pub(super) coarse: (&'a str, usize),
    /// Whether its convolutions are separable.
    pub(super) separable: bool,
}

/// Adds the pyramid between `fpn.min_level` and `fpn.max_level`.
pub(super) fn add(builder: &mut Builder, pyramid: &Pyramid) -> Result<Vec<Source>, Error> {
    let config = builder.config;
    let fpn = config.fpn;
    let expected = match () {
        () if !(2..=5).contains(&fpn.min_level) => Some("min_level 2 to 5"),
        () if fpn.max_level < fpn.min_level || fpn.max_level > 10 => Some("max_level min_level to 10"),
        () if fpn.max_level - fpn.min_level + 1 != config.anchors_per_location.len() => {
            Some("the levels of multiscale_anchor_generator")
        }
        () => None,
    };
    if let Some(expected) = expected {
        return Err(Error::Setting {
            setting: "feature_extractor.fpn",
            value: format!("min_level {} max_level {}", fpn.min_level, fpn.max_level),
            expected,
        });
    }
    let depth = builder.depth(fpn.additional_layer_depth);
    let last = fpn.max_level.min(5);
    let blocks = &pyramid.blocks[fpn.min_level - 2..=last - 2];
    let mut maps = top_down(builder, pyramid, blocks, depth)?;
    maps.reverse();
    let (name, first) = pyramid.coarse;
    for i in 0..fpn.max_level - last {
        let Some(&from) = maps.last() else { break };
        let name = format!("{}{name}{}", pyramid.scope, first + i);
        let map = builder.conv_or_separable(&name, from, square(3, 2), depth, &config.extra, pyramid.separable)?;
        maps.push(map);
    }
    Ok(maps)
}

/// The coarsest map first. It is a bare projection, the others are smoothed sums; what goes on downwards is the sum.
fn top_down(builder: &mut Builder, pyramid: &Pyramid, blocks: &[Source], depth: usize) -> Result<Vec<Source>, Error> {
    let config = builder.config;
    let mut maps: Vec<Source> = Vec::new();
    let mut above = None;
    for (i, &block) in blocks.iter().enumerate().rev() {
        let name = format!("{}projection_{}", pyramid.scope, i + 1);
        let bare = (Normaliser::Biases, Activation::None);
        let residual = builder.conv_with((&name, "weights"), block, square(1, 1), depth, &config.extra, bare)?;
        let Some(coarser) = above.replace(residual) else {
            maps.push(residual);
            continue;
        };
        let (size, half) = (builder.size(residual), builder.size(coarser));
        let doubled = (2 * half.0, 2 * half.1);
        // With explicit padding the reference cuts off what is too much.
        let cut = config.use_explicit_padding && half == (size.0.div_ceil(2), size.1.div_ceil(2));
        if size != doubled && !cut {
            return Err(Error::Setting {
                setting: "image_resizer",
                value: format!("{} x {}", config.image_height, config.image_width),
                expected: "sides that halve evenly up to the pyramid's top: multiples of 32, or pad_to_multiple: 32",
            });
        }
        let sum = builder.add(
            &format!("{}top_down_{}", pyramid.scope, i + 1),
            residual,
            coarser,
            Activation::None,
        )?;
        above = Some(sum);
        let name = format!("{}smoothing_{}", pyramid.scope, i + 1);
        maps.push(builder.conv_or_separable(&name, sum, square(3, 1), depth, &config.extra, pyramid.separable)?);
    }
    Ok(maps)
}
