//! The optimisers of the Object Detection API with TensorFlow's arithmetic and slot names.

mod config;
mod rules;

pub use coati_common::optimizer::{Rule, Slot};
pub use config::{Error, OptimizerConfig};
pub use rules::{AdamPowers, moving_average, update};

/// Suffix of the exponential moving average that `use_moving_average` keeps of each trainable variable.
pub const MOVING_AVERAGE: &str = "ExponentialMovingAverage";
