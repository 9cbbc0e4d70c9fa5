use crate::accelerator::memory::amount_of;

/// Why a network was not made or does not accept what it was given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image is too small for the chain of strides.
    #[error(
        "image size {height} x {width}: each side must be at least {least} pixels\nhint: fixed_shape_resizer gives all images one size; with keep_aspect_ratio_resizer raise min_dimension and max_dimension"
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
    /// The memory that is free does not do.
    #[error(
        "{batch} x {height} x {width} pixels: the network's buffers take {} more, {}\nhint: smaller images do it, for example \
         with keep_aspect_ratio_resizer {{ min_dimension: 600 max_dimension: 1024 }}, or a smaller batch_size",
        amount_of(*needed), free.map_or_else(|| "which the system refuses".to_owned(), |free| format!("{} are free", amount_of(free)))
    )]
    Memory {
        /// Images.
        batch: usize,
        /// Their height in pixels.
        height: usize,
        /// Their width in pixels.
        width: usize,
        /// Bytes.
        needed: u64,
        /// Bytes, where the system tells.
        free: Option<u64>,
    },
    /// A layout for another size has other variables.
    #[error(
        "at {height} x {width} pixels the network has other variables than before (from {variable})\nhint: this is a fault of the program, please report it"
    )]
    Variables {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// The first that differs.
        variable: String,
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

impl Error {
    /// Whether another image might do, since this one's size does not.
    pub fn is_of_size(&self) -> bool {
        let setting = |name: &str| name.starts_with("image_resizer");
        match self {
            Self::ImageSize { .. } | Self::TooLarge { .. } | Self::Memory { .. } => true,
            Self::Setting { setting: name, .. } => setting(name),
            Self::Accelerator(error) => matches!(error, crate::accelerator::Error::OutOfMemory(_)),
            _ => false,
        }
    }
}
