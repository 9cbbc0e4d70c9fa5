//! Losses of single predictions, with their gradients.
//!
//! [`Classification`] and [`Localization`] are what a configuration chooses from. Each loss is a file: its value and its gradient
//! beside each other, checked against the reference's numbers and against finite differences.

pub mod bootstrapped;
mod classification;
pub mod dice;
pub mod focal;
pub mod iou;
mod localization;
pub mod penalty_reduced;
pub mod sigmoid;
pub mod smooth_l1;
pub mod softmax;

pub(crate) use classification::one_hot;
pub use classification::{Classification, Row};
pub use localization::Localization;
