//! Object detectors: what turns images and groundtruth into losses, gradients and detections.
//!
//! [`model::Ssd`] is the way in. Its two halves are [`network`], which maps images to raw predictions and gradients back to weights,
//! and the box side in plain Rust between those predictions and the groundtruth: [`anchors`], [`box_coder`], [`similarity`],
//! [`matcher`], [`target_assigner`], [`losses`], [`hard_example_miner`], [`random_example_sampler`] and [`ssd_loss`] for training, [`nms`] and
//! [`postprocess`] for inference. [`config`] builds all of it from `pipeline.config`'s messages.
//!
//! Boxes are `[ymin, xmin, ymax, xmax]`, normalised to the image; classes count from 0; class column 0 is the background.

pub mod accelerator;
pub mod anchors;
pub mod box_coder;
pub mod config;
pub mod gradients;
pub mod groundtruth;
pub mod hard_example_miner;
pub mod kernels;
pub mod losses;
pub mod matcher;
pub mod model;
pub mod network;
pub mod nms;
pub mod postprocess;
pub mod random_example_sampler;
pub mod similarity;
pub mod squash;
pub mod ssd_loss;
pub mod target_assigner;

pub use groundtruth::Groundtruth;
pub use postprocess::Detections;

/// A box: `[ymin, xmin, ymax, xmax]`.
pub type Corners = [f32; 4];
