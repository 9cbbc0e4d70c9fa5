//! Feature maps behind the base network's: the reference's `multi_resolution_feature_maps`.

use super::super::builder::{Builder, square};
use super::super::error::Error;
use super::super::plan::Source;

/// Channels and window of an extra map.
pub(super) type Extra = (usize, usize);

/// Adds to `maps`, of which the last is called `last` in the scope `scope`, as many of `extras` as the configuration has room for: a 1x1
/// convolution to half the channels, then one with stride 2.
pub(super) fn add(
    builder: &mut Builder,
    (scope, last): (&str, &str),
    mut maps: Vec<Source>,
    extras: &[Extra],
) -> Result<Vec<Source>, Error> {
    let config = builder.config;
    let wanted = config.anchors_per_location.len();
    maps.truncate(wanted);
    let (first, missing) = (maps.len(), wanted - maps.len());
    for (i, &(channels, kernel)) in extras.iter().enumerate().take(missing) {
        let index = first + i;
        let (half, full) = (builder.depth(channels / 2), builder.depth(channels));
        let Some(&from) = maps.last() else { break };
        let name = format!("{scope}{last}_1_Conv2d_{index}_1x1_{half}");
        let narrow = builder.conv(&name, from, square(1, 1), half, &config.extra)?;
        let name = format!("{scope}{last}_2_Conv2d_{index}_{kernel}x{kernel}_s2_{full}");
        let sliding = square(kernel, 2);
        maps.push(if config.use_depthwise {
            let own = builder.depthwise(&format!("{name}_depthwise"), narrow, sliding, &config.extra)?;
            builder.conv(&name, own, square(1, 1), full, &config.extra)?
        } else {
            builder.conv(&name, narrow, sliding, full, &config.extra)?
        });
    }
    Ok(maps)
}
