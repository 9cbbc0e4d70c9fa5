//! The same network for images of another size.

use std::ops::RangeInclusive;

use super::error::Error;
use super::plan::{LARGEST, Plan, plan};
use super::{Network, NetworkConfig, extractors, layer_time};

/// A network's layers for images of some size; variables are the network's.
#[derive(Debug)]
pub(crate) struct Layout {
    config: NetworkConfig,
    plan: Plan,
}

impl Layout {
    /// (height, width) of each feature map.
    pub(crate) fn feature_map_shapes(&self) -> &[(usize, usize)] {
        &self.plan.feature_maps
    }

    /// Anchors of all feature maps together.
    pub(crate) fn anchors(&self) -> usize {
        self.plan.anchors
    }
}

impl Network {
    /// (height, width) in pixels of the images that it is laid out for.
    pub fn image_size(&self) -> (usize, usize) {
        self.plan.image
    }

    /// How long the sides of an image may be, in pixels.
    pub fn sides(&self) -> RangeInclusive<usize> {
        let least = extractors::find(&self.config.extractor).map_or(1, |extractor| extractor.least_size);
        least..=LARGEST
    }

    /// Lays it out again for images of (height, width) pixels; does nothing where they have these. All else stays: what it computes from then on
    /// is what a network made for that size computes, bit for bit.
    ///
    /// A backward pass needs a forward pass after this one.
    ///
    /// # Errors
    /// Sizes that there is no network for. It is laid out as before then.
    pub fn lay_out(&mut self, size: (usize, usize)) -> Result<(), Error> {
        if size != self.image_size() {
            self.adopt(self.layout(size)?);
        }
        Ok(())
    }

    /// A layout for images of (height, width) pixels.
    pub(crate) fn layout(&self, size: (usize, usize)) -> Result<Layout, Error> {
        let (config, plan) = self.plan.of_size(&self.config, size)?;
        Ok(Layout { config, plan })
    }

    /// Takes over a layout of its own.
    pub(crate) fn adopt(&mut self, layout: Layout) {
        let Layout { config, plan } = layout;
        self.buffers.lay_out(&plan);
        self.times = plan.layers.iter().map(layer_time).collect();
        self.image = [config.image_height, config.image_width, config.image_channels];
        self.images = None;
        self.boxes.clear();
        self.config = config;
        self.plan = plan;
    }
}

impl Plan {
    /// The plan of the same network for images of (height, width) pixels, and its configuration; `config` is this one's.
    ///
    /// # Errors
    /// Sizes that there is no network for, or one with other variables.
    pub fn of_size(
        &self,
        config: &NetworkConfig,
        (height, width): (usize, usize),
    ) -> Result<(NetworkConfig, Self), Error> {
        let config = NetworkConfig {
            image_height: height,
            image_width: width,
            ..config.clone()
        };
        let plan = plan(&config)?;
        match self.other_variable(&plan) {
            None => Ok((config, plan)),
            Some(variable) => Err(Error::Variables {
                height,
                width,
                variable,
            }),
        }
    }

    /// The first variable that another layout of the same network has not, or has otherwise.
    fn other_variable(&self, other: &Self) -> Option<String> {
        let pairs = self.variables.iter().zip(&other.variables);
        let differs = pairs.clone().position(|(ours, theirs)| ours != theirs);
        let at = differs.or((self.variables.len() != other.variables.len()).then(|| pairs.len()))?;
        let found = self.variables.get(at).or_else(|| other.variables.get(at))?;
        Some(found.name.clone())
    }
}
