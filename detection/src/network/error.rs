/// Why a network was not made or does not accept what it was given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image is too small for the chain of strides.
    #[error(
        "image size {height} x {width}: each side must be at least {least} pixels\nhint: set image_resizer.fixed_shape_resizer"
    )]
    ImageSize {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// The least that is accepted.
        least: usize,
    },
    /// The number of feature maps is not that of this feature extractor.
    #[error(
        "{found} feature maps: {extractor} has {} to {}\nhint: the anchor generator's num_layers (or levels) is the number of feature maps",
        expected.start(), expected.end()
    )]
    FeatureMaps {
        /// The feature extractor.
        extractor: &'static str,
        /// What was asked for.
        found: usize,
        /// What there may be.
        expected: std::ops::RangeInclusive<usize>,
    },
    /// No feature extractor of this name.
    #[error("feature_extractor.type {name:?} is not built\nhint: {known} are")]
    Extractor {
        /// Asked for.
        name: String,
        /// All that there are.
        known: String,
    },
    /// A setting outside what makes sense.
    #[error("{setting} is {value}: {expected}")]
    Setting {
        /// The setting's name in the configuration.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A slice of the wrong length.
    #[error("{what} has {found} elements, {expected} are needed ({why})")]
    Length {
        /// Which argument.
        what: &'static str,
        /// Its length.
        found: usize,
        /// What it should be.
        expected: usize,
        /// How that is made up.
        why: String,
    },
    /// `backward` without `forward(…, Mode::Train)` just before.
    #[error("a backward pass needs the forward pass in training mode just before it")]
    NoForward,
    /// The network does not fit in memory.
    #[error(
        "a batch of {batch} images needs more memory than can be addressed\nhint: use a smaller batch_size or image"
    )]
    TooLarge {
        /// Images.
        batch: usize,
    },
    /// Statistics over all replicas.
    #[error("batch norm's statistics over all replicas: {0}")]
    Together(String),
    /// The device.
    #[error(transparent)]
    Accelerator(#[from] crate::accelerator::Error),
    /// Compute threads.
    #[error(transparent)]
    Kernels(#[from] crate::kernels::Error),
}
