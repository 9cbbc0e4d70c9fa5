//! Images of another size: the network and its anchors, laid out again.

use std::ops::RangeInclusive;

use super::{Error, Ssd};
use crate::Corners;
use crate::anchors::Generator;

/// The prior boxes of a network's feature maps (height, width), for images of (height, width) pixels; the network predicts `predicted`.
pub(super) fn anchors(
    generator: &Generator,
    maps: &[(usize, usize)],
    predicted: usize,
    size: (usize, usize),
) -> Result<Vec<Corners>, Error> {
    let anchors = generator.generate(maps, size)?;
    if anchors.len() != predicted {
        return Err(Error::AnchorCount {
            anchors: anchors.len(),
            predicted,
        });
    }
    Ok(anchors)
}

impl Ssd {
    /// How long the sides of an image may be, in pixels.
    pub fn sides(&self) -> RangeInclusive<usize> {
        self.network.sides()
    }

    /// Lays the detector out for images of (height, width) pixels: all of a call have one size, and those of the next may have another. It starts
    /// with the size that `image_resizer` gives, and with some size where that gives many. Variables and what they mean stay; where the size is
    /// what it was, nothing is done.
    ///
    /// # Errors
    /// A size that there is no network for, which [`Error::is_of_size`] tells from others. All is as before then.
    pub fn set_input_size(&mut self, size: (usize, usize)) -> Result<(), Error> {
        if size == self.input_size {
            return Ok(());
        }
        let layout = self.network.layout(size)?;
        let anchors = anchors(&self.generator, layout.feature_map_shapes(), layout.anchors(), size)?;
        if let Some(accelerator) = &mut self.accelerator {
            accelerator.lay_out(size, layout.anchors()).map_err(Error::from)?;
        }
        self.network.adopt(layout);
        self.anchors = anchors;
        self.input_size = size;
        Ok(())
    }
}
