//! Pooling pyramids (arXiv:1807.03284): the reference's `pooling_pyramid_feature_maps`.

use super::super::builder::{Builder, square};
use super::super::error::Error;
use super::super::plan::Source;

/// Maps in all.
pub(super) const MAPS: usize = 6;

/// `from`, projected to `depth` channels unless that is 0, and five times pooled.
pub(super) fn add(builder: &mut Builder, scope: &str, from: Source, depth: usize) -> Result<Vec<Source>, Error> {
    let config = builder.config;
    let mut last = from;
    if depth > 0 {
        // Outside of the base network's scope, as in the reference.
        last = builder.conv(
            &format!("{scope}Base_Conv2d_1x1_{depth}"),
            last,
            square(1, 1),
            depth,
            &config.extra,
        )?;
    }
    let mut maps = vec![last];
    for i in 0..MAPS - 1 {
        last = builder.max_pool(&format!("{scope}MaxPool2d_{i}_2x2"), last, 2, 2)?;
        maps.push(last);
    }
    Ok(maps)
}
